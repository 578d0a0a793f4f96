//! JetStream: one stream for everything that is kept under the prefix. What it stores it publishes again, with its sequence and
//! the one before of the same subject; so what is live is what is stored, and a hole is seen.
//!
//! The stream is made if there is none. One that is there is left as it is, so that whoever runs the broker decides on replicas
//! and limits; it only has to publish again.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::context::{
    CreateStreamErrorKind, GetStreamErrorKind, PublishAckFuture, PublishErrorKind,
};
use async_nats::jetstream::stream::{
    Config, ConsumerErrorKind, DiscardPolicy, Info, LastRawMessageErrorKind, Republish, StorageType, Stream,
};
use async_nats::jetstream::{self, Context};
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use futures_util::StreamExt as _;

use super::{number, too_large};
use crate::broker::driver::{Port, Why};
use crate::broker::interest::Want;
use crate::broker::kept::{FETCH_MESSAGES_MAX, Failure, Fetched, From, Gap, Position};
use crate::broker::words;

/// The kinds of subjects: where messages are stored, and where the stream publishes them again.
pub(super) const KEPT: &str = "kept";
pub(super) const LIVE: &str = "live";

/// Bytes that one fetch asks for when it catches up: more than with other brokers, since a fetch is five questions.
const FETCH_BYTES_MAX: usize = 1 << 20;

/// The server remembers messages for this long to know them again. We do not ask for that: receivers know them.
const DUPLICATES: Duration = Duration::from_secs(1);

/// A consumer that was left behind goes after this time.
const INACTIVE: Duration = Duration::from_secs(30);

/// What is not found, in JetStream's answers.
const NOT_FOUND: usize = 404;

/// Why messages are gone.
const TRIMMED: &str = "the broker may have deleted them before they were read";
const ANEW: &str = "the broker has another history than before";

/// What outlives a connection.
#[derive(Debug, Default)]
pub(super) struct Memory {
    looks: Mutex<Looks>,
}

/// How far the stream was at the last two looks.
#[derive(Debug, Default)]
struct Looks {
    warned: bool,
    created: u64,
    /// All up to here was live with us: the look before the last, since what comes and an answer may overtake each other.
    safe: u64,
    last: u64,
}

/// The stream, in one connection.
pub(super) struct Store<'a> {
    port: &'a Port,
    client: Client,
    context: Context,
    stream: Stream<Info>,
    memory: &'a Memory,
    created: u64,
    /// From [`Memory`], of the connections before this one.
    safe: u64,
}

impl<'a> Store<'a> {
    /// Finds the stream, or makes it.
    pub(super) async fn open(port: &'a Port, client: &Client, memory: &'a Memory) -> Result<Self, Why> {
        let mut context = jetstream::new(client.clone());
        // Longer than ours, so that it is ours that is told.
        context.set_timeout(port.settings.timeout.saturating_mul(2));
        let wanted = wanted(port);
        let found = port.within(context.get_stream(&wanted.name)).await?;
        let missing = found.as_ref().is_err_and(|error| match error.kind() {
            GetStreamErrorKind::JetStream(error) => error.code() == NOT_FOUND,
            _ => false,
        });
        let stream = if missing {
            match port.within(context.create_stream(wanted.clone())).await? {
                Ok(_) => {}
                Err(error) if matches!(error.kind(), CreateStreamErrorKind::JetStream(_)) => {
                    let said = words::foreign(&error);
                    // Another node may have made it meanwhile.
                    if port.within(context.get_stream(&wanted.name)).await?.is_err() {
                        return Err(format!("the stream {} cannot be made ({said})", wanted.name));
                    }
                }
                Err(error) => {
                    return Err(format!(
                        "the stream {} cannot be made ({})",
                        wanted.name,
                        words::foreign(&error)
                    ));
                }
            }
            port.within(context.get_stream(&wanted.name)).await?
        } else {
            found
        };
        let stream = stream.map_err(|error| match error.kind() {
            GetStreamErrorKind::Request => {
                format!(
                    "the server has no JetStream ({}); start it with -js, or use nats",
                    words::foreign(&error)
                )
            }
            _ => format!("the stream {} cannot be used ({})", wanted.name, words::foreign(&error)),
        })?;
        let info = stream.cached_info().clone();
        let created = created(&info);
        let safe = {
            let mut looks = memory.looks.lock().unwrap_or_else(PoisonError::into_inner);
            check(&wanted, &info.config, &mut looks.warned)?;
            if looks.created != created {
                *looks = Looks { warned: looks.warned, created, ..Looks::default() };
            }
            let safe = looks.safe;
            // What is there now is not live yet.
            looks.last = safe;
            safe
        };
        Ok(Self { port, client: client.clone(), context, stream, memory, created, safe })
    }

