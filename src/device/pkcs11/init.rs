//! Making the token itself.

use cryptoki::error::Error;
use cryptoki::session::UserType;
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::AuthPin;

use super::token::{self, Module, classified};
use crate::device::{DeviceError, Pin, Pkcs11Config, TokenSelector};

/// Initialises a fresh token of the configured label, with the PIN of its pin_file. `so_pin` is asked for only when nothing
/// but the token itself can fail any more: from then on, the token may have it.
///
/// # Errors
/// [`DeviceError`]; `Misconfigured` where a token of this label exists or no slot is free.
pub fn init(pkcs11: &Pkcs11Config, so_pin: impl FnOnce() -> Result<Pin, DeviceError>) -> Result<(), DeviceError> {
    let misconfigured = |what: String| Err(DeviceError::Misconfigured(what));
    let TokenSelector::Label(label) = &pkcs11.token else {
        return misconfigured("only a token that is configured by its label can be initialised".to_owned());
    };
    if label.is_empty() || label.len() > 32 {
        return misconfigured(format!("the token label {label:?} is not 1 to 32 bytes long"));
    }
    let Some(pin_file) = &pkcs11.pin_file else {
        return misconfigured("a fresh token needs a PIN; name its pin_file".to_owned());
    };
    let pin = Pin::read(pin_file)?;
    let module = Module::load(&pkcs11.module)?;
    if token::tokens(&module)?.iter().any(|(_, info)| info.label() == label) {
        return misconfigured(format!("a token labelled {label:?} exists already; it was left as it is"));
    }
    let (slot, info) = free_slot(&module)?;
    // Some modules say that the longest PIN has no characters at all.
    let longest = Some(info.max_pin_length()).filter(|longest| *longest > 0).unwrap_or(usize::MAX);
    let length = pin.expose().len();
    if length < info.min_pin_length() || length > longest {
        return misconfigured(format!(
            "the PIN in {} has {length} bytes; the token takes {} to {}",
            pin_file.display(),
            info.min_pin_length(),
            if longest == usize::MAX { "any number".to_owned() } else { longest.to_string() }
        ));
    }
    let pin = text_pin(&pin, "PIN")?;
    let so_pin = text_pin(&so_pin()?, "security officer's PIN")?;
    module.client.init_token(slot, &so_pin, label).map_err(classified)?;
    set_pin(&module, slot, &so_pin, &pin).map_err(|error| {
        DeviceError::Misconfigured(format!(
            "the token {label:?} was made, but its user PIN could not be set: {}; set it with `pkcs11-tool --init-pin`",
            classified(error)
        ))
    })
}

fn free_slot(module: &Module) -> Result<(Slot, TokenInfo), DeviceError> {
    let slots = module.client.get_slots_with_token().map_err(classified)?;
    let free = slots.into_iter().find_map(|slot| {
        let info = module.client.get_token_info(slot).ok()?;
        (!info.token_initialized()).then_some((slot, info))
    });
    free.ok_or_else(|| {
        DeviceError::Misconfigured(format!(
            "no slot of {} is free: each holds an initialised token; use one of those, or set one up with its maker's tools",
            module.path.display()
        ))
    })
}

fn set_pin(module: &Module, slot: Slot, so_pin: &AuthPin, pin: &AuthPin) -> Result<(), Error> {
    let session = module.client.open_rw_session(slot)?;
    session.login(UserType::So, Some(so_pin))?;
    session.init_pin(pin)?;
    session.logout()
}

fn text_pin(pin: &Pin, what: &str) -> Result<AuthPin, DeviceError> {
    let text = std::str::from_utf8(pin.expose())
        .map_err(|_error| DeviceError::Misconfigured(format!("the {what} of a fresh token must be text in UTF-8")))?;
    Ok(AuthPin::from(text))
}
