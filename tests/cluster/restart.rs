//! Three servers behind nginx are restarted, one after the other, while clients publish and follow: what each subscriber got and was
//! told, across its connections, against what was published. A client comes back through nginx, to any server, as soon as it is told
//! to go, and goes on by cursor.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::iter;
use std::net::{SocketAddr, TcpListener};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use prost::Message as _;
use serde_json::{Value, json};
use tidewire::broker::Kind;
use tidewire::wire::Codec;
use tidewire::wire::proto::{self, sample};

use crate::follower::Publisher;
use crate::proxy::Proxy;
use crate::rig::{Node, Rig};
use crate::support::{Client, Handshake, Message, Options, Peer, Tally, masked, samples, wait_for};

/// Each publishes under a name of its own.
const PUBLISHERS: usize = 3;

/// Half of them in JSON, half in protobuf.
const SUBSCRIBERS: usize = 6;

/// Samples of a message.
const SAMPLES: u64 = 5;

/// Messages of each publisher, and frames for each subscriber, between two restarts.
const STEPS: u64 = 20;

/// What wakes everybody at the end.
const BEACON: &str = "t.beacon";

/// How long a subscriber waits at the end for what it misses: longer than a server takes to tell where a stream stands.
const PATIENCE: Duration = Duration::from_secs(10);

/// A stream: name and epoch.
type Stream = (String, u64);

/// What one publisher did with one stream.
#[derive(Clone, Copy, Debug)]
struct Published {
    /// Sequence up to which everything was acknowledged.
    acknowledged: u64,
    /// Samples behind it whose fate nobody told.
    unacknowledged: u64,
}

/// What all share.
#[derive(Default)]
struct Shared {
    /// Steps that each has made.
    publishers: [AtomicU64; PUBLISHERS],
    subscribers: [AtomicU64; SUBSCRIBERS],
    /// Publishers shall end.
    stop: AtomicBool,
    /// What has been published, once all publishers have ended.
    published: OnceLock<HashMap<Stream, Published>>,
}

/// Lets everybody end where the test has failed: a scope waits for its threads.
struct End<'a>(&'a Shared);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
        let _ = self.0.published.set(HashMap::new());
    }
}

/// What came of it, in samples.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    /// Handed to a connection.
    sent: u64,
    /// Of them, on the way when a connection ended, so that nobody told whether they were taken.
    unacknowledged: u64,
    /// Streams that they became.
    streams: usize,
    /// Of each subscriber.
    received: Vec<u64>,
    told: Vec<u64>,
    /// Before the first sequence of a stream that it was told.
    unseen: Vec<u64>,
    /// Of streams that it never heard of.
    unheard: Vec<u64>,
    /// Why what was told was lost.
    reasons: BTreeSet<String>,
    /// Times that subscribers came back.
    returns: u64,
    /// How streams went on, or began.
    outcomes: BTreeMap<String, u64>,
}

pub(crate) const HEAD: &str = "| Broker | sent | not acknowledged | streams | received by each | told lost to each | before the first `seq` | of streams never heard of | came back | `replay.outcome` |\n\
     | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |";

impl Ledger {
    /// For the table in docs/SCALING.md.
    pub(crate) fn row(&self, kind: &Kind) -> String {
        let span = |all: &[u64]| match (all.iter().min(), all.iter().max()) {
            (Some(min), Some(max)) if min < max => format!("{min} to {max}"),
            (Some(min), _) => min.to_string(),
            _ => String::new(),
        };
        let reasons: Vec<_> = self.reasons.iter().map(|it| format!("`{it}`")).collect();
        let reasons = if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) };
        let outcomes: Vec<_> =
            self.outcomes.iter().map(|(what, times)| format!("{times} `{what}`")).collect();
        format!(
            "| {} | {} | {} | {} | {} | {}{reasons} | {} | {} | {} times | {} |",
            kind.name,
            self.sent,
            self.unacknowledged,
            self.streams,
            span(&self.received),
            span(&self.told),
            span(&self.unseen),
            span(&self.unheard),
            self.returns,
            outcomes.join(", ")
        )
    }
}

