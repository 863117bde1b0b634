//! The audit log's file: whole lines, chained, appended to and never rewritten.

use std::cmp::Ordering;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::Flock;
use serde::Serialize;

use super::end::{End, Mended};
use super::journal::Journal;
use super::timestamp;
use crate::audit::{Head, LONGEST_LINE, Rotation};
use crate::file;

/// The open file, locked against a second daemon.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    rotation: Rotation,
    file: Flock<File>,
    /// Which file this is: its device and inode.
    inode: (u64, u64),
    head: Head,
    /// Where the head is noted: how far the log went, should it be gone at the next start.
    noted: File,
    /// Where the last whole line that was written ends.
    length: u64,
    /// Lines that were not written yet.
    pending: Vec<u8>,
    /// The number of the last line that was.
    written: u64,
    /// What is told of every line.
    pub(super) journal: Option<Journal>,
}

/// Whether there was anything to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// Lines.
    Something,
    /// Nothing waited.
    Nothing,
}

/// How far a log has come.
#[derive(Debug)]
pub(in crate::signer) struct Extent {
    /// Its files, the oldest first.
    pub(in crate::signer) files: Vec<PathBuf>,
    /// Where what was written ends in the last of them.
    pub(in crate::signer) length: u64,
    /// Its last record.
    pub(in crate::signer) end: Head,
}

/// Why an audit log can't be continued.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file system refused.
    #[error("audit log {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Another daemon writes it.
    #[error("audit log {}: another signetd writes it", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// Its last line is no audit record: somebody else wrote to it.
    #[error("audit log {}: its last line is no audit record ({reason})", path.display())]
    NotOurs {
        /// The file.
        path: PathBuf,
        /// What is wrong with the line.
        reason: String,
    },
}

impl OpenError {
    /// What to do about it.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Io { .. } => "make its directory one that this user may write to, or set audit.path",
            Self::Locked { .. } => "stop the other signetd, or give this one another state_dir or audit.path",
            Self::NotOurs { .. } => {
                "see what signetctl audit verify says, then move the file away: a new one goes on with the chain"
            }
        }
    }
}

/// What is written where the log ends before the record that was written last: what is between is elsewhere, or lost.
#[derive(Serialize)]
struct Gap {
    time: String,
    event: &'static str,
    /// The number of the last record that is here.
    found: u64,
}

impl Gap {
    fn after(found: u64) -> Self {
        Self { time: timestamp(SystemTime::now()), event: "gap", found }
    }
}

/// What is written behind a record that says OK, of an answer that whoever asked never got: the record came too late for it.
#[derive(Serialize)]
pub(super) struct Unanswered {
    event: &'static str,
    /// The number of that record.
    record: u64,
}

impl Unanswered {
    pub(super) const fn new(record: u64) -> Self {
        Self { event: "unanswered", record }
    }
}

