//! One channel at its home worker: its sequence and the open batch of each delivery class in use. Never knows a
//! connection: it knows how many receivers each worker has.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::batch::{Batch, BlockRef, ClassKey, FrameOf};
use super::crossing::Crossing;
use super::directory::ChannelInfo;
use super::overload::STEPS;
use crate::clock::Now;
use crate::config::BatchLimits;
use crate::history::{RingKey, Standing, cut, ring::StreamOf};
use crate::metrics::{FlushCause, WorkerMetrics};
use crate::wire::relay::{Found, RelayHeader};
use crate::wire::{ChannelId, Codec, Frame, Seq, TIMED_SAMPLES, encode, seal};

/// The channel has as many delivery classes as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClassesFull;

/// A frame, and the position of its class in the channel.
pub type Sealed = (usize, Frame);

/// What sealing needs from the worker.
#[derive(Debug)]
pub struct Flush<'a> {
    /// The instant that it happens at.
    pub now: Now,
    /// When batches are sealed.
    pub limits: &'a BatchLimits,
    /// By how much windows are widened at the moment, in parts of [`STEPS`].
    pub widening: u32,
    /// Where batches that stay open wait for their deadlines.
    pub due: &'a mut DueQueue,
    /// The worker's metrics.
    pub metrics: &'a mut WorkerMetrics,
    /// Takes the frames.
    pub sealed: &'a mut Vec<Sealed>,
}

impl Flush<'_> {
    fn window(&self, key: ClassKey) -> Duration {
        let widest = self.limits.window_max.max(key.delay());
        (key.delay() * self.widening / STEPS).min(widest)
    }
}

/// A message of another server's stream, checked: one or more of its frames.
#[derive(Clone, Copy, Debug)]
pub struct RelayedMessage<'a> {
    /// What it says of itself.
    pub header: RelayHeader,
    /// As it came.
    pub payload: &'a [u8],
    /// Where its blocks and samples are.
    pub found: &'a Found,
    /// When it came.
    pub received: Now,
}

impl<'a> RelayedMessage<'a> {
    /// Its blocks; their samples' received time is that of the server that sealed them, by its clock.
    fn blocks(&self) -> impl Iterator<Item = BlockRef<'a>> + use<'a> {
        let (payload, found, at) = (self.payload, self.found, self.received.at);
        found.blocks.iter().map(move |block| BlockRef {
            content: &payload[block.content.clone()],
            spans: &found.spans[block.samples.clone()],
            source_ns: block.source_ns,
            received: Now { at, wall_ns: block.received_ns },
        })
    }

    /// The blocks as frames of this server's size, which are those of the other server if its limits are the same: a message may
    /// have many. Each with the number of its samples.
    fn frames(&self, limits: &BatchLimits) -> impl Iterator<Item = (Range<usize>, u32)> + use<'a> {
        let found = self.found;
        let (bytes_max, samples_max) = (limits.frame_bytes_max, limits.frame_samples_max);
        let mut next = 0;
        std::iter::from_fn(move || {
            let from = next;
            let (mut bytes, mut samples) = (0, 0);
            while let Some(block) = found.blocks.get(next)
                && (next == from || bytes + block.content.len() <= bytes_max)
                && bytes < bytes_max
                && samples < samples_max
            {
                bytes += block.bytes();
                samples += block.samples.len();
                next += 1;
            }
            (next > from).then(|| (from..next, u32::try_from(samples).unwrap_or(u32::MAX)))
        })
    }
}

/// See the module's page.
#[derive(Debug)]
pub struct Channel {
    info: Arc<ChannelInfo>,
    next_seq: Seq,
    /// If it has a history, the first is the class that the history is made of.
    classes: Vec<Class>,
    ring: Option<RingKey>,
    last_published: Option<Instant>,
}

/// A delivery class: everybody in it gets the same frames.
#[derive(Debug)]
pub struct Class {
    batch: Batch,
    /// Receivers on each worker.
    receivers: Vec<u32>,
    /// Its frames go to other servers, whoever receives it here: what waits for that.
    crossing: Option<Box<Crossing>>,
    /// It is in use without receivers, too: the history is made of its frames.
    kept: bool,
}

