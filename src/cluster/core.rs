//! What a server of several does with what clients, other servers and the broker say: which topics to be subscribed to, whose
//! streams there are, and who waits for them. No task and no clock of its own; what follows goes to the router and to a [`Wire`].
//!
//! A topic is subscribed to while somebody here subscribes to its name and another server may publish it. Whoever subscribes is
//! answered when every topic that matters is live and each stream that is known of has said where it stands: from then on
//! nothing is missed.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use slab::Slab;

use super::catalogue::{Catalogue, Outcome};
use super::message::{CHANNELS_PER_MESSAGE, Envelope, Message};
use super::presence::{Act, Presences, Refusals};
use crate::auth::revocations::Revoked;
use crate::clock::Now;
use crate::config::ChannelLimits;
use crate::hub::directory::{ChannelInfo, Directory, MIRRORS_PER_NAME_MAX};
use crate::hub::router::{Arrival, PresenceAcross, Relayed, Router, ToWorker, Waiter};
use crate::metrics::{Counters, RelayRefusal};
use crate::pattern::index::PatternIndex;
use crate::pattern::{self, Pattern};
use crate::presence::teller_of;
use crate::wire::relay::{self, NodeId};

/// The longest that a `subscribe` waits for other servers. With a broker that answers it takes some round trips; with one that
/// does not, what is published here must not wait much longer than a reader notices.
pub const WAIT_MAX: Duration = Duration::from_millis(500);

/// How long a topic stays subscribed to after the last who wanted it: whoever reloads a page comes back within it.
pub const UNWANTED_FOR: Duration = Duration::from_secs(5);

/// The side of the broker, as far as it is needed here. Nothing waits.
pub trait Wire {
    /// Subscribes to the topic of a name; `false` if there is no room for it.
    fn subscribe(&self, name: &str) -> bool;
    /// Ends that.
    fn unsubscribe(&self, name: &str);
    /// Says something to all servers.
    fn say(&self, message: Vec<u8>);
}

/// What others are to be told to do here, beside what the router carries.
#[derive(Debug, PartialEq, Eq)]
pub enum Told {
    /// Somebody is shut out.
    Revoked(Revoked, u64),
    /// A server is new and has to hear who was shut out before.
    NewServer,
    /// What was said comes back from the broker.
    Echo,
}

/// See the module's page.
#[derive(Debug)]
pub struct Core {
    node: NodeId,
    router: Arc<Router>,
    /// Whether the broker keeps messages: then there may be something under a name that nobody publishes any more.
    keeps: bool,
    /// How long a stream that nobody publishes any more stays.
    linger: Duration,
    name_bytes_max: usize,
    /// There is a connection to the broker.
    linked: bool,
    /// What other servers say arrives, as long as there is a connection.
    listening: bool,
    /// Both: the others know of this server.
    up: bool,
    connects: u64,
    /// What is published here, and how often that has changed.
    own: BTreeMap<Box<str>, u32>,
    revision: u64,
    catalogue: Catalogue,
    /// Subscriptions here, each pattern with its number and how many there are.
    patterns: HashMap<Pattern, (usize, usize)>,
    numbers: Slab<()>,
    index: PatternIndex<usize>,
    topics: HashMap<Arc<str>, Topic>,
    waits: HashMap<u64, Wait>,
    next_wait: u64,
    deadlines: VecDeque<(Instant, u64)>,
    /// Changes of other servers' lists that are followed as soon as topics are live.
    following: Vec<Following>,
    /// Names that are published here since lately, of which not all others have said that they know.
    untold: VecDeque<Untold>,
    /// Topics that are live since lately, or have a new stream: publishers are asked where their streams stand.
    ask: Vec<Box<str>>,
    /// Changes of others may be followed now.
    follow: bool,
    /// Topics have no room, and the log says so.
    told_full: bool,
    counters: Counters,
    presences: Presences,
}

