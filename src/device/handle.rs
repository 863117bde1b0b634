//! The daemon's side of a device: its queue, its admission, and the process behind it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{DeviceConfig, DeviceError};
use crate::key::{Algorithm, Digest, KeyLocator, PublicKey, Signature};

/// How to start a device process: the same binary with a hidden subcommand.
#[derive(Clone, Debug)]
pub struct Launcher {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// A device as the daemon knows it. Clones share one device process; when the last is dropped, the process is ended.
#[derive(Clone, Debug)]
pub struct Handle {
    _config: Arc<DeviceConfig>,
}

/// One signature to be made.
#[derive(Clone, Debug)]
pub struct SignRequest {
    /// The key.
    pub locator: Arc<KeyLocator>,
    /// What the signature is verified against before it is returned.
    pub public_key: Arc<PublicKey>,
    /// The algorithm.
    pub algorithm: Algorithm,
    /// The digest.
    pub digest: Digest,
    /// When the caller no longer waits.
    pub deadline: Instant,
    /// Whom the job counts for.
    pub uid: u32,
}

/// How a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Not yet opened.
    Starting,
    /// Open, and the last thing it did was right.
    Ready,
    /// Not to be used; why, and what to do, in the error.
    Down(DeviceError),
}

/// Figures of a device since the daemon's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Device processes started.
    pub generations: u64,
    /// Signatures returned.
    pub signatures: u64,
    /// Jobs that wait now.
    pub waiting: usize,
    /// Mean time of a signature lately.
    pub service_time: Duration,
}

impl Handle {
    /// Starts the device process, and keeps one running. Needs a tokio runtime.
    #[must_use]
    pub fn start(config: DeviceConfig, launcher: Launcher) -> Self {
        let _ = launcher;
        Self { _config: Arc::new(config) }
    }

    /// Signs, verifies against the recorded public key, and returns the signature.
    ///
    /// # Errors
    /// [`DeviceError`]; never later than the deadline.
    pub async fn sign(&self, request: SignRequest) -> Result<Signature, DeviceError> {
        let _ = request;
        Err(DeviceError::Late)
    }

    /// Makes sure that a key is there and is the recorded one.
    ///
    /// # Errors
    /// [`DeviceError`]; `Permanent` where it is missing or another one.
    pub async fn check(
        &self,
        locator: Arc<KeyLocator>,
        public_key: Arc<PublicKey>,
        deadline: Instant,
    ) -> Result<(), DeviceError> {
        let _ = (locator, public_key, deadline);
        Err(DeviceError::Late)
    }

    /// How the device is now.
    #[must_use]
    pub fn health(&self) -> Health {
        Health::Starting
    }

    /// The figures now.
    #[must_use]
    pub fn figures(&self) -> Figures {
        Figures::default()
    }
}
