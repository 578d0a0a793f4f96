//! The publishers: connect, advertise, send by the schedule or as fast as it is taken, and learn from the server's
//! acknowledgement of the last message where each channel's sequence ends. One thread drives all of them.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::books::{Heads, Stream};
use crate::clock::nanos;
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

/// One publisher, with a channel of its own.
#[derive(Debug)]
pub(crate) struct Publisher {
    connection: Connection,
    messages: Messages,
    channel: Channel,
    samples_per_message: u64,
    /// Samples handed to the connection.
    sent: u64,
    /// Newest sequence, once the last message was acknowledged.
    head: Option<u64>,
    ended: Option<String>,
}

/// What a publisher sends.
#[derive(Debug)]
enum Messages {
    /// To Tidewire: the usual message, and the last one, which is acknowledged.
    Tidewire { template: Template, last: Template },
    /// To another server, which acknowledges nothing.
    Peer(Outgoing),
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
        let started = |connection, messages, channel| Self {
            connection,
            messages,
            channel,
            samples_per_message: u64::from(samples_per_message),
            sent: 0,
            head: None,
            ended: None,
        };
        if dialect != Dialect::Tidewire {
            let (connection, outgoing) =
                Outgoing::open(dialect, endpoint, index, samples_per_message, payload_bytes, buffer)?;
            return Ok(started(
                connection,
                Messages::Peer(outgoing),
                Channel { channel: index, name: index.to_string(), epoch: 0, seq: 1, replay: None },
            ));
        }
        let mut connection = Connection::open(endpoint, Some(Codec::Protobuf.subprotocol()), None)?;
        connection.send_text(&Request::Advertise { id: 1, channel }.to_json())?;
        let channel = connection.wait_for(buffer, |message| match event(message)? {
            Some(Event::Advertised(channel)) => Ok(Some(channel)),
            Some(Event::Error { code, message }) => Err(Ended::Unexpected(format!(
                "the server refused to advertise {channel:?}: {code}: {message}"
            ))),
            _ => Ok(None),
        })?;
        let template = |ack| Template::new(channel.channel, samples_per_message, payload_bytes, ack);
        Ok(started(connection, Messages::Tidewire { template: template(0), last: template(LAST) }, channel))
    }

    /// Whether the schedule has to wait for this one's socket.
    fn is_blocked(&self) -> bool {
        self.ended.is_none() && self.connection.unsent() > UNSENT_BYTES_MAX
    }

    /// Hands a message to the connection; `false` if there is none any more.
    fn queue(&mut self, which: Which, source_ns: u64) -> bool {
        if self.ended.is_some() {
            return false;
        }
        let template = match (&mut self.messages, which) {
            (Messages::Tidewire { template, .. }, Which::Ordinary) => template,
            (Messages::Tidewire { last, .. }, Which::Last) => last,
            (Messages::Peer(outgoing), Which::Ordinary) => {
                outgoing.queue(source_ns, &mut self.connection);
                self.sent += self.samples_per_message;
                return true;
            }
            (Messages::Peer(outgoing), Which::Last) => {
                self.head = Some(outgoing.head());
                return true;
            }
        };
        self.connection.queue(Opcode::Binary, template.len(), |out| template.write(source_ns, out));
        self.sent += self.samples_per_message;
        true
    }

    fn flush(&mut self) {
        if self.ended.is_none()
            && let Err(error) = self.connection.flush()
        {
            self.ended = Some(error.to_string());
        }
    }

    fn read(&mut self, buffer: &mut [u8], refusals: &mut BTreeMap<String, u64>) -> Result<(), Ended> {
        if let Messages::Peer(outgoing) = &mut self.messages {
            return self.connection.read_bytes(buffer, |bytes, out| outgoing.take(bytes, out)).map(drop);
        }
        let head = &mut self.head;
        self.connection
            .read(buffer, |message| {
                match event(message)? {
                    Some(Event::Ack { seq, count }) => *head = Some((seq + count).saturating_sub(1)),
                    Some(Event::Error { code, message }) => {
                        *refusals.entry(format!("{code}: {message}")).or_default() += 1;
                    }
                    Some(Event::Goodbye { reason }) => {
                        return Err(Ended::Unexpected(format!("the server said goodbye: {reason}")));
                    }
                    _ => {}
                }
                Ok(())
            })
            .map(drop)
    }

    /// Samples that the server took.
    fn taken(&self) -> Option<u64> {
        Some((self.head? + 1).saturating_sub(self.channel.seq))
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

fn event(message: Message<'_>) -> Result<Option<Event>, Ended> {
    match message.opcode {
        Opcode::Text => Event::parse(message.payload).map(Some).map_err(Ended::Unexpected),
        _ => Ok(None),
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
    /// Newest sequence of each stream whose last message was acknowledged.
    pub heads: Heads,
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
    let Work { load, payload_bytes, schedule, span } = work;
    let mut fleet = Fleet {
        poll: Poll::new()?,
        publishers,
        windows,
        shared,
        sent: windows.iter().map(|_| Sent { messages: 0, lateness: histogram() }).collect(),
        refusals: BTreeMap::new(),
        messages: 0,
        next: 0,
        buffer: vec![0; READ_BUFFER_BYTES],
    };
    for (token, publisher) in fleet.publishers.iter_mut().enumerate() {
        publisher.connection.set_nonblocking()?;
        fleet.poll.add(&publisher.connection.stream, token)?;
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
        self.shared.abort.load(Ordering::Relaxed) || self.publishers.iter().all(|it| it.ended.is_some())
    }

    /// Sleeps until `wake_ns`, serving the sockets meanwhile.
    fn wait(&mut self, now_ns: u64, wake_ns: u64) -> io::Result<()> {
        let pause_ns = wake_ns.saturating_sub(now_ns).min(TURN_NS);
        for index in 0..self.poll.wait(Duration::from_nanos(pause_ns))? {
            let token = self.poll.token(index);
            let publisher = &mut self.publishers[token];
            if let Err(why) = publisher.read(&mut self.buffer, &mut self.refusals) {
                self.poll.remove(&publisher.connection.stream)?;
                publisher.ended = Some(why.to_string());
            }
        }
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

    fn flush(&mut self) {
        self.shared.counters.messages.store(self.messages, Ordering::Relaxed);
        for publisher in self.publishers.iter_mut().filter(|it| it.connection.unsent() > 0) {
            publisher.flush();
        }
    }

    /// Queues a message of the publisher whose turn it is.
    fn queue(&mut self, due_ns: u64, now_ns: u64) {
        let sent = self.publishers[self.next].queue(Which::Ordinary, due_ns);
        self.messages += u64::from(sent);
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
            self.flush();
            if count == MESSAGES_PER_LOOK {
                continue;
            }
            let Some(wake_ns) = schedule.wake_at(now_ns) else { return Ok(()) };
            if now_ns >= span.end_ns + LATE_NS_MAX {
                return Ok(());
            }
            let unsent = self.publishers.iter().any(|it| it.ended.is_none() && it.connection.unsent() > 0);
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
                self.flush();
            }
            let Some(wake_ns) = schedule.wake_at(now_ns) else { return Ok(()) };
            if now_ns >= span.end_ns {
                return Ok(());
            }
            self.wait(now_ns, wake_ns.max(now_ns + BOUND_PAUSE_NS))?;
        }
        Ok(())
    }

    /// Samples handed to connections.
    fn sent(&self) -> u64 {
        self.publishers.iter().map(|it| it.sent).sum()
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
            while room > 0 && count < MESSAGES_PER_LOOK && !self.publishers[self.next].is_blocked() {
                room = room.saturating_sub(self.publishers[self.next].samples_per_message);
                self.queue(now_ns, now_ns);
                count += 1;
            }
            self.flush();
            self.wait(now_ns, if count > 0 { now_ns } else { now_ns + BOUND_PAUSE_NS })?;
        }
    }

    /// One last message each, which the server acknowledges with the sequence that it got.
    fn finish(&mut self) -> io::Result<()> {
        let mut quiet_from = self.now_ns();
        for publisher in &mut self.publishers {
            publisher.queue(Which::Last, quiet_from);
        }
        loop {
            let now_ns = self.now_ns();
            let left =
                |it: &&Publisher| it.ended.is_none() && (it.head.is_none() || it.connection.unsent() > 0);
            let before = self.publishers.iter().filter(left).count();
            if before == 0 || self.is_over() || now_ns - quiet_from >= nanos(QUIET) {
                return Ok(());
            }
            self.flush();
            self.wait(now_ns, now_ns + QUANTUM_NS)?;
            if self.publishers.iter().filter(left).count() < before {
                quiet_from = now_ns;
            }
        }
    }

    fn into_published(self, load: Load) -> Published {
        let (mut heads, mut refused, mut ended) = (Heads::new(), 0, Vec::new());
        for mut publisher in self.publishers {
            if load == Load::Silent {
                publisher.head = Some(publisher.channel.seq.saturating_sub(1));
            }
            match (publisher.taken(), publisher.head) {
                (Some(taken), Some(head)) => {
                    let Channel { name, epoch, .. } = publisher.channel;
                    heads.insert(Stream { name, epoch }, head);
                    refused += publisher.sent.saturating_sub(taken);
                }
                _ => ended.push(publisher.ended.unwrap_or_else(|| {
                    "the server did not acknowledge a publisher's last message".to_owned()
                })),
            }
        }
        Published { sent: self.sent, heads, refused, refusals: self.refusals, ended }
    }
}
