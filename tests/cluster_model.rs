//! Several servers against a broker that loses, repeats and disconnects: real hubs and the real core of a cluster, a simulated
//! broker between them, seeded random operations. What a subscriber hears of each stream has to be in order, once, as it was
//! published, and complete but for what it was told is missing; and what it is told is complete once nothing moves any more.
//!
//! `TIDEWIRE_MODEL_CASES` sets how many cases run, `TIDEWIRE_MODEL_SEED` with which seed the first one begins.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::cell::{Cell, RefCell};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use serde_json::Value as Json;
use tidewire::auth::revocations::Revoked;
use tidewire::clock::{Clock, Now};
use tidewire::cluster::core::{Core, WAIT_MAX, Wire};
use tidewire::config::Config;
use tidewire::history::Past;
use tidewire::hub::Hub;
use tidewire::hub::router::{Outlet, PresenceAcross, Router, ToWorker, Waiter};
use tidewire::metrics::RelayRefusal;
use tidewire::outbox::Take;
use tidewire::outbox::handle::OutboxHandle;
use tidewire::pattern::Pattern;
use tidewire::session::DeliveryOptions;
use tidewire::wire::Codec;
use tidewire::wire::control::Policy;
use tidewire::wire::decode::scan_publish;
use tidewire::wire::proto::sample::Value;
use tidewire::wire::proto::{Block, Frame, Publish, Sample};
use tidewire::wire::relay::{self, NodeId, Payload};
use tokio::sync::mpsc;

mod model;
#[path = "model/seeds.rs"]
mod seeds;

use model::{new_member, split_message};
use seeds::seeds;

const CASES: u64 = 200;
const NAMES: [&str; 3] = ["a.x", "a.y", "b"];
const PATTERNS: [&str; 6] = ["a.x", "a.y", "b", "a.*", ">", "*.x"];
/// The topic that all servers read.
const NODES: &str = "#nodes";

/// What a hub tells the others, in the order in which it did.
#[derive(Debug)]
struct Outgoing {
    node: NodeId,
    said: Mutex<VecDeque<Said>>,
}

#[derive(Debug)]
enum Said {
    Publish(String, Bytes),
    Want(Pattern, Waiter),
    Unwant(Pattern),
    Opened(Waiter),
    Changed,
    Presence(PresenceAcross),
}

impl Outlet for Outgoing {
    fn node(&self) -> NodeId {
        self.node
    }

    fn crosses(&self, name: &str) -> bool {
        !name.starts_with("$sys.")
    }

    fn publish(&self, name: &str, payload: Payload) {
        let payload = Bytes::from([payload.head, payload.body].concat());
        self.said.lock().unwrap().push_back(Said::Publish(name.to_owned(), payload));
    }

    fn want(&self, pattern: &Pattern, waiter: Waiter) {
        self.said.lock().unwrap().push_back(Said::Want(pattern.clone(), waiter));
    }

    fn unwant(&self, pattern: &Pattern) {
        self.said.lock().unwrap().push_back(Said::Unwant(pattern.clone()));
    }

    fn tell_opened(&self, waiter: Waiter) {
        self.said.lock().unwrap().push_back(Said::Opened(waiter));
    }

    fn note_changed(&self) {
        self.said.lock().unwrap().push_back(Said::Changed);
    }

    fn tell_revoked(&self, _: &Revoked, _: u64) {}

    fn presence(&self, across: PresenceAcross) {
        self.said.lock().unwrap().push_back(Said::Presence(across));
    }
}

/// What a core asks of the broker.
#[derive(Debug, Default)]
struct Asked {
    asks: RefCell<Vec<Ask>>,
    /// There is no room for another topic.
    full: Cell<bool>,
}

#[derive(Debug)]
enum Ask {
    Subscribe(String),
    Unsubscribe(String),
    Say(Bytes),
}

impl Wire for Asked {
    fn subscribe(&self, name: &str) -> bool {
        let room = !self.full.get();
        if room {
            self.asks.borrow_mut().push(Ask::Subscribe(name.to_owned()));
        }
        room
    }

    fn unsubscribe(&self, name: &str) {
        self.asks.borrow_mut().push(Ask::Unsubscribe(name.to_owned()));
    }

    fn say(&self, message: Vec<u8>) {
        self.asks.borrow_mut().push(Ask::Say(message.into()));
    }
}

/// What the broker has for a server.
#[derive(Debug)]
enum Event {
    Up,
    Down,
    Subscribed(String),
    Refused(String),
    Message(String, Bytes),
}

struct Node {
    router: Arc<Router>,
    hubs: Vec<Hub>,
    inboxes: Vec<mpsc::Receiver<ToWorker>>,
    outgoing: Arc<Outgoing>,
    asked: Asked,
    core: Core,
    topics: HashSet<String>,
    events: VecDeque<Event>,
    connected: bool,
    /// The broker does not let it subscribe to channels.
    forbidden: bool,
    publisher: usize,
    publisher_handle: Rc<OutboxHandle>,
}

