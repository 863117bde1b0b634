//! The configuration, valid by construction. [`file`] is the TOML as it is written, [`credentials`] finds secrets.

pub mod credentials;
pub mod file;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::access::{Account, Policy};
use crate::device::DeviceConfig;
use crate::key::KeyId;

/// Everything that `signetd` and `signetctl` are told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it came from.
    pub path: PathBuf,
    /// Where keyring, certificates, latches and the audit log stand.
    pub state_dir: PathBuf,
    /// The gRPC socket.
    pub listen: Listen,
    /// The devices, in order of preference.
    pub devices: Vec<DeviceConfig>,
    /// The accounts.
    pub accounts: Vec<Account>,
    /// Accounts and rules, compiled.
    pub policy: Policy,
    /// The audit log.
    pub audit: Audit,
    /// How long verifiers may keep public keys.
    pub max_client_cache_time: Duration,
}

/// The gRPC socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Its path, at most 107 bytes.
    pub grpc: PathBuf,
    /// Its mode.
    pub mode: u32,
    /// Its group.
    pub group: Option<u32>,
}

/// The audit log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Audit {
    /// Its file.
    pub path: PathBuf,
    /// When a record is synced to disk.
    pub fsync: Fsync,
}

/// When the audit log is synced to disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fsync {
    /// Before every reply.
    Always,
    /// Once a second: a power cut may lose the last second's records, a crash of the daemon none.
    #[default]
    Interval,
    /// Left to the kernel.
    Never,
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the line and the field, and says what to do.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Err(ConfigError { path: path.to_owned(), what: "stub".to_owned(), remedy: None })
    }

    /// The device of a name.
    #[must_use]
    pub fn device(&self, name: &KeyId) -> Option<&DeviceConfig> {
        self.devices.iter().find(|device| device.name == *name)
    }
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}", path.display())]
pub struct ConfigError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong, with line and field where there is one.
    pub what: String,
    /// What to do about it.
    pub remedy: Option<String>,
}
