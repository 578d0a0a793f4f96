//! Streams of other servers, as their home here knows them: found, checked, put in order, and handed on like the channels of this
//! server. Never knows a broker or a topic; a payload is from outside, whoever wrote it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::batch::ClassKey;
use super::channel::{Channel, RelayedMessage};
use super::crossing::{self, Crossing};
use super::directory::{ChannelInfo, NoMirror};
use super::router::{Announced, Arrival, Relayed, ToWorker};
use super::{Hub, keep_history, kept_class};
use crate::clock::Now;
use crate::config::Config;
use crate::history::cut;
use crate::metrics::RelayRefusal;
use crate::wire::relay::{self, Found, RelayHeader};
use crate::wire::{ChannelId, Frame, Seq};

/// Silence after which other servers are told where a stream stands; again after twice the time, and so on, since what tells may
/// be lost like what it is about.
const QUIET: Duration = Duration::from_secs(1);

/// How often that is told in one silence, the last time after half a minute.
const HEADS_MAX: u32 = 5;

/// The delivery class of what crosses: that of the history, unless the flush window is shorter than the time between two messages,
/// which would make many small frames of one.
pub(super) fn crossing_class(config: &Config) -> ClassKey {
    let kept = kept_class(config);
    let window_ms = u32::try_from(crossing::WINDOW.as_millis()).unwrap_or(u32::MAX);
    ClassKey { delay_ms: kept.delay_ms.max(window_ms), ..kept }
}

/// Channels that were published to lately, each once, in the order in which they are to be looked at.
#[derive(Debug, Default)]
pub(super) struct Quiet {
    /// One queue for each length of silence.
    queues: [VecDeque<Silence>; HEADS_MAX as usize],
    /// The heads that were told of each of them in its silence.
    queued: HashMap<ChannelId, u32>,
}

#[derive(Clone, Copy, Debug)]
struct Silence {
    id: ChannelId,
    /// When it was noted.
    at: Instant,
    /// Heads that were told in it.
    heads: u32,
}

impl Quiet {
    /// A message of the channel was sent.
    pub(super) fn note_sent(&mut self, id: ChannelId, at: Instant) {
        if self.queued.get(&id) != Some(&0) {
            self.push(Silence { id, at, heads: 0 });
        }
    }

    fn push(&mut self, silence: Silence) {
        if let Some(queue) = self.queues.get_mut(silence.heads as usize) {
            queue.push_back(silence);
            self.queued.insert(silence.id, silence.heads);
        } else {
            self.queued.remove(&silence.id);
        }
    }

    /// The next channel to be looked at.
    fn pop(&mut self, now: Instant) -> Option<Silence> {
        let waits = |silence: &Silence| QUIET * (1 << silence.heads);
        let due = |silence: &Silence| now.saturating_duration_since(silence.at) >= waits(silence);
        loop {
            let queue = self.queues.iter_mut().find(|queue| queue.front().is_some_and(due))?;
            let silence = queue.pop_front()?;
            // Otherwise the silence has been broken, and another began.
            if self.queued.get(&silence.id) == Some(&silence.heads) {
                return Some(silence);
            }
        }
    }
}

/// Messages of a new mirror that wait until every worker's subscriptions have found it, in bytes: what a stream of 100 MB/s
/// sends in the milliseconds that this takes.
const WAITING_BYTES_MAX: usize = 1 << 20;

/// The streams of other servers whose home is here.
#[derive(Debug, Default)]
pub(super) struct Mirrors {
    by_name: HashMap<Box<str>, Vec<Mirror>>,
    /// Those that are being announced.
    waiting: HashMap<ChannelId, Waiting>,
    found: Found,
}

#[derive(Debug)]
struct Mirror {
    info: Arc<ChannelInfo>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// What the broker has kept of it is coming; nobody here has found it yet.
    Backlog,
    /// Everybody finds it.
    Known,
    /// Nobody publishes it any more, as far as is known.
    Ended,
}

/// A mirror that not all workers know yet.
#[derive(Debug)]
struct Waiting {
    /// Workers that have not answered.
    workers: usize,
    messages: VecDeque<(Bytes, Now)>,
    bytes: usize,
}

impl Mirrors {
    /// Nobody needs it any more.
    pub(super) fn forget(&mut self, info: &ChannelInfo) {
        self.waiting.remove(&info.id);
        if let Some(mirrors) = self.by_name.get_mut(&info.name) {
            mirrors.retain(|mirror| mirror.info.id != info.id);
            if mirrors.is_empty() {
                self.by_name.remove(&info.name);
            }
        }
    }

    fn get(&self, name: &str, epoch: u32) -> Option<(&Arc<ChannelInfo>, State)> {
        let mirror = self.by_name.get(name)?.iter().find(|mirror| mirror.info.epoch == epoch)?;
        Some((&mirror.info, mirror.state))
    }

