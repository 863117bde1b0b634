//! What Signet adds to its devices: the daemon over gRPC against the bare device, slice by slice in turn.
//!
//! The speed of a machine changes from minute to minute, so no figure here means anything but the ratio to the bare
//! device in the neighbouring slices; on a machine that is busy otherwise, only the ratio of processor times. Nothing passes or fails: the table is for people. `scripts/bench` starts it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a program for developers, that talks on standard output and has nobody to recover for"
)]

mod calls;
mod daemon;
mod raw;
mod slice;
mod stand;

use std::time::{Duration, Instant};

use daemon::{Ask, Daemon};
use raw::Raw;
use slice::{Load, Slice};
use stand::{Backend, Stand};

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [first, config] = arguments.as_slice()
        && first == raw::SUBCOMMAND
    {
        return raw::serve(config.as_ref());
    }
    // What `cargo bench` adds; without it this was started as a test, which it is not.
    let Some(_bench) = arguments.iter().position(|argument| argument == "--bench").map(|at| arguments.remove(at))
    else {
        return println!("{USAGE}");
    };
    let Some(options) = Options::parse(&arguments) else {
        println!("{USAGE}");
        std::process::exit(2);
    };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    println!("| device | figure | must | median | spread |\n|---|---|---|---|---|");
    for backend in options.backends {
        match Stand::new(backend) {
            Some(stand) => runtime.block_on(measure(&stand, options.pairs, options.slice)),
            None => println!("| {} | SKIPPED: it is not installed (scripts/deps) | | | |", backend.name()),
        }
    }
}

struct Options {
    backends: Vec<Backend>,
    pairs: usize,
    slice: Duration,
}

impl Options {
    fn parse(arguments: &[String]) -> Option<Self> {
        let mut options = Self { backends: Backend::ALL.to_vec(), pairs: 15, slice: Duration::from_secs(1) };
        for option in arguments.chunks(2) {
            let [name, value] = option else { return None };
            match name.as_str() {
                "--device" => options.backends = vec![Backend::named(value)?],
                "--pairs" => options.pairs = value.parse().ok().filter(|pairs| *pairs > 0)?,
                "--slice" => options.slice = Duration::from_millis(value.parse().ok()?),
                _ => return None,
            }
        }
        Some(options)
    }
}

/// Everything about one backend, a line of the table a figure.
async fn measure(stand: &Stand, pairs: usize, slice: Duration) {
    let name = stand.backend.name();
    let mut raw = Raw::start(&stand.bare);
    let begun = Instant::now();
    let daemon = Daemon::start(&stand.served);
    daemon.sign().await;
    line(name, "start to first signature, ms", stand.backend.must_start(), &[begun.elapsed().as_secs_f64() * 1e3]);
    line(name, "RSS idle, all processes, MiB", "24", &[daemon.resident()]);

    for clients in [1, 8, 32] {
        let load = Load { clients, gap: Duration::ZERO, length: slice };
        let seen = alternate(&mut raw, &daemon, &load, pairs).await;
        let ratios: Vec<_> = seen.iter().map(|(raw, served)| served.rate() / raw.rate()).collect();
        line(name, &format!("ratio to the bare device, {clients} clients"), stand.backend.must_ratio(clients), &ratios);
        let work: Vec<_> = seen.iter().map(|(raw, served)| raw.processor() / served.processor()).collect();
        line(name, &format!("the same by processor time, clients included, {clients} clients"), "", &work);
        let rates = |of: fn(&(Slice, Slice)) -> &Slice| seen.iter().map(|pair| of(pair).rate()).collect::<Vec<_>>();
        line(name, &format!("bare device, {clients} clients, signatures/s"), "", &rates(|pair| &pair.0));
        line(name, &format!("daemon, {clients} clients, signatures/s"), "", &rates(|pair| &pair.1));
        if clients == 32 {
            let tail: Vec<_> = seen.iter().map(|(_, served)| served.percentile(99) * served.rate() / 32.0).collect();
            line(name, "p99 at 32 clients over 32 / throughput", "1.5", &tail);
            line(name, "RSS at 32 clients, all processes, MiB", "32", &[daemon.resident()]);
        }
    }
    let load = Load { clients: 1, gap: Duration::from_millis(5), length: slice };
    let seen = alternate(&mut raw, &daemon, &load, pairs).await;
    let added: Vec<_> = seen.iter().map(|(raw, served)| (served.percentile(50) - raw.percentile(50)) * 1e6).collect();
    line(name, "added p50, 1 client with a pause of 5 ms, us", "250", &added);

    if stand.backend == Backend::SoftHsm {
        cached(&daemon, pairs, slice).await;
    }
    daemon.stop();
    let calls = calls::per_signature(stand).await;
    line(name, "device calls a signature", stand.backend.must_calls(), &[calls]);
}

/// Cached tokens against an rpc that does nothing on the same socket: no device has a part in either.
async fn cached(daemon: &Daemon, pairs: usize, slice: Duration) {
    for clients in [1, 8, 32] {
        let load = Load { clients, gap: Duration::ZERO, length: slice };
        let (mut ratios, mut costs) = (Vec::new(), Vec::new());
        daemon.run(&load, Ask::CachedToken).await;
        let mut before = daemon.run(&load, Ask::Nothing).await;
        for _ in 0..pairs {
            let used = daemon.own_processor_time();
            let cached = daemon.run(&load, Ask::CachedToken).await;
            costs.push((daemon.own_processor_time() - used) * 1e6 / cached.count());
            let after = daemon.run(&load, Ask::Nothing).await;
            ratios.push(cached.rate() / before.and(&after).rate());
            before = after;
        }
        line("-", &format!("cached token to a no-op rpc, {clients} clients"), "0.8", &ratios);
        line("-", &format!("daemon's CPU a cached token, {clients} clients, us"), "35", &costs);
    }
}

/// Bare, served, bare, ..., bare: each served slice with the mean of its neighbours.
async fn alternate(raw: &mut Raw, daemon: &Daemon, load: &Load, pairs: usize) -> Vec<(Slice, Slice)> {
    raw.run(load);
    daemon.run(load, Ask::Signature).await;
    let mut seen = Vec::new();
    let mut before = raw.run(load);
    for _ in 0..pairs {
        let served = daemon.run(load, Ask::Signature).await;
        let after = raw.run(load);
        seen.push((before.and(&after), served));
        before = after;
    }
    seen
}

/// A line of the table: the median, and from the first quartile to the third.
fn line(device: &str, figure: &str, must: &str, values: &[f64]) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let quartile = |quarters: usize| number(sorted[(sorted.len() - 1) * quarters / 4]);
    let spread = if sorted.len() > 1 { format!("{} to {}", quartile(1), quartile(3)) } else { String::new() };
    println!("| {device} | {figure} | {must} | {} | {spread} |", quartile(2));
}

fn number(value: f64) -> String {
    if value.abs() < 10.0 { format!("{value:.3}") } else { format!("{value:.0}") }
}

const USAGE: &str = "usage: scripts/bench [--device softhsm|swtpm] [--pairs N] [--slice MILLISECONDS]

Prints a table: what the daemon does over gRPC against the bare device, and what issue and design ask for (must).
It takes some minutes and wants a machine that does nothing else. Nothing passes or fails.";
