//! The plots over time of a scenario as data: latency, rates, CPU, memory, and how old what slow readers read is. Pure; `svg` draws
//! them.

use crate::result::{AgeSecond, PhaseResult, Second};
use crate::units::{rate, time};

use super::plots::{axis, short, trimmed};
use super::runs::{Group, Run};
use super::scale::{Scale, Tick};
use super::svg::{Axis, Line, Look, Plot};

/// Runs up to which a plot shows all percentiles and both sides; with more it shows what matters most.
const DETAILED_MAX: usize = 2;

/// What was asked for: its word and its look, the same in every plot.
const ASKED: &str = "asked";
const ASKED_LOOK: Look = Look { colour: 5, dash: 2, marker: None };

/// Bytes of a MiB: the axis of memory counts in them, so that its ticks are round.
const MIB: f64 = 1_048_576.0;

/// What a plot over time shows.
struct Series {
    title: &'static str,
    axis: &'static str,
    is_log: bool,
    label: fn(f64) -> String,
    /// Words, dash, marker or not, and the value in a second.
    values: Vec<Part>,
}

type Part = (&'static str, fn(&PhaseResult, &Second) -> Option<f64>);

/// The plots over time that a group has figures for.
pub(crate) fn over_time(group: &Group<'_>) -> Vec<Plot> {
    let is_detailed = group.runs.len() <= DETAILED_MAX;
    let keep = |mut values: Vec<Part>, index: usize| {
        if !is_detailed {
            values = vec![values.swap_remove(index)];
        }
        values
    };
    let all = [
        Series {
            title: "Latency over time",
            axis: "latency",
            is_log: true,
            label: time,
            values: keep(
                vec![
                    ("p50", |_, it| (it.p50_ns > 0).then_some(it.p50_ns as f64)),
                    ("p99", |_, it| (it.p99_ns > 0).then_some(it.p99_ns as f64)),
                    ("largest", |_, it| (it.max_ns > 0).then_some(it.max_ns as f64)),
                ],
                1,
            ),
        },
        Series {
            title: "Messages out, got and asked",
            axis: "messages/s",
            is_log: false,
            label: rate,
            values: vec![
                ("got", |_, it| Some(it.messages_per_s)),
                (ASKED, |phase, _| phase.asked_messages_per_s),
            ],
        },
        Series {
            title: "Deliveries over time",
            axis: "deliveries/s",
            is_log: false,
            label: rate,
            values: vec![("", |_, it| Some(it.deliveries_per_s))],
        },
        Series {
            title: "CPU of both sides over time",
            axis: "CPUs busy",
            is_log: false,
            label: |value| format!("{} %", trimmed(value * 100.0)),
            values: keep(vec![("server", |_, it| it.server_cpus), ("generator", |_, it| it.client_cpus)], 0),
        },
        Series {
            title: "Resident memory of the server over time",
            axis: "MiB",
            is_log: false,
            label: trimmed,
            values: vec![("", |_, it| it.server_bytes.map(|it| it as f64 / MIB))],
        },
    ];
    let mut plots: Vec<Plot> = all.into_iter().filter_map(|series| plot(group, &series)).collect();
    plots.extend(ages(group));
    plots
}

fn plot(group: &Group<'_>, series: &Series) -> Option<Plot> {
    let mut lines = Vec::new();
    for run in &group.runs {
        for (number, (words, value)) in series.values.iter().enumerate() {
            let pieces = pieces(run, *value);
            if pieces.is_empty() {
                continue;
            }
            let label = match (group.runs.len(), words.is_empty()) {
                (1, false) => (*words).to_owned(),
                (_, true) => run.label.clone(),
                (_, false) => format!("{} {words}", run.label),
            };
            // One run: its lines differ in everything. Several: a colour for each run, a dash for each line.
            let look = match group.runs.len() {
                1 => Look::nth(number),
                0..=DETAILED_MAX => Look { colour: run.look, dash: number, marker: Some(run.look) },
                _ if number > 0 => Look { colour: run.look, dash: 2, marker: None },
                _ => Look::nth(run.look),
            };
            lines.push(Line { label, look, pieces });
        }
    }
    // What was asked for is mostly the same for all: then it is one line.
    let asked = |line: &Line| line.label.ends_with(ASKED);
    let heights = |line: &Line| line.pieces.iter().map(|it| it[0].1.to_bits()).collect::<Vec<_>>();
    let mut all = lines.iter().filter(|line| asked(line));
    if let Some(first) = all.next().map(heights)
        && all.all(|line| heights(line) == first)
    {
        let mut is_first = true;
        lines.retain_mut(|line| {
            if !asked(line) {
                return true;
            }
            line.label = ASKED.to_owned();
            line.look = ASKED_LOOK;
            std::mem::take(&mut is_first)
        });
    }
    let values = lines.iter().flat_map(|line| line.pieces.iter().flatten()).map(|it| it.1);
    // Some room above, so that a level line is not taken for the frame.
    let scale = if series.is_log { Scale::log(values) } else { Scale::linear(values.map(|it| it * 1.05)) };
    finished(group, series.title, axis(series.axis, scale, series.label), lines)
}

/// How old what the others read is: the slow, the stalled. Flat is as it should be; rising is a backlog without an end.
fn ages(group: &Group<'_>) -> Option<Plot> {
    let mut lines = Vec::new();
    let mut behaviours: Vec<&str> = Vec::new();
    for run in &group.runs {
        let phases = run.typical().map(|(_, it)| it.phases.as_slice()).unwrap_or_default();
        for behaviour in phases.iter().flat_map(|phase| phase.age_of.keys()) {
            if !behaviours.contains(&behaviour.as_str()) {
                behaviours.push(behaviour);
            }
        }
    }
    for run in &group.runs {
        for (number, behaviour) in behaviours.iter().enumerate() {
            let phases = run.typical().map(|(_, it)| it.phases.as_slice()).unwrap_or_default();
            let ages = phases.iter().filter_map(|phase| phase.age_of.get(*behaviour));
            let piece = |ages: &Vec<AgeSecond>| {
                let read = ages.iter().filter(|it| it.max_ns > 0);
                read.map(|it| (it.at_s, it.p99_ns as f64)).collect::<Vec<_>>()
            };
            let pieces: Vec<_> = ages.map(piece).filter(|piece| !piece.is_empty()).collect();
            if pieces.is_empty() {
                continue;
            }
            let (label, look) = match (group.runs.len(), behaviours.len()) {
                (1, _) => ((*behaviour).to_owned(), Look::nth(number)),
                (_, 1) => (run.label.clone(), Look::nth(run.look)),
                _ => (format!("{} {behaviour}", run.label), Look { dash: number, ..Look::nth(run.look) }),
            };
            lines.push(Line { label, look, pieces });
        }
    }
    let values = lines.iter().flat_map(|line| line.pieces.iter().flatten()).map(|it| it.1);
    let title = format!("Age p99 of what is read by: {}", behaviours.join(", "));
    finished(group, &title, axis("age", Scale::log(values), time), lines)
}

/// The plot, if there is anything in it.
fn finished(group: &Group<'_>, title: &str, y: Axis, lines: Vec<Line>) -> Option<Plot> {
    let points = || lines.iter().flat_map(|line| line.pieces.iter().flatten());
    let from = points().map(|it| it.0).fold(f64::INFINITY, f64::min);
    let to = points().map(|it| it.0).fold(0.0, f64::max);
    if lines.is_empty() || to <= from {
        return None;
    }
    let (x, rules) = (seconds_axis(from, to), phase_starts(group));
    Some(Plot { title: title.to_owned(), x, y, lines, rules })
}

/// The phases of the typical repetition, each a piece, so that no line is drawn over the warm-up between.
fn pieces(run: &Run<'_>, value: fn(&PhaseResult, &Second) -> Option<f64>) -> Vec<Vec<(f64, f64)>> {
    let phases = run.typical().map(|(_, it)| it.phases.as_slice()).unwrap_or_default();
    let piece = |phase: &PhaseResult| {
        let points = phase.seconds_of.iter().filter_map(|it| Some((it.at_s, value(phase, it)?)));
        points.collect::<Vec<_>>()
    };
    phases.iter().map(piece).filter(|piece| !piece.is_empty()).collect()
}

/// Where each phase of the first run begins, where there are several.
fn phase_starts(group: &Group<'_>) -> Vec<Tick> {
    let Some((_, repetition)) = group.runs.first().and_then(Run::typical) else { return Vec::new() };
    if repetition.phases.len() < 2 {
        return Vec::new();
    }
    let start = |phase: &PhaseResult| {
        let first = phase.seconds_of.first()?;
        Some(Tick { at: first.at_s, label: short(&phase.label).to_owned() })
    };
    repetition.phases.iter().filter_map(start).collect()
}

/// Seconds from the first value to the last, with room for the first interval.
fn seconds_axis(from: f64, to: f64) -> Axis {
    let scale = Scale::Linear { from: from.floor(), to: to.ceil() };
    let around = Scale::linear([to]);
    let ticks = around.ticks(trimmed).into_iter();
    let ticks = ticks.filter(|it| (from.floor()..=to.ceil()).contains(&it.at)).collect();
    Axis { name: "seconds from the start of the scenario".to_owned(), scale, ticks }
}
