//! The bare device: this program again, which opens the device as a device process does and signs in a loop.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use signet::config::Config;
use signet::device;
use signet::key::Digest;
use signet::keyring::{KeyRecord, Keyring};

use crate::slice::{Load, Slice, processor_time};
use crate::stand::{Device, Running};

/// What the program is told to be the bare device with, and a configuration.
pub(crate) const SUBCOMMAND: &str = "bare-device";

/// The bare device's process.
pub(crate) struct Raw {
    orders: ChildStdin,
    results: BufReader<ChildStdout>,
    process: Running,
    tpm: Option<u32>,
}

impl Raw {
    pub(crate) fn start(device: &Device) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg(SUBCOMMAND).arg(device.config()).env("SOFTHSM2_CONF", device.softhsm_conf());
        let mut process = Running(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
        let orders = process.0.stdin.take().unwrap();
        let results = BufReader::new(process.0.stdout.take().unwrap());
        Self { orders, results, process, tpm: device.tpm() }
    }

    /// Signs for a slice, in as many threads as there are clients, but no more than the device has workers.
    pub(crate) fn run(&mut self, load: &Load) -> Slice {
        let before = self.processor_time();
        let order = (load.clients, load.gap, load.length);
        writeln!(self.orders, "{}", serde_json::to_string(&order).unwrap()).unwrap();
        let mut line = String::new();
        self.results.read_line(&mut line).unwrap();
        let (latencies, length): (Vec<f64>, Duration) = serde_json::from_str(&line).unwrap();
        Slice::new(latencies, length, self.processor_time() - before)
    }

    fn processor_time(&self) -> f64 {
        self.tpm.into_iter().chain([self.process.0.id()]).map(processor_time).sum()
    }
}

/// What the process does: a line is an order, and the answer is one.
pub(crate) fn serve(config: &Path) {
    let config = Config::load(config).unwrap();
    let key = Keyring::load(&config.state_dir).unwrap().keys.remove(0);
    let mut workers = device::open(&config.devices[0]).unwrap();
    for worker in &mut workers {
        sign(&mut **worker, &key, 0);
    }
    for line in std::io::stdin().lines() {
        let (clients, gap, length): (usize, Duration, Duration) = serde_json::from_str(&line.unwrap()).unwrap();
        let threads = clients.min(workers.len());
        let start = Barrier::new(threads + 1);
        let (latencies, elapsed) = std::thread::scope(|scope| {
            let loops: Vec<_> = workers
                .iter_mut()
                .take(threads)
                .map(|worker| scope.spawn(|| sign_for(&mut **worker, &key, &start, gap, length)))
                .collect();
            start.wait();
            let begun = Instant::now();
            let latencies: Vec<_> = loops.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
            (latencies, begun.elapsed())
        });
        println!("{}", serde_json::to_string(&(latencies, elapsed)).unwrap());
    }
}

fn sign_for(
    worker: &mut dyn device::Device,
    key: &KeyRecord,
    start: &Barrier,
    gap: Duration,
    length: Duration,
) -> Vec<f64> {
    start.wait();
    let end = Instant::now() + length;
    let mut latencies = Vec::new();
    while Instant::now() < end {
        let begun = Instant::now();
        sign(worker, key, latencies.len());
        latencies.push(begun.elapsed().as_secs_f64());
        if !gap.is_zero() {
            std::thread::sleep(gap);
        }
    }
    latencies
}

fn sign(worker: &mut dyn device::Device, key: &KeyRecord, message: usize) {
    let digest = Digest::of(key.algorithm.hash(), &message.to_le_bytes());
    worker.sign(&key.locator, key.algorithm, &digest).unwrap();
}
