//! What a request may send before anybody looks at it, and its answer hold before it is taken: so much of each user's at once,
//! each request in its time.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::body::Frame;
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Bytes;

use super::super::admission::{Share, Shares, User};
use super::status;
use crate::signer::SignError;

/// How many bytes of requests are in memory.
pub(super) struct Uploads(Shares);

impl Uploads {
    pub(super) fn new() -> Self {
        Self(Shares::new(MOST_OF_A_USER, MOST))
    }

    /// The body of a request, to be counted as it arrives and refused when it has not by then; and what it takes until its
    /// [`answer`] is no more either.
    pub(super) fn count(&self, user: User, body: Body, until: Instant) -> (Body, Arc<Share>) {
        let share = Arc::new(self.0.begin(user));
        (Body::new(Counted { body, share: Arc::clone(&share), until: Some(until), patience: None }), share)
    }
}

/// The body of an answer, which counts for as long as it is not taken.
pub(super) fn answer(body: Body, share: Arc<Share>) -> Body {
    Body::new(Counted { body, share, until: None, patience: None })
}

struct Counted {
    body: Body,
    share: Arc<Share>,
    /// By when it must have come.
    until: Option<Instant>,
    /// Only of a body that does not come at once.
    patience: Option<Pin<Box<Sleep>>>,
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            let Some(until) = self.until else { return Poll::Pending };
            let patience = self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
            return patience.as_mut().poll(cx).map(|()| Some(Err(status::of(&SignError::Late))));
        };
        let arrived = match &frame {
            Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        if self.share.grow(arrived) {
            return Poll::Ready(frame);
        }
        Poll::Ready(Some(Err(status::of(&SignError::TooMuch))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// Some sixty of the largest payloads.
const MOST_OF_A_USER: usize = 64 << 20;
const MOST: usize = 128 << 20;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hyper::body::Body as _;
    use tonic::Code;

    use super::*;

    /// So many frames of a mebibyte, and then nothing for ever.
    struct Stalls(usize);

    impl hyper::body::Body for Stalls {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            let Some(left) = self.0.checked_sub(1) else { return Poll::Pending };
            self.0 = left;
            Poll::Ready(Some(Ok(Frame::data(vec![0; 1 << 20].into()))))
        }
    }

    async fn frame(body: &mut Body) -> Result<usize, Status> {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
        frame.unwrap().map(|frame| frame.into_data().unwrap().len())
    }

    const fn user(uid: u32) -> User {
        User { uid, is_named: true }
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test]
    async fn a_user_has_so_much_in_memory_and_another_as_much_again() {
        let uploads = Uploads::new();
        let (mut first, share) = uploads.count(user(1), Body::new(Stalls(60)), later());
        for _ in 0..60 {
            frame(&mut first).await.unwrap();
        }
        let (mut second, _share) = uploads.count(user(1), Body::new(Stalls(60)), later());
        for _ in 0..4 {
            frame(&mut second).await.unwrap();
        }
        assert_eq!(frame(&mut second).await.unwrap_err().code(), Code::ResourceExhausted);
        let (mut anothers, _share) = uploads.count(user(2), Body::new(Stalls(1)), later());
        frame(&mut anothers).await.unwrap();
        drop(first);
        assert_eq!(frame(&mut second).await.unwrap_err().code(), Code::ResourceExhausted, "it is not answered yet");
        drop(share);
        frame(&mut second).await.unwrap();
    }

    #[tokio::test]
    async fn an_answer_that_is_not_taken_counts_too() {
        let uploads = Uploads::new();
        let (_body, share) = uploads.count(user(1), Body::empty(), later());
        let mut untaken = answer(Body::new(Stalls(65)), share);
        for _ in 0..64 {
            frame(&mut untaken).await.unwrap();
        }
        assert_eq!(frame(&mut untaken).await.unwrap_err().code(), Code::ResourceExhausted);
    }

    #[tokio::test]
    async fn what_does_not_arrive_in_time_is_refused() {
        let uploads = Uploads::new();
        let (mut body, _share) =
            uploads.count(user(1), Body::new(Stalls(1)), Instant::now() + Duration::from_millis(20));
        frame(&mut body).await.unwrap();
        assert_eq!(frame(&mut body).await.unwrap_err().code(), Code::DeadlineExceeded);
    }
}
