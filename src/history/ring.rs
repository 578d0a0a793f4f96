//! What is kept of one stream: its newest frames, as subscribers of the plainest class get them, bounded by bytes, age and samples.
//! Pure. The newest frame stays, whatever its age.
//!
//! Frames are in the order of their sequences. There may be holes between them, where they come from elsewhere, and none inside.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;

use super::{Begin, Standing, Start, cut};
use crate::clock::{Now, nanos};
use crate::config::{BatchLimits, Bounds};
use crate::metrics::{By, HistoryEviction};
use crate::wire::control::ReplayOutcome;
use crate::wire::cursor::Lineage;
use crate::wire::encode::FrameHeader;
use crate::wire::{ChannelId, Frame, Seq, TIMED_SAMPLES, seal};

/// What a frame takes beside its bytes: its entry, and the count of those who share them.
const OVERHEAD_BYTES: usize = size_of::<Kept>() + 24;

/// Places for frames that an empty ring may hold.
const SPARE_FRAMES: usize = 16;

/// Parts of the longest age: frames that are put together are no further apart, so that nothing is kept for much longer than
/// it may be.
const AGE_PARTS: u32 = 8;

/// A sealed frame of protobuf that leaves nothing out.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The whole WebSocket message.
    pub bytes: Bytes,
    /// Of them, those before the blocks.
    pub head_bytes: u8,
    /// Sequence of its first sample.
    pub first: Seq,
    /// Its samples, one after the other.
    pub count: u32,
    /// When it was sealed, nanoseconds since the Unix epoch.
    pub flushed_ns: u64,
    /// When its newest sample was received, likewise.
    pub received_ns: u64,
    /// When it was sealed.
    at: Instant,
    /// When the oldest of those was sealed that it was put together from.
    since: Instant,
}

/// Whose frames these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamOf {
    /// Its number.
    pub channel: ChannelId,
    /// The life of its sequence.
    pub epoch: u32,
}

impl Kept {
    /// A frame that was sealed here, of protobuf and with all samples.
    #[must_use]
    pub fn of(frame: &Frame, now: Now) -> Self {
        let wall = |at| now.wall_ns.saturating_sub(nanos(now.at.saturating_duration_since(at)));
        Self {
            bytes: frame.bytes.clone(),
            head_bytes: frame.head_bytes,
            first: frame.first,
            count: frame.count,
            flushed_ns: wall(frame.flushed_at),
            received_ns: wall(frame.received_at[TIMED_SAMPLES - 1]),
            at: frame.flushed_at,
            since: frame.flushed_at,
        }
    }

    /// A frame that was sealed elsewhere, or before: its blocks get headers of this server.
    #[must_use]
    pub fn from_body(
        of: StreamOf,
        first: Seq,
        count: u32,
        [flushed_ns, received_ns]: [u64; 2],
        body: &[u8],
        now: Now,
    ) -> Self {
        let at = instant_of(flushed_ns, now);
        Self::sealed(of, cut::joined(std::iter::once(body)), first, count, [flushed_ns, received_ns], [at; 2])
    }

    /// When it was sealed, and when its newest sample was received, in nanoseconds since the Unix epoch.
    #[must_use]
    pub const fn times_ns(&self) -> [u64; 2] {
        [self.flushed_ns, self.received_ns]
    }

    fn sealed(
        of: StreamOf,
        buffer: Vec<u8>,
        first: Seq,
        count: u32,
        [flushed_ns, received_ns]: [u64; 2],
        [since, at]: [Instant; 2],
    ) -> Self {
        let StreamOf { channel, epoch } = of;
        let (bytes, head_bytes) =
            seal::seal(buffer, &FrameHeader { channel, epoch, seq: first, count, flushed_ns });
        Self { bytes, head_bytes, first, count, flushed_ns, received_ns, at, since }
    }

    /// Sequence of its last sample.
    #[must_use]
    pub fn last(&self) -> Seq {
        self.first + u64::from(self.count) - 1
    }

    /// Its blocks.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.bytes[usize::from(self.head_bytes)..]
    }

    /// As it goes into outboxes.
    #[must_use]
    pub fn frame(&self, channel: ChannelId, now: Now) -> Frame {
        Frame {
            bytes: self.bytes.clone(),
            channel,
            first: self.first,
            last: self.last(),
            count: self.count,
            head_bytes: self.head_bytes,
            replayed: true,
            flushed_at: now.at,
            received_at: [now.at; TIMED_SAMPLES],
        }
    }

    const fn cost(&self) -> usize {
        self.bytes.len() + OVERHEAD_BYTES
    }
}

