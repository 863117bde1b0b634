//! What every request must be before any handler sees it: of a program on this machine that means this server, and not of a
//! browser, a proxy or a name that somebody has pointed here.

use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, ORIGIN, TRANSFER_ENCODING};
use hyper::{Request, StatusCode};

use super::reply::Refusal;

/// Lets a request through.
pub(super) fn admit(request: &Request<Incoming>) -> Result<(), Refusal> {
    let (uri, headers) = (request.uri(), request.headers());
    let Some(host) = only(headers, &HOST) else {
        return Err(Refusal(StatusCode::BAD_REQUEST, "one Host is needed"));
    };
    if uri.authority().is_some() || !uri.path().starts_with('/') {
        return Err(Refusal(StatusCode::BAD_REQUEST, "this is no proxy: ask for a path"));
    }
    if !is_ours(host) {
        return Err(Refusal(StatusCode::FORBIDDEN, "this Host is not one of this server"));
    }
    if headers.contains_key(TRANSFER_ENCODING) {
        return Err(Refusal(StatusCode::LENGTH_REQUIRED, "say how long the body is with Content-Length"));
    }
    if headers.keys().any(is_forwarded) {
        return Err(Refusal(StatusCode::FORBIDDEN, "forwarded requests are not served"));
    }
    if headers.keys().any(is_of_a_browser) {
        return Err(Refusal(StatusCode::FORBIDDEN, "browsers are not served"));
    }
    let is_metadata = uri.path().starts_with("/computeMetadata");
    if is_metadata && !headers.contains_key(FLAVOR) {
        let missing = r#"Missing required header "Metadata-Flavor": "Google""#;
        return Err(Refusal(StatusCode::FORBIDDEN, missing));
    }
    if is_metadata && only(headers, &FLAVOR) != Some("Google") {
        return Err(Refusal(StatusCode::NOT_FOUND, "Metadata-Flavor is Google, once"));
    }
    Ok(())
}

/// Whether a request carries a bearer token, whatever its value, as each of Google's clients does for the IAM Credentials API:
/// who was led to post to a URL has none, and the kernel tells no more than whose program that was.
pub(super) fn bears_a_token(headers: &HeaderMap) -> bool {
    let given = only(headers, &AUTHORIZATION).and_then(|value| value.split_once(' '));
    given.is_some_and(|(scheme, token)| scheme.eq_ignore_ascii_case("Bearer") && !token.trim().is_empty())
}

/// The value of a header that stands there once.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().filter(|_| values.next().is_none())?;
    value.to_str().ok()
}

/// Whether a Host is a name of this server; any port, since some forward to it. But a name that a hostile DNS could point
/// here stands with the port that it is asked at by whoever means the metadata server: a page that was loaded from this port
/// under such a name says so.
fn is_ours(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((name, "")) => (name, None),
        Some((name, port)) => (name, port.strip_prefix(':').or(Some("no port"))),
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    let is_loopback = || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    if DNS_NAMES.iter().any(|ours| ours.eq_ignore_ascii_case(name)) {
        return port.is_none_or(|port| port == "80");
    }
    let named = NAMES.iter().any(|ours| ours.eq_ignore_ascii_case(name)) || is_loopback();
    named && port.is_none_or(|port| port.parse::<u16>().is_ok() && !port.starts_with('+'))
}

fn is_forwarded(name: &HeaderName) -> bool {
    FORWARDED.contains(&name.as_str()) || name.as_str().starts_with("x-forwarded-")
}

fn is_of_a_browser(name: &HeaderName) -> bool {
    *name == ORIGIN || name.as_str().starts_with("sec-fetch-")
}

const FLAVOR: HeaderName = HeaderName::from_static("metadata-flavor");
const DNS_NAMES: [&str; 2] = ["metadata.google.internal", "metadata"];
const NAMES: [&str; 2] = ["169.254.169.254", "localhost"];
const FORWARDED: [&str; 4] = ["forwarded", "via", "x-real-ip", "x-original-forwarded-for"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_of_this_server_with_any_port() {
        for host in [
            "metadata.google.internal",
            "METADATA",
            "metadata:80",
            "169.254.169.254",
            "127.0.0.1:8980",
            "127.0.0.2",
            "localhost:1",
            "[::1]",
            "[::1]:8980",
        ] {
            assert!(is_ours(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "metadata.google.internal.evil.example",
            "metadata.google.internal.",
            "metadata.google.internal:8980",
            "metadata:8980",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "127.0.0.1:",
            "127.0.0.1:x",
            "127.0.0.1:+1",
            "127.0.0.1:80:80",
            "127.1",
            "2130706433",
            "0x7f.0.0.1",
            "0.0.0.0",
            "[::1",
            "[::1]x",
            "[::ffff:127.0.0.1]",
            "::1",
            "user@localhost",
            "localhost, evil.example",
            "localhost evil.example",
            "10.0.0.1",
        ] {
            assert!(!is_ours(host), "{host}");
        }
    }
}
