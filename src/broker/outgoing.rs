//! What is to be published and waits for the broker: bounded, the oldest dropped first. Whoever publishes never waits.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::{Outgoing, Topic};

/// Most of a batch: what is sent before its confirmation is awaited, and so what may have to be sent again. Many times what
/// a network holds at 100 us, a tenth of the least bound of the queue at the least.
const BATCH_BYTES_MAX: usize = 1 << 20;
const BATCH_MESSAGES_MAX: usize = 512;

/// Connections that may break with a message in flight. Then it is given up: it may be what breaks them.
const ATTEMPTS_MAX: u8 = 3;

/// What a message costs beside its bytes.
const OVERHEAD_BYTES: usize = 128;

/// Why a message is not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drop {
    Full,
    TooLarge,
    Suspect,
}

impl Drop {
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Full => "the queue for publishing is full",
            Self::TooLarge => "it is larger than the queue for publishing",
            Self::Suspect => "the connection broke each time while it was sent",
        }
    }
}

/// See the module's page.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    ready: Notify,
    bytes_max: usize,
    messages_max: usize,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<(Outgoing, u8)>,
    in_flight: VecDeque<(Outgoing, u8)>,
    /// Of both.
    bytes: usize,
}

fn cost(message: &Outgoing) -> usize {
    message.len() + message.topic.len() + OVERHEAD_BYTES
}

impl Queue {
    pub(super) fn new(bytes_max: usize, messages_max: usize) -> Self {
        Self { state: Mutex::default(), ready: Notify::new(), bytes_max, messages_max }
    }

    /// Takes a message; calls `lost` with what had to go for it.
    pub(super) fn push(&self, message: Outgoing, mut lost: impl FnMut(Topic, Drop)) {
        let bytes = cost(&message);
        if bytes > self.bytes_max {
            return lost(message.topic, Drop::TooLarge);
        }
        let mut state = self.state();
        while state.bytes + bytes > self.bytes_max
            || state.waiting.len() + state.in_flight.len() >= self.messages_max
        {
            let Some((oldest, _)) = state.waiting.pop_front() else {
                // All of the rest is on its way.
                drop(state);
                return lost(message.topic, Drop::Full);
            };
            state.bytes -= cost(&oldest);
            lost(oldest.topic, Drop::Full);
        }
        state.bytes += bytes;
        state.waiting.push_back((message, 0));
        drop(state);
        self.ready.notify_one();
    }

    /// Waits for messages and takes some of them; they are in flight until [`Queue::settle`]. Cancel-safe: what is in flight is
    /// not taken twice, and [`Queue::requeue`] gives it back.
    pub(super) async fn batch(&self) -> Vec<Outgoing> {
        loop {
            let batch = self.state().take();
            if !batch.is_empty() {
                return batch;
            }
            self.ready.notified().await;
        }
    }

    /// The batch is done: confirmed or refused, the caller knows which.
    pub(super) fn settle(&self) {
        let mut state = self.state();
        let bytes: usize = state.in_flight.drain(..).map(|(message, _)| cost(&message)).sum();
        state.bytes -= bytes;
    }

    /// The connection is gone: what was in flight is the first to go with the next one. Calls `lost` with what is given up.
    pub(super) fn requeue(&self, mut lost: impl FnMut(Topic, Drop)) {
        let mut state = self.state();
        while let Some((message, attempts)) = state.in_flight.pop_back() {
            if attempts + 1 < ATTEMPTS_MAX {
                state.waiting.push_front((message, attempts + 1));
            } else {
                state.bytes -= cost(&message);
                lost(message.topic, Drop::Suspect);
            }
        }
        let some = !state.waiting.is_empty();
        drop(state);
        if some {
            self.ready.notify_one();
        }
    }

    /// Whether nothing waits and nothing is in flight.
    pub(super) fn is_empty(&self) -> bool {
        let state = self.state();
        state.waiting.is_empty() && state.in_flight.is_empty()
    }

