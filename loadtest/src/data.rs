//! The data half of the protocol as this client speaks it: `Publish` from a template, `Frame` read in place. Pure.
//!
//! Only the generated types are shared with the server, and only for writing the template. Frames are walked by hand:
//! independent of the server's code, and without an allocation or a copy, which is what lets one core of the generator
//! keep up with a server that packs hundreds of samples into a frame.

use prost::Message as _;
use tidewire::wire::proto;

/// A `Publish` whose source time can be set without encoding it anew.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    bytes: Vec<u8>,
    source_at: usize,
}

impl Template {
    /// `samples` samples of `payload_bytes` opaque bytes for `channel`; with `ack` other than 0 the server answers it.
    pub(crate) fn new(channel: u32, samples: u32, payload_bytes: usize, ack: u64) -> Self {
        // Not all alike, so that nothing on the way can profit from it.
        let payload: Vec<u8> = (0u8..=250).cycle().take(payload_bytes).collect();
        let sample = proto::Sample { source_delta_ns: 0, value: Some(proto::sample::Value::Bytes(payload)) };
        let samples = (0..samples).map(|_| sample.clone()).collect();
        let block = proto::Block { source_ns: MARK, received_ns: 0, samples };
        let bytes = proto::Publish { channel, block: Some(block), ack }.encode_to_vec();
        let mark = MARK.to_le_bytes();
        // The mark is found in front of the samples, so a payload cannot be taken for it.
        let source_at = bytes.windows(mark.len()).position(|window| window == mark).unwrap_or(0);
        Self { bytes, source_at }
    }

    /// Length of the message.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Writes the message into `out`, which must be as long as [`len`](Self::len).
    pub(crate) fn write(&self, source_ns: u64, out: &mut [u8]) {
        out.copy_from_slice(&self.bytes);
        out[self.source_at..self.source_at + 8].copy_from_slice(&source_ns.to_le_bytes());
    }
}

/// Stands for the source time while the template is encoded.
const MARK: u64 = 0x7ea5_c0de_1dea_10ad;

/// What a frame says about itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FrameHead {
    /// Its channel.
    pub channel: u32,
    /// The life of the channel's sequence.
    pub epoch: u32,
    /// Sequence of its first sample.
    pub first: u64,
    /// Sequence of its last sample.
    pub last: u64,
    /// Samples in it.
    pub count: u64,
}

/// Samples of one block with one source time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Their source time.
    pub source_ns: u64,
    /// How many.
    pub count: u64,
}

/// Why a data message is not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// The message ends within a field.
    #[error("a frame ends within a field")]
    Truncated,
    /// A varint is longer than 10 bytes, or too large for its field.
    #[error("a frame has a number that does not fit its field")]
    Number,
    /// A field has a wire type other than the schema's, or one that protobuf does not have.
    #[error("a frame has field {field} with wire type {wire_type}")]
    WireType {
        /// Field number.
        field: u64,
        /// Its wire type.
        wire_type: u8,
    },
    /// `count` is not the number of samples in the blocks.
    #[error("a frame says {said} samples and has {found}")]
    Count {
        /// `Frame.count`.
        said: u64,
        /// Counted.
        found: u64,
    },
}

/// Frames that were walked lately. Subscribers with the same options get the same bytes, and to see that they are the same
/// costs a twentieth of walking them again.
#[derive(Debug, Default)]
pub(crate) struct SeenFrames {
    frames: [SeenFrame; SEEN_FRAMES],
    next: usize,
}

/// More than one subscriber is behind another by in a closed loop of a few frames.
const SEEN_FRAMES: usize = 16;

#[derive(Debug)]
struct SeenFrame {
    bytes: Vec<u8>,
    head: FrameHead,
    newest: Run,
}

impl Default for SeenFrame {
    fn default() -> Self {
        Self { bytes: Vec::new(), head: FrameHead::default(), newest: Run { source_ns: 0, count: 0 } }
    }
}

