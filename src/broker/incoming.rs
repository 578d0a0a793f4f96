//! What came in and waits for its reader: bounded. Who puts in never waits; a message that the broker keeps is not put in where
//! there is no room, and of the others the oldest are dropped and told as lost.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::interest::Want;
use super::{Event, Lost, Side, Topic};

/// What an entry costs beside its bytes.
const OVERHEAD_BYTES: usize = 128;

/// Entries beside messages that may wait before those that nobody wants any more are swept out. A reader that is there never
/// leaves that many.
const SWEEP_AT: usize = 4_096;

/// States (up, down) that may wait. Above, the newest takes the place of the one before.
const STATES_MAX: usize = 64;

/// What [`Lost::why`] says of a message that was dropped here.
const FULL: &str = "the queue of what the broker sends is full";

#[derive(Debug)]
enum Entry {
    Up,
    Down(String),
    Subscribed(Arc<Want>, Vec<Bytes>),
    Message { want: Arc<Want>, payload: Bytes, kept: bool },
    Refused(Arc<Want>, String),
    Lost(Option<Arc<Want>>, Lost),
}

impl Entry {
    fn bytes(&self) -> usize {
        OVERHEAD_BYTES
            + match self {
                Self::Message { payload, .. } => payload.len(),
                Self::Subscribed(_, backlog) => {
                    backlog.iter().map(|payload| payload.len() + OVERHEAD_BYTES).sum()
                }
                _ => 0,
            }
    }

    fn want(&self) -> Option<&Arc<Want>> {
        match self {
            Self::Subscribed(want, _) | Self::Message { want, .. } | Self::Refused(want, _) => Some(want),
            Self::Lost(want, _) => want.as_ref(),
            Self::Up | Self::Down(_) => None,
        }
    }

    const fn is_state(&self) -> bool {
        matches!(self, Self::Up | Self::Down(_))
    }
}

/// Losses that wait, one for each topic and side.
#[derive(Debug, Default)]
struct Losses {
    queue: VecDeque<Lost>,
    /// Where each stands, counted from the first that ever was.
    places: HashMap<(Side, Option<Topic>), u64>,
    popped: u64,
}

impl Losses {
    fn add(&mut self, lost: Lost) {
        let key = (lost.side, lost.topic.clone());
        let place = self.places.get(&key).and_then(|place| usize::try_from(place - self.popped).ok());
        if let Some(there) = place.and_then(|place| self.queue.get_mut(place)) {
            there.messages = sum(there.messages, lost.messages);
            there.why = lost.why;
            return;
        }
        self.places.insert(key, self.popped + self.queue.len() as u64);
        self.queue.push_back(lost);
    }

    fn pop(&mut self) -> Option<Lost> {
        let lost = self.queue.pop_front()?;
        self.popped += 1;
        self.places.remove(&(lost.side, lost.topic.clone()));
        Some(lost)
    }
}

fn sum(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    Some(one?.saturating_add(other?))
}

/// See the module's page.
#[derive(Debug)]
pub(super) struct Lane {
    state: Mutex<State>,
    arrived: Notify,
    room: Notify,
    bytes_max: usize,
    messages_max: usize,
}

#[derive(Debug, Default)]
struct State {
    /// What stood before messages that were dropped.
    saved: VecDeque<Entry>,
    /// What is told after `saved` and before `entries`.
    losses: Losses,
    entries: VecDeque<Entry>,
    /// Of `saved` and `entries`.
    bytes: usize,
    messages: usize,
    states: usize,
    sweep_at: usize,
    ended: bool,
}

impl Lane {
    pub(super) fn new(bytes_max: usize, messages_max: usize) -> Self {
        let state = State { sweep_at: SWEEP_AT, ..State::default() };
        Self {
            state: Mutex::new(state),
            arrived: Notify::new(),
            room: Notify::new(),
            bytes_max,
            messages_max,
        }
    }

    pub(super) fn up(&self) {
        self.put(Entry::Up);
    }

