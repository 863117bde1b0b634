//! Where secrets are found: relative to $CREDENTIALS_DIRECTORY, else to the configuration. Only their paths: whoever
//! logs in to a device reads them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::trust::{self, Untrusted};

/// The folders in which relative paths of secrets are looked up.
#[derive(Clone, Copy)]
pub(super) struct Folders<'a> {
    /// What systemd gives a service for its credentials (systemd.exec(5)).
    pub(super) credentials: Option<&'a OsStr>,
    /// The configuration's own.
    pub(super) config: &'a Path,
}

/// The path of a secret. One that does not exist yet is for whoever wants to read it to tell.
///
/// # Errors
/// [`Untrusted`] where somebody else could read or replace it.
pub(super) fn locate(folders: Folders<'_>, written: &Path) -> Result<PathBuf, Untrusted> {
    if let Some(credential) = folders.credentials.map(|folder| Path::new(folder).join(written))
        && written.is_relative()
        && credential.exists()
    {
        // systemd guards them by an ACL, which shows as a mode that lets the group read.
        return Ok(credential);
    }
    let path = folders.config.join(written);
    match trust::walk(&path) {
        Ok((real, metadata)) => trust::not_readable_by_others(&real, &metadata).map(|()| path),
        Err(Untrusted::Unreadable { .. }) => Ok(path),
        Err(untrusted) => Err(untrusted),
    }
}
