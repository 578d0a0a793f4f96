//! What a folder still has, after any end: reads every segment once, the newest first. Writes nothing but the removal of an
//! unfinished tail; damage costs what it hit and makes a note.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;

use super::disk::Disk;
use super::log::{Keeping, Log, Placed, READ_MAX, Segment};
use super::record::{self, FRAME_OVERHEAD, Found, HEAD, Record, Scanner, State};
use super::registry::Rule;
use super::{Ancestor, LINEAGE_MAX, Retention, StoredFrame, StreamKey};
use crate::wire::Seq;

/// What a frame takes in memory beside its body, about.
const HELD_OVERHEAD: usize = 128;

/// What was found.
pub(super) struct Recovery<D: Disk> {
    pub(super) log: Log<D>,
    /// The frames of each stream, by sequence.
    pub(super) frames: BTreeMap<StreamKey, Vec<StoredFrame>>,
    /// Whether every stream may go on as it was: the last stop was in order, and all could be read.
    pub(super) sound: bool,
    /// What an operator has to know.
    pub(super) notes: Vec<String>,
}

/// The frames of one stream with the segment of each, by their first sequence.
#[derive(Default)]
struct Frames {
    by_first: BTreeMap<Seq, (u64, StoredFrame)>,
    /// What begins before this is not to be kept, for something newer is not.
    floor: Seq,
    held_bytes: usize,
}

impl Frames {
    /// Takes a frame in, unless a newer record has some of its samples. Returns what it holds.
    fn insert(&mut self, segment: u64, frame: StoredFrame) -> usize {
        let before = self.by_first.range(..=frame.last).next_back();
        if frame.first < self.floor || before.is_some_and(|(_, (_, other))| other.last >= frame.first) {
            return 0;
        }
        let held = held_bytes(&frame);
        self.held_bytes += held;
        self.by_first.insert(frame.first, (segment, frame));
        held
    }

    /// Drops what is not to be kept; returns what it held.
    fn trim(&mut self, floor: Seq, retention: Retention, now_ns: u64) -> usize {
        let before = self.held_bytes;
        let mut keeping = Keeping::new(retention, now_ns);
        let mut first = Seq::MAX;
        for (_, frame) in self.by_first.values().rev() {
            let kept = frame.first >= floor && keeping.keeps(record_bytes(frame), frame.received_ns);
            if !kept {
                self.floor = frame.last + 1;
                break;
            }
            first = frame.first;
        }
        self.by_first = self.by_first.split_off(&first);
        self.held_bytes = self.by_first.values().map(|(_, frame)| held_bytes(frame)).sum();
        before - self.held_bytes
    }
}

/// What is gathered while the segments are read.
struct Gathering<'a> {
    rule: &'a Rule,
    now_ns: u64,
    frames: BTreeMap<StreamKey, Frames>,
    states: BTreeMap<StreamKey, State>,
    names: BTreeSet<Arc<str>>,
    /// The last sample of each stream that was seen in any frame.
    heads: BTreeMap<StreamKey, Seq>,
    /// The newest segment with a whole checkpoint; older ones tell nothing new of the states.
    base: Option<u64>,
    held_bytes: usize,
    held_bytes_max: usize,
    /// Frames that there was no room for in memory.
    left_out: u64,
}

