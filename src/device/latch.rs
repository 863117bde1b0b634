//! A refused PIN, remembered: it is tried once, ever.
//!
//! The latch is a file. While it is there, nobody logs in: no device process, no signetctl, whatever the PIN is by now.

use std::fs;
use std::io;
use std::num::NonZeroU32;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::{pbkdf2, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::{DeviceError, Pin};
use crate::file;

/// Says no where a PIN was refused before, whatever it is now: only [`clear`] opens the way again.
///
/// # Errors
/// [`DeviceError::PinRefused`] where the latch is closed; `Misconfigured` where its file can't be read, or could not be
/// written if the PIN were refused now: then there must be no login.
pub fn check(latch_file: &Path) -> Result<(), DeviceError> {
    match read(latch_file)? {
        Some(latch) => Err(DeviceError::PinRefused(latch.detail)),
        None => probe(latch_file).map_err(|error| unusable(latch_file, "can't be written", &error)),
    }
}

/// Closes the latch after a device refused this PIN; returns the error to answer with.
#[must_use]
pub fn close(latch_file: &Path, pin: Option<&Pin>, detail: &str) -> DeviceError {
    let latch = Latch {
        detail: detail.to_owned(),
        refused: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        pin: pin.map(Fingerprint::of),
    };
    let written = serde_json::to_vec_pretty(&latch)
        .map_err(io::Error::from)
        .and_then(|json| make_folder(latch_file).and_then(|()| file::replace(latch_file, &json)));
    DeviceError::PinRefused(match written {
        Ok(()) => detail.to_owned(),
        Err(error) => format!("{detail}; and that could not be written to {}: {error}", latch_file.display()),
    })
}

/// Opens the latch, where the PIN is another one than was refused, or `force` is given. True where it was closed.
///
/// # Errors
/// [`DeviceError::PinRefused`] where the PIN is the refused one; `Misconfigured` where the file can't be read or removed.
pub fn clear(latch_file: &Path, pin: Option<&Pin>, force: bool) -> Result<bool, DeviceError> {
    if !force {
        let Some(latch) = read(latch_file)? else { return Ok(false) };
        if latch.refused_this(pin) {
            return Err(DeviceError::PinRefused(format!("{}; the PIN is still the same", latch.detail)));
        }
    }
    match fs::remove_file(latch_file) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(unusable(latch_file, "can't be removed", &error)),
    }
}

/// What the file holds: nothing that helps to log in, but enough to know the refused PIN again.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Latch {
    /// What the device said.
    detail: String,
    /// When, in seconds since 1970.
    refused: u64,
    /// Which PIN; absent where there was none.
    pin: Option<Fingerprint>,
}

/// PBKDF2-HMAC-SHA256 of a PIN, in base64.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fingerprint {
    salt: String,
    rounds: NonZeroU32,
    hash: String,
}

impl Latch {
    fn refused_this(&self, pin: Option<&Pin>) -> bool {
        match (&self.pin, pin) {
            (Some(refused), Some(pin)) => refused.matches(pin),
            (None, None) => true,
            _ => false,
        }
    }
}

impl Fingerprint {
    fn of(pin: &Pin) -> Self {
        let mut salt = [0; 16];
        // A salt that is not random would only make guessing cheaper for whoever can read this file: root.
        let _ = rand::fill(&mut salt);
        let mut hash = [0; 32];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ROUNDS, &salt, pin.expose(), &mut hash);
        Self { salt: STANDARD.encode(salt), rounds: ROUNDS, hash: STANDARD.encode(hash) }
    }

    /// What can't be read is taken for the same PIN: the latch stays closed.
    fn matches(&self, pin: &Pin) -> bool {
        let (Ok(salt), Ok(hash)) = (STANDARD.decode(&self.salt), STANDARD.decode(&self.hash)) else { return true };
        pbkdf2::verify(pbkdf2::PBKDF2_HMAC_SHA256, self.rounds, &salt, pin.expose(), &hash).is_ok() || hash.is_empty()
    }
}

fn read(latch_file: &Path) -> Result<Option<Latch>, DeviceError> {
    let json = match fs::read(latch_file) {
        Ok(json) => json,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unusable(latch_file, "can't be read", &error)),
    };
    serde_json::from_slice(&json).map(Some).map_err(|error| unusable(latch_file, "is damaged", &error))
}

