//! Whether anybody else could change a file (T13): its owner and mode, and those of every directory and link on the way.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User};

use crate::file;

/// Why a file is not to be relied on.
#[derive(Debug, thiserror::Error)]
pub enum Untrusted {
    /// It can't be looked at.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// What is not there, or closed to us.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// It belongs to somebody else.
    #[error("{} belongs to uid {owner}, who could change it", path.display())]
    Owner {
        /// What it is.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Somebody else can write it.
    #[error("{} can be written by {by} (mode {mode:04o})", path.display())]
    Writable {
        /// What it is.
        path: PathBuf,
        /// Who can.
        by: &'static str,
        /// Its mode.
        mode: u32,
    },
    /// Somebody else can read a secret.
    #[error("{} can be read by {by} (mode {mode:04o})", path.display())]
    Readable {
        /// What it is.
        path: PathBuf,
        /// Who can.
        by: &'static str,
        /// Its mode.
        mode: u32,
    },
}

impl Untrusted {
    /// What to do about it.
    #[must_use]
    pub fn remedy(&self) -> String {
        match self {
            Self::Unreadable { path, source } if source.kind() == io::ErrorKind::NotFound => {
                format!("correct the path, or install or make {}", path.display())
            }
            Self::Unreadable { path, source } if source.kind() == io::ErrorKind::PermissionDenied => {
                format!("let uid {} reach {}", Uid::effective(), path.display())
            }
            Self::Unreadable { .. } => "correct the path".to_owned(),
            Self::Owner { path, .. } => format!("chown root {}", path.display()),
            Self::Writable { path, .. } => format!("chmod go-w {}", path.display()),
            Self::Readable { path, .. } => format!("chmod 0600 {}", path.display()),
        }
    }
}

/// Walks to a file as the kernel does and returns its path without links. Everything on the way must belong to root or
/// to this process' user, and nobody else may be able to put another thing in its place.
///
/// # Errors
/// [`Untrusted`].
pub fn walk(path: &Path) -> Result<(PathBuf, Metadata), Untrusted> {
    let (at, metadata) = walk_to(path)?;
    judge(&at, &metadata)?;
    Ok((at, metadata))
}

/// Walks as [`walk`] does, but judges only what is on the way, not what stands at its end.
///
/// # Errors
/// [`Untrusted`].
pub fn walk_to(path: &Path) -> Result<(PathBuf, Metadata), Untrusted> {
    follow(path, judge)
}

/// Everything that decides where a path leads: each folder and link on the way, and the end; as far as there is one.
#[must_use]
pub fn places(path: &Path) -> Vec<PathBuf> {
    let mut places = Vec::new();
    let end = follow(path, |place, _| {
        places.push(place.to_owned());
        Ok(())
    });
    places.extend(end.map(|(real, _)| real));
    places
}

/// Goes by every folder and link to what a path leads to, which is returned.
fn follow(
    path: &Path,
    mut pass: impl FnMut(&Path, &Metadata) -> Result<(), Untrusted>,
) -> Result<(PathBuf, Metadata), Untrusted> {
    let mut rest: VecDeque<OsString> = VecDeque::new();
    let mut at = PathBuf::from("/");
    let mut metadata = look(&at)?;
    pass(&at, &metadata)?;
    let mut links = 0;
    prepend(
        &mut rest,
        &std::path::absolute(path).map_err(|source| Untrusted::Unreadable { path: path.into(), source })?,
    );
    while let Some(name) = rest.pop_front() {
        if name == ".." {
            at.pop();
            metadata = look(&at)?;
            continue;
        }
        at.push(name);
        metadata = look(&at)?;
        if metadata.is_symlink() || !rest.is_empty() {
            pass(&at, &metadata)?;
        }
        if metadata.is_symlink() {
            links += 1;
            let unreadable = |source| Untrusted::Unreadable { path: at.clone(), source };
            if links > MOST_LINKS {
                return Err(unreadable(io::Error::from_raw_os_error(libc::ELOOP)));
            }
            let target = fs::read_link(&at).map_err(unreadable)?;
            at.pop();
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            prepend(&mut rest, &target);
        }
    }
    Ok((at, metadata))
}

/// Opens a file that only its owner may read. What is judged is what is open, so that nothing can change between.
///
/// # Errors
/// [`Untrusted`].
pub fn open_secret(path: &Path) -> Result<File, Untrusted> {
    let (real, _) = walk_to(path)?;
    let unreadable = |source| Untrusted::Unreadable { path: path.to_owned(), source };
    let file = file::open(&real).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    judge(&real, &metadata)?;
    // systemd guards a service's credentials by an ACL, which shows as a mode that lets root's group read.
    let credential = metadata.uid() == 0 && !Uid::effective().is_root() && metadata.mode() & 0o077 == 0o040;
    if !credential {
        not_readable_by_others(&real, &metadata)?;
    }
    Ok(file)
}

/// As many as the kernel follows (path_resolution(7)).
const MOST_LINKS: usize = 40;

fn prepend(rest: &mut VecDeque<OsString>, path: &Path) {
    for component in path.components().rev() {
        match component {
            Component::Normal(_) | Component::ParentDir => rest.push_front(component.as_os_str().to_owned()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
}

fn look(path: &Path) -> Result<Metadata, Untrusted> {
    fs::symlink_metadata(path).map_err(|source| Untrusted::Unreadable { path: path.to_owned(), source })
}

fn judge(path: &Path, metadata: &Metadata) -> Result<(), Untrusted> {
    if ![0, Uid::effective().as_raw()].contains(&metadata.uid()) {
        return Err(Untrusted::Owner { path: path.to_owned(), owner: metadata.uid() });
    }
    not_writable_by_others(path, metadata)
}

/// Whether only its owner can write a file, or replace what stands in a directory.
///
/// # Errors
/// [`Untrusted::Writable`].
pub fn not_writable_by_others(path: &Path, metadata: &Metadata) -> Result<(), Untrusted> {
    let mode = metadata.mode() & 0o7777;
    // A link has no mode of its own; in a sticky directory only the owner of a thing can replace it.
    if metadata.is_symlink() || (metadata.is_dir() && mode & 0o1000 != 0) {
        return Ok(());
    }
    let writable = |by| Err(Untrusted::Writable { path: path.to_owned(), by, mode });
    if mode & 0o002 != 0 {
        return writable("everybody");
    }
    if mode & 0o020 != 0 && !is_private_group(metadata.uid(), metadata.gid()) {
        return writable("its group");
    }
    Ok(())
}

/// Whether only its owner can read a secret.
///
/// # Errors
/// [`Untrusted::Readable`].
pub fn not_readable_by_others(path: &Path, metadata: &Metadata) -> Result<(), Untrusted> {
    let mode = metadata.mode() & 0o7777;
    let readable = |by| Err(Untrusted::Readable { path: path.to_owned(), by, mode });
    match mode {
        mode if mode & 0o007 != 0 => readable("everybody"),
        mode if mode & 0o070 != 0 => readable("its group"),
        _ => Ok(()),
    }
}

/// Whether a group is the one that some systems give each user for himself alone (and a umask of 0002 with it).
fn is_private_group(uid: u32, gid: u32) -> bool {
    let (Ok(Some(user)), Ok(Some(group))) = (User::from_uid(Uid::from_raw(uid)), Group::from_gid(Gid::from_raw(gid)))
    else {
        return false;
    };
    uid != 0 && user.gid == group.gid && user.name == group.name && group.mem.iter().all(|member| *member == user.name)
}
