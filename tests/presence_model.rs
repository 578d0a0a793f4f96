//! Who is on a channel, against what each connection was told that it receives: seeded random operations on real hubs, alone and
//! in threes, whose inboxes are pumped in random turns, on one server or on one of several, whose others are simulated. Everybody may watch, and follows the rule of docs/PROTOCOL.md with nothing
//! but what it was sent; a watcher that comes to a list that cannot be is a failure at once.
//!
//! `TIDEWIRE_MODEL_CASES` sets how many cases run, `TIDEWIRE_MODEL_SEED` with which seed the first one begins.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value as Json;
use tidewire::auth::revocations::Revoked;
use tidewire::clock::{Clock, Now};
use tidewire::config::{Config, PRESENCE_MEMBERS_MAX};
use tidewire::hub::Hub;
use tidewire::hub::router::{AboutPresence, Arrival, Outlet, PresenceAcross, Router, ToWorker, Waiter};
use tidewire::outbox::Take;
use tidewire::outbox::handle::OutboxHandle;
use tidewire::pattern::Pattern;
use tidewire::presence::{Part, teller_of};
use tidewire::session::DeliveryOptions;
use tidewire::wire::Codec;
use tidewire::wire::control::{Policy, Present};
use tidewire::wire::relay::{NodeId, Payload};
use tokio::sync::mpsc;

mod model;
#[path = "model/seeds.rs"]
mod seeds;

use model::{new_member, split_message};
use seeds::seeds;

const CASES: u64 = 600;
const OPERATIONS_MAX: usize = 120;
const NAMES: [&str; 3] = ["a.x", "a.y", "b"];
const PATTERNS: [&str; 12] = [
    "a.x",
    "a.y",
    "b",
    "a.*",
    "*",
    ">",
    "$presence.a.x",
    "$presence.a.y",
    "$presence.b",
    "$presence.a.*",
    "$presence.*",
    "$presence.>",
];

/// A connection: its server, nothing for the one that is asked, and its number there.
type Who = (String, u64);

fn who(value: &Json) -> Who {
    (value["server"].as_str().unwrap_or_default().to_owned(), number(&value["connection"]))
}

/// The way to other servers, and what those know and want.
#[derive(Debug, Default)]
struct Across {
    said: Mutex<VecDeque<ToOthers>>,
}

#[derive(Debug)]
enum ToOthers {
    /// Nobody else publishes anything: whoever waits need not.
    Arrived(Waiter),
    Presence(PresenceAcross),
}

impl Across {
    fn push(&self, message: ToOthers) {
        self.said.lock().unwrap().push_back(message);
    }
}

impl Outlet for Across {
    fn node(&self) -> NodeId {
        NodeId(1)
    }

    fn crosses(&self, name: &str) -> bool {
        !name.starts_with('$')
    }

    fn publish(&self, _: &str, _: Payload) {}

    fn want(&self, _: &Pattern, waiter: Waiter) {
        self.push(ToOthers::Arrived(waiter));
    }

    fn unwant(&self, _: &Pattern) {}

    fn tell_opened(&self, waiter: Waiter) {
        self.push(ToOthers::Arrived(waiter));
    }

    fn note_changed(&self) {}

    fn tell_revoked(&self, _: &Revoked, _: u64) {}

    fn presence(&self, across: PresenceAcross) {
        self.push(ToOthers::Presence(across));
    }
}

/// Other servers, as far as one name goes.
#[derive(Debug, Default)]
struct Others {
    there: BTreeSet<(u64, u64)>,
    /// This server wants to hear of changes, and has asked.
    watched: bool,
    asked: bool,
    /// They want to hear of changes, wait for an answer, and know this.
    lent: bool,
    asking: bool,
    /// They ask again after that: what they are told first may be from before they wanted to hear of changes.
    again: bool,
    known: Option<(usize, BTreeSet<u64>)>,
}

/// What a watcher makes of `$presence.NAME`.
#[derive(Debug)]
struct Follower {
    epoch: u64,
    /// The events that it has heard.
    events: BTreeMap<u64, Json>,
    /// The connections, as of a sequence.
    list: Option<(u64, BTreeSet<Who>)>,
    /// It has asked since it was told of the channel: an answer to an older question may be from before that.
    asks: bool,
}

