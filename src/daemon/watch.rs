//! What the daemon looks after while it serves: devices that come and go, a keyring that changes, SIGHUP.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch as channel};
use tokio::task::{self, JoinHandle, JoinSet};
use tokio::time::Instant;

use super::{confine, supervisor};
use crate::config::Config;
use crate::device::DeviceError;
use crate::device::handle::{Handle, Health};
use crate::file::StateDir;
use crate::front::grpc::Readiness;
use crate::key::KeyId;
use crate::keyring::KeyringError;
use crate::signer::{Devices, Key, LiveKeyring, Signer};

/// What is looked after.
pub(super) struct Watch {
    pub(super) config: Config,
    /// Of the keyring that was loaded.
    pub(super) keyring: Option<Stamp>,
    pub(super) devices: Devices,
    pub(super) signer: Arc<Signer>,
    pub(super) health: Readiness,
}

/// What was last seen.
#[derive(Default)]
struct Seen {
    devices: BTreeMap<KeyId, (u64, Health)>,
    keyring: Option<Stamp>,
    /// What came of the last check of each active key against its device, since the device was opened.
    checks: BTreeMap<KeyId, Result<(), DeviceError>>,
    /// The checks on their way, and which of them is still wanted for a key.
    checking: JoinSet<(Arc<Key>, Result<(), DeviceError>)>,
    wanted: BTreeMap<KeyId, task::Id>,
    /// The last signatures of each device.
    pulses: BTreeMap<KeyId, Pulse>,
    can_sign: bool,
    /// Whether the supervisor was told that we are ready.
    ready: bool,
    /// What it was told last.
    status: String,
}

/// How many signatures a device has made, and since when no more.
struct Pulse {
    signatures: u64,
    since: Instant,
}

/// What changes when a file is replaced or rewritten: device, inode, length, time of change in seconds and nanoseconds.
pub(super) type Stamp = (u64, u64, u64, i64, i64);

impl Watch {
    /// Watches until aborted. A reload that fails changes nothing.
    pub(super) fn start(mut self, mut reloads: channel::Receiver<()>) -> JoinHandle<()> {
        let woken = self.follow_health();
        tokio::spawn(async move {
            let mut seen = Seen { keyring: self.keyring.take(), ..Seen::default() };
            let started = Instant::now();
            let mut tick = tokio::time::interval(TICK);
            loop {
                tokio::select! {
                    _ = tick.tick() => {}
                    () = woken.notified() => {}
                    changed = reloads.changed() => match changed {
                        Ok(()) if seen.ready => {
                            supervisor::tell_reloading();
                            self.reload(&mut seen).await;
                            supervisor::tell(&[supervisor::State::Ready]);
                        }
                        Ok(()) => self.reload(&mut seen).await,
                        Err(_daemon_ends) => return,
                    },
                    // Nobody waits for a check: a device may hang, and a rule or a key be revoked meanwhile.
                    Some(checked) = seen.checking.join_next_with_id() => {
                        if let Ok((check, (key, outcome))) = checked {
                            seen.checked(check, &key, outcome);
                        }
                        self.report(&mut seen).await;
                        self.tell_supervisor(&mut seen, started);
                        continue;
                    }
                }
                self.follow_keyring(&mut seen).await;
                self.follow_devices(&mut seen);
                self.check_keys(&mut seen);
                self.feel_pulses(&mut seen);
                self.report(&mut seen).await;
                self.tell_supervisor(&mut seen, started);
            }
        })
    }

    /// Is notified whenever a device's health changes.
    fn follow_health(&self) -> Arc<Notify> {
        let woken = Arc::new(Notify::new());
        for handle in self.devices.values() {
            let (mut changes, woken) = (handle.health_changes(), Arc::clone(&woken));
            tokio::spawn(async move {
                while changes.changed().await.is_ok() {
                    woken.notify_one();
                }
            });
        }
        woken
    }

