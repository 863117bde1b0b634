//! The bare device: this program again, which opens the device as a device process does and signs in a loop.

use std::cell::RefCell;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use signet::config::Config;
use signet::device::{self, DeviceKind, Pkcs11Config};
use signet::key::Digest;
use signet::keyring::{KeyRecord, Keyring};

use crate::slice::{Load, Part, Processor, Slice};
use crate::stand::{Device, Running};

/// What the program is told to be the bare device with, and a configuration.
pub(crate) const SUBCOMMAND: &str = "bare-device";

/// The bare device's process.
pub(crate) struct Raw {
    pipes: RefCell<(ChildStdin, BufReader<ChildStdout>)>,
    process: Running,
    tpm: Option<u32>,
}

impl Raw {
    pub(crate) fn start(device: &Device) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg(SUBCOMMAND).arg(device.config());
        // As a device process is started.
        if let DeviceKind::Pkcs11(Pkcs11Config { environment: Some(environment), .. }) =
            &Config::load(&device.config()).unwrap().devices[0].kind
        {
            command.env_clear().envs(environment);
        }
        let mut process = Running(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
        let orders = process.0.stdin.take().unwrap();
        let results = BufReader::new(process.0.stdout.take().unwrap());
        Self { pipes: RefCell::new((orders, results)), process, tpm: device.tpm() }
    }

    /// Signs for a slice, in as many threads as there are clients, but no more than the device has workers.
    pub(crate) fn run(&self, load: &Load) -> Slice {
        let (orders, results) = &mut *self.pipes.borrow_mut();
        let before = self.processor();
        let order = (load.clients, load.gap, load.length);
        writeln!(orders, "{}", serde_json::to_string(&order).unwrap()).unwrap();
        let mut line = String::new();
        results.read_line(&mut line).unwrap();
        let (latencies, length): (Vec<f64>, Duration) = serde_json::from_str(&line).unwrap();
        Slice::new(latencies, length, self.processor().since(before))
    }

    fn processor(&self) -> Processor {
        let tpm = self.tpm.map(|tpm| (Part::Tpm, tpm));
        Processor::of(tpm.into_iter().chain([(Part::Device, self.process.0.id())]))
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
