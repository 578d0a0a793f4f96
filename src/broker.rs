//! The seam to other nodes: topics and payloads that cross a broker. One thread of its own speaks to the broker, so that a
//! worker never waits for one. Knows nothing of channels, samples or clients.
//!
//! [`Broker`] is the side of those who publish and subscribe, [`Events`] what comes back. A driver (`broker/redis.rs`,
//! `broker/nats.rs`) is one life of one connection; what all of them need is written once: connecting again with jitter
//! (`broker/thread.rs`), what waits while there is no connection (`broker/outgoing.rs`), what waits for the reader
//! (`broker/incoming.rs`), which topics are wanted (`broker/interest.rs`), and how what is kept and what is live become one
//! sequence (`broker/kept.rs`). A new broker is one file with a [`driver`](self) in it, one entry of [`Kind::ALL`], and one
//! row of the contract test, tests/broker/main.rs.
//!
//! What holds for every broker: messages of one topic and one publisher arrive in order. One may come twice after its
//! publisher's connection broke, since nobody knows then whether it arrived; so receivers have to know messages again. What the
//! broker may have lost is told ([`Event::Lost`]), with a number where there is one.

use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::config::{Config, FilePath, Secret};

mod driver;
mod incoming;
mod interest;
mod kept;
mod kind;
mod nats;
mod outgoing;
mod redis;
mod retry;
mod thread;
mod tls;
mod url;
mod words;

pub use incoming::Events;
pub use kind::{Capabilities, Kind};
pub use thread::{Broker, Counters, FLUSH_TIMEOUT, StartError};
pub use url::{Url, UrlError};

/// Longest topic, in bytes. NATS takes subjects that fill a control line of 4 KiB; this leaves room for the prefix.
pub const TOPIC_BYTES_MAX: usize = 1_024;

/// Topics beside those of channels: the nodes' own.
const OWN_TOPICS_MAX: usize = 4_096;

/// What messages are published on: tokens of ASCII letters, digits and `_-$:@+=~%`, joined by dots. Checked once, so that no
/// broker is ever handed a wildcard, a space or a line break.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic(Arc<str>);

/// The text is no topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a topic is at most {TOPIC_BYTES_MAX} bytes of ASCII letters, digits and _-$:@+=~% in tokens joined by dots"
)]
pub struct TopicError;

impl Topic {
    /// The topic of that text.
    ///
    /// # Errors
    /// It is empty, too long, has an empty token or another character.
    pub fn new(text: &str) -> Result<Self, TopicError> {
        let token = |token: &str| {
            let sound = |byte: u8| {
                byte.is_ascii_alphanumeric()
                    || matches!(byte, b'_' | b'-' | b'$' | b':' | b'@' | b'+' | b'=' | b'~' | b'%')
            };
            !token.is_empty() && token.bytes().all(sound)
        };
        let sound = text.len() <= TOPIC_BYTES_MAX && text.split('.').all(token);
        if sound { Ok(Self(text.into())) } else { Err(TopicError) }
    }
}

impl Deref for Topic {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for Topic {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// Whether a broker that can should keep what is published on a topic. Publishers and subscribers of a topic say the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Keep {
    /// For those who subscribe later, and for the time after a lost connection.
    Yes,
    /// Who is there gets it. It goes by plain publish and subscribe with every broker.
    No,
}

/// A message to publish.
#[derive(Clone, Debug)]
pub struct Outgoing {
    /// Where.
    pub topic: Topic,
    /// Whether it is to be kept.
    pub keep: Keep,
    /// The payload is this and `body`, one behind the other: a header need not be copied in front of a shared frame.
    pub head: Bytes,
    /// See `head`.
    pub body: Bytes,
}

impl Outgoing {
    /// Bytes of the payload.
    #[must_use]
    pub fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    /// Whether the payload is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Which way a message went that was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Published here, and not with the broker, as far as this side knows.
    Outgoing,
    /// Published by others, and not delivered here.
    Incoming,
}

/// What the broker tells, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// There is a connection, and every subscription that was there is live again.
    Up,
    /// There is none; it is tried again with growing, jittered delays. Told once for each reason.
    Down {
        /// Why, in words for people: escaped, and without any secret.
        why: String,
    },
    /// Live from here on. Told once for each call of [`Broker::subscribe`], not again after a lost connection.
    Subscribed {
        /// The topic.
        topic: Topic,
        /// What the broker keeps of the topic, oldest first, as far back as [`BrokerSettings::keep_age`] and
        /// [`BrokerSettings::keep_topic_bytes`] let it; the newest is there whatever its age. Backlog and live are one sequence:
        /// none twice, none missing. Empty with a broker that keeps nothing, and for [`Keep::No`].
        backlog: Vec<Bytes>,
    },
    /// A message.
    Message {
        /// The topic.
        topic: Topic,
        /// As it was published, by whomever.
        payload: Bytes,
    },
    /// A subscription that cannot be had; it stays wanted, and is tried again with the next connection.
    Refused {
        /// The topic.
        topic: Topic,
        /// Why, in the words of [`Event::Down`].
        why: String,
    },
    /// Messages are missing, or may be. What is missing of a topic came before the next message of it.
    Lost(Lost),
}