impl Class {
    /// Its key.
    #[must_use]
    pub const fn key(&self) -> ClassKey {
        self.batch.key()
    }

    /// The workers that have receivers.
    pub fn workers(&self) -> impl Iterator<Item = usize> + '_ {
        self.receivers.iter().enumerate().filter(|(_, count)| **count > 0).map(|(worker, _)| worker)
    }

    /// Whether its frames go to other servers.
    #[must_use]
    pub const fn crosses(&self) -> bool {
        self.crossing.is_some()
    }

    /// Whether the history is made of its frames.
    #[must_use]
    pub const fn is_kept(&self) -> bool {
        self.kept
    }

    fn new(key: ClassKey, next: Seq) -> Self {
        Self { batch: Batch::new(key, next - 1), receivers: Vec::new(), crossing: None, kept: false }
    }

    /// Whether it is forgotten with its open batch: nobody has it.
    fn is_unused(&self) -> bool {
        !self.crosses() && !self.kept && !self.has_receivers()
    }

    fn has_receivers(&self) -> bool {
        self.receivers.iter().any(|count| *count > 0)
    }

    fn add_receiver(&mut self, worker: usize) {
        if self.receivers.len() <= worker {
            self.receivers.resize(worker + 1, 0);
        }
        self.receivers[worker] += 1;
    }
}

impl Channel {
    /// A channel whose next sample will have this sequence.
    #[must_use]
    pub const fn new(info: Arc<ChannelInfo>, next_seq: Seq) -> Self {
        Self { info, next_seq, classes: Vec::new(), ring: None, last_published: None }
    }

    /// Has the frames of a class made from now on, also while nobody receives them, for a history. To be called before the first
    /// receiver joins.
    pub fn keep(&mut self, key: ClassKey, ring: RingKey) {
        debug_assert!(
            self.classes.is_empty() && !key.is_thin(),
            "the class of the history is the first, and whole"
        );
        self.classes.push(Class { kept: true, ..Class::new(key, self.next_seq) });
        self.ring = Some(ring);
    }

    /// Its history, if it has one.
    #[must_use]
    pub const fn ring(&self) -> Option<RingKey> {
        self.ring
    }

    /// Whose frames the history keeps.
    #[must_use]
    pub fn stream(&self) -> StreamOf {
        StreamOf { channel: self.info.id, epoch: self.info.epoch }
    }

