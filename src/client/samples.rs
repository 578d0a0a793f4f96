//! A frame, sample by sample. Pure.

use crate::wire::{Seq, proto};

/// One sample of a frame, with what the frame and its block say of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Arrived<'f> {
    /// Its sequence in the channel.
    pub seq: Seq,
    /// The publisher's clock, nanoseconds since the Unix epoch; `None` if the publisher has no clock.
    pub source_ns: Option<u64>,
    /// The server's clock, when it read the message.
    pub received_ns: u64,
    /// The value; `None` for a kind that this client does not know.
    pub value: Option<&'f proto::sample::Value>,
}

/// The samples of a frame, in order.
pub fn samples(frame: &proto::Frame) -> impl Iterator<Item = Arrived<'_>> {
    let mut seq = frame.seq;
    let mut deltas = frame.seq_deltas.iter();
    let mut first = true;
    frame.blocks.iter().flat_map(|block| block.samples.iter().map(move |sample| (block, sample))).map(
        move |(block, sample)| {
            if !std::mem::take(&mut first) {
                seq = seq.saturating_add(deltas.next().map_or(1, |&delta| u64::from(delta)));
            }
            Arrived {
                seq,
                source_ns: (block.source_ns != 0)
                    .then(|| block.source_ns.saturating_add_signed(sample.source_delta_ns)),
                received_ns: block.received_ns,
                value: sample.value.as_ref(),
            }
        },
    )
}

/// Checks what `samples` relies on.
///
/// # Errors
/// Says what does not fit.
pub(super) fn check(frame: &proto::Frame) -> Result<(), String> {
    let found: usize = frame.blocks.iter().map(|block| block.samples.len()).sum();
    let count = usize::try_from(frame.count).unwrap_or(usize::MAX);
    let channel = frame.channel;
    if found == 0 || found != count {
        return Err(format!("a frame of channel {channel} has {found} samples and announces {count}"));
    }
    let deltas = frame.seq_deltas.len();
    if deltas != 0 && deltas != count - 1 {
        return Err(format!("a frame of channel {channel} has {count} samples and {deltas} sequence steps"));
    }
    if frame.seq == 0 || frame.seq_deltas.contains(&0) {
        return Err(format!("a frame of channel {channel} has a sequence of 0, or the same one twice"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(seq: u64, count: u32, blocks: &[&[i64]], seq_deltas: &[u32]) -> proto::Frame {
        let blocks = blocks
            .iter()
            .map(|deltas| proto::Block {
                source_ns: 1_000,
                received_ns: 2_000,
                samples: deltas
                    .iter()
                    .map(|&source_delta_ns| proto::Sample { source_delta_ns, value: None })
                    .collect(),
            })
            .collect();
        proto::Frame {
            channel: 3,
            epoch: 1,
            seq,
            count,
            flushed_ns: 0,
            blocks,
            seq_deltas: seq_deltas.to_vec(),
        }
    }

    #[test]
    fn sequences_and_times_follow_the_frame() {
        let rows: [(proto::Frame, &[(u64, u64)]); 3] = [
            (frame(5, 3, &[&[0, -1], &[7]], &[]), &[(5, 1_000), (6, 999), (7, 1_007)]),
            (frame(5, 3, &[&[0, 0, 0]], &[2, 10]), &[(5, 1_000), (7, 1_000), (17, 1_000)]),
            (
                frame(u64::MAX, 2, &[&[i64::MIN, i64::MAX]], &[]),
                &[(u64::MAX, 0), (u64::MAX, 1_000 + (1 << 63) - 1)],
            ),
        ];
        for (frame, expected) in rows {
            check(&frame).unwrap();
            let found: Vec<_> = samples(&frame).map(|s| (s.seq, s.source_ns.unwrap())).collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_block_without_a_clock_has_no_source_time() {
        let mut frame = frame(1, 1, &[&[7]], &[]);
        frame.blocks[0].source_ns = 0;
        assert_eq!(samples(&frame).next().unwrap().source_ns, None);
    }

    #[test]
    fn frames_that_do_not_add_up_are_refused() {
        let rows = [
            frame(1, 0, &[], &[]),
            frame(1, 2, &[&[0]], &[]),
            frame(1, u32::MAX, &[&[0]], &[]),
            frame(1, 3, &[&[0, 0, 0]], &[1]),
            frame(1, 2, &[&[0, 0]], &[0]),
            frame(0, 1, &[&[0]], &[]),
        ];
        for frame in rows {
            assert!(check(&frame).is_err(), "{frame:?}");
        }
    }
}
