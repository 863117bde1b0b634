//! A TPM 2.0, through the TSS's ESAPI. Nothing else of Signet knows `tss_esapi`.

mod connection;
mod describe;
mod duplicate;
mod parent;
mod provision;
mod public;
mod tcti;

use std::error::Error as _;
use std::time::{Duration, Instant};

use tss_esapi::WrapperErrorKind;

use self::connection::Connection;
pub use self::parent::init;
pub use self::provision::{adopt, provision};
pub use self::tcti::behind_resource_manager;
use super::{Device, DeviceConfig, DeviceError, Opened, Pin, TpmConfig, TpmSession, fault, latch};
use crate::key::{Algorithm, Digest, KeyLocator, PublicKey, Signature};

/// Opens the TPM: one context, one session, one device.
///
/// # Errors
/// [`DeviceError`], classified.
pub fn open(config: &DeviceConfig, tpm: &TpmConfig) -> Result<Opened, DeviceError> {
    open_renewing(config, tpm, Renewal::default())
}

/// Opens the TPM as [`open`] does, with another rhythm of renewal.
///
/// # Errors
/// [`DeviceError`], classified.
pub fn open_renewing(config: &DeviceConfig, tpm: &TpmConfig, renewal: Renewal) -> Result<Opened, DeviceError> {
    let device = TpmDevice::open(config, tpm, tpm.session, renewal)?;
    Ok(vec![Box::new(device)])
}

/// When the session and its context are replaced: sessions broke after some 65,000 uses in the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// After so many signatures.
    pub signatures: u32,
    /// Or after so long.
    pub age: Duration,
}

impl Default for Renewal {
    fn default() -> Self {
        Self { signatures: 10_000, age: Duration::from_secs(3600) }
    }
}

/// The device, over many generations of its connection.
struct TpmDevice {
    config: DeviceConfig,
    tpm: TpmConfig,
    session: TpmSession,
    renewal: Renewal,
    pin: Option<Pin>,
    /// Keys that have signed: their auth value is right.
    proven: Vec<KeyLocator>,
    connection: Option<(Instant, Connection)>,
}

impl TpmDevice {
    fn open(
        config: &DeviceConfig,
        tpm: &TpmConfig,
        session: TpmSession,
        renewal: Renewal,
    ) -> Result<Self, DeviceError> {
        let pin = tpm.pin_file.as_deref().map(Pin::read).transpose()?;
        let (config, tpm) = (config.clone(), tpm.clone());
        let mut device = Self { config, tpm, session, renewal, pin, proven: Vec::new(), connection: None };
        device.connected()?;
        Ok(device)
    }

    /// Makes a call, and makes it again on a new connection where the old one turns out to be lost: a reset TPM or another
    /// program on it costs a session, not a process.
    fn call<T>(
        &mut self,
        key: &KeyLocator,
        call: impl Fn(&mut Connection) -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        let reused = self.connection.is_some();
        match self.attempt(key, &call) {
            Err(DeviceError::Away(_)) if reused => self.attempt(key, &call),
            other => other,
        }
    }

    fn attempt<T>(
        &mut self,
        key: &KeyLocator,
        call: impl Fn(&mut Connection) -> Result<T, DeviceError>,
    ) -> Result<T, DeviceError> {
        let connection = self.connected()?;
        let result = call(connection);
        match result {
            Err(DeviceError::PinRefused(detail)) => {
                let counts_nothing = connection.is_no_da(key);
                self.connection = None;
                // An error is not authenticated: anybody on the bus can say this, and a flipped bit can. Where no value was
                // sent, or it was right before, it is not taken for the truth, if to ask again costs nothing.
                if counts_nothing && (self.pin.is_none() || self.proven.contains(key)) {
                    return Err(DeviceError::Away(detail));
                }
                Err(latch::close(&self.config.latch_file, self.pin.as_ref(), &detail))
            }
            Err(error @ (DeviceError::Transient(_) | DeviceError::Unsupported(_))) => Err(error),
            // An error is not authenticated: the TPM may have done what was asked, and be a nonce ahead of our session.
            Err(error) => {
                self.connection = None;
                Err(error)
            }
            done => done,
        }
    }

