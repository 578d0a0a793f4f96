//! The ledger of every subscription against a naive model: seeded random operations on real hubs, alone and in threes, whose
//! inboxes are pumped in random turns. The model knows just what was published, in which order, and what came out of each
//! connection, byte by byte. It never looks into a batch or an outbox but through their public ledgers.
//!
//! `TIDEWIRE_MODEL_CASES` sets how many cases run, `TIDEWIRE_MODEL_SEED` with which seed the first one begins. A failure
//! prints its seed and the shortest list of operations that still fails. (Where a pattern matches several channels, their order is
//! that of a hash map, so a seed repeats a run up to that order.)

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use serde_json::Value as Json;
use tidewire::clock::{Clock, Now};
use tidewire::config::Config;
use tidewire::history::Past;
use tidewire::hub::router::{FRAME_CREDIT_KIB, Router, ToWorker};
use tidewire::hub::{Hub, Published};
use tidewire::outbox::Take;
use tidewire::outbox::handle::OutboxHandle;
use tidewire::pattern::Pattern;
use tidewire::session::DeliveryOptions;
use tidewire::wire::codec::{decode_frame_json, decode_frame_msgpack};
use tidewire::wire::control::{Ledger, Policy};
use tidewire::wire::decode::scan_publish;
use tidewire::wire::proto::sample::Value;
use tidewire::wire::proto::{Block, Frame, Publish, Sample};
use tidewire::wire::{ChannelId, Codec};
use tokio::sync::{mpsc, oneshot};

mod model;
#[path = "model/seeds.rs"]
mod seeds;

use model::{new_member, split_message};
use seeds::seeds;

const CASES: u64 = 2_500;
const OPERATIONS_MAX: usize = 120;
const NAMES: [&str; 4] = ["a.x", "a.y", "b.x", "c"];
const PATTERNS: [&str; 8] = ["a.x", "a.y", "b.x", "c", "a.*", "*.x", ">", "a.>"];
const CONNECTIONS_MAX: usize = 5;

/// One step. Places are taken modulo what there is, so that any part of a list of operations is one, too.
#[derive(Clone, Debug)]
enum Operation {
    Connect {
        worker: usize,
        codec: Codec,
    },
    Remove {
        connection: usize,
    },
    Subscribe {
        connection: usize,
        pattern: usize,
        delivery: DeliveryOptions,
    },
    /// As `Subscribe`, with something of the past.
    Resume {
        connection: usize,
        pattern: usize,
        delivery: DeliveryOptions,
        wish: Wish,
    },
    /// The connection ends, and another one comes that goes on where it was, on any worker.
    Reconnect {
        connection: usize,
        worker: usize,
        pattern: usize,
        delivery: DeliveryOptions,
    },
    Unsubscribe {
        connection: usize,
        pattern: usize,
    },
    Advertise {
        connection: usize,
        name: usize,
    },
    Publish {
        connection: usize,
        name: usize,
        samples: usize,
        padding: usize,
    },
    /// Time passes; deadlines are looked at only by `Poll`.
    Advance {
        ms: u64,
    },
    Poll {
        worker: usize,
    },
    Tick {
        worker: usize,
    },
    /// The peer takes up to this many bytes.
    Read {
        connection: usize,
        bytes: usize,
    },
    /// A worker takes up to this many messages from its inbox.
    Pump {
        worker: usize,
        messages: usize,
    },
}

/// What a `subscribe` wants of the past.
#[derive(Clone, Copy, Debug)]
enum Wish {
    /// What came after that which the connection, or another one, has had. Without any of it: all that is kept.
    Since,
    Last(u64),
    LastMs(u64),
}

fn delivery(random: &mut fastrand::Rng) -> DeliveryOptions {
    let policies = [Policy::DropOldest, Policy::DropNewest, Policy::Latest, Policy::Disconnect];
    let weights = [0, 0, 0, 1, 1, 2, 2, 2, 3];
    DeliveryOptions {
        policy: policies[weights[random.usize(..weights.len())]],
        max_delay_ms: [0, 2, 10, 10, 50][random.usize(..5)],
        max_age_ms: [1, 20, 1_000, 1_000][random.usize(..4)],
        max_rate_hz: [None, None, None, Some(5.0), Some(50.0), Some(1_000.0)][random.usize(..6)],
    }
}

/// What the connections of one case choose from: few enough that they share delivery classes.
struct Palette {
    deliveries: [DeliveryOptions; 3],
    codecs: [Codec; 2],
    names: usize,
    rush: bool,
}

impl Palette {
    fn new(random: &mut fastrand::Rng) -> Self {
        Self {
            deliveries: std::array::from_fn(|_| delivery(random)),
            codecs: std::array::from_fn(|_| Codec::ALL[random.usize(..3)]),
            names: random.usize(1..=NAMES.len()),
            rush: random.bool(),
        }
    }
}

