//! The bounded send queue of one connection: a control lane that is never dropped, and a data lane that is lossy by an
//! explicit policy. The only place where a backpressure decision is made. Never encodes data, never writes, reads no clock.
//!
//! The ledger of each subscription holds after every call:
//! `published = delivered + conflated + dropped + queued`. What is not delivered becomes a `gap` notice, merged, at most one
//! each [`GAP_NOTICE_INTERVAL`] for a subscription and reason.
//!
//! A mark is a message that has its place among the frames, such as the one that ends a replay: no policy drops it, and it is in no
//! ledger. A subscription has at most one, so its channels bound them.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use slab::Slab;

use crate::clock::Now;
use crate::config::OutboxLimits;
use crate::wire::control::{Event, GapReason, Ledger, Policy};
use crate::wire::{ChannelId, Frame, Seq, seal};

pub mod handle;
pub mod memory;
pub mod ready;

use memory::HeldFrame;

/// Shortest time between two gap notices of one subscription: telling of loss must not add to it.
pub const GAP_NOTICE_INTERVAL: Duration = Duration::from_millis(100);

/// Age at which a frame of a `drop_oldest` subscription becomes a gap while its reader is behind: some flush windows, so that
/// there is enough for a write. A backlog helps a reader over a pause; one that only ever grows old helps nobody, so once
/// data was lost, what is left of it makes room for what is new (the standing queue of RFC 8289, section 3).
pub const BEHIND_AGE_MAX: Duration = Duration::from_millis(50);

/// A reader is behind until it has lost nothing for this long: at the edge of what it can take, losses are a second apart.
pub const BEHIND_FOR: Duration = Duration::from_secs(5);

/// How far into the data lane a write looks for frames that are too old, in bytes: as far as it reaches.
const LOOK_BYTES_MAX: usize = 64 << 10;

/// Places of frames that are gone, beyond the number of those that wait, before the queue is put together anew.
const REMOVED_MAX: usize = 64;

/// A subscription's place in an outbox.
pub type Slot = u32;

/// Entries whose subscription has ended while they were partly written.
const NO_SLOT: Slot = Slot::MAX;

/// How a subscription wants its frames, as far as the outbox is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotOptions {
    /// What overflow does.
    pub policy: Policy,
    /// Age at which a waiting frame becomes a gap.
    pub max_age: Duration,
    /// Why samples are missing between or inside the frames of its delivery class: [`GapReason::Slow`] for a class that
    /// leaves out nothing (then they were lost between two workers).
    pub hole: GapReason,
}

/// The connection has to end: its control lane is full, or a subscription's policy says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overflow;

/// What an outbox has done since it began; summed into the worker's metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Frames handed to the kernel.
    pub frames_delivered: u64,
    /// Samples handed to the kernel.
    pub samples_delivered: u64,
    /// Samples lost to overflow.
    pub dropped_overflow: u64,
    /// Samples lost to age.
    pub dropped_age: u64,
    /// Samples lost because all outboxes together took too much.
    pub dropped_memory: u64,
    /// Samples that were lost before they came here, or discarded with the subscription.
    pub dropped_other: u64,
    /// Samples left out by policy `latest`.
    pub conflated: u64,
    /// Samples left out by a rate limit.
    pub rate_limited: u64,
    /// Gap notices.
    pub gap_notices: u64,
    /// Control messages handed to the kernel.
    pub control_messages: u64,
    /// Bytes handed to the kernel.
    pub bytes: u64,
}

impl Totals {
    /// Samples lost, whatever the reason.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.dropped_overflow + self.dropped_age + self.dropped_memory + self.dropped_other
    }

    /// Adds another outbox's.
    pub fn add(&mut self, other: &Self) {
        self.frames_delivered += other.frames_delivered;
        self.samples_delivered += other.samples_delivered;
        self.dropped_overflow += other.dropped_overflow;
        self.dropped_age += other.dropped_age;
        self.dropped_memory += other.dropped_memory;
        self.dropped_other += other.dropped_other;
        self.conflated += other.conflated;
        self.rate_limited += other.rate_limited;
        self.gap_notices += other.gap_notices;
        self.control_messages += other.control_messages;
        self.bytes += other.bytes;
    }
}

