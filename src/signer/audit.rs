//! The audit log: one record a decision, written before the reply, whatever becomes of the caller.
//!
//! While the log can't be written nothing is signed; what was decided until then is kept and written first as soon as that
//! is possible again.

mod counted;
mod end;
mod journal;
mod log;
#[cfg(all(test, feature = "model"))]
mod model;
mod writer;

use std::io;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use super::metrics::Requests;
use super::{Call, SignError};
use crate::access::{Denied, Permit, Request};
use crate::audit::{Checkpoint, Fsync, Head, Rotation};
use crate::key::{DeviceName, Digest, Hash, KeyId, hexadecimal, sha256};
use journal::Journal;
pub(super) use log::Extent;
pub use log::OpenError;
use writer::Writer;

/// The audit log, open.
#[derive(Clone, Debug)]
pub struct Audit {
    writer: Writer,
}

/// The record of one request on its way. Dropped before it is finished, it is written as of a caller that went away.
pub(super) struct Record {
    entry: Option<Box<Entry>>,
    began: Instant,
    deadline: tokio::time::Instant,
    writer: Writer,
}

/// What a line says, in its order. Digests of what was signed, never the thing itself.
#[derive(Clone, Debug, Serialize)]
struct Entry {
    time: String,
    uid: u32,
    gid: u32,
    pid: Option<u32>,
    unit: Option<String>,
    executable: Option<String>,
    rpc: &'static str,
    operation: Option<&'static str>,
    account: String,
    decision: &'static str,
    rule: Option<usize>,
    reason: Option<String>,
    kid: Option<KeyId>,
    device: Option<DeviceName>,
    digest: Option<String>,
    /// Whether it was signed for another request, earlier or at the same time.
    cached: bool,
    audience_sha256: Option<String>,
    scope_sha256: Option<String>,
    latency_us: u64,
    outcome: &'static str,
}

/// What is no decision, and stands in the log all the same.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Event {
    /// A device has signed how far the log has come.
    Checkpoint(Checkpoint),
    /// The log held so many records behind its last checkpoint, or none, when the daemon started.
    Unsigned {
        /// Tells it from other records.
        event: &'static str,
        time: String,
        records: u64,
    },
}

impl Event {
    pub(super) fn unsigned(records: u64) -> Self {
        Self::Unsigned { event: "unsigned", time: timestamp(SystemTime::now()), records }
    }

    #[cfg(test)]
    #[cfg(not(feature = "model"))]
    fn checkpoint(of: &Head) -> Self {
        Self::Checkpoint(Checkpoint {
            event: crate::audit::CheckpointEvent::Checkpoint,
            time: String::new(),
            of: of.seq,
            hash: of.hash.clone(),
            kid: "test".parse().unwrap(),
            algorithm: crate::key::Algorithm::Rs256,
            signature: String::new(),
        })
    }
}

impl Entry {
    /// Whether it tells of a request by which nothing could be signed, and which no rate limits.
    fn signs_nothing(&self) -> bool {
        self.decision != "allow" || self.outcome == RATE_LIMITED || self.operation.is_none()
    }
}

impl Audit {
    /// Opens the log, mends its last line where a crash has torn it, and starts the thread that writes.
    ///
    /// # Errors
    /// [`OpenError`] says what to do. A log that can't be continued is never overwritten.
    pub fn open(path: &Path, fsync: Fsync, rotation: Rotation) -> Result<Self, OpenError> {
        Ok(Self { writer: Writer::open(path, fsync, rotation)? })
    }

    /// Has the systemd journal that listens at this path told of every line from now on.
    ///
    /// # Errors
    /// Where there can be no socket.
    pub fn with_journal(self, journal: &Path) -> io::Result<Self> {
        self.writer.set_journal(Journal::at(journal)?);
        Ok(self)
    }

    /// The last record, once all that waited is written; none where that can't be.
    pub(super) async fn written(&self) -> Option<Head> {
        self.writer.written().await
    }

    /// Which files it is now, and how far it has come.
    pub(super) fn extent(&self) -> Extent {
        self.writer.extent()
    }

    /// Writes an event; false where that can't be now, or where a checkpoint comes too late.
    pub(super) async fn write_event(&self, event: Event) -> bool {
        self.writer.write_event(event).await
    }

    /// What its records amount to.
    pub(super) fn requests(&self) -> &Requests {
        self.writer.requests()
    }

    /// Whether the last record could be written.
    pub(super) fn is_writable(&self) -> bool {
        self.writer.is_writable()
    }

    /// Why nothing can be written, where nothing can: the file, and what the system says.
    pub(super) fn trouble(&self) -> Option<String> {
        self.writer.trouble()
    }

    /// Begins a new file, whatever the size of this one.
    pub fn rotate(&self) {
        self.writer.rotate();
    }

    /// Waits until every record so far is on disk, but no longer than this: a disk may hang.
    pub fn flush(&self, patience: Duration) {
        if !self.writer.flush(patience) {
            tracing::error!("stopped before the last audit records were written");
        }
    }

