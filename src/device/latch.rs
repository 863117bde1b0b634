//! A refused PIN, remembered: a wrong one is tried once, ever.
//!
//! The latch is a file. While it is closed, nobody logs in: no device process, no signetctl, whatever the PIN is by now. It
//! keeps every PIN that was refused (their hashes), so that none of them is sent again, even after an unlatch.
//!
//! A login is written down *before* the PIN is sent ([`begin`]): a process may be killed, or its disk may fill, between
//! the token's answer and our remembering it. A lock keeps others away meanwhile, threads as well as processes. So whoever
//! has the lock and finds the mark of a login knows that it was interrupted: it may have spent a try, or not. Then only
//! facts decide, for a guess would be a second try:
//!
//! * The token shows a missing try: the PIN may have been the wrong one. The latch closes.
//! * It shows none, and is known to show them ([`Tries::Whole`], or it did before): none was spent. We go on by ourselves.
//! * It shows none, but was never seen to: PKCS#11 lets a token keep this for itself, always. The latch closes.
//!
//! So service resumes by itself after a power cut wherever that can be known to be safe, and an operator helps elsewhere.
//! The same goes for a login that failed in a way that says nothing about the PIN.
//!
//! A TPM has no login: each signature carries the auth value. Signet's TPM keys have noDA, so that a wrong value costs
//! nothing but the signature; there is no mark before it, and [`close`] writes at once. The TPM's process calls it only where the
//! value may be wrong: there is one, and the key has not signed with it.

use std::fs::{self, File};
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aws_lc_rs::{pbkdf2, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use nix::fcntl::Flock;
use serde::{Deserialize, Serialize};

use super::{DeviceError, Pin};
use crate::file;

/// What a device tells of the tries that wrong PINs have spent since the last right one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tries {
    /// At least one is missing.
    Missing,
    /// None is missing, and it would say so.
    Whole,
    /// It shows no missing try, but perhaps it never does.
    Untold,
}

/// Says no where the latch is closed. Changes nothing: also for those who only look.
///
/// # Errors
/// [`DeviceError::PinRefused`] where it is closed; `Misconfigured` where its file can't be read.
pub fn look(latch_file: &Path) -> Result<(), DeviceError> {
    read(latch_file)?.refuse_closed()
}

/// Says no where the latch is closed, or could not be written if an auth value were refused now.
///
/// # Errors
/// As [`look`], and `Misconfigured` where the file can't be written.
pub fn check(latch_file: &Path) -> Result<(), DeviceError> {
    look(latch_file)?;
    probe(latch_file).map_err(|error| unusable(latch_file, "can't be written", &error))
}

/// A login that is written down, and not finished. Dropped without a word, its outcome is unknown: its mark stays.
pub struct Attempt {
    latch_file: PathBuf,
    latch: Latch,
    _alone: Alone,
}

/// Writes down that a PIN will be sent now. Waits for another login to the same device. `pin` is held against those that
/// were refused before; absent where there is none, or where this process has been let in with it.
///
/// # Errors
/// [`DeviceError::PinRefused`] where the latch is closed, or closes now because of an interrupted login or a PIN that was
/// refused before; `Misconfigured` where the file can't be read or written; what `tries` says. Then no PIN is to be sent.
pub fn begin(
    latch_file: &Path,
    pin: Option<&Pin>,
    tries: impl FnOnce() -> Result<Tries, DeviceError>,
) -> Result<Attempt, DeviceError> {
    let alone = Alone::with(latch_file).map_err(|error| unusable(latch_file, "can't be locked", &error))?;
    let latch = read(latch_file)?;
    latch.refuse_closed()?;
    let attempt = Attempt { latch_file: latch_file.to_owned(), latch, _alone: alone };
    if let Some(pin) = pin
        && attempt.latch.refused_this(Some(pin))
    {
        return Err(attempt.close("this PIN was refused before, and was not sent again", true));
    }
    let (interrupted, tells) = (attempt.latch.state == State::Trying, attempt.latch.tells_tries);
    match tries()? {
        Tries::Missing if interrupted => {
            Err(attempt.close(&format!("{INTERRUPTED}, and the token says that a wrong PIN was tried"), false))
        }
        Tries::Untold if interrupted && !tells => {
            Err(attempt
                .close(&format!("{INTERRUPTED}, and the token does not tell whether a wrong PIN was tried"), false))
        }
        _ => {
            let mark = Latch { state: State::Trying, ..attempt.latch.clone() };
            mark.write(latch_file).map_err(|error| unusable(latch_file, "can't be written", &error))?;
            Ok(attempt)
        }
    }
}

