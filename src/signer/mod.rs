//! THE request path: audit, policy, key, JWT, device, audit. Only this module signs, and every front, whatever its
//! protocol, comes here: [`Signer::sign_bytes`] for bytes and digests, [`Signer::sign_jwt`] for JWTs. What is minted may
//! come from the cache, which signs nothing itself.
//!
//! It knows no protocol, no configuration file and no device but through its handle.

mod accounts;
mod audit;
mod cache;
mod checkpoints;
mod error;
mod exchange;
mod keyring;
mod metrics;
mod minting;
mod rate;
mod request;
mod status;
mod swap;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::access::{Caller, Permit, Policy, Request};
use crate::key::{Algorithm, Digest, KeyId, Signature};
pub use crate::keyring::KeyState;
use audit::Record;
pub use audit::{Audit, OpenError};
use cache::Minted;
pub use cache::{Cache, CacheFigures};
pub use error::SignError;
pub use exchange::{Bearer, Exchanges, TokenEndpoint};
pub use keyring::{Devices, Key, LiveKeyring};
use metrics::Signatures;
use minting::Allowed;
use rate::Rules;
use request::Body;
pub use request::{Bytes, JwtBody};
pub use status::{DeviceState, DeviceStatus, Source, Status, Trouble};

/// What a daemon signs with: policy and keyring can be swapped while it runs.
#[derive(Debug)]
pub struct Signer {
    rules: ArcSwap<Rules>,
    source: ArcSwap<Source>,
    http_trouble: ArcSwap<Option<Trouble>>,
    keyring: ArcSwap<LiveKeyring>,
    cache: Cache,
    exchanges: Exchanges,
    audit: Audit,
    signatures: Signatures,
    changes: watch::Sender<()>,
}

/// Who asks, through which rpc, for which account, and until when.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// The caller, by the kernel's word.
    pub caller: &'a Caller,
    /// The rpc's name, for the audit log.
    pub rpc: &'static str,
    /// The account as asked for; empty: the default account.
    pub account: &'a str,
    /// When the caller no longer waits.
    pub deadline: Instant,
}

/// What was signed, and by which key.
#[derive(Debug)]
pub struct Signed<T> {
    /// The key.
    pub kid: KeyId,
    /// The algorithm that was used.
    pub algorithm: Algorithm,
    /// What was signed, or what was given for it.
    pub value: T,
}

/// What a key is asked to sign: the digest of something that the signature makes whole.
struct ToSign<T> {
    algorithm: Algorithm,
    digest: Digest,
    of: T,
}

impl Signer {
    /// Puts the parts together.
    #[must_use]
    pub fn new(policy: Policy, keyring: LiveKeyring, cache: Cache, audit: Audit) -> Self {
        let (rules, keyring) = (ArcSwap::from_pointee(Rules::new(policy)), ArcSwap::from_pointee(keyring));
        Self {
            rules,
            source: ArcSwap::default(),
            http_trouble: ArcSwap::default(),
            keyring,
            cache,
            exchanges: Exchanges::new(),
            audit,
            signatures: Signatures::new(),
            changes: watch::Sender::default(),
        }
    }

    /// With the token endpoints of accounts: their access tokens for scopes and their ID tokens come from there.
    #[must_use]
    pub fn with_exchanges(self, exchanges: Exchanges) -> Self {
        Self { exchanges, ..self }
    }

    /// Begins a new file of the audit log.
    pub fn rotate_audit(&self) {
        self.audit.rotate();
    }

    /// Signs bytes or a digest. Bytes that a verifier could take for a JWT are judged as sign-jwt.
    ///
    /// # Errors
    /// [`SignError`].
    pub async fn sign_bytes(
        &self,
        call: Call<'_>,
        bytes: Bytes<'_>,
        algorithm: Option<Algorithm>,
    ) -> Result<Signed<Signature>, SignError> {
        let mut record = self.audit.begin(&call)?;
        let signed = self.bytes(&call, bytes, algorithm, &mut record).await;
        record.finish(signed).await
    }

    /// Makes a JWT and signs it, and where the account has a token endpoint, gives it there for an access or an ID token. A
    /// minted one may be cached: it has the lifetime that was asked for, but is not always new. While a device works it has 300 s
    /// left at least, or all of its lifetime where that is under half an hour.
    ///
    /// # Errors
    /// [`SignError`].
    pub async fn sign_jwt(self: &Arc<Self>, call: Call<'_>, body: JwtBody) -> Result<Signed<Bearer>, SignError> {
        let mut record = self.audit.begin(&call)?;
        let signed = self.jwt(&call, body, &mut record).await;
        record.finish(signed).await
    }

