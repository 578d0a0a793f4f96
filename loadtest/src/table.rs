//! Results as text for a terminal: one table of medians, a second one that explains the latency, notes. Pure.

use std::fmt::Write as _;

use crate::proc;
use crate::result::{Bottleneck, PhaseResult, Repetition, RunFile, ScenarioResult, Side, StageSource};
use crate::run::Live;

use self::notes::notes;

mod notes;

const COLUMNS: [&str; 15] = [
    "scenario",
    "msg/s asked",
    "got",
    "deliveries/s",
    "p50",
    "p90",
    "p99",
    "min..max",
    "p99.9",
    "max",
    "gaps",
    "lost",
    "server CPU, peak",
    "client CPU, peak",
    "bottleneck",
];

/// All of it.
pub(crate) fn text(file: &RunFile) -> String {
    format!("{}\n{}\n{}{}", table(file), stages(file), notes(file), caption(file))
}

/// The table: medians of the repetitions, and what p99 went from and to. Gaps and losses are samples, of the whole scenario
/// and all repetitions, so they stand in the line of its last phase.
fn table(file: &RunFile) -> String {
    let rows = file.results.iter().flat_map(|result| {
        let count = result.repetitions.first().map_or(0, |it| it.phases.len());
        (0..count).map(move |index| row(file, result, index, index + 1 == count))
    });
    aligned(COLUMNS, rows)
}

/// The same phase of each repetition.
fn phases(result: &ScenarioResult, index: usize) -> Vec<&PhaseResult> {
    result.repetitions.iter().filter_map(|it| it.phases.get(index)).collect()
}

/// The middle one; of an even number the lower of the two in the middle, so that it is one that was measured.
fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len().saturating_sub(1) / 2).copied()
}

fn median_of(phases: &[&PhaseResult], figure: impl Fn(&PhaseResult) -> Option<f64>) -> Option<f64> {
    median(phases.iter().filter_map(|phase| figure(phase)).collect())
}

/// The parts of the latency: a second, smaller table.
fn stages(file: &RunFile) -> String {
    let lines = file.results.iter().flat_map(|result| {
        let count = result.repetitions.first().map_or(0, |it| it.phases.len());
        (0..count).map(move |index| (result, index))
    });
    let rows = lines.filter_map(|(result, index)| {
        let phases = phases(result, index);
        if phases.iter().all(|phase| phase.latency.count == 0) {
            return None;
        }
        let part = |name: &str| {
            let of = |phase: &PhaseResult| phase.stages.iter().find(|it| it.name == name).cloned();
            let Some(stage) = phases.iter().find_map(|phase| of(phase)) else { return "-".to_owned() };
            let mean = median_of(&phases, |phase| Some(of(phase)?.latency.mean)).unwrap_or(0.0);
            let p99 = median_of(&phases, |phase| Some(of(phase)?.latency.p99 as f64)).unwrap_or(0.0);
            match stage.source {
                StageSource::Remainder => nanos(mean),
                StageSource::Server | StageSource::Generator => format!("{} / {}", nanos(mean), nanos(p99)),
            }
        };
        let seconds = median_of(&phases, |phase| phase.server_cpu_s_per_million);
        Some([
            label(file, result, index),
            part("generator_late"),
            part("source_to_received"),
            part("batch_wait"),
            part("outbox_wait"),
            part("kernel_to_arrival"),
            nanos(median_of(&phases, |phase| Some(phase.latency.mean)).unwrap_or(0.0)),
            seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.3}")),
        ])
    });
    aligned(STAGE_COLUMNS, rows)
}

const STAGE_COLUMNS: [&str; 8] = [
    "mean / p99 of parts",
    "generator late",
    "to server",
    "batch wait",
    "outbox wait",
    "to arrival",
    "sum",
    "server CPU s per 1M deliveries",
];

/// Scenario and phase; the server's name in front where there are several.
fn label(file: &RunFile, result: &ScenarioResult, index: usize) -> String {
    let label = result.scenario.label(index);
    let one = file.results.iter().all(|it| it.subject.name == result.subject.name);
    if one { label } else { format!("{}: {label}", result.subject.name) }
}

/// Columns as wide as they need to be: names to the left, figures to the right.
pub(crate) fn aligned<const N: usize>(columns: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let head = columns.map(str::to_owned);
    let rows: Vec<[String; N]> = std::iter::once(head).chain(rows).collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            // Writing into a string cannot fail.
            let _ = match column {
                0 => write!(line, "{cell:<width$}"),
                _ => write!(line, "  {cell:>width$}"),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
        if index == 0 {
            let rule = widths.iter().sum::<usize>() + 2 * (N - 1);
            text.extend(std::iter::repeat_n('-', rule));
            text.push('\n');
        }
    }
    text
}

