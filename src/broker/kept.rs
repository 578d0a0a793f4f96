//! How what a broker keeps and what it delivers live become one sequence, for every broker whose messages have positions.
//! Knows no broker.
//!
//! A topic is live first, and what is kept is fetched then. Live messages that come while a fetch is under way are held, so
//! that it ends also where messages come faster than fetches; what does not fit is fetched again. A topic whose messages find
//! no room with the reader is no longer live, and is fetched when there is room: nothing of it is lost as long as the broker
//! keeps it. The same happens after a lost connection.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::select_all;
use tokio::sync::Notify;

use super::driver::Port;
use super::interest::Want;

/// Fetches at once. So many answers may be on their way, each of [`FETCH_BYTES_MAX`] and a message.
const FETCHES: usize = 8;

/// Bytes that one fetch asks for when it catches up: a few messages of every size that is usual.
pub(super) const FETCH_BYTES_MAX: usize = 1 << 20;

/// Messages that one fetch asks for.
pub(super) const FETCH_MESSAGES_MAX: usize = 1_024;

/// Bytes of live messages that are held for a topic while it is fetched.
const HELD_BYTES_MAX: usize = 1 << 20;

/// Where a message stands in what the broker keeps of its topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position(pub(super) u64, pub(super) u64);

/// How far a topic was delivered.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// The last message that was delivered, or was there when the topic was subscribed to.
    pub(super) position: Option<Position>,
    /// How many messages the topic had up to there since the broker has it, where that is known.
    pub(super) count: Option<u64>,
    /// It is no longer live since then.
    behind: bool,
    phase: Phase,
}

impl Place {
    fn pass(&mut self, position: Position) {
        self.position = Some(position);
        self.count = self.count.map(|count| count + 1);
    }
}

#[derive(Debug, Default)]
enum Phase {
    /// To be fetched; live messages are left to the fetch.
    #[default]
    Waiting,
    Fetching {
        held: VecDeque<(Position, Bytes)>,
        bytes: usize,
        /// The newest that did not fit.
        missed: Option<Position>,
    },
    Live,
}

/// From where to fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    /// The newest, as a backlog.
    Newest,
    /// What is behind that position, up to which there were `count` messages. `behind`: the topic was not live up to the end of
    /// the last connection, so that nothing is known of what came after the position.
    After { position: Position, count: Option<u64>, behind: bool },
}

/// What is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    /// How many, if anybody knows.
    pub(super) messages: Option<u64>,
    pub(super) why: &'static str,
}

/// What a fetch found.
#[derive(Debug, Default)]
pub(super) struct Fetched {
    /// What is missing before `messages`.
    pub(super) gap: Option<Gap>,
    /// In order.
    pub(super) messages: Vec<(Position, Bytes)>,
    /// All up to here was looked at; it may be behind the last message.
    pub(super) upto: Position,
    /// Whether that was all there is.
    pub(super) end: bool,
    /// How many messages the topic had up to `upto`, for brokers that count. Counts only with `end`.
    pub(super) count: Option<u64>,
    /// The broker's history is another one than before: what is known of positions and counts no longer holds.
    pub(super) anew: bool,
}

/// Why there is nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// This topic cannot be had.
    Refused(String),
    /// The connection is of no use any more.
    Broken(String),
}

/// Told where the numbers of messages do not add up.
const MISSING: &str = "messages were deleted from what the broker keeps";

/// Those that wait to be fetched, in one connection.
#[derive(Debug, Default)]
pub(super) struct Stitcher {
    waiting: Mutex<VecDeque<Arc<Want>>>,
    ready: Notify,
}

impl Stitcher {
    /// The topic is live with the broker: what is kept of it is to be fetched. Once in a connection.
    pub(super) fn enlist(&self, want: &Arc<Want>) {
        want.place().phase = Phase::Waiting;
        self.queue(want);
    }

    /// A live message of the topic went missing in this connection: what comes after the last one is to be fetched.
    pub(super) fn again(&self, want: &Arc<Want>) {
        let mut place = want.place();
        match &mut place.phase {
            Phase::Waiting => {}
            Phase::Fetching { missed, .. } => *missed = Some(Position(u64::MAX, u64::MAX)),
            Phase::Live => {
                place.phase = Phase::Waiting;
                place.behind = true;
                drop(place);
                self.queue(want);
            }
        }
    }