    /// The connection, opened where there is none and replaced where it is due.
    fn connected(&mut self) -> Result<&mut Connection, DeviceError> {
        let Renewal { signatures, age } = self.renewal;
        let fresh =
            |(opened, connection): &mut (Instant, Connection)| connection.used < signatures && opened.elapsed() < age;
        let current = match self.connection.take_if(fresh) {
            Some(current) => current,
            None => {
                // The old one goes first: without a resource manager the new one flushes whatever it finds.
                self.connection = None;
                latch::check(&self.config.latch_file)?;
                (Instant::now(), Connection::open(&self.tpm, self.pin.as_ref(), self.session)?)
            }
        };
        Ok(&mut self.connection.insert(current).1)
    }
}

impl Device for TpmDevice {
    fn public_key(&mut self, key: &KeyLocator) -> Result<PublicKey, DeviceError> {
        self.call(key, |connection| connection.public_key(key))
    }

    fn sign(&mut self, key: &KeyLocator, algorithm: Algorithm, digest: &Digest) -> Result<Signature, DeviceError> {
        let signature = self.call(key, |connection| connection.sign(key, algorithm, digest))?;
        if !self.proven.contains(key) {
            self.proven.push(key.clone());
        }
        Ok(signature)
    }
}

/// Turns an error of the TSS into ours.
fn classified(doing: &str) -> impl Fn(tss_esapi::Error) -> DeviceError {
    move |error| match (raw_rc(&error), error) {
        (Some(code), _) => fault::tpm(code, doing),
        // The crate's own errors: the TPM answered with what can't be, or something is asked for that the crate can't say.
        (None, tss_esapi::Error::WrapperError(WrapperErrorKind::WrongValueFromTpm)) => {
            DeviceError::Integrity(format!("{doing}: {error}"))
        }
        (None, _) => DeviceError::Unsupported(format!("{doing}: {error}")),
    }
}

/// The same for a command that needs no auth value: none was refused, whatever the code says.
fn unauthorised(doing: &str) -> impl Fn(tss_esapi::Error) -> DeviceError {
    move |error| match classified(doing)(error) {
        DeviceError::PinRefused(detail) => DeviceError::Away(detail),
        other => other,
    }
}

/// The TSS2_RC of an error. The crate hides it: only the innermost source displays it, "Response code value: 0x...".
fn raw_rc(error: &tss_esapi::Error) -> Option<u32> {
    let innermost = std::iter::successors(error.source(), |inner| (*inner).source()).last()?.to_string();
    u32::from_str_radix(innermost.rsplit_once("0x")?.1, 16).ok()
}

#[cfg(test)]
mod tests {
    use tss_esapi::structures::Public;
    use tss_esapi::tcti_ldr::{TctiContext, TctiNameConf};
    use tss_esapi::traits::UnMarshall as _;

    use super::*;

    /// The crate makes such errors only itself, so real ones are provoked; the suite sees those of a TPM, 0x9a2 and 0x1df.
    #[test]
    fn the_code_of_an_error_is_found() {
        let insufficient_buffer = Public::unmarshall(&[]).unwrap_err();
        assert_eq!(raw_rc(&insufficient_buffer), Some(0x9_0006));
        let nothing_there: TctiNameConf = "device:/nonexistent/tpm0".parse().unwrap();
        let io_error = TctiContext::initialize(nothing_there).unwrap_err();
        assert_eq!(raw_rc(&io_error), Some(0xa_000a));
        assert_eq!(raw_rc(&tss_esapi::Error::WrapperError(WrapperErrorKind::InvalidParam)), None);
    }
}
