//! One slice of time: what was asked for, and what came of it.

use std::fs;
use std::time::Duration;

/// What to do for a slice.
pub(crate) struct Load {
    pub(crate) clients: usize,
    /// How long each client rests after a signature.
    pub(crate) gap: Duration,
    pub(crate) length: Duration,
}

/// What came of a slice, in seconds: how long each signature took, and the processor time of all who had a part in it.
pub(crate) struct Slice {
    latencies: Vec<f64>,
    length: f64,
    processor: f64,
}

impl Slice {
    pub(crate) fn new(mut latencies: Vec<f64>, length: Duration, processor: f64) -> Self {
        latencies.sort_by(f64::total_cmp);
        Self { latencies, length: length.as_secs_f64(), processor }
    }

    /// Two slices as one.
    pub(crate) fn and(&self, other: &Self) -> Self {
        let latencies = [self.latencies.as_slice(), &other.latencies].concat();
        let length = Duration::from_secs_f64(self.length + other.length);
        Self::new(latencies, length, self.processor + other.processor)
    }

    /// Answers a second.
    pub(crate) fn rate(&self) -> f64 {
        self.count() / self.length
    }

    #[allow(clippy::cast_precision_loss, reason = "nobody answers 2^52 times a second")]
    pub(crate) fn count(&self) -> f64 {
        self.latencies.len() as f64
    }

    /// Processor time of a signature. Unlike the rate it means something on a busy machine too.
    pub(crate) fn processor(&self) -> f64 {
        self.processor / self.count()
    }

    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        self.latencies[(self.latencies.len() - 1) * percent / 100]
    }
}

/// The processor time of a process and all its threads so far, in seconds.
pub(crate) fn processor_time(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // After the name, which may hold anything: state, ten others, user time, system time in ticks of 10 ms (proc(5)).
    let fields = stat.rsplit(") ").next().unwrap().split_whitespace();
    fields.skip(11).take(2).map(|ticks| ticks.parse::<f64>().unwrap() / 100.0).sum()
}