pub(crate) fn rolling_restart(kind: &'static Kind) -> String {
    let ledger = restart_all(kind);
    let most = |all: &[u64]| all.iter().max().copied().unwrap_or(0);
    format!(
        "{} sent; lost without a word 0, twice 0, told lost {} at the most, before the first `seq` {} at the most",
        ledger.sent,
        most(&ledger.told),
        most(&ledger.unseen)
    )
}

pub(crate) fn restart_all(kind: &'static Kind) -> Ledger {
    let rig = Rig::start(kind);
    let mut nodes: Vec<Node> = (0..3).map(|_| rig.node_at(&quiet_address().to_string(), "", "")).collect();
    let addresses: Vec<SocketAddr> = nodes.iter().map(Node::address).collect();
    let proxy = Proxy::start(&addresses);
    let shared = Shared::default();
    thread::scope(|scope| {
        let (shared, door) = (&shared, proxy.address);
        let _end = End(shared);
        let subscribers: Vec<_> = (0..SUBSCRIBERS)
            .map(|index| scope.spawn(move || Subscriber::new(index).follow(door, shared)))
            .collect();
        // From the first sample on.
        let subscribed = || shared.subscribers.iter().all(|it| it.load(Ordering::Relaxed) > 0);
        wait_at(&nodes[0], "subscribers", subscribed);
        let publishers: Vec<_> =
            (0..PUBLISHERS).map(|index| scope.spawn(move || publish(index, door, shared))).collect();
        for index in 0..nodes.len() {
            let other = (index + 1) % nodes.len();
            let next = steps_from_now(shared);
            wait_at(&nodes[other], "clients at work", || has_come(shared, &next));
            nodes[index].process.signal("TERM");
            wait_for("its end", || {
                // A round trip, so that the others have their turn.
                let _ = nodes[other].unready();
                nodes[index].process.status().map(|status| assert!(status.success(), "{status}"))
            });
            nodes[index] = rig.node_at(&addresses[index].to_string(), "", "");
            nodes[index].wait_until_ready();
        }
        let next = steps_from_now(shared);
        wait_at(&nodes[0], "clients at work", || has_come(shared, &next));
        shared.stop.store(true, Ordering::Relaxed);
        let (mut published, mut sent) = (HashMap::new(), 0);
        for publisher in publishers {
            let (all, count) = publisher.join().unwrap();
            published.extend(all);
            sent += count;
        }
        let _ = shared.published.set(published);
        // Whatever comes makes a subscriber look whether it has everything.
        let mut beacon = Publisher::new(nodes[0].client(), BEACON);
        wait_for("all to have everything, or to give up", || {
            beacon.publish(1);
            subscribers.iter().all(thread::ScopedJoinHandle::is_finished).then_some(())
        });
        let published = shared.published.get().unwrap();
        let mut ledger = Ledger {
            sent,
            unacknowledged: published.values().map(|it| it.unacknowledged).sum(),
            streams: published.len(),
            received: Vec::new(),
            told: Vec::new(),
            unseen: Vec::new(),
            unheard: Vec::new(),
            reasons: BTreeSet::new(),
            returns: 0,
            outcomes: BTreeMap::new(),
        };
        for subscriber in subscribers {
            subscriber.join().unwrap().close(published, rig.keeps(), &mut ledger);
        }
        // Each of the three ends had some of them come back.
        assert!(ledger.returns >= SUBSCRIBERS as u64, "{}", ledger.returns);
        ledger
    })
}

/// An address that no connection of another test is given while its server is away: below the ports that Linux gives out by itself.
fn quiet_address() -> SocketAddr {
    iter::repeat_with(|| SocketAddr::from(([127, 0, 0, 1], fastrand::u16(20_000..30_000))))
        .find(|address| TcpListener::bind(address).is_ok())
        .unwrap()
}

/// Waits until it is so, and asks a server each time, so that the servers have their turn.
fn wait_at(node: &Node, what: &str, mut so: impl FnMut() -> bool) {
    wait_for(what, || {
        // What it says is not what this is about: on a busy machine its probe may be late for once.
        let _ = node.unready();
        so().then_some(())
    });
}

fn steps(shared: &Shared) -> impl Iterator<Item = &AtomicU64> {
    shared.publishers.iter().chain(&shared.subscribers)
}

/// Where everybody is when each has done some more.
fn steps_from_now(shared: &Shared) -> Vec<u64> {
    steps(shared).map(|it| it.load(Ordering::Relaxed) + STEPS).collect()
}

