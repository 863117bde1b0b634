//! What Signet adds to its devices: the daemon over gRPC against the bare device, slice by slice in turn.
//!
//! The speed of a machine changes from minute to minute, so no figure here means anything but the ratio to the bare
//! device in the neighbouring slices; on a machine that is busy otherwise, only the ratio of processor times. Nothing passes
//! or fails: the tables are for people. `scripts/bench` starts it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a program for developers, that talks on standard output and has nobody to recover for"
)]

mod calls;
mod crowd;
mod daemon;
mod figure;
mod instructions;
mod machine;
mod measure;
mod picture;
mod pictures;
mod process;
mod raw;
mod report;
mod slice;
mod stand;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use clap::{Parser, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::runtime::Runtime;

use machine::Machine;
use measure::{Meter, Plan, web};
use report::Report;
use stand::{Backend, Kind, Stand};

/// What Signet adds to its devices, and what the project asks of itself
#[derive(Parser)]
#[command(name = "scripts/bench", max_term_width = 100)]
struct Options {
    /// Three minutes instead: shorter slices, and fewer
    #[arg(long)]
    quick: bool,
    /// One device alone
    #[arg(long, value_name = "NAME")]
    device: Option<DeviceName>,
    /// The first device of this configuration, with its first key, in place of SoftHSM and swtpm. It signs as fast as it can,
    /// thousands of times; on one that serves others use signetctl bench
    #[arg(long, value_name = "FILE", conflicts_with = "device")]
    config: Option<PathBuf>,
    /// How many slices of each
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pairs: Option<u16>,
    /// How long a slice is
    #[arg(long, value_name = "MILLISECONDS", value_parser = clap::value_parser!(u64).range(10..))]
    slice: Option<u64>,
    /// RS256 with 2048 bits alone
    #[arg(long)]
    usual: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write benchmarks.md, its pictures and its figures into this folder
    #[arg(long, value_name = "FOLDER")]
    write: Option<PathBuf>,
    /// Count the daemon's instructions a request instead; over a tenth more than recorded fails
    #[arg(long)]
    instructions: bool,
    /// Record them in benches/instructions.json
    #[arg(long, conflicts_with = "instructions")]
    record: bool,
    /// What `cargo bench` adds
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum DeviceName {
    Softhsm,
    Swtpm,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [first, config] if first == raw::SUBCOMMAND => return raw::serve(config.as_ref()),
        [first, socket] if first == crowd::SUBCOMMAND => return crowd::serve(socket.as_ref()),
        [first] if first == web::SUBCOMMAND => return web::serve(),
        _ => {}
    }
    let options = Options::parse();
    // Started as a test, which it is not.
    if !options.bench {
        return println!("see scripts/bench --help");
    }
    if options.write.is_some() && !report::can_draw() {
        std::process::exit(1);
    }
    // The clients share a thread: it is not they who are measured, and with more they would wake each other.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    if options.instructions || options.record {
        std::process::exit(i32::from(!runtime.block_on(instructions::check(options.record))));
    }
    let report = run(&options, &runtime);
    if let Some(docs) = &options.write {
        report.write(&Path::new(env!("CARGO_MANIFEST_DIR")).join(docs));
    }
    if options.json {
        return println!("{}", serde_json::to_string_pretty(&report).unwrap());
    }
    for device in report.devices() {
        println!("## {device}\n{}", report.details(&device));
    }
    println!("{}", report.goals(&[]));
}

fn run(options: &Options, runtime: &Runtime) -> Report {
    let backends = match (&options.config, options.device) {
        (Some(config), _) => vec![Backend::Configured(config.clone())],
        (None, Some(DeviceName::Softhsm)) => vec![Backend::SoftHsm],
        (None, Some(DeviceName::Swtpm)) => vec![Backend::SwTpm],
        (None, None) => vec![Backend::SoftHsm, Backend::SwTpm],
    };
    let (pairs, slice) = if options.quick { (3, 250) } else { (15, 1000) };
    let plan = Plan {
        pairs: options.pairs.map_or(pairs, usize::from),
        slice: Duration::from_millis(options.slice.unwrap_or(slice)),
    };
    let kinds = |backend: &Backend| {
        let others = if options.usual { &[] } else { backend.other_kinds() };
        std::iter::once(Kind::USUAL).chain(others.iter().copied())
    };
    let stands: Vec<_> = backends.iter().flat_map(|backend| kinds(backend).map(move |kind| (backend, kind))).collect();
    let slices: usize = stands.iter().map(|(backend, kind)| plan.slices_of(backend, *kind)).sum();
    let progress = ProgressBar::new(slices as u64)
        .with_style(ProgressStyle::with_template("{bar:30} {percent:>3} %, {eta} left  {msg}").unwrap());

    let (begun, machine) = (now(), Machine::here());
    let mut meter = Meter::new(plan, progress.clone());
    meter.figures = machine::openssl_speed();
    for (backend, kind) in stands {
        match Stand::new(backend, kind) {
            Some(stand) => runtime.block_on(meter.measure(&stand)),
            None => eprintln!("SKIPPED {}: it is not installed (scripts/deps)", backend.name()),
        }
    }
    progress.finish_and_clear();
    let Meter { figures, curves, .. } = meter;
    Report { begun, machine, plan, figures, curves }
}

/// The time in UTC, to the minute.
fn now() -> String {
    let now = time::OffsetDateTime::from(SystemTime::now());
    let format = time::format_description::parse_borrowed::<2>("[year]-[month]-[day]T[hour]:[minute]Z").unwrap();
    now.format(&format).unwrap()
}
