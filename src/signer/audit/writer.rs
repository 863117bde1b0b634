//! How a record comes into the log: where it is finished, with those that others finish at the same time, unless that could
//! take long. While others wait, while the log is being synced and where each record must be, a thread writes, all that
//! wait together at once; and what is counted as one line.

mod behind;
mod open;

use std::io;
use std::path::Path;
use std::task::Poll;
use std::time::{Duration, Instant};
#[cfg(not(all(test, feature = "model")))]
use std::{sync, thread};

#[cfg(all(test, feature = "model"))]
use shuttle::{sync, thread};
use sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, mpsc};
use tokio::sync::oneshot;
use tokio::time::timeout_at;

use super::super::metrics::Requests;
use super::counted::{Counted, Shared};
use super::journal::Journal;
use super::log::{Extent, LogFile, OpenError, Unanswered};
use super::{Entry, Event, OK, UNWRITABLE};
use crate::audit::{Fsync, Head, Rotation};
use behind::Thread;
use open::OpenLog;

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
    /// Why it could not, for as long as that lasts.
    trouble: Mutex<String>,
    /// Whether the thread is no more: then nothing is synced, and so nothing is to be signed.
    ended: AtomicBool,
    /// How many messages wait for the thread.
    waiting: AtomicUsize,
    counted: Counted,
    requests: Requests,
}

#[derive(Debug)]
enum Message {
    /// To be written, where it has no number, and so was not added to what is; whoever waits is told whether it was.
    Entry { entry: Box<Entry>, number: Option<u64>, reply: Option<oneshot::Sender<bool>> },
    /// To be written; whoever waits is told whether it was.
    Event(Box<Event>, oneshot::Sender<bool>),
    /// Write what waits; whoever asks is told which record is the last then.
    Head(oneshot::Sender<Option<Head>>),
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
        let open = Mutex::new(OpenLog::new(LogFile::open(path, rotation)?));
        let (writable, ended, waiting) = (AtomicBool::new(true), AtomicBool::new(false), AtomicUsize::new(0));
        let (trouble, counted, requests) = (Mutex::new(String::new()), Counted::new(), Requests::new());
        let log = Arc::new(Log { open, fsync, writable, trouble, ended, waiting, counted, requests });
        let (messages, received) = mpsc::channel();
        let thread = Thread { log: Arc::clone(&log), messages: received };
        thread::Builder::new()
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
        self.log.writable.load(Ordering::Acquire) && !self.log.ended.load(Ordering::Acquire)
    }

    /// Why nothing can be written, where nothing can.
    pub(super) fn trouble(&self) -> Option<String> {
        if self.log.ended.load(Ordering::Acquire) {
            return Some("its thread has ended; restart signetd".to_owned());
        }
        let trouble = || self.log.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (!self.is_writable()).then(trouble)
    }

    /// Whether so much waits that there is no hope.
    pub(super) fn is_full(&self) -> bool {
        self.log.waiting.load(Ordering::Relaxed) >= MOST_WAITING
    }

    pub(super) fn rotate(&self) {
        self.send(Message::Rotate);
    }

    /// Has the journal told of every line from now on.
    pub(super) fn set_journal(&self, journal: Journal) {
        self.log.lock().file.journal = Some(journal);
    }

    /// The last record, once all that waited is written; none where that can't be.
    pub(super) async fn written(&self) -> Option<Head> {
        let (reply, written) = oneshot::channel();
        if self.send(Message::Head(reply)) { written.await.ok().flatten() } else { None }
    }

    /// Which files it is now, and how far it has come.
    pub(super) fn extent(&self) -> Extent {
        self.log.lock().file.extent()
    }

    /// Writes an event, where that is not possible yet first as soon as it is. False until then, and for a late checkpoint.
    pub(super) async fn write_event(&self, event: Event) -> bool {
        let (reply, written) = oneshot::channel();
        self.send(Message::Event(Box::new(event), reply)) && written.await.unwrap_or(false)
    }

    /// Waits until all is on disk. False where that takes longer.
    pub(super) fn flush(&self, patience: Duration) -> bool {
        let (reply, flushed) = mpsc::channel();
        self.send(Message::Flush(reply)) && flushed.recv_timeout(patience).is_ok()
    }

    /// Writes a record, together with those that others finish meanwhile. False where it could not be written yet; none
    /// where that takes longer than whoever asked waits.
    pub(super) async fn write(&self, entry: Box<Entry>, until: tokio::time::Instant) -> Option<bool> {
        if let Some(line) = self.write_with_others(&entry) {
            let written = timeout_at(until, line.written()).await.ok();
            self.log.count(&entry, written == Some(true));
            return written;
        }
        let (entry, number) = match self.add(entry) {
            Ok(mut added) => {
                others_first().await;
                match added.write() {
                    Ok(written) => return Some(written),
                    Err(entry) => (entry, Some(added.number)),
                }
            }
            Err(entry) => (entry, None),
        };
        let (reply, written) = oneshot::channel();
        if !self.send(Message::Entry { entry, number, reply: Some(reply) }) {
            return Some(false);
        }
        timeout_at(until, written).await.map(|written| written.unwrap_or(false)).ok()
    }

    /// Writes a record that nobody waits for.
    pub(super) fn write_unheard(&self, entry: Box<Entry>) {
        if self.write_with_others(&entry).is_some() {
            return self.log.count(&entry, true);
        }
        if let Err(entry) = self.add(entry) {
            self.send(Message::Entry { entry, number: None, reply: None });
        }
    }

    /// Has the thread tell of a request in one line with others; none where it is to have its own.
    fn write_with_others(&self, entry: &Entry) -> Option<Shared> {
        if !entry.signs_nothing() || !self.is_writable() {
            return None;
        }
        let (line, is_first) = self.log.counted.count(entry, Instant::now())?;
        if is_first {
            self.send(Message::Look);
        }
        Some(line)
    }

    /// Adds a record to those that are written next; hands it back where that is for the thread.
    fn add(&self, entry: Box<Entry>) -> Result<Added<'_>, Box<Entry>> {
        let log = &self.log;
        if log.fsync == Fsync::Always || log.waiting.load(Ordering::Acquire) > 0 || !self.is_writable() {
            return Err(entry);
        }
        let Some(mut open) = log.try_lock().filter(|open| !open.file.may_rotate()) else { return Err(entry) };
        match open.file.add(&*entry) {
            Ok(number) => Ok(Added { writer: self, number, entry: Some(entry) }),
            Err(_unwritable) => Err(entry),
        }
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

