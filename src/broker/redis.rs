//! Redis (and what speaks its protocol): Pub/Sub, and Streams with Pub/Sub for what is live. One connection for both ways, with
//! RESP3, in which messages and answers go beside each other.
//!
//! A message of a topic that is kept is added to the topic's stream and published by one script, so both have one order, and the
//! published one carries its id. That is not `XREAD BLOCK` over all topics, which would cost the server for each message and
//! node a look at every topic that the node wants (measured with Redis 7.0: 210 us for 1,000 topics, against 20 us for the
//! script, once); and a reader that is slow is cut off by the server, and goes on in the stream where it was.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Cmd, Pipeline, ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo,
    RedisError, RedisWrite, ToRedisArgs, Value, cmd,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::driver::{Driver, Life, Port, Why};
use super::interest::{Change, Want};
use super::kept::{FETCH_BYTES_MAX, FETCH_MESSAGES_MAX, Failure, Fetched, From, Gap, Position, Stitcher};
use super::{Keep, Outgoing, tls, words};

/// The largest value that is taken from the server, in bytes: far above any frame. A larger one ends the connection before it
/// takes the memory.
const VALUE_BYTES_MAX: usize = 128 << 20;

/// The largest payload of a server that does not say: its default.
const BULK_BYTES_MAX: usize = 512 << 20;

/// What a command and an id need beside the payload.
const MARGIN_BYTES: usize = 1 << 10;

/// Channels in one SUBSCRIBE.
const SUBSCRIBE_MAX: usize = 256;

/// How long a stream stays that nobody publishes on: many times the longest break of a connection, so that a stream that is
/// missing was deleted.
const EXPIRY_MIN: Duration = Duration::from_secs(600);

/// A payload of this many bytes is a node of its own in a stream: only such streams can grow by much with one message, so others
/// are looked at once in [`TRIM_ONCE_IN`] messages.
const TRIM_ALWAYS_BYTES: usize = 4 << 10;
const TRIM_ONCE_IN: u32 = 8;

const PUBLISH: &str = include_str!("redis/publish.lua");
const FETCH: &str = include_str!("redis/fetch.lua");

/// Why messages of a stream are gone.
const TRIMMED: &str = "the broker had deleted them before they were read";
const ANEW: &str = "the broker has another history than before";

/// Redis Pub/Sub.
pub(super) fn pubsub() -> Box<dyn Driver> {
    Box::new(Redis { keeps: false })
}

/// Redis Streams.
pub(super) fn streams() -> Box<dyn Driver> {
    Box::new(Redis { keeps: true })
}

struct Redis {
    keeps: bool,
}

impl Driver for Redis {
    fn run<'a>(&'a mut self, port: &'a Arc<Port>) -> Life<'a> {
        Box::pin(async {
            let end = Arc::new(End::default());
            let why = match connect(port, self.keeps, &end).await {
                Ok(session) => session.run().await,
                Err(why) => why,
            };
            // What the socket said is nearer to the cause than what came of it.
            end.why().unwrap_or(why)
        })
    }
}

/// How the socket ended, and how much it said since somebody last looked.
#[derive(Debug, Default)]
struct End {
    why: Mutex<Option<Why>>,
    unseen: AtomicUsize,
}

