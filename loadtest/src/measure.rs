//! What is measured of a run: windows of time, histograms of latency, counts. Filled by one thread each, merged at the
//! end. Never an array of samples: a histogram of three significant digits has the same size after an hour.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;

use hdrhistogram::Histogram;

use crate::data::{FrameError, FrameHead, Run, SeenFrames, read_frame};

/// Longest latency told apart, 100 s; longer ones count as that.
const LATENCY_NS_MAX: u64 = 100_000_000_000;

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

/// When intervals end: at the start of each window, then every `length_ns`, and at its end.
pub(crate) fn boundaries(windows: &[Window], length_ns: u64) -> Vec<u64> {
    let step = usize::try_from(length_ns).unwrap_or(usize::MAX).max(1);
    let within = |window: &Window| {
        let Window { from_ns, to_ns } = *window;
        let inner = (from_ns..to_ns).step_by(step).skip(1);
        // A rest shorter than half of an interval joins the one before.
        [from_ns].into_iter().chain(inner.filter(move |at| at + length_ns / 2 <= to_ns)).chain([to_ns])
    };
    let mut all: Vec<u64> = windows.iter().flat_map(within).collect();
    all.dedup();
    all
}

/// What threads count together, for figures while the run goes on.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Messages that went out.
    pub messages: AtomicU64,
    /// Samples announced as lost to healthy subscribers.
    pub announced: AtomicU64,
}

/// Latencies of one interval of the log.
#[derive(Debug)]
pub(crate) struct Interval {
    /// Of the healthy subscribers, or of which others.
    pub others: Option<&'static str>,
    /// The window that the messages were scheduled in; of others, the one that they arrived in.
    pub window: usize,
    /// Start of the interval, by arrival.
    pub from_ns: u64,
    /// Its end.
    pub to_ns: u64,
    /// Samples that arrived in it.
    pub arrived: u64,
    /// Schedule to arrival, of those that were recorded.
    pub latency: Histogram<u64>,
}

/// The recorder of one thread of subscribers.
#[derive(Debug)]
pub(crate) struct Recorder {
    /// None for healthy subscribers.
    others: Option<&'static str>,
    windows: Vec<Window>,
    /// One for each window: samples that arrived within it.
    arrived: Vec<u64>,
    /// One for each window: latencies since `interval_from_ns`.
    open: Vec<Histogram<u64>>,
    /// And the samples that arrived since then.
    arrived_since: Vec<u64>,
    interval_from_ns: u64,
    /// When intervals end; those from `next_boundary` on are still to come.
    boundaries: Vec<u64>,
    next_boundary: usize,
    intervals: SyncSender<Interval>,
    counters: Arc<Counters>,
    /// Of the messages of a read, or the samples of a frame, one is recorded and all are counted.
    sparse: Option<SeenFrames>,
    /// Of the message being read.
    arrival_ns: u64,
}

