//! One device process after another, each with what came of it.

use std::io;
use std::time::Duration;

use tokio::time::Instant;

use super::child::DeviceProcess;
use super::queue::{Answered, Request};
use crate::device::wire::Report;

/// What is being done about the device.
pub(super) enum Phase {
    /// No process; the next is started then.
    Resting { until: Instant },
    /// The PIN was refused: no process until the latch, which must have been closed, is open.
    Latched { seen_closed: bool, look: Instant },
    /// A process runs.
    Running(Box<Generation>),
}

impl Phase {
    pub(super) async fn receive(&mut self) -> io::Result<Report> {
        match self {
            Self::Running(generation) => generation.process.receive().await,
            _ => std::future::pending().await,
        }
    }

    pub(super) fn workers(&self) -> usize {
        match self {
            Self::Running(generation) => generation.workers,
            _ => 0,
        }
    }

    /// When there is something to do even if nothing arrives: what was sent has so long from when a worker is at it.
    pub(super) fn wake<'a>(&self, call_limit: Duration, in_flight: impl Iterator<Item = &'a InFlight>) -> Instant {
        match self {
            Self::Resting { until } => *until,
            Self::Latched { look, .. } => *look,
            Self::Running(generation) if generation.workers == 0 => generation.started + call_limit,
            Self::Running(_) => in_flight.filter_map(|job| job.limit).min().unwrap_or_else(|| Instant::now() + FAR),
        }
    }
}

/// A device process, and what came of it so far.
pub(super) struct Generation {
    pub(super) process: DeviceProcess,
    /// None before the device is open.
    pub(super) workers: usize,
    pub(super) started: Instant,
    /// It has given a right answer.
    pub(super) right: bool,
    /// Where nobody is let in before it has signed for nobody: the way of that signature.
    pub(super) probe: Option<Answered>,
}

impl Generation {
    pub(super) fn new(process: DeviceProcess) -> Self {
        Self { process, workers: 0, started: Instant::now(), right: false, probe: None }
    }
}

/// What a device process was sent and has not answered yet.
pub(super) struct InFlight {
    pub(super) request: Request,
    pub(super) sent: Instant,
    /// 1 where a worker was idle when it was sent, 2 where each had one job, and so on.
    pub(super) round: usize,
    /// When its process is killed for it: none before a worker is at it.
    pub(super) limit: Option<Instant>,
}

/// Nothing to wake up for.
pub(super) const FAR: Duration = Duration::from_secs(24 * 60 * 60);