fn operation(random: &mut fastrand::Rng, palette: &Palette) -> Operation {
    let (connection, worker) = (random.usize(..CONNECTIONS_MAX), random.usize(..3));
    let (pattern, name) = (random.usize(..PATTERNS.len()), random.usize(..palette.names));
    match random.usize(..100) {
        0..7 => Operation::Connect { worker, codec: palette.codecs[random.usize(..2)] },
        7..9 => Operation::Remove { connection },
        9..17 => {
            Operation::Subscribe { connection, pattern, delivery: palette.deliveries[random.usize(..3)] }
        }
        17..21 => Operation::Resume {
            connection,
            pattern,
            delivery: palette.deliveries[random.usize(..3)],
            wish: [Wish::Since, Wish::Last(random.u64(1..20)), Wish::LastMs(random.u64(1..40))]
                [random.usize(..3)],
        },
        21..24 => Operation::Reconnect {
            connection,
            worker,
            pattern,
            delivery: palette.deliveries[random.usize(..3)],
        },
        24..31 => Operation::Unsubscribe { connection, pattern },
        31..38 => Operation::Advertise { connection, name },
        38..60 => Operation::Publish {
            connection,
            name,
            samples: [1, 1, 2, 3, 5, 12][random.usize(..6)],
            padding: [0, 0, 3, 40, 300, 900][random.usize(..6)],
        },
        60..70 if palette.rush => Operation::Advance { ms: [1, 1, 2, 5, 10, 20, 30][random.usize(..7)] },
        60..70 => Operation::Advance { ms: [1, 2, 5, 10, 30, 100, 1_500][random.usize(..7)] },
        70..76 => Operation::Poll { worker },
        76..80 => Operation::Tick { worker },
        80..90 => {
            Operation::Read { connection, bytes: [1, 7, 100, 700, 5_000, usize::MAX][random.usize(..6)] }
        }
        _ => Operation::Pump { worker, messages: [1, 1, 2, 5, 100][random.usize(..5)] },
    }
}

/// A sample as the model remembers it.
#[derive(Clone, Debug, PartialEq)]
struct Known {
    source_ns: u64,
    value: Value,
}

/// What a peer knows of a channel since its subscription began, from the bytes that it has read.
#[derive(Debug)]
struct Heard {
    start: u64,
    last: u64,
    delivered: BTreeSet<u64>,
    slow: u64,
    conflated: u64,
    spans: Vec<(u64, u64)>,
    /// What it was told of the past, until the mark that ends it.
    replay: Option<Json>,
    /// Whether it was told that some of the past is gone, and how much of it in gaps.
    partial: bool,
    history: u64,
    /// The first sequence that was live, after a replay.
    live: u64,
    epoch: u32,
}

/// A peer and its side of the stream.
#[derive(Debug)]
struct Connection {
    worker: usize,
    member: usize,
    codec: Codec,
    handle: Rc<OutboxHandle>,
    stream: Vec<u8>,
    /// Channels that the peer was told about, and not yet that they ended.
    heard: BTreeMap<u32, Heard>,
    /// Where the subscription to each channel began, by the server's ledger.
    starts: BTreeMap<u32, u64>,
    /// What it has asked for of the past of channels, by name: a cursor, or something else.
    wishes: BTreeMap<usize, Option<String>>,
    advertised: HashMap<usize, ChannelId>,
    /// Ends of subscriptions that the peer has not heard of: what begins again may begin where the last one did.
    unheard_ends: usize,
    /// The inbound loop reads no further while a request is unanswered. Only the subscription to a user's own inbox, which is one
    /// channel, is made without waiting.
    waits: bool,
}

struct World {
    config: Arc<Config>,
    router: Arc<Router>,
    hubs: Vec<Hub>,
    inboxes: Vec<mpsc::Receiver<ToWorker>>,
    now: Now,
    connections: Vec<Connection>,
    next_connection: u64,
    next_value: u64,
    /// Where peers that are gone have been: channel names with cursors.
    cursors: BTreeMap<usize, String>,
    /// What each channel has been given, in the order of its home.
    published: HashMap<u32, Vec<Known>>,
}

impl World {
    fn new(workers: usize, config: Config, now: Now) -> Self {
        let config = Arc::new(config);
        let (router, inboxes) = Router::new(workers, config.channel.channels_total_max);
        let hubs =
            (0..workers).map(|worker| Hub::new(worker, Arc::clone(&config), Arc::clone(&router))).collect();
        Self {
            config,
            router,
            hubs,
            inboxes,
            now,
            connections: Vec::new(),
            next_connection: 1,
            next_value: 1,
            cursors: BTreeMap::new(),
            published: HashMap::new(),
        }
    }

    fn run(&mut self, operation: &Operation) {
        match *operation {
            Operation::Connect { worker, codec } => self.connect(worker % self.hubs.len(), codec),
            Operation::Remove { connection } => {
                if let Some(place) = self.place(connection) {
                    self.remove(place);
                }
            }
            Operation::Subscribe { connection, pattern, delivery } => {
                self.subscribe(connection, pattern, delivery);
            }
            Operation::Resume { connection, pattern, delivery, wish } => {
                self.resume(connection, pattern, delivery, wish);
            }
            Operation::Reconnect { connection, worker, pattern, delivery } => {
                if let Some(place) = self.place(connection) {
                    let codec = self.connections[place].codec;
                    self.remove(place);
                    self.connect(worker % self.hubs.len(), codec);
                    self.resume(self.connections.len() - 1, pattern, delivery, Wish::Since);
                }
            }
            Operation::Unsubscribe { connection, pattern } => {
                if let Some(place) = self.requesting(connection, true) {
                    let Connection { worker, member, .. } = self.connections[place];
                    let pattern = Pattern::parse(PATTERNS[pattern], 255).unwrap();
                    // Not subscribed is an answer like any other.
                    let ended = self.hubs[worker].unsubscribe(member, None, &pattern, self.now);
                    self.connections[place].unheard_ends += usize::from(ended.is_ok());
                    self.connections[place].starts.clear();
                }
            }
            Operation::Advertise { connection, name } => {
                if let Some(place) = self.requesting(connection, true) {
                    let this = &mut self.connections[place];
                    let id = self.hubs[this.worker].advertise(this.member, None, NAMES[name], self.now);
                    this.advertised.insert(name, id.unwrap());
                }
            }
            Operation::Publish { connection, name, samples, padding } => {
                self.publish(connection, name, samples, padding);
            }
            Operation::Advance { ms } => self.now = self.now.plus(Duration::from_millis(ms)),
            Operation::Poll { worker } => {
                let worker = worker % self.hubs.len();
                self.hubs[worker].poll_due(self.now);
            }
            Operation::Tick { worker } => {
                let worker = worker % self.hubs.len();
                self.hubs[worker].tick(self.now);
            }
            Operation::Read { connection, bytes } => {
                if let Some(place) = self.place(connection) {
                    self.read(place, bytes);
                }
            }
            Operation::Pump { worker, messages } => {
                let worker = worker % self.hubs.len();
                for _ in 0..messages {
                    if !self.pump(worker) {
                        break;
                    }
                }
            }
        }
        // A connection that is asked to end goes through its one exit.
        while let Some(place) = self.connections.iter().position(|c| c.handle.ending().is_some()) {
            self.remove(place);
        }
        self.check();
    }

