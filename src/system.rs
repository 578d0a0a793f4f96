//! The server's own live metrics, as readings for `$sys.*`. Pure: [`SystemTelemetry::read`] compares merged metrics with
//! those of the last call; the loop that calls it publishes. [`reference_table`] lists the channels.

use std::time::{Duration, Instant};

use crate::metrics::exposition::Gauges;
use crate::metrics::{Counters, Stage, Unit, WorkerMetrics};
use crate::reading::{Reading, integer, vector};
use crate::wire::proto::sample::Value;

/// What a row of the table computes its value from.
struct View<'a> {
    gauges: &'a Gauges,
    /// Counted since the last reading.
    interval: &'a Counters,
    elapsed: Duration,
}

impl View<'_> {
    fn per_s(&self, count: u64) -> Value {
        Value::Number(if self.elapsed.is_zero() { 0.0 } else { count as f64 / self.elapsed.as_secs_f64() })
    }
}

/// A channel that always has a value.
struct Row {
    channel: &'static str,
    meaning: &'static str,
    value: fn(&View<'_>) -> Value,
}

const ROWS: &[Row] = &[
    Row {
        channel: "$sys.connections",
        meaning: "Open connections.",
        value: |view| integer(view.gauges.connections),
    },
    Row {
        channel: "$sys.subscriptions",
        meaning: "Subscriptions of all connections, names and patterns.",
        value: |view| integer(view.gauges.subscriptions),
    },
    Row {
        channel: "$sys.channels",
        meaning: "Channels that are known.",
        value: |view| integer(view.gauges.channels),
    },
    Row {
        channel: "$sys.outbox_frames",
        meaning: "Frames that wait in outboxes.",
        value: |view| integer(view.gauges.outbox_frames),
    },
    Row {
        channel: "$sys.outbox_bytes",
        meaning: "Bytes of control and data that wait in outboxes.",
        value: |view| integer(view.gauges.outbox_bytes),
    },
    Row {
        channel: "$sys.flush_window_ms",
        meaning: "The flush window in effect, the widest of all workers, in milliseconds.",
        value: |view| Value::Number(view.gauges.flush_window.as_secs_f64() * 1e3),
    },
    Row {
        channel: "$sys.uptime_s",
        meaning: "Seconds since the start of the server.",
        value: |view| Value::Number(view.gauges.uptime.as_secs_f64()),
    },
    Row {
        channel: "$sys.samples_per_s",
        meaning: "Samples accepted per second.",
        value: |view| view.per_s(view.interval.samples_received),
    },
    Row {
        channel: "$sys.deliveries_per_s",
        meaning: "Samples handed to the kernel per second, once for each receiver.",
        value: |view| view.per_s(view.interval.samples_delivered),
    },
    Row {
        channel: "$sys.frames_per_s",
        meaning: "Frames handed to the kernel per second, once for each receiver.",
        value: |view| view.per_s(view.interval.frames_delivered),
    },
    Row {
        channel: "$sys.bytes_received_per_s",
        meaning: "Bytes of WebSocket messages received per second.",
        value: |view| view.per_s(view.interval.bytes_received),
    },
    Row {
        channel: "$sys.bytes_written_per_s",
        meaning: "Bytes taken by the kernel per second.",
        value: |view| view.per_s(view.interval.bytes_written),
    },
    Row {
        channel: "$sys.writes_per_s",
        meaning: "System calls that wrote to connections, per second.",
        value: |view| view.per_s(view.interval.writes),
    },
    Row {
        channel: "$sys.dropped_per_s",
        meaning: "Samples lost to subscribers per second.",
        value: |view| view.per_s(view.interval.samples_dropped.total()),
    },
    Row {
        channel: "$sys.conflated_per_s",
        meaning: "Samples per second left out because subscriptions asked for fewer.",
        value: |view| view.per_s(view.interval.samples_conflated.total()),
    },
    Row {
        channel: "$sys.errors_per_s",
        meaning: "Error messages to clients per second.",
        value: |view| view.per_s(view.interval.errors_sent.total()),
    },
];

/// The server's total of the interval as one vector, in the order of [`QUANTILES`]: what a chart wants.
const LATENCY: &str = "$sys.latency";

/// What is told of each stage of time, as `$sys.latency.STAGE.NAME`. 1 is the largest value.
const QUANTILES: [(&str, f64); 4] = [("p50_ns", 0.5), ("p99_ns", 0.99), ("p999_ns", 0.999), ("max_ns", 1.0)];

/// Turns cumulative metrics into live readings.
#[derive(Debug)]
pub struct SystemTelemetry {
    previous: WorkerMetrics,
    previous_at: Instant,
    /// Memory for the difference, so that a reading allocates no histogram.
    interval: WorkerMetrics,
}

impl SystemTelemetry {
    /// Starts with metrics that are all zero.
    #[must_use]
    pub fn new(at: Instant) -> Self {
        Self { previous: WorkerMetrics::new(), previous_at: at, interval: WorkerMetrics::new() }
    }

