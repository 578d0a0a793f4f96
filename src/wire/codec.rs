//! Data messages in the two codecs beside protobuf: JSON for a person with a generic WebSocket tool, MessagePack for
//! clients without protobuf. Both carry the model of `proto/tidewire.proto`, with its field names as keys; the three
//! agree on every value, to the bit but for the payload of a JSON NaN. Never on the way of a protobuf sample.
//!
//! | | JSON | MessagePack |
//! | --- | --- | --- |
//! | message | text, with a `"type"`: `publish` or `frame` | binary, one map |
//! | instants, `source_delta_ns`, `integer` | strings of digits; numbers are read, too | integers |
//! | `number`, items of `vector` | numbers, or `"NaN"`, `"Infinity"`, `"-Infinity"` | floats; integers are read, too |
//! | `bytes` | base64 (RFC 4648 section 4, padded) | bin |
//! | channel of a publish | its number, or its name | its number |
//! | unknown fields of a publish | refused by name, as in control | skipped |
//!
//! In both, a field that comes twice and a sample with two values are refused, and what [`super::decode`] refuses: no
//! sample, a sample without a value, more samples than the limit, `received_ns` in a publish, and bytes after the message.
//! No length that a message declares is believed: memory follows the bytes that are there.

use super::{ChannelId, proto};

mod read;
mod write;

/// The channel of a JSON publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChannelRef {
    /// By its number, from `advertised`.
    Id(ChannelId),
    /// By its name: not checked, since the grammar is the session's.
    Name(String),
}

/// A publish as it came in JSON.
#[derive(Clone, Debug, PartialEq)]
pub struct TextPublish {
    /// The channel.
    pub channel: ChannelRef,
    /// The message. Its own `channel` is 0 where the channel came as a name.
    pub publish: proto::Publish,
}

/// A frame as it came in JSON: with the channel's name.
#[derive(Clone, Debug, PartialEq)]
pub struct TextFrame {
    /// Name of the channel.
    pub name: String,
    /// The frame.
    pub frame: proto::Frame,
}

/// What is wrong with a message, for the peer to read: the field, what was found and what was expected. Short, and
/// without control characters, whatever the peer sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CodecError(Box<str>);

/// Longest part of an error's text that is kept at its start and at its end. What a peer sent stands in the middle, so
/// that its answer is not as long as its mistake.
const ERROR_CHARS_MAX: usize = 120;

impl CodecError {
    fn new(error: &impl ToString) -> Self {
        let text = error.to_string();
        let cut = |index: Option<(usize, char)>| index.map(|(at, _)| at);
        let head = cut(text.char_indices().nth(ERROR_CHARS_MAX));
        let tail = cut(text.char_indices().nth_back(ERROR_CHARS_MAX - 1));
        let shown = match (head, tail) {
            (Some(head), Some(tail)) if head < tail => format!("{} … {}", &text[..head], &text[tail..]),
            _ => text,
        };
        let escaped = shown.chars().fold(String::with_capacity(shown.len()), |mut escaped, character| {
            if character.is_control() {
                escaped.extend(character.escape_default());
            } else {
                escaped.push(character);
            }
            escaped
        });
        Self(escaped.into())
    }
}

// What JSON calls the doubles that it has no numbers for: the names that JavaScript's `Number` reads.
const NAN: &str = "NaN";
const INFINITY: &str = "Infinity";
const NEG_INFINITY: &str = "-Infinity";

/// Deepest nesting of a MessagePack message. The model needs five levels; the rest is for unknown fields, which are read
/// by recursion. JSON needs no limit of its own, since a publish has no unknown fields there.
const MSGPACK_DEPTH_MAX: usize = 32;

