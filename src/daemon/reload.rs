//! What changes while the daemon serves: the configuration at SIGHUP, the keyring whenever signetctl replaces it.

use std::fs;
use std::sync::Arc;

use tokio::task;

use super::watch::{Seen, Watch};
use crate::config::Config;
use crate::device::DeviceConfig;
use crate::device::handle::{Handle, Start};
use crate::file::{Stamp, StateDir};
use crate::keyring::KeyringError;
use crate::signer::{Devices, LiveKeyring, Source};

impl Watch {
    /// Takes the configuration as it is now: all of it, or nothing.
    pub(super) async fn reload(&mut self, seen: &mut Seen) {
        let (path, launcher) = (self.config.path.clone(), Arc::clone(&self.launcher));
        let config = match blocking(move || Config::load_by(&path, |_told_before| launcher.read())).await {
            Ok(config) => config,
            Err(error) => {
                tracing::error!(%error, remedy = error.remedy, "the configuration is not reloaded: the old one stays in force");
                return;
            }
        };
        // The account that signs checkpoints stays the same until a restart, whatever the file says now.
        let signing = self.config.audit.checkpoints.as_ref().map(|checkpoints| &checkpoints.account);
        if let Some(account) = signing.filter(|account| config.policy.signs_digests(account)) {
            tracing::error!(%account, "the configuration is not reloaded: the old one stays in force: a rule allows sign-digest with the account that signs checkpoints until signetd is restarted");
            return;
        }
        let devices = self.devices_of(&config);
        match self.load_keyring(&devices).await {
            Ok(keyring) => self.signer.set_keyring(keyring),
            Err(error) => {
                tracing::error!(%error, remedy = error.remedy(), "nothing is reloaded: the keyring can't be used");
                return;
            }
        }
        seen.forget_checks();
        seen.forget_faults();
        let fixed = |config: &Config| {
            let Config {
                policy: _,
                path: _,
                sha256: _,
                devices: _,
                listen,
                metadata,
                audit,
                cache_entries,
                state_dir,
                max_client_cache_time,
                exchanges,
            } = config.clone();
            (listen, metadata, audit, cache_entries, state_dir, max_client_cache_time, exchanges)
        };
        let wants_restart = fixed(&config) != fixed(&self.config);
        if wants_restart {
            tracing::warn!(
                "more than accounts, rules and devices changed in the configuration: restart signetd for the rest"
            );
        }
        self.signer.set_policy(config.policy);
        self.signer.set_source(Source { sha256: config.sha256, wants_restart });
        (self.devices, self.config.devices) = (devices, config.devices);
        tracing::info!("reloaded accounts, rules, devices and keyring");
    }

    /// The devices of another configuration: those that are in it as they were go on, the others are started anew.
    fn devices_of(&self, config: &Config) -> Devices {
        let handle = |device: &DeviceConfig| {
            if let Some(same) = self.devices.get(&device.name).filter(|_| self.config.devices.contains(device)) {
                return same.clone();
            }
            let handle = Handle::start(device.clone(), Start::Apart(Arc::clone(&self.launcher)));
            self.follow(&handle);
            handle
        };
        config.devices.iter().map(|device| (device.name.clone(), handle(device))).collect()
    }

    /// Takes a keyring that signetctl replaced. One that can't be used changes nothing.
    pub(super) async fn follow_keyring(&self, seen: &mut Seen) {
        let state_dir = self.config.state_dir.clone();
        let stamp = blocking(move || stamp(&state_dir)).await;
        if seen.keyring == stamp {
            return;
        }
        seen.keyring = stamp;
        match self.load_keyring(&self.devices).await {
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

    async fn load_keyring(&self, devices: &Devices) -> Result<LiveKeyring, KeyringError> {
        let (state_dir, devices) = (self.config.state_dir.clone(), devices.clone());
        blocking(move || LiveKeyring::load(&state_dir, &devices)).await
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
    Some(Stamp::from(&fs::metadata(state_dir.keyring()).ok()?))
}
