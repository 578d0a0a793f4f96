//! Who receives and who publishes what: connections as the hub knows them, their subscriptions, and how they join and leave
//! delivery classes, here or at another worker. The control half of the hub: nothing here runs for a sample.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slab::Slab;

use super::access::Standing;
use super::batch::ClassKey;
use super::channel::ClassesFull;
use super::directory::{ChannelInfo, Role};
use super::report::count_totals;
use super::router::{Announced, Joined, ToWorker, Waiter};
use super::{Hub, Receiver, Refused};
use crate::auth::seats::Seat;
use crate::clock::Now;
use crate::history::{Past, Start};
use crate::outbox::handle::OutboxHandle;
use crate::outbox::{Slot, SlotOptions};
use crate::pattern::Pattern;
use crate::session::DeliveryOptions;
use crate::wire::control::{ChannelEntry, ErrorCode, Event, Head, Ledger, Policy, Position, Replay};
use crate::wire::cursor::Place;
use crate::wire::{ChannelId, Codec, ConnectionId, Seq};

pub(super) fn class_of(delivery: &DeliveryOptions, codec: Codec) -> ClassKey {
    ClassKey {
        codec,
        delay_ms: delivery.max_delay_ms,
        interval_us: delivery.max_rate_hz.map(interval_us),
        newest_only: delivery.policy == Policy::Latest,
    }
}

pub(super) fn slot_options(delivery: &DeliveryOptions, class: ClassKey) -> SlotOptions {
    SlotOptions {
        policy: delivery.policy,
        max_age: Duration::from_millis(u64::from(delivery.max_age_ms)),
        hole: class.hole(),
    }
}

/// Shortest time between two errors that tell a connection that a pattern has met more channels than it may receive.
const TELL_FULL_INTERVAL: Duration = Duration::from_secs(1);

/// The time between samples that a rate stands for.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "such a cast saturates")]
fn interval_us(rate_hz: f64) -> u32 {
    (1e6 / rate_hz).ceil() as u32
}

/// A connection that the hub takes in.
#[derive(Debug)]
pub struct NewMember {
    /// Its number.
    pub id: ConnectionId,
    /// Its outbox.
    pub handle: Rc<OutboxHandle>,
    /// How its data is encoded.
    pub codec: Codec,
    /// How far the server knows who it is.
    pub standing: Standing,
    /// Its place among the subject's connections, if it is known.
    pub seat: Option<Seat>,
    /// Address of the peer.
    pub remote: Box<str>,
}

/// A connection as the hub knows it.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) id: ConnectionId,
    pub(super) handle: Rc<OutboxHandle>,
    pub(super) codec: Codec,
    pub(super) standing: Standing,
    pub(super) seat: Option<Seat>,
    /// It was told that its token ends soon.
    pub(super) told_expiring: bool,
    pub(super) remote: Box<str>,
    pub(super) since: Now,
    pub(super) subscriptions: Slab<Subscription>,
    /// Subscriptions that it has ever had: tells the older from the newer, since their places are used again.
    subscribed: u64,
    pub(super) receiving: HashMap<ChannelId, Receiving>,
    pub(super) advertised: HashMap<ChannelId, Arc<ChannelInfo>>,
    told_full_at: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Subscription {
    pattern: Pattern,
    pub(super) delivery: DeliveryOptions,
    /// What it wants of the past of channels that are new to the connection, also of those that it finds later.
    past: Option<Past>,
    /// Grows from one subscription of the connection to the next.
    order: u64,
}

/// A channel that a connection receives, by one of its subscriptions.
#[derive(Debug)]
pub(super) struct Receiving {
    pub(super) info: Arc<ChannelInfo>,
    pub(super) slot: Slot,
    /// The subscription whose delivery options hold: one by name before one by pattern, then the oldest.
    pub(super) by: usize,
    /// The class that the home and this worker know it in; none before its first join was answered, and while it catches up.
    pub(super) class: Option<ClassKey>,
    /// The join that is under way; there is one at a time.
    joining: Option<usize>,
    /// It catches up, by its place in the hub's replays.
    pub(super) replay: Option<usize>,
    /// What it gets of the past, until the peer is told.
    untold: Option<Replay>,
    /// Whether the peer knows the channel's number.
    told: bool,
}

impl Receiving {
    /// It begins with something of the past, which the peer is told with the channel.
    pub(super) const fn note_replay(&mut self, replay: Replay) {
        self.untold = Some(replay);
    }

    /// Whether it is known where it begins.
    const fn has_begun(&self) -> bool {
        self.class.is_some() || self.replay.is_some()
    }
}

