//! How a record comes into the log: where it is finished, unless that could take long. While others wait, while the log is
//! being synced and where each record must be, a thread writes, all that wait together at once.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::super::metrics::Requests;
use super::Entry;
use super::log::{LogFile, OpenError, Written};
use crate::audit::{Fsync, Rotation};

/// The log, and the way to the thread that writes what is not written at once.
#[derive(Clone, Debug)]
pub(super) struct Writer {
    log: Arc<Log>,
    messages: mpsc::Sender<Message>,
}

/// What whoever finishes a record shares with the thread.
#[derive(Debug)]
struct Log {
    open: Mutex<OpenLog>,
    fsync: Fsync,
    /// Whether the last record could be written.
    writable: AtomicBool,
    /// How many messages wait for the thread.
    waiting: AtomicUsize,
    requests: Requests,
}

#[derive(Debug)]
struct OpenLog {
    file: LogFile,
    /// Since when there is something that is not synced.
    unsynced: Option<Instant>,
    /// Whether a sync has failed. The kernel tells once, and the next one would seem to work.
    lost: bool,
}

#[derive(Debug)]
enum Message {
    /// To be written; whoever waits is told whether it was.
    Entry(Box<Entry>, Option<oneshot::Sender<bool>>),
    /// Begin a new file.
    Rotate,
    /// Sync what stands before this; whoever waits is told then.
    Flush(mpsc::Sender<()>),
    /// There is now something to sync, or to write again.
    Look,
}

impl Writer {
    /// Opens the log and starts the thread.
    pub(super) fn open(path: &Path, fsync: Fsync, rotation: Rotation) -> Result<Self, OpenError> {
        let open = Mutex::new(OpenLog { file: LogFile::open(path, rotation)?, unsynced: None, lost: false });
        let (writable, waiting) = (AtomicBool::new(true), AtomicUsize::new(0));
        let log = Arc::new(Log { open, fsync, writable, waiting, requests: Requests::new() });
        let (messages, received) = mpsc::channel();
        let thread = Thread { log: Arc::clone(&log), messages: received };
        std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(|| thread.run())
            .map_err(|source| OpenError::Io { path: path.to_owned(), source })?;
        Ok(Self { log, messages })
    }

    /// What the records amount to.
    pub(super) fn requests(&self) -> &Requests {
        &self.log.requests
    }

    pub(super) fn is_writable(&self) -> bool {
        self.log.writable.load(Ordering::Acquire)
    }

    /// Whether so much waits that there is no hope.
    pub(super) fn is_full(&self) -> bool {
        self.log.waiting.load(Ordering::Relaxed) >= MOST_WAITING
    }

    pub(super) fn rotate(&self) {
        self.send(Message::Rotate);
    }

    /// Waits until all is on disk. False where that takes longer.
    pub(super) fn flush(&self, patience: Duration) -> bool {
        let (reply, flushed) = mpsc::channel();
        self.send(Message::Flush(reply)) && flushed.recv_timeout(patience).is_ok()
    }

    /// Writes a record. False where it could not be written yet.
    pub(super) async fn write(&self, entry: Box<Entry>) -> bool {
        if let Some(written) = self.write_now(&entry) {
            return written;
        }
        let (reply, written) = oneshot::channel();
        self.send(Message::Entry(entry, Some(reply))) && written.await.unwrap_or(false)
    }

    /// Writes a record that nobody waits for.
    pub(super) fn write_unheard(&self, entry: Box<Entry>) {
        if self.write_now(&entry).is_none() {
            self.send(Message::Entry(entry, None));
        }
    }

