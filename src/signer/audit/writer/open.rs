//! The log as it is open: what is written, and what is kept.

use std::io;
use std::time::{Duration, Instant};

use super::super::log::{LogFile, Written};
use super::SYNC_INTERVAL;
use crate::audit::Fsync;

#[derive(Debug)]
pub(super) struct OpenLog {
    pub(super) file: LogFile,
    /// Since when there is something that is not synced.
    pub(super) unsynced: Option<Instant>,
    /// Whether a sync has failed. The kernel tells once, and the next one would seem to work.
    lost: bool,
}

impl OpenLog {
    pub(super) const fn new(file: LogFile) -> Self {
        Self { file, unsynced: None, lost: false }
    }

    /// Writes what was added, or keeps it until that is possible.
    pub(super) fn write(&mut self, fsync: Fsync) -> io::Result<()> {
        if self.file.write()? == Written::Something && fsync != Fsync::Never {
            self.unsynced.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    pub(super) fn sync_where_due(&mut self, fsync: Fsync) -> io::Result<()> {
        let wait = if fsync == Fsync::Always { Duration::ZERO } else { SYNC_INTERVAL };
        if self.unsynced.is_some_and(|since| since.elapsed() >= wait) { self.sync() } else { Ok(()) }
    }

    pub(super) fn sync(&mut self) -> io::Result<()> {
        let lost =
            |why| io::Error::other(format!("the disk failed to keep records{why}; see to it, then restart signetd"));
        if self.lost {
            return Err(lost(String::new()));
        }
        self.file.sync().map_err(|error| {
            self.lost = true;
            lost(format!(" ({error})"))
        })?;
        // A full disk may have no room for it. Nothing is lost by that: there is another sync until it is noted.
        self.file.note()?;
        self.unsynced = None;
        Ok(())
    }
}
