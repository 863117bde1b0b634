//! What is served over HTTP: where, and what the metadata server tells.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use toml::Spanned;

use super::ConfigError;
use super::file::Source;

/// An address of loopback as it stands there: a name could come to mean another one.
pub(super) fn loopback(source: Source<'_>, written: &Spanned<String>) -> Result<SocketAddr, ConfigError> {
    let address = written.get_ref().parse::<SocketAddr>().ok();
    address.filter(|address| address.ip().is_loopback()).ok_or_else(|| {
        let what = format!("{:?} is no address of loopback with a port", written.get_ref());
        source.wrong(written.span(), "listen.http", what, r#"write "127.0.0.1:8980", or another port"#)
    })
}

/// Values of the metadata server by their paths, none of which is a folder of another.
pub(super) fn metadata(
    source: Source<'_>,
    written: BTreeMap<String, Spanned<String>>,
) -> Result<BTreeMap<String, String>, ConfigError> {
    for (path, value) in &written {
        let wrong =
            |what: &str, remedy: &str| source.wrong(value.span(), "metadata", format!("{path:?} {what}"), remedy);
        if !is_path(path) {
            return Err(wrong(
                "is no path of a value",
                r#"write such as "instance/attributes/NAME" or "project/numeric-project-id""#,
            ));
        }
        if lies_in(path, "instance/service-accounts") {
            return Err(wrong("is what signetd tells itself", "remove it: accounts stand in [[account]]"));
        }
        if written.keys().any(|other| other != path && lies_in(path, other)) {
            return Err(wrong("lies in a value", "remove one of the two"));
        }
    }
    Ok(written.into_iter().map(|(path, value)| (path, value.into_inner())).collect())
}

fn lies_in(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn is_path(path: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let is_name = |name: &str| !name.is_empty() && !name.starts_with('.') && name.chars().all(allowed);
    let Some((root, rest)) = path.split_once('/') else { return false };
    let is_folder = ["instance/attributes", "project/attributes"].contains(&path);
    ["instance", "project"].contains(&root) && !is_folder && rest.split('/').all(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_literal_address_of_loopback_is_listened_at() {
        let listen = |address: &str| {
            let source = Source { path: std::path::Path::new("signet.toml"), text: "" };
            loopback(source, &Spanned::new(0..0, address.to_owned()))
        };
        for address in ["127.0.0.1:8980", "127.1.2.3:1", "[::1]:8980"] {
            assert_eq!(listen(address).unwrap().to_string(), address);
        }
        for address in [
            "localhost:8980",
            "0.0.0.0:8980",
            "[::]:8980",
            "10.0.0.1:8980",
            "169.254.169.254:80",
            "[::ffff:127.0.0.1]:8980",
            "127.0.0.1",
            "8980",
            ":8980",
            "",
        ] {
            let error = listen(address).unwrap_err();
            assert!(error.what.contains("no address of loopback"), "{address}: {error}");
        }
    }

    #[test]
    fn paths_of_values() {
        for path in
            ["instance/zone", "project/numeric-project-id", "instance/attributes/a_b.c", "instance/disks/0/type"]
        {
            assert!(is_path(path), "{path}");
        }
        for path in [
            "",
            "instance",
            "instance/",
            "/instance/zone",
            "instance//zone",
            "instance/zone/",
            "universe/universe-domain",
            "instance/attributes",
            "instance/a b",
            "instance/../x",
            "instance/a%2f",
        ] {
            assert!(!is_path(path), "{path}");
        }
    }
}