fn has_come(shared: &Shared, wanted: &[u64]) -> bool {
    steps(shared).zip(wanted).all(|(it, wanted)| it.load(Ordering::Relaxed) >= *wanted)
}

/// What a subscriber saw of a stream, across its connections.
#[derive(Debug)]
struct Seen {
    /// The first sequence that it was told of.
    first: u64,
    /// What its publisher had sent before, since it numbers its samples across its streams.
    sent_before: Option<f64>,
    /// Panics at a sample that comes twice.
    tally: Tally,
    /// Where the server said that it was, when it said goodbye.
    cursor: Option<String>,
}

impl Seen {
    /// The last sequence that came or was told not to.
    fn upto(&self) -> u64 {
        self.first + self.tally.accounted() - 1
    }
}

/// See the module's page.
struct Subscriber {
    index: usize,
    streams: BTreeMap<Stream, Seen>,
    /// Of this connection.
    numbers: HashMap<u64, Stream>,
    reasons: BTreeSet<String>,
    returns: u64,
    outcomes: BTreeMap<String, u64>,
    /// When it began to wait for the last that it misses.
    ends: Option<Instant>,
}

impl Subscriber {
    fn new(index: usize) -> Self {
        Self {
            index,
            streams: BTreeMap::new(),
            numbers: HashMap::new(),
            reasons: BTreeSet::new(),
            returns: 0,
            outcomes: BTreeMap::new(),
            ends: None,
        }
    }

    /// Until it has everything.
    fn follow(mut self, door: SocketAddr, shared: &Shared) -> Self {
        let codec = if self.index.is_multiple_of(2) { Codec::Json } else { Codec::Protobuf };
        let options = Options { codec, ..Options::default() };
        let mut asked = json!({});
        loop {
            let mut client = wait_for("a server", || Client::try_connect(door, &options).ok());
            self.numbers.clear();
            let answer = client.subscribe("t.*", &asked);
            let mut said_goodbye = self.take(&mut client, &answer, shared);
            while !said_goodbye {
                if self.is_done(shared) {
                    return self;
                }
                assert!(client.step(), "a server ends with a goodbye");
                said_goodbye = self.take(&mut client, &Value::Null, shared);
            }
            self.returns += 1;
            asked = json!({ "since": self.cursors() });
        }
    }

    /// Of each name.
    fn cursors(&self) -> BTreeMap<&str, String> {
        let mut cursors: BTreeMap<&str, String> = BTreeMap::new();
        for ((name, epoch), seen) in &self.streams {
            let cursor = seen.cursor.clone().unwrap_or_else(|| format!("{epoch}:{}", seen.upto()));
            let all = cursors.entry(name).or_default();
            *all = if all.is_empty() { cursor } else { format!("{all},{cursor}") };
        }
        cursors
    }

    /// Takes what has been read; whether a goodbye was among it.
    fn take(&mut self, client: &mut Client, answer: &Value, shared: &Shared) -> bool {
        let mut goodbye = None;
        for event in client.take_events() {
            match event["type"].as_str().unwrap() {
                "channel" => self.meet(&event),
                "gap" => {
                    let stream = &self.numbers[&event["channel"].as_u64().unwrap()];
                    self.streams.get_mut(stream).unwrap().tally.take_gap(&event);
                    self.reasons.insert(event["reason"].as_str().unwrap().to_owned());
                }
                "goodbye" => goodbye = Some(event),
                _ => {}
            }
        }
        for entry in answer["channels"].as_array().into_iter().flatten() {
            // Of some it was told before, and they have begun.
            if !self.numbers.contains_key(&entry["channel"].as_u64().unwrap()) {
                self.meet(entry);
            }
        }
        let mut steps = u64::from(!answer.is_null());
        while let Some(frame) = client.take_frame() {
            let stream = &self.numbers[&u64::from(frame.channel)];
            assert_eq!(u64::from(frame.epoch), stream.1);
            let seen = self.streams.get_mut(stream).unwrap();
            for (seq, sample) in samples(&frame) {
                assert!(seq >= seen.first, "{stream:?}: {seq} before {}", seen.first);
                let Some(sample::Value::Number(value)) = sample.value else { panic!("{sample:?}") };
                let sent_before = value - seq as f64;
                assert_eq!(
                    *seen.sent_before.get_or_insert(sent_before),
                    sent_before,
                    "the sample that was sent: {stream:?}, {seq}"
                );
            }
            seen.tally.take(&frame);
            steps += 1;
        }
        shared.subscribers[self.index].fetch_add(steps, Ordering::Relaxed);
        let Some(goodbye) = goodbye else { return false };
        for position in goodbye["positions"].as_array().unwrap() {
            let stream = (position["name"].as_str().unwrap().to_owned(), position["epoch"].as_u64().unwrap());
            let seen = self.streams.get_mut(&stream).unwrap();
            assert_eq!(
                position["seq"].as_u64(),
                Some(seen.upto()),
                "everything that waited has been sent: {stream:?}"
            );
            seen.cursor = Some(position["cursor"].as_str().unwrap().to_owned());
        }
        true
    }

