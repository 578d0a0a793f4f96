//! The policies at their limits, partial writes, and the ledger after everything.

use super::memory::FrameMemory;
use super::*;
use crate::clock::Clock;
use crate::wire::TIMED_SAMPLES;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

const SECOND: Duration = Duration::from_secs(1);
const CHANNEL: ChannelId = ChannelId(3);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn options(policy: Policy) -> SlotOptions {
    let hole = if policy == Policy::Latest { GapReason::Conflated } else { GapReason::Slow };
    SlotOptions { policy, max_age: SECOND, hole }
}

/// A frame of the samples from `first` to `last`, with as many bytes as that.
fn frame(first: Seq, last: Seq, bytes: usize, now: Now) -> Rc<HeldFrame> {
    let count = u32::try_from(last + 1 - first).unwrap();
    thin_frame(first, last, count, bytes, now)
}

fn thin_frame(first: Seq, last: Seq, count: u32, bytes: usize, now: Now) -> Rc<HeldFrame> {
    // Each byte tells which frame it is of.
    let bytes = Bytes::from(vec![u8::try_from(first % 100).unwrap(); bytes]);
    let (flushed_at, received_at) = (now.at, [now.at; TIMED_SAMPLES]);
    held(Frame {
        bytes,
        channel: CHANNEL,
        first,
        last,
        count,
        head_bytes: 0,
        replayed: false,
        flushed_at,
        received_at,
    })
}

fn held(frame: Frame) -> Rc<HeldFrame> {
    FrameMemory::new(usize::MAX).hold(frame)
}

/// An outbox with small limits and a clock.
struct Bench {
    outbox: Outbox,
    now: Now,
    delivered: Vec<Seq>,
}

impl Bench {
    fn new(data_bytes_max: usize, data_frames_max: usize, control_bytes_max: usize) -> Self {
        let limits =
            OutboxLimits { data_bytes_max, data_frames_max, control_bytes_max, ..OutboxLimits::default() };
        Self { outbox: Outbox::new(limits), now: Clock::new().now(), delivered: Vec::new() }
    }

    fn open(&mut self, policy: Policy) -> Slot {
        self.outbox.open_slot(CHANNEL, options(policy), 1)
    }

    fn push(&mut self, slot: Slot, first: Seq, last: Seq, bytes: usize) -> Result<(), Overflow> {
        self.outbox.push_data(slot, &frame(first, last, bytes, self.now), self.now)
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.plus(time);
    }

    /// Writes up to `bytes`; returns what a socket would have got.
    fn write(&mut self, bytes: usize) -> Vec<u8> {
        let mut offered = Vec::new();
        self.outbox.drop_stale(self.now);
        self.outbox.gather(|message| {
            offered.extend_from_slice(message);
            if offered.len() >= bytes { Take::Stop } else { Take::More }
        });
        offered.truncate(bytes);
        let delivered = &mut self.delivered;
        self.outbox.advance(offered.len(), |frame| delivered.push(frame.first));
        offered
    }

    /// Polls, writes everything, and returns the gaps that were told.
    fn gaps(&mut self) -> Vec<(u64, u64, u64, String)> {
        self.outbox.poll(self.now).unwrap();
        let mut gaps = Vec::new();
        self.outbox.gather(|message| {
            if message[0] == 0x81 {
                let text: serde_json::Value = serde_json::from_slice(&message[2..]).unwrap();
                assert_eq!(text["channel"], CHANNEL.0);
                let number = |field: &str| text[field].as_u64().unwrap();
                let reason = text["reason"].as_str().unwrap().to_owned();
                gaps.push((number("from"), number("to"), number("count"), reason));
            }
            Take::More
        });
        self.write(usize::MAX);
        gaps
    }

    /// Published, delivered, conflated, dropped and queued.
    fn ledger(&self, slot: Slot) -> [u64; 5] {
        let Ledger { published, delivered, conflated, dropped, queued, .. } = self.outbox.ledger(slot);
        assert_eq!(published, delivered + conflated + dropped + queued);
        [published, delivered, conflated, dropped, queued]
    }
}

fn slow(from: u64, to: u64, count: u64) -> (u64, u64, u64, String) {
    (from, to, count, "slow".into())
}