/// What the broker has said to the wish for a topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Nothing yet.
    #[default]
    Asked,
    /// It is live.
    Live,
    /// It cannot be had, so nobody waits for it. The broker is asked again with the next connection.
    Refused,
    /// There is no room for it here, which is looked for again each second.
    Full,
}

#[derive(Debug, Default)]
struct Topic {
    state: State,
    unwanted_since: Option<Instant>,
    /// Streams that have said where they stand, and when they last said anything.
    streams: HashMap<u32, Instant>,
    /// Who waits for it.
    waits: Vec<u64>,
}

impl Topic {
    const fn is_live(&self) -> bool {
        matches!(self.state, State::Live)
    }
}

/// Streams of one name that no server says it publishes: a quarter of all, since those of which this is forgotten stay as long again
/// until nobody has them. They are what servers have published that are gone, and what is quicker than the news of it. More are a
/// fault, or a foe's on the broker, and must not take the room of those that are there.
const UNLISTED_STREAMS_MAX: usize = MIRRORS_PER_NAME_MAX / 4;

/// Others' changes that are followed at once. More are a fault, or a foe on the broker; whoever waits for those waits in vain.
const FOLLOWING_MAX: usize = 1_024;

#[derive(Debug)]
struct Following {
    of: NodeId,
    revision: u64,
    /// Topics that are not live yet.
    names: HashSet<Box<str>>,
}

#[derive(Debug)]
struct Untold {
    waiter: Waiter,
    /// The change that it is in.
    revision: u64,
    /// Who has not said that it knows of it.
    missing: HashSet<NodeId>,
    deadline: Instant,
}

#[derive(Debug)]
struct Wait {
    waiter: Waiter,
    /// Topics that are not settled.
    topics: usize,
}

impl Core {
    /// The state of a server that is connected to nobody yet.
    #[must_use]
    pub fn new(node: NodeId, router: Arc<Router>, keeps: bool, limits: &ChannelLimits) -> Self {
        router.directory(Directory::note_changes);
        Self {
            node,
            router,
            keeps,
            linger: limits.linger,
            name_bytes_max: limits.channel_name_bytes_max,
            linked: false,
            listening: false,
            up: false,
            connects: 0,
            own: BTreeMap::new(),
            revision: 0,
            catalogue: Catalogue::new(limits.channels_total_max),
            patterns: HashMap::new(),
            numbers: Slab::new(),
            index: PatternIndex::new(),
            topics: HashMap::new(),
            waits: HashMap::new(),
            next_wait: 0,
            deadlines: VecDeque::new(),
            following: Vec::new(),
            untold: VecDeque::new(),
            ask: Vec::new(),
            follow: false,
            told_full: false,
            counters: Counters::default(),
            presences: Presences::new(node, limits.channel_name_bytes_max),
        }
    }

    /// What it has counted so far.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Somebody subscribes.
    pub fn want(&mut self, pattern: Pattern, waiter: Waiter, wire: &dyn Wire, now: Now) {
        self.take_changes(wire, now);
        let matching = self.names_for(&pattern);
        if let Some((_, count)) = self.patterns.get_mut(&pattern) {
            *count += 1;
        } else {
            let number = self.numbers.insert(());
            self.index.insert(&pattern, number);
            self.patterns.insert(pattern, (number, 1));
        }
        let wait = self.next_wait;
        self.next_wait += 1;
        let mut unsettled = 0;
        for name in matching {
            self.evaluate(&name, wire, now);
            let settled = self.is_settled(&name);
            if let Some(topic) = self.topics.get_mut(&*name)
                && self.up
                && !settled
            {
                topic.waits.push(wait);
                unsettled += 1;
            }
        }
        if unsettled == 0 {
            self.router.pass_on(Arrival { passed: 0, waiter });
        } else {
            self.waits.insert(wait, Wait { waiter, topics: unsettled });
            self.deadlines.push_back((now.at + WAIT_MAX, wait));
        }
    }