    fn meet(&mut self, entry: &Value) {
        let stream = (entry["name"].as_str().unwrap().to_owned(), entry["epoch"].as_u64().unwrap());
        let (seq, outcome) = (entry["seq"].as_u64().unwrap(), entry["replay"]["outcome"].as_str());
        if let Some(outcome) = outcome {
            *self.outcomes.entry(outcome.to_owned()).or_default() += 1;
        }
        if let Some(seen) = self.streams.get_mut(&stream) {
            assert!(matches!(outcome, Some("replayed" | "partial")), "{stream:?} goes on: {entry}");
            assert_eq!(seq, seen.upto() + 1, "{stream:?} goes on where it was: {entry}");
            seen.cursor = None;
        } else {
            let seen = Seen { first: seq, sent_before: None, tally: Tally::default(), cursor: None };
            self.streams.insert(stream.clone(), seen);
        }
        self.numbers.insert(entry["channel"].as_u64().unwrap(), stream);
    }

    /// Whether it has everything, or has waited for it long enough.
    fn is_done(&mut self, shared: &Shared) -> bool {
        let Some(published) = shared.published.get() else { return false };
        let since = *self.ends.get_or_insert_with(Instant::now);
        let has = |(stream, all): (&Stream, &Published)| {
            self.streams.get(stream).is_some_and(|seen| seen.upto() >= all.acknowledged)
        };
        published.iter().all(has) || since.elapsed() >= PATIENCE
    }

    /// Adds it up, and holds it to what its kind of broker promises.
    fn close(self, published: &HashMap<Stream, Published>, keeps: bool, ledger: &mut Ledger) {
        let (mut received, mut told, mut unseen, mut unheard) = (0, 0, 0, 0);
        for (stream, all) in published {
            let Some(seen) = self.streams.get(stream) else {
                unheard += all.acknowledged;
                continue;
            };
            // A server that drains takes nothing that it does not acknowledge.
            seen.tally.assert_exact(seen.first, all.acknowledged);
            received += seen.tally.received.len() as u64;
            told += seen.tally.lost();
            unseen += seen.first - 1;
        }
        assert_eq!(unheard, 0, "subscriber {}, {:?}", self.index, self.streams);
        if keeps {
            assert_eq!((told, unseen), (0, 0), "subscriber {}, {:?}", self.index, self.streams);
        }
        ledger.received.push(received);
        ledger.told.push(told);
        ledger.unseen.push(unseen);
        ledger.unheard.push(unheard);
        ledger.reasons.extend(self.reasons);
        ledger.returns += self.returns;
        for (outcome, times) in self.outcomes {
            *ledger.outcomes.entry(outcome).or_default() += times;
        }
    }
}

/// Publishes until it shall stop, each message behind the one before: what it did with each stream, and how many samples it sent.
fn publish(index: usize, door: SocketAddr, shared: &Shared) -> (HashMap<Stream, Published>, u64) {
    let name = format!("t.{index}");
    let (mut all, mut sent) = (HashMap::new(), 0);
    loop {
        let mut line = wait_for("a server", || Line::open(door));
        let Some(stream) = line.advertise(&name) else { continue };
        let published =
            all.entry((name.clone(), stream)).or_insert(Published { acknowledged: 0, unacknowledged: 0 });
        while !shared.stop.load(Ordering::Relaxed) {
            sent += SAMPLES;
            let Some(newest) = line.publish(sent) else {
                published.unacknowledged = SAMPLES;
                break;
            };
            published.acknowledged = newest;
            shared.publishers[index].fetch_add(1, Ordering::Relaxed);
            // It sees its own samples, so it sends a message in each flush window.
            if !line.wait(|line| line.seen >= newest) {
                break;
            }
        }
        if shared.stop.load(Ordering::Relaxed) {
            return (all, sent);
        }
    }
}

