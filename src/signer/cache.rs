//! Minted JWTs that are still good: shared by all who ask for the same, renewed before they expire.
//!
//! It signs nothing and decides nothing: who may have a JWT, policy says at every request, and who has to sign one is
//! told here. Time is an argument.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::request::Wanted;
use super::{Bearer, Key, SignError, Signed};
use crate::access::Caller;
use crate::device::handle::Turn;
use crate::key::{Algorithm, Digest};

/// The minted JWTs, the least recently asked for thrown out when there are too many.
#[derive(Debug)]
pub struct Cache {
    capacity: usize,
    slots: Mutex<Slots>,
    /// Spreads renewals over time.
    jitter: RandomState,
    hits: AtomicU64,
    misses: AtomicU64,
    stale: AtomicU64,
    renewals: AtomicU64,
}

/// Figures of the cache since the daemon's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheFigures {
    /// Requests answered at once with a JWT of at least 300 s.
    pub hits: u64,
    /// Requests that had to wait for a signature, their own or another's.
    pub misses: u64,
    /// Requests answered with a JWT of less than 300 s, since no device could sign another.
    pub stale: u64,
    /// Signatures made before anybody had to wait for them.
    pub renewals: u64,
    /// JWTs that are kept now.
    pub entries: usize,
}

/// A minted JWT, and what the audit log says of it.
pub(super) struct Minted {
    pub(super) key: Arc<Key>,
    pub(super) algorithm: Algorithm,
    pub(super) digest: Digest,
    pub(super) bearer: Bearer,
    pub(super) issued: SystemTime,
}

/// What came of a signature that several may wait for.
pub(super) type Outcome = Result<Arc<Minted>, SignError>;

/// Who asks, when, and how the account's keys are.
pub(super) struct Asker<'a> {
    pub(super) caller: &'a Caller,
    pub(super) now: SystemTime,
    /// The account's active keys: what another key signed is good no more.
    pub(super) keys: &'a [Arc<Key>],
    /// Whether one of them can sign now.
    pub(super) ready: bool,
}

/// The answer to one who asks. Where there is a last one that still lives, it comes along for want of better.
pub(super) enum Asked {
    /// Here it is.
    Hit(Arc<Minted>),
    /// It is being signed.
    Wait(Flight, Option<Arc<Minted>>),
    /// Whoever gets this has to have it signed.
    Sign(Landing, Option<Arc<Minted>>),
}

/// A signature on its way, for those who wait for it.
#[derive(Clone)]
pub(super) struct Flight {
    /// Whose turn at the device it waits for: they join it.
    pub(super) turn: Turn,
    landed: watch::Receiver<Option<Outcome>>,
}

/// A signature on its way, for the one who makes it. Dropped, it lets the next one who asks sign.
pub(super) struct Landing {
    pub(super) wanted: Wanted,
    /// Whom it is for.
    pub(super) caller: Caller,
    pub(super) turn: Turn,
    landed: watch::Sender<Option<Outcome>>,
}

#[derive(Default)]
struct Slots {
    map: HashMap<Wanted, Slot>,
    /// Counts requests, to tell the least recent.
    clock: u64,
}

#[derive(Default)]
struct Slot {
    minted: Option<Arc<Minted>>,
    flight: Option<Flight>,
    /// Who asked first since it was signed: whom a renewal is for.
    asked: Option<Caller>,
    /// When it is to be renewed.
    renew: Option<SystemTime>,
    used: u64,
}

