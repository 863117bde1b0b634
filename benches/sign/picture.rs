//! Pictures as lists of shapes, drawn by plotters as SVG and, in twice the size, as PNG.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font};

/// Shapes on a white ground, in the order in which they are painted.
pub(crate) struct Picture {
    width: f64,
    height: f64,
    shapes: Vec<Shape>,
}

enum Shape {
    Line { points: Vec<(f64, f64)>, colour: RGBColor, width: f64 },
    Bar { from: (f64, f64), to: (f64, f64), colour: RGBColor },
    Dot { at: (f64, f64), size: f64, colour: RGBColor },
    Text { text: String, at: (f64, f64), size: f64, bold: bool, side: HPos, colour: RGBColor },
}

/// A part of a picture, with what a value is on each axis.
pub(crate) struct Panel {
    pub(crate) left: f64,
    pub(crate) top: f64,
    pub(crate) width: f64,
    pub(crate) height: f64,
    /// What lies at the left and at the right.
    pub(crate) x: (f64, f64),
    /// What lies at the bottom and at the top.
    pub(crate) y: (f64, f64),
}

impl Panel {
    pub(crate) fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let part = |value: f64, (from, to): (f64, f64)| (value - from) / (to - from);
        (self.left + part(x, self.x) * self.width, self.top + (1.0 - part(y, self.y)) * self.height)
    }

    pub(crate) fn bottom(&self) -> f64 {
        self.top + self.height
    }

    pub(crate) fn right(&self) -> f64 {
        self.left + self.width
    }
}

impl Picture {
    pub(crate) fn new(width: f64, height: f64, title: &str, subtitle: &str) -> Self {
        let mut picture = Self { width, height, shapes: Vec::new() };
        picture.text_sized(title, (24.0, 26.0), 19.0, true, HPos::Left, INK);
        picture.text(subtitle, (24.0, 50.0), HPos::Left, PALE);
        picture
    }

    pub(crate) fn line(&mut self, points: Vec<(f64, f64)>, colour: RGBColor, width: f64) {
        self.shapes.push(Shape::Line { points, colour, width });
    }

    pub(crate) fn bar(&mut self, from: (f64, f64), to: (f64, f64), colour: RGBColor) {
        self.shapes.push(Shape::Bar { from, to, colour });
    }

    pub(crate) fn dot(&mut self, at: (f64, f64), size: f64, colour: RGBColor) {
        self.shapes.push(Shape::Dot { at, size, colour });
    }

    /// Centred on its line; `side` is where of it the point lies.
    pub(crate) fn text(&mut self, text: &str, at: (f64, f64), side: HPos, colour: RGBColor) {
        self.text_sized(text, at, 13.0, false, side, colour);
    }

    pub(crate) fn heading(&mut self, text: &str, at: (f64, f64)) {
        self.text_sized(text, at, 14.0, true, HPos::Left, INK);
    }

    fn text_sized(&mut self, text: &str, at: (f64, f64), size: f64, bold: bool, side: HPos, colour: RGBColor) {
        self.shapes.push(Shape::Text { text: text.to_owned(), at, size, bold, side, colour });
    }

    /// Horizontal lines with what they stand for, from the lowest up.
    pub(crate) fn grid(&mut self, panel: &Panel, values: &[f64], label: impl Fn(f64) -> String) {
        for value in values {
            let (left, y) = panel.at(panel.x.0, *value);
            self.line(vec![(left, y), (panel.right(), y)], GRID, 1.0);
            self.text(&label(*value), (left - 8.0, y), HPos::Right, PALE);
        }
    }

    /// Labels at a common left edge, moved apart where they would touch.
    pub(crate) fn labels(&mut self, left: f64, mut labels: Vec<(f64, String, RGBColor)>) {
        labels.sort_by(|one, other| one.0.total_cmp(&other.0));
        let mut lowest = f64::NEG_INFINITY;
        for (wanted, text, colour) in labels {
            lowest = wanted.max(lowest + 16.0);
            self.text(&text, (left, lowest), HPos::Left, colour);
        }
    }

    /// Writes NAME.svg and NAME.png.
    pub(crate) fn save(&self, folder: &Path, name: &str) {
        let file = |ending: &str| folder.join(format!("{name}.{ending}"));
        let size = |scale: f64| (whole(self.width * scale).unsigned_abs(), whole(self.height * scale).unsigned_abs());
        self.draw(&SVGBackend::new(&file("svg"), size(1.0)).into_drawing_area(), 1.0, 0.0);
        self.draw(&BitMapBackend::new(&file("png"), size(2.0)).into_drawing_area(), 2.0, 0.16);
    }

    /// `sink` is how far below its line a backend must put text for it to be centred, in parts of its size.
    fn draw<DB: DrawingBackend>(&self, area: &DrawingArea<DB, Shift>, scale: f64, sink: f64) {
        area.fill(&WHITE).unwrap();
        let at = |(x, y): (f64, f64)| (whole(x * scale), whole(y * scale));
        for shape in &self.shapes {
            match shape {
                Shape::Line { points, colour, width } => {
                    let points: Vec<_> = points.iter().copied().map(at).collect();
                    area.draw(&PathElement::new(points, colour.stroke_width(whole(width * scale).unsigned_abs())))
                }
                Shape::Bar { from, to, colour } => area.draw(&Rectangle::new([at(*from), at(*to)], colour.filled())),
                Shape::Dot { at: centre, size, colour } => {
                    area.draw(&Circle::new(at(*centre), whole(size * scale), colour.filled()))
                }
                Shape::Text { text, at: point, size, bold, side, colour } => {
                    let style = if *bold { FontStyle::Bold } else { FontStyle::Normal };
                    let font = ("sans-serif", size * scale, style).into_font().color(colour);
                    let place = at((point.0, point.1 + size * sink));
                    area.draw(&Text::new(text.as_str(), place, font.pos(Pos::new(*side, VPos::Center))))
                }
            }
            .unwrap();
        }
        area.present().unwrap();
    }
}

/// Finds a font. False where there is none, and so no pictures.
pub(crate) fn find_font() -> bool {
    let load = |file: &str, style| {
        let font = FOLDERS.iter().find_map(|folder| std::fs::read(Path::new(folder).join(file)).ok());
        // It is needed until the program ends.
        font.is_some_and(|font| register_font("sans-serif", style, font.leak()).is_ok())
    };
    load("DejaVuSans.ttf", FontStyle::Normal) && load("DejaVuSans-Bold.ttf", FontStyle::Bold)
}

#[allow(clippy::cast_possible_truncation, reason = "a place in a picture")]
fn whole(value: f64) -> i32 {
    value.round() as i32
}

const FOLDERS: [&str; 3] =
    ["/usr/share/fonts/truetype/dejavu", "/usr/share/fonts/TTF", "/usr/share/fonts/dejavu-sans-fonts"];

pub(crate) const INK: RGBColor = RGBColor(31, 35, 40);
pub(crate) const PALE: RGBColor = RGBColor(101, 109, 118);
pub(crate) const GRID: RGBColor = RGBColor(225, 228, 232);
pub(crate) const GREY: RGBColor = RGBColor(140, 149, 159);
pub(crate) const BLUE: RGBColor = RGBColor(9, 105, 218);
pub(crate) const GREEN: RGBColor = RGBColor(26, 127, 55);
pub(crate) const ORANGE: RGBColor = RGBColor(188, 76, 0);
pub(crate) const VIOLET: RGBColor = RGBColor(130, 80, 223);
pub(crate) const RED: RGBColor = RGBColor(207, 34, 46);
