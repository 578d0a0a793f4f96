//! What a subscriber got of one channel, sample by sample, and what it was told that it would not get.

use serde_json::Value;
use tidewire::wire::proto::{Frame, Sample};

/// See the module's page.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Sequences, in the order of arrival.
    pub(crate) received: Vec<u64>,
    /// Spans with their counts.
    gaps: Vec<(u64, u64, u64)>,
    lost: u64,
}

impl Tally {
    /// Counts a frame's samples: each is newer than all before.
    pub(crate) fn take(&mut self, frame: &Frame) {
        for (seq, _) in samples(frame) {
            assert!(self.received.last().is_none_or(|last| *last < seq), "{seq} after {:?}", self.received);
            self.received.push(seq);
        }
    }

    /// Counts a `gap`.
    pub(crate) fn take_gap(&mut self, gap: &Value) {
        let [from, to, count] = ["from", "to", "count"].map(|key| gap[key].as_u64().unwrap());
        assert!(from <= to && count > 0 && count <= to - from + 1, "{gap}");
        self.gaps.push((from, to, count));
        self.lost += count;
    }

    /// Samples that came or were given up.
    pub(crate) fn accounted(&self) -> u64 {
        self.received.len() as u64 + self.lost
    }

    /// Samples that were given up.
    pub(crate) const fn lost(&self) -> u64 {
        self.lost
    }

    /// Every sample from `first` to `last` came, or lies in a span that was told; and the counts say the same.
    pub(crate) fn assert_exact(&self, first: u64, last: u64) {
        assert_eq!(self.accounted(), last - first + 1, "{:?}", self.gaps);
        let told = |seq: u64| self.gaps.iter().any(|(from, to, _)| (*from..=*to).contains(&seq));
        let mut received = self.received.iter().copied().peekable();
        for seq in first..=last {
            assert!(received.next_if_eq(&seq).is_some() || told(seq), "{seq} neither came nor is in a gap");
        }
        assert_eq!(received.next(), None, "samples outside {first} to {last}");
    }
}

/// The samples of a frame with their sequences.
pub(crate) fn samples(frame: &Frame) -> impl Iterator<Item = (u64, &Sample)> {
    let mut seq = frame.seq;
    let seqs = (0..frame.count as usize).map(move |position| {
        if position > 0 {
            seq += u64::from(frame.seq_deltas.get(position - 1).copied().unwrap_or(1));
        }
        seq
    });
    seqs.zip(frame.blocks.iter().flat_map(|block| &block.samples))
}