impl Cache {
    /// A cache of so many JWTs; 0: none.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            slots: Mutex::default(),
            jitter: RandomState::new(),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            stale: AtomicU64::new(0),
            renewals: AtomicU64::new(0),
        }
    }

    /// Whether it keeps anything.
    pub(super) const fn is_on(&self) -> bool {
        self.capacity > 0
    }

    /// Finds what is wanted, or who signs it. A JWT with less than 300 s left is told only where no key can sign another.
    pub(super) fn ask(&self, wanted: &Wanted, asker: &Asker<'_>) -> Asked {
        let Asker { caller, now, keys, ready } = *asker;
        let mut slots = self.lock();
        let used = slots.tick();
        let slot = slots.map.entry(wanted.clone()).or_default();
        slot.used = used;
        slot.asked.get_or_insert_with(|| caller.clone());
        slot.minted = slot.minted.take().filter(|minted| keys.iter().any(|key| key.is_same(&minted.key)));
        let last = slot.minted.as_ref().filter(|minted| minted.left(now) >= LEAST);
        if let Some(minted) = last.filter(|minted| !ready || minted.left(now) >= FRESH) {
            let counter = if minted.left(now) >= FRESH { &self.hits } else { &self.stale };
            counter.fetch_add(1, Ordering::Relaxed);
            return Asked::Hit(Arc::clone(minted));
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        let last = last.cloned();
        match slot.flight.clone().filter(Flight::is_on_its_way) {
            Some(flight) => Asked::Wait(flight, last),
            None => Asked::Sign(slot.take_off(wanted, caller), last),
        }
    }

    /// The last good one, for whoever asked for another in vain.
    pub(super) fn last_good(&self, last: Option<Arc<Minted>>, now: SystemTime) -> Option<Arc<Minted>> {
        let last = last.filter(|minted| minted.left(now) >= LEAST)?;
        self.stale.fetch_add(1, Ordering::Relaxed);
        Some(last)
    }

    /// Keeps what was signed, and tells all who wait what came of it.
    pub(super) fn land(&self, landing: Landing, outcome: Outcome, now: SystemTime) {
        let Landing { wanted, caller, landed, .. } = landing;
        let mut slots = self.lock();
        if let Some(slot) = slots.map.get_mut(&wanted) {
            slot.flight = None;
            match &outcome {
                Ok(minted) => {
                    slot.renew = minted.renewal(self.jitter.hash_one((&wanted, minted.issued)));
                    slot.minted = Some(Arc::clone(minted));
                }
                Err(_) => {
                    slot.renew = Some(now + RETRY);
                    slot.asked.get_or_insert(caller);
                    if slot.minted.is_none() {
                        slots.map.remove(&wanted);
                    }
                }
            }
        }
        slots.shrink(self.capacity);
        drop(slots);
        landed.send_replace(Some(outcome));
    }

    /// What is to be renewed: asked for since it was signed, and at three quarters of its lifetime. Forgets what expired.
    pub(super) fn due(&self, now: SystemTime) -> Vec<Wanted> {
        let mut slots = self.lock();
        let alive = |slot: &Slot| slot.minted.as_ref().is_some_and(|minted| minted.left(now) >= LEAST);
        slots.map.retain(|_, slot| slot.is_busy() || alive(slot));
        let due = |slot: &Slot| slot.asked.is_some() && slot.renew.is_some_and(|renew| renew <= now) && !slot.is_busy();
        slots.map.iter().filter(|(_, slot)| due(slot)).map(|(wanted, _)| wanted.clone()).collect()
    }

    /// Lets the caller renew one that is due, for the one who asked for it first since it was signed.
    pub(super) fn renew(&self, wanted: &Wanted) -> Option<Landing> {
        let mut slots = self.lock();
        let slot = slots.map.get_mut(wanted).filter(|slot| !slot.is_busy())?;
        let caller = slot.asked.take()?;
        self.renewals.fetch_add(1, Ordering::Relaxed);
        Some(slot.take_off(wanted, &caller))
    }

    /// Forgets all that is not to be kept.
    pub(super) fn retain(&self, keep: impl Fn(&Minted) -> bool) {
        self.lock().map.retain(|_, slot| {
            slot.minted = slot.minted.take().filter(|minted| keep(minted));
            slot.is_busy() || slot.minted.is_some()
        });
    }

    /// The figures until now.
    pub(super) fn figures(&self) -> CacheFigures {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let entries = self.lock().map.values().filter(|slot| slot.minted.is_some()).count();
        let (hits, misses, stale) = (count(&self.hits), count(&self.misses), count(&self.stale));
        CacheFigures { hits, misses, stale, renewals: count(&self.renewals), entries }
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        // Nothing in here panics halfway through a change.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Minted {
    /// For how long it is still good; not at all where the clock was set back to before it was signed.
    fn left(&self, now: SystemTime) -> Duration {
        if now < self.issued {
            return Duration::ZERO;
        }
        self.bearer.expires().duration_since(now).unwrap_or_default()
    }

    /// When to renew it: at three quarters of its lifetime, or up to a sixteenth of it earlier.
    fn renewal(&self, jitter: u64) -> Option<SystemTime> {
        let lifetime = self.bearer.expires().duration_since(self.issued).ok()?;
        let earlier = lifetime.as_secs() / 16;
        Some(self.issued + lifetime * 3 / 4 - Duration::from_secs(jitter % (earlier + 1)))
    }

    pub(super) fn signed(&self) -> Signed<Bearer> {
        Signed { kid: self.key.kid().clone(), algorithm: self.algorithm, value: self.bearer.clone() }
    }
}

impl Flight {
    /// What came of it; `None` where whoever made it gave up, and nothing is known.
    pub(super) async fn landed(mut self) -> Option<Outcome> {
        self.landed.wait_for(Option::is_some).await.ok()?.clone()
    }

    fn is_on_its_way(&self) -> bool {
        self.landed.has_changed().is_ok()
    }
}

impl fmt::Debug for Slots {
    /// A JWT is as good as a password: none is printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slots").field("entries", &self.map.len()).finish_non_exhaustive()
    }
}

