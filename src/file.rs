//! Files of state: where they stand, that they are ours alone, and written whole or not at all. How a file is opened where
//! something else may stand.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::ops::Deref;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use nix::fcntl::{Flock, FlockArg};

use crate::key::{DeviceName, KeyId};

/// What changes when a file is replaced or written, whoever does it: unlike its time of modification, nobody sets the time of
/// its last change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    changed: (i64, i64),
}

impl From<&Metadata> for Stamp {
    fn from(of: &Metadata) -> Self {
        Self { device: of.dev(), inode: of.ino(), length: of.size(), changed: (of.ctime(), of.ctime_nsec()) }
    }
}

impl Stamp {
    /// Whether a file was changed so long ago that one more change gives it another stamp: file systems tell times in ticks.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let changed = u64::try_from(self.changed.0).ok().map(|seconds| UNIX_EPOCH + Duration::from_secs(seconds));
        changed.is_some_and(|changed| changed.elapsed().is_ok_and(|age| age > Duration::from_secs(2)))
    }
}

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
    pub fn parent(&self, device: &DeviceName) -> PathBuf {
        self.join("devices").join(format!("{device}.json"))
    }

    /// Where a device's refused PIN is remembered.
    #[must_use]
    pub fn latch(&self, device: &DeviceName) -> PathBuf {
        self.join("latches").join(format!("{device}.json"))
    }

    /// Where the records of subject tokens stand.
    #[must_use]
    pub fn subjects(&self) -> PathBuf {
        self.join("subjects")
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

/// Writes a new file, mode 0600, down to the disk; false where something stands there already, which stays as it is.
///
/// # Errors
/// Whatever the file system says; no half of a file is left.
pub fn create_new(path: &Path, contents: &[u8]) -> io::Result<bool> {
    let mut file = match File::options().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(error),
    };
    let written = file.write_all(contents).and_then(|()| file.sync_all());
    written.map(|()| true).inspect_err(|_error| {
        let _ = fs::remove_file(path);
    })
}

/// Makes a folder for us alone, with those above it, where there is none.
///
/// # Errors
/// Whatever the file system says.
pub fn private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Opens a regular file to read. Nothing else that stands there is followed, waited for, or made our terminal.
///
/// # Errors
/// Whatever the file system says; `InvalidInput` for a symbolic link, and for whatever else is no regular file.
pub fn open(path: &Path) -> io::Result<File> {
    open_regular(File::options().read(true), path)
}

/// Opens a regular file to read and write as [`open`] does, and makes it, mode 0600, where there is none.
///
/// # Errors
/// As [`open`].
pub fn open_or_make(path: &Path) -> io::Result<File> {
    open_regular(File::options().read(true).write(true).create(true).truncate(false).mode(0o600), path)
}

fn open_regular(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let refused = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what);
    let opened = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let file = opened.map_err(|error| match error.raw_os_error() {
        Some(libc::ELOOP) => refused("it is a symbolic link"),
        _ => error,
    })?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(refused("it is no regular file")) }
}

/// Opens a file as [`open_or_make`] does, and holds it against every other process that locks it, until it is dropped.
///
/// # Errors
/// As [`open`]; `WouldBlock` where another process holds it.
pub fn lock(path: &Path) -> io::Result<Flock<File>> {
    Flock::lock(open_or_make(path)?, FlockArg::LockExclusiveNonblock).map_err(|(_file, errno)| errno.into())
}

/// Locks as [`lock`] does, and waits for as long as another process holds the file.
///
/// # Errors
/// As [`lock`].
pub fn wait_for_lock(path: &Path) -> io::Result<Flock<File>> {
    Flock::lock(open_or_make(path)?, FlockArg::LockExclusive).map_err(|(_file, errno)| errno.into())
}
