//! What is measured of a run: windows of time, histograms of latency, counts. Filled by one thread each, merged at the
//! end. Never an array of samples: a histogram of three significant digits has the same size after an hour.

use std::sync::mpsc::SyncSender;

use hdrhistogram::Histogram;

use crate::data::{FrameHead, Run};

/// Longest latency told apart, 100 s; longer ones count as that.
const LATENCY_NS_MAX: u64 = 100_000_000_000;

/// Length of the intervals of the histogram log.
const INTERVAL_NS: u64 = 1_000_000_000;

/// A histogram of nanoseconds.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3)
        .unwrap_or_else(|_| unreachable!("constant bounds are valid"))
}

/// Measured time, from inclusive to exclusive, by the generator's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// Start.
    pub from_ns: u64,
    /// End.
    pub to_ns: u64,
}

impl Window {
    /// Whether the instant is measured.
    pub(crate) fn contains(&self, instant_ns: u64) -> bool {
        (self.from_ns..self.to_ns).contains(&instant_ns)
    }
}

/// Which window an instant belongs to. A message belongs to the window of its scheduled instant, however late it comes.
pub(crate) fn window_of(windows: &[Window], instant_ns: u64) -> Option<usize> {
    windows.iter().position(|window| window.contains(instant_ns))
}

/// Latencies of one interval of the log.
#[derive(Debug)]
pub(crate) struct Interval {
    /// The window that the messages were scheduled in.
    pub window: usize,
    /// Start of the interval, by arrival.
    pub from_ns: u64,
    /// Its end.
    pub to_ns: u64,
    /// Schedule to arrival.
    pub latency: Histogram<u64>,
}

/// Parts of the latency, taken from the stamps in the frames of a few subscribers: all receive the same frames. Meaningful
/// where server and generator share a clock.
#[derive(Debug)]
pub(crate) struct Stages {
    /// Scheduled to read by the server.
    pub to_received: Histogram<u64>,
    /// Read by the server to sealed: the wait in the batch.
    pub batch_wait: Histogram<u64>,
    /// Sealed to read by the subscriber.
    pub delivery: Histogram<u64>,
}

impl Stages {
    fn new() -> Self {
        Self { to_received: histogram(), batch_wait: histogram(), delivery: histogram() }
    }
}

/// What the subscribers of a thread saw of one window.
#[derive(Debug)]
pub(crate) struct Seen {
    /// Samples that arrived within the window.
    pub arrived: u64,
    /// Parts of the latency.
    pub stages: Stages,
}

impl Seen {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        Self { arrived: 0, stages: Stages::new() }
    }

    /// Adds what another thread saw.
    pub(crate) fn merge(&mut self, other: &Self) {
        self.arrived += other.arrived;
        let mine = [&mut self.stages.to_received, &mut self.stages.batch_wait, &mut self.stages.delivery];
        let theirs = [&other.stages.to_received, &other.stages.batch_wait, &other.stages.delivery];
        for (mine, theirs) in mine.into_iter().zip(theirs) {
            // Same bounds, so adding cannot fail.
            let _ = mine.add(theirs);
        }
    }
}

/// The recorder of one thread of subscribers.
#[derive(Debug)]
pub(crate) struct Recorder {
    windows: Vec<Window>,
    seen: Vec<Seen>,
    /// One for each window: latencies since `interval_from_ns`.
    open: Vec<Histogram<u64>>,
    interval_from_ns: u64,
    intervals: SyncSender<Interval>,
    /// Of the messages of a read, one is recorded and all are counted.
    sparse: bool,
    /// Of the message being read.
    arrival_ns: u64,
    runs: Vec<Run>,
}

impl Recorder {
    /// Sends a histogram per second to `intervals`.
    pub(crate) fn new(windows: &[Window], now_ns: u64, intervals: SyncSender<Interval>) -> Self {
        Self {
            windows: windows.to_vec(),
            seen: windows.iter().map(|_| Seen::new()).collect(),
            open: windows.iter().map(|_| histogram()).collect(),
            interval_from_ns: now_ns,
            intervals,
            sparse: false,
            arrival_ns: now_ns,
            runs: Vec::new(),
        }
    }