/// A join that the home has not answered yet. It stays until then, even if whoever asked has gone: its number must not be
/// another's when the answer comes.
#[derive(Debug)]
pub(super) struct Join {
    member: usize,
    info: Arc<ChannelInfo>,
    to: ClassKey,
    /// What waits for it.
    purposes: Vec<Purpose>,
}

#[derive(Clone, Copy, Debug)]
enum Purpose {
    /// Part of a `subscribe`.
    Request(usize),
    /// A pattern has found a new channel.
    Found,
    /// Another subscription's options took over.
    Takeover,
}

/// A `subscribe` whose channels are being joined.
#[derive(Debug)]
pub(super) struct Request {
    member: usize,
    id: Option<u64>,
    subscription: usize,
    /// The subscription has ended meanwhile: there is nothing to tell.
    ended: bool,
    remaining: usize,
    joined: Vec<(Arc<ChannelInfo>, Seq)>,
    classes_full: bool,
}

/// An `advertise` that other workers have not answered yet.
#[derive(Debug)]
pub(super) struct Announcing {
    member: usize,
    /// Its number, since places are used again.
    connection: ConnectionId,
    id: Option<u64>,
    info: Arc<ChannelInfo>,
    seq: Seq,
    remaining: usize,
}

/// What waits for other servers.
#[derive(Clone, Copy, Debug)]
pub(super) enum Waits {
    /// A `subscribe`.
    Request(usize),
    /// An `advertise`.
    Announcing(usize),
}

/// Who has to hear of an `advertise` before it is answered, beside the channel's home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tell {
    /// Every worker: its patterns may match.
    Patterns,
    /// Nobody: the channel is known.
    Nobody,
}

impl Hub {
    /// Takes a connection in, and subscribes a user to the user's inbox. Returns its place.
    pub fn add_member(&mut self, new: NewMember, now: Now) -> usize {
        self.metrics.counters.connections_opened += 1;
        let NewMember { id, handle, codec, standing, seat, remote } = new;
        let member = self.members.insert(Member {
            id,
            handle,
            codec,
            standing,
            seat,
            told_expiring: false,
            remote,
            since: now,
            subscriptions: Slab::new(),
            subscribed: 0,
            receiving: HashMap::new(),
            advertised: HashMap::new(),
            told_full_at: None,
        });
        self.open_inbox(member, now);
        member
    }

    /// Forgets a connection: afterwards no list holds it.
    pub fn remove_member(&mut self, member: usize, now: Now) {
        // Nobody is left to answer.
        self.requests.retain(|_, request| request.member != member);
        self.waits.retain(|_, waits| match waits {
            Waits::Request(request) => self.requests.contains(*request),
            Waits::Announcing(_) => true,
        });
        let channels: Vec<ChannelId> = self.members[member].receiving.keys().copied().collect();
        for channel in channels {
            self.stop_receiving(member, channel, now);
        }
        let gone = self.members.remove(member);
        for (number, subscription) in &gone.subscriptions {
            self.patterns.remove(&subscription.pattern, (member, number));
            self.unwant(&subscription.pattern);
            self.forget_tellers_of(&subscription.pattern);
        }
        self.release_all(gone.advertised.keys().copied(), now);
        for code in gone.handle.take_errors() {
            self.metrics.counters.errors_sent[code] += 1;
        }
        let totals = *gone.handle.outbox().borrow().totals();
        count_totals(&mut self.metrics, &totals);
    }

    /// Where each channel of a connection stands, for its `goodbye`.
    #[must_use]
    pub fn positions(&self, member: usize) -> Vec<Position> {
        let position = |info: &ChannelInfo, cursor: Place| Position {
            channel: info.id.0,
            name: info.name.clone(),
            epoch: cursor.epoch,
            seq: cursor.seq,
            cursor,
        };
        self.places(member, position)
    }

    /// The newest sequence of each channel that has come this far, for a `heartbeat`.
    #[must_use]
    pub fn heads(&self, member: usize) -> Vec<Head> {
        self.places(member, |info, cursor| Head { channel: info.id.0, seq: cursor.seq, cursor })
    }

    fn places<T>(&self, member: usize, place: impl Fn(&ChannelInfo, Place) -> T) -> Vec<T> {
        let Some(member) = self.members.get(member) else { return Vec::new() };
        let outbox = member.handle.outbox().borrow();
        let begun = member.receiving.values().filter(|receiving| receiving.has_begun());
        let seq = |receiving: &Receiving| outbox.next_seq(receiving.slot).saturating_sub(1);
        begun
            .map(|receiving| {
                place(&receiving.info, Place { epoch: receiving.info.epoch, seq: seq(receiving) })
            })
            .collect()
    }

    /// Whether a connection neither receives nor publishes anything.
    #[must_use]
    pub fn is_idle(&self, member: usize) -> bool {
        self.members.get(member).is_none_or(|m| m.subscriptions.is_empty() && m.advertised.is_empty())
    }

