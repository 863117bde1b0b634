//! What a process says on standard error: one line for each event.
//!
//! From [`detach`] on a thread writes, so that a pipe or a journal that nobody reads holds up nothing else. What it can't write
//! is kept up to a bound; beyond it lines are lost, and the next line that can be written tells how many.

use std::cell::Cell;
use std::io::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Standard error, without the control characters that a text from elsewhere might bring: a line is a line.
#[derive(Clone, Copy, Debug)]
pub struct StandardError {
    /// Whether colours are ours: then tracing-subscriber escapes those of others.
    pub ansi: bool,
}

impl Write for StandardError {
    /// Takes one event, which ends with its newline.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = escaped(event, self.ansi);
        let mut lines = LINES.lock();
        if lines.detached && !WRITES.get() {
            lines.add(&line);
            LINES.changed.notify_all();
        } else {
            drop(lines);
            io::stderr().lock().write_all(&line)?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Has a thread write what is said from now on. It is as confined as the calling thread is by then.
///
/// # Errors
/// Where there can be no more threads.
pub fn detach() -> io::Result<()> {
    std::thread::Builder::new().name("log".to_owned()).spawn(write)?;
    LINES.lock().detached = true;
    Ok(())
}

/// Waits until all that was said is written, but no longer than this. False where nobody reads it.
pub fn flush(patience: Duration) -> bool {
    let waits = |lines: &mut Waiting| lines.writing || !lines.text.is_empty();
    let waited = LINES.changed.wait_timeout_while(LINES.lock(), patience, waits);
    !waits(&mut waited.unwrap_or_else(PoisonError::into_inner).0)
}

static LINES: Lines = Lines {
    waiting: Mutex::new(Waiting { text: Vec::new(), lost: 0, writing: false, detached: false }),
    changed: Condvar::new(),
};

thread_local! {
    /// Whether this is the thread that writes: nobody would do so for it.
    static WRITES: Cell<bool> = const { Cell::new(false) };
}

struct Lines {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

struct Waiting {
    /// Whole lines.
    text: Vec<u8>,
    /// How many had no room since the last was told.
    lost: u64,
    /// Whether some are being written.
    writing: bool,
    detached: bool,
}

impl Lines {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn add(&mut self, line: &[u8]) {
        if self.text.len() + line.len() > MOST_KEPT {
            self.lost += 1;
        } else {
            self.text.extend_from_slice(line);
        }
    }
}

fn write() {
    WRITES.set(true);
    let mut lines = LINES.lock();
    loop {
        let none = |lines: &mut Waiting| lines.text.is_empty();
        lines = LINES.changed.wait_while(lines, none).unwrap_or_else(PoisonError::into_inner);
        lines.writing = true;
        let (text, lost) = (std::mem::take(&mut lines.text), std::mem::take(&mut lines.lost));
        drop(lines);
        // Where it goes nowhere there is nobody to tell.
        let _ = io::stderr().lock().write_all(&text);
        if lost > 0 {
            tracing::warn!(lines = lost, "lines of the log are lost: nobody read standard error");
        }
        lines = LINES.lock();
        lines.writing = false;
        LINES.changed.notify_all();
    }
}

fn escaped(event: &[u8], ansi: bool) -> Vec<u8> {
    let line = event.strip_suffix(b"\n").unwrap_or(event);
    let mut escaped = Vec::with_capacity(event.len());
    for byte in line {
        if byte.is_ascii_control() && !(ansi && *byte == b'\x1b') {
            escaped.extend(byte.escape_ascii());
        } else {
            escaped.push(*byte);
        }
    }
    escaped.push(b'\n');
    escaped
}

/// Some thousand lines.
const MOST_KEPT: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_from_elsewhere_forges_no_line() {
        let event = b"INFO took account=a\r\n2026 ERROR forged \x1b[31m\0\n";
        assert_eq!(
            escaped(event, false),
            br"INFO took account=a\r\n2026 ERROR forged \x1b[31m\x00"[..]
                .iter()
                .chain(b"\n")
                .copied()
                .collect::<Vec<_>>()
        );
    }
}
