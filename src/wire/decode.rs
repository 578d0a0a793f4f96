//! Checks a protobuf `Publish` without decoding it: one pass over the bytes, which leaves the block's content to be
//! relayed as it came and tells where each sample lies in it. Never allocates but for the spans, never copies a sample,
//! never looks into a value further than its validity asks for.
//!
//! What [`scan_publish`] takes, any protobuf decoder takes, with the same meaning; the tests hold it against prost. It is
//! stricter where a message could not be relayed as it is, or would not mean what its publisher meant:
//!
//! * more than one `block` field, which protobuf would merge, and which are not one span of bytes;
//! * `received_ns` in the block: the server's own field;
//! * no sample, a sample without a value, more samples than the limit;
//! * a channel above 32 bits, which protobuf would cut off;
//! * groups, also unknown ones: deprecated since proto3, and the only thing in the format that nests without a length.

use std::fmt;

use super::ChannelId;
use super::encode::INSTANT_BYTES;

/// Where a sample lies in the content of its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SampleSpan {
    /// First byte of the `samples` field, its key included, from the start of the block's content.
    pub start: u32,
    /// One past its last byte.
    pub end: u32,
    /// The sample's source time in nanoseconds, relative to the block's `source_ns`.
    pub source_delta_ns: i64,
}

/// A `Publish` that was checked and may be relayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScannedPublish<'a> {
    /// The channel that it is for. Whether this client may publish to it is the session's question.
    pub channel: ChannelId,
    /// Other than 0: the client wants an `ack` with this number.
    pub ack: u64,
    /// The block's base of source times, nanoseconds since the Unix epoch by the publisher's clock; 0 if it has none.
    pub source_ns: u64,
    /// The content of the `Block`, without key and length: whole fields, so that further fields may be appended.
    pub block: &'a [u8],
}

/// Checks a `Publish` and finds its samples. `spans` is cleared and filled; only its growth allocates, and it never holds
/// more than `samples_max`. After an error, what `spans` holds means nothing.
///
/// # Errors
///
/// [`DecodeError`] names the first thing that is wrong and where it is, in bytes from the start of the message.
pub fn scan_publish<'a>(
    message: &'a [u8],
    samples_max: usize,
    spans: &mut Vec<SampleSpan>,
) -> Result<ScannedPublish<'a>, DecodeError> {
    spans.clear();
    if u32::try_from(message.len()).is_err() {
        return Err(DecodeError::TooLong);
    }
    let (mut channel, mut ack, mut block) = (0, 0, None);
    let mut reader = Reader { bytes: message, at: 0 };
    while !reader.is_at_end() {
        let at = reader.at;
        match reader.key()? {
            CHANNEL => {
                let value = reader.varint(Field::Channel)?;
                channel = u32::try_from(value).map_err(|_| DecodeError::ChannelTooBig { at: offset(at) })?;
            }
            BLOCK if block.is_some() => return Err(DecodeError::SecondBlock { at: offset(at) }),
            BLOCK => {
                let content = reader.delimited(Field::Block)?;
                let source_ns = scan_block(content, samples_max, spans)?;
                block = Some((source_ns, content.rest()));
            }
            ACK => ack = reader.varint(Field::Ack)?,
            key => reader.skip(key, at, &[Field::Channel, Field::Block, Field::Ack])?,
        }
    }
    let (source_ns, block) = block.ok_or(DecodeError::NoSamples)?;
    if spans.is_empty() {
        return Err(DecodeError::NoSamples);
    }
    Ok(ScannedPublish { channel: ChannelId(channel), ack, source_ns, block })
}

/// Checks the content of a `Block` as [`ScannedPublish::block`] gives it, and finds its samples, as [`scan_publish`] does. Returns
/// its `source_ns`.
///
/// # Errors
///
/// As [`scan_publish`]; offsets are from the start of the content.
pub fn scan_content(
    content: &[u8],
    samples_max: usize,
    spans: &mut Vec<SampleSpan>,
) -> Result<u64, DecodeError> {
    spans.clear();
    if u32::try_from(content.len()).is_err() {
        return Err(DecodeError::TooLong);
    }
    let source_ns = scan_block(Reader { bytes: content, at: 0 }, samples_max, spans)?;
    if spans.is_empty() { Err(DecodeError::NoSamples) } else { Ok(source_ns) }
}

