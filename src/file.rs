//! Files of state: where they stand, and that they are written whole or not at all.

use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::ops::Deref;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::key::KeyId;

/// The state folder, and where each thing in it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir(PathBuf);

impl StateDir {
    /// The state folder of a path.
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// The keyring.
    #[must_use]
    pub fn keyring(&self) -> PathBuf {
        self.join("keyring.json")
    }

    /// A key's certificate, PEM.
    #[must_use]
    pub fn certificate(&self, kid: &KeyId) -> PathBuf {
        self.join("certificates").join(format!("{kid}.pem"))
    }

    /// A TPM key's TSS2 PRIVATE KEY, PEM.
    #[must_use]
    pub fn tss2(&self, kid: &KeyId) -> PathBuf {
        self.join("keys").join(format!("{kid}.tss2.pem"))
    }

    /// What `signetctl device init` recorded of a TPM: the parent of its keys.
    #[must_use]
    pub fn parent(&self, device: &KeyId) -> PathBuf {
        self.join("devices").join(format!("{device}.json"))
    }

    /// Where a device's refused PIN is remembered.
    #[must_use]
    pub fn latch(&self, device: &KeyId) -> PathBuf {
        self.join("latches").join(format!("{device}.json"))
    }

    /// The audit log, where the configuration names no other place.
    #[must_use]
    pub fn audit_log(&self) -> PathBuf {
        self.join("audit.log")
    }

    /// What a signetctl holds locked while it changes the folder.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.join(".lock")
    }
}

impl AsRef<Path> for StateDir {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Deref for StateDir {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

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
    // Ours alone, by the process id: only one of the same id that was killed can have left it.
    let _ = fs::remove_file(&new);
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
