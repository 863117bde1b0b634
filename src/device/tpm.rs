//! A TPM 2.0.

use super::{CreatedKey, DeviceConfig, DeviceError, Opened, Provision, TpmConfig, TpmParent};

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

/// Takes a key that another tool made under this TPM's parent, as a TSS2 PRIVATE KEY file, after it has signed once.
///
/// # Errors
/// [`DeviceError`]; `Permanent` where it does not load here, `Unsupported` where it is of another kind.
pub fn adopt(config: &DeviceConfig, tpm: &TpmConfig, persistent: bool, pem: &str) -> Result<CreatedKey, DeviceError> {
    let _ = (config, tpm, persistent, pem);
    Err(DeviceError::Misconfigured("stub".to_owned()))
}

/// True where a resource manager stands between us and the TPM: there persistent handles cost the fewest TPM commands.
#[must_use]
pub fn behind_resource_manager(tcti: &str) -> bool {
    let device = tcti.strip_prefix("device:").unwrap_or(tcti);
    device == "device" || device.starts_with("/dev/tpmrm") || device.starts_with("tabrmd")
}

/// Makes the parent of all keys persistent, or finds it, and returns what pins it.
///
/// # Errors
/// [`DeviceError`], classified.
pub fn init(config: &DeviceConfig, tpm: &TpmConfig) -> Result<TpmParent, DeviceError> {
    let _ = (config, tpm);
    Err(DeviceError::Misconfigured("stub".to_owned()))
}
