//! How large and how long a request may be, each with an answer of its own.

use std::time::Duration;

use prost::Message;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::http;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use super::super::limits::{LARGEST_PAYLOAD, SMALL_MESSAGE};
use super::status;
use crate::signer::SignError;

/// When the caller of a request no longer waits: as its grpc-timeout says, or after 30 s.
///
/// A caller whose time is up hears nothing any more, so what is said here comes a little earlier.
pub(super) fn deadline(metadata: &MetadataMap) -> Instant {
    let limit = limit(metadata.as_ref());
    Instant::now() + limit.saturating_sub(MARGIN.min(limit / 10))
}

/// Refuses a message that is larger than its rpc needs.
pub(super) fn small(message: &impl Message) -> Result<(), SignError> {
    let length = message.encoded_len();
    if length > SMALL_MESSAGE {
        return Err(too_large(format!("{length} bytes; this rpc takes {SMALL_MESSAGE}")));
    }
    Ok(())
}

/// By when a request is to have come in whole.
pub(super) fn end(headers: &http::HeaderMap) -> Instant {
    Instant::now() + limit(headers)
}

fn limit(headers: &http::HeaderMap) -> Duration {
    let asked = headers.get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(timeout);
    asked.unwrap_or(DEFAULT_TIMEOUT).min(LONGEST_TIMEOUT)
}

/// Parses a grpc-timeout: up to 8 digits and a unit (gRPC over HTTP/2, "Timeout").
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let value = u64::from(digits.parse::<u32>().ok().filter(|_| digits.len() <= 8)?);
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

/// An over-large message is answered with INVALID_ARGUMENT, where tonic says OUT_OF_RANGE.
pub(super) fn in_our_words(response: http::Response<Body>) -> http::Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() == Code::OutOfRange => {
            status::of(&too_large(format!("more than {LARGEST_MESSAGE} bytes"))).into_http()
        }
        _ => response,
    }
}

fn too_large(problem: String) -> SignError {
    SignError::Invalid { field: "message", problem }
}

pub(super) const STREAMS: u32 = 64;
pub(super) const HEADERS: u32 = 8 << 10;
/// How much of an answer waits in a stream whose client does not take it.
pub(super) const UNTAKEN: usize = 16 << 10;
/// What health and reflection are asked.
pub(super) const QUESTION: usize = 4 << 10;
pub(super) const LARGEST_MESSAGE: usize = LARGEST_PAYLOAD + SMALL_MESSAGE;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(300);
const MARGIN: Duration = Duration::from_millis(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read_as_the_protocol_says() {
        assert_eq!(timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(timeout("1H"), Some(Duration::from_secs(3600)));
        assert_eq!(timeout("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for bad in ["", "5", "m", "-1S", "123456789S", "1s", "1\u{fc}"] {
            assert_eq!(timeout(bad), None, "{bad:?}");
        }
    }
}
