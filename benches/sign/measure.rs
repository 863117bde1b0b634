//! Everything that is measured of a device.

pub(crate) mod web;

use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

use crate::calls;
use crate::crowd::{self, Crowd};
use crate::daemon::{Ask, Daemon};
use crate::figure::Figure;
use crate::process::Process;
use crate::raw::Raw;
use crate::slice::{Load, Part, Slice, memory, pages};
use crate::stand::{Backend, Kind, Stand};
use web::Web;

/// How often, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) pairs: usize,
    pub(crate) slice: Duration,
}

/// Measures, shows how far it is, and keeps what came of it.
pub(crate) struct Meter {
    plan: Plan,
    progress: ProgressBar,
    pub(crate) figures: Vec<Figure>,
    pub(crate) curves: Vec<Curve>,
}

/// How latencies are spread.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Curve {
    pub(crate) device: String,
    /// [`BARE`] or [`SERVED`].
    pub(crate) layer: String,
    pub(crate) clients: usize,
    /// Percent, and microseconds.
    pub(crate) points: Vec<(f64, f64)>,
}

/// Where a signature is asked for.
#[derive(Clone, Copy)]
enum Layer<'a> {
    Bare(&'a Raw),
    Alone(&'a Process),
    Served(&'a Daemon, Ask),
    Web(&'a Web),
}

/// A slice of one layer, and the two of the base around it as one.
struct Pair {
    base: Slice,
    own: Slice,
}

pub(crate) const BARE: &str = "bare device";
pub(crate) const ALONE: &str = "device process alone";
pub(crate) const SERVED: &str = "SignBlob";
const SHARED: &str = "SignBlob, one connection";
pub(crate) const MINTED: &str = "MintJwtAccessToken";
pub(crate) const CACHED: &str = "MintJwtAccessToken, cached";
pub(crate) const NOTHING: &str = "an rpc that does nothing";

/// As many clients as [`cpu_of`] figures are taken with.
pub(crate) const BUSY: usize = 8;
pub(crate) const CLIENTS: [usize; 4] = [1, 2, 8, 32];
const FEW_CLIENTS: [usize; 2] = [1, 8];
const PAUSE: Duration = Duration::from_millis(5);
const PERCENTS: [f64; 14] = [1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.8, 99.9, 99.95];

impl Layer<'_> {
    async fn run(self, load: &Load) -> Slice {
        match self {
            Layer::Bare(raw) => raw.run(load),
            Layer::Alone(process) => process.run(load).await,
            Layer::Served(daemon, ask) => daemon.run(load, ask).await,
            Layer::Web(web) => web.run(load).await,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Layer::Bare(_) => BARE,
            Layer::Alone(_) => ALONE,
            Layer::Served(_, Ask::Signature) => SERVED,
            Layer::Served(_, Ask::Shared) => SHARED,
            Layer::Served(_, Ask::Mint) => MINTED,
            Layer::Served(_, Ask::CachedToken) => CACHED,
            Layer::Served(_, Ask::Nothing) => NOTHING,
            Layer::Web(web) => web.name,
        }
    }
}

impl Plan {
    /// Fewer, for what only rounds the picture off.
    fn short(self) -> Self {
        Self { pairs: self.pairs.div_ceil(3), ..self }
    }

    /// How many slices [`Meter::alternate`] takes.
    const fn slices(self, layers: usize) -> usize {
        2 + layers + 2 * layers * self.pairs
    }

    /// One client, several of them, and one with pauses.
    const fn slices_of_usual(self) -> usize {
        2 * self.slices(3) + (CLIENTS.len() - 1) * self.slices(4)
    }

    /// How many slices a kind of key takes on a device.
    pub(crate) fn slices_of(self, backend: &Backend, kind: Kind) -> usize {
        match backend {
            _ if kind != Kind::USUAL => FEW_CLIENTS.len() * self.short().slices(2),
            Backend::SoftHsm => self.slices_of_usual() + 7 * self.slices(1) + 2 * self.pairs,
            _ => self.slices_of_usual(),
        }
    }
}

impl Meter {
    pub(crate) fn new(plan: Plan, progress: ProgressBar) -> Self {
        Self { plan, progress, figures: Vec::new(), curves: Vec::new() }
    }

    /// All of it for the usual kind of key, and how other kinds compare.
    pub(crate) async fn measure(&mut self, stand: &Stand) {
        if stand.kind == Kind::USUAL {
            return self.measure_usual(stand).await;
        }
        let plan = self.plan;
        self.plan = plan.short();
        let (raw, process) = (Raw::start(&stand.bare), Process::start(&stand.alone).await);
        let daemon = Daemon::start(&stand.served);
        daemon.sign().await;
        for clients in FEW_CLIENTS {
            let layers = [Layer::Alone(&process), Layer::Served(&daemon, Ask::Signature)];
            let load = self.load(clients);
            self.rates(stand, Layer::Bare(&raw), &layers, &load).await;
        }
        daemon.stop();
        self.plan = plan;
    }

    async fn measure_usual(&mut self, stand: &Stand) {
        self.starts(stand).await;
        let daemon = Daemon::start(&stand.served);
        daemon.sign().await;
        self.memory(stand, &daemon, "idle", Some((24.0, 14.0)));
        let (raw, process) = (Raw::start(&stand.bare), Process::start(&stand.alone).await);
        for clients in CLIENTS {
            let [signed, minted, shared] =
                [Ask::Signature, Ask::Mint, Ask::Shared].map(|ask| Layer::Served(&daemon, ask));
            // One client has a connection of its own either way.
            let layers = [Layer::Alone(&process), signed, minted, shared];
            let layers = if clients == 1 { &layers[..3] } else { &layers };
            let seen = self.rates(stand, Layer::Bare(&raw), layers, &self.load(clients)).await;
            if clients == 32 {
                let tail = seen[1].iter().map(|pair| pair.own.percentile(99.0) * pair.own.rate() / 32.0).collect();
                self.add(Figure::new(stand, "p99 at 32 clients over 32 / throughput", "", tail).at_most(1.5, 1.25));
                self.memory(stand, &daemon, "at 32 clients", Some((32.0, 20.0)));
                self.curves(stand, &seen[1], clients);
            }
        }
        self.latency(stand, &raw, &process, &daemon).await;
        if stand.backend == Backend::SoftHsm {
            self.cached(stand, &daemon).await;
        }
        daemon.stop();
        if stand.backend == Backend::SoftHsm {
            self.crowd(stand).await;
            self.web(stand).await;
        }
        let calls = Figure::new(stand, "device calls a signature", "calls", vec![calls::per_signature(stand).await]);
        let most = if stand.backend == Backend::SwTpm { 1.0 } else { 2.0 };
        self.add(calls.at_most(most, most));
    }

    /// Layers against the base, for as many clients: rates, ratios, and who spends the processor's time.
    async fn rates(&mut self, stand: &Stand, base: Layer<'_>, layers: &[Layer<'_>], load: &Load) -> Vec<Vec<Pair>> {
        self.say(stand, &format!("clients: {}", load.clients));
        let seen = self.alternate(base, layers, load).await;
        let clients = load.clients;
        let unit = "a second";
        let base_rates = seen[0].iter().map(|pair| pair.base.rate()).collect();
        self.add(Figure::new(stand, base.name(), unit, base_rates).of_clients(clients));
        if clients == BUSY {
            self.cpu(stand, base.name(), &seen[0].iter().map(|pair| &pair.base).collect::<Vec<_>>());
        }
        for (layer, pairs) in layers.iter().zip(&seen) {
            let name = layer.name();
            let each = |of: fn(&Pair) -> f64| pairs.iter().map(of).collect::<Vec<_>>();
            self.add(Figure::new(stand, name, unit, each(|pair| pair.own.rate())).of_clients(clients));
            let ratio = each(|pair| pair.own.rate() / pair.base.rate());
            let ratio = Figure::new(stand, ratio_of(name, base.name()), "", ratio).of_clients(clients);
            self.add(match name {
                SERVED | SHARED => ratio.ratio_goal(stand, clients),
                CACHED => ratio.at_least(0.8, 0.92),
                web::TOKEN => ratio.at_least(0.5, 0.8),
                _ => ratio,
            });
            let work = each(|pair| pair.base.processor() / pair.own.processor());
            self.add(Figure::new(stand, format!("{name}: ratio of processor time"), "", work).of_clients(clients));
            for percent in [50.0, 99.0] {
                let values = pairs.iter().map(|pair| pair.own.percentile(percent) * 1e6).collect();
                self.add(Figure::new(stand, format!("{name}: p{percent}"), "us", values).of_clients(clients));
            }
            if clients == BUSY {
                self.cpu(stand, name, &pairs.iter().map(|pair| &pair.own).collect::<Vec<_>>());
            }
        }
        seen
    }

    /// A lone client that rests between its requests, against a bare device that rests as long. What the way takes without
    /// the device, and the device's process without the way, tell where the time goes.
    async fn latency(&mut self, stand: &Stand, raw: &Raw, process: &Process, daemon: &Daemon) {
        self.say(stand, "latency of a client with pauses");
        let load = Load { gap: PAUSE, ..self.load(1) };
        let layers =
            [Layer::Served(daemon, Ask::Signature), Layer::Alone(process), Layer::Served(daemon, Ask::Nothing)];
        let seen = self.alternate(Layer::Bare(raw), &layers, &load).await;
        let added = seen[0].iter().map(|pair| (pair.own.percentile(50.0) - pair.base.percentile(50.0)) * 1e6).collect();
        self.add(Figure::new(stand, "added p50, 1 client with pauses of 5 ms", "us", added).at_most(200.0, 90.0));
        let [bare, served] = self.curves(stand, &seen[0], 1);
        let others = [1, 2].map(|layer: usize| Slice::sum(seen[layer].iter().map(|pair| &pair.own)));
        for (name, slice) in [BARE, SERVED, ALONE, NOTHING].iter().zip([bare, served].iter().chain(&others)) {
            for percent in [50.0, 99.0, 99.9] {
                let value = vec![slice.percentile(percent) * 1e6];
                self.add(Figure::new(stand, format!("{name}: p{percent}, 1 client with pauses of 5 ms"), "us", value));
            }
        }
    }

    /// Cached tokens against an rpc that does nothing on the same socket: no device has a part in either.
    async fn cached(&mut self, stand: &Stand, daemon: &Daemon) {
        let (base, layer) = (Layer::Served(daemon, Ask::Nothing), Layer::Served(daemon, Ask::CachedToken));
        for clients in [1, 8, 32] {
            let seen = self.rates(stand, base, &[layer], &self.load(clients)).await.remove(0);
            let used = seen.iter().map(|pair| pair.own.processor_of(Part::Daemon) * 1e6).collect();
            let figure = Figure::new(stand, format!("{CACHED}: CPU of the daemon"), "us", used);
            self.add(figure.of_clients(clients).at_most(35.0, 22.0));
        }
    }

    /// 256 connections that ask for 10,000 tokens, against 32 that do.
    async fn crowd(&mut self, stand: &Stand) {
        self.say(stand, "256 connections");
        let Some(mut crowd) = Crowd::start(&stand.served) else {
            return eprintln!("256 connections are not measured: only root can be several users");
        };
        let mut daemon = Daemon::start(&stand.served);
        daemon.sign().await;
        daemon.fill_cache(crowd::TOKENS).await;
        daemon.hang_up();
        let length = self.plan.slice;
        crowd.rate(256, length);
        let mut before = crowd.rate(32, length);
        let (mut ratios, mut rates) = (Vec::new(), Vec::new());
        for _ in 0..self.plan.pairs {
            let many = crowd.rate(256, length);
            let after = crowd.rate(32, length);
            ratios.push(many * 2.0 / (before + after));
            rates.push(many);
            before = after;
            self.progress.inc(2);
        }
        drop(crowd);
        daemon.stop();
        self.add(Figure::new(stand, "10,000 cached tokens over 256 connections", "a second", rates));
        self.add(
            Figure::new(stand, "10,000 cached tokens, 256 connections: ratio to 32", "", ratios).at_least(0.9, 1.0),
        );
    }

    async fn starts(&mut self, stand: &Stand) {
        self.say(stand, "start");
        let mut starts = Vec::new();
        for _ in 0..self.plan.pairs.min(9) {
            let begun = Instant::now();
            let daemon = Daemon::start(&stand.served);
            daemon.sign().await;
            starts.push(begun.elapsed().as_secs_f64() * 1e3);
            daemon.stop();
        }
        let figure = Figure::new(stand, "start to first signature", "ms", starts);
        self.add(match stand.backend {
            Backend::SoftHsm => figure.at_most(40.0, 20.0),
            Backend::SwTpm => figure.at_most(60.0, 30.0),
            Backend::Configured(_) => figure,
        });
    }

    fn memory(&mut self, stand: &Stand, daemon: &Daemon, when: &str, goal: Option<(f64, f64)>) {
        let processes = daemon.processes();
        let together = pages(processes.iter().map(|(_, pid)| *pid));
        let together =
            Figure::new(stand, format!("memory {when}, all processes, each page once"), "MiB", vec![together]);
        self.add(match goal {
            Some((must, aim)) => together.at_most(must, aim),
            None => together,
        });
        let mut sum = 0.0;
        for (part, pid) in processes {
            let memory = memory(pid);
            sum += memory;
            self.add(Figure::new(stand, format!("RSS {when}, {}", part.name()), "MiB", vec![memory]));
        }
        self.add(Figure::new(stand, format!("RSS {when}, sum"), "MiB", vec![sum]));
    }

    fn cpu(&mut self, stand: &Stand, layer: &str, slices: &[&Slice]) {
        for part in Part::ALL {
            let used: Vec<_> = slices.iter().map(|slice| slice.processor_of(part) * 1e6).collect();
            if used.iter().any(|used| *used > 0.5) {
                self.add(Figure::new(stand, cpu_of(part, layer), "us", used).of_clients(BUSY));
            }
        }
    }

    fn curves(&mut self, stand: &Stand, pairs: &[Pair], clients: usize) -> [Slice; 2] {
        let layers = [
            (BARE, Slice::sum(pairs.iter().map(|pair| &pair.base))),
            (SERVED, Slice::sum(pairs.iter().map(|pair| &pair.own))),
        ];
        layers.map(|(layer, slice)| {
            let enough = |percent: &f64| slice.count() * (100.0 - percent) / 100.0 >= 1.0;
            let points = PERCENTS.into_iter().filter(enough).map(|percent| (percent, slice.percentile(percent) * 1e6));
            let (device, layer) = (stand.backend.name().to_owned(), layer.to_owned());
            self.curves.push(Curve { device, layer, clients, points: points.collect() });
            slice
        })
    }

    /// Base, layer, base, layer, ..., base: each slice of a layer with those of the base around it.
    async fn alternate(&self, base: Layer<'_>, layers: &[Layer<'_>], load: &Load) -> Vec<Vec<Pair>> {
        let run = async |layer: Layer<'_>| {
            let slice = layer.run(load).await;
            self.progress.inc(1);
            slice
        };
        for layer in std::iter::once(&base).chain(layers) {
            run(*layer).await;
        }
        let mut seen: Vec<_> = layers.iter().map(|_layer| Vec::new()).collect();
        let mut before = run(base).await;
        for _ in 0..self.plan.pairs {
            for (layer, pairs) in layers.iter().zip(&mut seen) {
                let own = run(*layer).await;
                let after = run(base).await;
                pairs.push(Pair { base: Slice::sum([&before, &after]), own });
                before = after;
            }
        }
        seen
    }

    const fn load(&self, clients: usize) -> Load {
        Load { clients, gap: Duration::ZERO, length: self.plan.slice }
    }

    fn add(&mut self, figure: Figure) {
        self.figures.push(figure);
    }

    fn say(&self, stand: &Stand, what: &str) {
        let text = format!("{}, {}: {what}", stand.backend.name(), stand.kind);
        if self.progress.is_hidden() {
            eprintln!("{text}");
        }
        self.progress.set_message(text);
    }
}

/// What the figure of a layer's rate over another's is called.
fn ratio_of(layer: &str, base: &str) -> String {
    if base == BARE { format!("{layer}: ratio") } else { format!("{layer}: ratio to {base}") }
}

/// What the figure of a process's CPU time is called.
pub(crate) fn cpu_of(part: Part, layer: &str) -> String {
    format!("{layer}: CPU of {}", part.name())
}
