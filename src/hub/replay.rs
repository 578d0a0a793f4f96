//! Samples of the past for those who come back. A connection catches up first and joins its class then: its worker asks the channel's
//! home for a part at a time, as the outbox has room for it, and the home makes it of its history. The part that ends at the newest
//! sample comes with the join, so past and present are one sequence. Nothing here runs for a sample that is live.
//!
//! Paced: a worker makes or asks for one part in each [`STEP`], in turns, so that those who come back do not delay the others.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use slab::Slab;

use super::batch::{Batch, BlockRef, ClassKey, FrameOf};
use super::channel::{Channel, Class, ClassesFull};
use super::directory::ChannelInfo;
use super::membership::{class_of, slot_options};
use super::router::{Fetch, Fetched, Joined, Piece, ToWorker};
use super::{Hub, Refused};
use crate::clock::Now;
use crate::history::cut::BLOCK_SAMPLES_MAX;
use crate::history::ring::{Found, Kept, instant_of};
use crate::history::{Begin, RingKey, Start};
use crate::outbox::handle::OutboxHandle;
use crate::pattern::Pattern;
use crate::wire::control::{ErrorCode, Event, KeptStream, Replay};
use crate::wire::decode::{SampleSpan, next_block, scan_content};
use crate::wire::encode::FrameHeader;
use crate::wire::{ChannelId, Codec, ConnectionId, Frame, Seq, TIMED_SAMPLES, seal};

/// Bytes of a connection's first part: as much as a write takes. Each further one may have twice as many, as far as the outbox has
/// room: who gets no nearer to a busy channel's newest sample in small steps gets there in large ones.
const PART_BYTES_MAX: usize = 64 << 10;

/// How often parts double: to 1 MiB, the default room of an outbox.
const DOUBLINGS_MAX: u32 = 4;

/// A connection gets its next part when no more than this waits in its outbox: some is always there to be written.
const LOW_BYTES: usize = PART_BYTES_MAX / 2;

/// Parts of an outbox that may be full when the next part of the past is asked for. The rest is room for it, and for what is live.
const LOW_PARTS: usize = 4;

/// Time between two parts that a worker makes or asks for, for each [`PART_BYTES_MAX`] of it. So much takes some 50 us to put together and to write, so replays take a
/// twentieth of a worker, and 64 MB/s go to those who come back.
const STEP: Duration = Duration::from_millis(1);

/// Time until a worker looks again for outboxes with room, where none has any, or all together have little.
const LOOK: Duration = Duration::from_millis(5);

/// Outboxes that are looked at in a step.
const LOOKS_MAX: usize = 64;

/// Parts that a worker has asked of others and not got yet: with [`PART_BYTES_MAX`], what of the past is between two workers.
const FETCHES_MAX: usize = 16;

/// Those for whom there was nothing that look again at once. Each takes a step as a part does; at ten times a second a third of them
/// all, so that nobody who has something to catch up with waits for those who have not.
const WOKEN_MAX: usize = 32;

/// A frame grows by no more than this, nearly always, from protobuf to another codec.
const GROWTH: usize = 6;

/// Bytes of frames in other codecs that a worker remembers: those that come back together walk through a history together.
const TRANSCODED_BYTES_MAX: usize = 1 << 20;

/// A channel that a connection catches up with.
#[derive(Debug)]
struct CatchingUp {
    member: usize,
    info: Arc<ChannelInfo>,
    /// When its rate allows the next sample.
    allowed: Option<Instant>,
    /// Parts that it has got.
    parts: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It has this turn.
    Waiting(u64),
    /// There was nothing for it. It gets a turn with the next tick.
    Resting,
    /// The home was asked, for this class.
    Asked(ClassKey),
    /// The home was asked, for this class, and the connection wants it no more.
    Gone(ClassKey),
}

/// A `history` that another worker has a part in.
#[derive(Debug)]
pub(super) struct Describing {
    member: usize,
    connection: ConnectionId,
    id: Option<u64>,
    info: Arc<ChannelInfo>,
}

