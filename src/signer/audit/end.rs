//! The end of a log's file: its last record, and what a crash has left behind it.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::SystemTime;

use aws_lc_rs::digest::{Context, SHA256};
use serde::Serialize;

use super::log::OpenError;
use super::timestamp;
use crate::audit::{Head, LONGEST_LINE};
use crate::key::hexadecimal;

/// The end of a log.
pub(super) struct End {
    /// None where there is no record.
    pub(super) head: Option<Head>,
    /// Up to the end of the last record.
    pub(super) length: u64,
}

impl End {
    /// Looks for the last record. Whatever else a crash has left behind it is torn; but what somebody else wrote is refused: a
    /// line of text, last or first of all.
    pub(super) fn of(path: &Path, file: &File) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { path: path.to_owned(), source };
        let length = file.metadata().map_err(io)?.len();
        let mut end = last_newline(file, length).map_err(io)?;
        while let Some(newline) = end {
            let before = last_newline(file, newline).map_err(io)?;
            let begin = before.map_or(0, |newline| newline + 1);
            let mut line = vec![0; usize::try_from((newline - begin).min(LONGEST_LINE)).unwrap_or(usize::MAX)];
            file.read_exact_at(&mut line, begin).map_err(io)?;
            let head = match newline - begin < LONGEST_LINE {
                true => Head::of_line(&line),
                false => Err("it is longer than any record".to_owned()),
            };
            match head {
                Ok(head) => return Ok(Self { head: Some(head), length: newline + 1 }),
                Err(reason) if is_text(&line) && (newline + 1 == length || begin == 0) => {
                    return Err(OpenError::NotOurs { path: path.to_owned(), reason });
                }
                Err(_) => end = before,
            }
        }
        Ok(Self { head: None, length: 0 })
    }
}

/// Where the last newline before `end` stands. A power cut may have left any number of NULs behind it.
fn last_newline(file: &File, mut end: u64) -> io::Result<Option<u64>> {
    let mut block = [0; BLOCK];
    while end > 0 {
        let begin = end.saturating_sub(BLOCK as u64);
        let block = block.get_mut(..usize::try_from(end - begin).unwrap_or(BLOCK)).unwrap_or_default();
        file.read_exact_at(block, begin)?;
        if let Some(newline) = block.iter().rposition(|byte| *byte == b'\n') {
            return Ok(Some(begin + newline as u64));
        }
        end = begin;
    }
    Ok(None)
}

fn is_text(line: &[u8]) -> bool {
    str::from_utf8(line).is_ok_and(|line| !line.contains(|c: char| c.is_control() && !c.is_whitespace()))
}

/// What is written in place of what a crash has left behind the last record: half a line, or NULs, that no reply has followed.
#[derive(Serialize)]
pub(super) struct Mended {
    time: String,
    event: &'static str,
    /// How long it was.
    pub(super) bytes: u64,
    sha256: String,
    /// How it began.
    torn: String,
}

impl Mended {
    /// What stands in the file behind its last record; none where nothing does.
    pub(super) fn of(mut file: &File, length: u64) -> io::Result<Option<Self>> {
        file.seek(SeekFrom::Start(length))?;
        let (mut bytes, mut hash, mut torn) = (0, Context::new(&SHA256), None);
        let mut block = [0; BLOCK];
        loop {
            let read = match file.read(&mut block) {
                Ok(0) => break,
                Ok(read) => block.get(..read).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            torn.get_or_insert_with(|| String::from_utf8_lossy(read.get(..TOLD_OF_TORN).unwrap_or(read)).into_owned());
            hash.update(read);
            bytes += read.len() as u64;
        }
        let sha256 = hexadecimal(hash.finish().as_ref());
        Ok(torn.map(|torn| Self { time: timestamp(SystemTime::now()), event: "mended", bytes, sha256, torn }))
    }
}

/// How much of what was torn is told: at most six times as long, once it is escaped.
const TOLD_OF_TORN: usize = 256;
const BLOCK: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::audit::{Fsync, Rotation, verify};
    use crate::key::sha256;
    use crate::signer::Audit;

