//! What waits in front of a device, and how long it will.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::device::DeviceError;
use crate::device::wire::{self, Answer, Work};
use crate::key::{KeyLocator, PublicKey};

/// Whose turn a job waits for.
#[derive(Clone, Debug)]
pub enum Turn {
    /// This user's.
    Of(u32),
    /// That of several users, see [`Turn::shared`].
    OfAny(Arc<Mutex<Vec<u32>>>),
}

/// What becomes of a request, for whoever waits.
pub(super) type Answered = oneshot::Receiver<Result<Answer, DeviceError>>;

/// What comes to a queue.
pub(super) enum Message {
    Request(Request),
    /// One more user waits for the request of this turn.
    Joined(Turn),
}

/// Something that a caller waits for.
pub(super) struct Request {
    pub(super) locator: Arc<KeyLocator>,
    pub(super) public_key: Arc<PublicKey>,
    pub(super) work: Work,
    pub(super) deadline: Instant,
    pub(super) turn: Turn,
    /// In whose turn it is done, as the queue says when it comes.
    pub(super) uid: u32,
    pub(super) answer: oneshot::Sender<Result<Answer, DeviceError>>,
    /// To how many device processes it was sent.
    pub(super) sent: u32,
}

impl Turn {
    /// The daemon's own, of what it asks by itself.
    #[must_use]
    pub fn own() -> Self {
        Self::Of(nix::unistd::getuid().as_raw())
    }

    /// One that others may join: whoever's comes first has the job done for all.
    #[must_use]
    pub fn shared(uid: u32) -> Self {
        Self::OfAny(Arc::new(Mutex::new(vec![uid])))
    }

    /// Lets one more user wait. False where that is nothing new.
    #[must_use]
    pub fn join(&self, uid: u32) -> bool {
        let Self::OfAny(users) = self else { return false };
        let mut users = lock(users);
        let is_new = !users.contains(&uid);
        users.extend(is_new.then_some(uid));
        is_new
    }

    fn is_same(&self, other: &Self) -> bool {
        matches!((self, other), (Self::OfAny(one), Self::OfAny(other)) if Arc::ptr_eq(one, other))
    }
}

fn lock(users: &Mutex<Vec<u32>>) -> MutexGuard<'_, Vec<u32>> {
    users.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Request {
    /// One that was never sent, and the way of its answer. Whose it is the queue tells, by its turn.
    pub(super) fn new(
        locator: Arc<KeyLocator>,
        public_key: Arc<PublicKey>,
        work: Work,
        deadline: Instant,
        turn: Turn,
    ) -> (Self, Answered) {
        let (answer, answered) = oneshot::channel();
        (Self { locator, public_key, work, deadline, turn, uid: 0, answer, sent: 0 }, answered)
    }

    /// Whether somebody still waits.
    pub(super) fn is_wanted(&self, now: Instant) -> bool {
        !self.answer.is_closed() && now < self.deadline
    }

    /// Whether it will be done in time where that takes so long, or a little longer: it is easier to be refused now than then.
    pub(super) fn is_promising(&self, now: Instant, wait: Duration) -> bool {
        now + wait + wait / RESERVE <= self.deadline
    }

    /// The request, where somebody still waits for it; refuses what would be late by then.
    fn in_time(self, now: Instant, wait: Duration) -> Option<Self> {
        if !self.is_wanted(now) {
            return None;
        }
        if now + wait > self.deadline {
            self.refuse(wait);
            return None;
        }
        Some(self)
    }

    /// Answers, unless the caller has gone.
    pub(super) fn answer(self, outcome: Result<Answer, DeviceError>) {
        let _ = self.answer.send(outcome);
    }

    /// Answers that it would have to wait too long.
    pub(super) fn refuse(self, wait: Duration) {
        let retry_after = wait.clamp(Duration::from_millis(10), Duration::from_secs(10));
        self.answer(Err(DeviceError::Overloaded { retry_after }));
    }

    /// Holds an answer against the recorded public key: what fails here never leaves.
    pub(super) fn verified(&self, answer: Answer) -> Result<Answer, DeviceError> {
        match (&self.work, answer) {
            (Work::Sign { algorithm, digest }, Answer::Sign(signature)) => self
                .public_key
                .verify(*algorithm, digest, &signature)
                .map(|()| Answer::Sign(signature))
                .map_err(|bad| DeviceError::Integrity(bad.to_string())),
            // The same key may be encoded in another way.
            (Work::PublicKey, Answer::PublicKey(spki)) => match PublicKey::from_spki(&spki) {
                Ok(key) if key == *self.public_key => Ok(Answer::PublicKey(spki)),
                _ => Err(DeviceError::Permanent("the key in the device is not the one that was recorded".to_owned())),
            },
            _ => Err(DeviceError::Integrity("it answered another question".to_owned())),
        }
    }
}