/// See the module's page.
#[derive(Debug, Default)]
pub(super) struct Replays {
    catching_up: Slab<CatchingUp>,
    /// Those that wait for their next part, by turn.
    waiting: BTreeMap<u64, usize>,
    turns: u64,
    /// Those for which there was nothing: the mirror of a stream lags behind what they have got elsewhere.
    resting: BTreeSet<usize>,
    /// Behind the last of them that looked again.
    woken: usize,
    /// What other workers have asked for.
    asked: VecDeque<Fetch>,
    /// Whose turn is next: one of the others', or one of this worker's own.
    others_first: bool,
    /// Asked of other workers and not answered.
    fetching: usize,
    /// Those that have everything that was sealed, and join with the next frame of the history.
    at_end: HashMap<ChannelId, Vec<Fetch>>,
    next_step: Option<Instant>,
    stepped_at: Option<Instant>,
    transcoded: Transcoded,
    pub(super) describing: Slab<Describing>,
}

/// Frames in other codecs than the history's, the newest last.
#[derive(Debug, Default)]
struct Transcoded {
    frames: VecDeque<((ChannelId, Codec, Seq, Seq), Bytes)>,
    bytes: usize,
}

impl Transcoded {
    fn get(&self, key: (ChannelId, Codec, Seq, Seq)) -> Option<Bytes> {
        // Those that walk together ask for what was made last.
        self.frames.iter().rev().find(|(of, _)| *of == key).map(|(_, bytes)| bytes.clone())
    }

    fn remember(&mut self, key: (ChannelId, Codec, Seq, Seq), bytes: &Bytes) {
        self.bytes += bytes.len();
        self.frames.push_back((key, bytes.clone()));
        while self.bytes > TRANSCODED_BYTES_MAX
            && let Some((_, gone)) = self.frames.pop_front()
        {
            self.bytes -= gone.len();
        }
    }
}

impl Replays {
    /// When [`Hub::step_replays`] has something to do.
    pub(super) const fn next_step(&self) -> Option<Instant> {
        self.next_step
    }

    /// Whether somebody waits for the next frame of a channel's history.
    pub(super) fn awaits_frame(&self, channel: ChannelId) -> bool {
        !self.at_end.is_empty() && self.at_end.contains_key(&channel)
    }

    fn wait(&mut self, key: usize, now: Now) {
        self.take_turn(key);
        self.wake(now);
    }

    fn rest(&mut self, key: usize) {
        self.resting.insert(key);
        self.catching_up[key].state = State::Resting;
    }

    /// Those for which there was nothing look again. To be called about ten times a second: a mirror lags by less, mostly.
    pub(super) fn wake_resting(&mut self, now: Now) {
        for _ in 0..WOKEN_MAX.min(self.resting.len()) {
            let mut next = self.resting.range(self.woken..).chain(&self.resting);
            let Some(&key) = next.next() else { return };
            self.resting.remove(&key);
            self.woken = key + 1;
            self.wait(key, now);
        }
    }

    fn take_turn(&mut self, key: usize) {
        self.turns += 1;
        self.waiting.insert(self.turns, key);
        self.catching_up[key].state = State::Waiting(self.turns);
    }

    fn wake(&mut self, now: Now) {
        if self.next_step.is_none() {
            self.next_step = Some(self.stepped_at.map_or(now.at, |at| now.at.max(at + STEP)));
        }
    }
}

impl Hub {
    /// Where a connection begins with a channel whose home is here: in its class, or with what is kept.
    pub(super) fn begin_at_home(
        &mut self,
        info: &Arc<ChannelInfo>,
        from: Option<ClassKey>,
        to: ClassKey,
        start: Option<&Start>,
        worker: usize,
        now: Now,
    ) -> Result<Joined, ClassesFull> {
        let Some(start) = start else {
            return self.join_at_home(info, from, to, worker, now).map(Joined::Live);
        };
        self.begin_channel(info, now);
        let channel = &self.channels[&info.id];
        let (ring, standing) = (channel.ring(), channel.standing());
        Ok(Joined::Past(self.history.begin(ring, start, standing, now)))
    }

