//! What a worker keeps of the streams whose home it is, for those who come back: a ring of sealed frames for each, within its own
//! bounds and, all together, within the worker's share. Pure: knows no subscriber, no outbox and no clock.
//!
//! A frame comes with a few operations on pointers; what it costs to replay it is paid when somebody does.

use std::collections::BTreeMap;
use std::time::Duration;

use slab::Slab;

use crate::clock::Now;
use crate::config::{BatchLimits, Bounds};
use crate::metrics::{By, HistoryEviction};
use crate::wire::Seq;
use crate::wire::control::ReplayOutcome;
use crate::wire::cursor::{Cursor, Lineage};

pub mod cut;
pub mod ring;
pub mod store;

use ring::{Found, Kept, Ring, StreamOf, Summary};

/// What a subscription wants of the past of the channels that its connection does not receive yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Past {
    /// What came after these cursors, by the names of channels.
    Since(BTreeMap<Box<str>, Cursor>),
    /// So many samples of each channel.
    Last(u64),
    /// What was received in the last so many milliseconds.
    LastMs(u64),
}

impl Past {
    /// Where to begin with a channel.
    #[must_use]
    pub fn start_of(&self, name: &str) -> Start {
        match self {
            Self::Since(cursors) => Start::Since(cursors.get(name).cloned()),
            Self::Last(samples) => Start::Last(*samples),
            Self::LastMs(ms) => Start::LastMs(*ms),
        }
    }

    /// Cursors in it.
    #[must_use]
    pub fn cursors(&self) -> usize {
        match self {
            Self::Since(cursors) => cursors.len(),
            Self::Last(_) | Self::LastMs(_) => 0,
        }
    }
}

/// Where to begin with a stream that a connection does not receive yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Behind a cursor; without one, where the client has never been.
    Since(Option<Cursor>),
    /// With that many samples of the past.
    Last(u64),
    /// With what was received in the last so many milliseconds.
    LastMs(u64),
}

/// Where a replay begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Sequence of the first sample that the client wants.
    pub seq: Seq,
    /// What it gets of them.
    pub outcome: ReplayOutcome,
    /// How many come, as of now.
    pub samples: u64,
}

/// Where a stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Which it is.
    pub of: StreamOf,
    /// Sequence of the next sample.
    pub next: Seq,
    /// The last sequence that was sealed into a frame.
    pub sealed: Seq,
    /// Whether it is another server's and on its way here, so that a client may have more of it than this server has yet.
    pub lags: bool,
}

/// A ring's place in its worker's history.
pub type RingKey = usize;

/// Rings that [`History::tick`] looks at, beside a part of all: those that nobody publishes to any more have to grow old, too.
const LOOKS_MIN: usize = 16;

/// Parts of all rings, one of which each tick looks at: all of them in about six seconds, an idle ring's age is exact to that.
const LOOK_PARTS: usize = 64;

/// See the module's page.
#[derive(Debug)]
pub struct History {
    bytes_max: usize,
    rings: Slab<Ring>,
    /// Every ring by when it was used; a ring that was used since is found at its old place, and moved when it is met there.
    order: BTreeMap<u64, RingKey>,
    uses: u64,
    size: Size,
    look_at: RingKey,
    evicted: By<HistoryEviction>,
}

/// What is kept at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Bytes of frames, with what each takes beside its own.
    pub bytes: usize,
    /// Frames.
    pub frames: usize,
    /// Streams that have at least one.
    pub streams: usize,
}

