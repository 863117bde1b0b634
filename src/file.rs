//! Files of state: written whole or not at all.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// Replaces a file as a whole, mode 0600: a reader sees the old contents or the new ones, and so does a reboot.
///
/// # Errors
/// Whatever the file system says; the old file stays as it was and no new one is left.
pub fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    replace_as(0o600, path, contents)
}

/// Replaces a file as [`replace`] does, with another mode, whatever the umask.
///
/// # Errors
/// As [`replace`].
pub fn replace_as(mode: u32, path: &Path, contents: &[u8]) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let new = directory.join(format!(".{}.{}", name.display(), std::process::id()));
    let write = || {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(contents)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(directory)?.sync_all()
    };
    write().inspect_err(|_error| {
        let _ = fs::remove_file(&new);
    })
}
