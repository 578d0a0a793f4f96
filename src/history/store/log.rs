//! The log of a store: segments, one of them written to, and what lives in each. Time is an argument, the disk a type; knows no
//! thread, no lock and no clock.
//!
//! All streams share one log, so a commit costs one write and one sync however many there are. Each segment begins with a checkpoint,
//! the state of every stream; therefore any older segment may go as soon as no frame in it is to be kept. Where few are,
//! those are written again at the end and the segment goes. So there is never more garbage than living data and two segments,
//! and a byte is written twice in the long run at the worst.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use ring::rand::{SecureRandom, SystemRandom};

use super::disk::Disk;
use super::record::{self, FRAME_OVERHEAD, Found, HEAD, Record, Scanner, State, StoredHead};
use super::{Retention, StoredFrame, StreamKey};
use crate::clock::nanos;
use crate::wire::Seq;

/// Bytes of a segment where the store may have at least 64 times as much: small enough that what is dropped for want of room is
/// a small part, and large enough that making a file is rare at 50 MB/s.
const SEGMENT_BYTES: u64 = 16 << 20;

/// Parts of the whole that a segment is where that is less.
const SEGMENT_PARTS: u64 = 64;

/// A segment holds at least as many times what its checkpoint takes.
const CHECKPOINT_PARTS: u64 = 4;

/// The most of a checkpoint: some 100,000 streams.
const CHECKPOINT_BYTES_MAX: u64 = 32 << 20;

/// Most bytes of a segment that are read. None that a store made is larger.
pub(super) const READ_MAX: u64 = 512 << 20;

/// Bytes that are gathered for a write to the file.
const WRITE_BYTES: usize = 256 << 10;

/// More than a record without a payload takes.
const SETTLED_BYTES: u64 = 64;

/// What a checkpoint may take where a store has so much in all.
pub(super) fn checkpoint_bytes_max(dir_bytes_max: u64) -> usize {
    usize::try_from((dir_bytes_max / 16).min(CHECKPOINT_BYTES_MAX)).unwrap_or(usize::MAX)
}

/// What the body of a frame may take where a store has so much in all: none may push out all others.
pub(super) fn frame_bytes_max(dir_bytes_max: u64) -> usize {
    usize::try_from((dir_bytes_max / 8).min(super::FRAME_BYTES_MAX)).unwrap_or(usize::MAX)
}

/// What is to be made durable together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) states: Vec<(State, Retention)>,
    pub(super) gone: Vec<StreamKey>,
    pub(super) frames: Vec<(StreamKey, StoredFrame)>,
}

impl Batch {
    pub(super) const fn is_empty(&self) -> bool {
        self.states.is_empty() && self.gone.is_empty() && self.frames.is_empty()
    }
}

/// Frames of a stream that follow each other and stand in one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Portion {
    segment: u64,
    first: Seq,
    last: Seq,
    /// Of the records.
    bytes: u64,
    /// The latest of them.
    received_ns: u64,
}

/// A stream as the log knows it.
#[derive(Debug)]
struct Stream {
    state: State,
    retention: Retention,
    /// By sequence.
    portions: VecDeque<Portion>,
    /// Bytes of the newest frame's record, which stays whatever its age.
    newest_bytes: u64,
}

/// What a frame of a stream has to be to stay, from the newest to the oldest.
pub(super) struct Keeping {
    bytes: u64,
    since_ns: u64,
    newest: bool,
}

impl Keeping {
    /// Begins at the newest.
    pub(super) fn new(retention: Retention, now_ns: u64) -> Self {
        Self { bytes: retention.bytes, since_ns: now_ns.saturating_sub(nanos(retention.age)), newest: true }
    }

    /// Whether the next older one stays. After the first that doesn't, none does.
    pub(super) fn keeps(&mut self, record_bytes: u64, received_ns: u64) -> bool {
        let newest = std::mem::take(&mut self.newest);
        let keeps = newest || (record_bytes <= self.bytes && received_ns >= self.since_ns);
        self.bytes = if keeps { self.bytes.saturating_sub(record_bytes) } else { 0 };
        keeps
    }
}

impl Stream {
    fn new(state: State, retention: Retention) -> Self {
        Self { state, retention, portions: VecDeque::new(), newest_bytes: 0 }
    }