impl Follower {
    /// Takes what the server has answered, and the events that have come already and are later.
    fn take_answer(&mut self, answer: &Json) {
        if !std::mem::take(&mut self.asks) {
            return;
        }
        self.list = None;
        let Some(members) = answer.get("members") else { return };
        assert_eq!(answer["epoch"], self.epoch, "{answer}");
        let members: BTreeSet<Who> = members.as_array().unwrap().iter().map(who).collect();
        assert_eq!(members.len() as u64, number(&answer["count"]), "{answer}: each once");
        self.list = Some((number(&answer["seq"]), members));
        self.advance();
    }

    fn advance(&mut self) {
        while let Some((seq, members)) = &mut self.list {
            let Some(event) = self.events.get(&(*seq + 1)) else {
                let beyond = self.events.range(*seq + 1..).next();
                assert!(beyond.is_none(), "a hole without a loss: {beyond:?} after {seq}");
                return;
            };
            *seq += 1;
            let kind = event["event"].as_str().unwrap();
            if kind == "count" {
                self.list = None;
                return;
            }
            let changed = match kind {
                "join" => members.insert(who(event)),
                "leave" => members.remove(&who(event)),
                other => panic!("{other}: {event}"),
            };
            assert!(changed, "{event} changes nothing in {members:?}");
            assert_eq!(number(&event["count"]), members.len() as u64, "{event}: {members:?}");
        }
    }
}

#[derive(Debug)]
struct Connection {
    id: u64,
    worker: usize,
    member: usize,
    handle: Rc<OutboxHandle>,
    /// Names of the channels that it receives, by number.
    receives: BTreeMap<u64, String>,
    subscribed: BTreeSet<String>,
    follows: BTreeMap<String, Follower>,
    /// The last answer for each name.
    answers: BTreeMap<String, Json>,
    crowd: bool,
}

struct World {
    config: Arc<Config>,
    hubs: Vec<Hub>,
    inboxes: Vec<mpsc::Receiver<ToWorker>>,
    now: Now,
    connections: Vec<Connection>,
    next_connection: u64,
    /// Names of channels that there are.
    opened: BTreeSet<String>,
    router: Arc<Router>,
    across: Option<Arc<Across>>,
    others: BTreeMap<&'static str, Others>,
}

fn delivery() -> DeliveryOptions {
    DeliveryOptions { policy: Policy::DropOldest, max_delay_ms: 10, max_age_ms: 60_000, max_rate_hz: None }
}

fn number(value: &Json) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value}"))
}

impl World {
    fn new(workers: usize) -> Self {
        let config = Arc::new(Config::default());
        let (router, inboxes) = Router::new(workers, config.channel.channels_total_max);
        let hubs =
            (0..workers).map(|worker| Hub::new(worker, Arc::clone(&config), Arc::clone(&router))).collect();
        let now = Clock::new().now();
        Self {
            config,
            hubs,
            inboxes,
            now,
            connections: Vec::new(),
            next_connection: 1,
            opened: BTreeSet::new(),
            router,
            across: None,
            others: BTreeMap::new(),
        }
    }

    /// One server of several.
    fn of_several(workers: usize) -> Self {
        let mut world = Self::new(workers);
        let across = Arc::new(Across::default());
        let outlet: Arc<dyn Outlet> = across.clone();
        world.router.set_outlet(outlet);
        world.across = Some(across);
        world.others = NAMES.map(|name| (name, Others::default())).into();
        world
    }

    fn tell_home(&self, name: &str, about: AboutPresence) {
        self.router.send(self.router.home_of(&teller_of(name)), ToWorker::Presence(about));
    }

    /// What other servers know of a name, and the answer if there is a question.
    fn tell_elsewhere(&self, name: &str, partial: Option<bool>) {
        let there = &self.others[name].there;
        let present = |(server, connection): &(u64, u64)| Present {
            server: Some(NodeId(*server)),
            connection: *connection,
            user: None,
        };
        let part = Part::of(there.len(), there.iter().map(present));
        self.tell_home(
            name,
            AboutPresence::Elsewhere { name: name.into(), part, partial, under_way: Arc::default() },
        );
    }