    /// The channel that a connection has advertised under this name.
    #[must_use]
    pub fn advertised(&self, member: usize, name: &str) -> Option<ChannelId> {
        let this = self.members.get(member)?;
        this.advertised.values().find(|info| *info.name == *name).map(|info| info.id)
    }

    /// Subscribes a connection, or changes the delivery of a subscription that it has. The answer goes into the control
    /// lane when all channels that match have been joined.
    ///
    /// # Errors
    /// Says which limit or rule stands against it; nothing has changed then.
    pub fn subscribe(
        &mut self,
        member: usize,
        id: Option<u64>,
        pattern: &Pattern,
        delivery: DeliveryOptions,
        past: Option<Past>,
        now: Now,
    ) -> Result<(), Refused> {
        self.check_readable(member, pattern)?;
        let limits = &self.config.channel;
        let (subscriptions_max, channels_max) = (limits.subscriptions_max, limits.channels_max);
        let this = &self.members[member];
        let existing = this.number_of(pattern);
        if let Some(past) = &past {
            if existing.is_some() {
                return Err(Refused {
                    code: ErrorCode::BadRequest,
                    message: format!(
                        "since, last, last_ms: channel {:?} is subscribed already, and goes on as it is; unsubscribe it first",
                        pattern.as_str()
                    ),
                });
            }
            // They are kept for channels that are found later.
            let others = this.subscriptions.iter().filter_map(|(_, it)| it.past.as_ref());
            if past.cursors() + others.map(Past::cursors).sum::<usize>() > channels_max {
                let what = "cursors of all subscriptions of a connection";
                return Err(over_limit(what, channels_max, "unsubscribe some first"));
            }
        }
        if existing.is_none() && this.subscriptions.len() >= subscriptions_max {
            return Err(over_limit(
                "subscriptions of a connection",
                subscriptions_max,
                "unsubscribe one first",
            ));
        }
        // Each channel comes with a hold in the directory; those that are received already give it back.
        let found = if pattern.is_literal() {
            let name = pattern.as_str();
            let opened = self.router.open(name, Role::Subscriber).map_err(|_| self.directory_full())?;
            let mut found = vec![opened.info];
            found.extend(self.router.directory(|directory| directory.open_mirrors(name, channels_max)));
            found
        } else {
            self.open_matching(pattern, existing.is_none()).map_err(|_| self.directory_full())?
        };
        let new = found.iter().filter(|info| !this.receiving.contains_key(&info.id)).count();
        if this.receiving.len() + new > channels_max {
            self.release_all(found.iter().map(|info| info.id), now);
            if existing.is_none() {
                self.forget_tellers_of(pattern);
            }
            return Err(over_limit("channels of a connection", channels_max, "subscribe more narrowly"));
        }

        let this = &mut self.members[member];
        let number = if let Some(number) = existing {
            this.subscriptions[number].delivery = delivery;
            number
        } else {
            if this.subscriptions.is_empty() {
                // As in the outbox: many have a single one.
                this.subscriptions.reserve_exact(1);
            }
            let order = this.subscribed;
            this.subscribed += 1;
            let number =
                this.subscriptions.insert(Subscription { pattern: pattern.clone(), delivery, past, order });
            self.patterns.insert(pattern, (member, number));
            number
        };
        this.handle.begin_subscribe();
        let request = self.requests.insert(Request {
            member,
            id,
            subscription: number,
            ended: false,
            // One for each channel, and one for the loop itself: it must not answer before it has asked for all.
            remaining: found.len() + 1,
            joined: Vec::new(),
            classes_full: false,
        });
        for info in found {
            self.receive(member, info, number, Purpose::Request(request), now);
        }
        if let Some(outlet) = self.router.outlet().filter(|_| existing.is_none()) {
            self.next_wait += 1;
            let wait = self.next_wait;
            self.waits.insert(wait, Waits::Request(request));
            self.requests[request].remaining += 1;
            outlet.want(pattern, Waiter { worker: self.worker, wait });
        }
        self.settle_request(request, now);
        Ok(())
    }

    fn unwant(&self, pattern: &Pattern) {
        if let Some(outlet) = self.router.outlet() {
            outlet.unwant(pattern);
        }
    }

    /// Other servers are waited for no longer.
    pub(super) fn finish_wait(&mut self, wait: u64, now: Now) {
        match self.waits.remove(&wait) {
            Some(Waits::Request(request)) => self.settle_request(request, now),
            Some(Waits::Announcing(token)) => self.finish_announce(token, None),
            None => {}
        }
    }

