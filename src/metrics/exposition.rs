//! `/metrics`: the Prometheus text format, version 0.0.4, of merged metrics and the gauges of the moment. Pure: text out.
//!
//! Distributions are classic histograms with fixed bounds (a series of 1, 2, 5 from a microsecond to ten seconds for
//! times). They are computed from the HdrHistograms at each scrape. A value that an HdrHistogram cannot tell from one just
//! above a bound counts above it, so a bucket is never too kind, and by less than 0.1 % of the bound too strict.

use std::fmt::Write as _;
use std::time::Duration;

use super::{Counters, Distribution, Stage, Unit, WorkerMetrics};

/// Value of `Content-Type`.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of the buckets of times, in nanoseconds; 10 ms, the default flush window, is one of them.
pub const TIME_BOUNDS_NS: [u64; 22] = [
    1_000,
    2_000,
    5_000,
    10_000,
    20_000,
    50_000,
    100_000,
    200_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    50_000_000,
    100_000_000,
    200_000_000,
    500_000_000,
    1_000_000_000,
    2_000_000_000,
    5_000_000_000,
    10_000_000_000,
];

/// Upper bounds of the buckets of sizes, in bytes.
pub const SIZE_BOUNDS: [u64; 9] =
    [0, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20];

/// Upper bounds of the buckets of numbers of connections.
pub const CONNECTION_BOUNDS: [u64; 16] =
    [0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000];

/// What the server is doing at the moment of a scrape.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gauges {
    /// Open connections.
    pub connections: u64,
    /// Subscriptions of all connections: names and patterns.
    pub subscriptions: u64,
    /// Channels that are known.
    pub channels: u64,
    /// Frames that wait in outboxes.
    pub outbox_frames: u64,
    /// Bytes of control and data that wait in outboxes.
    pub outbox_bytes: u64,
    /// Bytes that outboxes take: each frame once for each worker that holds it, and control messages.
    pub outbox_memory_bytes: u64,
    /// Bytes that the history takes.
    pub history_bytes: u64,
    /// Frames of the history.
    pub history_frames: u64,
    /// Channels that have a history.
    pub history_channels: u64,
    /// Bytes that the history has on the disk.
    pub history_store_disk_bytes: u64,
    /// Bytes that wait to be safe on the disk.
    pub history_store_waiting_bytes: u64,
    /// Whether what comes is not made safe.
    pub history_store_degraded: bool,
    /// Whether what was sent through the broker has come back lately.
    pub broker_delivers: bool,
    /// The flush window in effect, the widest of all workers: it widens under overload.
    pub flush_window: Duration,
    /// Threads that own connections and channels.
    pub workers: u64,
    /// Since the start of the server.
    pub uptime: Duration,
    /// Whether new connections are welcome: `/readyz`.
    pub ready: bool,
}

/// A row of the table of gauges.
struct GaugeRow {
    name: &'static str,
    help: &'static str,
    value: fn(&Gauges) -> f64,
}

