//! The keyring, live: from an account to the keys that sign for it now and to those that are published.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwapOption;
use tokio::time::Instant;

use crate::access::AccountEmail;
use crate::device::DeviceError;
use crate::device::handle::{Handle, Health, SignRequest, Turn};
use crate::file::StateDir;
use crate::jwt::certificate;
use crate::jwt::jwk::PublishedKey;
use crate::key::{Algorithm, DeviceName, Digest, KeyId, KeyLocator, PublicKey, Signature};
use crate::keyring::{self, KeyRecord, KeyState, KeyringError};

/// The devices of the configuration, by name.
pub type Devices = BTreeMap<DeviceName, Handle>;

/// Every key of the keyring file, joined to its device and its certificate.
#[derive(Debug, Default)]
pub struct LiveKeyring {
    /// The newest active one first, then the others in the order of the file.
    keys: Vec<Arc<Key>>,
    devices: Devices,
}

/// One key.
#[derive(Debug)]
pub struct Key {
    kid: KeyId,
    account: AccountEmail,
    algorithm: Algorithm,
    state: KeyState,
    retired: Option<SystemTime>,
    public_key: Arc<PublicKey>,
    locator: Arc<KeyLocator>,
    certificate: Option<String>,
    device: DeviceName,
    handle: Option<Handle>,
    /// Why it is not to be used, as its device last told.
    fault: ArcSwapOption<DeviceError>,
    standing: Standing,
}

/// What is known of how a key signs.
#[derive(Debug, Default)]
struct Standing {
    /// It has signed since its device was opened, and the signature verified: nothing less shows that it does.
    proven: AtomicBool,
    /// When it last could not sign, or its device was opened.
    shaken: Mutex<Option<Instant>>,
}

impl LiveKeyring {
    /// Reads the keyring and the certificates of a state directory. A missing keyring is an empty one.
    ///
    /// # Errors
    /// [`KeyringError`] for the keyring. A certificate that is missing is logged, and its key published without one.
    pub fn load(state_dir: &StateDir, devices: &Devices) -> Result<Self, KeyringError> {
        let mut records = keyring::Keyring::load(state_dir)?.keys;
        records.sort_by_key(|record| (record.state != KeyState::Active, std::cmp::Reverse(record.activated)));
        let keys = records.into_iter().map(|record| Arc::new(Key::of(record, state_dir, devices))).collect();
        Ok(Self { keys, devices: devices.clone() })
    }

    /// Every key.
    #[must_use]
    pub fn keys(&self) -> &[Arc<Key>] {
        &self.keys
    }

    /// The devices of the configuration that it was loaded with.
    #[must_use]
    pub const fn devices(&self) -> &Devices {
        &self.devices
    }

    /// The active keys of an account in the order to try them: those that can sign now first, of these those that have been
    /// steady, so that a device that comes and goes is not gone back to at once; of these the newest first.
    pub(super) fn active(&self, account: &AccountEmail) -> Vec<Arc<Key>> {
        let mut keys: Vec<_> =
            self.keys.iter().filter(|key| key.is_active() && key.account == *account).cloned().collect();
        keys.sort_by_cached_key(|key| (!key.can_sign(), !key.is_steady()));
        keys
    }

    /// Knows of the keys that it shares with the one before what that knew.
    pub(super) fn follow(&self, before: &Self) {
        for key in &self.keys {
            if let Some(old) = before.keys.iter().find(|old| old.is_same(key)) {
                key.standing.proven.store(old.is_proven(), Ordering::Relaxed);
                *key.standing.shaken() = *old.standing.shaken();
            }
        }
    }

    /// The keys of an account for whoever verifies: all but those retired for so long that nothing they signed lives.
    pub(super) fn published(&self, account: &AccountEmail, now: SystemTime) -> Vec<Arc<Key>> {
        let alive = |key: &Key| key.retired.is_none_or(|retired| now < retired + RETIRED_FOR);
        self.keys.iter().filter(|key| key.account == *account && alive(key)).cloned().collect()
    }
}

