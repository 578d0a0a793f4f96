//! What a server says in its control messages, read the lenient way: types and fields that are not known here are
//! skipped, and names of policies, reasons and codes stay text, because later servers may add to them.

use serde::Deserialize;

use crate::wire::Seq;
use crate::wire::control::Digits;

/// A control message of the server. Fields as in [`crate::wire::control::Event`], which documents them.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// First message of every connection.
    Welcome(Welcome),
    /// Answer to `subscribe`.
    Subscribed(Subscribed),
    /// Answer to `auth`.
    Authenticated(Authenticated),
    /// The token ends soon, and the connection with it, unless an `auth` brings another.
    TokenExpiring(TokenExpiring),
    /// Answer to `unsubscribe`, or the end of a subscription that a new token gives no right to.
    Unsubscribed(Unsubscribed),
    /// Answer to `advertise`; `seq` is the sequence of the next sample.
    Advertised(Advertised),
    /// A new channel matched a pattern.
    Channel(Channel),
    /// What comes of the channel from here on was published after its past had been replayed.
    Live(Live),
    /// A channel has ended: it was another server's, which is gone. The subscription stays.
    Ended(Ledger),
    /// A publish was accepted.
    Ack(Ack),
    /// Samples that will not come.
    Gap(Gap),
    /// The newest sequence of each subscribed channel.
    Heartbeat(Heartbeat),
    /// Answer to `ping`.
    Pong(Pong),
    /// Answer to `stats`.
    Stats(Stats),
    /// Answer to `presence`.
    Presence(Presence),
    /// Answer to `history`.
    History(History),
    /// A request failed; the connection lives.
    Error(Error),
    /// The server is about to close the connection.
    Goodbye(Goodbye),
    /// A type that this client does not know; ignore it.
    #[serde(other)]
    NotKnown,
}

/// `welcome`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Welcome {
    /// Version of the protocol and the data codec.
    pub protocol: String,
    /// Number of this connection.
    pub connection: u64,
    /// The server's clock, nanoseconds since the Unix epoch.
    pub server_ns: Digits,
    /// What the server refuses.
    pub limits: Limits,
    /// What the server does if not asked otherwise.
    pub settings: Settings,
    /// The time to send an `auth`, in milliseconds, where the server wants one before anything else.
    pub auth_timeout_ms: Option<u64>,
}

/// `welcome.limits`, those that a client needs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Limits {
    /// Largest WebSocket message that is taken, in bytes of payload.
    pub message_bytes_max: usize,
    /// Most samples in one `Publish`.
    pub message_samples_max: usize,
    /// Most channels that a connection receives, and that a `since` names; 0 is not known.
    #[serde(default)]
    pub channels_max: usize,
}

/// `welcome.settings`, those that a client needs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Settings {
    /// Time between WebSocket pings, in milliseconds; 0 is never.
    #[serde(default)]
    pub ping_ms: u64,
    /// Time to answer one, in milliseconds.
    #[serde(default)]
    pub pong_timeout_ms: u64,
}

/// `subscribed`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Subscribed {
    /// Of the request.
    pub id: Option<u64>,
    /// The name or pattern.
    pub subscription: String,
    /// As it took effect.
    pub policy: String,
    /// As it took effect.
    pub max_delay_ms: u32,
    /// As it took effect.
    pub max_age_ms: u32,
    /// As it took effect; `None` is no limit.
    pub max_rate_hz: Option<f64>,
    /// The channels that match now.
    pub channels: Vec<ChannelEntry>,
}

/// `authenticated`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Authenticated {
    /// Of the request.
    pub id: Option<u64>,
    /// The owner of `$user.ID`.
    pub user: String,
    /// When the token ends, in seconds of Unix time.
    pub expires_s: u64,
}

/// `token_expiring`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct TokenExpiring {
    /// When, in seconds of Unix time.
    pub expires_s: u64,
}

