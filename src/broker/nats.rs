//! NATS: core for what is live, and JetStream (`nats/jetstream.rs`) for what is kept. One connection for both ways.
//!
//! The library connects once; it is this crate that connects again, so that what was in flight is known. Core NATS confirms
//! nothing: a message to ourselves behind a batch says that the server has taken the batch, and one behind subscriptions that
//! they are live.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::{
    Client, ConnectError, ConnectErrorKind, ConnectOptions, Event, HeaderMap, Message, PublishErrorKind,
    ServerError, Subscriber,
};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::driver::{Driver, Life, Port, Why};
use super::interest::{Change, Want};
use super::kept::{Failure, Stitcher};
use super::{Keep, Outgoing, Topic, tls, words};

use self::jetstream::{Memory, Store};

mod jetstream;

/// Messages of one subscription that the library holds while this side of it is not run; one more is told as lost. They share a thread, so
/// it is what comes with a few reads, of whatever size.
const SUBSCRIPTION_MESSAGES_MAX: usize = 16_384;

/// Subscriptions that are confirmed together.
const SUBSCRIBE_MAX: usize = 256;

/// Bytes that are read at once.
const READ_BYTES: u16 = u16::MAX;

/// Longer than any connection waits: the library shall not connect again.
const NEVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Core NATS.
pub(super) fn core() -> Box<dyn Driver> {
    Box::new(Nats { memory: None })
}

/// NATS with JetStream.
pub(super) fn jetstream() -> Box<dyn Driver> {
    Box::new(Nats { memory: Some(Memory::default()) })
}

struct Nats {
    /// What JetStream has to know of earlier connections.
    memory: Option<Memory>,
}

impl Driver for Nats {
    fn run<'a>(&'a mut self, port: &'a Arc<Port>) -> Life<'a> {
        Box::pin(async {
            let receiver = Arc::new(Receiver::new(port, self.memory.is_some()));
            let why = match connect(port, &receiver, self.memory.as_ref()).await {
                Ok(session) => session.run().await,
                Err(why) => why,
            };
            // What the server said is nearer to the cause than what came of it.
            receiver.said().take().unwrap_or(why)
        })
    }
}

/// What the library's tasks hand messages to.
struct Receiver {
    port: Arc<Port>,
    keeps: bool,
    stitcher: Stitcher,
    /// When the stream was created: the first part of every position, since its sequences begin anew with it.
    created: AtomicU64,
    live: Mutex<HashMap<Topic, Arc<Live>>>,
    /// What the server said last when it was unhappy.
    said: Mutex<Option<Why>>,
    ended: Notify,
}

/// A subscription in this connection.
struct Live {
    want: Arc<Want>,
    /// What it brings was told to be live.
    announced: AtomicBool,
    refused: AtomicBool,
    task: Mutex<Option<AbortHandle>>,
}

