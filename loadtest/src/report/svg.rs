//! Plots as SVG inside the page: lines over two axes, and horizontal bars. Data in, markup out; the colours are the style sheet's,
//! and a line also has a dash and a marker of its own, so that it is told apart in grey. Pure; knows nothing of runs.

use std::fmt::{self, Display, Write as _};

use super::html::Html;
use super::scale::{Scale, Tick};

/// Colours of the style sheet: classes `c0` to `c7`.
pub(crate) const COLOURS: usize = 8;

/// Dashes, in the order of use; the first is none.
const DASHES: [&str; 5] = ["none", "7 3", "2 3", "10 3 2 3", "5 2 1 2 1 2"];

/// Outlines of markers around the origin, 7 units wide.
const MARKERS: [&str; 6] = [
    "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z",
    "M-3 -3h6v6h-6z",
    "M0 -4l4 7h-8z",
    "M0 -4.5l4.5 4.5l-4.5 4.5l-4.5 -4.5z",
    "M0 4l4 -7h-8z",
    "M-1.2 -4h2.4v2.8h2.8v2.4h-2.8v2.8h-2.4v-2.8h-2.8v-2.4h2.8z",
];

/// Width of every drawing, in its own units.
const WIDTH: f64 = 640.0;
/// Room for the words of the vertical axis.
const LEFT: f64 = 76.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 10.0;
/// Height of the area with the lines.
const HEIGHT: f64 = 250.0;
/// Room for the words of the horizontal axis.
const BOTTOM: f64 = 42.0;
/// From one line of the legend to the next, and from bar to bar.
const LINE: f64 = 18.0;
const BAR: f64 = 30.0;
/// Markers on a line, about.
const MARKERS_MAX: usize = 7;
/// Width of a letter at the size of labels, on the generous side: nothing measures text here.
const LETTER: f64 = 6.6;

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    /// Which colour.
    pub colour: usize,
    /// Which dash.
    pub dash: usize,
    /// Which marker; none for lines that need no telling apart.
    pub marker: Option<usize>,
}

impl Look {
    /// The look of the n-th of many: no two of the first 120 are alike, and neighbours differ in all three.
    pub(crate) fn nth(n: usize) -> Self {
        Self { colour: n, dash: n, marker: Some(n) }
    }

    fn class(self) -> Text<&'static str, usize> {
        Text("c", self.colour % COLOURS)
    }

    fn dash(self) -> &'static str {
        DASHES[self.dash % DASHES.len()]
    }
}

/// One line.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// Its words in the legend.
    pub label: String,
    /// How it looks.
    pub look: Look,
    /// Its pieces, each without a break.
    pub pieces: Vec<Vec<(f64, f64)>>,
}

/// An axis.
#[derive(Clone, Debug)]
pub(crate) struct Axis {
    /// What it shows.
    pub name: String,
    /// How.
    pub scale: Scale,
    /// With which ticks.
    pub ticks: Vec<Tick>,
}

/// Lines over two axes.
#[derive(Clone, Debug)]
pub(crate) struct Plot {
    /// Its caption.
    pub title: String,
    /// From left to right.
    pub x: Axis,
    /// From bottom to top.
    pub y: Axis,
    /// What is drawn.
    pub lines: Vec<Line>,
    /// Upright lines with a word, such as where a phase begins.
    pub rules: Vec<Tick>,
}

/// A bar of one or several parts.
#[derive(Clone, Debug)]
pub(crate) struct Bar {
    /// To the left of it.
    pub label: String,
    /// Colour and length of each part.
    pub parts: Vec<(usize, f64)>,
    /// A mark across the bar: what the parts should add up to.
    pub mark: Option<f64>,
    /// To the right of it.
    pub text: String,
}

/// Horizontal bars over one axis.
#[derive(Clone, Debug)]
pub(crate) struct Bars {
    /// Its caption.
    pub title: String,
    /// Below the bars.
    pub axis: Axis,
    /// From top to bottom.
    pub bars: Vec<Bar>,
    /// Words for the parts, in order: a part shows its number, too.
    pub legend: Vec<(usize, String)>,
}