fn row(file: &RunFile, result: &ScenarioResult, index: usize, last: bool) -> [String; COLUMNS.len()] {
    let phases = phases(result, index);
    let latency = |figure: fn(&PhaseResult) -> u64| {
        let seen = |phase: &PhaseResult| (phase.latency.count > 0).then(|| figure(phase) as f64);
        median_of(&phases, seen).map_or_else(|| "-".to_owned(), nanos)
    };
    let p99 = || phases.iter().filter(|it| it.latency.count > 0).map(|it| it.latency.p99);
    let spread = match (p99().min(), p99().max()) {
        (Some(min), Some(max)) if phases.len() > 1 => format!("{}..{}", time(min), time(max)),
        _ => "-".to_owned(),
    };
    let (mut announced, mut lost) = (0, 0);
    for account in result.repetitions.iter().flat_map(|it| it.others.values().chain([&it.account])) {
        announced += account.announced;
        lost += account.unannounced + account.excess + account.irregular;
    }
    let samples = |count: u64| if last { grouped(count) } else { String::new() };
    let per_s = |figure: fn(&PhaseResult) -> f64| {
        median_of(&phases, |phase| Some(figure(phase))).map_or_else(|| "-".to_owned(), rate)
    };
    [
        label(file, result, index),
        median_of(&phases, |phase| phase.asked_messages_per_s).map_or_else(|| "max".to_owned(), rate),
        per_s(|phase| phase.messages_per_s),
        per_s(|phase| phase.deliveries_per_s),
        latency(|phase| phase.latency.p50),
        latency(|phase| phase.latency.p90),
        latency(|phase| phase.latency.p99),
        spread,
        latency(|phase| phase.latency.p999),
        latency(|phase| phase.latency.max),
        samples(announced),
        samples(lost),
        side(&phases, |phase| &phase.server),
        side(&phases, |phase| &phase.client),
        bottleneck(&phases).label().to_owned(),
    ]
}

/// The one found most often; of those found as often the first.
fn bottleneck(phases: &[&PhaseResult]) -> Bottleneck {
    let mut best = (0, Bottleneck::Neither);
    for phase in phases {
        let count = phases.iter().filter(|it| it.bottleneck == phase.bottleneck).count();
        if count > best.0 {
            best = (count, phase.bottleneck);
        }
    }
    best.1
}

/// Under the table: what the figures are of.
fn caption(file: &RunFile) -> String {
    let mut text = String::new();
    let mut seen: Vec<&str> = Vec::new();
    for subject in file.results.iter().map(|it| &it.subject) {
        if seen.contains(&subject.name.as_str()) {
            continue;
        }
        seen.push(&subject.name);
        let note = subject.note.as_ref().map(|it| format!(" ({it})")).unwrap_or_default();
        let version = subject.version.as_ref().map(|it| format!(" {it}")).unwrap_or_default();
        let _ = writeln!(text, "{}{version}{note}: {}", subject.name, subject.command);
    }
    let turns = file.results.iter().map(|it| it.repetitions.len()).max().unwrap_or(0);
    if turns > 1 {
        let _ = writeln!(text, "medians of {turns} repetitions, run in turns");
    }
    let _ = writeln!(text, "machine: {}", proc::in_a_line(&file.machine));
    text
}

/// A run in a line.
pub(crate) fn in_short(once: &Repetition) -> String {
    let worst = |figure: fn(&PhaseResult) -> f64| once.phases.iter().map(figure).fold(0.0, f64::max);
    let cpus = once.phases.iter().filter_map(|phase| phase.server.cpus).reduce(f64::max);
    let account = &once.account;
    format!(
        "p50 {}  p99 {}  gaps {}  lost {}  server {}",
        nanos(worst(|phase| phase.latency.p50 as f64)),
        nanos(worst(|phase| phase.latency.p99 as f64)),
        grouped(account.announced),
        grouped(account.unannounced + account.excess + account.irregular),
        percent(cpus)
    )
}

/// Figures while a run goes on.
pub(crate) fn live(live: Live) -> String {
    let Live { messages_per_s, deliveries_per_s, p99_ns, announced } = live;
    format!(
        "  {} msg/s  {} deliveries/s  p99 {}  gaps {}",
        rate(messages_per_s),
        rate(deliveries_per_s),
        time(p99_ns),
        grouped(announced)
    )
}

fn side(phases: &[&PhaseResult], of: fn(&PhaseResult) -> &Side) -> String {
    let Some(peak) = median_of(phases, |phase| of(phase).peak_bytes.map(|it| it as f64)) else {
        return "-".to_owned();
    };
    let cpus = median_of(phases, |phase| of(phase).cpus);
    format!("{}, {:.1} MiB", percent(cpus), peak / f64::from(1 << 20))
}

