//! The systemd journal, which may be told of every line that the audit log has.
//!
//! The log is the record: a line is told once it is written, and nobody waits for a journal that does not listen.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

/// The way to the journal, by its native protocol.
#[derive(Debug)]
pub(super) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    hears: bool,
}

impl Journal {
    /// The journal that listens, or will listen, at this path.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, path: path.to_owned(), hears: true })
    }

    /// Sends each line as an entry of its own.
    pub(super) fn tell(&mut self, lines: &[u8]) {
        // JSON has no line breaks, so each field of the entry is one line (systemd.io/JOURNAL_NATIVE_PROTOCOL).
        let entries = lines.split_inclusive(|byte| *byte == b'\n').map(|line| [FIELDS, line].concat());
        let told = entries.map(|entry| self.socket.send_to(&entry, &self.path)).fold(Ok(0), Result::and);
        match (&told, self.hears) {
            (Err(error), true) => {
                tracing::warn!(%error, path = %self.path.display(), "the journal does not take audit records: they are in the log alone");
            }
            (Ok(_), false) => tracing::info!("the journal takes audit records again"),
            _ => {}
        }
        self.hears = told.is_ok();
    }
}

const FIELDS: &[u8] = b"SYSLOG_IDENTIFIER=signetd-audit\nPRIORITY=5\nMESSAGE=";