    /// Ends a subscription. Channels that another subscription of the connection matches go on with that one's options.
    ///
    /// # Errors
    /// It is not subscribed.
    pub fn unsubscribe(
        &mut self,
        member: usize,
        id: Option<u64>,
        pattern: &Pattern,
        now: Now,
    ) -> Result<(), Refused> {
        let Some(number) = self.members[member].number_of(pattern) else {
            return Err(Refused {
                code: ErrorCode::NotSubscribed,
                message: format!(
                    "channel {:?} is not subscribed; name it as in the subscribe",
                    pattern.as_str()
                ),
            });
        };
        let channels = self.end_subscription(member, number, now);
        let event = Event::Unsubscribed { id, subscription: pattern.as_str(), channels };
        self.members[member].handle.push_event(&event);
        Ok(())
    }

    /// Opens a channel for publishing. The answer goes into the control lane when every pattern in the server that matches
    /// has joined, so that no sample published after it is missed.
    ///
    /// # Errors
    /// Says which limit or rule stands against it.
    pub fn advertise(
        &mut self,
        member: usize,
        id: Option<u64>,
        name: &str,
        now: Now,
    ) -> Result<ChannelId, Refused> {
        self.check_writable(member, name)?;
        if let Some(channel) = self.advertised(member, name) {
            let info = Arc::clone(&self.members[member].advertised[&channel]);
            self.answer_advertise(member, id, &info, Tell::Nobody);
            return Ok(channel);
        }
        let channels_max = self.config.channel.channels_max;
        if self.members[member].advertised.len() >= channels_max {
            let what = "advertised channels of a connection";
            return Err(over_limit(what, channels_max, "use another connection"));
        }
        let opened = self.router.open(name, Role::Publisher);
        let opened = opened.map_err(|_| self.directory_full())?;
        let info = opened.info;
        self.members[member].advertised.insert(info.id, Arc::clone(&info));
        if opened.announce {
            self.announce(&info, now);
            self.router.note_changed();
        }
        self.answer_advertise(member, id, &info, if opened.announce { Tell::Patterns } else { Tell::Nobody });
        Ok(info.id)
    }

    /// The home has answered a join: frames of the class come from here on, or what is kept has to come first.
    pub(super) fn finish_join(&mut self, token: usize, joined: Result<Joined, ClassesFull>, now: Now) {
        let Some(Join { member, info, to, purposes }) = self.joins.try_remove(token) else { return };
        let channel = info.id;
        let this = self.members.get_mut(member);
        let receiving = this.and_then(|this| this.receiving.get_mut(&channel));
        let Some(receiving) = receiving.filter(|receiving| receiving.joining == Some(token)) else {
            // Whoever asked has gone meanwhile.
            if matches!(joined, Ok(Joined::Live(_))) {
                self.leave(&info, to);
            }
            return;
        };
        receiving.joining = None;
        let slot = receiving.slot;
        let this = &self.members[member];
        let handle = Rc::clone(&this.handle);
        let options = slot_options(&this.subscriptions[this.receiving[&channel].by].delivery, to);
        match joined {
            Ok(Joined::Live(seq)) => {
                let before = self.set_class(member, channel, Some(to));
                if let Some(old) = before {
                    self.remove_receiver(channel, old, &handle);
                    handle.outbox().borrow_mut().switch_slot(slot, options, seq, now);
                } else {
                    handle.outbox().borrow_mut().start_slot(slot, options, seq);
                }
                self.add_receiver(channel, to, handle, slot);
            }
            Ok(Joined::Past(begin)) => {
                handle.outbox().borrow_mut().start_slot(slot, options, begin.seq);
                self.begin_replay(member, info, begin, now);
            }
            Err(ClassesFull) => {
                if let Some(old) = self.set_class(member, channel, None) {
                    self.remove_receiver(channel, old, &handle);
                }
                self.forget_receiving(member, channel, now);
            }
        }
        for purpose in purposes {
            if joined.is_ok() {
                self.settle(member, channel, purpose, now);
            } else {
                self.refuse_join(member, channel, purpose, now);
            }
        }
        // They may have changed again while the home was asked.
        self.settle_options(member, channel, now);
    }

    /// Notes the class that a connection is in. Returns the one before.
    fn set_class(&mut self, member: usize, channel: ChannelId, class: Option<ClassKey>) -> Option<ClassKey> {
        let receiving = self.members.get_mut(member)?.receiving.get_mut(&channel)?;
        std::mem::replace(&mut receiving.class, class)
    }

    /// Hands the frames of a class to a connection from now on.
    pub(super) fn add_receiver(
        &mut self,
        channel: ChannelId,
        class: ClassKey,
        handle: Rc<OutboxHandle>,
        slot: Slot,
    ) {
        let classes = &mut self.receivers.entry(channel).or_default().classes;
        let receiver = Receiver { handle, slot };
        match classes.iter_mut().find(|(key, _)| *key == class) {
            Some((_, receivers)) => receivers.push(receiver),
            None => classes.push((class, vec![receiver])),
        }
    }

