//! A report as text for a terminal: one table, a second one that explains the latency, notes. Pure.

use std::fmt::Write as _;

use crate::ledger::Account;
use crate::report::{Bottleneck, Percentiles, PhaseResult, Report, ScenarioResult, Side};

const COLUMNS: [&str; 14] = [
    "scenario",
    "msg/s asked",
    "got",
    "deliveries/s",
    "p50",
    "p90",
    "p99",
    "p99.9",
    "max",
    "gaps",
    "lost",
    "server CPU, peak",
    "client CPU, peak",
    "bottleneck",
];

/// The table. Gaps and losses are samples, of the whole scenario, so they stand in the line of its last phase.
pub(crate) fn table(report: &Report) -> String {
    let rows = report.results.iter().flat_map(|result| {
        let last = result.phases.len() - 1;
        result.phases.iter().enumerate().map(move |(index, phase)| row(result, phase, index == last))
    });
    aligned(COLUMNS, rows)
}

/// The parts of the latency: a second, smaller table.
pub(crate) fn stages(report: &Report) -> String {
    let phases = report.results.iter().flat_map(|result| &result.phases);
    let rows = phases.filter(|phase| phase.latency.count > 0).map(|phase| {
        let both = |it: Percentiles| format!("{} / {}", time(it.p50), time(it.p99));
        [
            phase.label.clone(),
            both(phase.lateness),
            both(phase.to_received),
            both(phase.batch_wait),
            both(phase.delivery),
            phase.server_cpu_s_per_million.map_or_else(|| "-".to_owned(), |seconds| format!("{seconds:.3}")),
        ]
    });
    aligned(STAGE_COLUMNS, rows)
}

const STAGE_COLUMNS: [&str; 6] = [
    "p50 / p99 of stages",
    "generator late",
    "schedule to server",
    "batch wait",
    "sealed to arrival",
    "server CPU s per 1M deliveries",
];

/// Columns as wide as they need to be: names to the left, figures to the right.
fn aligned<const N: usize>(columns: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
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

fn row(result: &ScenarioResult, phase: &PhaseResult, last: bool) -> [String; COLUMNS.len()] {
    let latency = |nanos: u64| if phase.latency.count == 0 { "-".to_owned() } else { time(nanos) };
    let account = result.account;
    let stalled = result.stalled.unwrap_or_default();
    let samples = |count: u64| if last { grouped(count) } else { String::new() };
    let asked = match phase.asked_messages_per_s {
        Some(per_s) => grouped(per_s),
        None => "max".to_owned(),
    };
    let lost = [account, stalled].iter().map(|it| it.unannounced + it.excess + it.irregular).sum();
    [
        phase.label.clone(),
        asked,
        rate(phase.messages_per_s),
        rate(phase.deliveries_per_s),
        latency(phase.latency.p50),
        latency(phase.latency.p90),
        latency(phase.latency.p99),
        latency(phase.latency.p999),
        latency(phase.latency.max),
        samples(account.announced + stalled.announced),
        samples(lost),
        side(&phase.server),
        side(&phase.client),
        phase.bottleneck.label().to_owned(),
    ]
}

/// What the table has no column for.
pub(crate) fn notes(report: &Report) -> String {
    let mut text = String::new();
    for result in &report.results {
        for phase in &result.phases {
            let mut note = |line: String| {
                let _ = writeln!(text, "{}: {line}", phase.label);
            };
            match phase.bottleneck {
                Bottleneck::Generator | Bottleneck::Both => note(format!(
                    "the generator was a bottleneck (busiest thread {}, late by p99 {}): these are lower bounds and no verdict",
                    percent(phase.client.busiest_thread),
                    time(phase.lateness.p99)
                )),
                Bottleneck::Machine => note(format!(
                    "all CPUs of the machine were busy: other work is in these figures (stolen {}; the server was \
                     without a CPU that it wanted {} of the time, the generator {})",
                    percent(phase.machine_steal),
                    percent(phase.server.waiting),
                    percent(phase.client.waiting)
                )),
                Bottleneck::Neither | Bottleneck::Server => {}
            }
        }
        let name = result.scenario.name;
        let mut note = |line: String| {
            let _ = writeln!(text, "{name}: {line}");
        };
        if let Some(ratio) = result.p99_ratio {
            note(format!("p99 of the healthy with the stalled one is {ratio:.2} x that without"));
        }
        if let Some(account) = result.stalled {
            note(format!("the stalled one: {}", books(&account)));
        }
        if let Some(churn) = &result.churn {
            note(format!(
                "{} visits, {} failed; connect to subscribed p50 {}, p99 {}{}",
                grouped(churn.to_subscribed.count + churn.failed),
                churn.failed,
                time(churn.to_subscribed.p50),
                time(churn.to_subscribed.p99),
                churn.failures.iter().map(|why| format!("; {why}")).collect::<String>()
            ));
        }
        if let Some(bytes) = result.idle_bytes_per_connection {
            note(format!(
                "{:.2} KiB of the server's resident memory for each of {} connections",
                bytes / 1024.0,
                grouped(result.scenario.connections() as u64)
            ));
        }
        if result.refused > 0 {
            note(format!("the server did not take {} samples", grouped(result.refused)));
        }
        for (what, times) in &result.refusals {
            note(format!("{times} x error {what}"));
        }
        for why in &result.ended {
            note(format!("a connection ended early: {why}"));
        }
        if !result.account.is_exact() {
            note(format!("THE BOOKS DO NOT BALANCE: {}", books(&result.account)));
        }
    }
    text
}

/// The ledger in words.
fn books(account: &Account) -> String {
    let Account { published, received, announced, unannounced, excess, irregular } = *account;
    let mut text = format!(
        "published {} = received {} + announced {}",
        grouped(published),
        grouped(received),
        grouped(announced)
    );
    for (count, what) in [
        (unannounced, "lost without a word"),
        (excess, "announced as lost but delivered"),
        (irregular, "frames out of order or repeated"),
    ] {
        if count > 0 {
            let _ = write!(text, ", {} {what}", grouped(count));
        }
    }
    text
}

fn side(side: &Side) -> String {
    let Some(peak) = side.peak_bytes else { return "-".to_owned() };
    format!("{}, {:.1} MiB", percent(side.cpus), peak as f64 / f64::from(1 << 20))
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
    use crate::report::fixture::{outcome, phase, report};
    use crate::run::Outcome;

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
        let stalled = Account { published: 50, received: 20, announced: 30, ..Account::default() };
        let outcomes = [
            outcome("steady", vec![phase("steady", 105_000)]),
            Outcome { stalled: Some(stalled), ..outcome("slow_reader", slow) },
        ];
        let report = report(&outcomes);
        let table = table(&report);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 2 + 3);
        let ends = |line: &str, cell: &str| line.find(cell).map(|at| at + cell.len());
        assert_eq!(ends(lines[0], "p50"), ends(lines[2], "105us"), "{table}");
        assert!(lines[2].contains("19.8%, 4.0 MiB") && lines[2].contains("495,000"), "{table}");
        let cells: Vec<&str> = lines[4].split_whitespace().collect();
        assert_eq!(cells[..5], ["slow_reader/with", "5,000", "5,000", "495,000", "6.60ms"], "{table}");
        assert_eq!(cells[9..11], ["30", "0"], "{table}");
        let notes = notes(&report);
        assert!(
            notes.contains("1.10 x") && notes.contains("published 50 = received 20 + announced 30"),
            "{notes}"
        );
        let stages = stages(&report);
        assert!(stages.lines().nth(2).unwrap().ends_with("0.400"), "{stages}");
        assert!(report.is_sound());
    }
}