impl End {
    fn why(&self) -> Option<Why> {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn set(&self, why: Why) {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
    }

    /// A value was read to its end.
    fn seen(&self) {
        self.unseen.store(0, Ordering::Relaxed);
    }
}

/// A stream that remembers how it ended, and that ends where one value is too large.
struct Watched {
    stream: Box<dyn tls::Stream>,
    end: Arc<End>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        let bytes = buffer.filled().len() - before;
        match &read {
            Ok(()) if bytes == 0 => self.end.set("the broker ended the connection".to_owned()),
            Ok(()) => {}
            Err(error) => self.end.set(format!("the connection broke: {}", words::foreign(error))),
        }
        if self.end.unseen.fetch_add(bytes, Ordering::Relaxed) > VALUE_BYTES_MAX {
            let why = format!("the broker sent a value of more than {VALUE_BYTES_MAX} bytes");
            self.end.set(why.clone());
            return Poll::Ready(Err(io::Error::other(why)));
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What the connection's task hands messages to.
struct Receiver {
    port: Arc<Port>,
    end: Arc<End>,
    keeps: bool,
    /// By the name of their channel.
    wanted: Mutex<HashMap<Box<[u8]>, Arc<Want>>>,
    stitcher: Stitcher,
}

impl Receiver {
    fn wanted(&self) -> MutexGuard<'_, HashMap<Box<[u8]>, Arc<Want>>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keeps(&self, keep: Keep) -> bool {
        self.keeps && keep == Keep::Yes
    }

    fn channel(&self, topic: &str, keep: Keep) -> String {
        let kind = if self.keeps(keep) { "kept" } else { "plain" };
        format!("{}.{kind}.{topic}", self.port.settings.prefix)
    }

    /// Called by the connection's task with whatever is no answer.
    fn push(&self, PushInfo { kind, data }: PushInfo) {
        self.end.seen();
        let mut data = data.into_iter();
        let Some(Value::BulkString(channel)) = data.next() else { return };
        let Some(want) = self.wanted().get(&*channel).cloned() else { return };
        match kind {
            PushKind::Subscribe => self.confirmed(&want),
            PushKind::Message => {
                let Some(Value::BulkString(payload)) = data.next() else { return };
                self.message(&want, payload.into());
            }
            _ => {}
        }
    }

    fn confirmed(&self, want: &Arc<Want>) {
        if self.keeps(want.keep) {
            self.stitcher.enlist(want);
        } else {
            self.port.subscribed_unkept(want);
        }
    }

    fn message(&self, want: &Arc<Want>, mut payload: Bytes) {
        if !self.keeps(want.keep) {
            return self.port.message(want, payload, false);
        }
        match split_id(&payload) {
            Some((id, at)) => {
                let payload = payload.split_off(at);
                let mut place = want.place();
                let last = place.position.unwrap_or_default();
                // The stream was left alone for so long that it went; this is another one.
                if id.0.saturating_sub(last.0) >= expiry_ms(&self.port) && place.count.is_some() {
                    place.count = Some(0);
                }
                drop(place);
                self.stitcher.live(&self.port, want, None, id, payload);
            }
            // Not published by a script of ours: it has no place in the stream.
            None => self.port.message(want, payload, false),
        }
    }
}

/// An id in front of a payload, and where the payload begins.
fn split_id(text: &[u8]) -> Option<(Position, usize)> {
    /// Two numbers of 64 bits and what is between and behind them.
    const ID_BYTES_MAX: usize = 42;
    let end = text.iter().take(ID_BYTES_MAX).position(|byte| *byte == b' ')?;
    Some((id(text.get(..end)?)?, end + 1))
}

fn id(text: &[u8]) -> Option<Position> {
    let (ms, number) = std::str::from_utf8(text).ok()?.split_once('-')?;
    Some(Position(ms.parse().ok()?, number.parse().ok()?))
}

fn expiry_ms(port: &Port) -> u64 {
    let expiry = EXPIRY_MIN.max(port.settings.keep_age.saturating_mul(2));
    u64::try_from(expiry.as_millis()).unwrap_or(u64::MAX)
}

/// A payload of two parts, as one argument.
struct Payload<'a>(&'a Outgoing);

impl ToRedisArgs for Payload<'_> {
    fn write_redis_args<W: ?Sized + RedisWrite>(&self, out: &mut W) {
        use std::io::Write as _;
        let mut writer = out.writer_for_next_arg();
        // It is a buffer in memory.
        let _ = writer.write_all(&self.0.head).and_then(|()| writer.write_all(&self.0.body));
    }
}

struct Session {
    port: Arc<Port>,
    receiver: Arc<Receiver>,
    connection: MultiplexedConnection,
    driver: tokio::task::JoinHandle<()>,
    bulk_bytes_max: usize,
    publish: String,
    fetch: String,
}

async fn connect(port: &Arc<Port>, keeps: bool, end: &Arc<End>) -> Result<Session, Why> {
    let receiver = Arc::new(Receiver {
        port: Arc::clone(port),
        end: Arc::clone(end),
        keeps,
        wanted: Mutex::default(),
        stitcher: Stitcher::default(),
    });
    let mut info = RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP3)
        .set_db(i64::from(port.url.database))
        .set_lib_name("tidewire", env!("CARGO_PKG_VERSION"));
    if let Some(user) = &port.url.user {
        info = info.set_username(user);
    }
    if let Some(password) = port.password()? {
        info = info.set_password(password);
    }
    let pushes = Arc::clone(&receiver);
    let config =
        AsyncConnectionConfig::new().set_response_timeout(None).set_push_sender(move |info: PushInfo| {
            pushes.push(info);
            Ok::<(), Infallible>(())
        });
    let connecting = async {
        let stream = Watched { stream: tls::connect(port).await?, end: Arc::clone(end) };
        MultiplexedConnection::new_with_config(&info, stream, config).await.map_err(|error| explained(&error))
    };
    let (connection, driver) = port.within(connecting).await??;
    let driver = tokio::spawn(driver);
    let mut session = Session {
        port: Arc::clone(port),
        receiver,
        connection,
        driver,
        bulk_bytes_max: BULK_BYTES_MAX,
        publish: String::new(),
        fetch: String::new(),
    };
    session.prepare().await?;
    Ok(session)
}

