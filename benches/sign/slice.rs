//! One slice of time: what was asked for, and what came of it.

use std::collections::HashSet;
use std::fs;
use std::future::Future;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use serde::Serialize;

/// What to do for a slice.
#[derive(Clone, Copy)]
pub(crate) struct Load {
    pub(crate) clients: usize,
    /// How long each client rests after an answer.
    pub(crate) gap: Duration,
    pub(crate) length: Duration,
}

/// What came of a slice, in seconds: how long each answer took, and the processor time of all who had a part in it.
pub(crate) struct Slice {
    latencies: Vec<f64>,
    length: f64,
    processor: Processor,
}

/// Who spends processor time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Part {
    Client,
    Daemon,
    Launcher,
    Device,
    Tpm,
}

/// Processor time by who spends it, in seconds.
#[derive(Clone, Copy, Default)]
pub(crate) struct Processor([f64; Part::ALL.len()]);

impl Part {
    pub(crate) const ALL: [Self; 5] = [Self::Device, Self::Tpm, Self::Launcher, Self::Daemon, Self::Client];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Daemon => "daemon",
            Self::Launcher => "launcher",
            Self::Device => "device process",
            Self::Tpm => "TPM in software",
        }
    }
}

impl Processor {
    /// What these processes have used since their start. One that is gone counts for nothing.
    pub(crate) fn of(processes: impl IntoIterator<Item = (Part, u32)>) -> Self {
        let mut used = Self::default();
        for (part, pid) in processes {
            used.0[part as usize] += processor_time(pid);
        }
        used
    }

    pub(crate) fn since(self, before: Self) -> Self {
        Self(std::array::from_fn(|part| self.0[part] - before.0[part]))
    }

    pub(crate) fn part(self, part: Part) -> f64 {
        self.0[part as usize]
    }

    pub(crate) fn total(self) -> f64 {
        self.0.iter().sum()
    }
}

/// Who asks for one thing after the other.
pub(crate) trait Asker: Send + 'static {
    /// Asks, and waits for the answer.
    fn ask(&mut self, number: usize) -> impl Future<Output = ()> + Send;
}

impl Load {
    /// Has each client ask for a slice, one request after the other.
    pub(crate) async fn run<A: Asker>(
        &self,
        clients: impl Iterator<Item = A>,
        processor: impl Fn() -> Processor,
    ) -> Slice {
        let before = processor();
        let begun = Instant::now();
        let (end, gap) = (begun + self.length, self.gap);
        let clients: Vec<_> =
            clients.take(self.clients).map(|client| tokio::spawn(ask_until(client, end, gap))).collect();
        let mut latencies = Vec::new();
        for client in clients {
            latencies.extend(client.await.unwrap());
        }
        Slice::new(latencies, begun.elapsed(), processor().since(before))
    }
}

async fn ask_until(mut client: impl Asker, end: Instant, gap: Duration) -> Vec<f64> {
    let mut latencies = Vec::new();
    while Instant::now() < end {
        let begun = Instant::now();
        client.ask(latencies.len()).await;
        latencies.push(begun.elapsed().as_secs_f64());
        if !gap.is_zero() {
            tokio::time::sleep(gap).await;
        }
    }
    latencies
}

impl Slice {
    pub(crate) fn new(mut latencies: Vec<f64>, length: Duration, processor: Processor) -> Self {
        latencies.sort_by(f64::total_cmp);
        Self { latencies, length: length.as_secs_f64(), processor }
    }

    /// Several slices as one.
    pub(crate) fn sum<'a>(slices: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut sum = Self { latencies: Vec::new(), length: 0.0, processor: Processor::default() };
        for slice in slices {
            sum.latencies.extend(&slice.latencies);
            sum.length += slice.length;
            sum.processor = Processor(std::array::from_fn(|part| sum.processor.0[part] + slice.processor.0[part]));
        }
        sum.latencies.sort_by(f64::total_cmp);
        sum
    }

    /// Answers a second.
    pub(crate) fn rate(&self) -> f64 {
        self.count() / self.length
    }

    #[allow(clippy::cast_precision_loss, reason = "nobody answers 2^52 times a second")]
    pub(crate) fn count(&self) -> f64 {
        self.latencies.len() as f64
    }

    /// Processor time of an answer. Unlike the rate it means something on a busy machine too.
    pub(crate) fn processor(&self) -> f64 {
        self.processor.total() / self.count()
    }

    pub(crate) fn processor_of(&self, part: Part) -> f64 {
        self.processor.part(part) / self.count()
    }

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a percentile of a few latencies"
    )]
    pub(crate) fn percentile(&self, percent: f64) -> f64 {
        let last = self.latencies.len() - 1;
        self.latencies[(last as f64 * percent / 100.0).round() as usize]
    }
}

/// The processor time of a process and all its threads so far, in seconds.
fn processor_time(pid: u32) -> f64 {
    let clock = clock_getcpuclockid(Pid::from_raw(pid.try_into().unwrap()));
    clock.and_then(|clock| clock.now()).map_or(0.0, |time| Duration::from(time).as_secs_f64())
}

/// The resident memory of a process, in MiB.
pub(crate) fn memory(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    resident.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}

/// The resident memory of several processes, in MiB, where a page that they share counts once (Linux's
/// Documentation/admin-guide/mm/pagemap.rst). NaN where this is not root, who alone may see that.
#[allow(clippy::cast_precision_loss, reason = "nobody has 2^52 pages")]
pub(crate) fn pages(processes: impl IntoIterator<Item = u32>) -> f64 {
    const PRESENT: u64 = 1 << 63;
    const NUMBER: u64 = (1 << 55) - 1;
    let mut pages = HashSet::new();
    for pid in processes {
        let pagemap = fs::File::open(format!("/proc/{pid}/pagemap")).unwrap();
        for mapping in fs::read_to_string(format!("/proc/{pid}/maps")).unwrap().lines() {
            let (begin, end) = mapping.split_once(' ').unwrap().0.split_once('-').unwrap();
            let [begin, end] = [begin, end].map(|address| u64::from_str_radix(address, 16).unwrap() / PAGE);
            let mut entries = vec![0; usize::try_from(end - begin).unwrap() * 8];
            // What is no memory of the process's, such as vsyscall, has no entries.
            let read = pagemap.read_at(&mut entries, begin * 8).unwrap_or_default();
            let entries = entries[..read].chunks_exact(8).map(|entry| u64::from_ne_bytes(entry.try_into().unwrap()));
            pages.extend(entries.filter(|entry| entry & PRESENT != 0).map(|entry| entry & NUMBER));
        }
    }
    // To others all pages have the number 0.
    if pages.len() < 2 { f64::NAN } else { pages.len() as f64 * PAGE as f64 / 1024.0 / 1024.0 }
}

/// A process with its children and theirs, each with how far from the first it is.
pub(crate) fn family(pid: u32) -> Vec<(usize, u32)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten();
    let children: String =
        tasks.map(|task| fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default()).collect();
    let children = children.split_whitespace().map(|child| child.parse().unwrap());
    let below = children.flat_map(family).map(|(depth, pid)| (depth + 1, pid));
    std::iter::once((0, pid)).chain(below).collect()
}

const PAGE: u64 = 4096;