#[test]
fn overflow_follows_the_policy_at_each_limit() {
    use Policy::{Disconnect, DropNewest, DropOldest, Latest};
    // The outbox takes 3 frames or 300 bytes. Each row pushes one frame of two samples for each size.
    type Row = (Policy, &'static [usize], bool, &'static [Seq], [u64; 5]);
    let rows: [Row; 13] = [
        (DropOldest, &[10, 10, 10], true, &[1, 3, 5], [6, 6, 0, 0, 0]),
        (DropOldest, &[10, 10, 10, 10], true, &[3, 5, 7], [8, 6, 0, 2, 0]),
        (DropOldest, &[100, 200], true, &[1, 3], [4, 4, 0, 0, 0]),
        (DropOldest, &[100, 201], true, &[3], [4, 2, 0, 2, 0]),
        (DropOldest, &[100, 100, 300], true, &[5], [6, 2, 0, 4, 0]),
        (DropOldest, &[100, 301, 10], true, &[5], [6, 2, 0, 4, 0]),
        (DropNewest, &[10, 10, 10, 10], true, &[1, 3, 5], [8, 6, 0, 2, 0]),
        (DropNewest, &[100, 200, 1], true, &[1, 3], [6, 4, 0, 2, 0]),
        (DropNewest, &[100, 201, 1], true, &[1, 5], [6, 4, 0, 2, 0]),
        (Disconnect, &[10, 10, 10], true, &[1, 3, 5], [6, 6, 0, 0, 0]),
        (Disconnect, &[10, 10, 10, 10], false, &[1, 3, 5], [8, 6, 0, 2, 0]),
        (Latest, &[10, 10, 10, 10], true, &[7], [8, 2, 6, 0, 0]),
        (Latest, &[300, 300, 300], true, &[5], [6, 2, 4, 0, 0]),
    ];
    for (policy, sizes, fits, delivered, ledger) in rows {
        let mut bench = Bench::new(300, 3, 10_000);
        let slot = bench.open(policy);
        let mut outcome = Ok(());
        for (first, bytes) in (1..).step_by(2).zip(sizes) {
            let pushed = bench.push(slot, first, first + 1, *bytes);
            outcome = outcome.and(pushed);
            assert!(bench.outbox.data_bytes() <= 300 && bench.outbox.data_frames() <= 3);
            bench.ledger(slot);
        }
        assert_eq!(outcome.is_ok(), fits, "{policy:?} {sizes:?}");
        bench.write(usize::MAX);
        assert_eq!(bench.delivered, delivered, "{policy:?} {sizes:?}");
        assert_eq!(bench.ledger(slot), ledger, "{policy:?} {sizes:?}");
        assert_eq!((bench.outbox.data_bytes(), bench.outbox.data_frames()), (0, 0));
        let totals = *bench.outbox.totals();
        assert_eq!(totals.samples_delivered, ledger[1]);
        assert_eq!((totals.conflated, totals.dropped_overflow), (ledger[2], ledger[3]));
        let told: u64 = bench.gaps().iter().map(|(_, _, count, _)| count).sum();
        assert_eq!(told, ledger[2] + ledger[3], "{policy:?} {sizes:?}: every loss is told");
    }
}

#[test]
fn a_frame_older_than_the_subscription_takes_is_a_gap() {
    for (age, delivered, dropped) in [(1_000, 2, 0), (1_001, 0, 2)] {
        for polled in [false, true] {
            let mut bench = Bench::new(1_000, 10, 1_000);
            let slot = bench.open(Policy::DropOldest);
            bench.push(slot, 1, 2, 10).unwrap();
            bench.pass(ms(age));
            bench.push(slot, 3, 3, 10).unwrap();
            // What is too old is found by the next turn of the writer, or while it writes.
            if !polled {
                bench.write(usize::MAX);
            }
            let told = bench.gaps();
            assert_eq!(bench.ledger(slot), [3, delivered + 1, 0, dropped, 0], "{age} ms");
            let gaps = if dropped == 0 { Vec::new() } else { vec![slow(1, 2, 2)] };
            assert_eq!(told, gaps);
            assert_eq!(bench.outbox.totals().dropped_age, dropped);
        }
    }
}

#[test]
fn a_full_control_lane_is_an_overflow_and_data_does_not_fill_it() {
    let mut bench = Bench::new(1_000, 10, 100);
    let slot = bench.open(Policy::DropOldest);
    bench.push(slot, 1, 1, 900).unwrap();
    bench.outbox.push_control(Bytes::from(vec![0x81; 60])).unwrap();
    assert_eq!(bench.outbox.push_control(Bytes::from(vec![0x81; 41])), Err(Overflow));
    bench.outbox.push_control(Bytes::from(vec![0x82; 40])).unwrap();
    // A message that is partly written still counts.
    bench.write(59);
    assert_eq!(bench.outbox.push_control(Bytes::from(vec![0x81; 1])), Err(Overflow));
    bench.write(1);
    bench.outbox.push_control(Bytes::from(vec![0x81; 60])).unwrap();
    // The notice of a gap waits for its turn instead of ending the connection.
    bench.push(slot, 3, 3, 10).unwrap();
    bench.outbox.poll(bench.now).unwrap();
    assert_eq!(bench.outbox.totals().gap_notices, 0);
    // But always for the last message.
    bench.outbox.close(Bytes::from_static(b"\x88\0"));
    assert!(bench.write(usize::MAX).ends_with(b"\x88\0"));
}