    fn place(&self, connection: usize) -> Option<usize> {
        connection.checked_rem(self.connections.len())
    }

    /// The place of a connection whose next request is read now.
    fn requesting(&mut self, connection: usize, waits: bool) -> Option<usize> {
        let place = self.place(connection)?;
        let this = &mut self.connections[place];
        if this.handle.has_unanswered() && this.waits {
            return None;
        }
        this.waits = waits;
        Some(place)
    }

    fn connect(&mut self, worker: usize, codec: Codec) {
        if self.connections.len() < CONNECTIONS_MAX {
            self.enter(worker, codec);
        }
    }

    fn enter(&mut self, worker: usize, codec: Codec) {
        let (new, handle) = new_member(&self.config, self.next_connection, codec, None);
        self.next_connection += 1;
        let member = self.hubs[worker].add_member(new, self.now);
        self.connections.push(Connection {
            worker,
            member,
            codec,
            handle,
            stream: Vec::new(),
            heard: BTreeMap::new(),
            starts: BTreeMap::new(),
            wishes: BTreeMap::new(),
            advertised: HashMap::new(),
            unheard_ends: 0,
            waits: false,
        });
    }

    /// As a connection ends: out of the hub, the last message, what was begun. Nobody holds its outbox then.
    fn remove(&mut self, place: usize) {
        let member = self.connections[place].member;
        let worker = self.connections[place].worker;
        self.hubs[worker].remove_member(member, self.now);
        let handle = Rc::clone(&self.connections[place].handle);
        handle.outbox().borrow_mut().close(tidewire::wire::ws::close_frame(1000, ""));
        self.read(place, usize::MAX);
        let gone = self.connections.remove(place);
        for (channel, heard) in &gone.heard {
            // A cursor as a client forms it of what it has: the epoch, and the last sequence.
            let name =
                NAMES.iter().position(|name| id_of(&self.router, name).is_some_and(|id| id.0 == *channel));
            let name = name.expect("a channel has a name");
            self.cursors.insert(name, format!("{}:{}", heard.epoch, heard.last));
        }
        assert!(gone.stream.is_empty(), "the stream ends in the middle of a message");
        assert!(gone.handle.outbox().borrow().ledgers().next().is_none(), "a ledger without a subscription");
        drop(gone);
        assert_eq!(
            Rc::strong_count(&handle),
            1,
            "somebody still holds the outbox of a connection that ended"
        );
    }

    fn subscribe(&mut self, connection: usize, pattern: usize, delivery: DeliveryOptions) {
        let pattern = Pattern::parse(PATTERNS[pattern], 255).unwrap();
        let Some(place) = self.requesting(connection, !pattern.is_literal()) else { return };
        let Connection { worker, member, .. } = self.connections[place];
        self.hubs[worker].subscribe(member, Some(1), &pattern, delivery, None, self.now).unwrap();
    }

    fn resume(&mut self, connection: usize, pattern: usize, delivery: DeliveryOptions, wish: Wish) {
        let pattern = Pattern::parse(PATTERNS[pattern], 255).unwrap();
        let Some(place) = self.requesting(connection, true) else { return };
        let this = &mut self.connections[place];
        let past = match wish {
            Wish::Last(samples) => Past::Last(samples),
            Wish::LastMs(ms) => Past::LastMs(ms),
            Wish::Since => {
                let cursors = self.cursors.iter().filter(|(name, _)| pattern.matches(NAMES[**name]));
                Past::Since(
                    cursors.map(|(name, text)| (NAMES[*name].into(), text.parse().unwrap())).collect(),
                )
            }
        };
        // What is subscribed already is refused, and goes on.
        let taken =
            self.hubs[this.worker].subscribe(this.member, Some(1), &pattern, delivery, Some(past), self.now);
        if taken.is_err() {
            return;
        }
        for name in (0..NAMES.len()).filter(|name| pattern.matches(NAMES[*name])) {
            let cursor = self.cursors.get(&name).filter(|_| matches!(wish, Wish::Since)).cloned();
            // Several subscriptions may want different things of a channel that is found later: then either will do.
            this.wishes.entry(name).and_modify(|wish| *wish = None).or_insert(cursor);
        }
    }

