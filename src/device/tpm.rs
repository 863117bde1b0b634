//! A TPM 2.0.

use super::{DeviceConfig, DeviceError, Opened, Provision, TpmConfig, TpmParent};

/// Opens the TPM: one context, one session, one device.
///
/// # Errors
/// [`DeviceError`], classified.
pub fn open(config: &DeviceConfig, tpm: &TpmConfig) -> Result<Opened, DeviceError> {
    let _ = (config, tpm);
    Err(DeviceError::Misconfigured("stub".to_owned()))
}

/// Opens the TPM for provisioning. With `persistent`, new keys are also made persistent and located by their handle.
///
/// # Errors
/// [`DeviceError`], classified.
pub fn provision(config: &DeviceConfig, tpm: &TpmConfig, persistent: bool) -> Result<Box<dyn Provision>, DeviceError> {
    let _ = (config, tpm, persistent);
    Err(DeviceError::Misconfigured("stub".to_owned()))
}

/// Makes the parent of all keys persistent, or finds it, and returns what pins it.
///
/// # Errors
/// [`DeviceError`], classified.
pub fn init(config: &DeviceConfig, tpm: &TpmConfig) -> Result<TpmParent, DeviceError> {
    let _ = (config, tpm);
    Err(DeviceError::Misconfigured("stub".to_owned()))
}