impl Session {
    /// What has to be known and there before anything is published.
    async fn prepare(&mut self) -> Result<(), Why> {
        // Servers of others may hide it.
        let limit =
            self.ask::<HashMap<String, String>>(cmd("CONFIG").arg("GET").arg("proto-max-bulk-len")).await;
        if let Some(limit) = limit.ok().and_then(|limits| limits.get("proto-max-bulk-len")?.parse().ok()) {
            self.bulk_bytes_max = limit;
        }
        if !self.receiver.keeps {
            return Ok(());
        }
        let info = self.ask::<String>(cmd("INFO").arg("server")).await?;
        let version = info.lines().find_map(|line| line.strip_prefix("redis_version:")).unwrap_or("").trim();
        let major: u32 = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
        if major < 7 {
            let version = words::foreign(version);
            return Err(format!(
                "redis-streams needs Redis 7.0 or newer, and this is {version:?}; use redis"
            ));
        }
        self.publish = self.ask(cmd("SCRIPT").arg("LOAD").arg(PUBLISH)).await?;
        self.fetch = self.ask(cmd("SCRIPT").arg("LOAD").arg(FETCH)).await?;
        Ok(())
    }

    async fn ask<T: redis::FromRedisValue>(&self, command: &Cmd) -> Result<T, Why> {
        let mut connection = self.connection.clone();
        let answer = self.port.within(command.query_async(&mut connection)).await?;
        self.receiver.end.seen();
        answer.map_err(|error| explained(&error))
    }

    async fn run(mut self) -> Why {
        let mut driver = std::mem::replace(&mut self.driver, tokio::spawn(async {}));
        let session = &self;
        tokio::select! {
            _ = &mut driver => "the connection ended".to_owned(),
            why = async {
                let restored = session.restore().await;
                match restored {
                    Err(why) => why,
                    Ok(()) => tokio::select! {
                        why = session.publish_all() => why,
                        why = session.follow() => why,
                        why = session.stay() => why,
                        why = session.receiver.stitcher.run(&session.port, async |want, from| session.fetch(want, from).await) => why,
                    },
                }
            } => why,
        }
    }

    async fn restore(&self) -> Result<(), Why> {
        let wants = self.port.wanted();
        for chunk in wants.chunks(SUBSCRIBE_MAX) {
            self.subscribe(chunk).await?;
        }
        self.port.up();
        Ok(())
    }

    /// Asks whether the server is there.
    async fn stay(&self) -> Why {
        loop {
            tokio::time::sleep(self.port.ask_interval()).await;
            if let Err(why) = self.ask::<Value>(&cmd("PING")).await {
                return why;
            }
        }
    }

    async fn follow(&self) -> Why {
        loop {
            let changes = self.port.changes(SUBSCRIBE_MAX).await;
            if let Err(why) = self.change(changes).await {
                return why;
            }
        }
    }

    async fn change(&self, changes: Vec<Change>) -> Result<(), Why> {
        let (mut gone, mut new) = (Vec::new(), Vec::new());
        for Change { topic, want } in changes {
            let channels = [Keep::Yes, Keep::No].map(|keep| self.receiver.channel(&topic, keep));
            let wanted = want.as_ref().map(|want| self.receiver.channel(&topic, want.keep));
            for channel in &channels {
                if wanted.as_ref() != Some(channel)
                    && self.receiver.wanted().remove(channel.as_bytes()).is_some()
                {
                    gone.push(channel.clone());
                }
            }
            let (Some(want), Some(channel)) = (want, wanted) else { continue };
            let known = self.receiver.wanted().insert(channel.into_bytes().into(), Arc::clone(&want));
            match known {
                Some(old) if Arc::ptr_eq(&old, &want) => {}
                // The server never heard that it was unwanted in between.
                Some(_) => self.receiver.confirmed(&want),
                None => new.push(want),
            }
        }
        if !gone.is_empty() {
            let mut connection = self.connection.clone();
            self.port.within(connection.unsubscribe(&gone)).await?.map_err(|error| explained(&error))?;
        }
        if new.is_empty() { Ok(()) } else { self.subscribe(&new).await }
    }