#[test]
fn the_stream_is_the_same_wherever_a_write_ends() {
    let messages = |bench: &mut Bench| {
        let (a, b) = (bench.open(Policy::DropOldest), bench.open(Policy::Latest));
        bench.push(a, 1, 2, 7).unwrap();
        bench.outbox.push_control(Bytes::from_static(b"control")).unwrap();
        bench.push(b, 10, 10, 5).unwrap();
        bench.outbox.push_control(Bytes::from_static(b"c")).unwrap();
        bench.push(a, 3, 3, 1).unwrap();
        (a, b)
    };
    let mut whole = Bench::new(1_000, 10, 1_000);
    messages(&mut whole);
    let expected = whole.write(usize::MAX);
    assert_eq!(expected, [&b"controlc"[..], &[1; 7], &[10; 5], &[3; 1]].concat());
    for first in 0..=expected.len() {
        for second in 0..=expected.len() - first {
            let mut bench = Bench::new(1_000, 10, 1_000);
            let (a, b) = messages(&mut bench);
            let stream = [bench.write(first), bench.write(second), bench.write(usize::MAX)].concat();
            assert_eq!(stream, expected, "{first} bytes, then {second}");
            assert_eq!(bench.delivered, [1, 10, 3]);
            assert_eq!(bench.ledger(a), [3, 3, 0, 0, 0]);
            assert_eq!(bench.ledger(b), [10, 1, 9, 0, 0]);
            assert!(!bench.outbox.has_output());
            let totals = bench.outbox.totals();
            assert_eq!((totals.control_messages, totals.frames_delivered), (2, 3));
            assert_eq!(totals.bytes, expected.len() as u64);
        }
    }
}

#[test]
fn what_was_begun_goes_before_control() {
    let mut bench = Bench::new(1_000, 10, 1_000);
    let slot = bench.open(Policy::DropOldest);
    bench.push(slot, 1, 1, 4).unwrap();
    bench.push(slot, 2, 2, 4).unwrap();
    assert_eq!(bench.write(1), [1]);
    assert!(bench.outbox.has_output(), "a message has to be finished");
    bench.outbox.push_control(Bytes::from_static(b"c")).unwrap();
    // It is too old by now, but its first byte is on the wire.
    bench.pass(SECOND * 2);
    assert_eq!(bench.write(usize::MAX), b"\x01\x01\x01c");
    assert_eq!(bench.ledger(slot), [2, 1, 0, 1, 0]);
}

#[test]
fn a_subscription_that_ends_leaves_no_frame_but_the_one_that_was_begun() {
    for written in 0..=9 {
        let mut bench = Bench::new(1_000, 10, 1_000);
        let (ended, other) = (bench.open(Policy::DropOldest), bench.open(Policy::DropOldest));
        bench.push(ended, 1, 2, 8).unwrap();
        bench.push(other, 1, 1, 3).unwrap();
        bench.push(ended, 3, 3, 8).unwrap();
        bench.push(ended, 7, 7, 8).unwrap();
        let mut stream = bench.write(written);
        let ledger = bench.outbox.close_slot(ended);
        let delivered = if written == 0 { 0 } else { 2 };
        assert_eq!((ledger.published, ledger.delivered, ledger.queued), (7, delivered, 0), "{written}");
        assert_eq!(ledger.dropped, 7 - delivered);
        assert_eq!(bench.outbox.totals().samples_delivered, delivered, "{written}");
        // The place is another's now.
        let next = bench.open(Policy::DropOldest);
        assert_eq!(next, ended);
        assert_eq!(bench.gaps(), [], "what was lost to it is no news of the next");
        stream.extend(bench.write(usize::MAX));
        assert_eq!(bench.ledger(next), [0; 5]);
        assert_eq!(bench.ledger(other), [1, 1, 0, 0, 0]);
        assert_eq!((bench.outbox.data_bytes(), bench.outbox.data_frames()), (0, 0));
        assert!(!bench.outbox.has_output());
        // Frames that were on their way to it.
        bench.outbox.close_slot(next);
        bench.push(next, 8, 8, 5).unwrap();
        assert!(!bench.outbox.has_output());
    }
}

#[test]
fn the_latest_takes_the_place_of_the_one_that_waits() {
    let mut bench = Bench::new(100, 10, 1_000);
    let (latest, other) = (bench.open(Policy::Latest), bench.open(Policy::DropOldest));
    bench.push(latest, 1, 1, 10).unwrap();
    bench.push(other, 1, 1, 10).unwrap();
    bench.push(latest, 2, 4, 20).unwrap();
    assert_eq!(bench.outbox.data_frames(), 2);
    assert_eq!(bench.ledger(latest), [4, 0, 1, 0, 3]);
    // In the old place: before the other one's.
    assert_eq!(bench.write(21)[..21], [[2; 20].as_slice(), &[1]].concat());
    // One that was begun cannot be replaced.
    bench.push(latest, 5, 5, 10).unwrap();
    bench.write(10);
    bench.push(latest, 6, 6, 10).unwrap();
    bench.push(latest, 7, 7, 10).unwrap();
    assert_eq!(bench.ledger(latest), [7, 3, 2, 0, 2]);
    bench.write(usize::MAX);
    assert_eq!(bench.delivered, [2, 1, 5, 7]);
    assert_eq!(bench.gaps(), [(1, 6, 2, "conflated".into())]);
}

