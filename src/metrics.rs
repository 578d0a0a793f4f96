//! What a worker measures: counters and latency histograms, owned by its thread and recorded by plain increments. No lock,
//! no atomic, no allocation after [`WorkerMetrics::new`]. Reading is the reader's cost: a worker copies its metrics when
//! asked, and the collector merges the copies.
//!
//! Never does I/O and reads no clock.

use hdrhistogram::Histogram;

pub use counters::{
    By, ConflationCause, Counters, DropReason, Family, FlushCause, HandshakeRefusal, HistoryEviction, Label,
    RelayRefusal, SocketRefusal, TlsFailure,
};

mod counters;
pub mod exposition;
pub mod latency;

/// Longest time that is told apart; longer ones count as this.
pub const TIME_NS_MAX: u64 = 60_000_000_000;

/// Widest fan-out that is told apart; wider ones count as this.
pub const FANOUT_MAX: u64 = 1 << 20;

/// Deepest outbox that is told apart, in bytes; deeper ones count as this.
pub const OUTBOX_DEPTH_BYTES_MAX: u64 = 1 << 30;

/// Significant decimal digits that a histogram keeps: a value is known to within 0.1 %.
const SIGNIFICANT_DIGITS: u8 = 3;

/// What the numbers of a distribution mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Times; the exposition shows them in seconds.
    Nanoseconds,
    /// Sizes.
    Bytes,
    /// Numbers of connections.
    Connections,
}

impl Unit {
    /// The unit's name in `/api/latency`.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Nanoseconds => "ns",
            Self::Bytes => "bytes",
            Self::Connections => "connections",
        }
    }
}

/// What is measured as a distribution. The first five are the way of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Source time to received time: the publisher's clock, its network, and the difference of the clocks.
    SourceToReceived,
    /// Received to flushed: how long samples waited in a batch.
    BatchWait,
    /// Flushed to handed to the kernel: how long frames waited in an outbox.
    OutboxWait,
    /// Received to handed to the kernel: the server's own total.
    ServerTotal,
    /// Flushed by another server to received from the broker here: the broker, and the difference of the clocks.
    BrokerHop,
    /// Received to arrival, by the clients that report it: includes the network and the difference of the clocks.
    Arrival,
    /// How late the event loop ran what was due.
    LoopLag,
    /// How long after its deadline a batch was sealed.
    FlushLateness,
    /// Age of the oldest waiting frame at a write.
    OutboxAge,
    /// Receivers of a frame.
    FanoutWidth,
    /// Bytes that waited in an outbox when a frame came.
    OutboxDepthBytes,
}

impl Stage {
    /// Every stage, in the order of their index.
    pub const ALL: [Self; 11] = [
        Self::SourceToReceived,
        Self::BatchWait,
        Self::OutboxWait,
        Self::ServerTotal,
        Self::BrokerHop,
        Self::Arrival,
        Self::LoopLag,
        Self::FlushLateness,
        Self::OutboxAge,
        Self::FanoutWidth,
        Self::OutboxDepthBytes,
    ];