impl History {
    /// Nothing is kept; `bytes_max` may be.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            rings: Slab::new(),
            order: BTreeMap::new(),
            uses: 0,
            size: Size::default(),
            look_at: 0,
            evicted: By::default(),
        }
    }

    /// A ring for a stream. `lineage` are the lives that it has gone on from.
    pub fn open(&mut self, of: StreamOf, bounds: Bounds, lineage: Lineage) -> RingKey {
        self.uses += 1;
        let key = self.rings.insert(Ring::new(of, bounds, lineage, self.uses));
        self.order.insert(self.uses, key);
        key
    }

    /// Forgets a stream.
    pub fn close(&mut self, key: RingKey) {
        self.change(key, |ring, _| ring.clear());
        if let Some(ring) = self.rings.try_remove(key) {
            self.order.remove(&ring.placed);
        }
    }

    /// Keeps a frame, as the newest of its stream. One that is not newer than the last is not taken; a hole before it is.
    pub fn insert(&mut self, key: RingKey, kept: Kept, now: Now) {
        self.uses += 1;
        let uses = self.uses;
        self.change(key, |ring, evicted| {
            ring.used = uses;
            ring.push(kept, now.at, evicted);
        });
        if self.size.bytes > self.bytes_max {
            self.make_room();
        }
    }

    /// Where a connection begins that wants something of the past. Without a ring nothing is kept.
    #[must_use]
    pub fn begin(&self, key: Option<RingKey>, start: &Start, at: Standing, now: Now) -> Begin {
        match key.and_then(|key| self.rings.get(key)) {
            Some(ring) => ring.begin(start, at, now),
            None => {
                let nothing = Bounds { bytes_max: 0, age_max: Duration::ZERO, samples_max: 0 };
                Ring::new(at.of, nothing, Lineage::default(), 0).begin(start, at, now)
            }
        }
    }

    /// The frame that begins with the sample `from`: shared, put together from small ones, or cut for this caller alone.
    pub fn find(&mut self, key: RingKey, from: Seq, limits: &BatchLimits, now: Now) -> Found {
        self.uses += 1;
        let uses = self.uses;
        let found = self.change(key, |ring, evicted| {
            ring.used = uses;
            ring.trim(now.at, evicted);
            ring.find(from, limits)
        });
        found.unwrap_or(Found::End)
    }

    /// Whether what comes after `from` is gone already, and where to go on then: with the newest frames that are no more than that many
    /// bytes.
    #[must_use]
    pub fn overtakes(&self, key: RingKey, from: Seq, bytes: usize, frames: usize) -> Option<Seq> {
        self.rings.get(key)?.overtakes(from, bytes, frames)
    }

    /// What is kept of a stream.
    #[must_use]
    pub fn summary(&self, key: RingKey, now: Now) -> Option<Summary> {
        self.rings.get(key)?.summary(now)
    }

    /// To be called about ten times a second: lets go what has grown old in rings that nobody uses.
    pub fn tick(&mut self, now: Now) {
        for _ in 0..(self.rings.capacity() / LOOK_PARTS + LOOKS_MIN).min(self.rings.capacity()) {
            self.look_at = if self.look_at + 1 < self.rings.capacity() { self.look_at + 1 } else { 0 };
            self.change(self.look_at, |ring, evicted| ring.trim(now.at, evicted));
        }
    }

    /// How much is kept.
    #[must_use]
    pub const fn size(&self) -> Size {
        self.size
    }

    /// Frames that were let go.
    #[must_use]
    pub const fn evicted(&self) -> &By<HistoryEviction> {
        &self.evicted
    }

    /// Empties the rings that nobody has used for longest. Each place that is found to be old was paid by a use since.
    fn make_room(&mut self) {
        while self.size.bytes > self.bytes_max
            && let Some((placed, key)) = self.order.pop_first()
        {
            if self.rings.get(key).is_some_and(|ring| ring.used == placed) {
                // It has another place when the next frame comes.
                self.uses += 1;
                let uses = self.uses;
                self.change(key, |ring, evicted| {
                    evicted[HistoryEviction::Ceiling] += ring.frames() as u64;
                    ring.clear();
                    ring.used = uses;
                });
            }
            if let Some(ring) = self.rings.get_mut(key) {
                ring.placed = ring.used;
                self.order.insert(ring.used, key);
            }
        }
    }

    /// Works on a ring, and keeps the sums true.
    fn change<T>(
        &mut self,
        key: RingKey,
        work: impl FnOnce(&mut Ring, &mut By<HistoryEviction>) -> T,
    ) -> Option<T> {
        let ring = self.rings.get_mut(key)?;
        let (bytes, frames) = (ring.bytes(), ring.frames());
        let outcome = work(ring, &mut self.evicted);
        let Size { bytes: all_bytes, frames: all_frames, streams } = &mut self.size;
        *all_bytes = *all_bytes + ring.bytes() - bytes;
        *all_frames = *all_frames + ring.frames() - frames;
        *streams = *streams + usize::from(ring.frames() > 0) - usize::from(frames > 0);
        Some(outcome)
    }
}

#[cfg(test)]
mod tests;
