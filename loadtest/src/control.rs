//! The control half of the protocol as this client speaks it: JSON text messages. Types only.
//!
//! Own types, not the server's: the server's say what it writes, these say what a client reads, and a client ignores
//! types and fields that it does not know.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Largest share of a server's text that is shown to a person.
const SHOWN_CHARS_MAX: usize = 200;

/// What this client asks for.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Request<'a> {
    /// Watch a channel or a pattern.
    Subscribe {
        /// Echoed in the answer.
        id: u64,
        /// Name or pattern.
        channel: &'a str,
        /// What overflow does; left to the server if not given.
        #[serde(skip_serializing_if = "Option::is_none")]
        policy: Option<&'a str>,
        /// Longest wait in a batch; left to the server if not given.
        #[serde(skip_serializing_if = "Option::is_none")]
        max_delay_ms: Option<u32>,
        /// Longest wait for the client; left to the server if not given.
        #[serde(skip_serializing_if = "Option::is_none")]
        max_age_ms: Option<u32>,
        /// Most samples a second of a channel; left to the server if not given.
        #[serde(skip_serializing_if = "Option::is_none")]
        max_rate_hz: Option<f64>,
        /// What of the past comes first: what was received in so many milliseconds.
        #[serde(skip_serializing_if = "Option::is_none")]
        last_ms: Option<u64>,
        /// Where it goes on.
        #[serde(skip_serializing_if = "Option::is_none")]
        since: Option<Since>,
    },
    /// Open a channel for publishing.
    Advertise {
        /// Echoed in the answer.
        id: u64,
        /// Its name.
        channel: &'a str,
    },
    /// Read the server's clock.
    Ping {
        /// Echoed in the answer.
        id: u64,
    },
}

/// Where a subscription goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum Since {
    /// Of a name: its cursor.
    One(String),
    /// Of a pattern: cursors by name.
    Named(BTreeMap<String, String>),
}

impl Request<'_> {
    /// The message.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// What a server says, as far as this client cares.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum Event {
    /// Answer to `subscribe`.
    Subscribed {
        /// The channels that match now.
        channels: Vec<Channel>,
    },
    /// Answer to `advertise`.
    Advertised(Channel),
    /// A new channel matches the pattern.
    Channel(Channel),
    /// The past of a channel has come.
    Live {
        /// Which.
        channel: u32,
    },
    /// A channel is no more, since its server is not.
    Ended {
        /// Which.
        channel: u32,
    },
    /// Answer to `ping`.
    Pong {
        /// When the server read the request, by its clock.
        received_ns: Digits,
        /// When it wrote the answer.
        sent_ns: Digits,
    },
    /// A publish was taken.
    Ack {
        /// That of the publish.
        id: u64,
        /// Sequence of its first sample.
        seq: u64,
        /// Its samples.
        count: u64,
    },
    /// Samples that this subscriber will not get.
    Gap {
        /// Their channel.
        channel: u32,
        /// No sequence after this one is meant.
        to: u64,
        /// How many.
        count: u64,
    },
    /// A request, or a publish, was refused.
    Error {
        /// Its name.
        code: String,
        /// What to do about it.
        message: String,
    },
    /// The server is about to close.
    Goodbye {
        /// Why.
        reason: String,
    },
    /// Something that this client does not use.
    #[serde(other)]
    Unused,
}

/// A channel as `subscribed` and `advertised` show it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Channel {
    /// Its number in data frames.
    pub channel: u32,
    /// Its name, the same on every server.
    pub name: String,
    /// The life of its sequence.
    pub epoch: u32,
    /// Sequence of the next sample.
    pub seq: u64,
    /// What comes of the past.
    pub replay: Option<Replay>,
}

/// What comes of the past of a channel.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Replay {
    /// All of it, a part, or something else.
    pub outcome: Outcome,
}