    async fn reload(&self, seen: &mut Seen) {
        let path = self.config.path.clone();
        let config = match blocking(move || Config::load(&path)).await {
            Ok(config) => config,
            Err(error) => {
                let shut = error.what.contains("Permission denied") && confine::is_alone(&self.config);
                let remedy = if shut { REPLACED } else { error.remedy.as_str() };
                tracing::error!(%error, remedy, "the configuration is not reloaded: the old one stays in force");
                return;
            }
        };
        match self.load_keyring().await {
            Ok(keyring) => self.signer.set_keyring(keyring),
            Err(error) => {
                tracing::error!(%error, remedy = error.remedy(), "nothing is reloaded: the keyring can't be used");
                return;
            }
        }
        seen.forget_checks();
        let fixed = |config: &Config| {
            let Config {
                policy: _,
                path: _,
                devices,
                listen,
                metadata,
                audit,
                cache_entries,
                state_dir,
                max_client_cache_time,
                exchanges,
            } = config.clone();
            (devices, listen, metadata, audit, cache_entries, state_dir, max_client_cache_time, exchanges)
        };
        if fixed(&config) != fixed(&self.config) {
            tracing::warn!("more than accounts and rules changed in the configuration: restart signetd for the rest");
        }
        self.signer.set_policy(config.policy);
        tracing::info!("reloaded accounts, rules and keyring");
    }

    /// Takes a keyring that signetctl replaced. One that can't be used changes nothing.
    async fn follow_keyring(&self, seen: &mut Seen) {
        let state_dir = self.config.state_dir.clone();
        let stamp = blocking(move || stamp(&state_dir)).await;
        if seen.keyring == stamp {
            return;
        }
        seen.keyring = stamp;
        match self.load_keyring().await {
            Ok(keyring) => {
                tracing::info!(keys = keyring.keys().len(), "took the keyring");
                self.signer.set_keyring(keyring);
                seen.forget_checks();
            }
            Err(error) => {
                tracing::error!(%error, remedy = error.remedy(), "the keyring can't be used: the one before stays in force");
            }
        }
    }

    async fn load_keyring(&self) -> Result<LiveKeyring, KeyringError> {
        let (state_dir, devices) = (self.config.state_dir.clone(), self.devices.clone());
        blocking(move || LiveKeyring::load(&state_dir, &devices)).await
    }

    /// Tells each change of a device once.
    fn follow_devices(&self, seen: &mut Seen) {
        for (name, handle) in &self.devices {
            let now = (handle.figures().generations, handle.health());
            if seen.devices.get(name) == Some(&now) {
                continue;
            }
            log_health(name, &now.1);
            seen.devices.insert(name.clone(), now);
            // A device that came back may be another one.
            self.doubt(name, seen);
        }
    }

    /// Has every key of a device prove itself again.
    fn doubt(&self, device: &KeyId, seen: &mut Seen) {
        for key in self.signer.keyring().keys().iter().filter(|key| key.device() == device) {
            seen.checks.remove(key.kid());
            seen.wanted.remove(key.kid());
            key.shaken();
        }
    }

    /// Begins to check active keys against their devices: once after each return of the device, and again and again those
    /// that were not found.
    fn check_keys(&self, seen: &mut Seen) {
        let ready =
            |name: &KeyId| self.devices.get(name).is_some_and(|handle: &Handle| handle.health() == Health::Ready);
        for key in self.signer.keyring().keys().iter().filter(|key| key.is_active() && ready(key.device())) {
            let sound = seen.checks.get(key.kid()) == Some(&Ok(())) && key.fault().is_none();
            if sound || seen.wanted.contains_key(key.kid()) {
                continue;
            }
            seen.check(key);
        }
    }

    /// Has each device that has signed nothing for a while sign: only that shows that it does. One that does not in time is
    /// no more relied on.
    fn feel_pulses(&self, seen: &mut Seen) {
        let now = Instant::now();
        for (name, handle) in &self.devices {
            let (signatures, service_time) = (handle.figures().signatures, handle.figures().service_time);
            let pulse = seen.pulses.entry(name.clone()).or_insert(Pulse { signatures, since: now });
            if pulse.signatures != signatures || handle.health() != Health::Ready {
                *pulse = Pulse { signatures, since: now };
                continue;
            }
            let silence = now - pulse.since;
            let pause = PROBE.max(service_time * PROBE_SHARE);
            let keyring = self.signer.keyring();
            let Some(key) = keyring.keys().iter().find(|key| key.device() == name && key.is_active()) else { continue };
            if silence >= pause && !seen.wanted.contains_key(key.kid()) {
                seen.check(key);
            }
            if silence >= pause + PROBE_LIMIT && key.is_proven() {
                tracing::warn!(device = %name, "the device has not answered for {} ms", silence.as_millis());
                key.shaken();
            }
        }
    }

    async fn report(&self, seen: &mut Seen) {
        let can_sign = self.signer.can_sign();
        if can_sign == seen.can_sign {
            return;
        }
        seen.can_sign = can_sign;
        self.health.set(can_sign).await;
        if can_sign {
            tracing::info!("ready to sign");
        } else {
            tracing::error!("no account can sign now");
        }
    }
}

