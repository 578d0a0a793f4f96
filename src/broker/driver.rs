//! What a driver is, and what it is given: the [`Port`]. Knows no broker.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Notify;

use super::incoming::Lane;
use super::interest::{Change, Interest, Want};
use super::outgoing::Queue;
use super::{BrokerSettings, Keep, Lost, Outgoing, Side, Topic, Url, words};
use crate::config::file;

/// Why a connection ended, in words.
pub(super) type Why = String;

/// A connection, from its beginning to its end. `Box`ed once for each.
pub(super) type Life<'a> = Pin<Box<dyn Future<Output = Why> + 'a>>;

/// One kind of broker.
pub(super) trait Driver {
    /// One connection: connects to [`Port::host`], restores what [`Port::wanted`] says, calls [`Port::up`], and moves messages
    /// both ways until the connection is of no use. Everything that it spawns ends with it.
    fn run<'a>(&'a mut self, port: &'a Arc<Port>) -> Life<'a>;
}

/// What happened, since the start. Read at any time.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) published_messages: AtomicU64,
    pub(super) published_bytes: AtomicU64,
    pub(super) received_messages: AtomicU64,
    pub(super) received_bytes: AtomicU64,
    pub(super) lost_outgoing: AtomicU64,
    pub(super) lost_incoming: AtomicU64,
    pub(super) connections: AtomicU64,
    pub(super) failures: AtomicU64,
    pub(super) is_up: AtomicBool,
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// The driver's side of everything that outlives a connection.
#[derive(Debug)]
pub(super) struct Port {
    pub(super) settings: BrokerSettings,
    pub(super) url: Url,
    pub(super) interest: Interest,
    pub(super) queue: Queue,
    pub(super) lane: Arc<Lane>,
    pub(super) counts: Counts,
    /// Someone waits for the queue to be empty.
    pub(super) settled: Notify,
    /// Attempts so far; which server is asked goes by it.
    attempts: AtomicU64,
    /// In this connection, a subscription that the broker does not keep was restored.
    restored: AtomicBool,
    /// When the last connection ended, and what the last attempt failed for.
    down: Mutex<(Option<Instant>, Option<Why>)>,
}

impl Port {
    pub(super) fn new(settings: BrokerSettings, url: Url) -> Self {
        Self {
            interest: Interest::new(settings.topics_max),
            queue: Queue::new(settings.outgoing_bytes_max, settings.outgoing_messages_max),
            lane: Arc::new(Lane::new(settings.incoming_bytes_max, settings.incoming_messages_max)),
            counts: Counts::default(),
            settled: Notify::new(),
            attempts: AtomicU64::new(0),
            restored: AtomicBool::new(false),
            down: Mutex::default(),
            settings,
            url,
        }
    }

    // For the thread.

    pub(super) fn begin(&self) {
        add(&self.attempts, 1);
        self.restored.store(false, Ordering::Relaxed);
    }

    /// The connection has ended, or there never was one.
    pub(super) fn ended(&self, why: Why) {
        self.queue.requeue(|topic, drop| self.lost_outgoing(topic, drop.words()));
        add(&self.counts.failures, 1);
        let was_up = self.counts.is_up.swap(false, Ordering::Relaxed);
        let mut down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        if was_up {
            down.0 = Some(Instant::now());
        }
        if was_up || down.1.as_ref() != Some(&why) {
            self.lane.down(why.clone());
        }
        down.1 = Some(why);
    }

    // For publishers.

    pub(super) fn publish(&self, message: Outgoing) {
        self.queue.push(message, |topic, drop| self.lost_outgoing(topic, drop.words()));
    }

    /// A message was not published, whatever the broker said to it at first.
    pub(super) fn lost_outgoing(&self, topic: Topic, why: &str) {
        add(&self.counts.lost_outgoing, 1);
        let topic = Some(topic);
        self.lane.lost(Lost { side: Side::Outgoing, topic, messages: Some(1), why: why.to_owned() });
    }

    // For drivers.

    /// The server of this attempt.
    pub(super) fn host(&self) -> (&str, u16) {
        let attempt = self.attempts.load(Ordering::Relaxed).wrapping_sub(1);
        let hosts = &self.url.hosts;
        // A URL has one at the least.
        let place = usize::try_from(attempt % hosts.len() as u64).unwrap_or(0);
        hosts.get(place).map_or(("", 0), |(host, port)| (host, *port))
    }

