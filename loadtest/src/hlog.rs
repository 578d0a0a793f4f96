//! Writes the latencies of a run as an HdrHistogram interval log, which the standard tools read: one histogram an interval,
//! tagged with the scenario and phase, and `/slow` and the like for the ages at subscribers that are not healthy. Values are
//! nanoseconds; the log's own maximum column is in milliseconds.

use std::io;
use std::time::{Duration, UNIX_EPOCH};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use crate::run::Outcome;

/// A log in memory, encoded: histograms would take a hundred times as much.
#[derive(Debug)]
pub(crate) struct Log {
    started: Duration,
    bytes: Vec<u8>,
}

impl Log {
    /// An empty one, of a run that began at `started` after the Unix epoch.
    pub(crate) fn new(started: Duration) -> Self {
        let mut bytes = Vec::new();
        // Writing into memory cannot fail.
        let _ = IntervalLogWriterBuilder::new()
            .add_comment("[Tidewire loadtest: latency from the schedule to arrival, nanoseconds]")
            .with_base_time(UNIX_EPOCH + started)
            .with_start_time(UNIX_EPOCH + started)
            .begin_log_with(&mut bytes, &mut V2DeflateSerializer::new());
        Self { started, bytes }
    }

    /// Adds the intervals of a scenario that was run.
    pub(crate) fn add(&mut self, outcome: &Outcome) -> io::Result<()> {
        let mut serializer = V2DeflateSerializer::new();
        let mut log = IntervalLogWriterBuilder::new()
            .with_max_value_divisor(1e6)
            .begin_log_with(&mut self.bytes, &mut serializer)?;
        for interval in &outcome.intervals {
            let mut label = outcome.scenario.label(interval.window);
            if let Some(others) = interval.others {
                label = format!("{label}/{others}");
            }
            let start = Duration::from_nanos(interval.from_ns).saturating_sub(self.started);
            let length = Duration::from_nanos(interval.to_ns - interval.from_ns);
            log.write_histogram(&interval.latency, start, length, Tag::new(&label))
                .map_err(|error| io::Error::other(error.to_string()))?;
        }
        Ok(())
    }

    /// The file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::{Interval, histogram};
    use crate::scenario::named;
    use hdrhistogram::Histogram;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    #[test]
    fn the_log_reads_back() {
        let interval = |others, window: usize, from_s: u64, latency_ns: u64| {
            let mut latency = histogram();
            latency.record_n(latency_ns, 1_000).unwrap();
            let (from_ns, to_ns) = (from_s * 1_000_000_000, (from_s + 1) * 1_000_000_000);
            Interval { others, window, from_ns, to_ns, arrived: latency.len(), latency }
        };
        let outcome =
            |intervals| Outcome { scenario: named("slow_reader").unwrap(), intervals, ..Outcome::default() };
        let mut log = Log::new(Duration::from_secs(1_000));
        log.add(&outcome(vec![interval(None, 0, 1_001, 105_000), interval(None, 1, 1_002, 7_000_000)]))
            .unwrap();
        log.add(&outcome(vec![interval(Some("stalled"), 1, 1_003, 9_000_000)])).unwrap();
        let entries: Vec<(String, f64, f64, u64, u64)> = IntervalLogIterator::new(log.bytes())
            .filter_map(|entry| match entry.unwrap() {
                LogEntry::Interval(entry) => {
                    use base64::Engine as _;
                    let encoded = base64::engine::general_purpose::STANDARD.decode(entry.encoded_histogram());
                    let latency: Histogram<u64> =
                        Deserializer::new().deserialize(&mut encoded.unwrap().as_slice()).unwrap();
                    let tag = entry.tag().unwrap().as_str().to_owned();
                    let at = entry.start_timestamp().as_secs_f64();
                    Some((tag, at, entry.max(), latency.len(), latency.value_at_quantile(0.5)))
                }
                _ => None,
            })
            .collect();
        let tags: Vec<&str> = entries.iter().map(|it| it.0.as_str()).collect();
        assert_eq!(tags, ["slow_reader/without", "slow_reader/with", "slow_reader/with/stalled"]);
        assert_eq!((entries[0].1, entries[2].1), (1.0, 3.0), "seconds from the start of the log");
        assert!((entries[1].2 - 7.0).abs() < 0.01, "milliseconds: {}", entries[1].2);
        assert_eq!((entries[0].3, entries[0].4 / 1_000), (1_000, 105));
    }
}