impl SeenFrames {
    /// What the frame says, and one of its newest samples.
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Result<(FrameHead, Run), FrameError> {
        // No frame is empty, so a place that was not used yet is never taken for one.
        if let Some(seen) = self.frames.iter().find(|seen| !bytes.is_empty() && seen.bytes == bytes) {
            return Ok((seen.head, seen.newest));
        }
        let place = &mut self.frames[self.next];
        let mut newest = place.newest;
        let head = read_frame(bytes, |run| newest = Run { count: 1, ..run })?;
        place.bytes.clear();
        place.bytes.extend_from_slice(bytes);
        (place.head, place.newest) = (head, newest);
        self.next = (self.next + 1) % SEEN_FRAMES;
        Ok((head, newest))
    }
}

/// Walks a frame. `on_run` gets its samples, grouped where they share a source time, in order.
pub(crate) fn read_frame(bytes: &[u8], mut on_run: impl FnMut(Run)) -> Result<FrameHead, FrameError> {
    let mut head = FrameHead::default();
    let (mut found, mut span) = (0, 0u64);
    let mut cursor = Cursor(bytes);
    while !cursor.0.is_empty() {
        match cursor.key()? {
            (1, VARINT) => head.channel = cursor.varint_u32()?,
            (2, FIXED32) => head.epoch = cursor.fixed32()?,
            (3, VARINT) => head.first = cursor.varint()?,
            (4, VARINT) => head.count = cursor.varint()?,
            (5, FIXED64) => drop(cursor.fixed64()?),
            (6, LENGTH) => found += read_block(cursor.length_delimited()?, &mut on_run)?,
            (7, LENGTH) => {
                let mut deltas = Cursor(cursor.length_delimited()?);
                while !deltas.0.is_empty() {
                    span = span.saturating_add(deltas.varint()?);
                }
            }
            (7, VARINT) => span = span.saturating_add(cursor.varint()?),
            (field @ 1..=7, wire_type) => return Err(FrameError::WireType { field, wire_type }),
            (field, wire_type) => cursor.skip(field, wire_type)?,
        }
    }
    if head.count != found || found == 0 {
        return Err(FrameError::Count { said: head.count, found });
    }
    let span = if span == 0 { found - 1 } else { span };
    head.last = head.first.saturating_add(span);
    Ok(head)
}

/// Samples in the block.
fn read_block(bytes: &[u8], on_run: &mut impl FnMut(Run)) -> Result<u64, FrameError> {
    let (mut source_ns, mut same, mut apart) = (0, 0, 0);
    let mut cursor = Cursor(bytes);
    while !cursor.0.is_empty() {
        match cursor.key()? {
            (1, FIXED64) => source_ns = cursor.fixed64()?,
            (2, FIXED64) => drop(cursor.fixed64()?),
            (3, LENGTH) => match source_delta(cursor.length_delimited()?)? {
                0 => same += 1,
                delta => {
                    apart += 1;
                    let source_ns = source_ns.saturating_add_signed(delta);
                    on_run(Run { source_ns, count: 1 });
                }
            },
            (field @ 1..=3, wire_type) => return Err(FrameError::WireType { field, wire_type }),
            (field, wire_type) => cursor.skip(field, wire_type)?,
        }
    }
    if same > 0 {
        on_run(Run { source_ns, count: same });
    }
    Ok(same + apart)
}

/// `Sample.source_delta_ns`: the first field of a sample if it is there at all, as every protobuf encoder writes fields
/// in order; the value behind it is not looked at.
fn source_delta(sample: &[u8]) -> Result<i64, FrameError> {
    if sample.first() != Some(&0x08) {
        return Ok(0);
    }
    let raw = Cursor(&sample[1..]).varint()?;
    Ok((raw >> 1).cast_signed() ^ -((raw & 1).cast_signed()))
}

