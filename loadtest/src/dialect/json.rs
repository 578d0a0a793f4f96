//! A sample in a JSON text message of its own, as servers are written that have no binary protocol. Pure.

use std::iter::repeat_n;

use serde::{Deserialize, Serialize};

use super::sample::{BYTES_MIN, Sample};
use crate::ws::{Ended, Opcode, answer, parse};

/// The message. Server and client both read and write all of it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JsonSample {
    /// Its publisher's number.
    pub publisher: u32,
    /// From 1.
    pub seq: u64,
    /// When it was due.
    pub source_ns: u64,
    /// The payload, as text that needs no escape: as kind to JSON as a payload can be.
    pub value: String,
}

/// The message of a sample with so many bytes of payload.
pub(super) fn text(sample: &Sample, payload_bytes: usize) -> String {
    let Sample { source_ns, seq, publisher } = *sample;
    let value = repeat_n("abcdefghijklmnopqrstuvwxyz".chars(), payload_bytes.div_ceil(26));
    let value = value.flatten().take(payload_bytes).collect();
    // Cannot fail: there is neither a map nor a float in it.
    serde_json::to_string(&JsonSample { publisher, seq, source_ns, value }).unwrap_or_default()
}

/// Hands each sample to `on_sample`, in the form of the other dialects; returns the length of the messages taken.
pub(super) fn each(
    bytes: &[u8],
    out: &mut Vec<u8>,
    mut on_sample: impl FnMut(&[u8]) -> Result<(), Ended>,
) -> Result<usize, Ended> {
    let mut rest = bytes;
    while let Some((message, length)) = parse(rest)? {
        match message.opcode {
            Opcode::Text => {
                let JsonSample { publisher, seq, source_ns, .. } = serde_json::from_slice(message.payload)
                    .map_err(|error| Ended::Unexpected(format!("the server sent a bad sample: {error}")))?;
                let mut payload = [0; BYTES_MIN];
                Sample { source_ns, seq, publisher }.write(&mut payload);
                on_sample(&payload)?;
            }
            Opcode::Binary => return Err(Ended::Unexpected("the server sent a binary message".to_owned())),
            Opcode::Ping | Opcode::Pong | Opcode::Close => answer(message, out)?,
        }
        rest = &rest[length..];
    }
    Ok(bytes.len() - rest.len())
}
