//! The subscribers: connect, subscribe, read as fast as possible, keep the books. One thread reads many of them through
//! one shared buffer; statistics are the recorder's, sums the ledger's.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::clock::{Clock, nanos};
use crate::codecs;
use crate::control::{Event, Request};
use crate::data::{FrameHead, Run, read_frame};
use crate::dialect::{Dialect, Peer};
use crate::ledger::{Account, Ledger};
use crate::measure::{Counters, Recorder};
use crate::poll::Poll;
use crate::scenario::{Behaviour, Codec, Group, Policy};
use crate::ws::{Connection, Ended, Endpoint, Message, Opcode, Progress, READ_BUFFER_BYTES, Stream};

/// Longest sleep of a reader: how soon it sees that the publishers have stopped.
const TURN: Duration = Duration::from_millis(20);

/// After the publishers stopped: how long a subscriber may hear nothing before what is missing counts as lost. Longer than
/// the server lets a frame wait (1 s) and than it may hold back a gap notice (0.1 s).
pub(crate) const QUIET: Duration = Duration::from_secs(3);

/// Newest sequence of each channel.
pub(crate) type Heads = HashMap<u32, u64>;

/// How a subscriber subscribes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    /// Data codec.
    pub codec: Codec,
    /// `policy`.
    pub policy: Option<Policy>,
    /// `max_delay_ms`.
    pub max_delay_ms: Option<u32>,
    /// `max_age_ms`.
    pub max_age_ms: Option<u32>,
    /// `max_rate_hz`.
    pub max_rate_hz: Option<f64>,
    /// `SO_RCVBUF`.
    pub receive_buffer_bytes: Option<usize>,
    /// What the server speaks.
    pub dialect: Dialect,
    /// Publishers of a server other than Tidewire: it does not say which there are.
    pub publishers: u32,
    /// Subscribed while something is published: where the server does not say with which sequence its stream begins, the
    /// first one that comes counts.
    pub joins_late: bool,
}

impl Options {
    /// Of the group's members.
    pub(crate) fn of(group: &Group, dialect: Dialect, publishers: u32) -> Self {
        let Group { codec, policy, max_delay_ms, max_age_ms, max_rate_hz, receive_buffer_bytes, .. } = *group;
        Self {
            codec,
            policy,
            max_delay_ms,
            max_age_ms,
            max_rate_hz,
            receive_buffer_bytes,
            dialect,
            publishers,
            joins_late: group.behaviour != Behaviour::Healthy,
        }
    }
}

/// One subscriber.
#[derive(Debug)]
pub(crate) struct Subscriber {
    connection: Connection,
    books: Books,
    /// The conversation, with a server other than Tidewire.
    peer: Option<Peer>,
}

/// The books of one subscriber: a ledger for each channel.
#[derive(Debug, Default)]
struct Books {
    ledgers: Vec<(u32, Ledger)>,
    /// Where the last frame's channel was found: mostly the next one's too.
    last: usize,
    codec: Codec,
    subscribed: bool,
}

impl Subscriber {
    /// Connects and subscribes; blocks until the server has confirmed.
    pub(crate) fn open(
        endpoint: &Endpoint,
        channel: &str,
        options: &Options,
        buffer: &mut [u8],
    ) -> Result<Self, Ended> {
        if options.dialect != Dialect::Tidewire {
            return Self::open_peer(endpoint, options, buffer);
        }
        let Options { codec, policy, max_delay_ms, max_age_ms, max_rate_hz, receive_buffer_bytes, .. } =
            *options;
        let mut connection = Connection::open(endpoint, Some(codec.subprotocol()), receive_buffer_bytes)?;
        let policy = policy.map(Policy::label);
        let request = Request::Subscribe { id: 1, channel, policy, max_delay_ms, max_age_ms, max_rate_hz };
        connection.send_text(&request.to_json())?;
        let mut books = Books { codec, ..Books::default() };
        // Frames may follow the answer in the same read; the books take them as well.
        connection.wait_for(buffer, |message| {
            books.on_message(message, None)?;
            Ok(books.subscribed.then_some(()))
        })?;
        Ok(Self { connection, books, peer: None })
    }

    fn open_peer(endpoint: &Endpoint, options: &Options, buffer: &mut [u8]) -> Result<Self, Ended> {
        let Options { dialect, receive_buffer_bytes, publishers, joins_late, .. } = *options;
        let ledgers = (0..publishers).map(|publisher| (publisher, Ledger::without_notices(joins_late)));
        let mut books = Books { ledgers: ledgers.collect(), ..Books::default() };
        let (connection, peer) =
            Peer::subscribe(dialect, endpoint, receive_buffer_bytes, &mut books.ledgers, buffer)?;
        Ok(Self { connection, books, peer: Some(peer) })
    }

    /// Blocks until it knows of so many channels: where another server publishes them, news of them may take a while.
    pub(crate) fn wait_for_channels(&mut self, count: usize, buffer: &mut [u8]) -> Result<(), Ended> {
        let Self { connection, books, .. } = self;
        if books.ledgers.len() >= count {
            return Ok(());
        }
        connection.wait_for(buffer, |message| {
            books.on_message(message, None)?;
            Ok((books.ledgers.len() >= count).then_some(()))
        })
    }

