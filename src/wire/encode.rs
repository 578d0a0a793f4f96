//! Writes a protobuf `Frame` around blocks that are relayed as they came. Never looks into a block, never allocates
//! for the parts of fixed size.
//!
//! A frame's payload is, in this order:
//!
//! ```text
//! frame_header, { block_prefix, the block's content, received_ns } for each block, seq_deltas if it has any
//! ```
//!
//! Fields of value 0 are written, too: the lengths of the parts then follow from the sizes of their values alone.

use std::ops::Deref;

use super::{ChannelId, Seq};

/// The fields of a `Frame` before its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The channel.
    pub channel: ChannelId,
    /// The life of its sequence.
    pub epoch: u32,
    /// Sequence of the first sample.
    pub seq: Seq,
    /// Samples in all blocks together.
    pub count: u32,
    /// When the frame is sealed, nanoseconds since the Unix epoch.
    pub flushed_ns: u64,
}

/// Most bytes of a [`frame_header`]: five keys, two varints of 32 bits, one of 64, 4 and 8 bytes.
pub const FRAME_HEADER_BYTES_MAX: usize = 5 + 5 + 5 + 10 + 4 + 8;

/// Most bytes of a [`block_prefix`]: a key and a varint.
pub const BLOCK_PREFIX_BYTES_MAX: usize = 1 + 10;

/// Bytes of a [`received_ns`] or [`source_ns`] field: a key and 64 bits.
pub const INSTANT_BYTES: usize = 1 + 8;

/// A few bytes on the stack, at most `MAX`.
#[derive(Clone, Copy, Debug)]
pub struct Part<const MAX: usize> {
    bytes: [u8; MAX],
    len: usize,
}

impl<const MAX: usize> Deref for Part<MAX> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl<const MAX: usize> Part<MAX> {
    const fn new() -> Self {
        Self { bytes: [0; MAX], len: 0 }
    }

    /// Appends. Callers' constants have room for all that they write.
    fn push(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        debug_assert!(end <= MAX, "{end} bytes in a part of at most {MAX}");
        if let Some(room) = self.bytes.get_mut(self.len..end) {
            room.copy_from_slice(bytes);
            self.len = end;
        }
    }

    fn push_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.push(&[low_seven_bits(value) | 0x80]);
            value >>= 7;
        }
        self.push(&[low_seven_bits(value)]);
    }
}

/// The first part of a frame: fields 1 to 5.
#[must_use]
pub fn frame_header(header: &FrameHeader) -> Part<FRAME_HEADER_BYTES_MAX> {
    let mut part = Part::new();
    part.push(&[FRAME_CHANNEL]);
    part.push_varint(u64::from(header.channel.0));
    part.push(&[FRAME_EPOCH]);
    part.push(&header.epoch.to_le_bytes());
    part.push(&[FRAME_SEQ]);
    part.push_varint(header.seq);
    part.push(&[FRAME_COUNT]);
    part.push_varint(u64::from(header.count));
    part.push(&[FRAME_FLUSHED_NS]);
    part.push(&header.flushed_ns.to_le_bytes());
    part
}

/// What comes before a block: key and length of its field. `content_bytes` is the length of the relayed content; the
/// [`received_ns`] field that follows it is counted in here.
#[must_use]
pub fn block_prefix(content_bytes: usize) -> Part<BLOCK_PREFIX_BYTES_MAX> {
    let mut part = Part::new();
    part.push(&[FRAME_BLOCKS]);
    part.push_varint((content_bytes as u64).saturating_add(INSTANT_BYTES as u64));
    part
}

/// What comes after a block's content: its field `received_ns`, nanoseconds since the Unix epoch.
#[must_use]
pub fn received_ns(ns: u64) -> [u8; INSTANT_BYTES] {
    instant(BLOCK_RECEIVED_NS, ns)
}

/// A block's field `source_ns`, nanoseconds since the Unix epoch: for blocks that are put together from single samples.
#[must_use]
pub fn source_ns(ns: u64) -> [u8; INSTANT_BYTES] {
    instant(BLOCK_SOURCE_NS, ns)
}

/// Appends the last part of a frame: the field `seq_deltas`, packed. Nothing for none.
pub fn seq_deltas(deltas: &[u32], out: &mut Vec<u8>) {
    if deltas.is_empty() {
        return;
    }
    out.push(FRAME_SEQ_DELTAS);
    push_varint(deltas_content_bytes(deltas), out);
    for &delta in deltas {
        push_varint(u64::from(delta), out);
    }
}

/// How many bytes [`seq_deltas`] appends: a frame's length is written before its first byte.
#[must_use]
pub fn seq_deltas_bytes(deltas: &[u32]) -> usize {
    if deltas.is_empty() {
        return 0;
    }
    let content = deltas_content_bytes(deltas);
    usize::try_from(1 + varint_bytes(content) + content).unwrap_or(usize::MAX)
}

fn deltas_content_bytes(deltas: &[u32]) -> u64 {
    deltas.iter().map(|&delta| varint_bytes(u64::from(delta))).sum()
}