    /// Other servers take the next that they are told.
    fn pump_across(&mut self) -> bool {
        let message = self.across.as_ref().and_then(|across| across.said.lock().unwrap().pop_front());
        let across = match message {
            None => return false,
            Some(ToOthers::Arrived(waiter)) => {
                self.router.pass_on(Arrival { passed: 0, waiter });
                return true;
            }
            Some(ToOthers::Presence(across)) => across,
        };
        match across {
            PresenceAcross::Ask(name) => {
                let others = self.others.get_mut(&*name).unwrap();
                assert!(!std::mem::replace(&mut others.asked, true), "{name}: one question at a time");
            }
            PresenceAcross::Watch(name) => {
                self.others.get_mut(&*name).unwrap().watched = true;
                self.tell_elsewhere(&name, None);
            }
            PresenceAcross::Unwatch(name) => self.others.get_mut(&*name).unwrap().watched = false,
            PresenceAcross::Said(name, part) => {
                let others = self.others.get_mut(&*name).unwrap();
                assert!(std::mem::take(&mut others.asking), "{name}: nobody has asked");
                let members = part.members.iter().flatten();
                assert!(members.clone().all(|who| who.server.is_none()), "{part:?}");
                others.known = Some((part.count, members.map(|who| who.connection).collect()));
                if std::mem::take(&mut others.again) {
                    others.known = None;
                    self.ask_here(&name);
                }
            }
            PresenceAcross::Changed(name, under_way) => {
                drop(under_way);
                self.others.get_mut(&*name).unwrap().known = None;
            }
            PresenceAcross::Nobody => panic!("this server does not end"),
        }
        true
    }

    /// The other servers do something.
    fn step_across(&mut self, name: &'static str, random: &mut fastrand::Rng) {
        let Some(others) = self.others.get_mut(name) else { return };
        match random.u8(..10) {
            0..4 => {
                let who = (random.u64(2..4), random.u64(1..4));
                if !others.there.remove(&who) {
                    others.there.insert(who);
                }
                if others.watched {
                    self.tell_elsewhere(name, None);
                }
            }
            4 => {
                others.there = if others.there.len() > 10 {
                    BTreeSet::new()
                } else {
                    (0..PRESENCE_MEMBERS_MAX as u64 + 1).map(|connection| (9, connection)).collect()
                };
                if others.watched {
                    self.tell_elsewhere(name, None);
                }
            }
            5..7 if std::mem::take(&mut others.asked) => self.tell_elsewhere(name, Some(random.bool())),
            7 => {
                others.lent = !others.lent;
                others.known = None;
                others.again = others.asking;
                let any = others.lent;
                self.tell_home(name, AboutPresence::Lend { name: name.into(), any });
                self.ask_here(name);
            }
            _ => self.ask_here(name),
        }
    }

    /// Other servers ask about this one, unless they are being answered.
    fn ask_here(&mut self, name: &str) {
        if !std::mem::replace(&mut self.others.get_mut(name).unwrap().asking, true) {
            self.tell_home(name, AboutPresence::AskForServers { name: name.into() });
        }
    }

    fn connect(&mut self, worker: usize, user: Option<&str>) -> usize {
        let worker = worker % self.hubs.len();
        let id = self.next_connection;
        self.next_connection += 1;
        let (new, handle) = new_member(&self.config, id, Codec::Json, user);
        let member = self.hubs[worker].add_member(new, self.now);
        self.connections.push(Connection {
            id,
            worker,
            member,
            handle,
            receives: BTreeMap::new(),
            subscribed: BTreeSet::new(),
            follows: BTreeMap::new(),
            answers: BTreeMap::new(),
            crowd: false,
        });
        self.connections.len() - 1
    }

    fn remove(&mut self, place: usize) {
        let gone = self.connections.remove(place);
        self.hubs[gone.worker].remove_member(gone.member, self.now);
    }

    fn subscribe(&mut self, place: usize, pattern: &str) {
        let Connection { worker, member, .. } = self.connections[place];
        self.connections[place].subscribed.insert(pattern.to_owned());
        let pattern = Pattern::parse(pattern, 255).unwrap();
        if pattern.is_literal() {
            self.opened.insert(pattern.as_str().to_owned());
        }
        self.hubs[worker].subscribe(member, None, &pattern, delivery(), None, self.now).unwrap();
    }

    fn unsubscribe(&mut self, place: usize, pattern: &str) {
        let Connection { worker, member, .. } = self.connections[place];
        self.connections[place].subscribed.remove(pattern);
        let pattern = Pattern::parse(pattern, 255).unwrap();
        // Not subscribed is an answer like any other.
        let _ = self.hubs[worker].unsubscribe(member, None, &pattern, self.now);
    }

