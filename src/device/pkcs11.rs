//! A PKCS#11 token.

use super::{DeviceConfig, DeviceError, Opened, Pkcs11Config, Provision};

/// Opens the token: loads the module, logs in once, and makes one device for each session.
///
/// # Errors
/// [`DeviceError`], classified.
pub fn open(config: &DeviceConfig, pkcs11: &Pkcs11Config) -> Result<Opened, DeviceError> {
    let _ = (config, pkcs11);
    Err(DeviceError::Misconfigured("stub".to_owned()))
}

/// Opens the token for provisioning.
///
/// # Errors
/// [`DeviceError`], classified.
pub fn provision(config: &DeviceConfig, pkcs11: &Pkcs11Config) -> Result<Box<dyn Provision>, DeviceError> {
    let _ = (config, pkcs11);
    Err(DeviceError::Misconfigured("stub".to_owned()))
}

/// Initialises a fresh token of the configured label, with the PIN of its pin_file.
///
/// # Errors
/// [`DeviceError`]; `Misconfigured` where a token of this label exists or no slot is free.
pub fn init(config: &DeviceConfig, pkcs11: &Pkcs11Config, so_pin: &super::Pin) -> Result<(), DeviceError> {
    let _ = (config, pkcs11, so_pin);
    Err(DeviceError::Misconfigured("stub".to_owned()))
}
