//! Making the token itself.

use cryptoki::session::UserType;
use cryptoki::types::AuthPin;

use super::token::{self, Module, classified};
use crate::device::{DeviceError, Pin, Pkcs11Config, TokenSelector};

/// Initialises a fresh token of the configured label, with the PIN of its pin_file.
///
/// # Errors
/// [`DeviceError`]; `Misconfigured` where a token of this label exists or no slot is free.
pub fn init(pkcs11: &Pkcs11Config, so_pin: &Pin) -> Result<(), DeviceError> {
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
    let slots = module.client.get_slots_with_token().map_err(classified)?;
    let free = slots.into_iter().find_map(|slot| {
        let info = module.client.get_token_info(slot).ok()?;
        (!info.token_initialized()).then_some((slot, info))
    });
    let Some((slot, info)) = free else {
        return misconfigured(format!(
            "no slot of {} is free: each holds an initialised token; use one of those, or set one up with its maker's tools",
            module.path.display()
        ));
    };
    let (shortest, longest) = (info.min_pin_length(), info.max_pin_length());
    let length = pin.expose().len();
    // Some modules say that the longest PIN has no characters at all.
    if length < shortest || (longest > 0 && length > longest) {
        return misconfigured(format!("the PIN in {} has not {shortest} to {longest} bytes", pin_file.display()));
    }
    let (pin, so_pin) = (text_pin(&pin, "PIN")?, text_pin(so_pin, "security officer's PIN")?);
    module.client.init_token(slot, &so_pin, label).map_err(classified)?;
    let session = module.client.open_rw_session(slot).map_err(classified)?;
    session.login(UserType::So, Some(&so_pin)).map_err(classified)?;
    session.init_pin(&pin).map_err(classified)?;
    session.logout().map_err(classified)
}

fn text_pin(pin: &Pin, what: &str) -> Result<AuthPin, DeviceError> {
    let text = std::str::from_utf8(pin.expose())
        .map_err(|_error| DeviceError::Misconfigured(format!("the {what} of a fresh token must be text in UTF-8")))?;
    Ok(AuthPin::from(text))
}
