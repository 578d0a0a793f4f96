//! Several servers side by side: one table over all scenarios, who is ahead where, and bars. Says where a peer is ahead, too.

use crate::figures::{Better, Figure, KEPT_UP, delivered_share, figures};
use crate::result::ScenarioResult;
use crate::units::Unit;

use super::html::{Cell, Html, table};
use super::plots::ranking;
use super::runs::{Group, labels};

/// The figures that the table has, and whether only where servers are driven to their limit.
const SHOWN: [&str; 11] = [
    "deliveries_per_s",
    "p50_ns",
    "p99_ns",
    "server_cpu_s_per_million",
    "announced",
    "age_p99_ns",
    "p99_ratio",
    "accept_per_s",
    "set_up_p99_ns",
    "idle_bytes_per_connection",
    "unannounced",
];

/// Difference up to which two servers are called alike.
const ALIKE: f64 = 0.05;

/// What ours are called, and what the program that shows the limit is called. The limit is a measure, no peer.
const OURS: &str = "tidewire";
const LIMIT: &str = "limit";

/// A figure of a phase for every server.
#[derive(Debug)]
struct Row {
    /// Scenario or phase.
    place: String,
    /// The figure, of whichever server had it first.
    figure: Figure,
    /// Whether the rate was free.
    is_saturated: bool,
    /// By server.
    values: Vec<Option<Figure>>,
    /// Servers that delivered too little of what was asked for: no measure for others.
    dropped_out: Vec<bool>,
}

impl Row {
    fn median(&self, server: usize) -> Option<f64> {
        self.values.get(server)?.as_ref().map(Figure::median)
    }

    /// The best of those for which the test holds.
    fn best(&self, of: impl Fn(usize) -> bool) -> Option<(usize, f64)> {
        let values = (0..self.values.len())
            .filter(|it| of(*it) && !self.dropped_out[*it])
            .filter_map(|it| Some((it, self.median(it)?)));
        values.reduce(|best, it| if self.is_better(it.1, best.1) { it } else { best })
    }

    fn is_better(&self, a: f64, b: f64) -> bool {
        if self.figure.kind.better == Better::Higher { a > b } else { a < b }
    }
}