#[test]
fn a_latest_frame_that_outgrows_its_place_keeps_the_bound() {
    let mut bench = Bench::new(100, 10, 1_000);
    let (latest, other) = (bench.open(Policy::Latest), bench.open(Policy::DropOldest));
    bench.push(latest, 1, 1, 10).unwrap();
    bench.push(other, 1, 1, 80).unwrap();
    bench.push(latest, 2, 2, 90).unwrap();
    assert_eq!(bench.outbox.data_bytes(), 90);
    assert_eq!(bench.ledger(latest), [2, 0, 1, 0, 1]);
    assert_eq!(bench.ledger(other), [1, 0, 0, 1, 0]);
    // One larger than the outbox is lost, as for every policy.
    bench.push(latest, 3, 3, 101).unwrap();
    assert_eq!(bench.ledger(latest), [3, 0, 2, 1, 0]);
    bench.push(latest, 4, 4, 10).unwrap();
    bench.write(usize::MAX);
    assert_eq!(bench.delivered, [4]);
}

#[test]
fn places_of_dropped_frames_do_not_pile_up() {
    let mut bench = Bench::new(1 << 20, 8, 1 << 20);
    let (kept, latest) = (bench.open(Policy::DropNewest), bench.open(Policy::Latest));
    let lossy = bench.open(Policy::DropOldest);
    // Nobody reads, and this one may not be dropped.
    bench.push(kept, 1, 1, 10).unwrap();
    for seq in 1..10_000 {
        bench.push(lossy, seq, seq, 10).unwrap();
        bench.push(latest, seq, seq, 10).unwrap();
        assert!(bench.outbox.data.len() <= 2 * 8 + REMOVED_MAX + 1, "{}", bench.outbox.data.len());
    }
    assert_eq!(bench.ledger(kept), [1, 0, 0, 0, 1]);
    assert_eq!(bench.ledger(latest)[0], 9_999);
    assert_eq!(bench.ledger(latest)[4], 1);
    bench.write(usize::MAX);
    assert_eq!(bench.delivered[0], 1);
    assert_eq!(bench.delivered.last(), Some(&9_999));
}

#[test]
fn gaps_are_merged_and_told_at_most_ten_times_a_second() {
    let mut bench = Bench::new(1_000, 1, 1 << 20);
    let slot = bench.open(Policy::DropOldest);
    let mut told = Vec::new();
    let start = bench.now;
    // A frame each millisecond, of which the one before is dropped each time; the connection polls as often.
    for seq in 1..=1_000 {
        bench.push(slot, seq, seq, 10).unwrap();
        let notices = bench.outbox.totals().gap_notices;
        bench.outbox.poll(bench.now).unwrap();
        if bench.outbox.totals().gap_notices > notices {
            let mut control = 0;
            bench.outbox.gather(|message| {
                control += if message[0] == 0x81 { message.len() } else { 0 };
                Take::More
            });
            bench.write(control);
            told.push(u64::try_from((bench.now.at - start.at).as_millis()).unwrap());
        }
        bench.pass(ms(1));
    }
    assert!(told.windows(2).all(|pair| pair[1] - pair[0] >= 100), "{told:?}");
    assert_eq!(told.len(), 10, "{told:?}");
    assert_eq!(bench.outbox.totals().gap_notices, 10);
    bench.pass(GAP_NOTICE_INTERVAL);
    let last = bench.gaps();
    assert_eq!(last.len(), 1);
    assert_eq!(last[0].1, 999, "the rest of them, merged");
    assert_eq!(bench.ledger(slot), [1_000, 1, 0, 999, 0]);
    assert_eq!(bench.outbox.gap_due(), None);
}

