//! The pictures of a report.

use std::path::Path;

use plotters::style::RGBColor;
use plotters::style::text_anchor::HPos;

use crate::figure::{Figure, number};
use crate::measure::{ALONE, BARE, BUSY, CACHED, CLIENTS, MINTED, NOTHING, SERVED, cpu_of};
use crate::picture::{BLUE, GREEN, GREY, GRID, INK, ORANGE, PALE, Panel, Picture, RED, VIOLET};
use crate::report::Report;
use crate::slice::Part;
use crate::stand::Kind;

/// Each picture's file, and what it shows.
pub(crate) const PICTURES: [(&str, &str); 4] = [
    ("throughput", "Signatures a second by clients, of the bare device and through the daemon"),
    ("latency", "How long a lone client waits"),
    ("time", "Processor time of a signature, by who spends it"),
    ("ratio", "The daemon's throughput over the bare device's, by device and kind of key"),
];

/// Writes them all into a folder.
pub(crate) fn save(report: &Report, folder: &Path) {
    let pictures = [throughput(report), latency(report), time(report), ratio(report)];
    for ((name, _), picture) in PICTURES.iter().zip(pictures) {
        picture.save(folder, name);
    }
}

fn throughput(report: &Report) -> Picture {
    let subtitle = format!("Median of {} slices; RS256 with a 2048-bit key", report.plan.pairs);
    let mut picture = Picture::new(980.0, 420.0, "Signatures a second, by clients", &subtitle);
    for (left, device) in [75.0, 555.0].into_iter().zip(report.devices()) {
        let usual = |layer: &str, clients| report.usual(&device, layer, Some(clients)).and_then(Figure::median);
        let layers = [(BARE, GREY), (ALONE, BLUE), (SERVED, GREEN), (MINTED, ORANGE)];
        let most = layers.iter().flat_map(|(layer, _)| CLIENTS.map(|clients| usual(layer, clients).unwrap_or(0.0)));
        let (top, step) = nice(most.fold(0.0, f64::max));
        let panel = Panel { left, top: 105.0, width: 230.0, height: 250.0, x: (-0.15, 3.1), y: (0.0, top) };
        picture.heading(&device, (panel.left, 84.0));
        picture.grid(&panel, &steps(step, top), number);
        let mut labels = Vec::new();
        for (layer, colour) in layers {
            let points =
                (0u8..).zip(CLIENTS).filter_map(|(x, clients)| Some(panel.at(x.into(), usual(layer, clients)?)));
            let points: Vec<_> = points.collect();
            for point in &points {
                picture.dot(*point, 3.5, colour);
            }
            labels.extend(points.last().map(|point| (point.1, layer.to_owned(), colour)));
            picture.line(points, colour, 2.0);
        }
        picture.labels(panel.right() + 8.0, labels);
        for (x, clients) in (0u8..).zip(CLIENTS) {
            let (x, _) = panel.at(x.into(), 0.0);
            picture.text(&clients.to_string(), (x, panel.bottom() + 14.0), HPos::Center, PALE);
        }
        picture.text("clients", (panel.left + panel.width / 2.0, panel.bottom() + 36.0), HPos::Center, PALE);
    }
    picture
}

fn latency(report: &Report) -> Picture {
    let title = "Latency of a signature, for a client with pauses of 5 ms";
    let mut picture = Picture::new(980.0, 420.0, title, "Milliseconds by percentile; RS256 with a 2048-bit key");
    // As many nines as there are, evenly spaced.
    let place = |percent: f64| -(1.0 - percent / 100.0).log10();
    for (left, device) in [75.0, 555.0].into_iter().zip(report.devices()) {
        let curves = report.curves.iter().filter(|curve| curve.device == device && curve.clients == 1);
        let curves: Vec<_> = curves.collect();
        let most = curves.iter().flat_map(|curve| curve.points.iter().map(|point| point.1 / 1e3));
        let (top, step) = nice(most.fold(0.0, f64::max));
        let panel = Panel { left, top: 105.0, width: 290.0, height: 250.0, x: (0.0, 3.1), y: (0.0, top) };
        picture.heading(&device, (panel.left, 84.0));
        picture.grid(&panel, &steps(step, top), number);
        let mut labels = Vec::new();
        for curve in curves {
            let colour = if curve.layer == BARE { GREY } else { GREEN };
            let shown = curve.points.iter().filter(|(percent, _)| *percent <= 99.9);
            let points: Vec<_> = shown.map(|(percent, us)| panel.at(place(*percent), us / 1e3)).collect();
            labels.extend(points.last().map(|point| (point.1, curve.layer.clone(), colour)));
            picture.line(points, colour, 2.0);
        }
        picture.labels(panel.right() + 8.0, labels);
        for percent in [50.0, 90.0, 99.0, 99.9] {
            let (x, _) = panel.at(place(percent), 0.0);
            picture.line(vec![(x, panel.bottom()), (x, panel.bottom() + 4.0)], PALE, 1.0);
            picture.text(&format!("{percent} %"), (x, panel.bottom() + 16.0), HPos::Center, PALE);
        }
        picture.text("percentile", (panel.left + panel.width / 2.0, panel.bottom() + 38.0), HPos::Center, PALE);
    }
    picture
}