    /// A connection begins to catch up with a channel.
    pub(super) fn begin_replay(&mut self, member: usize, info: Arc<ChannelInfo>, begin: Begin, now: Now) {
        let Begin { seq: _, outcome, samples } = begin;
        let Some(receiving) = self.members[member].receiving.get_mut(&info.id) else { return };
        self.metrics.counters.replays[outcome] += 1;
        // It takes its turn at once.
        let state = State::Waiting(0);
        let key =
            self.replays.catching_up.insert(CatchingUp { member, info, allowed: None, parts: 0, state });
        receiving.replay = Some(key);
        receiving.note_replay(Replay { outcome, samples });
        self.replays.wait(key, now);
    }

    /// A connection does not want a channel any more with which it catches up.
    pub(super) fn end_replay(&mut self, key: usize) {
        let Some(catching_up) = self.replays.catching_up.get_mut(key) else { return };
        match catching_up.state {
            State::Waiting(turn) => {
                self.replays.waiting.remove(&turn);
                self.replays.catching_up.remove(key);
            }
            State::Resting => {
                self.replays.resting.remove(&key);
                self.replays.catching_up.remove(key);
            }
            // Its number must not be another's when the answer comes.
            State::Asked(class) | State::Gone(class) => catching_up.state = State::Gone(class),
        }
    }

    /// Another worker wants a part of the past.
    pub(super) fn note_fetch(&mut self, fetch: Fetch, now: Now) {
        self.replays.asked.push_back(fetch);
        self.replays.wake(now);
    }

    /// Makes one part of the past, or asks for one, if it is time.
    pub(super) fn step_replays(&mut self, now: Now) {
        if self.replays.next_step.is_none_or(|at| at > now.at) {
            return;
        }
        self.replays.others_first = !self.replays.others_first;
        let stepped = if self.replays.others_first {
            self.serve_other(now).or_else(|| self.serve_own(now))
        } else {
            self.serve_own(now).or_else(|| self.serve_other(now))
        };
        // All outboxes together have a ceiling: near it, what is live comes first.
        let crowded = self.memory.bytes() > self.memory.bytes_max() / 2;
        let stepped = stepped.filter(|_| !crowded);
        let wait =
            stepped.map_or(LOOK, |bytes| STEP * u32::try_from(bytes / PART_BYTES_MAX).unwrap_or(1).max(1));
        let idle = self.replays.waiting.is_empty() && self.replays.asked.is_empty();
        self.replays.stepped_at = Some(now.at);
        self.replays.next_step = (!idle).then(|| now.at + wait);
    }

    /// The parts that wait for a frame of the history that was just sealed.
    pub(super) fn serve_at_end(&mut self, channel: ChannelId, now: Now) {
        let waiting = self.replays.at_end.remove(&channel).unwrap_or_default();
        // The publish that was too much for the last frame is in the next one already: one more seal for all who wait.
        self.with_channel(channel, now, Channel::seal_kept);
        self.dispatch(channel, now);
        for fetch in waiting {
            self.serve(fetch, now);
        }
    }

    /// A channel is gone: whoever still waits for a frame of it gets none.
    pub(super) fn refuse_at_end(&mut self, channel: ChannelId, now: Now) {
        for fetch in self.replays.at_end.remove(&channel).unwrap_or_default() {
            let Fetch { from: next, allowed, worker, token, .. } = fetch;
            let nothing = Fetched { pieces: Vec::new(), next, allowed, joined: None };
            self.answer_fetch(worker, token, nothing, now);
        }
    }

    /// Makes the part that another worker has asked for first. Returns how many bytes it has.
    fn serve_other(&mut self, now: Now) -> Option<usize> {
        let fetch = self.replays.asked.pop_front()?;
        Some(self.serve(fetch, now))
    }

