//! Which topics are wanted: a state, not a queue, so that nothing of it can be lost and it is as large as the caller's own.
//! Never waits and knows no broker.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::kept::Place;
use super::{Keep, Topic};

/// One subscription, from [`Interest::add`] to [`Interest::remove`]. Who subscribes to the topic again gets another one.
#[derive(Debug)]
pub(super) struct Want {
    pub(super) topic: Topic,
    pub(super) keep: Keep,
    /// Nobody wants to hear of it any more.
    ended: AtomicBool,
    /// [`super::Event::Subscribed`] was told.
    confirmed: AtomicBool,
    /// How far a topic that is kept was delivered. Outlives connections.
    pub(super) place: Mutex<Place>,
}

impl Want {
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Relaxed)
    }

    pub(super) fn is_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Relaxed)
    }

    /// Whether this is the first time.
    pub(super) fn confirm(&self) -> bool {
        !self.confirmed.swap(true, Ordering::Relaxed)
    }

    pub(super) fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What has changed for a topic.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) topic: Topic,
    /// The subscription that is wanted now.
    pub(super) want: Option<Arc<Want>>,
}

/// See the module's page.
#[derive(Debug)]
pub(super) struct Interest {
    state: Mutex<State>,
    changed: Notify,
    topics_max: usize,
}

#[derive(Debug, Default)]
struct State {
    wanted: HashMap<Topic, Arc<Want>>,
    changed: HashSet<Topic>,
}

impl Interest {
    pub(super) fn new(topics_max: usize) -> Self {
        Self { state: Mutex::default(), changed: Notify::new(), topics_max }
    }

    /// Whether there was room. A topic that is wanted already is wanted as before.
    pub(super) fn add(&self, topic: Topic, keep: Keep) -> bool {
        let mut state = self.state();
        if state.wanted.contains_key(&topic) {
            return true;
        }
        if state.wanted.len() >= self.topics_max {
            return false;
        }
        let want = Want {
            topic: topic.clone(),
            keep,
            ended: AtomicBool::new(false),
            confirmed: AtomicBool::new(false),
            place: Mutex::default(),
        };
        state.wanted.insert(topic.clone(), Arc::new(want));
        state.changed.insert(topic);
        drop(state);
        self.changed.notify_one();
        true
    }

    pub(super) fn remove(&self, topic: &str) {
        let mut state = self.state();
        let Some((topic, want)) = state.wanted.remove_entry(topic) else { return };
        want.ended.store(true, Ordering::Relaxed);
        state.changed.insert(topic);
        drop(state);
        self.changed.notify_one();
    }

    /// Everything that is wanted; what has changed until now is part of it.
    pub(super) fn all(&self) -> Vec<Arc<Want>> {
        let mut state = self.state();
        state.changed.clear();
        state.wanted.values().cloned().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.state().wanted.len()
    }

    /// Waits until something has changed, and takes at most `most` changes. Cancel-safe.
    pub(super) async fn changes(&self, most: usize) -> Vec<Change> {
        loop {
            let taken = {
                let mut state = self.state();
                let topics: Vec<_> = state.changed.iter().take(most).cloned().collect();
                let take = |topic: Topic| {
                    state.changed.remove(&topic);
                    Change { want: state.wanted.get(&topic).cloned(), topic }
                };
                topics.into_iter().map(take).collect::<Vec<_>>()
            };
            if !taken.is_empty() {
                return taken;
            }
            self.changed.notified().await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(text: &str) -> Topic {
        Topic::new(text).expect("a topic")
    }

    #[tokio::test]
    async fn changes_are_states_and_a_topic_that_is_wanted_again_is_another_subscription() {
        let interest = Interest::new(2);
        assert!(interest.add(topic("a"), Keep::Yes));
        assert!(interest.add(topic("a"), Keep::No), "it is wanted already");
        assert!(interest.add(topic("b"), Keep::No));
        assert!(!interest.add(topic("c"), Keep::No), "there is no room");
        let first = interest.changes(10).await;
        assert_eq!(first.len(), 2);
        let want = |changes: &[Change], name: &str| {
            changes.iter().find(|change| &*change.topic == name).and_then(|change| change.want.clone())
        };
        let old = want(&first, "a").expect("wanted");
        assert_eq!(old.keep, Keep::Yes);
        interest.remove("a");
        interest.remove("nobody's");
        assert!(interest.add(topic("a"), Keep::No));
        interest.remove("b");
        let second = interest.changes(10).await;
        let new = want(&second, "a").expect("wanted");
        assert!(old.has_ended() && !new.has_ended() && !Arc::ptr_eq(&old, &new));
        assert!(want(&second, "b").is_none());
        assert_eq!(interest.len(), 1);
        interest.remove("a");
        assert!(interest.all().is_empty());
        assert!(interest.add(topic("d"), Keep::No));
        let third = interest.changes(10).await;
        assert_eq!(third.len(), 1, "what all() had is no change any more");
    }
}
