//! Checkpoints of the audit log: how far it has come, signed from time to time by the device that signs for an account.
//!
//! Whoever can write the log could write all of it anew, but what stands before a checkpoint only with that device. Nobody
//! waits for one: where no key signs there is none, and that is told once.

use std::io::{BufReader, Read as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::time::Instant;

use super::audit::{Event, Extent};
use super::{Signer, audit};
use crate::access::AccountEmail;
use crate::audit::{Broken, Checkpoint, CheckpointEvent, Checkpoints, Head, verify_each};
use crate::device::DeviceError;
use crate::device::handle::Turn;
use crate::file;
use crate::key::{Digest, PublicKey};

impl Signer {
    /// Has a key of this account sign the end of the audit log whenever so many records have come since, once a second at most.
    /// Never returns. What the log holds when this is called is looked at before the first is signed.
    pub fn checkpoints(self: Arc<Self>, account: AccountEmail, every: u64) -> impl Future<Output = ()> + Send {
        let before = self.audit.extent();
        self.sign_checkpoints(account, every, before)
    }

    async fn sign_checkpoints(self: Arc<Self>, account: AccountEmail, every: u64, before: Extent) {
        let mut tick = tokio::time::interval(PAUSE);
        let (mut covered, mut failing) = (0, false);
        let mut unsigned = self.unsigned_in(before, &account, every).await;
        loop {
            tick.tick().await;
            let Some(head) = self.audit.written().await.filter(|head| head.seq >= covered + every) else { continue };
            if let Some(records) = unsigned.take() {
                tracing::warn!(
                    records,
                    "no checkpoint stands behind what the audit log held at the start: the one that is signed now tells nothing of who wrote it"
                );
                self.audit.write_event(Event::unsigned(records)).await;
                continue;
            }
            let signed = match self.checkpoint(&account, &head).await {
                Ok(checkpoint) => {
                    self.audit.write_event(Event::Checkpoint(checkpoint)).await.then_some(()).ok_or(DeviceError::Late)
                }
                Err(error) => Err(error),
            };
            match signed {
                Ok(()) => {
                    tracing::info!(record = head.seq, hash = head.hash, "signed a checkpoint of the audit log");
                    // Its own record is none that wants another.
                    (covered, failing) = (head.seq + 1, false);
                }
                Err(error) if !failing => {
                    tracing::warn!(%account, cause = %error, "no checkpoint of the audit log can be signed now");
                    failing = true;
                }
                Err(_told) => {}
            }
        }
    }

    /// How many records of a log no checkpoint stands behind, where they are more than there should be.
    async fn unsigned_in(&self, log: Extent, account: &AccountEmail, every: u64) -> Option<u64> {
        let keyring = self.keyring.load();
        let keys = keyring.keys().iter().filter(|key| key.account() == account).map(|key| key.public_key().clone());
        let keys: Vec<_> = keys.collect();
        tokio::task::spawn_blocking(move || unsigned(&log, &keys, every)).await.ok().flatten()
    }

    async fn checkpoint(&self, account: &AccountEmail, head: &Head) -> Result<Checkpoint, DeviceError> {
        let key = self.keyring.load().active(account).into_iter().next();
        let key = key.ok_or_else(|| DeviceError::Permanent("the account has no active key".to_owned()))?;
        let algorithm = key.algorithm();
        let digest = Digest::of(algorithm.hash(), Checkpoint::text(head).as_bytes());
        let signature = key.sign(algorithm, digest, Instant::now() + PATIENCE, Turn::own()).await?;
        Ok(Checkpoint {
            event: CheckpointEvent::Checkpoint,
            time: audit::timestamp(SystemTime::now()),
            of: head.seq,
            hash: head.hash.clone(),
            kid: key.kid().clone(),
            algorithm,
            signature: URL_SAFE_NO_PAD.encode(signature.as_bytes()),
        })
    }
}

/// As [`Signer::unsigned_in`], by the last whole chain in its files.
fn unsigned(log: &Extent, keys: &[PublicKey], every: u64) -> Option<u64> {
    let (mut found, mut before) = (Checkpoints::by(keys.to_vec()), None);
    for file in &log.files {
        let length = if Some(file) == log.files.last() { log.length } else { u64::MAX };
        let verified = file::open(file).map_err(Broken::Io).and_then(|file| {
            let meet = |before: &Head, after: &Head, line: &[u8]| found.meet(before, after, line);
            verify_each(BufReader::new(file.take(length)), before.take(), meet)
        });
        match verified {
            Ok(verified) => before = Some(verified.last),
            Err(_broken) => found = Checkpoints::by(keys.to_vec()),
        }
    }
    let none = log.end.seq > 0 && found.count == 0;
    (none || found.wrong.is_some() || found.are_wanting(every, &log.end)).then(|| found.unsigned(&log.end))
}

const PAUSE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(30);