/// What a peer has heard of a stream: from its first sequence on, the value of each sample, or none where it was told that it
/// is missing.
#[derive(Debug, Default)]
struct Heard {
    epoch: u32,
    start: u64,
    values: BTreeMap<u64, f64>,
    missing: u64,
    last: u64,
    ended: bool,
}

struct Peer {
    node: usize,
    worker: usize,
    member: usize,
    handle: Rc<OutboxHandle>,
    streams: HashMap<u32, Heard>,
    answered: u64,
    /// Samples of the frame that had most, and bytes of the one that had most.
    largest: (usize, usize),
}

struct World {
    config: Arc<Config>,
    nodes: Vec<Node>,
    now: Now,
    peers: Vec<Peer>,
    /// What each life of a sequence was given.
    published: HashMap<u32, Vec<f64>>,
    next: f64,
    loss: u32,
    random: fastrand::Rng,
}

impl World {
    fn new(nodes: usize, workers: usize, seed: u64) -> Self {
        Self::with(nodes, Config { workers, ..Config::default() }, seed)
    }

    fn with(nodes: usize, config: Config, seed: u64) -> Self {
        let config = Arc::new(config);
        let now = Clock::new().now();
        let mut world = Self {
            config,
            nodes: Vec::new(),
            now,
            peers: Vec::new(),
            published: HashMap::new(),
            next: 1.0,
            loss: 0,
            random: fastrand::Rng::with_seed(seed),
        };
        for number in 1..=nodes as u64 {
            let node = world.start(NodeId(number));
            world.nodes.push(node);
        }
        world
    }

    fn start(&self, id: NodeId) -> Node {
        let (router, inboxes) = Router::new(self.config.workers, self.config.channel.channels_total_max);
        let outgoing = Arc::new(Outgoing { node: id, said: Mutex::default() });
        let outlet: Arc<dyn Outlet> = outgoing.clone();
        router.set_outlet(outlet);
        let core = Core::new(id, Arc::clone(&router), false, &self.config.channel);
        let mut hubs: Vec<Hub> = (0..self.config.workers)
            .map(|worker| Hub::new(worker, Arc::clone(&self.config), Arc::clone(&router)))
            .collect();
        let (new, publisher_handle) = new_member(&self.config, 1_000, Codec::Protobuf, None);
        let publisher = hubs[0].add_member(new, self.now);
        let topics = HashSet::from([NODES.to_owned()]);
        let events = VecDeque::from([Event::Subscribed(NODES.to_owned()), Event::Up]);
        let asked = Asked::default();
        Node {
            router,
            hubs,
            inboxes,
            outgoing,
            asked,
            core,
            topics,
            events,
            connected: true,
            forbidden: false,
            publisher,
            publisher_handle,
        }
    }

    fn connect(&mut self, node: usize, worker: usize) {
        let worker = worker % self.config.workers;
        let (new, handle) = new_member(&self.config, self.peers.len() as u64 + 1, Codec::Protobuf, None);
        let member = self.nodes[node].hubs[worker].add_member(new, self.now);
        let (streams, answered, largest) = (HashMap::new(), 0, (0, 0));
        self.peers.push(Peer { node, worker, member, handle, streams, answered, largest });
    }

    fn subscribe(&mut self, peer: usize, pattern: &str) {
        self.resume(peer, pattern, None);
    }

    fn resume(&mut self, peer: usize, pattern: &str, past: Option<Past>) {
        let Peer { node, worker, member, ref handle, .. } = self.peers[peer];
        // The inbound loop reads no further meanwhile.
        if handle.has_unanswered() {
            return;
        }
        let pattern = Pattern::parse(pattern, 255).unwrap();
        let delivery = DeliveryOptions {
            policy: Policy::DropOldest,
            max_delay_ms: [0, 10, 50][self.random.usize(..3)],
            max_age_ms: 60_000,
            max_rate_hz: None,
        };
        self.nodes[node].hubs[worker].subscribe(member, Some(1), &pattern, delivery, past, self.now).unwrap();
    }

    fn unsubscribe(&mut self, peer: usize, pattern: &str) {
        let Peer { node, worker, member, ref handle, .. } = self.peers[peer];
        if handle.has_unanswered() {
            return;
        }
        let pattern = Pattern::parse(pattern, 255).unwrap();
        // Not subscribed is an answer like any other.
        let _ = self.nodes[node].hubs[worker].unsubscribe(member, None, &pattern, self.now);
    }