impl Live {
    fn end(&self) {
        if let Some(task) = self.task.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

impl Receiver {
    fn new(port: &Arc<Port>, keeps: bool) -> Self {
        Self {
            port: Arc::clone(port),
            keeps,
            stitcher: Stitcher::default(),
            created: AtomicU64::new(0),
            live: Mutex::default(),
            said: Mutex::default(),
            ended: Notify::new(),
        }
    }

    fn live(&self) -> MutexGuard<'_, HashMap<Topic, Arc<Live>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn said(&self) -> MutexGuard<'_, Option<Why>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keeps(&self, keep: Keep) -> bool {
        self.keeps && keep == Keep::Yes
    }

    fn name(&self, kind: &str, topic: &str) -> String {
        format!("{}.{kind}.{topic}", self.port.settings.prefix)
    }

    /// Where messages come from.
    fn source(&self, want: &Want) -> String {
        self.name(if self.keeps(want.keep) { jetstream::LIVE } else { PLAIN }, &want.topic)
    }

    fn announce(&self, live: &Live) {
        if live.announced.swap(true, Ordering::Relaxed) || live.refused.load(Ordering::Relaxed) {
            return;
        }
        if self.keeps(live.want.keep) {
            self.stitcher.enlist(&live.want);
        } else {
            self.port.subscribed_unkept(&live.want);
        }
    }

    fn message(&self, live: &Live, message: Message) {
        if !self.keeps(live.want.keep) {
            // One that came says as much as a confirmation.
            self.announce(live);
            self.port.message(&live.want, message.payload, false);
            return;
        }
        let created = self.created.load(Ordering::Relaxed);
        match jetstream::positions(message.headers.as_ref(), created) {
            Some((previous, position)) => {
                self.stitcher.live(&self.port, &live.want, Some(previous), position, message.payload);
            }
            // Not from the stream: it has no place in it.
            None => self.port.message(&live.want, message.payload, false),
        }
    }

    /// Called by the library.
    fn event(&self, event: Event) {
        const SUBSCRIPTION: &str = "Permissions Violation for Subscription to \"";
        const PUBLISH: &str = "Permissions Violation for Publish to \"";
        match event {
            Event::Disconnected | Event::Closed => self.ended.notify_one(),
            Event::SlowConsumer(_) => self.slow(),
            Event::ServerError(ServerError::Other(said)) => {
                let subject = |start: &str| said.strip_prefix(start)?.split('"').next();
                if let Some(subject) = subject(SUBSCRIPTION) {
                    let live = self.live().values().find(|live| self.source(&live.want) == subject).cloned();
                    if let Some(live) = live {
                        live.refused.store(true, Ordering::Relaxed);
                        let why = format!("the broker does not permit it ({})", words::foreign(&said));
                        self.port.refused(&live.want, why);
                        return;
                    }
                } else if let Some(topic) = subject(PUBLISH).and_then(|subject| self.topic_of(subject)) {
                    let why = format!("the broker does not permit it ({})", words::foreign(&said));
                    self.port.lost_outgoing(topic, &why);
                    return;
                }
                *self.said() = Some(format!("the broker said: {}", words::foreign(&said)));
            }
            Event::ServerError(error) => {
                *self.said() = Some(format!("the broker said: {}", words::foreign(&error)));
            }
            _ => {}
        }
    }

    fn topic_of(&self, subject: &str) -> Option<Topic> {
        let rest = subject.strip_prefix(&*self.port.settings.prefix)?.strip_prefix('.')?;
        Topic::new(rest.split_once('.')?.1).ok()
    }

    /// The library had no room for a message and does not say of which topic.
    fn slow(&self) {
        self.port.lost_unkept(Some(1), "the queue of a subscription is full");
        // What is kept can be had again.
        for live in self.live().values().filter(|live| self.keeps(live.want.keep)) {
            if live.announced.load(Ordering::Relaxed) {
                self.stitcher.again(&live.want);
            }
        }
    }
}

/// The kind of subjects whose messages nobody keeps.
const PLAIN: &str = "plain";

struct Session<'a> {
    port: Arc<Port>,
    receiver: Arc<Receiver>,
    client: Client,
    store: Option<Store<'a>>,
    /// Where messages to ourselves go, how many went, and how many came.
    fence: String,
    fences: AtomicU64,
    passed: watch::Receiver<u64>,
    tasks: Mutex<JoinSet<()>>,
}

async fn options(
    port: &Arc<Port>,
    receiver: &Arc<Receiver>,
    connected: &Arc<AtomicBool>,
) -> Result<ConnectOptions, Why> {
    let events = Arc::clone(receiver);
    let connected = Arc::clone(connected);
    let mut options = ConnectOptions::new()
        .name("tidewire")
        .custom_inbox_prefix(format!("{}.inbox", port.settings.prefix))
        .connection_timeout(port.settings.timeout)
        .request_timeout(Some(port.settings.timeout))
        .ping_interval(port.ask_interval())
        .subscription_capacity(SUBSCRIPTION_MESSAGES_MAX)
        .read_buffer_capacity(READ_BYTES)
        .ignore_discovered_servers()
        .max_reconnects(1)
        .reconnect_delay_callback(
            move |_| if connected.load(Ordering::Relaxed) { NEVER } else { Duration::ZERO },
        )
        .event_callback(move |event| {
            events.event(event);
            std::future::ready(())
        });
    if port.url.tls {
        let config = tls::config(port.settings.ca_file.as_deref())
            .map_err(|why| format!("the file of broker.ca_file cannot be used: {why}"))?;
        options = options.require_tls(true).tls_client_config(config);
    }
    if let Some(path) = &port.settings.credentials_file {
        let (text, _) = crate::config::file::read(path)
            .map_err(|error| format!("the credentials file cannot be read: {}", words::foreign(&error)))?;
        // Its error may repeat what is in it.
        return options
            .credentials(&text)
            .map_err(|_| "the credentials file holds no credentials".to_owned());
    }
    Ok(match (&port.url.user, port.password()?) {
        (Some(user), password) => options.user_and_password(user.clone(), password.unwrap_or_default()),
        (None, Some(token)) => options.token(token),
        (None, None) => options,
    })
}

async fn connect<'a>(
    port: &'a Arc<Port>,
    receiver: &Arc<Receiver>,
    memory: Option<&'a Memory>,
) -> Result<Session<'a>, Why> {
    let connected = Arc::new(AtomicBool::new(false));
    let options = options(port, receiver, &connected).await?;
    let (host, number) = port.host();
    let address = if host.contains(':') {
        format!("nats://[{host}]:{number}")
    } else {
        format!("nats://{host}:{number}")
    };
    let client = port
        .within(options.connect(address))
        .await?
        .map_err(|error| format!("{host}:{number}: {}", explained(&error)))?;
    connected.store(true, Ordering::Relaxed);
    let fence = receiver.name("inbox", &format!("fence.{:016x}", fastrand::u64(..)));
    let subscriber = client.subscribe(fence.clone()).await.map_err(|error| words::foreign(&error))?;
    let (passing, passed) = watch::channel(0);
    let mut tasks = JoinSet::new();
    tasks.spawn(pass(subscriber, passing));
    let store = match memory {
        Some(memory) => Some(Store::open(port, &client, memory).await?),
        None => None,
    };
    if let Some(store) = &store {
        receiver.created.store(store.created(), Ordering::Relaxed);
    }
    Ok(Session {
        port: Arc::clone(port),
        receiver: Arc::clone(receiver),
        client,
        store,
        fence,
        fences: AtomicU64::new(0),
        passed,
        tasks: Mutex::new(tasks),
    })
}

