//! The section of one scenario: its verdict, its figures, its plots, its stages, its books.

use std::collections::BTreeMap;

use crate::compare::{Comparison, likeness};
use crate::figures::{Figure, figures};
use crate::ledger::Account;
use crate::result::{Percentiles, PhaseResult, StageResult};
use crate::units::{count, date, time, visible};

use super::html::{Cell, Html, table};
use super::over_time;
use super::plots;
use super::runs::{Group, Run};
use super::words::{self, Tone};

/// Runs and phases up to which one percentile plot holds all of them.
const TOGETHER_MAX: usize = 4;

/// Draws the section. With a comparison of two files, a verdict stands beside each figure.
pub(crate) fn section(html: &mut Html, group: &Group<'_>, comparison: Option<&Comparison>) {
    html.element("section", &[("id", &group.name)], |html| {
        html.leaf("h2", &[], group.name);
        let Some(first) = group.runs.first() else { return };
        html.leaf("p", &[("class", &"mute")], &words::settings(first.result));
        for run in &group.runs {
            if run.result.scenario != first.result.scenario {
                let settings = likeness::settings(&first.result.scenario, &run.result.scenario);
                let differing: Vec<String> = settings.into_iter().map(|(field, _)| field).collect();
                if !differing.is_empty() {
                    let text = format!("{} was run with other settings: {}", run.label, differing.join("; "));
                    html.leaf("p", &[("class", &"doubt")], &text);
                }
            }
        }
        for run in &group.runs {
            verdict(html, run, group.runs.len() > 1);
        }
        plots(html, group);
        figure_tables(html, group, comparison);
        stages(html, group);
        books(html, group);
    });
}

fn verdict(html: &mut Html, run: &Run<'_>, is_named: bool) {
    let paragraphs = words::verdict(run.result);
    if is_named {
        // With many runs, one paragraph each; what is wrong keeps a line of its own.
        let (plain, loud): (Vec<_>, Vec<_>) = paragraphs.into_iter().partition(|it| it.0 == Tone::Plain);
        html.element("p", &[], |html| {
            html.leaf("b", &[], &run.label);
            let text: Vec<String> = plain.into_iter().map(|it| it.1).collect();
            html.text(&format!(": {}", text.join(" ")));
        });
        for (tone, text) in loud {
            html.leaf("p", &[("class", &class(tone))], &format!("{}: {text}", run.label));
        }
    } else {
        for (tone, text) in paragraphs {
            html.leaf("p", &[("class", &class(tone))], &text);
        }
    }
}

const fn class(tone: Tone) -> &'static str {
    match tone {
        Tone::Plain => "verdict",
        Tone::Doubt => "doubt",
        Tone::Alarm => "alarm",
    }
}

fn plots(html: &mut Html, group: &Group<'_>) {
    let phases = group.phases();
    let curves = if phases.len() * group.runs.len() <= TOGETHER_MAX {
        vec![plots::percentiles(group, &phases)]
    } else {
        phases.iter().map(|phase| plots::percentiles(group, &[phase])).collect()
    };
    let over_time = over_time::over_time(group);
    html.element("div", &[("class", &"plots")], |html| {
        curves.into_iter().flatten().for_each(|plot| plot.draw(html));
        over_time.iter().for_each(|plot| plot.draw(html));
    });
    let is_repeated = group.runs.iter().any(|run| run.result.repetitions.len() > 1);
    if is_repeated && !over_time.is_empty() {
        let drawn = |run: &Run<'_>| {
            let (number, repetition) = run.typical()?;
            let all = run.result.repetitions.len();
            Some(format!("{} of {all}, of {}", number + 1, date(repetition.started_s)))
        };
        let each: Vec<String> = match group.runs.as_slice() {
            [one] => drawn(one).into_iter().collect(),
            many => many.iter().filter_map(|run| Some(format!("{} {}", run.label, drawn(run)?))).collect(),
        };
        let text = format!(
            "By percentile: all repetitions together. Over time: the repetition with the middle p99 ({}).",
            each.join("; ")
        );
        html.leaf("p", &[("class", &"mute")], &text);
    }
}

