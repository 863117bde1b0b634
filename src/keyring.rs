//! The keyring file: which keys there are, where they live, and what each is for.
//!
//! `signetctl` writes it, the daemon reads it; this module owns its format and nothing else. Nothing in it is secret.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::access::AccountEmail;
use crate::file::{self, StateDir};
use crate::key::{Algorithm, DeviceName, KeyId, KeyLocator, PublicKey};
use crate::trust::{self, Untrusted};

/// One key of an account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRecord {
    /// Its id.
    pub kid: KeyId,
    /// Whose it is.
    pub account: AccountEmail,
    /// What it signs JWTs with.
    pub algorithm: Algorithm,
    /// The name of its device in the configuration.
    pub device: DeviceName,
    /// Where it is in that device.
    pub locator: KeyLocator,
    /// Its public half as recorded at provisioning: what every signature is checked against.
    #[serde(rename = "spki", with = "spki_base64")]
    pub public_key: PublicKey,
    /// What it is for.
    pub state: KeyState,
    /// When it was generated or imported, in seconds since 1970.
    pub created: u64,
    /// When it last became active; of several active keys the newest whose device works signs.
    pub activated: Option<u64>,
    /// When it was retired.
    pub retired: Option<u64>,
}

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyState {
    /// Published ahead of its first use.
    Prepared,
    /// Signs: of several, the newest whose device works does.
    Active,
    /// Signs no more; published until what it signed has expired.
    Retired,
}

/// The keyring file's contents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keyring {
    /// Every key, in the order of their creation.
    pub keys: Vec<KeyRecord>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyringFile {
    version: u32,
    keys: Vec<KeyRecord>,
}

impl Keyring {
    /// Reads the keyring; a missing file is an empty keyring. One that others could have changed is not believed: it
    /// tells which key signs for whom.
    ///
    /// # Errors
    /// [`KeyringError`]; the file stays as it is.
    pub fn load(state_dir: &StateDir) -> Result<Self, KeyringError> {
        let path = state_dir.keyring();
        let unreadable = |source| KeyringError::Io { path: path.clone(), source };
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(unreadable(source)),
        };
        trust::not_writable_by_others(&path, &file.metadata().map_err(unreadable)?)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(unreadable)?;
        Self::parse(&text).map_err(|reason| KeyringError::Invalid { path, reason })
    }

    fn parse(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let Version { version } = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if version != VERSION {
            return Err(format!("it is of version {version}, and this Signet knows version {VERSION} only"));
        }
        let file: KeyringFile = serde_json::from_str(text).map_err(|error| error.to_string())?;
        for (index, key) in file.keys.iter().enumerate() {
            if file.keys.iter().take(index).any(|earlier| earlier.kid == key.kid) {
                return Err(format!("the key id {} stands in it twice", key.kid));
            }
            let times = [Some(key.created), key.activated, key.retired];
            if times.into_iter().flatten().any(|time| time > LAST_SECOND) {
                return Err(format!("the key {} has a time after the year 9999", key.kid));
            }
            if key.algorithm.key_type() != key.public_key.key_type() {
                return Err(format!("the key {} can't sign {}", key.kid, key.algorithm));
            }
        }
        Ok(Self { keys: file.keys })
    }

    /// Writes the keyring: to a new file, synced, then renamed over the old one, so that a crash or a full disk loses nothing.
    ///
    /// # Errors
    /// [`KeyringError::Io`]; the old file stays as it was.
    pub fn save(&self, state_dir: &StateDir) -> Result<(), KeyringError> {
        let path = state_dir.keyring();
        let file = KeyringFile { version: VERSION, keys: self.keys.clone() };
        let written =
            serde_json::to_vec_pretty(&file).map_err(io::Error::from).and_then(|json| file::replace(&path, &json));
        written.map_err(|source| KeyringError::Io { path, source })
    }

    /// The key of an id.
    #[must_use]
    pub fn key(&self, kid: &KeyId) -> Option<&KeyRecord> {
        self.keys.iter().find(|key| key.kid == *kid)
    }

    /// The active keys of an account, the newest first.
    #[must_use]
    pub fn active(&self, account: &AccountEmail) -> Vec<&KeyRecord> {
        let mut keys: Vec<_> =
            self.keys.iter().filter(|key| key.account == *account && key.state == KeyState::Active).collect();
        keys.sort_by_key(|key| std::cmp::Reverse(key.activated));
        keys
    }
}

/// Why the keyring can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Others could have changed it.
    #[error(transparent)]
    Untrusted(#[from] Untrusted),
    /// The file is damaged, or of a newer Signet. It is never overwritten: restore it from a backup, or use the newer Signet.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl KeyringError {
    /// What to do about it.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Io { .. } => "check the folder's owner, its mode and the space on its disk",
            Self::Untrusted(_) => "see in it that no key is another account's, then chmod 0600 it",
            Self::Invalid { .. } => {
                "restore it from a backup, or use the version of Signet that wrote it; it is left as it is"
            }
        }
    }
}

/// A public key as base64 of its DER SubjectPublicKeyInfo.
mod spki_base64 {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use crate::key::PublicKey;

    pub(super) fn serialize<S: Serializer>(key: &PublicKey, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(key.spki()))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PublicKey, D::Error> {
        let text = String::deserialize(deserializer)?;
        let spki = STANDARD.decode(text).map_err(D::Error::custom)?;
        PublicKey::from_spki(&spki).map_err(D::Error::custom)
    }
}

const VERSION: u32 = 1;
/// The last of the year 9999: later ones have no date.
const LAST_SECOND: u64 = 253_402_300_799;