/// The monotonic instant of a wall time, as far as there is one.
#[must_use]
pub fn instant_of(wall_ns: u64, now: Now) -> Instant {
    let ago = std::time::Duration::from_nanos(now.wall_ns.saturating_sub(wall_ns));
    now.at.checked_sub(ago).unwrap_or(now.at)
}

/// What there is from a sequence on.
#[derive(Clone, Debug)]
pub enum Found {
    /// A frame that begins with it.
    Frame {
        /// The frame.
        kept: Kept,
        /// Whether others who come this way get the same.
        shared: bool,
    },
    /// Nothing up to this sequence, and something behind it.
    Gone(Seq),
    /// Nothing.
    End,
}

/// What is kept of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Sequence of the oldest sample.
    pub first: Seq,
    /// Sequence of the newest sample.
    pub last: Seq,
    /// Samples.
    pub samples: u64,
    /// Bytes.
    pub bytes: usize,
    /// Age of the oldest frame, in milliseconds.
    pub age_ms: u64,
}

/// See the module's page.
#[derive(Debug)]
pub struct Ring {
    of: StreamOf,
    bounds: Bounds,
    lineage: Lineage,
    frames: VecDeque<Kept>,
    bytes: usize,
    samples: u64,
    /// When it was used last, and the place that it has in the order of uses.
    pub(super) used: u64,
    pub(super) placed: u64,
}

impl Ring {
    /// An empty ring, used `now` in the order of uses.
    #[must_use]
    pub const fn new(of: StreamOf, bounds: Bounds, lineage: Lineage, used: u64) -> Self {
        Self { of, bounds, lineage, frames: VecDeque::new(), bytes: 0, samples: 0, used, placed: used }
    }

