//! The subscribers: connect, subscribe, read as fast as possible, keep the books. One thread reads many of them through
//! one shared buffer; statistics are the recorder's, sums the ledger's.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::books::{Books, Heads};
use crate::clock::{Clock, nanos};
use crate::comeback::{Comeback, Traveller};
use crate::control::Request;
use crate::dialect::{Dialect, Peer};
use crate::ledger::Account;
use crate::measure::{Counters, Recorder};
use crate::poll::Poll;
use crate::scenario::{Behaviour, Codec, Group, Policy};
use crate::ws::{Connection, Ended, Endpoint, Opcode, Progress, READ_BUFFER_BYTES, Stream};

/// Longest sleep of a reader: how soon it sees that the publishers have stopped.
const TURN: Duration = Duration::from_millis(20);

/// After the publishers stopped: how long a subscriber may hear nothing before what is missing counts as lost. Longer than
/// the server lets a frame wait (1 s) and than it may hold back a gap notice (0.1 s).
pub(crate) const QUIET: Duration = Duration::from_secs(3);

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
    /// `last_ms` of the first subscription.
    pub last_ms: Option<u64>,
    /// `SO_RCVBUF`.
    pub receive_buffer_bytes: Option<usize>,
    /// What the server speaks.
    pub dialect: Dialect,
    /// Publishers of a server other than Tidewire: it does not say which there are.
    pub publishers: u32,
    /// Whether it connects again when its connection has ended, and goes on.
    pub comes_back: bool,
    /// Subscribed while something is published: where the server does not say with which sequence its stream begins, the
    /// first one that comes counts.
    pub joins_late: bool,
}

impl Options {
    /// Of the group's members.
    pub(crate) fn of(group: &Group, dialect: Dialect, publishers: u32) -> Self {
        let Group {
            codec,
            policy,
            max_delay_ms,
            max_age_ms,
            max_rate_hz,
            last_ms,
            receive_buffer_bytes,
            comes_back,
            ..
        } = *group;
        Self {
            codec,
            policy,
            max_delay_ms,
            max_age_ms,
            max_rate_hz,
            last_ms,
            receive_buffer_bytes,
            dialect,
            publishers,
            comes_back,
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
    /// Name or pattern.
    channel: String,
    options: Options,
}

/// What is left of a subscriber whose connection has ended.
#[derive(Debug)]
pub(crate) struct Left {
    channel: String,
    options: Options,
    books: Books,
}

impl Traveller for Left {
    type Back = Subscriber;

    fn begin_again(&mut self, server: &Endpoint, buffer: &mut [u8]) -> Result<Subscriber, Ended> {
        Subscriber::open_again(server, &self.channel, &self.options, &mut self.books, buffer)
    }
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
            return Self::open_peer(endpoint, channel, options, buffer);
        }
        Self::open_again(endpoint, channel, options, &mut Books::new(options.codec), buffer)
    }

    /// The same for one whose connection has ended: it goes on where it was. Takes the books, unless it fails.
    pub(crate) fn open_again(
        endpoint: &Endpoint,
        channel: &str,
        options: &Options,
        books: &mut Books,
        buffer: &mut [u8],
    ) -> Result<Self, Ended> {
        let Options {
            codec,
            policy,
            max_delay_ms,
            max_age_ms,
            max_rate_hz,
            last_ms,
            receive_buffer_bytes,
            ..
        } = *options;
        let mut connection = Connection::open(endpoint, Some(codec.subprotocol()), receive_buffer_bytes)?;
        let (policy, since) = (policy.map(Policy::label), books.begin_again(channel));
        // It is one or the other.
        let last_ms = last_ms.filter(|_| since.is_none());
        let request = Request::Subscribe {
            id: 1,
            channel,
            policy,
            max_delay_ms,
            max_age_ms,
            max_rate_hz,
            last_ms,
            since,
        };
        connection.send_text(&request.to_json())?;
        // Frames may follow the answer in the same read; the books take them as well.
        connection.wait_for(buffer, |message| {
            books.on_message(message, None)?;
            Ok(books.subscribed.then_some(()))
        })?;
        let books = std::mem::take(books);
        Ok(Self { connection, books, peer: None, channel: channel.to_owned(), options: *options })
    }

