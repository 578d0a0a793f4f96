//! `/api/latency`, percentiles as JSON, and `/api/latency.hlog`, an HdrHistogram interval log. Pure: text out.

use std::collections::VecDeque;
use std::time::{Duration, UNIX_EPOCH};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};
use serde::{Serialize, Serializer};

use super::{Distribution, Stage, WorkerMetrics};
use crate::clock::Now;

/// Length of an interval of the log: call [`LatencyLog::record`] this often.
pub const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Intervals that the log keeps: one hour of them.
pub const LOG_INTERVALS_MAX: usize = 360;

/// Bytes of encoded intervals that the log keeps. In a trial an interval with 20,000 random values in each stage had
/// 41 KiB, so the hour fits; the oldest intervals go first.
pub const LOG_BYTES_MAX: usize = 16 << 20;

/// Value of `Content-Type` for the log.
pub const LOG_CONTENT_TYPE: &str = "text/plain; charset=utf-8";

/// The percentiles of one stage. Without values, all but `count` are null.
#[derive(Debug, Serialize)]
pub struct StageSummary {
    /// Unit of the values: `ns`, `bytes` or `connections`.
    pub unit: &'static str,
    /// What is measured.
    pub meaning: &'static str,
    /// Values recorded.
    pub count: u64,
    /// Smallest value.
    pub min: Option<u64>,
    /// Mean.
    pub mean: Option<f64>,
    /// Half of the values are at most this.
    pub p50: Option<u64>,
    /// 90 % of the values are at most this.
    pub p90: Option<u64>,
    /// 99 % of the values are at most this.
    pub p99: Option<u64>,
    /// 99.9 % of the values are at most this.
    pub p999: Option<u64>,
    /// 99.99 % of the values are at most this.
    pub p9999: Option<u64>,
    /// Largest value.
    pub max: Option<u64>,
}

impl StageSummary {
    /// Sums up a stage.
    #[must_use]
    pub fn new(stage: Stage, distribution: &Distribution) -> Self {
        let histogram = distribution.histogram();
        let known = |value: u64| (!histogram.is_empty()).then_some(value);
        let at = |quantile| known(histogram.value_at_quantile(quantile));
        Self {
            unit: stage.unit().label(),
            meaning: stage.help(),
            count: histogram.len(),
            min: known(histogram.min()),
            mean: distribution.mean(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            max: known(histogram.max()),
        }
    }
}

/// Every stage by its name, in the order of [`Stage::ALL`].
struct Stages<'a>(&'a WorkerMetrics);

impl Serialize for Stages<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(
            Stage::ALL.map(|stage| (stage.label(), StageSummary::new(stage, self.0.distribution(stage)))),
        )
    }
}

/// The body of `/api/latency`.
#[derive(Serialize)]
struct Summary<'a> {
    uptime_s: f64,
    stages: Stages<'a>,
}

/// The body of `/api/latency`: the percentiles of every stage since the start, which was `uptime` ago.
#[must_use]
pub fn render_json(metrics: &WorkerMetrics, uptime: Duration) -> String {
    let summary = Summary { uptime_s: uptime.as_secs_f64(), stages: Stages(metrics) };
    serde_json::to_string(&summary).expect("names and numbers are always JSON")
}

/// An interval log of every stage, the stage's name as tag, in memory and bounded. Values are in the stage's own unit, so
/// nanoseconds for times; stages without a value in an interval have no line there.
#[derive(Debug)]
pub struct LatencyLog {
    started: Now,
    /// Encoded intervals, the oldest first.
    intervals: VecDeque<Vec<u8>>,
    bytes: usize,
    previous: WorkerMetrics,
    previous_at: Now,
}

impl LatencyLog {
    /// An empty log that begins now, with metrics that are all zero.
    #[must_use]
    pub fn new(now: Now) -> Self {
        Self {
            started: now,
            intervals: VecDeque::new(),
            bytes: 0,
            previous: WorkerMetrics::new(),
            previous_at: now,
        }
    }