    fn publish(&mut self, connection: usize, name: usize, samples: usize, padding: usize) {
        let Some(place) = self.place(connection) else { return };
        let this = &self.connections[place];
        let Some(&channel) = this.advertised.get(&name) else { return };
        let source_ns = if self.next_value.is_multiple_of(5) { 0 } else { self.now.wall_ns };
        let samples: Vec<Sample> = (0..samples)
            .map(|index| {
                self.next_value += 1;
                let text = format!("{}{}", self.next_value, ".".repeat(padding / samples));
                Sample { source_delta_ns: i64::try_from(index * 3).unwrap(), value: Some(Value::Text(text)) }
            })
            .collect();
        let block = Block { source_ns, received_ns: 0, samples };
        let message = Publish { channel: channel.0, block: Some(block), ack: 0 }.encode_to_vec();
        let mut spans = Vec::new();
        let scanned = scan_publish(&message, 4_096, &mut spans).unwrap();
        match self.hubs[this.worker].publish(this.member, &scanned, &spans, self.now) {
            Published::Taken => {}
            other => panic!("{other:?}"),
        }
        // The home has it now, or gets it through its inbox, where `pump` takes note.
        if home_of(&self.router, NAMES[name]) == this.worker {
            note(&mut self.published, channel, scanned.block);
        }
    }

    fn pump(&mut self, worker: usize) -> bool {
        let Ok(message) = self.inboxes[worker].try_recv() else { return false };
        if let ToWorker::Publish(publish) = &message {
            note(&mut self.published, publish.info.id, &publish.content);
        }
        self.hubs[worker].handle(message, self.now);
        true
    }

    /// The writer with a socket that takes so many bytes.
    fn read(&mut self, place: usize, bytes: usize) {
        let this = &mut self.connections[place];
        let mut outbox = this.handle.outbox().borrow_mut();
        if outbox.poll(self.now).is_err() {
            return;
        }
        let mut offered = Vec::new();
        outbox.gather(|message| {
            offered.extend_from_slice(message);
            if offered.len() >= bytes { Take::Stop } else { Take::More }
        });
        offered.truncate(bytes);
        let mut frames = 0;
        outbox.advance(offered.len(), |_| frames += 1);
        drop(outbox);
        this.stream.extend_from_slice(&offered);
        while let Some((opcode, payload, rest)) = split_message(&this.stream) {
            let payload = payload.to_vec();
            let behind = rest.len();
            this.stream.drain(..this.stream.len() - behind);
            match (opcode, serde_json::from_slice::<Json>(&payload)) {
                (1, Ok(control)) if control["type"] != "frame" => this.hear_control(&control),
                (1 | 2, _) => {
                    this.hear_frame(&payload, &self.published);
                    frames -= 1;
                }
                (8, _) => {}
                (opcode, _) => panic!("opcode {opcode}"),
            }
        }
        assert_eq!(frames, 0, "frames are reported as delivered with their last byte");
    }

    /// What holds after every step.
    fn check(&mut self) {
        for connection in &mut self.connections {
            let heads: HashMap<u32, u64> = self.hubs[connection.worker]
                .heads(connection.member)
                .into_iter()
                .map(|head| (head.channel, head.seq))
                .collect();
            let outbox = connection.handle.outbox().borrow();
            let limits = &self.config.outbox;
            assert!(outbox.data_bytes() <= limits.data_bytes_max, "over the limit of bytes");
            assert!(outbox.data_frames() <= limits.data_frames_max + 1, "over the limit of frames");
            let mut queued = 0;
            for ledger in outbox.ledgers() {
                let Ledger { channel, published, delivered, conflated, dropped, .. } = ledger;
                assert_eq!(published, delivered + conflated + dropped + ledger.queued, "{ledger:?}");
                let newest = self.published.get(&channel).map_or(0, Vec::len) as u64;
                let Some(&head) = heads.get(&channel) else {
                    assert_eq!(
                        published, 0,
                        "{ledger:?}: nothing comes before the home has said where it begins"
                    );
                    continue;
                };
                assert!(head <= newest, "{ledger:?}: what was never published");
                queued += ledger.queued;
                let Some(heard) = connection.heard.get(&channel) else { continue };
                let start = head + 1 - published;
                if published > 0 && heard.start == start && connection.unheard_ends == 0 {
                    assert_eq!(heard.delivered.len() as u64, delivered, "{ledger:?}: {heard:?}");
                    assert!(heard.slow <= dropped && heard.conflated <= conflated, "{ledger:?}: {heard:?}");
                }
                if published > 0 {
                    let began = *connection.starts.entry(channel).or_insert(start);
                    assert_eq!(began, start, "{ledger:?}: a subscription begins once");
                }
            }
            assert!(queued == 0 || outbox.data_frames() > 0, "{queued} samples wait in no frame");
        }
    }

    /// Lets everything that is under way come to its end, and reads it.
    fn settle(&mut self) {
        for round in 0..1_000 {
            while (0..self.hubs.len()).any(|worker| self.pump(worker)) {}
            for place in 0..self.connections.len() {
                self.read(place, usize::MAX);
            }
            let next = self.hubs.iter().filter_map(Hub::next_deadline).min();
            let wait =
                next.map_or(Duration::from_millis(100), |at| at.saturating_duration_since(self.now.at));
            self.now = self.now.plus(wait);
            for worker in 0..self.hubs.len() {
                self.hubs[worker].poll_due(self.now);
                self.hubs[worker].tick(self.now);
            }
            self.run(&Operation::Advance { ms: 0 });
            let told = |c: &Connection| c.handle.outbox().borrow().gap_due().is_none();
            let idle = self.inboxes.iter().all(mpsc::Receiver::is_empty);
            if next.is_none() && idle && self.connections.iter().all(told) {
                for place in 0..self.connections.len() {
                    self.read(place, usize::MAX);
                }
                return;
            }
            assert!(round < 999, "a deadline comes again and again");
        }
    }