impl Gathering<'_> {
    /// Takes in the states of a segment, which is older than those before.
    fn states(&mut self, number: u64, found: &[Found<'_>]) {
        if self.base.is_some() {
            return;
        }
        let mut before_checkpoint = 0;
        let mut here: Vec<&State> = Vec::new();
        for found in found {
            match found {
                Found::Record(_, Record::State(state)) => {
                    before_checkpoint += 1;
                    here.push(state);
                }
                Found::Record(_, Record::Checkpoint(states, _)) if *states == before_checkpoint => {
                    self.base = Some(number);
                }
                _ => {}
            }
        }
        // Of one stream the newest counts, and of one name the newest stream.
        for state in here.into_iter().rev() {
            if !self.states.contains_key(&state.key) && self.names.insert(state.name.clone()) {
                self.states.insert(state.key, state.clone());
            }
        }
    }

    /// Takes in the frames of a segment, as far as memory goes.
    fn frames(&mut self, number: u64, found: &[Found<'_>]) {
        let mut touched = BTreeSet::new();
        for found in found.iter().rev() {
            let Found::Record(_, Record::Frame(head, body)) = found else { continue };
            // One that the newest checkpoint does not have is gone.
            if self.base.is_some() && !self.states.contains_key(&head.key) {
                continue;
            }
            let last = self.heads.entry(head.key).or_default();
            *last = head.last.max(*last);
            if self.held_bytes > self.held_bytes_max {
                self.left_out += 1;
                continue;
            }
            let frame = StoredFrame {
                first: head.first,
                last: head.last,
                count: head.count,
                flushed_ns: head.flushed_ns,
                received_ns: head.received_ns,
                body: Bytes::copy_from_slice(body),
            };
            self.held_bytes += self.frames.entry(head.key).or_default().insert(number, frame);
            touched.insert(head.key);
        }
        touched.into_iter().for_each(|key| self.trim(key));
    }

    /// Drops what is not to be kept of a stream, if it is known.
    fn trim(&mut self, key: StreamKey) {
        let (Some(state), Some(frames)) = (self.states.get(&key), self.frames.get_mut(&key)) else { return };
        let freed = match (self.rule)(&state.name) {
            Some(retention) => frames.trim(state.floor, retention, self.now_ns),
            None => std::mem::take(frames).held_bytes,
        };
        self.held_bytes -= freed;
    }
}

/// Reads what there is. The log may have `dir_bytes_max` bytes from now on.
///
/// # Errors
/// Says in words why the folder cannot be used at all.
pub(super) fn recover<D: Disk>(
    mut disk: D,
    dir_bytes_max: u64,
    held_bytes_max: usize,
    rule: &Rule,
    now_ns: u64,
) -> Result<Recovery<D>, String> {
    let files = disk.list().map_err(|error| format!("the folder cannot be read: {error}"))?;
    let mut numbered = BTreeMap::new();
    let mut notes = Vec::new();
    let mut sound = true;
    // What is there now stays, and what is not does not come back.
    disk.sync_names().map_err(|error| format!("the folder cannot be made safe: {error}"))?;
    for (name, bytes) in files {
        let Some((number, salt)) = Segment::parse(&name) else { continue };
        let segment = Segment { name, salt, bytes, doubtful: false, stuck: false };
        if let Some(twice) = numbered.insert(number, segment) {
            sound = false;
            notes.push(format!("{} is not read: there are two segments of its number", twice.name));
        }
    }
    let next_number = numbered.keys().next_back().map_or(1, |last| last + 1);

    let mut gathering = Gathering {
        rule,
        now_ns,
        frames: BTreeMap::new(),
        states: BTreeMap::new(),
        names: BTreeSet::new(),
        heads: BTreeMap::new(),
        base: None,
        held_bytes: 0,
        held_bytes_max,
        left_out: 0,
    };
    let mut segments = BTreeMap::new();
    let mut mark = None;
    let mut clean = false;
    let mut settled = false;
    for (number, mut segment) in numbered.into_iter().rev() {
        let newest = number + 1 == next_number;
        let bytes = match disk.read(&segment.name, READ_MAX) {
            Ok(bytes) => bytes,
            Err(error) => {
                sound = false;
                notes.push(format!("{} cannot be read and is left as it is: {error}", segment.name));
                continue;
            }
        };
        if let Some(version) = record::version(&bytes).filter(|version| *version != record::VERSION) {
            return Err(format!(
                "{} has format {version}, and this server reads format {}: start the server that wrote it, or use another \
                 folder",
                segment.name,
                record::VERSION,
            ));
        }
        let found: Vec<_> = Scanner::new(&bytes, segment.salt).collect();
        let mut damaged = segment.bytes.saturating_sub(READ_MAX);
        for found in &found {
            if let Found::Damage(range) = found {
                damaged += range.len() as u64;
            }
        }
        match found.last() {
            Some(Found::Record(range, Record::Clean)) => {
                clean |= newest;
                mark.get_or_insert_with(|| (segment.name.clone(), range.start as u64));
            }
            // What was being written when the end came. Nobody was told that it is safe.
            Some(Found::Damage(range)) if newest && range.end as u64 == segment.bytes => {
                damaged -= range.len() as u64;
                if range.start <= HEAD {
                    notes.push(format!("{} is taken away: it was begun and not finished", segment.name));
                    let _ = disk.remove(&segment.name);
                    continue;
                }
                segment.bytes = range.start as u64;
                notes.push(format!("{}: {} unfinished bytes at the end", segment.name, range.len()));
            }
            None => {
                notes.push(format!("{} is taken away: it is empty", segment.name));
                let _ = disk.remove(&segment.name);
                sound &= newest;
                continue;
            }
            _ => {}
        }
        // What was written and not synced is read from memory until the power goes, and what is given out has to be safe. A sync
        // alone does not do: if one had failed before, this one would succeed in vain. So it is written again.
        segment.doubtful = damaged > 0 || !(settled || newest && clean);
        settled |= found
            .iter()
            .any(|found| matches!(found, Found::Record(_, Record::Settled | Record::Checkpoint(_, true))));
        if newest && let Err(error) = disk.cut(&segment.name, segment.bytes) {
            notes.push(format!("{} cannot be made safe: {error}", segment.name));
        }
        if damaged > 0 {
            sound = false;
            notes.push(format!("{}: {damaged} bytes are damaged and lost", segment.name));
        }
        gathering.states(number, &found);
        gathering.frames(number, &found);
        segments.insert(number, segment);
    }
    if !clean && !segments.is_empty() {
        sound = false;
        notes.push("the last stop was not in order".to_owned());
    }
    if gathering.left_out > 0 {
        notes.push(format!(
            "{} frames are left out: more than {held_bytes_max} bytes of history are not read back",
            gathering.left_out,
        ));
    }
    let base = gathering.base;
    let (streams, frames) = finish(gathering, &mut notes);
    let log = Log::new(disk, dir_bytes_max, streams, segments, base, mark, next_number);
    Ok(Recovery { log, frames, sound, notes })
}

type Streams = Vec<(State, Retention, Vec<Placed>)>;

fn finish(
    mut gathering: Gathering<'_>,
    notes: &mut Vec<String>,
) -> (Streams, BTreeMap<StreamKey, Vec<StoredFrame>>) {
    let keys: Vec<StreamKey> = gathering.states.keys().copied().collect();
    keys.into_iter().for_each(|key| gathering.trim(key));
    let mut frames = BTreeMap::new();
    let mut streams = Vec::new();
    for mut state in std::mem::take(&mut gathering.states).into_values() {
        let found = gathering.frames.remove(&state.key).unwrap_or_default();
        if let Some(last) = gathering.heads.get(&state.key) {
            state.next_seq = state.next_seq.max(last + 1);
        }
        let retention = (gathering.rule)(&state.name);
        if retention.is_none() && state.retired_ns == 0 {
            state.retired_ns = gathering.now_ns.max(1);
            state.floor = state.next_seq;
        }
        let placed = |(segment, frame): &(u64, StoredFrame)| Placed {
            segment: *segment,
            first: frame.first,
            last: frame.last,
            record_bytes: record_bytes(frame),
            received_ns: frame.received_ns,
        };
        let placed = found.by_first.values().map(placed).collect();
        frames.insert(state.key, found.by_first.into_values().map(|(_, frame)| frame).collect());
        streams.push((state, retention.unwrap_or(Retention::NONE), placed));
    }
    let nameless: usize = gathering.frames.values().map(|frames| frames.by_first.len()).sum();
    if nameless > 0 {
        notes.push(format!("{nameless} frames are left out: the state of their streams is lost"));
    }
    (streams, frames)
}

/// Gives a stream a new epoch: what was published under the old one after what is known may have been seen, and its numbers may
/// not be used again.
pub(super) fn renew(state: &mut State) {
    state.lineage.push(Ancestor { epoch: state.epoch, last: state.next_seq - 1 });
    let excess = state.lineage.len().saturating_sub(LINEAGE_MAX);
    state.lineage.drain(..excess);
    state.epoch = std::iter::repeat_with(|| fastrand::u32(1..))
        .find(|epoch| state.lineage.iter().all(|ancestor| ancestor.epoch != *epoch))
        .expect("there are epochs left");
}

const fn record_bytes(frame: &StoredFrame) -> u64 {
    (FRAME_OVERHEAD + frame.body.len()) as u64
}

const fn held_bytes(frame: &StoredFrame) -> usize {
    HELD_OVERHEAD + frame.body.len()
}