    pub(super) fn down(&self, why: String) {
        self.put(Entry::Down(why));
    }

    pub(super) fn subscribed(&self, want: &Arc<Want>, backlog: Vec<Bytes>) {
        self.put(Entry::Subscribed(Arc::clone(want), backlog));
    }

    pub(super) fn refused(&self, want: &Arc<Want>, why: String) {
        self.put(Entry::Refused(Arc::clone(want), why));
    }

    /// A loss of one subscription, in order with its messages.
    pub(super) fn lost_of(&self, want: &Arc<Want>, messages: Option<u64>, why: &str) {
        let topic = Some(want.topic.clone());
        let lost = Lost { side: Side::Incoming, topic, messages, why: why.to_owned() };
        self.put(Entry::Lost(Some(Arc::clone(want)), lost));
    }

    /// A loss that belongs nowhere in the order: merged with what is told already.
    pub(super) fn lost(&self, lost: Lost) {
        self.state().losses.add(lost);
        self.arrived.notify_one();
    }

    /// A message. One that is not `kept` has the oldest of its like dropped where there is no room. Returns how many were.
    pub(super) fn message(&self, want: &Arc<Want>, payload: Bytes, kept: bool) -> u64 {
        if want.has_ended() {
            return 0;
        }
        let entry = Entry::Message { want: Arc::clone(want), payload, kept };
        let mut state = self.state();
        let mut dropped = 0;
        while !kept && state.is_over(self.bytes_max, self.messages_max, entry.bytes()) {
            let Some(oldest) = state.entries.pop_front() else { break };
            match oldest {
                Entry::Message { ref want, kept: false, .. } => {
                    let topic = Some(want.topic.clone());
                    let wanted = !want.has_ended();
                    state.bytes -= oldest.bytes();
                    state.messages -= 1;
                    if wanted {
                        dropped += 1;
                        let side = Side::Incoming;
                        state.losses.add(Lost { side, topic, messages: Some(1), why: FULL.to_owned() });
                    }
                }
                other => state.saved.push_back(other),
            }
        }
        state.push(entry);
        drop(state);
        self.arrived.notify_one();
        dropped
    }

    /// Whether a message that the broker keeps may be put in.
    pub(super) fn has_room(&self) -> bool {
        !self.state().is_over(self.bytes_max, self.messages_max, 0)
    }

    /// Waits until half of the room is free, so that there is something to do then.
    pub(super) async fn room(&self) {
        loop {
            let room = self.room.notified();
            if !self.state().is_over(self.bytes_max / 2, self.messages_max / 2, 0) {
                return;
            }
            room.await;
        }
    }

    /// Nothing comes any more.
    pub(super) fn end(&self) {
        self.state().ended = true;
        self.arrived.notify_one();
    }

    pub(super) fn bytes(&self) -> usize {
        self.state().bytes
    }

    fn put(&self, entry: Entry) {
        let mut state = self.state();
        if entry.is_state() && state.states >= STATES_MAX {
            let newest = state.entries.iter_mut().rev().find(|entry| entry.is_state());
            if let Some(newest) = newest {
                *newest = entry;
                return;
            }
        }
        let others = state.entries.len() + state.saved.len() - state.messages;
        if others >= state.sweep_at {
            state.sweep();
            // Those who wait look for themselves.
            self.room.notify_waiters();
        }
        state.push(entry);
        drop(state);
        self.arrived.notify_one();
    }