    /// Bytes of its frames, with what each takes beside its own.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Its frames.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.frames.len()
    }

    /// Adds a frame behind the others, and lets go what is too much then. One that is not behind them is not taken.
    pub fn push(&mut self, kept: Kept, now: Instant, evicted: &mut By<HistoryEviction>) {
        let newest = self.frames.back().map_or(0, Kept::last);
        if kept.count == 0 || kept.first <= newest {
            return;
        }
        self.bytes += kept.cost();
        self.samples += u64::from(kept.count);
        self.frames.push_back(kept);
        self.trim(now, evicted);
    }

    /// Lets go what is too much or too old; the newest frame stays.
    pub fn trim(&mut self, now: Instant, evicted: &mut By<HistoryEviction>) {
        while self.frames.len() > 1
            && let Some(oldest) = self.frames.front()
        {
            let cause = if self.bytes > self.bounds.bytes_max {
                HistoryEviction::Bytes
            } else if self.samples > self.bounds.samples_max {
                HistoryEviction::Samples
            } else if now.saturating_duration_since(oldest.at) > self.bounds.age_max {
                HistoryEviction::Age
            } else {
                break;
            };
            evicted[cause] += 1;
            self.bytes -= oldest.cost();
            self.samples -= u64::from(oldest.count);
            self.frames.pop_front();
        }
        // What was full once must not hold the room for ever: nobody counts it.
        if self.frames.capacity() > 4 * self.frames.len() + SPARE_FRAMES {
            self.frames.shrink_to(2 * self.frames.len());
        }
    }

    /// Lets everything go.
    pub fn clear(&mut self) {
        self.frames = VecDeque::new();
        self.bytes = 0;
        self.samples = 0;
    }

    /// Where a connection begins.
    #[must_use]
    pub fn begin(&self, start: &Start, at: Standing, now: Now) -> Begin {
        let head = at.next - 1;
        // What is not in a frame yet will come.
        let oldest = self.frames.front().map_or(at.sealed + 1, |oldest| oldest.first);
        let (seq, reset) = match start {
            Start::Since(cursor) => {
                let seq = cursor.as_ref().and_then(|cursor| cursor.seq_in(self.of.epoch, &self.lineage));
                match seq.filter(|seq| *seq <= head || at.lags) {
                    Some(seq) => (seq + 1, false),
                    None => (oldest, true),
                }
            }
            Start::Last(samples) => (at.next.saturating_sub(*samples).max(1), false),
            Start::LastMs(ms) => {
                let since_ns = now.wall_ns.saturating_sub(ms.saturating_mul(1_000_000));
                (self.received_since(since_ns).unwrap_or(at.sealed + 1), false)
            }
        };
        let kept = self.samples_from(seq) + (head + 1).saturating_sub(seq.max(at.sealed + 1));
        let outcome = match reset {
            true => ReplayOutcome::Reset,
            false if kept < at.next.saturating_sub(seq) => ReplayOutcome::Partial,
            false => ReplayOutcome::Replayed,
        };
        Begin { seq, outcome, samples: kept }
    }

    /// The frame that begins with `from`. Small ones that follow each other become one, in their place, so that everybody who comes
    /// this way shares it.
    pub fn find(&mut self, from: Seq, limits: &BatchLimits) -> Found {
        let index = self.frames.partition_point(|kept| kept.last() < from);
        let Some(kept) = self.frames.get(index) else { return Found::End };
        if kept.first > from {
            return Found::Gone(kept.first - 1);
        }
        if kept.first < from {
            let last = kept.last();
            return cut_at(self.of, kept, from)
                .map_or(Found::Gone(last), |kept| Found::Frame { kept, shared: false });
        }
        self.merge(index, limits);
        Found::Frame { kept: self.frames[index].clone(), shared: true }
    }

    /// If what comes after `from` is gone already, the beginning of the newest frames that are no more than that; of one at least.
    #[must_use]
    pub fn overtakes(&self, from: Seq, bytes_max: usize, frames_max: usize) -> Option<Seq> {
        let mut begin = self.frames.front().map(|oldest| oldest.first).filter(|first| *first > from)?;
        let mut bytes = 0;
        for kept in self.frames.iter().rev().take(frames_max.max(1)) {
            bytes += kept.bytes.len();
            if bytes > bytes_max && bytes > kept.bytes.len() {
                break;
            }
            begin = kept.first;
        }
        Some(begin)
    }

    /// What is kept; `None` if nothing is.
    #[must_use]
    pub fn summary(&self, now: Now) -> Option<Summary> {
        let (oldest, newest) = (self.frames.front()?, self.frames.back()?);
        let age = now.at.saturating_duration_since(oldest.since);
        Some(Summary {
            first: oldest.first,
            last: newest.last(),
            samples: self.samples,
            bytes: self.bytes,
            age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
        })
    }

    fn samples_from(&self, from: Seq) -> u64 {
        let index = self.frames.partition_point(|kept| kept.last() < from);
        self.frames.range(index..).map(|kept| kept.last() + 1 - kept.first.max(from)).sum()
    }

    /// The first sample that was received at that time or later.
    fn received_since(&self, since_ns: u64) -> Option<Seq> {
        let kept = self.frames.iter().find(|kept| kept.received_ns >= since_ns)?;
        Some((kept.first + cut::received_before(kept.body(), since_ns)).min(kept.last()))
    }

    /// Puts the frames behind `index` into it, as far as they make one of full size. One that is half full stays as it is: to copy it
    /// again for each that comes would cost more than the frames that it saves.
    fn merge(&mut self, index: usize, limits: &BatchLimits) {
        let first = &self.frames[index];
        let body_bytes_max = limits.frame_bytes_max;
        if first.body().len() > body_bytes_max / 2 {
            return;
        }
        let (mut bytes, mut count, mut last) = (first.body().len(), first.count, first.last());
        let age_max = self.bounds.age_max / AGE_PARTS;
        let mut end = index + 1;
        while let Some(next) = self.frames.get(end)
            && next.first == last + 1
            && bytes + next.body().len() <= body_bytes_max
            && (count + next.count) as usize <= limits.frame_samples_max
            && next.at.saturating_duration_since(first.since) <= age_max
        {
            bytes += next.body().len();
            count += next.count;
            last = next.last();
            end += 1;
        }
        if end == index + 1 {
            return;
        }
        let parts = self.frames.range(index..end);
        let buffer = cut::joined(parts.clone().map(Kept::body));
        let cost: usize = parts.clone().map(Kept::cost).sum();
        let received_ns = parts.clone().map(|kept| kept.received_ns).max().unwrap_or_default();
        let newest = &self.frames[end - 1];
        let merged = Kept::sealed(
            self.of,
            buffer,
            first.first,
            count,
            [newest.flushed_ns, received_ns],
            [first.since, newest.at],
        );
        self.bytes = self.bytes + merged.cost() - cost;
        self.frames.drain(index + 1..end);
        self.frames[index] = merged;
    }
}

/// A frame without what is before `from`; `None` if its blocks cannot be read.
fn cut_at(of: StreamOf, kept: &Kept, from: Seq) -> Option<Kept> {
    let skip = from - kept.first;
    let mut buffer = seal::buffer(kept.body().len());
    cut::without_first(kept.body(), usize::try_from(skip).ok()?, &mut buffer).ok()?;
    let count = kept.count - u32::try_from(skip).ok()?;
    let times = [kept.flushed_ns, kept.received_ns];
    Some(Kept::sealed(of, buffer, from, count, times, [kept.since, kept.at]))
}
