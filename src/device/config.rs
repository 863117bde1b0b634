//! What a device process is told when it starts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::key::DeviceName;

/// One configured device: what its process is told when it starts. Holds paths of secrets; secrets only where the operator
/// put one in a module's environment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceConfig {
    /// Its name in the configuration.
    pub name: DeviceName,
    /// What it is.
    pub kind: DeviceKind,
    /// A call that takes longer ends the device process.
    pub call_limit: Duration,
    /// How many jobs may wait in front of it.
    pub queue: usize,
    /// Where a refused PIN is remembered.
    pub latch_file: PathBuf,
    /// Whether its process gives up what devices of its kind have no use for.
    pub sandbox: bool,
}

impl DeviceConfig {
    /// The file of what it is logged in to with, where there is one.
    #[must_use]
    pub fn pin_file(&self) -> Option<&Path> {
        match &self.kind {
            DeviceKind::Pkcs11(pkcs11) => pkcs11.pin_file.as_deref(),
            DeviceKind::Tpm(tpm) => tpm.pin_file.as_deref(),
        }
    }

    /// The same for a process that was started with its environment.
    pub(super) fn without_environment(&self) -> Self {
        let mut config = self.clone();
        if let DeviceKind::Pkcs11(pkcs11) = &mut config.kind {
            pkcs11.environment = None;
        }
        config
    }
}

/// The kinds of device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// A PKCS#11 token.
    Pkcs11(Pkcs11Config),
    /// A TPM 2.0.
    Tpm(TpmConfig),
}

/// A PKCS#11 token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pkcs11Config {
    /// The module, an absolute path.
    pub module: PathBuf,
    /// Which of its tokens.
    pub token: TokenSelector,
    /// The user PIN; absent where the token has none.
    pub pin_file: Option<PathBuf>,
    /// How many sessions sign at once, at least 1.
    pub sessions: usize,
    /// Exactly these variables for the module; absent: the daemon's own. Their values may be secrets.
    pub environment: Option<BTreeMap<String, String>>,
    /// The files and folders that the module may open besides what every module needs; absent: all that its user may.
    pub files: Option<Vec<PathBuf>>,
    /// Log in even where one more wrong PIN locks the token.
    pub allow_final_pin_try: bool,
}

/// Which token of a module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenSelector {
    /// The one with this label.
    Label(String),
    /// The one with this serial number.
    Serial(String),
    /// The one in the slot of this id.
    Slot(u64),
}

/// A TPM 2.0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TpmConfig {
    /// A TCTI string such as `device:/dev/tpmrm0` or `swtpm:host=127.0.0.1,port=2321`; `device` alone: the only TPM.
    pub tcti: String,
    /// The keys' auth value; absent: empty.
    pub pin_file: Option<PathBuf>,
    /// The owner hierarchy's auth value, for provisioning; absent: empty.
    pub owner_auth_file: Option<PathBuf>,
    /// How commands are authorised.
    pub session: TpmSession,
    /// What `device init` recorded; absent before.
    pub parent: Option<TpmParent>,
}

/// The variable that keeps the TSS from printing its own errors beside ours, in the process that opens a TPM. One that is
/// set already stays as it is.
pub const QUIET_TSS: (&str, &str) = ("TSS2_LOG", "all+none");

/// How TPM commands are authorised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TpmSession {
    /// A salted HMAC session with parameter encryption: nothing secret on the bus, nothing changed unnoticed.
    #[default]
    Protected,
    /// A password session: fewer TPM commands, nothing hidden on the bus.
    Plain,
}

/// The storage key that is the parent of all keys of a TPM, pinned by `device init`: nothing secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TpmParent {
    /// Its persistent handle.
    pub handle: u32,
    /// Its TPM name, in hexadecimal: the hash algorithm's id and the hash of its public area.
    pub name: String,
}

impl FromStr for TokenSelector {
    type Err = String;

    /// `LABEL`, `serial:SERIAL` or `slot:ID` (decimal, or hexadecimal with 0x).
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(serial) = text.strip_prefix("serial:") {
            return Ok(Self::Serial(serial.to_owned()));
        }
        let Some(slot) = text.strip_prefix("slot:") else {
            return Ok(Self::Label(text.to_owned()));
        };
        let id = match slot.strip_prefix("0x") {
            Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16),
            None => slot.parse(),
        };
        id.map(Self::Slot).map_err(|error| format!("slot id {slot:?}: {error}"))
    }
}
