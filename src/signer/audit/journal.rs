//! The systemd journal, which may be told of every line that the audit log has.
//!
//! The log is the record: a line is told once it is written, and nobody waits for a journal that does not listen.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The way to the journal, by its native protocol.
#[derive(Debug)]
pub(super) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    missed: Option<Missed>,
    told: Option<Instant>,
}

/// Records that the journal did not take, and that nobody was told of yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Missed {
    count: u64,
    first: u64,
    last: u64,
}

impl Journal {
    /// The journal that listens, or will listen, at this path.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, path: path.to_owned(), missed: None, told: None })
    }

    /// Sends each line as an entry of its own; the first is the record of this number.
    pub(super) fn tell(&mut self, lines: &[u8], first: u64) {
        // JSON has no line breaks, so each field of the entry is one line (systemd.io/JOURNAL_NATIVE_PROTOCOL).
        for (line, number) in lines.split_inclusive(|byte| *byte == b'\n').zip(first..) {
            if self.socket.send_to(&[FIELDS, line].concat(), &self.path).is_err() {
                let missed = self.missed.get_or_insert(Missed { count: 0, first: number, last: number });
                (missed.count, missed.last) = (missed.count + 1, number);
            }
        }
        if let Some(Missed { count, first, last }) = self.due(Instant::now) {
            tracing::warn!(count, first, last, path = %self.path.display(), "the journal does not take audit records: these are in the log alone");
        }
    }

    /// What was missed, where that was not told just now.
    fn due(&mut self, now: impl Fn() -> Instant) -> Option<Missed> {
        self.missed?;
        let now = now();
        if self.told.is_some_and(|told| now.saturating_duration_since(told) < TELL_AGAIN) {
            return None;
        }
        self.told = Some(now);
        self.missed.take()
    }
}

const FIELDS: &[u8] = b"SYSLOG_IDENTIFIER=signetd-audit\nPRIORITY=5\nMESSAGE=";
const TELL_AGAIN: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_journal_misses_is_told_once_in_ten_seconds_with_its_numbers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let mut journal = Journal::at(&path).unwrap();
        journal.tell(b"{}\n{}\n", 7);
        assert_eq!(journal.missed, None, "told at once");
        let told = journal.told.unwrap();
        journal.tell(b"{}\n", 9);
        let hears = UnixDatagram::bind(&path).unwrap();
        journal.tell(b"{}\n", 10);
        drop(hears);
        journal.tell(b"{}\n", 11);
        assert_eq!(journal.due(|| told + Duration::from_secs(9)), None);
        let missed = Missed { count: 2, first: 9, last: 11 };
        assert_eq!(journal.due(|| told + Duration::from_secs(10)), Some(missed));
        assert_eq!(journal.due(|| told + Duration::from_secs(30)), None);
    }
}