/// A block of a frame's body: what the publisher sent, and when the server received it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedBlock<'a> {
    /// The whole field, key and length included.
    pub field: &'a [u8],
    /// The content of the `Block` without `received_ns`, as [`ScannedPublish::block`].
    pub content: &'a [u8],
    /// Nanoseconds since the Unix epoch.
    pub received_ns: u64,
}

/// Takes the first block from a body as `wire::seal` makes it: blocks that end in `received_ns`, and nothing behind them.
/// `None` at its end.
///
/// # Errors
///
/// It is no such body.
pub fn next_block<'a>(body: &mut &'a [u8]) -> Result<Option<SealedBlock<'a>>, DecodeError> {
    let whole: &'a [u8] = body;
    if whole.is_empty() {
        return Ok(None);
    }
    let mut reader = Reader { bytes: whole, at: 0 };
    if reader.key()? != FRAME_BLOCKS {
        return Err(DecodeError::Key { at: 0 });
    }
    let block = reader.delimited(Field::Block)?.rest();
    let truncated = DecodeError::Truncated { field: Field::ReceivedNs, at: offset(reader.at) };
    let (content, last) = block.split_last_chunk::<INSTANT_BYTES>().ok_or(truncated)?;
    let [key, instant @ ..] = *last;
    if u32::from(key) != RECEIVED_NS {
        return Err(truncated);
    }
    *body = reader.rest();
    let field = &whole[..whole.len() - body.len()];
    Ok(Some(SealedBlock { field, content, received_ns: u64::from_le_bytes(instant) }))
}

/// Checks the content of a `Block` and returns its `source_ns`. Appends to `spans`, whose offsets are from the start of the content.
pub(super) fn scan_block(
    mut reader: Reader<'_>,
    samples_max: usize,
    spans: &mut Vec<SampleSpan>,
) -> Result<u64, DecodeError> {
    let base = reader.at;
    let mut source_ns = 0;
    while !reader.is_at_end() {
        let at = reader.at;
        match reader.key()? {
            SAMPLES => {
                if spans.len() >= samples_max {
                    return Err(DecodeError::TooManySamples {
                        at: offset(at),
                        samples_max: u32::try_from(samples_max).unwrap_or(u32::MAX),
                    });
                }
                let source_delta_ns = scan_sample(reader.delimited(Field::Samples)?, at)?;
                spans.push(SampleSpan {
                    start: offset(at - base),
                    end: offset(reader.at - base),
                    source_delta_ns,
                });
            }
            SOURCE_NS => source_ns = u64::from_le_bytes(reader.fixed(Field::SourceNs)?),
            RECEIVED_NS => return Err(DecodeError::ReceivedNs { at: offset(at) }),
            key => reader.skip(key, at, &[Field::SourceNs, Field::ReceivedNs, Field::Samples])?,
        }
    }
    Ok(source_ns)
}

/// Checks the content of a `Sample` and returns its `source_delta_ns`. `start` is where its field begins.
#[inline]
fn scan_sample(mut reader: Reader<'_>, start: usize) -> Result<i64, DecodeError> {
    let mut source_delta_ns = 0;
    let mut has_value = false;
    while !reader.is_at_end() {
        let at = reader.at;
        match reader.key()? {
            SOURCE_DELTA_NS => {
                source_delta_ns = zigzag(reader.varint(Field::SourceDeltaNs)?);
                continue;
            }
            NUMBER => drop(reader.fixed::<8>(Field::Number)?),
            INTEGER => drop(reader.varint(Field::Integer)?),
            VECTOR => scan_vector(reader.delimited(Field::Vector)?)?,
            TEXT => {
                let text = reader.delimited(Field::Text)?.rest();
                simdutf8::basic::from_utf8(text).map_err(|_| DecodeError::BadUtf8 { at: offset(at) })?;
            }
            BYTES => drop(reader.delimited(Field::Bytes)?),
            key => {
                const KNOWN: [Field; 6] = [
                    Field::SourceDeltaNs,
                    Field::Number,
                    Field::Integer,
                    Field::Vector,
                    Field::Text,
                    Field::Bytes,
                ];
                reader.skip(key, at, &KNOWN)?;
                continue;
            }
        }
        has_value = true;
    }
    if has_value { Ok(source_delta_ns) } else { Err(DecodeError::NoValue { at: offset(start) }) }
}

