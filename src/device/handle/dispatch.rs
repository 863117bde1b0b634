//! The one task behind a [`super::Handle`]: it owns the queue, the device process and every decision about them.
//!
//! Generations: a device process that is lost (dead, silent beyond the call limit, talking nonsense, reporting that its
//! device is away or lies) is killed, and another is started after a pause. What was in flight is sent once more. A
//! generation that ends without one right answer right after another was lost, or that can't open its device, means that the
//! device is down: from then on requests are refused at once, until a process has opened it again and, where the device has
//! signed before, has signed once more for nobody.
//!
//! After a refused PIN no process is started while the latch is closed; and none at all where the refusal of a device that
//! was open did not close it, for then the latch could not be written.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;

use super::child::{DeviceProcess, ended, nonsense};
use super::generation::{FAR, Generation, InFlight, Phase};
use super::queue::{Message, Pace, Queue, Request};
use super::sight::Sight;
use super::suspects::Suspects;
use super::{Counters, Health, Start, jittered};
use crate::device::wire::{self, Answer, Done, Job, Report};
use crate::device::{DeviceConfig, DeviceError, latch};

pub(super) struct Dispatcher {
    config: DeviceConfig,
    start: Start,
    requests: mpsc::UnboundedReceiver<Message>,
    queue: Queue,
    pace: Pace,
    phase: Phase,
    /// What the device process has not answered yet, by id, so the oldest first.
    in_flight: BTreeMap<u64, InFlight>,
    last_id: u64,
    suspects: Suspects,
    /// Generations lost in a row; one that gave a right answer begins the count at 1.
    losses: u32,
    sight: Sight,
    /// When there is something to do even if nothing arrives.
    wake: Instant,
    /// A killed process may live on in a driver; it may have one successor, not many.
    processes: Arc<Semaphore>,
    health: watch::Sender<Health>,
    counters: Arc<Counters>,
}

impl Dispatcher {
    pub(super) fn new(
        config: DeviceConfig,
        start: Start,
        requests: mpsc::UnboundedReceiver<Message>,
        health: watch::Sender<Health>,
        counters: Arc<Counters>,
    ) -> Self {
        let now = Instant::now();
        Self {
            queue: Queue::new(config.queue),
            config,
            start,
            requests,
            pace: Pace::default(),
            phase: Phase::Resting { until: now },
            in_flight: BTreeMap::new(),
            last_id: 0,
            suspects: Suspects::default(),
            losses: 0,
            sight: Sight::default(),
            wake: now,
            processes: Arc::new(Semaphore::new(2)),
            health,
            counters,
        }
    }

    /// Serves until the last handle is dropped.
    pub(super) async fn run(mut self) {
        let mut arrived = Vec::new();
        let mut sleep = std::pin::pin!(tokio::time::sleep_until(self.wake));
        loop {
            tokio::select! {
                biased;
                () = &mut sleep => {
                    // Nothing that has been said already is late, however late this is.
                    while let Phase::Running(generation) = &mut self.phase
                        && let Some(received) = generation.process.try_receive()
                    {
                        self.on_received(received);
                    }
                    self.on_time();
                }
                received = self.phase.receive() => self.on_received(received),
                count = self.requests.recv_many(&mut arrived, BATCH) => {
                    if count == 0 {
                        return;
                    }
                    arrived.drain(..).for_each(|message| self.admit(message));
                }
            }
            self.dispatch();
            self.counters.waiting.store(self.queue.len(), Relaxed);
            if sleep.deadline() != self.wake {
                sleep.as_mut().reset(self.wake);
            }
        }
    }

    /// Queues a request, or refuses it at once where waiting would be in vain.
    fn admit(&mut self, message: Message) {
        let mut request = match message {
            Message::Request(request) => request,
            Message::Joined(turn) => return self.queue.hasten(&turn),
        };
        if let Health::Down(error) = &*self.health.borrow() {
            return request.answer(Err(error.clone()));
        }
        if self.queue.is_full() {
            self.dispatch();
        }
        request.uid = self.queue.first_of(&request.turn);
        let (ahead, workers) = (self.queue.most_ahead_of(request.uid) + self.in_flight.len(), self.phase.workers());
        if workers > 0 && !request.is_promising(Instant::now(), self.pace.wait(ahead, workers)) {
            return self.refuse(request);
        }
        if let Some(refused) = self.queue.push(request) {
            self.refuse(refused);
        }
    }

    /// Refuses a request, with how long one more of its user would take.
    fn refuse(&self, request: Request) {
        let ahead = self.queue.ahead_of(request.uid) + self.in_flight.len();
        request.refuse(self.pace.wait(ahead, self.phase.workers()));
    }