/// The waiting requests: users take turns, and each user's are served in the order in which they came. A newcomer, who has had
/// no turn for a round, comes before all who have: he waits no longer the more there are who always ask. The only place that
/// decides whose turn it is.
pub(super) struct Queue {
    /// The round; whose turn is next stands first. Who has nothing waiting any more keeps his place until it is his turn.
    users: VecDeque<User>,
    /// How many turns there were.
    turns: u64,
    limit: usize,
}

struct User {
    uid: u32,
    /// From this turn on no newcomer comes before him: so no stream of these keeps him waiting for ever.
    due: u64,
    waiting: VecDeque<Request>,
}

impl Queue {
    pub(super) const fn new(limit: usize) -> Self {
        Self { users: VecDeque::new(), turns: 0, limit }
    }

    pub(super) fn len(&self) -> usize {
        self.users.iter().map(|user| user.waiting.len()).sum()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= self.limit
    }

    /// How many requests would be served before one more of this user.
    pub(super) fn ahead_of(&self, uid: u32) -> usize {
        self.before(self.place_of(uid), self.waiting_of(uid))
    }

    /// How many it would be if everybody in the round asked again before each further turn of this user.
    pub(super) fn most_ahead_of(&self, uid: u32) -> usize {
        self.waiting_of(uid) * self.users.len() + self.before(self.place_of(uid), 0)
    }

    /// The place of a user in the round, or where he would come in.
    fn place_of(&self, uid: u32) -> usize {
        let known = self.users.iter().position(|user| user.uid == uid);
        let before = || self.users.iter().position(|user| user.due > self.turns);
        known.or_else(before).unwrap_or(self.users.len())
    }

    /// How many requests are served before that of a user of this place which has so many of its own before it.
    fn before(&self, own_turn: usize, own: usize) -> usize {
        // By then the others have had as many turns as this user's requests, and those before it in a round one more.
        let turns = |place| own + usize::from(place < own_turn);
        self.users.iter().enumerate().map(|(place, user)| user.waiting.len().min(turns(place))).sum()
    }

    /// The user of a turn who has the fewest ahead.
    pub(super) fn first_of(&self, turn: &Turn) -> u32 {
        match turn {
            Turn::Of(uid) => *uid,
            Turn::OfAny(users) => lock(users).iter().copied().min_by_key(|uid| self.ahead_of(*uid)).unwrap_or_default(),
        }
    }

    /// Moves the request of a turn to the user whose comes first.
    pub(super) fn hasten(&mut self, turn: &Turn) {
        let first = self.first_of(turn);
        let ahead = self.ahead_of(first);
        let place = |user: &User| user.waiting.iter().position(|request| request.turn.is_same(turn));
        let found = self.users.iter().enumerate().find_map(|(own_turn, user)| Some((own_turn, place(user)?)));
        let Some((own_turn, own)) = found.filter(|(own_turn, own)| ahead < self.before(*own_turn, *own)) else {
            return;
        };
        let Some(user) = self.users.get_mut(own_turn) else { return };
        let Some(request) = user.waiting.remove(own) else { return };
        self.add(Request { uid: first, ..request });
    }

    /// Adds a request. Where the queue is full of requests that somebody waits for, returns the one that has to go: the
    /// last of the user who has the most, so that whoever has less than a fair share always gets in.
    pub(super) fn push(&mut self, request: Request) -> Option<Request> {
        if self.is_full() {
            self.drop_unwanted();
        }
        let mut refused = None;
        if self.is_full() {
            refused = self.last_of_greediest(request.uid);
            if refused.is_none() {
                return Some(request);
            }
        }
        self.add(request);
        refused
    }

