//! The model as serde sees it on the way out. Wrappers, since the generated types know protobuf only, and written by
//! hand, since a derived `flatten` or `untagged` hides from a value whether it goes to JSON.

use std::fmt::Display;

use base64::display::Base64Display;
use base64::prelude::BASE64_STANDARD;
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::{ChannelRef, proto};
use proto::sample::Value;

/// A frame; with the channel's name in JSON.
pub(super) struct Frame<'a> {
    pub(super) frame: &'a proto::Frame,
    pub(super) name: Option<&'a str>,
}

impl Serialize for Frame<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { frame, name } = self;
        let has_deltas = !frame.seq_deltas.is_empty();
        let fields = 6 + usize::from(has_deltas) + if name.is_some() { 2 } else { 0 };
        let mut map = serializer.serialize_map(Some(fields))?;
        if name.is_some() {
            map.serialize_entry("type", "frame")?;
        }
        map.serialize_entry("channel", &frame.channel)?;
        if let Some(name) = name {
            map.serialize_entry("name", name)?;
        }
        map.serialize_entry("epoch", &frame.epoch)?;
        map.serialize_entry("seq", &frame.seq)?;
        map.serialize_entry("count", &frame.count)?;
        map.serialize_entry("flushed_ns", &Wide(frame.flushed_ns))?;
        map.serialize_entry("blocks", &Each(&frame.blocks, Block))?;
        if has_deltas {
            map.serialize_entry("seq_deltas", &frame.seq_deltas)?;
        }
        map.end()
    }
}

/// A publish; with the channel as the JSON codec names it.
pub(super) struct Publish<'a> {
    pub(super) channel: Option<&'a ChannelRef>,
    pub(super) publish: &'a proto::Publish,
}

impl Serialize for Publish<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { channel, publish } = self;
        let fields = 1
            + usize::from(channel.is_some())
            + usize::from(publish.block.is_some())
            + usize::from(publish.ack != 0);
        let mut map = serializer.serialize_map(Some(fields))?;
        if channel.is_some() {
            map.serialize_entry("type", "publish")?;
        }
        match channel {
            Some(ChannelRef::Name(name)) => map.serialize_entry("channel", name)?,
            Some(ChannelRef::Id(id)) => map.serialize_entry("channel", &id.0)?,
            None => map.serialize_entry("channel", &publish.channel)?,
        }
        if let Some(block) = &publish.block {
            map.serialize_entry("block", &Block(block))?;
        }
        if publish.ack != 0 {
            map.serialize_entry("ack", &publish.ack)?;
        }
        map.end()
    }
}

struct Block<'a>(&'a proto::Block);

impl Serialize for Block<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let has_received = self.0.received_ns != 0;
        let mut map = serializer.serialize_map(Some(2 + usize::from(has_received)))?;
        map.serialize_entry("source_ns", &Wide(self.0.source_ns))?;
        if has_received {
            map.serialize_entry("received_ns", &Wide(self.0.received_ns))?;
        }
        map.serialize_entry("samples", &Each(&self.0.samples, Sample))?;
        map.end()
    }
}

struct Sample<'a>(&'a proto::Sample);

impl Serialize for Sample<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1 + usize::from(self.0.value.is_some())))?;
        map.serialize_entry("source_delta_ns", &Wide(self.0.source_delta_ns))?;
        match &self.0.value {
            Some(Value::Number(value)) => map.serialize_entry("number", &Double(value))?,
            Some(Value::Integer(value)) => map.serialize_entry("integer", &Wide(*value))?,
            Some(Value::Vector(value)) => map.serialize_entry("vector", &Each(&value.values, Double))?,
            Some(Value::Text(value)) => map.serialize_entry("text", value)?,
            Some(Value::Bytes(value)) => map.serialize_entry("bytes", &Bytes(value))?,
            None => {}
        }
        map.end()
    }
}

/// Items of the model as an array of their wrappers.
struct Each<'a, T, W>(&'a [T], fn(&'a T) -> W);

impl<T, W: Serialize> Serialize for Each<'_, T, W> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(self.1))
    }
}

/// 64 bits that a browser's JSON would round: digits in a string there, a number elsewhere.
struct Wide<T>(T);

impl<T: Display + Serialize> Serialize for Wide<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(&self.0)
        } else {
            self.0.serialize(serializer)
        }
    }
}

/// A double; JSON has names in place of the numbers that it lacks.
struct Double<'a>(&'a f64);

impl Serialize for Double<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value = *self.0;
        if value.is_finite() || !serializer.is_human_readable() {
            serializer.serialize_f64(value)
        } else if value.is_nan() {
            serializer.serialize_str(super::NAN)
        } else if value > 0.0 {
            serializer.serialize_str(super::INFINITY)
        } else {
            serializer.serialize_str(super::NEG_INFINITY)
        }
    }
}

/// Bytes; base64 in JSON.
struct Bytes<'a>(&'a [u8]);

impl Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(&Base64Display::new(self.0, &BASE64_STANDARD))
        } else {
            serializer.serialize_bytes(self.0)
        }
    }
}
