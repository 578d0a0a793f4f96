//! The comparison in two tables: the targets and whether they are met, as ratios within this run, and the main figures of
//! each server. For terminals and as Markdown. Pure; medians of the repetitions throughout.

use std::fmt::Write as _;

use crate::figures::{Figure, KEPT_UP, Value, delivered_share, figure as measured};
use crate::result::{RunFile, ScenarioResult};

use super::plan::{
    ACCEPT, FANIN_1, FANIN_32, FRESHNESS, IDLE, LATENCY, LIGHT, LIMIT, LIMIT_PER_MESSAGE, OVERLOAD,
    SATURATED, SLOW_READER, WIDE, WINDOW,
};
use super::{TIDEWIRE, TIDEWIRE_AT_ONCE};

// Keys of the figures that are looked at.
const DELIVERIES: &str = "deliveries_per_s";
const CPU_PER_MILLION: &str = "server_cpu_s_per_million";
const P50: &str = "p50_ns";
const P99: &str = "p99_ns";
const P999: &str = "p999_ns";
const IDLE_BYTES: &str = "idle_bytes_per_connection";
/// p99 of the second phase by that of the first.
const P99_RATIO: &str = "p99_ratio";
/// Of the subscribers that are not healthy.
const AGE_P99: &str = "age_p99_ns";
const ACCEPTS: &str = "accept_per_s";

/// What it is measured by.
#[derive(Clone, Copy, Debug)]
enum Against {
    Limit,
    BestPeer,
    Fixed,
    /// The same server's deliveries where nothing held it back.
    OwnSaturated,
    /// The same server's first phase.
    OwnFirstPhase,
}

struct Check {
    what: &'static str,
    scenario: &'static str,
    phase: usize,
    figure: &'static str,
    against: Against,
    factor: f64,
    /// Else at most.
    at_least: bool,
}

/// The targets.
const CHECKS: [Check; 20] = {
    const fn check(
        what: &'static str,
        (scenario, phase): (&'static str, usize),
        figure: &'static str,
        at_least: bool,
        factor: f64,
        against: Against,
    ) -> Check {
        Check { what, scenario, phase, figure, against, factor, at_least }
    }
    use Against::{BestPeer, Fixed, Limit, OwnFirstPhase, OwnSaturated};
    [
        check("saturated fan-out, 1 x 100", (SATURATED, 0), DELIVERIES, true, 0.8, Limit),
        check("saturated fan-out, 1 x 100", (SATURATED, 0), DELIVERIES, true, 3.0, BestPeer),
        check("CPU, 1 x 100 x 1,000/s", (LIGHT, 0), CPU_PER_MILLION, false, 0.2, BestPeer),
        check("CPU, 1 x 1,000 x 1,000/s", (WIDE, 0), CPU_PER_MILLION, false, 0.5, BestPeer),
        check("p99, 1 x 1,000 x 1,000/s", (WIDE, 0), P99, false, 20e6, Fixed),
        check("p50 at once, 1 x 10 x 1,000/s", (LATENCY, 0), P50, false, 1.15, Limit),
        check("p99 at once, 1 x 10 x 1,000/s", (LATENCY, 0), P99, false, 1.0, BestPeer),
        check("p50, window, 1 x 100 x 10,000/s", (WINDOW, 0), P50, false, 6.5e6, Fixed),
        check("p99, window, 1 x 100 x 10,000/s", (WINDOW, 0), P99, false, 12.5e6, Fixed),
        check("p99.9, window, 1 x 100 x 10,000/s", (WINDOW, 0), P999, false, 15e6, Fixed),
        check("fan-in, 50 x 1, a write per sample", (FANIN_1, 0), DELIVERIES, true, 1.0, BestPeer),
        check("fan-in, 50 x 1, 32 per write", (FANIN_32, 0), DELIVERIES, true, 2.0, BestPeer),
        check("memory of an idle connection", (IDLE, 0), IDLE_BYTES, false, 6.0 * 1024.0, Fixed),
        check("healthy p99 with / without a stalled one", (SLOW_READER, 0), P99_RATIO, false, 1.1, Fixed),
        check("age p99 at a tenth of the bandwidth", (FRESHNESS, 0), AGE_P99, false, 600e6, Fixed),
        check("overload, full throughput kept", (OVERLOAD, 1), DELIVERIES, true, 0.9, OwnSaturated),
        check("overload, p99 meanwhile", (OVERLOAD, 1), P99, false, 1e9, Fixed),
        check("overload, p99 from 1 s after, by before", (OVERLOAD, 2), P99, false, 1.5, OwnFirstPhase),
        check("overload, p99 from 1 s after", (OVERLOAD, 2), P99, false, 20e6, Fixed),
        check("connections/s", (ACCEPT, 0), ACCEPTS, true, 1.0, BestPeer),
    ]
};

/// A target and what came of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    what: String,
    target: String,
    ours: String,
    against: String,
    ratio: String,
    met: Met,
}

