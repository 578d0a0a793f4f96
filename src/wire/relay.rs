//! What crosses between servers: sealed frames as the payload of a broker's message (`proto/cluster.proto`), written
//! around their blocks as they are, and checked to the last sample when it comes. Never knows a broker or a topic.
//!
//! A payload is from outside, whoever wrote it: what [`scan`] takes can be relayed to clients as it is, with a frame's header in
//! front of it.

use std::ops::Range;

use bytes::{BufMut as _, Bytes, BytesMut};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::decode::{DecodeError, Field, Reader, SampleSpan, scan_block};
use super::encode::{self, FrameHeader, INSTANT_BYTES};
use super::{ChannelId, Frame, Seq};
use crate::clock::{Now, nanos};

/// The life of a server, as others tell it from themselves: random, not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u64);

impl std::fmt::Display for NodeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// As 16 hexadecimal digits: JSON's numbers are not exact above 2^53.
impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let digits = <std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
        u64::from_str_radix(&digits, 16).map(Self).map_err(D::Error::custom)
    }
}

/// What a payload says about its samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayHeader {
    /// Who sealed the frames.
    pub node: NodeId,
    /// The life of the stream's sequence.
    pub epoch: u32,
    /// Sequence of the first sample; of the next one that will come, if there is none.
    pub seq: Seq,
    /// Samples in all blocks together.
    pub count: u32,
    /// When the first frame was sealed, nanoseconds since the Unix epoch.
    pub flushed_ns: u64,
}

/// A block in a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayedBlock {
    /// Where its key stands in the payload: behind the block before.
    at: usize,
    /// Its content in the payload, without `received_ns`.
    pub content: Range<usize>,
    /// Its samples among the spans, whose offsets are from the start of the content.
    pub samples: Range<usize>,
    /// Base of their source times.
    pub source_ns: u64,
    /// When the server that sealed it read it, nanoseconds since the Unix epoch.
    pub received_ns: u64,
}

impl RelayedBlock {
    /// Bytes in a frame.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.content.end + INSTANT_BYTES - self.at
    }
}

/// Where [`scan`] puts what it finds; its memory is used again.
#[derive(Debug, Default)]
pub struct Found {
    /// The blocks, in order.
    pub blocks: Vec<RelayedBlock>,
    /// The samples of all blocks.
    pub spans: Vec<SampleSpan>,
}

/// What is wrong with a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RelayError {
    /// Not protobuf, or a block that no client may have sent.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A field that a payload has to have is missing or 0.
    #[error("`{0}` is missing")]
    Missing(&'static str),
    /// Blocks that are not one span of bytes at the end.
    #[error("a field stands behind a block; blocks come last")]
    Order,
    /// A known field with another wire type.
    #[error("a field has another wire type than in cluster.proto")]
    Encoding,
    /// `count` is not the number of samples.
    #[error("`count` is {said} and there are {found} samples")]
    Count {
        /// In the header.
        said: u32,
        /// In the blocks.
        found: usize,
    },
    /// The sequence of the last sample is above 64 bits.
    #[error("`seq` is too large")]
    Seq,
}

/// A payload in two parts: the blocks of a frame need not be copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// What comes first.
    pub head: Bytes,
    /// The blocks.
    pub body: Bytes,
}

/// The payload for sealed protobuf frames that leave nothing out, of the stream's life `epoch`, each behind the one before. Shares the
/// blocks of one, copies those of several. `None` for no frame.
#[must_use]
pub fn payload(node: NodeId, epoch: u32, frames: &[Frame], now: Now) -> Option<Payload> {
    let first = frames.first()?;
    debug_assert!(frames.windows(2).all(|pair| pair[0].last + 1 == pair[1].first), "one sequence");
    let waited = nanos(now.at.saturating_duration_since(first.flushed_at));
    let flushed_ns = now.wall_ns.saturating_sub(waited);
    let count = frames.iter().map(|frame| frame.count).sum();
    let header = RelayHeader { node, epoch, seq: first.first, count, flushed_ns };
    let blocks = |frame: &Frame| frame.bytes.slice(usize::from(frame.head_bytes)..);
    let body = if frames.len() == 1 {
        blocks(first)
    } else {
        let mut body = BytesMut::with_capacity(frames.iter().map(|frame| frame.bytes.len()).sum());
        frames.iter().for_each(|frame| body.put(blocks(frame)));
        body.freeze()
    };
    Some(Payload { head: header.encode(), body })
}

/// The payload that tells where a stream stands: `next` is the sequence of its next sample.
#[must_use]
pub fn head_payload(node: NodeId, epoch: u32, flushed_ns: u64, next: Seq) -> Payload {
    let header = RelayHeader { node, epoch, seq: next, count: 0, flushed_ns };
    Payload { head: header.encode(), body: Bytes::new() }
}