    /// Until the publisher may begin. No time passes, so nobody may have to wait for it.
    fn advertise(&mut self, node: usize, name: &str) {
        let now = self.now;
        let this = &mut self.nodes[node];
        this.hubs[0].advertise(this.publisher, None, name, now).unwrap();
        let mut steps = 0;
        while self.nodes[node].publisher_handle.has_unanswered() {
            (0..self.nodes.len()).for_each(|node| _ = self.step(node));
            steps += 1;
            assert!(steps < 1_000, "it waits for time to pass");
        }
    }

    fn publish(&mut self, node: usize, name: &str, samples: usize) {
        let now = self.now;
        let this = &mut self.nodes[node];
        let id = this.hubs[0].advertise(this.publisher, None, name, now).unwrap();
        let values: Vec<f64> = (0..samples).map(|index| self.next + index as f64).collect();
        self.next += samples as f64;
        let sample = |value: &f64| Sample { source_delta_ns: 0, value: Some(Value::Number(*value)) };
        let block = Block { source_ns: 1, received_ns: 0, samples: values.iter().map(sample).collect() };
        let message = Publish { channel: id.0, block: Some(block), ack: 0 }.encode_to_vec();
        let mut spans = Vec::new();
        let scanned = scan_publish(&message, 100, &mut spans).unwrap();
        let _ = this.hubs[0].publish(this.publisher, &scanned, &spans, now);
        let info = this.router.directory(|directory| directory.published_as(name)).unwrap();
        self.published.entry(info.epoch).or_default().extend(values);
    }

    /// One step of what moves by itself; `false` if there is nothing to do for that server.
    fn step(&mut self, node: usize) -> bool {
        let now = self.now;
        let mut moved = false;
        let this = &mut self.nodes[node];
        let worker = self.random.usize(..self.config.workers);
        if let Ok(message) = this.inboxes[worker].try_recv() {
            this.hubs[worker].handle(message, now);
            moved = true;
        }
        let said = this.outgoing.said.lock().unwrap().pop_front();
        match said {
            Some(Said::Publish(name, payload)) if this.connected => self.carry(&name, &payload),
            Some(Said::Publish(..)) => {}
            Some(Said::Want(pattern, waiter)) => this.core.want(pattern, waiter, &this.asked, now),
            Some(Said::Unwant(pattern)) => this.core.unwant(&pattern, &this.asked, now),
            Some(Said::Opened(waiter)) => this.core.open(waiter, &this.asked, now),
            Some(Said::Changed) => this.core.take_changes(&this.asked, now),
            Some(Said::Presence(across)) => this.core.presence(across, now),
            None => moved |= self.take_event(node),
        }
        self.carry_asked(node);
        moved
            || !self.nodes[node].outgoing.said.lock().unwrap().is_empty()
            || !self.nodes[node].events.is_empty()
    }

    fn take_event(&mut self, node: usize) -> bool {
        let now = self.now;
        let this = &mut self.nodes[node];
        let Some(event) = this.events.pop_front() else { return false };
        match event {
            Event::Up => this.core.connected(&this.asked, now),
            Event::Down => this.core.disconnected(),
            Event::Subscribed(name) if name == NODES => this.core.listens(&this.asked, now),
            Event::Subscribed(name) => this.core.subscribed(&name, Vec::new(), now),
            Event::Refused(name) => this.core.refused(&name),
            Event::Message(name, payload) if name == NODES => {
                drop(this.core.heard(&payload, &this.asked, now))
            }
            Event::Message(name, payload) => this.core.message(&name, payload, now),
        }
        this.core.ask_where(&this.asked);
        this.core.tell_presence(&this.asked, now);
        true
    }

    fn carry_asked(&mut self, node: usize) {
        for ask in self.nodes[node].asked.asks.take() {
            let this = &mut self.nodes[node];
            match ask {
                Ask::Subscribe(name) if this.forbidden => this.events.push_back(Event::Refused(name)),
                Ask::Subscribe(name) => {
                    this.topics.insert(name.clone());
                    this.events.push_back(Event::Subscribed(name));
                }
                Ask::Unsubscribe(name) => drop(this.topics.remove(&name)),
                Ask::Say(payload) if this.connected => self.carry(NODES, &payload),
                Ask::Say(_) => {}
            }
        }
    }

    /// The broker: to all who are there and want it, in order, but for what it loses and repeats.
    fn carry(&mut self, name: &str, payload: &Bytes) {
        for node in &mut self.nodes {
            if node.connected && node.topics.contains(name) {
                let lost = self.random.u32(..100) < self.loss;
                let copies = if lost { self.random.usize(..3) } else { 1 };
                for _ in 0..copies {
                    node.events.push_back(Event::Message(name.to_owned(), payload.clone()));
                }
            }
        }
    }

    fn set_connected(&mut self, node: usize, connected: bool) {
        let this = &mut self.nodes[node];
        if this.connected != connected {
            this.connected = connected;
            this.events.push_back(if connected { Event::Up } else { Event::Down });
        }
    }

