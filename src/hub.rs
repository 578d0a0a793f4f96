//! The hub of one worker: the channels whose home it is, the receivers among its connections, and the patterns that they
//! watch. Owns the flush deadlines. Never waits for a subscriber, never sees a socket.
//!
//! A channel's home gives it its sequence and seals its frames; a sealed frame goes once to each worker that has receivers,
//! and is handed out there. With one worker all of that is a function call.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use slab::Slab;

use crate::clock::{Now, nanos};
use crate::close::CloseReason;
use crate::config::Config;
use crate::durable::Told;
use crate::history::ring::Kept;
use crate::history::store::StreamKey;
use crate::history::{History, RingKey};
use crate::metrics::{Stage, WorkerMetrics};
use crate::outbox::Slot;
use crate::outbox::handle::OutboxHandle;
use crate::outbox::memory::FrameMemory;
use crate::pattern::index::PatternIndex;
use crate::wire::control::{ErrorCode, Event, Guarantee};
use crate::wire::cursor::Lineage;
use crate::wire::decode::{SampleSpan, ScannedPublish};
use crate::wire::{ChannelId, Codec, Frame, Seq};

pub mod access;
mod acks;
pub mod batch;
pub mod channel;
pub mod crossing;
pub mod directory;
pub mod membership;
mod mirror;
pub mod overload;
mod presence;
mod replay;
mod report;
pub mod router;

use acks::{Acks, Waiting};
use batch::{BlockRef, ClassKey};
use channel::{Channel, ClassesFull, DueQueue, Flush, Sealed};
use directory::ChannelInfo;
use membership::{Announcing, Join, Member, Request, Waits};
use mirror::{Mirrors, Quiet};
use overload::Widening;
use presence::Presence;
use replay::Replays;
use router::{Announced, ForwardedPublish, Publisher, Router, ToWorker};

/// What became of a publish.
#[derive(Debug)]
pub enum Published {
    /// It was taken.
    Taken,
    /// The inbox of the channel's home is full: wait with [`Router::publish`].
    Wait(Box<ForwardedPublish>),
    /// This connection did not advertise the channel.
    NotAdvertised,
}

/// The receivers of a channel among this worker's connections.
#[derive(Debug, Default)]
struct Receivers {
    classes: Vec<(ClassKey, Vec<Receiver>)>,
}

#[derive(Debug)]
struct Receiver {
    handle: Rc<OutboxHandle>,
    slot: Slot,
}

/// See the module's page.
#[derive(Debug)]
pub struct Hub {
    worker: usize,
    config: Arc<Config>,
    router: Arc<Router>,
    channels: ById<Channel>,
    receivers: ById<Receivers>,
    members: Slab<Member>,
    /// Patterns of members: place of the member, number of its subscription.
    patterns: PatternIndex<(usize, usize)>,
    joins: Slab<Join>,
    requests: Slab<Request>,
    /// What waits for other servers, by the number of the wait.
    waits: HashMap<u64, Waits>,
    next_wait: u64,
    announcing: Slab<Announcing>,
    presence: Presence,
    due: DueQueue,
    /// Channels of which something waits to go to other servers, by when it has to.
    crossing_due: BTreeSet<(Instant, ChannelId)>,
    widening: Widening,
    /// The streams of other servers whose home is here.
    mirrors: Mirrors,
    /// Channels that other servers have to be told the heads of, once nothing is published.
    quiet: Quiet,
    /// Classes of which another worker has missed a frame, until it is told.
    behind: HashSet<(ChannelId, ClassKey, usize)>,
    sealed: Vec<Sealed>,
    /// What is kept of the channels whose home is here.
    history: History,
    /// Who catches up with the past.
    replays: Replays,
    acks: Acks,
    /// The frames in the outboxes here.
    memory: FrameMemory,
    /// Bytes in control lanes at the last tick.
    control_bytes: usize,
    /// Nothing more can be freed before the next tick.
    relieved: bool,
    metrics: WorkerMetrics,
    draining: bool,
    /// Workers that have sealed everything in a drain.
    workers_sealed: usize,
}

type ById<T> = HashMap<ChannelId, T, BuildHasherDefault<IdHasher>>;