/// Writes as much beside the latch as closing it would: a full disk or a wrong owner must show before a PIN is sent.
fn probe(latch_file: &Path) -> io::Result<()> {
    make_folder(latch_file)?;
    let probe = latch_file.with_extension(format!("probe.{}", std::process::id()));
    let written = fs::write(&probe, [0; 4096]);
    let _ = fs::remove_file(&probe);
    written
}

fn make_folder(latch_file: &Path) -> io::Result<()> {
    let folder = latch_file.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

fn unusable(latch_file: &Path, what: &str, error: &dyn std::fmt::Display) -> DeviceError {
    DeviceError::Misconfigured(format!("{} {what}, so no PIN is sent: {error}", latch_file.display()))
}

/// As OWASP has it for PBKDF2-HMAC-SHA256: about a quarter of a second, paid once for a refused PIN.
const ROUNDS: NonZeroU32 = match NonZeroU32::new(600_000) {
    Some(rounds) => rounds,
    None => NonZeroU32::MIN,
};

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    use super::*;

    struct Fixture {
        folder: tempfile::TempDir,
        latch: PathBuf,
    }

    impl Fixture {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let latch = folder.path().join("latches/hsm.json");
            Self { folder, latch }
        }

        fn pin(&self, text: &str) -> Pin {
            let path = self.folder.path().join("pin");
            fs::write(&path, text).unwrap();
            Pin::read(&path).unwrap()
        }
    }

    #[test]
    fn a_closed_latch_stays_closed_whatever_the_pin_becomes() {
        let fixture = Fixture::new();
        assert_eq!(check(&fixture.latch), Ok(()));
        let error = close(&fixture.latch, Some(&fixture.pin("1234")), "C_Login: the PIN is wrong");
        assert_eq!(error, DeviceError::PinRefused("C_Login: the PIN is wrong".to_owned()));
        for _restart in 0..10 {
            assert_eq!(check(&fixture.latch), Err(error.clone()));
        }
    }

    #[test]
    fn the_refused_pin_does_not_open_it_and_another_does() {
        let fixture = Fixture::new();
        let _ = close(&fixture.latch, Some(&fixture.pin("1234")), "refused");
        let same = clear(&fixture.latch, Some(&fixture.pin("1234\n")), false);
        assert!(matches!(same, Err(DeviceError::PinRefused(_))), "{same:?}");
        assert!(check(&fixture.latch).is_err());

        assert_eq!(clear(&fixture.latch, Some(&fixture.pin("12345")), false), Ok(true));
        assert_eq!(check(&fixture.latch), Ok(()));
        assert_eq!(clear(&fixture.latch, Some(&fixture.pin("12345")), false), Ok(false));
    }

    #[test]
    fn force_opens_it_for_the_same_pin_and_when_damaged() {
        let fixture = Fixture::new();
        let _ = close(&fixture.latch, Some(&fixture.pin("1234")), "refused");
        assert_eq!(clear(&fixture.latch, Some(&fixture.pin("1234")), true), Ok(true));

        fs::write(&fixture.latch, "{}").unwrap();
        let damaged = check(&fixture.latch);
        assert!(matches!(damaged, Err(DeviceError::Misconfigured(_))), "{damaged:?}");
        assert!(clear(&fixture.latch, None, false).is_err());
        assert_eq!(clear(&fixture.latch, None, true), Ok(true));
    }

    #[test]
    fn a_pin_that_appears_where_there_was_none_opens_it() {
        let fixture = Fixture::new();
        let _ = close(&fixture.latch, None, "refused");
        assert!(clear(&fixture.latch, None, false).is_err());
        assert_eq!(clear(&fixture.latch, Some(&fixture.pin("1234")), false), Ok(true));
    }

    #[test]
    fn the_file_is_private_and_does_not_hold_the_pin() {
        let fixture = Fixture::new();
        let _ = close(&fixture.latch, Some(&fixture.pin("canary-4711")), "refused");
        let text = fs::read_to_string(&fixture.latch).unwrap();
        assert!(!text.contains("canary") && !text.contains(&STANDARD.encode("canary-4711")), "{text}");
        assert_eq!(fs::metadata(&fixture.latch).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn no_login_where_a_refusal_could_not_be_written() {
        let fixture = Fixture::new();
        // A file where the folder should be: nobody, not even root, can write the latch.
        fs::write(fixture.folder.path().join("latches"), "").unwrap();
        let refused = check(&fixture.latch);
        assert!(matches!(refused, Err(DeviceError::Misconfigured(_))), "{refused:?}");
        let error = close(&fixture.latch, None, "refused");
        assert!(error.to_string().contains("could not be written"), "{error}");
    }
}