/// Checks the content of a `Vector`: doubles, packed or one by one, as protobuf asks a reader to take both.
fn scan_vector(mut reader: Reader<'_>) -> Result<(), DecodeError> {
    while !reader.is_at_end() {
        let at = reader.at;
        match reader.key()? {
            VALUES_PACKED => {
                let bytes = reader.delimited(Field::Values)?.rest().len();
                if bytes % size_of::<f64>() != 0 {
                    return Err(DecodeError::VectorLength { at: offset(at), bytes: offset(bytes) });
                }
            }
            VALUES => drop(reader.fixed::<8>(Field::Values)?),
            key => reader.skip(key, at, &[Field::Values])?,
        }
    }
    Ok(())
}

/// What is wrong with a message, and where. Offsets are bytes from the start of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A field, a key or a length that goes past the end of the message or of the field around it.
    #[error("{field} at byte {at} goes past the end of what holds it; send whole messages with true lengths")]
    Truncated {
        /// The field.
        field: Field,
        /// Where the missing part was expected.
        at: u32,
    },
    /// A known field in another encoding, or an unknown one in an encoding that does not exist.
    #[error("{field} at byte {at} has wire type {found}, expected {}; encode with the published .proto file", field.wire_type())]
    WireType {
        /// The field.
        field: Field,
        /// Where its key is.
        at: u32,
        /// The wire type found.
        found: u8,
    },
    /// A varint of more than ten bytes, or of more than 64 bits.
    #[error("{field} at byte {at} is a varint of more than 64 bits; encode with the published .proto file")]
    Varint {
        /// The field.
        field: Field,
        /// Where the varint is.
        at: u32,
    },
    /// A field number of 0, or one above 2^29 - 1.
    #[error("the key at byte {at} is no field number; they go from 1 to 536870911")]
    Key {
        /// Where the key is.
        at: u32,
    },
    /// A `channel` above 32 bits.
    #[error("{} at byte {at} is above 4294967295; send the number that `advertised` gave", Field::Channel)]
    ChannelTooBig {
        /// Where the field is.
        at: u32,
    },
    /// A second `block`.
    #[error(
        "{} at byte {at} is the second one, which protobuf would merge; send one message for each",
        Field::Block
    )]
    SecondBlock {
        /// Where the second one is.
        at: u32,
    },
    /// `received_ns` in a publish.
    #[error("{} at byte {at} is for the server to set; leave it out", Field::ReceivedNs)]
    ReceivedNs {
        /// Where the field is.
        at: u32,
    },
    /// A publish without a block, or with an empty one.
    #[error("the message has no {}; send at least one", Field::Samples)]
    NoSamples,
    /// More samples than the limit.
    #[error(
        "{} at byte {at} is one more than the limit of {samples_max}; send several messages",
        Field::Samples
    )]
    TooManySamples {
        /// Where the first one too many is.
        at: u32,
        /// The limit.
        samples_max: u32,
    },
    /// A sample without a value.
    #[error("{} at byte {at} has no value; set one of number, integer, vector, text, bytes", Field::Samples)]
    NoValue {
        /// Where the sample is.
        at: u32,
    },
    /// A text that is not UTF-8.
    #[error("{} at byte {at} is not UTF-8; send it as `bytes`", Field::Text)]
    BadUtf8 {
        /// Where the field is.
        at: u32,
    },
    /// Packed doubles whose length is not a multiple of eight.
    #[error("{} at byte {at} has {bytes} bytes, not a multiple of 8; send doubles", Field::Values)]
    VectorLength {
        /// Where the field is.
        at: u32,
        /// Its length.
        bytes: u32,
    },
    /// A message of 4 GiB or more: offsets are 32 bits. The limit on messages is far below.
    #[error("the message has 4 GiB or more; send several")]
    TooLong,
}

