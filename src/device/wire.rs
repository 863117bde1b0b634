//! What the daemon and a device process say to each other, and the pipe by which they do.
//!
//! Each message is a value in postcard. The daemon sends a [`super::DeviceConfig`], where its launcher did not, then [`Job`]s; the
//! process sends one [`Report::Opened`] or [`Report::Refused`], then what became of each job, in any order. Neither side believes
//! a length or an id.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockType, socketpair};
use nix::time::{ClockId, clock_gettime};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::DeviceError;
use crate::key::{Algorithm, Digest, KeyLocator, Signature};

/// Something to do with a key. Written from a borrowed locator, read as an owned one.
#[derive(Serialize, Deserialize)]
pub(super) struct Job<Locator = KeyLocator> {
    pub(super) id: u64,
    /// When the caller no longer waits, by [`now`].
    pub(super) deadline: Duration,
    pub(super) locator: Locator,
    pub(super) work: Work,
}

impl Job {
    /// Whether it is the same work with the same key, so that it takes as long.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.work.algorithm() == other.work.algorithm() && self.locator == other.locator
    }
}

/// What to do with the key.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) enum Work {
    PublicKey,
    Sign { algorithm: Algorithm, digest: Digest },
}

impl Work {
    /// What a signature is made by.
    pub(super) const fn algorithm(self) -> Option<Algorithm> {
        match self {
            Self::Sign { algorithm, .. } => Some(algorithm),
            Self::PublicKey => None,
        }
    }
}

/// What a device process says.
#[derive(Serialize, Deserialize)]
pub(super) enum Report {
    /// The device is open, and this many jobs go on at once.
    Opened { workers: u32 },
    /// The device can't be opened. The process ends.
    Refused(DeviceError),
    /// What became of jobs.
    Done(Vec<Done>),
}

/// What became of a job.
#[derive(Serialize, Deserialize)]
pub(super) struct Done {
    pub(super) id: u64,
    pub(super) outcome: Result<Answer, DeviceError>,
}

/// The answer to a [`Work`] of the same name.
#[derive(Serialize, Deserialize)]
pub(super) enum Answer {
    /// A DER SubjectPublicKeyInfo.
    PublicKey(Vec<u8>),
    Sign(Signature),
}

/// The clock that both sides share (CLOCK_MONOTONIC), zero where the system has none.
pub(super) fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

/// The two ends of a pipe: sockets that keep messages whole and in order, so that any thread may send, and each message is
/// received by one.
pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Sends a message. `InvalidInput`: it is none that could be sent. With `MSG_DONTWAIT` also `WouldBlock`.
pub(super) fn send<T: Serialize>(pipe: &OwnedFd, message: &T, flags: MsgFlags) -> io::Result<()> {
    let unsendable = |problem: String| io::Error::new(io::ErrorKind::InvalidInput, problem);
    let message = postcard::to_stdvec(message).map_err(|error| unsendable(error.to_string()))?;
    if message.len() > LONGEST {
        return Err(unsendable(format!("it has {} bytes", message.len())));
    }
    loop {
        match socket::send(pipe.as_raw_fd(), &message, flags | MsgFlags::MSG_NOSIGNAL) {
            Err(Errno::EINTR) => {}
            sent => return sent.map(drop).map_err(io::Error::from),
        }
    }
}

/// Receives a message by way of a [`buffer`]. `UnexpectedEof`: there is nobody to send one. `InvalidData`: it was none.
/// With `MSG_DONTWAIT` also `WouldBlock`.
pub(super) fn receive<T: DeserializeOwned>(pipe: &OwnedFd, buffer: &mut [u8], flags: MsgFlags) -> io::Result<T> {
    let malformed = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
    let length = loop {
        match socket::recv(pipe.as_raw_fd(), buffer, flags | MsgFlags::MSG_TRUNC) {
            Err(Errno::EINTR) => {}
            Ok(0) | Err(Errno::ECONNRESET) => return Err(io::ErrorKind::UnexpectedEof.into()),
            received => break received?,
        }
    };
    let message = buffer.get(..length).ok_or_else(|| malformed(format!("a message of {length} bytes")))?;
    match postcard::take_from_bytes(message) {
        Ok((message, [])) => Ok(message),
        Ok(_) => Err(malformed("a message with something behind it".to_owned())),
        Err(error) => Err(malformed(format!("a malformed message: {error}"))),
    }
}

/// Room for any message.
pub(super) fn buffer() -> Box<[u8]> {
    vec![0; LONGEST].into_boxed_slice()
}

/// A device that is done with a job in less time is kept in work by several jobs a worker, and says what became of them
/// together: to wake the daemon and its callers for each takes a part of the time in which it could sign.
pub(super) const QUICK: Duration = Duration::from_millis(2);
/// How many it tells of together at most.
pub(super) const TOGETHER: usize = 3;
/// How long a device process has to close its device when its pipe has ended, before it ends itself.
pub(super) const CLOSING: Duration = Duration::from_millis(500);
/// The locator of a key is the longest thing sent: some kilobytes of PEM.
const LONGEST: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn received<T: DeserializeOwned>(message: &[u8]) -> io::Result<T> {
        let (one, other) = pipe().unwrap();
        socket::send(one.as_raw_fd(), message, MsgFlags::empty()).unwrap();
        receive(&other, &mut buffer(), MsgFlags::empty())
    }

    #[test]
    fn a_borrowed_locator_reads_as_an_owned_one_and_messages_stay_apart() {
        let locator = KeyLocator::Handle(0x8100_0001);
        let (one, other) = pipe().unwrap();
        for id in 1..=3 {
            let job = Job { id, deadline: now(), locator: &locator, work: Work::PublicKey };
            send(&one, &job, MsgFlags::empty()).unwrap();
        }
        drop(one);
        for id in 1..=3 {
            let job: Job = receive(&other, &mut buffer(), MsgFlags::empty()).unwrap();
            assert!(job.id == id && job.locator == locator && job.deadline <= now());
        }
        let end = receive::<Job>(&other, &mut buffer(), MsgFlags::empty());
        assert_eq!(end.err().map(|error| error.kind()), Some(io::ErrorKind::UnexpectedEof));
    }

    #[test]
    fn garbage_and_what_is_too_long_are_refused() {
        let kind = |message: &[u8]| received::<Report>(message).err().map(|error| error.kind());
        let mut opened = postcard::to_stdvec(&Report::Opened { workers: 1 }).unwrap();
        assert_eq!(kind(&opened), None);
        opened.push(0);
        // The last is a list that claims more elements than the message has bytes.
        for bad in [&opened, &[0xff][..], &vec![0; LONGEST + 1], &[2, 0, 0, 0, 0xff, 0xff, 0x7f]] {
            assert_eq!(kind(bad), Some(io::ErrorKind::InvalidData), "{} bytes", bad.len());
        }
        let (one, _other) = pipe().unwrap();
        let long = send(&one, &KeyLocator::Tss2("x".repeat(LONGEST)), MsgFlags::empty());
        assert_eq!(long.err().map(|error| error.kind()), Some(io::ErrorKind::InvalidInput));
    }
}