/// See the module's page.
#[derive(Debug)]
pub struct Outbox {
    limits: OutboxLimits,
    control: VecDeque<Bytes>,
    control_bytes: usize,
    data: VecDeque<Entry>,
    /// How many entries have left the front of `data`: turns a stable entry number into a position.
    data_popped: u64,
    data_bytes: usize,
    /// Live entries of `data` that are frames.
    data_frames: usize,
    /// Live entries of `data` that are marks.
    marks: usize,
    /// Requests whose answer has to go before any more data.
    held: u32,
    /// What the kernel took only a part of; its lane's accounting still holds it.
    partial: Option<Partial>,
    slots: Slab<SlotState>,
    /// Slots with something in `gaps`, each once.
    gapped: Vec<Slot>,
    /// No gap notice is due before this.
    gap_due: Option<Instant>,
    /// When a frame of a `drop_oldest` subscription was last lost.
    lost_at: Option<Instant>,
    totals: Totals,
}

#[derive(Debug)]
struct Entry {
    slot: Slot,
    /// `None` once it was dropped or replaced: the entry's place stays, so that numbers remain stable.
    frame: Option<Rc<HeldFrame>>,
}

#[derive(Debug)]
struct Partial {
    item: Item,
    written: usize,
}

#[derive(Debug)]
enum Item {
    Control(Bytes),
    Data(Slot, Rc<HeldFrame>),
}

#[derive(Debug)]
struct SlotState {
    channel: ChannelId,
    options: SlotOptions,
    start: Seq,
    /// The next sequence that is expected; everything before it is accounted for.
    next: Seq,
    delivered: u64,
    conflated: u64,
    dropped: u64,
    queued: u64,
    /// The waiting entry of a `latest` subscription, by number.
    waiting: Option<u64>,
    /// Loss that was not told yet, one span for each reason.
    gaps: Vec<(GapReason, Span)>,
    notice_due: Option<Instant>,
    gapped: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    from: Seq,
    to: Seq,
    count: u64,
}

/// Whether a frame is a mark.
fn is_mark(frame: &Frame) -> bool {
    frame.count == 0
}

impl SlotState {
    fn add_gap(&mut self, reason: GapReason, from: Seq, to: Seq, count: u64) {
        if let Some((_, span)) = self.gaps.iter_mut().find(|(of, _)| *of == reason) {
            *span = Span { from: span.from.min(from), to: span.to.max(to), count: span.count + count };
        } else {
            self.gaps.push((reason, Span { from, to, count }));
        }
    }

    fn published(&self) -> u64 {
        self.next - self.start
    }

    fn ledger(&self) -> Ledger {
        Ledger {
            channel: self.channel.0,
            published: self.published(),
            delivered: self.delivered,
            conflated: self.conflated,
            dropped: self.dropped,
            queued: self.queued,
        }
    }
}

impl Outbox {
    /// An empty outbox; holds no heap memory until it is used.
    #[must_use]
    pub fn new(limits: OutboxLimits) -> Self {
        Self {
            limits,
            control: VecDeque::new(),
            control_bytes: 0,
            data: VecDeque::new(),
            data_popped: 0,
            data_bytes: 0,
            data_frames: 0,
            marks: 0,
            held: 0,
            partial: None,
            slots: Slab::new(),
            gapped: Vec::new(),
            gap_due: None,
            lost_at: None,
            totals: Totals::default(),
        }
    }

    /// Opens a subscription whose first sample will have the sequence `start`.
    pub fn open_slot(&mut self, channel: ChannelId, options: SlotOptions, start: Seq) -> Slot {
        if self.slots.is_empty() {
            // Many watch a single channel, and growth would begin with room for four.
            self.slots.reserve_exact(1);
        }
        let key = self.slots.insert(SlotState {
            channel,
            options,
            start,
            next: start,
            delivered: 0,
            conflated: 0,
            dropped: 0,
            queued: 0,
            waiting: None,
            gaps: Vec::new(),
            notice_due: None,
            gapped: false,
        });
        Slot::try_from(key).unwrap_or(NO_SLOT)
    }