/// Whether a target is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Met {
    Yes,
    No,
    /// One of the two figures is no more than a bound, because something other than the server was the limit.
    Open(&'static str),
}

impl Met {
    const fn words(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "NO",
            Self::Open(limit) => limit,
        }
    }

    /// What was held back can only be better than it looks. So ours that meets the target does so, and ours that misses it
    /// beside a measure that was held back misses it.
    fn of(is_met: bool, ours: Option<&'static str>, measure: Option<&'static str>) -> Self {
        match (is_met, if is_met { measure } else { ours }) {
            (_, Some(limit)) => Self::Open(limit),
            (true, None) => Self::Yes,
            (false, None) => Self::No,
        }
    }
}

/// What else than the server was the limit in half of the repetitions of a figure or more, and so of its median.
fn limit_of(figure: &Figure) -> Option<&'static str> {
    let is_mostly = |limit: fn(&Value) -> bool| {
        2 * figure.values.iter().filter(|value| limit(value)).count() >= figure.values.len()
    };
    match (is_mostly(|it| it.is_generators), is_mostly(|it| it.is_machines)) {
        (true, _) => Some("no verdict: generator"),
        (false, true) => Some("no verdict: machine"),
        (false, false) => None,
    }
}

/// The targets of which there are figures.
pub(crate) fn rows(file: &RunFile) -> Vec<Row> {
    CHECKS.iter().filter_map(|check| row(check, file)).collect()
}

