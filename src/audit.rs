//! The audit log's format: JSON lines, each with the hash of the line before it, and what verifies such a chain.
//!
//! `signer` writes it, `signetctl audit` reads it. A line that was changed, removed or moved breaks the chain;
//! lines cut off the end leave no trace in the file, but the daemon notes the last hash beside it (`audit.log.head`).

mod checkpoints;

use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::key::sha256;
pub use checkpoints::{CHECKPOINT, Checkpoint, CheckpointEvent, Checkpoints, WINDOW};

/// When the audit log is synced to disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fsync {
    /// Before every reply.
    Always,
    /// Once a second: a power cut may lose the last second's records, a crash of the daemon none.
    #[default]
    Interval,
    /// Left to the kernel.
    Never,
}

/// When the log begins a new file, and how many old ones stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// No file grows beyond it.
    pub max_size: u64,
    /// How many old files stay: `NAME.1`, the newest, to `NAME.KEEP`. At least 1.
    pub keep: u32,
}

impl Rotation {
    /// The path of an old file, counted from 1, the newest.
    #[must_use]
    pub fn old(path: &Path, number: u32) -> PathBuf {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        name.into()
    }

    /// The log at this path and the files that were rotated before it, the oldest first.
    #[must_use]
    pub fn files(self, path: &Path) -> Vec<PathBuf> {
        let old = (1..=self.keep).rev().map(|number| Self::old(path, number));
        let mut files: Vec<_> = old.filter(|file| file.exists()).collect();
        if files.is_empty() || path.exists() {
            files.push(path.to_owned());
        }
        files
    }
}

/// What stands in front of every line's own fields: its place in the chain.
#[derive(Deserialize)]
struct Link {
    /// SHA-256 of the line before, without its newline, in hexadecimal; 64 zeros before the first line of all.
    prev: String,
    /// Counted from 1.
    seq: u64,
}

/// The end of a chain: what the next line is linked to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The hash of the last line.
    pub hash: String,
    /// Its number; 0 where there is none.
    pub seq: u64,
}

#[derive(Serialize)]
struct Line<'a, T> {
    prev: &'a str,
    seq: u64,
    #[serde(flatten)]
    record: &'a T,
}

impl Head {
    /// The head of an empty log.
    #[must_use]
    pub fn start() -> Self {
        Self { hash: "0".repeat(64), seq: 0 }
    }

    /// The head as it is noted beside the log, to be written over the note before: always of the same length.
    #[must_use]
    pub fn note(&self) -> String {
        format!("{:020} {}\n", self.seq, self.hash)
    }

    /// Where the head of a log is noted.
    #[must_use]
    pub fn noted_beside(log: &Path) -> PathBuf {
        let mut name = log.as_os_str().to_owned();
        name.push(".head");
        name.into()
    }

    /// The head that a note tells; none where it is no note.
    ///
    /// # Errors
    /// Where it can't be read.
    pub fn read_note(file: impl Read) -> io::Result<Option<Self>> {
        let mut note = String::new();
        file.take(LONGEST_NOTE).read_to_string(&mut note)?;
        Ok(Self::of_note(&note))
    }

    fn of_note(note: &str) -> Option<Self> {
        let (seq, hash) = note.strip_suffix('\n')?.split_once(' ')?;
        Some(Self { hash: (hash.len() == 64).then(|| hash.to_owned())?, seq: seq.parse().ok()? })
    }

    /// The head that a line makes.
    ///
    /// # Errors
    /// Says why it is no line of an audit log.
    pub fn of_line(line: &[u8]) -> Result<Self, String> {
        let link: Link = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        Ok(Self { hash: sha256(line), seq: link.seq })
    }

    /// Appends a record to `lines`, and moves on to it.
    ///
    /// # Errors
    /// Where the record can't be written as JSON; nothing is appended then.
    pub fn append<T: Serialize>(&mut self, record: &T, lines: &mut Vec<u8>) -> io::Result<()> {
        let (before, seq) = (lines.len(), self.seq + 1);
        let line = Line { prev: &self.hash, seq, record };
        serde_json::to_writer(&mut *lines, &line).inspect_err(|_error| lines.truncate(before))?;
        self.hash = sha256(lines.get(before..).unwrap_or_default());
        self.seq = seq;
        lines.push(b'\n');
        Ok(())
    }
}

/// A log that verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// How many lines it has.
    pub lines: u64,
    /// The head before its first line: not [`Head::start`] where it continues a log that was rotated away.
    pub first: Head,
    /// The head after its last line.
    pub last: Head,
}

/// Why a log does not verify.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// It can't be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A line is not what was written, or not where it was written.
    #[error("line {line}: {reason}")]
    Line {
        /// Its number in the file, from 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
}

/// Verifies a log from its first line to its last. `before` is the head that it must continue; `None`: that of its first line.
///
/// # Errors
/// [`Broken`] at the first line that is not right.
pub fn verify(log: impl BufRead, before: Option<Head>) -> Result<Verified, Broken> {
    verify_each(log, before, |_before, _after, _line| ())
}

