//! The tables of `loadtest cluster`, for a terminal: medians of the repetitions. Pure.

use std::fmt::Write as _;

use crate::proc;
use crate::table::aligned;
use crate::units::{count, digits, time};

use super::broker::Kind;
use super::report::{ClusterFile, Cpu, Place, Repetition, Row};

const COLUMNS: [&str; 13] = [
    "broker",
    "servers",
    "samples/s",
    "deliveries/s",
    "near p50",
    "p99",
    "far p50",
    "p99",
    "added p50",
    "p99",
    "broker_hop p50",
    "p99",
    "bottleneck",
];

const COSTS: [&str; 10] = [
    "broker",
    "servers",
    "relays/s",
    "broker msg/s",
    "per M samples",
    "publishing CPU s/M",
    "receiving CPU s/M",
    "broker CPU s/M",
    "announced",
    "lost",
];

const GROWTH: [&str; 6] = ["broker", "servers", "CPU of each", "broker CPU", "generator CPU", "idle"];

/// Share of the deliveries from which a server kept up: at the edges of a short window some come a little later.
const KEPT_UP: f64 = 0.95;

/// All of it.
pub(crate) fn text(file: &ClusterFile) -> String {
    let mut text = aligned(COLUMNS, file.rows.iter().map(latencies));
    text.push('\n');
    text += &aligned(COSTS, file.rows.iter().map(costs));
    if file.growth {
        text.push('\n');
        text += &aligned(GROWTH, file.rows.iter().map(growth));
    }
    text.push('\n');
    for row in &file.rows {
        for ended in row.repetitions.iter().flat_map(|it| &it.ended) {
            // Writing into a string cannot fail.
            let _ = writeln!(text, "{}, {} servers: {ended}", row.broker.label(), row.nodes);
        }
        if let Some(share) = median(row, |it| it.delivered).filter(|it| *it < KEPT_UP) {
            let _ = writeln!(
                text,
                "{}, {} servers: did not keep up: {:.0} % of what was due came in time. Its latency is a queue's, and its CPU was for \
                 fewer samples than it is divided by: ask for a lower --rate",
                row.broker.label(),
                row.nodes,
                share * 100.0
            );
        }
        let places = || row.repetitions.iter().flat_map(|it| [Some(it.near), it.far]).flatten();
        let (excess, irregular) = places().fold((0, 0), |(excess, irregular), it| {
            (excess + it.account.excess, irregular + it.account.irregular)
        });
        if excess + irregular > 0 {
            let _ = writeln!(
                text,
                "{}, {} servers: the books do not balance: {excess} samples too many, {irregular} frames out of order or repeated",
                row.broker.label(),
                row.nodes
            );
        }
        let refused: u64 = row.repetitions.iter().map(|it| it.refused).sum();
        if refused > 0 {
            let _ = writeln!(
                text,
                "{}, {} servers: {refused} samples were refused",
                row.broker.label(),
                row.nodes
            );
        }
    }
    let _ = writeln!(
        text,
        "near: subscribers of the publishers' server; far: of the others; added: far less near, within the same run.\n\
         broker_hop: from one server's flush to the other's receipt, by the servers. CPU: seconds for a million samples published.\n\
         {} bytes each, {} s after a warm-up of {} s, medians of {}. {}; {}, {} build",
        file.payload_bytes,
        file.duration_s,
        file.warmup_s,
        file.rows.iter().map(|it| it.repetitions.len()).max().unwrap_or(0),
        proc::in_a_line(&file.machine),
        file.server,
        file.generator.profile,
    );
    text
}

/// The middle one; of an even number the lower of the two in the middle, so that it is one that was measured.
fn median(row: &Row, figure: impl Fn(&Repetition) -> Option<f64>) -> Option<f64> {
    let mut figures: Vec<f64> = row.repetitions.iter().filter_map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len().saturating_sub(1) / 2).copied()
}

fn shown(figure: Option<f64>, show: impl Fn(f64) -> String) -> String {
    figure.map_or_else(|| "-".to_owned(), show)
}

fn latencies(row: &Row) -> [String; COLUMNS.len()] {
    let times = |figure: &dyn Fn(&Repetition) -> Option<f64>| shown(median(row, figure), time);
    let at = |place: Option<Place>| place.and_then(|it| it.latency);
    let deliveries =
        |it: &Repetition| Some(it.near.deliveries_per_s + it.far.map_or(0.0, |far| far.deliveries_per_s));
    [
        row.broker.label().to_owned(),
        row.nodes.to_string(),
        shown(median(row, |it| Some(it.samples_per_s)), |it| count(it.round())),
        shown(median(row, deliveries), |it| count(it.round())),
        times(&|it| Some(at(Some(it.near))?.p50 as f64)),
        times(&|it| Some(at(Some(it.near))?.p99 as f64)),
        times(&|it| Some(at(it.far)?.p50 as f64)),
        times(&|it| Some(at(it.far)?.p99 as f64)),
        times(&|it| Some(it.added_p50_ns? as f64)),
        times(&|it| Some(it.added_p99_ns? as f64)),
        times(&|it| Some(it.broker_hop?.p50 as f64)),
        times(&|it| Some(it.broker_hop?.p99 as f64)),
        bottlenecks(row),
    ]
}

/// Each that was one in some repetition.
fn bottlenecks(row: &Row) -> String {
    let mut all: Vec<&str> = row.repetitions.iter().map(|it| it.bottleneck.as_str()).collect();
    all.sort_unstable();
    all.dedup();
    all.join(", ")
}

fn costs(row: &Row) -> [String; COSTS.len()] {
    let figure = |figure: &dyn Fn(&Repetition) -> Option<f64>| {
        shown(median(row, figure), |it| if it < 100.0 { digits(it) } else { count(it.round()) })
    };
    let per_million = |cpu: &Option<Cpu>| cpu.as_ref()?.seconds_per_million_samples;
    let lost = |loss: fn(&Place) -> u64| {
        let places = row.repetitions.iter().flat_map(|it| [Some(it.near), it.far]).flatten();
        count(places.map(|it| loss(&it)).sum::<u64>() as f64)
    };
    [
        row.broker.label().to_owned(),
        row.nodes.to_string(),
        figure(&|it| it.relays_per_s),
        figure(&|it| it.broker_messages_per_s),
        figure(&|it| it.broker_messages_per_million_samples),
        figure(&|it| per_million(it.nodes.first()?)),
        figure(&|it| mean(it.nodes.get(1..)?.iter().filter_map(per_million))),
        figure(&|it| per_million(&it.broker)),
        // A way that announces nothing.
        if row.broker == Kind::Seed { "-".to_owned() } else { lost(|it| it.account.announced) },
        lost(|it| it.account.unannounced),
    ]
}

fn mean(figures: impl Iterator<Item = f64>) -> Option<f64> {
    let figures: Vec<f64> = figures.collect();
    (!figures.is_empty()).then(|| figures.iter().sum::<f64>() / figures.len() as f64)
}

fn growth(row: &Row) -> [String; GROWTH.len()] {
    let share = |it: f64| format!("{:.1} %", it * 100.0);
    let cpu =
        |figure: &dyn Fn(&Repetition) -> Option<Cpu>| shown(median(row, |it| Some(figure(it)?.cpus)), share);
    let each: Vec<String> = (0..row.nodes).map(|node| cpu(&|it| *it.nodes.get(node)?)).collect();
    [
        row.broker.label().to_owned(),
        row.nodes.to_string(),
        each.join(", "),
        cpu(&|it| it.broker),
        cpu(&|it| it.generator),
        shown(median(row, |it| it.machine_idle), share),
    ]
}
