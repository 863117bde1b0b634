//! What a client may do with a connection beside asking. Sound clients stay far below; what goes beyond costs that
//! connection, and nobody else anything. Floods that h2 itself ends (CONTINUATION, DATA, streams that are reset before they
//! are accepted) are not repeated here.

use std::time::Duration;

use tokio::time::Instant;

use super::frames::{HEADERS, PADDED};

/// What is left to a client, by the frames that it sent (RFC 9113, 6).
pub(super) struct Conduct {
    /// Frames that ask for nothing, such as PING and SETTINGS.
    talk: Allowance,
    /// Requests that are taken back: they have cost us most of their work.
    resets: Allowance,
    offence: Option<&'static str>,
}

impl Conduct {
    pub(super) fn new() -> Self {
        Self { talk: Allowance::new(), resets: Allowance::new(), offence: None }
    }

    /// Takes note of a frame by its header.
    pub(super) fn frame(&mut self, kind: u8, flags: u8, length: usize) {
        let sound = match kind {
            // Clients measure their way with a ping for each answer: asking makes up for that.
            HEADERS => self.talk.earn(),
            DATA if flags & END_STREAM != 0 || length >= SHORT && flags & PADDED == 0 => true,
            RST_STREAM => self.resets.spend(),
            _ => self.talk.spend(),
        };
        if !sound {
            self.offence = Some(if kind == RST_STREAM { "it takes its requests back" } else { "it says too much" });
        }
    }

    /// Why the connection is to be closed.
    pub(super) const fn offence(&self) -> Option<&'static str> {
        self.offence
    }
}

/// So much at once, and so much a second.
struct Allowance {
    left: u32,
    refilled: Instant,
}

impl Allowance {
    fn new() -> Self {
        Self { left: AT_ONCE, refilled: Instant::now() }
    }

    fn earn(&mut self) -> bool {
        self.left = (self.left + FOR_A_REQUEST).min(AT_ONCE);
        true
    }

    /// False where there is nothing left.
    fn spend(&mut self) -> bool {
        if self.left == 0 {
            let elapsed = self.refilled.elapsed().min(REFILLED);
            self.left = u32::try_from(elapsed.as_millis()).unwrap_or_default() * A_SECOND / 1000;
            self.refilled = Instant::now();
        }
        let left = self.left.checked_sub(1);
        self.left = left.unwrap_or_default();
        left.is_some()
    }
}

const AT_ONCE: u32 = 1000;
const A_SECOND: u32 = 100;
const FOR_A_REQUEST: u32 = 4;
/// How long it takes to have everything again.
const REFILLED: Duration = Duration::from_secs((AT_ONCE / A_SECOND) as u64);

const DATA: u8 = 0;
const RST_STREAM: u8 = 3;
const END_STREAM: u8 = 1;
/// A part of a message that is shorter has to be its last: to take it costs more than to send it.
const SHORT: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    const PING: u8 = 6;

    #[test]
    fn a_client_that_asks_may_measure_its_way_for_ever() {
        let mut conduct = Conduct::new();
        for _ in 0..10_000 {
            conduct.frame(HEADERS, 4, 30);
            conduct.frame(DATA, 0, 100);
            conduct.frame(DATA, END_STREAM, 0);
            (0..3).for_each(|_| conduct.frame(PING, 0, 8));
            conduct.frame(DATA, 0, 16_384);
        }
        assert_eq!(conduct.offence(), None);
    }

    #[test]
    fn a_client_that_takes_back_what_it_asked_may_do_so_now_and_then() {
        let mut conduct = Conduct::new();
        for _ in 0..10 {
            for _ in 0..AT_ONCE {
                conduct.frame(HEADERS, 5, 30);
                conduct.frame(RST_STREAM, 0, 4);
            }
            assert_eq!(conduct.offence(), None);
            conduct.resets.refilled -= REFILLED;
        }
        (0..=2 * AT_ONCE).for_each(|_| conduct.frame(RST_STREAM, 0, 4));
        assert!(conduct.offence().is_some());
    }

    #[test]
    fn a_flood_of_any_frame_that_asks_for_nothing_is_an_offence() {
        let data = [(DATA, 0, 0), (DATA, 0, 1), (DATA, PADDED, 16_384)];
        for (kind, flags, length) in
            data.into_iter().chain([(2, 0, 5), (4, 0, 0), (PING, 0, 8), (8, 0, 4), (9, 0, 0), (0xfa, 0, 9)])
        {
            let mut conduct = Conduct::new();
            (0..2 * AT_ONCE).for_each(|_| conduct.frame(kind, flags, length));
            assert!(conduct.offence().is_some(), "{kind} {flags} {length}");
        }
    }
}
