//! Publishers who wait for what they have sent to be safe on the disk. Pure.

use std::collections::{HashMap, VecDeque};

use super::router::Publisher;
use crate::wire::{ChannelId, Seq};

/// Acks of a channel that wait for the disk. Above, one more is told what is true at once: that it was accepted. At a commit in each
/// 100 ms that is 600,000 messages a second, each with an ack of its own.
const WAITING_MAX: usize = 1 << 16;

/// An ack that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    pub(super) publisher: Publisher,
    /// What it asked with.
    pub(super) ack: u64,
    /// Sequence of its first sample.
    pub(super) seq: Seq,
    pub(super) count: u32,
}

/// See the module's page.
#[derive(Debug, Default)]
pub(super) struct Acks {
    channels: HashMap<ChannelId, VecDeque<Waiting>>,
}

impl Acks {
    /// Has one wait; `false` if there are too many.
    #[must_use]
    pub(super) fn wait(&mut self, channel: ChannelId, waiting: Waiting) -> bool {
        let queue = self.channels.entry(channel).or_default();
        let room = queue.len() < WAITING_MAX;
        if room {
            queue.push_back(waiting);
        }
        room
    }

    /// Takes the oldest one of a channel whose last sample is no newer than `upto`.
    pub(super) fn take(&mut self, channel: ChannelId, upto: Seq) -> Option<Waiting> {
        let queue = self.channels.get_mut(&channel)?;
        let taken = queue.pop_front_if(|next| next.seq + u64::from(next.count) <= upto.saturating_add(1));
        if queue.is_empty() {
            self.channels.remove(&channel);
        }
        taken
    }

    /// The channels that somebody waits for.
    pub(super) fn channels(&self) -> Vec<ChannelId> {
        self.channels.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acks_come_in_order_when_all_of_their_samples_are_safe() {
        let channel = ChannelId(1);
        let publisher = Publisher { worker: 0, member: 0, connection: 1 };
        let waiting = |ack, seq, count| Waiting { publisher, ack, seq, count };
        let mut acks = Acks::default();
        for (ack, seq, count) in [(7, 1, 3), (8, 4, 1), (9, 5, 10)] {
            assert!(acks.wait(channel, waiting(ack, seq, count)));
        }
        assert_eq!(acks.take(channel, 2), None);
        assert_eq!(acks.take(channel, 4).map(|waiting| waiting.ack), Some(7));
        assert_eq!(acks.take(channel, 4).map(|waiting| waiting.ack), Some(8));
        assert_eq!(acks.take(channel, 4), None);
        assert_eq!(acks.channels(), [channel]);
        assert_eq!(acks.take(channel, Seq::MAX).map(|waiting| waiting.ack), Some(9));
        assert_eq!((acks.take(channel, Seq::MAX), acks.channels()), (None, vec![]));
        let full = (0..).take_while(|n| acks.wait(channel, waiting(*n, 1, 1))).count();
        assert_eq!(full, WAITING_MAX);
    }
}
