//! What waits in front of a device, and how long it will.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::device::DeviceError;
use crate::device::wire::{Answer, Work};
use crate::key::{KeyLocator, PublicKey};

/// Something that a caller waits for.
pub(super) struct Request {
    pub(super) locator: Arc<KeyLocator>,
    pub(super) public_key: Arc<PublicKey>,
    pub(super) work: Work,
    pub(super) deadline: Instant,
    pub(super) uid: u32,
    pub(super) answer: oneshot::Sender<Result<Answer, DeviceError>>,
    /// To how many device processes it was sent.
    pub(super) sent: u32,
}

impl Request {
    /// Whether somebody still waits. Where the time is over, says so.
    pub(super) fn is_wanted(&self, now: Instant) -> bool {
        !self.answer.is_closed() && now < self.deadline
    }

    /// Answers, unless the caller has gone.
    pub(super) fn answer(self, outcome: Result<Answer, DeviceError>) {
        let _ = self.answer.send(outcome);
    }

    /// Holds an answer against the recorded public key: what fails here never leaves.
    pub(super) fn verified(&self, answer: Answer) -> Result<Answer, DeviceError> {
        match (&self.work, answer) {
            (Work::Sign { algorithm, digest }, Answer::Sign(signature)) => self
                .public_key
                .verify(*algorithm, digest, &signature)
                .map(|()| Answer::Sign(signature))
                .map_err(|bad| DeviceError::Integrity(bad.to_string())),
            (Work::PublicKey, Answer::PublicKey(spki)) if spki == self.public_key.spki() => Ok(Answer::PublicKey(spki)),
            // The same key may be encoded in another way.
            (Work::PublicKey, Answer::PublicKey(spki)) => match PublicKey::from_spki(&spki) {
                Ok(key) if key == *self.public_key => Ok(Answer::PublicKey(spki)),
                _ => Err(DeviceError::Permanent("the key in the device is not the one that was recorded".to_owned())),
            },
            _ => Err(DeviceError::Integrity("it answered another question".to_owned())),
        }
    }
}

/// The waiting requests, first come, first served. The only place that decides whose turn it is.
pub(super) struct Queue {
    waiting: VecDeque<Request>,
    limit: usize,
}

impl Queue {
    pub(super) fn new(limit: usize) -> Self {
        Self { waiting: VecDeque::new(), limit }
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= self.limit
    }

    /// Adds a request, or gives it back where the queue is full of requests that somebody waits for.
    pub(super) fn push(&mut self, request: Request) -> Result<(), Request> {
        if self.is_full() {
            let now = Instant::now();
            self.waiting.retain(|request| request.is_wanted(now));
        }
        if self.is_full() {
            return Err(request);
        }
        self.waiting.push_back(request);
        Ok(())
    }

    /// Puts back a request that has had its turn in vain.
    pub(super) fn push_front(&mut self, request: Request) {
        self.waiting.push_front(request);
    }

    /// The next request that somebody still waits for.
    pub(super) fn pop(&mut self) -> Option<Request> {
        let now = Instant::now();
        while let Some(request) = self.waiting.pop_front() {
            if request.is_wanted(now) {
                return Some(request);
            }
            tracing::trace!(uid = request.uid, "dropped a request whose caller has gone");
        }
        None
    }
}

/// How long a device takes, as seen lately.
#[derive(Default)]
pub(super) struct Pace {
    service: Duration,
}

impl Pace {
    /// Takes note of a job that took this long and went through the device's workers in this round.
    pub(super) fn record(&mut self, elapsed: Duration, round: u32) {
        let service = elapsed / round.max(1);
        self.service = if self.service.is_zero() { service } else { (self.service * 7 + service) / 8 };
    }

    /// The mean time of a job.
    pub(super) const fn service(&self) -> Duration {
        self.service
    }

    /// How long until a worker has done one more job, after those that are ahead of it. Zero where a worker is idle: a
    /// device that was slow once must get the chance to be faster.
    pub(super) fn wait(&self, ahead: usize, workers: usize) -> Duration {
        if ahead < workers {
            return Duration::ZERO;
        }
        self.service * u32::try_from(ahead / workers.max(1) + 1).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    #[test]
    fn an_idle_worker_is_never_waited_for() {
        let mut pace = Pace::default();
        pace.record(MILLISECOND * 1000, 1);
        assert_eq!(pace.wait(0, 1), Duration::ZERO);
        assert_eq!(pace.wait(3, 4), Duration::ZERO);
    }

    #[test]
    fn the_wait_grows_with_what_is_ahead_and_shrinks_with_workers() {
        let mut pace = Pace::default();
        pace.record(MILLISECOND * 10, 1);
        assert_eq!(pace.wait(1, 1), MILLISECOND * 20);
        assert_eq!(pace.wait(100, 1), MILLISECOND * 1010);
        assert_eq!(pace.wait(100, 4), MILLISECOND * 260);
    }

    #[test]
    fn a_job_that_waited_in_the_process_counts_for_one_round_of_two() {
        let mut pace = Pace::default();
        pace.record(MILLISECOND * 20, 2);
        assert_eq!(pace.service(), MILLISECOND * 10);
    }

    #[test]
    fn one_slow_job_is_forgotten() {
        let mut pace = Pace::default();
        pace.record(MILLISECOND * 10, 1);
        pace.record(MILLISECOND * 5000, 1);
        for _ in 0..60 {
            pace.record(MILLISECOND * 10, 1);
        }
        assert!(pace.service() < MILLISECOND * 11, "{:?}", pace.service());
    }
}