impl Plot {
    /// Draws it.
    pub(crate) fn draw(&self, html: &mut Html) {
        let legend = layout(self.lines.iter().map(|line| line.label.as_str()));
        let legend_lines = legend.last().map_or(0.0, |(_, line)| line + 1.0);
        let height = TOP + HEIGHT + BOTTOM + legend_lines * LINE + 4.0;
        figure(html, &self.title, height, |html| {
            for tick in &self.y.ticks {
                let y = self.y(tick.at);
                grid(html, [LEFT, y, WIDTH - RIGHT, y], tick);
                label(html, LEFT - 6.0, y + 4.0, "end", &tick.label);
            }
            for tick in &self.x.ticks {
                let x = self.x(tick.at);
                grid(html, [x, TOP, x, TOP + HEIGHT], tick);
                label(html, x, TOP + HEIGHT + 16.0, "middle", &tick.label);
            }
            label(html, LEFT + (WIDTH - LEFT - RIGHT) / 2.0, TOP + HEIGHT + 34.0, "middle", &self.x.name);
            let upright = Text("rotate(-90 12 ", format!("{})", Px(TOP + HEIGHT / 2.0)));
            let middle = Px(TOP + HEIGHT / 2.0);
            html.element(
                "text",
                &[("x", &12), ("y", &middle), ("text-anchor", &"middle"), ("transform", &upright)],
                |html| html.text(&self.y.name),
            );
            for rule in &self.rules {
                let x = self.x(rule.at);
                let ends: [Px; 2] = [Px(TOP), Px(TOP + HEIGHT)];
                html.void(
                    "line",
                    &[("class", &"rule"), ("x1", &Px(x)), ("x2", &Px(x)), ("y1", &ends[0]), ("y2", &ends[1])],
                );
                label(html, x + 4.0, TOP + 12.0, "start", &rule.label);
            }
            for (index, line) in self.lines.iter().enumerate() {
                self.line(html, line, index);
            }
            for (line, (at, row)) in self.lines.iter().zip(&legend) {
                let (x, y) = (LEFT + at, TOP + HEIGHT + BOTTOM + row * LINE + 8.0);
                html.element("g", &[("class", &line.look.class())], |html| {
                    path(html, &format!("M{} {}h26", Px(x), Px(y)), line.look);
                    if let Some(shape) = line.look.marker {
                        marker(html, (x + 13.0, y), shape);
                    }
                });
                label(html, x + 32.0, y + 4.0, "start", &line.label);
            }
        });
    }

    fn line(&self, html: &mut Html, line: &Line, index: usize) {
        html.element("g", &[("class", &line.look.class())], |html| {
            for piece in &line.pieces {
                let places: Vec<(f64, f64)> = piece.iter().map(|&(x, y)| (self.x(x), self.y(y))).collect();
                let mut drawn = String::new();
                for (at, (x, y)) in places.iter().enumerate() {
                    // Writing into a string cannot fail.
                    let _ = write!(drawn, "{}{} {}", if at == 0 { "M" } else { "L" }, Px(*x), Px(*y));
                }
                if places.len() > 1 {
                    path(html, &drawn, line.look);
                }
                let shape = match (line.look.marker, places.len()) {
                    (Some(shape), _) => shape,
                    // A lone point would not be seen.
                    (None, 1) => 0,
                    (None, _) => continue,
                };
                let stride = places.len().div_ceil(MARKERS_MAX).max(1);
                // Lines that lie on each other have their markers at different places.
                for place in places.iter().skip(index * 2 % stride).step_by(stride) {
                    marker(html, *place, shape);
                }
            }
        });
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + self.x.scale.place(value) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        TOP + (1.0 - self.y.scale.place(value)) * HEIGHT
    }
}

impl Bars {
    /// Draws them.
    pub(crate) fn draw(&self, html: &mut Html) {
        let widest = |texts: &mut dyn Iterator<Item = &str>| texts.map(width).fold(0.0, f64::max);
        let left = widest(&mut self.bars.iter().map(|bar| bar.label.as_str())).clamp(40.0, 230.0) + 10.0;
        let right = widest(&mut self.bars.iter().map(|bar| bar.text.as_str())).clamp(10.0, 150.0) + 12.0;
        let x = |value: f64| left + self.axis.scale.place(value) * (WIDTH - left - right);
        let bottom = self.bars.iter().fold(TOP, |bottom, _| bottom + BAR);
        let numbered: Vec<String> =
            self.legend.iter().zip(1..).map(|((_, words), number)| numbered(number, words)).collect();
        let legend = layout(numbered.iter().map(String::as_str));
        let legend_lines = legend.last().map_or(0.0, |(_, line)| line + 1.0);
        figure(html, &self.title, bottom + BOTTOM + legend_lines * LINE + 4.0, |html| {
            for tick in &self.axis.ticks {
                let at = x(tick.at);
                grid(html, [at, TOP, at, bottom], tick);
                label(html, at, bottom + 16.0, "middle", &tick.label);
            }
            label(html, (left + WIDTH - right) / 2.0, bottom + 34.0, "middle", &self.axis.name);
            let mut top = TOP + 4.0;
            for bar in &self.bars {
                label(html, left - 8.0, top + 15.0, "end", &shortened(&bar.label, left - 8.0));
                let mut total = 0.0;
                let mut end = left;
                for (number, (colour, length)) in (1..).zip(&bar.parts) {
                    let from = if total > 0.0 { x(total) } else { left };
                    total += length;
                    end = x(total);
                    part(html, [from, top, end], *colour, (!self.legend.is_empty()).then_some(number));
                }
                if let Some(mark) = bar.mark {
                    let at = x(mark);
                    end = end.max(at);
                    let d = format!("M{} {}v{}", Px(at), Px(top - 3.0), BAR - 2.0);
                    html.void("path", &[("class", &"mark"), ("d", &d)]);
                }
                label(html, end + 8.0, top + 15.0, "start", &bar.text);
                top += BAR;
            }
            for (((colour, _), words), (at, line)) in self.legend.iter().zip(&numbered).zip(&legend) {
                let (at, y) = (20.0 + at, bottom + BOTTOM + line * LINE);
                part(html, [at, y - 2.0, at + 20.0], *colour, None);
                label(html, at + 28.0, y + 12.0, "start", words);
            }
        });
    }
}

