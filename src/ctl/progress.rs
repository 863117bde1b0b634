//! What is under way, shown while it is.

use std::fmt;
use std::io::{self, IsTerminal as _};
use std::time::Duration;

use super::Global;

/// A spinner on a terminal that goes when it is dropped.
pub(super) struct Progress<'a> {
    global: &'a Global,
    bar: Option<indicatif::ProgressBar>,
}

impl Global {
    /// Shows that something is under way, on a terminal, until the result is dropped.
    pub(super) fn progress(&self, text: impl fmt::Display) -> Progress<'_> {
        if self.quiet || !io::stderr().is_terminal() {
            return Progress { global: self, bar: None };
        }
        let bar = indicatif::ProgressBar::new_spinner().with_message(text.to_string());
        bar.enable_steady_tick(Duration::from_millis(120));
        Progress { global: self, bar: Some(bar) }
    }
}

impl Progress<'_> {
    /// Tells how far it is.
    pub(super) fn say(&self, text: String) {
        if let Some(bar) = &self.bar {
            bar.set_message(text);
        }
    }

    /// Tells what a person must know who waits, also where there is no terminal.
    pub(super) fn insist(&self, text: String) {
        match &self.bar {
            Some(bar) => bar.set_message(text),
            None => self.global.note(text),
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