    /// Begins the record of a request.
    pub(super) fn begin(&self, call: &Call<'_>) -> Result<Record, SignError> {
        if !self.is_writable() || self.writer.is_full() {
            return Err(unwritable());
        }
        let executable = call.caller.executable.as_ref();
        let entry = Entry {
            time: timestamp(SystemTime::now()),
            uid: call.caller.uid,
            gid: call.caller.gid,
            pid: call.caller.pid,
            unit: call.caller.unit.as_deref().map(escaped),
            executable: executable.map(|executable| escaped(&executable.path.to_string_lossy())),
            rpc: call.rpc,
            operation: None,
            account: escaped(call.account),
            decision: "none",
            rule: None,
            reason: None,
            kid: None,
            device: None,
            digest: None,
            cached: false,
            audience_sha256: None,
            scope_sha256: None,
            latency_us: 0,
            outcome: "CALLER_GONE",
        };
        Ok(Record {
            entry: Some(Box::new(entry)),
            began: Instant::now(),
            deadline: call.deadline,
            writer: self.writer.clone(),
        })
    }
}

impl Record {
    /// What is asked for.
    pub(super) fn asked(&mut self, request: &Request<'_>) {
        let Some(entry) = &mut self.entry else { return };
        let hashed = |texts: &[&str]| (!texts.is_empty()).then(|| sha256(texts.join(" ").as_bytes()));
        entry.operation = Some(request.operation.name());
        // Who names none means the default one, and who gives a number one with a name.
        request.account.as_str().clone_into(&mut entry.account);
        entry.audience_sha256 = hashed(&request.audiences);
        entry.scope_sha256 = hashed(&request.scopes);
    }

    /// What policy decided.
    pub(super) fn decided(&mut self, decision: &Result<Permit, Denied>) {
        let Some(entry) = &mut self.entry else { return };
        match decision {
            Ok(permit) => {
                entry.decision = "allow";
                entry.rule = Some(permit.rule());
            }
            Err(denied) => {
                entry.decision = "deny";
                entry.reason = Some(escaped(&denied.reason));
            }
        }
    }

    /// A decision that needs no permit, since nothing is signed.
    pub(super) fn told(&mut self, allowed: bool) {
        let Some(entry) = &mut self.entry else { return };
        entry.decision = if allowed { "allow" } else { "deny" };
    }

    /// A front refused it, by what it alone knows of the caller.
    pub(super) fn refused(&mut self, reason: &str) {
        let Some(entry) = &mut self.entry else { return };
        (entry.decision, entry.reason) = ("deny", Some(escaped(reason)));
    }

    /// Which key is about to sign what.
    pub(super) fn signing(&mut self, kid: &KeyId, device: &DeviceName, digest: &Digest) {
        let Some(entry) = &mut self.entry else { return };
        let hash = match digest.hash() {
            Hash::Sha256 => "sha256",
            Hash::Sha384 => "sha384",
            Hash::Sha512 => "sha512",
        };
        entry.kid = Some(kid.clone());
        entry.device = Some(device.clone());
        entry.digest = Some(format!("{hash}:{}", hexadecimal(digest.as_bytes())));
    }

    /// What was signed for another request is what this one gets.
    pub(super) fn cached(&mut self, kid: &KeyId, device: &DeviceName, digest: &Digest) {
        self.signing(kid, device, digest);
        if let Some(entry) = &mut self.entry {
            entry.cached = true;
        }
    }

    /// A second record of the same request, for a signature that is made even if the caller goes away.
    pub(super) fn again(&self) -> Self {
        Self { entry: self.entry.clone(), began: self.began, deadline: self.deadline, writer: self.writer.clone() }
    }

    /// Goes on as this second record.
    pub(super) fn take_over(&mut self, mut second: Self) {
        self.entry = second.entry.take();
    }

    /// Drops the record unwritten.
    pub(super) fn discard(mut self) {
        self.entry = None;
    }

    /// Writes the record, and only then lets the result through.
    pub(super) async fn finish<T>(mut self, result: Result<T, SignError>) -> Result<T, SignError> {
        let Some(mut entry) = self.entry.take() else { return result };
        match &result {
            Ok(_) => entry.outcome = OK,
            Err(error) => {
                entry.outcome = error.reason();
                // A denial's own reason says more than what the caller is told.
                entry.reason.get_or_insert_with(|| escaped(&error.to_string()));
            }
        }
        entry.latency_us = micros(self.began.elapsed());
        match self.writer.write(entry, self.deadline + GRACE).await {
            Some(true) => result,
            Some(false) => Err(unwritable()),
            None => Err(SignError::Late),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Some(mut entry) = self.entry.take() else { return };
        if tokio::time::Instant::now() >= self.deadline {
            entry.outcome = SignError::Late.reason();
        }
        entry.latency_us = micros(self.began.elapsed());
        self.writer.write_unheard(entry);
    }
}

fn unwritable() -> SignError {
    let problem = "the audit log can't be written, so nothing is signed; signetd's log says why".to_owned();
    SignError::Operator { reason: UNWRITABLE, problem }
}

/// A text of the caller's as it may stand in a log: short, and without a control character.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars().take(254) {
        match character {
            '\'' | '"' => escaped.push(character),
            other => escaped.extend(other.escape_debug()),
        }
    }
    escaped
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// RFC 3339 in UTC with microseconds.
pub(super) fn timestamp(time: SystemTime) -> String {
    let format = time::format_description::well_known::Iso8601::<TIMESTAMP>;
    time::OffsetDateTime::from(time).format(&format).unwrap_or_default()
}