    /// Nothing is under way: what was delivered and what was told as lost is all that there was.
    fn check_settled(&self) {
        for connection in &self.connections {
            assert!(!connection.handle.has_unanswered(), "a request without an answer");
            let outbox = connection.handle.outbox().borrow();
            assert!(!outbox.has_output());
            let ledgers: Vec<Ledger> = outbox.ledgers().collect();
            let channels: Vec<u32> = connection.heard.keys().copied().collect();
            let mut expected: Vec<u32> = ledgers.iter().map(|ledger| ledger.channel).collect();
            expected.sort_unstable();
            assert_eq!(
                channels, expected,
                "channels that the peer was told about, and those that it receives"
            );
            for ledger in ledgers {
                let heard = &connection.heard[&ledger.channel];
                let newest = self.published.get(&ledger.channel).map_or(0, Vec::len) as u64;
                assert_eq!(ledger.published, newest + 1 - heard.start, "{ledger:?}: {heard:?}");
                heard.check_final(&ledger);
            }
        }
    }
}

impl Heard {
    /// Everything that was published since it began was delivered, or lies in a span that was told, with exact counts.
    fn check_final(&self, ledger: &Ledger) {
        let told = self.slow + self.conflated;
        assert_eq!(ledger.queued, 0, "{ledger:?}");
        assert_eq!(ledger.delivered, self.delivered.len() as u64, "{ledger:?}: {self:?}");
        assert!(self.replay.is_none(), "a replay that does not end: {self:?}");
        assert!(!self.partial || self.history > 0, "what is gone is told: {self:?}");
        assert_eq!((ledger.dropped, ledger.conflated), (self.slow, self.conflated), "{ledger:?}: {self:?}");
        assert_eq!(ledger.published, self.delivered.len() as u64 + told, "{ledger:?}: {self:?}");
        for seq in self.start..self.start + ledger.published {
            let known = self.delivered.contains(&seq)
                || self.spans.iter().any(|(from, to)| (*from..=*to).contains(&seq));
            assert!(known, "{seq} is neither delivered nor in a gap that was told: {self:?}");
        }
    }
}

impl Connection {
    fn hear_control(&mut self, event: &Json) {
        let number = |value: &Json| value.as_u64().unwrap();
        match event["type"].as_str().unwrap() {
            "subscribed" => event["channels"].as_array().unwrap().iter().for_each(|entry| self.begin(entry)),
            "channel" => self.begin(event),
            "unsubscribed" => {
                self.unheard_ends -= 1;
                for ledger in event["channels"].as_array().unwrap() {
                    let channel = u32::try_from(number(&ledger["channel"])).unwrap();
                    let [published, delivered, conflated, dropped, queued] =
                        ["published", "delivered", "conflated", "dropped", "queued"]
                            .map(|field| number(&ledger[field]));
                    assert_eq!(published, delivered + conflated + dropped + queued, "{ledger}");
                    assert_eq!(queued, 0, "{ledger}");
                    let Some(heard) = self.heard.remove(&channel) else {
                        // It ended before the channel's home had answered.
                        assert_eq!(published, 0, "{ledger}: of a channel that the peer was never told about");
                        continue;
                    };
                    assert_eq!(delivered, heard.delivered.len() as u64, "{ledger}: {heard:?}");
                    assert!(heard.slow <= dropped && heard.conflated <= conflated, "{ledger}: {heard:?}");
                }
            }
            "gap" => {
                let channel = u32::try_from(number(&event["channel"])).unwrap();
                let [from, to, count] = ["from", "to", "count"].map(|field| number(&event[field]));
                let heard = self.heard.get_mut(&channel).expect("a gap of a channel that the peer knows");
                assert!(heard.start <= from && from <= to, "{event}: {heard:?}");
                assert!((1..=to - from + 1).contains(&count), "{event}");
                heard.spans.push((from, to));
                match event["reason"].as_str().unwrap() {
                    "slow" => heard.slow += count,
                    "conflated" | "rate" => heard.conflated += count,
                    "history" => {
                        heard.slow += count;
                        heard.history += count;
                    }
                    reason => panic!("{reason}"),
                }
            }
            "live" => {
                let channel = u32::try_from(number(&event["channel"])).unwrap();
                let heard = self.heard.get_mut(&channel).expect("a mark of a channel that the peer knows");
                assert!(heard.replay.take().is_some(), "a mark without a replay, or a second one: {event}");
                // Whatever is lost before it: nothing that is live came earlier.
                assert!(heard.last < number(&event["seq"]), "{event}: {heard:?}");
                heard.live = number(&event["seq"]);
            }
            "advertised" => {}
            "error" => assert_eq!(event["code"], "limit_exceeded", "{event}"),
            other => panic!("{other}: {event}"),
        }
    }