fn time(report: &Report) -> Picture {
    let rows = [BARE, ALONE, SERVED, MINTED, CACHED, NOTHING];
    let parts: [(Part, RGBColor); 4] =
        [(Part::Device, BLUE), (Part::Tpm, VIOLET), (Part::Daemon, ORANGE), (Part::Client, GREY)];
    let devices = report.devices();
    let used = |device: &str, layer: &str, part| {
        report.usual(device, &cpu_of(part, layer), Some(BUSY)).and_then(Figure::median).unwrap_or(0.0)
    };
    let total = |device: &str, layer: &str| parts.iter().map(|(part, _)| used(device, layer, *part)).sum::<f64>();
    let blocks: Vec<_> = devices
        .iter()
        .map(|device| (device, rows.iter().filter(|layer| total(device, layer) > 0.0).collect::<Vec<_>>()))
        .collect();
    let height = blocks.iter().map(|(_, rows)| 52.0 + 30.0 * count(rows.len())).sum::<f64>();
    let subtitle = format!("Microseconds of processor time an answer, {BUSY} clients; RS256 with a 2048-bit key");
    let mut picture = Picture::new(980.0, 110.0 + height, "Where the time goes", &subtitle);
    let mut legend = 24.0;
    for (part, colour) in parts {
        picture.bar((legend, 72.0), (legend + 12.0, 84.0), colour);
        picture.text(part.name(), (legend + 18.0, 78.0), HPos::Left, INK);
        legend += 150.0;
    }
    let mut top = 118.0;
    for (device, rows) in blocks {
        picture.heading(device, (24.0, top));
        let most = rows.iter().map(|layer| total(device, layer)).fold(0.0, f64::max);
        let panel = Panel { left: 235.0, top, width: 640.0, height: 1.0, x: (0.0, most), y: (0.0, 1.0) };
        for layer in rows {
            top += 30.0;
            picture.text(layer, (panel.left - 10.0, top), HPos::Right, INK);
            let mut before = 0.0;
            for (part, colour) in parts {
                let value = used(device, layer, part);
                let (left, right) = (panel.at(before, 0.0).0, panel.at(before + value, 0.0).0);
                picture.bar((left, top - 10.0), (right, top + 10.0), colour);
                if right - left > 40.0 {
                    let middle = f64::midpoint(left, right);
                    picture.text(&number(value), (middle, top), HPos::Center, RGBColor(255, 255, 255));
                }
                before += value;
            }
            picture.text(&number(before), (panel.at(before, 0.0).0 + 8.0, top), HPos::Left, INK);
        }
        top += 52.0;
    }
    picture
}

fn ratio(report: &Report) -> Picture {
    let name = format!("{SERVED}: ratio");
    let figures: Vec<_> =
        report.figures.iter().filter(|figure| figure.what == name && !figure.values.is_empty()).collect();
    let devices = report.devices();
    let rows = figures.len() + 2 * devices.len();
    let height = 24.0 * count(rows);
    let title = "Throughput through the daemon over that of the bare device";
    let subtitle = "Median and quartiles of the ratio, SignBlob; the red mark is what the project asks of itself";
    let mut picture = Picture::new(980.0, 130.0 + height, title, subtitle);
    let panel = Panel { left: 260.0, top: 84.0, width: 620.0, height, x: (0.0, 1.1), y: (0.0, 1.0) };
    for tenth in [0.0, 0.2, 0.4, 0.6, 0.8, 1.0] {
        let (x, bottom) = panel.at(tenth, 0.0);
        picture.line(vec![(x, panel.top), (x, bottom)], if tenth == 1.0 { GREY } else { GRID }, 1.0);
        picture.text(&format!("{tenth:.1}"), (x, bottom + 16.0), HPos::Center, PALE);
    }
    let mut top = panel.top;
    for device in devices {
        top += 24.0;
        picture.heading(&device, (24.0, top));
        for figure in figures.iter().filter(|figure| figure.device == device) {
            top += 24.0;
            let clients = figure.clients.unwrap_or(1);
            let label = format!("{}, {clients} client{}", figure.key, if clients == 1 { "" } else { "s" });
            picture.text(&label, (panel.left - 12.0, top), HPos::Right, INK);
            let Some([low, median, high]) = figure.quartiles() else { continue };
            let x = |value: f64| panel.at(value.min(1.1), 0.0).0;
            let colour = if figure.key == Kind::USUAL.to_string() { GREEN } else { BLUE };
            picture.line(vec![(x(low), top), (x(high), top)], colour, 2.0);
            picture.dot((x(median), top), 5.0, colour);
            if let Some(goal) = figure.goal {
                picture.line(vec![(x(goal.must), top - 9.0), (x(goal.must), top + 9.0)], RED, 2.0);
            }
            picture.text(&format!("{median:.2}"), (panel.right() + 16.0, top), HPos::Left, INK);
        }
        top += 24.0;
    }
    picture
}

fn count(number: usize) -> f64 {
    f64::from(u16::try_from(number).unwrap())
}

/// A round number not below this one, and the step to it.
fn nice(most: f64) -> (f64, f64) {
    let power = 10_f64.powf((most / 4.0).log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0].into_iter().map(|step| step * power).find(|step| step * 5.0 >= most);
    let step = step.unwrap_or(power);
    (step * (most / step).ceil(), step)
}

fn steps(step: f64, top: f64) -> Vec<f64> {
    (0_u8..=5).map(|count| f64::from(count) * step).filter(|value| *value <= top * 1.001).collect()
}
