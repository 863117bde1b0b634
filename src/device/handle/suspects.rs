//! What a device was seen to do, so that what it was never seen to do can't take it down for everybody.
//!
//! A caller may ask for another algorithm than a key's own, and a module may fail over that in any way: "function failed", a
//! crash, a hang. Then the request is not sent again, and its like is refused for a while; others notice a fresh process.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::queue::{Answered, Request, Turn};
use crate::device::DeviceError;
use crate::device::wire::Work;
use crate::key::{Algorithm, Digest, KeyLocator, PublicKey};

/// Keys with the algorithms that they signed with, and those over which the device failed.
#[derive(Default)]
pub(super) struct Suspects {
    proven: HashMap<Pair, Arc<PublicKey>>,
    suspect: HashMap<Pair, Instant>,
}

type Pair = (Arc<KeyLocator>, Algorithm);

impl Suspects {
    /// The device has done it: whatever happens over it later is no fault of the request.
    pub(super) fn clear(&mut self, request: &Request) {
        let Some(pair) = pair(request) else { return };
        if !self.proven.contains_key(&pair) {
            self.suspect.remove(&pair);
            self.proven.insert(pair, Arc::clone(&request.public_key));
        }
    }

    /// A signature as the device has made before, over a text of ours, and the way of its answer. Another key's with each
    /// number, for one of them may be what it fails over. None where it has never signed.
    pub(super) fn probe(&self, number: u32, deadline: Instant) -> Option<(Request, Answered)> {
        let place = usize::try_from(number).unwrap_or_default().checked_rem(self.proven.len())?;
        let ((locator, algorithm), public_key) = self.proven.iter().nth(place)?;
        let digest = Digest::of(algorithm.hash(), b"signetd: does this device sign again?");
        let work = Work::Sign { algorithm: *algorithm, digest };
        Some(Request::new(Arc::clone(locator), Arc::clone(public_key), work, deadline, Turn::Of(0)))
    }

    /// The device was lost over it. True where the request is to blame: the device has worked before, but never for this.
    pub(super) fn blame(&mut self, request: &Request) -> bool {
        let Some(pair) = pair(request) else { return false };
        if self.proven.is_empty() || self.proven.contains_key(&pair) {
            return false;
        }
        self.suspect.insert(pair, Instant::now() + QUARANTINE);
        true
    }

    /// Why a request is not to be sent now.
    pub(super) fn refusal(&mut self, request: &Request) -> Option<DeviceError> {
        if self.suspect.is_empty() {
            return None;
        }
        let now = Instant::now();
        self.suspect.retain(|_, until| *until > now);
        let pair = pair(request)?;
        let refused =
            || DeviceError::Unsupported(format!("{} with this key; the device failed over it a moment ago", pair.1));
        self.suspect.contains_key(&pair).then(refused)
    }
}

fn pair(request: &Request) -> Option<Pair> {
    Some((Arc::clone(&request.locator), request.work.algorithm()?))
}

/// How long what a device failed over is not sent to it.
const QUARANTINE: Duration = Duration::from_secs(30);