    /// The first connection here whose outbox has room gets its next part, or its part is asked for. Returns how many bytes were made.
    fn serve_own(&mut self, now: Now) -> Option<usize> {
        if self.draining {
            return None;
        }
        for _ in 0..LOOKS_MAX.min(self.replays.waiting.len()) {
            let (_, key) = self.replays.waiting.pop_first()?;
            if let Some(fetch) = self.fetch_of(key) {
                self.replays.catching_up[key].state = State::Asked(fetch.class);
                if fetch.info.home == self.worker {
                    return Some(self.serve(fetch, now));
                }
                self.replays.fetching += 1;
                self.router.send(fetch.info.home, ToWorker::Fetch(Box::new(fetch)));
                return Some(0);
            }
            self.replays.take_turn(key);
        }
        None
    }

    /// What a connection asks for next, if its outbox has room.
    fn fetch_of(&self, key: usize) -> Option<Fetch> {
        let CatchingUp { member, info, allowed, parts, .. } = self.replays.catching_up.get(key)?;
        if info.home != self.worker && self.replays.fetching >= FETCHES_MAX {
            return None;
        }
        let this = self.members.get(*member)?;
        let receiving = this.receiving.get(&info.id)?;
        let mut outbox = this.handle.outbox().borrow_mut();
        let limits = &self.config.outbox;
        let (bytes, frames) = (outbox.data_bytes(), outbox.data_frames());
        let low = bytes <= LOW_BYTES.min(limits.data_bytes_max / LOW_PARTS)
            && frames <= limits.data_frames_max / LOW_PARTS;
        if !low || this.handle.ending().is_some() {
            return None;
        }
        let delivery = &this.subscriptions[receiving.by].delivery;
        let class = class_of(delivery, this.codec);
        outbox.set_options(receiving.slot, slot_options(delivery, class));
        Some(Fetch {
            info: Arc::clone(info),
            class,
            from: outbox.next_seq(receiving.slot),
            bytes: (PART_BYTES_MAX << parts.min(&DOUBLINGS_MAX)).min(limits.data_bytes_max - bytes),
            frames: limits.data_frames_max - frames,
            allowed: *allowed,
            first: *parts == 0,
            worker: self.worker,
            token: key,
        })
    }

    /// Makes a part of the past, and returns how many bytes it has. If it ends at the newest sample, the receiver joins its class with
    /// it; if only samples that are not sealed yet are missing, and they are about to be, it waits for them.
    fn serve(&mut self, fetch: Fetch, now: Now) -> usize {
        let (info, class) = (Arc::clone(&fetch.info), fetch.class);
        self.begin_channel(&info, now);
        let channel = &self.channels[&info.id];
        let (ring, standing) = (channel.ring(), channel.standing());
        let kept_class = channel.kept_class().map(Class::key);
        let mut part = Part::new(&fetch);
        let complete = match ring {
            Some(ring) => self.fill(&mut part, ring, fetch.first, &info, now),
            None => true,
        };
        if complete {
            part.skip_to(standing.sealed);
        }
        // Who has had more elsewhere than a mirror has here joins when it has as much: what comes until then is not for him.
        let joined = if !complete || part.next > standing.next {
            None
        } else if kept_class == Some(class)
            && part.next == standing.sealed + 1
            && let Some(channel) = self.channels.get_mut(&info.id)
        {
            // The batch that is open begins where the history ends.
            channel.join_kept(fetch.worker);
            Some(Ok(()))
        } else if standing.sealed + 1 == standing.next {
            let joined = self.join_at_home(&info, None, class, fetch.worker, now);
            Some(joined.map(drop))
        } else if part.pieces.is_empty() {
            self.replays.at_end.entry(info.id).or_default().push(fetch);
            return 0;
        } else {
            None
        };
        let (worker, token) = (fetch.worker, fetch.token);
        let bytes = part.bytes;
        let fetched = part.finish(&info, joined, now);
        self.answer_fetch(worker, token, fetched, now);
        bytes
    }