    /// Subscribes; the confirmations come to [`Receiver::push`].
    async fn subscribe(&self, wants: &[Arc<Want>]) -> Result<(), Why> {
        let mut channels = Vec::with_capacity(wants.len());
        for want in wants {
            let channel = self.receiver.channel(&want.topic, want.keep);
            self.receiver.wanted().insert(channel.clone().into_bytes().into(), Arc::clone(want));
            channels.push(channel);
        }
        let mut connection = self.connection.clone();
        let Err(error) = self.port.within(connection.subscribe(&channels)).await? else { return Ok(()) };
        if error.code() != Some("NOPERM") {
            return Err(explained(&error));
        }
        // One that is not allowed has them all refused.
        for (want, channel) in wants.iter().zip(channels) {
            if let Err(error) = self.port.within(connection.subscribe(&channel)).await? {
                self.receiver.wanted().remove(channel.as_bytes());
                self.port.refused(want, explained(&error));
            }
        }
        Ok(())
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
        let fits = |message: &&Outgoing| message.len().saturating_add(MARGIN_BYTES) <= self.bulk_bytes_max;
        let mut pipeline = Pipeline::with_capacity(batch.len());
        for message in batch.iter().filter(fits) {
            pipeline.add_command(self.command(message));
        }
        let mut answers = Vec::new();
        if !pipeline.is_empty() {
            let mut connection = self.connection.clone();
            let sent = connection.send_packed_commands(&pipeline, 0, pipeline.len());
            answers = self.port.within(sent).await?.map_err(|error| explained(&error))?;
            self.receiver.end.seen();
        }
        let mut outcomes = Vec::with_capacity(batch.len());
        let mut answers = answers.into_iter();
        for message in batch {
            outcomes.push(if !fits(&message) {
                let most = self.bulk_bytes_max.saturating_sub(MARGIN_BYTES);
                Err(format!("it has {} bytes, and the broker takes {most}", message.len()))
            } else {
                match answers.next() {
                    // The server was emptied of scripts. All of it goes again.
                    Some(Value::ServerError(error)) if error.code() == "NOSCRIPT" => {
                        return Err("the broker has forgotten its scripts".to_owned());
                    }
                    Some(Value::ServerError(error)) => Err(explained(&RedisError::from(error))),
                    _ => Ok(()),
                }
            });
        }
        self.port.settle(batch, outcomes);
        Ok(())
    }

    fn command(&self, message: &Outgoing) -> Cmd {
        let channel = self.receiver.channel(&message.topic, message.keep);
        if !self.receiver.keeps(message.keep) {
            return cmd("PUBLISH").arg(channel).arg(Payload(message)).take();
        }
        let settings = &self.port.settings;
        let trim = message.len() >= TRIM_ALWAYS_BYTES || fastrand::u32(..TRIM_ONCE_IN) == 0;
        cmd("EVALSHA")
            .arg(&self.publish)
            .arg(1)
            .arg(channel)
            .arg(Payload(message))
            .arg(ms(settings.keep_age))
            .arg(settings.keep_topic_bytes)
            .arg(expiry_ms(&self.port))
            .arg(u8::from(trim))
            .take()
    }