impl Recorder {
    /// Sends a histogram to `intervals` at each of the `boundaries`.
    pub(crate) fn new(
        windows: &[Window],
        boundaries: Vec<u64>,
        now_ns: u64,
        intervals: SyncSender<Interval>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            others: None,
            windows: windows.to_vec(),
            arrived: vec![0; windows.len()],
            open: windows.iter().map(|_| histogram()).collect(),
            arrived_since: vec![0; windows.len()],
            interval_from_ns: now_ns,
            boundaries,
            next_boundary: 0,
            intervals,
            counters,
            sparse: None,
            arrival_ns: now_ns,
        }
    }

    /// Counts every sample, but records the latency of one in each read or frame: for closed loops, whose latency is a queue's, and
    /// in which tens of millions of samples a second may come.
    pub(crate) fn sparse(self) -> Self {
        Self { sparse: Some(SeenFrames::default()), ..self }
    }

    /// Whether not every sample need be recorded.
    pub(crate) fn is_sparse(&self) -> bool {
        self.sparse.is_some()
    }

    /// So many samples have arrived.
    pub(crate) fn count(&mut self, samples: u64) {
        if let Some(window) = window_of(&self.windows, self.arrival_ns) {
            self.arrived[window] += samples;
            self.arrived_since[window] += samples;
        }
    }

    /// The same for subscribers that are not healthy: how old samples are when they arrive, in the window of the arrival,
    /// since a sample may be older than that.
    pub(crate) fn of_ages(
        others: &'static str,
        windows: &[Window],
        boundaries: Vec<u64>,
        now_ns: u64,
        intervals: SyncSender<Interval>,
    ) -> Self {
        let own = Arc::default();
        Self { others: Some(others), ..Self::new(windows, boundaries, now_ns, intervals, own) }
    }

    /// What follows arrived now.
    pub(crate) fn set_arrival(&mut self, now_ns: u64) {
        self.arrival_ns = now_ns;
    }

    /// Samples of a frame.
    #[inline]
    pub(crate) fn record(&mut self, run: Run) {
        let belongs_ns = if self.others.is_none() { run.source_ns } else { self.arrival_ns };
        if let Some(window) = window_of(&self.windows, belongs_ns) {
            let latency_ns = self.arrival_ns.saturating_sub(run.source_ns).max(1);
            self.open[window].saturating_record_n(latency_ns, run.count);
        }
    }

    /// Counts and records the samples of a frame.
    pub(crate) fn record_frame(&mut self, frame: &[u8]) -> Result<FrameHead, FrameError> {
        let head = if let Some(seen) = &mut self.sparse {
            let (head, newest) = seen.read(frame)?;
            self.record(newest);
            head
        } else {
            read_frame(frame, |run| self.record(run))?
        };
        self.count(head.count);
        Ok(head)
    }

    /// So many samples were announced as lost.
    pub(crate) fn on_gap(&self, count: u64) {
        self.counters.announced.fetch_add(count, Ordering::Relaxed);
    }

    /// Closes the intervals that are over.
    pub(crate) fn rotate(&mut self, now_ns: u64) {
        while let Some(&end_ns) = self.boundaries.get(self.next_boundary).filter(|&&end_ns| end_ns <= now_ns)
        {
            self.next_boundary += 1;
            self.close_interval(end_ns.max(self.interval_from_ns));
        }
    }

    fn close_interval(&mut self, now_ns: u64) {
        for (window, (open, arrived)) in self.open.iter_mut().zip(&mut self.arrived_since).enumerate() {
            let arrived = std::mem::take(arrived);
            if open.is_empty() && arrived == 0 {
                continue;
            }
            let latency = std::mem::replace(open, histogram());
            let (others, from_ns) = (self.others, self.interval_from_ns);
            let interval = Interval { others, window, from_ns, to_ns: now_ns, arrived, latency };
            // Fails when the receiver is gone: then the run was given up and nobody reads it.
            let _ = self.intervals.send(interval);
        }
        self.interval_from_ns = now_ns;
    }

    /// Closes the last interval: samples that arrived within each window.
    pub(crate) fn finish(mut self, now_ns: u64) -> Vec<u64> {
        self.close_interval(now_ns);
        self.arrived
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;

    #[test]
    fn intervals_end_within_windows() {
        let windows = [Window { from_ns: 5, to_ns: 30 }, Window { from_ns: 30, to_ns: 53 }];
        assert_eq!(boundaries(&windows, 10), [5, 15, 25, 30, 40, 53]);
        assert_eq!(boundaries(&windows[..1], 100), [5, 30]);
    }

    #[test]
    fn a_message_counts_in_the_window_of_its_schedule() {
        let windows = [Window { from_ns: 100, to_ns: 200 }, Window { from_ns: 300, to_ns: 400 }];
        let (sender, intervals) = sync_channel(8);
        let mut recorder = Recorder::new(&windows, vec![600], 0, sender, Arc::default());
        recorder.set_arrival(350);
        // (scheduled, latency expected in the log)
        for source_ns in [99, 100, 199, 200, 300, 399, 400] {
            recorder.record(Run { source_ns, count: 2 });
        }
        recorder.count(2);
        recorder.rotate(500);
        assert!(intervals.try_recv().is_err(), "the interval is not over");
        let arrived = recorder.finish(600);
        let got: Vec<(usize, u64, u64, u64, u64)> = intervals
            .iter()
            .map(|it| (it.window, it.arrived, it.latency.len(), it.latency.min(), it.latency.max()))
            .collect();
        assert_eq!(got, [(0, 0, 4, 151, 250), (1, 2, 4, 1, 50)]);
        assert_eq!(arrived, [0, 2], "by arrival");
    }

    #[test]
    fn an_age_counts_in_the_window_of_its_arrival() {
        let windows = [Window { from_ns: 100, to_ns: 200 }];
        let (sender, intervals) = sync_channel(8);
        let mut recorder = Recorder::of_ages("slow", &windows, vec![], 0, sender);
        for (arrival_ns, source_ns) in [(150, 20), (199, 99), (200, 150)] {
            recorder.set_arrival(arrival_ns);
            recorder.record(Run { source_ns, count: 1 });
        }
        recorder.finish(300);
        let got: Vec<_> =
            intervals.iter().map(|it| (it.others, it.latency.min(), it.latency.max())).collect();
        assert_eq!(got, [(Some("slow"), 100, 130)]);
    }
}