impl Hub {
    /// The hub of worker number `worker`.
    #[must_use]
    pub fn new(worker: usize, config: Arc<Config>, router: Arc<Router>) -> Self {
        let widening = Widening::new(&config.batch);
        let share = config.outbox.total_bytes_max / router.workers();
        // One full outbox has to fit.
        let memory = FrameMemory::new(share.max(config.outbox.data_bytes_max));
        let history = History::new(config.history.total_bytes_max / router.workers());
        Self {
            worker,
            config,
            router,
            channels: ById::default(),
            receivers: ById::default(),
            members: Slab::new(),
            patterns: PatternIndex::new(),
            joins: Slab::new(),
            requests: Slab::new(),
            waits: HashMap::new(),
            next_wait: 0,
            announcing: Slab::new(),
            presence: Presence::default(),
            due: DueQueue::default(),
            crossing_due: BTreeSet::new(),
            widening,
            mirrors: Mirrors::default(),
            quiet: Quiet::default(),
            behind: HashSet::new(),
            sealed: Vec::new(),
            history,
            replays: Replays::default(),
            acks: Acks::default(),
            memory,
            control_bytes: 0,
            relieved: false,
            metrics: WorkerMetrics::new(),
            draining: false,
            workers_sealed: 0,
        }
    }

    /// The worker's metrics.
    pub const fn metrics(&mut self) -> &mut WorkerMetrics {
        &mut self.metrics
    }

    /// The way to the other workers.
    #[must_use]
    pub const fn router(&self) -> &Arc<Router> {
        &self.router
    }

    /// Whether the server is shutting down.
    #[must_use]
    pub const fn is_draining(&self) -> bool {
        self.draining
    }

    /// Takes a publish that was checked. Its block is copied only into batches, or once on the way to another worker.
    pub fn publish(
        &mut self,
        member: usize,
        publish: &ScannedPublish<'_>,
        spans: &[SampleSpan],
        now: Now,
    ) -> Published {
        let this = &self.members[member];
        let Some(info) = this.advertised.get(&publish.channel) else { return Published::NotAdvertised };
        let info = Arc::clone(info);
        let publisher = Publisher { worker: self.worker, member, connection: this.id.0 };
        let ack = (publish.ack != 0).then_some((publisher, publish.ack));
        self.metrics.counters.publishes_received += 1;
        self.metrics.counters.samples_received += spans.len() as u64;
        if publish.source_ns == 0 {
            self.metrics.counters.samples_without_source_time += spans.len() as u64;
        } else {
            // Samples that were taken together are often stamped together.
            for run in spans.chunk_by(|a, b| a.source_delta_ns == b.source_delta_ns) {
                let source_ns = publish.source_ns.saturating_add_signed(run[0].source_delta_ns).max(1);
                self.metrics.record_source(source_ns, now.wall_ns, run.len() as u64);
            }
        }
        if info.home == self.worker {
            let block =
                BlockRef { content: publish.block, spans, source_ns: publish.source_ns, received: now };
            self.publish_at_home(&info, block, ack, now);
            return Published::Taken;
        }
        self.metrics.counters.publishes_forwarded += 1;
        let forwarded = Box::new(ForwardedPublish {
            info,
            content: Bytes::copy_from_slice(publish.block),
            spans: spans.into(),
            source_ns: publish.source_ns,
            received: now,
            ack,
            permit: None,
        });
        match self.router.try_publish(forwarded) {
            Ok(()) => Published::Taken,
            Err(waiting) => {
                self.metrics.counters.publisher_pauses += 1;
                Published::Wait(waiting)
            }
        }
    }