/// A publisher's connection. It may end in the middle of anything, so a client that takes that for a failure will not do.
struct Line {
    peer: Peer,
    channel: u64,
    /// Newest sequence of its own that it has seen.
    seen: u64,
    answers: HashMap<u64, Value>,
    next_id: u64,
}

impl Line {
    fn open(door: SocketAddr) -> Option<Self> {
        let mut peer = Peer::connect(door);
        let protocol = Codec::Protobuf.subprotocol();
        peer.write(&Handshake::new("/ws").with("Sec-WebSocket-Protocol", protocol).bytes());
        let response = peer.try_response()?;
        let line = Self { peer, channel: 0, seen: 0, answers: HashMap::new(), next_id: 1 };
        (response.status == 101).then_some(line)
    }

    /// Opens a channel that it subscribes to as well: its epoch.
    fn advertise(&mut self, name: &str) -> Option<u64> {
        let answer = self.request(json!({"type": "advertise", "channel": name}))?;
        assert_eq!((&answer["type"], &answer["seq"]), (&json!("advertised"), &json!(1)), "{answer}");
        self.channel = answer["channel"].as_u64().unwrap();
        self.request(json!({"type": "subscribe", "channel": name}))?;
        answer["epoch"].as_u64()
    }

    fn request(&mut self, mut request: Value) -> Option<Value> {
        let id = self.new_id();
        request["id"] = json!(id);
        self.send(0x81, request.to_string().as_bytes(), id)
    }

    /// The last of so many numbers, which is the newest sequence that was acknowledged.
    fn publish(&mut self, upto: u64) -> Option<u64> {
        let ack = self.new_id();
        let numbers = upto - SAMPLES + 1..=upto;
        let value = |number| Some(sample::Value::Number(number as f64));
        let samples =
            numbers.map(|number| proto::Sample { source_delta_ns: 0, value: value(number) }).collect();
        let block = proto::Block { source_ns: 0, received_ns: 0, samples };
        let channel = u32::try_from(self.channel).unwrap();
        let message = proto::Publish { channel, block: Some(block), ack };
        let answer = self.send(0x82, &message.encode_to_vec(), ack)?;
        assert_eq!((&answer["type"], &answer["count"]), (&json!("ack"), &json!(SAMPLES)), "{answer}");
        Some(answer["seq"].as_u64().unwrap() + SAMPLES - 1)
    }

    const fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Sends a message and waits for its answer; `None` if the connection has ended.
    fn send(&mut self, first: u8, payload: &[u8], id: u64) -> Option<Value> {
        self.peer.try_write(&masked(first, payload)).ok()?;
        self.wait(|line| line.answers.contains_key(&id)).then(|| self.answers.remove(&id))?
    }

    /// Reads until it is so; whether it is.
    fn wait(&mut self, so: impl Fn(&Self) -> bool) -> bool {
        while !so(self) {
            match self.peer.message() {
                Message::Text(text) => {
                    let event: Value = serde_json::from_str(&text).unwrap();
                    match (event["type"].as_str(), event["id"].as_u64()) {
                        (Some("goodbye"), _) => return false,
                        (_, Some(id)) => drop(self.answers.insert(id, event)),
                        _ => {}
                    }
                }
                Message::Binary(frame) => {
                    let frame = proto::Frame::decode(&*frame).unwrap();
                    if u64::from(frame.channel) == self.channel {
                        self.seen = samples(&frame).map(|(seq, _)| seq).max().unwrap();
                    }
                }
                Message::Ping(payload) => drop(self.peer.try_write(&masked(0x8A, &payload))),
                Message::Pong(_) => {}
                Message::Close(..) | Message::End | Message::Reset => return false,
            }
        }
        true
    }
}