    /// Whether a record could be written; none where that is for the thread.
    fn write_now(&self, entry: &Entry) -> Option<bool> {
        let log = &self.log;
        // Every record comes by here once.
        log.requests.count(entry.operation, entry.outcome, entry.latency_us);
        if log.fsync == Fsync::Always
            || log.waiting.load(Ordering::Acquire) > 0
            || !log.writable.load(Ordering::Acquire)
        {
            return None;
        }
        let mut open = match log.open.try_lock() {
            Ok(open) => open,
            Err(TryLockError::Poisoned(open)) => open.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        if open.file.may_take_long() {
            return None;
        }
        let was_synced = open.unsynced.is_none();
        let appended = open.append(std::iter::once(entry), log.fsync);
        let written = log.tell(&open, &appended);
        if !written || (was_synced && open.unsynced.is_some()) {
            drop(open);
            self.send(Message::Look);
        }
        Some(written)
    }

    /// False where nobody writes any more.
    fn send(&self, message: Message) -> bool {
        if self.log.waiting.fetch_add(1, Ordering::Relaxed) + 1 == MOST_WAITING {
            tracing::error!(
                "{MOST_WAITING} audit records wait to be written: nothing is signed until they are (does the disk hang?)"
            );
        }
        self.messages.send(message).is_ok()
    }
}

impl OpenLog {
    /// Appends records, or keeps them until they can be.
    fn append<'a>(&mut self, entries: impl Iterator<Item = &'a Entry>, fsync: Fsync) -> io::Result<()> {
        if self.file.append(entries)? == Written::Something && fsync != Fsync::Never {
            self.unsynced.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    fn sync_where_due(&mut self, fsync: Fsync) -> io::Result<()> {
        let wait = if fsync == Fsync::Always { Duration::ZERO } else { SYNC_INTERVAL };
        if self.unsynced.is_some_and(|since| since.elapsed() >= wait) { self.sync() } else { Ok(()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        if self.lost {
            return Err(io::Error::other("the disk failed to keep records; see to it, then restart signetd"));
        }
        self.file.sync().inspect_err(|_error| self.lost = true)?;
        self.unsynced = None;
        Ok(())
    }
}

impl Log {
    /// Takes note of whether the log can be written, and tells where that has changed.
    fn tell(&self, open: &OpenLog, written: &io::Result<()>) -> bool {
        let was_writable = self.writable.swap(written.is_ok(), Ordering::AcqRel);
        match written {
            Err(error) if was_writable => {
                tracing::error!(%error, path = %open.file.path().display(), "the audit log can't be written: nothing is signed until it can (disk full?)");
            }
            Ok(()) if !was_writable => tracing::info!("the audit log can be written again"),
            _ => {}
        }
        written.is_ok()
    }

    fn lock(&self) -> MutexGuard<'_, OpenLog> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Without the thread nothing is synced any more: then nothing is signed either.
struct Ended(Arc<Log>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.writable.store(false, Ordering::Release);
    }
}

/// The thread that writes what could take long.
struct Thread {
    log: Arc<Log>,
    messages: mpsc::Receiver<Message>,
}

impl Thread {
    fn run(self) {
        let _ended = Ended(Arc::clone(&self.log));
        loop {
            let first = match self.messages.recv_timeout(self.patience()) {
                Ok(message) => Some(message),
                Err(mpsc::RecvTimeoutError::Timeout) => None,
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            };
            let batch: Vec<_> = first.into_iter().chain(self.messages.try_iter().take(BATCH)).collect();
            self.write(batch);
        }
        let _ = self.log.lock().sync();
    }

    /// How long to wait for a message before there is something else to do.
    fn patience(&self) -> Duration {
        if !self.log.writable.load(Ordering::Acquire) {
            return RETRY;
        }
        let unsynced = self.log.lock().unsynced;
        unsynced.map_or(Duration::from_secs(3600), |since| SYNC_INTERVAL.saturating_sub(since.elapsed()))
    }

    fn write(&self, batch: Vec<Message>) {
        let mut open = self.log.lock();
        if batch.iter().any(|message| matches!(message, Message::Rotate)) {
            open.file.rotate();
        }
        let entries = batch.iter().filter_map(|message| match message {
            Message::Entry(entry, _) => Some(entry.as_ref()),
            _ => None,
        });
        let appended = open.append(entries, self.log.fsync).and_then(|()| open.sync_where_due(self.log.fsync));
        let written = self.log.tell(&open, &appended);
        self.log.waiting.fetch_sub(batch.len(), Ordering::AcqRel);
        for message in batch {
            match message {
                Message::Entry(_, Some(reply)) => drop(reply.send(written)),
                Message::Flush(reply) if written && open.sync().is_ok() => drop(reply.send(())),
                _ => {}
            }
        }
    }
}

const BATCH: usize = 1024;
/// Some 50 MB: far more than wait for any disk that works.
const MOST_WAITING: usize = 65_536;
const RETRY: Duration = Duration::from_millis(500);
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
impl Writer {
    /// Has the thread take nothing any more, as if its disk hung.
    pub(super) fn hang(&mut self) -> impl Sized + use<> {
        let (messages, hangs) = mpsc::channel();
        (std::mem::replace(&mut self.messages, messages), hangs)
    }
}
