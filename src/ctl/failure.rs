//! How a command fails: what happened, what to do about it, and the exit code.

use std::fmt;
use std::process::ExitCode;

use crate::config::ConfigError;
use crate::device::DeviceError;
use crate::key::{DeviceName, InvalidKey};
use crate::keyring::KeyringError;

/// What a person is told, and the exit code that a script sees.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    what: String,
    remedy: Option<String>,
}

/// The exit codes of signetctl. Success is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It was tried and did not work.
    Failed = 1,
    /// Usage, or bad input.
    Usage = 2,
    /// Policy refused it.
    Refused = 3,
    /// The device or the daemon is not available.
    Unavailable = 4,
    /// A signature or an audit chain does not verify.
    Unverified = 5,
}

impl Failure {
    /// Tried, and did not work.
    pub(crate) fn new(what: impl fmt::Display) -> Self {
        Self::with(Exit::Failed, what)
    }

    /// Bad input.
    pub(crate) fn usage(what: impl fmt::Display) -> Self {
        Self::with(Exit::Usage, what)
    }

    /// Any exit code.
    pub(crate) fn with(exit: Exit, what: impl fmt::Display) -> Self {
        Self { exit, what: what.to_string(), remedy: None }
    }

    /// Adds what to do about it.
    #[must_use]
    pub(crate) fn hint(mut self, remedy: impl fmt::Display) -> Self {
        self.remedy = Some(remedy.to_string());
        self
    }

    /// Adds what to do about it, where nothing better is known.
    #[must_use]
    pub(crate) fn or_hint(mut self, remedy: &str) -> Self {
        self.remedy.get_or_insert_with(|| remedy.to_owned());
        self
    }

    /// Says first what was being done.
    #[must_use]
    pub(crate) fn context(mut self, doing: impl fmt::Display) -> Self {
        self.what = format!("{doing}: {}", self.what);
        self
    }

    /// Adds a sentence about what state things are in now.
    #[must_use]
    pub(crate) fn aftermath(mut self, aftermath: impl fmt::Display) -> Self {
        self.what = format!("{}; {aftermath}", self.what);
        self
    }

    /// Whether policy refused it.
    pub(crate) fn is_refused(&self) -> bool {
        self.exit == Exit::Refused
    }

    /// What to do about it.
    pub(crate) fn remedy(&self) -> Option<&str> {
        self.remedy.as_deref()
    }

    /// Tells it on standard error.
    pub(crate) fn report(&self) -> ExitCode {
        use std::io::Write as _;
        let mut stderr = anstream::stderr().lock();
        let red = anstyle::AnsiColor::Red.on_default().bold();
        let cyan = anstyle::AnsiColor::Cyan.on_default().bold();
        let _ = writeln!(stderr, "{red}error:{red:#} {}", Printable(&self.what));
        if let Some(remedy) = &self.remedy {
            let _ = writeln!(stderr, "  {cyan}try:{cyan:#} {}", Printable(remedy));
        }
        ExitCode::from(self.exit as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// Text from a file or a device, without what would steer a terminal.
pub(crate) struct Printable<'a>(pub(crate) &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '\n' => f.write_str("\n")?,
                control if control.is_control() => write!(f, "{}", control.escape_default())?,
                printable => write!(f, "{printable}")?,
            }
        }
        Ok(())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(&error).hint(error.remedy)
    }
}

impl From<KeyringError> for Failure {
    fn from(error: KeyringError) -> Self {
        Self::new(&error).hint(error.remedy())
    }
}

impl From<InvalidKey> for Failure {
    fn from(error: InvalidKey) -> Self {
        Self::usage(error)
    }
}

/// What an error of the device of a name means for a person.
pub(crate) fn explained(error: DeviceError, name: &DeviceName) -> Failure {
    let (exit, hint) = match &error {
        DeviceError::Transient(_) | DeviceError::Overloaded { .. } | DeviceError::Late => {
            (Exit::Unavailable, "again in a moment".to_owned())
        }
        DeviceError::Away(_) => (
            Exit::Unavailable,
            format!(
                "plug {name} in, or start what it needs (swtpm, the token's service), and be in the group that may use it"
            ),
        ),
        DeviceError::Misconfigured(_) => (
            Exit::Unavailable,
            format!("correct the [[device]] {name} in the configuration, or the file or token that it names"),
        ),
        DeviceError::PinRefused(_) => (
            Exit::Unavailable,
            format!(
                "put the right PIN into the device's pin_file, then signetctl device unlatch {name}: a refused PIN is never tried twice"
            ),
        ),
        DeviceError::Permanent(_) => (
            Exit::Failed,
            format!(
                "find the token or TPM that holds the key; or, where that is lost: signetctl key generate --device {name}"
            ),
        ),
        DeviceError::Integrity(_) => (
            Exit::Failed,
            "trust nothing it made; check the device and the line to it, then run the command again".to_owned(),
        ),
        DeviceError::Unsupported(_) => {
            (Exit::Usage, format!("signetctl device show {name} tells which algorithms and sizes it has"))
        }
    };
    Failure::with(exit, format!("device {name}: {error}")).hint(hint)
}
