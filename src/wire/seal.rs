//! Puts the WebSocket header around what is sent, so that one buffer is the whole message: sealed frames and control
//! messages. Never knows who will receive it.

use bytes::{Buf, Bytes};
use prost::Message;

use super::control::Event;
use super::encode::{self, FrameHeader};
use super::{Codec, Seq, codec, proto, ws};

/// Space that a batch leaves at the front of its buffer for the headers, which are known only when it is sealed.
pub const HEADROOM_BYTES: usize = ws::HEADER_BYTES_MAX + encode::FRAME_HEADER_BYTES_MAX;

/// Appends a block to a batch's buffer: its content as it came, with the server's own field behind it.
pub fn push_block(buffer: &mut Vec<u8>, content: &[u8], received_ns: u64) {
    buffer.extend_from_slice(&encode::block_prefix(content.len()));
    buffer.extend_from_slice(content);
    buffer.extend_from_slice(&encode::received_ns(received_ns));
}

/// Appends the distances between the sequences of a frame that is not consecutive; nothing for one that is.
pub fn push_seq_deltas(buffer: &mut Vec<u8>, kept: &[Seq]) {
    if kept.windows(2).any(|pair| pair[1] - pair[0] != 1) {
        let deltas: Vec<u32> =
            kept.windows(2).map(|pair| u32::try_from(pair[1] - pair[0]).unwrap_or(u32::MAX)).collect();
        encode::seq_deltas(&deltas, buffer);
    }
}

/// Makes a protobuf frame of a batch's buffer, in place: the headers go into the headroom. Returns how many bytes they take, too.
#[must_use]
pub fn seal(mut buffer: Vec<u8>, header: &FrameHeader) -> (Bytes, u8) {
    let header = encode::frame_header(header);
    let payload = buffer.len() - HEADROOM_BYTES + header.len();
    let (ws_header, ws_len) = ws::header(ws::Opcode::Binary, payload);
    let start = HEADROOM_BYTES - header.len() - ws_len;
    buffer[start..start + ws_len].copy_from_slice(&ws_header[..ws_len]);
    buffer[start + ws_len..HEADROOM_BYTES].copy_from_slice(&header);
    let mut bytes = Bytes::from(buffer);
    bytes.advance(start);
    // Within the headroom, which is less than 256.
    (bytes, u8::try_from(HEADROOM_BYTES - start).unwrap_or_default())
}

/// Makes a frame in another codec of a frame's body: once for each class, however many receive it.
#[must_use]
pub fn transcode(body: &[u8], header: &FrameHeader, name: &str, codec: Codec) -> Bytes {
    let mut frame = proto::Frame::decode(body).unwrap_or_default();
    frame.channel = header.channel.0;
    frame.epoch = header.epoch;
    frame.seq = header.seq;
    frame.count = header.count;
    frame.flushed_ns = header.flushed_ns;
    let mut payload = Vec::with_capacity(body.len() * 2);
    let opcode = match codec {
        Codec::Protobuf => {
            payload.extend_from_slice(&frame.encode_to_vec());
            ws::Opcode::Binary
        }
        Codec::MessagePack => {
            codec::encode_frame_msgpack(&frame, &mut payload);
            ws::Opcode::Binary
        }
        Codec::Json => {
            codec::encode_frame_json(&frame, name, &mut payload);
            ws::Opcode::Text
        }
    };
    ws::message(opcode, &payload)
}

/// A buffer for so many bytes of blocks, with the headroom for [`seal`].
#[must_use]
pub fn buffer(body_bytes: usize) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(HEADROOM_BYTES + body_bytes);
    buffer.resize(HEADROOM_BYTES, 0);
    buffer
}

/// A control message, ready for the control lane.
#[must_use]
pub fn event(event: &Event<'_>) -> Bytes {
    // Every field of an event serializes: strings, numbers and lists of them.
    let payload = serde_json::to_vec(event).unwrap_or_default();
    ws::message(ws::Opcode::Text, &payload)
}