impl Key {
    fn of(record: KeyRecord, state_dir: &StateDir, devices: &Devices) -> Self {
        let KeyRecord { kid, account, algorithm, device, locator, public_key, state, retired, .. } = record;
        let certificate = certificate_of(&kid, &public_key, state_dir);
        let handle = devices.get(&device).cloned();
        if handle.is_none() && state == KeyState::Active {
            tracing::warn!(%kid, %device, "the key's device is not in the configuration: it can't sign");
        }
        let retired = (state == KeyState::Retired)
            .then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(retired.unwrap_or_default()));
        let (public_key, locator) = (Arc::new(public_key), Arc::new(locator));
        let (fault, standing) = (ArcSwapOption::empty(), Standing::default());
        Self {
            kid,
            account,
            algorithm,
            state,
            retired,
            public_key,
            locator,
            certificate,
            device,
            handle,
            fault,
            standing,
        }
    }

    /// Its id.
    #[must_use]
    pub const fn kid(&self) -> &KeyId {
        &self.kid
    }

    /// Whose it is.
    #[must_use]
    pub const fn account(&self) -> &AccountEmail {
        &self.account
    }

    /// What it signs JWTs with.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// What it is for.
    #[must_use]
    pub const fn state(&self) -> KeyState {
        self.state
    }

    /// Its public half.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// Its certificate, PEM, where there is one.
    #[must_use]
    pub fn certificate(&self) -> Option<&str> {
        self.certificate.as_deref()
    }

    /// What verifiers are told of it.
    #[must_use]
    pub fn published(&self) -> PublishedKey<'_> {
        let certificate = self.certificate().unwrap_or_default();
        PublishedKey { kid: &self.kid, algorithm: self.algorithm, public_key: &self.public_key, certificate }
    }

    /// The name of its device.
    #[must_use]
    pub const fn device(&self) -> &DeviceName {
        &self.device
    }

    /// Whether it is to sign.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.state == KeyState::Active
    }

    /// Whether another one is this one on the same device, as it was read from the keyring at another time.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let same_device = match (&self.handle, &other.handle) {
            (Some(one), Some(other)) => one.is_same(other),
            (one, other) => one.is_none() && other.is_none(),
        };
        self.kid == other.kid && self.public_key == other.public_key && same_device
    }

    /// Whether it would sign now.
    #[must_use]
    pub fn can_sign(&self) -> bool {
        let ready = |handle: &Handle| handle.health() == Health::Ready;
        self.is_active() && self.handle.as_ref().is_some_and(ready) && self.fault.load().is_none()
    }

    /// Whether it can sign now, and has shown it since its device was opened.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.can_sign() && self.standing.proven.load(Ordering::Relaxed)
    }

    /// Its device was lost or opened: it has to prove itself, and is not preferred before it has been steady.
    pub fn shaken(&self) {
        self.standing.proven.store(false, Ordering::Relaxed);
        *self.standing.shaken() = Some(Instant::now());
    }

    fn is_steady(&self) -> bool {
        self.standing.shaken().is_none_or(|shaken| shaken.elapsed() >= STEADY)
    }

    /// Why it is not to be used, where a check or a signature told.
    #[must_use]
    pub fn fault(&self) -> Option<Arc<DeviceError>> {
        self.fault.load_full()
    }

    /// Asks the device whether it holds this key and no other and signs with it, and remembers where it does not: until a
    /// later check finds it, the key signs nothing.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub async fn check(&self, deadline: Instant) -> Result<(), DeviceError> {
        let Some(handle) = &self.handle else { return Err(self.no_device()) };
        let mut checked = handle.check(Arc::clone(&self.locator), Arc::clone(&self.public_key), deadline).await;
        if checked.is_ok() {
            checked = self.prove(handle, deadline).await;
        }
        match &checked {
            Ok(()) => {
                self.fault.store(None);
                self.standing.proven.store(true, Ordering::Relaxed);
            }
            Err(error @ DeviceError::Permanent(_)) => self.fault.store(Some(Arc::new(error.clone()))),
            // The device's trouble, not the key's.
            Err(_) => {}
        }
        checked
    }

    /// Has the device sign a text of ours; the handle verifies the signature, and nobody gets it.
    async fn prove(&self, handle: &Handle, deadline: Instant) -> Result<(), DeviceError> {
        let (locator, public_key) = (Arc::clone(&self.locator), Arc::clone(&self.public_key));
        let digest = Digest::of(self.algorithm.hash(), b"signetd: does this key sign?");
        let (algorithm, turn) = (self.algorithm, Turn::own());
        let request = SignRequest { locator, public_key, algorithm, digest, deadline, turn };
        handle.sign(request).await.map(drop)
    }

    /// Whether its device is served, see [`Handle::is_served`]. True where it has none.
    pub async fn is_served(&self, deadline: Instant) -> bool {
        let Some(handle) = &self.handle else { return true };
        handle.is_served(Arc::clone(&self.locator), Arc::clone(&self.public_key), deadline).await
    }

    pub(super) async fn sign(
        &self,
        algorithm: Algorithm,
        digest: Digest,
        deadline: Instant,
        turn: Turn,
    ) -> Result<Signature, DeviceError> {
        let Some(handle) = &self.handle else { return Err(self.no_device()) };
        if let Some(fault) = self.fault.load_full() {
            return Err(fault.as_ref().clone());
        }
        let (locator, public_key) = (Arc::clone(&self.locator), Arc::clone(&self.public_key));
        let signed = handle.sign(SignRequest { locator, public_key, algorithm, digest, deadline, turn }).await;
        match &signed {
            Ok(_) => self.standing.proven.store(true, Ordering::Relaxed),
            // Over another algorithm, which a caller chose, the device says nothing about the key.
            Err(error @ DeviceError::Permanent(_)) if algorithm == self.algorithm => {
                self.fault.store(Some(Arc::new(error.clone())));
            }
            Err(_) => {}
        }
        signed
    }

    /// Has its device take note that one more user waits for the job of this turn.
    pub(super) fn hasten(&self, turn: &Turn) {
        if let Some(handle) = &self.handle {
            handle.hasten(turn);
        }
    }

    /// How many signatures its device has made: where it makes none, it hangs.
    pub(super) fn signatures(&self) -> u64 {
        self.handle.as_ref().map_or(0, |handle| handle.figures().signatures)
    }

    fn no_device(&self) -> DeviceError {
        DeviceError::Misconfigured(format!("the key's device {} is not in signetd's configuration", self.device))
    }
}

impl Standing {
    fn shaken(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.shaken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A key's certificate, where there is one and it is of this key.
fn certificate_of(kid: &KeyId, public_key: &PublicKey, state_dir: &StateDir) -> Option<String> {
    let path = state_dir.certificate(kid);
    let read =
        fs::read_to_string(&path).map_err(|error| error.to_string()).and_then(|pem| {
            match certificate::public_key(&pem) {
                Ok(certified) if certified == *public_key => Ok(pem),
                Ok(_another) => Err("it is of another key".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        });
    read.inspect_err(|error| tracing::warn!(%kid, path = %path.display(), %error, "the key has no certificate: it is published in the JWKS only (signetctl key certificate makes one)"))
        .ok()
}

/// How long a device must have been well before it is gone back to, while another one signs.
const STEADY: Duration = Duration::from_secs(10);
/// Nothing that SignJwt makes lives longer than 12 hours; an hour more for clocks and caches.
const RETIRED_FOR: Duration = Duration::from_secs(13 * 3600);
