//! The open batch of one delivery class of one channel: accumulates samples and says when to seal. Never reads the clock,
//! never knows a receiver.
//!
//! A class that leaves nothing out copies each publisher's block as it came into the frame that is being built. A thin class
//! (policy `latest`, or a rate limit) copies just the samples that it keeps.

use std::time::{Duration, Instant};

use crate::clock::{Now, nanos};
use crate::metrics::{Stage, WorkerMetrics};
use crate::wire::control::GapReason;
use crate::wire::decode::SampleSpan;
use crate::wire::{ChannelId, Codec, Frame, Seq, TIMED_SAMPLES, encode, seal};

/// What makes subscriptions share an encode: they get the same frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClassKey {
    /// The encoding of the frames.
    pub codec: Codec,
    /// Longest wait of a sample in the batch, in milliseconds; 0 seals with every publisher message.
    pub delay_ms: u32,
    /// Shortest time between two samples, in microseconds: the rate limit.
    pub interval_us: Option<u32>,
    /// Whether only the newest sample of a batch is kept: policy `latest`.
    pub newest_only: bool,
}

/// Spare bytes that the buffer of a frame may have, beside as many as the frame: to give back fewer is not worth a copy.
const SPARE_BYTES_MAX: usize = 1 << 10;

/// Publishes of a batch for whose times it keeps the room that they took.
const RECEIVED_KEPT_MAX: usize = 128;

impl ClassKey {
    /// The wait as a duration.
    #[must_use]
    pub const fn delay(self) -> Duration {
        Duration::from_millis(self.delay_ms as u64)
    }

    /// The rate limit as the time between samples.
    #[must_use]
    pub fn interval(self) -> Option<Duration> {
        self.interval_us.map(|us| Duration::from_micros(u64::from(us)))
    }

    /// Whether the class may leave out samples.
    #[must_use]
    pub const fn is_thin(self) -> bool {
        self.newest_only || self.interval_us.is_some()
    }

    /// Why samples are missing from the class's frames.
    #[must_use]
    pub const fn hole(self) -> GapReason {
        match (self.interval_us, self.newest_only) {
            (Some(_), _) => GapReason::Rate,
            (None, true) => GapReason::Conflated,
            (None, false) => GapReason::Slow,
        }
    }
}

/// A publisher's block on its way into batches: checked bytes, and where its samples are.
#[derive(Clone, Copy, Debug)]
pub struct BlockRef<'a> {
    /// Content of the protobuf `Block`, without `received_ns`.
    pub content: &'a [u8],
    /// Its samples; at least one.
    pub spans: &'a [SampleSpan],
    /// Base of their source times.
    pub source_ns: u64,
    /// When the server read the message.
    pub received: Now,
}

impl BlockRef<'_> {
    /// Number of samples.
    #[must_use]
    pub fn count(&self) -> u32 {
        u32::try_from(self.spans.len()).unwrap_or(u32::MAX)
    }
}

/// What a frame says about its channel.
#[derive(Clone, Copy, Debug)]
pub struct FrameOf<'a> {
    /// Number of the channel.
    pub channel: ChannelId,
    /// Its name, for the JSON codec.
    pub name: &'a str,
    /// The life of its sequence.
    pub epoch: u32,
}

/// See the module's page.
#[derive(Debug)]
pub struct Batch {
    key: ClassKey,
    /// Space for the headers, then the blocks as they will be sent.
    buffer: Vec<u8>,
    first: Seq,
    last: Seq,
    count: u32,
    /// When each block in `buffer` was received, and how many samples of the frame there are up to and with it.
    received: Vec<(Instant, u32)>,
    /// Bytes of the last frame, as a guess at the next: a quiet channel holds no buffer.
    next_capacity: usize,
    /// Sequences of the samples in `buffer`; kept by thin classes only.
    kept: Vec<Seq>,
    /// The newest sample, which a thin class has not decided about yet.
    pending: Option<Pending>,
    /// A thin class may take its next sample at this instant.
    next_allowed: Option<Instant>,
    sealed_at: Option<Instant>,
    /// Sequence of the last sample that was sealed.
    sealed_last: Seq,
    /// Tells one filling of the batch from the next, for deadlines that come too late.
    serial: u64,
    open: bool,
    scratch: Vec<u8>,
}

#[derive(Debug, Default)]
struct Pending {
    seq: Seq,
    received: Option<Now>,
    source_ns: u64,
    sample: Vec<u8>,
}

impl Batch {
    /// An empty batch that was never sealed, of a channel whose newest sequence is `newest`.
    #[must_use]
    pub const fn new(key: ClassKey, newest: Seq) -> Self {
        Self {
            key,
            buffer: Vec::new(),
            first: 0,
            last: 0,
            count: 0,
            received: Vec::new(),
            next_capacity: 0,
            kept: Vec::new(),
            pending: None,
            next_allowed: None,
            sealed_at: None,
            sealed_last: newest,
            serial: 0,
            open: false,
            scratch: Vec::new(),
        }
    }