impl Attempt {
    /// The PIN was taken, or surely not tried.
    pub fn settled(mut self) {
        self.latch.state = State::Open;
        if let Err(error) = self.latch.write(&self.latch_file) {
            // The mark stays, and the next login decides by facts.
            tracing::warn!(path = %self.latch_file.display(), %error, "the end of a login could not be written down");
        }
    }

    /// The PIN was refused, and this is what the device tells of tries since. Returns the error to answer with.
    #[must_use]
    pub fn refused(mut self, pin: Option<&Pin>, detail: &str, tries: Tries) -> DeviceError {
        self.latch.tells_tries |= tries == Tries::Missing;
        // At once, and only then with the hash, which takes its time: the process may be killed any moment.
        let closed = self.latch.close(&self.latch_file, detail, false);
        self.latch.remember(pin);
        match self.latch.close(&self.latch_file, detail, true) {
            Ok(()) => DeviceError::PinRefused(detail.to_owned()),
            Err(error) => not_written(&self.latch_file, detail, &closed.err().unwrap_or(error)),
        }
    }

    /// Closes the latch instead of a login.
    fn close(mut self, detail: &str, pin_known: bool) -> DeviceError {
        match self.latch.close(&self.latch_file, detail, pin_known) {
            Ok(()) => DeviceError::PinRefused(detail.to_owned()),
            Err(error) => not_written(&self.latch_file, detail, &error),
        }
    }
}

/// Closes the latch after a device refused this PIN; returns the error to answer with.
#[must_use]
pub fn close(latch_file: &Path, pin: Option<&Pin>, detail: &str) -> DeviceError {
    match Alone::with(latch_file) {
        Ok(alone) => {
            // A damaged file says no as well as a closed one; this one also says why.
            let latch = read(latch_file).unwrap_or_default();
            let attempt = Attempt { latch_file: latch_file.to_owned(), latch, _alone: alone };
            attempt.refused(pin, detail, Tries::Untold)
        }
        Err(error) => not_written(latch_file, detail, &error),
    }
}

/// Opens the latch, where the PIN is surely another one than was refused, or `force` is given, which forgets every refusal.
/// True where it was closed.
///
/// # Errors
/// [`DeviceError::PinRefused`] where the PIN is or may be a refused one; `Misconfigured` where the file can't be read or
/// written.
pub fn clear(latch_file: &Path, pin: Option<&Pin>, force: bool) -> Result<bool, DeviceError> {
    if !latch_file.exists() {
        return Ok(false);
    }
    let _alone = Alone::with(latch_file).map_err(|error| unusable(latch_file, "can't be locked", &error))?;
    let mut latch = match read(latch_file) {
        Err(_damaged) if force => Latch { state: State::closed("", false), ..Latch::default() },
        latch => latch?,
    };
    let was_closed = matches!(latch.state, State::Closed { .. });
    match &latch.state {
        _ if force => latch = Latch { tells_tries: latch.tells_tries, ..Latch::default() },
        State::Closed { detail, pin_known: false, .. } => {
            return Err(DeviceError::PinRefused(format!(
                "{detail}; whether the PIN is another one by now is not known"
            )));
        }
        State::Closed { detail, .. } if latch.refused_this(pin) => {
            return Err(DeviceError::PinRefused(format!(
                "{detail}; the pin_file still holds the PIN, or an older one that was refused"
            )));
        }
        State::Closed { .. } => latch.state = State::Open,
        // Whether an interrupted login spent a try, the next one asks the token.
        State::Open | State::Trying => return Ok(false),
    }
    latch.write(latch_file).map_err(|error| unusable(latch_file, "can't be written", &error))?;
    Ok(was_closed)
}

/// Waits until no login is on its way in this process, but not for long: to be called before the process ends itself.
pub fn settle() {
    let until = Instant::now() + PATIENCE;
    while matches!(LOGIN.try_lock(), Err(TryLockError::WouldBlock)) && Instant::now() < until {
        thread::sleep(Duration::from_millis(1));
    }
}

