//! The plots of a scenario as data: latency by percentile, the stages as a sum, rankings. Pure; `svg` draws them, `over_time` has
//! those over time, and the text for a terminal shares the percentile curves.

use hdrhistogram::Histogram;

use crate::result::{PhaseResult, StageSource};
use crate::units::{Unit, digits, time};

use super::runs::{Group, Run};
use super::scale::{Scale, Tick};
use super::svg::{Axis, Bar, Bars, Line, Look, Plot};

/// Points of a percentile curve for a factor of ten.
const POINTS_PER_DECADE: u32 = 24;
/// Most decades of the percentile axis: beyond 99.9999 nothing is certain.
const DECADES_MAX: f64 = 6.0;
/// Bytes of a KiB: axes of memory count in them, so that their ticks are round.
const KIB: f64 = 1_024.0;

/// The percentile curve: (1/(1-p), nanoseconds), from p = 0 to the last that the count carries.
pub(crate) fn percentile_curve(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    let count = histogram.len() as f64;
    let last = count.log10().clamp(0.5, DECADES_MAX);
    let steps = (0..).map(|step| f64::from(step) / f64::from(POINTS_PER_DECADE)).take_while(|it| *it < last);
    steps
        .chain([last])
        .map(|exponent| {
            let odds = 10f64.powf(exponent);
            (odds, histogram.value_at_quantile(1.0 - 1.0 / odds) as f64)
        })
        .collect()
}

/// Ticks of a percentile axis up to these odds: 0, 50, 90, 99, ….
pub(crate) fn percentile_ticks(odds_max: f64) -> Vec<Tick> {
    let words = [(1.0, "0 %"), (2.0, "50 %"), (10.0, "90 %"), (100.0, "99 %"), (1e3, "99.9 %")];
    let more = [(1e4, "99.99 %"), (1e5, "99.999 %"), (1e6, "99.9999 %")];
    let all = words.into_iter().chain(more).filter(|(at, _)| *at <= odds_max * 1.001);
    all.map(|(at, label)| Tick { at, label: label.to_owned() }).collect()
}

/// Latency by percentile, a line for each run and phase.
pub(crate) fn percentiles(group: &Group<'_>, phases: &[&str]) -> Option<Plot> {
    let mut lines = Vec::new();
    for run in &group.runs {
        for (number, phase) in phases.iter().enumerate() {
            let Some(histogram) = run.histogram(phase) else { continue };
            let label =
                if phases.len() > 1 { format!("{}, {}", run.label, short(phase)) } else { run.label.clone() };
            // Phases of one run share its colour and differ in dash and marker, where there is one run; else by look.
            let look = if group.runs.len() == 1 {
                Look::nth(number)
            } else {
                Look { dash: run.look + number, ..Look::nth(run.look) }
            };
            lines.push(Line { label, look, pieces: vec![percentile_curve(&histogram)] });
        }
    }
    let points = || lines.iter().flat_map(|line| line.pieces.iter().flatten());
    let odds_max = points().map(|it| it.0).fold(0.0, f64::max);
    let x = Axis {
        name: "percentile of samples (each step to the right is ten times rarer)".to_owned(),
        scale: Scale::Log { from: 1.0, to: odds_max.max(10.0) },
        ticks: percentile_ticks(odds_max),
    };
    let y = axis("latency", Scale::log(points().map(|it| it.1)), time);
    let title = format!("Latency by percentile: {}", phases.join(" and "));
    (!lines.is_empty()).then_some(Plot { title, x, y, lines, rules: vec![] })
}

/// The phase without its scenario.
pub(crate) fn short(label: &str) -> &str {
    label.split_once('/').map_or(label, |(_, phase)| phase)
}

/// The mean latency of each run and phase as a sum of its stages.
pub(crate) fn stages(group: &Group<'_>) -> Option<Bars> {
    let mut names: Vec<String> = Vec::new();
    let mut bars = Vec::new();
    let phases = group.phases();
    for run in &group.runs {
        for label in &phases {
            let Some(phase) = typical_phase(run, label) else { continue };
            if phase.stages.is_empty() || phase.latency.count == 0 {
                continue;
            }
            let mut parts = Vec::new();
            for stage in &phase.stages {
                let place = names.iter().position(|it| *it == stage.name).unwrap_or_else(|| {
                    names.push(stage.name.clone());
                    names.len() - 1
                });
                parts.push((place, stage.latency.mean.max(0.0)));
            }
            let label = match (group.runs.len(), phases.len()) {
                (1, _) => (*label).to_owned(),
                (_, 1) => run.label.clone(),
                _ => format!("{}, {}", run.label, short(label)),
            };
            let mean = phase.latency.mean;
            bars.push(Bar { label, parts, mark: Some(mean), text: time(mean) });
        }
    }
    let ends = bars.iter().flat_map(|bar| [bar.parts.iter().map(|it| it.1).sum(), bar.mark.unwrap_or(0.0)]);
    let axis = axis(
        "mean latency; the upright mark is the mean measured from end to end",
        Scale::linear(ends),
        time,
    );
    let legend =
        names.into_iter().enumerate().map(|(colour, name)| (colour, name.replace('_', " "))).collect();
    let title = "Mean latency as a sum of its stages".to_owned();
    (!bars.is_empty()).then_some(Bars { title, axis, bars, legend })
}

/// A phase of the repetition that is drawn.
pub(crate) fn typical_phase<'a>(run: &'a Run<'_>, label: &str) -> Option<&'a PhaseResult> {
    run.typical()?.1.phases.iter().find(|it| it.label == label)
}

/// Bars over a logarithmic axis, one for each label.
pub(crate) fn ranking(
    title: String,
    name: &str,
    unit: Unit,
    values: Vec<(String, usize, f64)>,
) -> Option<Bars> {
    let divisor = if unit == Unit::Bytes { KIB } else { 1.0 };
    // The shortest bar has a length, too.
    let ends = values.iter().flat_map(|it| [it.2 * 0.5 / divisor, it.2 / divisor]);
    let scale = Scale::log(ends);
    let bars = values.into_iter().map(|(label, look, value)| Bar {
        label,
        parts: vec![(look, value / divisor)],
        mark: None,
        text: unit.show(value),
    });
    let bars: Vec<Bar> = bars.collect();
    let axis = axis(name, scale, |value| if unit == Unit::Bytes { trimmed(value) } else { unit.show(value) });
    (!bars.is_empty()).then_some(Bars { title, axis, bars, legend: vec![] })
}

/// Who measured a stage, in words.
pub(crate) const fn measured_by(source: StageSource) -> &'static str {
    match source {
        StageSource::Server => "the server's histograms",
        StageSource::Generator => "the generator's clock",
        StageSource::Remainder => "what is left of the total",
    }
}

/// An axis with its ticks.
pub(crate) fn axis(name: &str, scale: Scale, label: impl Fn(f64) -> String) -> Axis {
    Axis { name: name.to_owned(), scale, ticks: scale.ticks(label) }
}

/// Up to three digits, without zeros at the end.
pub(crate) fn trimmed(value: f64) -> String {
    let text = digits(value);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}
