//! Two runs side by side: a verdict for each figure, with the noise taken into account, and whether the two can be compared at
//! all. Reads the two files and prints; `compare/noise.rs` decides what noise is.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use crate::figures::{Better, Figure, UNANNOUNCED, figures};
use crate::result::{RunFile, ScenarioResult};
use crate::runfile;
use crate::units::Unit;

pub(crate) mod likeness;
mod noise;
mod text;

use likeness::{Difference, differences};
use noise::{Noise, noise};

/// Some figure became worse.
const EXIT_WORSE: u8 = 1;
/// The files do not match. (2 is the command line's.)
const EXIT_CANNOT: u8 = 3;

/// What the command line says.
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// The run that is the measure: before the change
    pub before: PathBuf,
    /// The run that is judged: after it
    pub after: PathBuf,
    /// Differences of medians up to this are no verdict, however certain: 5%, 0.05
    #[arg(long, value_name = "SHARE", default_value = "5%", value_parser = share)]
    pub threshold: f64,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
    /// Print every figure, not only those with a direction
    #[arg(long)]
    pub all: bool,
}

/// A figure in two runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// Beyond noise and threshold, in the good direction.
    Better,
    /// Beyond noise and threshold, in the bad direction.
    Worse,
    /// Within noise or threshold.
    Same,
    /// A figure that explains others.
    Neutral,
    /// One repetition says nothing about noise.
    OneRepetition,
    /// The generator was the limit.
    Generator,
    /// The machine was full, and neither side by itself.
    Machine,
}

/// One line of the comparison.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    /// Subject.
    pub subject: String,
    /// Scenario.
    pub scenario: String,
    /// Phase, where the figure is one of a phase.
    pub phase: Option<String>,
    /// Behaviour, where the figure is of subscribers that are not healthy.
    pub behaviour: Option<String>,
    /// Key of the figure.
    pub figure: &'static str,
    /// For people.
    pub title: String,
    /// Its unit.
    pub unit: Unit,
    /// Its direction.
    pub better: Better,
    /// Median, smallest, largest and number before.
    pub before: Summary,
    /// The same after.
    pub after: Summary,
    /// After over before, less 1; null where before is 0.
    pub change: Option<f64>,
    /// How likely a difference like this is if nothing changed (exact permutation test of ranks, two-sided).
    pub p: f64,
    /// The verdict.
    pub verdict: Verdict,
}

/// Values in short.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Summary {
    /// The middle one.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// How many.
    pub repetitions: usize,
}

/// A whole comparison.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Comparison {
    /// Every figure that both have.
    pub lines: Vec<Line>,
    /// What makes a comparison impossible.
    pub cannot: Vec<String>,
    /// What makes it doubtful.
    pub warnings: Vec<String>,
}

impl Comparison {
    /// Whether some figure became worse.
    pub(crate) fn is_regression(&self) -> bool {
        self.lines.iter().any(|line| line.verdict == Verdict::Worse)
    }
}

/// Compares two files and prints what came of it.
pub(crate) fn main(args: &CompareArgs) -> Result<ExitCode, String> {
    let (before, after) = (runfile::load(&args.before)?, runfile::load(&args.after)?);
    let comparison = compare(&before, &after, args.threshold);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&comparison).map_err(|error| error.to_string())?);
    } else {
        let names = [&args.before, &args.after].map(|path| path.display().to_string());
        let options = text::Options { threshold: args.threshold, all: args.all };
        print!("{}", text::print(&comparison, [&before, &after], &names, options));
    }
    Ok(if !comparison.cannot.is_empty() {
        ExitCode::from(EXIT_CANNOT)
    } else if comparison.is_regression() {
        ExitCode::from(EXIT_WORSE)
    } else {
        ExitCode::SUCCESS
    })
}

