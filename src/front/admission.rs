//! How many connections there may be, in all and of each user, and how often their doing is told to the log.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How many connections are open: in all, and of each user.
#[derive(Clone, Debug, Default)]
pub(super) struct Connections(Arc<Mutex<HashMap<u32, usize>>>);

/// One connection's place among them.
#[derive(Debug)]
pub(super) struct Place {
    uid: u32,
    connections: Connections,
}

impl Connections {
    pub(super) fn admit(&self, uid: u32) -> Option<Place> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_user = open.get(&uid).copied().unwrap_or_default();
        if of_user >= MOST_OF_A_USER || open.values().sum::<usize>() >= MOST {
            return None;
        }
        open.insert(uid, of_user + 1);
        Some(Place { uid, connections: self.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.connections.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_user) = open.get_mut(&self.uid) {
            *of_user -= 1;
            if *of_user == 0 {
                open.remove(&self.uid);
            }
        }
    }
}

/// When callers' doing was last told: they must not be able to fill the log.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<Option<Instant>>);

impl Told {
    /// Whether it is time to tell something again.
    pub(super) fn may_tell(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let may = last.is_none_or(|last| last.elapsed() >= TELL_AGAIN);
        if may {
            *last = Some(Instant::now());
        }
        may
    }

    /// Waits a little after an accept that failed: at the limit of open files the next would at once, again and again.
    pub(super) async fn accept_failed(&self, error: &io::Error) {
        if self.may_tell() {
            tracing::warn!(%error, "can't accept a connection; trying again");
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const MOST: usize = 256;
const MOST_OF_A_USER: usize = 32;
const TELL_AGAIN: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_a_share_of_the_connections_and_all_have_an_end() {
        let connections = Connections::default();
        let places: Vec<_> = (0..MOST_OF_A_USER).map(|_| connections.admit(1).unwrap()).collect();
        assert!(connections.admit(1).is_none());
        let users = u32::try_from(MOST / MOST_OF_A_USER).unwrap();
        let others: Vec<_> = (2..=users).flat_map(|uid| (0..MOST_OF_A_USER).map(move |_| uid)).collect();
        let others: Vec<_> = others.into_iter().map(|uid| connections.admit(uid).unwrap()).collect();
        assert!(connections.admit(99).is_none(), "there is no room for anybody");
        drop((places, others));
        assert!(connections.admit(1).is_some() && connections.0.lock().unwrap().is_empty());
    }
}