    fn set(&mut self, info: &Arc<ChannelInfo>, state: State) {
        let mirrors = self.by_name.entry(info.name.clone()).or_default();
        match mirrors.iter_mut().find(|mirror| mirror.info.id == info.id) {
            Some(mirror) => mirror.state = state,
            None => mirrors.push(Mirror { info: Arc::clone(info), state }),
        }
    }
}

impl Hub {
    /// A payload for a name whose home is here.
    pub(super) fn relay(&mut self, relayed: Relayed, now: Now) {
        let mut found = std::mem::take(&mut self.mirrors.found);
        self.relay_checked(&relayed, &mut found, now);
        self.mirrors.found = found;
    }

    fn relay_checked(&mut self, relayed: &Relayed, found: &mut Found, now: Now) {
        // A frame is sealed when it is full, by a message that may be full itself; small ones share a payload.
        let (inbound, batch) = (&self.config.inbound, &self.config.batch);
        let samples_max = batch.frame_samples_max.saturating_add(inbound.message_samples_max);
        let samples_max = samples_max.max(crossing::MESSAGE_SAMPLES_MAX as usize);
        let header = match relay::scan(&relayed.payload, samples_max, found) {
            Ok(header) => header,
            Err(error) => {
                tracing::debug!(name = %relayed.name, %error, "a message of the broker is no relay");
                self.metrics.counters.relays_refused[RelayRefusal::Malformed] += 1;
                return;
            }
        };
        if self.router.outlet().is_none_or(|outlet| outlet.node() == header.node) {
            // What was sent from here comes back from a broker that does not tell senders apart.
            self.metrics.counters.relays_refused[RelayRefusal::Own] += 1;
            return;
        }
        let info = match self.find_mirror(&relayed.name, header, relayed.backlog, now) {
            Ok(info) => info,
            Err(why) => {
                self.metrics.counters.relays_refused[why] += 1;
                return;
            }
        };
        if let Some(waiting) = self.mirrors.waiting.get_mut(&info.id) {
            if waiting.bytes + relayed.payload.len() <= WAITING_BYTES_MAX {
                waiting.bytes += relayed.payload.len();
                waiting.messages.push_back((relayed.payload.clone(), relayed.received));
            }
            // What has no room is found missing with what follows.
            return;
        }
        let (payload, received) = (&relayed.payload, relayed.received);
        self.relay_message(&info, &RelayedMessage { header, payload, found, received }, now);
    }

    /// The stream that a frame is of. Before anything of it is handed out, every worker's subscriptions have to find it, with what the
    /// broker has kept of it as its past.
    fn find_mirror(
        &mut self,
        name: &str,
        header: RelayHeader,
        backlog: bool,
        now: Now,
    ) -> Result<Arc<ChannelInfo>, RelayRefusal> {
        let known = self.mirrors.get(name, header.epoch).map(|(info, state)| (Arc::clone(info), state));
        let info = match known {
            Some((info, State::Known)) => return Ok(info),
            Some((info, State::Backlog)) if backlog => return Ok(info),
            Some((info, State::Backlog)) => info,
            Some((_, State::Ended)) | None => {
                let RelayHeader { node, epoch, seq, count, .. } = header;
                let upto = seq + u64::from(count) - 1;
                let stored = self.router.durable().and_then(|durable| durable.reaches(name, epoch));
                let opened = self
                    .router
                    .directory(|directory| directory.open_mirror(name, epoch, node, upto, stored, now.at));
                let info = opened.map_err(|why| match why {
                    NoMirror::Full => RelayRefusal::Full,
                    NoMirror::Own => RelayRefusal::Own,
                })?;
                self.open_mirror_at_home(&info, seq.max(info.floor + 1), now);
                info
            }
        };
        if backlog {
            self.mirrors.set(&info, State::Backlog);
        } else {
            self.announce_mirror(&info, now);
        }
        Ok(info)
    }

    /// A stream begins here, or goes on after nobody has had it for a while: what was published meanwhile concerns nobody.
    fn open_mirror_at_home(&mut self, info: &Arc<ChannelInfo>, next: Seq, now: Now) {
        let known = self.channels.get(&info.id).map(|channel| (channel.next_seq(), channel.receivers()));
        match known {
            None => {
                let mut channel = Channel::new(Arc::clone(info), next);
                keep_history(&mut channel, &mut self.history, &self.config);
                self.channels.insert(info.id, channel);
            }
            Some((known, 0)) if known < next => {
                self.with_channel(info.id, now, |channel, flush| channel.skip_to(next, flush));
                self.dispatch(info.id, now);
            }
            Some(_) => {}
        }
    }

