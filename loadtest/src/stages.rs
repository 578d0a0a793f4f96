//! The server's own histograms: read from `/api/latency.hlog`, and what was recorded between two readings. A server
//! without that page has none.

use std::collections::BTreeMap;
use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::Deserializer;
use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

use crate::dialect::Dialect;
use crate::measure::histogram;
use crate::pages;
use crate::ws::Endpoint;

/// Histograms by stage, since the server's start or between two readings.
#[derive(Clone, Debug, Default)]
pub(crate) struct ServerStages(pub BTreeMap<String, Histogram<u64>>);

/// A page as it came. Reading it apart is left for when nothing is measured.
#[derive(Clone, Debug, Default)]
pub(crate) struct Page(Vec<u8>);

impl Page {
    /// The page of a server that speaks this; empty if it has none, or none comes: then there is one table less.
    pub(crate) fn of(endpoint: &Endpoint, dialect: Dialect) -> Self {
        match dialect {
            Dialect::Tidewire => Self::fetch(endpoint).unwrap_or_default(),
            Dialect::Raw | Dialect::Bare | Dialect::Nats | Dialect::Mqtt | Dialect::Json => Self::default(),
        }
    }

    /// Fetches it; empty if the server has none.
    fn fetch(endpoint: &Endpoint) -> io::Result<Self> {
        pages::fetch(endpoint, "/api/latency.hlog").map(Self)
    }
}

impl ServerStages {
    /// What the page says; nothing if it is not one.
    pub(crate) fn of(page: &Page) -> Self {
        parse_response(&page.0).unwrap_or_default()
    }

    /// What was recorded after `earlier`. A stage whose counts went down is of another life of the server: all of it is new.
    pub(crate) fn since(mut self, earlier: &Self) -> Self {
        for (stage, histogram) in &mut self.0 {
            if let Some(before) = earlier.0.get(stage) {
                let mut rest = histogram.clone();
                if rest.subtract(before).is_ok() {
                    *histogram = rest;
                }
            }
        }
        self
    }
}

/// The page in an HTTP response.
fn parse_response(response: &[u8]) -> Option<ServerStages> {
    parse(pages::body(response)?)
}

/// Sums the intervals of each tag.
fn parse(log: &[u8]) -> Option<ServerStages> {
    let mut stages = BTreeMap::new();
    let mut deserializer = Deserializer::new();
    for entry in IntervalLogIterator::new(log) {
        let LogEntry::Interval(interval) = entry.ok()? else { continue };
        let Some(tag) = interval.tag() else { continue };
        let bytes = BASE64.decode(interval.encoded_histogram()).ok()?;
        let part: Histogram<u64> = deserializer.deserialize(&mut bytes.as_slice()).ok()?;
        let sum: &mut Histogram<u64> = stages.entry(tag.as_str().to_owned()).or_insert_with(histogram);
        sum.add(part).ok()?;
    }
    Some(ServerStages(stages))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use tidewire::clock::Clock;
    use tidewire::metrics::latency::LatencyLog;
    use tidewire::metrics::{Stage, WorkerMetrics};

    #[test]
    fn what_was_recorded_between_two_readings() {
        let now = Clock::new().now();
        let mut log = LatencyLog::new(now);
        let mut metrics = WorkerMetrics::new();
        metrics.record(Stage::BatchWait, 5_000_000, 10);
        log.record(&metrics, now.plus(Duration::from_secs(10)));
        metrics.record(Stage::BatchWait, 7_000_000, 5);
        let before = parse(&log.render(&metrics, now.plus(Duration::from_secs(11)))).unwrap();
        assert_eq!(before.0["batch_wait"].len(), 15);
        metrics.record(Stage::BatchWait, 1_000_000, 2);
        metrics.record(Stage::OutboxWait, 9_000, 1);
        let page = log.render(&metrics, now.plus(Duration::from_secs(12)));
        let response = [b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n", page.as_slice()].concat();
        let window = parse_response(&response).unwrap().since(&before);
        let batch_wait = &window.0["batch_wait"];
        assert_eq!((batch_wait.len(), batch_wait.value_at_quantile(0.5) / 1_000), (2, 1_000));
        assert_eq!(window.0["outbox_wait"].len(), 1);
        // A server that was started anew has counted less.
        let anew = parse(&LatencyLog::new(now).render(&WorkerMetrics::new(), now)).unwrap();
        assert!(anew.since(&before).0.is_empty());
    }

    #[test]
    fn a_server_that_answers_something_else_is_not_waited_for() {
        let url = crate::fake::serve(crate::fake::Fault::Sound);
        let page = Page::fetch(&Endpoint::parse(&url).unwrap()).unwrap();
        assert!(page.0.starts_with(b"HTTP/1.1 101") && ServerStages::of(&page).0.is_empty());
    }

    #[test]
    fn a_server_without_the_page_has_no_stages() {
        for response in [
            &b"HTTP/1.1 404 Not Found\r\n\r\n"[..],
            b"",
            b"HTTP/1.1 200 OK\r\n\r\n<html>",
            b"SSH-2.0\r\n\r\n",
        ] {
            assert!(parse_response(response).is_none_or(|it| it.0.is_empty()), "{response:?}");
        }
    }
}
