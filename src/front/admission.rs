//! How much users may have at once, of connections and of memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Whose a share is.
#[derive(Clone, Copy, Debug)]
pub(super) struct User {
    pub(super) uid: u32,
    /// Whether a rule names this user.
    pub(super) is_named: bool,
}

/// What users share: each has a limit, and leaves as much as he takes to the others. Half of it is kept for those whom a rule
/// names, for a person with a range of subordinate ids is as many of the others as he likes.
#[derive(Clone, Debug)]
pub(super) struct Shares {
    of_user: usize,
    in_all: usize,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    by_user: HashMap<u32, usize>,
    by_unnamed: usize,
    in_all: usize,
}

/// One part of it: given back when this is dropped.
#[derive(Debug)]
pub(super) struct Share {
    user: User,
    amount: AtomicUsize,
    shares: Shares,
}

impl Shares {
    /// As many connections as there may be.
    pub(super) fn of_connections() -> Self {
        Self::new(32, 512)
    }

    pub(super) fn new(of_user: usize, in_all: usize) -> Self {
        Self { of_user, in_all, taken: Arc::default() }
    }

    /// A part of nothing yet.
    pub(super) fn begin(&self, user: User) -> Share {
        Share { user, amount: AtomicUsize::new(0), shares: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    pub(super) const fn user(&self) -> User {
        self.user
    }

    /// Takes more, unless that is too much.
    pub(super) fn grow(&self, more: usize) -> bool {
        if more == 0 {
            return true;
        }
        let Self { user: User { uid, is_named }, shares, .. } = self;
        let mut taken = shares.lock();
        let of_user = taken.by_user.get(uid).copied().unwrap_or_default() + more;
        let left = shares.in_all.saturating_sub(taken.in_all + more);
        let left_to_unnamed = (shares.in_all / 2).saturating_sub(taken.by_unnamed + more);
        let left = if *is_named { left } else { left.min(left_to_unnamed) };
        if of_user > shares.of_user || of_user > left {
            return false;
        }
        taken.by_user.insert(*uid, of_user);
        taken.by_unnamed += if *is_named { 0 } else { more };
        taken.in_all += more;
        self.amount.fetch_add(more, Ordering::Relaxed);
        true
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let amount = *self.amount.get_mut();
        if amount == 0 {
            return;
        }
        let mut taken = self.shares.lock();
        if let Some(of_user) = taken.by_user.get_mut(&self.user.uid) {
            *of_user -= amount;
            if *of_user == 0 {
                taken.by_user.remove(&self.user.uid);
            }
        }
        taken.by_unnamed -= if self.user.is_named { 0 } else { amount };
        taken.in_all -= amount;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes places until there are no more; how many, and the places.
    fn fill(shares: &Shares, uid: u32, is_named: bool) -> (usize, Vec<Share>) {
        let places = std::iter::repeat_with(|| shares.begin(User { uid, is_named })).take_while(|place| place.grow(1));
        let places: Vec<_> = places.collect();
        (places.len(), places)
    }

    #[test]
    fn a_user_has_a_share_and_leaves_as_much_to_others_as_he_takes() {
        let connections = Shares::of_connections();
        let filled: Vec<_> = (1..=17).map(|uid| fill(&connections, uid, true)).collect();
        let counts: Vec<_> = filled.iter().map(|(count, _)| *count).collect();
        assert_eq!((&counts[..15], &counts[15..]), (&[32; 15][..], &[16, 8][..]), "there is room for another");
        drop(filled);
        assert_eq!(fill(&connections, 1, true).0, 32);
        let taken = connections.lock();
        assert!(taken.by_user.is_empty() && taken.in_all == 0, "nothing is kept of users who are gone");
    }

    #[test]
    fn however_many_ids_a_person_has_half_is_left_for_those_whom_a_rule_names() {
        let connections = Shares::of_connections();
        let subordinate: Vec<_> = (100_000..165_536).flat_map(|uid| fill(&connections, uid, false).1).collect();
        assert_eq!(subordinate.len(), 255);
        assert_eq!(fill(&connections, 1, true).0, 32);
        drop(subordinate);
        assert_eq!(fill(&connections, 100_000, false).0, 32);
        assert_eq!(connections.lock().by_unnamed, 0);
    }
}