    /// What the broker has kept of a name is there.
    pub(super) fn announce_backlog(&mut self, name: &str, now: Now) {
        let mirrors = self.mirrors.by_name.get(name).into_iter().flatten();
        let backlog = mirrors.filter(|mirror| mirror.state == State::Backlog);
        for info in backlog.map(|mirror| Arc::clone(&mirror.info)).collect::<Vec<_>>() {
            self.announce_mirror(&info, now);
        }
    }

    fn announce_mirror(&mut self, info: &Arc<ChannelInfo>, now: Now) {
        self.mirrors.set(info, State::Known);
        let others = self.router.workers() - 1;
        if others > 0 {
            let waiting = Waiting { workers: others, messages: VecDeque::new(), bytes: 0 };
            self.mirrors.waiting.insert(info.id, waiting);
        }
        self.announce(info, now);
        for worker in self.other_workers() {
            let done = Announced::Mirror { home: self.worker, channel: info.id };
            self.router.send(worker, ToWorker::Announce { info: Arc::clone(info), done });
        }
    }

    /// One more worker's subscriptions have found a mirror; after the last, what has waited is handed out.
    pub(super) fn note_mirror_announced(&mut self, channel: ChannelId, now: Now) {
        let Some(waiting) = self.mirrors.waiting.get_mut(&channel) else { return };
        waiting.workers -= 1;
        if waiting.workers > 0 {
            return;
        }
        let Some(waiting) = self.mirrors.waiting.remove(&channel) else { return };
        let Some(info) = self.channels.get(&channel).map(|channel| Arc::clone(channel.info())) else {
            return;
        };
        for (payload, received) in waiting.messages {
            let name = Arc::from(&*info.name);
            self.relay(Relayed { name, payload, backlog: false, received, permit: None }, now);
        }
    }

    /// Takes a frame that goes to other servers.
    pub(super) fn cross(&mut self, id: ChannelId, frame: Frame, now: Now) {
        let due = self.with_crossing(id, now, |crossing, send| crossing.take(frame, now.at, send));
        if let Some(due) = due.flatten() {
            self.crossing_due.insert((due, id));
        }
    }

    /// Sends what of a channel waits to go to other servers.
    pub(super) fn cross_now(&mut self, id: ChannelId, now: Now) {
        self.with_crossing(id, now, |crossing, send| crossing.release(now.at, send));
    }

    /// Sends what has waited long enough to go to other servers.
    pub(super) fn cross_due(&mut self, now: Now) {
        while let Some(&(at, id)) = self.crossing_due.first()
            && at <= now.at
        {
            self.crossing_due.pop_first();
            self.with_crossing(id, now, |crossing, send| crossing.release_due(now.at, send));
        }
    }

    fn with_crossing<T>(
        &mut self,
        id: ChannelId,
        now: Now,
        work: impl FnOnce(&mut Crossing, &mut dyn FnMut(&[Frame])) -> T,
    ) -> Option<T> {
        let outlet = self.router.outlet()?;
        let (info, crossing) = self.channels.get_mut(&id)?.crossing()?;
        let (counters, quiet) = (&mut self.metrics.counters, &mut self.quiet);
        let mut send = |frames: &[Frame]| {
            if let Some(payload) = relay::payload(outlet.node(), info.epoch, frames, now) {
                outlet.publish(&info.name, payload);
                counters.relays_sent += 1;
                quiet.note_sent(id, now.at);
            }
        };
        Some(work(crossing, &mut send))
    }

    fn relay_message(&mut self, info: &Arc<ChannelInfo>, message: &RelayedMessage<'_>, now: Now) {
        let Some(channel) = self.channels.get(&info.id) else { return };
        let (next, header) = (channel.next_seq(), message.header);
        if header.seq < next {
            // What was there already, or a stream's head that the samples were faster than.
            let known = u32::try_from(next - header.seq).unwrap_or(u32::MAX);
            if known < header.count {
                self.relay_rest(info, message, known, now);
            } else if header.count > 0 {
                self.metrics.counters.relays_refused[RelayRefusal::Duplicate] += 1;
            }
            return;
        }
        if header.seq > next {
            self.metrics.counters.samples_missed_from_broker += header.seq - next;
            self.with_channel(info.id, now, |channel, flush| channel.skip_to(header.seq, flush));
            self.dispatch(info.id, now);
            self.tell_missed(info.id, header.seq - 1, now);
        }
        if header.count > 0 {
            self.metrics.counters.relays_received += 1;
            self.metrics.counters.samples_relayed += u64::from(header.count);
            self.metrics.record_hop(header.flushed_ns, message.received.wall_ns);
            self.with_channel(info.id, now, |channel, flush| channel.relay(message, flush));
            self.dispatch(info.id, now);
        }
    }