#[test]
fn holes_are_told_by_their_span_and_reason() {
    // Frames as first, last and count; then the gap that is told, for a slot that began at 1.
    type Row = (GapReason, &'static [(Seq, Seq, u32)], Option<(u64, u64, u64)>);
    let rows: [Row; 6] = [
        (GapReason::Slow, &[(1, 3, 3)], None),
        (GapReason::Slow, &[(1, 3, 3), (6, 7, 2)], Some((4, 5, 2))),
        (GapReason::Rate, &[(1, 9, 3)], Some((1, 9, 6))),
        (GapReason::Conflated, &[(5, 5, 1)], Some((1, 4, 4))),
        (GapReason::Rate, &[(3, 3, 1), (6, 10, 2)], Some((1, 10, 7))),
        (GapReason::Slow, &[(1, 2, 2), (1, 2, 2)], None),
    ];
    for (hole, frames, expected) in rows {
        let mut bench = Bench::new(1_000, 10, 1_000);
        let slot = bench.outbox.open_slot(CHANNEL, SlotOptions { hole, ..options(Policy::DropOldest) }, 1);
        for (first, last, count) in frames {
            let frame = thin_frame(*first, *last, *count, 10, bench.now);
            bench.outbox.push_data(slot, &frame, bench.now).unwrap();
        }
        let gaps: Vec<_> = bench.gaps().into_iter().map(|(from, to, count, _)| (from, to, count)).collect();
        assert_eq!(gaps, expected.into_iter().collect::<Vec<_>>(), "{frames:?}");
        let [published, delivered, conflated, dropped, _] = bench.ledger(slot);
        let lost = expected.map_or(0, |(_, _, count)| count);
        let (as_slow, as_thin) = if hole == GapReason::Slow { (lost, 0) } else { (0, lost) };
        assert_eq!((dropped, conflated, published), (as_slow, as_thin, delivered + lost), "{frames:?}");
    }
}

#[test]
fn a_head_tells_of_the_last_frame_that_was_lost() {
    let mut bench = Bench::new(1_000, 10, 1_000);
    let slot = bench.open(Policy::DropOldest);
    bench.push(slot, 1, 2, 10).unwrap();
    bench.outbox.note_head(slot, 2, bench.now);
    assert_eq!(bench.gaps(), []);
    bench.outbox.note_head(slot, 5, bench.now);
    bench.outbox.note_head(slot, 4, bench.now);
    bench.pass(GAP_NOTICE_INTERVAL);
    assert_eq!(bench.gaps(), [slow(3, 5, 3)]);
    assert_eq!(bench.ledger(slot), [5, 2, 0, 3, 0]);
    assert_eq!(bench.outbox.next_seq(slot), 6);
}

#[test]
fn options_change_with_what_comes_next() {
    let mut bench = Bench::new(1_000, 2, 1_000);
    let slot = bench.outbox.open_slot(CHANNEL, options(Policy::Latest), 1);
    bench.outbox.start_slot(slot, options(Policy::Latest), 5);
    bench.push(slot, 7, 7, 10).unwrap();
    // The old class left out 8 and 9.
    bench.outbox.switch_slot(slot, options(Policy::DropNewest), 10, bench.now);
    bench.push(slot, 10, 10, 10).unwrap();
    bench.push(slot, 11, 11, 10).unwrap();
    assert_eq!(bench.ledger(slot), [7, 0, 4, 1, 2]);
    // Back again: the frames that wait stay, and only a new one can be replaced.
    bench.outbox.switch_slot(slot, options(Policy::Latest), 12, bench.now);
    bench.write(10);
    bench.push(slot, 12, 12, 10).unwrap();
    bench.push(slot, 13, 13, 10).unwrap();
    bench.outbox.set_options(slot, SlotOptions { max_age: ms(1), ..options(Policy::Latest) });
    bench.write(usize::MAX);
    assert_eq!(bench.delivered, [7, 10, 13]);
    assert_eq!(bench.ledger(slot), [9, 3, 5, 1, 0]);
    assert_eq!(bench.gaps(), [(5, 12, 5, "conflated".into()), slow(11, 11, 1)]);
}

#[test]
fn closing_keeps_what_was_begun_and_says_goodbye() {
    for written in [0, 1, 9] {
        let mut bench = Bench::new(1_000, 10, 40);
        let slot = bench.open(Policy::DropOldest);
        bench.push(slot, 1, 1, 10).unwrap();
        bench.push(slot, 2, 3, 10).unwrap();
        let begun = bench.write(written);
        bench.outbox.push_control(Bytes::from(vec![0x81; 40])).unwrap();
        bench.outbox.close(Bytes::from_static(b"bye"));
        let stream = [begun, bench.write(usize::MAX)].concat();
        let data = if written == 0 { 0 } else { 10 };
        assert_eq!(stream, [&vec![1; data][..], &[0x81; 40], b"bye"].concat());
        let delivered = u64::from(written > 0);
        assert_eq!(bench.ledger(slot), [3, delivered, 0, 3 - delivered, 0]);
        assert_eq!(bench.outbox.totals().dropped_other, 3 - delivered);
        assert!(!bench.outbox.has_output());
    }
}

#[test]
fn data_and_gaps_are_held_until_a_request_is_answered() {
    let mut bench = Bench::new(1_000, 10, 1_000);
    let slot = bench.open(Policy::DropOldest);
    bench.push(slot, 1, 1, 3).unwrap();
    bench.push(slot, 3, 3, 3).unwrap();
    assert_eq!(bench.write(1), [1]);
    bench.outbox.hold_data();
    bench.outbox.poll(bench.now).unwrap();
    bench.outbox.push_control(Bytes::from_static(b"c")).unwrap();
    assert_eq!(bench.write(usize::MAX), b"\x01\x01c", "what was begun is finished");
    assert!(!bench.outbox.has_output() && !bench.outbox.is_waiting());
    bench.outbox.release_data();
    assert!(bench.outbox.has_output() && bench.outbox.is_waiting());
    assert_eq!(bench.gaps(), [slow(2, 2, 1)]);
    assert_eq!(bench.delivered, [1, 3]);
}

#[test]
fn depth_and_age_are_of_what_waits() {
    let mut bench = Bench::new(1_000, 10, 1_000);
    let slot = bench.open(Policy::DropOldest);
    assert_eq!(bench.outbox.oldest_age(bench.now), Duration::ZERO);
    bench.push(slot, 1, 1, 10).unwrap();
    bench.pass(ms(5));
    bench.push(slot, 2, 2, 10).unwrap();
    assert_eq!(bench.outbox.oldest_age(bench.now), ms(5));
    bench.write(3);
    assert_eq!((bench.outbox.data_frames(), bench.outbox.data_bytes()), (2, 20));
    assert_eq!(bench.outbox.oldest_age(bench.now), ms(5), "what was begun waits, too");
    bench.write(7);
    assert_eq!(bench.outbox.oldest_age(bench.now), Duration::ZERO);
    assert_eq!((bench.outbox.data_frames(), bench.outbox.data_bytes()), (1, 10));
}

#[test]
fn a_reader_that_is_behind_gets_what_is_new() {
    // (policy, what is written after a loss, then after a second with nothing written, then when it has kept up for long)
    let fresh: [&[Seq]; 3] = [&[21, 22, 23, 24, 25], &[30], &[31, 32, 33]];
    let old: [&[Seq]; 3] = [&[16, 17, 18, 19, 20, 21, 22, 23, 24, 25], &[26, 27, 28, 29, 30], &[31, 32, 33]];
    for (policy, expected) in
        [(Policy::DropOldest, fresh), (Policy::DropNewest, old), (Policy::Disconnect, old)]
    {
        let mut bench = Bench::new(10_000, 100, 1_000);
        let slot = bench.open(policy);
        let written = |bench: &mut Bench| {
            bench.outbox.poll(bench.now).unwrap();
            bench.write(usize::MAX);
            std::mem::take(&mut bench.delivered)
        };
        // A pause that is shorter than the maximal age costs nothing.
        for seq in 1..=10 {
            bench.push(slot, seq, seq, 10).unwrap();
            bench.pass(ms(90));
        }
        assert_eq!(written(&mut bench), (1..=10).collect::<Vec<_>>());
        // A longer one costs the oldest, and then everything but the newest.
        for seq in 11..=15 {
            bench.push(slot, seq, seq, 10).unwrap();
        }
        bench.pass(SECOND);
        for seq in 16..=25 {
            bench.push(slot, seq, seq, 10).unwrap();
            bench.pass(ms(10));
        }
        assert_eq!(written(&mut bench), expected[0], "{policy:?}");
        for seq in 26..=30 {
            bench.push(slot, seq, seq, 10).unwrap();
        }
        bench.pass(ms(500));
        // The newest stays, however long the stream pauses within the maximal age.
        assert_eq!(written(&mut bench), expected[1], "{policy:?}");
        bench.pass(BEHIND_FOR);
        for seq in 31..=33 {
            bench.push(slot, seq, seq, 10).unwrap();
        }
        bench.pass(ms(500));
        assert_eq!(written(&mut bench), expected[2], "{policy:?}");
        let lost = if policy == Policy::DropOldest { 5 + 5 + 4 } else { 5 };
        assert_eq!(bench.ledger(slot), [33, 33 - lost, 0, lost, 0], "{policy:?}");
    }
}

/// Outboxes of one worker that share its frames.
struct Crowd {
    memory: FrameMemory,
    outboxes: Vec<(Outbox, Slot, Policy)>,
    next: Seq,
    now: Now,
}

impl Crowd {
    fn new(bytes_max: usize, policies: &[Policy]) -> Self {
        let outboxes = policies.iter().map(|&policy| {
            let mut outbox = Outbox::new(OutboxLimits { data_frames_max: 8, ..OutboxLimits::default() });
            let slot = outbox.open_slot(CHANNEL, options(policy), 1);
            (outbox, slot, policy)
        });
        let outboxes = outboxes.collect();
        Self { memory: FrameMemory::new(bytes_max), outboxes, next: 1, now: Clock::new().now() }
    }

    /// A frame of one sample for all.
    fn push(&mut self, bytes: usize) {
        let frame = frame(self.next, self.next, bytes, self.now);
        let frame = self.memory.hold(Frame::clone(&frame));
        self.next += 1;
        for (outbox, slot, _) in &mut self.outboxes {
            // One that has to end is still accounted for.
            let _ = outbox.push_data(*slot, &frame, self.now);
        }
    }

    fn write(&mut self, which: usize, bytes: usize) {
        let outbox = &mut self.outboxes[which].0;
        let mut offered = 0;
        outbox.gather(|message| {
            offered += message.len();
            Take::More
        });
        outbox.advance(offered.min(bytes), |_| ());
    }
}

#[test]
fn what_all_take_together_goes_by_age_under_each_policy() {
    use Policy::{Disconnect, DropNewest, DropOldest, Latest};
    for (policy, stays, ledger) in [
        (DropOldest, 2, [4, 0, 0, 2, 2]),
        (DropNewest, 2, [4, 0, 0, 2, 2]),
        (Disconnect, 2, [4, 0, 0, 2, 2]),
        (Latest, 1, [4, 0, 3, 0, 1]),
    ] {
        let mut crowd = Crowd::new(usize::MAX, &[policy]);
        for _ in 0..4 {
            crowd.push(100);
            crowd.memory.begin_generation();
        }
        let outbox = &mut crowd.outboxes[0].0;
        assert_eq!(outbox.shed(1, crowd.now).is_err(), policy == Disconnect, "{policy:?}");
        let Ledger { published, delivered, conflated, dropped, queued, .. } = outbox.ledger(0);
        assert_eq!([published, delivered, conflated, dropped, queued], ledger, "{policy:?}");
        assert_eq!((outbox.data_frames(), outbox.data_bytes()), (stays, stays * 100));
        assert_eq!(outbox.totals().dropped_memory, ledger[3]);
        assert_eq!(outbox.shed(1, crowd.now), Ok(()), "nothing is left of it");
    }
}

#[test]
fn what_was_begun_is_not_dropped_and_is_told() {
    let mut crowd = Crowd::new(usize::MAX, &[Policy::DropOldest]);
    for _ in 0..3 {
        crowd.push(100);
        crowd.memory.begin_generation();
    }
    crowd.write(0, 50);
    let outbox = &mut crowd.outboxes[0].0;
    assert_eq!(outbox.shed(1, crowd.now), Ok(()));
    assert_eq!((outbox.totals().dropped_memory, outbox.data_frames()), (1, 2));
    assert!(outbox.is_stuck(0) && outbox.is_stuck(5));
    crowd.write(0, 150);
    let outbox = &crowd.outboxes[0].0;
    assert!(!outbox.is_stuck(5));
    assert_eq!((outbox.totals().samples_delivered, crowd.memory.bytes()), (2, 0));
}

#[test]
fn a_newer_frame_in_an_old_place_hides_nothing_from_shedding() {
    let memory = FrameMemory::new(usize::MAX);
    let now = Clock::new().now();
    let mut outbox = Outbox::new(OutboxLimits::default());
    let latest = outbox.open_slot(CHANNEL, options(Policy::Latest), 1);
    let other = outbox.open_slot(ChannelId(4), options(Policy::DropOldest), 1);
    for (slot, seq) in [(latest, 1), (other, 1), (latest, 2), (other, 2)] {
        let frame = memory.hold(Frame::clone(&frame(seq, seq, 100, now)));
        outbox.push_data(slot, &frame, now).unwrap();
        memory.begin_generation();
    }
    assert_eq!(outbox.shed(1, now), Ok(()));
    assert_eq!((outbox.ledger(latest).dropped, outbox.ledger(other).dropped), (0, 1));
    assert_eq!((outbox.ledger(latest).queued, outbox.ledger(other).queued), (1, 1));
}

proptest! {
    /// What is held is counted once. After shedding up to a cutoff, enough is freed, or what is left of that age was begun; what
    /// stays is newer than all that went; every loss is told, and the ledgers hold.
    #[test]
    fn shedding_frees_what_is_oldest(
        steps in vec((0..3_u8, 0..4_usize, 50..2_000_usize), 1..80),
        policies in vec(select(&[Policy::DropOldest, Policy::DropNewest, Policy::Disconnect, Policy::Latest][..]), 4),
        wanted in 1..6_usize,
    ) {
        let mut crowd = Crowd::new(16 << 10, &policies);
        for (kind, which, bytes) in steps {
            match kind {
                0 => crowd.write(which, bytes),
                1 => crowd.memory.begin_generation(),
                _ => crowd.push(bytes),
            }
            let mut held: Vec<&Rc<HeldFrame>> = Vec::new();
            for (outbox, ..) in &crowd.outboxes {
                held.extend(outbox.data.iter().filter_map(|entry| entry.frame.as_ref()));
                if let Some(Partial { item: Item::Data(_, frame), .. }) = &outbox.partial {
                    held.push(frame);
                }
            }
            held.sort_by_key(|frame| Rc::as_ptr(frame));
            held.dedup_by_key(|frame| Rc::as_ptr(frame));
            let content: usize = held.iter().map(|frame| frame.bytes.len()).sum();
            let overhead = crowd.memory.bytes() - content;
            prop_assert!(overhead == 0 || overhead.is_multiple_of(held.len()), "one overhead for each frame");
        }
        let before = crowd.memory.bytes();
        let excess = before / wanted;
        let Some(upto) = crowd.memory.cutoff(excess.max(1), None) else { return Ok(()) };
        for (outbox, ..) in &mut crowd.outboxes {
            let _ = outbox.shed(upto, crowd.now);
        }
        let begun = crowd.outboxes.iter().any(|(outbox, ..)| outbox.is_stuck(upto));
        let is_last = crowd.memory.cutoff(1, Some(upto)).is_none();
        prop_assert!(crowd.memory.bytes() + excess <= before || begun || is_last);
        for (outbox, slot, _) in &mut crowd.outboxes {
            let waits = outbox.data.iter().filter_map(|entry| entry.frame.as_ref());
            prop_assert!(waits.clone().all(|frame| frame.generation() > upto));
            let ledger = outbox.ledger(*slot);
            let gaps = &outbox.slots[*slot as usize].gaps;
            let told: u64 = gaps.iter().map(|(_, span)| span.count).sum();
            prop_assert_eq!(told, ledger.dropped + ledger.conflated);
            prop_assert_eq!(outbox.totals().dropped(), ledger.dropped);
        }
    }
}

/// A mark of the channel, as the end of a replay.
fn mark(next: Seq, now: Now) -> Rc<HeldFrame> {
    held(Frame {
        bytes: Bytes::from_static(b"mark"),
        channel: CHANNEL,
        first: next,
        last: next - 1,
        count: 0,
        head_bytes: 0,
        replayed: true,
        flushed_at: now.at,
        received_at: [now.at; TIMED_SAMPLES],
    })
}

#[test]
fn a_mark_keeps_its_place_whatever_is_dropped_around_it() {
    for policy in [Policy::DropOldest, Policy::DropNewest, Policy::Latest] {
        // Room for two frames.
        let mut bench = Bench::new(20, 2, 1_000);
        let slot = bench.open(policy);
        bench.push(slot, 1, 1, 10).unwrap();
        bench.outbox.push_mark(slot, mark(2, bench.now));
        bench.push(slot, 2, 2, 10).unwrap();
        bench.push(slot, 3, 3, 10).unwrap();
        assert_eq!(bench.outbox.data_frames(), 2, "{policy:?}: a mark takes no room");
        assert!(bench.outbox.has_output());
        // Everything that waits grows too old, and is shed, but not the mark.
        bench.now = bench.now.plus(2 * SECOND);
        bench.outbox.shed(u64::MAX, bench.now).unwrap();
        let mut sent = Vec::new();
        bench.outbox.drop_stale(bench.now);
        bench.outbox.gather(|bytes| {
            sent.extend_from_slice(bytes);
            Take::More
        });
        assert_eq!(sent, b"mark", "{policy:?}");
        let mut frames = 0;
        bench.outbox.advance(2, |_| frames += 1);
        assert_eq!(bench.outbox.data_frames(), 0, "{policy:?}: also not when it is partly written");
        bench.outbox.advance(2, |_| frames += 1);
        assert_eq!((frames, bench.outbox.totals().control_messages), (0, 1), "{policy:?}");
        assert!(!bench.outbox.has_output());
        assert_eq!(bench.ledger(slot)[4], 0);
    }
}

#[test]
fn a_newer_frame_does_not_pass_a_mark() {
    let mut bench = Bench::new(1_000, 10, 1_000);
    let slot = bench.open(Policy::Latest);
    bench.push(slot, 1, 1, 10).unwrap();
    bench.outbox.push_mark(slot, mark(2, bench.now));
    bench.push(slot, 2, 2, 10).unwrap();
    bench.push(slot, 3, 3, 10).unwrap();
    let mut sent = Vec::new();
    bench.outbox.gather(|bytes| {
        sent.push(bytes[0]);
        Take::More
    });
    assert_eq!(sent, [1, b'm', 3], "the one before the mark stays, the one behind it was replaced");
    // The end of the subscription takes its mark along.
    bench.outbox.close_slot(slot);
    assert!(!bench.outbox.has_output());
}

#[test]
fn what_history_has_lost_is_told_as_that() {
    let mut bench = Bench::new(1_000, 10, 1_000);
    let slot = bench.open(Policy::DropOldest);
    bench.outbox.note_gone(slot, 4, bench.now);
    bench.outbox.note_gone(slot, 3, bench.now);
    bench.push(slot, 5, 5, 10).unwrap();
    bench.push(slot, 7, 7, 10).unwrap();
    bench.write(usize::MAX);
    assert_eq!(bench.gaps(), [(1, 4, 4, "history".into()), slow(6, 6, 1)]);
    assert_eq!(bench.ledger(slot), [7, 2, 0, 5, 0]);
}