    /// Its delivery class.
    #[must_use]
    pub const fn key(&self) -> ClassKey {
        self.key
    }

    /// Which filling this is.
    #[must_use]
    pub const fn serial(&self) -> u64 {
        self.serial
    }

    /// Whether samples wait.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.open
    }

    /// Samples that are sure to be in the next frame.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// The newest sequence that is settled when `newest` is the channel's: in a frame that was sealed, or left out before one.
    #[must_use]
    pub const fn settled(&self, newest: Seq) -> Seq {
        if self.open { self.sealed_last } else { newest }
    }

    /// Bytes of the next frame so far, headers not counted.
    #[must_use]
    pub fn block_bytes(&self) -> usize {
        self.buffer.len().saturating_sub(seal::HEADROOM_BYTES)
    }

    /// Whether the channel is quiet: nothing was sealed within the last `window`, so a sample need not wait.
    #[must_use]
    pub fn is_quiet(&self, window: Duration, now: Now) -> bool {
        self.sealed_at.is_none_or(|at| now.at.saturating_duration_since(at) >= window)
    }

    /// Takes a block whose first sample has the sequence `first`. Returns whether the batch needs a deadline that it does
    /// not have yet: it was empty, or held nothing but a sample that waits for the rate.
    pub fn append(&mut self, block: BlockRef<'_>, first: Seq) -> bool {
        let (opened, empty) = (!self.open, self.count == 0);
        self.open = true;
        self.leave_headroom();
        if self.key.is_thin() {
            self.append_thin(block, first);
        } else {
            self.note_samples(first, first + block.spans.len() as u64 - 1, block.count(), block.received.at);
            seal::push_block(&mut self.buffer, block.content, block.received.wall_ns);
        }
        opened || (empty && self.count > 0)
    }

    fn leave_headroom(&mut self) {
        if self.buffer.is_empty() {
            self.buffer.reserve_exact(self.next_capacity.max(seal::HEADROOM_BYTES));
            self.buffer.resize(seal::HEADROOM_BYTES, 0);
        }
    }

    /// Keeps at most as many samples as the rate allows, evenly spaced and with the newest; holds back the newest where
    /// none is allowed yet.
    fn append_thin(&mut self, block: BlockRef<'_>, first: Seq) {
        let allowed = match (self.key.newest_only, self.key.interval()) {
            (true, _) => 0,
            (false, None) => block.spans.len(),
            (false, Some(interval)) => self.allowance(interval, block.received.at, block.spans.len()),
        };
        let total = block.spans.len();
        let keep = allowed.min(total);
        if keep == 0 {
            self.hold_back(block, first);
            return;
        }
        self.pending = None;
        self.scratch.clear();
        self.scratch.extend_from_slice(&encode::source_ns(block.source_ns));
        let mut first_kept = None;
        let mut last_kept = first;
        for pick in 0..keep {
            // The last pick is the newest sample, the others lie evenly before it.
            let index = (pick + 1) * total / keep - 1;
            let span = &block.spans[index];
            self.scratch.extend_from_slice(&block.content[span.start as usize..span.end as usize]);
            last_kept = first + index as u64;
            first_kept.get_or_insert(last_kept);
            self.kept.push(last_kept);
        }
        let count = u32::try_from(keep).unwrap_or(u32::MAX);
        self.note_samples(first_kept.unwrap_or(first), last_kept, count, block.received.at);
        seal::push_block(&mut self.buffer, &self.scratch, block.received.wall_ns);
    }

    fn hold_back(&mut self, block: BlockRef<'_>, first: Seq) {
        let Some(newest) = block.spans.last() else { return };
        let pending = self.pending.get_or_insert_default();
        pending.seq = first + block.spans.len() as u64 - 1;
        pending.received = Some(block.received);
        pending.source_ns = block.source_ns;
        pending.sample.clear();
        pending.sample.extend_from_slice(&block.content[newest.start as usize..newest.end as usize]);
    }

    /// How many of `wanted` samples the rate allows at `now`, and takes them. A pause earns at most one batch's worth.
    fn allowance(&mut self, interval: Duration, now: Instant, wanted: usize) -> usize {
        let burst = self.key.delay().max(interval);
        let earliest = now.checked_sub(burst - interval).unwrap_or(now);
        let next = self.next_allowed.map_or(now, |next| next.max(earliest));
        if next > now {
            return 0;
        }
        let allowed = 1 + (now - next).as_micros() / interval.as_micros().max(1);
        // What is not wanted now stays earned.
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        let allowed = u32::try_from(allowed).unwrap_or(u32::MAX).min(wanted);
        self.next_allowed = Some(next + interval * allowed);
        allowed as usize
    }

    fn note_samples(&mut self, first: Seq, last: Seq, count: u32, received: Instant) {
        if self.count == 0 {
            self.first = first;
        }
        self.last = last;
        self.count += count;
        self.received.push((received, self.count));
    }

    /// Moves the sample that was held back into the frame, if the rate allows it by now.
    fn release_pending(&mut self, now: Now) {
        if self.pending.is_none() {
            return;
        }
        if let Some(interval) = self.key.interval()
            && self.allowance(interval, now.at, 1) == 0
        {
            return;
        }
        let Some(pending) = &self.pending else { return };
        let (seq, received) = (pending.seq, pending.received.unwrap_or(now));
        self.scratch.clear();
        self.scratch.extend_from_slice(&encode::source_ns(pending.source_ns));
        self.scratch.extend_from_slice(&pending.sample);
        self.pending = None;
        // The last seal may have left nothing but this sample.
        self.leave_headroom();
        self.kept.push(seq);
        self.note_samples(seq, seq, 1, received.at);
        seal::push_block(&mut self.buffer, &self.scratch, received.wall_ns);
    }

    /// How long a batch that was opened or left open just now may wait, `window` being the class's delay (widened under
    /// overload).
    #[must_use]
    pub fn wait(&self, window: Duration) -> Duration {
        let interval = self.key.interval().filter(|_| self.count == 0);
        interval.map_or(window, |interval| interval.max(window))
    }

    /// Lets the sample that was held back go with the next seal, whatever the rate: for a receiver that joins, the past has to
    /// end here, and the others must not lose it.
    pub const fn allow_pending(&mut self) {
        if self.pending.is_some() {
            self.next_allowed = None;
        }
    }

    /// When the rate allows the next sample; `None` at any time.
    #[must_use]
    pub const fn next_allowed(&self) -> Option<Instant> {
        self.next_allowed
    }

    /// Goes on where another batch has stopped: with what its [`Batch::next_allowed`] was.
    pub const fn allow_from(&mut self, next_allowed: Option<Instant>) {
        self.next_allowed = next_allowed;
    }

    /// Closes the batch into a frame; `None` if it holds none that may go yet. Records how long the samples have waited.
    pub fn seal(&mut self, of: FrameOf<'_>, now: Now, metrics: &mut WorkerMetrics) -> Option<Frame> {
        self.release_pending(now);
        let mut before = 0;
        for &(received, upto) in &self.received {
            let waited = now.at.saturating_duration_since(received);
            metrics.record(Stage::BatchWait, nanos(waited), u64::from(upto - before));
            before = upto;
        }
        let frame = self.close(of, now)?;
        metrics.counters.frames_sealed += 1;
        metrics.counters.frame_bytes_sealed += frame.bytes.len() as u64;
        Some(frame)
    }

    /// As [`Batch::seal`], and records nothing: for what has waited before.
    pub fn close(&mut self, of: FrameOf<'_>, now: Now) -> Option<Frame> {
        self.release_pending(now);
        // A sample that is still held back keeps the batch open; its turn comes with the next deadline.
        self.open = self.pending.is_some();
        if self.count == 0 {
            return None;
        }
        self.serial += 1;
        self.sealed_at = Some(now.at);
        self.sealed_last = self.last;
        let received_at = self.timed_samples(now.at);
        if self.kept.len() > 1 {
            seal::push_seq_deltas(&mut self.buffer, &self.kept);
        }
        self.next_capacity = self.buffer.len();
        let mut buffer = std::mem::take(&mut self.buffer);
        // It was made as large as the one before. A small frame must not hold the memory of a large one, which nobody counts.
        if buffer.capacity() > 2 * buffer.len() + SPARE_BYTES_MAX {
            buffer.shrink_to_fit();
        }
        let header = encode::FrameHeader {
            channel: of.channel,
            epoch: of.epoch,
            seq: self.first,
            count: self.count,
            flushed_ns: now.wall_ns,
        };
        let (bytes, head_bytes) = match self.key.codec {
            Codec::Protobuf => seal::seal(buffer, &header),
            Codec::MessagePack | Codec::Json => {
                (seal::transcode(&buffer[seal::HEADROOM_BYTES..], &header, of.name, self.key.codec), 0)
            }
        };
        let frame = Frame {
            bytes,
            channel: of.channel,
            first: self.first,
            last: self.last,
            count: self.count,
            head_bytes,
            replayed: false,
            flushed_at: now.at,
            received_at,
        };
        self.count = 0;
        self.received.clear();
        if self.received.capacity() > RECEIVED_KEPT_MAX {
            // Many channels that were busy once would hold much, and to make it again costs little beside so many publishes.
            self.received = Vec::new();
        }
        self.kept.clear();
        Some(frame)
    }

    /// When the evenly spaced samples of the frame were received.
    fn timed_samples(&self, now: Instant) -> [Instant; TIMED_SAMPLES] {
        let mut times = [now; TIMED_SAMPLES];
        let last = self.count.saturating_sub(1) as usize;
        for (position, time) in times.iter_mut().enumerate() {
            let sample = last * position / (TIMED_SAMPLES - 1);
            let block = self.received.partition_point(|&(_, upto)| upto as usize <= sample);
            if let Some(&(received, _)) = self.received.get(block) {
                *time = received;
            }
        }
        times
    }
}