/// Draws it.
pub(crate) fn section(html: &mut Html, groups: &[Group<'_>]) {
    let servers = labels(groups);
    let rows = rows(groups, servers.len());
    html.element("section", &[("id", &"servers")], |html| {
        html.leaf("h2", &[], "Servers side by side");
        for sentence in sentences(&rows, &servers) {
            html.leaf("p", &[("class", &"verdict")], &sentence);
        }
        let reference = servers.iter().position(|it| it.starts_with(OURS));
        let mut head = vec!["median of the repetitions".to_owned()];
        head.extend(servers.iter().cloned());
        let rows_of_cells: Vec<Vec<Cell>> = rows.iter().map(|row| cells(row, &servers, reference)).collect();
        let measure = reference.map(|it| format!("; × is the ratio to {}", servers[it])).unwrap_or_default();
        let caption = format!(
            "Best in bold{measure}. An asterisk: the generator was the limit, so the server may be better than this. \
             Struck out: less than {:.0} % of what was asked for arrived, so the server has dropped out.",
            KEPT_UP * 100.0
        );
        table(html, &caption, &head, &rows_of_cells);
        html.element("div", &[("class", &"plots")], |html| bars(html, &rows, &servers));
    });
}

/// Every figure that is shown and that two servers have at least.
fn rows(groups: &[Group<'_>], servers: usize) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for group in groups {
        let from = rows.len();
        for run in &group.runs {
            for figure in figures(run.result) {
                if !SHOWN.contains(&figure.kind.key) {
                    continue;
                }
                let phase = figure.phase.clone();
                let phases = run.result.repetitions.iter().flat_map(|it| &it.phases);
                let mut phases = phases.filter(|it| Some(it.label.as_str()) == phase.as_deref());
                let is_saturated = phases.next().is_some_and(|it| it.asked_messages_per_s.is_none());
                let has_dropped_out = drops_out(run.result, phase.as_deref());
                let place = rows[from..].iter().position(|it| it.figure.id() == figure.id());
                let place = place.map_or_else(
                    || {
                        rows.push(Row {
                            place: phase.unwrap_or_else(|| group.name.to_owned()),
                            figure: figure.clone(),
                            is_saturated,
                            values: vec![None; servers],
                            dropped_out: vec![false; servers],
                        });
                        rows.len() - 1
                    },
                    |place| from + place,
                );
                rows[place].values[run.look] = Some(figure);
                rows[place].dropped_out[run.look] = has_dropped_out;
            }
        }
    }
    for row in &mut rows {
        // Where nobody keeps up, the rate is meant to be too high.
        let measured = row.values.iter().zip(&row.dropped_out).filter(|(value, _)| value.is_some());
        if measured.map(|(_, out)| out).all(|out| *out) {
            row.dropped_out.fill(false);
        }
    }
    rows.retain(|row| {
        let is_empty = row.values.iter().flatten().all(|it| it.max() == 0.0);
        // Where the rate is set, everybody who keeps up delivers the same; where it is free, latency means nothing.
        let says_nothing = row.figure.kind.better == Better::Neutral
            || row.figure.kind.key == "deliveries_per_s" && !row.is_saturated && all_alike(row);
        row.values.iter().flatten().count() > 1 && !is_empty && !says_nothing
    });
    rows
}

/// Whether the server delivered too little of what was asked for, in the phase or, for a figure of the whole scenario, in any.
fn drops_out(result: &ScenarioResult, label: Option<&str>) -> bool {
    let phases = 0..result.scenario.phases.len().max(1);
    let mut of_figure = phases.filter(|it| label.is_none_or(|label| result.scenario.label(*it) == label));
    of_figure.any(|it| delivered_share(result, it).is_some_and(|share| share < KEPT_UP))
}

fn all_alike(row: &Row) -> bool {
    let medians: Vec<f64> = (0..row.values.len()).filter_map(|it| row.median(it)).collect();
    let most = medians.iter().copied().fold(0.0, f64::max);
    medians.iter().all(|it| *it >= most * (1.0 - ALIKE / 5.0))
}

fn is_limit(server: &str) -> bool {
    server.starts_with(LIMIT)
}

fn cells(row: &Row, servers: &[String], reference: Option<usize>) -> Vec<Cell> {
    let mut cells = vec![Cell { small: row.figure.title(), ..Cell::new(row.place.as_str()) }];
    let best = row.best(|it| !is_limit(&servers[it])).map(|(_, value)| value);
    // Where all are the same, nobody is best.
    let best = best.filter(|best| row.values.iter().flatten().any(|it| it.median() != *best));
    let measure = reference.and_then(|it| row.median(it));
    for (server, name) in servers.iter().enumerate() {
        let Some(figure) = row.values.get(server).and_then(Option::as_ref) else {
            cells.push(Cell { class: "mute", ..Cell::new("-") });
            continue;
        };
        let value = figure.median();
        let asterisk = if figure.is_generators() { " *" } else { "" };
        let ratio = measure.filter(|it| *it > 0.0 && Some(server) != reference);
        cells.push(Cell {
            text: format!("{}{asterisk}", figure.kind.unit.show(value)),
            small: ratio.map(|it| format!("{} ×", crate::units::digits(value / it))).unwrap_or_default(),
            class: match row.dropped_out[server] {
                true => "out",
                false if Some(value) == best && !is_limit(name) => "best",
                false => "",
            },
        });
    }
    cells
}

/// Who is ahead of us, and by how much; and where nobody is.
fn sentences(rows: &[Row], servers: &[String]) -> Vec<String> {
    let is_ours = |it: usize| servers[it].starts_with(OURS);
    let is_peer = |it: usize| !is_ours(it) && !is_limit(&servers[it]);
    let (mut ahead, mut alike, mut behind) = (Vec::new(), 0, 0);
    for row in rows {
        let (Some((us, ours)), Some((peer, theirs))) = (row.best(is_ours), row.best(is_peer)) else {
            continue;
        };
        let unit = row.figure.kind.unit;
        if (theirs - ours).abs() <= ALIKE * ours.abs() {
            alike += 1;
        } else if row.is_better(theirs, ours) {
            let others = (0..servers.len()).filter(|it| is_peer(*it) && *it != peer);
            let others: Vec<&str> = others
                .filter(|it| !row.dropped_out[*it])
                .filter(|it| row.median(*it).is_some_and(|value| row.is_better(value, ours)))
                .map(|it| servers[it].as_str())
                .collect();
            let too = if others.is_empty() {
                String::new()
            } else {
                format!("; ahead, too: {}", others.join(", "))
            };
            let limit =
                [us, peer].iter().any(|it| row.values[*it].as_ref().is_some_and(Figure::is_generators));
            let doubt = if limit { "; the generator was a limit, so this is no verdict" } else { "" };
            ahead.push(format!(
                "{}, {}: {} {} is ahead of {} {}{too}{doubt}.",
                row.place,
                row.figure.title(),
                servers[peer],
                unit.show(theirs),
                servers[us],
                unit.show(ours)
            ));
        } else {
            behind += 1;
        }
    }
    if ahead.is_empty() && alike + behind == 0 {
        return Vec::new();
    }
    let summary = format!(
        "Of {} figures that Tidewire shares with a peer, the best peer is ahead in {}, alike (within {:.0} %) in {alike}, \
         behind in {behind}.",
        ahead.len() + alike + behind,
        ahead.len(),
        ALIKE * 100.0
    );
    std::iter::once(summary).chain(ahead).collect()
}

fn bars(html: &mut Html, rows: &[Row], servers: &[String]) {
    for row in rows {
        let title = match row.figure.kind.key {
            "deliveries_per_s" if row.is_saturated => "as fast as it is taken",
            "server_cpu_s_per_million" if !row.is_saturated => "less is better",
            "accept_per_s" => "more is better",
            "idle_bytes_per_connection" => "less is better",
            _ => continue,
        };
        let mut values: Vec<(String, usize, f64)> = Vec::new();
        for (server, name) in servers.iter().enumerate() {
            if let Some(value) = row.median(server).filter(|it| *it > 0.0 && !row.dropped_out[server]) {
                values.push((name.clone(), server, value));
            }
        }
        values.sort_by(|a, b| a.2.total_cmp(&b.2));
        if row.figure.kind.better == Better::Higher {
            values.reverse();
        }
        let title = format!("{}: {} ({title})", row.place, row.figure.title());
        let name = match row.figure.kind.unit {
            Unit::PerSecond => "per second, logarithmic",
            Unit::Bytes => "KiB, logarithmic",
            _ => "CPU seconds, logarithmic",
        };
        if let Some(bars) = ranking(title, name, row.figure.kind.unit, values) {
            bars.draw(html);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::runs::{Source, groups};
    use crate::report::sample::Sample;

    fn said(subjects: &[&str]) -> (Vec<String>, Vec<Vec<Cell>>) {
        let subjects: Vec<String> = subjects.iter().map(|it| (*it).to_owned()).collect();
        let file =
            Sample { subjects, scenarios: vec!["saturate", "steady", "idle"], ..Sample::default() }.run("x");
        let sources = [Source { name: "x".to_owned(), file }];
        let groups = groups(&sources);
        let servers = labels(&groups);
        let rows = rows(&groups, servers.len());
        (sentences(&rows, &servers), rows.iter().map(|it| cells(it, &servers, Some(0))).collect())
    }

    #[test]
    fn a_peer_that_is_ahead_is_named() {
        // In the sample each server is slower than the one before.
        let (sentences, _) = said(&["nats-server", "tidewire", "ws"]);
        assert!(sentences[0].contains("alike (within 5 %) in 0, behind in 0"), "{sentences:#?}");
        let p99 = sentences.iter().find(|it| it.starts_with("steady, latency p99")).unwrap();
        assert!(p99.contains("nats-server") && !p99.contains("too: ws"), "{p99}");
        let (sentences, _) = said(&["limit", "tidewire", "ws"]);
        assert_eq!(sentences.len(), 1, "the limit is no peer: {sentences:#?}");
        assert!(sentences[0].contains("ahead in 0"), "{sentences:#?}");
    }

    #[test]
    fn the_best_is_marked_and_the_others_are_ratios() {
        let (_, rows) = said(&["tidewire", "ws"]);
        let deliveries =
            rows.iter().find(|it| it[0].text == "saturate" && it[0].small == "deliveries/s").unwrap();
        assert_eq!((deliveries[1].class, deliveries[2].class), ("best", ""));
        assert_eq!((deliveries[1].small.as_str(), deliveries[2].small.as_str()), ("", "0.588 ×"));
        // Both keep up with a set rate, so that is no figure to compare.
        assert!(!rows.iter().any(|it| it[0].text == "steady" && it[0].small == "deliveries/s"));
    }
}