    /// Counts every sample, but records the latency of one in each read: for closed loops, whose latency is a queue's, and
    /// in which tens of millions of samples a second may come.
    pub(crate) fn sparse(self) -> Self {
        Self { sparse: true, ..self }
    }

    /// Whether not every sample need be recorded.
    pub(crate) fn is_sparse(&self) -> bool {
        self.sparse
    }

    /// So many samples have arrived.
    pub(crate) fn count(&mut self, samples: u64) {
        if let Some(window) = window_of(&self.windows, self.arrival_ns) {
            self.seen[window].arrived += samples;
        }
    }

    /// What follows arrived now.
    pub(crate) fn set_arrival(&mut self, now_ns: u64) {
        self.arrival_ns = now_ns;
    }

    /// Samples of a frame.
    #[inline]
    pub(crate) fn record(&mut self, run: Run) {
        if let Some(window) = window_of(&self.windows, run.source_ns) {
            let latency_ns = self.arrival_ns.saturating_sub(run.source_ns).max(1);
            self.open[window].saturating_record_n(latency_ns, run.count);
        }
    }

    /// Keeps samples of a frame of the watched subscriber until its head is known.
    pub(crate) fn watch(&mut self, run: Run) {
        self.runs.push(run);
    }

    /// A frame has been read.
    pub(crate) fn end_frame(&mut self, head: &FrameHead) {
        self.count(head.count);
        for run in self.runs.drain(..) {
            let Some(window) = window_of(&self.windows, run.source_ns) else { continue };
            let Stages { to_received, batch_wait, delivery } = &mut self.seen[window].stages;
            for (stage, to, from) in [
                (to_received, run.received_ns, run.source_ns),
                (batch_wait, head.flushed_ns, run.received_ns),
                (delivery, self.arrival_ns, head.flushed_ns),
            ] {
                stage.saturating_record_n(to.saturating_sub(from).max(1), run.count);
            }
        }
    }

    /// Closes the interval if it is over.
    pub(crate) fn rotate(&mut self, now_ns: u64) {
        if now_ns.saturating_sub(self.interval_from_ns) >= INTERVAL_NS {
            self.close_interval(now_ns);
        }
    }

    fn close_interval(&mut self, now_ns: u64) {
        for (window, open) in self.open.iter_mut().enumerate().filter(|(_, open)| !open.is_empty()) {
            let latency = std::mem::replace(open, histogram());
            let interval = Interval { window, from_ns: self.interval_from_ns, to_ns: now_ns, latency };
            // Fails when the receiver is gone: then the run was given up and nobody reads it.
            let _ = self.intervals.send(interval);
        }
        self.interval_from_ns = now_ns;
    }

    /// Closes the last interval: one entry for each window.
    pub(crate) fn finish(mut self, now_ns: u64) -> Vec<Seen> {
        self.close_interval(now_ns);
        self.seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;

    #[test]
    fn a_message_counts_in_the_window_of_its_schedule() {
        let windows = [Window { from_ns: 100, to_ns: 200 }, Window { from_ns: 300, to_ns: 400 }];
        let (sender, intervals) = sync_channel(8);
        let mut recorder = Recorder::new(&windows, 0, sender);
        let head = FrameHead { count: 2, flushed_ns: 340, ..FrameHead::default() };
        recorder.set_arrival(350);
        // (scheduled, latency expected in the log)
        for source_ns in [99, 100, 199, 200, 300, 399, 400] {
            recorder.record(Run { source_ns, received_ns: 330, count: 2 });
        }
        recorder.watch(Run { source_ns: 310, received_ns: 330, count: 2 });
        recorder.end_frame(&head);
        recorder.rotate(500);
        assert!(intervals.try_recv().is_err(), "an interval is a second");
        let seen = recorder.finish(600);
        let got: Vec<(usize, u64, u64, u64)> = intervals
            .iter()
            .map(|it| (it.window, it.latency.len(), it.latency.min(), it.latency.max()))
            .collect();
        assert_eq!(got, [(0, 4, 151, 250), (1, 4, 1, 50)]);
        assert_eq!(seen.iter().map(|it| it.arrived).collect::<Vec<_>>(), [0, 2], "by arrival");
        let stages = &seen[1].stages;
        assert_eq!((stages.to_received.max(), stages.batch_wait.max(), stages.delivery.max()), (20, 10, 10));
    }
}