/// Nanoseconds.
fn nanos(nanos: f64) -> String {
    // Rounded first, and far below 2^53, so the conversion is exact.
    time(format!("{nanos:.0}").parse().unwrap_or(0))
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1}%", share * 100.0))
}

/// A time with three digits, more or less, and its unit.
fn time(nanos: u64) -> String {
    let us = nanos as f64 / 1e3;
    match nanos {
        0..1_000_000 => format!("{us:.0}us"),
        1_000_000..100_000_000 => format!("{:.2}ms", us / 1e3),
        100_000_000..1_000_000_000 => format!("{:.0}ms", us / 1e3),
        _ => format!("{:.2}s", us / 1e6),
    }
}

/// A rate with as many digits as mean something.
fn rate(per_s: f64) -> String {
    match per_s {
        10e6.. => format!("{:.1}M", per_s / 1e6),
        1e6.. => format!("{:.2}M", per_s / 1e6),
        // Rounded first, and below a million, so the conversion is exact.
        _ => grouped(format!("{per_s:.0}").parse().unwrap_or(0)),
    }
}

/// Digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Account;
    use crate::run::Outcome;
    use crate::verdict::fixture::{file, outcome, phase};

    #[test]
    fn figures_are_short() {
        let times = [
            (0, "0us"),
            (999_499, "999us"),
            (1_234_000, "1.23ms"),
            (99_990_000, "99.99ms"),
            (123_456_789, "123ms"),
            (12_345_678_901, "12.35s"),
        ];
        for (nanos, expected) in times {
            assert_eq!(time(nanos), expected);
        }
        let rates =
            [(0.0, "0"), (999.6, "1,000"), (123_456.0, "123,456"), (1_234_567.0, "1.23M"), (36.1e6, "36.1M")];
        for (per_s, expected) in rates {
            assert_eq!(rate(per_s), expected);
        }
    }

    #[test]
    fn the_table_lines_up() {
        let slow = vec![phase("slow_reader/without", 6_000_000), phase("slow_reader/with", 6_600_000)];
        let stalled = Account { published: 57, received: 20, announced: 30, unseen: 7, ..Account::default() };
        let outcomes = [
            outcome("steady", vec![phase("steady", 105_000)]),
            Outcome { others: [("stalled".into(), stalled)].into(), ..outcome("slow_reader", slow) },
        ];
        let file = file(&outcomes);
        let table = table(&file);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 2 + 3);
        let ends = |line: &str, cell: &str| line.find(cell).map(|at| at + cell.len());
        assert_eq!(ends(lines[0], "p50"), ends(lines[2], "105us"), "{table}");
        assert!(lines[2].contains("19.8%, 4.0 MiB") && lines[2].contains("495,000"), "{table}");
        let cells: Vec<&str> = lines[4].split_whitespace().collect();
        assert_eq!(cells[..5], ["slow_reader/with", "5,000", "5,000", "495,000", "6.60ms"], "{table}");
        assert_eq!(cells[10..12], ["30", "0"], "{table}");
        let notes = notes(&file);
        assert!(
            notes.contains("1.10 x")
                && notes.contains("published 57 = received 20 + announced 30 + unseen 7; ")
                && notes.contains("7 samples of streams that began meanwhile"),
            "{notes}"
        );
        let stages = stages(&file);
        assert!(stages.lines().nth(2).unwrap().ends_with("0.400"), "{stages}");
    }

    #[test]
    fn repetitions_become_medians_with_their_spread() {
        let mut file = file(&[outcome("steady", vec![phase("steady", 105_000)])]);
        for (latency_ns, bottleneck) in
            [(3_000_000, Bottleneck::Generator), (1_000_000, Bottleneck::Generator)]
        {
            let outcome = outcome("steady", vec![phase("steady", latency_ns)]);
            let mut again = crate::verdict::repetition(&outcome, &outcome.scenario, 0, 1);
            again.phases[0].bottleneck = bottleneck;
            file.results[0].repetitions.push(again);
        }
        let text = text(&file);
        let cells: Vec<&str> = text.lines().nth(2).unwrap().split_whitespace().collect();
        assert_eq!(
            (cells[6], cells[7], cells.last()),
            ("1.00ms", "105us..3.00ms", Some(&"GENERATOR")),
            "{text}"
        );
        assert!(text.contains("lower bounds and no verdict") && text.contains("medians of 3"), "{text}");
        assert_eq!(median(vec![3.0, 1.0]), Some(1.0));
        assert_eq!(median(vec![]), None);
    }
}