impl Slots {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Throws out the least recently used: a sixteenth at once, so that it costs little in the long run.
    fn shrink(&mut self, capacity: usize) {
        if self.map.len() <= capacity {
            return;
        }
        let mut used: Vec<u64> = self.map.values().filter(|slot| !slot.is_busy()).map(|slot| slot.used).collect();
        used.sort_unstable();
        let many = self.map.len() - capacity + capacity / 16;
        if let Some(last) = used.get(many.min(used.len()).saturating_sub(1)).copied() {
            self.map.retain(|_, slot| slot.is_busy() || slot.used > last);
        }
    }
}

impl Slot {
    fn is_busy(&self) -> bool {
        self.flight.as_ref().is_some_and(Flight::is_on_its_way)
    }

    fn take_off(&mut self, wanted: &Wanted, caller: &Caller) -> Landing {
        let ((landed, told), turn) = (watch::channel(None), Turn::shared(caller.uid));
        self.flight = Some(Flight { turn: turn.clone(), landed: told });
        Landing { wanted: wanted.clone(), caller: caller.clone(), turn, landed }
    }
}

/// What callers can count on while a device works.
const FRESH: Duration = Duration::from_secs(300);
/// What is of use to anybody.
const LEAST: Duration = Duration::from_secs(60);
/// After a renewal in vain.
const RETRY: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::super::JwtBody;
    use super::super::keyring::{Devices, LiveKeyring};
    use super::*;
    use crate::access::{Account, AccountEmail, Operation, Permit, Policy, Rule};
    use crate::jwt::Target;
    use crate::key::{KeyLocator, PublicKey, Signature};
    use crate::keyring::{self, KeyRecord, KeyState};
    use std::time::UNIX_EPOCH;

    const HOUR: u64 = 3600;

    fn at(second: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_790_000_000 + second)
    }

    fn email() -> AccountEmail {
        "a@x".parse().unwrap()
    }

    fn caller(uid: u32) -> Caller {
        Caller::new(uid, 1, vec![])
    }

    /// An active key; each call makes another one, whatever its name.
    fn key(kid: &str) -> Arc<Key> {
        use aws_lc_rs::{encoding::AsDer as _, signature as sign, signature::KeyPair as _};
        let pair = sign::EcdsaKeyPair::generate(&sign::ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        let record = KeyRecord {
            kid: kid.parse().unwrap(),
            account: email(),
            algorithm: Algorithm::Es256,
            device: "d".parse().unwrap(),
            locator: KeyLocator::Handle(1),
            public_key: PublicKey::from_spki(pair.public_key().as_der().unwrap().as_ref()).unwrap(),
            state: KeyState::Active,
            created: 1,
            activated: Some(1),
            retired: None,
        };
        let folder = tempfile::tempdir().unwrap();
        let state = crate::file::StateDir::new(folder.path().to_owned());
        let mut written = keyring::Keyring::load(&state).unwrap();
        written.keys.push(record);
        written.save(&state).unwrap();
        Arc::clone(&LiveKeyring::load(&state, &Devices::new()).unwrap().keys()[0])
    }

    fn permit(body: &JwtBody, limit: Option<u64>) -> Permit {
        let account = Account { email: email(), project_id: None, unique_id: None, default: false };
        let max_lifetime = limit.map(Duration::from_secs);
        let operations = Operation::ALL.to_vec();
        let rule = Rule { accounts: vec![email()], operations, max_lifetime, ..Rule::default() };
        let policy = Policy::new(vec![account], vec![rule]);
        policy.authorize(&caller(1), &body.clone().parse().unwrap().request(&email(), at(0))).unwrap()
    }

    fn body(scopes: &[&str], lifetime: Option<u64>) -> JwtBody {
        let target = Target::Scopes(scopes.iter().map(|scope| (*scope).to_owned()).collect());
        JwtBody::AccessToken { target, lifetime: lifetime.map(Duration::from_secs) }
    }

    fn wanted_of(body: &JwtBody, limit: Option<u64>) -> Option<Wanted> {
        body.clone().parse().unwrap().wanted(&permit(body, limit))
    }

    fn wanted(scope: &str) -> Wanted {
        wanted_of(&body(&[scope], None), None).unwrap()
    }

    /// What the key signed at a second, good for an hour.
    fn minted(key: &Arc<Key>, second: u64) -> Arc<Minted> {
        let body = body(&["s"], None);
        let permit = permit(&body, None);
        let unsigned = body.parse().unwrap().unsigned(&permit, key, at(second)).unwrap();
        let digest = unsigned.digest();
        let jwt = unsigned.into_jwt(&Signature::from_bytes(vec![7; 64]));
        let (key, bearer) = (Arc::clone(key), jwt.into());
        Arc::new(Minted { key, algorithm: Algorithm::Es256, digest, bearer, issued: at(second) })
    }

    fn ask(cache: &Cache, scope: &str, second: u64, keys: &[Arc<Key>], ready: bool) -> Asked {
        cache.ask(&wanted(scope), &Asker { caller: &caller(1), now: at(second), keys, ready })
    }

    /// A cache with one JWT, signed at second 0.
    fn with_one(key: &Arc<Key>) -> Cache {
        let cache = Cache::new(10);
        sign(&cache, "s", key, 0);
        cache
    }

    fn sign(cache: &Cache, scope: &str, key: &Arc<Key>, second: u64) {
        let Asked::Sign(landing, _) = ask(cache, scope, second, &[Arc::clone(key)], true) else {
            panic!("it is there")
        };
        cache.land(landing, Ok(minted(key, second)), at(second));
    }

    const fn name(asked: &Asked) -> (&'static str, bool) {
        match asked {
            Asked::Hit(_) => ("hit", true),
            Asked::Wait(_, last) => ("wait", last.is_some()),
            Asked::Sign(_, last) => ("sign", last.is_some()),
        }
    }

    #[test]
    fn nobody_gets_less_than_five_minutes_while_a_device_works_nor_a_minute_without() {
        let keys = [key("k")];
        for (second, ready, expected) in [
            (0, true, ("hit", true)),
            (HOUR - 300, true, ("hit", true)),
            (HOUR - 299, true, ("sign", true)),
            (HOUR - 299, false, ("hit", true)),
            (HOUR - 60, false, ("hit", true)),
            (HOUR - 60, true, ("sign", true)),
            (HOUR - 59, false, ("sign", false)),
            (HOUR - 59, true, ("sign", false)),
        ] {
            let cache = with_one(&keys[0]);
            assert_eq!(name(&ask(&cache, "s", second, &keys, ready)), expected, "{second} {ready}");
            assert_eq!(cache.figures().stale, u64::from(!ready && expected.0 == "hit"), "{second} {ready}");
        }
        let cache = with_one(&keys[0]);
        let Asked::Sign(_, last) = ask(&cache, "s", HOUR - 61, &keys, true) else { panic!("it is nearly over") };
        assert!(cache.last_good(last.clone(), at(HOUR - 60)).is_some());
        assert!(cache.last_good(last, at(HOUR - 59)).is_none(), "time went by while the device was asked");
        assert_eq!(cache.figures().stale, 1);
    }

    #[test]
    fn a_clock_that_was_set_back_makes_no_jwt_of_the_future() {
        let key = key("k");
        let cache = Cache::new(10);
        sign(&cache, "s", &key, 10);
        assert_eq!(name(&ask(&cache, "s", 9, &[key], true)), ("sign", false));
    }

    #[test]
    fn what_a_key_signed_that_signs_no_more_is_never_told() {
        let (old, new) = (key("old"), key("new"));
        let cache = with_one(&old);
        assert_eq!(name(&ask(&cache, "s", 1, &[Arc::clone(&new), Arc::clone(&old)], true)), ("hit", true));
        assert_eq!(name(&ask(&cache, "s", 1, std::slice::from_ref(&new), false)), ("sign", false));
        let cache = with_one(&old);
        assert_eq!(name(&ask(&cache, "s", 1, &[key("old")], true)), ("sign", false), "another key of the same id");
    }

    #[tokio::test]
    async fn one_signs_and_the_others_wait_even_where_the_one_gives_up() {
        let keys = [key("k")];
        let cache = Cache::new(10);
        let Asked::Sign(landing, None) = ask(&cache, "s", 0, &keys, true) else { panic!("nobody signs") };
        let Asked::Wait(flight, None) = ask(&cache, "s", 0, &keys, true) else { panic!("a second one signs") };
        assert_eq!(name(&ask(&cache, "another", 0, &keys, true)).0, "sign");
        drop(landing);
        assert!(flight.landed().await.is_none());
        let Asked::Sign(landing, None) = ask(&cache, "s", 0, &keys, true) else { panic!("nobody signs") };
        let Asked::Wait(flight, None) = ask(&cache, "s", 0, &keys, true) else { panic!("a second one signs") };
        cache.land(landing, Err(SignError::Withheld), at(0));
        assert_eq!(flight.landed().await.unwrap().err(), Some(SignError::Withheld));
        assert_eq!(cache.figures().entries, 0, "a failure is not kept");
        sign(&cache, "s", &keys[0], 1);
        assert_eq!(cache.figures(), CacheFigures { misses: 6, entries: 1, ..CacheFigures::default() });
    }

    /// Callers who ask, wait, give up, fail and hang up, in thousands of orders. Whatever they do, one signs at a time, and all
    /// who stay are answered.
    #[cfg(feature = "model")]
    #[test]
    fn model_one_signs_at_a_time_and_nobody_waits_for_ever() {
        use shuttle::future::{block_on, spawn, yield_now};
        use std::sync::atomic::AtomicUsize;

        /// A signature that is being made; over when it is dropped.
        struct Signing<'a>(&'a AtomicUsize);

        impl Drop for Signing<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }

        async fn asks(cache: &Cache, key: &Arc<Key>, signing: &AtomicUsize, signed: &AtomicUsize, number: usize) {
            for round in 0.. {
                match ask(cache, "s", 0, std::slice::from_ref(key), true) {
                    Asked::Hit(_) => return,
                    Asked::Wait(flight, _) => match flight.landed().await {
                        Some(Ok(_)) => return,
                        Some(Err(_)) | None => {}
                    },
                    Asked::Sign(landing, _) => {
                        assert_eq!(signing.fetch_add(1, Ordering::Relaxed), 0, "two sign at once");
                        let _over = Signing(signing);
                        yield_now().await;
                        match number {
                            // The first gives up once, the second fails once.
                            0 if round == 0 => drop(landing),
                            1 if round == 0 => cache.land(landing, Err(SignError::Withheld), at(0)),
                            _ => {
                                signed.fetch_add(1, Ordering::Relaxed);
                                cache.land(landing, Ok(minted(key, 0)), at(0));
                            }
                        }
                    }
                }
            }
        }

        let key = key("k");
        shuttle::check_random(
            move || {
                let cache = Arc::new(Cache::new(10));
                let (signing, signed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
                let mut callers: Vec<_> = (0..4)
                    .map(|number| {
                        let (cache, key) = (Arc::clone(&cache), Arc::clone(&key));
                        let (signing, signed) = (Arc::clone(&signing), Arc::clone(&signed));
                        spawn(async move { asks(&cache, &key, &signing, &signed, number).await })
                    })
                    .collect();
                block_on(async {
                    yield_now().await;
                    // The last hangs up wherever it is.
                    callers.pop().unwrap().abort();
                    for caller in callers {
                        caller.await.unwrap();
                    }
                });
                assert_eq!(signed.load(Ordering::Relaxed), 1);
                assert_eq!(cache.figures().entries, 1);
            },
            3_000,
        );
    }

    #[test]
    fn the_least_recently_used_go_when_there_are_too_many() {
        let keys = [key("k")];
        let cache = Cache::new(32);
        for number in 0..32 {
            sign(&cache, &format!("s{number}"), &keys[0], 0);
        }
        assert_eq!(cache.figures().entries, 32);
        assert_eq!(name(&ask(&cache, "s0", 1, &keys, true)).0, "hit");
        sign(&cache, "one-more", &keys[0], 1);
        assert_eq!(cache.figures().entries, 30, "a sixteenth goes at once");
        for (scope, expected) in [("s0", "hit"), ("one-more", "hit"), ("s4", "hit"), ("s1", "sign"), ("s3", "sign")] {
            assert_eq!(name(&ask(&cache, scope, 1, &keys, true)).0, expected, "{scope}");
        }
        let one = Cache::new(1);
        for number in 0..9 {
            sign(&one, &format!("s{number}"), &keys[0], 0);
            assert_eq!(one.figures().entries, 1);
        }
        assert_eq!(name(&ask(&one, "s8", 0, &keys, true)).0, "hit");
    }

    #[test]
    fn renewed_at_three_quarters_and_only_while_asked_for() {
        let keys = [key("k")];
        let cache = with_one(&keys[0]);
        assert!(cache.due(at(HOUR * 11 / 16 - 1)).is_empty());
        assert_eq!(cache.due(at(HOUR * 3 / 4)).len(), 1, "whoever had it signed asked for it");
        let landing = cache.renew(&wanted("s")).unwrap();
        assert_eq!(landing.caller.uid, 1);
        assert!(cache.due(at(HOUR * 3 / 4)).is_empty(), "it is being renewed");
        cache.land(landing, Err(SignError::Late), at(HOUR * 3 / 4));
        assert!(cache.due(at(HOUR * 3 / 4 + 29)).is_empty(), "not again at once");
        assert_eq!(cache.due(at(HOUR * 3 / 4 + 30)).len(), 1, "in vain, so it is still wanted");
        cache.land(cache.renew(&wanted("s")).unwrap(), Ok(minted(&keys[0], HOUR * 3 / 4)), at(HOUR * 3 / 4));
        assert_eq!(name(&ask(&cache, "another", HOUR, &keys, true)).0, "sign");
        assert!(cache.due(at(HOUR * 3 / 2)).is_empty(), "nobody asked for it since");
        assert_eq!(name(&ask(&cache, "s", HOUR, &keys, true)).0, "hit");
        assert_eq!(cache.due(at(HOUR * 3 / 2)).len(), 1);
        assert!(cache.due(at(2 * HOUR)).is_empty());
        assert_eq!(cache.figures().entries, 0, "what expired is forgotten");
    }

    #[test]
    fn renewals_are_spread_over_a_sixteenth_of_the_lifetime() {
        let minted = minted(&key("k"), 0);
        for (jitter, expected) in [(0, HOUR * 3 / 4), (225, HOUR * 11 / 16), (226, HOUR * 3 / 4)] {
            assert_eq!(minted.renewal(jitter), Some(at(expected)), "{jitter}");
        }
    }

    #[test]
    fn what_is_not_to_be_kept_is_forgotten_but_nobody_who_waits() {
        let keys = [key("k")];
        let cache = with_one(&keys[0]);
        cache.retain(|_| true);
        assert_eq!(name(&ask(&cache, "s", 1, &keys, true)).0, "hit");
        let Asked::Sign(landing, None) = ask(&cache, "another", 1, &keys, true) else { panic!("nobody signs") };
        cache.retain(|_| false);
        assert_eq!(name(&ask(&cache, "s", 1, &keys, true)), ("sign", false));
        assert_eq!(name(&ask(&cache, "another", 1, &keys, true)).0, "wait");
        cache.land(landing, Ok(minted(&keys[0], 1)), at(1));
        assert_eq!(name(&ask(&cache, "another", 1, &keys, true)).0, "hit");
    }

    #[test]
    fn a_cache_of_none_is_off_and_no_jwt_is_printed() {
        assert!(Cache::new(1).is_on() && !Cache::new(0).is_on());
        let key = key("k");
        let printed = format!("{:?}", with_one(&key));
        assert!(printed.contains("entries: 1") && !printed.contains(minted(&key, 0).bearer.as_str()), "{printed}");
    }

    #[test]
    fn the_same_is_what_has_the_same_bytes() {
        let same = |one: &JwtBody, other: &JwtBody| wanted_of(one, None) == wanted_of(other, None);
        assert!(same(&body(&["a", "b"], None), &body(&["b", "a", "b"], Some(3600))));
        assert!(!same(&body(&["a", "b"], None), &body(&["a"], None)));
        assert!(!same(&body(&["a"], None), &body(&["A"], None)));
        assert!(!same(&body(&["a"], None), &body(&["a"], Some(3599))));
        assert!(wanted_of(&body(&["a"], None), Some(1800)) != wanted_of(&body(&["a"], None), None), "a shorter limit");
        assert!(wanted_of(&body(&["a"], None), Some(1800)) == wanted_of(&body(&["a"], Some(1800)), None));
        let id = |audience: &str, include_email| {
            let audience = audience.to_owned();
            JwtBody::IdToken { audience, include_email, lifetime: None }
        };
        assert!(same(&id("a", true), &id("a", true)));
        assert!(!same(&id("a", true), &id("a", false)) && !same(&id("a", true), &id("b", true)));
        let audience = JwtBody::AccessToken { target: Target::Audience("a".to_owned()), lifetime: None };
        assert!(!same(&audience, &body(&["a"], None)) && !same(&audience, &id("a", false)));
    }

    #[test]
    fn short_lived_and_huge_jwts_and_callers_claims_are_signed_anew() {
        assert!(wanted_of(&body(&["a"], Some(1800)), None).is_some());
        assert!(wanted_of(&body(&["a"], Some(1799)), None).is_none());
        assert!(wanted_of(&body(&["a"], None), Some(1799)).is_none());
        assert!(wanted_of(&body(&[&"a".repeat(4096)], None), None).is_some());
        assert!(wanted_of(&body(&[&"a".repeat(4097)], None), None).is_none());
        assert!(wanted_of(&JwtBody::Claims("{}".to_owned()), None).is_none());
    }
}
