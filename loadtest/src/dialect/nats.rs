//! The client side of the NATS protocol, as far as one subject needs it: lines of text, and a payload behind some. Pure.

use super::deframe::{Deframer, UNIT_BYTES_MAX};
use super::{SUBJECT, reply};
use crate::ws::Ended;

/// Longest line: `INFO` of a server with many addresses.
const LINE_BYTES_MAX: usize = 8 << 10;

/// Bytes of the line's end.
const END: usize = 2;

/// The reading side.
#[derive(Debug, Default)]
pub(super) struct Nats {
    deframer: Deframer,
    /// The server has answered the ping behind the last request.
    pub is_ready: bool,
}

/// What a client says first. The ping behind it is answered when the server has done it all.
pub(super) fn hello(subscribes: bool) -> Vec<u8> {
    let version = env!("CARGO_PKG_VERSION");
    let connect = format!(
        "CONNECT {{\"verbose\":false,\"pedantic\":false,\"lang\":\"rust\",\"version\":\"{version}\",\"protocol\":1}}\r\n"
    );
    let subscribe = if subscribes { format!("SUB {SUBJECT} 1\r\n") } else { String::new() };
    format!("{connect}{subscribe}PING\r\n").into_bytes()
}

/// What comes before a payload; behind it comes a line's end.
pub(super) fn publish_head(payload_bytes: usize) -> Vec<u8> {
    format!("PUB {SUBJECT} {payload_bytes}\r\n").into_bytes()
}

impl Nats {
    /// Hands each payload to `on_sample`.
    #[inline]
    pub(super) fn each(
        &mut self,
        bytes: &[u8],
        out: &mut Vec<u8>,
        mut on_sample: impl FnMut(&[u8]) -> Result<(), Ended>,
    ) -> Result<usize, Ended> {
        let is_ready = &mut self.is_ready;
        self.deframer.each(bytes, out, |bytes, out| {
            let Some(line) = line(bytes)? else { return Ok(None) };
            let behind = line.len() + END;
            if !line.starts_with(b"MSG ") {
                on_line(line, out, is_ready)?;
                return Ok(Some(behind));
            }
            let length = payload_bytes(line)?;
            let Some(payload) = bytes[behind..].get(..length + END) else { return Ok(None) };
            on_sample(&payload[..length])?;
            Ok(Some(behind + length + END))
        })
    }
}

/// The first line, without its end.
#[inline]
fn line(bytes: &[u8]) -> Result<Option<&[u8]>, Ended> {
    let within = &bytes[..bytes.len().min(LINE_BYTES_MAX)];
    match within.iter().position(|&byte| byte == b'\n') {
        Some(end) if end > 0 && bytes[end - 1] == b'\r' => Ok(Some(&bytes[..end - 1])),
        Some(end) => Err(unexpected(&bytes[..end])),
        None if within.len() == LINE_BYTES_MAX => Err(unexpected(within)),
        None => Ok(None),
    }
}

/// The last word of a `MSG` line.
#[inline]
fn payload_bytes(line: &[u8]) -> Result<usize, Ended> {
    let digits = line.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let number = &line[line.len() - digits..];
    // Nine digits fit into any usize.
    if digits == 0 || digits > 9 {
        return Err(unexpected(line));
    }
    let length = number.iter().fold(0, |sum, digit| sum * 10 + usize::from(digit - b'0'));
    if length > UNIT_BYTES_MAX / 2 { Err(unexpected(line)) } else { Ok(length) }
}

fn on_line(line: &[u8], out: &mut Vec<u8>, is_ready: &mut bool) -> Result<(), Ended> {
    match line {
        b"PING" => reply(out, b"PONG\r\n"),
        b"PONG" => *is_ready = true,
        b"+OK" => {}
        _ if line.starts_with(b"INFO ") => {}
        _ => return Err(unexpected(line)),
    }
    Ok(())
}

#[cold]
fn unexpected(line: &[u8]) -> Ended {
    let shown = String::from_utf8_lossy(&line[..line.len().min(80)]);
    Ended::Unexpected(format!("the server sent the line \"{}\"", shown.escape_debug()))
}