    fn advance(&mut self, ms: u64) {
        self.now = self.now.plus(Duration::from_millis(ms));
        let now = self.now;
        for node in &mut self.nodes {
            for hub in &mut node.hubs {
                hub.poll_due(now);
                hub.tick(now);
            }
            node.core.tick(now);
        }
    }

    fn second(&mut self) {
        self.advance(1_000);
        let now = self.now;
        for node in &mut self.nodes {
            node.core.second(&node.asked, now);
        }
        for node in 0..self.nodes.len() {
            self.carry_asked(node);
        }
    }

    /// Until nothing moves that does not wait for a deadline.
    fn step_all(&mut self) {
        let mut quiet = 0;
        while quiet < 40 {
            let moved = (0..self.nodes.len()).any(|node| self.step(node));
            quiet = if moved { 0 } else { quiet + 1 };
        }
    }

    /// Until nothing moves, what waits for a deadline included.
    fn settle(&mut self) {
        for _ in 0..4 {
            self.second();
            self.step_all();
        }
        (0..self.peers.len()).for_each(|peer| self.read(peer));
    }

    /// The same, then with the first peer, who subscribes.
    fn settle_with_subscriber(&mut self, node: usize, worker: usize, pattern: &str) {
        self.settle();
        self.connect(node, worker);
        self.subscribe(0, pattern);
        self.settle();
    }

    /// The stream that the first peer has got something of.
    fn heard(&self) -> &Heard {
        self.peers[0].streams.values().find(|heard| !heard.values.is_empty()).expect("the stream")
    }

    fn read(&mut self, place: usize) {
        let peer = &mut self.peers[place];
        let mut stream = Vec::new();
        {
            let mut outbox = peer.handle.outbox().borrow_mut();
            outbox.poll(self.now).unwrap();
            outbox.gather(|bytes| {
                stream.extend_from_slice(bytes);
                Take::More
            });
            let length = stream.len();
            outbox.advance(length, |_| {});
        }
        let mut rest = &stream[..];
        while let Some((opcode, payload, after)) = split_message(rest) {
            rest = after;
            if opcode == 1 {
                peer.hear(&serde_json::from_slice(payload).unwrap());
            } else {
                peer.take(&Frame::decode(payload).unwrap());
            }
        }
    }

    fn check(&self) {
        for peer in &self.peers {
            for heard in peer.streams.values() {
                let published = self.published.get(&heard.epoch).map(Vec::as_slice).unwrap_or_default();
                for (seq, value) in &heard.values {
                    assert_eq!(published[usize::try_from(seq - 1).unwrap()], *value, "sample {seq}");
                }
                let heard_of = heard.last + 1 - heard.start;
                assert_eq!(
                    heard_of,
                    heard.values.len() as u64 + heard.missing,
                    "not told of all: {heard:?} node {} w{} m{}",
                    peer.node,
                    peer.worker,
                    peer.member
                );
            }
        }
    }
}

impl Peer {
    fn hear(&mut self, event: &Json) {
        let begin = |streams: &mut HashMap<u32, Heard>, entry: &Json| {
            let number = |key: &str| entry[key].as_u64().unwrap();
            let start = number("seq");
            let heard = Heard {
                epoch: u32::try_from(number("epoch")).unwrap(),
                start,
                last: start - 1,
                ..Heard::default()
            };
            let known = streams.entry(u32::try_from(number("channel")).unwrap());
            match known {
                // Told again of one that it has: another subscription matches it.
                Entry::Occupied(known) if !known.get().ended => {}
                Entry::Occupied(mut ended) => drop(ended.insert(heard)),
                Entry::Vacant(new) => drop(new.insert(heard)),
            }
        };
        match event["type"].as_str().unwrap() {
            "subscribed" => {
                self.answered += 1;
                let channels = event["channels"].as_array().unwrap();
                channels.iter().for_each(|entry| begin(&mut self.streams, entry));
            }
            "channel" => begin(&mut self.streams, event),
            "live" => {}
            "gap" => {
                assert_eq!(event["reason"], "broker");
                let heard = self.streams.get_mut(&channel_of(event)).unwrap();
                heard.missing += event["count"].as_u64().unwrap();
                heard.last = heard.last.max(event["to"].as_u64().unwrap());
            }
            "ended" => self.streams.get_mut(&channel_of(event)).unwrap().ended = true,
            "unsubscribed" => {
                for ledger in event["channels"].as_array().unwrap() {
                    self.streams.remove(&channel_of(ledger));
                }
            }
            other => panic!("{other}: {event}"),
        }
    }