    /// Somebody begins to publish under a name, and waits until no other server misses what comes.
    pub fn open(&mut self, waiter: Waiter, wire: &dyn Wire, now: Now) {
        self.take_changes(wire, now);
        // One that ends has no subscribers to come.
        let missing: HashSet<NodeId> =
            self.catalogue.nodes().filter(|node| !self.presences.is_leaving(*node)).collect();
        if !self.up || missing.is_empty() {
            self.router.pass_on(Arrival { passed: 0, waiter });
            return;
        }
        let deadline = now.at + WAIT_MAX;
        self.untold.push_back(Untold { waiter, revision: self.revision, missing, deadline });
    }

    /// Another server knows of a change of this one's list.
    fn note_seen(&mut self, node: NodeId, revision: u64) {
        let router = &self.router;
        self.untold.retain_mut(|untold| {
            if untold.revision <= revision {
                untold.missing.remove(&node);
            }
            let waits = !untold.missing.is_empty();
            if !waits {
                router.pass_on(Arrival { passed: 0, waiter: untold.waiter });
            }
            waits
        });
    }

    /// Says which changes of others are followed by now.
    fn tell_followed(&mut self, wire: &dyn Wire) {
        let topics = &self.topics;
        let waits = |name: &str| topics.get(name).is_some_and(|topic| topic.state == State::Asked);
        let mut followed = Vec::new();
        self.following.retain_mut(|following| {
            following.names.retain(|name| waits(name));
            if following.names.is_empty() {
                followed.push(Message::Seen { of: following.of, revision: following.revision });
            }
            !following.names.is_empty()
        });
        followed.into_iter().for_each(|message| self.say(message, wire));
    }

    /// A subscription has ended.
    pub fn unwant(&mut self, pattern: &Pattern, wire: &dyn Wire, now: Now) {
        let Some((number, count)) = self.patterns.get_mut(pattern) else {
            debug_assert!(false, "ended more often than begun");
            return;
        };
        *count -= 1;
        if *count > 0 {
            return;
        }
        let number = *number;
        self.patterns.remove(pattern);
        self.index.remove(pattern, number);
        self.numbers.remove(number);
        for name in self.names_for(pattern) {
            self.evaluate(&name, wire, now);
        }
    }

    /// The broker is there (again).
    pub fn connected(&mut self, wire: &dyn Wire, now: Now) {
        self.linked = true;
        self.introduce(wire, now);
    }

    /// The topic that all servers read is live; it is restored with each connection.
    pub fn listens(&mut self, wire: &dyn Wire, now: Now) {
        self.listening = true;
        self.introduce(wire, now);
    }

    /// Tells the others of this server, as soon as it hears what they answer.
    fn introduce(&mut self, wire: &dyn Wire, now: Now) {
        if !(self.linked && self.listening) {
            return;
        }
        self.up = true;
        self.connects += 1;
        self.hello(wire, now);
        self.presences.connected(now.at);
        // Whatever was said while there was no connection, here or there, may be lost.
        self.doubt(None);
    }

    /// The broker is gone: nobody waits for it.
    pub fn disconnected(&mut self) {
        self.linked = false;
        self.up = false;
        for topic in self.topics.values_mut() {
            topic.waits.clear();
        }
        for (_, wait) in self.waits.drain() {
            self.router.pass_on(Arrival { passed: 0, waiter: wait.waiter });
        }
        self.deadlines.clear();
        for untold in self.untold.drain(..) {
            self.router.pass_on(Arrival { passed: 0, waiter: untold.waiter });
        }
        self.following.clear();
        self.presences.disconnected();
    }

    /// The topic of a name is live, and this is what the broker keeps of it.
    pub fn subscribed(&mut self, name: &str, backlog: Vec<Bytes>, now: Now) {
        let Some((name, state)) =
            self.topics.get_key_value(name).map(|(name, topic)| (Arc::clone(name), topic.state))
        else {
            return;
        };
        if state == State::Live {
            return;
        }
        if !backlog.is_empty() {
            for payload in backlog {
                self.relay(&name, payload, true, now);
            }
            self.router.send(self.router.home_of(&name), ToWorker::BacklogRead(Arc::clone(&name)));
        }
        self.set_live(&name);
        self.settle(&name);
    }

