//! The daemon's side of a device: what the rest of the daemon sees of it.

mod child;
mod dispatch;
mod generation;
mod queue;
mod sight;
mod suspects;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::dispatch::Dispatcher;
pub use self::queue::Turn;
use self::queue::{Answered, Message, Request};
use super::launcher::LauncherProcess;
use super::wire::{Answer, Work};
use super::{DeviceConfig, DeviceError};
use crate::key::{Algorithm, Digest, KeyLocator, PublicKey, Signature};

/// How to start a device process: the same binary with a hidden subcommand.
#[derive(Clone, Debug)]
pub struct Program {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
}

/// Who starts device processes.
#[derive(Clone, Debug)]
pub enum Start {
    /// The process that holds the handle, as its children.
    Here(Program),
    /// A launcher, because the process that holds the handle has given up what a device needs.
    Apart(Arc<LauncherProcess>),
}

impl From<Program> for Start {
    fn from(program: Program) -> Self {
        Self::Here(program)
    }
}

/// A device as the daemon knows it. Clones share one device process; when the last is dropped, the process is ended.
#[derive(Clone, Debug)]
pub struct Handle {
    requests: mpsc::UnboundedSender<Message>,
    health: watch::Receiver<Health>,
    counters: Arc<Counters>,
}

/// One signature to be made.
#[derive(Clone, Debug)]
pub struct SignRequest {
    /// The key.
    pub locator: Arc<KeyLocator>,
    /// What the signature is verified against before it is returned.
    pub public_key: Arc<PublicKey>,
    /// The algorithm.
    pub algorithm: Algorithm,
    /// The digest.
    pub digest: Digest,
    /// When the caller no longer waits.
    pub deadline: Instant,
    /// Whom the job counts for.
    pub turn: Turn,
}

/// How a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Not yet opened, or opened again after it was lost: requests wait.
    Starting,
    /// Open, and the last thing it did was right.
    Ready,
    /// Not to be used; why, and what to do, in the error. Requests are refused at once with it, and the device is tried again.
    Down(DeviceError),
}

/// Figures of a device since the daemon's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Device processes started.
    pub generations: u64,
    /// Signatures returned.
    pub signatures: u64,
    /// Jobs that wait now.
    pub waiting: usize,
    /// Mean time of a signature lately.
    pub service_time: Duration,
}

impl Handle {
    /// Starts the device process, and keeps one running. Needs a tokio runtime.
    #[must_use]
    pub fn start(config: DeviceConfig, start: impl Into<Start>) -> Self {
        let (requests, received) = mpsc::unbounded_channel();
        let (published, health) = watch::channel(Health::Starting);
        let counters = Arc::new(Counters::default());
        tokio::spawn(Dispatcher::new(config, start.into(), received, published, Arc::clone(&counters)).run());
        Self { requests, health, counters }
    }

    /// Signs, verifies against the recorded public key, and returns the signature.
    ///
    /// # Errors
    /// [`DeviceError`]; never later than the deadline.
    pub async fn sign(&self, request: SignRequest) -> Result<Signature, DeviceError> {
        let SignRequest { locator, public_key, algorithm, digest, deadline, turn } = request;
        let work = Work::Sign { algorithm, digest };
        let (request, answered) = Request::new(locator, public_key, work, deadline, turn);
        match self.ask(request, answered).await? {
            Answer::Sign(signature) => Ok(signature),
            Answer::PublicKey(_) => Err(DeviceError::Integrity("it answered another question".to_owned())),
        }
    }

    /// Takes note that one more user has joined a turn: the job of it may be his now.
    pub fn hasten(&self, turn: &Turn) {
        // Who has stopped serving has answered all.
        let _ = self.requests.send(Message::Joined(turn.clone()));
    }

    /// Makes sure that a key is there and is the recorded one.
    ///
    /// # Errors
    /// [`DeviceError`]; `Permanent` where it is missing or another one.
    pub async fn check(
        &self,
        locator: Arc<KeyLocator>,
        public_key: Arc<PublicKey>,
        deadline: Instant,
    ) -> Result<(), DeviceError> {
        let (turn, work) = (Turn::own(), Work::PublicKey);
        let (request, answered) = Request::new(locator, public_key, work, deadline, turn);
        self.ask(request, answered).await.map(drop)
    }

    /// Whether what serves the device still does, by a question that only the device or what is known of it can answer.
    /// An error is an answer; a deadline that passes is none.
    pub async fn is_served(&self, locator: Arc<KeyLocator>, public_key: Arc<PublicKey>, deadline: Instant) -> bool {
        let answer = self.check(locator, public_key, deadline).await;
        !self.requests.is_closed() && answer != Err(DeviceError::Late)
    }

    /// Whether another handle is a clone of this one.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.counters, &other.counters)
    }

    /// How the device is now.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    /// Follows how the device is. Closed when the last handle is dropped.
    #[must_use]
    pub fn health_changes(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// The figures now.
    #[must_use]
    pub fn figures(&self) -> Figures {
        Figures {
            generations: self.counters.generations.load(Ordering::Relaxed),
            signatures: self.counters.signatures.load(Ordering::Relaxed),
            waiting: self.counters.waiting.load(Ordering::Relaxed),
            service_time: Duration::from_nanos(self.counters.service_nanos.load(Ordering::Relaxed)),
        }
    }

    /// Keeps the deadline, whatever becomes of the device and of the task that serves it.
    async fn ask(&self, request: Request, answered: Answered) -> Result<Answer, DeviceError> {
        let deadline = request.deadline;
        if deadline <= Instant::now() {
            return Err(DeviceError::Late);
        }
        let stopped = || DeviceError::Away("the daemon has stopped serving it".to_owned());
        self.requests.send(Message::Request(request)).map_err(|_closed| stopped())?;
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(outcome)) => outcome,
            // A request that nobody waits for any more is dropped unanswered, often before the timer here says so.
            Ok(Err(_closed)) if Instant::now() < deadline => Err(stopped()),
            Ok(Err(_)) | Err(_) => Err(DeviceError::Late),
        }
    }
}

/// The figures as the dispatcher keeps them.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) generations: AtomicU64,
    pub(super) signatures: AtomicU64,
    pub(super) waiting: AtomicUsize,
    pub(super) service_nanos: AtomicU64,
}

/// Between 0.8 and 1.2 times a duration, so that many daemons don't come back at once.
fn jittered(duration: Duration) -> Duration {
    let mut random = [0];
    // Without randomness there is no jitter, nothing worse.
    let _ = aws_lc_rs::rand::fill(&mut random);
    duration * (800 + u32::from(random[0]) * 400 / 255) / 1000
}