    /// Has the patterns of this worker's connections receive a channel that is new to them.
    pub(super) fn announce(&mut self, info: &Arc<ChannelInfo>, now: Now) {
        let mut found = Vec::new();
        self.patterns.matching(&info.name, &mut |value| found.push(value));
        let channels_max = self.config.channel.channels_max;
        for (member, number) in found {
            let this = &self.members[member];
            if this.receiving.contains_key(&info.id) {
                continue;
            }
            if this.receiving.len() >= channels_max {
                // Once in a while is enough: others' channels must not fill its control lane.
                let told = this.told_full_at;
                if told.is_none_or(|at| now.at.saturating_duration_since(at) >= TELL_FULL_INTERVAL) {
                    let what = "channels of a connection";
                    this.refuse(None, &over_limit(what, channels_max, "subscribe more narrowly"));
                    self.members[member].told_full_at = Some(now.at);
                }
            } else if self.router.directory(|directory| directory.hold(info.id)) {
                // Several of its patterns may match, and the index does not know their age.
                let number = this.best_subscription(&info.name).unwrap_or(number);
                let purpose = self.purpose_of(member, number);
                self.receive(member, Arc::clone(info), number, purpose, now);
            }
        }
    }

    /// A `subscribe` that is not answered yet tells of the channels that are found meanwhile.
    fn purpose_of(&mut self, member: usize, subscription: usize) -> Purpose {
        let mut requests = self.requests.iter_mut();
        let pending = requests.find(|(_, request)| {
            request.member == member && request.subscription == subscription && !request.ended
        });
        pending.map_or(Purpose::Found, |(number, request)| {
            request.remaining += 1;
            Purpose::Request(number)
        })
    }

    /// Another worker has answered an `advertise`: its patterns have joined, or it is the home and says where the sequence
    /// stands.
    pub(super) fn finish_announce(&mut self, token: usize, seq: Option<Seq>) {
        let Some(announcing) = self.announcing.get_mut(token) else { return };
        announcing.seq = seq.unwrap_or(announcing.seq);
        announcing.remaining -= 1;
        if announcing.remaining == 0 {
            let Announcing { member, connection, id, info, seq, .. } = self.announcing.remove(token);
            self.router.directory(|directory| directory.note_announced(info.id));
            // The connection may have gone, and its place may be another's by now.
            let Some(member) = self.members.get(member).filter(|member| member.id == connection) else {
                return;
            };
            member.handle.push_event(&Event::Advertised { id, channel: entry(&info, seq) });
            member.handle.finish_request();
        }
    }

    /// Has a connection receive a channel by one of its subscriptions. The caller holds the channel in the directory.
    fn receive(&mut self, member: usize, info: Arc<ChannelInfo>, by: usize, purpose: Purpose, now: Now) {
        let channel = info.id;
        let this = &mut self.members[member];
        if let Some(receiving) = this.receiving.get(&channel) {
            let changes = receiving.by == by || this.best_subscription(&info.name) == Some(by);
            // It has a hold already.
            self.release_all([channel], now);
            if changes {
                self.change_class(member, channel, by, purpose, now);
            } else {
                self.settle_or_wait(member, channel, purpose, now);
            }
            return;
        }
        let delivery = this.subscriptions[by].delivery;
        let class = class_of(&delivery, this.codec);
        let slot = this.handle.outbox().borrow_mut().open_slot(channel, slot_options(&delivery, class), 1);
        let start = this.start_of(by, &info.name);
        let receiving = Receiving {
            info: Arc::clone(&info),
            slot,
            by,
            class: None,
            joining: None,
            replay: None,
            untold: None,
            told: false,
        };
        this.receiving.insert(channel, receiving);
        self.note_arrival(member, &info);
        self.join(member, info, class, start, vec![purpose], now);
    }

    /// Moves a channel of a connection to the delivery class that a subscription wants.
    fn change_class(&mut self, member: usize, channel: ChannelId, by: usize, purpose: Purpose, now: Now) {
        let this = &mut self.members[member];
        let Some(receiving) = this.receiving.get_mut(&channel) else { return };
        receiving.by = by;
        let delivery = this.subscriptions[by].delivery;
        let to = class_of(&delivery, this.codec);
        // Who catches up asks for each part as it wants it then.
        let settled = receiving.joining.is_none() && receiving.replay.is_none();
        if settled && receiving.class != Some(to) {
            let info = Arc::clone(&receiving.info);
            self.join(member, info, to, None, vec![purpose], now);
            return;
        }
        if settled {
            this.handle.outbox().borrow_mut().set_options(receiving.slot, slot_options(&delivery, to));
        }
        self.settle_or_wait(member, channel, purpose, now);
    }

