//! A refused PIN, remembered: it is tried once, ever.

use std::path::Path;

use super::{DeviceError, Pin};

/// Says no where a PIN was refused before, whatever it is now: only [`clear`] opens the way again.
///
/// # Errors
/// [`DeviceError::PinRefused`] where the latch is closed; `Misconfigured` where its file can't be read.
pub fn check(latch_file: &Path) -> Result<(), DeviceError> {
    let _ = latch_file;
    Err(DeviceError::Misconfigured("stub".to_owned()))
}

/// Closes the latch after a device refused this PIN; returns the error to answer with.
#[must_use]
pub fn close(latch_file: &Path, pin: Option<&Pin>, detail: &str) -> DeviceError {
    let _ = (latch_file, pin, detail);
    DeviceError::Misconfigured("stub".to_owned())
}

/// Opens the latch, where the PIN is another one than was refused, or `force` is given. True where it was closed.
///
/// # Errors
/// [`DeviceError::PinRefused`] where the PIN is the refused one; `Misconfigured` where the file can't be read or removed.
pub fn clear(latch_file: &Path, pin: Option<&Pin>, force: bool) -> Result<bool, DeviceError> {
    let _ = (latch_file, pin, force);
    Err(DeviceError::Misconfigured("stub".to_owned()))
}