    fn open_peer(
        endpoint: &Endpoint,
        channel: &str,
        options: &Options,
        buffer: &mut [u8],
    ) -> Result<Self, Ended> {
        let Options { dialect, receive_buffer_bytes, publishers, joins_late, .. } = *options;
        let mut books = Books::of_publishers(publishers, joins_late);
        let (connection, peer) =
            Peer::subscribe(dialect, endpoint, receive_buffer_bytes, &mut books.ledgers, buffer)?;
        Ok(Self { connection, books, peer: Some(peer), channel: channel.to_owned(), options: *options })
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

    /// Ends the connection without a word; the books are kept.
    pub(crate) fn into_books(self) -> Books {
        self.books
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

    /// Its books.
    pub(crate) const fn books(&self) -> &Books {
        &self.books
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
        let Self { connection, books, peer, .. } = self;
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
/// `progress` is kept at the samples that the subscriber furthest behind has accounted for, if `paced`. Those whose connection
/// ended come `back`, if they do.
pub(crate) fn read_all(
    subscribers: Vec<Subscriber>,
    shared: &Shared,
    mut recorder: Recorder,
    (progress, paced): (&AtomicU64, bool),
    mut back: Comeback<Left>,
) -> io::Result<Readout> {
    let clock = shared.clock;
    let mut poll = Poll::new()?;
    let mut subscribers: Vec<Option<Subscriber>> = subscribers.into_iter().map(Some).collect();
    for (token, subscriber) in subscribers.iter_mut().enumerate() {
        if let Some(subscriber) = subscriber {
            subscriber.connection.set_nonblocking()?;
            poll.add(&subscriber.connection.stream, token)?;
        }
    }
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    let mut ended = Vec::new();
    let mut quiet_from = clock.now_ns();
    loop {
        let mut heard = false;
        for index in 0..poll.wait(TURN)? {
            let token = poll.token(index);
            let Some(subscriber) = &mut subscribers[token] else { continue };
            match subscriber.read_at_most(usize::MAX, &mut buffer, clock, &mut recorder) {
                Ok(_) => heard = true,
                Err(why) => {
                    poll.remove(&subscriber.connection.stream)?;
                    match subscribers[token].take() {
                        Some(Subscriber { channel, options, books, .. }) if options.comes_back => {
                            ended.extend(back.left(token, Left { channel, options, books }, &why));
                        }
                        _ => ended.push(why.to_string()),
                    }
                }
            }
        }
        for (token, returned) in back.returned() {
            heard = true;
            match returned {
                Ok(mut subscriber) => {
                    subscriber.connection.set_nonblocking()?;
                    poll.add(&subscriber.connection.stream, token)?;
                    subscribers[token] = Some(subscriber);
                }
                Err(why) => ended.push(why),
            }
        }
        let now_ns = clock.now_ns();
        recorder.rotate(now_ns);
        let alive = || subscribers.iter().flatten().map(|it| &it.books);
        if paced && heard {
            // With nobody left there is nothing to wait for.
            progress.store(alive().map(Books::progress).min().unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        if heard {
            quiet_from = now_ns;
        }
        let settled = shared.heads.get().is_some_and(|heads| {
            back.is_empty() && (alive().all(|it| it.is_settled(heads)) || now_ns - quiet_from >= nanos(QUIET))
        });
        if settled || shared.abort.load(Ordering::Relaxed) {
            let none = Heads::new();
            let heads = shared.heads.get().unwrap_or(&none);
            let mut account = Account::default();
            alive().for_each(|books| account += books.close(heads));
            let arrived = recorder.finish(now_ns);
            return Ok(Readout { arrived, account, ended });
        }
    }
}