    /// Takes the next event; nothing if there is none now.
    fn take(&self) -> Option<Event> {
        let mut state = self.state();
        let was_over = state.is_over(self.bytes_max / 2, self.messages_max / 2, 0);
        let event = loop {
            if state.saved.is_empty()
                && let Some(lost) = state.losses.pop()
            {
                break Some(Event::Lost(lost));
            }
            let Some(entry) = state.pop() else { break None };
            if entry.want().is_some_and(|want| want.has_ended()) {
                continue;
            }
            break Some(match entry {
                Entry::Up => Event::Up,
                Entry::Down(why) => Event::Down { why },
                Entry::Subscribed(want, backlog) => Event::Subscribed { topic: want.topic.clone(), backlog },
                Entry::Message { want, payload, .. } => Event::Message { topic: want.topic.clone(), payload },
                Entry::Refused(want, why) => Event::Refused { topic: want.topic.clone(), why },
                Entry::Lost(_, lost) => Event::Lost(lost),
            });
        };
        if was_over && !state.is_over(self.bytes_max / 2, self.messages_max / 2, 0) {
            self.room.notify_waiters();
        }
        event
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    const fn is_over(&self, bytes_max: usize, messages_max: usize, more: usize) -> bool {
        self.messages > 0 && (self.bytes.saturating_add(more) > bytes_max || self.messages >= messages_max)
    }

    fn push(&mut self, entry: Entry) {
        self.bytes += entry.bytes();
        self.messages += usize::from(matches!(entry, Entry::Message { .. }));
        self.states += usize::from(entry.is_state());
        self.entries.push_back(entry);
    }

    fn pop(&mut self) -> Option<Entry> {
        let entry = self.saved.pop_front().or_else(|| self.entries.pop_front())?;
        self.bytes -= entry.bytes();
        self.messages -= usize::from(matches!(entry, Entry::Message { .. }));
        self.states -= usize::from(entry.is_state());
        Some(entry)
    }

    /// Takes out what belongs to subscriptions that have ended.
    fn sweep(&mut self) {
        let wanted = |entry: &Entry| !entry.want().is_some_and(|want| want.has_ended());
        self.saved.retain(wanted);
        self.entries.retain(wanted);
        let all = || self.saved.iter().chain(&self.entries);
        self.bytes = all().map(Entry::bytes).sum();
        self.messages = all().filter(|entry| matches!(entry, Entry::Message { .. })).count();
        let others = self.saved.len() + self.entries.len() - self.messages;
        // So that sweeping costs no more than what it follows.
        self.sweep_at = SWEEP_AT.max(others * 2);
    }
}

/// What the broker tells. One reader.
#[derive(Debug)]
pub struct Events {
    pub(super) lane: Arc<Lane>,
}

impl Events {
    /// Waits for the next event. After [`super::Broker::unsubscribe`] nothing of that subscription is returned any more. `None`
    /// once the broker was stopped and everything was read. Cancel-safe.
    pub async fn recv(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.lane.take() {
                return Some(event);
            }
            if self.lane.state().ended {
                return None;
            }
            self.lane.arrived.notified().await;
        }
    }

