//! The control half of the protocol: JSON text messages, both ways. Types only; the rules are in `session`.
//!
//! Requests are read strictly: an unknown field, a duplicate one or an unknown type is an error by name. Numbers that can
//! pass 2^53 (instants) are strings of digits, because a browser's JSON would round them.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Seq;
use super::cursor::Place;
use super::relay::NodeId;
use crate::config::Secret;

/// Largest `id` that a request may carry: JSON numbers above it are not exact in every client.
pub const REQUEST_ID_MAX: u64 = (1 << 53) - 1;

/// What a client may say.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Request {
    /// Watch a channel or a pattern, or change how it is delivered.
    Subscribe(Subscribe),
    /// Stop watching.
    Unsubscribe(Unsubscribe),
    /// Open a channel for publishing.
    Advertise(Advertise),
    /// Measure the round trip and the clock offset.
    Ping(Ping),
    /// Ask for the connection's ledger, or report arrival latencies.
    Stats(Stats),
    /// Say who one is, or go on with a new token.
    Auth(Auth),
    /// Who is on a channel.
    Presence(Presence),
    /// What is kept of a channel.
    History(History),
}

impl Request {
    /// The `id` that its answer carries.
    #[must_use]
    pub const fn id(&self) -> Option<u64> {
        match self {
            Self::Subscribe(request) => request.id,
            Self::Unsubscribe(request) => request.id,
            Self::Advertise(request) => request.id,
            Self::Ping(request) => request.id,
            Self::Stats(request) => request.id,
            Self::Auth(request) => request.id,
            Self::Presence(request) => request.id,
            Self::History(request) => request.id,
        }
    }
}

/// `subscribe`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subscribe {
    /// Echoed in the answer.
    pub id: Option<u64>,
    /// A channel name or a pattern.
    pub channel: String,
    /// What overflow of the outbox does to this subscription.
    #[serde(default)]
    pub policy: Policy,
    /// Longest wait in a batch; 0 sends each publisher message at once. Default: the server's flush window.
    pub max_delay_ms: Option<u32>,
    /// What waited longer in the outbox becomes a gap.
    pub max_age_ms: Option<u32>,
    /// Most samples per second; the newest are kept.
    pub max_rate_hz: Option<f64>,
    /// Begin behind a cursor; for a pattern, behind one for each channel.
    pub since: Option<Since>,
    /// Begin with so many samples of the past.
    pub last: Option<serde_json::Value>,
    /// Begin with what was received in the last so many milliseconds.
    pub last_ms: Option<serde_json::Value>,
}

/// `subscribe.since` as it was given.
#[derive(Debug)]
pub enum Since {
    /// A cursor.
    Text(String),
    /// Cursors by the names of channels, in the order in which they came.
    Named(Vec<(String, serde_json::Value)>),
    /// Anything else.
    Other(serde_json::Value),
}

