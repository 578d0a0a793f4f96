//! What stands in a segment: records with checksums, and a scanner that finds them again behind damage. Pure: bytes in, records
//! out; never panics on any bytes, never does I/O.
//!
//! A segment begins with [`HEAD`] bytes: magic, version, checksum. Then come records: magic, kind, length, checksum of the
//! payload, checksum of these, payload. All numbers are little-endian.
//!
//! A checksum covers the segment's salt and the place of the record as well. The salt is random and in the file's name alone, so
//! that no publisher can put a record of his own making into a sample, for a scanner that looks for the next one behind damage.

use std::ops::Range;
use std::sync::Arc;

use super::{Ancestor, LINEAGE_MAX, StreamKey};
use crate::wire::Seq;

/// Bytes at the beginning of a segment.
pub(super) const HEAD: usize = 16;

/// Bytes before the payload of a record.
const RECORD_HEAD: usize = 20;

/// Bytes of a frame's record beside the body.
pub(super) const FRAME_OVERHEAD: usize = RECORD_HEAD + 44;

const SEGMENT_MAGIC: [u8; 8] = *b"TIDEHIST";
const RECORD_MAGIC: [u8; 4] = [0xd7, b'T', b'w', 0x1e];

/// The format that is written, and the only one that is read.
pub(super) const VERSION: u32 = 1;

const FRAME: u32 = 1;
const STATE: u32 = 2;
const CHECKPOINT: u32 = 3;
const CLEAN: u32 = 4;
const SETTLED: u32 = 5;

/// What is known of a stream beside its frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) key: StreamKey,
    pub(super) name: Arc<str>,
    pub(super) epoch: u32,
    /// The next sample's sequence.
    pub(super) next_seq: Seq,
    /// Frames that begin before this are not part of the stream any more.
    pub(super) floor: Seq,
    /// When it was forgotten, in nanoseconds since the Unix epoch; 0 if it is in use.
    pub(super) retired_ns: u64,
    pub(super) lineage: Vec<Ancestor>,
}

impl State {
    /// Bytes of its record, at the longest lineage.
    pub(super) fn bytes_max(name: &str) -> usize {
        RECORD_HEAD + 40 + LINEAGE_MAX * 12 + name.len()
    }
}

/// A frame as it stands in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StoredHead {
    pub(super) key: StreamKey,
    pub(super) first: Seq,
    pub(super) last: Seq,
    pub(super) count: u32,
    pub(super) flushed_ns: u64,
    pub(super) received_ns: u64,
}

/// A record that was found sound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record<'a> {
    Frame(StoredHead, &'a [u8]),
    State(State),
    /// The states before it in this segment, so many, are all that there were; and whether what [`Record::Settled`] says is so.
    Checkpoint(u32, bool),
    /// Nothing in older segments is in doubt.
    Settled,
    /// The server stopped in order, and nothing was written after this.
    Clean,
}

/// What a [`Scanner`] meets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found<'a> {
    Record(Range<usize>, Record<'a>),
    /// Nothing in here can be read.
    Damage(Range<usize>),
}

/// The beginning of every segment.
pub(super) fn head() -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(&SEGMENT_MAGIC);
    head[8..12].copy_from_slice(&VERSION.to_le_bytes());
    let sum = crc32fast::hash(&head[..12]);
    head[12..].copy_from_slice(&sum.to_le_bytes());
    head
}

/// The version of the format that a segment says it has; `None` if its beginning cannot be read.
pub(super) fn version(bytes: &[u8]) -> Option<u32> {
    let head = bytes.get(..HEAD)?;
    let sound = head[..8] == SEGMENT_MAGIC && number(head, 12)? == crc32fast::hash(&head[..12]);
    number(head, 8).filter(|_| sound)
}

/// Writes a frame at the end of `out`, whose end will be at `at` in the segment.
pub(super) fn put_frame(out: &mut Vec<u8>, salt: u64, at: u64, head: &StoredHead, body: &[u8]) {
    put(out, salt, at, FRAME, |out| {
        out.extend(head.key.0.to_le_bytes());
        out.extend(head.first.to_le_bytes());
        out.extend(head.last.to_le_bytes());
        out.extend(head.count.to_le_bytes());
        out.extend(head.flushed_ns.to_le_bytes());
        out.extend(head.received_ns.to_le_bytes());
        out.extend(body);
    });
}

/// Writes a state, as [`put_frame`] does a frame.
pub(super) fn put_state(out: &mut Vec<u8>, salt: u64, at: u64, state: &State) {
    put(out, salt, at, STATE, |out| {
        out.extend(state.key.0.to_le_bytes());
        out.extend(state.next_seq.to_le_bytes());
        out.extend(state.floor.to_le_bytes());
        out.extend(state.retired_ns.to_le_bytes());
        out.extend(state.epoch.to_le_bytes());
        let ancestors = u32::try_from(state.lineage.len()).expect("a lineage is short");
        out.extend(ancestors.to_le_bytes());
        for ancestor in &state.lineage {
            out.extend(ancestor.epoch.to_le_bytes());
            out.extend(ancestor.last.to_le_bytes());
        }
        out.extend(state.name.as_bytes());
    });
}

/// Writes that the states before it are complete.
pub(super) fn put_checkpoint(out: &mut Vec<u8>, salt: u64, at: u64, states: u32, settled: bool) {
    put(out, salt, at, CHECKPOINT, |out| {
        out.extend(states.to_le_bytes());
        out.extend(u32::from(settled).to_le_bytes());
    });
}