fn row(check: &Check, file: &RunFile) -> Option<Row> {
    let Check { scenario, phase, figure, at_least, factor, .. } = *check;
    let better = |a: f64, b: f64| (a > b) == at_least;
    let own = match scenario {
        LATENCY => TIDEWIRE_AT_ONCE,
        // As of the peers, the configuration that suits it better.
        FANIN_1 | FANIN_32 => {
            [TIDEWIRE, TIDEWIRE_AT_ONCE]
                .into_iter()
                .filter_map(|name| Some((name, value(find(file, name, scenario)?, phase, figure)?)))
                .reduce(|best, it| if better(it.1, best.1) { it } else { best })?
                .0
        }
        _ => TIDEWIRE,
    };
    let own_figure = measured(find(file, own, scenario)?, phase, figure)?;
    let (ours, unit) = (own_figure.median(), own_figure.kind.unit);
    let beside = match check.against {
        Against::Fixed => None,
        Against::Limit => Some((LIMIT, measured(find(file, LIMIT, scenario)?, phase, figure)?)),
        Against::BestPeer => Some(best_peer(file, check)?),
        Against::OwnSaturated => Some(("saturated", measured(find(file, own, SATURATED)?, 0, figure)?)),
        Against::OwnFirstPhase => Some(("before", measured(find(file, own, scenario)?, 0, figure)?)),
    };
    let measure = beside.as_ref().map_or(1.0, |(_, figure)| figure.median());
    let bound = factor * measure;
    let is_met = if at_least { ours >= bound } else { ours <= bound };
    let without_window = match scenario {
        LIGHT => find(file, TIDEWIRE_AT_ONCE, LIGHT).and_then(|result| value(result, phase, figure)),
        _ => None,
    };
    let word = if at_least { "at least" } else { "at most" };
    let by = match check.against {
        Against::Fixed => unit.show(factor),
        Against::Limit => format!("{factor} x the limit"),
        Against::BestPeer => format!("{factor} x the best peer"),
        Against::OwnSaturated => format!("{factor} x saturated"),
        Against::OwnFirstPhase => format!("{factor} x before"),
    };
    Some(Row {
        what: check.what.to_owned(),
        target: format!("{word} {by}"),
        ours: match (own, without_window) {
            (TIDEWIRE_AT_ONCE, _) => format!("{} (0 ms)", unit.show(ours)),
            (_, Some(without)) => format!("{} (0 ms: {})", unit.show(ours), unit.show(without)),
            (_, None) => unit.show(ours),
        },
        ratio: if beside.is_none() { String::new() } else { format!("{:.2}", ours / measure) },
        met: Met::of(is_met, limit_of(&own_figure), beside.as_ref().and_then(|(_, figure)| limit_of(figure))),
        against: beside
            .map(|(name, figure)| format!("{name} {}", unit.show(figure.median())))
            .unwrap_or_default(),
    })
}

/// The best of the others that kept up.
fn best_peer<'a>(file: &'a RunFile, check: &Check) -> Option<(&'a str, Figure)> {
    let peers = file.results.iter().filter(|it| {
        it.scenario.name == check.scenario
            && ![TIDEWIRE, TIDEWIRE_AT_ONCE, LIMIT, LIMIT_PER_MESSAGE].contains(&it.subject.name.as_str())
            && delivered_share(it, check.phase).is_none_or(|share| share >= KEPT_UP)
    });
    let figures =
        peers.filter_map(|it| Some((it.subject.name.as_str(), measured(it, check.phase, check.figure)?)));
    figures.reduce(|best, it| if (it.1.median() > best.1.median()) == check.at_least { it } else { best })
}

/// Samples a second that one subscriber of the server could get where nothing held it back.
pub(crate) fn capacity(file: &RunFile, name: &str) -> Option<f64> {
    let result = find(file, name, SATURATED)?;
    Some(value(result, 0, DELIVERIES)? / result.scenario.healthy().max(1) as f64)
}

fn find<'a>(file: &'a RunFile, subject: &str, scenario: &str) -> Option<&'a ScenarioResult> {
    file.results.iter().find(|it| it.subject.name == subject && it.scenario.name == scenario)
}

fn value(result: &ScenarioResult, phase: usize, key: &str) -> Option<f64> {
    measured(result, phase, key).map(|figure| figure.median())
}

/// Columns of the second table.
const COLUMNS: [(&str, &str, usize, &str); 13] = [
    ("saturated", SATURATED, 0, DELIVERIES),
    ("CPU, 1x100", LIGHT, 0, CPU_PER_MILLION),
    ("p99, 1x100", LIGHT, 0, P99),
    ("CPU, 1x1,000", WIDE, 0, CPU_PER_MILLION),
    ("p99, 1x1,000", WIDE, 0, P99),
    ("p50, 1x10", LATENCY, 0, P50),
    ("p99, 1x10", LATENCY, 0, P99),
    ("fan-in, 1", FANIN_1, 0, DELIVERIES),
    ("fan-in, 32", FANIN_32, 0, DELIVERIES),
    ("connections", ACCEPT, 0, ACCEPTS),
    ("idle", IDLE, 0, IDLE_BYTES),
    ("stalled", SLOW_READER, 0, P99_RATIO),
    ("age p99", FRESHNESS, 0, AGE_P99),
];

