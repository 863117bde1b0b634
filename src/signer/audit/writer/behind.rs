//! The thread that writes what could take long: where each record must be synced, where others write, and again where that failed.

use std::time::{Duration, Instant};

use super::super::log::Unanswered;
use super::super::{Event, OK};
use super::sync::atomic::Ordering;
use super::sync::{Arc, mpsc};
use super::{Ended, Log, Message, OpenLog, SYNC_INTERVAL};
use crate::audit::WINDOW;

/// The thread that writes what could take long.
pub(super) struct Thread {
    pub(super) log: Arc<Log>,
    pub(super) messages: mpsc::Receiver<Message>,
}

impl Thread {
    pub(super) fn run(self) {
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
        let next = sync.into_iter().chain(self.log.counted.due()).min();
        next.map_or(Duration::from_secs(3600), |next| next.saturating_duration_since(Instant::now()))
    }

    fn write(&self, mut batch: Vec<Message>) {
        let at_once = batch.iter().any(|message| matches!(message, Message::Flush(_)));
        let together = self.log.counted.take(Instant::now(), at_once);
        let mut open = self.log.lock();
        let taken = batch.len();
        batch.retain(|message| !matches!(message, Message::Event(event, _) if is_late(event, &open)));
        if batch.iter().any(|message| matches!(message, Message::Rotate)) {
            open.file.rotate();
        }
        let added = batch.iter_mut().try_for_each(|message| match message {
            Message::Entry { entry, number: number @ None, .. } => open.file.add(entry).map(|new| *number = Some(new)),
            Message::Event(event, _) => open.file.add(event).map(drop),
            _ => Ok(()),
        });
        let added = together.as_ref().map_or(Ok(()), |together| open.file.add(&together.line()).map(drop)).and(added);
        let fsync = self.log.fsync;
        let outcome = open.write(fsync).and(added).and_then(|()| open.sync_where_due(fsync));
        let written = self.log.note_outcome(&open, &outcome);
        self.log.waiting.fetch_sub(taken, Ordering::AcqRel);
        if let Some(together) = together {
            together.tell(written);
        }
        let unanswered: Vec<_> =
            batch.into_iter().filter_map(|message| self.answer(message, written, &mut open)).collect();
        if unanswered.is_empty() {
            return;
        }
        let added = unanswered.iter().try_for_each(|record| open.file.add(&Unanswered::new(*record)).map(drop));
        // What can't be written now goes out with the next.
        if written {
            let outcome = open.write(fsync).and(added);
            self.log.note_outcome(&open, &outcome);
        }
    }

    /// Tells whoever waits. The number of a record that says OK where no answer will be given.
    fn answer(&self, message: Message, written: bool, open: &mut OpenLog) -> Option<u64> {
        match message {
            Message::Entry { entry, number, reply } => {
                self.log.count(&entry, written);
                // Who waits no longer gets none either.
                let is_given = reply?.send(written).is_ok() && written;
                number.filter(|_| entry.outcome == OK && !is_given)
            }
            Message::Flush(reply) => {
                if written && open.sync().is_ok() {
                    let _ = reply.send(());
                }
                None
            }
            Message::Event(_, reply) => {
                let _ = reply.send(written);
                None
            }
            Message::Head(reply) => {
                let _ = reply.send(open.file.written().filter(|_| written));
                None
            }
            Message::Rotate | Message::Look => None,
        }
    }
}

/// Whether whoever verifies the log would no longer find the record that a checkpoint is about.
fn is_late(event: &Event, open: &OpenLog) -> bool {
    matches!(event, Event::Checkpoint(checkpoint) if open.file.since(checkpoint.of) >= WINDOW as u64)
}

const BATCH: usize = 1024;
const RETRY: Duration = Duration::from_millis(500);