const GAUGES: &[GaugeRow] = &[
    GaugeRow {
        name: "tidewire_history_store_disk_bytes",
        help: "Bytes that the history has on the disk.",
        value: |gauges| gauges.history_store_disk_bytes as f64,
    },
    GaugeRow {
        name: "tidewire_history_store_waiting_bytes",
        help: "Bytes of the history that wait to be safe on the disk.",
        value: |gauges| gauges.history_store_waiting_bytes as f64,
    },
    GaugeRow {
        name: "tidewire_history_store_degraded",
        help: "1 while what is published is not made safe on the disk, though it should be.",
        value: |gauges| f64::from(u8::from(gauges.history_store_degraded)),
    },
    GaugeRow {
        name: "tidewire_broker_delivers",
        help: "1 while what this server sends through the broker comes back; 0 without a broker.",
        value: |gauges| f64::from(u8::from(gauges.broker_delivers)),
    },
    GaugeRow {
        name: "tidewire_connections",
        help: "Open connections.",
        value: |gauges| gauges.connections as f64,
    },
    GaugeRow {
        name: "tidewire_subscriptions",
        help: "Subscriptions of all connections, names and patterns.",
        value: |gauges| gauges.subscriptions as f64,
    },
    GaugeRow {
        name: "tidewire_channels",
        help: "Channels that are known.",
        value: |gauges| gauges.channels as f64,
    },
    GaugeRow {
        name: "tidewire_outbox_frames",
        help: "Frames that wait in outboxes.",
        value: |gauges| gauges.outbox_frames as f64,
    },
    GaugeRow {
        name: "tidewire_outbox_bytes",
        help: "Bytes of control and data that wait in outboxes.",
        value: |gauges| gauges.outbox_bytes as f64,
    },
    GaugeRow {
        name: "tidewire_outbox_memory_bytes",
        help: "Bytes that outboxes take: each frame once for each worker that holds it, and control messages.",
        value: |gauges| gauges.outbox_memory_bytes as f64,
    },
    GaugeRow {
        name: "tidewire_history_bytes",
        help: "Bytes of the frames that are kept for replays, with what each takes beside its own.",
        value: |gauges| gauges.history_bytes as f64,
    },
    GaugeRow {
        name: "tidewire_history_frames",
        help: "Frames that are kept for replays.",
        value: |gauges| gauges.history_frames as f64,
    },
    GaugeRow {
        name: "tidewire_history_channels",
        help: "Channels of which something is kept for replays.",
        value: |gauges| gauges.history_channels as f64,
    },
    GaugeRow {
        name: "tidewire_flush_window_seconds",
        help: "The flush window in effect, the widest of all workers.",
        value: |gauges| gauges.flush_window.as_secs_f64(),
    },
    GaugeRow {
        name: "tidewire_workers",
        help: "Threads that own connections and channels.",
        value: |gauges| gauges.workers as f64,
    },
    GaugeRow {
        name: "tidewire_uptime_seconds",
        help: "Time since the start of the server.",
        value: |gauges| gauges.uptime.as_secs_f64(),
    },
    GaugeRow {
        name: "tidewire_ready",
        help: "1 if new connections are welcome, else 0.",
        value: |gauges| f64::from(u8::from(gauges.ready)),
    },
];

const BUILD_INFO: (&str, &str) = ("tidewire_build_info", "Always 1; the label tells the version.");

/// The whole body of `/metrics`.
#[must_use]
pub fn render(metrics: &WorkerMetrics, gauges: &Gauges) -> String {
    let mut text = String::with_capacity(32 << 10);
    write_build_info(&mut text);
    for row in GAUGES {
        write_head(&mut text, row.name, row.help, "gauge");
        write_line(&mut text, format_args!("{} {}", row.name, (row.value)(gauges)));
    }
    write_counters(&mut text, &metrics.counters);
    for stage in Stage::ALL {
        write_histogram(&mut text, stage, metrics.distribution(stage));
    }
    text
}

/// A table of every metric in Markdown, for the docs: name, kind, label, meaning.
#[must_use]
pub fn reference_table() -> String {
    let mut text = String::from("| metric | kind | label | meaning |\n| --- | --- | --- | --- |\n");
    let mut row = |name: &str, kind: &str, label: &str, help: &str| {
        write_line(&mut text, format_args!("| `{name}` | {kind} | {label} | {help} |"));
    };
    row(BUILD_INFO.0, "gauge", "`version`", BUILD_INFO.1);
    for gauge in GAUGES {
        row(gauge.name, "gauge", "", gauge.help);
    }
    for family in Counters::FAMILIES {
        let label = family.label.map_or_else(String::new, |(key, values)| {
            let values: Vec<_> = values.iter().map(|value| format!("`{value}`")).collect();
            format!("`{key}`: {}", values.join(", "))
        });
        row(family.name, "counter", &label, family.help);
    }
    for stage in Stage::ALL {
        row(&histogram_name(stage), "histogram", "`le`", stage.help());
    }
    text
}

fn write_build_info(text: &mut String) {
    let (name, help) = BUILD_INFO;
    write_head(text, name, help, "gauge");
    write_line(text, format_args!("{name}{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")));
}