    async fn bytes(
        &self,
        call: &Call<'_>,
        bytes: Bytes<'_>,
        algorithm: Option<Algorithm>,
        record: &mut Record,
    ) -> Result<Signed<Signature>, SignError> {
        let (account, now) = (self.resolve(call.account)?, SystemTime::now());
        // Judging takes time: none for strangers, whom policy denies whatever it is.
        let known = self.rules.load().policy.knows(call.caller, &account);
        let judged = if known { bytes.judge(&account, now) } else { bytes.unjudged() };
        let permit = self.authorize(call.caller, &judged.request(&account, now), record)?;
        let signable = judged.into_signable()?;
        let prepare = |key: &Key| {
            let algorithm = algorithm.unwrap_or(key.algorithm());
            Ok(ToSign { algorithm, digest: signable.digest(algorithm.hash())?, of: () })
        };
        let allowed = Allowed::alone(call, &permit);
        let (key, ToSign { algorithm, .. }, value) = self.sign(&allowed, record, prepare).await?;
        Ok(Signed { kid: key.kid().clone(), algorithm, value })
    }

    async fn jwt(
        self: &Arc<Self>,
        call: &Call<'_>,
        body: JwtBody,
        record: &mut Record,
    ) -> Result<Signed<Bearer>, SignError> {
        let (permit, body) = self.judge(call, body, record)?;
        match body.wanted(&permit).filter(|_| self.cache.is_on()) {
            Some(wanted) => self.cached(call, permit, &wanted, record).await,
            None => Ok(self.mint(&Allowed::alone(call, &permit), &body, record).await?.signed()),
        }
    }

    fn judge(&self, call: &Call<'_>, body: JwtBody, record: &mut Record) -> Result<(Permit, Body), SignError> {
        let (account, now) = (self.resolve(call.account)?, SystemTime::now());
        let body = body.parse()?;
        let permit = self.authorize(call.caller, &body.request(&account, now), record)?;
        Ok((permit, body))
    }

    async fn mint(&self, allowed: &Allowed<'_>, body: &Body, record: &mut Record) -> Result<Minted, SignError> {
        let (issued, permit) = (SystemTime::now(), allowed.permit);
        let exchange = self.exchanges.get(&permit.account().email).zip(body.grant());
        let prepare = |key: &Key| {
            let unsigned = match exchange {
                Some((endpoint, grant)) => request::assertion(permit, key, endpoint.uri(), grant, issued)?,
                None => body.unsigned(permit, key, issued)?,
            };
            Ok(ToSign { algorithm: key.algorithm(), digest: unsigned.digest(), of: unsigned })
        };
        let (key, ToSign { algorithm, digest, of }, signature) = self.sign(allowed, record, prepare).await?;
        let jwt = of.into_jwt(&signature);
        let bearer = match exchange {
            Some((endpoint, grant)) => endpoint.exchange(&jwt, grant, permit, allowed.deadline).await?,
            None => jwt.into(),
        };
        Ok(Minted { key, algorithm, digest, bearer, issued })
    }

    /// Asks the account's keys in turn: the next one only where the device of the one before can't.
    async fn sign<T>(
        &self,
        allowed: &Allowed<'_>,
        record: &mut Record,
        prepare: impl Fn(&Key) -> Result<ToSign<T>, SignError>,
    ) -> Result<(Arc<Key>, ToSign<T>, Signature), SignError> {
        let Allowed { permit, turn, deadline: until } = allowed;
        let mut failure = SignError::no_key();
        let mut keys = self.keyring.load().active(&permit.account().email).into_iter().peekable();
        while let Some(key) = keys.next() {
            let to_sign = prepare(&key)?;
            let ToSign { algorithm, digest, .. } = to_sign;
            if algorithm.key_type() != key.algorithm().key_type() {
                return Err(SignError::invalid("algorithm", format!("this account's key can't sign {algorithm}")));
            }
            record.signing(key.kid(), key.device(), &digest);
            let (before, began) = (key.signatures(), Instant::now());
            // While another can sign, a device that hangs has only a part of the time.
            let deadline = match keys.peek() {
                Some(next) if next.can_sign() => share_of(*until),
                _ => *until,
            };
            let signed = key.sign(algorithm, digest, deadline, turn.clone()).await;
            self.signatures.count(key.device(), permit.operation(), began.elapsed(), &signed);
            match signed {
                Ok(signature) => return Ok((key, to_sign, signature)),
                Err(error) => failure = error.into(),
            }
            let hung = failure == SignError::Late && deadline < *until;
            // Nobody makes a device look as if it hung by having little time himself.
            let for_long = hung && deadline >= began + PATIENCE;
            if failure.is_of_one_device() || (for_long && key.signatures() == before) {
                key.shaken();
            }
            if !failure.is_of_one_device() && !hung {
                break;
            }
        }
        Err(failure)
    }

    fn authorize(&self, caller: &Caller, request: &Request<'_>, record: &mut Record) -> Result<Permit, SignError> {
        record.asked(request);
        let rules = self.rules.load();
        let decision = rules.policy.authorize(caller, request);
        record.decided(&decision);
        let permit = decision.map_err(|_told_to_the_audit_log_alone| SignError::Denied)?;
        rules.spend(&permit, caller.uid)?;
        Ok(permit)
    }
}

/// What a device may have of the time until a deadline where another one can sign instead: half of it, and not more than is
/// spent with a device that works.
fn share_of(deadline: Instant) -> Instant {
    let now = Instant::now();
    now + (deadline.saturating_duration_since(now) / 2).min(PATIENCE)
}

const PATIENCE: Duration = Duration::from_secs(2);
