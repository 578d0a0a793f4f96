//! The model as serde sees it on the way in. Nothing is reserved by a length that the message declares beyond
//! [`RESERVED_MAX`] items; the limit on samples is checked before a sample is read.

use std::fmt;
use std::marker::PhantomData;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor};

use super::{ChannelId, ChannelRef, TextFrame, TextPublish, proto};
use proto::sample::Value;

/// Most items that an array's declared length reserves memory for; what comes after that grows as it is read.
const RESERVED_MAX: usize = 64;

pub(super) fn publish<'de, D: Deserializer<'de>>(
    deserializer: D,
    samples_max: usize,
) -> Result<TextPublish, D::Error> {
    let format = Format::of(&deserializer);
    deserializer.deserialize_map(PublishVisitor { format, samples_max })
}

pub(super) fn frame<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TextFrame, D::Error> {
    let format = Format::of(&deserializer);
    deserializer.deserialize_map(FrameVisitor { format })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Json,
    MessagePack,
}

impl Format {
    fn of<'de>(deserializer: &impl Deserializer<'de>) -> Self {
        if deserializer.is_human_readable() { Self::Json } else { Self::MessagePack }
    }

    /// What a publish's unknown fields are.
    fn unknown(self) -> Unknown {
        match self {
            Self::Json => Unknown::Refused,
            Self::MessagePack => Unknown::Skipped,
        }
    }
}

/// Which way a message goes, and with it whose rules hold.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Publish { samples_max: usize },
    Frame,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unknown {
    Refused,
    Skipped,
}

/// Keys of a map: one of `known`, or the empty string for one to be skipped.
#[derive(Clone, Copy)]
struct Key {
    known: &'static [&'static str],
    unknown: Unknown,
}

impl<'de> DeserializeSeed<'de> for Key {
    type Value = &'static str;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for Key {
    type Value = &'static str;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Self::Value, E> {
        match self.known.iter().find(|known| **known == name) {
            Some(known) => Ok(known),
            None if self.unknown == Unknown::Skipped => Ok(""),
            None => Err(E::unknown_field(name, self.known)),
        }
    }
}

/// Reads the value of a field that may come once.
fn once<'de, M: MapAccess<'de>, S: DeserializeSeed<'de>>(
    map: &mut M,
    key: &'static str,
    seed: S,
    slot: &mut Option<S::Value>,
) -> Result<(), M::Error> {
    if slot.is_some() {
        return Err(M::Error::duplicate_field(key));
    }
    *slot = Some(map.next_value_seed(seed)?);
    Ok(())
}

struct PublishVisitor {
    format: Format,
    samples_max: usize,
}