impl LogFile {
    pub(super) fn open(path: &Path, rotation: Rotation) -> Result<Self, OpenError> {
        let file = lock(path)?;
        let end = End::of(path, &file)?;
        let found = match end.head {
            Some(head) => head,
            // A new file continues the one that was rotated before it.
            None => last_of_old(path)?,
        };
        let io = |source| OpenError::Io { path: path.to_owned(), source };
        let (noted, note) = open_note(path).map_err(io)?;
        let is_behind = |note: &Head| note.seq > found.seq || (note.seq == found.seq && note.hash != found.hash);
        let gap = note.as_ref().is_some_and(is_behind).then(|| Gap::after(found.seq));
        let head = note.filter(|_| gap.is_some()).unwrap_or(found);
        let inode = inode(&file.metadata().map_err(io)?);
        let (path, length, written) = (path.to_owned(), end.length, head.seq);
        let pending = Vec::new();
        let mut log = Self { path, rotation, file, inode, head, noted, length, pending, written, journal: None };
        if let Some(gap) = gap {
            tracing::error!(path = %log.path.display(), found = gap.found, written = log.head.seq, "the audit log does not end where it was ended: it was moved away, cut or removed; the chain goes on");
            log.add(&gap).map_err(io)?;
        }
        if let Some(mended) = Mended::of(&log.file, length).map_err(io)? {
            tracing::warn!(path = %log.path.display(), bytes = mended.bytes, "mended the audit log: its last line was torn by a crash");
            log.add(&mended).map_err(io)?;
        }
        log.write().map_err(io)?;
        Ok(log)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a record to what is to be written, and tells its number.
    pub(super) fn add(&mut self, record: &impl Serialize) -> io::Result<u64> {
        self.head.append(record, &mut self.pending)?;
        Ok(self.head.seq)
    }

    /// Writes what was added, in one write. What can't be written now is kept, and goes out first with the next call.
    pub(super) fn write(&mut self) -> io::Result<Written> {
        if self.pending.is_empty() {
            return Ok(Written::Nothing);
        }
        if self.length > 0 && self.length + self.pending.len() as u64 > self.rotation.max_size {
            self.rotate();
        }
        match self.length_now()?.cmp(&self.length) {
            Ordering::Equal => {}
            // Half a line of an earlier attempt stands there: what counts ends at `length`.
            Ordering::Greater => self.file.set_len(self.length)?,
            Ordering::Less => return Err(io::Error::other("it was cut off; move it away, and a new file goes on")),
        }
        self.file.write_all_at(&self.pending, self.length)?;
        if let Some(journal) = &mut self.journal {
            journal.tell(&self.pending, self.written + 1);
        }
        self.length += self.pending.len() as u64;
        self.pending.clear();
        self.written = self.head.seq;
        Ok(Written::Something)
    }

    /// The last record that was written, unless others are about to be.
    pub(super) fn written(&self) -> Option<Head> {
        self.pending.is_empty().then(|| self.head.clone())
    }

    /// Which files it is now, and how far it has come.
    pub(super) fn extent(&self) -> Extent {
        Extent { files: self.rotation.files(&self.path), length: self.length, end: self.head.clone() }
    }

    /// How many records there are since this one.
    pub(super) const fn since(&self, number: u64) -> u64 {
        self.head.seq.saturating_sub(number)
    }

    /// Whether the record of this number was written.
    pub(super) const fn has(&self, number: u64) -> bool {
        self.written >= number
    }

    /// Whether to write one record more may be to rotate.
    pub(super) fn may_rotate(&self) -> bool {
        self.length + self.pending.len() as u64 + LONGEST_LINE > self.rotation.max_size
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Notes where the log ends. Behind a sync: a power cut may lose the note, but leaves none of what the log has lost.
    pub(super) fn note(&self) -> io::Result<()> {
        if self.pending.is_empty() { self.noted.write_all_at(self.head.note().as_bytes(), 0) } else { Ok(()) }
    }

    /// Moves the file out of the way and begins a new one. Where that fails the log stays as it is, and grows.
    pub(super) fn rotate(&mut self) {
        if self.length == 0 {
            return;
        }
        let moved = self.cut().and_then(|()| {
            (1..=self.rotation.keep).rev().try_for_each(|number| {
                let from = match number {
                    1 => self.path.clone(),
                    _ => Rotation::old(&self.path, number - 1),
                };
                match std::fs::rename(from, Rotation::old(&self.path, number)) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    moved => moved,
                }
            })
        });
        match moved {
            Ok(()) => {
                tracing::info!(path = %self.path.display(), "rotated the audit log");
                // What fails here fails again with the next record, which is then not written.
                let _ = self.length_now();
            }
            Err(error) => {
                tracing::error!(%error, path = %self.path.display(), "can't rotate the audit log: it grows");
            }
        }
    }

    /// Cuts off what does not count: half a line of an attempt to write, or of a crash.
    fn cut(&self) -> io::Result<()> {
        if self.file.metadata()?.len() > self.length { self.file.set_len(self.length) } else { Ok(()) }
    }

    /// The length of the file. Where it was renamed or removed, begins a new one at the path; the chain goes on.
    fn length_now(&mut self) -> io::Result<u64> {
        match std::fs::symlink_metadata(&self.path) {
            Ok(there) if inode(&there) == self.inode => return Ok(there.len()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.file.sync_data()?;
        let file = lock(&self.path).map_err(io::Error::other)?;
        let metadata = file.metadata()?;
        if metadata.len() != 0 {
            return Err(io::Error::other("another file stands in the audit log's place, and it is not empty"));
        }
        // The names too must outlast a power cut.
        File::open(self.path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
        let is_removed = self.file.metadata()?.nlink() == 0;
        (self.file, self.inode, self.length) = (file, inode(&metadata), 0);
        if is_removed {
            let found = last_of_old(&self.path).map_or(0, |head| head.seq);
            tracing::error!(path = %self.path.display(), found, written = self.written, "the audit log was removed while it was written; the chain goes on");
            self.add(&Gap::after(found))?;
        }
        Ok(0)
    }
}

fn inode(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn last_of_old(path: &Path) -> Result<Head, OpenError> {
    let old = Rotation::old(path, 1);
    match File::open(&old) {
        Ok(file) => Ok(End::of(&old, &file)?.head.unwrap_or_else(Head::start)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Head::start()),
        Err(source) => Err(OpenError::Io { path: old, source }),
    }
}

/// The note beside the log, and what it says.
fn open_note(path: &Path) -> io::Result<(File, Option<Head>)> {
    let file = file::open_or_make(&Head::noted_beside(path))?;
    let head = Head::read_note(&file)?;
    Ok((file, head))
}

fn lock(path: &Path) -> Result<Flock<File>, OpenError> {
    file::lock(path).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => OpenError::Locked { path: path.to_owned() },
        _ => OpenError::Io { path: path.to_owned(), source: error },
    })
}