fn write_counters(text: &mut String, counters: &Counters) {
    for (family, values) in counters.families() {
        write_head(text, family.name, family.help, "counter");
        match family.label {
            None => values.iter().for_each(|value| write_line(text, format_args!("{} {value}", family.name))),
            Some((key, labels)) => {
                for (label, value) in labels.iter().zip(values) {
                    write_line(text, format_args!("{}{{{key}=\"{label}\"}} {value}", family.name));
                }
            }
        }
    }
}

fn write_histogram(text: &mut String, stage: Stage, distribution: &Distribution) {
    let name = histogram_name(stage);
    write_head(text, &name, stage.help(), "histogram");
    for (bound, count) in cumulative_counts(distribution, bounds(stage.unit())) {
        let bound = in_base_unit(stage.unit(), u128::from(bound));
        write_line(text, format_args!("{name}_bucket{{le=\"{bound}\"}} {count}"));
    }
    write_line(text, format_args!("{name}_bucket{{le=\"+Inf\"}} {}", distribution.count()));
    write_line(text, format_args!("{name}_sum {}", in_base_unit(stage.unit(), distribution.sum())));
    write_line(text, format_args!("{name}_count {}", distribution.count()));
}

/// How many values are at most each bound, in one pass over the cells of the histogram.
fn cumulative_counts(distribution: &Distribution, bounds: &'static [u64]) -> Vec<(u64, u64)> {
    let mut cells = distribution.histogram().iter_recorded().peekable();
    let mut below = 0;
    let count = |bound: &u64| {
        while let Some(cell) = cells.next_if(|cell| cell.value_iterated_to() <= *bound) {
            below += cell.count_at_value();
        }
        (*bound, below)
    };
    bounds.iter().map(count).collect()
}

fn histogram_name(stage: Stage) -> String {
    let suffix = match stage.unit() {
        Unit::Nanoseconds => "_seconds",
        Unit::Bytes => "_bytes",
        Unit::Connections => "",
    };
    format!("tidewire_{}{suffix}", stage.label())
}

const fn bounds(unit: Unit) -> &'static [u64] {
    match unit {
        Unit::Nanoseconds => &TIME_BOUNDS_NS,
        Unit::Bytes => &SIZE_BOUNDS,
        Unit::Connections => &CONNECTION_BOUNDS,
    }
}

/// Times in seconds, to the nanosecond and without rounding; other units as they are.
fn in_base_unit(unit: Unit, value: u128) -> String {
    const NS_PER_S: u128 = 1_000_000_000;
    match unit {
        Unit::Nanoseconds if value.is_multiple_of(NS_PER_S) => (value / NS_PER_S).to_string(),
        Unit::Nanoseconds => {
            let text = format!("{}.{:09}", value / NS_PER_S, value % NS_PER_S);
            text.trim_end_matches('0').to_owned()
        }
        Unit::Bytes | Unit::Connections => value.to_string(),
    }
}

fn write_head(text: &mut String, name: &str, help: &str, kind: &str) {
    write_line(text, format_args!("# HELP {name} {help}"));
    write_line(text, format_args!("# TYPE {name} {kind}"));
}