    /// The readings of now. Rates and latencies are of the time since the last call; `merged` is cumulative. A stage
    /// without values in that time has no readings.
    pub fn read(&mut self, merged: &WorkerMetrics, gauges: &Gauges, at: Instant) -> Vec<Reading> {
        self.interval.set_to_interval(&self.previous, merged);
        let elapsed = at.saturating_duration_since(self.previous_at);
        self.previous.clone_from(merged);
        self.previous_at = at;

        let view = View { gauges, interval: &self.interval.counters, elapsed };
        let row = |row: &Row| Reading { channel: row.channel.to_owned(), value: (row.value)(&view) };
        let mut readings: Vec<_> = ROWS.iter().map(row).collect();
        for stage in stages_of_time() {
            self.push_latency(&mut readings, stage);
        }
        readings
    }

    fn push_latency(&self, readings: &mut Vec<Reading>, stage: Stage) {
        let histogram = self.interval.distribution(stage).histogram();
        if histogram.is_empty() {
            return;
        }
        let values = QUANTILES.map(|(name, quantile)| (name, histogram.value_at_quantile(quantile)));
        if stage == Stage::ServerTotal {
            let values = values.iter().map(|(_, value)| *value as f64).collect();
            readings.push(Reading { channel: LATENCY.to_owned(), value: vector(values) });
        }
        for (name, value) in values {
            let channel = format!("{LATENCY}.{}.{name}", stage.label());
            readings.push(Reading { channel, value: integer(value) });
        }
    }
}

/// A table of the channels in Markdown, for the docs.
#[must_use]
pub fn reference_table() -> String {
    let mut text = String::from("| channel | meaning |\n| --- | --- |\n");
    let mut row = |channel: &str, meaning: &str| {
        text.push_str(&format!("| `{channel}` | {meaning} |\n"));
    };
    for Row { channel, meaning, .. } in ROWS {
        row(channel, meaning);
    }
    let names = QUANTILES.map(|(name, _)| name);
    row(LATENCY, &format!("Vector of {} of `server_total`.", names.join(", ")));
    for stage in stages_of_time() {
        for name in names {
            row(&format!("{LATENCY}.{}.{name}", stage.label()), stage.help());
        }
    }
    text
}

fn stages_of_time() -> impl Iterator<Item = Stage> {
    Stage::ALL.into_iter().filter(|stage| stage.unit() == Unit::Nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::DropReason;
    use crate::pattern;
    use std::collections::HashSet;

    fn value(readings: &[Reading], channel: &str) -> Option<Value> {
        readings.iter().find(|reading| reading.channel == channel).map(|reading| reading.value.clone())
    }

    #[test]
    fn rates_and_latencies_are_of_the_last_interval_and_gauges_of_now() {
        let start = Instant::now();
        let mut system = SystemTelemetry::new(start);
        let mut metrics = WorkerMetrics::new();
        metrics.counters.samples_delivered = 1_000;
        metrics.counters.samples_dropped[DropReason::Age] = 10;
        metrics.counters.samples_dropped[DropReason::Overflow] = 10;
        for value in 1..=1_000 {
            metrics.record(Stage::ServerTotal, value, 1);
        }
        metrics.record(Stage::FanoutWidth, 4, 1);
        let gauges =
            Gauges { connections: 3, flush_window: Duration::from_micros(12_500), ..Gauges::default() };

        let first = system.read(&metrics, &gauges, start + Duration::from_millis(500));
        metrics.record(Stage::BatchWait, 77, 1);
        let second = system.read(&metrics, &gauges, start + Duration::from_millis(1_500));

        // (channel, in the first, in the second)
        let number = |value| Some(Value::Number(value));
        let whole = |value| Some(Value::Integer(value));
        let rows = [
            ("$sys.connections", whole(3), whole(3)),
            ("$sys.flush_window_ms", number(12.5), number(12.5)),
            ("$sys.deliveries_per_s", number(2_000.0), number(0.0)),
            ("$sys.dropped_per_s", number(40.0), number(0.0)),
            ("$sys.latency", Some(vector(vec![500.0, 990.0, 999.0, 1_000.0])), None),
            ("$sys.latency.server_total.p99_ns", whole(990), None),
            ("$sys.latency.server_total.max_ns", whole(1_000), None),
            ("$sys.latency.batch_wait.p50_ns", None, whole(77)),
            ("$sys.latency.fanout_width.max_ns", None, None),
        ];
        for (channel, in_first, in_second) in rows {
            assert_eq!(value(&first, channel), in_first, "{channel}");
            assert_eq!(value(&second, channel), in_second, "{channel}");
        }
    }

    #[test]
    fn no_time_between_two_readings_is_no_rate() {
        let start = Instant::now();
        let mut metrics = WorkerMetrics::new();
        metrics.counters.writes = 5;
        let readings = SystemTelemetry::new(start).read(&metrics, &Gauges::default(), start);
        assert_eq!(value(&readings, "$sys.writes_per_s"), Some(Value::Number(0.0)));
    }

    #[test]
    fn every_channel_is_a_valid_name_given_once_and_listed() {
        let start = Instant::now();
        let mut metrics = WorkerMetrics::new();
        for stage in Stage::ALL {
            metrics.record(stage, 9, 1);
        }
        let readings = SystemTelemetry::new(start).read(&metrics, &Gauges::default(), start);
        let reference = reference_table();
        for reading in &readings {
            assert_eq!(pattern::check_name(&reading.channel, 255), Ok(()));
            assert!(reference.contains(&format!("| `{}` |", reading.channel)), "{}", reading.channel);
        }
        let names: HashSet<_> = readings.iter().map(|reading| &reading.channel).collect();
        assert_eq!(names.len(), readings.len());
        assert_eq!(reference.lines().count(), readings.len() + 2);
    }
}
