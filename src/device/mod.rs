//! Where private keys live: the traits of a device, its configuration, and its errors.
//!
//! Calls into a device block. One worker thread of one device process owns each [`Device`]; the daemon only ever holds
//! a [`handle::Handle`]. This module knows nothing of callers, policies or JWTs.

mod config;
pub mod fault;
pub mod handle;
pub mod latch;
pub mod launcher;
#[cfg(feature = "pkcs11")]
pub mod pkcs11;
pub mod process;
#[cfg(feature = "tpm")]
pub mod tpm;
pub mod tss2;
mod wire;

pub use config::{DeviceConfig, DeviceKind, Pkcs11Config, QUIET_TSS, TokenSelector, TpmConfig, TpmParent, TpmSession};

use std::fmt;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::key::{Algorithm, DeviceName, Digest, InvalidKey, KeyLocator, PublicKey, PublicNumbers, Signature};
use crate::trust::{self, Untrusted};

/// A place where private keys live and never leave. Calls block; one worker thread owns it.
pub trait Device {
    /// Reads the public half of a key, and by that makes sure that the key is there.
    ///
    /// # Errors
    /// [`DeviceError`], classified.
    fn public_key(&mut self, key: &KeyLocator) -> Result<PublicKey, DeviceError>;

    /// Signs a digest. The caller verifies the signature.
    ///
    /// # Errors
    /// [`DeviceError`], classified.
    fn sign(&mut self, key: &KeyLocator, algorithm: Algorithm, digest: &Digest) -> Result<Signature, DeviceError>;
}

/// What only signetctl may do: the daemon never names this trait.
pub trait Provision: Device {
    /// Makes a key that never existed outside of the device.
    ///
    /// # Errors
    /// [`DeviceError`], classified; nothing is left behind.
    fn generate(&mut self, key: &NewKey) -> Result<CreatedKey, DeviceError>;

    /// Takes a key that exists outside; its copy in the device can't be read again.
    ///
    /// # Errors
    /// [`DeviceError`], classified; nothing is left behind.
    fn import(&mut self, key: &PrivateKey, label: &str) -> Result<CreatedKey, DeviceError>;

    /// Lists the signing keys in the device, Signet's or not.
    ///
    /// # Errors
    /// [`DeviceError`], classified.
    fn list(&mut self) -> Result<Vec<ListedKey>, DeviceError>;

    /// Destroys a key. A TSS2 key lives in its file alone: there is nothing to destroy in the TPM.
    ///
    /// # Errors
    /// [`DeviceError`], classified.
    fn delete(&mut self, key: &KeyLocator) -> Result<(), DeviceError>;

    /// Tells what the device is and can do.
    ///
    /// # Errors
    /// [`DeviceError`], classified.
    fn describe(&mut self) -> Result<Description, DeviceError>;
}

/// A key to be generated.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// What the key is called inside the device (CKA_LABEL). Not secret, not unique.
    pub label: String,
    /// What it will sign with.
    pub algorithm: Algorithm,
    /// The modulus' size; ignored for EC.
    pub bits: u32,
}

/// A key that was generated or imported.
#[derive(Clone, Debug)]
pub struct CreatedKey {
    /// Where it is now.
    pub locator: KeyLocator,
    /// Its public half, as the device told it.
    pub public_key: PublicKey,
    /// A TPM key's TSS2 PRIVATE KEY file, the source of a key that is also persistent: keep it.
    pub tss2: Option<String>,
}

/// A key found in a device.
#[derive(Clone, Debug)]
pub struct ListedKey {
    /// Where it is.
    pub locator: KeyLocator,
    /// Its label, where it has one.
    pub label: String,
    /// Its public half, where it is of a kind that Signet signs with.
    pub public_key: Option<PublicKey>,
}

/// What a device is and can do, for `signetctl device show`: names and values, in the order to print them.
#[derive(Debug)]
pub struct Description(pub Vec<(String, String)>);

/// A private key on its way into a device: the numbers of RFC 8017, A.1.2 or of RFC 5915, big-endian, zeroised on drop.
pub enum PrivateKey {
    /// A two-prime RSA key.
    Rsa {
        /// n.
        modulus: Vec<u8>,
        /// e.
        public_exponent: Vec<u8>,
        /// d.
        private_exponent: Zeroizing<Vec<u8>>,
        /// p.
        prime1: Zeroizing<Vec<u8>>,
        /// q.
        prime2: Zeroizing<Vec<u8>>,
        /// d mod (p-1).
        exponent1: Zeroizing<Vec<u8>>,
        /// d mod (q-1).
        exponent2: Zeroizing<Vec<u8>>,
        /// q^-1 mod p.
        coefficient: Zeroizing<Vec<u8>>,
        /// The whole key as DER PKCS#8, for C_UnwrapKey.
        pkcs8: Zeroizing<Vec<u8>>,
    },
    /// An EC key on P-256.
    EcP256 {
        /// The scalar, 32 bytes.
        scalar: Zeroizing<Vec<u8>>,
        /// The point's x, 32 bytes.
        x: [u8; 32],
        /// The point's y, 32 bytes.
        y: [u8; 32],
        /// The whole key as DER PKCS#8, for C_UnwrapKey.
        pkcs8: Zeroizing<Vec<u8>>,
    },
}

