//! The module, the token in it, and logging in.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, Rv, RvError};
use cryptoki::mechanism::MechanismType;
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Limit, Slot, TokenInfo};
use cryptoki::types::RawAuthPin;

use super::raw::CSign;
use crate::device::latch::{self, Tries};
use crate::device::{DeviceConfig, DeviceError, Pin, Pkcs11Config, TokenSelector, fault};

/// A loaded and initialised module. It is never finalised and never unloaded: other threads may be inside.
pub(super) struct Module {
    pub(super) path: PathBuf,
    pub(super) client: Pkcs11,
    pub(super) c_sign: CSign,
}

impl Module {
    /// Loads a module once a process: C_Initialize may not be called twice.
    pub(super) fn load(path: &Path) -> Result<Arc<Self>, DeviceError> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = loaded.iter().find(|module| module.path == path) {
            return Ok(Arc::clone(module));
        }
        let unusable = |what: String| DeviceError::Misconfigured(format!("module {}: {what}", path.display()));
        if let Err(error) = std::fs::metadata(path) {
            return Err(unusable(format!("{error}; install the token's PKCS#11 module, or name its path")));
        }
        let broken = |error| match error {
            Error::MissingSymbol(symbol) => unusable(format!("it is no PKCS#11 module, for it has no {symbol}")),
            Error::LibraryLoading(error) => unusable(format!("it can't be loaded: {error}")),
            other => unusable(other.to_string()),
        };
        let client = Pkcs11::new(path).map_err(broken)?;
        match client.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(error) => {
                return Err(match classified(error) {
                    DeviceError::Away(why) => DeviceError::Away(format!(
                        "module {}: {why}; where it reads a file or variable of its own, name that in the device's environment",
                        path.display()
                    )),
                    other => other,
                });
            }
        }
        let c_sign = CSign::load(path).map_err(broken)?;
        let module = Arc::new(Self { path: path.to_owned(), client, c_sign });
        loaded.push(Arc::clone(&module));
        Ok(module)
    }
}

static LOADED: Mutex<Vec<Arc<Module>>> = Mutex::new(Vec::new());

/// A token in a slot.
pub(super) struct Token {
    pub(super) module: Arc<Module>,
    pub(super) slot: Slot,
    pub(super) info: TokenInfo,
    pub(super) mechanisms: Vec<MechanismType>,
}

impl Token {
    /// Finds the configured token.
    pub(super) fn find(config: &Pkcs11Config) -> Result<Arc<Self>, DeviceError> {
        let module = Module::load(&config.module)?;
        let tokens = tokens(&module)?;
        let mut matching = tokens.iter().filter(|(slot, info)| match &config.token {
            TokenSelector::Label(label) => info.label() == label,
            TokenSelector::Serial(serial) => info.serial_number() == serial,
            TokenSelector::Slot(id) => slot.id() == *id,
        });
        let Some((slot, info)) = matching.next() else {
            return Err(DeviceError::Misconfigured(absent(&config.token, &module.path, &tokens)));
        };
        if matching.next().is_some() {
            let serials: Vec<_> =
                tokens.iter().map(|(_, info)| format!("\"serial:{}\"", info.serial_number())).collect();
            return Err(DeviceError::Misconfigured(format!(
                "{} fits several tokens of {}; choose one by its serial number: {}",
                quoted(&config.token),
                module.path.display(),
                serials.join(", ")
            )));
        }
        let mechanisms = module.client.get_mechanism_list(*slot).map_err(classified)?;
        Ok(Arc::new(Self { module: Arc::clone(&module), slot: *slot, info: info.clone(), mechanisms }))
    }

    /// Opens one more session.
    pub(super) fn session(&self, read_write: bool) -> Result<Session, DeviceError> {
        let client = &self.module.client;
        if read_write { client.open_rw_session(self.slot) } else { client.open_ro_session(self.slot) }
            .map_err(classified)
    }

    /// Reads the PIN. None where the token takes no PIN from us.
    pub(super) fn pin(&self, config: &DeviceConfig, pkcs11: &Pkcs11Config) -> Result<Option<Pin>, DeviceError> {
        let label = self.info.label();
        let Some(path) = &pkcs11.pin_file else {
            if self.info.login_required() && !self.info.protected_authentication_path() {
                return Err(DeviceError::Misconfigured(format!("the token {label:?} wants a PIN; name its pin_file")));
            }
            return Ok(None);
        };
        if !self.info.login_required() {
            return Ok(None);
        }
        // Before anything of the PIN file is said: where the latch is closed, that comes first.
        latch::look(&config.latch_file)?;
        if !self.info.user_pin_initialized() {
            return Err(DeviceError::Misconfigured(format!(
                "the token {label:?} has no user PIN yet; its security officer must set one"
            )));
        }
        Pin::read(path).map(Some)
    }
}