    /// Position in [`Stage::ALL`].
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The stage's name: in `/api/latency`, as tag of the interval log, in `$sys.latency`, and in the exposition, where
    /// the unit is added.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::SourceToReceived => "source_to_received",
            Self::BatchWait => "batch_wait",
            Self::OutboxWait => "outbox_wait",
            Self::ServerTotal => "server_total",
            Self::BrokerHop => "broker_hop",
            Self::Arrival => "arrival",
            Self::LoopLag => "loop_lag",
            Self::FlushLateness => "flush_lateness",
            Self::OutboxAge => "outbox_age",
            Self::FanoutWidth => "fanout_width",
            Self::OutboxDepthBytes => "outbox_depth",
        }
    }

    /// One sentence that says what is measured.
    #[must_use]
    pub const fn help(self) -> &'static str {
        match self {
            Self::SourceToReceived => {
                "From a sample's source time, by the publisher's clock, to its receipt, by the server's clock."
            }
            Self::BatchWait => "From a sample's receipt to the flush of its batch.",
            Self::OutboxWait => "From the flush of a frame to its handing to the kernel, for each receiver.",
            Self::ServerTotal => {
                "From a sample's receipt to its handing to the kernel, for each receiver: the server's own part."
            }
            Self::BrokerHop => {
                "From the flush of a message's first frame by another server, and so with its wait for the message, to its receipt from the broker, by two clocks."
            }
            Self::Arrival => "From a sample's receipt to its arrival, by the clients that report it.",
            Self::LoopLag => "How late the event loop of a worker ran what was due.",
            Self::FlushLateness => "How long after its deadline a batch was flushed.",
            Self::OutboxAge => "Age of the oldest frame that waited in an outbox, at each write.",
            Self::FanoutWidth => "Connections that a frame was queued for.",
            Self::OutboxDepthBytes => "Bytes of data that waited in an outbox when a frame came.",
        }
    }

    /// What the numbers mean.
    #[must_use]
    pub const fn unit(self) -> Unit {
        match self {
            Self::SourceToReceived
            | Self::BatchWait
            | Self::OutboxWait
            | Self::ServerTotal
            | Self::BrokerHop
            | Self::Arrival
            | Self::LoopLag
            | Self::FlushLateness
            | Self::OutboxAge => Unit::Nanoseconds,
            Self::FanoutWidth => Unit::Connections,
            Self::OutboxDepthBytes => Unit::Bytes,
        }
    }

    /// Largest value that is told apart.
    #[must_use]
    pub const fn value_max(self) -> u64 {
        match self {
            Self::FanoutWidth => FANOUT_MAX,
            Self::OutboxDepthBytes => OUTBOX_DEPTH_BYTES_MAX,
            _ => TIME_NS_MAX,
        }
    }
}

/// The values of one stage: a histogram of fixed range, so that it never resizes, and their exact sum.
#[derive(Debug)]
pub struct Distribution {
    histogram: Histogram<u64>,
    /// 64 bits of nanoseconds would wrap within minutes where a clock is a minute off and samples are many.
    sum: u128,
}

impl Distribution {
    fn new(stage: Stage) -> Self {
        let histogram = Histogram::new_with_bounds(1, stage.value_max(), SIGNIFICANT_DIGITS)
            .expect("every stage's range is valid");
        Self { histogram, sum: 0 }
    }

    /// The values, to three significant digits.
    #[must_use]
    pub const fn histogram(&self) -> &Histogram<u64> {
        &self.histogram
    }

    /// How many values were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.histogram.len()
    }

    /// Sum of the values, exact.
    #[must_use]
    pub const fn sum(&self) -> u128 {
        self.sum
    }

    /// Mean of the values; `None` if there are none.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        (self.count() > 0).then(|| self.sum as f64 / self.count() as f64)
    }

    fn set_to_interval(&mut self, earlier: &Self, later: &Self) {
        self.clone_from(later);
        match (self.histogram.subtract(&earlier.histogram), later.sum.checked_sub(earlier.sum)) {
            (Ok(()), Some(sum)) => self.sum = sum,
            // Counts went down, so `earlier` is of another life, and all that there is came after it.
            _ => self.clone_from(later),
        }
    }

    fn merge(&mut self, other: &Self) {
        self.histogram.add(&other.histogram).expect("histograms of a stage have one range");
        self.sum += other.sum;
    }
}

impl Clone for Distribution {
    fn clone(&self) -> Self {
        Self { histogram: self.histogram.clone(), sum: self.sum }
    }

    fn clone_from(&mut self, source: &Self) {
        self.histogram.set_to(&source.histogram).expect("histograms of a stage have one range");
        self.sum = source.sum;
    }
}

/// The metrics of one worker, or of several after [`WorkerMetrics::merge`].
///
/// Its histograms take about 2 MiB, once. A worker should copy into a buffer that it got from the reader, with
/// `Clone::clone_from`: that took 64 microseconds where `Clone::clone`, which faults new pages in, took 800. A record
/// took 3.5 ns.
#[derive(Debug)]
pub struct WorkerMetrics {
    /// To be incremented in place.
    pub counters: Counters,
    distributions: [Distribution; Stage::ALL.len()],
}