    /// How far its sequence and its history have come.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let newest = self.next_seq - 1;
        let sealed = self.kept_class().map_or(newest, |class| class.batch.settled(newest));
        let mirrored_after = self.info.origin.map(|_| self.info.floor);
        Standing { of: self.stream(), next: self.next_seq, sealed, mirrored_after }
    }

    /// The class that the history is made of.
    #[must_use]
    pub fn kept_class(&self) -> Option<&Class> {
        self.classes.first().filter(|class| class.kept)
    }

    /// A receiver on `worker` joins the class of the history, and has everything that is in the history: the next frame is its
    /// first, whole. So nothing has to be sealed for it, however many join.
    pub fn join_kept(&mut self, worker: usize) {
        if let Some(class) = self.classes.first_mut().filter(|class| class.kept) {
            class.add_receiver(worker);
        }
    }

    /// What never changes.
    #[must_use]
    pub const fn info(&self) -> &Arc<ChannelInfo> {
        &self.info
    }

    /// From now on the frames of this class go to other servers: it is in use for good.
    pub fn cross(&mut self, key: ClassKey) {
        let position = self.position(key).unwrap_or_else(|| {
            self.classes.push(Class::new(key, self.next_seq));
            self.classes.len() - 1
        });
        self.classes[position].crossing.get_or_insert_default();
    }

    /// What waits to go to other servers, if its frames do, beside what never changes.
    pub fn crossing(&mut self) -> Option<(&ChannelInfo, &mut Crossing)> {
        let crossing = self.classes.iter_mut().find_map(|class| class.crossing.as_deref_mut())?;
        Some((&self.info, crossing))
    }

    /// Sequence of the next sample.
    #[must_use]
    pub const fn next_seq(&self) -> Seq {
        self.next_seq
    }

    /// When it was last published to.
    #[must_use]
    pub const fn last_published(&self) -> Option<Instant> {
        self.last_published
    }

    /// The class at a position that [`Sealed`] gives.
    #[must_use]
    pub fn class(&self, position: usize) -> Option<&Class> {
        self.classes.get(position)
    }

    /// Its classes in use.
    #[must_use]
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// Receivers on all workers.
    #[must_use]
    pub fn receivers(&self) -> u64 {
        self.classes.iter().flat_map(|class| &class.receivers).map(|&count| u64::from(count)).sum()
    }

    /// Gives a block its sequences and puts it into the batch of every class; seals those that are ready. Returns the
    /// sequence of its first sample.
    pub fn publish(&mut self, block: BlockRef<'_>, flush: &mut Flush<'_>) -> Seq {
        let first = self.next_seq;
        self.next_seq += block.spans.len() as u64;
        self.last_published = Some(flush.now.at);
        for position in 0..self.classes.len() {
            self.take(position, block, first, flush);
        }
        first
    }

    /// Puts a block into the batch of a class; seals what is ready.
    fn take(&mut self, position: usize, block: BlockRef<'_>, first: Seq, flush: &mut Flush<'_>) {
        let batch = &self.classes[position].batch;
        let would_be = batch.block_bytes() + block.content.len();
        if batch.count() > 0 && would_be > flush.limits.frame_bytes_max {
            self.seal(position, FlushCause::Bytes, flush);
        }
        let window = flush.window(self.classes[position].key());
        let batch = &mut self.classes[position].batch;
        let opened = batch.append(block, first);
        let cause = if batch.key().delay_ms == 0 {
            Some(FlushCause::Immediate)
        } else if opened && batch.is_quiet(window, flush.now) {
            Some(FlushCause::LeadingEdge)
        } else if batch.block_bytes() >= flush.limits.frame_bytes_max {
            Some(FlushCause::Bytes)
        } else if batch.count() as usize >= flush.limits.frame_samples_max {
            Some(FlushCause::Samples)
        } else {
            None
        };
        let sealed = cause.is_some_and(|cause| self.seal(position, cause, flush));
        if opened && !sealed {
            self.wait(position, flush);
        }
    }

    /// Takes what has come of a mirror's stream, whose server has given the sequences. Who leaves nothing out gets it as it is, encoded
    /// at most once for each codec; the others' batches take its blocks.
    pub fn relay(&mut self, message: &RelayedMessage<'_>, flush: &mut Flush<'_>) {
        debug_assert!(message.header.seq == self.next_seq && message.header.count > 0, "checked by the hub");
        let first = message.header.seq;
        self.last_published = Some(flush.now.at);
        for position in 0..self.classes.len() {
            if self.classes[position].key().is_thin() {
                let mut seq = first;
                for block in message.blocks() {
                    self.take(position, block, seq, flush);
                    seq += block.spans.len() as u64;
                }
            }
        }
        for (blocks, count) in message.frames(flush.limits) {
            let header = encode::FrameHeader {
                channel: self.info.id,
                epoch: self.info.epoch,
                seq: self.next_seq,
                count,
                flushed_ns: message.header.flushed_ns,
            };
            self.next_seq += u64::from(count);
            self.relay_blocks(message.found.body(message.payload, blocks), &header, message.received, flush);
        }
    }

    /// Makes a frame of blocks for each class that leaves nothing out.
    fn relay_blocks(&self, body: &[u8], header: &encode::FrameHeader, received: Now, flush: &mut Flush<'_>) {
        let mut encoded: [Option<(Bytes, u8)>; Codec::ALL.len()] = [None, None, None];
        for (position, class) in self.classes.iter().enumerate() {
            let key = class.key();
            if key.is_thin() {
                continue;
            }
            let (bytes, head_bytes) = encoded[key.codec as usize].get_or_insert_with(|| {
                flush.metrics.counters.frames_sealed += 1;
                match key.codec {
                    Codec::Protobuf => seal::seal(cut::joined(std::iter::once(body)), header),
                    Codec::MessagePack | Codec::Json => {
                        (seal::transcode(body, header, &self.info.name, key.codec), 0)
                    }
                }
            });
            let sealed = Frame {
                bytes: bytes.clone(),
                head_bytes: *head_bytes,
                replayed: false,
                channel: self.info.id,
                first: header.seq,
                last: header.seq + u64::from(header.count) - 1,
                count: header.count,
                flushed_at: flush.now.at,
                received_at: [received.at; TIMED_SAMPLES],
            };
            flush.sealed.push((position, sealed));
        }
    }

    /// A mirror's stream goes on at `seq`; what lies before it did not come. Seals what is open, so that it goes out first.
    pub fn skip_to(&mut self, seq: Seq, flush: &mut Flush<'_>) {
        debug_assert!(seq > self.next_seq, "checked by the hub");
        self.seal_all(flush);
        self.next_seq = seq;
    }

    /// Seals the batch whose deadline has come, unless that happened before.
    pub fn handle_due(&mut self, due: &Due, flush: &mut Flush<'_>) {
        let Some(position) = self.position(due.class) else { return };
        let batch = &self.classes[position].batch;
        if batch.is_open()
            && batch.serial() == due.serial
            && !self.seal(position, FlushCause::Deadline, flush)
        {
            self.wait(position, flush);
        }
    }

    /// Seals everything that is open, because nothing comes after it: also what a rate has held back.
    pub fn seal_all(&mut self, flush: &mut Flush<'_>) {
        for position in 0..self.classes.len() {
            if self.classes[position].batch.is_open() {
                self.classes[position].batch.allow_pending();
                self.seal(position, FlushCause::Drain, flush);
            }
        }
    }

    /// Seals what is on its way to other servers.
    pub fn seal_crossing(&mut self, flush: &mut Flush<'_>) {
        if let Some(position) = self.classes.iter().position(Class::crosses) {
            self.seal_for_join(position, flush);
        }
    }

    /// Seals the batch of the history's class, if it is open.
    pub fn seal_kept(&mut self, flush: &mut Flush<'_>) {
        if self.kept_class().is_some_and(|class| class.batch.is_open()) {
            self.seal(0, FlushCause::Join, flush);
        }
    }

    /// A receiver on `worker` joins a class. The class's open batch is sealed, so that the receiver's first sample is exactly
    /// the next one. Returns its sequence.
    ///
    /// # Errors
    /// The class is new and the channel has no room for it.
    pub fn join(
        &mut self,
        key: ClassKey,
        worker: usize,
        classes_max: usize,
        flush: &mut Flush<'_>,
    ) -> Result<Seq, ClassesFull> {
        let position = match self.position(key) {
            Some(position) => {
                self.seal_for_join(position, flush);
                position
            }
            // The history's class is not one that anybody asked for.
            None if self.classes.iter().filter(|class| class.has_receivers()).count() >= classes_max => {
                return Err(ClassesFull);
            }
            None => {
                self.classes.push(Class::new(key, self.next_seq));
                self.classes.len() - 1
            }
        };
        self.classes[position].add_receiver(worker);
        Ok(self.next_seq)
    }

    /// A receiver moves from one class to another. Both open batches are sealed first: it misses nothing and gets nothing
    /// twice. Returns the sequence of its first sample in the new class. The frames in `flush.sealed` must go out before the
    /// receivers change, so this only joins; [`Channel::leave`] follows.
    ///
    /// # Errors
    /// As [`Channel::join`].
    pub fn switch(
        &mut self,
        from: ClassKey,
        to: ClassKey,
        worker: usize,
        classes_max: usize,
        flush: &mut Flush<'_>,
    ) -> Result<Seq, ClassesFull> {
        if let Some(position) = self.position(from) {
            self.seal_for_join(position, flush);
        }
        self.join(to, worker, classes_max, flush)
    }

    /// A receiver on `worker` leaves a class; a class without receivers is forgotten, with its open batch.
    pub fn leave(&mut self, key: ClassKey, worker: usize) {
        let Some(position) = self.position(key) else { return };
        let class = &mut self.classes[position];
        if let Some(count) = class.receivers.get_mut(worker) {
            *count = count.saturating_sub(1);
        }
        if class.is_unused() {
            // What is kept is the first and stays there.
            self.classes.swap_remove(position);
        }
    }

    /// The newest sequence that the frames of a class have reached.
    #[must_use]
    pub fn head(&self, key: ClassKey) -> Option<Seq> {
        let class = self.classes.get(self.position(key)?)?;
        Some(class.batch.settled(self.next_seq - 1))
    }

    fn position(&self, key: ClassKey) -> Option<usize> {
        self.classes.iter().position(|class| class.key() == key)
    }

    fn seal_for_join(&mut self, position: usize, flush: &mut Flush<'_>) {
        let batch = &mut self.classes[position].batch;
        if batch.is_open() {
            batch.allow_pending();
            self.seal(position, FlushCause::Join, flush);
        }
    }

    /// Returns whether there was a frame; whatever the class still holds back waits for another deadline then.
    fn seal(&mut self, position: usize, cause: FlushCause, flush: &mut Flush<'_>) -> bool {
        let of = FrameOf { channel: self.info.id, name: &self.info.name, epoch: self.info.epoch };
        let Some(frame) = self.classes[position].batch.seal(of, flush.now, flush.metrics) else {
            return false;
        };
        flush.metrics.counters.flushes[cause] += 1;
        flush.sealed.push((position, frame));
        if self.classes[position].batch.is_open() {
            self.wait(position, flush);
        }
        true
    }

    fn wait(&self, position: usize, flush: &mut Flush<'_>) {
        let batch = &self.classes[position].batch;
        let wait = batch.wait(flush.window(batch.key()));
        let due = Due { channel: self.info.id, class: batch.key(), serial: batch.serial() };
        flush.due.push(flush.now.at, wait, due);
    }
}

