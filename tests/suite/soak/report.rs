//! What a soak came to: numbers as JSON, and a picture of its seconds.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

/// The whole of it.
#[derive(Serialize)]
pub(super) struct Report {
    pub(super) device: &'static str,
    pub(super) seed: u64,
    pub(super) seconds: u64,
    pub(super) requests: u64,
    pub(super) verified: u64,
    /// Errors as they are documented, by rpc and reason.
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) faults: usize,
    pub(super) kinds: usize,
    pub(super) wrong: Vec<String>,
    pub(super) hung: Vec<String>,
    pub(super) undocumented: Vec<String>,
    pub(super) unaudited: u64,
    pub(super) not_recovered: Vec<String>,
    /// From the moment that the cause was gone to the next good signature.
    pub(super) recovery_ms: BTreeMap<&'static str, Times>,
    pub(super) recovery_of_all_ms: Times,
    /// The same until health said so.
    pub(super) health_of_all_ms: Times,
    /// Of the daemon that ran last: what it had when it was warm, and at the end.
    pub(super) memory_kib: (u64, u64),
    /// How often a kill left SoftHSM's files torn; they were put back before recovery was measured.
    pub(super) torn_tokens: u64,
    pub(super) callers_lag_ms: u64,
    #[serde(skip)]
    pub(super) timeline: Timeline,
}

/// Of so many times.
#[derive(Clone, Copy, Default, Serialize)]
pub(super) struct Times {
    count: usize,
    p50: u64,
    p99: u64,
    max: u64,
}

impl Times {
    pub(super) fn of(mut times: Vec<u64>) -> Self {
        times.sort_unstable();
        let at = |percent: usize| times.get((times.len() * percent).div_ceil(100).saturating_sub(1)).copied();
        let [p50, p99, max] = [50, 99, 100].map(|percent| at(percent).unwrap_or_default());
        Self { count: times.len(), p50, p99, max }
    }
}

/// What happened when.
#[derive(Default)]
pub(super) struct Timeline {
    /// Good answers and errors in each second.
    pub(super) answers: BTreeMap<u64, (u64, u64)>,
    /// The second and the name of each fault.
    pub(super) faults: Vec<(u64, &'static str)>,
    /// The daemon's memory, KiB.
    pub(super) memory: Vec<(u64, u64)>,
}

impl Report {
    /// What must not be, where there is any. Late answers count where time is to be judged: not on a machine that does much else.
    pub(super) fn failure(&self, timed: bool) -> Option<String> {
        let Self { wrong, undocumented, not_recovered, unaudited, verified, .. } = self;
        let hung = if timed { self.hung.as_slice() } else { &[] };
        let counts = [wrong.len(), hung.len(), undocumented.len(), not_recovered.len()];
        if counts == [0; 4] && *unaudited == 0 && *verified > 0 {
            return None;
        }
        Some(format!(
            "{unaudited} unaudited, {verified} verified; wrong {wrong:#?}, hung {hung:#?}, undocumented {undocumented:#?}, not recovered {not_recovered:#?}"
        ))
    }

    /// A drawing of every second: answers upwards, memory as a line, faults below.
    pub(super) fn picture(&self) -> String {
        let Timeline { answers, faults, memory } = &self.timeline;
        let width = self.seconds.max(1) * STEP + 2 * EDGE;
        let most = answers.values().map(|(good, errors)| good + errors).max().unwrap_or(1).max(1);
        let mut svg = format!(
            r##"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="460" font-family="sans-serif" font-size="10">
<rect width="100%" height="100%" fill="#fff"/>
<text x="{EDGE}" y="16">{} seed {}: {} requests, {} faults of {} kinds; green: good answers a second (at most {most}), red: errors, blue: memory</text>
"##,
            self.device, self.seed, self.requests, self.faults, self.kinds
        );
        for (second, (good, errors)) in answers {
            let (x, up, down) = (EDGE + second * STEP, good * 250 / most, errors * 250 / most);
            let _ = writeln!(svg, r##"<rect x="{x}" y="{}" width="{STEP}" height="{up}" fill="#4a4"/>"##, 280 - up);
            let _ = writeln!(
                svg,
                r##"<rect x="{x}" y="{}" width="{STEP}" height="{down}" fill="#c33"/>"##,
                280 - up - down
            );
        }
        let largest = memory.iter().map(|(_, kib)| *kib).max().unwrap_or(1).max(1);
        let points =
            memory.iter().map(|(second, kib)| format!("{},{} ", EDGE + second * STEP, 280 - kib * 240 / largest));
        let _ = writeln!(svg, r##"<polyline points="{}" fill="none" stroke="#36c"/>"##, points.collect::<String>());
        let _ = writeln!(svg, r##"<text x="{EDGE}" y="30" fill="#36c">at most {largest} KiB</text>"##);
        for (second, name) in faults {
            let x = EDGE + second * STEP;
            let _ = writeln!(
                svg,
                r##"<path d="M{x} 280v6" stroke="#000"/><text transform="translate({x} 290) rotate(60)" font-size="7">{name}</text>"##
            );
        }
        svg + "</svg>\n"
    }
}

const STEP: u64 = 4;
const EDGE: u64 = 20;
