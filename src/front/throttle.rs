//! How often the log is told of what callers do.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// When callers' doing was last told: they must not be able to fill the log.
#[derive(Debug, Default)]
pub(super) struct LogThrottle(Mutex<Option<Instant>>);

impl LogThrottle {
    /// Whether it is time to tell something again.
    pub(super) fn may_tell(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let may = last.is_none_or(|last| last.elapsed() >= TELL_AGAIN);
        if may {
            *last = Some(Instant::now());
        }
        may
    }
}

/// Waits a little after an accept that failed: at the limit of open files the next would at once, again and again.
pub(super) async fn accept_failed(throttle: &LogThrottle, error: &io::Error) {
    if throttle.may_tell() {
        tracing::warn!(%error, "can't accept a connection; trying again");
    }
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

const TELL_AGAIN: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