    fn take(&mut self, frame: &Frame) {
        let heard = self.streams.get_mut(&frame.channel).expect("a channel that it was told of");
        assert_eq!(heard.epoch, frame.epoch);
        let samples = frame.blocks.iter().flat_map(|block| &block.samples);
        self.largest.0 = self.largest.0.max(samples.clone().count());
        self.largest.1 = self.largest.1.max(frame.encoded_len());
        for (seq, sample) in (frame.seq..).zip(samples) {
            let Some(Value::Number(value)) = sample.value else { panic!("{sample:?}") };
            assert!(
                heard.values.last_key_value().is_none_or(|(last, _)| *last < seq),
                "{seq} again: {heard:?}"
            );
            heard.values.insert(seq, value);
            heard.last = heard.last.max(seq);
        }
    }
}

fn channel_of(event: &Json) -> u32 {
    u32::try_from(event["channel"].as_u64().unwrap()).unwrap()
}

#[test]
fn what_is_published_on_one_server_is_received_on_all() {
    for workers in [1, 3] {
        let mut world = World::new(3, workers, 7);
        world.settle();
        for node in 0..3 {
            world.connect(node, node);
        }
        world.subscribe(0, "a.x");
        world.subscribe(1, "a.*");
        world.publish(0, "a.x", 1);
        world.settle();
        world.subscribe(2, ">");
        world.settle();
        assert!(world.peers.iter().all(|peer| peer.answered == 1));
        // From here on all are answered, so nothing may be missed.
        for _ in 0..20 {
            world.publish(0, "a.x", 3);
            world.publish(2, "a.x", 2);
            world.advance(4);
            world.step(1);
        }
        world.settle();
        world.check();
        for peer in &world.peers {
            let all: Vec<_> = peer.streams.values().filter(|heard| !heard.values.is_empty()).collect();
            assert_eq!(all.len(), 2, "one stream of each publisher: {:?}", peer.streams);
            assert!(all.iter().all(|heard| heard.missing == 0), "{all:?}");
            let received: usize = all.iter().map(|heard| heard.values.len()).sum();
            assert!(received >= 100, "{received}");
        }
    }
}

#[test]
fn whoever_has_been_told_to_publish_is_heard_from_the_first_sample() {
    for workers in [1, 3] {
        let mut world = World::new(3, workers, 7);
        world.settle();
        world.connect(1, 1);
        world.subscribe(0, "a.*");
        world.settle();
        world.advertise(0, "a.x");
        world.publish(0, "a.x", 5);
        world.settle();
        let heard = world.peers[0].streams.values().next().expect("the stream");
        assert_eq!((heard.start, heard.values.len(), heard.missing), (1, 5, 0));
    }
}

#[test]
fn a_stream_of_a_name_that_is_watched_already_is_known_before_its_first_sample() {
    for workers in [1, 3] {
        let mut world = World::new(2, workers, 7);
        world.settle();
        world.connect(1, 0);
        world.connect(1, 1);
        // The topic is live before anybody publishes.
        world.subscribe(0, "a.x");
        world.settle();
        world.advertise(0, "a.x");
        world.subscribe(1, "a.x");
        world.step_all();
        (0..2).for_each(|peer| world.read(peer));
        assert_eq!(world.peers[1].answered, 1, "no time has passed, so nobody may have to wait for it");
        // The broker loses the first frame.
        world.nodes[1].topics.remove("a.x");
        world.publish(0, "a.x", 5);
        world.step_all();
        world.nodes[1].topics.insert("a.x".to_owned());
        world.publish(0, "a.x", 3);
        world.settle();
        world.check();
        for peer in &world.peers {
            let heard = peer.streams.values().find(|heard| !heard.values.is_empty()).expect("the stream");
            assert_eq!((heard.start, heard.values.len(), heard.missing), (1, 3, 5));
        }
    }
}

#[test]
fn nothing_comes_back_to_its_server_and_nobody_gets_what_nobody_wants() {
    let mut world = World::new(2, 1, 7);
    world.settle();
    world.connect(0, 0);
    world.subscribe(0, "a.x");
    world.publish(0, "a.x", 5);
    world.publish(0, "b", 5);
    world.settle();
    assert_eq!(world.peers[0].streams.len(), 1);
    assert!(!world.nodes[1].topics.contains("a.x"), "nobody there subscribes");
    assert_eq!(world.nodes[1].hubs[0].metrics().counters.relays_received, 0);
    world.connect(1, 0);
    world.subscribe(1, "*.x");
    world.settle();
    assert!(world.nodes[1].topics.contains("a.x") && !world.nodes[1].topics.contains("b"));
    world.unsubscribe(1, "*.x");
    (0..3).for_each(|_| world.settle());
    assert!(!world.nodes[1].topics.contains("a.x"), "nobody subscribes any more");
}

