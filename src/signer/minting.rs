//! How a minted JWT comes from the cache, and into it: one signature for all who ask, made to its end whoever hangs up.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::audit::Record;
use super::cache::{Asked, Asker, Flight, Landing, Minted, Outcome};
use super::request::Wanted;
use super::{Bearer, Call, Key, SignError, Signed, Signer};
use crate::access::Permit;
use crate::device::handle::Turn;

/// A request that was allowed, on its way to a key.
pub(super) struct Allowed<'a> {
    pub(super) permit: &'a Permit,
    /// Whose turn at the device it waits for.
    pub(super) turn: Turn,
    pub(super) deadline: Instant,
}

impl<'a> Allowed<'a> {
    /// That of one caller, for which nobody else waits.
    pub(super) fn alone(call: &Call<'_>, permit: &'a Permit) -> Self {
        Self { permit, turn: Turn::Of(call.caller.uid), deadline: call.deadline }
    }
}

impl Signer {
    /// The cached JWT, or the one that all who ask for it now wait for, each until its deadline.
    /// Where no device makes one in time, the last one that still lives.
    pub(super) async fn cached(
        self: &Arc<Self>,
        call: &Call<'_>,
        permit: Permit,
        wanted: &Wanted,
        record: &mut Record,
    ) -> Result<Signed<Bearer>, SignError> {
        let mut is_first = true;
        let (error, last) = loop {
            let keys = self.keyring.load().active(&wanted.account);
            let ready = keys.iter().any(|key| key.can_sign());
            let asker = Asker { caller: call.caller, now: SystemTime::now(), keys: &keys, ready };
            match self.cache.ask(wanted, &asker) {
                Asked::Hit(minted) => return Ok(reused(&minted, record)),
                Asked::Sign(landing, last) => match self.sign_for_all(call, permit, landing, record).await {
                    Ok(minted) => return Ok(minted.signed()),
                    Err(error) => break (error, last),
                },
                Asked::Wait(flight, last) => match timeout_at(call.deadline, self.landed(flight, call, &keys)).await {
                    Ok(Some(Ok(minted))) => return Ok(reused(&minted, record)),
                    // Of those who asked before, perhaps: there may be room for this one.
                    Ok(Some(Err(SignError::Busy { .. }))) if std::mem::take(&mut is_first) => {}
                    Ok(Some(Err(error))) => break (error, last),
                    // Given up before the device was asked, for a reason that need not be this caller's.
                    Ok(None) => {}
                    Err(_elapsed) => break (SignError::Late, last),
                },
            }
        };
        let last = self.cache.last_good(last, SystemTime::now());
        last.map(|minted| reused(&minted, record)).ok_or(error)
    }

    /// Waits for what another one has signed: in this one's turn, where that comes first.
    async fn landed(&self, flight: Flight, call: &Call<'_>, keys: &[Arc<Key>]) -> Option<Outcome> {
        if flight.turn.join(call.caller.uid) {
            keys.iter().for_each(|key| key.hasten(&flight.turn));
        }
        flight.landed().await
    }

    /// Has a JWT signed by a task of its own, which goes on when this caller goes away: the others wait for it too.
    async fn sign_for_all(
        self: &Arc<Self>,
        call: &Call<'_>,
        permit: Permit,
        landing: Landing,
        record: &mut Record,
    ) -> Result<Arc<Minted>, SignError> {
        let body = landing.wanted.body.clone().parse()?;
        let (signer, mut second) = (Arc::clone(self), record.again());
        let deadline = call.deadline.max(Instant::now() + PATIENCE);
        let (tell, told) = oneshot::channel();
        tokio::spawn(async move {
            let allowed = Allowed { permit: &permit, turn: landing.turn.clone(), deadline };
            let outcome = signer.mint(&allowed, &body, &mut second).await.map(Arc::new);
            // The caller has gone, and said so in its own record; this one tells of the signature, where one was made.
            if let Err((second, Err(_))) = tell.send((second, outcome.clone())) {
                second.discard();
            }
            signer.cache.land(landing, outcome, SystemTime::now());
        });
        match timeout_at(call.deadline, told).await {
            Ok(Ok((second, outcome))) => {
                record.take_over(second);
                outcome
            }
            Ok(Err(_gone)) => Err(SignError::Away("the signature was given up; ask again".to_owned())),
            Err(_elapsed) => Err(SignError::Late),
        }
    }

    /// Renews, for as long as it is polled, cached JWTs that are asked for: before they expire, so that nobody waits.
    pub async fn renew(self: Arc<Self>) {
        let mut tick = tokio::time::interval(SWEEP);
        loop {
            tick.tick().await;
            self.renew_due(SystemTime::now()).await;
        }
    }

    /// Renews what is due. A device that is down is not asked.
    pub async fn renew_due(self: &Arc<Self>, now: SystemTime) {
        let mut renewals = JoinSet::new();
        for wanted in self.cache.due(now) {
            if !self.keyring.load().active(&wanted.account).iter().any(|key| key.can_sign()) {
                continue;
            }
            let Some(landing) = self.cache.renew(&wanted) else { continue };
            renewals.spawn(Arc::clone(self).renewal(landing));
            if renewals.len() >= AT_ONCE {
                renewals.join_next().await;
            }
        }
        while renewals.join_next().await.is_some() {}
    }

    /// A request like any other, of the caller who asked first since the last one: judged again, and on record.
    async fn renewal(self: Arc<Self>, landing: Landing) {
        let deadline = Instant::now() + PATIENCE;
        let account = landing.wanted.account.as_str();
        let call = Call { caller: &landing.caller, rpc: "Renewal", account, deadline };
        let Ok(mut record) = self.audit.begin(&call) else { return };
        // Those who wait may have what this caller may have no more: where it is denied, one of them signs.
        let judged = self.judge(&call, landing.wanted.body.clone(), &mut record);
        let Ok((permit, body)) = judged else { return drop(record.finish(judged).await) };
        let allowed = Allowed { permit: &permit, turn: landing.turn.clone(), deadline };
        let outcome = self.mint(&allowed, &body, &mut record).await;
        let outcome = record.finish(outcome).await.map(Arc::new);
        self.cache.land(landing, outcome, SystemTime::now());
    }
}

fn reused(minted: &Minted, record: &mut Record) -> Signed<Bearer> {
    record.cached(minted.key.kid(), minted.key.device(), &minted.digest);
    minted.signed()
}

/// For how long a signature is waited for when its caller's deadline is nearer: others wait for it too.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often to look for what is due.
const SWEEP: Duration = Duration::from_secs(10);
/// Renewals that are made at once: they leave room for those who wait.
const AT_ONCE: usize = 4;
