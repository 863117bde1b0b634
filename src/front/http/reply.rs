//! Answers.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, ETAG, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};

use crate::key::sha256;
use crate::signer::SignError;

pub(super) type Reply = Response<Full<Bytes>>;

/// An answer of this content type. Every answer says what a metadata server is known by: clients look at it on any path.
pub(super) fn of(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    let headers = reply.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    for (name, value) in EVERYWHERE {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    reply
}

pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    of(status, TEXT, body)
}

/// A secret: nothing on the way keeps it.
pub(super) fn secret(mut reply: Reply) -> Reply {
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

/// An answer that a caller who has it already knows again.
pub(super) fn tagged(content_type: &'static str, body: String) -> Reply {
    let tag: String = sha256(body.as_bytes()).chars().take(16).collect();
    let mut reply = of(StatusCode::OK, content_type, body);
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        reply.headers_mut().insert(ETAG, tag);
    }
    reply
}

/// An error of the signer: how HTTP and Google's APIs call it.
pub(super) fn status(error: &SignError) -> (StatusCode, &'static str) {
    match error {
        SignError::Denied => (StatusCode::FORBIDDEN, "PERMISSION_DENIED"),
        SignError::Invalid { .. } => (StatusCode::BAD_REQUEST, "INVALID_ARGUMENT"),
        SignError::Busy { .. } | SignError::RateLimited { .. } | SignError::TooMuch => {
            (StatusCode::TOO_MANY_REQUESTS, "RESOURCE_EXHAUSTED")
        }
        SignError::Away(_) | SignError::EndpointAway => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
        SignError::Late => (StatusCode::GATEWAY_TIMEOUT, "DEADLINE_EXCEEDED"),
        // No retry helps, so it is none of those that clients retry.
        SignError::Operator { .. } => (StatusCode::BAD_REQUEST, "FAILED_PRECONDITION"),
        SignError::Withheld => (StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL"),
    }
}

/// Nothing else is read from its connection.
pub(super) fn last(mut reply: Reply) -> Reply {
    reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    reply
}

/// Says when a retry helps, where one does.
pub(super) fn retry(mut reply: Reply, error: &SignError) -> Reply {
    let Some(after) = error.retry_after() else { return reply };
    let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
    reply.headers_mut().insert(RETRY_AFTER, seconds.into());
    reply
}

pub(super) fn not_found() -> Reply {
    text(StatusCode::NOT_FOUND, "there is nothing of this name\n")
}

/// The answer to a method that is none of these.
pub(super) fn not_allowed(allowed: &'static str) -> Reply {
    let mut reply = text(StatusCode::METHOD_NOT_ALLOWED, format!("allowed: {allowed}\n"));
    reply.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    reply
}

/// Why a request that nobody who means well sends is not answered.
pub(super) struct Refusal(pub(super) StatusCode, pub(super) &'static str);

impl From<Refusal> for Reply {
    fn from(Refusal(status, why): Refusal) -> Self {
        last(text(status, format!("{why}\n")))
    }
}

pub(super) const TEXT: &str = "text/plain; charset=utf-8";
pub(super) const JSON: &str = "application/json";
const EVERYWHERE: [(&str, &str); 4] = [
    ("metadata-flavor", "Google"),
    ("server", "Metadata Server for VM"),
    ("x-xss-protection", "0"),
    ("x-frame-options", "SAMEORIGIN"),
];