    /// Fills a part from the history. Returns whether nothing is left there.
    fn fill(&mut self, part: &mut Part, ring: RingKey, first: bool, info: &ChannelInfo, now: Now) -> bool {
        let limits = &self.config.batch;
        if !first && let Some(from) = self.history.overtakes(ring, part.next, part.bytes_max, part.frames_max)
        {
            // What is left would be gone with the next part, too: the receiver goes on where it can catch up.
            part.skip_to(from - 1);
        }
        loop {
            if part.is_full() {
                return false;
            }
            match self.history.find(ring, part.next, limits, now) {
                Found::End => return true,
                Found::Gone(upto) => part.skip_to(upto),
                Found::Frame { kept, shared } => {
                    if !part.take(
                        &kept,
                        shared,
                        info,
                        &mut self.replays.transcoded,
                        limits.frame_bytes_max,
                        now,
                    ) {
                        return false;
                    }
                }
            }
        }
    }

    fn answer_fetch(&mut self, worker: usize, token: usize, fetched: Fetched, now: Now) {
        if worker == self.worker {
            self.take_part(token, fetched, now);
        } else {
            self.router.send(worker, ToWorker::Fetched { token, fetched: Box::new(fetched) });
        }
    }

    /// Another worker has made a part of the past.
    pub(super) fn finish_fetch(&mut self, token: usize, fetched: Fetched, now: Now) {
        self.replays.fetching = self.replays.fetching.saturating_sub(1);
        self.take_part(token, fetched, now);
    }

    /// Puts a part of the past into the outbox. With the last one the connection is in its class.
    fn take_part(&mut self, token: usize, fetched: Fetched, now: Now) {
        let Some(catching_up) = self.replays.catching_up.get_mut(token) else { return };
        let Fetched { pieces, next, allowed, joined } = fetched;
        let class = match catching_up.state {
            State::Asked(class) => class,
            State::Gone(class) => {
                let gone = self.replays.catching_up.remove(token);
                if joined == Some(Ok(())) {
                    self.leave(&gone.info, class);
                }
                return;
            }
            State::Waiting(_) | State::Resting => {
                debug_assert!(false, "a part that nobody has asked for");
                return;
            }
        };
        let is_nothing = pieces.is_empty() && joined.is_none();
        catching_up.parts += 1;
        catching_up.allowed = allowed;
        let (member, info) = (catching_up.member, Arc::clone(&catching_up.info));
        let Some(this) = self.members.get_mut(member) else { return };
        let handle = Rc::clone(&this.handle);
        let Some(receiving) = this.receiving.get_mut(&info.id) else { return };
        let slot = receiving.slot;
        for piece in pieces {
            match piece {
                Piece::Gone(upto) => handle.outbox().borrow_mut().note_gone(slot, upto, now),
                Piece::Frame(frame) => {
                    self.metrics.counters.samples_replayed += u64::from(frame.count);
                    self.metrics.counters.bytes_replayed += frame.bytes.len() as u64;
                    handle.push_data(slot, &self.memory.hold(frame), now);
                }
            }
        }
        // What its class has left out behind the last frame.
        handle.outbox().borrow_mut().note_head(slot, next - 1, now);
        match joined {
            None if is_nothing => self.replays.rest(token),
            None => self.replays.wait(token, now),
            Some(Ok(())) => {
                receiving.replay = None;
                receiving.class = Some(class);
                self.replays.catching_up.remove(token);
                self.add_receiver(info.id, class, Rc::clone(&handle), slot);
                self.push_live(&handle, slot, info.id, next, now);
                self.settle_options(member, info.id, now);
            }
            Some(Err(ClassesFull)) => {
                receiving.replay = None;
                self.replays.catching_up.remove(token);
                self.forget_receiving(member, info.id, now);
                self.refuse_class(member, info.id);
            }
        }
        handle.wake_writer();
        if self.memory.bytes() > self.frame_bytes_max() && !self.relieved {
            self.relieve(now);
        }
    }

    fn push_live(&self, handle: &OutboxHandle, slot: u32, channel: ChannelId, seq: Seq, now: Now) {
        let bytes = seal::event(&Event::Live { channel: channel.0, seq });
        handle.push_mark(slot, self.memory.hold(mark(bytes, channel, seq, now)));
    }

