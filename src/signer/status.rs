//! How the daemon and its devices are, for whoever asks.

use std::sync::Arc;

use super::{CacheFigures, Key, Signer};
use crate::access::Caller;
use crate::device::handle::Health;
use crate::key::DeviceName;

/// How the daemon is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Whether any account can sign now.
    pub serving: bool,
    /// What keeps it from signing beside its devices, and what to do about it.
    pub trouble: Option<Trouble>,
    /// What keeps it from serving HTTP, which it is to serve.
    pub http_trouble: Option<Trouble>,
    /// The devices of the configuration.
    pub devices: Vec<DeviceStatus>,
    /// Where rules, accounts and devices came from, for those who may do anything here.
    pub source: Option<Arc<Source>>,
}

/// What is wrong, and what to do about it.
pub type Trouble = (String, &'static str);

/// The configuration in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// The SHA-256 of its file, in hexadecimal.
    pub sha256: String,
    /// Whether it changed more than a reload does.
    pub wants_restart: bool,
}

/// How a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceStatus {
    /// Its name.
    pub name: DeviceName,
    /// How it is.
    pub state: DeviceState,
    /// Why it can't be used, or one of its keys can't, and what to do about it.
    pub trouble: Option<(String, String)>,
}

/// How a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// Being opened, or open and not yet proven by a signature.
    Starting,
    /// Each active key in it has signed.
    Ready,
    /// It can't be used, or one of its active keys can't.
    Down,
}

impl Signer {
    /// Whether any account can sign now, as one of its keys has shown.
    #[must_use]
    pub fn can_sign(&self) -> bool {
        let rules = self.rules.load();
        let configured = |key: &Key| rules.policy.account(key.account()).is_some();
        self.audit.is_writable() && self.keyring.load().keys().iter().any(|key| key.is_proven() && configured(key))
    }

    /// How the daemon is, and each device. Why, is only for those who may do anything here, root, and this very user.
    #[must_use]
    pub fn status(&self, caller: &Caller) -> Status {
        let rules = self.rules.load();
        let mut accounts = rules.policy.accounts().iter();
        let own = [0, nix::unistd::getuid().as_raw()];
        let known = own.contains(&caller.uid) || accounts.any(|account| rules.policy.knows(caller, &account.email));
        let mut devices = self.device_status();
        if !known {
            devices.iter_mut().for_each(|device| device.trouble = None);
        }
        let unwritable = |why: String| {
            let why = if known { format!(" ({why})") } else { String::new() };
            (format!("the audit log can't be written{why}"), UNWRITABLE)
        };
        let trouble = self.audit.trouble().map(unwritable);
        let source = known.then(|| self.source.load_full());
        Status { serving: self.can_sign(), trouble, http_trouble: self.http_trouble(), devices, source }
    }

    /// What keeps HTTP from being served, which is to be.
    #[must_use]
    pub fn http_trouble(&self) -> Option<Trouble> {
        self.http_trouble.load().as_ref().clone()
    }

    /// What the cache has done.
    #[must_use]
    pub fn cache_figures(&self) -> CacheFigures {
        self.cache.figures()
    }

    fn device_status(&self) -> Vec<DeviceStatus> {
        let keyring = self.keyring.load();
        let of = |(name, handle): (&DeviceName, &crate::device::handle::Handle)| {
            let mut keys = keyring.keys().iter().filter(|key| key.is_active() && key.device() == name);
            let (state, trouble) = match handle.health() {
                Health::Starting => (DeviceState::Starting, None),
                Health::Down(error) => (DeviceState::Down, Some((error.to_string(), error.remedy(name)))),
                Health::Ready => match keys.clone().find_map(|key| key.fault().map(|fault| (key, fault))) {
                    Some((key, fault)) => {
                        (DeviceState::Down, Some((format!("key {}: {fault}", key.kid()), fault.remedy(name))))
                    }
                    None if keys.all(|key| key.is_proven()) => (DeviceState::Ready, None),
                    None => (DeviceState::Starting, None),
                },
            };
            DeviceStatus { name: name.clone(), state, trouble }
        };
        keyring.devices().iter().map(of).collect()
    }
}

const UNWRITABLE: &str = "make room for it, or mend what is named: signetd goes on by itself";