/// Writes that nothing in older segments is in doubt.
pub(super) fn put_settled(out: &mut Vec<u8>, salt: u64, at: u64) {
    put(out, salt, at, SETTLED, |_| {});
}

/// Writes the mark of a stop in order.
pub(super) fn put_clean(out: &mut Vec<u8>, salt: u64, at: u64) {
    put(out, salt, at, CLEAN, |_| {});
}

fn put(out: &mut Vec<u8>, salt: u64, at: u64, kind: u32, payload: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend(RECORD_MAGIC);
    out.extend(kind.to_le_bytes());
    out.extend([0; RECORD_HEAD - 8]);
    payload(out);
    let length = u32::try_from(out.len() - start - RECORD_HEAD).expect("a record is far below 4 GiB");
    let sum = payload_sum(salt, &out[start + RECORD_HEAD..]);
    out[start + 8..start + 12].copy_from_slice(&length.to_le_bytes());
    out[start + 12..start + 16].copy_from_slice(&sum.to_le_bytes());
    let sum = head_sum(salt, at, &out[start..start + 16]);
    out[start + 16..start + RECORD_HEAD].copy_from_slice(&sum.to_le_bytes());
}

fn payload_sum(salt: u64, payload: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&salt.to_le_bytes());
    sum.update(payload);
    sum.finalize()
}

fn head_sum(salt: u64, at: u64, head: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&salt.to_le_bytes());
    sum.update(&at.to_le_bytes());
    sum.update(head);
    sum.finalize()
}

/// Finds the records of a segment, in order.
#[derive(Debug)]
pub(super) struct Scanner<'a> {
    bytes: &'a [u8],
    salt: u64,
    at: usize,
}

impl<'a> Scanner<'a> {
    /// Begins at the beginning of a segment.
    pub(super) const fn new(bytes: &'a [u8], salt: u64) -> Self {
        Self { bytes, salt, at: 0 }
    }

    /// The record that begins at a place, and where it ends.
    fn record_at(&self, at: usize) -> Option<(usize, Record<'a>)> {
        let head = self.bytes.get(at..at.checked_add(RECORD_HEAD)?)?;
        let place = u64::try_from(at).ok()?;
        if head[..4] != RECORD_MAGIC || number(head, 16)? != head_sum(self.salt, place, &head[..16]) {
            return None;
        }
        let start = at + RECORD_HEAD;
        let end = start.checked_add(usize::try_from(number(head, 8)?).ok()?)?;
        let payload = self.bytes.get(start..end)?;
        let sound = number(head, 12)? == payload_sum(self.salt, payload);
        Some((end, decode(number(head, 4)?, payload).filter(|_| sound)?))
    }
}

impl<'a> Iterator for Scanner<'a> {
    type Item = Found<'a>;

    fn next(&mut self) -> Option<Found<'a>> {
        let at = self.at;
        if at >= self.bytes.len() {
            return None;
        }
        if at == 0 && version(self.bytes).is_some() {
            self.at = HEAD;
            return self.next();
        }
        if let Some((end, record)) = self.record_at(at) {
            self.at = end;
            return Some(Found::Record(at..end, record));
        }
        // The next sound record, wherever it is. A false magic costs one short checksum: the search is linear.
        let mut next = at + 1;
        self.at = loop {
            let rest = self.bytes.get(next..).unwrap_or_default();
            let Some(offset) = rest.windows(RECORD_MAGIC.len()).position(|four| four == RECORD_MAGIC) else {
                break self.bytes.len();
            };
            if self.record_at(next + offset).is_some() {
                break next + offset;
            }
            next += offset + 1;
        };
        Some(Found::Damage(at..self.at))
    }
}

fn decode(kind: u32, payload: &[u8]) -> Option<Record<'_>> {
    let mut fields = Fields(payload);
    match kind {
        FRAME => {
            let head = StoredHead {
                key: StreamKey(fields.u64()?),
                first: fields.u64()?,
                last: fields.u64()?,
                count: fields.u32()?,
                flushed_ns: fields.u64()?,
                received_ns: fields.u64()?,
            };
            (head.first <= head.last && head.last < Seq::MAX).then_some(Record::Frame(head, fields.0))
        }
        STATE => {
            let key = StreamKey(fields.u64()?);
            let (next_seq, floor, retired_ns) = (fields.u64()?, fields.u64()?, fields.u64()?);
            let epoch = fields.u32()?;
            let ancestors = usize::try_from(fields.u32()?).ok().filter(|count| *count <= LINEAGE_MAX)?;
            let lineage = (0..ancestors)
                .map(|_| Some(Ancestor { epoch: fields.u32()?, last: fields.u64()? }))
                .collect::<Option<Vec<_>>>()?;
            let name = std::str::from_utf8(fields.0).ok()?.into();
            Some(Record::State(State { key, name, epoch, next_seq, floor, retired_ns, lineage }))
        }
        CHECKPOINT => Some(Record::Checkpoint(fields.u32()?, fields.u32()? != 0)),
        CLEAN => Some(Record::Clean),
        SETTLED => Some(Record::Settled),
        _ => None,
    }
}

/// What is left of a payload.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&mut self) -> Option<u32> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*field))
    }

    fn u64(&mut self) -> Option<u64> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*field))
    }
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|four| u32::from_le_bytes(*four))
}