/// The fields of a `Publish`, for error messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// A field's key: its number and wire type.
    Key,
    /// One that the published proto file does not have.
    Unknown,
    /// `channel`.
    Channel,
    /// `block`.
    Block,
    /// `ack`.
    Ack,
    /// `block.source_ns`.
    SourceNs,
    /// `block.received_ns`.
    ReceivedNs,
    /// `block.samples`.
    Samples,
    /// `block.samples.source_delta_ns`.
    SourceDeltaNs,
    /// `block.samples.number`.
    Number,
    /// `block.samples.integer`.
    Integer,
    /// `block.samples.vector`.
    Vector,
    /// `block.samples.text`.
    Text,
    /// `block.samples.bytes`.
    Bytes,
    /// `block.samples.vector.values`.
    Values,
}

impl Field {
    /// The number in the message that holds it; 0 for what is not a known field.
    const fn number(self) -> u32 {
        match self {
            Self::Key | Self::Unknown => 0,
            Self::Channel | Self::SourceNs | Self::SourceDeltaNs | Self::Values => 1,
            Self::Block | Self::ReceivedNs | Self::Number => 2,
            Self::Ack | Self::Samples | Self::Integer => 3,
            Self::Vector => 4,
            Self::Text => 5,
            Self::Bytes => 6,
        }
    }

    const fn wire_type(self) -> &'static str {
        match self {
            Self::Key | Self::Channel | Self::Ack | Self::SourceDeltaNs | Self::Integer => "0 (varint)",
            Self::SourceNs | Self::ReceivedNs | Self::Number => "1 (64 bits)",
            Self::Block | Self::Samples | Self::Vector | Self::Text | Self::Bytes => "2 (length-delimited)",
            Self::Values => "2 (packed) or 1 (64 bits)",
            Self::Unknown => "0, 1, 2 or 5 (groups are not taken)",
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Key => "a field's key",
            Self::Unknown => "an unknown field",
            Self::Channel => "`channel`",
            Self::Block => "`block`",
            Self::Ack => "`ack`",
            Self::SourceNs => "`block.source_ns`",
            Self::ReceivedNs => "`block.received_ns`",
            Self::Samples => "`block.samples`",
            Self::SourceDeltaNs => "`block.samples.source_delta_ns`",
            Self::Number => "`block.samples.number`",
            Self::Integer => "`block.samples.integer`",
            Self::Vector => "`block.samples.vector`",
            Self::Text => "`block.samples.text`",
            Self::Bytes => "`block.samples.bytes`",
            Self::Values => "`block.samples.vector.values`",
        })
    }
}

// Keys of the fields: number and wire type, as a varint carries them.
const CHANNEL: u32 = key(Field::Channel, VARINT);
const BLOCK: u32 = key(Field::Block, DELIMITED);
const ACK: u32 = key(Field::Ack, VARINT);
const SOURCE_NS: u32 = key(Field::SourceNs, FIXED64);
const RECEIVED_NS: u32 = key(Field::ReceivedNs, FIXED64);
const SAMPLES: u32 = key(Field::Samples, DELIMITED);
const SOURCE_DELTA_NS: u32 = key(Field::SourceDeltaNs, VARINT);
const NUMBER: u32 = key(Field::Number, FIXED64);
const INTEGER: u32 = key(Field::Integer, VARINT);
const VECTOR: u32 = key(Field::Vector, DELIMITED);
const TEXT: u32 = key(Field::Text, DELIMITED);
const BYTES: u32 = key(Field::Bytes, DELIMITED);
const VALUES: u32 = key(Field::Values, FIXED64);
const VALUES_PACKED: u32 = key(Field::Values, DELIMITED);

/// `Frame.blocks`.
const FRAME_BLOCKS: u32 = (6 << 3) | DELIMITED;

// Wire types of the format.
const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const DELIMITED: u32 = 2;
const FIXED32: u32 = 5;

