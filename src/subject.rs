//! Subject tokens: what a caller of the token exchange proves by who he is. What is recorded of them, for both programs.
//!
//! A subject token is 256 random bits. Only its hash is kept, as the name of a file that says whose it is and until when: so
//! nothing in the state folder is a token, one is found without a list, and revoked by removing its file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::file::{self, StateDir};

/// Whose a subject token is, and until when.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Subject {
    /// The user.
    pub uid: u32,
    /// When it is good no more, in seconds since 1970.
    pub expires: u64,
}

impl Subject {
    /// Whether it is good no more.
    #[must_use]
    pub fn has_expired(&self, now: SystemTime) -> bool {
        UNIX_EPOCH + Duration::from_secs(self.expires) <= now
    }
}

/// The text of a subject token.
#[must_use]
pub fn text(random: &[u8; 32]) -> String {
    URL_SAFE_NO_PAD.encode(random)
}

/// Records a subject token, or another expiry for one.
///
/// # Errors
/// Whatever the file system says, of which file.
pub fn record(state: &StateDir, token: &str, subject: &Subject) -> io::Result<()> {
    let path = path(state, token);
    let written = || {
        file::private_folder(&state.subjects())?;
        file::replace(&path, &serde_json::to_vec(subject).map_err(io::Error::other)?)
    };
    written().map_err(|error| of(&path, &error))
}

/// Whose a subject token is; `None` where it is none that was recorded, or was revoked.
///
/// # Errors
/// Whatever the file system says, of which file; and of a record that is none.
pub fn find(state: &StateDir, token: &str) -> io::Result<Option<Subject>> {
    read(&path(state, token))
}

/// Removes every subject token that this is said of.
///
/// # Errors
/// Whatever the file system says, of which file.
pub fn remove(state: &StateDir, is_to_go: impl Fn(&Subject) -> bool) -> io::Result<usize> {
    let subjects = state.subjects();
    let folder = match fs::read_dir(&subjects) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        folder => folder.map_err(|error| of(&subjects, &error))?,
    };
    let mut removed = 0;
    for entry in folder {
        let path = entry?.path();
        // What can't be read is nobody's.
        if read(&path).ok().flatten().as_ref().is_some_and(&is_to_go) {
            fs::remove_file(&path).map_err(|error| of(&path, &error))?;
            removed += 1;
        }
    }
    Ok(removed)
}

fn read(path: &Path) -> io::Result<Option<Subject>> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| of(path, &error.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(of(path, &error)),
    }
}

/// An error that names the file.
fn of(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn path(state: &StateDir, token: &str) -> PathBuf {
    state.subjects().join(URL_SAFE_NO_PAD.encode(digest(&SHA256, token.as_bytes())))
}
