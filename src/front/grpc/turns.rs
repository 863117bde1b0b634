//! Users take turns at the processor, which is one: what nobody has to be allowed costs time, too.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Semaphore;

/// The turns of those who are connected.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<u32, Weak<Turn>>>);

/// A user's, over all connections.
#[derive(Debug)]
pub(super) struct Turn {
    left: Semaphore,
    begun: AtomicUsize,
}

impl Turns {
    pub(super) fn of(&self, uid: u32) -> Arc<Turn> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(&uid).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(Turn { left: Semaphore::new(IN_A_TURN), begun: AtomicUsize::new(0) });
        turns.insert(uid, Arc::downgrade(&turn));
        turn
    }
}

impl Turn {
    /// Waits until another request may begin: after so many, others have their turn.
    pub(super) async fn begin(self: &Arc<Self>) {
        let Ok(one) = self.left.acquire().await else { return };
        one.forget();
        if self.begun.fetch_add(1, Ordering::Relaxed) % IN_A_TURN == IN_A_TURN - 1 {
            let next = Arc::clone(self);
            tokio::spawn(async move {
                // Behind whatever else is to run now.
                tokio::task::yield_now().await;
                next.left.add_permits(IN_A_TURN);
            });
        }
    }
}

const IN_A_TURN: usize = 16;

#[cfg(test)]
mod tests {
    use tokio::task::{JoinSet, yield_now};

    use super::*;

    #[tokio::test]
    async fn who_asks_much_leaves_others_their_turn_and_is_served_in_the_end() {
        let (turns, begun) = (Turns::default(), Arc::new(AtomicUsize::new(0)));
        let mut greedy = JoinSet::new();
        for _ in 0..20 * IN_A_TURN {
            let (turn, begun) = (turns.of(1), Arc::clone(&begun));
            greedy.spawn(async move {
                turn.begin().await;
                begun.fetch_add(1, Ordering::Relaxed);
            });
        }
        let (modest, mut before) = (turns.of(2), 0);
        for _ in 0..8 {
            yield_now().await;
            modest.begin().await;
            let now = begun.load(Ordering::Relaxed);
            assert!(now - before <= 2 * IN_A_TURN, "{before} {now}");
            before = now;
        }
        greedy.join_all().await;
        assert_eq!(begun.load(Ordering::Relaxed), 20 * IN_A_TURN);
        drop(modest);
        yield_now().await;
        drop(turns.of(3));
        assert_eq!(turns.0.lock().unwrap().len(), 1, "nothing is kept of users who are gone");
    }
}
