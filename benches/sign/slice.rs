//! One slice of time: what was asked for, and what came of it.

use std::time::Duration;

/// What to do for a slice.
pub(crate) struct Load {
    pub(crate) clients: usize,
    /// How long each client rests after a signature.
    pub(crate) gap: Duration,
    pub(crate) length: Duration,
}

/// What came of a slice: how long each signature took, in seconds.
pub(crate) struct Slice {
    latencies: Vec<f64>,
    length: f64,
}

impl Slice {
    pub(crate) fn new(mut latencies: Vec<f64>, length: Duration) -> Self {
        latencies.sort_by(f64::total_cmp);
        Self { latencies, length: length.as_secs_f64() }
    }

    /// Two slices as one.
    pub(crate) fn and(&self, other: &Self) -> Self {
        let latencies = [self.latencies.as_slice(), &other.latencies].concat();
        Self::new(latencies, Duration::from_secs_f64(self.length + other.length))
    }

    /// Signatures a second.
    #[allow(clippy::cast_precision_loss, reason = "nobody signs 2^52 times a second")]
    pub(crate) fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.length
    }

    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        self.latencies[(self.latencies.len() - 1) * percent / 100]
    }
}