    /// Sends what the process can use: enough for each worker that none is ever idle, and little is done in vain.
    fn dispatch(&mut self) {
        let Phase::Running(generation) = &mut self.phase else { return };
        let (now, clock, workers) = (Instant::now(), wire::now(), generation.workers);
        while self.in_flight.len() < workers * self.pace.jobs() {
            let Some(mut request) = self.queue.pop(now, self.pace.wait(self.in_flight.len(), workers)) else { break };
            if let Some(refusal) = self.suspects.refusal(&request) {
                request.answer(Err(refusal));
                continue;
            }
            self.last_id += 1;
            let deadline = clock + (request.deadline - now);
            let job = Job { id: self.last_id, deadline, locator: &*request.locator, work: request.work };
            match generation.process.send(&job) {
                Ok(()) => {}
                // It has not yet taken what is in flight: there will be reports, and another look.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.queue.put_back(request);
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    request.answer(Err(DeviceError::Permanent(format!("its locator can't be sent: {error}"))));
                    continue;
                }
                Err(error) => {
                    self.queue.put_back(request);
                    return self.lose(ended(&error));
                }
            }
            request.sent += 1;
            let round = self.in_flight.len() / workers + 1;
            self.in_flight.insert(self.last_id, InFlight { request, sent: now, round, limit: None });
        }
        // The oldest are what the workers are at.
        for job in self.in_flight.values_mut().take(workers).filter(|job| job.limit.is_none()) {
            self.wake = self.wake.min(*job.limit.insert(now + self.config.call_limit));
        }
    }

    fn on_received(&mut self, received: io::Result<Report>) {
        match received {
            Ok(report) => self.on_report(report),
            Err(error) => self.lose(ended(&error)),
        }
    }

    fn on_report(&mut self, report: Report) {
        let Phase::Running(generation) = &mut self.phase else { return };
        match report {
            Report::Opened { workers } if generation.workers == 0 => {
                generation.workers = usize::try_from(workers).unwrap_or(usize::MAX).clamp(1, MOST_WORKERS);
                let now = Instant::now();
                self.wake = now + FAR;
                match self.suspects.probe(self.losses, now + self.config.call_limit) {
                    Some((probe, answered)) if matches!(*self.health.borrow(), Health::Down(_)) => {
                        generation.probe = Some(answered);
                        self.queue.put_back(probe);
                    }
                    _ => self.publish(Health::Ready),
                }
            }
            Report::Refused(error) if generation.workers == 0 => self.lose(error),
            Report::Done(done) if !done.is_empty() => done.into_iter().for_each(|done| self.on_done(done)),
            // So each report is of something that was asked for, and they have an end.
            _ => self.lose(nonsense(&"a report of nothing")),
        }
    }

    fn on_done(&mut self, Done { id, outcome }: Done) {
        // What it says after a loss is not believed.
        let Phase::Running(generation) = &mut self.phase else { return };
        let Some(job) = self.in_flight.remove(&id) else { return self.lose(nonsense(&"an answer to nothing")) };
        if outcome.is_ok() {
            self.pace.record(job.sent.elapsed(), job.round);
            let service = u64::try_from(self.pace.service().as_nanos()).unwrap_or(u64::MAX);
            self.counters.service_nanos.store(service, Relaxed);
        }
        let lost = match outcome.and_then(|answer| job.request.verified(answer)) {
            Ok(answer) => {
                generation.right = true;
                self.sight.clear();
                self.suspects.clear(&job.request);
                if matches!(answer, Answer::Sign(_)) {
                    self.counters.signatures.fetch_add(1, Relaxed);
                }
                job.request.answer(Ok(answer));
                return self.let_in();
            }
            Err(error @ (DeviceError::Away(_) | DeviceError::Integrity(_))) if self.suspects.blame(&job.request) => {
                generation.right = true;
                job.request.answer(Err(error.clone()));
                error
            }
            Err(error @ DeviceError::Away(_)) => {
                self.queue.retry(job.request, &error);
                error
            }
            Err(error @ (DeviceError::Integrity(_) | DeviceError::PinRefused(_))) => {
                job.request.answer(Err(error.clone()));
                error
            }
            Err(error @ DeviceError::Permanent(_)) if self.sight.misses() => {
                job.request.answer(Err(error.clone()));
                error
            }
            Err(error) => {
                job.request.answer(Err(error));
                return self.let_in();
            }
        };
        self.lose(lost);
    }

    /// The device has answered: where that was the probe, whatever it says of its key, requests are let in.
    fn let_in(&mut self) {
        if let Phase::Running(generation) = &mut self.phase
            && generation.probe.take().is_some()
        {
            self.publish(Health::Ready);
        }
    }

    fn on_time(&mut self) {
        let (now, limit) = (Instant::now(), self.config.call_limit);
        match &mut self.phase {
            Phase::Resting { until } if *until <= now => self.start(),
            Phase::Latched { look, .. } if *look <= now => self.look_at_latch(),
            Phase::Running(generation) => {
                let opening = generation.workers == 0 && generation.started + limit <= now;
                if opening || self.in_flight.values().filter_map(|job| job.limit).any(|limit| limit <= now) {
                    let slow = format!("a call took longer than {limit:?}, so its process was ended");
                    self.lose(DeviceError::Away(slow));
                }
            }
            _ => {}
        }
        self.wake = self.phase.wake(limit, self.in_flight.values());
    }

    fn start(&mut self) {
        let Ok(permit) = Arc::clone(&self.processes).try_acquire_owned() else {
            let blocked = "a killed device process has not ended: its device blocks it".to_owned();
            return self.down(DeviceError::Away(blocked), PROBE);
        };
        match DeviceProcess::start(&self.start, &self.config, permit) {
            Ok(process) => {
                self.counters.generations.fetch_add(1, Relaxed);
                self.sight.clear();
                self.phase = Phase::Running(Box::new(Generation::new(process)));
            }
            Err(error) => self.down(error, PROBE),
        }
    }

    fn look_at_latch(&mut self) {
        let open = latch::look(&self.config.latch_file);
        let Phase::Latched { seen_closed, look } = &mut self.phase else { return };
        match open {
            Ok(()) if *seen_closed => return self.start(),
            Err(DeviceError::PinRefused(_)) => *seen_closed = true,
            _ => {}
        }
        *look = Instant::now() + jittered(PROBE);
    }

    /// This generation is over, whatever it would still do.
    fn lose(&mut self, error: DeviceError) {
        let phase = std::mem::replace(&mut self.phase, Phase::Resting { until: Instant::now() });
        let Phase::Running(mut generation) = phase else { return };
        generation.process.kill();
        for job in std::mem::take(&mut self.in_flight).into_values().rev() {
            if self.suspects.blame(&job.request) {
                generation.right = true;
                job.request.answer(Err(error.clone()));
            } else {
                self.queue.retry(job.request, &error);
            }
        }
        self.losses = if generation.right { 1 } else { self.losses + 1 };
        // Once for those that were lost one after the other; what it is now is for whoever follows the health to tell.
        if generation.workers > 0 && self.losses == 1 {
            tracing::warn!(device = %self.config.name, "lost a device process: {error}");
        }
        let opened = generation.workers > 0;
        let pause = match error {
            DeviceError::Permanent(_) | DeviceError::Misconfigured(_) if !opened => PROBE,
            _ => SHORTEST_PAUSE.saturating_mul(1 << (self.losses - 1).min(8)).min(LONGEST_PAUSE),
        };
        if matches!(error, DeviceError::PinRefused(_)) {
            // Looked at before anybody hears of the refusal and clears it. What could not be opened may have been refused
            // before any login (a locked PIN): no harm in asking again, for a login leaves its mark before it is tried.
            let latch = latch::look(&self.config.latch_file);
            let seen_closed = !opened || matches!(latch, Err(DeviceError::PinRefused(_)));
            self.down(error, PROBE);
            self.phase = Phase::Latched { seen_closed, look: self.wake };
        } else if !opened || self.losses > 1 {
            self.down(error, pause);
        } else {
            self.publish(Health::Starting);
            self.rest(pause);
        }
    }

    /// Refuses what waits and what comes, until the device is ready again.
    fn down(&mut self, error: DeviceError, pause: Duration) {
        while let Some(request) = self.queue.pop(Instant::now(), Duration::ZERO) {
            request.answer(Err(error.clone()));
        }
        self.publish(Health::Down(error));
        self.rest(pause);
    }

    fn rest(&mut self, pause: Duration) {
        self.wake = Instant::now() + jittered(pause);
        self.phase = Phase::Resting { until: self.wake };
    }

    fn publish(&self, health: Health) {
        self.health.send_if_modified(|published| std::mem::replace(published, health.clone()) != health);
    }
}

/// How many requests are taken from the channel at once.
const BATCH: usize = 64;
/// A process that claims more is not believed.
const MOST_WORKERS: usize = 256;
/// The pause before a lost process is followed by another: doubled while generations end without a right answer.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How often a device is tried that an operator must mend.
const PROBE: Duration = Duration::from_secs(1);