/// `unsubscribed`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Unsubscribed {
    /// Of the request.
    pub id: Option<u64>,
    /// The name or pattern.
    pub subscription: String,
    /// Final ledgers.
    pub channels: Vec<Ledger>,
}

/// `advertised`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Advertised {
    /// Of the request.
    pub id: Option<u64>,
    /// The channel.
    #[serde(flatten)]
    pub channel: ChannelEntry,
}

/// `channel`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Channel {
    /// The pattern.
    pub subscription: String,
    /// The channel.
    #[serde(flatten)]
    pub channel: ChannelEntry,
}

/// A channel as control messages show it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ChannelEntry {
    /// Its number in data frames.
    pub channel: u32,
    /// Its name.
    pub name: String,
    /// The life of its sequence.
    pub epoch: u32,
    /// Sequence of the first sample that will come.
    pub seq: Seq,
    /// The place before it, for a `since`; not of interest to a publisher.
    pub cursor: Option<String>,
    /// What comes of the past, where that was asked for.
    pub replay: Option<Replay>,
}

/// What a subscription gets of the past of a channel.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Replay {
    /// `replayed`, `partial` or `reset`.
    pub outcome: String,
    /// Samples before the live ones, as of the answer.
    pub samples: u64,
}

/// `live`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Live {
    /// The channel.
    pub channel: u32,
    /// Sequence of the next sample.
    pub seq: Seq,
}

/// `ack`: the samples have the sequences `seq` to `seq + count - 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Ack {
    /// `Publish.ack`.
    pub id: u64,
    /// The channel.
    pub channel: u32,
    /// Sequence of its first sample.
    pub seq: Seq,
    /// Its samples.
    pub count: u32,
}

/// `gap`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Gap {
    /// The channel.
    pub channel: u32,
    /// First sequence of the span.
    pub from: Seq,
    /// Last sequence of the span.
    pub to: Seq,
    /// How many samples of the span are lost.
    pub count: u64,
    /// Why: `slow`, `conflated`, `rate`, `history`, `broker`, or one that a later server has.
    pub reason: String,
}

/// `heartbeat`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Heartbeat {
    /// The server's clock.
    pub server_ns: Digits,
    /// One for each channel.
    pub heads: Vec<Head>,
}

/// The newest sequence of a channel.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Head {
    /// The channel.
    pub channel: u32,
    /// Its newest sequence; 0 if it has had no sample.
    pub seq: Seq,
    /// The same, for a `since`, once everything up to it has come or was told as a gap: some may wait to be sent.
    pub cursor: Option<String>,
}

/// `pong`: with the client's two instants, offset and round trip follow as in NTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Pong {
    /// Of the request.
    pub id: Option<u64>,
    /// Of the request.
    pub client_ns: Option<Digits>,
    /// When the server read the request.
    pub received_ns: Digits,
    /// When the server answered.
    pub sent_ns: Digits,
}

/// `stats`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Stats {
    /// Of the request.
    pub id: Option<u64>,
    /// Frames waiting in the outbox.
    pub outbox_frames: u64,
    /// Bytes waiting in the outbox.
    pub outbox_bytes: u64,
    /// One ledger for each channel.
    pub channels: Vec<Ledger>,
}

/// The ledger of one channel: `published = delivered + conflated + dropped + queued`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
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

/// `presence`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Presence {
    /// Of the request.
    pub id: Option<u64>,
    /// The name of the channel.
    pub channel: String,
    /// Connections that receive it.
    pub count: u64,
    /// Who they are, unless they are too many.
    pub members: Option<Vec<Present>>,
    /// Whether there may be more on servers that have not answered.
    #[serde(default)]
    pub partial: bool,
    /// Of `$presence.NAME`, if somebody watches it.
    pub epoch: Option<u32>,
    /// Where it stood then.
    pub seq: Option<Seq>,
}