    /// Sets where a subscription starts, once its channel's home has said so and before its first frame.
    pub fn start_slot(&mut self, slot: Slot, options: SlotOptions, start: Seq) {
        if let Some(state) = self.slots.get_mut(slot as usize) {
            debug_assert_eq!(state.published(), 0, "a subscription starts once");
            state.options = options;
            state.start = start;
            state.next = start;
        }
    }

    /// The sequence that a subscription expects next.
    #[must_use]
    pub fn next_seq(&self, slot: Slot) -> Seq {
        self.slots.get(slot as usize).map_or(1, |state| state.next)
    }

    /// Changes the options of a subscription that stays in its delivery class.
    pub fn set_options(&mut self, slot: Slot, options: SlotOptions) {
        if let Some(state) = self.slots.get_mut(slot as usize) {
            state.options = options;
        }
    }

    /// Changes the options of a subscription whose next frame begins at `next`; samples before that which its old
    /// delivery class left out are accounted for by the old reason.
    pub fn switch_slot(&mut self, slot: Slot, options: SlotOptions, next: Seq, now: Now) {
        self.account_hole(slot, next, now);
        if let Some(state) = self.slots.get_mut(slot as usize) {
            state.options = options;
            state.waiting = None;
        }
    }

    /// Ends a subscription: what waits for it is discarded, and counted. Returns the final ledger.
    pub fn close_slot(&mut self, slot: Slot) -> Ledger {
        // Without anything queued there is nothing to look for: a connection that ends has many slots and a long queue.
        let queued = self.marks > 0 || self.slots.get(slot as usize).is_some_and(|state| state.queued > 0);
        for position in 0..if queued { self.data.len() } else { 0 } {
            if self.data[position].slot == slot && self.data[position].frame.is_some() {
                let count = self.remove_entry(position);
                self.totals.dropped_other += count;
                if let Some(state) = self.slots.get_mut(slot as usize) {
                    state.dropped += count;
                }
            }
        }
        self.pop_removed();
        if self.data.len() > 2 * self.data_frames + self.marks + REMOVED_MAX {
            self.compact();
        }
        if let Some(Partial { item: Item::Data(partial, frame), .. }) = &mut self.partial
            && *partial == slot
        {
            // Its first bytes are on the wire, so the rest has to follow: it counts as delivered.
            *partial = NO_SLOT;
            let count = u64::from(frame.count);
            self.totals.samples_delivered += count;
            self.totals.frames_delivered += u64::from(!is_mark(frame));
            if let Some(state) = self.slots.get_mut(slot as usize) {
                state.delivered += count;
                state.queued -= count;
            }
        }
        self.gapped.retain(|&gapped| gapped != slot);
        self.slots.try_remove(slot as usize).map_or_else(Ledger::default, |state| state.ledger())
    }

    /// Queues a control message: a whole WebSocket message, header included.
    ///
    /// # Errors
    /// The lane is full. Control is never dropped, so the connection has to end.
    pub fn push_control(&mut self, message: Bytes) -> Result<(), Overflow> {
        if self.control_bytes + message.len() > self.limits.control_bytes_max {
            return Err(Overflow);
        }
        self.control_bytes += message.len();
        self.control.push_back(message);
        Ok(())
    }