/// Who has sent a payload, and the life of which stream it is about, as far as a look at its beginning can tell.
#[must_use]
pub fn peek(payload: &[u8]) -> Option<(NodeId, u32)> {
    let mut reader = Reader { bytes: payload, at: 0 };
    if reader.key().ok()? != NODE {
        return None;
    }
    let node = reader.fixed(Field::Unknown).ok()?;
    if reader.key().ok()? != EPOCH {
        return None;
    }
    Some((NodeId(u64::from_le_bytes(node)), u32::from_le_bytes(reader.fixed(Field::Unknown).ok()?)))
}

/// Key and 8 bytes, key and 4 bytes, two keys and varints, key and 8 bytes.
const HEADER_BYTES_MAX: usize = 9 + 5 + 11 + 6 + 9;

impl RelayHeader {
    /// As it stands before the blocks.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER_BYTES_MAX);
        out.put_u8(NODE_KEY);
        out.put_u64_le(self.node.0);
        // A frame's header without the channel, whose number is this server's own: key and one byte.
        let frame = FrameHeader {
            channel: ChannelId(0),
            epoch: self.epoch,
            seq: self.seq,
            count: self.count,
            flushed_ns: self.flushed_ns,
        };
        out.put_slice(&encode::frame_header(&frame)[2..]);
        out.freeze()
    }
}

/// Checks a payload whole, and finds its blocks and samples. At most `samples_max` of them.
///
/// # Errors
/// Says what is wrong; what `found` holds means nothing then.
pub fn scan(payload: &[u8], samples_max: usize, found: &mut Found) -> Result<RelayHeader, RelayError> {
    found.blocks.clear();
    found.spans.clear();
    let mut header = RelayHeader { node: NodeId(0), epoch: 0, seq: 0, count: 0, flushed_ns: 0 };
    let mut reader = Reader { bytes: payload, at: 0 };
    while !reader.is_at_end() {
        let at = reader.at;
        let key = reader.key()?;
        if key != BLOCKS && !found.blocks.is_empty() {
            return Err(RelayError::Order);
        }
        match key {
            NODE => header.node = NodeId(u64::from_le_bytes(reader.fixed(Field::Unknown)?)),
            EPOCH => header.epoch = u32::from_le_bytes(reader.fixed(Field::Unknown)?),
            SEQ => header.seq = reader.varint(Field::Unknown)?,
            COUNT => {
                let value = reader.varint(Field::Unknown)?;
                let said = u32::try_from(value).unwrap_or(u32::MAX);
                header.count = said;
            }
            FLUSHED_NS => header.flushed_ns = u64::from_le_bytes(reader.fixed(Field::Unknown)?),
            BLOCKS => found.read_block(at, reader.delimited(Field::Block)?, samples_max)?,
            key if key >> 3 <= BLOCKS >> 3 => return Err(RelayError::Encoding),
            // One that a newer server has added.
            key => reader.skip(key, at, &[])?,
        }
    }
    let missing = [("node", header.node.0 == 0), ("epoch", header.epoch == 0), ("seq", header.seq == 0)];
    if let Some((field, _)) = missing.into_iter().find(|(_, missing)| *missing) {
        return Err(RelayError::Missing(field));
    }
    if header.count as usize != found.spans.len() {
        return Err(RelayError::Count { said: header.count, found: found.spans.len() });
    }
    if header.seq.checked_add(u64::from(header.count)).is_none() {
        return Err(RelayError::Seq);
    }
    Ok(header)
}

impl Found {
    fn read_block(&mut self, at: usize, block: Reader<'_>, samples_max: usize) -> Result<(), RelayError> {
        let start = block.at;
        let end = block.bytes.len();
        let tail = end.checked_sub(INSTANT_BYTES).filter(|tail| *tail >= start);
        // Every server of ours puts it last.
        let received = tail.and_then(|tail| block.bytes.get(tail..)?.split_first_chunk::<1>());
        let (Some(tail), Some(([RECEIVED_NS], instant))) = (tail, received) else {
            return Err(RelayError::Missing("received_ns"));
        };
        let instant = <[u8; 8]>::try_from(instant).map_err(|_| RelayError::Missing("received_ns"))?;
        let first = self.spans.len();
        let content = Reader { bytes: &block.bytes[..tail], at: start };
        let source_ns = scan_block(content, samples_max, &mut self.spans)?;
        if self.spans.len() == first {
            return Err(DecodeError::NoSamples.into());
        }
        self.blocks.push(RelayedBlock {
            at,
            content: start..tail,
            samples: first..self.spans.len(),
            source_ns,
            received_ns: u64::from_le_bytes(instant),
        });
        Ok(())
    }