    fn set_live(&mut self, name: &str) {
        if let Some(topic) = self.topics.get_mut(name) {
            topic.state = State::Live;
        }
        self.ask.push(name.into());
        self.follow = true;
    }

    /// A subscription that cannot be had: nobody waits for it.
    pub fn refused(&mut self, name: &str) {
        if let Some(topic) = self.topics.get_mut(name) {
            topic.state = State::Refused;
        }
        self.note_refused(name);
    }

    fn note_refused(&mut self, name: &str) {
        self.counters.topics_refused += 1;
        self.give_up_waits(name);
        self.follow = true;
    }

    /// A payload has come on the topic of a name.
    pub fn message(&mut self, name: &str, payload: Bytes, now: Now) {
        let Some((name, state)) =
            self.topics.get_key_value(name).map(|(name, topic)| (Arc::clone(name), topic.state))
        else {
            return;
        };
        self.relay(&name, payload, false, now);
        if state == State::Refused {
            // It was live before it was refused, which nothing else tells to be over.
            self.set_live(&name);
        }
        self.settle(&name);
    }

    fn relay(&mut self, name: &Arc<str>, payload: Bytes, backlog: bool, now: Now) {
        let peeked = relay::peek(&payload);
        if let Some((node, epoch)) = peeked
            && node != self.node
            && !self.has_room_for(name, epoch)
        {
            self.counters.relays_refused[RelayRefusal::Full] += 1;
            return;
        }
        let relayed = Relayed { name: Arc::clone(name), payload, backlog, received: now, permit: None };
        if !self.router.send_relayed(Box::new(relayed)) {
            return;
        }
        if let Some((node, epoch)) = peeked
            && node != self.node
            && let Some(topic) = self.topics.get_mut(name)
            && (topic.streams.len() < MIRRORS_PER_NAME_MAX || topic.streams.contains_key(&epoch))
        {
            topic.streams.insert(epoch, now.at);
        }
    }

    fn has_room_for(&self, name: &str, epoch: u32) -> bool {
        let Some(topic) = self.topics.get(name) else { return true };
        let listed = |epoch| self.catalogue.streams(name).any(|listed| listed == epoch);
        topic.streams.contains_key(&epoch)
            || listed(epoch)
            || topic.streams.keys().filter(|epoch| !listed(**epoch)).count() < UNLISTED_STREAMS_MAX
    }