    fn add(&mut self, request: Request) {
        let (uid, place) = (request.uid, self.place_of(request.uid));
        match self.users.get_mut(place).filter(|user| user.uid == uid) {
            Some(user) => user.waiting.push_back(request),
            None => self.users.insert(place, User { uid, due: self.turns, waiting: [request].into() }),
        }
    }

    /// Puts back a request that has had its turn in vain, for the next process; or answers it.
    pub(super) fn retry(&mut self, request: Request, error: &DeviceError) {
        if request.sent >= 2 || matches!(error, DeviceError::PinRefused(_)) {
            return request.answer(Err(error.clone()));
        }
        self.put_back(request);
    }

    /// Makes a request its user's next, and its user the next.
    pub(super) fn put_back(&mut self, request: Request) {
        let uid = request.uid;
        let known = self.users.iter().position(|user| user.uid == uid).and_then(|place| self.users.remove(place));
        let mut waiting = known.map_or_else(VecDeque::new, |user| user.waiting);
        waiting.push_front(request);
        self.users.push_front(User { uid, due: self.turns, waiting });
    }

    /// The next request that somebody still waits for, given how long its answer takes from now on: a device is to do nothing in
    /// vain.
    pub(super) fn pop(&mut self, now: Instant, wait: Duration) -> Option<Request> {
        while let Some(mut user) = self.users.pop_front() {
            // What is not done takes no turn from the user's others.
            let next = std::iter::from_fn(|| user.waiting.pop_front()).find_map(|request| request.in_time(now, wait));
            if next.is_some() {
                self.turns += 1;
                user.due = self.turns + self.users.len() as u64 + 1;
                self.users.push_back(user);
                return next;
            }
        }
        None
    }

    fn waiting_of(&self, uid: u32) -> usize {
        self.users.iter().find(|user| user.uid == uid).map_or(0, |user| user.waiting.len())
    }

    /// Takes the last request of the user who has the most, unless this user would then have more.
    fn last_of_greediest(&mut self, uid: u32) -> Option<Request> {
        let with_one_more = self.waiting_of(uid) + 1;
        let greediest = self.users.iter_mut().max_by_key(|user| user.waiting.len())?;
        if greediest.waiting.len() <= with_one_more {
            return None;
        }
        greediest.waiting.pop_back()
    }

    fn drop_unwanted(&mut self) {
        let now = Instant::now();
        for user in &mut self.users {
            user.waiting.retain(|request| request.is_wanted(now));
        }
        self.users.retain(|user| user.due > self.turns || !user.waiting.is_empty());
    }
}

/// How long a device takes, as seen lately.
#[derive(Default)]
pub(super) struct Pace {
    service: Duration,
}

impl Pace {
    /// Takes note of a job that took this long and went through the device's workers in this round.
    pub(super) fn record(&mut self, elapsed: Duration, round: usize) {
        let service = elapsed / u32::try_from(round).unwrap_or(u32::MAX).max(1);
        self.service = if self.service.is_zero() { service } else { (self.service * 7 + service) / 8 };
    }

    /// The mean time of a job.
    pub(super) const fn service(&self) -> Duration {
        self.service
    }

    /// How many jobs a worker is given at once.
    pub(super) fn jobs(&self) -> usize {
        if self.service < wire::QUICK && !self.service.is_zero() { MANY } else { FEW }
    }

    /// How long until a worker has done one more job, after those that are ahead of it. Zero where a worker is idle: a
    /// device that was slow once must get the chance to be faster.
    pub(super) fn wait(&self, ahead: usize, workers: usize) -> Duration {
        if ahead < workers {
            return Duration::ZERO;
        }
        self.service * u32::try_from(ahead / workers.max(1) + 1).unwrap_or(u32::MAX)
    }
}

