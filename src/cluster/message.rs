//! What servers tell each other on the one topic that all of them read: JSON, few and small. Types only.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::auth::revocations::Revoked;
use crate::wire::relay::NodeId;

/// Largest message that is read, in bytes; lists are cut into parts that are far smaller.
pub const MESSAGE_BYTES_MAX: usize = 256 << 10;

/// Channels in one message: with names of 255 bytes, 32 KiB.
pub const CHANNELS_PER_MESSAGE: usize = 128;

/// A message, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Envelope {
    /// The life of the server that speaks.
    pub node: NodeId,
    /// What it says.
    #[serde(flatten)]
    pub message: Message,
}

/// What a server says to the others. One of a newer server that is not known here is passed over.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Message {
    /// Each second: I am there. Comes back to whoever sent it, which shows that the broker delivers.
    Hello {
        /// Changes of its list so far.
        revision: u64,
        /// Times that it has connected to the broker: what it published in between may be lost.
        connects: u64,
        /// By its clock.
        sent_ns: u64,
    },
    /// Its list has changed.
    Changed {
        /// Changes so far, with this one.
        revision: u64,
        /// Names that it publishes from now on, each with the life of its sequence.
        opened: BTreeMap<Box<str>, u32>,
        /// Names that it does not publish any more.
        closed: Vec<Box<str>>,
    },
    /// I know of that change of another server's list, and get what I want of it.
    Seen {
        /// Whose.
        of: NodeId,
        /// Its changes, with that one.
        revision: u64,
    },
    /// I need the list of another server.
    List {
        /// Whose.
        of: NodeId,
    },
    /// A part of the list; all parts come one after another.
    Listing {
        /// Changes so far.
        revision: u64,
        /// Number of this part, from 0.
        part: u32,
        /// How many there are.
        parts: u32,
        /// Names that it publishes, each with the life of its sequence.
        channels: BTreeMap<Box<str>, u32>,
    },
    /// I get what is published under these names from now on: where do the streams stand?
    Where {
        /// The names.
        names: Vec<Box<str>>,
    },
    /// Who is on these channels?
    Who {
        /// Of this server's questions so far, with this one.
        number: u64,
        /// Names that an answer is wanted for now.
        ask: Vec<Box<str>>,
        /// Names whose changes are wanted for a while ([`LEASE`](super::presence::LEASE)).
        keep: Vec<Box<str>>,
    },
    /// Who is on channels at the server that says it: all that it knows of each.
    Present {
        /// Of this server's answers so far, with this one: the latest holds.
        number: u64,
        /// The channels that were asked about.
        channels: BTreeMap<Box<str>, Said>,
    },
    /// The server ends: nobody is on a channel there any more, and it answers no question.
    Nobody {},
    /// Somebody is shut out.
    Revoke {
        /// Who.
        revoked: Revoked,
        /// With tokens that were issued until this second of Unix time.
        issued_s: u64,
    },
}

/// Who is on a channel at one server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Said {
    /// Connections that receive it.
    pub count: u32,
    /// Who they are, each once, unless they are too many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members: Option<Vec<Here>>,
    /// The questions that this answers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<Answered>,
}

/// A connection of the server that speaks.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Here {
    /// Its number there.
    pub connection: u64,
    /// The owner of its `$user.ID`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<Box<str>>,
}

/// The last [`Message::Who`] of a server that an answer takes into account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Answered {
    /// Whose.
    pub node: NodeId,
    /// Its number.
    pub number: u64,
}

impl Envelope {
    /// As it travels.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // Every field serializes: strings, numbers, lists and maps of them.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads what has travelled, whoever wrote it.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() > MESSAGE_BYTES_MAX {
            return Err(format!("{} bytes; at most {MESSAGE_BYTES_MAX}", bytes.len()));
        }
        let envelope: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if envelope.node.0 == 0 { Err("node is 0".into()) } else { Ok(envelope) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_as_they_went_in() {
        let list = || BTreeMap::from([("a.b".into(), u32::MAX), ("c".into(), 1)]);
        let members =
            vec![Here { connection: u64::MAX, user: Some("ada".into()) }, Here { connection: 2, user: None }];
        let to = vec![Answered { node: NodeId(u64::MAX), number: 7 }];
        let said = Said { count: 2, members: Some(members), to };
        let messages = [
            Message::Hello { revision: 3, connects: 1, sent_ns: u64::MAX },
            Message::Changed { revision: 4, opened: list(), closed: vec!["d".into()] },
            Message::Seen { of: NodeId(1), revision: 4 },
            Message::List { of: NodeId(u64::MAX) },
            Message::Listing { revision: 4, part: 0, parts: 2, channels: list() },
            Message::Where { names: vec!["a.b".into()] },
            Message::Who { number: 7, ask: vec!["a.b".into()], keep: Vec::new() },
            Message::Present { number: 8, channels: BTreeMap::from([("a.b".into(), said)]) },
            Message::Nobody {},
            Message::Revoke { revoked: Revoked::Subject("mallory".into()), issued_s: 9 },
        ];
        for message in messages {
            let envelope = Envelope { node: NodeId(0xabc), message };
            assert_eq!(Envelope::decode(&envelope.encode()), Ok(envelope));
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let rows: [(&[u8], &str); 5] = [
            (b"", "EOF"),
            (b"\x09\0\0\0", "expected value"),
            (br#"{"node":"0","type":"list","of":"1"}"#, "node is 0"),
            (br#"{"node":"x","type":"list","of":"1"}"#, "invalid digit"),
            (br#"{"node":"1","type":"later"}"#, "unknown variant"),
        ];
        for (bytes, expected) in rows {
            let error = Envelope::decode(bytes).expect_err("it is no message");
            assert!(error.contains(expected), "{error}");
        }
        assert!(Envelope::decode(&vec![b' '; MESSAGE_BYTES_MAX + 1]).is_err());
    }
}
