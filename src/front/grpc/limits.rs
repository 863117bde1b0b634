//! How large and how long a request may be, each with an answer of its own.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use prost::Message;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::{Code, Status};

use super::super::limits::{LARGEST_PAYLOAD, SMALL_MESSAGE};
use super::status;
use super::upload::Uploads;
use crate::access::Caller;
use crate::signer::SignError;

/// When the caller of a request no longer waits: as its grpc-timeout says, or after 30 s.
///
/// tonic answers CANCELLED when the time is up, so what is said here comes a little earlier.
pub(super) fn deadline(metadata: &MetadataMap) -> Instant {
    let limit = limit(metadata.as_ref());
    Instant::now() + limit.saturating_sub(MARGIN.min(limit / 10))
}

/// The answer of a request, or DEADLINE_EXCEEDED when its time is up.
pub(super) async fn within<T>(
    deadline: Instant,
    answer: impl Future<Output = Result<T, SignError>>,
) -> Result<T, SignError> {
    // The signer keeps the deadline itself, and then writes its record: only where that takes long is it cut off here.
    tokio::time::timeout_at(deadline + GRACE, answer).await.unwrap_or(Err(SignError::Late))
}

/// Refuses a message that is larger than its rpc needs.
pub(super) fn small(message: &impl Message) -> Result<(), SignError> {
    let length = message.encoded_len();
    if length > SMALL_MESSAGE {
        return Err(too_large(format!("{length} bytes; this rpc takes {SMALL_MESSAGE}")));
    }
    Ok(())
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

/// A service that takes so much of each user's at once, and each request's in its time. Over-large messages are answered
/// with INVALID_ARGUMENT, where tonic says OUT_OF_RANGE.
#[derive(Clone)]
pub(super) struct Limited<S>(pub(super) S, pub(super) Uploads);

impl<S: NamedService> NamedService for Limited<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Limited<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (head, body) = request.into_parts();
        // The connection always says whose it is; what would not, shares one allowance.
        let uid = head.extensions.get::<Caller>().map_or(u32::MAX, |caller| caller.uid);
        let (body, share) = self.1.count(uid, body, Instant::now() + limit(&head.headers));
        let answer = self.0.call(http::Request::from_parts(head, body));
        Box::pin(async move {
            let _until_answered = share;
            let response = answer.await?;
            let status = Status::from_header_map(response.headers());
            if status.is_none_or(|status| status.code() != Code::OutOfRange) {
                return Ok(response);
            }
            let problem = format!("more than {LARGEST_MESSAGE} bytes");
            Ok(status::of(&too_large(problem)).into_http())
        })
    }
}

fn too_large(problem: String) -> SignError {
    SignError::Invalid { field: "message", problem }
}

pub(super) const STREAMS: u32 = 64;
pub(super) const HEADERS: u32 = 8 << 10;
pub(super) const LARGEST_MESSAGE: usize = LARGEST_PAYLOAD + SMALL_MESSAGE;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(300);
const MARGIN: Duration = Duration::from_millis(30);
const GRACE: Duration = Duration::from_millis(10);

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