impl WorkerMetrics {
    /// All zero. The only call that allocates.
    #[must_use]
    pub fn new() -> Self {
        Self { counters: Counters::default(), distributions: Stage::ALL.map(Distribution::new) }
    }

    /// Records that `n` times `value` was seen, in the stage's unit. What is over the range counts as its largest value.
    pub fn record(&mut self, stage: Stage, value: u64, n: u64) {
        let value = value.min(stage.value_max());
        let distribution = &mut self.distributions[stage.index()];
        distribution.histogram.saturating_record_n(value, n);
        distribution.sum += u128::from(value) * u128::from(n);
    }

    /// Records the source time of `n` samples, as nanoseconds since the Unix epoch; 0 is a publisher without a clock. A
    /// source time after the receipt is counted apart, since there is no latency to tell.
    pub fn record_source(&mut self, source_ns: u64, received_ns: u64, n: u64) {
        if source_ns == 0 {
            self.counters.samples_without_source_time += n;
        } else if source_ns > received_ns {
            self.counters.samples_source_ahead += n;
        } else {
            self.record(Stage::SourceToReceived, received_ns - source_ns, n);
        }
    }

    /// A frame that another server flushed at `flushed_ns` has come; both times are wall clocks, of which the other may be ahead.
    pub fn record_hop(&mut self, flushed_ns: u64, received_ns: u64) {
        if flushed_ns <= received_ns {
            self.record(Stage::BrokerHop, received_ns - flushed_ns, 1);
        }
    }

    /// The values of a stage.
    #[must_use]
    pub const fn distribution(&self, stage: Stage) -> &Distribution {
        &self.distributions[stage.index()]
    }

    /// Becomes what was recorded between two copies of the same metrics, without allocating. Smallest and largest values
    /// are then known to three digits.
    pub fn set_to_interval(&mut self, earlier: &Self, later: &Self) {
        self.counters.set_to_interval(&earlier.counters, &later.counters);
        for ((interval, earlier), later) in
            self.distributions.iter_mut().zip(&earlier.distributions).zip(&later.distributions)
        {
            interval.set_to_interval(earlier, later);
        }
    }

    /// Adds another worker's metrics, for reading them together.
    pub fn merge(&mut self, other: &Self) {
        self.counters.merge(&other.counters);
        for (mine, theirs) in self.distributions.iter_mut().zip(&other.distributions) {
            mine.merge(theirs);
        }
    }
}

impl Default for WorkerMetrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Clone for WorkerMetrics {
    fn clone(&self) -> Self {
        Self { counters: self.counters.clone(), distributions: self.distributions.clone() }
    }