    /// Tells whoever waits, or has it wait for the join that is under way: only its answer says where the channel begins.
    fn settle_or_wait(&mut self, member: usize, channel: ChannelId, purpose: Purpose, now: Now) {
        let Some(receiving) = self.members[member].receiving.get(&channel) else { return };
        match receiving.joining.and_then(|token| self.joins.get_mut(token)) {
            Some(join) => join.purposes.push(purpose),
            None => self.settle(member, channel, purpose, now),
        }
    }

    /// Asks the home for a place in a class, instead of the one that the connection has, if any.
    fn join(
        &mut self,
        member: usize,
        info: Arc<ChannelInfo>,
        to: ClassKey,
        start: Option<Start>,
        purposes: Vec<Purpose>,
        now: Now,
    ) {
        let Some(receiving) = self.members[member].receiving.get_mut(&info.id) else { return };
        let from = receiving.class;
        let token = self.joins.insert(Join { member, info: Arc::clone(&info), to, purposes });
        receiving.joining = Some(token);
        if info.home == self.worker {
            let joined = self.begin_at_home(&info, from, to, start.as_ref(), self.worker, now);
            self.finish_join(token, joined, now);
        } else {
            let (home, worker) = (info.home, self.worker);
            self.router.send(home, ToWorker::Join { info, from, to, start, worker, token });
        }
    }

    /// Gives a place in a class back to the home.
    pub(super) fn leave(&mut self, info: &ChannelInfo, class: ClassKey) {
        if info.home == self.worker {
            self.leave_at_home(info.id, class, self.worker);
        } else {
            let worker = self.worker;
            self.router.send(info.home, ToWorker::Leave { channel: info.id, class, worker });
        }
    }

    /// A channel of a connection has joined its class, or stays as it is: tells whoever waits for it.
    fn settle(&mut self, member: usize, channel: ChannelId, purpose: Purpose, now: Now) {
        match purpose {
            Purpose::Takeover => {}
            Purpose::Found => self.tell(member, channel),
            Purpose::Request(request) => {
                let this = &self.members[member];
                let Some(receiving) = this.receiving.get(&channel) else { return };
                let seq = this.handle.outbox().borrow().next_seq(receiving.slot);
                if let Some(pending) = self.requests.get_mut(request) {
                    pending.joined.push((Arc::clone(&receiving.info), seq));
                }
                self.settle_request(request, now);
            }
        }
    }

    /// Tells the peer the number of a channel, once.
    fn tell(&mut self, member: usize, channel: ChannelId) {
        let this = &mut self.members[member];
        let Some(receiving) = this.receiving.get_mut(&channel).filter(|receiving| !receiving.told) else {
            return;
        };
        receiving.told = true;
        let seq = this.handle.outbox().borrow().next_seq(receiving.slot);
        let subscription = this.subscriptions[receiving.by].pattern.as_str();
        let channel = begun(&receiving.info, seq, receiving.untold.take());
        this.handle.push_event(&Event::Channel { subscription, channel });
    }

    /// The home had no room for the class. Whatever the connection was in before, it is out of the channel now.
    fn refuse_join(&mut self, member: usize, channel: ChannelId, purpose: Purpose, now: Now) {
        if let Purpose::Request(request) = purpose {
            if let Some(pending) = self.requests.get_mut(request) {
                pending.classes_full = true;
            }
            self.settle_request(request, now);
        } else {
            self.refuse_class(member, channel);
        }
    }

    /// Gives a connection's channel the options that it should have by now.
    pub(super) fn settle_options(&mut self, member: usize, channel: ChannelId, now: Now) {
        if let Some(by) = self.members[member].receiving.get(&channel).map(|receiving| receiving.by) {
            self.change_class(member, channel, by, Purpose::Takeover, now);
        }
    }

    /// Tells a connection that a channel of it has ended, because the home had no room for the class.
    pub(super) fn refuse_class(&self, member: usize, channel: ChannelId) {
        let mut refused = self.classes_full();
        refused.message = format!("channel number {channel}: {}", refused.message);
        self.members[member].refuse(None, &refused);
    }