    fn advertise(&mut self, place: usize, name: &str) {
        let Connection { worker, member, .. } = self.connections[place];
        self.opened.insert(name.to_owned());
        self.hubs[worker].advertise(member, None, name, self.now).unwrap();
    }

    fn ask(&mut self, place: usize, name: &str) {
        let Connection { worker, member, .. } = self.connections[place];
        let this = &mut self.connections[place];
        // What it has been sent, it knows.
        this.read(self.now);
        this.answers.remove(name);
        if let Some(follower) = this.follows.get_mut(name) {
            follower.asks = true;
        }
        self.hubs[worker].presence(member, None, name).unwrap();
    }

    fn pump(&mut self, worker: usize) -> bool {
        let Ok(message) = self.inboxes[worker].try_recv() else { return false };
        self.hubs[worker].handle(message, self.now);
        true
    }

    fn poll(&mut self, worker: usize) {
        self.hubs[worker].poll_due(self.now);
    }

    /// Everybody reads all that there is.
    fn read_all(&mut self) {
        for connection in &mut self.connections {
            connection.read(self.now);
        }
    }

    /// Nothing is under way any more, and a second has passed for counts that wait.
    fn settle(&mut self) {
        for _ in 0..25 {
            loop {
                let moved = (0..self.hubs.len()).any(|worker| self.pump(worker)) || self.pump_across();
                let asked = self
                    .others
                    .iter_mut()
                    .filter_map(|(name, others)| std::mem::take(&mut others.asked).then_some(*name));
                let asked: Vec<_> = asked.collect();
                asked.iter().for_each(|name| self.tell_elsewhere(name, Some(false)));
                if !moved && asked.is_empty() {
                    break;
                }
            }
            self.now = self.now.plus(Duration::from_millis(100));
            for worker in 0..self.hubs.len() {
                self.hubs[worker].tick(self.now);
                self.poll(worker);
            }
            self.read_all();
        }
        assert!(self.inboxes.iter().all(mpsc::Receiver::is_empty), "workers never stop to talk");
        assert!(self.connections.iter().all(|c| !c.handle.has_unanswered()), "a request without an answer");
    }

    /// Who receives a channel, by what each was told.
    fn on(&self, name: &str) -> BTreeSet<Who> {
        let here = self.here(name).into_iter().map(|connection| (String::new(), connection));
        let there = self.others.get(name).into_iter().flat_map(|others| &others.there);
        here.chain(there.map(|(server, connection)| (NodeId(*server).to_string(), *connection))).collect()
    }

    /// The same without those of other servers.
    fn here(&self, name: &str) -> BTreeSet<u64> {
        let receives = |c: &&Connection| c.receives.values().any(|received| received == name);
        self.connections.iter().filter(receives).map(|connection| connection.id).collect()
    }

    /// Other servers know who is here, or know that they do not.
    fn check_lent(&self, name: &str) {
        let Some(others) = self.others.get(name) else { return };
        assert!(!others.asking, "{name}: a question without an answer");
        if let Some((count, members)) = &others.known
            && others.lent
        {
            let here = self.here(name);
            let said = (here.len(), if here.len() > PRESENCE_MEMBERS_MAX { BTreeSet::new() } else { here });
            assert_eq!((*count, members.clone()), said, "{name}: they were not told");
        }
    }