    /// Answers what is kept of a channel.
    ///
    /// # Errors
    /// The connection has no right to receive it.
    pub fn describe(&mut self, member: usize, id: Option<u64>, name: &str, now: Now) -> Result<(), Refused> {
        let pattern = Pattern::parse(name, name.len())
            .map_err(|error| Refused { code: ErrorCode::BadChannel, message: error.to_string() })?;
        self.check_readable(member, &pattern)?;
        let this = &self.members[member];
        let Some(info) = self.router.directory(|directory| directory.find(name)) else {
            this.handle.push_event(&Event::History { id, channel: name, streams: &[] });
            return Ok(());
        };
        if info.home == self.worker {
            let stream = self.describe_at_home(&info, now);
            this.handle.push_event(&Event::History { id, channel: name, streams: &[stream] });
            return Ok(());
        }
        this.handle.begin_request();
        let (connection, home) = (this.id, info.home);
        let describing = Describing { member, connection, id, info: Arc::clone(&info) };
        let token = self.replays.describing.insert(describing);
        self.router.send(home, ToWorker::Describe { info, worker: self.worker, token });
        Ok(())
    }

    /// The home of a channel has said what is kept of it.
    pub(super) fn finish_describe(&mut self, token: usize, stream: KeptStream) {
        let Some(Describing { member, connection, id, info }) = self.replays.describing.try_remove(token)
        else {
            return;
        };
        // The connection may have gone, and its place may be another's by now.
        let Some(member) = self.members.get(member).filter(|member| member.id == connection) else { return };
        member.handle.push_event(&Event::History { id, channel: &info.name, streams: &[stream] });
        member.handle.finish_request();
    }

    /// What is kept of a channel whose home is here.
    pub(super) fn describe_at_home(&self, info: &ChannelInfo, now: Now) -> KeptStream {
        let channel = self.channels.get(&info.id);
        let sealed = channel.map_or(0, |channel| channel.standing().sealed);
        let kept = channel.and_then(Channel::ring).and_then(|ring| self.history.summary(ring, now));
        let (channel, epoch) = (info.id.0, info.epoch);
        kept.map_or(
            KeptStream { channel, epoch, first: sealed + 1, last: sealed, samples: 0, bytes: 0, age_ms: 0 },
            |kept| KeptStream {
                channel,
                epoch,
                first: kept.first,
                last: kept.last,
                samples: kept.samples,
                bytes: kept.bytes,
                age_ms: kept.age_ms,
            },
        )
    }
}

/// A message that stands among the frames of a channel, before the sample `seq`.
fn mark(bytes: Bytes, channel: ChannelId, seq: Seq, now: Now) -> Frame {
    Frame {
        bytes,
        channel,
        first: seq,
        last: seq.saturating_sub(1),
        count: 0,
        head_bytes: 0,
        replayed: true,
        flushed_at: now.at,
        received_at: [now.at; TIMED_SAMPLES],
    }
}

/// A part of the past that is being made.
struct Part {
    class: ClassKey,
    pieces: Vec<Piece>,
    frames: usize,
    frames_max: usize,
    /// Bytes of what it was made of.
    bytes: usize,
    bytes_max: usize,
    next: Seq,
    /// Where the class leaves something out.
    thin: Option<Thin>,
}

/// What a thin class keeps of the past.
struct Thin {
    batch: Batch,
    spans: Vec<SampleSpan>,
    /// The time of the newest sample in it.
    newest: Option<Now>,
}

impl Part {
    fn new(fetch: &Fetch) -> Self {
        let Fetch { class, from, bytes, frames, allowed, .. } = fetch;
        let growth = if class.codec == Codec::Protobuf { 1 } else { GROWTH };
        let thin = class.is_thin().then(|| {
            let mut batch = Batch::new(*class, from.saturating_sub(1));
            batch.allow_from(*allowed);
            Thin { batch, spans: Vec::new(), newest: None }
        });
        Self {
            class: *class,
            pieces: Vec::new(),
            frames: 0,
            frames_max: *frames,
            bytes: 0,
            bytes_max: bytes / growth,
            next: *from,
            thin,
        }
    }

    fn is_full(&self) -> bool {
        self.frames >= self.frames_max.max(1)
    }

