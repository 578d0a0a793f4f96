//! The publishers: connect, advertise, send by the schedule or as fast as it is taken, and learn from the server's
//! acknowledgement of the last message where each channel's sequence ends. One thread drives all of them. Those that come back
//! when their connection has ended advertise again; what was not acknowledged by then is their own loss, and counted.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::books::{Begun, GOING_AWAY, Head, Heads, Stream};
use crate::clock::nanos;
use crate::comeback::{Comeback, Traveller};
use crate::control::{Channel, Event, Request};
use crate::data::Template;
use crate::dialect::{Dialect, Outgoing};
use crate::measure::{Window, histogram, window_of};
use crate::pacer::{QUANTUM_NS, Schedule};
use crate::poll::Poll;
use crate::scenario::{Codec, Load};
use crate::subscribers::{QUIET, Shared};
use crate::ws::{Connection, Ended, Endpoint, Message, Opcode, READ_BUFFER_BYTES};

/// Bytes that a publisher holds for a socket that takes no more; above, its schedule waits (and gets later: latency is
/// counted from it all the same).
const UNSENT_BYTES_MAX: usize = 256 << 10;

/// Messages between two looks at the clock.
const MESSAGES_PER_LOOK: usize = 64;

/// Longest sleep: how soon a publisher sees that the run is given up.
const TURN_NS: u64 = 20_000_000;

/// Sleep of a closed loop that has reached its bound: short beside the time that the subscribers need for what is on the
/// way (at 300,000 samples a second 14 ms), long enough not to take the CPU from them.
const BOUND_PAUSE_NS: u64 = 250_000;

/// How long after its end a schedule may still be caught up with.
const LATE_NS_MAX: u64 = 1_000_000_000;

/// `Publish.ack` of the last message.
const LAST: u64 = 1;

/// `Publish.ack` of a message that asks how far the server is. There is one on the way at most.
const ASKING: u64 = 2;

/// One publisher, with a channel of its own.
#[derive(Debug)]
pub(crate) struct Publisher {
    place: Place,
    messages: Messages,
    channel: Channel,
    again: Left,
    /// Samples handed to the connection.
    sent: u64,
    /// Newest sequence that was acknowledged.
    acknowledged: u64,
    /// Whether an answer to [`ASKING`] is to come.
    asked: bool,
    /// Newest sequence, once the last message was acknowledged.
    head: Option<u64>,
    /// How its stream began, if that was new when it came back.
    begun: Option<Begun>,
    /// The lives that its streams have had.
    epochs: Vec<u32>,
}

/// Where a publisher is.
#[derive(Debug)]
enum Place {
    Here(Connection),
    /// Its connection has ended; it comes back.
    Away,
    /// For good, and why.
    Gone(String),
}

/// What a publisher sends.
#[derive(Debug)]
enum Messages {
    /// To Tidewire: the usual message, the one that asks, and the last one, which is acknowledged.
    Tidewire { template: Template, asking: Template, last: Template },
    /// To another server, which acknowledges nothing.
    Peer(Outgoing),
}

/// What is left of a publisher whose connection has ended.
#[derive(Clone, Debug)]
struct Left {
    name: String,
    samples_per_message: u32,
    payload_bytes: usize,
}

/// A channel that is open.
#[derive(Debug)]
struct Opened {
    connection: Connection,
    messages: Messages,
    channel: Channel,
    begun: Instant,
}

impl Traveller for Left {
    type Back = Opened;

    fn begin_again(&mut self, server: &Endpoint, buffer: &mut [u8]) -> Result<Opened, Ended> {
        let (name, begun) = (&self.name, Instant::now());
        let mut connection = Connection::open(server, Some(Codec::Protobuf.subprotocol()), None)?;
        connection.send_text(&Request::Advertise { id: 1, channel: name }.to_json())?;
        let channel = connection.wait_for(buffer, |message| match event(message)? {
            Some(Event::Advertised(channel)) => Ok(Some(channel)),
            Some(Event::Error { code, message }) => {
                Err(Ended::Unexpected(format!("the server refused to advertise {name:?}: {code}: {message}")))
            }
            Some(Event::Goodbye { reason }) => Err(goodbye(&reason)),
            _ => Ok(None),
        })?;
        let template =
            |ack| Template::new(channel.channel, self.samples_per_message, self.payload_bytes, ack);
        let messages =
            Messages::Tidewire { template: template(0), asking: template(ASKING), last: template(LAST) };
        Ok(Opened { connection, messages, channel, begun })
    }
}