    fn records(count: usize) -> Vec<u8> {
        let (mut head, mut lines) = (Head::start(), Vec::new());
        (0..count).for_each(|number| head.append(&serde_json::json!({ "what": number }), &mut lines).unwrap());
        lines
    }

    /// Opens a log that ends so, twice; returns its last record.
    fn opened(log: &[u8], rotation: Rotation) -> Result<serde_json::Value, OpenError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        fs::write(&path, log).unwrap();
        Audit::open(&path, Fsync::Never, rotation)?.flush(std::time::Duration::from_secs(60));
        let mended = fs::read(&path).unwrap();
        // The thread that writes holds the log until it has ended.
        while matches!(Audit::open(&path, Fsync::Never, rotation).map(drop), Err(OpenError::Locked { .. })) {
            std::thread::yield_now();
        }
        assert_eq!(fs::read(&path).unwrap(), mended, "once mended it is whole");
        let old = fs::read(Rotation::old(&path, 1)).unwrap_or_default();
        verify([old, mended.clone()].concat().as_slice(), Some(Head::start())).unwrap();
        Ok(serde_json::from_slice(mended.strip_suffix(b"\n").unwrap().rsplit(|byte| *byte == b'\n').next().unwrap())
            .unwrap())
    }

    const ONE_FILE: Rotation = Rotation { max_size: u64::MAX, keep: 1 };

    #[test]
    fn whatever_a_crash_has_left_behind_the_last_record_is_mended() {
        let garbage: Vec<u8> =
            (0..100_000_u64).map(|at| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]).collect();
        assert!(garbage.contains(&b'\n'));
        let too_long = [br#"{"prev":"","seq":9}"#.as_slice(), &[b' '; 70_000]].concat();
        for (torn, what) in [
            (vec![0; 12_000], "NULs"),
            (vec![0; 70_000], "NULs that are longer than any record"),
            (vec![0; 5 << 20], "5 MiB of NULs"),
            (vec![b'x'; 1 << 20], "a line without end"),
            (too_long, "a line without end that begins as a record"),
            (garbage.clone(), "garbage"),
            ([garbage.as_slice(), &[0xff, b'\n']].concat(), "garbage that ends a line"),
            (b"somebody's notes\n\0".to_vec(), "text and a NUL"),
            (br#"{"prev":"0123","se"#.to_vec(), "half a record"),
        ] {
            for whole in [records(0), records(1), records(3)] {
                let last = opened(&[whole.as_slice(), &torn].concat(), ONE_FILE);
                let Ok(last) = last else {
                    assert!(whole.is_empty() && torn.starts_with(b"somebody"), "{what}: {last:?}");
                    continue;
                };
                assert_eq!((&last["event"], &last["bytes"]), (&"mended".into(), &torn.len().into()), "{what}");
                assert_eq!(last["sha256"], sha256(&torn), "{what}");
                assert_eq!(last["torn"], *String::from_utf8_lossy(&torn[..torn.len().min(256)]), "{what}");
            }
        }
    }

    #[test]
    fn what_was_torn_stays_in_no_file_that_is_rotated_away() {
        let whole = records(3);
        let rotation = Rotation { max_size: whole.len() as u64, keep: 1 };
        let last = opened(&[whole.as_slice(), &[0; 100]].concat(), rotation).unwrap();
        assert_eq!((&last["event"], &last["seq"]), (&"mended".into(), &4.into()));
    }

    #[test]
    fn text_that_is_no_record_is_somebodys_and_is_left_alone() {
        for log in [b"notes\n".to_vec(), b"notes\nof two lines".to_vec(), [records(2), b"notes\n".to_vec()].concat()] {
            assert!(matches!(opened(&log, ONE_FILE), Err(OpenError::NotOurs { .. })), "{log:?}");
        }
    }
}