    /// Some of the blocks in a payload that was checked, as a frame holds them.
    #[must_use]
    pub fn body<'a>(&self, payload: &'a [u8], blocks: Range<usize>) -> &'a [u8] {
        let at = |block: usize| self.blocks.get(block).map_or(payload.len(), |block| block.at);
        payload.get(at(blocks.start)..at(blocks.end)).unwrap_or_default()
    }
}

const NODE: u32 = NODE_KEY as u32;
const NODE_KEY: u8 = (1 << 3) | 1;
const EPOCH: u32 = (2 << 3) | FIXED32;
const SEQ: u32 = 3 << 3;
const COUNT: u32 = 4 << 3;
const FLUSHED_NS: u32 = (5 << 3) | FIXED64;
const BLOCKS: u32 = (6 << 3) | DELIMITED;
/// In a block.
const RECEIVED_NS: u8 = (2 << 3) | 1;

const FIXED64: u32 = 1;
const DELIMITED: u32 = 2;
const FIXED32: u32 = 5;

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::wire::proto::sample::Value;
    use crate::wire::proto::{self, Block, Sample};
    use crate::wire::{seal, ws};

    #[expect(unreachable_pub, reason = "generated")]
    mod cluster {
        include!(concat!(env!("OUT_DIR"), "/tidewire.cluster.v1.rs"));
    }

    fn block(samples: usize, received_ns: u64) -> Block {
        let sample = |n: usize| Sample { source_delta_ns: -3, value: Some(Value::Number(n as f64)) };
        Block { source_ns: 7, received_ns, samples: (0..samples).map(sample).collect() }
    }

    fn relay(blocks: Vec<Block>) -> cluster::Relay {
        let count = u32::try_from(blocks.iter().map(|block| block.samples.len()).sum::<usize>()).unwrap();
        cluster::Relay { node: 9, epoch: 8, seq: 41, count, flushed_ns: 5, blocks }
    }

    /// As a server writes it: `received_ns` last in its block.
    fn encoded(relay: &cluster::Relay) -> Vec<u8> {
        let mut out = cluster::Relay { blocks: Vec::new(), ..relay.clone() }.encode_to_vec();
        for block in &relay.blocks {
            seal::push_block(
                &mut out,
                &Block { received_ns: 0, ..block.clone() }.encode_to_vec(),
                block.received_ns,
            );
        }
        out
    }

    fn with_headroom(body: &[u8]) -> Vec<u8> {
        let mut buffer = seal::buffer(body.len());
        buffer.extend_from_slice(body);
        buffer
    }

    fn decoded(message: &[u8]) -> proto::Frame {
        let header = ws::header_len(message.len() - ws::header_len(message.len()));
        proto::Frame::decode(&message[header..]).expect("a frame")
    }

    fn scanned(payload: &[u8]) -> Result<(RelayHeader, Found), RelayError> {
        let mut found = Found::default();
        scan(payload, 100, &mut found).map(|header| (header, found))
    }

    /// A frame with blocks of so many samples each.
    fn sealed(sizes: &[usize], first: Seq, now: Now) -> Frame {
        let mut buffer = vec![0; seal::HEADROOM_BYTES];
        for (index, samples) in sizes.iter().enumerate() {
            let content = Block { received_ns: 0, ..block(*samples, 0) }.encode_to_vec();
            seal::push_block(&mut buffer, &content, 100 + index as u64);
        }
        let count = u32::try_from(sizes.iter().sum::<usize>()).unwrap();
        let header =
            FrameHeader { channel: ChannelId(300), epoch: 8, seq: first, count, flushed_ns: now.wall_ns };
        let (bytes, head_bytes) = seal::seal(buffer, &header);
        let last = first + u64::from(count) - 1;
        let (flushed_at, received_at) = (now.at, [now.at; 4]);
        let channel = header.channel;
        Frame { bytes, channel, first, last, count, head_bytes, replayed: false, flushed_at, received_at }
    }

    #[test]
    fn a_sealed_frame_crosses_and_comes_out_as_it_was() {
        for sizes in [vec![1], vec![2, 3], vec![30, 1, 60]] {
            let now = Now { at: Instant::now(), wall_ns: 5 };
            let frame = sealed(&sizes, 41, now);
            let count = frame.count;
            let Payload { head, body } = payload(NodeId(9), 8, std::slice::from_ref(&frame), now).unwrap();
            let payload = [head, body].concat();
            assert_eq!(peek(&payload), Some((NodeId(9), 8)));
            let blocks: Vec<_> = sizes.iter().zip(100..).map(|(n, at)| block(*n, at)).collect();
            assert_eq!(cluster::Relay::decode(&payload[..]), Ok(relay(blocks)), "prost reads the same");
            let (header, found) = scanned(&payload).unwrap();
            let expected = RelayHeader { node: NodeId(9), epoch: 8, seq: 41, count, flushed_ns: 5 };
            assert_eq!(header, expected);
            let other = FrameHeader { channel: ChannelId(2), epoch: 8, seq: 41, count, flushed_ns: 5 };
            let body = found.body(&payload, 0..sizes.len());
            let read = decoded(&seal::seal(with_headroom(body), &other).0);
            let sent = decoded(&frame.bytes);
            assert_eq!(read, proto::Frame { channel: 2, ..sent }, "but for the number it is the frame");
        }
    }

    #[test]
    fn several_frames_cross_as_one_payload() {
        let now = Now { at: Instant::now(), wall_ns: 5 };
        assert_eq!(payload(NodeId(9), 8, &[], now), None);
        let frames = [sealed(&[2, 3], 41, now), sealed(&[1], 46, now.plus(Duration::from_millis(4)))];
        let later = now.plus(Duration::from_millis(9));
        let Payload { head, body } = payload(NodeId(9), 8, &frames, later).unwrap();
        let payload = [head, body].concat();
        let (header, found) = scanned(&payload).unwrap();
        let expected = RelayHeader { node: NodeId(9), epoch: 8, seq: 41, count: 6, flushed_ns: 5 };
        assert_eq!(header, expected, "it is as old as its oldest frame");
        for (blocks, frame) in [(0..2, &frames[0]), (2..3, &frames[1])] {
            assert_eq!(found.body(&payload, blocks.clone()), &frame.bytes[usize::from(frame.head_bytes)..]);
            let bytes: usize = found.blocks[blocks].iter().map(RelayedBlock::bytes).sum();
            assert_eq!(bytes, frame.bytes.len() - usize::from(frame.head_bytes));
        }
    }

    #[test]
    fn a_head_says_where_a_stream_stands() {
        let payload = head_payload(NodeId(9), 8, 5, 41).head;
        assert_eq!(cluster::Relay::decode(&payload[..]), Ok(relay(Vec::new())));
        let (header, found) = scanned(&payload).unwrap();
        assert_eq!((header.seq, header.count, found.body(&payload, 0..1)), (41, 0, &[][..]));
    }

    #[test]
    fn what_is_no_relay_is_refused() {
        let good = relay(vec![block(2, 1)]);
        let rows: Vec<(&str, Vec<u8>, &str)> = vec![
            ("nothing", Vec::new(), "`node` is missing"),
            ("text", b"hello, world".to_vec(), "wire type"),
            ("json", br#"{"type":"publish"}"#.to_vec(), "at byte"),
            ("no node", encoded(&cluster::Relay { node: 0, ..good.clone() }), "`node` is missing"),
            ("no epoch", encoded(&cluster::Relay { epoch: 0, ..good.clone() }), "`epoch` is missing"),
            ("no seq", encoded(&cluster::Relay { seq: 0, ..good.clone() }), "`seq` is missing"),
            ("few", encoded(&cluster::Relay { count: 1, ..good.clone() }), "`count` is 1 and there are 2"),
            ("late", encoded(&cluster::Relay { seq: u64::MAX, ..good.clone() }), "`seq` is too large"),
            ("no time", good.encode_to_vec(), "at byte"),
            ("empty block", encoded(&relay(vec![block(0, 1)])), "has no `block.samples`"),
            ("many", encoded(&relay(vec![block(101, 1)])), "one more than the limit"),
            ("behind", [encoded(&good), vec![0x20, 2]].concat(), "blocks come last"),
            ("cut", encoded(&good)[..30].to_vec(), "goes past the end"),
        ];
        for (what, payload, expected) in rows {
            let error = scanned(&payload).expect_err(what).to_string();
            assert!(error.contains(expected), "{what}: {error}");
        }
        let newer = [&[0x78, 1][..], &encoded(&good)].concat();
        assert!(scanned(&newer).is_ok(), "a field that a newer server has added");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok((header, found)) = scanned(&bytes) {
                prop_assert_eq!(cluster::Relay::decode(&bytes[..]).map(|relay| relay.seq), Ok(header.seq));
                prop_assert_eq!(found.spans.len(), header.count as usize);
            }
        }

        #[test]
        fn a_bent_relay_is_refused_or_sound(at in 0_usize..60, bit in 0_u8..8) {
            let mut bytes = encoded(&relay(vec![block(3, 1), block(2, 2)]));
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            if let Ok((header, found)) = scanned(&bytes) {
                let model = cluster::Relay::decode(&bytes[..]);
                prop_assert!(model.is_ok(), "prost refuses what the scan takes");
                let mut frame = FrameHeader { channel: ChannelId(1), epoch: header.epoch, seq: header.seq, count: header.count, flushed_ns: header.flushed_ns };
                frame.channel = ChannelId(1);
                let read = decoded(&seal::seal(with_headroom(found.body(&bytes, 0..found.blocks.len())), &frame).0);
                prop_assert_eq!(Ok(read.blocks), model.map(|relay| relay.blocks));
            }
        }
    }
}