/// What comes of the past of a channel, compared with what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// All.
    Replayed,
    /// What is still kept.
    Partial,
    /// The server does not know the place: all that is kept.
    Reset,
}

/// A number that may pass 2^53: a string of digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Digits(pub u64);

impl<'de> Deserialize<'de> for Digits {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'_, str>::deserialize(deserializer)?;
        text.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

impl Event {
    /// Reads a text message.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(text).map_err(|error| {
            format!("the server sent a control message that does not parse ({error}): {}", shown(text))
        })
    }
}

/// A peer's text for a person: escaped, and not endless.
fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(text).chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_what_the_protocol_says() {
        let all = Request::Subscribe {
            id: 1,
            channel: "a.*",
            policy: Some("latest"),
            max_delay_ms: Some(0),
            max_age_ms: Some(7),
            max_rate_hz: Some(2.5),
            last_ms: None,
            since: Some(Since::Named([("a.b".to_owned(), "7:1,8:2".to_owned())].into())),
        };
        let late = Request::Subscribe {
            id: 1,
            channel: "a",
            policy: None,
            max_delay_ms: None,
            max_age_ms: None,
            max_rate_hz: None,
            last_ms: Some(10_000),
            since: None,
        };
        let cases = [
            (
                all,
                r#"{"type":"subscribe","id":1,"channel":"a.*","policy":"latest","max_delay_ms":0,"max_age_ms":7,"max_rate_hz":2.5,"since":{"a.b":"7:1,8:2"}}"#,
            ),
            (late, r#"{"type":"subscribe","id":1,"channel":"a","last_ms":10000}"#),
            (Request::Ping { id: 3 }, r#"{"type":"ping","id":3}"#),
            (Request::Advertise { id: 2, channel: "a" }, r#"{"type":"advertise","id":2,"channel":"a"}"#),
        ];
        for (request, expected) in cases {
            assert_eq!(request.to_json(), expected);
        }
    }

    #[test]
    fn events_are_read_with_what_is_unknown_ignored() {
        let gap = br#"{"type":"gap","channel":3,"from":10,"to":20,"count":11,"reason":"slow","later":1}"#;
        assert!(matches!(Event::parse(gap), Ok(Event::Gap { channel: 3, to: 20, count: 11 })));
        let advertised =
            br#"{"type":"advertised","id":3,"channel":3,"name":"a","epoch":2890124113,"seq":17}"#;
        let Ok(Event::Advertised(channel)) = Event::parse(advertised) else { panic!("advertised") };
        assert_eq!(
            channel,
            Channel { channel: 3, name: "a".into(), epoch: 2_890_124_113, seq: 17, replay: None }
        );
        let channel =
            br#"{"type":"channel","subscription":"a.*","channel":4,"name":"a.b","epoch":7,"seq":1,"replay":{"outcome":"partial","samples":3}}"#;
        let replay = Some(Replay { outcome: Outcome::Partial });
        let Ok(Event::Channel(channel)) = Event::parse(channel) else { panic!("channel") };
        assert_eq!(channel, Channel { channel: 4, name: "a.b".into(), epoch: 7, seq: 1, replay });
        let pong =
            br#"{"type":"pong","id":4,"received_ns":"1763864091124000000","sent_ns":"1763864091124007000"}"#;
        let Ok(Event::Pong { received_ns, sent_ns }) = Event::parse(pong) else { panic!("pong") };
        assert_eq!((received_ns.0, sent_ns.0), (1_763_864_091_124_000_000, 1_763_864_091_124_007_000));
        assert!(Event::parse(br#"{"type":"pong","received_ns":"x","sent_ns":"1"}"#).is_err());
        let heartbeat = br#"{"type":"heartbeat","server_ns":"1","heads":[{"channel":3,"seq":120}]}"#;
        assert!(matches!(Event::parse(heartbeat), Ok(Event::Unused)));
        assert!(Event::parse(b"{\"type\":\n").unwrap_err().contains("\\n"), "escaped");
    }
}