    /// Ends an interval: what was recorded between the last call and now. `merged` is cumulative. Call it every
    /// [`LOG_INTERVAL`].
    pub fn record(&mut self, merged: &WorkerMetrics, now: Now) {
        let lines = self.encode_since_previous(merged, now);
        self.previous.clone_from(merged);
        self.previous_at = now;
        self.keep(lines);
    }

    /// Adds an encoded interval; the oldest ones make room.
    fn keep(&mut self, lines: Vec<u8>) {
        self.bytes += lines.len();
        self.intervals.push_back(lines);
        while self.intervals.len() > LOG_INTERVALS_MAX || self.bytes > LOG_BYTES_MAX {
            let Some(oldest) = self.intervals.pop_front() else { break };
            self.bytes -= oldest.len();
        }
    }

    /// The body of `/api/latency.hlog`: the header, the intervals kept, and the one that is still open.
    #[must_use]
    pub fn render(&self, merged: &WorkerMetrics, now: Now) -> Vec<u8> {
        let mut log = self.header();
        for lines in &self.intervals {
            log.extend_from_slice(lines);
        }
        log.extend_from_slice(&self.encode_since_previous(merged, now));
        log
    }

    /// The lines that readers know the format and the time base by. Timestamps count from the start time.
    fn header(&self) -> Vec<u8> {
        let started = UNIX_EPOCH + Duration::from_nanos(self.started.wall_ns);
        let mut text = Vec::new();
        let mut serializer = V2DeflateSerializer::new();
        IntervalLogWriterBuilder::new()
            .add_comment("[Histogram log format version 1.3]")
            .add_comment("[Tidewire: tags are stages; times in ns, outbox_depth in bytes, fanout_width in connections]")
            .with_start_time(started)
            .with_base_time(started)
            .begin_log_with(&mut text, &mut serializer)
            .expect("a Vec takes what it is given");
        text.extend_from_slice(
            b"\"StartTimestamp\",\"Interval_Length\",\"Interval_Max\",\"Interval_Compressed_Histogram\"\n",
        );
        text
    }

    fn encode_since_previous(&self, merged: &WorkerMetrics, now: Now) -> Vec<u8> {
        let start = self.previous_at.at.saturating_duration_since(self.started.at);
        let length = now.at.saturating_duration_since(self.previous_at.at);
        let mut interval = WorkerMetrics::new();
        interval.set_to_interval(&self.previous, merged);
        let mut lines = Vec::new();
        for stage in Stage::ALL {
            let histogram = interval.distribution(stage).histogram();
            if !histogram.is_empty() {
                encode_line(&mut lines, stage, histogram, start, length);
            }
        }
        lines
    }
}