impl Publisher {
    /// Connects as publisher number `index` and advertises; blocks until the server has answered.
    pub(crate) fn open(
        endpoint: &Endpoint,
        dialect: Dialect,
        (index, channel): (u32, &str),
        samples_per_message: u32,
        payload_bytes: usize,
        buffer: &mut [u8],
    ) -> Result<Self, Ended> {
        let mut again = Left { name: channel.to_owned(), samples_per_message, payload_bytes };
        let Opened { connection, messages, channel, .. } = if dialect == Dialect::Tidewire {
            again.begin_again(endpoint, buffer)?
        } else {
            let (connection, outgoing) =
                Outgoing::open(dialect, endpoint, index, samples_per_message, payload_bytes, buffer)?;
            let channel = Channel { channel: index, name: index.to_string(), epoch: 0, seq: 1, replay: None };
            Opened { connection, messages: Messages::Peer(outgoing), channel, begun: Instant::now() }
        };
        Ok(Self {
            place: Place::Here(connection),
            messages,
            again,
            sent: 0,
            acknowledged: channel.seq.saturating_sub(1),
            asked: false,
            head: None,
            begun: None,
            epochs: vec![channel.epoch],
            channel,
        })
    }

    /// It is back: where its socket is.
    fn come_back(&mut self, opened: Opened) -> &mut Place {
        let Opened { connection, messages, channel, begun } = opened;
        (self.sent, self.asked, self.acknowledged) = (0, false, channel.seq.saturating_sub(1));
        // A life that it had before has gone on. A new one need not begin with 1, where the server had kept what it had.
        let is_new = !self.epochs.contains(&channel.epoch);
        self.begun = is_new.then_some(Begun { at: begun, first: channel.seq });
        if is_new {
            self.epochs.push(channel.epoch);
        }
        (self.messages, self.channel) = (messages, channel);
        self.place = Place::Here(connection);
        &mut self.place
    }

    const fn is_gone(&self) -> bool {
        matches!(self.place, Place::Gone(_))
    }

    /// Bytes that its socket did not take yet.
    fn unsent(&self) -> usize {
        match &self.place {
            Place::Here(connection) => connection.unsent(),
            Place::Away | Place::Gone(_) => 0,
        }
    }

    /// Whether the schedule has to wait for this one's socket.
    fn is_blocked(&self) -> bool {
        self.unsent() > UNSENT_BYTES_MAX
    }

    /// Whether it has something to say or to hear at the end of the run.
    fn is_unfinished(&self) -> bool {
        !self.is_gone() && (self.head.is_none() || self.unsent() > 0)
    }

    const fn samples_per_message(&self) -> u64 {
        // u32 into u64.
        self.again.samples_per_message as u64
    }

    /// Hands a message to the connection; `false` if there is none.
    fn queue(&mut self, which: Which, source_ns: u64, comes_back: bool) -> bool {
        let samples = self.samples_per_message();
        let Place::Here(connection) = &mut self.place else { return false };
        let template = match (&mut self.messages, which) {
            (Messages::Tidewire { asking, .. }, Which::Ordinary) if comes_back && !self.asked => {
                self.asked = true;
                asking
            }
            (Messages::Tidewire { template, .. }, Which::Ordinary) => template,
            (Messages::Tidewire { last, .. }, Which::Last) => last,
            (Messages::Peer(outgoing), Which::Ordinary) => {
                outgoing.queue(source_ns, connection);
                self.sent += samples;
                return true;
            }
            (Messages::Peer(outgoing), Which::Last) => {
                self.head = Some(outgoing.head());
                return true;
            }
        };
        connection.queue(Opcode::Binary, template.len(), |out| template.write(source_ns, out));
        self.sent += samples;
        true
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.place {
            Place::Here(connection) if connection.unsent() > 0 => connection.flush(),
            _ => Ok(()),
        }
    }