/// What it takes to log in: the PIN, by the token's own keypad where there is none, and the latch.
#[derive(Clone)]
pub(super) struct Login {
    pub(super) pin: Option<Pin>,
    pub(super) latch_file: PathBuf,
    pub(super) allow_final_try: bool,
}

impl Login {
    /// Logs the whole process in.
    pub(super) fn user(&self, token: &Token, session: &Session) -> Result<(), DeviceError> {
        if !token.info.login_required() {
            return Ok(());
        }
        self.attempt(token, session, UserType::User, self.pin.as_ref())
    }

    /// Logs in for one use of a key that wants it. The PIN has let this process in before.
    pub(super) fn context(&self, token: &Token, session: &Session) -> Result<(), DeviceError> {
        self.attempt(token, session, UserType::ContextSpecific, None)
    }

    /// Sends the PIN, written down before and after: a wrong one is tried once, ever. See [`latch`].
    fn attempt(
        &self,
        token: &Token,
        session: &Session,
        user: UserType,
        unproven: Option<&Pin>,
    ) -> Result<(), DeviceError> {
        use RvError::{
            CryptokiNotInitialized, FunctionNotSupported, OperationNotInitialized, PinExpired, PinIncorrect,
            PinInvalid, PinLenRange, PinLocked, SessionHandleInvalid, UserAlreadyLoggedIn, UserAnotherAlreadyLoggedIn,
            UserPinNotInitialized, UserTypeInvalid,
        };
        let attempt = latch::begin(&self.latch_file, unproven, || self.tries(token))?;
        let outcome = match &self.pin {
            Some(pin) => session.login_with_raw(user, &RawAuthPin::new(Box::new(pin.expose().to_vec()))),
            None => session.login(user, None),
        };
        match outcome {
            Ok(()) | Err(Error::Pkcs11(UserAlreadyLoggedIn, _)) => {
                attempt.settled();
                Ok(())
            }
            Err(Error::Pkcs11(rv @ (PinIncorrect | PinInvalid | PinLenRange | PinExpired | PinLocked), _)) => {
                let tries = token.tries().map_or(Tries::Untold, |(_, tries)| tries);
                let detail = format!("the token {:?} answered {rv:?}", token.info.label());
                Err(attempt.refused(self.pin.as_ref(), &detail, tries))
            }
            // Said before any PIN is looked at. Every other code may mean a spent try, whatever its name: the mark stays.
            Err(
                error @ Error::Pkcs11(
                    CryptokiNotInitialized
                    | FunctionNotSupported
                    | OperationNotInitialized
                    | SessionHandleInvalid
                    | UserAnotherAlreadyLoggedIn
                    | UserPinNotInitialized
                    | UserTypeInvalid,
                    _,
                ),
            ) => {
                attempt.settled();
                Err(classified(error))
            }
            Err(error) => Err(classified(error)),
        }
    }

    /// Closes the latch where a module that took the PIN says of another call that it is wrong: a fresh process would send it
    /// again.
    pub(super) fn told_late(&self, error: DeviceError) -> DeviceError {
        match error {
            DeviceError::PinRefused(detail) if latch::look(&self.latch_file).is_ok() => {
                latch::close(&self.latch_file, self.pin.as_ref(), &detail)
            }
            other => other,
        }
    }

    /// Whether the PIN may be sent at all, as the token has it now: another process may have sent one since we found it.
    fn tries(&self, token: &Token) -> Result<Tries, DeviceError> {
        let label = token.info.label();
        let (info, tries) = token.tries()?;
        if info.user_pin_locked() {
            return Err(DeviceError::PinRefused(format!(
                "the token {label:?} has locked its user PIN; its security officer must set a new one"
            )));
        }
        if self.pin.is_some() && info.user_pin_final_try() && !self.allow_final_try {
            return Err(DeviceError::PinRefused(format!(
                "one more wrong PIN locks the token {label:?}; make sure that the PIN file is right, then set allow_final_pin_try"
            )));
        }
        Ok(tries)
    }
}