/// A batch that has to be sealed at a deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// Its channel.
    pub channel: ChannelId,
    /// Its class.
    pub class: ClassKey,
    /// Which filling of the batch.
    pub serial: u64,
}

/// The deadlines of a worker's open batches. Deadlines of one length come due in the order in which they were set, so there
/// is a queue for each length in use and no heap.
#[derive(Debug, Default)]
pub struct DueQueue {
    lengths: Vec<(Duration, VecDeque<(Instant, Due)>)>,
}

impl DueQueue {
    /// Sets a deadline `wait` after `now`.
    pub fn push(&mut self, now: Instant, wait: Duration, due: Due) {
        let at = now + wait;
        if let Some((_, queue)) = self.lengths.iter_mut().find(|(length, _)| *length == wait) {
            queue.push_back((at, due));
        } else {
            self.lengths.push((wait, VecDeque::from([(at, due)])));
        }
    }

    /// The next deadline.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.lengths.iter().filter_map(|(_, queue)| queue.front()).map(|(at, _)| *at).min()
    }

    /// Takes the earliest deadline, if it has come, and when it was due.
    pub fn pop(&mut self, now: Instant) -> Option<(Instant, Due)> {
        let fronts = self.lengths.iter().enumerate();
        let (position, at) = fronts
            .filter_map(|(position, (_, queue))| Some((position, queue.front()?.0)))
            .min_by_key(|&(_, at)| at)?;
        if at > now {
            return None;
        }
        let (_, queue) = &mut self.lengths[position];
        let popped = queue.pop_front();
        if queue.is_empty() {
            self.lengths.swap_remove(position);
        }
        popped
    }
}

#[cfg(test)]
mod tests;