/// A piece of a bar, from and to, with its number where there is room for it.
fn part(html: &mut Html, [from, top, to]: [f64; 3], colour: usize, number: Option<i32>) {
    let (x, y, class) = (Px(from), Px(top), Text("c", colour % COLOURS));
    let height = if number.is_some() || to - from > 20.5 { BAR - 8.0 } else { 16.0 };
    let wide = Px((to - from).max(0.5));
    html.void("rect", &[("class", &class), ("x", &x), ("y", &y), ("width", &wide), ("height", &height)]);
    if let Some(number) = number.filter(|_| to - from > 14.0) {
        let middle = Px((from + to) / 2.0);
        let y = Px(top + 15.0);
        html.element(
            "text",
            &[("class", &"inside"), ("x", &middle), ("y", &y), ("text-anchor", &"middle")],
            |html| html.text(&number.to_string()),
        );
    }
}

fn figure(html: &mut Html, title: &str, height: f64, inner: impl FnOnce(&mut Html)) {
    html.element("figure", &[], |html| {
        html.leaf("figcaption", &[], title);
        let view = format!("0 0 {WIDTH:.0} {height:.0}");
        html.element("svg", &[("viewBox", &view), ("role", &"img"), ("aria-label", &title)], |html| {
            html.leaf("title", &[], title);
            inner(html);
        });
    });
}

fn grid(html: &mut Html, [x1, y1, x2, y2]: [f64; 4], tick: &Tick) {
    let class = if tick.label.is_empty() { "grid faint" } else { "grid" };
    html.void("path", &[("class", &class), ("d", &format!("M{} {}L{} {}", Px(x1), Px(y1), Px(x2), Px(y2)))]);
}

fn label(html: &mut Html, x: f64, y: f64, anchor: &'static str, text: &str) {
    if !text.is_empty() {
        html.leaf("text", &[("x", &Px(x)), ("y", &Px(y)), ("text-anchor", &anchor)], text);
    }
}

fn path(html: &mut Html, d: &str, look: Look) {
    html.void("path", &[("class", &"line"), ("stroke-dasharray", &look.dash()), ("d", &d)]);
}

fn marker(html: &mut Html, (x, y): (f64, f64), shape: usize) {
    let place = format!("translate({} {})", Px(x), Px(y));
    html.void("path", &[("class", &"dot"), ("transform", &place), ("d", &MARKERS[shape % MARKERS.len()])]);
}

/// Where the entries of a legend go: an offset from the left and a line, from 0.
fn layout<'a>(labels: impl Iterator<Item = &'a str>) -> Vec<(f64, f64)> {
    let (mut x, mut line) = (0.0, 0.0);
    let place = |label: &str| {
        let wide = 48.0 + width(label);
        if x > 0.0 && LEFT + x + wide > WIDTH {
            (x, line) = (0.0, line + 1.0);
        }
        let place = (x, line);
        x += wide;
        place
    };
    labels.map(place).collect()
}

fn numbered(number: i32, words: &str) -> String {
    format!("{number} {words}")
}

fn width(text: &str) -> f64 {
    text.chars().fold(0.0, |width, _| width + LETTER)
}

/// The text, cut so that it fits.
fn shortened(text: &str, room: f64) -> String {
    if width(text) <= room {
        return text.to_owned();
    }
    let mut kept = String::new();
    for c in text.chars() {
        if width(&kept) + 2.0 * LETTER > room {
            break;
        }
        kept.push(c);
    }
    kept + "…"
}

/// A coordinate: a tenth is finer than any screen.
#[derive(Clone, Copy, Debug)]
struct Px(f64);

impl Display for Px {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1}", self.0)
    }
}

/// Two things as one attribute.
#[derive(Clone, Copy, Debug)]
struct Text<A, B>(A, B);

impl<A: Display, B: Display> Display for Text<A, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.0, self.1)
    }
}