    /// Queues a frame for a subscription, by its policy. Allocates only while the queue grows.
    ///
    /// # Errors
    /// The outbox is full and the subscription's policy is [`Policy::Disconnect`].
    pub fn push_data(&mut self, slot: Slot, frame: &Rc<HeldFrame>, now: Now) -> Result<(), Overflow> {
        let Some(state) = self.slots.get_mut(slot as usize) else { return Ok(()) };
        if frame.last < state.next {
            // Everything in it was published before the subscription began.
            return Ok(());
        }
        let missing = (frame.last + 1 - state.next).saturating_sub(u64::from(frame.count));
        if missing > 0 {
            // Holes lie before the frame or between its samples; the span says so without listing them.
            let (from, to, reason) = (state.next, frame.last, state.options.hole);
            let to =
                if u64::from(frame.count) == frame.last + 1 - frame.first { frame.first - 1 } else { to };
            self.account_loss(slot, reason, from, to, missing, now);
        }
        let state = &mut self.slots[slot as usize];
        state.next = frame.last + 1;
        let count = u64::from(frame.count);
        let policy = state.options.policy;

        if policy == Policy::Latest
            && let Some(number) = state.waiting
            && self.replace(number, slot, frame, now)
        {
            return Ok(());
        }
        let bytes = frame.bytes.len();
        while self.data_frames >= self.limits.data_frames_max
            || self.data_bytes + bytes > self.limits.data_bytes_max
        {
            let made_room = match policy {
                Policy::DropOldest | Policy::Latest => self.evict_oldest(now),
                Policy::DropNewest | Policy::Disconnect => false,
            };
            if !made_room {
                self.totals.dropped_overflow += count;
                self.slots[slot as usize].dropped += count;
                self.note_gap(slot, GapReason::Slow, frame.first, frame.last, count, now);
                return if policy == Policy::Disconnect { Err(Overflow) } else { Ok(()) };
            }
        }
        if self.data.len() > 2 * self.data_frames + self.marks + REMOVED_MAX {
            self.compact();
        }
        let number = self.data_popped + self.data.len() as u64;
        self.data.push_back(Entry { slot, frame: Some(Rc::clone(frame)) });
        self.data_bytes += bytes;
        self.data_frames += 1;
        let state = &mut self.slots[slot as usize];
        state.queued += count;
        if policy == Policy::Latest {
            state.waiting = Some(number);
        }
        self.check();
        Ok(())
    }

    /// Puts a mark behind the frames of a subscription. What comes later goes behind it, also where it would take the place of a
    /// waiting frame.
    pub fn push_mark(&mut self, slot: Slot, mark: Rc<HeldFrame>) {
        debug_assert!(is_mark(&mark), "a mark has no samples");
        let Some(state) = self.slots.get_mut(slot as usize) else { return };
        state.waiting = None;
        self.data.push_back(Entry { slot, frame: Some(mark) });
        self.marks += 1;
        self.check();
    }

    /// Everything up to `upto` that has not come is not kept any more.
    pub fn note_gone(&mut self, slot: Slot, upto: Seq, now: Now) {
        let Some(state) = self.slots.get_mut(slot as usize) else { return };
        let from = state.next;
        if upto >= from {
            state.next = upto + 1;
            self.account_loss(slot, GapReason::History, from, upto, upto + 1 - from, now);
        }
    }

    /// The newest sequence that exists on the channel, told by its home in silence: what is missing up to it is a gap.
    pub fn note_head(&mut self, slot: Slot, head: Seq, now: Now) {
        self.account_hole(slot, head + 1, now);
    }

    /// Drops what has waited too long, and queues the gap notices that are due. To be called before [`Outbox::gather`].
    ///
    /// # Errors
    /// The control lane is full.
    pub fn poll(&mut self, now: Now) -> Result<(), Overflow> {
        self.drop_stale(now);
        // A gap names its channel by number, too. And while a peer takes nothing, its losses merge instead of filling the
        // control lane, which would end it.
        let tells = !self.is_held() && self.control.is_empty();
        if tells && self.gap_due.is_some_and(|due| due <= now.at) {
            self.queue_gap_notices(now)?;
        }
        Ok(())
    }

    /// Drops the waiting frames that came up to a generation: all outboxes together take too much. The oldest go whatever the
    /// policy, as with those that are too old; what was begun has to be ended.
    ///
    /// # Errors
    /// One of them was of a subscription with [`Policy::Disconnect`].
    pub fn shed(&mut self, upto: u64, now: Now) -> Result<(), Overflow> {
        let mut outcome = Ok(());
        let mut position = 0;
        while let Some(Entry { slot, frame }) = self.data.get(position) {
            if let Some(frame) = frame.as_ref().filter(|frame| !is_mark(frame)) {
                let policy = self.slots.get(*slot as usize).map(|state| state.options.policy);
                if frame.generation() <= upto {
                    if policy == Some(Policy::Disconnect) {
                        outcome = Err(Overflow);
                    }
                    self.totals.dropped_memory += self.drop_entry(position, now);
                } else if policy != Some(Policy::Latest) {
                    // They are in the order in which they came, but for newer ones in the places of older ones.
                    break;
                }
            }
            position += 1;
        }
        self.pop_removed();
        self.check();
        outcome
    }

