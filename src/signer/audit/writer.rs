//! How a record comes into the log: where it is finished, unless that could take long. While others wait, while the log is
//! being synced and where each record must be, a thread writes, all that wait together at once; and what is refused again and
//! again as one line.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, mpsc};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::oneshot;

use super::super::metrics::Requests;
use super::log::{LogFile, OpenError, Written};
use super::refusals::{Refusals, Shared, Together};
use super::{Entry, UNWRITABLE};
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
    refusals: Refusals,
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
        let (refusals, requests) = (Refusals::new(), Requests::new());
        let log = Arc::new(Log { open, fsync, writable, waiting, refusals, requests });
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
        if let Some(line) = self.write_with_others(&entry) {
            return line.written().await;
        }
        if let Some(written) = self.write_now(&entry) {
            return written;
        }
        let (reply, written) = oneshot::channel();
        self.send(Message::Entry(entry, Some(reply))) && written.await.unwrap_or(false)
    }

    /// Writes a record that nobody waits for.
    pub(super) fn write_unheard(&self, entry: Box<Entry>) {
        if self.write_with_others(&entry).is_none() && self.write_now(&entry).is_none() {
            self.send(Message::Entry(entry, None));
        }
    }

    /// Has the thread tell of a refusal in one line with others; none where it is to have its own.
    fn write_with_others(&self, entry: &Entry) -> Option<Shared> {
        if !entry.is_refusal() {
            return None;
        }
        let (line, is_first) = self.log.refusals.count(entry, Instant::now())?;
        self.log.count(entry, true);
        if is_first {
            self.send(Message::Look);
        }
        Some(line)
    }

    /// Whether a record could be written; none where that is for the thread.
    fn write_now(&self, entry: &Entry) -> Option<bool> {
        let log = &self.log;
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
        log.count(entry, written);
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
    fn append<'a, T: Serialize + 'a>(&mut self, records: impl Iterator<Item = &'a T>, fsync: Fsync) -> io::Result<()> {
        if self.file.append(records)? == Written::Something && fsync != Fsync::Never {
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
    /// Counts a request as its caller is answered.
    fn count(&self, entry: &Entry, written: bool) {
        let outcome = if written { entry.outcome } else { UNWRITABLE };
        self.requests.count(entry.operation, outcome, entry.latency_us);
    }

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
        let sync = self.log.lock().unsynced.map(|since| since + SYNC_INTERVAL);
        let next = sync.into_iter().chain(self.log.refusals.due()).min();
        next.map_or(Duration::from_secs(3600), |next| next.saturating_duration_since(Instant::now()))
    }

    fn write(&self, batch: Vec<Message>) {
        let at_once = batch.iter().any(|message| matches!(message, Message::Flush(_)));
        let refused = self.log.refusals.take(Instant::now(), at_once);
        let mut open = self.log.lock();
        if batch.iter().any(|message| matches!(message, Message::Rotate)) {
            open.file.rotate();
        }
        let entries = batch.iter().filter_map(|message| match message {
            Message::Entry(entry, _) => Some(entry.as_ref()),
            _ => None,
        });
        let fsync = self.log.fsync;
        let appended = open.append(entries, fsync);
        // Whatever came of those: what can't be written yet is kept.
        let together = open.append(refused.as_ref().map(Together::line).iter(), fsync);
        let appended = appended.and(together).and_then(|()| open.sync_where_due(fsync));
        let written = self.log.tell(&open, &appended);
        self.log.waiting.fetch_sub(batch.len(), Ordering::AcqRel);
        if let Some(refused) = refused {
            refused.tell(written);
        }
        for message in batch {
            match message {
                Message::Entry(entry, reply) => {
                    self.log.count(&entry, written);
                    reply.map(|reply| reply.send(written));
                }
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
