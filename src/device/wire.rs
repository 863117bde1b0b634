//! What the daemon and a device process say to each other, and how it is framed.
//!
//! A frame is its length as a little-endian u32 and a value in postcard. The daemon sends a [`super::DeviceConfig`], then
//! [`Job`]s; the process sends one [`Report::Opened`] or [`Report::Refused`], then a [`Report::Done`] for each job, in any
//! order. Neither side believes a length or an id.

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::DeviceError;
use crate::key::{Algorithm, Digest, KeyLocator, Signature};

/// Something to do with a key. Written from a borrowed locator, read as an owned one.
#[derive(Serialize, Deserialize)]
pub(super) struct Job<Locator = KeyLocator> {
    pub(super) id: u64,
    /// How long the caller still waited when this was sent: the two sides share no clock.
    pub(super) remaining: Duration,
    pub(super) locator: Locator,
    pub(super) work: Work,
}

/// What to do with the key.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) enum Work {
    PublicKey,
    Sign { algorithm: Algorithm, digest: Digest },
}

/// What a device process says.
#[derive(Serialize, Deserialize)]
pub(super) enum Report {
    /// The device is open, and this many jobs go on at once.
    Opened { workers: u32 },
    /// The device can't be opened. The process ends.
    Refused(DeviceError),
    /// What became of a job.
    Done { id: u64, outcome: Result<Answer, DeviceError> },
}

/// The answer to a [`Work`] of the same name.
#[derive(Serialize, Deserialize)]
pub(super) enum Answer {
    /// A DER SubjectPublicKeyInfo.
    PublicKey(Vec<u8>),
    Sign(Signature),
}

/// Appends a frame, or nothing.
pub(super) fn encode<T: Serialize>(value: &T, bytes: &mut Vec<u8>) -> Result<(), BadFrame> {
    let frame = postcard::to_stdvec(value).map_err(BadFrame::Malformed)?;
    let header = u32::try_from(frame.len()).ok().filter(|_| frame.len() <= LONGEST);
    bytes.extend(header.ok_or(BadFrame::TooLong(frame.len()))?.to_le_bytes());
    bytes.extend(frame);
    Ok(())
}

/// Bytes as they arrive, cut into frames.
#[derive(Default)]
pub(super) struct Frames {
    bytes: Vec<u8>,
    taken: usize,
}

impl Frames {
    /// Adds what was read.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.taken);
        self.taken = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, if it is there yet.
    pub(super) fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, BadFrame> {
        let pending = self.bytes.get(self.taken..).unwrap_or_default();
        let Some((header, rest)) = pending.split_first_chunk::<HEADER>() else { return Ok(None) };
        let length = u32::from_le_bytes(*header) as usize;
        if length > LONGEST {
            return Err(BadFrame::TooLong(length));
        }
        let Some(frame) = rest.get(..length) else { return Ok(None) };
        let (value, left) = postcard::take_from_bytes(frame).map_err(BadFrame::Malformed)?;
        if !left.is_empty() {
            return Err(BadFrame::Malformed(postcard::Error::DeserializeUnexpectedEnd));
        }
        self.taken += HEADER + length;
        Ok(Some(value))
    }
}

/// Why a frame can't be written or read.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadFrame {
    #[error("a frame of {0} bytes")]
    TooLong(usize),
    #[error("a malformed frame: {0}")]
    Malformed(postcard::Error),
}

/// The locator of a key is the longest thing sent: some kilobytes of PEM.
const LONGEST: usize = 64 * 1024;
const HEADER: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn job(id: u64) -> Job {
        let digest = Digest::Sha256([7; 32]);
        let locator = KeyLocator::Pkcs11("pkcs11:object=a".to_owned());
        Job {
            id,
            remaining: Duration::from_millis(5),
            locator,
            work: Work::Sign { algorithm: Algorithm::Rs256, digest },
        }
    }

    #[test]
    fn frames_arrive_whole_however_they_were_cut() {
        let mut bytes = Vec::new();
        for id in 0..5 {
            encode(&job(id), &mut bytes).unwrap();
        }
        for size in [1, 3, 7, 100, bytes.len()] {
            let mut frames = Frames::default();
            let mut ids = Vec::new();
            for chunk in bytes.chunks(size) {
                frames.push(chunk);
                while let Some(Job { id, .. }) = frames.next::<Job>().unwrap() {
                    ids.push(id);
                }
            }
            assert_eq!(ids, [0, 1, 2, 3, 4], "in chunks of {size}");
        }
    }

    #[test]
    fn a_borrowed_locator_reads_as_an_owned_one() {
        let locator = KeyLocator::Handle(0x8100_0001);
        let mut bytes = Vec::new();
        encode(&Job { id: 1, remaining: Duration::ZERO, locator: &locator, work: Work::PublicKey }, &mut bytes)
            .unwrap();
        let mut frames = Frames::default();
        frames.push(&bytes);
        assert_eq!(frames.next::<Job>().unwrap().unwrap().locator, locator);
    }

    #[test]
    fn a_huge_length_garbage_and_a_long_frame_are_refused() {
        let next = |bytes: &[u8]| {
            let mut frames = Frames::default();
            frames.push(bytes);
            frames.next::<Report>().map(|report| report.is_some())
        };
        assert!(matches!(next(&u32::MAX.to_le_bytes()), Err(BadFrame::TooLong(_))));
        assert!(matches!(next(&[1, 0, 0, 0, 0xff]), Err(BadFrame::Malformed(_))));
        let mut padded = Vec::new();
        encode(&Report::Opened { workers: 1 }, &mut padded).unwrap();
        padded[0] += 1;
        padded.push(0);
        assert!(matches!(next(&padded), Err(BadFrame::Malformed(_))));
        // A list that claims more elements than the frame has bytes.
        assert!(matches!(next(&[7, 0, 0, 0, 2, 0, 0, 0, 0xff, 0xff, 0x7f]), Err(BadFrame::Malformed(_))));
        assert!(encode(&KeyLocator::Tss2("x".repeat(LONGEST)), &mut Vec::new()).is_err());
    }
}