/// The part of a wait that it may take longer.
const RESERVE: u32 = 8;
/// Jobs for each worker: one that it is at and one to go on with; or, of a quick device, twice as many as are told together,
/// so that it is not idle meanwhile.
const FEW: usize = 2;
const MANY: usize = 2 * wire::TOGETHER;

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};

    use super::*;
    use crate::device::handle::{Handle, Health};
    use crate::key::{Algorithm, Digest, Hash, Signature};

    const MILLISECOND: Duration = Duration::from_millis(1);

    const GREEDY: u32 = 1;
    const MODEST: u32 = 2;
    const OTHER: u32 = 3;

    fn pair() -> EcdsaKeyPair {
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()
    }

    fn public_key(pair: &EcdsaKeyPair) -> PublicKey {
        let spki: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
        PublicKey::from_spki(spki.as_ref()).unwrap()
    }

    /// A request of a user, told apart by how often it was sent; and its caller, who goes when this is dropped.
    fn request(uid: u32, number: u32) -> (Request, Answered) {
        static KEY: LazyLock<Arc<PublicKey>> = LazyLock::new(|| Arc::new(public_key(&pair())));
        let (answer, caller) = oneshot::channel();
        let request = Request {
            locator: Arc::new(KeyLocator::Handle(1)),
            public_key: Arc::clone(&KEY),
            work: Work::PublicKey,
            deadline: Instant::now() + MILLISECOND * 3_600_000,
            turn: Turn::shared(uid),
            uid,
            answer,
            sent: number,
        };
        (request, caller)
    }

    /// A queue in which these users wait, each of their requests numbered from 0 in the order of this list.
    fn queue(limit: usize, users: &[u32]) -> (Queue, Vec<Answered>) {
        let mut queue = Queue::new(limit);
        let callers = users.iter().enumerate().map(|(place, uid)| {
            let number = users[..place].iter().filter(|before| *before == uid).count();
            let (request, caller) = request(*uid, number.try_into().unwrap());
            assert!(queue.push(request).is_none());
            caller
        });
        let callers = callers.collect();
        (queue, callers)
    }

    /// The next, however long it takes.
    fn pop(queue: &mut Queue) -> Option<Request> {
        queue.pop(Instant::now(), Duration::ZERO)
    }

    fn order(mut queue: Queue) -> Vec<(u32, u32)> {
        std::iter::from_fn(|| pop(&mut queue)).map(|request| (request.uid, request.sent)).collect()
    }

    #[test]
    fn users_take_turns_and_each_is_served_in_order() {
        let (queue, _callers) = queue(9, &[GREEDY, GREEDY, GREEDY, GREEDY, MODEST, OTHER, MODEST]);
        let expected = [(GREEDY, 0), (MODEST, 0), (OTHER, 0), (GREEDY, 1), (MODEST, 1), (GREEDY, 2), (GREEDY, 3)];
        assert_eq!(order(queue), expected);
    }

    #[test]
    fn what_is_ahead_is_what_is_served_before() {
        for users in [
            &[][..],
            &[GREEDY; 5],
            &[GREEDY, GREEDY, GREEDY, MODEST, OTHER, MODEST, OTHER, OTHER],
            &[MODEST, GREEDY, GREEDY, GREEDY, GREEDY, OTHER],
        ] {
            for turns_had in 0..3 {
                for uid in [GREEDY, MODEST, OTHER, 4] {
                    let (mut queue, _callers) = queue(99, users);
                    (0..turns_had).for_each(|_| drop(pop(&mut queue)));
                    let ahead = queue.ahead_of(uid);
                    assert!(queue.most_ahead_of(uid) >= ahead);
                    let (last, _caller) = request(uid, 99);
                    assert!(queue.push(last).is_none());
                    assert_eq!(
                        order(queue).iter().position(|(_, number)| *number == 99),
                        Some(ahead),
                        "{users:?} {uid}"
                    );
                }
            }
        }
    }

    /// Has everybody in the round had a turn.
    fn round(queue: &mut Queue) {
        (0..queue.users.len()).for_each(|_| drop(pop(queue)));
    }

    #[test]
    fn whoever_had_no_turn_for_a_round_is_next_however_many_wait() {
        for greedy in 1..50 {
            let users: Vec<_> = (100..100 + greedy).flat_map(|uid| [uid; 3]).collect();
            let (mut queue, _callers) = queue(999, &users);
            round(&mut queue);
            drop(pop(&mut queue));
            let (request, _caller) = request(MODEST, 9);
            assert!(queue.push(request).is_none());
            assert_eq!(pop(&mut queue).map(|request| request.uid), Some(MODEST));
        }
    }

    #[test]
    fn who_asks_again_within_a_round_waits_for_its_end() {
        let (mut queue, mut callers) = queue(99, &[GREEDY, GREEDY, GREEDY, MODEST, OTHER, OTHER, OTHER]);
        round(&mut queue);
        let (request, caller) = request(MODEST, 9);
        callers.push(caller);
        assert!(queue.push(request).is_none());
        assert_eq!(order(queue), [(GREEDY, 1), (MODEST, 9), (OTHER, 1), (GREEDY, 2), (OTHER, 2)]);
    }

    #[test]
    fn no_stream_of_newcomers_keeps_anybody_waiting_for_ever() {
        let (mut queue, mut callers) = queue(999, &[[GREEDY; 50], [OTHER; 50]].concat());
        let mut served = Vec::new();
        for uid in 1000..1100 {
            let (request, caller) = request(uid, 0);
            callers.push(caller);
            assert!(queue.push(request).is_none());
            served.extend(pop(&mut queue).map(|request| request.uid));
        }
        for uid in [GREEDY, OTHER] {
            assert!(served.iter().filter(|served| **served == uid).count() > 3, "{served:?}");
        }
    }

    #[test]
    fn what_several_wait_for_is_done_in_the_first_of_their_turns() {
        let (mut queue, mut callers) = queue(9, &[GREEDY, GREEDY, GREEDY, OTHER]);
        let (request, caller) = request(GREEDY, 9);
        let turn = request.turn.clone();
        assert!(queue.push(request).is_none());
        callers.push(caller);
        assert!(turn.join(OTHER) && !turn.join(OTHER));
        queue.hasten(&turn);
        assert!(turn.join(MODEST));
        assert_eq!(queue.first_of(&turn), MODEST);
        queue.hasten(&turn);
        // Who joins later, and would have it later, changes nothing.
        assert!(turn.join(GREEDY + 10) && queue.first_of(&turn) != GREEDY);
        queue.hasten(&turn);
        assert_eq!(order(queue), [(GREEDY, 0), (OTHER, 0), (MODEST, 9), (GREEDY, 1), (GREEDY, 2)]);
    }

    #[test]
    fn what_several_wait_for_stays_where_another_turn_is_no_earlier() {
        let (mut queue, mut callers) = queue(9, &[GREEDY]);
        let (request, caller) = request(GREEDY, 9);
        let turn = request.turn.clone();
        assert!(queue.push(request).is_none());
        callers.push(caller);
        assert!(turn.join(MODEST));
        queue.hasten(&turn);
        assert_eq!(order(queue), [(GREEDY, 0), (GREEDY, 9)]);
    }

    #[test]
    fn in_a_full_queue_whoever_has_the_most_gives_way() {
        let (mut queue, mut callers) = queue(4, &[GREEDY; 4]);
        let mut push = |uid| {
            let (request, caller) = request(uid, 9);
            callers.push(caller);
            queue.push(request).map(|refused| (refused.uid, refused.sent))
        };
        assert_eq!(push(GREEDY), Some((GREEDY, 9)));
        assert_eq!(push(MODEST), Some((GREEDY, 3)));
        assert_eq!(push(MODEST), Some((GREEDY, 2)));
        assert_eq!(push(MODEST), Some((MODEST, 9)), "both have a half");
        assert_eq!(push(GREEDY), Some((GREEDY, 9)), "both have a half");
        let refused = push(OTHER).unwrap();
        assert!([(GREEDY, 1), (MODEST, 9)].contains(&refused), "{refused:?}");
        assert_eq!(queue.len(), 4);
    }

    #[test]
    fn callers_that_have_gone_make_room_and_take_no_turns() {
        let (mut queue, mut callers) = queue(4, &[GREEDY, GREEDY, MODEST, MODEST]);
        callers.remove(2);
        callers.remove(0);
        let (request, _caller) = request(GREEDY, 9);
        assert!(queue.push(request).is_none());
        assert_eq!(order(queue), [(GREEDY, 1), (MODEST, 1), (GREEDY, 9)]);
        let (queue, mut callers) = self::queue(4, &[GREEDY, GREEDY, MODEST]);
        callers.remove(0);
        assert_eq!(order(queue), [(GREEDY, 1), (MODEST, 0)]);
    }

    #[tokio::test]
    async fn a_deadline_that_passes_in_the_queue_is_no_fault_of_the_device() {
        let (requests, mut received) = tokio::sync::mpsc::unbounded_channel();
        let (_published, health) = tokio::sync::watch::channel(Health::Ready);
        let handle = Handle { requests, health, counters: Arc::default() };
        let (request, caller) = request(MODEST, 0);
        let deadline = Instant::now() + MILLISECOND * 5;
        let asked = handle.ask(Request { deadline, ..request }, caller);
        let served = async {
            let Some(Message::Request(request)) = received.recv().await else { panic!("nothing was asked") };
            let mut queue = Queue::new(4);
            assert!(queue.push(request).is_none());
            // Without a pause, so that the queue sees it before the caller's timer does.
            while Instant::now() < deadline {
                std::hint::spin_loop();
            }
            assert!(pop(&mut queue).is_none());
        };
        let (answer, ()) = tokio::join!(asked, served);
        assert!(matches!(answer, Err(DeviceError::Late)), "{:?}", answer.err());
    }

    #[test]
    fn what_can_only_be_late_is_refused_in_its_turn_and_another_has_it() {
        let (mut queue, mut callers) = queue(9, &[GREEDY, GREEDY, GREEDY, MODEST]);
        let soon = Instant::now() + MILLISECOND * 1_000_000;
        queue.users[0].waiting.iter_mut().take(2).for_each(|request| request.deadline = soon);
        let next = queue.pop(Instant::now(), MILLISECOND * 2_000_000).unwrap();
        assert_eq!((next.uid, next.sent), (GREEDY, 2));
        for caller in &mut callers[..2] {
            assert!(matches!(caller.try_recv(), Ok(Err(DeviceError::Overloaded { .. }))));
        }
        assert_eq!(order(queue), [(MODEST, 0)]);
    }

    #[test]
    fn what_had_its_turn_in_vain_has_the_next() {
        let (mut queue, _callers) = queue(4, &[GREEDY, GREEDY, MODEST]);
        let in_vain = pop(&mut queue).unwrap();
        queue.retry(in_vain, &DeviceError::Away(String::new()));
        assert_eq!(order(queue), [(GREEDY, 0), (MODEST, 0), (GREEDY, 1)]);
    }

    #[tokio::test]
    async fn what_failed_twice_or_by_its_pin_is_answered_and_not_tried_again() {
        let (away, refused) = (DeviceError::Away(String::new()), DeviceError::PinRefused(String::new()));
        for (sent, error, again) in [(1, &away, true), (2, &away, false), (0, &refused, false)] {
            let mut queue = Queue::new(4);
            let (request, caller) = request(MODEST, sent);
            queue.retry(request, error);
            assert_eq!(pop(&mut queue).is_some(), again, "{sent} {error}");
            assert_eq!(caller.await.ok().map(Result::err), (!again).then(|| Some(error.clone())));
        }
    }

    #[tokio::test]
    async fn who_is_refused_is_told_when_to_come_again() {
        for (wait, expected) in [(0, 10), (500, 500), (60_000, 10_000)] {
            let (request, caller) = request(MODEST, 0);
            request.refuse(MILLISECOND * wait);
            let retry_after = MILLISECOND * expected;
            assert_eq!(caller.await.unwrap().err(), Some(DeviceError::Overloaded { retry_after }));
        }
    }

    #[test]
    fn nobody_waits_beyond_the_deadline() {
        let (request, _caller) = request(MODEST, 0);
        assert!(request.is_wanted(request.deadline - MILLISECOND) && !request.is_wanted(request.deadline));
    }

    #[test]
    fn no_answer_leaves_that_is_not_right_by_the_recorded_key() {
        let (ours, another) = (pair(), pair());
        let sign = Work::Sign { algorithm: Algorithm::Es256, digest: Digest::of(Hash::Sha256, b"text") };
        let signed = |pair: &EcdsaKeyPair, text: &[u8]| {
            let signature = pair.sign(&SystemRandom::new(), text).unwrap();
            Answer::Sign(Signature::from_bytes(signature.as_ref().to_vec()))
        };
        let spki = |pair| Answer::PublicKey(public_key(pair).spki().to_vec());
        for (row, (work, answer, expected)) in [
            (sign, signed(&ours, b"text"), "right"),
            (sign, signed(&ours, b"another text"), "integrity"),
            (sign, signed(&another, b"text"), "integrity"),
            (sign, spki(&ours), "integrity"),
            (Work::PublicKey, spki(&ours), "right"),
            (Work::PublicKey, spki(&another), "permanent"),
            (Work::PublicKey, Answer::PublicKey(Vec::new()), "permanent"),
            (Work::PublicKey, signed(&ours, b"text"), "integrity"),
        ]
        .into_iter()
        .enumerate()
        {
            let request = Request { public_key: Arc::new(public_key(&ours)), work, ..request(MODEST, 0).0 };
            let said = request.verified(answer).map_or_else(|error| error.class(), |_| "right");
            assert_eq!(said, expected, "{row}");
        }
    }

    /// Four users ask ten times as often as the device carries, whose two workers take 6 ms and have a job more each; another
    /// user asks now and then.
    #[test]
    fn under_overload_nothing_is_done_in_vain_and_whoever_is_refused_knows_at_once() {
        let (mut queue, mut pace, began) = (Queue::new(256), Pace::default(), Instant::now());
        pace.record(MILLISECOND * 6, 1);
        let (mut in_flight, mut callers) = (VecDeque::new(), Vec::new());
        for step in 0..1000 {
            let now = began + MILLISECOND * 3 * step;
            let done = in_flight.pop_front();
            assert!(done.is_none_or(|done: Request| now <= done.deadline), "step {step}");
            let modest = (step % 9 == 8).then_some(MODEST);
            for uid in (0..10).map(|number| 100 + (step / 5 + number) % 4).chain(modest) {
                let (request, caller) = request(uid, 0);
                let request = Request { deadline: now + MILLISECOND * 45, ..request };
                let wait = pace.wait(queue.most_ahead_of(uid) + in_flight.len(), 2);
                if request.is_promising(now, wait) {
                    assert!(queue.push(request).is_none());
                    callers.push(caller);
                }
            }
            while in_flight.len() < 4 {
                in_flight.extend(queue.pop(now, pace.wait(in_flight.len(), 2)));
            }
            assert!(modest.is_none() || in_flight.iter().any(|request| request.uid == MODEST), "step {step}");
        }
        let refused = callers.iter_mut().filter_map(|caller| caller.try_recv().ok()).count();
        assert_eq!(refused, 0, "of {}", callers.len());
    }

    #[test]
    fn an_idle_worker_is_never_waited_for() {
        let mut pace = Pace::default();
        pace.record(MILLISECOND * 1000, 1);
        assert_eq!(pace.wait(0, 1), Duration::ZERO);
        assert_eq!(pace.wait(3, 4), Duration::ZERO);
    }

    #[test]
    fn the_wait_grows_with_what_is_ahead_and_shrinks_with_workers() {
        let mut pace = Pace::default();
        pace.record(MILLISECOND * 10, 1);
        assert_eq!(pace.wait(1, 1), MILLISECOND * 20);
        assert_eq!(pace.wait(100, 1), MILLISECOND * 1010);
        assert_eq!(pace.wait(100, 4), MILLISECOND * 260);
    }

    #[test]
    fn a_job_that_waited_in_the_process_counts_for_one_round_of_two() {
        let mut pace = Pace::default();
        pace.record(MILLISECOND * 20, 2);
        assert_eq!(pace.service(), MILLISECOND * 10);
    }

    #[test]
    fn a_quick_device_is_given_more_to_do() {
        let mut pace = Pace::default();
        assert_eq!(pace.jobs(), FEW, "nothing is known yet");
        pace.record(MILLISECOND, 1);
        assert_eq!(pace.jobs(), MANY);
        pace.record(MILLISECOND * 100, 1);
        assert_eq!(pace.jobs(), FEW);
        let mut pace = Pace::default();
        pace.record(wire::QUICK, 1);
        assert_eq!(pace.jobs(), FEW);
    }

    #[test]
    fn one_slow_job_is_forgotten() {
        let mut pace = Pace::default();
        pace.record(MILLISECOND * 10, 1);
        pace.record(MILLISECOND * 5000, 1);
        for _ in 0..60 {
            pace.record(MILLISECOND * 10, 1);
        }
        assert!(pace.service() < MILLISECOND * 11, "{:?}", pace.service());
    }
}