/// Whether a text message of the JSON codec is data: an object whose `type` is `publish`. Everything else is control, also
/// what is not JSON at all. Looks at the first key; only where that is not `type` does it read the whole text.
#[must_use]
pub fn is_publish(text: &str) -> bool {
    #[derive(serde::Deserialize)]
    struct Tag {
        r#type: String,
    }
    first_type(text).map_or_else(
        || serde_json::from_str::<Tag>(text).is_ok_and(|tag| tag.r#type == "publish"),
        |name| name == "publish",
    )
}

/// The `type` of a JSON object where it is the first key, and both are written without escapes.
fn first_type(text: &str) -> Option<&str> {
    let mut rest = text;
    for token in ["{", "\"type\"", ":", "\""] {
        rest = rest.trim_start_matches([' ', '\t', '\n', '\r']).strip_prefix(token)?;
    }
    let (name, _) = rest.split_once('"')?;
    (!name.contains('\\')).then_some(name)
}

/// Reads a JSON `publish`.
///
/// # Errors
///
/// [`CodecError`], with line and column.
pub fn decode_publish_json(text: &str, samples_max: usize) -> Result<TextPublish, CodecError> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let publish = read::publish(&mut deserializer, samples_max).map_err(|error| CodecError::new(&error))?;
    deserializer.end().map_err(|error| CodecError::new(&error))?;
    Ok(publish)
}

/// Reads a MessagePack `Publish`.
///
/// # Errors
///
/// [`CodecError`].
pub fn decode_publish_msgpack(message: &[u8], samples_max: usize) -> Result<proto::Publish, CodecError> {
    from_msgpack(message, |deserializer| read::publish(deserializer, samples_max))
        .map(|publish| publish.publish)
}

/// Reads a JSON `frame`, as a client does: unknown fields are skipped.
///
/// # Errors
///
/// [`CodecError`], with line and column.
pub fn decode_frame_json(text: &str) -> Result<TextFrame, CodecError> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let frame = read::frame(&mut deserializer).map_err(|error| CodecError::new(&error))?;
    deserializer.end().map_err(|error| CodecError::new(&error))?;
    Ok(frame)
}

/// Reads a MessagePack `Frame`, as a client does.
///
/// # Errors
///
/// [`CodecError`].
pub fn decode_frame_msgpack(message: &[u8]) -> Result<proto::Frame, CodecError> {
    from_msgpack(message, |deserializer| read::frame(deserializer)).map(|frame| frame.frame)
}

type MsgpackReader<'a> = rmp_serde::Deserializer<rmp_serde::decode::ReadRefReader<'a, [u8]>>;

fn from_msgpack<T>(
    message: &[u8],
    read: impl FnOnce(&mut MsgpackReader<'_>) -> Result<T, rmp_serde::decode::Error>,
) -> Result<T, CodecError> {
    use serde::Deserialize;

    let mut deserializer = rmp_serde::Deserializer::from_read_ref(message);
    deserializer.set_max_depth(MSGPACK_DEPTH_MAX);
    let value = read(&mut deserializer).map_err(|error| CodecError::new(&error))?;
    // The reader does not tell where it is, but at the end, and only there, a further value lacks its first byte.
    match bool::deserialize(&mut deserializer) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(_)) => Ok(value),
        _ => Err(CodecError::new(&"bytes after the message; send one map in each message")),
    }
}

/// Appends a frame as JSON. `name` is the channel's.
pub fn encode_frame_json(frame: &proto::Frame, name: &str, out: &mut Vec<u8>) {
    to_json(&write::Frame { frame, name: Some(name) }, out);
}

/// Appends a frame as MessagePack.
pub fn encode_frame_msgpack(frame: &proto::Frame, out: &mut Vec<u8>) {
    to_msgpack(&write::Frame { frame, name: None }, out);
}

/// Appends a publish as JSON, as a client does; `channel` takes the place of the publish's own.
pub fn encode_publish_json(channel: &ChannelRef, publish: &proto::Publish, out: &mut Vec<u8>) {
    to_json(&write::Publish { channel: Some(channel), publish }, out);
}

/// Appends a publish as MessagePack, as a client does.
pub fn encode_publish_msgpack(publish: &proto::Publish, out: &mut Vec<u8>) {
    to_msgpack(&write::Publish { channel: None, publish }, out);
}

fn to_json(message: &impl serde::Serialize, out: &mut Vec<u8>) {
    serde_json::to_writer(out, message).expect("the model has string keys, and a Vec takes every byte");
}

fn to_msgpack(message: &impl serde::Serialize, out: &mut Vec<u8>) {
    rmp_serde::encode::write(out, message)
        .expect("the model's maps have a length, and a Vec takes every byte");
}

#[cfg(test)]
mod tests;
