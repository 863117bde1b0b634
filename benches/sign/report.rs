//! A run's figures: as tables for people, as JSON for programs, and as docs/benchmarks.md.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::figure::{Figure, number};
use crate::machine::Machine;
use crate::measure::{Curve, Plan};
use crate::picture;
use crate::pictures::{self, PICTURES};
use crate::stand::Kind;

/// One run.
#[derive(Serialize, Deserialize)]
pub(crate) struct Report {
    /// When it began, in UTC: `2026-01-31T23:59Z`.
    pub(crate) begun: String,
    pub(crate) machine: Machine,
    pub(crate) plan: Plan,
    pub(crate) figures: Vec<Figure>,
    pub(crate) curves: Vec<Curve>,
}

impl Report {
    /// The devices of it, in order. OpenSSL is none.
    pub(crate) fn devices(&self) -> Vec<String> {
        let mut devices: Vec<_> = self.figures.iter().map(|figure| figure.device.clone()).collect();
        devices.dedup();
        devices.retain(|device| device != "OpenSSL");
        devices
    }

    /// A figure of the usual kind of key.
    pub(crate) fn usual(&self, device: &str, what: &str, clients: Option<usize>) -> Option<&Figure> {
        let usual = Kind::USUAL.to_string();
        self.figures.iter().find(|figure| {
            (figure.device.as_str(), figure.what.as_str(), figure.clients) == (device, what, clients)
                && figure.key == usual
        })
    }

    /// What the project asks of itself, and how this run and earlier ones stand with it.
    pub(crate) fn goals(&self, earlier: &[Self]) -> String {
        let runs = || earlier.iter().chain([self]);
        let heads: String = runs().map(|run| format!(" {} |", run.begun)).collect();
        let mut table = format!(
            "| device | figure | must | aim |{heads} reached |\n|---|---|---|---|{}---|\n",
            "---|".repeat(earlier.len() + 1)
        );
        for figure in self.figures.iter().filter(|figure| figure.goal.is_some()) {
            let Some(goal) = figure.goal else { continue };
            let sign = if goal.at_least { ">=" } else { "<=" };
            let cells: String = runs()
                .map(|run| {
                    format!(
                        " {} |",
                        run.figures.iter().find(|other| other.is(figure)).map_or("-".to_owned(), Figure::cell)
                    )
                })
                .collect();
            let (device, title) = (&figure.device, with_unit(&figure.title(), &figure.unit));
            let (must, aim, verdict) = (number(goal.must), number(goal.aim), figure.verdict());
            let _ = writeln!(table, "| {device} | {title} | {sign} {must} | {aim} |{cells} {verdict} |");
        }
        table
    }

    /// Every figure of a device: a line a kind of key and thing, a column a number of clients.
    pub(crate) fn details(&self, device: &str) -> String {
        let mut table = "| key | figure | unit | 1 client | 2 | 8 | 32 |\n|---|---|---|---|---|---|---|\n".to_owned();
        let of_device = self.figures.iter().filter(|figure| figure.device == device);
        let mut told: Vec<(&str, &str)> = Vec::new();
        for figure in of_device.clone() {
            let name = (figure.key.as_str(), figure.what.as_str());
            if told.contains(&name) || figure.values.is_empty() {
                continue;
            }
            told.push(name);
            let cells: String = match figure.clients {
                None => format!(" {} | | | |", figure.cell()),
                Some(_) => [1, 2, 8, 32]
                    .map(|clients| {
                        let same = of_device
                            .clone()
                            .find(|other| other.is(&Figure { clients: Some(clients), ..figure.clone() }));
                        format!(" {} |", same.map_or(String::new(), Figure::cell))
                    })
                    .concat(),
            };
            let _ = writeln!(table, "| {} | {} | {} |{cells}", figure.key, figure.what, figure.unit);
        }
        table
    }