impl<'de> Deserialize<'de> for Since {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Since;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a cursor, or an object with a cursor for each channel")
            }
            fn visit_str<E>(self, text: &str) -> Result<Since, E> {
                Ok(Since::Text(text.to_owned()))
            }
            /// A map of the reader's own would keep the last of two with one name.
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Since, A::Error> {
                let mut named = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    named.push(entry);
                }
                Ok(Since::Named(named))
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, seq: A) -> Result<Since, A::Error> {
                Deserialize::deserialize(serde::de::value::SeqAccessDeserializer::new(seq)).map(Since::Other)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Since, E> {
                Ok(Since::Other(value.into()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Since, E> {
                Ok(Since::Other(value.into()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Since, E> {
                Ok(Since::Other(value.into()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Since, E> {
                Ok(Since::Other(value.into()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// `history`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// Echoed in the answer.
    pub id: Option<u64>,
    /// The name of the channel.
    pub channel: String,
}

/// `unsubscribe`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unsubscribe {
    /// Echoed in the answer.
    pub id: Option<u64>,
    /// The name or pattern as it was subscribed.
    pub channel: String,
}

/// `advertise`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Advertise {
    /// Echoed in the answer.
    pub id: Option<u64>,
    /// The name of the channel.
    pub channel: String,
}

/// `ping`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ping {
    /// Echoed in the answer.
    pub id: Option<u64>,
    /// The client's clock, echoed: with the answer's two instants the client computes offset and round trip as NTP does.
    pub client_ns: Option<Digits>,
}

/// `stats`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stats {
    /// Echoed in the answer.
    pub id: Option<u64>,
    /// Latencies that the client measured, received to arrival, in nanoseconds; at most [`ARRIVALS_MAX`].
    #[serde(default)]
    pub arrival_ns: Vec<u64>,
}

/// Most latencies in one `stats`.
pub const ARRIVALS_MAX: usize = 1_000;

/// `auth`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Auth {
    /// Echoed in the answer.
    pub id: Option<u64>,
    /// A JSON Web Token.
    pub token: Secret,
}

/// `presence`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Presence {
    /// Echoed in the answer.
    pub id: Option<u64>,
    /// The name of the channel.
    pub channel: String,
}

/// What overflow of the outbox does to a subscription.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// The oldest waiting frame makes room.
    #[default]
    DropOldest,
    /// The new frame is not taken.
    DropNewest,
    /// Only the newest sample matters: a waiting one is replaced.
    Latest,
    /// The connection ends, 4413.
    Disconnect,
}

/// What the server says.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event<'a> {
    /// First message of every connection.
    Welcome {
        /// Version of the protocol and the data codec: the subprotocol.
        protocol: &'static str,
        /// Number of this connection.
        connection: u64,
        /// The server's clock.
        server_ns: Digits,
        /// The owner of `$user.ID`: the subject of the token, or who the client says it is where there are no keys.
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<&'a str>,
        /// When the token ends, in seconds of Unix time.
        #[serde(skip_serializing_if = "Option::is_none")]
        expires_s: Option<u64>,
        /// The time to send an `auth`, where one is needed before anything else.
        #[serde(skip_serializing_if = "Option::is_none")]
        auth_timeout_ms: Option<u64>,
        /// What the server refuses.
        limits: WelcomeLimits,
        /// What the server does if not asked otherwise.
        settings: WelcomeSettings,
    },
    /// Answer to `subscribe`: the options as they took effect and the channels that match now.
    Subscribed {
        /// Of the request.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        /// The name or pattern.
        subscription: &'a str,
        /// As it took effect.
        policy: Policy,
        /// As it took effect.
        max_delay_ms: u32,
        /// As it took effect.
        max_age_ms: u32,
        /// As it took effect; null is no limit.
        max_rate_hz: Option<f64>,
        /// The channels that match now.
        channels: Vec<ChannelEntry<'a>>,
    },
    /// Answer to `auth`.
    Authenticated {
        /// Of the request.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        /// The owner of `$user.ID`.
        user: &'a str,
        /// When the token ends, in seconds of Unix time.
        #[serde(skip_serializing_if = "Option::is_none")]
        expires_s: Option<u64>,
    },
    /// The token ends soon: the connection, too, unless an `auth` brings another.
    TokenExpiring {
        /// When, in seconds of Unix time.
        expires_s: u64,
    },
    /// Answer to `unsubscribe`, with the ledger of each channel that it ends.
    Unsubscribed {
        /// Of the request.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        /// The name or pattern.
        subscription: &'a str,
        /// Final ledgers.
        channels: Vec<Ledger>,
    },
    /// A channel has ended: it was another server's, which is gone. The subscription stays.
    Ended {
        /// Its final ledger.
        #[serde(flatten)]
        ledger: Ledger,
    },
    /// Answer to `advertise`.
    Advertised {
        /// Of the request.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        /// The channel and its number; `seq` is the sequence of the next sample.
        #[serde(flatten)]
        channel: ChannelEntry<'a>,
    },
    /// A new channel matched a pattern.
    Channel {
        /// The pattern.
        subscription: &'a str,
        /// The channel.
        #[serde(flatten)]
        channel: ChannelEntry<'a>,
    },
    /// A publish was accepted: its samples have the sequences `seq` to `seq + count - 1`.
    Ack {
        /// `Publish.ack`.
        id: u64,
        /// The channel.
        channel: u32,
        /// Sequence of its first sample.
        seq: Seq,
        /// Its samples.
        count: u32,
        /// What is promised of them.
        guarantee: Guarantee,
    },
    /// Samples that this connection will not get.
    Gap {
        /// The channel.
        channel: u32,
        /// First sequence of the span.
        from: Seq,
        /// Last sequence of the span.
        to: Seq,
        /// How many samples of the span are lost; the others were or will be delivered.
        count: u64,
        /// Why.
        reason: GapReason,
    },
    /// The end of a replay: what comes from here on is live. Goes in the data lane, behind the last frame of the past.
    Live {
        /// The channel.
        channel: u32,
        /// Sequence of the first sample that is live.
        seq: Seq,
    },
    /// Answer to `history`.
    History {
        /// Of the request.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        /// Of the request.
        channel: &'a str,
        /// What is kept, by stream.
        streams: &'a [KeptStream],
    },
    /// In silence: the newest sequence of each subscribed channel.
    Heartbeat {
        /// The server's clock.
        server_ns: Digits,
        /// One for each channel.
        heads: &'a [Head],
    },
    /// Answer to `ping`.
    Pong {
        /// Of the request.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        /// Of the request.
        #[serde(skip_serializing_if = "Option::is_none")]
        client_ns: Option<Digits>,
        /// When the server read the request.
        received_ns: Digits,
        /// When the server put the answer into the outbox's control lane.
        sent_ns: Digits,
    },
    /// Answer to `stats`.
    Stats {
        /// Of the request.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        /// Waiting in the outbox.
        outbox_frames: usize,
        /// Waiting in the outbox.
        outbox_bytes: usize,
        /// One ledger for each channel.
        channels: Vec<Ledger>,
    },
    /// Answer to `presence`.
    Presence {
        /// Of the request.
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        /// The name of the channel.
        channel: &'a str,
        /// Connections that receive it.
        count: usize,
        /// Who they are, unless they are too many.
        #[serde(skip_serializing_if = "Option::is_none")]
        members: Option<&'a [Present]>,
        /// Whether other servers may have more: not all that are known have answered, or the broker is away.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        partial: bool,
        /// Where `$presence.NAME` stood then, if somebody watches it.
        #[serde(flatten, skip_serializing_if = "Option::is_none")]
        as_of: Option<AsOf>,
    },
    /// A request failed; the connection lives.
    Error {
        /// Of the request, where it could be read.
        id: Option<u64>,
        /// Its name.
        code: ErrorCode,
        /// The field, the value and the remedy.
        message: &'a str,
    },
    /// The server is about to close the connection for a reason of its own.
    Goodbye {
        /// Label of the close reason.
        reason: &'static str,
        /// When to come back.
        reconnect_after_ms: u64,
        /// Where each channel stood.
        positions: &'a [Position],
    },
}

/// A channel as control messages show it.
#[derive(Debug, Serialize)]
pub struct ChannelEntry<'a> {
    /// Its number in data frames.
    pub channel: u32,
    /// Its name.
    pub name: &'a str,
    /// The life of its sequence.
    pub epoch: u32,
    /// Sequence of the first sample that will come.
    pub seq: Seq,
    /// The place before it; not of interest to a publisher.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<Place>,
    /// What comes of the past, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay: Option<Replay>,
}

/// What a subscription gets of the past of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Replay {
    /// Whether it is all that was asked for.
    pub outcome: ReplayOutcome,
    /// How many samples come before the live ones, as of now.
    pub samples: u64,
}

/// How much of what was asked for comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplayOutcome {
    /// All of it.
    Replayed,
    /// Some is not kept any more: a `gap` with reason `history`.
    Partial,
    /// The cursor is of another life of the sequence, or there is none: what is kept.
    Reset,
}

impl ReplayOutcome {
    /// Every outcome.
    pub const ALL: [Self; 3] = [Self::Replayed, Self::Partial, Self::Reset];

    /// The name on the wire and in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Replayed => "replayed",
            Self::Partial => "partial",
            Self::Reset => "reset",
        }
    }
}