/// Counts messages to ourselves.
async fn pass(mut subscriber: Subscriber, passing: watch::Sender<u64>) {
    while let Some(message) = subscriber.next().await {
        let number = <[u8; 8]>::try_from(&*message.payload).map(u64::from_be_bytes);
        if let Ok(number) = number {
            passing.send_modify(|passed| *passed = number.max(*passed));
        }
    }
}

impl Session<'_> {
    async fn run(self) -> Why {
        tokio::select! {
            biased;
            () = self.receiver.ended.notified() => "the broker ended the connection".to_owned(),
            why = self.work() => why,
        }
    }

    async fn work(&self) -> Why {
        if let Err(why) = self.restore().await {
            return why;
        }
        let fetch = async |want: &Want, from| match &self.store {
            Some(store) => store.fetch(want, from).await,
            // Nothing is enlisted.
            None => Err(Failure::Refused("nothing is kept".to_owned())),
        };
        tokio::select! {
            why = self.publish_all() => why,
            why = self.follow() => why,
            why = self.stay() => why,
            why = self.receiver.stitcher.run(&self.port, fetch) => why,
        }
    }

    /// Waits until the server has handled all that was sent before.
    async fn fence(&self) -> Result<(), Why> {
        let number = self.fences.fetch_add(1, Ordering::Relaxed) + 1;
        let payload = Bytes::copy_from_slice(&number.to_be_bytes());
        let mut passed = self.passed.clone();
        let passing = async {
            self.client.publish(self.fence.clone(), payload).await.map_err(|error| words::foreign(&error))?;
            passed
                .wait_for(|passed| *passed >= number)
                .await
                .map_err(|_| "the connection ended".to_owned())?;
            Ok(())
        };
        self.port.within(passing).await?
    }

    async fn restore(&self) -> Result<(), Why> {
        for chunk in self.port.wanted().chunks(SUBSCRIBE_MAX) {
            self.subscribe(chunk).await?;
        }
        // Also where nothing is subscribed to, so that it is known that what we publish arrives.
        self.fence().await?;
        self.port.up();
        Ok(())
    }

    async fn subscribe(&self, wants: &[Arc<Want>]) -> Result<(), Why> {
        let mut new = Vec::with_capacity(wants.len());
        for want in wants {
            let live = Arc::new(Live {
                want: Arc::clone(want),
                announced: AtomicBool::new(false),
                refused: AtomicBool::new(false),
                task: Mutex::default(),
            });
            let old = self.receiver.live().insert(want.topic.clone(), Arc::clone(&live));
            if let Some(old) = old {
                old.end();
            }
            let subscribing = self.client.subscribe(self.receiver.source(want));
            let subscriber = self.port.within(subscribing).await?.map_err(|error| words::foreign(&error))?;
            let task = pump(Arc::clone(&self.receiver), Arc::clone(&live), subscriber);
            let handle = self.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(task);
            *live.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(handle);
            new.push(live);
        }
        self.fence().await?;
        for live in new {
            self.receiver.announce(&live);
        }
        Ok(())
    }

    async fn follow(&self) -> Why {
        loop {
            let mut new = Vec::new();
            for Change { topic, want } in self.port.changes(SUBSCRIBE_MAX).await {
                let known = self.receiver.live().get(&topic).cloned();
                match (known, want) {
                    (Some(live), Some(want)) if Arc::ptr_eq(&live.want, &want) => {}
                    (_, Some(want)) => new.push(want),
                    (Some(live), None) => {
                        live.end();
                        self.receiver.live().remove(&topic);
                    }
                    (None, None) => {}
                }
            }
            self.tidy();
            if !new.is_empty()
                && let Err(why) = self.subscribe(&new).await
            {
                return why;
            }
        }
    }

    /// Forgets tasks that have ended.
    fn tidy(&self) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
    }

    /// Asks whether the server is there.
    async fn stay(&self) -> Why {
        loop {
            tokio::time::sleep(self.port.ask_interval()).await;
            let there = match &self.store {
                Some(store) => store.look().await,
                None => self.fence().await,
            };
            if let Err(why) = there {
                return why;
            }
        }
    }

    async fn publish_all(&self) -> Why {
        loop {
            let batch = self.port.batch().await;
            if let Err(why) = self.publish(&batch).await {
                return why;
            }
        }
    }

    async fn publish(&self, batch: &[Outgoing]) -> Result<(), Why> {
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut awaited = Vec::new();
        let mut plain = false;
        for message in batch {
            let payload = joined(message);
            match &self.store {
                Some(store) if message.keep == Keep::Yes => {
                    let subject = self.receiver.name(jetstream::KEPT, &message.topic);
                    match self.port.within(store.publish(subject, payload)).await?? {
                        Ok(acknowledged) => {
                            awaited.push((outcomes.len(), acknowledged));
                            outcomes.push(Ok(()));
                        }
                        Err(why) => outcomes.push(Err(why)),
                    }
                }
                _ => {
                    let subject = self.receiver.name(PLAIN, &message.topic);
                    outcomes.push(match self.port.within(self.client.publish(subject, payload)).await? {
                        Ok(()) => {
                            plain = true;
                            Ok(())
                        }
                        Err(error) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                            Err(too_large(&self.client, message.len()))
                        }
                        Err(error) => return Err(words::foreign(&error)),
                    });
                }
            }
        }
        for (place, acknowledged) in awaited {
            let outcome = self.port.within(jetstream::acknowledged(acknowledged)).await??;
            if let Some(there) = outcomes.get_mut(place) {
                *there = outcome;
            }
        }
        if plain {
            self.fence().await?;
        }
        self.port.settle(batch, outcomes);
        Ok(())
    }
}

fn too_large(client: &Client, bytes: usize) -> Why {
    format!("it has {bytes} bytes, and the broker takes {}", client.server_info().max_payload)
}

/// The payload in one piece: the library takes no other.
fn joined(message: &Outgoing) -> Bytes {
    if message.head.is_empty() {
        return message.body.clone();
    }
    let mut whole = BytesMut::with_capacity(message.len());
    whole.extend_from_slice(&message.head);
    whole.extend_from_slice(&message.body);
    whole.freeze()
}

async fn pump(receiver: Arc<Receiver>, live: Arc<Live>, mut subscriber: Subscriber) {
    while let Some(message) = subscriber.next().await {
        receiver.message(&live, message);
    }
}

/// Why a connection was not made, in words.
fn explained(error: &ConnectError) -> Why {
    let said = words::foreign(error);
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            format!("the broker refuses this user and password ({said})")
        }
        ConnectErrorKind::TimedOut => "the broker did not answer in time".to_owned(),
        _ if said.contains("invalid peer certificate") => {
            format!("the server's certificate is not trusted ({said}); see broker.ca_file")
        }
        _ => said,
    }
}

/// A header of JetStream's that is a number.
fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.as_str().parse().ok()
}
