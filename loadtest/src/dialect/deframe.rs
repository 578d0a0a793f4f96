//! A byte stream out of WebSocket messages, for protocols that do not care where a message ends. Pure. A message is never
//! held: its payload is handed on in the pieces that arrive, and what is carried over from one piece to the next is a
//! unit of the inner protocol, which has a limit.

use crate::ws::{Ended, ProtocolError, answer, parse};

/// Largest unit of an inner protocol: a message with its header, or a greeting.
pub(super) const UNIT_BYTES_MAX: usize = 128 << 10;

/// Appended to the carry at a time: enough for most units, little to copy.
const STEP_BYTES: usize = 512;

/// The state between two reads.
#[derive(Debug, Default)]
pub(super) struct Deframer {
    /// Bytes of the current data frame that are still to come.
    remaining: u64,
    /// The beginning of a unit.
    carry: Vec<u8>,
}

impl Deframer {
    /// Hands whole units to `take`: it gets bytes from the start of a unit and returns the unit's length, or `None` if it
    /// is not all there. Returns how many of `bytes` were used.
    #[inline]
    pub(super) fn each(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        mut take: impl FnMut(&[u8], &mut Vec<u8>) -> Result<Option<usize>, Ended>,
    ) -> Result<usize, Ended> {
        let mut rest = bytes;
        loop {
            if self.remaining > 0 {
                let length = usize::try_from(self.remaining).map_or(rest.len(), |left| left.min(rest.len()));
                let (piece, behind) = rest.split_at(length);
                self.remaining -= length as u64;
                self.feed(piece, out, &mut take)?;
                rest = behind;
            }
            let Some(first) = rest.first() else { break };
            if first & 0x08 != 0 {
                let Some((message, length)) = parse(rest)? else { break };
                answer(message, out)?;
                rest = &rest[length..];
                continue;
            }
            let Some((length, header)) = data_header(rest)? else { break };
            self.remaining = length;
            rest = &rest[header..];
        }
        Ok(bytes.len() - rest.len())
    }

    fn feed(
        &mut self,
        mut piece: &[u8],
        out: &mut Vec<u8>,
        take: &mut impl FnMut(&[u8], &mut Vec<u8>) -> Result<Option<usize>, Ended>,
    ) -> Result<(), Ended> {
        while !self.carry.is_empty() && !piece.is_empty() {
            let carried = self.carry.len();
            let step = piece.len().min(STEP_BYTES);
            self.carry.extend_from_slice(&piece[..step]);
            match take(&self.carry, out)? {
                // What was carried was no whole unit, so this one ends in the piece.
                Some(length) => {
                    piece = &piece[length.saturating_sub(carried)..];
                    self.carry.clear();
                }
                None if self.carry.len() > UNIT_BYTES_MAX => return Err(endless()),
                None => piece = &piece[step..],
            }
        }
        while let Some(length) = take(piece, out)? {
            piece = &piece[length..];
        }
        if piece.len() > UNIT_BYTES_MAX {
            return Err(endless());
        }
        self.carry.extend_from_slice(piece);
        Ok(())
    }
}

#[cold]
fn endless() -> Ended {
    Ended::Unexpected(format!("the server sent more than {UNIT_BYTES_MAX} bytes that are no message"))
}

/// Payload length of a data frame and length of its header; `None` if the header is not all there. Fragments are taken:
/// in a byte stream they mean nothing.
fn data_header(bytes: &[u8]) -> Result<Option<(u64, usize)>, ProtocolError> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    match first & 0x0f {
        0..=2 if first & 0x70 == 0 => {}
        0..=2 => return Err(ProtocolError::Reserved),
        other => return Err(ProtocolError::Opcode(other)),
    }
    match second {
        128.. => Err(ProtocolError::Masked),
        127 => Ok(rest.first_chunk().map(|&length| (u64::from_be_bytes(length), 10))),
        126 => Ok(rest.first_chunk().map(|&length| (u64::from(u16::from_be_bytes(length)), 4))),
        &short => Ok(Some((u64::from(short), 2))),
    }
}
