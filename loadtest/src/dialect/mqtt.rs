//! The client side of MQTT 3.1.1 (OASIS standard), as far as one topic at QoS 0 needs it. Pure.

use super::SUBJECT;
use super::deframe::{Deframer, UNIT_BYTES_MAX};
use crate::ws::Ended;

// Section 2.2.1: the control packets that are met, in the upper half of the first byte.
const CONNECT: u8 = 0x10;
const CONNACK: u8 = 0x20;
const PUBLISH: u8 = 0x30;
const SUBSCRIBE: u8 = 0x82;
const SUBACK: u8 = 0x90;
const PINGRESP: u8 = 0xd0;

/// The reading side.
#[derive(Debug, Default)]
pub(super) struct Mqtt {
    deframer: Deframer,
    /// The server has confirmed the last request.
    pub is_ready: bool,
}

/// Section 3.1: a clean session without keep-alive.
pub(super) fn connect() -> Vec<u8> {
    const CLEAN_SESSION: u8 = 2;
    let client = format!("loadtest{:012x}", fastrand::u64(..1 << 48));
    packet(CONNECT, &[&*text("MQTT"), &[4, CLEAN_SESSION, 0, 0], &text(&client)].concat())
}

/// Section 3.8: the topic, at QoS 0.
pub(super) fn subscribe() -> Vec<u8> {
    packet(SUBSCRIBE, &[&[0, 1], &*text(SUBJECT), &[0]].concat())
}

/// Section 3.3: what comes before a payload.
pub(super) fn publish_head(payload_bytes: usize) -> Vec<u8> {
    let topic = text(SUBJECT);
    let mut head = vec![PUBLISH];
    write_length(&mut head, topic.len() + payload_bytes);
    head.extend(topic);
    head
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    write_length(&mut bytes, body.len());
    bytes.extend(body);
    bytes
}

/// Section 1.5.3. Only short constants are written.
fn text(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes(), text.as_bytes()].concat()
}

/// Section 2.2.3.
fn write_length(out: &mut Vec<u8>, mut length: usize) {
    loop {
        let [low, ..] = length.to_le_bytes();
        length >>= 7;
        out.push(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            return;
        }
    }
}

/// Section 2.2.3: the length behind the first byte, and where the body begins. `None` if it is not all there.
#[inline]
fn read_length(bytes: &[u8]) -> Result<Option<(usize, usize)>, Ended> {
    let mut length = 0;
    for (index, &byte) in bytes.iter().enumerate().skip(1).take(4) {
        length |= usize::from(byte & 0x7f) << (7 * (index - 1));
        if byte < 0x80 {
            return if length > UNIT_BYTES_MAX / 2 {
                Err(unexpected(bytes))
            } else {
                Ok(Some((length, index + 1)))
            };
        }
    }
    if bytes.len() > 4 { Err(unexpected(bytes)) } else { Ok(None) }
}

impl Mqtt {
    /// Hands each payload to `on_sample`.
    #[inline]
    pub(super) fn each(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        mut on_sample: impl FnMut(&[u8]) -> Result<(), Ended>,
    ) -> Result<usize, Ended> {
        let is_ready = &mut self.is_ready;
        self.deframer.each(bytes, out, |bytes, _| {
            let Some((length, start)) = read_length(bytes)? else { return Ok(None) };
            let Some(body) = bytes[start..].get(..length) else { return Ok(None) };
            match (bytes[0], body) {
                (PUBLISH, [high, low, rest @ ..]) => {
                    let topic = usize::from(u16::from_be_bytes([*high, *low]));
                    on_sample(rest.get(topic..).ok_or_else(|| unexpected(bytes))?)?;
                }
                // The return codes of success: accepted, and granted QoS 0.
                (CONNACK, [_, 0]) | (SUBACK, [_, _, 0]) => *is_ready = true,
                (PINGRESP, []) => {}
                _ => return Err(unexpected(bytes)),
            }
            Ok(Some(start + length))
        })
    }
}

#[cold]
fn unexpected(bytes: &[u8]) -> Ended {
    Ended::Unexpected(format!("the server sent the MQTT packet {:02x?}", &bytes[..bytes.len().min(16)]))
}
