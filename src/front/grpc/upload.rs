//! What a request may send before anybody looks at it: so much of each user's at once, each in its time.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::Frame;
use tokio::time::{Instant, Sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Bytes;

use super::status;
use crate::signer::SignError;

/// How many bytes of each user's requests are in memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Uploads(Arc<Mutex<HashMap<u32, usize>>>);

/// One request's part of them: given back when its body and its answer are no more.
#[derive(Clone, Debug)]
pub(super) struct Share(Arc<Taken>);

#[derive(Debug)]
struct Taken {
    uid: u32,
    bytes: Mutex<usize>,
    uploads: Uploads,
}

impl Uploads {
    /// The body of a request, to be counted as it arrives and refused when it has not by then.
    pub(super) fn count(&self, uid: u32, body: Body, until: Instant) -> (Body, Share) {
        let share = Share(Arc::new(Taken { uid, bytes: Mutex::default(), uploads: self.clone() }));
        let until = Box::pin(tokio::time::sleep_until(until));
        (Body::new(Counted { body, share: share.clone(), until }), share)
    }

    fn of_user<T>(&self, uid: u32, change: impl FnOnce(&mut usize) -> T) -> T {
        let mut users = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_user = users.entry(uid).or_default();
        let changed = change(of_user);
        if *of_user == 0 {
            users.remove(&uid);
        }
        changed
    }
}

impl Taken {
    /// Takes more, unless that is too much for one user.
    fn grow(&self, more: usize) -> bool {
        let admitted = self.uploads.of_user(self.uid, |of_user| {
            let admitted = *of_user + more <= MOST_OF_A_USER;
            *of_user += if admitted { more } else { 0 };
            admitted
        });
        *self.bytes.lock().unwrap_or_else(PoisonError::into_inner) += if admitted { more } else { 0 };
        admitted
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let bytes = *self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        self.uploads.of_user(self.uid, |of_user| *of_user -= bytes);
    }
}

struct Counted {
    body: Body,
    share: Share,
    until: Pin<Box<Sleep>>,
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.until.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(status::of(&SignError::Late))));
        }
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        let arrived = match &frame {
            Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        if self.share.0.grow(arrived) {
            return Poll::Ready(frame);
        }
        Poll::Ready(Some(Err(status::of(&SignError::Busy { retry_after: RETRY }))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// Some sixty of the largest payloads.
const MOST_OF_A_USER: usize = 64 << 20;
const RETRY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use http_body::Body as _;
    use tonic::Code;

    use super::*;

    /// So many frames of a mebibyte, and then nothing for ever.
    struct Stalls(usize);

    impl http_body::Body for Stalls {
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

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test]
    async fn a_user_has_so_much_in_memory_and_another_as_much_again() {
        let uploads = Uploads::default();
        let (mut first, share) = uploads.count(1, Body::new(Stalls(60)), later());
        for _ in 0..60 {
            frame(&mut first).await.unwrap();
        }
        let (mut second, _share) = uploads.count(1, Body::new(Stalls(60)), later());
        for _ in 0..4 {
            frame(&mut second).await.unwrap();
        }
        assert_eq!(frame(&mut second).await.unwrap_err().code(), Code::ResourceExhausted);
        let (mut anothers, _share) = uploads.count(2, Body::new(Stalls(1)), later());
        frame(&mut anothers).await.unwrap();
        drop(first);
        assert_eq!(frame(&mut second).await.unwrap_err().code(), Code::ResourceExhausted, "it is not answered yet");
        drop(share);
        frame(&mut second).await.unwrap();
    }

    #[tokio::test]
    async fn what_does_not_arrive_in_time_is_refused() {
        let uploads = Uploads::default();
        let (mut body, share) = uploads.count(1, Body::new(Stalls(1)), Instant::now() + Duration::from_millis(20));
        frame(&mut body).await.unwrap();
        assert_eq!(frame(&mut body).await.unwrap_err().code(), Code::DeadlineExceeded);
        drop((body, share));
        assert!(uploads.0.lock().unwrap().is_empty(), "nothing is kept of a user who is gone");
    }
}