impl PrivateKey {
    /// Its public half.
    ///
    /// # Errors
    /// [`InvalidKey::Unsupported`] where Signet does not sign with such keys.
    pub fn public_key(&self) -> Result<PublicKey, InvalidKey> {
        PublicKey::from_numbers(&match self {
            Self::Rsa { modulus, public_exponent, .. } => {
                PublicNumbers::Rsa { modulus: modulus.clone(), exponent: public_exponent.clone() }
            }
            Self::EcP256 { x, y, .. } => PublicNumbers::EcP256 { x: *x, y: *y },
        })
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rsa { .. } => "PrivateKey(RSA, redacted)",
            Self::EcP256 { .. } => "PrivateKey(EC, redacted)",
        })
    }
}

/// A PIN, an auth value: never printed, zeroised on drop.
#[derive(Clone)]
pub struct Pin(Zeroizing<Vec<u8>>);

impl Pin {
    /// Reads a secret from a file of its first line; a final newline is not part of it.
    ///
    /// # Errors
    /// [`DeviceError::Misconfigured`] where it can't be read, others could read or change it, it is empty, or over 256 bytes.
    pub fn read(path: &Path) -> Result<Self, DeviceError> {
        let misconfigured = |what: &dyn fmt::Display| DeviceError::Misconfigured(format!("{}: {what}", path.display()));
        let file = trust::open_secret(path).map_err(|untrusted| match untrusted {
            Untrusted::Unreadable { source, .. } => misconfigured(&source),
            other => DeviceError::Misconfigured(format!("{other}; {}", other.remedy())),
        })?;
        // Its capacity from the start: a buffer that grows leaves copies behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MOST_READ + 1));
        file.take(MOST_READ as u64).read_to_end(&mut bytes).map_err(|error| misconfigured(&error))?;
        let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match line.len() {
            0 => Err(misconfigured(&"the file is empty")),
            1..=256 => Ok(Self(Zeroizing::new(line.to_vec()))),
            _ => Err(misconfigured(&"the first line is over 256 bytes")),
        }
    }

    /// The secret itself.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

/// As much of a secret's file is looked at.
const MOST_READ: usize = 4096;

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pin(redacted)")
    }
}

/// Why a device did not do what it was asked, by what a caller does about it. [`fault`] tells which code is what.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceError {
    /// A passing condition of a working device. A retry helps, at once.
    #[error("the device is busy: {0}")]
    Transient(String),
    /// The connection to the device, its session or its handles are lost. A retry on a new one helps.
    #[error("the device is away: {0}")]
    Away(String),
    /// The PIN or auth value was refused, or would be: it is not tried again. `signetctl device unlatch` after mending it.
    #[error("the PIN was refused: {0}")]
    PinRefused(String),
    /// The device works, the key does not: missing, another one, or sealed to another TPM. Only an operator helps.
    #[error("{0}")]
    Permanent(String),
    /// What came back was wrong: a signature that does not verify, a response changed on the bus. It was not returned.
    #[error("the device answered wrongly: {0}")]
    Integrity(String),
    /// The device or the key can't do this algorithm or size. Another request helps.
    #[error("unsupported by the device: {0}")]
    Unsupported(String),
    /// The configuration can't work: no module, no such token, no PIN file. Only an operator helps.
    #[error("{0}")]
    Misconfigured(String),
    /// Too much is waiting in front of the device. A retry helps, later.
    #[error("too many requests are waiting for the device")]
    Overloaded {
        /// When the queue will have room.
        retry_after: Duration,
    },
    /// The deadline passed, or would pass before the device's turn.
    #[error("the deadline passed before the device answered")]
    Late,
}