    fn queue(&self, want: &Arc<Want>) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back(Arc::clone(want));
        self.ready.notify_one();
    }

    /// A live message. `previous` is the one of its topic before it, where the broker says so: if that was not delivered, it is
    /// fetched.
    pub(super) fn live(
        &self,
        port: &Port,
        want: &Arc<Want>,
        previous: Option<Position>,
        position: Position,
        payload: Bytes,
    ) {
        let mut place = want.place();
        let last = place.position.unwrap_or_default();
        match &mut place.phase {
            Phase::Waiting => {}
            Phase::Fetching { held, bytes, missed } => {
                *bytes += payload.len();
                held.push_back((position, payload));
                while *bytes > HELD_BYTES_MAX || held.len() > FETCH_MESSAGES_MAX {
                    let Some((position, payload)) = held.pop_front() else { break };
                    *bytes -= payload.len();
                    *missed = Some(position);
                }
            }
            Phase::Live if position <= last => {}
            Phase::Live if port.has_room() && previous.is_none_or(|previous| previous <= last) => {
                place.pass(position);
                port.message(want, payload, true);
            }
            Phase::Live => {
                place.phase = Phase::Waiting;
                place.behind = true;
                drop(place);
                self.queue(want);
            }
        }
    }

    /// Fetches for ever. Returns why the connection is of no use any more.
    pub(super) async fn run<F>(&self, port: &Port, fetch: F) -> String
    where
        F: AsyncFn(&Want, From) -> Result<Fetched, Failure>,
    {
        let one = || {
            Box::pin(async {
                loop {
                    let want = self.next().await;
                    port.room().await;
                    if let Err(why) = self.catch_up(port, &want, &fetch).await {
                        return why;
                    }
                }
            })
        };
        select_all((0..FETCHES).map(|_| one())).await.0
    }

    async fn next(&self) -> Arc<Want> {
        loop {
            let next = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            if let Some(want) = next {
                // Another of those who fetch may wait for the same notice.
                self.ready.notify_one();
                return want;
            }
            self.ready.notified().await;
        }
    }

    async fn catch_up<F>(&self, port: &Port, want: &Arc<Want>, fetch: &F) -> Result<(), String>
    where
        F: AsyncFn(&Want, From) -> Result<Fetched, Failure>,
    {
        if want.has_ended() {
            return Ok(());
        }
        let from = {
            let mut place = want.place();
            if !matches!(place.phase, Phase::Waiting) {
                return Ok(());
            }
            place.phase = Phase::Fetching { held: VecDeque::new(), bytes: 0, missed: None };
            let (count, behind) = (place.count, place.behind);
            place.position.map_or(From::Newest, |position| From::After { position, count, behind })
        };
        let fetched = match fetch(want, from).await {
            Ok(fetched) => fetched,
            Err(Failure::Broken(why)) => return Err(why),
            Err(Failure::Refused(why)) => {
                want.place().phase = Phase::Waiting;
                port.refused(want, why);
                return Ok(());
            }
        };
        if self.deliver(port, want, from, fetched) {
            self.queue(want);
        }
        Ok(())
    }

    /// Passes on what was fetched and what was held meanwhile; whether there is more to fetch.
    fn deliver(&self, port: &Port, want: &Arc<Want>, from: From, fetched: Fetched) -> bool {
        let mut place = want.place();
        let Fetched { gap, messages, upto, end, count, anew } = fetched;
        if anew {
            place.position = None;
            place.count = None;
        }
        let mut counted = messages.len() as u64;
        if let Some(gap) = gap {
            counted += gap.messages.unwrap_or(0);
            port.lost_of(want, gap.messages, gap.why);
        }
        if from == From::Newest {
            port.subscribed(want, messages.into_iter().map(|(_, payload)| payload).collect());
        } else {
            for (_, payload) in messages {
                port.message(want, payload, true);
            }
        }
        place.position = Some(place.position.unwrap_or_default().max(upto));
        place.count = place.count.map(|count| count + counted);
        place.behind = !end;
        if !end {
            place.phase = Phase::Waiting;
            return true;
        }
        let missing = match (place.count, count) {
            (Some(delivered), Some(all)) => all.saturating_sub(delivered),
            _ => 0,
        };
        if missing > 0 {
            port.lost_of(want, Some(missing), MISSING);
        }
        place.count = count;
        let phase = std::mem::replace(&mut place.phase, Phase::Live);
        let Phase::Fetching { held, missed, .. } = phase else { return false };
        if missed.is_some_and(|missed| missed > upto) {
            place.phase = Phase::Waiting;
            place.behind = true;
            return true;
        }
        for (position, payload) in held {
            if place.position.is_none_or(|last| position > last) {
                place.pass(position);
                port.message(want, payload, true);
            }
        }
        false
    }
}

#[cfg(test)]
mod tests;