    pub(super) const fn created(&self) -> u64 {
        self.created
    }

    /// Asks whether the stream is still there, and remembers how far it is.
    pub(super) async fn look(&self) -> Result<(), Why> {
        let info = self.info().await?;
        if created(&info) != self.created {
            return Err("the stream was made anew".to_owned());
        }
        let mut looks = self.memory.looks.lock().unwrap_or_else(PoisonError::into_inner);
        looks.safe = looks.last;
        looks.last = info.state.last_sequence;
        Ok(())
    }

    async fn info(&self) -> Result<Info, Why> {
        self.port.within(self.stream.get_info()).await?.map_err(|error| words::foreign(&error))
    }

    /// Hands a message to the library; its confirmation is [`acknowledged`]. The outer error ends the connection.
    pub(super) async fn publish(
        &self,
        subject: String,
        payload: Bytes,
    ) -> Result<Result<PublishAckFuture, Why>, Why> {
        let bytes = payload.len();
        match self.context.publish(subject, payload).await {
            Ok(acknowledged) => Ok(Ok(acknowledged)),
            Err(error) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                Ok(Err(too_large(&self.client, bytes)))
            }
            Err(error) => Err(words::foreign(&error)),
        }
    }

    pub(super) async fn fetch(&self, want: &Want, from: From) -> Result<Fetched, Failure> {
        let subject = format!("{}.{KEPT}.{}", self.port.settings.prefix, want.topic);
        let last = self.port.within(self.stream.get_last_raw_message_by_subject(&subject)).await;
        let last = match last.map_err(Failure::Broken)? {
            Ok(last) => Some(last),
            Err(error) => match error.kind() {
                LastRawMessageErrorKind::NoMessageFound => None,
                LastRawMessageErrorKind::JetStream(said) if said.code() == NOT_FOUND => None,
                _ => return Err(Failure::Broken(words::foreign(&error))),
            },
        };
        let newest = last.as_ref().map_or(0, |last| last.sequence);
        // The others are about as large.
        let bytes = last.as_ref().map_or(1, |last| last.payload.len().max(1));
        let From::After { position, behind, .. } = from else {
            let upto = Position(self.created, newest);
            let Some(last) = last else { return Ok(Fetched { upto, end: true, ..Fetched::default() }) };
            let policy = DeliverPolicy::ByStartTime { start_time: last.time - self.port.settings.keep_age };
            let bytes_max = self.port.settings.keep_topic_bytes;
            let read = Read { until: newest, bytes_max, bytes, newest: true };
            let messages = self.read(subject, policy, read).await?;
            return Ok(Fetched { messages, upto, end: true, ..Fetched::default() });
        };
        let same = position.0 == self.created;
        let base = if same { position.1 } else { 0 };
        let upto = Position(self.created, base);
        if same && newest == base {
            return Ok(Fetched { upto, end: true, ..Fetched::default() });
        }
        let mut messages = Vec::new();
        if newest > base {
            let policy = DeliverPolicy::ByStartSequence { start_sequence: base + 1 };
            let read = Read { until: newest, bytes_max: FETCH_BYTES_MAX, bytes, newest: false };
            messages = self.read(subject, policy, read).await?;
        }
        let state = self.info().await.map_err(Failure::Broken)?.state;
        let older = state.last_sequence < base;
        let gap = if !same || older {
            Some(Gap { messages: None, why: ANEW })
        } else {
            let known = if behind { base } else { base.max(self.safe) };
            // The stream begins behind what was known: who can say what was between.
            (state.first_sequence > known + 1).then_some(Gap { messages: None, why: TRIMMED })
        };
        let read = messages.last().map_or(0, |(position, _): &(Position, Bytes)| position.1);
        // If there was nothing to read, it was deleted meanwhile, and that is seen above.
        let end = newest <= base || read >= newest || messages.is_empty();
        let upto = if end { newest.max(if older { 0 } else { base }) } else { read };
        let upto = Position(self.created, upto);
        Ok(Fetched { gap, messages, upto, end, count: None, anew: !same || older })
    }

    /// Reads what is stored on a subject, with a consumer for this once.
    async fn read(
        &self,
        filter_subject: String,
        deliver_policy: DeliverPolicy,
        read: Read,
    ) -> Result<Vec<(Position, Bytes)>, Failure> {
        let config = pull::Config {
            deliver_policy,
            ack_policy: AckPolicy::None,
            filter_subject,
            inactive_threshold: INACTIVE,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let creating = self.port.within(self.stream.create_consumer(config)).await;
        let consumer = creating.map_err(Failure::Broken)?.map_err(|error| match error.kind() {
            // Such as a stream with as many consumers as it may have.
            ConsumerErrorKind::JetStream(_) => Failure::Refused(words::foreign(&error)),
            _ => Failure::Broken(words::foreign(&error)),
        })?;
        let reading = self.read_with(&consumer, read).await;
        let name = &consumer.cached_info().name;
        // It goes by itself, too.
        let _ = self.port.within(self.stream.delete_consumer(name)).await;
        reading.map_err(Failure::Broken)
    }

    async fn read_with(
        &self,
        consumer: &jetstream::consumer::Consumer<pull::Config>,
        Read { until, bytes_max, bytes: usual, newest }: Read,
    ) -> Result<Vec<(Position, Bytes)>, Why> {
        let mut found = VecDeque::new();
        let mut bytes = 0;
        // Whatever is asked for is sent, wanted or not.
        let messages = (bytes_max.min(FETCH_BYTES_MAX) / usual).clamp(1, FETCH_MESSAGES_MAX);
        loop {
            let fetching = consumer.fetch().max_messages(messages);
            let batch = self.port.within(fetching.messages()).await?;
            let mut batch = batch.map_err(|error| words::foreign(&error))?;
            let mut some = false;
            while let Some(message) = self.port.within(batch.next()).await? {
                let message = message.map_err(|error| words::foreign(&error))?;
                let info = message.info().map_err(|error| words::foreign(&error))?;
                let (sequence, pending) = (info.stream_sequence, info.pending);
                if sequence > until {
                    return Ok(found.into());
                }
                some = true;
                bytes += message.payload.len();
                if !newest && bytes > bytes_max && !found.is_empty() {
                    return Ok(found.into());
                }
                found.push_back((Position(self.created, sequence), message.payload.clone()));
                while newest && bytes > bytes_max && found.len() > 1 {
                    bytes -= found.pop_front().map_or(0, |(_, payload)| payload.len());
                }
                if sequence >= until || pending == 0 || (!newest && found.len() >= FETCH_MESSAGES_MAX) {
                    return Ok(found.into());
                }
            }
            if !some {
                return Ok(found.into());
            }
        }
    }
}