    /// A channel of a `subscribed`, or a new one: a subscription begins, or goes on with other options.
    fn begin(&mut self, entry: &Json) {
        let channel = u32::try_from(entry["channel"].as_u64().unwrap()).unwrap();
        let start = entry["seq"].as_u64().unwrap();
        let cursor = format!("{}:{}", entry["epoch"], start - 1);
        assert_eq!(entry["cursor"], *cursor, "{entry}");
        let replay = entry.get("replay").cloned();
        let name = NAMES.iter().position(|name| entry["name"] == **name).unwrap();
        if let Some(replay) = &replay {
            assert!(!self.heard.contains_key(&channel), "{entry}: a replay of what it receives already");
            let asked = self.wishes.get(&name).expect("a replay that nobody asked for");
            match (asked, replay["outcome"].as_str().unwrap()) {
                // It goes on where the peer was, whatever is gone.
                (Some(asked), "replayed" | "partial") => assert_eq!(cursor, *asked, "{entry}"),
                (None, "replayed" | "partial") | (_, "reset") => {}
                (_, other) => panic!("{other}"),
            }
        }
        let heard = self.heard.entry(channel).or_insert_with(|| Heard {
            start,
            last: start - 1,
            delivered: BTreeSet::new(),
            slow: 0,
            conflated: 0,
            spans: Vec::new(),
            partial: replay.as_ref().is_some_and(|replay| replay["outcome"] == "partial"),
            replay,
            history: 0,
            live: 0,
            epoch: u32::try_from(entry["epoch"].as_u64().unwrap()).unwrap(),
        });
        assert!(start >= heard.start, "{entry}: {heard:?}");
    }

    fn hear_frame(&mut self, payload: &[u8], published: &HashMap<u32, Vec<Known>>) {
        let frame = match self.codec {
            Codec::Protobuf => Frame::decode(payload).unwrap(),
            Codec::MessagePack => decode_frame_msgpack(payload).unwrap(),
            Codec::Json => decode_frame_json(std::str::from_utf8(payload).unwrap()).unwrap().frame,
        };
        let Some(heard) = self.heard.get_mut(&frame.channel) else {
            panic!("a frame of a channel that the peer was not told about: {frame:?}");
        };
        let samples: Vec<(u64, &Sample)> =
            frame.blocks.iter().flat_map(|b| b.samples.iter().map(|s| (b.source_ns, s))).collect();
        assert_eq!(samples.len(), usize::try_from(frame.count).unwrap(), "{frame:?}");
        assert!(frame.seq_deltas.is_empty() || frame.seq_deltas.len() == samples.len() - 1, "{frame:?}");
        let mut seq = frame.seq;
        for (index, (base, sample)) in samples.into_iter().enumerate() {
            if index > 0 {
                seq += u64::from(frame.seq_deltas.get(index - 1).copied().unwrap_or(1));
            }
            assert!(seq > heard.last, "{seq} after {}: {heard:?}", heard.last);
            assert!(heard.replay.is_some() || seq >= heard.live, "{seq} is of the past: {heard:?}");
            heard.last = seq;
            heard.delivered.insert(seq);
            let known = &published[&frame.channel][usize::try_from(seq).unwrap() - 1];
            assert_eq!(*known, known_of(base, sample), "sequence {seq}");
        }
        assert!(frame.blocks.iter().all(|block| block.received_ns <= frame.flushed_ns));
    }
}

fn known_of(base: u64, sample: &Sample) -> Known {
    let source_ns = base.saturating_add_signed(sample.source_delta_ns);
    Known { source_ns, value: sample.value.clone().unwrap() }
}

fn note(published: &mut HashMap<u32, Vec<Known>>, channel: ChannelId, block: &[u8]) {
    let block = Block::decode(block).unwrap();
    let samples = block.samples.iter().map(|sample| known_of(block.source_ns, sample));
    published.entry(channel.0).or_default().extend(samples);
}

fn id_of(router: &Router, name: &str) -> Option<ChannelId> {
    router.directory(|directory| directory.find(name)).map(|info| info.id)
}

fn home_of(router: &Router, name: &str) -> usize {
    let pattern = Pattern::parse(name, 255).unwrap();
    router.directory(|directory| {
        let found = directory.open_matching(&pattern, 1);
        let info = found.first().expect("a channel that is advertised");
        directory.release(info.id, Clock::new().now().at);
        info.home
    })
}

/// Small limits, so that short cases reach them.
fn small_limits(random: &mut fastrand::Rng) -> Config {
    let mut config = Config::default();
    config.outbox.data_bytes_max = [2_000, 4_000, 1 << 20][random.usize(..3)];
    config.outbox.data_frames_max = [1, 3, 8, 1_024][random.usize(..4)];
    config.batch.frame_bytes_max = [256, 1_000, 16 << 10][random.usize(..3)];
    config.batch.frame_samples_max = [4, 4_096][random.usize(..2)];
    config.history.bytes_max = [0, 1, 2_000, 256 << 10, 256 << 10][random.usize(..5)];
    config.history.age_max = Duration::from_millis([1, 30, 10_000][random.usize(..3)]);
    config.history.samples_max = [5, 20_000, 20_000][random.usize(..3)];
    config.history.total_bytes_max = [1_000, 3_000, 256 << 20, 256 << 20][random.usize(..4)];
    config
}