    /// The next event, if there is one now.
    pub fn try_recv(&mut self) -> Option<Event> {
        self.lane.take()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::broker::Keep;
    use crate::broker::interest::Interest;

    fn want(interest: &Interest, name: &str) -> Arc<Want> {
        assert!(interest.add(Topic::new(name).expect("a topic"), Keep::No));
        let wants = interest.all();
        wants.into_iter().find(|want| &*want.topic == name).expect("it was added")
    }

    fn text(event: Event) -> String {
        match event {
            Event::Up => "up".to_owned(),
            Event::Down { why } => format!("down {why}"),
            Event::Subscribed { topic, backlog } => format!("subscribed {topic} {}", backlog.len()),
            Event::Message { topic, payload } => format!("{topic}={}", payload.len()),
            Event::Refused { topic, why } => format!("refused {topic} {why}"),
            Event::Lost(lost) => {
                let topic = lost.topic.map_or_else(|| "-".to_owned(), |topic| topic.to_string());
                format!("lost {:?} {topic} {:?}", lost.side, lost.messages)
            }
        }
    }

    fn drain(lane: &Arc<Lane>) -> Vec<String> {
        let mut events = Events { lane: Arc::clone(lane) };
        std::iter::from_fn(|| events.try_recv()).map(text).collect()
    }

    #[test]
    fn the_oldest_that_are_not_kept_are_dropped_and_told_where_they_were() {
        let interest = Interest::new(10);
        let (a, b, k) = (want(&interest, "a"), want(&interest, "b"), want(&interest, "k"));
        let lane = Arc::new(Lane::new(1 << 20, 3));
        lane.up();
        lane.subscribed(&a, vec![]);
        assert_eq!(lane.message(&a, Bytes::from_static(b"1"), false), 0);
        assert_eq!(lane.message(&k, Bytes::from_static(b"12"), true), 0);
        assert_eq!(lane.message(&a, Bytes::from_static(b"123"), false), 0);
        assert!(!lane.has_room());
        assert_eq!(lane.message(&b, Bytes::from_static(b"1234"), false), 1);
        assert_eq!(lane.message(&b, Bytes::from_static(b"12345"), false), 1);
        assert_eq!(drain(&lane), ["up", "subscribed a 0", "k=2", "lost Incoming a Some(2)", "b=4", "b=5"]);
        assert_eq!(lane.bytes(), 0);
        assert!(lane.room().now_or_never().is_some());
    }

    #[test]
    fn one_message_always_fits_and_bytes_bound_the_rest() {
        let interest = Interest::new(10);
        let a = want(&interest, "a");
        let lane = Arc::new(Lane::new(1_000, 100));
        assert_eq!(lane.message(&a, Bytes::from(vec![0; 5_000]), false), 0);
        assert_eq!(lane.message(&a, Bytes::from(vec![0; 10]), false), 1);
        assert_eq!(drain(&lane), ["lost Incoming a Some(1)", "a=10"]);
    }

    #[test]
    fn losses_of_a_topic_are_one_and_a_number_that_is_unknown_stays_so() {
        let lane = Arc::new(Lane::new(1_000, 100));
        let lost = |side, name: &str, messages| {
            let topic = Some(Topic::new(name).expect("a topic"));
            lane.lost(Lost { side, topic, messages, why: String::new() });
        };
        lost(Side::Outgoing, "a", Some(1));
        lost(Side::Incoming, "a", Some(1));
        lost(Side::Outgoing, "a", Some(2));
        lost(Side::Incoming, "a", None);
        lost(Side::Incoming, "a", Some(7));
        assert_eq!(drain(&lane), ["lost Outgoing a Some(3)", "lost Incoming a None"]);
        lost(Side::Outgoing, "a", Some(4));
        assert_eq!(drain(&lane), ["lost Outgoing a Some(4)"]);
    }

    #[tokio::test]
    async fn nothing_is_told_of_a_subscription_that_has_ended() {
        let interest = Interest::new(10);
        let old = want(&interest, "a");
        let lane = Arc::new(Lane::new(1_000, 100));
        lane.subscribed(&old, vec![]);
        lane.message(&old, Bytes::new(), false);
        interest.remove("a");
        lane.lost_of(&old, None, "x");
        let new = want(&interest, "a");
        lane.subscribed(&new, vec![Bytes::new()]);
        lane.end();
        let mut events = Events { lane: Arc::clone(&lane) };
        assert_eq!(events.recv().await.map(text).as_deref(), Some("subscribed a 1"));
        assert_eq!(events.recv().await, None);
    }

    #[test]
    fn without_a_reader_it_does_not_grow_for_ever() {
        let interest = Interest::new(10);
        let lane = Arc::new(Lane::new(1_000, 100));
        for round in 0..10 * SWEEP_AT {
            let a = want(&interest, "a");
            lane.subscribed(&a, vec![]);
            lane.down(round.to_string());
            lane.up();
            interest.remove("a");
        }
        let state = lane.state();
        assert!(state.entries.len() + state.saved.len() <= SWEEP_AT + STATES_MAX, "{}", state.entries.len());
        drop(state);
        assert_eq!(drain(&lane).last().map(String::as_str), Some("up"), "the newest state is there");
    }
}