const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH: u8 = 2;
const FIXED32: u8 = 5;

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn key(&mut self) -> Result<(u64, u8), FrameError> {
        let key = self.varint()?;
        Ok((key >> 3, (key & 7) as u8))
    }

    /// Keys are one byte long and the lengths of blocks and samples mostly two: those are read without a loop.
    #[inline]
    fn varint(&mut self) -> Result<u64, FrameError> {
        match *self.0 {
            [low @ ..0x80, ref rest @ ..] => {
                self.0 = rest;
                Ok(u64::from(low))
            }
            [low, high @ ..0x80, ref rest @ ..] => {
                self.0 = rest;
                Ok(u64::from(high) << 7 | u64::from(low & 0x7f))
            }
            _ => self.long_varint(),
        }
    }

    #[cold]
    fn long_varint(&mut self) -> Result<u64, FrameError> {
        let mut value = 0u64;
        for (index, &byte) in self.0.iter().enumerate() {
            let bits = u64::from(byte & 0x7f);
            if index == 9 && byte > 1 {
                return Err(FrameError::Number);
            }
            value |= bits << (7 * index);
            if byte < 0x80 {
                self.0 = &self.0[index + 1..];
                return Ok(value);
            }
        }
        Err(FrameError::Truncated)
    }

    fn varint_u32(&mut self) -> Result<u32, FrameError> {
        u32::try_from(self.varint()?).map_err(|_| FrameError::Number)
    }

    #[inline]
    fn fixed64(&mut self) -> Result<u64, FrameError> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(FrameError::Truncated)?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*bytes))
    }

    fn fixed32(&mut self) -> Result<u32, FrameError> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(FrameError::Truncated)?;
        self.0 = rest;
        Ok(u32::from_le_bytes(*bytes))
    }

    #[inline]
    fn length_delimited(&mut self) -> Result<&'a [u8], FrameError> {
        let length = usize::try_from(self.varint()?).map_err(|_| FrameError::Number)?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(FrameError::Truncated)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn skip(&mut self, field: u64, wire_type: u8) -> Result<(), FrameError> {
        match wire_type {
            VARINT => self.varint().map(drop),
            FIXED64 => self.fixed64().map(drop),
            LENGTH => self.length_delimited().map(drop),
            FIXED32 => self.fixed32().map(drop),
            _ => Err(FrameError::WireType { field, wire_type }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn runs(bytes: &[u8]) -> Result<(FrameHead, Vec<Run>), FrameError> {
        let mut runs = Vec::new();
        let head = read_frame(bytes, |run| runs.push(run))?;
        Ok((head, runs))
    }

    fn sample(source_delta_ns: i64, value: proto::sample::Value) -> proto::Sample {
        proto::Sample { source_delta_ns, value: Some(value) }
    }

    #[test]
    fn the_template_is_a_publish_with_the_given_time() {
        for (samples, payload_bytes, ack) in [(1, 128, 0), (3, 0, 7), (64, 1000, 1)] {
            let template = Template::new(u32::MAX, samples, payload_bytes, ack);
            let mut bytes = vec![0; template.len()];
            template.write(1_763_864_091_123_456_789, &mut bytes);
            let publish = proto::Publish::decode(&bytes[..]).unwrap();
            let block = publish.block.unwrap();
            assert_eq!((publish.channel, publish.ack), (u32::MAX, ack));
            assert_eq!(block.source_ns, 1_763_864_091_123_456_789);
            assert_eq!(block.samples.len(), usize::try_from(samples).unwrap());
            for sample in block.samples {
                let Some(proto::sample::Value::Bytes(bytes)) = sample.value else { panic!("bytes") };
                assert_eq!(bytes.len(), payload_bytes);
            }
        }
    }

    #[test]
    fn malformed_frames_are_errors() {
        let cases: [(&[u8], FrameError); 8] = [
            (&[], FrameError::Count { said: 0, found: 0 }),
            (&[0x08], FrameError::Truncated),
            (&[0x08, 0x80], FrameError::Truncated),
            (&[0x08, 0xff, 0xff, 0xff, 0xff, 0x1f], FrameError::Number),
            (&[0x18, 255, 255, 255, 255, 255, 255, 255, 255, 255, 2], FrameError::Number),
            (&[0x32, 5, 0], FrameError::Truncated),
            (&[0x0b], FrameError::WireType { field: 1, wire_type: 3 }),
            (&[0x20, 1], FrameError::Count { said: 1, found: 0 }),
        ];
        for (bytes, error) in cases {
            assert_eq!(runs(bytes), Err(error), "{bytes:x?}");
        }
    }

    #[test]
    fn unknown_fields_are_skipped() {
        let block = proto::Block {
            source_ns: 3,
            received_ns: 4,
            samples: vec![sample(0, proto::sample::Value::Number(1.0))],
        };
        let mut bytes = proto::Frame {
            channel: 1,
            epoch: 2,
            seq: 3,
            count: 1,
            flushed_ns: 5,
            blocks: vec![block],
            seq_deltas: vec![],
        }
        .encode_to_vec();
        bytes.extend([0x98, 0x06, 1, 0x9a, 0x06, 2, 9, 9, 0x9d, 0x06, 0, 0, 0, 0]);
        let (head, runs) = runs(&bytes).unwrap();
        assert_eq!(head, FrameHead { channel: 1, epoch: 2, first: 3, last: 3, count: 1 });
        assert_eq!(runs, [Run { source_ns: 3, count: 1 }]);
    }

    #[test]
    fn a_frame_that_was_seen_is_read_like_a_new_one() {
        let frame = |seq: u64| {
            let block = proto::Block {
                source_ns: seq * 10,
                received_ns: 4,
                samples: vec![sample(0, proto::sample::Value::Number(1.0))],
            };
            let (blocks, seq_deltas) = (vec![block], vec![]);
            proto::Frame { channel: 1, epoch: 2, seq, count: 1, flushed_ns: 5, blocks, seq_deltas }
                .encode_to_vec()
        };
        let mut seen = SeenFrames::default();
        assert!(seen.read(&[]).is_err() && seen.read(&[0x20, 1]).is_err(), "errors are not kept");
        for seq in (1..=40).chain(30..=70).chain([70, 69, 68]) {
            let (head, newest) = seen.read(&frame(seq)).unwrap();
            assert_eq!(head, FrameHead { channel: 1, epoch: 2, first: seq, last: seq, count: 1 });
            assert_eq!(newest, Run { source_ns: seq * 10, count: 1 });
        }
        let mut other = frame(70);
        *other.last_mut().unwrap() ^= 0x80;
        let bytes = |seen: &SeenFrames| seen.frames.iter().any(|it| it.bytes == other);
        assert!(!bytes(&seen), "as long as the last one and not the same");
        assert!(seen.read(&other).is_err() || bytes(&seen), "it was walked");
    }

    fn values() -> impl Strategy<Value = proto::sample::Value> {
        use proto::sample::Value;
        prop_oneof![
            any::<f64>().prop_map(Value::Number),
            any::<i64>().prop_map(Value::Integer),
            prop::collection::vec(any::<f64>(), 0..4)
                .prop_map(|values| Value::Vector(proto::Vector { values })),
            ".{0,20}".prop_map(Value::Text),
            prop::collection::vec(any::<u8>(), 0..200).prop_map(Value::Bytes),
        ]
    }

    fn blocks() -> impl Strategy<Value = Vec<proto::Block>> {
        let samples =
            (prop_oneof![Just(0i64), any::<i64>()], values()).prop_map(|(delta, value)| sample(delta, value));
        let block = (any::<u64>(), any::<u64>(), prop::collection::vec(samples, 1..6))
            .prop_map(|(source_ns, received_ns, samples)| proto::Block { source_ns, received_ns, samples });
        prop::collection::vec(block, 1..6)
    }

    proptest! {
        /// The walker sees what prost wrote.
        #[test]
        fn agrees_with_the_schema(channel: u32, epoch: u32, seq in 1..u64::MAX / 2, flushed_ns: u64, blocks in blocks(), conflated: bool) {
            let count: usize = blocks.iter().map(|block| block.samples.len()).sum();
            let seq_deltas = if conflated { vec![3; count - 1] } else { vec![] };
            let frame = proto::Frame { channel, epoch, seq, count: u32::try_from(count).unwrap(), flushed_ns, blocks, seq_deltas };
            let (head, runs) = runs(&frame.encode_to_vec()).unwrap();
            let count = u64::try_from(count).unwrap();
            let span = if conflated { 3 * (count - 1) } else { count - 1 };
            prop_assert_eq!(head, FrameHead { channel, epoch, first: seq, last: seq + span, count });
            let mut expected: Vec<u64> = frame.blocks.iter().flat_map(|block| {
                block.samples.iter().map(|sample| block.source_ns.saturating_add_signed(sample.source_delta_ns))
            }).collect();
            let mut got: Vec<u64> = runs.iter().flat_map(|run| (0..run.count).map(|_| run.source_ns)).collect();
            expected.sort_unstable();
            got.sort_unstable();
            prop_assert_eq!(got, expected);
        }

        /// Any bytes end in an answer.
        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = runs(&bytes);
        }
    }
}