/// How far to read.
#[derive(Clone, Copy)]
struct Read {
    /// Up to this sequence.
    until: u64,
    bytes_max: usize,
    /// What one has, about.
    bytes: usize,
    /// Whether it is the newest that the bytes are for.
    newest: bool,
}

fn created(info: &Info) -> u64 {
    u64::try_from(info.created.unix_timestamp_nanos()).unwrap_or(0)
}

/// The stream as we make it.
fn wanted(port: &Port) -> Config {
    let settings = &port.settings;
    let name: String = settings
        .prefix
        .chars()
        .map(|character| if character.is_ascii_alphanumeric() || character == '-' { character } else { '_' })
        .collect();
    Config {
        name: format!("{name}_kept"),
        description: Some("Telemetry of Tidewire, for those who subscribe later".to_owned()),
        subjects: vec![format!("{}.{KEPT}.>", settings.prefix)],
        max_age: settings.keep_age,
        max_bytes: i64::try_from(settings.keep_total_bytes).unwrap_or(i64::MAX),
        discard: DiscardPolicy::Old,
        storage: StorageType::File,
        num_replicas: 1,
        duplicate_window: DUPLICATES.min(settings.keep_age),
        republish: Some(Republish {
            source: format!("{}.{KEPT}.>", settings.prefix),
            destination: format!("{}.{LIVE}.>", settings.prefix),
            headers_only: false,
        }),
        ..Config::default()
    }
}

