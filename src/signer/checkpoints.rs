//! Checkpoints of the audit log: how far it has come, signed from time to time by the device that signs for an account.
//!
//! Whoever can write the log could write all of it anew, but what stands before a checkpoint only with that device. Nobody
//! waits for one: where no key signs there is none, and that is told once.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::time::Instant;

use super::{Signer, audit};
use crate::access::AccountEmail;
use crate::audit::{Checkpoint, CheckpointEvent, Head};
use crate::device::DeviceError;
use crate::device::handle::Turn;
use crate::key::Digest;

impl Signer {
    /// Has a key of this account sign the end of the audit log whenever so many records have come since, once a second at most.
    /// Never returns.
    pub async fn checkpoints(self: Arc<Self>, account: AccountEmail, every: u64) {
        let mut tick = tokio::time::interval(PAUSE);
        let (mut covered, mut failing) = (0, false);
        loop {
            tick.tick().await;
            let Some(head) = self.audit.written().filter(|head| head.seq >= covered + every) else { continue };
            match self.checkpoint(&account, &head).await {
                Ok(checkpoint) => {
                    tracing::info!(record = head.seq, hash = head.hash, "signed a checkpoint of the audit log");
                    self.audit.checkpoint(checkpoint).await;
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

const PAUSE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(30);