    /// Everybody who watches has the list, or knows that there are too many, and so does who asks.
    fn check_settled(&mut self) {
        let stranger = self.connect(0, None);
        for name in NAMES {
            self.ask(stranger, name);
        }
        for place in 0..self.connections.len() {
            let watched: Vec<_> = self.connections[place].follows.iter().collect();
            let unknown: Vec<String> =
                watched.iter().filter(|(_, it)| it.list.is_none()).map(|(name, _)| (*name).clone()).collect();
            for name in unknown {
                self.ask(place, &name);
            }
        }
        self.settle();
        for name in NAMES {
            let on = self.on(name);
            let answer = &self.connections[stranger].answers[name];
            assert_eq!(number(&answer["count"]), on.len() as u64, "{answer}");
            assert_eq!(answer.get("members").is_some(), on.len() <= PRESENCE_MEMBERS_MAX, "{answer}");
            if let Some(members) = answer.get("members") {
                let members: Vec<_> = members.as_array().unwrap().iter().map(who).collect();
                assert_eq!(members, on.iter().cloned().collect::<Vec<_>>(), "{name}");
            }
            assert_eq!(answer.get("partial"), None, "{answer}");
            self.check_lent(name);
            for connection in &self.connections {
                let teller = format!("$presence.{name}");
                let watches = connection.subscribed.iter().any(|text| {
                    let exists = *text == teller || self.opened.contains(name);
                    exists && Pattern::parse(text, 255).unwrap().matches(&teller)
                });
                // One that it had by name goes on by pattern, even if there is nothing to tell of.
                let follows = connection.follows.contains_key(name);
                assert!(follows || !watches, "{name}: {connection:?}");
                let Some(follower) = connection.follows.get(name) else { continue };
                match &follower.list {
                    Some((_, members)) => assert_eq!(*members, on, "{name}: {follower:?}"),
                    None => {
                        assert!(on.len() > PRESENCE_MEMBERS_MAX, "{name}: no list of {}", on.len());
                        if let Some((_, event)) = follower.events.last_key_value() {
                            assert_eq!(number(&event["count"]), on.len() as u64, "{event}");
                        }
                    }
                }
            }
        }
        self.remove(stranger);
    }
}

impl Connection {
    fn read(&mut self, now: Now) {
        let mut outbox = self.handle.outbox().borrow_mut();
        let mut stream = Vec::new();
        loop {
            outbox.poll(now).unwrap();
            let before = stream.len();
            outbox.gather(|message| {
                stream.extend_from_slice(message);
                Take::More
            });
            if stream.len() == before {
                break;
            }
            outbox.advance(stream.len() - before, |_| ());
        }
        drop(outbox);
        let mut rest = &stream[..];
        while let Some((_, payload, behind)) = split_message(rest) {
            rest = behind;
            self.hear(&serde_json::from_slice(payload).unwrap());
        }
        assert!(rest.is_empty());
    }

    fn hear(&mut self, message: &Json) {
        match message["type"].as_str().unwrap() {
            "subscribed" => {
                message["channels"].as_array().unwrap().iter().for_each(|entry| self.begin(entry))
            }
            "channel" => self.begin(message),
            "unsubscribed" => {
                for ledger in message["channels"].as_array().unwrap() {
                    // It may have ended before the peer was told of it.
                    let Some(name) = self.receives.remove(&number(&ledger["channel"])) else { continue };
                    if let Some(name) = name.strip_prefix("$presence.") {
                        self.follows.remove(name);
                    }
                }
            }
            "presence" => {
                let name = message["channel"].as_str().unwrap().to_owned();
                if let Some(follower) = self.follows.get_mut(&name) {
                    follower.take_answer(message);
                }
                self.answers.insert(name, message.clone());
            }
            "frame" => {
                let name = message["name"].as_str().unwrap().strip_prefix("$presence.").unwrap();
                let follower = self.follows.get_mut(name).unwrap();
                assert_eq!(message["epoch"], follower.epoch);
                let blocks = message["blocks"].as_array().unwrap();
                let samples = blocks.iter().flat_map(|block| block["samples"].as_array().unwrap());
                for (seq, sample) in (number(&message["seq"])..).zip(samples) {
                    let event = serde_json::from_str(sample["text"].as_str().unwrap()).unwrap();
                    follower.events.insert(seq, event);
                }
                follower.advance();
            }
            "advertised" => {}
            other => panic!("{other}: {message}"),
        }
    }

    fn begin(&mut self, entry: &Json) {
        let name = entry["name"].as_str().unwrap();
        self.receives.insert(number(&entry["channel"]), name.to_owned());
        if let Some(name) = name.strip_prefix("$presence.") {
            let epoch = number(&entry["epoch"]);
            let new = || Follower { epoch, events: BTreeMap::new(), list: None, asks: false };
            assert_eq!(self.follows.entry(name.to_owned()).or_insert_with(new).epoch, epoch);
        }
    }
}