/// Runs the operations in a world that the seed chooses.
fn run(seed: u64, operations: &[Operation], start: Now) {
    let mut random = fastrand::Rng::with_seed(seed);
    let workers = [1, 1, 2, 3][random.usize(..4)];
    let mut world = World::new(workers, small_limits(&mut random), start);
    for operation in operations {
        world.run(operation);
    }
    world.settle();
    world.check_settled();
    // Everything ends, with final ledgers.
    for place in 0..world.connections.len() {
        for pattern in 0..PATTERNS.len() {
            world.run(&Operation::Unsubscribe { connection: place, pattern });
        }
    }
    world.settle();
    for connection in &world.connections {
        assert!(connection.heard.is_empty(), "{:?}", connection.heard);
    }
    while !world.connections.is_empty() {
        world.remove(0);
    }
    world.settle();
    for hub in &mut world.hubs {
        let (reply, mut answer) = oneshot::channel();
        hub.handle(ToWorker::List(reply), world.now);
        let listing = answer.try_recv().unwrap();
        assert!(listing.connections.is_empty());
        for row in listing.channels {
            let kept = usize::from(world.config.history.bytes_max > 0);
            assert_eq!((row.receivers, row.classes), (0, kept), "{row:?}: nobody is left");
        }
    }
}

thread_local! {
    static FAILURE: RefCell<String> = const { RefCell::new(String::new()) };
}

fn failure(seed: u64, operations: &[Operation], start: Now) -> Option<String> {
    catch_unwind(AssertUnwindSafe(|| run(seed, operations, start)))
        .is_err()
        .then(|| FAILURE.with_borrow(String::clone))
}

/// Leaves out whatever the failure does not need.
fn shortest(seed: u64, mut operations: Vec<Operation>, start: Now) -> Vec<Operation> {
    let mut chunk = operations.len().div_ceil(2);
    while chunk > 0 {
        let mut at = 0;
        while at < operations.len() {
            let mut shorter = operations.clone();
            shorter.drain(at..(at + chunk).min(operations.len()));
            if failure(seed, &shorter, start).is_some() {
                operations = shorter;
            } else {
                at += chunk;
            }
        }
        chunk /= 2;
    }
    operations
}

#[test]
fn every_sample_is_delivered_or_told() {
    let start = Clock::new().now();
    let loud = std::panic::take_hook();
    std::panic::set_hook(Box::new(|panic| {
        FAILURE.with_borrow_mut(|failure| *failure = panic.to_string());
    }));
    let failed = seeds(CASES).find_map(|seed| {
        let mut random = fastrand::Rng::with_seed(seed);
        let palette = Palette::new(&mut random);
        // Connections to begin with, so that short cases get somewhere.
        let mut operations = vec![Operation::Connect { worker: 0, codec: palette.codecs[0] }];
        operations.push(Operation::Connect { worker: 1, codec: palette.codecs[1] });
        operations.push(Operation::Advertise { connection: 0, name: random.usize(..palette.names) });
        let count = random.usize(1..=OPERATIONS_MAX);
        operations.extend((0..count).map(|_| operation(&mut random, &palette)));
        failure(seed, &operations, start)?;
        let operations = shortest(seed, operations, start);
        let message = failure(seed, &operations, start);
        Some((seed, operations, message))
    });
    std::panic::set_hook(loud);
    if let Some((seed, operations, message)) = failed {
        let message = message.unwrap_or_else(|| "not every time: it depends on the order of a map".into());
        panic!("seed {seed}: {message}\n{operations:#?}");
    }
}

#[test]
fn frames_lost_between_workers_are_told() {
    let plain =
        DeliveryOptions { policy: Policy::DropOldest, max_delay_ms: 0, max_age_ms: 1_000, max_rate_hz: None };
    let latest = DeliveryOptions { policy: Policy::Latest, ..plain };
    // The class that loses frames, and the one that is chosen afterwards, before the home has said so.
    let rows = [(plain, None), (latest, None), (plain, Some(latest)), (latest, Some(plain))];
    for (delivery, then) in rows {
        let mut world = World::new(2, Config::default(), Clock::new().now());
        world.connect(0, Codec::Protobuf);
        let name = (0..NAMES.len())
            .find(|name| {
                world.run(&Operation::Advertise { connection: 0, name: *name });
                home_of(&world.router, NAMES[*name]) == 0
            })
            .expect("a channel whose home is the publisher's worker");
        world.settle();
        world.connect(1, Codec::Protobuf);
        let pattern = PATTERNS.iter().position(|pattern| *pattern == NAMES[name]).expect("a pattern for it");
        world.run(&Operation::Subscribe { connection: 1, pattern, delivery });
        world.settle();
        // The other worker takes nothing from its inbox.
        let lost = 5;
        for _ in 0..FRAME_CREDIT_KIB + lost {
            world.publish(0, name, 1, 0);
        }
        if let Some(delivery) = then {
            world.run(&Operation::Subscribe { connection: 1, pattern, delivery });
        }
        world.settle();
        world.check_settled();
        let ledger = world.connections[1].handle.outbox().borrow().ledgers().next().unwrap();
        assert_eq!(
            ledger.published,
            (FRAME_CREDIT_KIB + lost) as u64,
            "{delivery:?}: what was lost is known"
        );
    }
}