#[test]
fn a_server_that_dies_ends_its_streams() {
    let mut world = World::new(2, 1, 7);
    world.settle();
    world.connect(1, 0);
    world.subscribe(0, ">");
    world.publish(0, "a.x", 5);
    world.settle();
    assert_eq!(world.peers[0].streams.len(), 1);
    let other = world.start(NodeId(9));
    world.nodes[0] = other;
    // Ten seconds until it is missed, sixty that its stream lingers.
    for _ in 0..20 {
        world.settle();
    }
    assert!(world.peers[0].streams.values().all(|heard| heard.ended), "{:?}", world.peers[0].streams);
    world.publish(0, "a.x", 5);
    world.settle();
    let alive: Vec<_> = world.peers[0].streams.values().filter(|heard| !heard.ended).collect();
    assert_eq!(alive.len(), 1);
}

#[test]
fn a_broker_that_is_silent_holds_nobody_up_for_long() {
    let mut world = World::new(2, 1, 7);
    world.settle();
    world.nodes[0].topics.clear();
    world.connect(0, 0);
    world.subscribe(0, "a.x");
    while world.step(0) {
        // The broker's answer is lost.
        world.nodes[0].events.clear();
    }
    world.read(0);
    assert_eq!(world.peers[0].answered, 0);
    world.advance(u64::try_from(WAIT_MAX.as_millis()).unwrap());
    while world.step(0) {}
    world.read(0);
    assert_eq!(world.peers[0].answered, 1);
    world.set_connected(1, false);
    world.settle();
    world.connect(1, 0);
    world.subscribe(1, "a.x");
    while world.step(1) {}
    world.read(1);
    assert_eq!(world.peers[1].answered, 1, "without a broker nobody waits for one");
}

#[test]
fn what_waits_in_a_long_window_is_not_told_to_be_lost() {
    let mut config = Config { workers: 1, ..Config::default() };
    config.batch.window = Duration::from_secs(4);
    let mut world = World::with(2, config, 7);
    world.settle_with_subscriber(1, 0, "a.x");
    // The first goes at once, the others wait for the window.
    world.publish(0, "a.x", 1);
    world.step_all();
    world.advance(100);
    world.publish(0, "a.x", 3);
    (0..3).for_each(|_| world.settle());
    world.check();
    let heard = world.heard();
    assert_eq!((heard.values.len(), heard.missing), (4, 0));
}

#[test]
fn a_new_server_is_told_everything_at_once_however_late_it_hears() {
    let mut world = World::new(2, 1, 7);
    world.settle();
    world.publish(0, "a.x", 5);
    world.settle();
    let mut new = world.start(NodeId(9));
    new.topics.clear();
    new.events = VecDeque::from([Event::Up]);
    world.nodes[1] = new;
    world.step_all();
    world.nodes[1].topics.insert(NODES.to_owned());
    world.nodes[1].events.push_back(Event::Subscribed(NODES.to_owned()));
    world.step_all();
    world.connect(1, 0);
    world.subscribe(0, "a.*");
    world.step_all();
    world.read(0);
    // No time has passed.
    let heard = world.peers[0].streams.values().next().expect("the stream");
    assert_eq!((world.peers[0].answered, heard.start), (1, 6));
}

#[test]
fn of_a_frame_whose_end_alone_is_new_the_end_is_taken() {
    let mut world = World::new(2, 1, 7);
    world.settle_with_subscriber(0, 0, "a.x");
    world.publish(1, "a.x", 5);
    world.settle();
    world.publish(1, "a.x", 5);
    world.advance(20);
    while world.step(1) {}
    let (node, epoch) = (world.nodes[1].outgoing.node, *world.published.keys().next().unwrap());
    let head = relay::head_payload(node, epoch, 1, 9);
    world.nodes[0].events.push_front(Event::Message("a.x".to_owned(), head.head));
    world.settle();
    world.check();
    let heard = world.peers[0].streams.values().find(|heard| heard.epoch == epoch).expect("the stream");
    assert_eq!((heard.values.len(), heard.last, heard.missing), (7, 10, 3));
}

/// Two servers of one worker where five samples fill a frame, and a subscriber of "a.x" at the second, who has five from the first.
fn world_of_small_frames() -> World {
    let mut config = Config { workers: 1, ..Config::default() };
    config.batch.frame_samples_max = 5;
    let mut world = World::with(2, config, 7);
    world.settle_with_subscriber(1, 0, "a.x");
    world.publish(0, "a.x", 5);
    world.settle();
    world
}

