//! What the daemon looks after while it serves: devices that come and go, keys that must prove themselves, and who is told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch as channel};
use tokio::task::{self, JoinHandle, JoinSet};
use tokio::time::Instant;

use super::supervisor;
use crate::config::Config;
use crate::device::DeviceError;
use crate::device::handle::{Handle, Health};
use crate::device::launcher::LauncherProcess;
use crate::file::Stamp;
use crate::front::grpc::Readiness;
use crate::key::{DeviceName, KeyId};
use crate::signer::{Devices, Key, Signer, Source};

/// What is looked after.
pub(super) struct Watch {
    pub(super) config: Config,
    /// Of the keyring that was loaded.
    pub(super) keyring: Option<Stamp>,
    pub(super) devices: Devices,
    pub(super) signer: Arc<Signer>,
    pub(super) health: Readiness,
    /// Who starts devices that come with another configuration.
    pub(super) launcher: Arc<LauncherProcess>,
    /// Told when a device's health has changed.
    pub(super) woken: Arc<Notify>,
}

/// What was last seen.
#[derive(Default)]
pub(super) struct Seen {
    devices: BTreeMap<DeviceName, (u64, Health)>,
    pub(super) keyring: Option<Stamp>,
    /// What came of the last check of each active key against its device, since the device was opened.
    checks: BTreeMap<KeyId, Result<(), DeviceError>>,
    /// The checks on their way, and which of them is still wanted for a key.
    checking: JoinSet<(Arc<Key>, Result<(), DeviceError>)>,
    wanted: BTreeMap<KeyId, task::Id>,
    /// What the log has told of devices and of keys.
    device_faults: BTreeMap<DeviceName, Faults>,
    key_faults: BTreeMap<KeyId, Faults>,
    /// The last signatures of each device.
    pulses: BTreeMap<DeviceName, Pulse>,
    can_sign: bool,
    /// Whether the supervisor was told that we are ready.
    ready: bool,
    /// What it was told last.
    status: String,
}

/// The faults that were told of a device or key since it was last well: none is told again, however often it is met.
#[derive(Default)]
struct Faults(Vec<DeviceError>);

impl Faults {
    fn is_news(&mut self, fault: &DeviceError) -> bool {
        if self.0.contains(fault) {
            return false;
        }
        // A device may make up its words.
        if self.0.len() == MOST_FAULTS {
            self.0.remove(0);
        }
        self.0.push(fault.clone());
        true
    }
}

/// How many signatures a device has made, and since when no more.
struct Pulse {
    signatures: u64,
    since: Instant,
}

impl Watch {
    /// Watches until aborted. A reload that fails changes nothing.
    pub(super) fn start(mut self, mut reloads: channel::Receiver<()>) -> JoinHandle<()> {
        let woken = Arc::clone(&self.woken);
        self.signer.set_source(Source { sha256: self.config.sha256.clone(), wants_restart: false });
        self.devices.values().for_each(|handle| self.follow(handle));
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
                        // It may have outlived the process that it was to try, which is to be noticed first.
                        self.follow_devices(&mut seen);
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

    /// Has each change of a device's health looked at, until its last handle is dropped.
    pub(super) fn follow(&self, handle: &Handle) {
        let (mut changes, woken) = (handle.health_changes(), Arc::clone(&self.woken));
        tokio::spawn(async move {
            while changes.changed().await.is_ok() {
                woken.notify_one();
            }
        });
    }

    /// Tells each fault of a device once, and that it is well again.
    fn follow_devices(&self, seen: &mut Seen) {
        for (name, handle) in &self.devices {
            let now = (handle.figures().generations, handle.health());
            if seen.devices.get(name) == Some(&now) {
                continue;
            }
            let is_tried = self.signer.keyring().keys().iter().any(|key| key.is_active() && key.device() == name);
            seen.log_health(name, &now.1, is_tried);
            seen.devices.insert(name.clone(), now);
            // A device that came back may be another one.
            self.doubt(name, seen);
        }
    }

    /// Has every key of a device prove itself again.
    fn doubt(&self, device: &DeviceName, seen: &mut Seen) {
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
            |name: &DeviceName| self.devices.get(name).is_some_and(|handle: &Handle| handle.health() == Health::Ready);
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
        self.log_check(key, &outcome);
        self.checks.insert(key.kid().clone(), outcome);
    }

    pub(super) fn forget_checks(&mut self) {
        self.checks.clear();
        self.wanted.clear();
    }
}

/// What the log is told.
impl Seen {
    /// What was told counts no more: after a reload an operator looks whether it helped.
    pub(super) fn forget_faults(&mut self) {
        self.device_faults.clear();
        self.key_faults.clear();
    }

    /// `is_tried`: whether an active key of it is about to sign. Only that shows that a fault is over: many a device opens with it.
    fn log_health(&mut self, device: &DeviceName, health: &Health, is_tried: bool) {
        match health {
            Health::Starting => tracing::debug!(%device, "the device is being opened"),
            Health::Ready if is_tried && self.device_faults.contains_key(device) => {
                tracing::debug!(%device, "the device is open");
            }
            Health::Ready => {
                self.device_faults.remove(device);
                tracing::info!(%device, "the device is ready");
            }
            Health::Down(error) if self.device_faults.entry(device.clone()).or_default().is_news(error) => {
                tracing::error!(%device, cause = %error, remedy = error.remedy(device), "the device can't be used");
            }
            Health::Down(_) => {}
        }
    }

    fn log_check(&mut self, key: &Key, checked: &Result<(), DeviceError>) {
        let (kid, device) = (key.kid(), key.device());
        match checked {
            Ok(()) => {
                if self.device_faults.remove(device).is_some() {
                    tracing::info!(%device, "the device is ready");
                }
                self.key_faults.remove(kid);
                if self.checks.get(kid) != Some(&Ok(())) {
                    tracing::info!(%kid, %device, "the key is in its device");
                }
            }
            Err(error) if !self.key_faults.entry(kid.clone()).or_default().is_news(error) => {}
            Err(error @ DeviceError::Permanent(_)) => {
                tracing::error!(%kid, %device, cause = %error, remedy = error.remedy(device), "the key can't be used");
            }
            Err(error) => tracing::warn!(%kid, %device, cause = %error, "could not check the key; trying again"),
        }
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
        let http = self.signer.http_trouble().map(|(cause, _)| format!("; {cause}"));
        let status = self.devices.iter().fold(can_sign.to_owned(), |status, (name, handle)| {
            let health = match handle.health() {
                Health::Starting => "is being opened".to_owned(),
                Health::Ready => "is ready".to_owned(),
                Health::Down(error) => format!("can't be used: {error}"),
            };
            format!("{status}; {name} {health}")
        });
        status + &http.unwrap_or_default()
    }
}

const TICK: Duration = Duration::from_millis(500);
/// A device that has signed nothing for so long is asked to, but no oftener than leaves it so many times as long as that takes.
const PROBE: Duration = Duration::from_millis(500);
const PROBE_SHARE: u32 = 20;
/// How long it may take then.
const PROBE_LIMIT: Duration = Duration::from_secs(1);
/// How long a start waits for a device before the supervisor is told that it goes without.
const GRACE: Duration = Duration::from_secs(10);
const CHECK_LIMIT: Duration = Duration::from_secs(10);
/// So many faults of a device or key are remembered.
const MOST_FAULTS: usize = 16;