    /// Another server, or this one, has said something to all.
    pub fn heard(&mut self, bytes: &[u8], wire: &dyn Wire, now: Now) -> Vec<Told> {
        let envelope = match Envelope::decode(bytes) {
            Ok(envelope) => envelope,
            Err(error) => {
                tracing::debug!(error = %error.escape_default(), "a message on the servers' topic is none");
                self.counters.node_messages_refused += 1;
                return Vec::new();
            }
        };
        let Envelope { node, message } = envelope;
        if node == self.node {
            return match message {
                Message::Hello { .. } => vec![Told::Echo],
                _ => Vec::new(),
            };
        }
        let mut told = Vec::new();
        match &message {
            Message::List { of } if *of == self.node => self.send_list(wire),
            Message::Where { names } => {
                for name in names.iter().filter(|name| self.own.contains_key(*name)) {
                    let home = self.router.home_of(name);
                    self.router.send(home, ToWorker::TellHead(Arc::from(&**name)));
                }
            }
            Message::Seen { of, revision } if *of == self.node => self.note_seen(node, *revision),
            Message::Revoke { revoked, issued_s } => told.push(Told::Revoked(revoked.clone(), *issued_s)),
            Message::Changed { .. }
            | Message::Listing { .. }
            | Message::Hello { .. }
            | Message::List { .. }
            | Message::Seen { .. }
            | Message::Who { .. }
            | Message::Present { .. }
            | Message::Nobody {} => {}
        }
        // To the catalogue it is a sign of life.
        let (message, about_presence) = match message {
            Message::Who { .. } | Message::Present { .. } | Message::Nobody {} => {
                (Message::Nobody {}, Some(message))
            }
            message => (message, None),
        };
        let message = self.with_sound_names(message);
        let Outcome { new, ask, doubt, changed, followed } = self.catalogue.handle(node, message, now.at);
        if new {
            tracing::info!(%node, "another server is there");
            told.push(Told::NewServer);
            self.hello(wire, now);
            self.presences.note_new_peer();
        }
        if let Some(message) = about_presence
            && self.catalogue.knows(node)
        {
            self.hear_presence(node, message, now);
        }
        if ask {
            self.say(Message::List { of: node }, wire);
        }
        self.ask.extend(doubt.into_iter().filter(|name| self.topics.contains_key(&**name)));
        for name in &changed {
            self.evaluate(name, wire, now);
            self.settle(name);
            // Its topic brings the stream already, but nothing tells where that begins.
            if self.topics.get(&**name).is_some_and(Topic::is_live) && !self.is_settled(name) {
                self.ask.push(name.clone());
            }
        }
        if let Some(revision) = followed
            && self.following.len() < FOLLOWING_MAX
        {
            self.following.push(Following { of: node, revision, names: changed.into_iter().collect() });
            self.follow = true;
        }
        told
    }

    fn hear_presence(&mut self, node: NodeId, message: Message, now: Now) {
        match message {
            Message::Who { number, ask, keep } => {
                let outlet = self.router.outlet();
                let crosses = |name: &str| outlet.is_some_and(|outlet| outlet.crosses(name));
                self.presences.heard_who((node, number), (&ask, &keep), crosses, now.at);
            }
            Message::Present { number, channels } => self.presences.heard_present(node, number, channels),
            Message::Nobody {} => {
                self.presences.heard_nobody(node);
                self.note_seen(node, u64::MAX);
            }
            _ => {}
        }
    }

    /// The hubs ask, or tell, who is on channels.
    pub fn presence(&mut self, across: PresenceAcross, now: Now) {
        match across {
            PresenceAcross::Ask(name) => self.presences.ask(&name, self.catalogue.nodes(), now.at),
            PresenceAcross::Watch(name) => self.presences.watch(&name, now.at),
            PresenceAcross::Unwatch(name) => self.presences.unwatch(&name),
            PresenceAcross::Said(name, part) => self.presences.note_here(name, part),
            PresenceAcross::Changed(name, under_way) => {
                drop(under_way);
                self.presences.note_changed(&name);
            }
            PresenceAcross::Nobody => self.presences.end(),
        }
    }

    /// Says, here and to others, what follows of all that about who is on channels. To be called after whatever may have made
    /// that more.
    pub fn tell_presence(&mut self, wire: &dyn Wire, now: Now) {
        for act in self.presences.take_acts(now.at) {
            match act {
                Act::Say(message) => self.say(message, wire),
                Act::Tell(name, about) => {
                    self.router.send(self.router.home_of(&teller_of(&name)), ToWorker::Presence(about));
                }
            }
        }
    }

    /// What another server may have made up is no name of a channel.
    fn with_sound_names(&self, mut message: Message) -> Message {
        let sound = |name: &str| pattern::check_name(name, self.name_bytes_max).is_ok();
        if let Message::Changed { opened: channels, .. } | Message::Listing { channels, .. } = &mut message {
            channels.retain(|name, epoch| *epoch != 0 && sound(name));
        }
        message
    }

