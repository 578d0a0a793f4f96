//! The bytes of one connection: fastwebsockets takes the server's frames apart and masks ours, and this module closes
//! what it leaves open (fragments without a bound, oversized control frames, masked frames, writes that stall).

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use fastwebsockets::{Frame, OpCode, Payload, WebSocketError, WebSocketRead};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::close::CloseReason;

/// Largest message that a client takes, in bytes. The largest honest ones are answers that list every channel of a
/// subscription: 1,024 of them with the longest names are 350 KiB. Data frames are 16 KiB, or one large sample.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Messages that wait for the caller; then reading stops, and the server's outbox is where the backlog sits.
pub(super) const INCOMING_MAX: usize = 64;

/// Longest payload of a control frame (RFC 6455 section 5.5).
const CONTROL_BYTES_MAX: usize = 125;

/// What arrived.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    /// A whole text message, checked as UTF-8.
    Text(String),
    /// A whole binary message.
    Binary(Bytes),
    /// To be answered with its payload.
    Ping(Bytes),
    /// A sign of life.
    Pong,
    /// The peer's close frame; 1005 where it carried no code (RFC 6455 section 7.1.5).
    Close {
        /// Its code.
        code: u16,
        /// Its reason.
        reason: String,
    },
    /// The end: the socket failed (1006), or the peer broke the rules and must be told so with this code.
    Failed {
        /// The code.
        code: u16,
        /// What happened.
        reason: String,
    },
}

/// Reads until the connection ends, and says how it ended as the last message.
pub(super) async fn read_loop<S: AsyncRead + Unpin>(
    mut reader: WebSocketRead<S>,
    messages: mpsc::Sender<Incoming>,
) {
    reader.set_auto_close(false);
    reader.set_auto_pong(false);
    // It refuses what is equal to its limit.
    reader.set_max_message_size(MESSAGE_BYTES_MAX + 1);
    let mut assembler = Assembler::default();
    // Never called: nothing is answered automatically.
    let mut answer = |_: Frame<'_>| std::future::ready(Ok::<(), WebSocketError>(()));
    loop {
        let incoming = match reader.read_frame(&mut answer).await {
            Ok(frame) => match assembler.push(frame) {
                Ok(None) => continue,
                Ok(Some(incoming)) => incoming,
                Err(failed) => failed,
            },
            Err(error) => failure(&error),
        };
        let last = matches!(incoming, Incoming::Close { .. } | Incoming::Failed { .. });
        if messages.send(incoming).await.is_err() || last {
            return;
        }
    }
}

/// Joins fragments, up to [`MESSAGE_BYTES_MAX`] (RFC 6455 section 5.4).
#[derive(Debug, Default)]
struct Assembler {
    opening: Option<OpCode>,
    bytes: BytesMut,
}

impl Assembler {
    fn push(&mut self, mut frame: Frame<'_>) -> Result<Option<Incoming>, Incoming> {
        let mut head = [0; 16];
        frame.fmt_head(&mut head);
        if head[1] & 0x80 != 0 {
            // Section 5.1: a client must fail the connection.
            return Err(broken(CloseReason::Protocol, "a server's frame was masked"));
        }
        let (fin, payload) = (frame.fin, into_bytes(frame.payload));
        match frame.opcode {
            OpCode::Ping | OpCode::Pong | OpCode::Close if payload.len() > CONTROL_BYTES_MAX => {
                Err(broken(CloseReason::Protocol, "a control frame was longer than 125 bytes"))
            }
            OpCode::Ping => Ok(Some(Incoming::Ping(payload))),
            OpCode::Pong => Ok(Some(Incoming::Pong)),
            OpCode::Close => close(&payload).map(Some),
            OpCode::Text | OpCode::Binary if self.opening.is_some() => {
                Err(broken(CloseReason::Protocol, "a message began inside another"))
            }
            OpCode::Continuation if self.opening.is_none() => {
                Err(broken(CloseReason::Protocol, "a fragment continued no message"))
            }
            opcode @ (OpCode::Text | OpCode::Binary) if fin => whole(opcode, payload).map(Some),
            opcode => {
                if self.bytes.len() + payload.len() > MESSAGE_BYTES_MAX {
                    return Err(broken(CloseReason::TooBig, "a message was larger than 1 MiB"));
                }
                let opening = *self.opening.get_or_insert(opcode);
                self.bytes.extend_from_slice(&payload);
                if !fin {
                    return Ok(None);
                }
                self.opening = None;
                whole(opening, std::mem::take(&mut self.bytes).freeze()).map(Some)
            }
        }
    }
}

fn whole(opcode: OpCode, payload: Bytes) -> Result<Incoming, Incoming> {
    if opcode == OpCode::Text {
        String::from_utf8(payload.into())
            .map(Incoming::Text)
            .map_err(|_| broken(CloseReason::BadUtf8, "a text message was not UTF-8"))
    } else {
        Ok(Incoming::Binary(payload))
    }
}

fn close(payload: &[u8]) -> Result<Incoming, Incoming> {
    /// Stands for "no code" in the API, never on the wire.
    const NO_CODE: u16 = 1005;
    match payload {
        [] => Ok(Incoming::Close { code: NO_CODE, reason: String::new() }),
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
                return Err(broken(CloseReason::Protocol, "a close frame's code is not allowed"));
            }
            match std::str::from_utf8(reason) {
                Ok(reason) => Ok(Incoming::Close { code, reason: reason.to_owned() }),
                Err(_) => Err(broken(CloseReason::BadUtf8, "a close frame's reason was not UTF-8")),
            }
        }
        _ => Err(broken(CloseReason::Protocol, "a close frame had half a code")),
    }
}