/// What is kept of one stream of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct KeptStream {
    /// Its number.
    pub channel: u32,
    /// The life of its sequence.
    pub epoch: u32,
    /// Sequence of the oldest sample that is kept.
    pub first: Seq,
    /// Sequence of the newest one; less than `first` if none is.
    pub last: Seq,
    /// Samples.
    pub samples: u64,
    /// Bytes.
    pub bytes: usize,
    /// Age of the oldest frame.
    pub age_ms: u64,
}

/// The ledger of one channel of a connection; `published = delivered + conflated + dropped + queued`, exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Ledger {
    /// The channel.
    pub channel: u32,
    /// Samples sealed for this subscription since it began.
    pub published: u64,
    /// Samples handed to the kernel.
    pub delivered: u64,
    /// Samples left out by conflation or the rate limit.
    pub conflated: u64,
    /// Samples lost to overflow or age.
    pub dropped: u64,
    /// Samples waiting in the outbox.
    pub queued: u64,
}

/// The newest sequence of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Head {
    /// The channel.
    pub channel: u32,
    /// Its newest sequence; 0 if it has had no sample.
    pub seq: Seq,
    /// The same, for a `since`.
    pub cursor: Place,
}

/// A place in a channel's sequence, across lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Position {
    /// The channel.
    pub channel: u32,
    /// Its name.
    pub name: Box<str>,
    /// The life of its sequence.
    pub epoch: u32,
    /// The newest sequence sent to this connection, or skipped with a `gap`.
    pub seq: Seq,
    /// The same, for a `since`.
    pub cursor: Place,
}