    /// The number and the epoch of each channel.
    pub(crate) fn channels(&self) -> Vec<(u32, u32)> {
        self.books.ledgers.iter().map(|(channel, ledger)| (*channel, ledger.epoch())).collect()
    }

    /// Sends a close frame and goes, without waiting for the answer.
    pub(crate) fn leave(mut self) -> io::Result<()> {
        /// RFC 6455, section 7.4.1: normal closure.
        const NORMAL: [u8; 2] = 1000u16.to_be_bytes();
        if self.peer.as_ref().is_some_and(Peer::is_bare) {
            return Ok(());
        }
        self.connection.queue(Opcode::Close, NORMAL.len(), |out| out.copy_from_slice(&NORMAL));
        self.connection.flush()
    }

    /// How far it has come, over all channels.
    fn progress(&self) -> u64 {
        self.books.ledgers.iter().map(|(_, ledger)| ledger.progress()).sum()
    }

    /// Whether everything up to the heads has come or has been announced.
    pub(crate) fn is_settled(&self, heads: &Heads) -> bool {
        self.books
            .ledgers
            .iter()
            .all(|(channel, ledger)| heads.get(channel).is_none_or(|&head| ledger.is_settled(head)))
    }

    /// Closes the books over the channels whose heads are known.
    pub(crate) fn close(&self, heads: &Heads) -> Account {
        let mut sum = Account::default();
        for (channel, ledger) in &self.books.ledgers {
            if let Some(&head) = heads.get(channel) {
                sum += ledger.close(head);
            }
        }
        sum
    }

    /// Of each channel the newest sequence before the subscription.
    pub(crate) fn heads_at_start(&self) -> Heads {
        let ledgers = self.books.ledgers.iter();
        ledgers.map(|(channel, ledger)| (*channel, ledger.first().saturating_sub(1))).collect()
    }

    /// Whether it knows of nothing that has neither come nor been announced.
    pub(crate) fn is_even(&self) -> bool {
        self.books.ledgers.iter().all(|(_, ledger)| ledger.is_even())
    }

    /// Closes the books over what it knows of: it goes before the publishers have stopped.
    pub(crate) fn close_here(&self) -> Account {
        let mut sum = Account::default();
        for (_, ledger) in &self.books.ledgers {
            sum += ledger.close_here();
        }
        sum
    }

    /// From here on reads return at once.
    pub(crate) fn set_nonblocking(&mut self) -> io::Result<()> {
        self.connection.set_nonblocking()
    }

    /// The socket, to register for events.
    pub(crate) const fn stream(&self) -> &Stream {
        &self.connection.stream
    }

    /// Reads once: how many bytes.
    pub(crate) fn read_at_most(
        &mut self,
        bytes_max: usize,
        buffer: &mut [u8],
        clock: Clock,
        recorder: &mut Recorder,
    ) -> Result<usize, Ended> {
        let Self { connection, books, peer } = self;
        let mut arrived = false;
        let progress = match peer {
            None => connection.read_at_most(bytes_max, buffer, |message| {
                // One reading of the clock for all messages of a read: they arrived together.
                if !std::mem::replace(&mut arrived, true) {
                    recorder.set_arrival(clock.now_ns());
                }
                books.on_message(message, Some(recorder))
            }),
            Some(peer) => connection.read_bytes_at_most(bytes_max, buffer, |bytes, out| {
                recorder.set_arrival(clock.now_ns());
                peer.take(bytes, out, &mut books.ledgers, Some(recorder))
            }),
        };
        Ok(match progress? {
            Progress::Read(bytes) => bytes,
            Progress::Idle => 0,
        })
    }
}

impl Books {
    fn on_message(&mut self, message: Message<'_>, recorder: Option<&mut Recorder>) -> Result<(), Ended> {
        match message.opcode {
            Opcode::Binary if self.codec == Codec::Protobuf => self.on_frame(message.payload, recorder),
            Opcode::Binary => self.on_decoded(codecs::read_msgpack(message.payload), recorder),
            Opcode::Text if self.codec == Codec::Json && codecs::is_json_frame(message.payload) => {
                self.on_decoded(codecs::read_json(message.payload), recorder)
            }
            Opcode::Text => self.on_event(message.payload, recorder),
            Opcode::Close | Opcode::Ping | Opcode::Pong => Ok(()),
        }
    }

    fn on_frame(&mut self, payload: &[u8], recorder: Option<&mut Recorder>) -> Result<(), Ended> {
        let unexpected = |error| Ended::Unexpected(format!("the server sent a bad frame: {error}"));
        let head = match recorder {
            None => read_frame(payload, |_| ()),
            Some(recorder) => recorder.record_frame(payload),
        }
        .map_err(unexpected)?;
        self.ledger(head.channel)?.on_frame(head.epoch, head.first, head.last, head.count);
        Ok(())
    }