/// What the file holds: nothing that helps to log in, but enough to know a refused PIN again. No file: nothing of all this.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Latch {
    state: State,
    /// A refusal showed in what the device tells of tries: it can be believed when it shows none.
    tells_tries: bool,
    refused: Option<Hashes>,
}

#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    #[default]
    Open,
    /// A PIN was about to be sent. Where nobody holds the lock, nobody knows what became of it.
    Trying,
    Closed {
        /// What the device said, or what is unknown.
        detail: String,
        /// When, in seconds since 1970.
        since: u64,
        /// The PIN is among the hashes.
        pin_known: bool,
    },
}

/// PBKDF2-HMAC-SHA256 of every PIN that was refused, in base64. One salt, so that a PIN is held against all at once.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Hashes {
    salt: String,
    rounds: NonZeroU32,
    hashes: Vec<String>,
}

impl State {
    fn closed(detail: &str, pin_known: bool) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self::Closed { detail: detail.to_owned(), since, pin_known }
    }
}

impl Latch {
    fn refuse_closed(&self) -> Result<(), DeviceError> {
        match &self.state {
            State::Closed { detail, .. } => Err(DeviceError::PinRefused(detail.clone())),
            State::Open | State::Trying => Ok(()),
        }
    }

    /// What can't be read is taken for the same PIN.
    fn refused_this(&self, pin: Option<&Pin>) -> bool {
        let Some(refused) = &self.refused else { return false };
        refused.hash(pin).is_none_or(|hash| refused.hashes.contains(&hash))
    }

    fn remember(&mut self, pin: Option<&Pin>) {
        let refused = self.refused.get_or_insert_with(|| {
            let mut salt = [0; 16];
            // A salt that is not random would only make guessing cheaper for whoever can read this file: root.
            let _ = rand::fill(&mut salt);
            Hashes { salt: STANDARD.encode(salt), rounds: ROUNDS, hashes: Vec::new() }
        });
        if let Some(hash) = refused.hash(pin)
            && !refused.hashes.contains(&hash)
        {
            refused.hashes.push(hash);
        }
    }

    fn close(&mut self, latch_file: &Path, detail: &str, pin_known: bool) -> io::Result<()> {
        self.state = State::closed(detail, pin_known);
        self.write(latch_file)
    }

    /// Writes it so that it outlasts a power cut.
    fn write(&self, latch_file: &Path) -> io::Result<()> {
        if *self != Self::default() {
            return file::replace(latch_file, &serde_json::to_vec_pretty(self)?);
        }
        match fs::remove_file(latch_file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => File::open(latch_file.parent().ok_or(io::ErrorKind::InvalidInput)?)?.sync_all(),
        }
    }
}

impl Hashes {
    /// Of no PIN: of an empty one, which no file can hold.
    fn hash(&self, pin: Option<&Pin>) -> Option<String> {
        let salt = STANDARD.decode(&self.salt).ok()?;
        let mut hash = [0; 32];
        let pin = pin.map(Pin::expose).unwrap_or_default();
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, self.rounds, &salt, pin, &mut hash);
        Some(STANDARD.encode(hash))
    }
}

/// The right to log in to a device and to write its latch, against other processes and other threads of this one.
struct Alone {
    _process: Flock<File>,
    _thread: MutexGuard<'static, ()>,
}

impl Alone {
    fn with(latch_file: &Path) -> io::Result<Self> {
        let thread = LOGIN.lock().unwrap_or_else(PoisonError::into_inner);
        make_folder(latch_file)?;
        let process = file::wait_for_lock(&latch_file.with_extension("lock"))?;
        Ok(Self { _process: process, _thread: thread })
    }
}

fn read(latch_file: &Path) -> Result<Latch, DeviceError> {
    let json = match fs::read(latch_file) {
        Ok(json) => json,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Latch::default()),
        Err(error) => return Err(unusable(latch_file, "can't be read", &error)),
    };
    serde_json::from_slice(&json).map_err(|error| unusable(latch_file, "is damaged", &error))
}

/// Writes as much beside the latch as closing it would: a full disk or a wrong owner must show before a PIN is sent.
fn probe(latch_file: &Path) -> io::Result<()> {
    make_folder(latch_file)?;
    let probe = latch_file.with_extension(format!("probe.{}", std::process::id()));
    let written = fs::write(&probe, [0; 4096]);
    let _ = fs::remove_file(&probe);
    written
}