/// One case.
fn run(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let workers = [1, 2, 3][random.usize(..3)];
    let mut world = if random.bool() { World::new(workers) } else { World::of_several(workers) };
    let workers = world.hubs.len();
    let patterns = random.usize(6..=PATTERNS.len());
    for worker in 0..3 {
        world.connect(worker, Some("alice").filter(|_| worker == 1));
    }
    for _ in 0..random.usize(1..=OPERATIONS_MAX) {
        let worker = random.usize(..workers);
        let name = NAMES[random.usize(..NAMES.len())];
        let pattern = PATTERNS[random.usize(..patterns)];
        let place = random.usize(..world.connections.len());
        // The inbound loop reads no further while a request is unanswered.
        let may_ask = !world.connections[place].handle.has_unanswered();
        match random.usize(..100) {
            0..5 if world.connections.len() < 8 => drop(world.connect(worker, None)),
            5..9 if world.connections.len() > 1 => world.remove(place),
            9..30 if may_ask => world.subscribe(place, pattern),
            30..42 if may_ask => world.unsubscribe(place, pattern),
            42..47 if may_ask => world.advertise(place, name),
            47..58 if may_ask => world.ask(place, name),
            58..60 if seed.is_multiple_of(4) && !world.connections.iter().any(|c| c.crowd) => {
                let crowd = random.usize(PRESENCE_MEMBERS_MAX - 3..PRESENCE_MEMBERS_MAX + 8);
                for n in 0..crowd {
                    let place = world.connect(n, None);
                    world.connections[place].crowd = true;
                    world.subscribe(place, name);
                }
            }
            58..60 => {
                for place in (0..world.connections.len()).rev() {
                    if world.connections[place].crowd && random.u8(..4) > 0 {
                        world.remove(place);
                    }
                }
            }
            60..68 => world.now = world.now.plus(Duration::from_millis([1, 10, 100, 900][random.usize(..4)])),
            68..76 => world.hubs[worker].tick(world.now),
            76..80 => world.poll(worker),
            80..83 => world.read_all(),
            83..88 if world.across.is_some() => world.step_across(name, &mut random),
            88..92 if world.across.is_some() => drop(world.pump_across()),
            _ => {
                for _ in 0..[1, 1, 2, 5, 100][random.usize(..5)] {
                    if !world.pump(worker) {
                        break;
                    }
                }
            }
        }
        if world.connections.is_empty() {
            world.connect(worker, None);
        }
    }
    world.settle();
    world.check_settled();
    while !world.connections.is_empty() {
        world.remove(0);
    }
    world.settle();
    world.check_settled();
    for (name, others) in &mut world.others {
        if std::mem::take(&mut others.lent) {
            let about = AboutPresence::Lend { name: (*name).into(), any: false };
            world.router.send(world.router.home_of(&teller_of(name)), ToWorker::Presence(about));
        }
    }
    world.settle();
    assert!(world.others.values().all(|others| !others.watched), "nobody watches any more");
}