fn instant(key: u8, ns: u64) -> [u8; INSTANT_BYTES] {
    let mut bytes = [key; INSTANT_BYTES];
    bytes[1..].copy_from_slice(&ns.to_le_bytes());
    bytes
}

fn push_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(low_seven_bits(value) | 0x80);
        value >>= 7;
    }
    out.push(low_seven_bits(value));
}

/// Bytes of a value's varint: one for each seven bits, at least one.
fn varint_bytes(value: u64) -> u64 {
    u64::from((value | 1).ilog2() / 7 + 1)
}

fn low_seven_bits(value: u64) -> u8 {
    value.to_le_bytes()[0] & 0x7f
}

// Keys: field number and wire type of the published proto file.
const FRAME_CHANNEL: u8 = (1 << 3) | VARINT;
const FRAME_EPOCH: u8 = (2 << 3) | FIXED32;
const FRAME_SEQ: u8 = (3 << 3) | VARINT;
const FRAME_COUNT: u8 = (4 << 3) | VARINT;
const FRAME_FLUSHED_NS: u8 = (5 << 3) | FIXED64;
const FRAME_BLOCKS: u8 = (6 << 3) | DELIMITED;
const FRAME_SEQ_DELTAS: u8 = (7 << 3) | DELIMITED;
const BLOCK_SOURCE_NS: u8 = (1 << 3) | FIXED64;
const BLOCK_RECEIVED_NS: u8 = (2 << 3) | FIXED64;

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const DELIMITED: u8 = 2;
const FIXED32: u8 = 5;

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::wire::proto;
    use crate::wire::proto::sample::Value;

    fn frame(header: &FrameHeader, blocks: &[proto::Block], deltas: &[u32]) -> Vec<u8> {
        let mut out = frame_header(header).to_vec();
        for block in blocks {
            let content = proto::Block { received_ns: 0, ..block.clone() }.encode_to_vec();
            out.extend_from_slice(&block_prefix(content.len()));
            out.extend_from_slice(&content);
            out.extend_from_slice(&received_ns(block.received_ns));
        }
        let before = out.len();
        seq_deltas(deltas, &mut out);
        assert_eq!(out.len() - before, seq_deltas_bytes(deltas));
        out
    }

    fn block(bytes: usize) -> proto::Block {
        let sample = |value| proto::Sample { source_delta_ns: -7, value: Some(value) };
        proto::Block {
            source_ns: u64::MAX - 1,
            received_ns: 1_763_864_091_123_456_789,
            samples: vec![sample(Value::Bytes(vec![0xA5; bytes])), sample(Value::Integer(i64::MIN))],
        }
    }

    #[test]
    fn prost_reads_the_frame_that_was_meant() {
        let large = FrameHeader {
            channel: ChannelId(u32::MAX),
            epoch: u32::MAX,
            seq: u64::MAX,
            count: u32::MAX,
            flushed_ns: u64::MAX,
        };
        let small = FrameHeader { channel: ChannelId(0), epoch: 0, seq: 0, count: 0, flushed_ns: 0 };
        let usual = FrameHeader { channel: ChannelId(300), epoch: 7, seq: 128, count: 16_384, flushed_ns: 1 };
        let blocks: [&[proto::Block]; 5] =
            [&[], &[block(0)], &[block(100), block(120)], &[block(16_384)], &[block(2_097_152)]];
        let deltas: [&[u32]; 4] = [&[], &[1], &[0, 1, 127, 128, 16_383, 16_384, u32::MAX], &[300; 4_095]];
        assert_eq!(frame_header(&large).len(), FRAME_HEADER_BYTES_MAX);
        for header in [large, small, usual] {
            for blocks in blocks {
                for deltas in deltas {
                    let expected = proto::Frame {
                        channel: header.channel.0,
                        epoch: header.epoch,
                        seq: header.seq,
                        count: header.count,
                        flushed_ns: header.flushed_ns,
                        blocks: blocks.to_vec(),
                        seq_deltas: deltas.to_vec(),
                    };
                    let bytes = frame(&header, blocks, deltas);
                    assert_eq!(proto::Frame::decode(bytes.as_slice()), Ok(expected));
                }
            }
        }
    }

    #[test]
    fn the_longest_prefix_fits() {
        assert_eq!(block_prefix(usize::MAX).len(), BLOCK_PREFIX_BYTES_MAX);
        assert_eq!(block_prefix(127 - INSTANT_BYTES).len(), 2);
        assert_eq!(block_prefix(128 - INSTANT_BYTES).len(), 3);
    }

    #[test]
    fn a_block_of_single_samples_is_a_block() {
        let sample = proto::Sample { source_delta_ns: 3, value: Some(Value::Number(0.5)) };
        let one = proto::Block { source_ns: 0, received_ns: 0, samples: vec![sample.clone()] };
        let content = [&source_ns(9)[..], &one.encode_to_vec(), &received_ns(10)].concat();
        let expected = proto::Block { source_ns: 9, received_ns: 10, samples: vec![sample] };
        assert_eq!(proto::Block::decode(content.as_slice()), Ok(expected));
    }
}
