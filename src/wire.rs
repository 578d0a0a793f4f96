//! What travels: the generated types of `proto/tidewire.proto`, the identifiers, and [`Frame`], the bytes that all
//! receivers of a batch share. Never async, never a socket.

use std::fmt;
use std::time::Instant;

use bytes::Bytes;

pub mod codec;
pub mod control;
pub mod cursor;
pub mod decode;
pub mod encode;
pub mod relay;
pub mod seal;
pub mod ws;

/// The types generated from `proto/tidewire.proto`.
#[expect(missing_docs, reason = "generated; the documentation is in the proto file")]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/tidewire.v1.rs"));
}

/// Number of a channel: given by the server, never used again for another channel in the server's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelId(pub u32);

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of a connection, unique in the server's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId(pub u64);

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Sequence of a sample in its channel: from 1, one for each sample, given at ingest.
pub type Seq = u64;

/// How data frames are encoded for a connection; its choice of subprotocol. Control is JSON in all three.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Codec {
    /// `tidewire.v1`: protobuf in binary messages.
    #[default]
    Protobuf,
    /// `tidewire.v1.msgpack`: MessagePack in binary messages.
    MessagePack,
    /// `tidewire.v1.json`: JSON in text messages.
    Json,
}

impl Codec {
    /// Every codec.
    pub const ALL: [Self; 3] = [Self::Protobuf, Self::MessagePack, Self::Json];

    /// The subprotocol that chooses it.
    #[must_use]
    pub const fn subprotocol(self) -> &'static str {
        match self {
            Self::Protobuf => "tidewire.v1",
            Self::MessagePack => "tidewire.v1.msgpack",
            Self::Json => "tidewire.v1.json",
        }
    }

    /// The first subprotocol of a `Sec-WebSocket-Protocol` list that is known; `None` if the list names none.
    #[must_use]
    pub fn negotiate(offered: &str) -> Option<Self> {
        offered
            .split(',')
            .map(str::trim)
            .find_map(|name| Self::ALL.into_iter().find(|codec| codec.subprotocol() == name))
    }
}

/// How many samples' times a frame keeps for the latency histograms: the first, the last and two evenly between.
pub const TIMED_SAMPLES: usize = 4;

/// A sealed batch: one WebSocket message, header included, immutable. All receivers of a worker share one; workers share its
/// bytes.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The whole WebSocket message, ready for the socket.
    pub bytes: Bytes,
    /// Its channel.
    pub channel: ChannelId,
    /// Sequence of the first sample in it.
    pub first: Seq,
    /// Sequence of the last sample in it.
    pub last: Seq,
    /// Samples in it; fewer than `last - first + 1` where some were conflated.
    pub count: u32,
    /// Bytes before its blocks: the headers. 0 in codecs other than protobuf, which have no such place.
    pub head_bytes: u8,
    /// Whether it comes from the history: its waits are no latencies.
    pub replayed: bool,
    /// When it was sealed; of a replayed one, when it was put into an outbox.
    pub flushed_at: Instant,
    /// When samples in it were received: evenly spaced ones, the oldest first.
    pub received_at: [Instant; TIMED_SAMPLES],
}