fn into_bytes(payload: Payload<'_>) -> Bytes {
    match payload {
        Payload::Bytes(bytes) => bytes.freeze(),
        other => Vec::from(other).into(),
    }
}

fn failure(error: &WebSocketError) -> Incoming {
    let code = match error {
        WebSocketError::UnexpectedEOF => return cut_off(),
        // TLS, where the peer has gone without a word.
        WebSocketError::IoError(error) if error.kind() == io::ErrorKind::UnexpectedEof => return cut_off(),
        WebSocketError::IoError(error) => {
            return Incoming::Failed { code: CloseReason::PeerGone.code(), reason: error.to_string() };
        }
        WebSocketError::FrameTooLarge => CloseReason::TooBig,
        WebSocketError::InvalidUTF8 => CloseReason::BadUtf8,
        _ => CloseReason::Protocol,
    };
    Incoming::Failed { code: code.code(), reason: error.to_string() }
}

fn cut_off() -> Incoming {
    let reason = "the connection ended without a close frame".to_owned();
    Incoming::Failed { code: CloseReason::PeerGone.code(), reason }
}

fn broken(code: CloseReason, what: &str) -> Incoming {
    Incoming::Failed { code: code.code(), reason: what.to_owned() }
}

/// Appends a frame, masked as a client's must be (RFC 6455 section 5.3).
pub(super) fn put_frame(out: &mut BytesMut, opcode: OpCode, payload: Vec<u8>) {
    let mut frame = Frame::new(true, opcode, None, Payload::Owned(payload));
    frame.mask();
    let mut head = [0; 16];
    let head_bytes = frame.fmt_head(&mut head);
    out.reserve(head_bytes + frame.payload.len());
    out.put_slice(&head[..head_bytes]);
    out.put_slice(&frame.payload);
}

/// Appends a close frame; a reason over the limit is cut.
pub(super) fn put_close(out: &mut BytesMut, code: u16, reason: &str) {
    let reason = &reason[..reason.floor_char_boundary(CONTROL_BYTES_MAX - 2)];
    let mut payload = Vec::with_capacity(2 + reason.len());
    payload.put_u16(code);
    payload.put_slice(reason.as_bytes());
    put_frame(out, OpCode::Close, payload);
}

/// Writes `out` until it is empty, and the kernel has all of it. May be dropped at any time: what was written has left `out`,
/// and what the kernel may not have is `unflushed`.
pub(super) async fn drain<W: AsyncWrite + Unpin>(
    writer: &mut W,
    out: &mut BytesMut,
    unflushed: &mut bool,
) -> io::Result<()> {
    *unflushed |= !out.is_empty();
    while !out.is_empty() {
        if writer.write_buf(out).await? == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    writer.flush().await?;
    *unflushed = false;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(fin: bool, opcode: OpCode, payload: &[u8]) -> Frame<'static> {
        Frame::new(fin, opcode, None, Payload::Owned(payload.to_vec()))
    }

    fn failed(code: u16) -> impl Fn(&Incoming) -> bool {
        move |incoming| matches!(incoming, Incoming::Failed { code: found, .. } if *found == code)
    }

    #[test]
    fn fragments_are_joined_around_control_frames() {
        let mut assembler = Assembler::default();
        let rows = [
            (frame(false, OpCode::Text, "h\u{e9}".as_bytes().split_at(2).0), None),
            (frame(true, OpCode::Ping, b"p"), Some(Incoming::Ping(Bytes::from_static(b"p")))),
            (frame(false, OpCode::Continuation, b""), None),
            (
                frame(true, OpCode::Continuation, "\u{e9}".as_bytes().split_at(1).1),
                Some(Incoming::Text("h\u{e9}".to_owned())),
            ),
            (frame(true, OpCode::Binary, b"b"), Some(Incoming::Binary(Bytes::from_static(b"b")))),
            (
                frame(true, OpCode::Close, b"\x03\xe8bye"),
                Some(Incoming::Close { code: 1000, reason: "bye".to_owned() }),
            ),
        ];
        for (frame, expected) in rows {
            assert_eq!(assembler.push(frame), Ok(expected));
        }
    }

    #[test]
    fn what_breaks_the_rules_is_refused() {
        let masked = || Frame::new(true, OpCode::Text, Some([1; 4]), Payload::Owned(vec![]));
        let half = vec![0; MESSAGE_BYTES_MAX / 2 + 1];
        let rows: Vec<(Vec<Frame<'_>>, u16)> = vec![
            (vec![masked()], 1002),
            (vec![frame(true, OpCode::Continuation, b"")], 1002),
            (vec![frame(false, OpCode::Text, b"a"), frame(true, OpCode::Text, b"b")], 1002),
            (vec![frame(true, OpCode::Pong, &[0; 126])], 1002),
            (vec![frame(true, OpCode::Close, &[0; 126])], 1002),
            (vec![frame(true, OpCode::Close, &[3])], 1002),
            (vec![frame(true, OpCode::Close, &[3, 0xED])], 1002),
            (vec![frame(true, OpCode::Close, &[3, 0xE8, 0xFF])], 1007),
            (vec![frame(false, OpCode::Text, &[0xC3]), frame(true, OpCode::Continuation, b"")], 1007),
            (vec![frame(false, OpCode::Binary, &half), frame(true, OpCode::Continuation, &half)], 1009),
        ];
        for (frames, code) in rows {
            let mut assembler = Assembler::default();
            let ended = frames.into_iter().find_map(|frame| assembler.push(frame).err());
            assert!(ended.as_ref().is_some_and(failed(code)), "{ended:?}");
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let mut out = BytesMut::new();
        put_close(&mut out, 1002, &"\u{e9}".repeat(100));
        // Two bytes of header, four of mask, two of code and 61 characters of two bytes.
        assert_eq!(out.len(), 2 + 4 + 2 + 122);
    }
}