const fn key(field: Field, wire_type: u32) -> u32 {
    (field.number() << 3) | wire_type
}

/// A place in a message. `bytes` ends where the innermost field ends and starts where the message starts, so that `at` is
/// an offset in the message at every depth.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn is_at_end(&self) -> bool {
        self.at >= self.bytes.len()
    }

    pub(super) fn rest(self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// A field's number and wire type, together as they come.
    #[inline]
    pub(super) fn key(&mut self) -> Result<u32, DecodeError> {
        let at = self.at;
        let key = self.varint(Field::Key)?;
        match u32::try_from(key) {
            Ok(key) if key >> 3 != 0 => Ok(key),
            _ => Err(DecodeError::Key { at: offset(at) }),
        }
    }

    /// A varint of up to 64 bits.
    #[inline]
    pub(super) fn varint(&mut self, field: Field) -> Result<u64, DecodeError> {
        match self.bytes.get(self.at) {
            Some(&byte) if byte < 0x80 => {
                self.at += 1;
                Ok(u64::from(byte))
            }
            _ => self.long_varint(field),
        }
    }

    fn long_varint(&mut self, field: Field) -> Result<u64, DecodeError> {
        let mut value = 0;
        for (index, &byte) in self.rest().iter().take(VARINT_BYTES_MAX).enumerate() {
            // The tenth byte has room for one bit.
            if index == VARINT_BYTES_MAX - 1 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                self.at += index + 1;
                return Ok(value);
            }
        }
        let at = offset(self.at);
        if self.rest().len() < VARINT_BYTES_MAX {
            return Err(DecodeError::Truncated { field, at });
        }
        Err(DecodeError::Varint { field, at })
    }

    /// So many bytes as they are.
    #[inline]
    pub(super) fn fixed<const N: usize>(&mut self, field: Field) -> Result<[u8; N], DecodeError> {
        match self.rest().first_chunk() {
            Some(bytes) => {
                self.at += N;
                Ok(*bytes)
            }
            None => Err(DecodeError::Truncated { field, at: offset(self.at) }),
        }
    }

    /// What a length-delimited field holds; goes past it.
    #[inline]
    pub(super) fn delimited(&mut self, field: Field) -> Result<Self, DecodeError> {
        let at = self.at;
        let length = usize::try_from(self.varint(field)?).unwrap_or(usize::MAX);
        let start = self.at;
        let content = start.checked_add(length).and_then(|end| self.bytes.get(..end));
        let Some(bytes) = content else {
            return Err(DecodeError::Truncated { field, at: offset(at) });
        };
        self.at = bytes.len();
        Ok(Self { bytes, at: start })
    }

    /// Goes past a field whose key matched none of the `known` ones: an unknown number, or a known one with another wire
    /// type, which is an error. `at` is where its key is.
    #[cold]
    pub(super) fn skip(&mut self, key: u32, at: usize, known: &[Field]) -> Result<(), DecodeError> {
        let wire_type = key & 7;
        let known = known.iter().copied().find(|field| field.number() == key >> 3);
        match (known, wire_type) {
            (None, VARINT) => drop(self.varint(Field::Unknown)?),
            (None, FIXED64) => drop(self.fixed::<8>(Field::Unknown)?),
            (None, DELIMITED) => drop(self.delimited(Field::Unknown)?),
            (None, FIXED32) => drop(self.fixed::<4>(Field::Unknown)?),
            (field, _) => {
                let found = u8::try_from(wire_type).unwrap_or_default();
                let field = field.unwrap_or(Field::Unknown);
                return Err(DecodeError::WireType { field, at: offset(at), found });
            }
        }
        Ok(())
    }
}

/// The format's longest varint: 64 bits, seven in a byte.
const VARINT_BYTES_MAX: usize = 10;

/// An offset in a message; exact, since messages of 4 GiB are refused first.
fn offset(at: usize) -> u32 {
    u32::try_from(at).unwrap_or(u32::MAX)
}

/// The signed number of a `sint64`.
const fn zigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

#[cfg(test)]
mod tests;