/// A verdict for each figure that both files have.
pub(crate) fn compare(before: &RunFile, after: &RunFile, threshold: f64) -> Comparison {
    let mut comparison = Comparison { lines: Vec::new(), cannot: Vec::new(), warnings: Vec::new() };
    for difference in likeness::of_files(before, after) {
        comparison.note(difference);
    }
    let name = |it: &ScenarioResult| (it.subject.name.clone(), it.scenario.name.to_string());
    for (file, others, which) in [(before, after, "second"), (after, before, "first")] {
        for result in &file.results {
            if !others.results.iter().any(|it| name(it) == name(result)) {
                let (subject, scenario) = name(result);
                comparison
                    .warnings
                    .push(format!("{subject}, {scenario}: the {which} file does not have it; not compared"));
            }
        }
    }
    for old in &before.results {
        let Some(new) = after.results.iter().find(|it| name(it) == name(old)) else { continue };
        let found = differences(old, new);
        let comparable = !found.iter().any(|it| it.is_fatal);
        found.into_iter().for_each(|it| comparison.note(it));
        if comparable {
            comparison.lines.extend(lines(old, new, threshold));
        }
    }
    if comparison.lines.is_empty() && comparison.cannot.is_empty() {
        comparison.cannot.push(
            "the files have no subject and scenario in common: run the same scenarios for both".to_owned(),
        );
    }
    comparison
}

impl Comparison {
    fn note(&mut self, Difference { what, is_fatal }: Difference) {
        if is_fatal { self.cannot.push(what) } else { self.warnings.push(what) }
    }
}

fn lines(before: &ScenarioResult, after: &ScenarioResult, threshold: f64) -> Vec<Line> {
    let news = figures(after);
    let line = |old: Figure| {
        let new = news.iter().find(|it| it.id() == old.id())?;
        let noise = noise(&values(&old), &values(new));
        let (a, b) = (summary(&old), summary(new));
        let change = (a.median != 0.0).then(|| b.median / a.median - 1.0);
        Some(Line {
            subject: before.subject.name.clone(),
            scenario: before.scenario.name.to_string(),
            title: old.title(),
            figure: old.kind.key,
            unit: old.kind.unit,
            better: old.kind.better,
            before: a,
            after: b,
            change,
            p: noise.p,
            verdict: verdict(&old, new, noise, threshold),
            phase: old.phase,
            behaviour: old.behaviour,
        })
    };
    figures(before).into_iter().filter_map(line).collect()
}

fn values(figure: &Figure) -> Vec<f64> {
    figure.values.iter().map(|it| it.value).collect()
}

fn summary(figure: &Figure) -> Summary {
    Summary {
        median: figure.median(),
        min: figure.min(),
        max: figure.max(),
        repetitions: figure.values.len(),
    }
}

fn verdict(old: &Figure, new: &Figure, noise: Noise, threshold: f64) -> Verdict {
    // What is lost without a word is no noise, and no limit of the generator excuses it.
    if old.kind.key == UNANNOUNCED {
        return match (old.max(), new.max()) {
            (a, b) if b > a => Verdict::Worse,
            (a, b) if a > 0.0 && b == 0.0 => Verdict::Better,
            _ => Verdict::Same,
        };
    }
    let (a, b) = (old.median(), new.median());
    let is_beyond = (b - a).abs() > threshold * a.abs();
    match old.kind.better {
        Better::Neutral => Verdict::Neutral,
        _ if old.is_generators() || new.is_generators() => Verdict::Generator,
        _ if old.is_machines() || new.is_machines() => Verdict::Machine,
        _ if a == b && old.spread() == 0.0 && new.spread() == 0.0 => Verdict::Same,
        _ if old.values.len() < 2 || new.values.len() < 2 => Verdict::OneRepetition,
        better if is_beyond && noise.is_apart => {
            if (b > a) == (better == Better::Higher) {
                Verdict::Better
            } else {
                Verdict::Worse
            }
        }
        _ => Verdict::Same,
    }
}

/// `5%` or `0.05`.
fn share(text: &str) -> Result<f64, String> {
    let (number, scale) = text.strip_suffix('%').map_or((text, 1.0), |it| (it, 100.0));
    match number.trim().parse::<f64>() {
        Ok(value) if (0.0..=10.0).contains(&(value / scale)) => Ok(value / scale),
        _ => Err("want a share such as 5% or 0.05, at most 1000%".to_owned()),
    }
}

#[cfg(test)]
mod tests;