    /// Does what another worker, or the server, wants; sockets and the end of the worker are not for the hub.
    pub fn handle(&mut self, message: ToWorker, now: Now) {
        match message {
            ToWorker::Socket(..) | ToWorker::Cut | ToWorker::Stop => {
                debug_assert!(false, "for the worker, not for the hub");
            }
            ToWorker::Publish(publish) => {
                let block = BlockRef {
                    content: &publish.content,
                    spans: &publish.spans,
                    source_ns: publish.source_ns,
                    received: publish.received,
                };
                self.publish_at_home(&publish.info, block, publish.ack, now);
            }
            ToWorker::Frame { class, frame, permit } => {
                drop(permit);
                self.hand_out(class, *frame, now);
            }
            ToWorker::Join { info, from, to, start, worker, token } => {
                let joined = self.begin_at_home(&info, from, to, start.as_ref(), worker, now);
                self.router.send(worker, ToWorker::Joined { token, joined });
            }
            ToWorker::Joined { token, joined } => self.finish_join(token, joined, now),
            ToWorker::Fetch(fetch) => self.note_fetch(*fetch, now),
            ToWorker::Fetched { token, fetched } => self.finish_fetch(token, *fetched, now),
            ToWorker::Describe { info, worker, token } => {
                let stream = self.describe_at_home(&info, now);
                self.router.send(worker, ToWorker::Described { token, stream });
            }
            ToWorker::Described { token, stream } => self.finish_describe(token, stream),
            ToWorker::Leave { channel, class, worker } => self.leave_at_home(channel, class, worker),
            ToWorker::Announce { info, done } => {
                self.announce(&info, now);
                match done {
                    Announced::Worker { worker, token } => {
                        let seq = (info.home == self.worker).then(|| self.next_seq_at_home(&info));
                        self.router.send(worker, ToWorker::Announced { token, seq });
                    }
                    // Whoever waited may have gone.
                    Announced::Task(done) => drop(done.send(())),
                    Announced::Mirror { home, channel } => {
                        self.router.send(home, ToWorker::MirrorAnnounced(channel));
                    }
                }
            }
            ToWorker::Announced { token, seq } => self.finish_announce(token, seq),
            ToWorker::Acked { guarantee, publisher, ack, channel, seq, count } => {
                self.ack(channel, Waiting { publisher, ack, seq, count }, guarantee);
            }
            ToWorker::Durable(told) => self.note_durable(told),
            ToWorker::Head { channel, class, head } => self.note_head(channel, class, head, now),
            ToWorker::Relayed(relayed) => self.relay(*relayed, now),
            ToWorker::BacklogRead(name) => self.announce_backlog(&name, now),
            ToWorker::TellHead(name) => self.tell_head(&name, now),
            ToWorker::MirrorAnnounced(channel) => self.note_mirror_announced(channel, now),
            ToWorker::Missed { channel, class, upto } => self.note_missed(channel, class, upto, now),
            ToWorker::Ended { name, epoch } => self.end_mirror(&name, epoch, now),
            ToWorker::MirrorEnded(channel) => self.end_for_all(channel, now),
            ToWorker::Arrived(arrival) => self.note_arrived(arrival, now),
            ToWorker::Retire(info) => {
                self.retire(&info, now);
                self.refuse_at_end(info.id, now);
                self.mirrors.forget(&info);
            }
            ToWorker::Presence(about) => self.handle_presence(about, now),
            ToWorker::Report { buffer, reply } => drop(reply.send(self.report(buffer))),
            ToWorker::List(reply) => drop(reply.send(self.list(now))),
            ToWorker::Revoke(revoked, issued_s) => self.revoke(&revoked, issued_s),
            ToWorker::Keys(keys) => self.keep_keys(&keys),
            ToWorker::Drain => self.drain(now),
            ToWorker::Sealed => self.note_sealed(),
        }
    }

