//! A sample in a binary message of its own. Pure. This is the loop that has to take tens of millions of messages a second
//! on one core, so the usual frame is recognised by its first bytes, and everything else left to the general parser.

use crate::ws::{Ended, Opcode, answer, parse};

/// First byte of a whole binary message.
const BINARY: u8 = 0x82;
/// Second byte: a length of two bytes follows.
const MEDIUM: u8 = 126;

/// The header of a binary message as a server writes it: unmasked.
pub(super) fn header(length: usize) -> Vec<u8> {
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..MEDIUM), _) => vec![BINARY, short],
        (_, Ok(medium)) => {
            let [high, low] = medium.to_be_bytes();
            vec![BINARY, MEDIUM, high, low]
        }
        _ => [&[BINARY, 127][..], &(length as u64).to_be_bytes()].concat(),
    }
}

/// Hands the payload of each whole binary message to `on_sample`; returns the length of the messages taken.
#[inline]
pub(super) fn each(
    bytes: &[u8],
    out: &mut Vec<u8>,
    mut on_sample: impl FnMut(&[u8]) -> Result<(), Ended>,
) -> Result<usize, Ended> {
    let mut rest = bytes;
    loop {
        if let Some((&[BINARY, MEDIUM, high, low], behind)) = rest.split_first_chunk() {
            let length = u16::from_be_bytes([high, low]);
            if length >= MEDIUM.into() {
                let Some((payload, behind)) = behind.split_at_checked(length.into()) else { break };
                on_sample(payload)?;
                rest = behind;
                continue;
            }
        }
        let Some((message, length)) = parse(rest)? else { break };
        match message.opcode {
            Opcode::Binary => on_sample(message.payload)?,
            Opcode::Text => return Err(Ended::Unexpected("the server sent a text message".to_owned())),
            Opcode::Ping | Opcode::Pong | Opcode::Close => answer(message, out)?,
        }
        rest = &rest[length..];
    }
    Ok(bytes.len() - rest.len())
}