#[test]
fn a_channel_costs_a_broker_a_hundred_messages_a_second_however_much_is_published() {
    for bytes_max in [256, 1 << 20] {
        let mut config = Config { workers: 1, ..Config::default() };
        // Full after some publishes, or after each.
        config.batch.frame_bytes_max = bytes_max;
        config.batch.frame_samples_max = if bytes_max == 256 { 1_000 } else { 5 };
        let mut world = World::with(2, config, 7);
        world.settle_with_subscriber(1, 0, "a.x");
        let before = world.nodes[0].hubs[0].metrics().counters.clone();
        for _ in 0..1_000 {
            world.publish(0, "a.x", 5);
            world.advance(1);
            world.step_all();
            world.read(0);
        }
        let counters = world.nodes[0].hubs[0].metrics().counters.clone();
        let messages = counters.relays_sent - before.relays_sent;
        let frames = counters.frames_sealed - before.frames_sealed;
        assert!((90..=101).contains(&messages) && frames > 250, "{messages} messages of {frames} frames");
        // Nothing waits longer than for a full frame and the next message, and no frame has become larger on the way.
        assert!(world.heard().last >= 5_000 - 75, "{}", world.heard().last);
        world.settle();
        world.check();
        assert_eq!((world.heard().values.len(), world.heard().missing), (5_000, 0));
        let (samples, bytes) = world.peers[0].largest;
        assert!(if bytes_max == 256 { bytes <= 256 + 32 } else { samples <= 5 + 4 }, "{samples} {bytes}");
    }
}

#[test]
fn a_head_does_not_overtake_what_waits_for_the_next_message() {
    let mut world = world_of_small_frames();
    world.publish(0, "a.x", 5);
    world.publish(0, "a.x", 5);
    // The process was stopped, and the tick comes first.
    world.now = world.now.plus(Duration::from_secs(2));
    let now = world.now;
    world.nodes[0].hubs[0].tick(now);
    world.settle();
    world.check();
    assert_eq!((world.heard().last, world.heard().missing), (15, 0));
}

#[test]
fn whoever_ends_sends_what_waits_for_the_next_message() {
    let mut world = world_of_small_frames();
    for count in 1..=3 {
        world.publish(0, "a.x", 5);
        assert_eq!(world.nodes[0].hubs[0].metrics().counters.relays_sent, 2, "the first goes, {count}");
    }
    let now = world.now;
    world.nodes[0].hubs[0].handle(ToWorker::Drain, now);
    world.step_all();
    world.read(0);
    assert_eq!((world.heard().last, world.heard().missing), (20, 0), "no time has passed");
}

#[test]
fn nobody_waits_for_a_server_that_has_said_that_it_ends() {
    let mut world = World::new(2, 1, 7);
    world.settle();
    world.publish(1, "b.x", 5);
    world.settle();
    let now = world.now;
    let ending = &mut world.nodes[1];
    ending.core.presence(PresenceAcross::Nobody, now);
    ending.core.tell_presence(&ending.asked, now);
    world.step_all();
    world.nodes.truncate(1);
    // Fails if it has to wait for time to pass.
    world.advertise(0, "a.x");
    // Nor whoever subscribes to what that has published.
    world.connect(0, 0);
    world.subscribe(0, "b.x");
    world.step_all();
    world.read(0);
    assert_eq!(world.peers[0].answered, 1);
}

#[test]
fn whoever_comes_to_a_server_that_is_behind_goes_on_where_it_was() {
    // At the end of a frame, and within one.
    for seq in [20, 18] {
        for workers in [1, 3] {
            let mut world = World::new(2, workers, 7);
            world.settle();
            world.connect(1, 0);
            world.connect(1, 1);
            world.subscribe(0, "a.x");
            world.settle();
            world.publish(0, "a.x", 10);
            world.settle();
            // What comes next is on its way to the other server for a while.
            for _ in 0..4 {
                world.publish(0, "a.x", 5);
                world.advance(20);
                while world.step(0) {}
            }
            let epoch = world.nodes[0].router.directory(|all| all.published_as("a.x")).unwrap().epoch;
            let cursor = format!("{epoch}:{seq}").parse().unwrap();
            world.resume(1, "a.x", Some(Past::Since(BTreeMap::from([("a.x".into(), cursor)]))));
            world.settle();
            world.publish(0, "a.x", 5);
            world.settle();
            world.check();
            let heard =
                world.peers[1].streams.values().find(|heard| heard.epoch == epoch).expect("the stream");
            assert_eq!((heard.start, heard.last, heard.missing), (seq + 1, 35, 0), "{seq} {workers}");
            assert_eq!(heard.values.first_key_value().map(|(first, _)| *first), Some(seq + 1));
        }
    }
}

#[test]
fn the_largest_frame_is_none_too_large() {
    let mut config = Config { workers: 1, ..Config::default() };
    config.inbound.message_samples_max = 4;
    config.batch.frame_samples_max = 5;
    let mut world = World::with(2, config, 7);
    world.settle_with_subscriber(1, 0, "a.x");
    // The first goes at once, the others are a frame of as many as there may be.
    (0..3).for_each(|_| world.publish(0, "a.x", 4));
    world.settle();
    world.check();
    let heard = world.heard();
    assert_eq!((heard.values.len(), heard.missing), (12, 0));
}

