//! Writes the latencies of a run as an HdrHistogram interval log, which the standard tools read: one histogram a second,
//! tagged with the scenario and phase. Values are nanoseconds; the log's own maximum column is in milliseconds.

use std::io::{self, Write};
use std::time::{Duration, UNIX_EPOCH};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use crate::run::Outcome;

/// Writes all intervals of the outcomes, in order.
pub(crate) fn write(out: &mut impl Write, started: Duration, outcomes: &[Outcome]) -> io::Result<()> {
    let mut serializer = V2DeflateSerializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment("[Tidewire loadtest: latency from the schedule to arrival, nanoseconds]")
        .with_base_time(UNIX_EPOCH + started)
        .with_start_time(UNIX_EPOCH + started)
        .with_max_value_divisor(1e6)
        .begin_log_with(out, &mut serializer)?;
    for outcome in outcomes {
        for interval in &outcome.intervals {
            let label = outcome.scenario.label(interval.window);
            let start = Duration::from_nanos(interval.from_ns).saturating_sub(started);
            let length = Duration::from_nanos(interval.to_ns - interval.from_ns);
            log.write_histogram(&interval.latency, start, length, Tag::new(&label))
                .map_err(|error| io::Error::other(error.to_string()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::{Interval, histogram};
    use crate::scenario::named;
    use hdrhistogram::Histogram;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};
    use std::collections::BTreeMap;

    #[test]
    fn the_log_reads_back() {
        let interval = |window: usize, from_s: u64, latency_ns: u64| {
            let mut latency = histogram();
            latency.record_n(latency_ns, 1_000).unwrap();
            Interval { window, from_ns: from_s * 1_000_000_000, to_ns: (from_s + 1) * 1_000_000_000, latency }
        };
        let outcome = Outcome {
            scenario: named("slow_reader").unwrap(),
            phases: vec![],
            intervals: vec![interval(0, 1_001, 105_000), interval(1, 1_002, 7_000_000)],
            account: crate::ledger::Account::default(),
            stalled: None,
            churned: None,
            server_before: None,
            refused: 0,
            refusals: BTreeMap::new(),
            ended: vec![],
        };
        let mut bytes = Vec::new();
        write(&mut bytes, Duration::from_secs(1_000), &[outcome]).unwrap();
        let entries: Vec<(String, f64, f64, u64, u64)> = IntervalLogIterator::new(&bytes)
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
        assert_eq!(tags, ["slow_reader/without", "slow_reader/with"]);
        assert_eq!((entries[0].1, entries[1].1), (1.0, 2.0), "seconds from the start of the log");
        assert!((entries[1].2 - 7.0).abs() < 0.01, "milliseconds: {}", entries[1].2);
        assert_eq!((entries[0].3, entries[0].4 / 1_000), (1_000, 105));
    }
}
