//! Checkpoints: records that a device has signed, and whether those in a log are of that log.

use std::collections::VecDeque;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::Head;
use crate::key::{Algorithm, Digest, KeyId, PublicKey, Signature};

/// A record that a device has signed: without that device nobody writes what stands before it anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Tells it from other records.
    pub event: CheckpointEvent,
    /// When, as in every record.
    pub time: String,
    /// The number of the last record that it is about.
    pub of: u64,
    /// The hash of that record.
    pub hash: String,
    /// The key.
    pub kid: KeyId,
    /// What the key signed with.
    pub algorithm: Algorithm,
    /// Its signature of [`Checkpoint::text`], in base64url.
    pub signature: String,
}

/// The event of a [`Checkpoint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckpointEvent {
    /// The only one.
    Checkpoint,
}

impl Checkpoint {
    /// What is signed: it begins with [`CHECKPOINT`], as nothing does that a caller has signed, and has no dot, as any JWS does.
    #[must_use]
    pub fn text(head: &Head) -> String {
        format!("{CHECKPOINT} v1\n{}\n{}\n", head.seq, head.hash)
    }

    /// The checkpoint in a line, where it is one.
    #[must_use]
    pub fn of_line(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    /// Whether this key has signed it.
    #[must_use]
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        let Ok(signature) = URL_SAFE_NO_PAD.decode(&self.signature) else { return false };
        let head = Head { hash: self.hash.clone(), seq: self.of };
        let digest = Digest::of(self.algorithm.hash(), Self::text(&head).as_bytes());
        key.verify(self.algorithm, &digest, &Signature::from_bytes(signature)).is_ok()
    }
}

/// How every text begins that a device signs for a checkpoint. Nobody gets a signature of what begins so.
pub const CHECKPOINT: &str = "signet audit checkpoint";

/// The checkpoints of a log, met line by line while its chain is followed.
#[derive(Debug)]
pub struct Checkpoints {
    keys: Vec<PublicKey>,
    /// The heads that were passed, the last one first.
    passed: VecDeque<Head>,
    /// The number of the record before the first line.
    first: Option<u64>,
    /// How many are of this log and signed by one of the keys.
    pub count: u64,
    /// The number of the last record that one of them is about; 0 where there is none.
    pub last: u64,
    /// The first that is not, and why.
    pub wrong: Option<(Checkpoint, &'static str)>,
}

impl Checkpoints {
    /// Those that these keys may have signed.
    #[must_use]
    pub const fn by(keys: Vec<PublicKey>) -> Self {
        Self { keys, passed: VecDeque::new(), first: None, count: 0, last: 0, wrong: None }
    }

    /// Takes a line, and the heads before and after it.
    pub fn meet(&mut self, before: &Head, after: &Head, line: &[u8]) {
        let first = *self.first.get_or_insert_with(|| {
            self.passed.push_front(before.clone());
            before.seq
        });
        // One about a record that is not here says nothing of those that are.
        if let Some(checkpoint) = Checkpoint::of_line(line).filter(|checkpoint| checkpoint.of >= first) {
            let of =
                before.seq.checked_sub(checkpoint.of).and_then(|back| self.passed.get(usize::try_from(back).ok()?));
            if of.is_none_or(|head| head.hash != checkpoint.hash) {
                self.wrong.get_or_insert((checkpoint, "is of another log"));
            } else if !self.keys.iter().any(|key| checkpoint.is_signed_by(key)) {
                self.wrong.get_or_insert((checkpoint, "was signed by no key that is known here"));
            } else {
                self.count += 1;
                self.last = self.last.max(checkpoint.of);
            }
        }
        self.passed.truncate(WINDOW);
        self.passed.push_front(after.clone());
    }

    /// How many records of a log that ends here stand behind the last checkpoint.
    #[must_use]
    pub const fn unsigned(&self, end: &Head) -> u64 {
        end.seq.saturating_sub(self.last)
    }

    /// Whether those are more than there can be where one is signed every so many records. A device takes its time.
    #[must_use]
    pub const fn are_wanting(&self, every: u64, end: &Head) -> bool {
        self.unsigned(end) > every.saturating_mul(2)
    }
}

/// How many records may come while a device signs: a checkpoint about one further back is none.
pub const WINDOW: usize = 1 << 17;