    /// A frame of a codec that is decoded as a whole.
    fn on_decoded(
        &mut self,
        decoded: Result<(FrameHead, Vec<Run>), String>,
        recorder: Option<&mut Recorder>,
    ) -> Result<(), Ended> {
        let (head, runs) =
            decoded.map_err(|error| Ended::Unexpected(format!("the server sent a bad frame: {error}")))?;
        if let Some(recorder) = recorder {
            for run in runs {
                recorder.record(run);
            }
            recorder.count(head.count);
        }
        self.ledger(head.channel)?.on_frame(head.epoch, head.first, head.last, head.count);
        Ok(())
    }

    fn on_event(&mut self, payload: &[u8], recorder: Option<&mut Recorder>) -> Result<(), Ended> {
        match Event::parse(payload).map_err(Ended::Unexpected)? {
            Event::Subscribed { channels } => {
                self.subscribed = true;
                self.ledgers = channels
                    .into_iter()
                    .map(|channel| (channel.channel, Ledger::new(channel.epoch, channel.seq)))
                    .collect();
            }
            Event::Channel(channel) => {
                self.ledgers.push((channel.channel, Ledger::new(channel.epoch, channel.seq)));
            }
            Event::Gap { channel, count } => {
                if let Some(recorder) = recorder {
                    recorder.on_gap(count);
                }
                self.ledger(channel)?.on_gap(count);
            }
            Event::Error { code, message } => {
                return Err(Ended::Unexpected(format!("the server refused a request: {code}: {message}")));
            }
            Event::Goodbye { reason } => {
                return Err(Ended::Unexpected(format!("the server said goodbye: {reason}")));
            }
            Event::Advertised(_) | Event::Ack { .. } | Event::Pong { .. } | Event::Unused => {}
        }
        Ok(())
    }

    fn ledger(&mut self, channel: u32) -> Result<&mut Ledger, Ended> {
        if self.ledgers.get(self.last).is_none_or(|(id, _)| *id != channel) {
            self.last = self.ledgers.iter().position(|(id, _)| *id == channel).ok_or_else(|| {
                Ended::Unexpected(format!("the server sent channel {channel}, which was not subscribed"))
            })?;
        }
        Ok(&mut self.ledgers[self.last].1)
    }
}

/// What the threads of a run share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// The one clock.
    pub clock: Clock,
    /// Newest sequences, set once the publishers have stopped.
    pub heads: OnceLock<Heads>,
    /// The run is given up.
    pub abort: AtomicBool,
    /// What is counted while it goes on.
    pub counters: Arc<Counters>,
}

/// What a thread of subscribers saw.
#[derive(Debug, Default)]
pub(crate) struct Readout {
    /// Samples that arrived within each window.
    pub arrived: Vec<u64>,
    /// Sum of the books of all subscribers that were connected to the end.
    pub account: Account,
    /// Why the others were not.
    pub ended: Vec<String>,
}

/// Reads the subscribers until the publishers have stopped and everything is accounted for, or nothing comes any more.
/// `progress` is kept at the samples that the subscriber furthest behind has accounted for, if `paced`.
pub(crate) fn read_all(
    mut subscribers: Vec<Subscriber>,
    shared: &Shared,
    mut recorder: Recorder,
    progress: &AtomicU64,
    paced: bool,
) -> io::Result<Readout> {
    let clock = shared.clock;
    let mut poll = Poll::new()?;
    for (token, subscriber) in subscribers.iter_mut().enumerate() {
        subscriber.connection.set_nonblocking()?;
        poll.add(&subscriber.connection.stream, token)?;
    }
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    let mut gone: Vec<Option<String>> = vec![None; subscribers.len()];
    let mut quiet_from = clock.now_ns();
    loop {
        let mut heard = false;
        for index in 0..poll.wait(TURN)? {
            let token = poll.token(index);
            let subscriber = &mut subscribers[token];
            match subscriber.read_at_most(usize::MAX, &mut buffer, clock, &mut recorder) {
                Ok(_) => heard = true,
                Err(why) => {
                    poll.remove(&subscriber.connection.stream)?;
                    gone[token] = Some(why.to_string());
                }
            }
        }
        let now_ns = clock.now_ns();
        recorder.rotate(now_ns);
        let alive = || subscribers.iter().zip(&gone).filter(|(_, why)| why.is_none()).map(|(it, _)| it);
        if paced && heard {
            // With nobody left there is nothing to wait for.
            progress.store(alive().map(Subscriber::progress).min().unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        if heard {
            quiet_from = now_ns;
        }
        let settled = shared.heads.get().is_some_and(|heads| {
            alive().all(|it| it.is_settled(heads)) || now_ns - quiet_from >= nanos(QUIET)
        });
        if settled || shared.abort.load(Ordering::Relaxed) {
            let none = Heads::new();
            let heads = shared.heads.get().unwrap_or(&none);
            let mut account = Account::default();
            for subscriber in alive() {
                account += subscriber.close(heads);
            }
            let arrived = recorder.finish(now_ns);
            return Ok(Readout { arrived, account, ended: gone.into_iter().flatten().collect() });
        }
    }
}