    /// Bytes that wait or are in flight.
    pub(super) fn bytes(&self) -> usize {
        self.state().bytes
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self) -> Vec<Outgoing> {
        let mut bytes = 0;
        let mut batch = Vec::new();
        while let Some((message, attempts)) = self.waiting.pop_front() {
            bytes += cost(&message);
            // One that was in flight when a connection broke goes alone: if it is what breaks them, the others are not given up.
            let alone = attempts > 0 && !batch.is_empty();
            if alone || (bytes > BATCH_BYTES_MAX && !batch.is_empty()) || batch.len() >= BATCH_MESSAGES_MAX {
                self.waiting.push_front((message, attempts));
                break;
            }
            batch.push(message.clone());
            self.in_flight.push_back((message, attempts));
            if attempts > 0 {
                break;
            }
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::FutureExt as _;

    use super::*;
    use crate::broker::Keep;

    fn message(name: &str, bytes: usize) -> Outgoing {
        Outgoing {
            topic: Topic::new(name).expect("a topic"),
            keep: Keep::No,
            head: Bytes::new(),
            body: Bytes::from(vec![0; bytes]),
        }
    }

    fn names(batch: Option<Vec<Outgoing>>) -> Vec<String> {
        batch.unwrap_or_default().iter().map(|message| message.topic.to_string()).collect()
    }

    #[test]
    fn the_oldest_go_first_and_what_is_in_flight_stays() {
        let queue = Queue::new(1_000, 3);
        let lost = std::cell::RefCell::new(Vec::new());
        let push = |name: &str, bytes| {
            queue.push(message(name, bytes), |topic, why| lost.borrow_mut().push((topic.to_string(), why)));
        };
        push("huge", 1_000);
        push("a", 10);
        assert_eq!(names(queue.batch().now_or_never()), ["a"]);
        assert!(queue.batch().now_or_never().is_none(), "it is not taken twice");
        push("b", 10);
        push("c", 10);
        push("d", 10);
        push("e", 700);
        assert_eq!(
            *lost.borrow(),
            [
                ("huge".to_owned(), Drop::TooLarge),
                ("b".to_owned(), Drop::Full),
                ("c".to_owned(), Drop::Full),
                ("d".to_owned(), Drop::Full)
            ]
        );
        queue.requeue(|_, _| panic!("once is no suspicion"));
        assert_eq!(names(queue.batch().now_or_never()), ["a"], "alone");
        queue.settle();
        assert_eq!(names(queue.batch().now_or_never()), ["e"]);
        queue.settle();
        assert!(queue.is_empty());
        assert_eq!(queue.bytes(), 0);
    }

    #[test]
    fn what_breaks_every_connection_is_given_up_and_nothing_else() {
        let queue = Queue::new(1 << 20, 100);
        for name in ["a", "b", "c"] {
            queue.push(message(name, 1), |_, _| {});
        }
        let lost = std::cell::RefCell::new(Vec::new());
        let mut sent = Vec::new();
        for _ in 0..6 {
            let batch = names(queue.batch().now_or_never());
            if batch.first().is_some_and(|name| name == "a") {
                queue.requeue(|topic, why| lost.borrow_mut().push((topic.to_string(), why)));
            } else {
                queue.settle();
            }
            sent.push(batch.concat());
        }
        assert_eq!(sent, ["abc", "a", "a", "b", "c", ""]);
        assert_eq!(*lost.borrow(), [("a".to_owned(), Drop::Suspect)]);
        assert_eq!(queue.bytes(), 0);
    }

    #[test]
    fn a_batch_is_bounded_and_holds_one_message_at_the_least() {
        let queue = Queue::new(64 << 20, 10_000);
        queue.push(message("large", BATCH_BYTES_MAX + 1), |_, _| {});
        for _ in 0..=BATCH_MESSAGES_MAX {
            queue.push(message("small", 1), |_, _| {});
        }
        assert_eq!(names(queue.batch().now_or_never()).len(), 1);
        queue.settle();
        assert_eq!(names(queue.batch().now_or_never()).len(), BATCH_MESSAGES_MAX);
    }
}