#[test]
fn a_list_and_the_events_after_it_are_the_truth() {
    for seed in seeds(CASES) {
        let outcome = std::panic::catch_unwind(|| run(seed));
        if let Err(panic) = outcome {
            println!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// The events that a connection has heard of a channel since the last time.
fn heard(world: &mut World, watcher: usize, name: &str) -> Vec<Json> {
    world.connections[watcher].follows.get_mut(name).map_or_else(Vec::new, |follower| {
        let events = std::mem::take(&mut follower.events);
        events.into_values().collect()
    })
}

/// Passes what is in the inboxes on; returns how many messages that were.
fn pump_all(world: &mut World) -> usize {
    let mut messages = 0;
    while (0..world.hubs.len()).any(|worker| world.pump(worker)) {
        messages += 1;
    }
    messages
}

/// A tick of every worker, and what follows from it.
fn tick(world: &mut World) -> usize {
    world.now = world.now.plus(Duration::from_millis(100));
    for worker in 0..world.hubs.len() {
        world.hubs[worker].tick(world.now);
    }
    let messages = pump_all(world);
    for worker in 0..world.hubs.len() {
        world.poll(worker);
    }
    pump_all(world);
    world.read_all();
    messages
}

#[test]
fn what_a_crowd_does_costs_a_count_a_second() {
    const CROWD: usize = 10_000;
    let mut world = World::new(3);
    let watcher = world.connect(0, None);
    world.subscribe(watcher, "$presence.crowd");
    world.settle();
    assert!(heard(&mut world, watcher, "crowd").is_empty(), "nobody is there");
    for n in 0..CROWD {
        let place = world.connect(n, None);
        world.subscribe(place, "crowd");
    }
    pump_all(&mut world);
    assert!(tick(&mut world) <= 4, "each worker says it once, and the watcher's gets a frame");
    // Two workers are over the size at once, and the third does not matter.
    let events = heard(&mut world, watcher, "crowd");
    assert!((1..=2).contains(&events.len()) && events[0]["event"] == "count", "{events:?}");
    for _ in 0..10 {
        tick(&mut world);
    }
    let last = heard(&mut world, watcher, "crowd").pop().unwrap_or_else(|| events[0].clone());
    assert_eq!(number(&last["count"]), CROWD as u64, "{last}");

    // All ask at once: three workers are asked twice, not ten thousand times.
    for place in 1..world.connections.len() {
        world.ask(place, "crowd");
    }
    let messages = pump_all(&mut world);
    assert!(messages <= 2 * CROWD + 2 * 3 * 2, "{messages} messages");
    world.read_all();
    assert!(world.connections[1..].iter().all(|c| c.answers["crowd"]["count"] == CROWD));
    assert!(world.connections[1..].iter().all(|c| c.answers["crowd"].get("members").is_none()));

    // They go, some in each tick.
    let mut counts = Vec::new();
    while world.connections.len() > 51 {
        for _ in 0..199 {
            world.remove(world.connections.len() - 1);
        }
        tick(&mut world);
        let events = heard(&mut world, watcher, "crowd");
        assert!(events.iter().all(|event| event["event"] == "count"), "{events:?}");
        counts.extend(events);
    }
    assert!((4..=6).contains(&counts.len()), "five seconds: {counts:?}");
    // A list would be good only until the count that is still to come.
    world.ask(watcher, "crowd");
    pump_all(&mut world);
    world.read_all();
    let answer = &world.connections[watcher].answers["crowd"];
    assert_eq!((number(&answer["count"]), answer.get("members")), (50, None));
    for _ in 0..10 {
        tick(&mut world);
    }
    let events = heard(&mut world, watcher, "crowd");
    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(number(&events[0]["count"]), 50);
    world.check_settled();
}

#[test]
fn who_comes_and_goes_within_a_tick_was_never_there() {
    let mut world = World::new(2);
    let watcher = world.connect(0, None);
    world.subscribe(watcher, "$presence.a");
    let stays = world.connect(1, Some("alice"));
    world.subscribe(stays, "a");
    world.settle();
    let [join] = &heard(&mut world, watcher, "a")[..] else { panic!("one has come") };
    assert_eq!(join["event"], "join");
    assert_eq!((&join["user"], number(&join["connection"])), (&Json::from("alice"), 2));
    for _ in 0..5 {
        let place = world.connect(1, None);
        world.subscribe(place, "a");
        pump_all(&mut world);
        world.remove(place);
        world.unsubscribe(stays, "a");
        world.subscribe(stays, "a");
        pump_all(&mut world);
        assert!(tick(&mut world) <= 1, "what has changed is said, and is nothing");
        assert_eq!(heard(&mut world, watcher, "a"), [Json::Null; 0]);
    }
    world.check_settled();
}

#[test]
fn nobody_who_watches_is_no_message() {
    let mut world = World::new(2);
    let place = world.connect(0, None);
    world.subscribe(place, "a");
    world.settle();
    for _ in 0..10 {
        world.unsubscribe(place, "a");
        world.subscribe(place, "a");
        pump_all(&mut world);
        assert_eq!(tick(&mut world), 0);
    }
    // And again after somebody has watched.
    let watcher = world.connect(1, None);
    world.subscribe(watcher, "$presence.a");
    world.settle();
    world.remove(watcher);
    pump_all(&mut world);
    world.unsubscribe(place, "a");
    pump_all(&mut world);
    assert_eq!(tick(&mut world), 0);
}

#[test]
fn who_begins_to_watch_hears_first_who_is_there() {
    let mut world = World::new(2);
    let home = tidewire::hub::directory::home_of("$presence.a", 2);
    let member = world.connect(0, None);
    world.subscribe(member, "a");
    let watcher = world.connect(home, None);
    world.subscribe(watcher, "$presence.a");
    world.settle();
    assert_eq!(heard(&mut world, watcher, "a").len(), 1);
    // While somebody is being answered, the one who watches goes and comes back.
    world.ask(member, "a");
    while world.pump(home) {}
    world.unsubscribe(watcher, "$presence.a");
    world.subscribe(watcher, "$presence.a");
    world.settle();
    let [join] = &heard(&mut world, watcher, "a")[..] else { panic!("the one that is there") };
    assert_eq!(join["event"], "join");
    world.check_settled();
}