/// A connection that receives a channel.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Present {
    /// The life of its server, unless it is this one: numbers of connections are each server's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<NodeId>,
    /// Its number.
    pub connection: u64,
    /// The owner of its `$user.ID`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<Box<str>>,
}

/// The last sample of `$presence.NAME` that an answer to `presence` takes into account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct AsOf {
    /// The life of its sequence.
    pub epoch: u32,
    /// Its sequence; 0 if there was none.
    pub seq: Seq,
}

/// What an `ack` promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Guarantee {
    /// The samples have their sequences and go to whoever receives the channel.
    Accepted,
    /// And they are safe on this server's disk: they outlive its process, and its power.
    Durable,
}

/// Why samples are lost to a subscriber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GapReason {
    /// The connection was too slow: overflow or age.
    Slow,
    /// Policy `latest`: newer samples took their place.
    Conflated,
    /// `max_rate_hz`.
    Rate,
    /// Not kept any more, in a replay.
    History,
    /// Lost on the way from another server.
    Broker,
}

/// Names of errors: a closed list, `docs/PROTOCOL.md` shows it as a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// Not JSON, not an object, an unknown type or field, a wrong value.
    BadRequest,
    /// A name or pattern outside the grammar.
    BadChannel,
    /// A data message that is not what its codec says, or a sample without a value.
    BadPayload,
    /// Known, but not in this version.
    Unsupported,
    /// One more than a limit allows.
    LimitExceeded,
    /// Too many messages or bytes per second; what was over the limit was not taken.
    RateLimited,
    /// `unsubscribe` of what is not subscribed.
    NotSubscribed,
    /// A publish to a channel that this connection did not advertise.
    NotAdvertised,
    /// A channel that belongs to the server or to somebody else, or that the token gives no right to.
    Forbidden,
    /// No token yet, or one that is not taken.
    Unauthorized,
    /// The token has ended; the connection ends with it.
    TokenExpired,
}

impl ErrorCode {
    /// Every code, in the order of the table.
    pub const ALL: [Self; 11] = [
        Self::BadRequest,
        Self::BadChannel,
        Self::BadPayload,
        Self::Unsupported,
        Self::LimitExceeded,
        Self::RateLimited,
        Self::NotSubscribed,
        Self::NotAdvertised,
        Self::Forbidden,
        Self::Unauthorized,
        Self::TokenExpired,
    ];

    /// The name on the wire and in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::BadChannel => "bad_channel",
            Self::BadPayload => "bad_payload",
            Self::Unsupported => "unsupported",
            Self::LimitExceeded => "limit_exceeded",
            Self::RateLimited => "rate_limited",
            Self::NotSubscribed => "not_subscribed",
            Self::NotAdvertised => "not_advertised",
            Self::Forbidden => "forbidden",
            Self::Unauthorized => "unauthorized",
            Self::TokenExpired => "token_expired",
        }
    }
}

/// `welcome.limits`.
#[derive(Clone, Debug, Serialize)]
pub struct WelcomeLimits {
    /// Largest WebSocket message that is taken.
    pub message_bytes_max: usize,
    /// Most samples in one `Publish`.
    pub message_samples_max: usize,
    /// Most subscriptions (names and patterns) of a connection.
    pub subscriptions_max: usize,
    /// Most channels of a connection, subscribed by name or pattern; as many may be advertised.
    pub channels_max: usize,
    /// Longest channel name.
    pub channel_name_bytes_max: usize,
    /// Publishes per second; 0 is no limit.
    pub publish_messages_per_s_max: u32,
    /// Published bytes per second; 0 is no limit.
    pub publish_bytes_per_s_max: u64,
    /// Published samples per second; 0 is no limit.
    pub publish_samples_per_s_max: u64,
    /// Control messages and WebSocket pings per second.
    pub control_messages_per_s_max: u32,
}

/// `welcome.settings`.
#[derive(Clone, Debug, Serialize)]
pub struct WelcomeSettings {
    /// The flush window.
    pub max_delay_ms: u32,
    /// Default of the option.
    pub max_age_ms: u32,
    /// Silence before a `heartbeat`.
    pub heartbeat_ms: u64,
    /// Time between WebSocket pings.
    pub ping_ms: u64,
    /// Time to answer one.
    pub pong_timeout_ms: u64,
}

/// A `u64` that JSON carries as a string of digits; read from a string or a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digits(pub u64);

impl Serialize for Digits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Digits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Digits;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an unsigned integer, or a string of its digits")
            }
            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Digits, E> {
                Ok(Digits(value))
            }
            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Digits, E> {
                value
                    .parse()
                    .map(Digits)
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Str(value), &self))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}