/// Whether a stream that is there can be used.
fn check(wanted: &Config, found: &Config, warned: &mut bool) -> Result<(), Why> {
    if found.republish != wanted.republish || found.subjects != wanted.subjects {
        return Err(format!(
            "the stream {} is there and does not store {} and publish it again as {}; delete it, or make it so",
            wanted.name,
            wanted.subjects.concat(),
            wanted.republish.as_ref().map_or("", |republish| &republish.destination),
        ));
    }
    if !*warned && (found.max_age != wanted.max_age || found.max_bytes != wanted.max_bytes) {
        *warned = true;
        tracing::warn!(
            stream = wanted.name,
            max_age_ms = u64::try_from(found.max_age.as_millis()).unwrap_or(u64::MAX),
            max_bytes = found.max_bytes,
            "the broker's stream has other limits than broker.keep_*; they stay as they are"
        );
    }
    Ok(())
}

/// What became of a message. The outer error ends the connection.
pub(super) async fn acknowledged(acknowledged: PublishAckFuture) -> Result<Result<(), Why>, Why> {
    match acknowledged.await {
        Ok(_) => Ok(Ok(())),
        Err(error) => match error.kind() {
            PublishErrorKind::StreamNotFound => Err("the stream is gone".to_owned()),
            PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe | PublishErrorKind::MaxAckPending => {
                Err(words::foreign(&error))
            }
            _ => Ok(Err(format!("the broker does not take it ({})", words::foreign(&error)))),
        },
    }
}

/// Where a message stands that the stream has published again, and the one before it of the same subject.
pub(super) fn positions(headers: Option<&HeaderMap>, created: u64) -> Option<(Position, Position)> {
    let headers = headers?;
    let sequence = number(headers, "Nats-Sequence")?;
    let previous = number(headers, "Nats-Last-Sequence").unwrap_or(0);
    Some((Position(created, previous), Position(created, sequence)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{BrokerSettings, Url};

    #[test]
    fn a_stream_that_is_there_may_have_other_limits_and_has_to_publish_again() {
        let mut settings = BrokerSettings::new("jetstream://127.0.0.1");
        settings.prefix = crate::broker::Topic::new("plant-7.$x").expect("a prefix");
        let url = Url::parse(settings.url.expose()).expect("a URL");
        let wanted = wanted(&Port::new(settings, url));
        assert_eq!(wanted.name, "plant-7__x_kept");
        let mut warned = false;
        check(&wanted, &wanted, &mut warned).expect("it is the same");
        assert!(!warned);
        let other = Config { max_bytes: 1, num_replicas: 3, ..wanted.clone() };
        check(&wanted, &other, &mut warned).expect("its limits are its own");
        assert!(warned);
        for broken in [
            Config { republish: None, ..wanted.clone() },
            Config { subjects: vec!["plant-7.$x.kept.a".to_owned()], ..wanted.clone() },
        ] {
            let why = check(&wanted, &broken, &mut warned).expect_err("it is of no use");
            assert!(why.contains("plant-7.$x.kept.>") && why.contains("plant-7.$x.live.>"), "{why}");
        }
    }

    #[test]
    fn positions_are_read_from_headers() {
        let mut headers = HeaderMap::new();
        assert_eq!(positions(None, 7), None);
        assert_eq!(positions(Some(&headers), 7), None);
        headers.insert("Nats-Sequence", "12");
        assert_eq!(positions(Some(&headers), 7), Some((Position(7, 0), Position(7, 12))));
        headers.insert("Nats-Last-Sequence", "9");
        assert_eq!(positions(Some(&headers), 7), Some((Position(7, 9), Position(7, 12))));
        headers.insert("Nats-Sequence", "-1");
        assert_eq!(positions(Some(&headers), 7), None);
    }
}