/// 1,000 connections of every codec come back at once, on three workers, while their channel goes on: each gets all that it has
/// missed, once, and what comes then.
#[test]
fn a_thousand_who_come_back_at_once_get_everything() {
    const RETURNING: usize = 1_000;
    let delivery =
        |policy| DeliveryOptions { policy, max_delay_ms: 10, max_age_ms: 60_000, max_rate_hz: None };
    let mut world = World::new(3, Config::default(), Clock::new().now());
    world.connect(0, Codec::Protobuf);
    world.run(&Operation::Advertise { connection: 0, name: 0 });
    world.settle();
    let publish = |world: &mut World, messages: usize| {
        for _ in 0..messages {
            world.publish(0, 0, 4, 400);
            world.now = world.now.plus(Duration::from_millis(3));
            for worker in 0..3 {
                while world.pump(worker) {}
                world.hubs[worker].poll_due(world.now);
            }
        }
    };
    publish(&mut world, 200);
    // Everyone was somewhere else when the connection was lost.
    let id = id_of(&world.router, NAMES[0]).expect("a channel");
    let epoch = world.router.directory(|directory| directory.find(NAMES[0])).expect("a channel").epoch;
    let had: Vec<u64> = (0..RETURNING as u64).map(|n| n * 7 % 700).collect();
    let pattern = Pattern::parse(NAMES[0], 255).unwrap();
    for (place, had) in had.iter().enumerate() {
        let codec = Codec::ALL[place % 3];
        let policy = if place % 2 == 0 { Policy::DropOldest } else { Policy::Disconnect };
        world.enter(place % 3, codec);
        let connection = &mut world.connections[place + 1];
        connection.wishes.insert(0, Some(format!("{epoch}:{had}")));
        let past = Past::Since([(NAMES[0].into(), format!("{epoch}:{had}").parse().unwrap())].into());
        let (worker, member) = (connection.worker, connection.member);
        world.hubs[worker]
            .subscribe(member, None, &pattern, delivery(policy), Some(past), world.now)
            .unwrap();
    }
    let caught_up =
        |world: &World| world.connections[1..].iter().all(|c| c.heard.get(&id.0).is_some_and(|h| h.live > 0));
    for round in 0.. {
        assert!(round < 20_000, "a replay that does not end");
        if caught_up(&world) {
            break;
        }
        // Of what is published meanwhile there is less than what the history keeps.
        if round % 10 == 0 && round < 1_000 {
            publish(&mut world, 1);
        }
        world.now = world.now.plus(Duration::from_millis(1));
        for worker in 0..3 {
            world.hubs[worker].poll_due(world.now);
            while world.pump(worker) {}
        }
        for place in 1..world.connections.len() {
            world.read(place, usize::MAX);
        }
        let ended = world.connections.iter().find_map(|connection| connection.handle.ending());
        assert_eq!(ended, None, "round {round}");
    }
    publish(&mut world, 3);
    world.settle();
    world.check_settled();
    let newest = world.published[&id.0].len() as u64;
    for (connection, had) in world.connections[1..].iter().zip(had) {
        let heard = &connection.heard[&id.0];
        assert_eq!((heard.start, heard.slow, heard.conflated), (had + 1, 0, 0), "{:?}", heard.spans);
        assert_eq!(heard.delivered.len() as u64, newest - had);
    }
}

/// Who gets samples at once is ahead of the history, whose batch is still open: to come back must not bring them again.
#[test]
fn a_cursor_may_be_ahead_of_what_is_kept() {
    let at_once =
        DeliveryOptions { policy: Policy::DropOldest, max_delay_ms: 0, max_age_ms: 1_000, max_rate_hz: None };
    for then in [at_once, DeliveryOptions { max_delay_ms: 10, ..at_once }] {
        for codec in Codec::ALL {
            let mut world = World::new(1, Config::default(), Clock::new().now());
            world.connect(0, Codec::Protobuf);
            world.run(&Operation::Advertise { connection: 0, name: 0 });
            world.connect(0, codec);
            world.run(&Operation::Subscribe { connection: 1, pattern: 0, delivery: at_once });
            for _ in 0..3 {
                world.publish(0, 0, 2, 0);
            }
            world.read(1, usize::MAX);
            assert_eq!(world.connections[1].heard.values().next().unwrap().last, 6);
            world.run(&Operation::Reconnect { connection: 1, worker: 0, pattern: 0, delivery: then });
            world.hubs[0].poll_due(world.now);
            world.publish(0, 0, 2, 0);
            world.settle();
            world.check_settled();
            let heard = world.connections[1].heard.values().next().unwrap();
            assert_eq!((heard.start, &heard.delivered), (7, &[7, 8].into()), "{codec:?} {then:?}");
        }
    }
}

/// A replay that leaves samples out keeps the newest, as a live stream does.
#[test]
fn a_thinned_replay_ends_with_the_newest_sample() {
    let plain = DeliveryOptions {
        policy: Policy::DropOldest,
        max_delay_ms: 10,
        max_age_ms: 1_000,
        max_rate_hz: None,
    };
    let rows = [
        (DeliveryOptions { max_rate_hz: Some(10.0), ..plain }, [1, 11, 21, 30].into()),
        (DeliveryOptions { policy: Policy::Latest, ..plain }, [30].into()),
    ];
    for (delivery, expected) in rows {
        for codec in Codec::ALL {
            let mut world = World::new(1, Config::default(), Clock::new().now());
            world.connect(0, Codec::Protobuf);
            world.run(&Operation::Advertise { connection: 0, name: 0 });
            for _ in 0..30 {
                world.publish(0, 0, 1, 0);
                world.now = world.now.plus(Duration::from_millis(10));
                world.hubs[0].poll_due(world.now);
            }
            world.connect(0, codec);
            world.resume(1, 0, delivery, Wish::Last(100));
            world.settle();
            world.check_settled();
            let heard = world.connections[1].heard.values().next().unwrap();
            assert_eq!((&heard.delivered, heard.live), (&expected, 31), "{codec:?} {delivery:?}");
        }
    }
}