/// See [`Event::Lost`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Which way they went.
    pub side: Side,
    /// Of which topic. `None`: of every topic that this broker does not keep.
    pub topic: Option<Topic>,
    /// How many. `None`: perhaps some, since nobody can know.
    pub messages: Option<u64>,
    /// Why, in the words of [`Event::Down`].
    pub why: String,
}

/// What a broker is told.
#[derive(Clone, Debug)]
pub struct BrokerSettings {
    /// `SCHEME://[USER[:PASSWORD]@]HOST[:PORT][,HOST[:PORT]..][/DATABASE]`, with a scheme of [`Kind::ALL`].
    pub url: Secret,
    /// A file with the password, for the user of the URL. Read for each connection.
    pub password_file: Option<PathBuf>,
    /// NATS only: a file with a JWT and the seed of an NKEY. Read for each connection.
    pub credentials_file: Option<PathBuf>,
    /// With TLS: the CAs whose servers are trusted, in place of this machine's.
    pub ca_file: Option<PathBuf>,
    /// First tokens of every name that the broker sees, so that several systems can share one.
    pub prefix: Topic,
    /// Most bytes and messages to publish that wait. Above, the oldest are dropped and told as lost.
    pub outgoing_bytes_max: usize,
    /// See `outgoing_bytes_max`.
    pub outgoing_messages_max: usize,
    /// Most bytes and messages that wait for [`Events::recv`]. Above, the oldest that the broker does not keep are dropped and
    /// told as lost; what it keeps is left with it until there is room.
    pub incoming_bytes_max: usize,
    /// See `incoming_bytes_max`.
    pub incoming_messages_max: usize,
    /// Most topics subscribed to.
    pub topics_max: usize,
    /// How long a broker keeps messages.
    pub keep_age: Duration,
    /// About how many bytes of each topic Redis Streams keep, and how many bytes a backlog has.
    pub keep_topic_bytes: usize,
    /// How many bytes JetStream keeps of all topics together.
    pub keep_total_bytes: u64,
    /// The longest that connecting takes, and that the broker stays silent when it is asked something. Then the connection is
    /// given up. It is asked something at least twice in that time.
    pub timeout: Duration,
}

impl BrokerSettings {
    /// What the configuration says (`broker.*`); nothing without a broker.
    #[must_use]
    pub fn from_config(config: &Config) -> Option<Self> {
        let all = &config.broker;
        if !all.url.is_set() {
            return None;
        }
        let path = |path: &FilePath| path.get().map(Path::to_owned);
        Some(Self {
            url: all.url.expose().clone(),
            password_file: path(&all.password_file),
            credentials_file: path(&all.credentials_file),
            ca_file: path(&all.ca_file),
            // A rule of the configuration says that it is one.
            prefix: Topic(all.prefix.as_str().into()),
            outgoing_bytes_max: all.outgoing_bytes_max,
            // A message costs something beside its bytes, so bytes are bound enough.
            outgoing_messages_max: usize::MAX,
            incoming_bytes_max: all.incoming_bytes_max,
            incoming_messages_max: usize::MAX,
            topics_max: config.channel.channels_total_max.saturating_add(OWN_TOPICS_MAX),
            keep_age: all.keep,
            keep_topic_bytes: all.keep_channel_bytes,
            keep_total_bytes: all.keep_total_bytes,
            timeout: all.timeout,
        })
    }

    /// For the broker at `url`, with small bounds and the defaults of the configuration otherwise.
    #[must_use]
    pub fn new(url: &str) -> Self {
        Self {
            url: url.into(),
            password_file: None,
            credentials_file: None,
            ca_file: None,
            prefix: Topic("tidewire".into()),
            outgoing_bytes_max: 16 << 20,
            outgoing_messages_max: 65_536,
            incoming_bytes_max: 32 << 20,
            incoming_messages_max: 131_072,
            topics_max: 100_000,
            keep_age: Duration::from_secs(60),
            keep_topic_bytes: 1 << 20,
            keep_total_bytes: 1 << 30,
            timeout: Duration::from_secs(5),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_without_a_broker_has_none() {
        let mut config = Config::default();
        assert!(BrokerSettings::from_config(&config).is_none());
        config.broker.url = "nats://h".parse().expect("an address");
        config.broker.ca_file = "c".parse().expect("a path");
        let settings = BrokerSettings::from_config(&config).expect("there is one");
        assert_eq!((settings.url.expose(), &*settings.prefix), ("nats://h", "tidewire"));
        assert_eq!(settings.ca_file.as_deref(), Some(Path::new("c")));
        assert!(Topic::new(&config.broker.prefix).is_ok());
    }

    #[test]
    fn topics_hold_nothing_that_a_broker_reads_as_more_than_a_name() {
        for text in ["a", "a.b", "$presence.a", "rig-7.A_b.0", "kept.$node"] {
            assert_eq!(&*Topic::new(text).expect("a topic"), text);
        }
        let long = "x".repeat(TOPIC_BYTES_MAX + 1);
        for text in ["", ".", "a.", ".a", "a..b", "a.*", "a.>", "a b", "a\r\nPUB x 1", "\u{e4}", "a/b", &long]
        {
            assert_eq!(Topic::new(text), Err(TopicError), "{text:?}");
        }
    }
}