/// The figures of every run, a table for each phase and one for the whole scenario.
fn figure_tables(html: &mut Html, group: &Group<'_>, comparison: Option<&Comparison>) {
    let all: Vec<Vec<Figure>> = group.runs.iter().map(|run| figures(run.result)).collect();
    let phases = group.phases().into_iter().map(Some).chain([None]);
    for phase in phases {
        let mut kinds: Vec<&Figure> = Vec::new();
        for figure in all.iter().flatten().filter(|it| it.phase.as_deref() == phase) {
            if !kinds.iter().any(|it| it.id() == figure.id()) {
                kinds.push(figure);
            }
        }
        if kinds.is_empty() {
            continue;
        }
        let caption = format!("Figures of {}", phase.unwrap_or("the whole scenario"));
        match all.as_slice() {
            [_] => table(
                html,
                &caption,
                &titles(["figure", "median", "least", "most", "spread", "n"]),
                &kinds.iter().map(|it| alone(it)).collect::<Vec<_>>(),
            ),
            _ => {
                let mut head = vec!["median; least to most".to_owned()];
                head.extend(group.runs.iter().map(|run| run.label.clone()));
                let comparison = comparison.filter(|_| group.runs.len() == 2);
                if comparison.is_some() {
                    head.extend(titles(["change", "verdict"]));
                }
                let rows: Vec<Vec<Cell>> =
                    kinds.iter().map(|kind| side_by_side(kind, &all, group.name, comparison)).collect();
                table(html, &caption, &head, &rows);
            }
        }
    }
}

/// Marks what the generator limited.
fn mark(figure: &Figure) -> &'static str {
    if figure.is_generators() && figure.kind.better != crate::figures::Better::Neutral { " *" } else { "" }
}

fn alone(figure: &Figure) -> Vec<Cell> {
    let show = |value| Cell::new(figure.kind.unit.show(value));
    let spread = figure.spread();
    vec![
        Cell::new(figure.title()),
        Cell::new(format!("{}{}", figure.kind.unit.show(figure.median()), mark(figure))),
        show(figure.min()),
        show(figure.max()),
        Cell::new(if figure.values.len() < 2 || !spread.is_finite() {
            "-".to_owned()
        } else {
            format!("{:.1} %", spread * 100.0)
        }),
        Cell::new(figure.values.len().to_string()),
    ]
}

fn side_by_side(
    kind: &Figure,
    all: &[Vec<Figure>],
    scenario: &str,
    comparison: Option<&Comparison>,
) -> Vec<Cell> {
    let unit = kind.kind.unit;
    let mut row = vec![Cell::new(kind.title())];
    for figures in all {
        row.push(match figures.iter().find(|it| it.id() == kind.id()) {
            Some(figure) => Cell {
                text: format!("{}{}", unit.show(figure.median()), mark(figure)),
                small: if figure.values.len() > 1 && figure.spread() != 0.0 {
                    format!("{} to {}", unit.show(figure.min()), unit.show(figure.max()))
                } else {
                    String::new()
                },
                class: "",
            },
            None => Cell { class: "mute", ..Cell::new("-") },
        });
    }
    let Some(comparison) = comparison else { return row };
    let line = comparison.lines.iter().find(|it| {
        it.scenario == scenario && (it.figure, it.phase.as_deref(), it.behaviour.as_deref()) == kind.id()
    });
    match line {
        Some(line) => row.extend([
            Cell::new(line.change.map(crate::units::change).unwrap_or_default()),
            Cell { class: line.verdict.class(), ..Cell::new(line.verdict.words()) },
        ]),
        None => row.extend([Cell::default(), Cell::default()]),
    }
    row
}

