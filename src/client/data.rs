//! The data messages in each codec: `Publish` out, `Frame` in. Pure.

use std::borrow::Cow;

use bytes::Bytes;
use fastwebsockets::OpCode;
use prost::Message as _;
use serde::Deserialize;

use super::{Event, Message, samples};
use crate::wire::codec::{self, ChannelRef};
use crate::wire::{ChannelId, Codec, proto};

/// A publish as a WebSocket message.
pub(super) fn encode(codec: Codec, publish: &proto::Publish) -> (OpCode, Vec<u8>) {
    let mut payload = Vec::new();
    match codec {
        Codec::Protobuf => return (OpCode::Binary, publish.encode_to_vec()),
        Codec::MessagePack => codec::encode_publish_msgpack(publish, &mut payload),
        Codec::Json => {
            let channel = ChannelRef::Id(ChannelId(publish.channel));
            codec::encode_publish_json(&channel, publish, &mut payload);
            return (OpCode::Text, payload);
        }
    }
    (OpCode::Binary, payload)
}

/// A text message: control, and in the JSON codec data too. The error says what was wrong, for a person.
pub(super) fn decode_text(codec: Codec, text: &str) -> Result<Message, String> {
    #[derive(Deserialize)]
    struct Tag<'t> {
        #[serde(borrow)]
        r#type: Cow<'t, str>,
    }
    if codec == Codec::Json && serde_json::from_str::<Tag<'_>>(text).is_ok_and(|tag| tag.r#type == "frame") {
        let frame = codec::decode_frame_json(text).map_err(|error| unreadable("data", &error))?.frame;
        return checked(frame).map(Message::Frame);
    }
    serde_json::from_str::<Event>(text).map(Message::Control).map_err(|error| unreadable("control", &error))
}

/// A binary message: data. The error says what was wrong, for a person.
pub(super) fn decode_binary(codec: Codec, payload: Bytes) -> Result<proto::Frame, String> {
    let frame = match codec {
        Codec::Protobuf => proto::Frame::decode(payload).map_err(|error| unreadable("data", &error))?,
        Codec::MessagePack => {
            codec::decode_frame_msgpack(&payload).map_err(|error| unreadable("data", &error))?
        }
        Codec::Json => return Err("a binary message in the JSON codec".to_owned()),
    };
    checked(frame)
}

fn checked(frame: proto::Frame) -> Result<proto::Frame, String> {
    samples::check(&frame).map(|()| frame)
}

fn unreadable(kind: &str, error: &impl ToString) -> String {
    format!("a {kind} message cannot be read: {}", error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::proto::{Block, Frame, Publish, Sample, sample::Value};

    fn block(received_ns: u64) -> Block {
        let samples = vec![
            Sample { source_delta_ns: 0, value: Some(Value::Number(1.25)) },
            Sample { source_delta_ns: -5, value: Some(Value::Integer(i64::MIN)) },
        ];
        Block { source_ns: u64::MAX, received_ns, samples }
    }

    #[test]
    fn frames_are_read_in_every_codec() {
        let frame = Frame {
            channel: 3,
            epoch: 7,
            seq: 17,
            count: 2,
            flushed_ns: 9,
            blocks: vec![block(8)],
            seq_deltas: vec![4],
        };
        let (mut json, mut msgpack) = (vec![], vec![]);
        codec::encode_frame_json(&frame, "a", &mut json);
        codec::encode_frame_msgpack(&frame, &mut msgpack);
        let protobuf = decode_binary(Codec::Protobuf, frame.encode_to_vec().into());
        assert_eq!(protobuf.as_ref(), Ok(&frame));
        assert_eq!(decode_binary(Codec::MessagePack, msgpack.into()).as_ref(), Ok(&frame));
        let json = String::from_utf8(json).unwrap();
        let Ok(Message::Frame(read)) = decode_text(Codec::Json, &json) else { panic!("not a frame: {json}") };
        assert_eq!(read, frame);
        // Only that codec has data in text.
        let other = decode_text(Codec::Protobuf, &json);
        assert!(matches!(other, Ok(Message::Control(Event::NotKnown))), "{other:?}");
        assert!(decode_binary(Codec::Json, Bytes::new()).is_err());
    }

    #[test]
    fn publishes_are_written_in_every_codec() {
        let publish = Publish { channel: 3, block: Some(block(0)), ack: 7 };
        let (opcode, payload) = encode(Codec::Protobuf, &publish);
        assert_eq!((opcode, Publish::decode(&payload[..]).unwrap()), (OpCode::Binary, publish.clone()));
        let (opcode, payload) = encode(Codec::MessagePack, &publish);
        assert_eq!(
            (opcode, codec::decode_publish_msgpack(&payload, 2).unwrap()),
            (OpCode::Binary, publish.clone())
        );
        let (opcode, payload) = encode(Codec::Json, &publish);
        let read = codec::decode_publish_json(std::str::from_utf8(&payload).unwrap(), 2).unwrap();
        assert_eq!((opcode, read.channel), (OpCode::Text, ChannelRef::Id(ChannelId(3))));
        assert_eq!((read.publish.block, read.publish.ack), (publish.block, 7));
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let rows = [
            (Codec::Protobuf, &b"\xFF"[..]),
            (Codec::Protobuf, b""),
            (Codec::MessagePack, b"\xC1"),
            (Codec::MessagePack, b""),
        ];
        for (codec, payload) in rows {
            assert!(decode_binary(codec, Bytes::from_static(payload)).is_err(), "{codec:?} {payload:?}");
        }
        assert!(decode_text(Codec::Json, r#"{"type":"frame"}"#).is_err());
        assert!(decode_text(Codec::Json, "{").is_err());
    }
}
