//! What was measured, and what the project asks of itself.

use serde::{Deserialize, Serialize};

use crate::stand::{Backend, Kind, Stand};

/// One thing that was measured, often.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) device: String,
    /// The kind of key.
    pub(crate) key: String,
    pub(crate) what: String,
    pub(crate) clients: Option<usize>,
    pub(crate) unit: String,
    pub(crate) goal: Option<Goal>,
    /// In the order in which they were measured; none where it could not be.
    pub(crate) values: Vec<f64>,
}

/// What is to be reached.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Goal {
    pub(crate) must: f64,
    pub(crate) aim: f64,
    /// Whether more is better.
    pub(crate) at_least: bool,
}

impl Figure {
    pub(crate) fn new(stand: &Stand, what: impl Into<String>, unit: &str, values: Vec<f64>) -> Self {
        Self::of(stand.backend.name(), stand.kind, what, unit, values)
    }

    pub(crate) fn of(device: &str, key: Kind, what: impl Into<String>, unit: &str, values: Vec<f64>) -> Self {
        Self {
            device: device.to_owned(),
            key: key.to_string(),
            what: what.into(),
            clients: None,
            unit: unit.to_owned(),
            goal: None,
            values: values.into_iter().filter(|value| value.is_finite()).map(rounded).collect(),
        }
    }

    pub(crate) fn of_clients(self, clients: usize) -> Self {
        Self { clients: Some(clients), ..self }
    }

    pub(crate) fn at_least(self, must: f64, aim: f64) -> Self {
        Self { goal: Some(Goal { must, aim, at_least: true }), ..self }
    }

    pub(crate) fn at_most(self, must: f64, aim: f64) -> Self {
        Self { goal: Some(Goal { must, aim, at_least: false }), ..self }
    }

    /// What the ratio to the bare device is to be.
    pub(crate) fn ratio_goal(self, stand: &Stand, clients: usize) -> Self {
        match (&stand.backend, clients) {
            _ if stand.kind != Kind::USUAL => self,
            (Backend::SoftHsm, 1) => self.at_least(0.75, 0.87),
            (Backend::SoftHsm, 8..) => self.at_least(0.85, 0.92),
            (Backend::SwTpm, 2..) => self.at_least(0.95, 0.98),
            _ => self,
        }
    }

    /// Whether it is the same thing, of another run.
    pub(crate) fn is(&self, other: &Self) -> bool {
        (&self.device, &self.key, &self.what, self.clients) == (&other.device, &other.key, &other.what, other.clients)
    }

    /// The first quartile, the median and the third.
    pub(crate) fn quartiles(&self) -> Option<[f64; 3]> {
        let mut sorted = self.values.clone();
        sorted.sort_by(f64::total_cmp);
        let quartile = |quarters: usize| sorted.get(sorted.len().checked_sub(1)? * quarters / 4).copied();
        Some([quartile(1)?, quartile(2)?, quartile(3)?])
    }

    pub(crate) fn median(&self) -> Option<f64> {
        self.quartiles().map(|[_, median, _]| median)
    }

    /// What it is, in one line.
    pub(crate) fn title(&self) -> String {
        match self.clients {
            Some(1) => format!("{}, 1 client", self.what),
            Some(clients) => format!("{}, {clients} clients", self.what),
            None => self.what.clone(),
        }
    }

    /// The median, and from the first quartile to the third.
    pub(crate) fn cell(&self) -> String {
        match self.quartiles() {
            None => "-".to_owned(),
            Some([_, median, _]) if self.values.len() < 3 => number(median),
            Some([low, median, high]) => format!("{} ({}-{})", number(median), number(low), number(high)),
        }
    }

    /// How it stands with the goal.
    pub(crate) fn verdict(&self) -> &'static str {
        let (Some(goal), Some(median)) = (self.goal, self.median()) else { return "" };
        let reaches = |bound: f64| if goal.at_least { median >= bound } else { median <= bound };
        match (reaches(goal.must), reaches(goal.aim)) {
            (_, true) => "aim",
            (true, false) => "must",
            (false, false) => "missed",
        }
    }
}

/// Three digits, or all before the point.
pub(crate) fn number(value: f64) -> String {
    let decimals = match value.abs() {
        100.0.. => 0,
        10.0.. => 1,
        1.0.. => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    if decimals == 0 { text } else { text.trim_end_matches('0').trim_end_matches('.').to_owned() }
}

/// Four digits: more would be noise, and a longer file.
fn rounded(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap()
}
