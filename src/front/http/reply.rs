//! Answers.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};

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
    of(status, "text/plain; charset=utf-8", body)
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
    /// Nothing else is read from its connection.
    fn from(Refusal(status, why): Refusal) -> Self {
        let mut reply = text(status, format!("{why}\n"));
        reply.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        reply
    }
}

const EVERYWHERE: [(&str, &str); 4] = [
    ("metadata-flavor", "Google"),
    ("server", "Metadata Server for VM"),
    ("x-xss-protection", "0"),
    ("x-frame-options", "SAMEORIGIN"),
];