impl Seen {
    fn check(&mut self, key: &Arc<Key>) {
        let (kid, key) = (key.kid().clone(), Arc::clone(key));
        let check = async move {
            let outcome = key.check(Instant::now() + CHECK_LIMIT).await;
            (key, outcome)
        };
        self.wanted.insert(kid, self.checking.spawn(check).id());
    }

    /// Takes the outcome of a check, unless the keyring or the device has become another one since it began.
    fn checked(&mut self, check: task::Id, key: &Key, outcome: Result<(), DeviceError>) {
        if self.wanted.get(key.kid()) != Some(&check) {
            return;
        }
        self.wanted.remove(key.kid());
        if self.checks.get(key.kid()) != Some(&outcome) {
            log_check(key, &outcome);
        }
        self.checks.insert(key.kid().clone(), outcome);
    }

    fn forget_checks(&mut self) {
        self.checks.clear();
        self.wanted.clear();
    }
}

/// What the supervisor is told.
impl Watch {
    /// Ready: with the first key that has signed, where no key is to sign, or when the devices have had their time.
    fn tell_supervisor(&self, seen: &mut Seen, started: Instant) {
        let status = self.status(seen);
        if status != seen.status {
            supervisor::tell_status(&status);
            seen.status = status;
        }
        if seen.ready {
            return;
        }
        let proven = seen.checks.values().any(Result::is_ok);
        let waits = self.signer.keyring().keys().iter().any(|key| key.is_active());
        if proven || !waits || started.elapsed() >= GRACE {
            if !proven {
                tracing::warn!(status = seen.status, "starting without a device that signs");
            }
            supervisor::tell(&[supervisor::State::Ready]);
            seen.ready = true;
        }
    }

    fn status(&self, seen: &Seen) -> String {
        let can_sign = if seen.can_sign { "signing" } else { "no account can sign" };
        self.devices.iter().fold(can_sign.to_owned(), |status, (name, handle)| {
            let health = match handle.health() {
                Health::Starting => "is being opened".to_owned(),
                Health::Ready => "is ready".to_owned(),
                Health::Down(error) => format!("can't be used: {error}"),
            };
            format!("{status}; {name} {health}")
        })
    }
}

fn log_health(device: &KeyId, health: &Health) {
    match health {
        Health::Starting => tracing::debug!(%device, "the device is being opened"),
        Health::Ready => tracing::info!(%device, "the device is ready"),
        Health::Down(error) => {
            tracing::error!(%device, cause = %error, remedy = error.remedy(), "the device can't be used");
        }
    }
}

fn log_check(key: &Key, checked: &Result<(), DeviceError>) {
    let (kid, device) = (key.kid(), key.device());
    match checked {
        Ok(()) => tracing::info!(%kid, %device, "the key is in its device"),
        Err(error @ DeviceError::Permanent(_)) => {
            tracing::error!(%kid, %device, cause = %error, remedy = error.remedy(), "the key can't be used");
        }
        Err(error) => tracing::warn!(%kid, %device, cause = %error, "could not check the key; trying again"),
    }
}

/// Does on a thread of its own what reads files, or looks up names, which may ask the network.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match task::spawn_blocking(work).await.map_err(task::JoinError::try_into_panic) {
        Ok(done) => done,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(_the_daemon_ends)) => std::future::pending().await,
    }
}

pub(super) fn stamp(state_dir: &StateDir) -> Option<Stamp> {
    let metadata = fs::metadata(state_dir.keyring()).ok()?;
    Some((metadata.dev(), metadata.ino(), metadata.len(), metadata.ctime(), metadata.ctime_nsec()))
}

const TICK: Duration = Duration::from_millis(500);
/// A device that has signed nothing for so long is asked to, but no oftener than leaves it so many times as long as that takes.
const PROBE: Duration = Duration::from_millis(500);
const PROBE_SHARE: u32 = 20;
/// How long it may take then.
const PROBE_LIMIT: Duration = Duration::from_secs(1);
/// A confined daemon has the file open to it, not the folder.
const REPLACED: &str = "correct it in the file that was there at the start: its folder holds a PIN, so no other file in it can be read; or restart signetd";
/// How long a start waits for a device before the supervisor is told that it goes without.
const GRACE: Duration = Duration::from_secs(10);
const CHECK_LIMIT: Duration = Duration::from_secs(10);