impl DeviceError {
    /// Its class, for metrics; it never changes.
    #[must_use]
    pub const fn class(&self) -> &'static str {
        match self {
            Self::Transient(_) => "transient",
            Self::Away(_) => "away",
            Self::PinRefused(_) => "pin-refused",
            Self::Permanent(_) => "permanent",
            Self::Integrity(_) => "integrity",
            Self::Unsupported(_) => "unsupported",
            Self::Misconfigured(_) => "misconfigured",
            Self::Overloaded { .. } => "overloaded",
            Self::Late => "late",
        }
    }

    /// What an operator of the daemon does about it, of this device.
    #[must_use]
    pub fn remedy(&self, device: &DeviceName) -> String {
        let remedy = match self {
            Self::Transient(_) | Self::Overloaded { .. } | Self::Late => "nothing: signetd tries again by itself",
            Self::Away(_) => "see to the device: signetd goes on by itself as soon as it is back",
            Self::PinRefused(_) => return format!("correct the PIN file, then: signetctl device unlatch {device}"),
            Self::Permanent(_) => "bring back the device that holds this key, or retire the key: signetctl key retire",
            Self::Misconfigured(_) => {
                "correct what it says; after a change of the configuration: reload signetd (SIGHUP)"
            }
            Self::Integrity(_) => "do not trust this device before you know why",
            Self::Unsupported(_) => "use a key that the device can sign with",
        };
        remedy.to_owned()
    }
}

/// Opens a device for its worker thread. `worker` counts from 0.
///
/// # Errors
/// [`DeviceError`], classified. `Misconfigured` where this build has no such device.
pub fn open(config: &DeviceConfig) -> Result<Opened, DeviceError> {
    match &config.kind {
        #[cfg(feature = "pkcs11")]
        DeviceKind::Pkcs11(pkcs11) => pkcs11::open(config, pkcs11),
        #[cfg(feature = "tpm")]
        DeviceKind::Tpm(tpm) => tpm::open(config, tpm),
        #[cfg(not(all(feature = "pkcs11", feature = "tpm")))]
        _ => Err(unsupported(config)),
    }
}

/// Opens a device for provisioning. `persistent` is for TPMs, see [`CreatedKey`]; absent: as the TPM's connection suggests.
///
/// # Errors
/// [`DeviceError`], classified. `Misconfigured` where this build has no such device.
pub fn provision(config: &DeviceConfig, persistent: Option<bool>) -> Result<Box<dyn Provision>, DeviceError> {
    let _ = persistent;
    match &config.kind {
        #[cfg(feature = "pkcs11")]
        DeviceKind::Pkcs11(pkcs11) => pkcs11::provision(config, pkcs11),
        #[cfg(feature = "tpm")]
        DeviceKind::Tpm(tpm) => {
            let persistent = persistent.unwrap_or_else(|| tpm::behind_resource_manager(&tpm.tcti));
            tpm::provision(config, tpm, persistent)
        }
        #[cfg(not(all(feature = "pkcs11", feature = "tpm")))]
        _ => Err(unsupported(config)),
    }
}

/// Takes a TSS2 PRIVATE KEY file that another tool made for this TPM, and returns the TPM with it. Opens the TPM itself:
/// not while it is open here.
///
/// # Errors
/// [`DeviceError`], classified. `Unsupported` where the device is no TPM.
pub fn adopt(
    config: &DeviceConfig,
    persistent: Option<bool>,
    pem: &str,
) -> Result<(Box<dyn Provision>, CreatedKey), DeviceError> {
    let _ = (persistent, pem);
    match &config.kind {
        #[cfg(feature = "tpm")]
        DeviceKind::Tpm(tpm) => {
            let persistent = persistent.unwrap_or_else(|| tpm::behind_resource_manager(&tpm.tcti));
            tpm::adopt(config, tpm, persistent, pem)
        }
        _ => Err(DeviceError::Unsupported(format!("a TSS2 file is a TPM's, and {} is none", config.name))),
    }
}

/// Makes a device ready for its first key: initialises a PKCS#11 token with the security officer's PIN, which is asked for
/// just before, or makes a TPM's parent key persistent and returns what pins it.
///
/// # Errors
/// [`DeviceError`], classified. `Misconfigured` where this build has no such device.
pub fn init(
    config: &DeviceConfig,
    so_pin: impl FnOnce() -> Result<Pin, DeviceError>,
) -> Result<Option<TpmParent>, DeviceError> {
    let _ = &so_pin;
    match &config.kind {
        #[cfg(feature = "pkcs11")]
        DeviceKind::Pkcs11(pkcs11) => pkcs11::init(pkcs11, so_pin).map(|()| None),
        #[cfg(feature = "tpm")]
        DeviceKind::Tpm(tpm) => tpm::init(tpm).map(Some),
        #[cfg(not(all(feature = "pkcs11", feature = "tpm")))]
        _ => Err(unsupported(config)),
    }
}

#[cfg(not(all(feature = "pkcs11", feature = "tpm")))]
fn unsupported(config: &DeviceConfig) -> DeviceError {
    DeviceError::Misconfigured(format!("device {}: this build has no support for its kind", config.name))
}

/// A device just opened: one [`Device`] for each worker thread, at least one.
pub type Opened = Vec<Box<dyn Device + Send>>;