impl<'de> Visitor<'de> for PublishVisitor {
    type Value = TextPublish;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a publish: an object with channel and block")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<TextPublish, M::Error> {
        let is_json = self.format == Format::Json;
        let known: &[_] =
            if is_json { &["type", "channel", "block", "ack"] } else { &["channel", "block", "ack"] };
        let keys = Key { known, unknown: self.format.unknown() };
        let (mut kind, mut channel, mut block, mut ack) = (None, None, None, None);
        while let Some(key) = map.next_key_seed(keys)? {
            match key {
                "type" => once(&mut map, key, Type("publish"), &mut kind)?,
                "channel" => once(&mut map, key, Channel { format: self.format }, &mut channel)?,
                "block" => {
                    let direction = Direction::Publish { samples_max: self.samples_max };
                    once(&mut map, key, Block { format: self.format, direction }, &mut block)?;
                }
                "ack" => once(&mut map, key, Wide::<u64>::named(key), &mut ack)?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        if is_json && kind.is_none() {
            return Err(M::Error::missing_field("type"));
        }
        let channel = channel.ok_or_else(|| M::Error::missing_field("channel"))?;
        let block = block.ok_or_else(|| M::Error::missing_field("block"))?;
        let id = match channel {
            ChannelRef::Id(id) => id.0,
            ChannelRef::Name(_) => 0,
        };
        let publish = proto::Publish { channel: id, block: Some(block), ack: ack.unwrap_or_default() };
        Ok(TextPublish { channel, publish })
    }
}

struct FrameVisitor {
    format: Format,
}

impl<'de> Visitor<'de> for FrameVisitor {
    type Value = TextFrame;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a frame: an object with channel, seq and blocks")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<TextFrame, M::Error> {
        const KNOWN: &[&str] =
            &["type", "channel", "name", "epoch", "seq", "count", "flushed_ns", "blocks", "seq_deltas"];
        let keys = Key { known: KNOWN, unknown: Unknown::Skipped };
        let (mut kind, mut channel, mut name, mut epoch, mut seq) = (None, None, None, None, None);
        let (mut count, mut flushed_ns, mut blocks, mut seq_deltas) = (None, None, None, None);
        let block = Block { format: self.format, direction: Direction::Frame };
        while let Some(key) = map.next_key_seed(keys)? {
            match key {
                "type" => once(&mut map, key, Type("frame"), &mut kind)?,
                "channel" => once(&mut map, key, PhantomData::<u32>, &mut channel)?,
                "name" => once(&mut map, key, Text, &mut name)?,
                "epoch" => once(&mut map, key, PhantomData::<u32>, &mut epoch)?,
                "seq" => once(&mut map, key, PhantomData::<u64>, &mut seq)?,
                "count" => once(&mut map, key, PhantomData::<u32>, &mut count)?,
                "flushed_ns" => once(&mut map, key, Wide::<u64>::named(key), &mut flushed_ns)?,
                "blocks" => {
                    once(&mut map, key, Items { name: key, max: usize::MAX, item: block }, &mut blocks)?
                }
                "seq_deltas" => {
                    let deltas = Items { name: key, max: usize::MAX, item: PhantomData::<u32> };
                    once(&mut map, key, deltas, &mut seq_deltas)?;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        if self.format == Format::Json && kind.is_none() {
            return Err(M::Error::missing_field("type"));
        }
        let frame = proto::Frame {
            channel: channel.ok_or_else(|| M::Error::missing_field("channel"))?,
            epoch: epoch.unwrap_or_default(),
            seq: seq.ok_or_else(|| M::Error::missing_field("seq"))?,
            count: count.unwrap_or_default(),
            flushed_ns: flushed_ns.unwrap_or_default(),
            blocks: blocks.ok_or_else(|| M::Error::missing_field("blocks"))?,
            seq_deltas: seq_deltas.unwrap_or_default(),
        };
        Ok(TextFrame { name: name.unwrap_or_default(), frame })
    }
}

#[derive(Clone, Copy)]
struct Block {
    format: Format,
    direction: Direction,
}

impl<'de> DeserializeSeed<'de> for Block {
    type Value = proto::Block;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<proto::Block, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Block {
    type Value = proto::Block;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a block: an object with samples")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<proto::Block, M::Error> {
        let (unknown, samples_max) = match self.direction {
            Direction::Publish { samples_max } => (self.format.unknown(), samples_max),
            Direction::Frame => (Unknown::Skipped, usize::MAX),
        };
        let keys = Key { known: &["source_ns", "received_ns", "samples"], unknown };
        let (mut source_ns, mut received_ns, mut samples) = (None, None, None);
        while let Some(key) = map.next_key_seed(keys)? {
            match key {
                "source_ns" => once(&mut map, key, Wide::<u64>::named(key), &mut source_ns)?,
                "received_ns" if self.direction != Direction::Frame => {
                    return Err(M::Error::custom("`received_ns` is for the server to set; leave it out"));
                }
                "received_ns" => once(&mut map, key, Wide::<u64>::named(key), &mut received_ns)?,
                "samples" => {
                    let item = Sample { format: self.format, unknown };
                    once(&mut map, key, Items { name: key, max: samples_max, item }, &mut samples)?;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        let samples = samples.ok_or_else(|| M::Error::missing_field("samples"))?;
        if samples.is_empty() {
            return Err(M::Error::custom("`samples` is empty; send at least one"));
        }
        Ok(proto::Block {
            source_ns: source_ns.unwrap_or_default(),
            received_ns: received_ns.unwrap_or_default(),
            samples,
        })
    }
}

#[derive(Clone, Copy)]
struct Sample {
    format: Format,
    unknown: Unknown,
}

impl<'de> DeserializeSeed<'de> for Sample {
    type Value = proto::Sample;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<proto::Sample, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Sample {
    type Value = proto::Sample;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sample: an object with one of number, integer, vector, text, bytes")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<proto::Sample, M::Error> {
        const KNOWN: &[&str] = &["source_delta_ns", "number", "integer", "vector", "text", "bytes"];
        let keys = Key { known: KNOWN, unknown: self.unknown };
        let format = self.format;
        let (mut source_delta_ns, mut value) = (None, None);
        while let Some(key) = map.next_key_seed(keys)? {
            if KNOWN[1..].contains(&key) && value.is_some() {
                let message = format_args!("`{key}` is a second value; send one value in each sample");
                return Err(M::Error::custom(message));
            }
            match key {
                "source_delta_ns" => once(&mut map, key, Wide::<i64>::named(key), &mut source_delta_ns)?,
                "number" => value = Some(Value::Number(map.next_value_seed(Double { name: key, format })?)),
                "integer" => value = Some(Value::Integer(map.next_value_seed(Wide::<i64>::named(key))?)),
                "vector" => {
                    let item = Double { name: "vector", format };
                    let values = map.next_value_seed(Items { name: key, max: usize::MAX, item })?;
                    value = Some(Value::Vector(proto::Vector { values }));
                }
                "text" => value = Some(Value::Text(map.next_value_seed(Text)?)),
                "bytes" => value = Some(Value::Bytes(map.next_value_seed(Bytes { format })?)),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        if value.is_none() {
            let message = "a sample has no value; set one of number, integer, vector, text, bytes";
            return Err(M::Error::custom(message));
        }
        Ok(proto::Sample { source_delta_ns: source_delta_ns.unwrap_or_default(), value })
    }
}

/// An array of at most `max` items.
struct Items<S> {
    name: &'static str,
    max: usize,
    item: S,
}

impl<'de, S: DeserializeSeed<'de> + Copy> DeserializeSeed<'de> for Items<S> {
    type Value = Vec<S::Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        // Not `deserialize_seq`: that would read a MessagePack bin as an array of its bytes.
        deserializer.deserialize_any(self)
    }
}

impl<'de, S: DeserializeSeed<'de> + Copy> Visitor<'de> for Items<S> {
    type Value = Vec<S::Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` as an array", self.name)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::with_capacity(seq.size_hint().unwrap_or_default().min(RESERVED_MAX));
        loop {
            let seed = Limited { has_room: items.len() < self.max, items: &self };
            match seq.next_element_seed(seed)? {
                Some(item) => items.push(item),
                None => return Ok(items),
            }
        }
    }
}

/// An item of an array, refused before it is read where the array is full.
struct Limited<'a, S> {
    has_room: bool,
    items: &'a Items<S>,
}

impl<'de, S: DeserializeSeed<'de> + Copy> DeserializeSeed<'de> for Limited<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        let Items { name, max, item } = self.items;
        if !self.has_room {
            let message = format_args!("`{name}` has more than the limit of {max}; send several messages");
            return Err(D::Error::custom(message));
        }
        item.deserialize(deserializer)
    }
}

/// The `type` of a JSON message.
struct Type(&'static str);

impl<'de> DeserializeSeed<'de> for Type {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Type {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the type \"{}\"", self.0)
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<(), E> {
        if name == self.0 { Ok(()) } else { Err(E::invalid_value(Unexpected::Str(name), &self)) }
    }
}

/// The channel of a publish: a number, or a name in JSON.
struct Channel {
    format: Format,
}

impl<'de> DeserializeSeed<'de> for Channel {
    type Value = ChannelRef;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<ChannelRef, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Channel {
    type Value = ChannelRef;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`channel` as a number of 32 bits")?;
        if self.format == Format::Json { f.write_str(", or a name") } else { Ok(()) }
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<ChannelRef, E> {
        u32::try_from(value)
            .map(|id| ChannelRef::Id(ChannelId(id)))
            .map_err(|_| E::invalid_value(Unexpected::Unsigned(value), &self))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<ChannelRef, E> {
        match u64::try_from(value) {
            Ok(value) => self.visit_u64(value),
            Err(_) => Err(E::invalid_value(Unexpected::Signed(value), &self)),
        }
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<ChannelRef, E> {
        match self.format {
            Format::Json => Ok(ChannelRef::Name(name.to_owned())),
            Format::MessagePack => Err(E::invalid_type(Unexpected::Str(name), &self)),
        }
    }
}

/// An integer of 64 bits, from a number or from its digits.
struct Wide<T> {
    name: &'static str,
    kind: PhantomData<T>,
}

impl<T> Wide<T> {
    fn named(name: &'static str) -> Self {
        Self { name, kind: PhantomData }
    }
}

impl<'de, T: Integer> DeserializeSeed<'de> for Wide<T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<T: Integer> Visitor<'_> for Wide<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` as {}, or a string of its digits", self.name, T::EXPECTED)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<T, E> {
        T::try_from(value).map_err(|_| E::invalid_value(Unexpected::Unsigned(value), &self))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<T, E> {
        T::try_from(value).map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))
    }

    fn visit_str<E: Error>(self, digits: &str) -> Result<T, E> {
        digits.parse().map_err(|_| E::invalid_value(Unexpected::Str(digits), &self))
    }
}

/// `u64` or `i64`.
trait Integer: TryFrom<u64> + TryFrom<i64> + std::str::FromStr {
    const EXPECTED: &str;
}

impl Integer for u64 {
    const EXPECTED: &str = "an unsigned integer of 64 bits";
}

impl Integer for i64 {
    const EXPECTED: &str = "an integer of 64 bits";
}

/// A double, from any number. JSON has names in place of the numbers that it lacks.
#[derive(Clone, Copy)]
struct Double {
    name: &'static str,
    format: Format,
}

impl<'de> DeserializeSeed<'de> for Double {
    type Value = f64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<f64, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Double {
    type Value = f64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` with numbers", self.name)?;
        match self.format {
            Format::Json => f.write_str(" or \"NaN\", \"Infinity\", \"-Infinity\""),
            Format::MessagePack => Ok(()),
        }
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<f64, E> {
        Ok(value)
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "a whole number is read as the double next to it, as any JSON is"
    )]
    fn visit_u64<E: Error>(self, value: u64) -> Result<f64, E> {
        Ok(value as f64)
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "a whole number is read as the double next to it, as any JSON is"
    )]
    fn visit_i64<E: Error>(self, value: i64) -> Result<f64, E> {
        Ok(value as f64)
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<f64, E> {
        match name {
            super::NAN if self.format == Format::Json => Ok(f64::NAN),
            super::INFINITY if self.format == Format::Json => Ok(f64::INFINITY),
            super::NEG_INFINITY if self.format == Format::Json => Ok(f64::NEG_INFINITY),
            _ => Err(E::invalid_value(Unexpected::Str(name), &self)),
        }
    }
}

/// A text; not serde's own, which takes bytes for one.
struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_string(self)
    }
}

impl Visitor<'_> for Text {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text of UTF-8")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_string<E: Error>(self, text: String) -> Result<String, E> {
        Ok(text)
    }
}

/// Bytes: base64 in JSON, bin in MessagePack. A MessagePack str is taken, too, since encoders of the format's first
/// edition have no other type for bytes.
struct Bytes {
    format: Format,
}

impl<'de> DeserializeSeed<'de> for Bytes {
    type Value = Vec<u8>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<u8>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for Bytes {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.format {
            Format::Json => "`bytes` as base64 with padding",
            Format::MessagePack => "`bytes` as bin",
        })
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        Ok(bytes.to_vec())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Vec<u8>, E> {
        match self.format {
            Format::Json => {
                BASE64_STANDARD.decode(text).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
            }
            Format::MessagePack => Ok(text.as_bytes().to_vec()),
        }
    }
}