/// The outcome of a request that is answered as it wished, unless another line says that it was not.
const OK: &str = "OK";
/// The outcome of a request whose record can't be written.
const UNWRITABLE: &str = "AUDIT_UNWRITABLE";
const RATE_LIMITED: &str = SignError::RateLimited { retry_after: Duration::ZERO }.reason();
/// How much later than its deadline a request may be answered that has come to its record in time.
const GRACE: Duration = Duration::from_millis(10);
const TIMESTAMP: time::format_description::well_known::iso8601::EncodedConfig = {
    use std::num::NonZeroU8;
    use time::format_description::well_known::iso8601::{Config, TimePrecision};
    Config::DEFAULT.set_time_precision(TimePrecision::Second { decimal_digits: NonZeroU8::new(6) }).encode()
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Caller;

    pub(super) fn call(caller: &Caller) -> Call<'_> {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        Call { caller, rpc: "Test", account: "", deadline }
    }

    fn allowed(audit: &Audit, caller: &Caller) -> Record {
        let mut record = audit.begin(&call(caller)).unwrap();
        record.told(true);
        record.entry.as_mut().unwrap().operation = Some("sign-blob");
        record
    }

    #[test]
    fn what_steers_a_terminal_is_escaped_and_quotes_are_not() {
        assert_eq!(escaped("the \"account's\"\n\u{1b}"), r#"the "account's"\n\u{1b}"#);
    }

    #[test]
    fn what_is_cut_off_at_the_end_has_its_record() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.log");
        let audit = Audit::open(&path, Fsync::Never, Rotation { max_size: u64::MAX, keep: 1 }).unwrap();
        let caller = Caller::new(1, 1, vec![]);
        for _ in 0..2000 {
            drop(allowed(&audit, &caller));
        }
        audit.flush(Duration::from_secs(60));
        assert_eq!(std::fs::read_to_string(path).unwrap().lines().count(), 2000);
    }

    #[test]
    fn nothing_is_begun_while_too_many_records_wait() {
        let folder = tempfile::tempdir().unwrap();
        let rotation = Rotation { max_size: u64::MAX, keep: 1 };
        let mut audit = Audit::open(&folder.path().join("audit.log"), Fsync::Always, rotation).unwrap();
        let hangs = audit.writer.hang();
        let caller = Caller::new(1, 1, vec![]);
        while !audit.writer.is_full() {
            drop(allowed(&audit, &caller));
        }
        assert!(matches!(audit.begin(&call(&caller)), Err(SignError::Operator { reason: "AUDIT_UNWRITABLE", .. })));
        drop(hangs);
    }

    #[tokio::test]
    async fn nobody_waits_for_a_record_beyond_the_deadline() {
        let folder = tempfile::tempdir().unwrap();
        let rotation = Rotation { max_size: u64::MAX, keep: 1 };
        let mut audit = Audit::open(&folder.path().join("audit.log"), Fsync::Always, rotation).unwrap();
        let hangs = audit.writer.hang();
        let (caller, deadline) = (Caller::new(1, 1, vec![]), tokio::time::Instant::now());
        let mut record = audit.begin(&Call { deadline, ..call(&caller) }).unwrap();
        record.told(true);
        assert_eq!(record.finish(Ok(())).await, Err(SignError::Late));
        drop(hangs);
    }

    /// What happened is what the caller was told: without its record there is no answer.
    #[tokio::test]
    async fn an_answer_that_was_withheld_for_its_record_is_not_counted_as_given() {
        for fsync in [Fsync::Never, Fsync::Always] {
            // Not the one before: its lock goes with its thread, some time after the log was dropped.
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("audit.log");
            let audit = Audit::open(&path, fsync, Rotation { max_size: u64::MAX, keep: 1 }).unwrap();
            let caller = Caller::new(1, 1, vec![]);
            let late = allowed(&audit, &caller);
            allowed(&audit, &caller).finish(Ok(())).await.unwrap();
            std::fs::rename(&path, folder.path().join("moved")).unwrap();
            std::fs::write(&path, "somebody's notes").unwrap();
            late.finish(Ok(())).await.unwrap_err();
            let text = audit.requests().text();
            for outcome in ["OK", "AUDIT_UNWRITABLE"] {
                let line = format!("requests_total{{operation=\"sign-blob\",outcome=\"{outcome}\"}} 1\n");
                assert!(text.contains(&line), "{fsync:?}: {text}");
            }
        }
    }
}