/// A connection on a channel.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Present {
    /// Its server, unless it is the one that has answered.
    pub server: Option<String>,
    /// Its number.
    pub connection: u64,
    /// Who it is, if it has said so.
    pub user: Option<String>,
}

/// `history`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct History {
    /// Of the request.
    pub id: Option<u64>,
    /// The name of the channel.
    pub channel: String,
    /// What is kept of each of its streams.
    pub streams: Vec<KeptStream>,
}

/// What is kept of one stream of a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
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
    pub bytes: u64,
    /// Age of the oldest frame, in milliseconds.
    pub age_ms: u64,
}

/// `error`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Error {
    /// Of the request, where it could be read.
    pub id: Option<u64>,
    /// Its name.
    pub code: String,
    /// What was wrong and what to do. From the server: escape it before it reaches a terminal.
    pub message: String,
}

/// `goodbye`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Goodbye {
    /// Label of the close reason.
    pub reason: String,
    /// When to come back, in milliseconds.
    pub reconnect_after_ms: u64,
    /// Where each channel stood.
    #[serde(default)]
    pub positions: Vec<Position>,
}

/// A place in a channel's sequence, across lives.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Position {
    /// The channel.
    pub channel: u32,
    /// Its name.
    pub name: Option<String>,
    /// The life of its sequence.
    pub epoch: u32,
    /// The newest sequence sent to this connection, or skipped with a `gap`.
    pub seq: Seq,
    /// The same, for a `since`.
    pub cursor: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control;
    use crate::wire::cursor::Place;
    use crate::wire::relay::NodeId;

    /// What the server writes, the client reads: each message of the server's own types.
    #[test]
    fn the_servers_messages_are_read() {
        let entry = || control::ChannelEntry {
            channel: 3,
            name: "robot.7.imu",
            epoch: 2_890_124_113,
            seq: 17,
            cursor: Some(Place { epoch: 2_890_124_113, seq: 16 }),
            replay: Some(control::Replay { outcome: control::ReplayOutcome::Partial, samples: 4 }),
        };
        let ledger = control::Ledger {
            channel: 3,
            published: 9,
            delivered: 8,
            dropped: 1,
            ..control::Ledger::default()
        };
        let kept = [control::KeptStream {
            channel: 3,
            epoch: 7,
            first: 2,
            last: 9,
            samples: 8,
            bytes: 99,
            age_ms: 5,
        }];
        let position = control::Position {
            channel: 3,
            name: "a".into(),
            epoch: 7,
            seq: 9,
            cursor: Place { epoch: 7, seq: 9 },
        };
        let (presence, positions) = (
            [control::Present { server: Some(NodeId(0xabc)), connection: 17, user: Some("alice".into()) }],
            [position],
        );
        let rows: Vec<(control::Event<'_>, Event)> = vec![
            (
                control::Event::Advertised { id: Some(3), channel: entry() },
                Event::Advertised(Advertised {
                    id: Some(3),
                    channel: ChannelEntry {
                        channel: 3,
                        name: "robot.7.imu".into(),
                        epoch: 2_890_124_113,
                        seq: 17,
                        cursor: Some("2890124113:16".into()),
                        replay: Some(Replay { outcome: "partial".into(), samples: 4 }),
                    },
                }),
            ),
            (control::Event::Live { channel: 3, seq: 10 }, Event::Live(Live { channel: 3, seq: 10 })),
            (
                control::Event::Ended { ledger },
                Event::Ended(Ledger {
                    channel: 3,
                    published: 9,
                    delivered: 8,
                    conflated: 0,
                    dropped: 1,
                    queued: 0,
                }),
            ),
            (
                control::Event::History { id: Some(4), channel: "a", streams: &kept },
                Event::History(History {
                    id: Some(4),
                    channel: "a".into(),
                    streams: vec![KeptStream {
                        channel: 3,
                        epoch: 7,
                        first: 2,
                        last: 9,
                        samples: 8,
                        bytes: 99,
                        age_ms: 5,
                    }],
                }),
            ),
            (
                control::Event::Presence {
                    id: None,
                    channel: "a",
                    count: 1,
                    members: Some(&presence),
                    partial: true,
                    as_of: None,
                },
                Event::Presence(Presence {
                    id: None,
                    channel: "a".into(),
                    count: 1,
                    members: Some(vec![Present {
                        server: Some("0000000000000abc".into()),
                        connection: 17,
                        user: Some("alice".into()),
                    }]),
                    partial: true,
                    epoch: None,
                    seq: None,
                }),
            ),
            (
                control::Event::Heartbeat {
                    server_ns: Digits(1),
                    heads: &[control::Head { channel: 3, seq: 9, cursor: Place { epoch: 7, seq: 9 } }],
                },
                Event::Heartbeat(Heartbeat {
                    server_ns: Digits(1),
                    heads: vec![Head { channel: 3, seq: 9, cursor: Some("7:9".into()) }],
                }),
            ),
            (
                control::Event::Gap {
                    channel: 3,
                    from: 10,
                    to: 20,
                    count: 11,
                    reason: control::GapReason::Slow,
                },
                Event::Gap(Gap { channel: 3, from: 10, to: 20, count: 11, reason: "slow".into() }),
            ),
            (
                control::Event::Ack {
                    id: 9,
                    channel: 3,
                    seq: 101,
                    count: 4,
                    guarantee: control::Guarantee::Accepted,
                },
                Event::Ack(Ack { id: 9, channel: 3, seq: 101, count: 4 }),
            ),
            (
                control::Event::Error { id: None, code: control::ErrorCode::RateLimited, message: "slower" },
                Event::Error(Error { id: None, code: "rate_limited".into(), message: "slower".into() }),
            ),
            (
                control::Event::Pong {
                    id: None,
                    client_ns: Some(Digits(5)),
                    received_ns: Digits(u64::MAX),
                    sent_ns: Digits(7),
                },
                Event::Pong(Pong {
                    id: None,
                    client_ns: Some(Digits(5)),
                    received_ns: Digits(u64::MAX),
                    sent_ns: Digits(7),
                }),
            ),
            (
                control::Event::Authenticated { id: Some(0), user: "alice", expires_s: Some(1_763_867_691) },
                Event::Authenticated(Authenticated {
                    id: Some(0),
                    user: "alice".into(),
                    expires_s: 1_763_867_691,
                }),
            ),
            (
                control::Event::TokenExpiring { expires_s: 1_763_867_691 },
                Event::TokenExpiring(TokenExpiring { expires_s: 1_763_867_691 }),
            ),
            (
                control::Event::Goodbye { reason: "drain", reconnect_after_ms: 1_500, positions: &positions },
                Event::Goodbye(Goodbye {
                    reason: "drain".into(),
                    reconnect_after_ms: 1_500,
                    positions: vec![Position {
                        channel: 3,
                        name: Some("a".into()),
                        epoch: 7,
                        seq: 9,
                        cursor: Some("7:9".into()),
                    }],
                }),
            ),
        ];
        for (said, expected) in rows {
            let text = serde_json::to_string(&said).unwrap();
            assert_eq!(serde_json::from_str::<Event>(&text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_not_known_is_skipped() {
        let rows = [
            (r#"{"type":"weather","wind":[1]}"#, Event::NotKnown),
            (
                r#"{"type":"ack","id":1,"channel":2,"seq":3,"count":4,"mood":"good"}"#,
                Event::Ack(Ack { id: 1, channel: 2, seq: 3, count: 4 }),
            ),
        ];
        for (text, expected) in rows {
            assert_eq!(serde_json::from_str::<Event>(text).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_not_a_message_is_refused() {
        for text in ["", "[]", "{}", "7", r#"{"type":7}"#, r#"{"type":"ack","id":"x"}"#] {
            assert!(serde_json::from_str::<Event>(text).is_err(), "{text}");
        }
    }
}
