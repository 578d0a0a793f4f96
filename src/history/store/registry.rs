//! Which streams there are, in use and retired, and what each numbers its samples with. Pure: no clock, no I/O, no lock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::record::State;
use super::{Life, Refused, Retention, StoredFrame, StreamKey};
use crate::clock::nanos;
use crate::wire::Seq;

/// How long a retired stream is remembered, so that it goes on if it comes back: a day covers what is switched off at night.
/// Longer than that it begins anew, under an epoch of its own.
const RETIRED_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// How many retired streams are remembered; the longest retired go first. Each stands at the beginning of every segment.
const RETIRED_MAX: usize = 10_000;

/// Says what is kept of a name's stream; `None` for nothing.
pub(super) type Rule = Box<dyn Fn(&str) -> Option<Retention> + Send>;

/// See the module.
pub(super) struct Registry {
    rule: Rule,
    states: HashMap<StreamKey, State>,
    names: HashMap<Arc<str>, StreamKey>,
    /// Retired streams behind when they were, the longest retired first.
    retired: BTreeSet<(u64, StreamKey)>,
    /// Streams whose state the log does not know yet, and whether it knows of none at all.
    dirty: BTreeMap<StreamKey, bool>,
    /// Streams that the log knows and that are gone.
    gone: Vec<StreamKey>,
    /// What a checkpoint of all streams takes at the most, and what it may take.
    state_bytes: usize,
    state_bytes_max: usize,
    frame_bytes_max: usize,
}

impl Registry {
    /// With the streams that were recovered. A checkpoint takes at most `state_bytes_max`, a frame's body `frame_bytes_max`.
    pub(super) fn new(
        rule: Rule,
        recovered: impl IntoIterator<Item = State>,
        state_bytes_max: usize,
        frame_bytes_max: usize,
    ) -> Self {
        let mut registry = Self {
            rule,
            states: HashMap::new(),
            names: HashMap::new(),
            retired: BTreeSet::new(),
            dirty: BTreeMap::new(),
            gone: Vec::new(),
            state_bytes: 0,
            state_bytes_max,
            frame_bytes_max,
        };
        for state in recovered {
            registry.insert(state);
        }
        registry
    }

    fn insert(&mut self, state: State) {
        self.state_bytes += State::bytes_max(&state.name);
        self.names.insert(Arc::clone(&state.name), state.key);
        if state.retired_ns > 0 {
            self.retired.insert((state.retired_ns, state.key));
        }
        self.states.insert(state.key, state);
    }

    /// The life of a name's stream: as it was, or a new one.
    pub(super) fn stream(&mut self, name: &str) -> Result<Life, Refused> {
        if (self.rule)(name).is_none() {
            return Err(Refused::NotKept);
        }
        let key = match self.names.get(name) {
            Some(key) => *key,
            None => self.add(name)?,
        };
        let state = self.states.get_mut(&key).expect("a name leads to a stream");
        if state.retired_ns > 0 {
            self.retired.remove(&(state.retired_ns, key));
            state.retired_ns = 0;
            self.dirty.entry(key).or_insert(false);
        }
        Ok(Life::of(state))
    }

    fn add(&mut self, name: &str) -> Result<StreamKey, Refused> {
        while self.state_bytes + State::bytes_max(name) > self.state_bytes_max {
            if !self.drop_longest_retired() {
                return Err(Refused::TooManyStreams);
            }
        }
        // Random, so that damage to what is stored can never lead to a key that is in use.
        let key = std::iter::repeat_with(|| StreamKey(fastrand::u64(..)))
            .find(|key| !self.states.contains_key(key))
            .expect("there are keys left");
        self.insert(State {
            key,
            name: name.into(),
            epoch: fastrand::u32(1..),
            next_seq: 1,
            floor: 1,
            retired_ns: 0,
            lineage: Vec::new(),
        });
        self.dirty.insert(key, true);
        Ok(key)
    }

    /// Counts a frame's samples as given out, whether or not it is stored.
    pub(super) fn offer(&mut self, key: StreamKey, frame: &StoredFrame) -> Result<(), Refused> {
        let state =
            self.states.get_mut(&key).filter(|state| state.retired_ns == 0).ok_or(Refused::Forgotten)?;
        if frame.first < state.next_seq || frame.last < frame.first || frame.last == Seq::MAX {
            return Err(Refused::OutOfOrder);
        }
        state.next_seq = frame.last + 1;
        if frame.body.len() > self.frame_bytes_max {
            return Err(Refused::TooLarge);
        }
        Ok(())
    }

    /// Retires a stream: its frames go, its numbers stay for [`RETIRED_KEPT`].
    pub(super) fn forget(&mut self, key: StreamKey, now_ns: u64) {
        let Some(state) = self.states.get_mut(&key).filter(|state| state.retired_ns == 0) else { return };
        state.retired_ns = now_ns.max(1);
        state.floor = state.next_seq;
        self.retired.insert((state.retired_ns, key));
        self.dirty.entry(key).or_insert(false);
    }

    /// Up to which sequence the stream of a name, if it is in use, has what was given under an epoch.
    pub(super) fn reaches(&self, name: &str, epoch: u32) -> Option<Seq> {
        self.in_use(name).and_then(|state| Life::of(state).reaches(epoch))
    }

    /// Whether a name's stream is there and not retired.
    pub(super) fn is_in_use(&self, name: &str) -> bool {
        self.in_use(name).is_some()
    }

    fn in_use(&self, name: &str) -> Option<&State> {
        self.names.get(name).map(|key| &self.states[key]).filter(|state| state.retired_ns == 0)
    }

    /// Drops what was retired too long ago, or is too much.
    pub(super) fn expire(&mut self, now_ns: u64) {
        while let Some((since, _)) = self.retired.first()
            && (self.retired.len() > RETIRED_MAX || now_ns.saturating_sub(*since) > nanos(RETIRED_KEPT))
        {
            self.drop_longest_retired();
        }
    }

    /// Returns whether there was one.
    fn drop_longest_retired(&mut self) -> bool {
        let Some((_, key)) = self.retired.pop_first() else { return false };
        let state = self.states.remove(&key).expect("a retired stream is one");
        self.names.remove(&state.name);
        self.state_bytes -= State::bytes_max(&state.name);
        if self.dirty.remove(&key) != Some(true) {
            self.gone.push(key);
        }
        true
    }

    /// What the log has to be told: states that changed, and streams that are gone.
    pub(super) fn take_changes(&mut self) -> (Vec<(State, Retention)>, Vec<StreamKey>) {
        let dirty = std::mem::take(&mut self.dirty);
        let changed = dirty.keys().filter_map(|key| self.states.get(key));
        let with_retention =
            |state: &State| (state.clone(), (self.rule)(&state.name).unwrap_or(Retention::NONE));
        let states = changed.map(with_retention).collect();
        (states, std::mem::take(&mut self.gone))
    }

    /// Whether the log has to be told something.
    pub(super) fn has_changes(&self) -> bool {
        !self.dirty.is_empty() || !self.gone.is_empty()
    }

    /// The state of every stream.
    pub(super) fn states(&self) -> Vec<State> {
        self.states.values().cloned().collect()
    }
}