    /// Counts a frame, or several that follow each other, in.
    fn insert(&mut self, portion: Portion, newest_bytes: u64) {
        if self.portions.back().is_none_or(|newest| newest.last < portion.last) {
            self.newest_bytes = newest_bytes;
        }
        let at = self.portions.partition_point(|other| other.first < portion.first);
        self.portions.insert(at, portion);
        for at in [at + 1, at] {
            if at == 0
                || at >= self.portions.len()
                || self.portions[at].segment != self.portions[at - 1].segment
            {
                continue;
            }
            let later = self.portions.remove(at).expect("it was just seen");
            let one = &mut self.portions[at - 1];
            one.last = one.last.max(later.last);
            one.bytes += later.bytes;
            one.received_ns = one.received_ns.max(later.received_ns);
        }
    }

    /// Drops what is not to be kept, and tells of the rest how many bytes live in which segment. A portion is dropped when no
    /// frame of it can be needed; what lives in one is estimated from above.
    fn prune(&mut self, now_ns: u64, mut live: impl FnMut(u64, u64)) {
        let since_ns = now_ns.saturating_sub(nanos(self.retention.age));
        let mut room = self.retention.bytes;
        let mut dead = 0;
        for (index, portion) in self.portions.iter().enumerate().rev() {
            let newest = index + 1 == self.portions.len();
            let old = portion.received_ns < since_ns;
            if !newest && (old || room == 0) {
                dead = index + 1;
                break;
            }
            let wanted = if old { 0 } else { room };
            let least = if newest { self.newest_bytes } else { 0 };
            live(portion.segment, portion.bytes.min(wanted.max(least)));
            room = room.saturating_sub(portion.bytes);
        }
        self.portions.drain(..dead);
    }
}

/// A file of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) name: String,
    pub(super) salt: u64,
    pub(super) bytes: u64,
    /// Some of it could not be read, or is perhaps only in memory: what is there is to be written again.
    pub(super) doubtful: bool,
    /// It could not be read when it was to be written again: it stays until nothing in it is to be kept.
    pub(super) stuck: bool,
}

impl Segment {
    /// The name of a segment's file.
    pub(super) fn name(number: u64, salt: u64) -> String {
        format!("{number:016x}-{salt:016x}.log")
    }

    /// Number and salt of a segment, from the name of its file; `None` for any other file.
    pub(super) fn parse(name: &str) -> Option<(u64, u64)> {
        let (number, salt) = name.strip_suffix(".log")?.split_once('-')?;
        let parsed = (u64::from_str_radix(number, 16).ok()?, u64::from_str_radix(salt, 16).ok()?);
        (Self::name(parsed.0, parsed.1) == name).then_some(parsed)
    }
}

/// The segment that is written to.
struct Active<F> {
    number: u64,
    salt: u64,
    file: F,
    /// Bytes given to the file, and those of them that are safe.
    written: u64,
    synced: u64,
    /// Where the next segment begins.
    limit: u64,
}

/// A frame that is to stay, as recovery found it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) segment: u64,
    pub(super) first: Seq,
    pub(super) last: Seq,
    pub(super) record_bytes: u64,
    pub(super) received_ns: u64,
}

/// What a log has done since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Bytes written for the second time, so that a segment could go.
    pub(super) moved_bytes: u64,
    /// Bytes of segments that had to go for want of room, though some of it was to be kept.
    pub(super) evicted_bytes: u64,
    /// Bytes that could not be read again.
    pub(super) damaged_bytes: u64,
}

/// See the module.
pub(super) struct Log<D: Disk> {
    disk: D,
    bytes_max: u64,
    streams: BTreeMap<StreamKey, Stream>,
    segments: BTreeMap<u64, Segment>,
    active: Option<Active<D::File>>,
    buffer: Vec<u8>,
    /// The newest segment whose checkpoint is whole and safe: none that is older is needed for the states.
    base: Option<u64>,
    /// A segment, and the length that it has to be cut to before there can be another: only at the end of the newest one is
    /// recovery prepared for what was never safe.
    ragged: Option<(String, u64)>,
    /// No segment is in doubt, and that is written.
    settled: bool,
    /// The mark of the last stop in order, as file and length without it: taken away before anything is written.
    mark: Option<(String, u64)>,
    next_number: u64,
    totals: Totals,
}