    fn clone_from(&mut self, source: &Self) {
        self.counters.clone_from(&source.counters);
        self.distributions.clone_from_slice(&source.distributions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn stages_are_a_closed_list_in_order() {
        for (index, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage.index(), index);
        }
        assert_eq!(HashSet::from(Stage::ALL.map(Stage::label)).len(), Stage::ALL.len());
    }

    #[test]
    fn values_are_kept_to_three_digits_and_the_range_saturates() {
        // (stage, recorded, largest seen, recorded into the sum)
        let rows = [
            (Stage::BatchWait, 0, 0, 0),
            (Stage::BatchWait, 1, 1, 1),
            (Stage::BatchWait, 10_000_000, 10_000_000, 10_000_000),
            (Stage::BatchWait, TIME_NS_MAX, TIME_NS_MAX, TIME_NS_MAX),
            (Stage::BatchWait, TIME_NS_MAX + 1, TIME_NS_MAX, TIME_NS_MAX),
            (Stage::BatchWait, u64::MAX, TIME_NS_MAX, TIME_NS_MAX),
            (Stage::FanoutWidth, 1_000, 1_000, 1_000),
            (Stage::FanoutWidth, u64::MAX, FANOUT_MAX, FANOUT_MAX),
            (Stage::OutboxDepthBytes, u64::MAX, OUTBOX_DEPTH_BYTES_MAX, OUTBOX_DEPTH_BYTES_MAX),
        ];
        for (stage, value, largest, sum) in rows {
            let mut metrics = WorkerMetrics::new();
            metrics.record(stage, value, 2);
            let seen = metrics.distribution(stage);
            let within = seen.histogram().max().abs_diff(largest);
            assert!(within <= largest / 1_000, "{stage:?} {value}: {}", seen.histogram().max());
            assert_eq!((seen.count(), seen.sum()), (2, 2 * u128::from(sum)), "{stage:?} {value}");
        }
    }

    #[test]
    fn source_times_without_a_latency_are_counted_apart() {
        // (source, received, latencies, without, ahead)
        let rows = [(0, 5, 0, 3, 0), (6, 5, 0, 0, 3), (5, 5, 3, 0, 0), (4, 5, 3, 0, 0), (0, 0, 0, 3, 0)];
        for (source, received, latencies, without, ahead) in rows {
            let mut metrics = WorkerMetrics::new();
            metrics.record_source(source, received, 3);
            assert_eq!(metrics.distribution(Stage::SourceToReceived).count(), latencies);
            assert_eq!(metrics.counters.samples_without_source_time, without);
            assert_eq!(metrics.counters.samples_source_ahead, ahead);
        }
    }

    #[test]
    fn recording_and_copying_do_not_allocate() {
        let mut metrics = WorkerMetrics::new();
        let (mut copy, mut interval) = (WorkerMetrics::new(), WorkerMetrics::new());
        let info = allocation_counter::measure(|| {
            for value in [0, 1, 1_000_000, u64::MAX] {
                for stage in Stage::ALL {
                    metrics.record(stage, value, 7);
                }
            }
            metrics.counters.connections_closed[crate::close::CloseReason::Drain] += 1;
            copy.clone_from(&metrics);
            copy.merge(&metrics);
            interval.set_to_interval(&metrics, &copy);
        });
        assert_eq!(info.count_total, 0);
    }

    #[test]
    fn an_interval_after_a_restart_is_all_that_there_is() {
        let (mut earlier, mut later, mut interval) =
            (WorkerMetrics::new(), WorkerMetrics::new(), WorkerMetrics::new());
        earlier.record(Stage::BatchWait, 7, 5);
        later.record(Stage::BatchWait, 7, 2);
        interval.set_to_interval(&earlier, &later);
        let seen = interval.distribution(Stage::BatchWait);
        assert_eq!((seen.count(), seen.sum()), (2, 14));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Merged metrics are those that one worker would have had alone; an interval is what was merged in.
        #[test]
        fn merging_is_recording_together(
            records in prop::collection::vec((0..Stage::ALL.len(), any::<u64>(), 1_u64..1_000, any::<bool>()), 0..60),
        ) {
            let (mut left, mut right, mut both) =
                (WorkerMetrics::new(), WorkerMetrics::new(), WorkerMetrics::new());
            for (stage, value, n, to_left) in records {
                let stage = Stage::ALL[stage];
                let side = if to_left { &mut left } else { &mut right };
                side.record(stage, value, n);
                side.counters.writes += n;
                both.record(stage, value, n);
                both.counters.writes += n;
            }
            let mut merged = both.clone();
            merged.clone_from(&left);
            merged.merge(&right);
            // What was recorded between the left alone and both is the right.
            let mut interval = WorkerMetrics::new();
            interval.set_to_interval(&left, &merged);
            for (seen, expected) in [(&merged, &both), (&interval, &right)] {
                prop_assert_eq!(&seen.counters, &expected.counters);
                for stage in Stage::ALL {
                    let (seen, expected) = (seen.distribution(stage), expected.distribution(stage));
                    prop_assert_eq!(seen.histogram(), expected.histogram());
                    prop_assert_eq!(seen.sum(), expected.sum());
                }
            }
        }
    }
}