    /// The first samples of a message were there already, and the rest is new: this server was killed while it wrote them to its disk, or
    /// the other one, and joined its frames otherwise.
    fn relay_rest(&mut self, info: &Arc<ChannelInfo>, message: &RelayedMessage<'_>, known: u32, now: Now) {
        let body = message.found.body(message.payload, 0..message.found.blocks.len());
        let payload = cut::relay_without_first(message.header, body, known).unwrap_or_default();
        let mut found = Found::default();
        let Ok(header) = relay::scan(&payload, message.found.spans.len(), &mut found) else {
            self.metrics.counters.relays_refused[RelayRefusal::Malformed] += 1;
            return;
        };
        let rest = RelayedMessage { header, payload: &payload, found: &found, received: message.received };
        self.relay_message(info, &rest, now);
    }

    fn tell_missed(&self, channel: ChannelId, upto: Seq, now: Now) {
        let classes = self.channels.get(&channel).map(Channel::classes).unwrap_or_default();
        for (class, worker) in classes.iter().flat_map(|of| of.workers().map(|worker| (of.key(), worker))) {
            if worker == self.worker {
                self.note_missed(channel, class, upto, now);
            } else {
                self.router.send(worker, ToWorker::Missed { channel, class, upto });
            }
        }
    }

    /// Samples of a mirror did not come.
    pub(super) fn note_missed(&self, channel: ChannelId, class: ClassKey, upto: Seq, now: Now) {
        self.for_receivers(channel, class, |receiver| {
            receiver.handle.outbox().borrow_mut().note_missed(receiver.slot, upto, now);
            receiver.handle.wake_writer();
        });
    }

    /// A stream of another server, whose home is here, has ended. Others hear of it from here, behind its announcement and before the
    /// next, if it goes on after all.
    pub(super) fn end_mirror(&mut self, name: &str, epoch: u32, now: Now) {
        let Some(info) = self.router.directory(|directory| directory.end_mirror(name, epoch)) else { return };
        self.with_channel(info.id, now, Channel::seal_all);
        self.dispatch(info.id, now);
        // Receivers of other workers may be on their way; the directory tells when nobody has it any more.
        self.mirrors.set(&info, State::Ended);
        self.other_workers().for_each(|worker| self.router.send(worker, ToWorker::MirrorEnded(info.id)));
        self.end_for_all(info.id, now);
    }

    /// Whoever receives a channel that has ended is told, and does not any more.
    pub(super) fn end_for_all(&mut self, channel: ChannelId, now: Now) {
        // Many channels may end together, so this takes what their own receivers take: the lists in which each would look for himself
        // go first.
        self.receivers.remove(&channel);
        for member in self.take_present(channel) {
            self.end_receiving(member, channel, now);
        }
    }

    /// Tells other servers where the streams stand that have gone quiet: the last frames of one may be lost on the way, and
    /// nothing comes behind them.
    pub(super) fn tell_heads(&mut self, now: Now) {
        while let Some(silence) = self.quiet.pop(now.at) {
            let Silence { id, at, heads } = silence;
            let Some(channel) = self.channels.get(&id) else {
                self.quiet.queued.remove(&id);
                continue;
            };
            let silent = channel.last_published().is_none_or(|published| published <= at);
            if silent {
                // After a pause of the process something may be due that a head must not overtake.
                self.cross_now(id, now);
                self.send_head(id, now);
            }
            self.quiet.push(Silence { id, at: now.at, heads: if silent { heads + 1 } else { 0 } });
        }
    }

    /// Tells another server, which has begun to watch a name, where its stream stands.
    pub(super) fn tell_head(&mut self, name: &str, now: Now) {
        let Some(info) = self.router.directory(|directory| directory.published_as(name)) else { return };
        self.begin_channel(&info, now);
        // What waits in a batch goes first: from here on the other server has to get everything.
        self.with_channel(info.id, now, Channel::seal_crossing);
        self.dispatch(info.id, now);
        self.cross_now(info.id, now);
        self.send_head(info.id, now);
    }

    fn send_head(&self, id: ChannelId, now: Now) {
        if let Some((channel, outlet)) = self.channels.get(&id).zip(self.router.outlet()) {
            // What waits in a batch, which a long window makes later than a silence, is not lost if it is not there yet.
            let sent = channel.head(crossing_class(&self.config));
            let (info, next) = (channel.info(), sent.map_or_else(|| channel.next_seq(), |sent| sent + 1));
            let payload = relay::head_payload(outlet.node(), info.epoch, now.wall_ns, next);
            outlet.publish(&info.name, payload);
        }
    }

    /// What was there when somebody subscribed has passed this worker, or has come to whoever waits.
    pub(super) fn note_arrived(&mut self, arrival: Arrival, now: Now) {
        if arrival.passed < self.router.workers() {
            self.router.pass_on(Arrival { passed: arrival.passed + 1, ..arrival });
        } else {
            self.finish_wait(arrival.waiter.wait, now);
        }
    }
}