    async fn fetch(&self, want: &Want, from: From) -> Result<Fetched, Failure> {
        let settings = &self.port.settings;
        let (mode, after, bytes_max) = match from {
            From::Newest => ("newest", Position::default(), settings.keep_topic_bytes),
            From::After { position, .. } => ("after", position, FETCH_BYTES_MAX),
        };
        let messages_max = if from == From::Newest { usize::MAX >> 16 } else { FETCH_MESSAGES_MAX };
        let command = cmd("EVALSHA")
            .arg(&self.fetch)
            .arg(1)
            .arg(self.receiver.channel(&want.topic, want.keep))
            .arg(mode)
            .arg(format!("{}-{}", after.0, after.1))
            .arg(bytes_max)
            .arg(messages_max)
            .arg(ms(settings.keep_age))
            .take();
        let mut connection = self.connection.clone();
        let answer = self
            .port
            .within(command.query_async::<Vec<Value>>(&mut connection))
            .await
            .map_err(Failure::Broken)?;
        self.receiver.end.seen();
        let answer = answer.map_err(|error| match error.code() {
            // A key that is no stream, or one that may not be read.
            Some("WRONGTYPE" | "NOPERM" | "ERR") => Failure::Refused(explained(&error)),
            _ => Failure::Broken(explained(&error)),
        })?;
        let look = Look::read(answer, from)
            .ok_or_else(|| Failure::Refused("the broker's answer to a script cannot be read".to_owned()))?;
        Ok(look.judged(from, expiry_ms(&self.port), ms(self.port.down_for())))
    }
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What the script for fetching saw.
#[derive(Debug, Default)]
struct Look {
    now_ms: u64,
    stream: Option<Stream>,
}

#[derive(Debug, Default)]
struct Stream {
    more: bool,
    last: Position,
    added: u64,
    length: u64,
    first: Option<Position>,
    messages: Vec<(Position, Bytes)>,
}

impl Look {
    fn read(answer: Vec<Value>, from: From) -> Option<Self> {
        let mut answer = answer.into_iter();
        let now_ms = number(answer.next()?)?;
        let Some(more) = answer.next() else { return Some(Self { now_ms, stream: None }) };
        let more = number(more)? != 0;
        let last = id(&bytes(answer.next()?)?)?;
        let (added, length) = (number(answer.next()?)?, number(answer.next()?)?);
        let first = id(&bytes(answer.next()?)?);
        let Value::Array(found) = answer.next()? else { return None };
        let mut found = found.into_iter();
        let mut messages = Vec::with_capacity(found.len() / 2);
        while let (Some(entry), Some(payload)) = (found.next(), found.next()) {
            messages.push((id(&bytes(entry)?)?, Bytes::from(bytes(payload)?)));
        }
        if from == From::Newest {
            messages.reverse();
        }
        Some(Self { now_ms, stream: Some(Stream { more, last, added, length, first, messages }) })
    }

    /// What it means for one who knew `from`.
    fn judged(self, from: From, expiry_ms: u64, down_ms: u64) -> Fetched {
        let From::After { position, count, .. } = from else {
            let Stream { last, added, messages, .. } = self.stream.unwrap_or_default();
            return Fetched { messages, upto: last, end: true, count: Some(added), ..Fetched::default() };
        };
        // The stream went by itself before the connection did, since nobody used it: nothing was missed.
        let idle = self.now_ms.saturating_sub(down_ms).saturating_sub(position.0) > expiry_ms;
        let anew = Gap { messages: None, why: ANEW };
        let Some(stream) = self.stream else {
            let empty = count == Some(0);
            return Fetched {
                gap: (!empty && !idle).then_some(anew),
                end: true,
                count: Some(0),
                anew: true,
                ..Fetched::default()
            };
        };
        let Stream { more, last, added, length, first, messages } = stream;
        let upto = if more { messages.last().map_or(last, |(id, _)| *id) } else { last };
        let fetched = Fetched { gap: None, messages, upto, end: !more, count: Some(added), anew: false };
        // It is trimmed from its beginning: if its first message is one that was delivered, nothing is missing.
        let trimmed = first.is_none_or(|first| first > position);
        let unknown = if trimmed { length } else { 0 };
        if last < position || count.is_some_and(|count| added < count + unknown) {
            return Fetched { gap: (!idle).then_some(anew), anew: true, ..fetched };
        }
        let missing = count.map_or(0, |count| added - count - unknown);
        let gap = Gap { messages: Some(missing), why: TRIMMED };
        Fetched { gap: (trimmed && missing > 0).then_some(gap), ..fetched }
    }
}

fn number(value: Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(number).ok(),
        _ => None,
    }
}

fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        _ => None,
    }
}

/// An error of the server or the library, in words.
fn explained(error: &RedisError) -> Why {
    let said = words::foreign(error);
    match error.code() {
        Some("WRONGPASS") => format!("the broker refuses this user and password ({said})"),
        Some("NOAUTH") => format!("the broker wants a password, and none is set ({said})"),
        Some("NOPERM") => format!("the broker does not permit it ({said})"),
        Some("OOM") => format!("the broker is full ({said})"),
        Some("LOADING") => format!("the broker is still starting ({said})"),
        Some("READONLY") => format!("the broker is a copy that takes no messages ({said})"),
        _ => said,
    }
}

#[cfg(test)]
mod tests;