    fn read(&mut self, buffer: &mut [u8], refusals: &mut BTreeMap<String, u64>) -> Result<(), Ended> {
        let Place::Here(connection) = &mut self.place else { return Ok(()) };
        if let Messages::Peer(outgoing) = &mut self.messages {
            return connection.read_bytes(buffer, |bytes, out| outgoing.take(bytes, out)).map(drop);
        }
        let (head, acknowledged, asked) = (&mut self.head, &mut self.acknowledged, &mut self.asked);
        connection
            .read(buffer, |message| {
                match event(message)? {
                    Some(Event::Ack { id, seq, count }) => {
                        let newest = (seq + count).saturating_sub(1);
                        *acknowledged = newest.max(*acknowledged);
                        match id {
                            LAST => *head = Some(newest),
                            _ => *asked = false,
                        }
                    }
                    Some(Event::Error { code, message }) => {
                        // What asked may be what was refused.
                        *asked = false;
                        *refusals.entry(format!("{code}: {message}")).or_default() += 1;
                    }
                    Some(Event::Goodbye { reason }) => return Err(goodbye(&reason)),
                    _ => {}
                }
                Ok(())
            })
            .map(drop)
    }

    /// Samples up to this sequence.
    fn taken(&self, head: u64) -> u64 {
        (head + 1).saturating_sub(self.channel.seq)
    }

    /// How its stream began, if that was meanwhile. Of a life that has gone on it is known from before.
    fn begun(&self, past: &Heads) -> Option<Begun> {
        self.begun.or_else(|| past.get(&self.stream()).and_then(|it| it.begun))
    }

    fn stream(&self) -> Stream {
        Stream { name: self.channel.name.clone(), epoch: self.channel.epoch }
    }
}

/// Which message.
#[derive(Clone, Copy)]
enum Which {
    /// One of many.
    Ordinary,
    /// The one that is acknowledged.
    Last,
}

/// What a server that says goodbye closes with.
fn goodbye(reason: &str) -> Ended {
    Ended::Closed { code: GOING_AWAY, reason: format!("goodbye: {reason}") }
}

fn event(message: Message<'_>) -> Result<Option<Event>, Ended> {
    match message.opcode {
        Opcode::Text => Event::parse(message.payload).map(Some).map_err(Ended::Unexpected),
        _ => Ok(None),
    }
}

/// What came of publishers whose connection ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Returns {
    /// How often one came back.
    pub times: u64,
    /// Samples that were on the way when a connection ended, and not acknowledged: some of them may have come.
    pub unacknowledged: u64,
    /// Samples that fell due while their publisher was away.
    pub unsent: u64,
}

impl std::iter::Sum for Returns {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, it| Self {
            times: sum.times + it.times,
            unacknowledged: sum.unacknowledged + it.unacknowledged,
            unsent: sum.unsent + it.unsent,
        })
    }
}

/// What the publishers did in one window.
#[derive(Debug)]
pub(crate) struct Sent {
    /// Messages that went out within the window.
    pub messages: u64,
    /// How late they went out, by the schedule.
    pub lateness: Histogram<u64>,
}

/// What the publishers did.
#[derive(Debug)]
pub(crate) struct Published {
    /// One for each window.
    pub sent: Vec<Sent>,
    /// Where each stream ends whose last message was acknowledged, and each that its publisher had to leave.
    pub heads: Heads,
    /// What came of those whose connection ended.
    pub returns: Returns,
    /// Samples that the server did not take.
    pub refused: u64,
    /// What it said about that, and how often.
    pub refusals: BTreeMap<String, u64>,
    /// Publishers that were cut off or not acknowledged, and why.
    pub ended: Vec<String>,
}

/// The time of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// The first message.
    pub start_ns: u64,
    /// No message from here on.
    pub end_ns: u64,
}

/// What publishers do.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    /// How they are paced.
    pub load: Load,
    /// Bytes of a sample's value.
    pub payload_bytes: usize,
    /// When messages are due, if they are paced by time.
    pub schedule: Schedule,
    /// First to last message.
    pub span: Span,
    /// Where those go whose connection has ended, if they come back. All are at the first one.
    pub servers: Option<Arc<[Endpoint]>>,
}