pub(super) fn make_folder(latch_file: &Path) -> io::Result<()> {
    file::private_folder(latch_file.parent().ok_or(io::ErrorKind::InvalidInput)?)
}

fn unusable(latch_file: &Path, what: &str, error: &dyn std::fmt::Display) -> DeviceError {
    DeviceError::Misconfigured(format!("{} {what}, so no PIN is sent: {error}", latch_file.display()))
}

fn not_written(latch_file: &Path, detail: &str, error: &io::Error) -> DeviceError {
    DeviceError::PinRefused(format!("{detail}; and that could not be written to {}: {error}", latch_file.display()))
}

/// Held for the time of a login.
static LOGIN: Mutex<()> = Mutex::new(());

const INTERRUPTED: &str = "a login was interrupted or failed in an unknown way";

/// How long a process that is to end waits for the outcome of a login.
const PATIENCE: Duration = Duration::from_secs(1);

/// As OWASP has it for PBKDF2-HMAC-SHA256: about a quarter of a second, paid for a refused PIN, and by each opening after.
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
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
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

        fs::write(&fixture.latch, "{").unwrap();
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
    fn no_pin_that_was_ever_refused_is_sent_again() {
        let fixture = Fixture::new();
        let _ = close(&fixture.latch, Some(&fixture.pin("first")), "refused");
        assert_eq!(clear(&fixture.latch, Some(&fixture.pin("second")), false), Ok(true));
        let _ = close(&fixture.latch, Some(&fixture.pin("second")), "refused");
        assert!(clear(&fixture.latch, Some(&fixture.pin("first")), false).is_err());
        assert_eq!(clear(&fixture.latch, Some(&fixture.pin("third")), false), Ok(true));

        // The file is changed after the unlatch, to an old PIN.
        let refused = begin(&fixture.latch, Some(&fixture.pin("first")), whole).err();
        assert!(matches!(refused, Some(DeviceError::PinRefused(_))), "{refused:?}");
        assert!(look(&fixture.latch).is_err());
        assert_eq!(clear(&fixture.latch, Some(&fixture.pin("first")), true), Ok(true));
        begin(&fixture.latch, Some(&fixture.pin("first")), whole).unwrap().settled();
    }

    #[test]
    fn a_login_that_was_let_in_leaves_nothing() {
        let fixture = Fixture::new();
        begin(&fixture.latch, Some(&fixture.pin("1234")), || Ok(Tries::Untold)).unwrap().settled();
        assert!(!fixture.latch.exists());
        begin(&fixture.latch, Some(&fixture.pin("1234")), || Ok(Tries::Untold)).unwrap().settled();
    }

    #[test]
    fn after_an_interrupted_login_only_facts_decide() {
        let pins = Fixture::new();
        let pin = pins.pin("1234");
        for (told_before, tries, resumes) in [
            (false, Tries::Whole, true),
            (false, Tries::Untold, false),
            (false, Tries::Missing, false),
            (true, Tries::Untold, true),
            (true, Tries::Missing, false),
        ] {
            let fixture = Fixture::new();
            if told_before {
                let _ =
                    begin(&fixture.latch, None, whole).unwrap().refused(Some(&pins.pin("wrong")), "no", Tries::Missing);
                assert_eq!(clear(&fixture.latch, Some(&pin), false), Ok(true));
            }
            drop(begin(&fixture.latch, Some(&pin), whole).unwrap());
            let resumed = begin(&fixture.latch, Some(&pin), || Ok(tries));
            assert_eq!(resumed.is_ok(), resumes, "{told_before} {tries:?}");
            assert_eq!(look(&fixture.latch).is_ok(), resumes, "{told_before} {tries:?}");
        }
    }

    #[test]
    fn what_refuses_before_a_login_leaves_no_mark() {
        let fixture = Fixture::new();
        let locked = DeviceError::PinRefused("locked".to_owned());
        assert_eq!(begin(&fixture.latch, None, || Err(locked.clone())).err(), Some(locked));
        assert!(!fixture.latch.exists());
    }

    fn whole() -> Result<Tries, DeviceError> {
        Ok(Tries::Whole)
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