    /// To be called when a name here is published to since lately or not any more.
    pub fn take_changes(&mut self, wire: &dyn Wire, now: Now) {
        let changed = self.router.directory(Directory::take_changed);
        let crossing = changed.into_iter().filter(|(name, _)| self.crosses(name));
        let (mut opened, mut closed) = (BTreeMap::new(), Vec::new());
        for (name, info) in crossing.collect::<Vec<(Box<str>, Option<Arc<ChannelInfo>>)>>() {
            match info {
                Some(info) if self.own.get(&name) != Some(&info.epoch) => {
                    self.own.insert(name.clone(), info.epoch);
                    opened.insert(name.clone(), info.epoch);
                }
                None if self.own.remove(&name).is_some() => closed.push(name.clone()),
                Some(_) | None => {}
            }
            self.evaluate(&name, wire, now);
            if opened.len() + closed.len() >= CHANNELS_PER_MESSAGE {
                self.tell_changed(&mut opened, &mut closed, wire);
            }
        }
        if !opened.is_empty() || !closed.is_empty() {
            self.tell_changed(&mut opened, &mut closed, wire);
        }
    }

    fn tell_changed(
        &mut self,
        opened: &mut BTreeMap<Box<str>, u32>,
        closed: &mut Vec<Box<str>>,
        wire: &dyn Wire,
    ) {
        self.revision += 1;
        let (opened, closed) = (std::mem::take(opened), std::mem::take(closed));
        self.say(Message::Changed { revision: self.revision, opened, closed }, wire);
    }

    /// Whether a name is for other servers, too.
    fn crosses(&self, name: &str) -> bool {
        self.router.outlet().is_some_and(|outlet| outlet.crosses(name))
    }

    /// Messages of a name's topic may be lost, or of every topic that is not kept.
    pub fn doubt(&mut self, name: Option<&str>) {
        // One that was refused may be had with this connection.
        let heard = |state| matches!(state, State::Live | State::Refused);
        let name_of = |(name, topic): (&Arc<str>, &Topic)| heard(topic.state).then(|| (**name).into());
        match name {
            Some(name) => self.ask.extend(self.topics.get_key_value(name).and_then(name_of)),
            None => self.ask.extend(self.topics.iter().filter_map(name_of)),
        }
    }

    /// Asks where streams stand whose topics are live since lately, and then says which changes of others are followed: their
    /// publishers begin when they hear of that, behind the answer. To be called after whatever another server or the broker has
    /// said.
    pub fn ask_where(&mut self, wire: &dyn Wire) {
        self.ask_about(wire);
        if std::mem::take(&mut self.follow) {
            self.tell_followed(wire);
        }
    }

    fn ask_about(&mut self, wire: &dyn Wire) {
        let ask = std::mem::take(&mut self.ask);
        for names in ask.chunks(CHANNELS_PER_MESSAGE) {
            let names = names.iter().filter(|name| self.catalogue.lists(name)).cloned().collect::<Vec<_>>();
            if !names.is_empty() {
                self.say(Message::Where { names }, wire);
            }
        }
    }

    /// Work that is due ten times a second: whoever has waited too long is answered.
    pub fn tick(&mut self, now: Now) {
        while let Some(untold) = self.untold.front()
            && untold.deadline <= now.at
        {
            self.router.pass_on(Arrival { passed: 0, waiter: untold.waiter });
            self.untold.pop_front();
        }
        let mut late = false;
        while let Some((deadline, wait)) = self.deadlines.front().copied()
            && deadline <= now.at
        {
            self.deadlines.pop_front();
            if let Some(wait) = self.waits.remove(&wait) {
                late = true;
                self.router.pass_on(Arrival { passed: 0, waiter: wait.waiter });
            }
        }
        if late {
            // A topic that never comes must not remember all who ever waited for it.
            let waits = &self.waits;
            self.topics.values_mut().for_each(|topic| topic.waits.retain(|wait| waits.contains_key(wait)));
        }
        self.presences.tick(now.at);
    }

