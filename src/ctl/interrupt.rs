//! Ctrl-C while a key is being made: the key is removed again, or the person is told where it is.

use std::process;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use nix::sys::signal::{SigSet, Signal};

use super::device::Leftover;
use super::end_in_time;
use super::failure::Failure;
use crate::device::latch;

/// Signals that would end the process, held back from now on and waited for by a thread of their own.
pub(crate) struct Interrupts(Arc<Mutex<Phase>>);

enum Phase {
    /// Nothing was made: a signal ends the process.
    Idle,
    /// A key is being made.
    Making(Leftover),
    /// A signal came while a key was being made: it is to be undone.
    Interrupted(Leftover),
}

impl Interrupts {
    /// Holds the signals back. Threads inherit that, so it comes before a device's module starts any.
    pub(crate) fn hold() -> Result<Self, Failure> {
        let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
        signals.thread_block().map_err(Failure::new)?;
        let phase = Arc::new(Mutex::new(Phase::Idle));
        let watched = Arc::clone(&phase);
        thread::spawn(move || {
            while signals.wait().is_ok() {
                on_signal(&watched);
            }
        });
        Ok(Self(phase))
    }

    /// From here on a key may exist that must be recorded or removed again.
    pub(crate) fn begin(&self, leftover: Leftover) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Phase::Making(leftover);
    }

    /// Whether a signal came since [`Self::begin`].
    pub(crate) fn arrived(&self) -> bool {
        matches!(*self.0.lock().unwrap_or_else(PoisonError::into_inner), Phase::Interrupted(_))
    }

    /// All is finished or undone.
    pub(crate) fn end(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Phase::Idle;
    }
}

fn on_signal(phase: &Mutex<Phase>) {
    // The lock is held until the process has ended: nothing goes on behind the message.
    let mut phase = phase.lock().unwrap_or_else(PoisonError::into_inner);
    let ending = match &*phase {
        Phase::Idle => Failure::new("interrupted; nothing was changed"),
        Phase::Making(leftover) => {
            eprintln!("interrupted: waiting for the device, to remove the new key again; once more leaves at once");
            *phase = Phase::Interrupted(leftover.clone());
            return;
        }
        Phase::Interrupted(leftover) => leftover.told_with(Failure::new("interrupted twice")),
    };
    latch::settle();
    ending.report();
    end_in_time();
    process::exit(1);
}