/// A record that is to be written, at the latest when this is dropped: whoever waits for it may go away.
struct Added<'a> {
    writer: &'a Writer,
    number: u64,
    /// None once it was written, or handed to the thread.
    entry: Option<Box<Entry>>,
}

impl Added<'_> {
    /// Whether it could be written; the record where that is for the thread.
    fn write(&mut self) -> Result<bool, Box<Entry>> {
        let Some(entry) = self.entry.take() else { return Ok(true) };
        let log = &self.writer.log;
        let Some(mut open) = log.try_lock() else { return Err(entry) };
        let mut written = open.file.has(self.number);
        if !written {
            let was_synced = open.unsynced.is_none();
            let outcome = open.write(log.fsync);
            written = log.note_outcome(&open, &outcome);
            if !written && entry.outcome == OK {
                let _ = open.file.add(&Unanswered::new(self.number));
            }
            if !written || (was_synced && open.unsynced.is_some()) {
                drop(open);
                self.writer.send(Message::Look);
            }
        }
        log.count(&entry, written);
        Ok(written)
    }
}

impl Drop for Added<'_> {
    fn drop(&mut self) {
        if let Err(entry) = self.write() {
            self.writer.send(Message::Entry { entry, number: Some(self.number), reply: None });
        }
    }
}

/// Lets whoever else is about to run do so. tokio's own yield would first ask the kernel what else there is to do.
async fn others_first() {
    let mut waited = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl Log {
    /// Counts a request as its caller is answered.
    fn count(&self, entry: &Entry, written: bool) {
        let outcome = if written { entry.outcome } else { UNWRITABLE };
        self.requests.count(entry.operation, outcome, entry.latency_us);
    }

    /// Takes note of whether the log can be written, and tells where that has changed.
    fn note_outcome(&self, open: &OpenLog, written: &io::Result<()>) -> bool {
        if let Err(error) = written {
            let trouble = format!("{}: {error}", open.file.path().display());
            *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
        }
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

    fn try_lock(&self) -> Option<MutexGuard<'_, OpenLog>> {
        match self.open.try_lock() {
            Ok(open) => Some(open),
            Err(TryLockError::Poisoned(open)) => Some(open.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    fn lock(&self) -> MutexGuard<'_, OpenLog> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells that the thread has ended, however it does.
struct Ended(Arc<Log>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Release);
    }
}

/// Some 50 MB: far more than wait for any disk that works.
const MOST_WAITING: usize = 65_536;
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
impl Writer {
    /// Has the thread take nothing any more, as if its disk hung.
    pub(super) fn hang(&mut self) -> impl Sized + use<> {
        let (messages, hangs) = mpsc::channel();
        (std::mem::replace(&mut self.messages, messages), hangs)
    }
}

#[cfg(all(test, not(feature = "model")))]
mod tests {
    use super::*;
    use crate::audit::WINDOW;

    fn open(folder: &tempfile::TempDir) -> Result<Writer, OpenError> {
        let rotation = Rotation { max_size: u64::MAX, keep: 1 };
        Writer::open(&folder.path().join("audit.log"), Fsync::Never, rotation)
    }

    #[tokio::test]
    async fn the_last_record_is_known_however_many_are_about_to_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let writer = open(&folder).unwrap();
        // As whoever lets others run before he writes.
        writer.log.lock().file.add(&Unanswered::new(1)).unwrap();
        assert_eq!(writer.written().await.unwrap().seq, 1);
    }

    #[tokio::test]
    async fn a_checkpoint_of_a_record_too_far_back_to_be_looked_for_is_not_written() {
        let folder = tempfile::tempdir().unwrap();
        let writer = open(&folder).unwrap();
        writer.log.lock().file.add(&Unanswered::new(1)).unwrap();
        let head = writer.written().await.unwrap();
        for _ in 1..WINDOW {
            writer.log.lock().file.add(&Unanswered::new(1)).unwrap();
        }
        assert!(writer.write_event(Event::checkpoint(&head)).await, "just in time");
        assert!(!writer.write_event(Event::checkpoint(&head)).await);
        assert_eq!(writer.written().await.unwrap().seq, WINDOW as u64 + 1);
    }

    #[test]
    fn without_its_thread_the_log_counts_as_unwritable_whatever_is_written_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        let writer = open(&folder).unwrap();
        assert!(writer.is_writable());
        drop(Ended(Arc::clone(&writer.log)));
        // Whoever had begun to write when the thread ended.
        assert!(writer.log.note_outcome(&writer.log.lock(), &Ok(())));
        assert!(!writer.is_writable());
        assert_eq!(writer.trouble().unwrap(), "its thread has ended; restart signetd");
    }
}
