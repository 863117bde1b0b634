//! Requests by which nothing could be signed: refused ones, and those for what an account is. A few have a line of their own;
//! those beyond are counted, and have one line together every half a second, or else whoever asks again and again could push
//! older records out. Their answers wait for it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;
use tokio::sync::watch;

use super::{Entry, timestamp};

/// What there was lately.
#[derive(Debug)]
pub(super) struct Counted(Mutex<Lately>);

#[derive(Debug)]
struct Lately {
    /// Since when this many lines of their own were had, by each user and by all.
    since: Instant,
    of_user: HashMap<u32, u32>,
    of_all: u32,
    /// What has none yet, and since when.
    together: Option<(Instant, Together)>,
}

/// Requests that share a line.
#[derive(Debug)]
pub(super) struct Together {
    counts: BTreeMap<Kind, u64>,
    written: watch::Sender<Option<bool>>,
}

/// Tells whether such a line was written.
pub(super) struct Shared(watch::Receiver<Option<bool>>);

/// What is told apart: without the rpc where there are many, and without the user where there are still too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Kind {
    uid: Option<u32>,
    rpc: Option<&'static str>,
    outcome: &'static str,
}

/// What the line says.
#[derive(Serialize)]
pub(super) struct Line {
    time: String,
    event: &'static str,
    counted: Vec<Count>,
}

#[derive(Serialize)]
struct Count {
    #[serde(flatten)]
    kind: Kind,
    count: u64,
}

impl Counted {
    pub(super) fn new() -> Self {
        let (of_user, of_all) = (HashMap::new(), 0);
        Self(Mutex::new(Lately { since: Instant::now(), of_user, of_all, together: None }))
    }

    /// Counts a request; none where it is to have a line of its own. Otherwise tells when it is written, and whether it is the
    /// first of its line, which somebody has to write in time.
    pub(super) fn count(&self, entry: &Entry, now: Instant) -> Option<(Shared, bool)> {
        let mut lately = self.lock();
        if lately.may_stand_alone(entry.uid, now) {
            return None;
        }
        let is_first = lately.together.is_none();
        let new = || (now, Together { counts: BTreeMap::new(), written: watch::Sender::new(None) });
        let (_, together) = lately.together.get_or_insert_with(new);
        together.add(Kind { uid: Some(entry.uid), rpc: Some(entry.rpc), outcome: entry.outcome });
        Some((Shared(together.written.subscribe()), is_first))
    }

    /// When the next line is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.lock().together.as_ref().map(|(since, _)| *since + INTERVAL)
    }

    /// What is to be written now, or all where nothing follows.
    pub(super) fn take(&self, now: Instant, all: bool) -> Option<Together> {
        let mut lately = self.lock();
        lately.together.take_if(|(since, _)| all || now >= *since + INTERVAL).map(|(_, together)| together)
    }

    fn lock(&self) -> MutexGuard<'_, Lately> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lately {
    fn may_stand_alone(&mut self, uid: u32, now: Instant) -> bool {
        if now >= self.since + WINDOW {
            (self.since, self.of_all) = (now, 0);
            self.of_user.clear();
        }
        let of_user = self.of_user.get(&uid).copied().unwrap_or_default();
        let may = of_user < ALONE_OF_A_USER && self.of_all < ALONE;
        if may {
            self.of_user.insert(uid, of_user + 1);
            self.of_all += 1;
        }
        may
    }
}

impl Together {
    fn add(&mut self, kind: Kind) {
        let has_room = |most, kind| self.counts.len() < most || self.counts.contains_key(kind);
        let of_any_rpc = Kind { rpc: None, ..kind };
        let kind = if has_room(MOST_KINDS, &kind) {
            kind
        } else if has_room(MOST_USERS, &of_any_rpc) {
            of_any_rpc
        } else {
            Kind { uid: None, ..of_any_rpc }
        };
        *self.counts.entry(kind).or_default() += 1;
    }

