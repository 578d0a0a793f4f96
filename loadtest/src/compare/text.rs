//! A comparison as text for a terminal of 100 columns. Pure; decides nothing.

use std::fmt::Write as _;

use crate::result::RunFile;
use crate::units::{Unit, change, date, visible};

use super::{Comparison, Line, Summary, Verdict};

/// Width of the column with a figure's name.
const TITLE: usize = 34;

/// What the text depends on beside the comparison.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    /// As the command line has it.
    pub threshold: f64,
    /// Whether figures without a direction are shown, too.
    pub all: bool,
}

/// The whole text.
pub(super) fn print(
    comparison: &Comparison,
    files: [&RunFile; 2],
    names: &[String; 2],
    options: Options,
) -> String {
    let mut text = String::new();
    for ((word, file), name) in ["before", "after"].into_iter().zip(files).zip(names) {
        let build = &file.generator;
        let revision = build.revision.as_deref().unwrap_or("no revision");
        // Writing into a string cannot fail.
        let _ = writeln!(
            text,
            "{word:<7} {}  {}  {} ({}, {})",
            visible(name),
            date(file.started_s),
            visible(&build.version),
            visible(revision),
            visible(&build.profile),
        );
    }
    for warning in &comparison.warnings {
        let _ = writeln!(text, "note    {warning}");
    }
    let shown = comparison.lines.iter().filter(|it| options.all || it.verdict != Verdict::Neutral);
    let mut place = None;
    for line in shown {
        let here = (&line.subject, &line.scenario, &line.phase);
        if place != Some(here) {
            place = Some(here);
            let phase = line.phase.as_ref().unwrap_or(&line.scenario);
            let head = format!("{}, {}", visible(&line.subject), visible(phase));
            let _ = writeln!(text, "\n{:<TITLE$}  {:>18}  {:>18}  {:>8}", head, "before", "after", "change");
        }
        let title = format!("  {}", visible(&line.title));
        let _ = writeln!(
            text,
            "{title:<TITLE$}  {:>18}  {:>18}  {:>8}  {}",
            summary(line.unit, line.before),
            summary(line.unit, line.after),
            shift(line),
            line.verdict.words(),
        );
    }
    text.push('\n');
    text.push_str(&conclusion(comparison, options.threshold));
    text
}

fn shift(line: &Line) -> String {
    match line.change {
        Some(share) => change(share),
        None if line.after.median == 0.0 => String::new(),
        None => "from 0".to_owned(),
    }
}

/// The median, and from the smallest to the largest as a share of it.
fn summary(unit: Unit, summary: Summary) -> String {
    let median = unit.show(summary.median);
    let range = summary.max - summary.min;
    if summary.repetitions > 1 && range > 0.0 && summary.median > 0.0 {
        format!("{median} ~{:.0}%", range / summary.median * 100.0)
    } else {
        median
    }
}

fn conclusion(comparison: &Comparison, threshold: f64) -> String {
    let count = |verdict| comparison.lines.iter().filter(|line| line.verdict == verdict).count();
    let mut text = format!(
        "{} worse, {} better, {} the same within noise or {:.3}%",
        count(Verdict::Worse),
        count(Verdict::Better),
        count(Verdict::Same),
        threshold * 100.0
    )
    .replace(".000%", "%");
    for verdict in [Verdict::OneRepetition, Verdict::Generator, Verdict::Machine] {
        match count(verdict) {
            0 => {}
            some => {
                let _ = write!(text, ", {some} {}", verdict.words());
            }
        }
    }
    text.push('\n');
    let fewest = comparison.lines.iter().map(|it| it.before.repetitions.min(it.after.repetitions)).min();
    match fewest {
        Some(1) => {
            text.push_str("With one repetition nothing is known of noise: run with --repetitions 5.\n")
        }
        Some(2 | 3) => text.push_str(
            "With 2 or 3 repetitions ranges that do not overlap count as a difference, and chance makes such \
             ranges, too (1 in 3\nof 2, 1 in 10 of 3): with 4 or more a rank test decides.\n",
        ),
        _ => {}
    }
    for why in &comparison.cannot {
        let _ = writeln!(text, "cannot compare: {why}");
    }
    text
}

impl Verdict {
    /// As people read it.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "WORSE",
            Self::Same => "same",
            Self::Neutral => "",
            Self::OneRepetition => "no verdict: one repetition",
            Self::Generator => "no verdict: generator",
            Self::Machine => "no verdict: machine",
        }
    }

    /// Its class on a page.
    pub(crate) const fn class(self) -> &'static str {
        match self {
            Self::Better => "best",
            Self::Worse => "bad",
            Self::Same | Self::Neutral | Self::OneRepetition | Self::Generator | Self::Machine => "",
        }
    }
}