/// What the mean is the sum of: a bar for each run and phase, and the figures behind it.
fn stages(html: &mut Html, group: &Group<'_>) {
    let Some(bars) = plots::stages(group) else { return };
    html.element("div", &[("class", &"plots")], |html| bars.draw(html));
    let mut columns: Vec<(String, &PhaseResult)> = Vec::new();
    let phases = group.phases();
    for run in &group.runs {
        for label in &phases {
            let Some(phase) = plots::typical_phase(run, label).filter(|it| !it.stages.is_empty()) else {
                continue;
            };
            let name = match (group.runs.len(), phases.len()) {
                (1, _) => plots::short(label).to_owned(),
                (_, 1) => run.label.clone(),
                _ => format!("{}, {}", run.label, plots::short(label)),
            };
            columns.push((name, phase));
        }
    }
    let mut stages: Vec<&StageResult> = Vec::new();
    for stage in columns.iter().flat_map(|it| &it.1.stages) {
        if !stages.iter().any(|it| it.name == stage.name) {
            stages.push(stage);
        }
    }
    let cell = |it: Percentiles| Cell {
        // A part that is inferred has a mean only.
        small: if it.count == 0 {
            String::new()
        } else {
            format!("p50 {}, p99 {}", time(it.p50 as f64), time(it.p99 as f64))
        },
        ..Cell::new(time(it.mean))
    };
    let mut rows = Vec::new();
    for stage in stages {
        let name = Cell { small: stage.meaning.clone(), ..Cell::new(stage.name.replace('_', " ")) };
        let mut row = vec![name, Cell::new(plots::measured_by(stage.source))];
        for (_, phase) in &columns {
            let found = phase.stages.iter().find(|it| it.name == stage.name);
            row.push(found.map_or_else(|| Cell::new("-"), |it| cell(it.latency)));
        }
        rows.push(row);
    }
    let mut sum = vec![Cell::new("sum of the means"), Cell::default()];
    let mut whole = vec![Cell::new("from end to end"), Cell::new("the generator's clock")];
    for (_, phase) in &columns {
        sum.push(Cell::new(time(phase.stages.iter().map(|it| it.latency.mean).sum())));
        whole.push(cell(phase.latency));
    }
    rows.extend([sum, whole]);
    let mut head = titles(["stage", "measured by"]);
    head.extend(columns.into_iter().map(|it| it.0));
    table(html, "Stages: mean, and percentiles where they were measured", &head, &rows);
}

/// The ledger: published = received + announced + unseen, to the sample.
fn books(html: &mut Html, group: &Group<'_>) {
    let mut rows = Vec::new();
    let mut notes: BTreeMap<String, u64> = BTreeMap::new();
    for run in &group.runs {
        let mut books: BTreeMap<&str, Account> = BTreeMap::new();
        let mut healthy = Account::default();
        for repetition in &run.result.repetitions {
            healthy += repetition.account;
            for (behaviour, account) in &repetition.others {
                *books.entry(behaviour).or_default() += *account;
            }
            for (what, times) in &repetition.refusals {
                *notes.entry(format!("{}: error {}", run.label, visible(what))).or_default() += times;
            }
            for why in &repetition.ended {
                *notes
                    .entry(format!("{}: a connection ended early: {}", run.label, visible(why)))
                    .or_default() += 1;
            }
        }
        for (who, account) in std::iter::once(("healthy", healthy)).chain(books) {
            if account == Account::default() {
                continue;
            }
            let name = if group.runs.len() > 1 { format!("{}, {who}", run.label) } else { who.to_owned() };
            let number = |value: u64| Cell::new(count(value as f64));
            let wrong = |value: u64| Cell { class: if value > 0 { "bad" } else { "" }, ..number(value) };
            rows.push(vec![
                Cell::new(name),
                number(account.published),
                number(account.received),
                number(account.announced),
                number(account.unseen),
                wrong(account.unannounced),
                wrong(account.excess),
                wrong(account.irregular),
                Cell::new(if account.is_exact() { "exact" } else { "NO" }),
            ]);
        }
    }
    if !rows.is_empty() {
        let head = titles([
            "subscribers",
            "published",
            "received",
            "announced as lost",
            "unseen",
            "lost without a word",
            "announced but received",
            "irregular frames",
            "balance",
        ]);
        let caption = "Books, in samples, all repetitions with their warm-up: published = received + announced + unseen";
        table(html, caption, &head, &rows);
    }
    if !notes.is_empty() {
        html.element("ul", &[], |html| {
            for (what, times) in notes {
                html.leaf("li", &[], &format!("{times} × {what}"));
            }
        });
    }
}

/// Titles of columns.
pub(crate) fn titles<const N: usize>(titles: [&str; N]) -> Vec<String> {
    titles.map(str::to_owned).to_vec()
}