/// Verifies a log as [`verify`] does, and hands on each line that follows, with the heads before and after it.
///
/// # Errors
/// As [`verify`].
pub fn verify_each(
    mut log: impl BufRead,
    before: Option<Head>,
    mut each: impl FnMut(&Head, &Head, &[u8]),
) -> Result<Verified, Broken> {
    let mut expected = before.clone();
    let mut first = before;
    let mut lines = 0;
    let mut line = Vec::new();
    while (&mut log).take(LONGEST_LINE).read_until(b'\n', &mut line)? > 0 {
        lines += 1;
        let broken = |reason: &str| Broken::Line { line: lines, reason: reason.to_owned() };
        if line.len() as u64 == LONGEST_LINE && !line.ends_with(b"\n") {
            return Err(broken("it is longer than any record; what a crash has left is mended at the next start"));
        }
        let Some(text) = line.strip_suffix(b"\n") else {
            return Err(broken("it is torn: the daemon was ended in the middle of it, and mends it when it starts"));
        };
        let link: Link = serde_json::from_slice(text).map_err(|error| broken(&error.to_string()))?;
        let head = expected.take().unwrap_or_else(|| {
            // A first line that says it is the very first must be: nothing stands before it.
            if link.seq <= 1 {
                Head::start()
            } else {
                Head { hash: link.prev.clone(), seq: link.seq.saturating_sub(1) }
            }
        });
        if link.prev != head.hash {
            return Err(broken(
                "it does not follow the line before: one of the two was changed, or lines were removed",
            ));
        }
        if Some(link.seq) != head.seq.checked_add(1) {
            return Err(broken(&format!("number {} stands after number {}", link.seq, head.seq)));
        }
        let after = Head { hash: sha256(text), seq: link.seq };
        each(&head, &after, text);
        first.get_or_insert(head);
        expected = Some(after);
        line.clear();
    }
    let last = expected.unwrap_or_else(Head::start);
    Ok(Verified { lines, first: first.unwrap_or_else(Head::start), last })
}

/// Longer than any record: texts in it are cut, and a torn line is shorter than a whole one.
pub const LONGEST_LINE: u64 = 64 << 10;
/// A note is shorter.
const LONGEST_NOTE: u64 = 100;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Serialize)]
    struct Entry {
        what: &'static str,
    }

    fn log(entries: &[&'static str]) -> Vec<Vec<u8>> {
        let mut head = Head::start();
        let mut lines = Vec::new();
        for what in entries {
            head.append(&Entry { what }, &mut lines).unwrap();
        }
        lines.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn a_log_verifies_and_tells_its_length() {
        let verified = verify(log(&["a", "b", "c"]).concat().as_slice(), None).unwrap();
        assert_eq!((verified.lines, verified.last.seq), (3, 3));
        assert_eq!(verified.first, Head::start());
        assert_eq!(verify([].as_slice(), None).unwrap().lines, 0);
    }

    #[test]
    fn a_changed_removed_moved_or_added_line_is_found() {
        let lines = log(&["a", "b", "c", "d"]);
        let changed: Vec<_> = lines
            .iter()
            .map(|line| String::from_utf8(line.clone()).unwrap().replace(r#""b""#, r#""x""#).into_bytes())
            .collect();
        let at = |lines: &[Vec<u8>]| match verify(lines.concat().as_slice(), None).unwrap_err() {
            Broken::Line { line, .. } => line,
            Broken::Io(error) => panic!("{error}"),
        };
        assert_eq!(at(&changed), 3, "the line after the changed one no longer follows");
        assert_eq!(at(&[lines[0].clone(), lines[2].clone(), lines[3].clone()]), 2, "removed");
        assert_eq!(at(&[lines[0].clone(), lines[2].clone(), lines[1].clone()]), 2, "moved");
        assert_eq!(at(&[lines[0].clone(), lines[0].clone()]), 2, "twice");
        assert_eq!(at(&[lines[0].clone(), b"not json\n".to_vec()]), 2, "added");
        assert_eq!(at(&[lines[0].clone(), lines[1][..9].to_vec()]), 2, "torn");
    }

    #[test]
    fn a_rotated_log_continues_the_chain() {
        let lines = log(&["a", "b", "c", "d"]);
        let old = verify(lines[..2].concat().as_slice(), None).unwrap();
        let new = lines[2..].concat();
        assert_eq!(verify(new.as_slice(), Some(old.last.clone())).unwrap().last.seq, 4);
        assert_eq!(verify(new.as_slice(), None).unwrap().first, old.last);
        assert!(verify(lines[3].as_slice(), Some(old.last)).is_err());
    }

    proptest! {
        /// The last line alone has nobody behind it who knows its hash: that is what the head beside the log is for.
        #[test]
        fn whatever_becomes_of_any_line_but_the_last_is_found(
            texts in proptest::collection::vec(".{0,9}", 2..8),
            place in any::<proptest::sample::Index>(),
            other in any::<proptest::sample::Index>(),
            flip in 1..=u8::MAX,
        ) {
            let (mut head, mut log) = (Head::start(), Vec::new());
            for text in &texts {
                head.append(&serde_json::json!({ "what": text }), &mut log).unwrap();
            }
            prop_assert_eq!(verify(log.as_slice(), None).unwrap().last, head);
            let lines: Vec<_> = log.split_inclusive(|byte| *byte == b'\n').collect();
            let line = place.index(lines.len() - 1);
            let begin: usize = lines[..line].iter().map(|line| line.len()).sum();
            let mut changed = log.clone();
            changed[begin + other.index(lines[line].len())] ^= flip;
            prop_assert!(verify(changed.as_slice(), None).is_err(), "changed");
            let mut removed = lines.clone();
            removed.remove(line);
            let found = verify(removed.concat().as_slice(), None);
            // A log may begin anywhere, so what is cut off there shows only to who knows where it must begin.
            prop_assert!(found.is_err() || line == 0 && found.unwrap().first != Head::start(), "removed");
            let mut swapped = lines.clone();
            swapped.swap(line, line + 1 + other.index(lines.len() - line - 1));
            prop_assert!(verify(swapped.concat().as_slice(), None).is_err(), "swapped");
        }
    }
}