    /// One channel of a `subscribe` is settled; the last one brings the answer.
    fn settle_request(&mut self, request: usize, now: Now) {
        let Some(pending) = self.requests.get_mut(request) else { return };
        pending.remaining -= 1;
        if pending.remaining > 0 {
            return;
        }
        let done = self.requests.remove(request);
        let this = &self.members[done.member];
        this.handle.finish_subscribe();
        let Some(subscription) = this.subscriptions.get(done.subscription).filter(|_| !done.ended) else {
            return;
        };
        if done.classes_full {
            this.refuse(done.id, &self.classes_full());
            self.end_subscription(done.member, done.subscription, now);
            return;
        }
        let untold = |info: &ChannelInfo| this.receiving.get(&info.id).and_then(|receiving| receiving.untold);
        let DeliveryOptions { policy, max_delay_ms, max_age_ms, max_rate_hz } = subscription.delivery;
        this.handle.push_event(&Event::Subscribed {
            id: done.id,
            subscription: subscription.pattern.as_str(),
            policy,
            max_delay_ms,
            max_age_ms,
            max_rate_hz,
            channels: done.joined.iter().map(|(info, seq)| begun(info, *seq, untold(info))).collect(),
        });
        for (info, _) in &done.joined {
            if let Some(receiving) = self.members[done.member].receiving.get_mut(&info.id) {
                receiving.told = true;
                receiving.untold = None;
            }
        }
    }

    /// Removes a subscription; its channels go over to another that matches, or end. Returns the ledgers of those.
    pub(super) fn end_subscription(&mut self, member: usize, number: usize, now: Now) -> Vec<Ledger> {
        let this = &mut self.members[member];
        let removed = this.subscriptions.remove(number);
        self.patterns.remove(&removed.pattern, (member, number));
        for (_, request) in &mut self.requests {
            request.ended |= request.member == member && request.subscription == number;
        }
        let mut ended = Vec::new();
        let by_it = |receiving: &&Receiving| receiving.by == number;
        let affected: Vec<_> =
            this.receiving.values().filter(by_it).map(|receiving| Arc::clone(&receiving.info)).collect();
        self.forget_tellers_of(&removed.pattern);
        for info in affected {
            match self.members[member].best_subscription(&info.name) {
                Some(next) => {
                    // The answer that would have told of the channel does not come any more.
                    let told = self.members[member].receiving.get(&info.id).is_some_and(|r| r.told);
                    let purpose = if told { Purpose::Takeover } else { Purpose::Found };
                    self.change_class(member, info.id, next, purpose, now);
                }
                None => ended.extend(self.stop_receiving(member, info.id, now)),
            }
        }
        self.unwant(&removed.pattern);
        ended
    }

    /// Ends the receiving of a channel at its home, here and in the outbox. Returns the final ledger.
    fn stop_receiving(&mut self, member: usize, channel: ChannelId, now: Now) -> Option<Ledger> {
        let receiving = self.members[member].receiving.get(&channel)?;
        let (info, class, replay) = (Arc::clone(&receiving.info), receiving.class, receiving.replay);
        let waiting = if let Some(join) = receiving.joining.and_then(|token| self.joins.get_mut(token)) {
            // Its answer finds nobody, and gives the place back.
            std::mem::take(&mut join.purposes)
        } else {
            if let Some(class) = class {
                self.leave(&info, class);
            }
            Vec::new()
        };
        if let Some(replay) = replay {
            self.end_replay(replay);
        }
        let ledger = self.forget_receiving(member, channel, now);
        for purpose in waiting {
            if let Purpose::Request(request) = purpose {
                self.settle_request(request, now);
            }
        }
        ledger
    }

    /// A channel has ended by itself: tells the connection, with the final ledger.
    pub(super) fn end_receiving(&mut self, member: usize, channel: ChannelId, now: Now) {
        let told = self.members[member].receiving.get(&channel).is_some_and(|receiving| receiving.told);
        // An answer that would have told of it does not any more.
        if self.members[member].handle.has_unanswered() {
            for (_, request) in self.requests.iter_mut().filter(|(_, request)| request.member == member) {
                request.joined.retain(|(info, _)| info.id != channel);
            }
        }
        let ledger = self.stop_receiving(member, channel, now);
        if let Some(ledger) = ledger.filter(|_| told) {
            self.members[member].handle.push_event(&Event::Ended { ledger });
        }
    }

    pub(super) fn forget_receiving(&mut self, member: usize, channel: ChannelId, now: Now) -> Option<Ledger> {
        let this = &mut self.members[member];
        let receiving = this.receiving.remove(&channel)?;
        let handle = Rc::clone(&this.handle);
        let ledger = handle.outbox().borrow_mut().close_slot(receiving.slot);
        self.note_departure(member, &receiving.info);
        if let Some(class) = receiving.class {
            self.remove_receiver(channel, class, &handle);
        }
        self.release_all([channel], now);
        Some(ledger)
    }

    fn remove_receiver(&mut self, channel: ChannelId, class: ClassKey, handle: &Rc<OutboxHandle>) {
        let Some(receivers) = self.receivers.get_mut(&channel) else { return };
        if let Some(position) = receivers.classes.iter().position(|(key, _)| *key == class) {
            let list = &mut receivers.classes[position].1;
            if let Some(receiver) = list.iter().position(|receiver| Rc::ptr_eq(&receiver.handle, handle)) {
                list.swap_remove(receiver);
            }
            if list.is_empty() {
                receivers.classes.swap_remove(position);
            }
        }
        if receivers.classes.is_empty() {
            self.receivers.remove(&channel);
        }
    }