/// A line for each server, in the order in which they ran first.
fn servers(file: &RunFile) -> (Vec<String>, Vec<Vec<String>>) {
    let mut names: Vec<&str> = Vec::new();
    for result in &file.results {
        if !names.contains(&result.subject.name.as_str()) {
            names.push(&result.subject.name);
        }
    }
    let cell = |name: &str, (_, scenario, phase, figure): (&str, &str, usize, &str)| {
        let Some(result) = find(file, name, scenario) else { return "-".to_owned() };
        let phases = if figure == P99_RATIO { 0..=1 } else { phase..=phase };
        // One that stops serving everybody is no better for it.
        match phases.filter_map(|it| delivered_share(result, it)).reduce(f64::min) {
            Some(share) if share < KEPT_UP => format!("gets {:.0}%", share * 100.0),
            _ => measured(result, phase, figure).map_or_else(
                || "-".to_owned(),
                |figure| {
                    let mark = if limit_of(&figure).is_some() { "*" } else { "" };
                    format!("{}{mark}", figure.kind.unit.show(figure.median()))
                },
            ),
        }
    };
    let columns: Vec<_> = COLUMNS
        .into_iter()
        .filter(|(_, scenario, ..)| file.results.iter().any(|it| it.scenario.name == *scenario))
        .collect();
    let head = std::iter::once("server".to_owned()).chain(columns.iter().map(|it| it.0.to_owned())).collect();
    let lines = names
        .into_iter()
        .map(|name| {
            std::iter::once(name.to_owned()).chain(columns.iter().map(|&column| cell(name, column))).collect()
        })
        .collect();
    (head, lines)
}

fn target_table(rows: &[Row]) -> (Vec<String>, Vec<Vec<String>>) {
    let head = ["what", "target", "Tidewire", "beside", "ratio", "met"].map(str::to_owned).to_vec();
    let lines = rows
        .iter()
        .map(|row| {
            [&row.what, &row.target, &row.ours, &row.against, &row.ratio, row.met.words()]
                .map(ToOwned::to_owned)
                .to_vec()
        })
        .collect();
    (head, lines)
}

/// Both tables for a terminal, and what was left out.
pub(crate) fn text(rows: &[Row], file: &RunFile) -> String {
    let mut text = aligned(target_table(rows));
    text.push('\n');
    text.push_str(&aligned(servers(file)));
    let _ = writeln!(text, "{NOTE}");
    for skipped in &file.skipped {
        let why = skipped.why.lines().last().unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "left out: {}: {why}", skipped.what);
    }
    text
}

/// Both tables as Markdown.
pub(crate) fn markdown(rows: &[Row], file: &RunFile) -> String {
    format!("{}\n{}\n{NOTE}\n", piped(target_table(rows)), piped(servers(file)))
}

/// Below the tables.
const NOTE: &str = "\\* the generator or the machine was the limit in half of the repetitions or more: the server may be better than this.";