/// Publishes from `span.start_ns` to `span.end_ns`. `progress` holds, for each thread of subscribers, the samples that the
/// one furthest behind has accounted for.
pub(crate) fn publish_all(
    publishers: Vec<Publisher>,
    work: Work,
    windows: &[Window],
    shared: &Shared,
    progress: &[AtomicU64],
) -> io::Result<Published> {
    let Work { load, payload_bytes, schedule, span, servers } = work;
    let places = vec![0; publishers.len()];
    let mut fleet = Fleet {
        poll: Poll::new()?,
        publishers,
        windows,
        shared,
        sent: windows.iter().map(|_| Sent { messages: 0, lateness: histogram() }).collect(),
        refusals: BTreeMap::new(),
        back: servers.map(|servers| Comeback::new(servers, places)),
        past: Heads::new(),
        taken_before: 0,
        returns: Returns::default(),
        finishing: false,
        messages: 0,
        next: 0,
        buffer: vec![0; READ_BUFFER_BYTES],
    };
    for (token, publisher) in fleet.publishers.iter_mut().enumerate() {
        watch(&mut fleet.poll, &mut publisher.place, token)?;
    }
    match load {
        Load::Scheduled { .. } => fleet.run_schedule(schedule, span)?,
        Load::Closed { .. } => fleet.run_closed(schedule, span, progress)?,
        Load::Saturating { outstanding_bytes_max } => {
            let samples_max = (outstanding_bytes_max / payload_bytes.max(1) as u64).max(1);
            fleet.saturate(span, samples_max, progress)?;
        }
        Load::Silent => fleet.wait_until(span.end_ns)?,
    }
    if load != Load::Silent {
        // The last message is nobody's measurement, so it stays outside the windows.
        fleet.wait_until(span.end_ns)?;
        fleet.finish()?;
    }
    Ok(fleet.into_published(load))
}

fn watch(poll: &mut Poll, place: &mut Place, token: usize) -> io::Result<()> {
    let Place::Here(connection) = place else { return Ok(()) };
    connection.set_nonblocking()?;
    poll.add(&connection.stream, token)
}

/// Samples that the subscriber furthest behind has accounted for.
fn slowest(progress: &[AtomicU64]) -> u64 {
    progress.iter().map(|it| it.load(Ordering::Relaxed)).min().unwrap_or(u64::MAX)
}

struct Fleet<'a> {
    poll: Poll,
    publishers: Vec<Publisher>,
    windows: &'a [Window],
    shared: &'a Shared,
    sent: Vec<Sent>,
    refusals: BTreeMap<String, u64>,
    back: Option<Comeback<Left>>,
    /// Streams that were left, with what was acknowledged of them.
    past: Heads,
    /// How many samples that were.
    taken_before: u64,
    returns: Returns,
    /// Whether who comes back has only its last message to send.
    finishing: bool,
    /// Handed to connections so far.
    messages: u64,
    /// Whose turn it is.
    next: usize,
    buffer: Vec<u8>,
}