    /// Work that is due each second: a sign of life, and what has ended.
    pub fn second(&mut self, wire: &dyn Wire, now: Now) {
        self.hello(wire, now);
        for name in self.catalogue.expire(now.at) {
            self.evaluate(&name, wire, now);
            self.settle(&name);
        }
        let (linger, catalogue, router) = (self.linger, &self.catalogue, &self.router);
        self.topics.retain(|name, topic| {
            let listed: HashSet<u32> = catalogue.streams(name).collect();
            let unwanted = topic
                .unwanted_since
                .is_some_and(|since| now.at.saturating_duration_since(since) >= UNWANTED_FOR);
            topic.streams.retain(|epoch, heard| {
                let recent = now.at.saturating_duration_since(*heard) < linger;
                let keep = !unwanted && (recent || listed.contains(epoch));
                if !keep {
                    let ended = ToWorker::Ended { name: Arc::clone(name), epoch: *epoch };
                    router.send(router.home_of(name), ended);
                }
                keep
            });
            if unwanted {
                wire.unsubscribe(name);
            }
            !unwanted
        });
        // Who is not there any more is not waited for.
        self.follow = true;
        let full = self.topics.iter().filter(|(_, topic)| topic.state == State::Full);
        let full: Vec<_> = full.map(|(name, _)| Arc::clone(name)).collect();
        self.told_full &= !full.is_empty();
        for name in full {
            self.subscribe(&name, wire);
        }
        let catalogue = &self.catalogue;
        let Refusals { malformed, full } = self.presences.second(|node| catalogue.knows(node), now.at);
        self.counters.relays_refused[RelayRefusal::Malformed] += malformed;
        self.counters.relays_refused[RelayRefusal::Full] += full;
    }

    /// Says that somebody is shut out.
    pub fn tell_revoked(&self, revoked: Revoked, issued_s: u64, wire: &dyn Wire) {
        self.say(Message::Revoke { revoked, issued_s }, wire);
    }

    fn hello(&self, wire: &dyn Wire, now: Now) {
        if self.up {
            let (revision, connects) = (self.revision, self.connects);
            self.say(Message::Hello { revision, connects, sent_ns: now.wall_ns }, wire);
        }
    }

    fn send_list(&self, wire: &dyn Wire) {
        let all: Vec<_> = self.own.iter().map(|(name, epoch)| (name.clone(), *epoch)).collect();
        let parts: Vec<_> =
            if all.is_empty() { vec![&[][..]] } else { all.chunks(CHANNELS_PER_MESSAGE).collect() };
        let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
        for (part, channels) in (0..).zip(parts) {
            let channels = channels.iter().cloned().collect();
            self.say(Message::Listing { revision: self.revision, part, parts: count, channels }, wire);
        }
    }

    fn say(&self, message: Message, wire: &dyn Wire) {
        wire.say(Envelope { node: self.node, message }.encode());
    }

    /// The names that matter to a pattern.
    fn names_for(&self, pattern: &Pattern) -> Vec<Box<str>> {
        if pattern.is_literal() {
            return vec![pattern.as_str().into()];
        }
        let known = self.topics.keys().map(AsRef::as_ref).filter(|name| !self.catalogue.lists(name));
        known.chain(self.catalogue.names()).filter(|name| pattern.matches(name)).map(Into::into).collect()
    }

    fn is_wanted(&self, name: &str) -> bool {
        if !self.crosses(name) {
            return false;
        }
        if self.catalogue.lists(name) {
            let mut matched = false;
            self.index.matching(name, &mut |_| matched = true);
            return matched;
        }
        // Nobody is known to publish it elsewhere. Somebody may begin to, and his first samples are quicker than the news of
        // him; and a broker that keeps may have what a server that is gone has published. With one that does not, what is
        // published here alone need not come back.
        let by_name =
            Pattern::parse(name, self.name_bytes_max).is_ok_and(|name| self.patterns.contains_key(&name));
        by_name && (self.keeps || !self.own.contains_key(name))
    }

