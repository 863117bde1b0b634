//! Whether a device process still sees its keys.

use std::time::Duration;

use tokio::time::Instant;

/// A module may not see that they have come back, and a fresh one does. Where another
/// key works, it sees.
#[derive(Default)]
pub(super) struct Sight {
    /// Since when it knew no key that it was asked for.
    missing: Option<Instant>,
    /// When it was last found to be lost.
    lost: Option<Instant>,
}

impl Sight {
    /// It is new, or has given a right answer.
    pub(super) const fn clear(&mut self) {
        self.missing = None;
    }

    /// Takes note of a key that it does not know: whether that is reason enough for a fresh process.
    pub(super) fn misses(&mut self) -> bool {
        let missing = self.missing.get_or_insert_with(Instant::now).elapsed() >= BLIND;
        let lost = missing && self.lost.is_none_or(|lost| lost.elapsed() >= AGAIN);
        if lost {
            self.lost = Some(Instant::now());
        }
        lost
    }
}

/// For how long keys are missing before a fresh process looks for them, and how often that is tried.
const BLIND: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_secs(30);