fn aligned((head, lines): (Vec<String>, Vec<Vec<String>>)) -> String {
    let mut widths: Vec<usize> = head.iter().map(|it| it.chars().count()).collect();
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for line in std::iter::once(&head).chain(&lines) {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn piped((head, lines): (Vec<String>, Vec<Vec<String>>)) -> String {
    let row = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule = vec!["---".to_owned(); head.len()];
    [row(&head), row(&rule)].into_iter().chain(lines.iter().map(|it| row(it))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::Sample;
    use crate::result::Bottleneck;
    use crate::scenario::Load;

    /// Servers in one scenario of an open loop, each with deliveries by what was asked and a p99; in a closed one without a rate.
    fn file(scenario: &str, is_open: bool, servers: &[(&str, f64, u64)]) -> RunFile {
        let mut file = Sample::default().run("x");
        let mut result = file.results.swap_remove(0);
        result.scenario.name = scenario.to_owned();
        result.scenario.phases.clear();
        result.scenario.samples_per_message = 1;
        if !is_open {
            result.scenario.load = Load::Saturating { outstanding_bytes_max: 1 };
        }
        let asked = result.scenario.messages_per_s(0);
        let all = asked.unwrap_or(1.0) * result.scenario.healthy() as f64;
        let of = |&(name, share, p99): &(&str, f64, u64)| {
            let mut result = result.clone();
            result.subject.name = name.to_owned();
            for repetition in &mut result.repetitions {
                repetition.phases.truncate(1);
                let phase = &mut repetition.phases[0];
                phase.label = scenario.to_owned();
                phase.asked_messages_per_s = asked;
                phase.deliveries_per_s = all * share;
                phase.latency.p99 = p99;
            }
            result
        };
        file.results = servers.iter().map(of).collect();
        file
    }

    fn met(rows: &[Row]) -> Vec<(&str, bool)> {
        rows.iter().map(|row| (row.ratio.as_str(), row.met == Met::Yes)).collect()
    }

    #[test]
    fn what_was_held_back_is_a_bound() {
        let servers = [("tidewire", 90.0, 1), ("limit", 100.0, 1), ("uws", 45.0, 1)];
        let limited = |name: &str| {
            let mut file = file(SATURATED, false, &servers);
            let result = file.results.iter_mut().find(|it| it.subject.name == name).unwrap();
            let phases = result.repetitions.iter_mut().map(|it| &mut it.phases[0]);
            phases.for_each(|phase| phase.bottleneck = Bottleneck::Generator);
            rows(&file).iter().map(|row| row.met).collect::<Vec<_>>()
        };
        let open = Met::Open("no verdict: generator");
        assert_eq!(limited("limit"), [open, Met::No], "it may be more than that");
        assert_eq!(limited("tidewire"), [Met::Yes, open], "it may be more than that, and is enough");
        assert_eq!(limited("uws"), [Met::Yes, Met::No], "more of it changes nothing");
    }

    #[test]
    fn ratios_are_to_the_limit_and_to_the_best_peer() {
        let servers = [("tidewire", 90.0, 1), ("limit", 100.0, 1), ("ws", 10.0, 1), ("uws", 45.0, 1)];
        let saturated = file(SATURATED, false, &servers);
        assert_eq!(met(&rows(&saturated)), [("0.90", true), ("2.00", false)]);
        assert!(rows(&saturated)[1].against.starts_with("uws "));
        let healthy = saturated.results[0].scenario.healthy() as f64;
        assert!((capacity(&saturated, "uws").unwrap() * healthy - 45.0 * healthy).abs() < 1e-6);
        assert_eq!(capacity(&saturated, "fastapi"), None);
    }

    #[test]
    fn who_drops_out_is_no_measure() {
        let servers =
            [("tidewire-0ms", 1.0, 300), ("ws", 0.5, 100), ("uws", 1.0, 200), ("nats-server", 0.995, 400)];
        let latency = file(LATENCY, true, &servers);
        let rows = rows(&latency);
        assert_eq!(met(&rows), [("1.50", false)], "p50 has no limit to be measured by: {rows:?}");
        let text = text(&rows, &latency);
        assert!(text.contains("gets 50%") && text.contains("NO"), "{text}");
        let markdown = markdown(&rows, &latency);
        let is_fine = |line: &str| line.is_empty() || line.starts_with("| ") || line == NOTE;
        assert!(markdown.lines().all(is_fine), "{markdown}");
    }

    #[test]
    fn what_was_not_run_is_not_judged() {
        assert_eq!(rows(&file(LIGHT, true, &[("ws", 1.0, 1)])), []);
        assert_eq!(rows(&file(WIDE, true, &[("tidewire", 1.0, 1)])).len(), 1, "the target without a measure");
    }
}