impl Fleet<'_> {
    fn now_ns(&self) -> u64 {
        self.shared.clock.now_ns()
    }

    fn is_over(&self) -> bool {
        self.shared.abort.load(Ordering::Relaxed) || self.publishers.iter().all(Publisher::is_gone)
    }

    /// Sleeps until `wake_ns`, serving the sockets meanwhile.
    fn wait(&mut self, now_ns: u64, wake_ns: u64) -> io::Result<()> {
        let pause_ns = wake_ns.saturating_sub(now_ns).min(TURN_NS);
        for index in 0..self.poll.wait(Duration::from_nanos(pause_ns))? {
            let token = self.poll.token(index);
            if let Err(why) = self.publishers[token].read(&mut self.buffer, &mut self.refusals) {
                self.left(token, &why)?;
            }
        }
        for (token, returned) in self.back.as_mut().map(Comeback::returned).unwrap_or_default() {
            let publisher = &mut self.publishers[token];
            match returned {
                Ok(opened) => {
                    watch(&mut self.poll, publisher.come_back(opened), token)?;
                    self.returns.times += 1;
                    if self.finishing {
                        publisher.queue(Which::Last, now_ns, true);
                    }
                }
                Err(why) => publisher.place = Place::Gone(why),
            }
        }
        Ok(())
    }

    /// A connection has ended.
    fn left(&mut self, token: usize, why: &Ended) -> io::Result<()> {
        let publisher = &mut self.publishers[token];
        if let Place::Here(connection) = &publisher.place {
            self.poll.remove(&connection.stream)?;
        }
        let Some(back) = self.back.as_mut().filter(|_| publisher.head.is_none()) else {
            publisher.place = Place::Gone(why.to_string());
            return Ok(());
        };
        let taken = publisher.taken(publisher.acknowledged);
        let stream = publisher.stream();
        let begun = publisher.begun(&self.past);
        self.past.insert(stream, Head { seq: publisher.acknowledged, at_least: true, begun });
        self.taken_before += taken;
        self.returns.unacknowledged += publisher.sent.saturating_sub(taken);
        publisher.sent = 0;
        publisher.place = match back.left(token, publisher.again.clone(), why) {
            None => Place::Away,
            Some(why) => Place::Gone(why),
        };
        Ok(())
    }

    fn wait_until(&mut self, end_ns: u64) -> io::Result<()> {
        loop {
            let now_ns = self.now_ns();
            if now_ns >= end_ns || self.is_over() {
                return Ok(());
            }
            self.wait(now_ns, end_ns)?;
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.shared.counters.messages.store(self.messages, Ordering::Relaxed);
        for token in 0..self.publishers.len() {
            if let Err(why) = self.publishers[token].flush() {
                self.left(token, &Ended::Io(why))?;
            }
        }
        Ok(())
    }

    /// Queues a message of the publisher whose turn it is.
    fn queue(&mut self, due_ns: u64, now_ns: u64) {
        let publisher = &mut self.publishers[self.next];
        let sent = publisher.queue(Which::Ordinary, due_ns, self.back.is_some());
        self.messages += u64::from(sent);
        if matches!(publisher.place, Place::Away) {
            self.returns.unsent += publisher.samples_per_message();
        }
        self.next = (self.next + 1) % self.publishers.len();
        if sent && let Some(window) = window_of(self.windows, now_ns) {
            self.sent[window].messages += 1;
            self.sent[window].lateness.saturating_record((now_ns - due_ns).max(1));
        }
    }

    /// Open loop.
    fn run_schedule(&mut self, mut schedule: Schedule, span: Span) -> io::Result<()> {
        while !self.is_over() {
            let now_ns = self.now_ns();
            let mut count = 0;
            while count < MESSAGES_PER_LOOK && !self.publishers[self.next].is_blocked() {
                let Some(due_ns) = schedule.pop_due(now_ns) else { break };
                self.queue(due_ns, now_ns);
                count += 1;
            }
            self.flush()?;
            if count == MESSAGES_PER_LOOK {
                continue;
            }
            let Some(wake_ns) = schedule.wake_at(now_ns) else { return Ok(()) };
            if now_ns >= span.end_ns + LATE_NS_MAX {
                return Ok(());
            }
            let unsent = self.publishers.iter().any(|it| it.unsent() > 0);
            // A socket that took no more is tried again soon, whatever the schedule.
            let wake_ns = match unsent {
                true if self.publishers[self.next].is_blocked() => now_ns + QUANTUM_NS,
                true => wake_ns.min(now_ns + QUANTUM_NS),
                false => wake_ns,
            };
            self.wait(now_ns, wake_ns)?;
        }
        Ok(())
    }

    /// Closed loop at a rate: what fell due while a message was on its way is left out, as a tool does that waits.
    fn run_closed(&mut self, mut schedule: Schedule, span: Span, progress: &[AtomicU64]) -> io::Result<()> {
        self.wait_until(span.start_ns)?;
        while !self.is_over() {
            let now_ns = self.now_ns();
            let arrived = slowest(progress) >= self.sent();
            let mut due = None;
            while arrived && let Some(due_ns) = schedule.pop_due(now_ns) {
                due = Some(due_ns);
            }
            if due.is_some() {
                self.queue(now_ns, now_ns);
                self.flush()?;
            }
            let Some(wake_ns) = schedule.wake_at(now_ns) else { return Ok(()) };
            if now_ns >= span.end_ns {
                return Ok(());
            }
            self.wait(now_ns, wake_ns.max(now_ns + BOUND_PAUSE_NS))?;
        }
        Ok(())
    }

    /// Samples handed to connections, without those that were lost with one.
    fn sent(&self) -> u64 {
        self.taken_before + self.publishers.iter().map(|it| it.sent).sum::<u64>()
    }

    /// Closed loop: as long as every subscriber is within `samples_max` of the publishers.
    fn saturate(&mut self, span: Span, samples_max: u64, progress: &[AtomicU64]) -> io::Result<()> {
        self.wait_until(span.start_ns)?;
        loop {
            let now_ns = self.now_ns();
            if now_ns >= span.end_ns || self.is_over() {
                return Ok(());
            }
            let mut room = samples_max.saturating_sub(self.sent().saturating_sub(slowest(progress)));
            let mut count = 0;
            while room > 0 && count < MESSAGES_PER_LOOK {
                let next = &self.publishers[self.next];
                if next.is_blocked() || matches!(next.place, Place::Away) {
                    break;
                }
                room = room.saturating_sub(next.samples_per_message());
                self.queue(now_ns, now_ns);
                count += 1;
            }
            self.flush()?;
            self.wait(now_ns, if count > 0 { now_ns } else { now_ns + BOUND_PAUSE_NS })?;
        }
    }

    /// One last message each, which the server acknowledges with the sequence that it got.
    fn finish(&mut self) -> io::Result<()> {
        let mut quiet_from = self.now_ns();
        self.finishing = true;
        for publisher in &mut self.publishers {
            publisher.queue(Which::Last, quiet_from, self.back.is_some());
        }
        loop {
            let now_ns = self.now_ns();
            let left = |it: &&Publisher| it.is_unfinished();
            let before = self.publishers.iter().filter(left).count();
            let is_quiet =
                now_ns - quiet_from >= nanos(QUIET) && self.back.as_ref().is_none_or(Comeback::is_empty);
            if before == 0 || self.is_over() || is_quiet {
                return Ok(());
            }
            self.flush()?;
            self.wait(now_ns, now_ns + QUANTUM_NS)?;
            if self.publishers.iter().filter(left).count() < before {
                quiet_from = now_ns;
            }
        }
    }

    fn into_published(self, load: Load) -> Published {
        let (mut heads, mut refused, mut ended) = (self.past, 0, Vec::new());
        for mut publisher in self.publishers {
            if load == Load::Silent {
                publisher.head = Some(publisher.channel.seq.saturating_sub(1));
            }
            match (publisher.head, &publisher.place) {
                (Some(seq), _) => {
                    // A channel that has gone on has the head of its end.
                    let begun = publisher.begun(&heads);
                    heads.insert(publisher.stream(), Head { seq, at_least: false, begun });
                    refused += publisher.sent.saturating_sub(publisher.taken(seq));
                }
                (None, Place::Gone(why)) => ended.push(why.clone()),
                _ => ended.push("the server did not acknowledge a publisher's last message".to_owned()),
            }
        }
        let Self { sent, refusals, returns, .. } = self;
        Published { sent, heads, returns, refused, refusals, ended }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fault, serve};

    #[test]
    fn a_stream_is_new_if_its_life_is() {
        let server = Endpoint::parse(&serve(Fault::Sound)).unwrap();
        let mut buffer = vec![0; READ_BUFFER_BYTES];
        let mut publisher = Publisher::open(&server, Dialect::Tidewire, (0, "a"), 1, 8, &mut buffer).unwrap();
        let first = publisher.channel.epoch;
        let mut past = Heads::new();
        assert_eq!(publisher.begun(&past), None, "there from the beginning");
        // (epoch, first sequence, with what its stream began if that was meanwhile)
        let lives = [
            (first, 21, None),
            // A server that had kept what it had.
            (first + 1, 31, Some(31)),
            (first + 1, 41, Some(31)),
            (first + 1, 51, Some(31)),
            (first + 2, 1, Some(1)),
            (first + 1, 61, Some(31)),
            (first, 71, None),
        ];
        for (epoch, seq, expected) in lives {
            let mut opened = publisher.again.clone().begin_again(&server, &mut buffer).unwrap();
            (opened.channel.epoch, opened.channel.seq) = (epoch, seq);
            publisher.come_back(opened);
            let begun = publisher.begun(&past);
            assert_eq!(begun.map(|it| it.first), expected, "{epoch}:{seq}");
            assert_eq!(publisher.taken(seq), 1, "it counts from what was advertised");
            past.insert(publisher.stream(), Head { seq, at_least: true, begun });
        }
    }
}
