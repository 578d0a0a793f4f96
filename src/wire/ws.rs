//! WebSocket framing (RFC 6455), the server's side: [`Reader`] takes a client's frames apart, and the functions here put
//! the server's together. Bytes in, bytes out: never a socket, never a clock.
//!
//! A server's frame is its header and then the payload as it is: it has no mask (section 5.1), so one frame serves any
//! number of receivers.

use bytes::{BufMut, Bytes, BytesMut};

mod reader;

pub use reader::{Event, FRAGMENTS_MAX, ReadError, Reader};

/// Longest header of a server's frame: two bytes and a 64-bit length.
pub const HEADER_BYTES_MAX: usize = 10;

/// Longest payload of a control frame (RFC 6455 section 5.5).
pub const CONTROL_BYTES_MAX: usize = 125;

/// Longest reason of a close frame: what its code leaves of [`CONTROL_BYTES_MAX`].
pub const CLOSE_REASON_BYTES_MAX: usize = CONTROL_BYTES_MAX - CLOSE_CODE_BYTES;

const CLOSE_CODE_BYTES: usize = 2;

const FIN: u8 = 0x80;
/// In the length's place: 16 bits of length follow.
const LENGTH_16: u8 = 126;
/// In the length's place: 64 bits of length follow.
const LENGTH_64: u8 = 127;

/// What a message is (RFC 6455 section 5.2). There is no continuation: the server never fragments, and its reader hands
/// out whole messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Opcode {
    /// UTF-8.
    Text = 0x1,
    /// Any bytes.
    Binary = 0x2,
    /// The end of the conversation, with a code and a reason.
    Close = 0x8,
    /// To be answered with a [`Opcode::Pong`] of the same payload.
    Ping = 0x9,
    /// Answer to a [`Opcode::Ping`], or a sign of life.
    Pong = 0xA,
}

impl Opcode {
    /// Whether it is a control frame: short, in one piece, and allowed between the fragments of a message.
    #[must_use]
    pub const fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// Length in bytes of the header that [`header`] makes for a payload of this many bytes: 2, 4 or 10.
#[must_use]
pub const fn header_len(payload_bytes: usize) -> usize {
    match payload_bytes {
        0..=125 => 2,
        126..=0xFFFF => 4,
        _ => HEADER_BYTES_MAX,
    }
}

/// The header of a server's message in one unmasked frame, and how many of its bytes count.
#[must_use]
pub fn header(opcode: Opcode, payload_bytes: usize) -> ([u8; HEADER_BYTES_MAX], usize) {
    let mut header = [0; HEADER_BYTES_MAX];
    header[0] = FIN | opcode as u8;
    // The shortest encoding that fits, as section 5.2 demands.
    if let Some(short) = u8::try_from(payload_bytes).ok().filter(|short| *short < LENGTH_16) {
        header[1] = short;
    } else if let Ok(medium) = u16::try_from(payload_bytes) {
        header[1] = LENGTH_16;
        header[2..4].copy_from_slice(&medium.to_be_bytes());
    } else {
        header[1] = LENGTH_64;
        header[2..].copy_from_slice(&(payload_bytes as u64).to_be_bytes());
    }
    (header, header_len(payload_bytes))
}

/// A whole message, header included, ready for the socket.
#[must_use]
pub fn message(opcode: Opcode, payload: &[u8]) -> Bytes {
    let (header, header_bytes) = header(opcode, payload.len());
    let mut message = BytesMut::with_capacity(header_bytes + payload.len());
    message.put_slice(&header[..header_bytes]);
    message.put_slice(payload);
    message.freeze()
}

/// A close frame. A reason over [`CLOSE_REASON_BYTES_MAX`] is cut, between characters.
#[must_use]
pub fn close_frame(code: u16, reason: &str) -> Bytes {
    debug_assert!(is_close_code(code), "{code} may not be sent in a close frame");
    let reason = &reason[..reason.floor_char_boundary(CLOSE_REASON_BYTES_MAX)];
    let payload_bytes = CLOSE_CODE_BYTES + reason.len();
    let (header, header_bytes) = header(Opcode::Close, payload_bytes);
    let mut frame = BytesMut::with_capacity(header_bytes + payload_bytes);
    frame.put_slice(&header[..header_bytes]);
    frame.put_u16(code);
    frame.put_slice(reason.as_bytes());
    frame.freeze()
}

/// Whether a close frame may carry the code: the registered ones that are meant for the wire, and the ranges for libraries
/// and applications (RFC 6455 section 7.4.2; 1012 to 1014 were registered later).
#[must_use]
pub const fn is_close_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::close::CloseReason;

    #[test]
    fn headers_use_the_shortest_length() {
        let rows: [(usize, &[u8]); 7] = [
            (0, &[0x82, 0]),
            (125, &[0x82, 125]),
            (126, &[0x82, 126, 0, 126]),
            (255, &[0x82, 126, 0, 255]),
            (256, &[0x82, 126, 1, 0]),
            (0xFFFF, &[0x82, 126, 0xFF, 0xFF]),
            (0x1_0000, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ];
        for (payload_bytes, expected) in rows {
            let (header, header_bytes) = header(Opcode::Binary, payload_bytes);
            assert_eq!(&header[..header_bytes], expected, "{payload_bytes}");
        }
    }

    #[test]
    fn messages_are_header_and_payload() {
        let rows: [(Opcode, &[u8], &[u8]); 4] = [
            (Opcode::Text, b"{}", b"\x81\x02{}"),
            (Opcode::Binary, b"\0", b"\x82\x01\0"),
            (Opcode::Ping, b"", b"\x89\0"),
            (Opcode::Pong, b"p", b"\x8A\x01p"),
        ];
        for (opcode, payload, expected) in rows {
            assert_eq!(message(opcode, payload), expected);
        }
    }

    #[test]
    fn close_frames_fit_a_control_frame() {
        assert_eq!(close_frame(1000, ""), &b"\x88\x02\x03\xE8"[..]);
        assert_eq!(close_frame(4413, "slow"), &b"\x88\x06\x11\x3Dslow"[..]);
        assert_eq!(close_frame(1008, &"x".repeat(123)).len(), 2 + CONTROL_BYTES_MAX);
        assert_eq!(close_frame(1008, &"x".repeat(124)).len(), 2 + CONTROL_BYTES_MAX);
        // The 123rd byte is the middle of a character, which goes as a whole.
        assert_eq!(close_frame(1008, &format!("x{}", "ä".repeat(62))).len(), 2 + CONTROL_BYTES_MAX);
        assert_eq!(close_frame(1008, &"ä".repeat(62)).len(), 2 + CONTROL_BYTES_MAX - 1);
    }

    #[test]
    fn every_reason_that_is_sent_has_a_code_for_the_wire() {
        for reason in CloseReason::ALL {
            assert_eq!(is_close_code(reason.code()), reason != CloseReason::PeerGone);
        }
    }
}