impl<D: Disk> Log<D> {
    /// With what recovery found. Frames are given by stream, in order.
    pub(super) fn new(
        disk: D,
        bytes_max: u64,
        streams: Vec<(State, Retention, Vec<Placed>)>,
        segments: BTreeMap<u64, Segment>,
        base: Option<u64>,
        mark: Option<(String, u64)>,
        next_number: u64,
    ) -> Self {
        let settled = segments.values().all(|segment| !segment.doubtful);
        let stream = |(state, retention, frames): (State, Retention, Vec<Placed>)| {
            let mut stream = Stream::new(state, retention);
            for frame in frames {
                let Placed { segment, first, last, record_bytes: bytes, received_ns } = frame;
                stream.insert(Portion { segment, first, last, bytes, received_ns }, bytes);
            }
            (stream.state.key, stream)
        };
        Self {
            disk,
            bytes_max,
            streams: streams.into_iter().map(stream).collect(),
            segments,
            active: None,
            buffer: Vec::new(),
            base,
            ragged: None,
            settled,
            mark,
            next_number,
            totals: Totals::default(),
        }
    }

    /// Bytes of all segments.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.segments.values().map(|segment| segment.bytes).sum()
    }

    /// How many segments there are.
    pub(super) fn segments(&self) -> usize {
        self.segments.len()
    }

    /// What was done since the log was opened.
    pub(super) const fn totals(&self) -> Totals {
        self.totals
    }

    /// Whether there is a segment to write to. Otherwise a commit makes one, also an empty one.
    pub(super) const fn is_ready(&self) -> bool {
        self.active.is_some()
    }

    /// Makes the states of all streams durable: the first thing after opening.
    pub(super) fn begin(&mut self, now_ns: u64) -> io::Result<()> {
        self.prune(now_ns)?;
        self.start_segment(0)
    }

    /// Gives every stream a new epoch, after a stop that was not in order.
    pub(super) fn renew(&mut self, mut renew: impl FnMut(&mut State)) {
        self.streams.values_mut().for_each(|stream| renew(&mut stream.state));
    }

    /// The state of every stream.
    pub(super) fn states(&self) -> impl Iterator<Item = &State> {
        self.streams.values().map(|stream| &stream.state)
    }

    /// Makes a batch durable. After an error it may be given again: what was safe before stays so, and nothing is counted twice.
    pub(super) fn commit(&mut self, batch: &Batch) -> io::Result<()> {
        let result = self.write_batch(batch).and_then(|placed| {
            self.sync()?;
            Ok(placed)
        });
        match result {
            Ok(placed) => {
                self.count_in(placed);
                Ok(())
            }
            Err(error) => {
                self.abandon();
                Err(error)
            }
        }
    }

    fn count_in(&mut self, placed: Vec<(StreamKey, Portion)>) {
        for (key, portion) in placed {
            // A batch that is larger than what the store may have pushes out what it began with.
            let there = self.segments.contains_key(&portion.segment);
            if let Some(stream) = self.streams.get_mut(&key).filter(|_| there) {
                stream.insert(portion, portion.bytes);
            }
        }
    }

    fn write_batch(&mut self, batch: &Batch) -> io::Result<Vec<(StreamKey, Portion)>> {
        if self.active.is_none() {
            self.start_segment(0)?;
        }
        for key in &batch.gone {
            self.streams.remove(key);
        }
        for (state, retention) in &batch.states {
            let stream =
                self.streams.entry(state.key).or_insert_with(|| Stream::new(state.clone(), *retention));
            stream.state = state.clone();
            stream.retention = *retention;
            stream.portions.retain(|portion| portion.last >= state.floor);
            // Behind a new segment it stands twice, which does no harm.
            let (salt, at) = self.place(record_bytes_of(state))?;
            record::put_state(&mut self.buffer, salt, at, state);
            self.flush(WRITE_BYTES)?;
        }
        let mut placed = Vec::with_capacity(batch.frames.len());
        for (key, frame) in &batch.frames {
            // One that was forgotten after the frame was given.
            if self.streams.get(key).is_none_or(|stream| frame.first < stream.state.floor) {
                continue;
            }
            let head = StoredHead {
                key: *key,
                first: frame.first,
                last: frame.last,
                count: frame.count,
                flushed_ns: frame.flushed_ns,
                received_ns: frame.received_ns,
            };
            placed.push((*key, self.write_frame(&head, &frame.body)?));
            // At once: a checkpoint may follow within the batch, and outlive the frame.
            if let Some(stream) = self.streams.get_mut(key) {
                stream.state.next_seq = stream.state.next_seq.max(frame.last + 1);
            }
        }
        Ok(placed)
    }

    fn write_frame(&mut self, head: &StoredHead, body: &[u8]) -> io::Result<Portion> {
        let bytes = bytes_of(FRAME_OVERHEAD + body.len());
        let (salt, at) = self.place(bytes)?;
        record::put_frame(&mut self.buffer, salt, at, head, body);
        self.flush(WRITE_BYTES)?;
        let active = self.active.as_ref().expect("a place is in a segment");
        let StoredHead { first, last, received_ns, .. } = *head;
        Ok(Portion { segment: active.number, first, last, bytes, received_ns })
    }

    /// Where the next record begins, in a segment that has room for it.
    fn place(&mut self, bytes: u64) -> io::Result<(u64, u64)> {
        let buffered = bytes_of(self.buffer.len());
        match &self.active {
            Some(active) if active.written + buffered + bytes <= active.limit => {}
            Some(_) => {
                self.sync()?;
                self.start_segment(bytes)?;
            }
            None => self.start_segment(bytes)?,
        }
        let active = self.active.as_ref().expect("one was just started");
        Ok((active.salt, active.written + bytes_of(self.buffer.len())))
    }

    /// Gives the file what was gathered, if it is more than `most`.
    fn flush(&mut self, most: usize) -> io::Result<()> {
        let Some(active) = self.active.as_mut().filter(|_| self.buffer.len() > most) else { return Ok(()) };
        self.disk.write(&mut active.file, &self.buffer)?;
        active.written += bytes_of(self.buffer.len());
        if let Some(segment) = self.segments.get_mut(&active.number) {
            segment.bytes = active.written;
        }
        self.buffer.clear();
        Ok(())
    }

    /// Returns when all that was written is safe.
    fn sync(&mut self) -> io::Result<()> {
        self.flush(0)?;
        let Some(active) = self.active.as_mut() else { return Ok(()) };
        if active.synced < active.written {
            self.disk.sync(&mut active.file)?;
            active.synced = active.written;
        }
        Ok(())
    }

    /// Leaves the segment that failed as it was when it was last safe. What comes next goes into a new one: after a failed sync
    /// nobody knows what the file has.
    fn abandon(&mut self) {
        self.buffer.clear();
        let Some(active) = self.active.take() else { return };
        let Some(segment) = self.segments.get_mut(&active.number) else { return };
        segment.bytes = active.synced;
        if self.disk.cut(&segment.name, active.synced).is_err() {
            self.ragged = Some((segment.name.clone(), active.synced));
        }
    }

    /// Begins a segment with the states of all streams, safe, and makes room for it and a record of so many bytes.
    fn start_segment(&mut self, record_bytes: u64) -> io::Result<()> {
        self.active = None;
        if let Some((name, length)) = &self.ragged {
            self.disk.cut(name, *length)?;
            self.ragged = None;
        }
        let salt = salt()?;
        let mut bytes = Vec::from(record::head());
        for stream in self.streams.values() {
            let at = bytes_of(bytes.len());
            record::put_state(&mut bytes, salt, at, &stream.state);
        }
        let states = u32::try_from(self.streams.len()).expect("a checkpoint is bounded");
        let at = bytes_of(bytes.len());
        record::put_checkpoint(&mut bytes, salt, at, states, self.settled);

        let written = bytes_of(bytes.len());
        let limit = (self.bytes_max / SEGMENT_PARTS)
            .min(SEGMENT_BYTES)
            .max(written * (1 + CHECKPOINT_PARTS))
            .max(written + record_bytes);
        self.make_room(limit)?;

        let number = self.next_number;
        let name = Segment::name(number, salt);
        let mut file = self.disk.create(&name)?;
        self.next_number += 1;
        let begun = self
            .disk
            .write(&mut file, &bytes)
            .and_then(|()| self.disk.sync(&mut file))
            .and_then(|()| self.disk.sync_names())
            .and_then(|()| match &self.mark {
                Some((name, length)) if self.segments.values().any(|segment| segment.name == *name) => {
                    self.disk.cut(name, *length)
                }
                _ => Ok(()),
            });
        if let Err(error) = begun {
            // If that fails too, it is a segment without frames that the next start takes away.
            let _ = self.disk.remove(&name);
            return Err(error);
        }
        if let Some((marked, length)) = self.mark.take()
            && let Some(segment) = self.segments.values_mut().find(|segment| segment.name == marked)
        {
            segment.bytes = length;
        }
        self.segments.insert(number, Segment { name, salt, bytes: written, doubtful: false, stuck: false });
        self.base = Some(number);
        self.active = Some(Active { number, salt, file, written, synced: written, limit });
        Ok(())
    }

    /// Drops the oldest segments until so many bytes more fit.
    fn make_room(&mut self, bytes: u64) -> io::Result<()> {
        while self.disk_bytes() + bytes > self.bytes_max
            && let Some((number, segment)) = self.segments.iter().find(|(number, _)| self.is_spare(**number))
        {
            let (number, segment_bytes) = (*number, segment.bytes);
            self.remove_segment(number)?;
            self.totals.evicted_bytes += segment_bytes;
        }
        // That they are gone is made safe with the name of the new one.
        Ok(())
    }

    /// Whether no state is lost with a segment.
    fn is_spare(&self, number: u64) -> bool {
        self.base.is_some_and(|base| number < base)
    }

    fn remove_segment(&mut self, number: u64) -> io::Result<()> {
        let Some(segment) = self.segments.get(&number) else { return Ok(()) };
        self.disk.remove(&segment.name)?;
        self.segments.remove(&number);
        for stream in self.streams.values_mut() {
            stream.portions.retain(|portion| portion.segment != number);
        }
        Ok(())
    }

    /// Takes away the segments in which nothing is to be kept; returns what lives in the others.
    fn prune(&mut self, now_ns: u64) -> io::Result<BTreeMap<u64, u64>> {
        let mut live: BTreeMap<u64, u64> = BTreeMap::new();
        for stream in self.streams.values_mut() {
            stream.prune(now_ns, |segment, bytes| *live.entry(segment).or_default() += bytes);
        }
        let dead: Vec<u64> = self
            .segments
            .keys()
            .copied()
            .filter(|number| !live.contains_key(number) && self.is_spare(*number))
            .collect();
        let any = !dead.is_empty();
        for number in dead {
            self.remove_segment(number)?;
        }
        // It may hold frames of a batch that failed: once given up, they may not come back.
        if any {
            self.disk.sync_names()?;
        }
        Ok(live)
    }

    /// Gives space back: call it after a commit and about once a second. Moves what lives in one segment at the most.
    pub(super) fn maintain(&mut self, now_ns: u64) -> io::Result<()> {
        let live = self.prune(now_ns)?;
        let Some(active) = &self.active else { return Ok(()) };
        let limit = active.limit;
        let total = self.disk_bytes();
        let garbage = total.saturating_sub(live.values().sum());
        let pressed = garbage > (total - garbage) + 2 * limit || total + 2 * limit > self.bytes_max;
        let candidate = self
            .segments
            .iter()
            .filter(|(number, segment)| self.is_spare(**number) && !segment.stuck)
            .map(|(number, segment)| (live.get(number).copied().unwrap_or(0), *number, segment))
            .filter(|(living, _, segment)| segment.doubtful || (pressed && living * 2 <= segment.bytes))
            .min_by_key(|(living, number, segment)| (!segment.doubtful, *living, *number))
            .map(|(_, number, _)| number);
        match candidate {
            Some(number) => self.rewrite(number, now_ns),
            None if self.settled => Ok(()),
            None => {
                let settled = self.write_settled();
                if settled.is_err() {
                    self.abandon();
                }
                settled
            }
        }
    }

    /// Writes again what is in doubt after a start.
    pub(super) fn settle(&mut self, now_ns: u64) -> io::Result<()> {
        while !self.settled {
            self.maintain(now_ns)?;
        }
        Ok(())
    }

    fn write_settled(&mut self) -> io::Result<()> {
        let doubtful = |segment: &Segment| segment.doubtful && !segment.stuck;
        if self.segments.values().any(doubtful) {
            return Ok(());
        }
        let (salt, at) = self.place(SETTLED_BYTES)?;
        record::put_settled(&mut self.buffer, salt, at);
        self.sync()?;
        self.settled = true;
        Ok(())
    }

    /// Writes what is to be kept of a segment again, and takes the segment away.
    fn rewrite(&mut self, number: u64, now_ns: u64) -> io::Result<()> {
        let Some(segment) = self.segments.get_mut(&number) else { return Ok(()) };
        let Ok(bytes) = self.disk.read(&segment.name, READ_MAX) else {
            segment.stuck = true;
            return Ok(());
        };
        let salt = segment.salt;
        let mut frames: BTreeMap<StreamKey, BTreeMap<Seq, (StoredHead, &[u8])>> = BTreeMap::new();
        let mut unread = bytes_of(bytes.len()).saturating_sub(bytes_of(HEAD));
        for found in Scanner::new(&bytes, salt) {
            let Found::Record(range, record) = found else { continue };
            unread = unread.saturating_sub(bytes_of(range.len()));
            if let Record::Frame(head, body) = record
                && let Some(stream) = self.streams.get(&head.key)
                && stream.portions.iter().any(|portion| portion.segment == number && portion.holds(&head))
            {
                frames.entry(head.key).or_default().insert(head.first, (head, body));
            }
        }
        if !segment.doubtful {
            self.totals.damaged_bytes += unread;
        }
        let moved = self.move_frames(number, &frames, now_ns).and_then(|moved| {
            self.sync()?;
            Ok(moved)
        });
        match moved {
            Ok(moved) => {
                for stream in self.streams.values_mut() {
                    stream.portions.retain(|portion| portion.segment != number);
                }
                self.totals.moved_bytes += moved.iter().map(|(_, portion)| portion.bytes).sum::<u64>();
                self.count_in(moved);
                self.remove_segment(number)?;
                self.disk.sync_names()
            }
            Err(error) => {
                self.abandon();
                Err(error)
            }
        }
    }

    fn move_frames(
        &mut self,
        number: u64,
        frames: &BTreeMap<StreamKey, BTreeMap<Seq, (StoredHead, &[u8])>>,
        now_ns: u64,
    ) -> io::Result<Vec<(StreamKey, Portion)>> {
        let mut moved = Vec::new();
        for (key, frames) in frames {
            let stream = &self.streams[key];
            let mut keeping = Keeping::new(stream.retention, now_ns);
            let mut kept = Vec::new();
            for portion in stream.portions.iter().rev() {
                if portion.segment != number {
                    // Frame by frame would say the same: none of these is the oldest that stays.
                    keeping.keeps(portion.bytes, portion.received_ns);
                    continue;
                }
                for (head, body) in frames.range(portion.first..=portion.last).rev().map(|(_, frame)| frame) {
                    if keeping.keeps(bytes_of(FRAME_OVERHEAD + body.len()), head.received_ns) {
                        kept.push((*head, *body));
                    }
                }
            }
            for (head, body) in kept.iter().rev() {
                moved.push((*key, self.write_frame(head, body)?));
            }
        }
        Ok(moved)
    }

    /// Writes the states as they are at the end, and the mark of a stop in order.
    pub(super) fn close(&mut self, states: Vec<State>) -> io::Result<()> {
        let closed = self.write_close(states);
        if closed.is_err() {
            self.abandon();
        }
        closed
    }

    fn write_close(&mut self, states: Vec<State>) -> io::Result<()> {
        for state in &states {
            if let Some(stream) = self.streams.get_mut(&state.key) {
                stream.state = state.clone();
            }
        }
        for state in &states {
            let (salt, at) = self.place(record_bytes_of(state))?;
            record::put_state(&mut self.buffer, salt, at, state);
            self.flush(WRITE_BYTES)?;
        }
        // All that the mark stands for is safe before it can be.
        self.sync()?;
        let (salt, at) = self.place(0)?;
        record::put_clean(&mut self.buffer, salt, at);
        self.sync()
    }
}

impl Portion {
    const fn holds(&self, head: &StoredHead) -> bool {
        self.first <= head.first && head.last <= self.last
    }
}

/// Not to be guessed by who sees epochs, which are random as well.
fn salt() -> io::Result<u64> {
    let mut salt = [0; 8];
    SystemRandom::new()
        .fill(&mut salt)
        .map_err(|_| io::Error::other("the system gives no random numbers"))?;
    Ok(u64::from_le_bytes(salt))
}

fn record_bytes_of(state: &State) -> u64 {
    bytes_of(State::bytes_max(&state.name))
}

fn bytes_of(length: usize) -> u64 {
    length as u64
}