#[test]
fn a_flood_of_lives_leaves_room_for_the_servers_that_are_there() {
    let mut world = World::new(2, 1, 7);
    world.settle_with_subscriber(1, 0, "a.x");
    for round in 0..10 {
        for epoch in 1..=200 {
            let Payload { head, .. } = relay::head_payload(NodeId(1_000), round * 1_000 + epoch, 1, 1);
            world.carry("a.x", &head);
        }
        // Half as long as a stream lingers.
        for _ in 0..30 {
            world.second();
            world.step_all();
            world.nodes[1].hubs[0].sweep(world.now);
        }
    }
    assert!(world.nodes[1].core.counters().relays_refused[RelayRefusal::Full] > 1_000);
    world.advertise(0, "a.x");
    world.publish(0, "a.x", 5);
    world.settle();
    let heard = world.heard();
    assert_eq!((heard.start, heard.values.len(), heard.missing), (1, 5, 0));
}

#[test]
fn what_is_no_message_of_a_server_is_counted() {
    let mut world = World::new(2, 1, 7);
    world.settle();
    assert_eq!(world.nodes[0].core.counters().node_messages_refused, 0);
    for junk in [&b""[..], b"\xff", b"{}", br#"{"node":"0","type":"list","of":"1"}"#] {
        world.carry(NODES, &Bytes::copy_from_slice(junk));
    }
    world.settle();
    for node in &world.nodes {
        assert_eq!(node.core.counters().node_messages_refused, 4);
    }
}

#[test]
fn a_topic_that_cannot_be_had_holds_nobody_up() {
    for full in [false, true] {
        let mut world = World::new(2, 1, 7);
        world.settle();
        world.nodes[1].forbidden = !full;
        world.nodes[1].asked.full.set(full);
        for peer in 0..3 {
            world.connect(1, 0);
            world.subscribe(peer, "a.x");
            world.step_all();
            world.read(peer);
            assert_eq!(
                world.peers[peer].answered, 1,
                "no time has passed, so nobody may have to wait for it"
            );
        }
        assert_eq!(world.nodes[1].core.counters().topics_refused, 1);
        world.advertise(0, "a.x");
        world.publish(0, "a.x", 5);
        world.settle();
        // It can be had again.
        world.nodes[1].forbidden = false;
        world.nodes[1].asked.full.set(false);
        if !full {
            world.nodes[1].topics.insert("a.x".to_owned());
            world.nodes[1].events.push_back(Event::Subscribed("a.x".to_owned()));
        }
        world.settle();
        world.publish(0, "a.x", 3);
        world.settle();
        world.check();
        for peer in &world.peers {
            let heard: Vec<_> = peer.streams.values().filter(|heard| !heard.values.is_empty()).collect();
            assert_eq!(heard.iter().map(|heard| (heard.start, heard.last)).collect::<Vec<_>>(), [(6, 8)]);
        }
    }
}

#[test]
fn whatever_the_broker_does_subscribers_know_what_they_miss() {
    for seed in seeds(CASES) {
        println!("seed {seed}");
        let mut config = Config { workers: 1 + (seed % 3) as usize, ..Config::default() };
        // In half of them most frames are full before their window ends, and share a message.
        match seed % 4 {
            0 => config.batch.frame_samples_max = 4,
            1 => config.batch.frame_bytes_max = 256,
            _ => {}
        }
        let mut world = World::with(2 + (seed % 2) as usize, config, seed);
        let nodes = world.nodes.len();
        for node in 0..nodes {
            world.connect(node, 0);
            world.connect(node, 1);
        }
        for _ in 0..150 {
            let (node, peer) = (world.random.usize(..nodes), world.random.usize(..2 * nodes));
            let (name, pattern) = (NAMES[world.random.usize(..3)], PATTERNS[world.random.usize(..6)]);
            match world.random.usize(..100) {
                0..8 => world.subscribe(peer, pattern),
                8..11 => world.unsubscribe(peer, pattern),
                11..35 => {
                    let samples = world.random.usize(1..6);
                    world.publish(node, name, samples);
                }
                35..38 => world.loss = [0, 0, 10, 50][world.random.usize(..4)],
                38..40 => {
                    let connected = world.random.bool();
                    world.set_connected(node, connected);
                }
                40..55 => {
                    let ms = [1, 5, 10, 50][world.random.usize(..4)];
                    world.advance(ms);
                }
                55..58 => world.second(),
                58..62 => world.read(peer),
                _ => drop(world.step(node)),
            }
        }
        // In the end everybody hears everybody, and each stream's head comes through.
        world.loss = 0;
        (0..nodes).for_each(|node| world.set_connected(node, true));
        (0..10).for_each(|_| world.settle());
        world.check();
        for peer in &world.peers {
            for heard in peer.streams.values().filter(|heard| !heard.ended) {
                let head = world.published.get(&heard.epoch).map_or(0, Vec::len) as u64;
                assert_eq!(heard.last, head.max(heard.start - 1), "it does not know the end: {heard:?}");
            }
        }
    }
}