impl Token {
    fn tries(&self) -> Result<(TokenInfo, Tries), DeviceError> {
        let info = self.module.client.get_token_info(self.slot).map_err(classified)?;
        let tries = if info.user_pin_count_low() || info.user_pin_final_try() || info.user_pin_locked() {
            Tries::Missing
        } else if TELL_TRIES.contains(&info.manufacturer_id()) {
            Tries::Whole
        } else {
            Tries::Untold
        };
        Ok((info, tries))
    }
}

/// The manufacturers whose tokens were seen to show a missing try from the first wrong PIN to the next right one (a test of
/// ours each). Others are believed once they have shown one here.
const TELL_TRIES: &[&str] = &["SoftHSM project"];

/// How many sessions a token lets this process have, at most as many as were asked for and at least one.
pub(super) fn sessions(limit: Limit, wanted: usize) -> usize {
    match limit {
        Limit::Max(limit) => wanted.min(usize::try_from(limit).unwrap_or(usize::MAX)).max(1),
        Limit::Unavailable | Limit::Infinite => wanted.max(1),
    }
}

/// Every initialised token of a module.
pub(super) fn tokens(module: &Module) -> Result<Vec<(Slot, TokenInfo)>, DeviceError> {
    let mut tokens = Vec::new();
    for slot in module.client.get_slots_with_token().map_err(classified)? {
        // One slot with a bad card in it must not hide the others.
        match module.client.get_token_info(slot) {
            Ok(info) if info.token_initialized() => tokens.push((slot, info)),
            Ok(_) => {}
            Err(error) => tracing::debug!(slot = slot.id(), %error, "a token can't be read"),
        }
    }
    Ok(tokens)
}

/// Classifies what the cryptoki crate says.
pub(super) fn classified(error: Error) -> DeviceError {
    match error {
        Error::Pkcs11(rv, function) => fault::pkcs11(code(rv), &format!("C_{function:?}")),
        Error::NullFunctionPointer => DeviceError::Unsupported("the module lacks a function".to_owned()),
        other => DeviceError::Away(other.to_string()),
    }
}

/// The CK_RV of an error: the crate keeps its name only, so its own table is searched for it.
fn code(error: RvError) -> u64 {
    match error {
        RvError::VendorDefined(code) | RvError::UnknownErrorCode(code) => code,
        known => (1..=CKR_LAST).find(|code| Rv::from(*code) == Rv::Error(known)).unwrap_or_default(),
    }
}

/// CKR_FUNCTION_REJECTED, the highest code of PKCS#11 3.1.
const CKR_LAST: u64 = 0x200;

fn quoted(selector: &TokenSelector) -> String {
    match selector {
        TokenSelector::Label(label) => format!("token = {label:?}"),
        TokenSelector::Serial(serial) => format!("token = \"serial:{}\"", serial.escape_debug()),
        TokenSelector::Slot(id) => format!("token = \"slot:{id}\""),
    }
}

fn absent(selector: &TokenSelector, module: &Path, tokens: &[(Slot, TokenInfo)]) -> String {
    let labels: Vec<_> = tokens.iter().map(|(_, info)| format!("{:?}", info.label())).collect();
    let there = if labels.is_empty() { "it has none".to_owned() } else { format!("there are {}", labels.join(", ")) };
    format!(
        "no token of {} fits {}: {there}; connect it, mend the configuration, or make it with `signetctl device init`",
        module.display(),
        quoted(selector)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_never_exceed_what_the_token_has() {
        assert_eq!(sessions(Limit::Max(1), 4), 1);
        assert_eq!(sessions(Limit::Max(3), 4), 3);
        assert_eq!(sessions(Limit::Max(8), 4), 4);
        assert_eq!(sessions(Limit::Infinite, 4), 4);
        assert_eq!(sessions(Limit::Unavailable, 4), 4);
    }

    #[test]
    fn codes_are_those_of_the_standard() {
        assert_eq!(code(RvError::PinIncorrect), 0xa0);
        assert_eq!(code(RvError::KeyHandleInvalid), 0x60);
        assert_eq!(code(RvError::CryptokiAlreadyInitialized), 0x191);
        assert_eq!(code(RvError::FunctionRejected), CKR_LAST);
        assert_eq!(code(RvError::VendorDefined(0x8000_0001)), 0x8000_0001);
    }
}