    /// Everything up to `upto` is not kept.
    fn skip_to(&mut self, upto: Seq) {
        if upto >= self.next {
            self.next = upto + 1;
            self.pieces.push(Piece::Gone(upto));
        }
    }

    /// Takes a frame that begins with `next`; `false` if there is no room for it. The first always has.
    fn take(
        &mut self,
        kept: &Kept,
        shared: bool,
        info: &ChannelInfo,
        transcoded: &mut Transcoded,
        frame_bytes_max: usize,
        now: Now,
    ) -> bool {
        if self.bytes > 0 && self.bytes + kept.bytes.len() > self.bytes_max {
            return false;
        }
        if let Some(thin) = &self.thin
            && thin.batch.count() > 0
            && thin.batch.block_bytes() + kept.body().len() > frame_bytes_max
        {
            self.seal(info, now);
            if self.is_full() {
                return false;
            }
        }
        self.bytes += kept.bytes.len();
        self.next = kept.last() + 1;
        match &mut self.thin {
            Some(thin) => thin.append(kept, now),
            None => self.push(whole(kept, shared, self.class.codec, info, transcoded, now)),
        }
        true
    }

    fn push(&mut self, frame: Frame) {
        self.frames += 1;
        self.pieces.push(Piece::Frame(frame));
    }

    /// Makes a frame of what a thin class has kept so far.
    fn seal(&mut self, info: &ChannelInfo, now: Now) {
        let Some(Thin { batch, newest: Some(newest), .. }) = &mut self.thin else { return };
        let of = FrameOf { channel: info.id, name: &info.name, epoch: info.epoch };
        if let Some(frame) = batch.close(of, *newest) {
            let times = [now.at; TIMED_SAMPLES];
            self.push(Frame { replayed: true, flushed_at: now.at, received_at: times, ..frame });
        }
    }

    fn finish(mut self, info: &ChannelInfo, joined: Option<Result<(), ClassesFull>>, now: Now) -> Fetched {
        if let Some(thin) = &mut self.thin
            && joined == Some(Ok(()))
        {
            // Nothing of the past comes behind it: the newest sample must not be missing.
            thin.batch.allow_pending();
        }
        self.seal(info, now);
        let allowed = self.thin.and_then(|thin| thin.batch.next_allowed());
        Fetched { pieces: self.pieces, next: self.next, allowed, joined }
    }
}

impl Thin {
    fn append(&mut self, kept: &Kept, now: Now) {
        let (mut body, mut seq) = (kept.body(), kept.first);
        while let Ok(Some(block)) = next_block(&mut body)
            && let Ok(source_ns) = scan_content(block.content, BLOCK_SAMPLES_MAX, &mut self.spans)
        {
            let received = Now { at: instant_of(block.received_ns, now), wall_ns: block.received_ns };
            let content = block.content;
            self.batch.append(BlockRef { content, spans: &self.spans, source_ns, received }, seq);
            seq += self.spans.len() as u64;
        }
        // A frame says when the newest of those was sealed that it was made of.
        self.newest = Some(Now { at: instant_of(kept.received_ns, now), wall_ns: kept.flushed_ns });
    }
}

/// A frame of the history in the codec of a class that leaves nothing out.
fn whole(
    kept: &Kept,
    shared: bool,
    codec: Codec,
    info: &ChannelInfo,
    transcoded: &mut Transcoded,
    now: Now,
) -> Frame {
    let frame = kept.frame(info.id, now);
    if codec == Codec::Protobuf {
        return frame;
    }
    let key = (info.id, codec, frame.first, frame.last);
    let known = shared.then(|| transcoded.get(key)).flatten();
    let bytes = known.unwrap_or_else(|| {
        let header = FrameHeader {
            channel: info.id,
            epoch: info.epoch,
            seq: frame.first,
            count: frame.count,
            flushed_ns: kept.flushed_ns,
        };
        let bytes = seal::transcode(kept.body(), &header, &info.name, codec);
        if shared {
            transcoded.remember(key, &bytes);
        }
        bytes
    });
    Frame { bytes, head_bytes: 0, ..frame }
}