fn write_line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a String takes what it is given");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::close::CloseReason;
    use std::collections::{HashMap, HashSet};

    fn sample_metrics() -> WorkerMetrics {
        let mut metrics = WorkerMetrics::new();
        metrics.counters.samples_received = 12;
        metrics.counters.connections_closed[CloseReason::SlowConsumer] = 3;
        for value in [500, 1_000, 1_001, 9_990_000, 11_000_000, 70_000_000_000] {
            metrics.record(Stage::ServerTotal, value, 2);
        }
        metrics.record(Stage::FanoutWidth, 0, 1);
        metrics.record(Stage::FanoutWidth, 1_000, 1);
        metrics.record(Stage::OutboxDepthBytes, 2 << 10, 1);
        metrics
    }

    /// Reads the format strictly; returns the value of each series.
    fn parse(text: &str) -> HashMap<String, f64> {
        let mut series = HashMap::new();
        let mut families = HashSet::new();
        let (mut family, mut kind) = (String::new(), String::new());
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').expect("a help text");
                assert!(families.insert(name.to_owned()), "{name} comes twice");
                assert!(!help.is_empty() && !help.contains('\\'), "{line}");
                name.clone_into(&mut family);
            } else if let Some(kind_line) = line.strip_prefix("# TYPE ") {
                let (name, the_kind) = kind_line.split_once(' ').expect("a kind");
                assert_eq!(name, family);
                assert!(["gauge", "counter", "histogram"].contains(&the_kind));
                assert_eq!(the_kind == "counter", name.ends_with("_total"), "{line}");
                the_kind.clone_into(&mut kind);
            } else {
                let (key, value) = line.rsplit_once(' ').expect("a value");
                let (name, labels) = key.split_once('{').unwrap_or((key, "}"));
                assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{line}");
                let suffix = name.strip_prefix(&family).expect("a series stands under its head");
                let suffixes: &[_] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
                assert!(suffixes.contains(&suffix), "{line}");
                assert!(
                    labels == "}" || labels.ends_with("\"}") && labels.matches('"').count() == 2,
                    "{line}"
                );
                let value: f64 = value.parse().expect("a number");
                assert!(series.insert(key.to_owned(), value).is_none(), "{key} comes twice");
            }
        }
        series
    }

    #[test]
    fn the_format_is_valid_and_has_the_figures() {
        let gauges = Gauges {
            connections: 4,
            flush_window: Duration::from_micros(12_500),
            ready: true,
            ..Gauges::default()
        };
        let series = parse(&render(&sample_metrics(), &gauges));
        let rows = [
            ("tidewire_connections", 4.0),
            ("tidewire_flush_window_seconds", 0.0125),
            ("tidewire_ready", 1.0),
            ("tidewire_samples_received_total", 12.0),
            ("tidewire_connections_closed_total{reason=\"slow_consumer\"}", 3.0),
            ("tidewire_connections_closed_total{reason=\"drain\"}", 0.0),
            ("tidewire_server_total_seconds_bucket{le=\"0.000001\"}", 4.0),
            ("tidewire_server_total_seconds_bucket{le=\"0.000002\"}", 6.0),
            ("tidewire_server_total_seconds_bucket{le=\"0.01\"}", 8.0),
            ("tidewire_server_total_seconds_bucket{le=\"10\"}", 10.0),
            ("tidewire_server_total_seconds_bucket{le=\"+Inf\"}", 12.0),
            ("tidewire_server_total_seconds_count", 12.0),
            ("tidewire_server_total_seconds_sum", 120.041_985_002),
            ("tidewire_batch_wait_seconds_bucket{le=\"+Inf\"}", 0.0),
            ("tidewire_fanout_width_bucket{le=\"0\"}", 1.0),
            ("tidewire_fanout_width_bucket{le=\"1000\"}", 2.0),
            ("tidewire_outbox_depth_bytes_bucket{le=\"1024\"}", 0.0),
            ("tidewire_outbox_depth_bytes_bucket{le=\"4096\"}", 1.0),
            ("tidewire_outbox_depth_bytes_sum", 2048.0),
        ];
        for (name, expected) in rows {
            let value = series.get(name).copied();
            assert!(value.is_some_and(|value| (value - expected).abs() < 1e-9), "{name}: {value:?}");
        }
    }

    #[test]
    fn every_metric_is_in_the_reference() {
        let text = render(&WorkerMetrics::new(), &Gauges::default());
        let reference = reference_table();
        let names: Vec<_> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
        for name in &names {
            assert!(reference.contains(&format!("| `{name}` |")), "{name}");
        }
        assert_eq!(reference.lines().count(), names.len() + 2);
    }

    #[test]
    fn bounds_rise() {
        for unit in [Unit::Nanoseconds, Unit::Bytes, Unit::Connections] {
            assert!(bounds(unit).is_sorted_by(|left, right| left < right), "{unit:?}");
        }
    }

    #[test]
    fn times_are_written_as_seconds_without_rounding() {
        let rows = [
            (0, "0"),
            (1, "0.000000001"),
            (10_000_000, "0.01"),
            (2_000_000_000, "2"),
            (1_500_000_000, "1.5"),
            (u128::from(u64::MAX) * 1_000_000_000 + 7, "18446744073709551615.000000007"),
        ];
        for (value, expected) in rows {
            assert_eq!(in_base_unit(Unit::Nanoseconds, value), expected);
        }
    }
}