    /// Subscribes to a name's topic, or has that end, if it is another matter now who wants it.
    fn evaluate(&mut self, name: &str, wire: &dyn Wire, now: Now) {
        let wanted = self.is_wanted(name);
        match self.topics.get_mut(name) {
            Some(topic) if wanted => topic.unwanted_since = None,
            Some(topic) => drop(topic.unwanted_since.get_or_insert(now.at)),
            None if wanted => {
                self.topics.insert(name.into(), Topic::default());
                self.subscribe(name, wire);
            }
            None => {}
        }
    }

    fn subscribe(&mut self, name: &str, wire: &dyn Wire) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        if wire.subscribe(name) {
            topic.state = State::Asked;
            return;
        }
        let is_new = std::mem::replace(&mut topic.state, State::Full) != State::Full;
        if is_new {
            self.note_refused(name);
        }
        if !std::mem::replace(&mut self.told_full, true) {
            tracing::warn!(
                topics = self.topics.len(),
                "there is no room for more topics: what others publish under further names does not come; raise channel.channels_total_max"
            );
        }
    }

    /// Whether everything that is published under a name from now on is handed out here, or cannot be had.
    fn is_settled(&self, name: &str) -> bool {
        self.topics.get(name).is_none_or(|topic| match topic.state {
            State::Asked => false,
            // One that ends answers no question.
            State::Live => self
                .catalogue
                .publishers(name)
                .all(|(node, epoch)| topic.streams.contains_key(&epoch) || self.presences.is_leaving(node)),
            State::Refused | State::Full => true,
        })
    }

    /// Tells whoever waits for a topic, if it is settled now.
    fn settle(&mut self, name: &str) {
        if self.topics.get(name).is_some_and(|topic| !topic.waits.is_empty()) && self.is_settled(name) {
            self.give_up_waits(name);
        }
    }

    fn give_up_waits(&mut self, name: &str) {
        let Some(topic) = self.topics.get_mut(name) else { return };
        for number in std::mem::take(&mut topic.waits) {
            let Some(wait) = self.waits.get_mut(&number) else { continue };
            wait.topics -= 1;
            if wait.topics == 0
                && let Some(wait) = self.waits.remove(&number)
            {
                self.router.pass_on(Arrival { passed: 0, waiter: wait.waiter });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    /// A broker that never answers.
    #[derive(Debug)]
    struct Silent;

    impl Wire for Silent {
        fn subscribe(&self, _: &str) -> bool {
            true
        }

        fn unsubscribe(&self, _: &str) {}

        fn say(&self, _: Vec<u8>) {}
    }

    #[derive(Debug)]
    struct Everything;

    impl crate::hub::router::Outlet for Everything {
        fn node(&self) -> NodeId {
            NodeId(1)
        }

        fn crosses(&self, _: &str) -> bool {
            true
        }

        fn publish(&self, _: &str, _: relay::Payload) {}

        fn want(&self, _: &Pattern, _: Waiter) {}

        fn unwant(&self, _: &Pattern) {}

        fn tell_opened(&self, _: Waiter) {}

        fn note_changed(&self) {}

        fn tell_revoked(&self, _: &Revoked, _: u64) {}

        fn presence(&self, _: PresenceAcross) {}
    }

    #[test]
    fn nothing_is_remembered_of_those_who_have_waited_in_vain() {
        let (router, mut inboxes) = Router::new(1, 100);
        router.set_outlet(Arc::new(Everything));
        let mut core = Core::new(NodeId(1), router, false, &ChannelLimits::default());
        let mut now = Clock::new().now();
        core.connected(&Silent, now);
        core.listens(&Silent, now);
        for wait in 0..100 {
            core.want(Pattern::parse("a", 255).expect("a name"), Waiter { worker: 0, wait }, &Silent, now);
            assert!(inboxes[0].try_recv().is_err(), "it waits");
            now = now.plus(WAIT_MAX);
            core.tick(now);
            assert!(inboxes[0].try_recv().is_ok());
            assert_eq!((core.waits.len(), core.deadlines.len()), (0, 0));
            assert!(core.topics.values().all(|topic| topic.waits.is_empty()));
        }
    }
}