    /// The password, if there is one: that of the file before that of the URL.
    pub(super) fn password(&self) -> Result<Option<String>, Why> {
        match &self.settings.password_file {
            Some(path) => match file::read(path) {
                Ok((text, _)) => Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned())),
                Err(error) => Err(format!("the password file cannot be read: {}", words::foreign(&error))),
            },
            None => Ok(self.url.password.as_ref().map(|password| password.expose().to_owned())),
        }
    }

    /// Waits for an answer of the broker for as long as the settings say.
    pub(super) async fn within<T>(&self, answer: impl Future<Output = T>) -> Result<T, Why> {
        let limit = self.settings.timeout;
        tokio::time::timeout(limit, answer)
            .await
            .map_err(|_| format!("the broker did not answer within {} ms", limit.as_millis()))
    }

    /// How often a broker that says nothing is asked whether it is there.
    pub(super) fn ask_interval(&self) -> Duration {
        (self.settings.timeout / 2).max(Duration::from_millis(1))
    }

    /// Every subscription there is; later ones come from [`Port::changes`].
    pub(super) fn wanted(&self) -> Vec<Arc<Want>> {
        self.interest.all()
    }

    /// Waits for subscriptions that have come or gone.
    pub(super) async fn changes(&self, most: usize) -> Vec<Change> {
        self.interest.changes(most).await
    }

    /// Waits for messages to publish. [`Port::settle`] has to follow before the next.
    pub(super) async fn batch(&self) -> Vec<Outgoing> {
        self.queue.batch().await
    }

    /// What became of each message of a batch.
    pub(super) fn settle(&self, batch: &[Outgoing], outcomes: impl IntoIterator<Item = Result<(), Why>>) {
        self.queue.settle();
        for (message, outcome) in batch.iter().zip(outcomes) {
            match outcome {
                Ok(()) => {
                    add(&self.counts.published_messages, 1);
                    add(&self.counts.published_bytes, message.len() as u64);
                }
                Err(why) => self.lost_outgoing(message.topic.clone(), &why),
            }
        }
        self.settled.notify_waiters();
    }

    /// There is a connection, and all subscriptions are live.
    pub(super) fn up(&self) {
        add(&self.counts.connections, 1);
        self.counts.is_up.store(true, Ordering::Relaxed);
        self.down.lock().unwrap_or_else(PoisonError::into_inner).1 = None;
        self.lane.up();
    }

    /// How long there was no connection, at the moment.
    pub(super) fn down_for(&self) -> Duration {
        let down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        down.0.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// The subscription is live. Where it was before, what came while it was not is lost, if the broker does not keep it.
    pub(super) fn subscribed(&self, want: &Arc<Want>, backlog: Vec<Bytes>) {
        add(&self.counts.received_messages, backlog.len() as u64);
        add(&self.counts.received_bytes, backlog.iter().map(|payload| payload.len() as u64).sum());
        if want.confirm() {
            self.lane.subscribed(want, backlog);
            return;
        }
        for payload in backlog {
            self.lane.message(want, payload, want.keep == Keep::Yes);
        }
    }

    /// Like [`Port::subscribed`], of a subscription whose messages nobody keeps.
    pub(super) fn subscribed_unkept(&self, want: &Arc<Want>) {
        if want.is_confirmed() && !self.restored.swap(true, Ordering::Relaxed) {
            let why = "the connection was lost, and the broker does not keep them".to_owned();
            self.lane.lost(Lost { side: Side::Incoming, topic: None, messages: None, why });
        }
        self.subscribed(want, Vec::new());
    }

    pub(super) fn refused(&self, want: &Arc<Want>, why: Why) {
        self.lane.refused(want, why);
    }

    /// A message. `kept`: there was room ([`Port::has_room`]), or it is one of a few.
    pub(super) fn message(&self, want: &Arc<Want>, payload: Bytes, kept: bool) {
        add(&self.counts.received_messages, 1);
        add(&self.counts.received_bytes, payload.len() as u64);
        let dropped = self.lane.message(want, payload, kept);
        add(&self.counts.lost_incoming, dropped);
    }

    pub(super) fn has_room(&self) -> bool {
        self.lane.has_room()
    }

    pub(super) async fn room(&self) {
        self.lane.room().await;
    }

    /// Messages of a subscription are missing, or may be.
    pub(super) fn lost_of(&self, want: &Arc<Want>, messages: Option<u64>, why: &str) {
        add(&self.counts.lost_incoming, messages.unwrap_or(1));
        self.lane.lost_of(want, messages, why);
    }

    /// Messages of whatever is not kept are missing.
    pub(super) fn lost_unkept(&self, messages: Option<u64>, why: &str) {
        add(&self.counts.lost_incoming, messages.unwrap_or(1));
        let why = why.to_owned();
        self.lane.lost(Lost { side: Side::Incoming, topic: None, messages, why });
    }
}