    /// Answers an `advertise`, as soon as the workers that have to be told or asked have answered.
    fn answer_advertise(&mut self, member: usize, id: Option<u64>, info: &Arc<ChannelInfo>, tell: Tell) {
        let told: Vec<usize> =
            self.other_workers().filter(|&worker| tell == Tell::Patterns || worker == info.home).collect();
        let seq = self.next_seq_at_home(info);
        // What belongs to this server alone is not told to others.
        let outlet = self.router.outlet().filter(|outlet| outlet.crosses(&info.name));
        let outlet = outlet.filter(|_| tell == Tell::Patterns);
        if told.is_empty() && outlet.is_none() {
            self.router.directory(|directory| directory.note_announced(info.id));
            let advertised = Event::Advertised { id, channel: entry(info, seq) };
            self.members[member].handle.push_event(&advertised);
            return;
        }
        self.members[member].handle.begin_request();
        let remaining = told.len() + usize::from(outlet.is_some());
        let token = {
            let (connection, info) = (self.members[member].id, Arc::clone(info));
            self.announcing.insert(Announcing { member, connection, id, info, seq, remaining })
        };
        if let Some(outlet) = outlet {
            self.next_wait += 1;
            self.waits.insert(self.next_wait, Waits::Announcing(token));
            outlet.tell_opened(Waiter { worker: self.worker, wait: self.next_wait });
        }
        for worker in told {
            let done = Announced::Worker { worker: self.worker, token };
            self.router.send(worker, ToWorker::Announce { info: Arc::clone(info), done });
        }
    }

    fn directory_full(&self) -> Refused {
        over_limit("channels of the server", self.config.channel.channels_total_max, "use fewer names")
    }

    fn classes_full(&self) -> Refused {
        let classes_max = self.config.channel.classes_max;
        let remedy = "use a max_delay_ms and max_rate_hz that other subscribers use";
        over_limit("delivery classes of a channel", classes_max, remedy)
    }

    pub(super) fn release_all(&self, channels: impl IntoIterator<Item = ChannelId>, now: Now) {
        self.router.directory(|directory| {
            for channel in channels {
                directory.release(channel, now.at);
            }
        });
    }
}

impl Subscription {
    /// What it is to.
    pub(super) const fn pattern(&self) -> &Pattern {
        &self.pattern
    }
}

impl Member {
    pub(super) fn number_of(&self, pattern: &Pattern) -> Option<usize> {
        self.subscriptions.iter().find(|(_, s)| s.pattern == *pattern).map(|(number, _)| number)
    }

    /// The subscription whose options hold for a channel: by name before by pattern, then the oldest.
    fn best_subscription(&self, name: &str) -> Option<usize> {
        let matching = self.subscriptions.iter().filter(|(_, s)| s.pattern.matches(name));
        matching.min_by_key(|(_, s)| (!s.pattern.is_literal(), s.order)).map(|(number, _)| number)
    }

    /// Where a channel begins that is new to the connection, found by one of its subscriptions: that one's wish counts before those
    /// of others that match.
    fn start_of(&self, by: usize, name: &str) -> Option<Start> {
        let of = |subscription: &Subscription| subscription.past.as_ref().map(|past| past.start_of(name));
        self.subscriptions.get(by).and_then(of).or_else(|| {
            let mut matching = self.subscriptions.iter().filter(|(_, s)| s.pattern.matches(name));
            matching.find_map(|(_, subscription)| of(subscription))
        })
    }

    pub(super) fn refuse(&self, id: Option<u64>, refused: &Refused) {
        self.handle.push_event(&Event::Error { id, code: refused.code, message: &refused.message });
    }
}

fn entry(info: &ChannelInfo, seq: Seq) -> ChannelEntry<'_> {
    ChannelEntry { channel: info.id.0, name: &info.name, epoch: info.epoch, seq, cursor: None, replay: None }
}

/// A channel that a connection receives from `seq` on.
fn begun(info: &ChannelInfo, seq: Seq, replay: Option<Replay>) -> ChannelEntry<'_> {
    let cursor = Some(Place { epoch: info.epoch, seq: seq.saturating_sub(1) });
    ChannelEntry { cursor, replay, ..entry(info, seq) }
}

fn over_limit(what: &str, most: usize, remedy: &str) -> Refused {
    Refused { code: ErrorCode::LimitExceeded, message: format!("{what}: at most {most}; {remedy}") }
}