    /// When [`Hub::poll_due`] has something to do.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let crossing = self.crossing_due.first().map(|(at, _)| *at);
        [self.due.next(), self.replays.next_step(), crossing].into_iter().flatten().min()
    }

    /// Seals the batches whose deadline has come, sends what other servers have to get by now, and goes on with what is replayed.
    pub fn poll_due(&mut self, now: Now) {
        while let Some((at, due)) = self.due.pop(now.at) {
            self.with_channel(due.channel, now, |channel, flush| channel.handle_due(&due, flush));
            if !self.sealed.is_empty() {
                let late = now.at.saturating_duration_since(at);
                self.metrics.record(Stage::FlushLateness, nanos(late), 1);
                self.dispatch(due.channel, now);
            }
        }
        self.cross_due(now);
        self.step_replays(now);
    }

    /// What was sealed has waited this long for its turn to be written, though its socket would have taken it.
    pub const fn note_turn(&mut self, waited: Duration) {
        self.widening.observe(waited);
    }

    /// Work that is due about ten times a second: what time does to standings, gap notices, and heads for workers that have missed a frame.
    pub fn tick(&mut self, now: Now) {
        self.widening.adapt(now.at);
        self.check_standings(now);
        self.history.tick(now);
        self.memory.begin_generation();
        self.relieved = false;
        self.control_bytes = 0;
        for (_, member) in &self.members {
            let outbox = member.handle.outbox().borrow();
            self.control_bytes += outbox.control_bytes();
            let due = outbox.gap_due();
            drop(outbox);
            if due.is_some_and(|due| due <= now.at) {
                member.handle.wake_writer();
            }
        }
        self.limit_control();
        self.tell_heads(now);
        self.replays.wake_resting(now);
        self.tick_presence(now);
        for (channel, class, worker) in std::mem::take(&mut self.behind) {
            if let Some(head) = self.channels.get(&channel).and_then(|channel| channel.head(class)) {
                self.router.send(worker, ToWorker::Head { channel, class, head });
            }
        }
    }

    /// Forgets the channels that nobody needs any more. One worker does this for all.
    pub fn sweep(&self, now: Now) {
        let linger = self.config.channel.linger;
        if let Some(durable) = self.router.durable() {
            durable.sweep(linger, now.at);
        }
        let gone = self.router.directory(|directory| directory.sweep(linger, now.at));
        if !gone.is_empty() {
            self.router.note_changed();
        }
        for info in gone {
            self.router.send(info.home, ToWorker::Retire(info));
        }
    }

    fn publish_at_home(
        &mut self,
        info: &Arc<ChannelInfo>,
        block: BlockRef<'_>,
        ack: Option<(Publisher, u64)>,
        now: Now,
    ) {
        if self.draining {
            // What the server tells of itself is nobody's loss.
            if !presence::tells(info) {
                self.metrics.counters.samples_after_drain += block.spans.len() as u64;
            }
            return;
        }
        self.begin_channel(info, now);
        let seq = self.with_channel(info.id, now, |channel, flush| channel.publish(block, flush));
        // Before its frame goes to the disk, which may refuse it.
        if let (Some((publisher, ack)), Some(seq)) = (ack, seq) {
            let waiting = Waiting { publisher, ack, seq, count: block.count() };
            let safe = info.life.is_some() && self.router.durable().is_some_and(|it| it.is_healthy());
            if !(safe && self.acks.wait(info.id, waiting)) {
                self.ack(info.id, waiting, Guarantee::Accepted);
            }
        }
        if !self.sealed.is_empty() {
            self.dispatch(info.id, now);
        }
    }

    /// Tells publishers what has become safe, or that nothing does for the time being.
    fn note_durable(&mut self, told: Told) {
        match told {
            Told::Committed(channels) => {
                for (channel, upto) in channels {
                    self.ack_upto(channel, upto, Guarantee::Durable);
                }
            }
            Told::Degraded => self.ack_all_accepted(),
        }
    }

    /// Tells all who wait what is true at once.
    fn ack_all_accepted(&mut self) {
        for channel in self.acks.channels() {
            self.ack_upto(channel, Seq::MAX, Guarantee::Accepted);
        }
    }

    fn ack_upto(&mut self, channel: ChannelId, upto: Seq, guarantee: Guarantee) {
        while let Some(waiting) = self.acks.take(channel, upto) {
            self.ack(channel, waiting, guarantee);
        }
    }

    /// Makes a channel whose home is here, with its history, if it is new.
    fn begin_channel(&mut self, info: &Arc<ChannelInfo>, now: Now) {
        if self.channels.contains_key(&info.id) {
            return;
        }
        let (mut next_seq, mut stored) = (info.first_seq(), Vec::new());
        if let (Some(life), Some(durable)) = (&info.life, self.router.durable().map(Arc::clone)) {
            // The name was forgotten and opened again, and whoever forgot it has not told this worker yet.
            let former = durable.channel_of(life.key).and_then(|former| self.channels.get(&former));
            if let Some(former) = former.map(|former| Arc::clone(former.info())) {
                self.retire(&former, now);
            }
            (next_seq, stored) = durable.begin(&info.name, life, self.worker, info.id);
        }
        let mut channel = Channel::new(Arc::clone(info), next_seq);
        keep_history(&mut channel, &mut self.history, &self.config);
        // Only what has a ring has a life on the disk.
        if let Some(ring) = channel.ring() {
            for frame in stored {
                let (times, of) = ([frame.flushed_ns, frame.received_ns], channel.stream());
                let kept = Kept::from_body(of, frame.first, frame.count, times, &frame.body, now);
                self.history.insert(ring, kept, now);
            }
        }
        let crosses = self.router.outlet().is_some_and(|outlet| outlet.crosses(&info.name));
        if crosses && info.origin.is_none() {
            channel.cross(mirror::crossing_class(&self.config));
        }
        self.channels.insert(info.id, channel);
    }

    /// Forgets a channel that nobody needs any more; what is open goes out before.
    fn retire(&mut self, info: &ChannelInfo, now: Now) {
        self.with_channel(info.id, now, Channel::seal_all);
        self.dispatch(info.id, now);
        self.cross_now(info.id, now);
        // The disk's answer would find nobody any more.
        self.ack_upto(info.id, Seq::MAX, Guarantee::Accepted);
        if let Some(gone) = self.channels.remove(&info.id) {
            self.note_watchers(gone.info(), false);
            if let Some(ring) = gone.ring() {
                self.history.close(ring);
            }
        }
        if let Some((life, durable)) = info.life.as_ref().zip(self.router.durable()) {
            durable.forget(&info.name, life.key, info.id);
        }
    }

    /// Keeps a frame of the class that the history is made of: of all that is published to a channel with a history, once each.
    fn keep(&mut self, ring: RingKey, key: Option<StreamKey>, frame: &Frame, now: Now) {
        let kept = Kept::of(frame, now);
        if let Some((key, durable)) = key.zip(self.router.durable())
            && !durable.append(key, frame, kept.times_ns())
        {
            self.metrics.counters.history_frames_refused += 1;
            self.ack_upto(frame.channel, frame.last, Guarantee::Accepted);
        }
        self.history.insert(ring, kept, now);
    }

    /// Works on a channel whose home is here, with what sealing needs; what it seals waits in `sealed` for
    /// [`Hub::dispatch`].
    fn with_channel<T>(
        &mut self,
        id: ChannelId,
        now: Now,
        work: impl FnOnce(&mut Channel, &mut Flush<'_>) -> T,
    ) -> Option<T> {
        let channel = self.channels.get_mut(&id)?;
        let mut flush = Flush {
            now,
            limits: &self.config.batch,
            widening: self.widening.widening(),
            due: &mut self.due,
            metrics: &mut self.metrics,
            sealed: &mut self.sealed,
        };
        Some(work(channel, &mut flush))
    }

    /// Sends what was sealed to each worker that has receivers.
    fn dispatch(&mut self, id: ChannelId, now: Now) {
        let mut sealed = std::mem::take(&mut self.sealed);
        let mut has_kept = false;
        for (position, frame) in sealed.drain(..) {
            let Some(channel) = self.channels.get(&id) else { continue };
            let Some(class) = channel.class(position) else { continue };
            let key = class.key();
            let crosses = class.crosses();
            let ring = channel.ring().filter(|_| class.is_kept());
            let stored = channel.info().life.as_ref().map(|life| life.key);
            let mut here = false;
            for worker in class.workers() {
                if worker == self.worker {
                    here = true;
                } else if !self.router.send_frame(worker, key, &frame) {
                    self.metrics.counters.frames_lost_between_workers += 1;
                    self.behind.insert((id, key, worker));
                }
            }
            if let Some(ring) = ring {
                has_kept = true;
                self.keep(ring, stored, &frame, now);
            }
            if crosses {
                self.cross(id, frame.clone(), now);
            }
            if here {
                self.hand_out(key, frame, now);
            }
        }
        // The capacity stays with the hub.
        self.sealed = sealed;
        if has_kept && self.replays.awaits_frame(id) {
            self.serve_at_end(id, now);
        }
    }

    /// The fan-out: one reference count, one queue entry and at most one wake-up for each receiver.
    fn hand_out(&mut self, class: ClassKey, frame: Frame, now: Now) {
        let Some(receivers) = self.receivers.get(&frame.channel) else { return };
        let Some((_, receivers)) = receivers.classes.iter().find(|(key, _)| *key == class) else { return };
        // Counted on this thread alone: an atomic count would travel between the caches of all workers, once for each receiver.
        let frame = self.memory.hold(frame);
        for receiver in receivers {
            receiver.handle.push_data(receiver.slot, &frame, now);
        }
        self.metrics.record(Stage::FanoutWidth, receivers.len() as u64, 1);
        drop(frame);
        if self.memory.bytes() > self.frame_bytes_max() && !self.relieved {
            self.relieve(now);
        }
    }

    /// What control lanes leave of the memory for frames: half of it at the least.
    fn frame_bytes_max(&self) -> usize {
        let bytes_max = self.memory.bytes_max();
        bytes_max - self.control_bytes.min(bytes_max / 2)
    }

    /// Frees an eighth of the memory, so that it is not soon needed again: the oldest frames go, from all outboxes that hold them,
    /// since nothing is freed before the last lets go. If what was begun by slow readers is too much by itself, the connections
    /// with the oldest end.
    fn relieve(&mut self, now: Now) {
        let bytes_max = self.frame_bytes_max();
        let target = bytes_max - bytes_max / 8;
        let mut gone = None;
        // Each time twice as much: what was begun stays, and frees nothing.
        let mut factor = 1_usize;
        while self.memory.bytes() > target
            && let excess = (self.memory.bytes() - target).saturating_mul(factor)
            && let Some(upto) = self.memory.cutoff(excess, gone)
        {
            for (_, member) in &self.members {
                member.handle.shed(upto, now);
            }
            gone = Some(upto);
            factor = factor.saturating_mul(2);
        }
        if self.memory.bytes() > bytes_max
            && let Some(upto) = self.memory.cutoff(self.memory.bytes() - bytes_max, None)
        {
            let stuck = |member: &&Member| member.handle.outbox().borrow().is_stuck(upto);
            let members = self.members.iter().map(|(_, member)| member);
            members.filter(stuck).for_each(|member| member.handle.end(CloseReason::SlowConsumer));
        }
        // Where little was freed, to look again for each frame would cost more than the frames.
        self.relieved = self.memory.bytes() > bytes_max - bytes_max / 16;
    }

    /// What waits in control lanes is never dropped: where it is more than half the memory, the connections
    /// with the longest end.
    fn limit_control(&mut self) {
        let most = self.memory.bytes_max() / 2;
        if self.control_bytes <= most {
            return;
        }
        let waits = |member: &Member| member.handle.outbox().borrow().control_bytes();
        let mut members: Vec<_> = self.members.iter().map(|(_, member)| (waits(member), member)).collect();
        members.sort_unstable_by_key(|(bytes, _)| std::cmp::Reverse(*bytes));
        for (bytes, member) in members {
            member.handle.end(CloseReason::SlowConsumer);
            self.control_bytes -= bytes;
            if self.control_bytes <= most {
                break;
            }
        }
    }

    fn ack(&self, channel: ChannelId, waiting: Waiting, guarantee: Guarantee) {
        let Waiting { publisher, ack, seq, count } = waiting;
        if publisher.worker != self.worker {
            let acked = ToWorker::Acked { guarantee, publisher, ack, channel, seq, count };
            self.router.send(publisher.worker, acked);
            return;
        }
        // The connection may have gone, and its place may be another's by now.
        let member = self.members.get(publisher.member).filter(|member| member.id.0 == publisher.connection);
        if let Some(member) = member {
            member.handle.push_event(&Event::Ack { id: ack, channel: channel.0, seq, count, guarantee });
        }
    }

    fn note_head(&self, channel: ChannelId, class: ClassKey, head: Seq, now: Now) {
        self.for_receivers(channel, class, |receiver| {
            receiver.handle.outbox().borrow_mut().note_head(receiver.slot, head, now);
        });
    }

    fn for_receivers(&self, channel: ChannelId, class: ClassKey, work: impl Fn(&Receiver)) {
        let Some(receivers) = self.receivers.get(&channel) else { return };
        receivers.classes.iter().filter(|(key, _)| *key == class).flat_map(|(_, list)| list).for_each(work);
    }

    /// All workers but this one.
    fn other_workers(&self) -> impl Iterator<Item = usize> + use<> {
        let this = self.worker;
        (0..self.router.workers()).filter(move |&worker| worker != this)
    }

    /// Seals everything for good, and tells every worker. Nothing is taken any more: what were acknowledged from here on would come
    /// behind the goodbye, and be lost to those who leave now. Who waits for the disk is told what is true now, since nobody is there
    /// any more when it has what it was given.
    fn drain(&mut self, now: Now) {
        self.draining = true;
        if self.worker == 0 {
            self.tell_nobody();
        }
        self.seal_channels(now);
        self.ack_all_accepted();
        self.other_workers().for_each(|worker| self.router.send(worker, ToWorker::Sealed));
        self.note_sealed();
    }

    /// Once all workers have sealed, their last frames are in the outboxes here, and every connection ends.
    fn note_sealed(&mut self) {
        self.workers_sealed += 1;
        if self.workers_sealed < self.router.workers() {
            return;
        }
        for (_, member) in &self.members {
            member.handle.end(CloseReason::Drain);
        }
    }

    fn seal_channels(&mut self, now: Now) {
        let ids: Vec<ChannelId> = self.channels.keys().copied().collect();
        for id in ids {
            self.with_channel(id, now, Channel::seal_all);
            self.dispatch(id, now);
            self.cross_now(id, now);
        }
    }

    fn join_at_home(
        &mut self,
        info: &Arc<ChannelInfo>,
        from: Option<ClassKey>,
        to: ClassKey,
        worker: usize,
        now: Now,
    ) -> Result<Seq, ClassesFull> {
        self.begin_channel(info, now);
        let classes_max = self.config.channel.classes_max;
        let seq = self.with_channel(info.id, now, |channel, flush| match from {
            Some(from) => channel.switch(from, to, worker, classes_max, flush),
            None => channel.join(to, worker, classes_max, flush),
        });
        // Before the receivers change and before the answer: the frames of the past are on their way first.
        self.dispatch(info.id, now);
        if let Some(from) = from {
            self.leave_at_home(info.id, from, worker);
        }
        if presence::tells(info) && matches!(seq, Some(Ok(_))) {
            self.note_watchers(info, true);
        }
        seq.unwrap_or(Err(ClassesFull))
    }

    /// Sequence of the next sample of a channel whose home is here.
    fn next_seq_at_home(&self, info: &ChannelInfo) -> Seq {
        self.channels.get(&info.id).map_or_else(|| info.first_seq(), Channel::next_seq)
    }

    fn leave_at_home(&mut self, channel: ChannelId, class: ClassKey, worker: usize) {
        let Some(channel) = self.channels.get_mut(&channel) else { return };
        channel.leave(class, worker);
        if presence::tells(channel.info()) && channel.receivers() == 0 {
            let info = Arc::clone(channel.info());
            self.note_watchers(&info, false);
        }
    }
}

/// The class that histories are made of: the one of most programs, which leaves nothing out.
fn kept_class(config: &Config) -> ClassKey {
    let delay_ms = u32::try_from(config.batch.window.as_millis()).unwrap_or(u32::MAX);
    ClassKey { codec: Codec::Protobuf, delay_ms, interval_us: None, newest_only: false }
}

/// Gives a new channel its history, if it is to have one.
fn keep_history(channel: &mut Channel, history: &mut History, config: &Config) {
    let info = channel.info();
    if let Some(bounds) = config.history.bounds_of(&info.name) {
        let ancestors = info.life.iter().flat_map(|life| &life.lineage);
        let lineage = Lineage(ancestors.map(|ancestor| (ancestor.epoch, ancestor.last)).collect());
        channel.keep(kept_class(config), history.open(channel.stream(), bounds, lineage));
    }
}

/// A request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The name of the error.
    pub code: ErrorCode,
    /// The field, the value and the remedy.
    pub message: String,
}

/// Channel numbers are given in order, so a multiplication spreads them well enough.
#[derive(Debug, Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u32(u32::from(byte));
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.0 = (self.0.rotate_left(5) ^ u64::from(value)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