    /// Whether a frame that came up to a generation is partly written.
    #[must_use]
    pub fn is_stuck(&self, upto: u64) -> bool {
        matches!(&self.partial, Some(Partial { item: Item::Data(_, frame), .. }) if frame.generation() <= upto)
    }

    /// Keeps data back until [`Outbox::release_data`] was called as often: a `subscribed` that other workers have a part
    /// in names the channels, and no data of a channel may come before its name.
    pub const fn hold_data(&mut self) {
        self.held += 1;
    }

    /// See [`Outbox::hold_data`].
    pub const fn release_data(&mut self) {
        self.held = self.held.saturating_sub(1);
    }

    /// Whether data is kept back.
    #[must_use]
    pub const fn is_held(&self) -> bool {
        self.held > 0
    }

    /// Whether there is anything to write.
    #[must_use]
    pub fn has_output(&self) -> bool {
        self.partial.is_some()
            || !self.control.is_empty()
            || (self.data_frames + self.marks > 0 && !self.is_held())
    }

    /// Whether there is anything to write, or a gap notice that may be due.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.has_output() || (self.gap_due.is_some() && !self.is_held())
    }

    /// What to write next, in order, until `take` says stop: the rest of what was begun, then control, then data. Nothing
    /// leaves the outbox before [`Outbox::advance`].
    pub fn gather<'a>(&'a self, mut take: impl FnMut(&'a [u8]) -> Take) {
        if let Some(partial) = &self.partial {
            let bytes = match &partial.item {
                Item::Control(bytes) => bytes,
                Item::Data(_, frame) => &frame.bytes,
            };
            if take(&bytes[partial.written..]) == Take::Stop {
                return;
            }
        }
        for message in &self.control {
            if take(message) == Take::Stop {
                return;
            }
        }
        if self.is_held() {
            return;
        }
        for entry in &self.data {
            if let Some(frame) = &entry.frame
                && take(&frame.bytes) == Take::Stop
            {
                return;
            }
        }
    }

    /// Drops frames that have waited too long, as far as a write of 64 KiB looks. They are in the order of their age, but not
    /// all may be as old.
    pub fn drop_stale(&mut self, now: Now) {
        let (mut position, mut bytes) = (0, 0);
        while bytes < LOOK_BYTES_MAX
            && let Some(entry) = self.data.get(position)
        {
            if let Some(frame) = &entry.frame {
                if self.is_stale(entry.slot, frame, now) {
                    self.expire(position, now);
                } else {
                    bytes += frame.bytes.len();
                }
            }
            position += 1;
        }
        self.pop_removed();
    }

    /// Tells how many bytes the kernel took of what [`Outbox::gather`] gave. Calls `delivered` for each data frame whose
    /// last byte was among them.
    pub fn advance(&mut self, mut bytes: usize, mut delivered: impl FnMut(&Frame)) {
        self.totals.bytes += bytes as u64;
        while bytes > 0 {
            let partial = match self.partial.take() {
                Some(partial) => partial,
                None => match self.next_item() {
                    Some(item) => Partial { item, written: 0 },
                    None => {
                        debug_assert!(false, "the kernel took more than there was");
                        return;
                    }
                },
            };
            let length = match &partial.item {
                Item::Control(message) => message.len(),
                Item::Data(_, frame) => frame.bytes.len(),
            };
            let left = length - partial.written;
            if bytes < left {
                self.partial = Some(Partial { written: partial.written + bytes, ..partial });
                return;
            }
            bytes -= left;
            match partial.item {
                Item::Control(message) => {
                    self.control_bytes -= message.len();
                    self.totals.control_messages += 1;
                }
                Item::Data(_, mark) if is_mark(&mark) => self.totals.control_messages += 1,
                Item::Data(slot, frame) => {
                    self.data_bytes -= frame.bytes.len();
                    if let Some(state) = self.slots.get_mut(slot as usize) {
                        let count = u64::from(frame.count);
                        state.delivered += count;
                        state.queued -= count;
                        self.totals.samples_delivered += count;
                        self.totals.frames_delivered += 1;
                    }
                    delivered(&frame);
                }
            }
        }
        self.check();
    }

    /// The ledger of a subscription.
    #[must_use]
    pub fn ledger(&self, slot: Slot) -> Ledger {
        self.slots.get(slot as usize).map_or_else(Ledger::default, SlotState::ledger)
    }

    /// The ledgers of all subscriptions.
    pub fn ledgers(&self) -> impl Iterator<Item = Ledger> + '_ {
        self.slots.iter().map(|(_, state)| state.ledger())
    }

    /// Bytes of control messages that wait.
    #[must_use]
    pub const fn control_bytes(&self) -> usize {
        self.control_bytes
    }

    /// Bytes of data that wait.
    #[must_use]
    pub const fn data_bytes(&self) -> usize {
        self.data_bytes
    }

    /// Data frames that wait.
    #[must_use]
    pub fn data_frames(&self) -> usize {
        let partial =
            matches!(&self.partial, Some(Partial { item: Item::Data(_, frame), .. }) if !is_mark(frame));
        self.data_frames + usize::from(partial)
    }

    /// Age of the oldest waiting frame.
    #[must_use]
    pub fn oldest_age(&self, now: Now) -> Duration {
        let partial = match &self.partial {
            Some(Partial { item: Item::Data(_, frame), .. }) => Some(frame),
            _ => None,
        };
        partial
            .or_else(|| self.data.iter().find_map(|entry| entry.frame.as_ref()))
            .map_or(Duration::ZERO, |frame| now.at.saturating_duration_since(frame.flushed_at))
    }

    /// When [`Outbox::poll`] has a gap notice to queue.
    #[must_use]
    pub const fn gap_due(&self) -> Option<Instant> {
        self.gap_due
    }

    /// What it has done since it began.
    #[must_use]
    pub const fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Discards all data that was not begun, and queues the last message of the connection, for which there is always room.
    pub fn close(&mut self, message: Bytes) {
        for position in 0..self.data.len() {
            let slot = self.data[position].slot;
            let count = self.remove_entry(position);
            self.totals.dropped_other += count;
            if let Some(state) = self.slots.get_mut(slot as usize) {
                state.dropped += count;
            }
        }
        self.pop_removed();
        self.control_bytes += message.len();
        self.control.push_back(message);
    }

    fn next_item(&mut self) -> Option<Item> {
        if let Some(message) = self.control.pop_front() {
            return Some(Item::Control(message));
        }
        while let Some(entry) = self.data.pop_front() {
            let number = self.data_popped;
            self.data_popped += 1;
            if let Some(frame) = entry.frame {
                if is_mark(&frame) {
                    self.marks -= 1;
                    return Some(Item::Data(entry.slot, frame));
                }
                self.data_frames -= 1;
                if let Some(state) = self.slots.get_mut(entry.slot as usize)
                    && state.waiting == Some(number)
                {
                    state.waiting = None;
                }
                return Some(Item::Data(entry.slot, frame));
            }
        }
        None
    }

    /// Puts a newer frame in the place of the waiting one of a `latest` subscription. Returns whether it did: a frame that
    /// is too large for the place has to find another.
    fn replace(&mut self, number: u64, slot: Slot, frame: &Rc<HeldFrame>, now: Now) -> bool {
        let position = usize::try_from(number - self.data_popped).unwrap_or(usize::MAX);
        let Some(old) = self.data.get_mut(position).and_then(|entry| entry.frame.as_mut()) else {
            return false;
        };
        let (from, to, count) = (old.first, old.last, u64::from(old.count));
        let bytes = self.data_bytes - old.bytes.len() + frame.bytes.len();
        let fits = bytes <= self.limits.data_bytes_max;
        if fits {
            *old = Rc::clone(frame);
            self.data_bytes = bytes;
            let state = &mut self.slots[slot as usize];
            state.queued = state.queued - count + u64::from(frame.count);
        } else {
            self.remove_entry(position);
            self.pop_removed();
        }
        self.slots[slot as usize].conflated += count;
        self.totals.conflated += count;
        self.note_gap(slot, GapReason::Conflated, from, to, count, now);
        fits
    }

    /// Takes out the places of frames that are gone, which numbers kept stable. The front alone does not do: behind a frame
    /// that may not be dropped, others come and go.
    fn compact(&mut self) {
        let (popped, slots) = (self.data_popped, &mut self.slots);
        let (mut before, mut after) = (popped, popped);
        self.data.retain(|entry| {
            let (number, keep) = (before, entry.frame.is_some());
            before += 1;
            if keep {
                if let Some(state) = slots.get_mut(entry.slot as usize)
                    && state.waiting == Some(number)
                {
                    state.waiting = Some(after);
                }
                after += 1;
            }
            keep
        });
    }

    /// Drops the oldest frame whose subscription allows it. The search passes over frames of `drop_newest` and
    /// `disconnect` subscriptions, at most `data_frames_max` of them.
    fn evict_oldest(&mut self, now: Now) -> bool {
        let position = self.data.iter().position(|entry| {
            entry.frame.as_ref().is_some_and(|frame| !is_mark(frame))
                && self
                    .slots
                    .get(entry.slot as usize)
                    .is_some_and(|state| matches!(state.options.policy, Policy::DropOldest | Policy::Latest))
        });
        let Some(position) = position else { return false };
        self.totals.dropped_overflow += self.drop_entry(position, now);
        self.pop_removed();
        true
    }

    /// Whether a waiting frame has become too old.
    fn is_stale(&self, slot: Slot, frame: &Frame, now: Now) -> bool {
        if is_mark(frame) {
            return false;
        }
        let age = now.at.saturating_duration_since(frame.flushed_at);
        let Some(state) = self.slots.get(slot as usize) else { return !age.is_zero() };
        age > state.options.max_age
            || (age > BEHIND_AGE_MAX
                && state.options.policy == Policy::DropOldest
                // When a stream pauses, its newest frame is what a reader that is behind wants to see.
                && frame.last + 1 < state.next
                && self.lost_at.is_some_and(|at| now.at.saturating_duration_since(at) < BEHIND_FOR))
    }

    fn expire(&mut self, position: usize, now: Now) {
        self.totals.dropped_age += self.drop_entry(position, now);
    }

    /// Drops an entry as a gap with reason `slow`; returns its samples.
    fn drop_entry(&mut self, position: usize, now: Now) -> u64 {
        let slot = self.data[position].slot;
        let Some((first, last)) = self.data[position].frame.as_ref().map(|f| (f.first, f.last)) else {
            return 0;
        };
        let count = self.remove_entry(position);
        if let Some(state) = self.slots.get_mut(slot as usize) {
            state.dropped += count;
            if state.options.policy == Policy::DropOldest {
                self.lost_at = Some(now.at);
            }
        }
        self.note_gap(slot, GapReason::Slow, first, last, count, now);
        count
    }

    /// Takes the frame out of an entry; returns its samples, which are no longer queued.
    fn remove_entry(&mut self, position: usize) -> u64 {
        let number = self.data_popped + position as u64;
        let entry = &mut self.data[position];
        let Some(frame) = entry.frame.take() else { return 0 };
        if is_mark(&frame) {
            self.marks -= 1;
            return 0;
        }
        let count = u64::from(frame.count);
        self.data_bytes -= frame.bytes.len();
        self.data_frames -= 1;
        if let Some(state) = self.slots.get_mut(entry.slot as usize) {
            state.queued -= count;
            if state.waiting == Some(number) {
                state.waiting = None;
            }
        }
        count
    }

    fn pop_removed(&mut self) {
        while self.data.front().is_some_and(|entry| entry.frame.is_none()) {
            self.data.pop_front();
            self.data_popped += 1;
        }
    }

    /// Samples up to this sequence have not come from another server, and will not.
    pub fn note_missed(&mut self, slot: Slot, upto: Seq, now: Now) {
        self.account_missing(slot, upto + 1, GapReason::Broker, now);
    }

    /// Everything before `next` that has not come is missing.
    fn account_hole(&mut self, slot: Slot, next: Seq, now: Now) {
        if let Some(reason) = self.slots.get(slot as usize).map(|state| state.options.hole) {
            self.account_missing(slot, next, reason, now);
        }
    }

    fn account_missing(&mut self, slot: Slot, next: Seq, reason: GapReason, now: Now) {
        let Some(state) = self.slots.get_mut(slot as usize) else { return };
        if next > state.next {
            let from = state.next;
            state.next = next;
            self.account_loss(slot, reason, from, next - 1, next - from, now);
        }
    }

    fn account_loss(&mut self, slot: Slot, reason: GapReason, from: Seq, to: Seq, count: u64, now: Now) {
        let state = &mut self.slots[slot as usize];
        match reason {
            GapReason::Conflated => {
                state.conflated += count;
                self.totals.conflated += count;
            }
            GapReason::Rate => {
                state.conflated += count;
                self.totals.rate_limited += count;
            }
            GapReason::Slow | GapReason::History | GapReason::Broker => {
                state.dropped += count;
                self.totals.dropped_other += count;
            }
        }
        self.note_gap(slot, reason, from, to, count, now);
    }

    fn note_gap(&mut self, slot: Slot, reason: GapReason, from: Seq, to: Seq, count: u64, now: Now) {
        let Some(state) = self.slots.get_mut(slot as usize) else { return };
        state.add_gap(reason, from, to, count);
        if !state.gapped {
            state.gapped = true;
            self.gapped.push(slot);
            let due = state.notice_due.map_or(now.at, |due| due.max(now.at));
            self.gap_due = Some(self.gap_due.map_or(due, |earlier| earlier.min(due)));
        }
    }

    fn queue_gap_notices(&mut self, now: Now) -> Result<(), Overflow> {
        let mut gapped = std::mem::take(&mut self.gapped);
        let mut next_due: Option<Instant> = None;
        let mut outcome = Ok(());
        gapped.retain(|&slot| {
            let Some(state) = self.slots.get_mut(slot as usize) else { return false };
            if outcome.is_err() {
                return true;
            }
            if let Some(due) = state.notice_due
                && due > now.at
            {
                next_due = Some(next_due.map_or(due, |earlier| earlier.min(due)));
                return true;
            }
            state.notice_due = Some(now.at + GAP_NOTICE_INTERVAL);
            state.gapped = false;
            let channel = state.channel.0;
            // The capacity stays: who has lost something often loses more.
            for (reason, Span { from, to, count }) in state.gaps.drain(..) {
                let notice = seal::event(&Event::Gap { channel, from, to, count, reason });
                self.totals.gap_notices += 1;
                if self.control_bytes + notice.len() > self.limits.control_bytes_max {
                    outcome = Err(Overflow);
                } else {
                    self.control_bytes += notice.len();
                    self.control.push_back(notice);
                }
            }
            false
        });
        self.gapped = gapped;
        self.gap_due = next_due;
        outcome
    }

    /// The invariants, checked after each change in debug builds.
    fn check(&self) {
        let live = self.data.iter().filter(|e| e.frame.is_some()).count();
        debug_assert_eq!(self.data_frames + self.marks, live);
        debug_assert!(self.data_frames <= self.limits.data_frames_max);
        debug_assert!(self.data_bytes <= self.limits.data_bytes_max);
        debug_assert!(self.data.len() <= 2 * self.limits.data_frames_max + self.marks + REMOVED_MAX + 1);
        debug_assert!(
            self.slots
                .iter()
                .all(|(_, s)| { s.published() == s.delivered + s.conflated + s.dropped + s.queued })
        );
    }
}

/// Whether [`Outbox::gather`] goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// There is room for more.
    More,
    /// Enough for one write.
    Stop,
}

#[cfg(test)]
mod tests;
