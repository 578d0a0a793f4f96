//! Which channel has which number, how far each was seen, and what was missed between two connections. Pure.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::rc::Rc;

use crate::client::event::ChannelEntry;
use crate::wire::Seq;

/// Channels that are remembered: ten times what a server takes at once by default. Numbers are never reused and a server
/// does not tell when one ends, so the oldest are forgotten in a watch of many short-lived channels.
const CHANNELS_MAX: usize = 10_240;

/// What is known of a channel's samples since the connection before.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Since {
    /// Not seen before.
    New,
    /// Nothing was missed.
    Same,
    /// Samples that were published in between.
    Missed {
        /// The first of them.
        from: Seq,
        /// The last of them.
        to: Seq,
    },
    /// Its sequence started again, so what was missed cannot be told.
    Restarted {
        /// The life that was seen before.
        epoch_before: u32,
    },
}

#[derive(Clone, Debug)]
struct Known {
    name: Rc<str>,
    epoch: u32,
    /// Everything up to here has come or was told as a gap.
    reached: Seq,
}

/// The channels of the connection, and those of the one before.
#[derive(Debug, Default)]
pub(super) struct Channels {
    by_number: BTreeMap<u32, Known>,
    before: HashMap<Rc<str>, Known>,
}

impl Channels {
    /// Takes a channel of `subscribed` or `channel`; `entry.seq` is the first sequence that will come.
    pub(super) fn add(&mut self, entry: ChannelEntry) -> Since {
        if let Some(known) = self.by_number.get(&entry.channel)
            && known.epoch == entry.epoch
        {
            // Two patterns match it.
            return Since::Same;
        }
        let name: Rc<str> = entry.name.into();
        let mut reached = entry.seq.saturating_sub(1);
        let since = match self.before.remove(&name) {
            None => Since::New,
            Some(before) if before.epoch != entry.epoch => Since::Restarted { epoch_before: before.epoch },
            Some(before) if before.reached < reached => {
                Since::Missed { from: before.reached.saturating_add(1), to: reached }
            }
            Some(before) => {
                reached = before.reached;
                Since::Same
            }
        };
        if self.by_number.len() >= CHANNELS_MAX {
            self.by_number.pop_first();
        }
        self.by_number.insert(entry.channel, Known { name, epoch: entry.epoch, reached });
        since
    }

    /// The name of a number; the number itself for one that no message has named.
    pub(super) fn name(&self, channel: u32) -> Rc<str> {
        self.by_number
            .get(&channel)
            .map_or_else(|| format!("channel-{channel}").into(), |known| Rc::clone(&known.name))
    }

    /// Everything of the channel up to `seq` has come or was told as a gap.
    pub(super) fn reached(&mut self, channel: u32, seq: Seq) {
        if let Some(known) = self.by_number.get_mut(&channel) {
            known.reached = known.reached.max(seq);
        }
    }

    /// The numbers are no longer valid; where each channel stood is kept for the next connection.
    pub(super) fn disconnected(&mut self) {
        for known in std::mem::take(&mut self.by_number).into_values() {
            if self.before.len() < CHANNELS_MAX {
                self.before.insert(Rc::clone(&known.name), known);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(channel: u32, epoch: u32, seq: Seq) -> ChannelEntry {
        ChannelEntry { channel, name: "a".to_owned(), epoch, seq }
    }

    #[test]
    fn what_was_missed_is_told() {
        // Seen up to 20 in epoch 1 as channel 3; then this comes after the connection was lost.
        let rows = [
            (entry(3, 1, 21), Since::Same),
            (entry(3, 1, 22), Since::Missed { from: 21, to: 21 }),
            (entry(3, 1, 31), Since::Missed { from: 21, to: 30 }),
            (entry(3, 1, 0), Since::Same),
            (entry(9, 1, 31), Since::Missed { from: 21, to: 30 }),
            (entry(3, 2, 1), Since::Restarted { epoch_before: 1 }),
        ];
        for (after, expected) in rows {
            let mut channels = Channels::default();
            assert_eq!(channels.add(entry(3, 1, 17)), Since::New);
            channels.reached(3, 20);
            channels.reached(3, 18);
            channels.disconnected();
            assert_eq!(&*channels.name(3), "channel-3");
            assert_eq!(channels.add(after.clone()), expected, "{after:?}");
            assert_eq!(&*channels.name(after.channel), "a");
        }
    }

    #[test]
    fn a_failed_connection_in_between_forgets_nothing() {
        let mut channels = Channels::default();
        channels.add(entry(3, 1, 17));
        channels.disconnected();
        channels.disconnected();
        assert_eq!(channels.add(entry(3, 1, 18)), Since::Missed { from: 17, to: 17 });
        assert_eq!(channels.add(entry(3, 1, 18)), Since::Same);
    }

    #[test]
    fn memory_is_bounded() {
        let mut channels = Channels::default();
        let many = u32::try_from(CHANNELS_MAX).unwrap() + 10;
        for _ in 0..2 {
            for channel in 0..many {
                channels.add(ChannelEntry { channel, name: format!("c.{channel}"), epoch: 1, seq: 1 });
            }
            assert_eq!(channels.by_number.len(), CHANNELS_MAX);
            channels.disconnected();
            assert!(channels.before.len() <= CHANNELS_MAX);
        }
    }
}