    pub(super) fn line(&self) -> Line {
        let counted = self.counts.iter().map(|(kind, count)| Count { kind: *kind, count: *count }).collect();
        Line { time: timestamp(SystemTime::now()), event: "counted", counted }
    }

    /// Tells those who wait.
    pub(super) fn tell(&self, written: bool) {
        self.written.send_replace(Some(written));
    }
}

impl Shared {
    pub(super) async fn written(mut self) -> bool {
        self.0.wait_for(Option::is_some).await.is_ok_and(|written| *written == Some(true))
    }
}

/// How many have a line of their own in this time: of each user, and in all.
const ALONE_OF_A_USER: u32 = 100;
const ALONE: u32 = 200;
const WINDOW: Duration = Duration::from_secs(600);
/// How often the others have one together.
const INTERVAL: Duration = Duration::from_millis(500);
/// So that the line has an end, whatever callers do.
const MOST_KINDS: usize = 16;
const MOST_USERS: usize = 32;

#[cfg(test)]
mod tests {
    use super::super::{Audit, tests::call};
    use super::*;
    use crate::access::Caller;
    use crate::audit::{Fsync, Rotation};

    fn entry(uid: u32, rpc: &'static str) -> Entry {
        let folder = tempfile::tempdir().unwrap();
        let rotation = Rotation { max_size: u64::MAX, keep: 1 };
        let audit = Audit::open(&folder.path().join("audit.log"), Fsync::Never, rotation).unwrap();
        let mut record = audit.begin(&call(&Caller::new(uid, 1, vec![]))).unwrap();
        Entry { rpc, outcome: "NOT_ALLOWED", ..*record.entry.take().unwrap() }
    }

    fn stand_alone(counted: &Counted, uid: u32, now: Instant) -> u32 {
        let entry = entry(uid, "Test");
        (0..1000).filter(|_| counted.count(&entry, now).is_none()).count().try_into().unwrap()
    }

    #[test]
    fn each_user_has_so_many_lines_and_all_together_no_more_until_later() {
        let (counted, now) = (Counted::new(), Instant::now());
        assert_eq!([1, 2, 3].map(|uid| stand_alone(&counted, uid, now)), [ALONE_OF_A_USER, ALONE_OF_A_USER, 0]);
        assert_eq!(counted.due(), Some(now + INTERVAL));
        assert!(counted.take(now, false).is_none(), "it is not due");
        let together = counted.take(now + INTERVAL, false).unwrap();
        let told: Vec<_> = together.counts.iter().map(|(kind, count)| (kind.uid, *count)).collect();
        assert_eq!(told, [(Some(1), 900), (Some(2), 900), (Some(3), 1000)]);
        assert_eq!(counted.due(), None);
        assert_eq!(stand_alone(&counted, 3, now + WINDOW), ALONE_OF_A_USER);
        assert!(counted.take(now, true).is_some(), "the daemon ends");
    }

    #[test]
    fn however_many_users_and_rpcs_the_line_has_an_end_and_its_sum_is_right() {
        let (counted, now) = (Counted::new(), Instant::now());
        stand_alone(&counted, 1, now);
        stand_alone(&counted, 2, now);
        let entry = entry(3, "Another");
        (3..503).for_each(|uid| drop(counted.count(&Entry { uid, ..entry.clone() }, now)));
        let together = counted.take(now, true).unwrap();
        let line = serde_json::to_value(together.line()).unwrap();
        let counted = line["counted"].as_array().unwrap();
        assert_eq!(counted.len(), MOST_USERS + 1);
        assert_eq!(counted[0], serde_json::json!({ "uid": null, "rpc": null, "outcome": "NOT_ALLOWED", "count": 470 }));
        assert_eq!(counted.iter().map(|kind| kind["count"].as_u64().unwrap()).sum::<u64>(), 1800 + 500);
    }
}