fn encode_line(
    lines: &mut Vec<u8>,
    stage: Stage,
    histogram: &Histogram<u64>,
    start: Duration,
    length: Duration,
) {
    let mut serializer = V2DeflateSerializer::new();
    let mut writer = IntervalLogWriterBuilder::new()
        .begin_log_with(lines, &mut serializer)
        .expect("a Vec takes what it is given");
    // The only possible failure is a count over 2^63, which no server lives to see.
    writer
        .write_histogram(histogram, start, length, Tag::new(stage.label()))
        .expect("counts fit the format and a Vec takes what it is given");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
    use serde_json::{Value, json};

    /// A line of the log: tag, start and length in milliseconds, number of values, largest value.
    type Line = (String, u128, u128, u64, u64);

    fn read(log: &[u8]) -> Vec<Line> {
        let mut deserializer = Deserializer::new();
        let mut line = |entry| match entry {
            LogEntry::Interval(interval) => {
                let bytes = STANDARD.decode(interval.encoded_histogram()).expect("base64");
                let histogram: Histogram<u64> =
                    deserializer.deserialize(&mut bytes.as_slice()).expect("a histogram");
                let tag = interval.tag().expect("a tag").as_str().to_owned();
                let (start, length) = (interval.start_timestamp(), interval.duration());
                Some((tag, start.as_millis(), length.as_millis(), histogram.len(), histogram.max()))
            }
            LogEntry::StartTime(_) | LogEntry::BaseTime(_) => None,
        };
        IntervalLogIterator::new(log).filter_map(|entry| line(entry.expect("a valid log"))).collect()
    }

    fn line(stage: Stage, start_s: u128, length_ms: u128, count: u64, max: u64) -> Line {
        (stage.label().to_owned(), start_s * 1_000, length_ms, count, max)
    }

    #[test]
    fn the_log_has_each_interval_by_stage_and_the_open_one() {
        let start = Clock::new().now();
        let mut log = LatencyLog::new(start);
        let mut metrics = WorkerMetrics::new();
        assert_eq!(read(&log.render(&metrics, start)), []);

        metrics.record(Stage::BatchWait, 1_000, 3);
        metrics.record(Stage::FanoutWidth, 20, 1);
        let mut now = start.plus(LOG_INTERVAL);
        log.record(&metrics, now);
        now = now.plus(LOG_INTERVAL);
        log.record(&metrics, now);
        metrics.record(Stage::BatchWait, 500, 2);
        now = now.plus(Duration::from_millis(250));

        let expected = [
            line(Stage::BatchWait, 0, 10_000, 3, 1_000),
            line(Stage::FanoutWidth, 0, 10_000, 1, 20),
            line(Stage::BatchWait, 20, 250, 2, 500),
        ];
        assert_eq!(read(&log.render(&metrics, now)), expected);
        // Reading changes nothing.
        assert_eq!(read(&log.render(&metrics, now)), expected);
    }

    #[test]
    fn the_log_forgets_the_oldest_intervals_beyond_its_bound() {
        let start = Clock::new().now();
        let mut log = LatencyLog::new(start);
        let mut metrics = WorkerMetrics::new();
        let mut now = start;
        for _ in 0..LOG_INTERVALS_MAX + 2 {
            metrics.record(Stage::LoopLag, 9, 1);
            now = now.plus(LOG_INTERVAL);
            log.record(&metrics, now);
        }
        let lines = read(&log.render(&metrics, now));
        assert_eq!(lines.len(), LOG_INTERVALS_MAX);
        assert_eq!(lines[0], line(Stage::LoopLag, 20, 10_000, 1, 9));
        assert_eq!(log.bytes, log.intervals.iter().map(Vec::len).sum::<usize>());
    }

    #[test]
    fn the_log_keeps_to_its_bytes() {
        let mut log = LatencyLog::new(Clock::new().now());
        // (bytes of a new interval, intervals kept)
        let rows = [
            (LOG_BYTES_MAX / 2, 1),
            (LOG_BYTES_MAX / 2, 2),
            (1, 2),
            (0, 3),
            (LOG_BYTES_MAX, 2),
            (LOG_BYTES_MAX + 1, 0),
        ];
        for (bytes, kept) in rows {
            log.keep(vec![b'#'; bytes]);
            assert_eq!(log.intervals.len(), kept, "{bytes}");
            assert_eq!(log.bytes, log.intervals.iter().map(Vec::len).sum::<usize>());
        }
    }

    #[test]
    fn json_has_every_stage_and_nulls_where_nothing_was_seen() {
        let mut metrics = WorkerMetrics::new();
        for value in 1..=1_000 {
            metrics.record(Stage::ServerTotal, value, 1);
        }
        let body: Value = serde_json::from_str(&render_json(&metrics, Duration::from_millis(1_500)))
            .expect("the body is JSON");
        assert_eq!(body["uptime_s"], json!(1.5));
        let stages = body["stages"].as_object().expect("stages by name");
        assert_eq!(stages.len(), Stage::ALL.len());
        assert_eq!(
            stages["server_total"],
            json!({
                "unit": "ns", "meaning": Stage::ServerTotal.help(), "count": 1_000, "min": 1, "mean": 500.5,
                "p50": 500, "p90": 900, "p99": 990, "p999": 999, "p9999": 1_000, "max": 1_000,
            })
        );
        assert_eq!(stages["outbox_depth"]["unit"], "bytes");
        assert_eq!(stages["outbox_depth"]["count"], 0);
        for name in ["min", "mean", "p50", "p90", "p99", "p999", "p9999", "max"] {
            assert_eq!(stages["outbox_depth"][name], Value::Null, "{name}");
        }
    }
}