    fn about(&self) -> String {
        let Machine { processor, cores, memory_gib, kernel, versions } = &self.machine;
        let versions: Vec<_> = versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        let openssl = self.figures.iter().filter(|figure| figure.device == "OpenSSL");
        let openssl: Vec<_> = openssl.map(|figure| format!("{} {}", figure.key, figure.cell())).collect();
        format!(
            "{} on {cores} cores of {processor}, {memory_gib} GiB, Linux {kernel}. {}. {} slices of {} ms in turn with as many of the bare device. \
             For scale, `openssl speed` on one core signs a second: {}.",
            self.begun,
            versions.join(", "),
            self.plan.pairs,
            self.plan.slice.as_millis(),
            openssl.join(", "),
        )
    }

    /// Adds this run to a folder of docs: `benchmarks.md`, and in `benchmarks/` the pictures and the figures of the last runs.
    pub(crate) fn write(&self, docs: &Path) {
        let folder = docs.join("benchmarks");
        fs::create_dir_all(&folder).unwrap();
        let own = folder.join(format!("{}.json", self.begun.replace(':', "")));
        fs::write(&own, serde_json::to_string(self).unwrap() + "\n").unwrap();
        let mut runs: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        runs.retain(|path| path.extension().is_some_and(|ending| ending == "json") && *path != own);
        runs.sort();
        let read = |path: PathBuf| (serde_json::from_slice::<Self>(&fs::read(&path).unwrap()).ok(), path);
        let (mut earlier, mut gone) = (Vec::new(), Vec::new());
        for (run, path) in runs.into_iter().map(read).rev() {
            // What was measured in another way does not compare.
            match run.filter(|run| run.plan == self.plan && earlier.len() + 1 < KEPT) {
                Some(run) => earlier.insert(0, run),
                None => gone.push(path),
            }
        }
        for path in gone {
            fs::remove_file(path).unwrap();
        }
        pictures::save(self, &folder);
        let page = docs.join("benchmarks.md");
        let before = fs::read_to_string(&page).unwrap_or_default();
        // What people wrote stays.
        let tried = before.find(TRIED).map_or(format!("{TRIED}\n"), |at| before[at..].to_owned());
        fs::write(page, self.page(&earlier) + &tried).unwrap();
    }

    fn page(&self, earlier: &[Self]) -> String {
        let pictures: String =
            PICTURES.iter().map(|(name, what)| format!("![{what}](benchmarks/{name}.svg)\n\n")).collect();
        let details: String =
            self.devices().iter().map(|device| format!("## {device}\n{}\n", self.details(device))).collect();
        let abouts: String = earlier.iter().chain([self]).map(|run| format!("* {}\n", run.about())).collect();
        format!("{INTRODUCTION}\n{}\n{pictures}## The runs\n{abouts}\n{details}", self.goals(earlier))
    }
}

/// Whether pictures can be drawn; says so where they can't.
pub(crate) fn can_draw() -> bool {
    let found = picture::find_font();
    if !found {
        eprintln!("error: there is no font for the pictures\n  try: apt-get install fonts-dejavu-core");
    }
    found
}

fn with_unit(title: &str, unit: &str) -> String {
    if unit.is_empty() { title.to_owned() } else { format!("{title}, {unit}") }
}

/// As many runs are compared.
const KEPT: usize = 3;

const TRIED: &str = "## What was tried";

const INTRODUCTION: &str = "# Benchmarks
What going through Signet costs, against the same device in a bare loop. Made by `scripts/bench --write docs`, all but the last
section: run it on your own machine, or `scripts/bench --quick`, or on the daemon that you have `signetctl bench`.

The speed of a machine changes from minute to minute. So slices alternate: bare device, Signet, bare device, ..., and what counts
is the ratio of a slice to the two around it. Medians, and in brackets the first quartile and the third. In one run all is
measured on the same cores, the clients' work included: bare loop in a process of its own; the device process alone, with its
pipe and verification; the daemon with gRPC, policy, audit and confinement. Nothing is switched off for it. SoftHSM and swtpm
tell nothing about the latency of real hardware, and are the hardest case: a slow device hides what the way to it costs.
";
