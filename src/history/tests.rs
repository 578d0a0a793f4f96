//! The ring and the history against tables, and against the plain list of what was put in.

use std::time::Instant;

use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::clock::Clock;
use crate::wire::ChannelId;
use crate::wire::proto::sample::Value;
use crate::wire::proto::{Block, Frame as ProtoFrame, Sample};

const OF: StreamOf = StreamOf { channel: ChannelId(7), epoch: 9 };
const PLENTY: Bounds = Bounds { bytes_max: 1 << 20, age_max: Duration::from_secs(10), samples_max: 1 << 20 };

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A frame of blocks of so many samples, the value of each its sequence, published one after the other `now`.
fn kept(first: Seq, blocks: &[u32], now: Now) -> Kept {
    let mut body = Vec::new();
    let mut seq = first;
    for &count in blocks {
        let samples: Vec<Sample> = (seq..seq + u64::from(count))
            .map(|seq| Sample { source_delta_ns: -3, value: Some(Value::Integer(seq.cast_signed())) })
            .collect();
        seq += u64::from(count);
        let block = Block { source_ns: 5, received_ns: now.wall_ns, samples };
        ProtoFrame { blocks: vec![block], ..ProtoFrame::default() }.encode(&mut body).unwrap();
    }
    // The server's own field stands at the end of a block.
    let body = reordered(&body);
    let count = u32::try_from(seq - first).unwrap();
    Kept::from_body(OF, first, count, [now.wall_ns; 2], &body, now)
}

/// Blocks with `received_ns` behind everything else, as the server writes them.
fn reordered(body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for block in ProtoFrame::decode(body).unwrap().blocks {
        let received_ns = block.received_ns;
        let content = Block { received_ns: 0, ..block }.encode_to_vec();
        crate::wire::seal::push_block(&mut out, &content, received_ns);
    }
    out
}

/// The sequences of a frame as a client reads them, checked against its header and its values.
fn seqs(kept: &Kept) -> Vec<Seq> {
    let payload = match kept.bytes[1] {
        126 => &kept.bytes[4..],
        127 => &kept.bytes[10..],
        _ => &kept.bytes[2..],
    };
    let frame = ProtoFrame::decode(payload).unwrap();
    assert_eq!((frame.channel, frame.epoch, frame.seq, frame.count), (7, 9, kept.first, kept.count));
    assert_eq!(frame.flushed_ns, kept.flushed_ns);
    assert!(frame.blocks.iter().all(|block| block.source_ns == 5 && !block.samples.is_empty()));
    let samples = frame.blocks.iter().flat_map(|block| &block.samples);
    let seqs: Vec<Seq> = samples
        .map(|sample| match sample {
            Sample { source_delta_ns: -3, value: Some(Value::Integer(value)) } => value.cast_unsigned(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(seqs, (kept.first..=kept.last()).collect::<Vec<_>>());
    seqs
}

/// A history with one stream, and its own time.
struct Home {
    history: History,
    key: RingKey,
    now: Now,
    next: Seq,
    limits: BatchLimits,
}

impl Home {
    fn new(bounds: Bounds) -> Self {
        let mut history = History::new(usize::MAX);
        let key = history.open(OF, bounds, Lineage([(4, 3)].into()));
        Self { history, key, now: Clock::new().now(), next: 1, limits: BatchLimits::default() }
    }

    fn put(&mut self, blocks: &[u32]) {
        let kept = kept(self.next, blocks, self.now);
        self.next = kept.last() + 1;
        self.history.insert(self.key, kept, self.now);
    }

    /// Frames of one sample each, `every` apart.
    fn put_many(&mut self, frames: u64, every: Duration) {
        for _ in 0..frames {
            self.put(&[1]);
            self.now = self.now.plus(every);
        }
    }

    fn standing(&self) -> Standing {
        Standing { of: OF, next: self.next, sealed: self.next - 1, lags: false }
    }

    fn begin(&self, start: &Start) -> (Seq, &'static str, u64) {
        let Begin { seq, outcome, samples } =
            self.history.begin(Some(self.key), start, self.standing(), self.now);
        (seq, outcome.label(), samples)
    }

    /// Everything from a sequence on: frames by their sequences, holes as nothing.
    fn walk(&mut self, mut from: Seq) -> Vec<Vec<Seq>> {
        let mut found = Vec::new();
        loop {
            match self.history.find(self.key, from, &self.limits, self.now) {
                Found::End => return found,
                Found::Gone(upto) => {
                    assert!(upto >= from);
                    found.push(Vec::new());
                    from = upto + 1;
                }
                Found::Frame { kept, .. } => {
                    assert_eq!(kept.first, from);
                    found.push(seqs(&kept));
                    from = kept.last() + 1;
                }
            }
        }
    }

    fn kept(&self) -> Option<(Seq, Seq)> {
        self.history.summary(self.key, self.now).map(|summary| (summary.first, summary.last))
    }
}

fn since(text: &str) -> Start {
    Start::Since(Some(text.parse().unwrap()))
}

#[test]
fn a_ring_keeps_within_its_bounds_and_the_newest_always() {
    let frame = {
        let mut home = Home::new(PLENTY);
        home.put(&[1]);
        home.history.size().bytes
    };
    let rows = [
        (PLENTY, ms(10), (1, 20), None),
        (Bounds { bytes_max: 5 * frame, ..PLENTY }, ms(10), (16, 20), Some(HistoryEviction::Bytes)),
        (Bounds { bytes_max: 1, ..PLENTY }, ms(10), (20, 20), Some(HistoryEviction::Bytes)),
        (Bounds { samples_max: 3, ..PLENTY }, ms(10), (18, 20), Some(HistoryEviction::Samples)),
        (Bounds { age_max: ms(45), ..PLENTY }, ms(10), (16, 20), Some(HistoryEviction::Age)),
        (Bounds { age_max: ms(45), ..PLENTY }, Duration::from_secs(60), (20, 20), Some(HistoryEviction::Age)),
    ];
    for (bounds, every, expected, cause) in rows {
        let mut home = Home::new(bounds);
        home.put_many(20, every);
        assert_eq!(home.kept(), Some(expected), "{bounds:?}");
        let gone = expected.0 - 1;
        for each in HistoryEviction::ALL {
            assert_eq!(
                home.history.evicted()[each],
                if cause == Some(each) { gone } else { 0 },
                "{bounds:?}"
            );
        }
        let frames = usize::try_from(20 - gone).unwrap();
        assert_eq!(home.history.size(), Size { bytes: frames * frame, frames, streams: 1 });
    }
}

#[test]
fn what_is_old_goes_also_where_nobody_publishes() {
    let mut home = Home::new(PLENTY);
    home.put_many(20, ms(1));
    home.now = home.now.plus(Duration::from_secs(11));
    for _ in 0..200 {
        home.history.tick(home.now);
    }
    assert_eq!(home.kept(), Some((20, 20)));
    assert_eq!(home.history.summary(home.key, home.now).unwrap().age_ms, 11_001);
    home.history.close(home.key);
    assert_eq!(home.history.size(), Size::default());
}

#[test]
fn a_cursor_says_where_to_begin() {
    // Frames 11 to 20 are kept, of 20.
    let mut home = Home::new(Bounds { samples_max: 10, ..PLENTY });
    home.put_many(20, ms(100));
    let rows = [
        (since("9:20"), (21, "replayed", 0)),
        (since("9:15"), (16, "replayed", 5)),
        (since("9:10"), (11, "replayed", 10)),
        (since("9:9"), (10, "partial", 10)),
        (since("9:0"), (1, "partial", 10)),
        (since("9:21"), (11, "reset", 10)),
        (since("8:15"), (11, "reset", 10)),
        (since("8:15,9:19"), (20, "replayed", 1)),
        (since("4:2"), (3, "partial", 10)),
        (since("4:100"), (4, "partial", 10)),
        (Start::Since(None), (11, "reset", 10)),
        (Start::Last(1), (20, "replayed", 1)),
        (Start::Last(10), (11, "replayed", 10)),
        (Start::Last(11), (10, "partial", 10)),
        (Start::Last(u64::MAX), (1, "partial", 10)),
        (Start::LastMs(1), (21, "replayed", 0)),
        (Start::LastMs(250), (19, "replayed", 2)),
        (Start::LastMs(u64::MAX), (11, "replayed", 10)),
    ];
    for (start, expected) in rows {
        assert_eq!(home.begin(&start), expected, "{start:?}");
    }
    // Of another server's stream the client may have more than has come here.
    let behind = Standing { lags: true, ..home.standing() };
    for (start, expected) in [
        (since("9:21"), (22, "replayed", 0)),
        (since("9:99"), (100, "replayed", 0)),
        (since("8:15"), (11, "reset", 10)),
        (since("9:15"), (16, "replayed", 5)),
    ] {
        let Begin { seq, outcome, samples } = home.history.begin(Some(home.key), &start, behind, home.now);
        assert_eq!((seq, outcome.label(), samples), expected, "{start:?}");
    }
    // Two more are published and in no frame yet.
    let open = Standing { next: 23, ..home.standing() };
    let rows = [
        (since("9:20"), (21, 2)),
        (since("9:22"), (23, 0)),
        (since("9:21"), (22, 1)),
        (Start::Last(1), (22, 1)),
        (Start::Last(3), (20, 3)),
        (Start::Since(None), (11, 12)),
    ];
    for (start, (seq, samples)) in rows {
        let begin = home.history.begin(Some(home.key), &start, open, home.now);
        assert_eq!((begin.seq, begin.samples), (seq, samples), "{start:?}");
    }
    // Without a history, what is in no frame yet still comes.
    for (start, expected) in [
        (since("9:15"), (16, "partial", 0)),
        (since("9:20"), (21, "replayed", 0)),
        (Start::Since(None), (21, "reset", 0)),
        (Start::Last(5), (16, "partial", 0)),
        (Start::LastMs(5), (21, "replayed", 0)),
    ] {
        let Begin { seq, outcome, samples } = home.history.begin(None, &start, home.standing(), home.now);
        assert_eq!((seq, outcome.label(), samples), expected, "{start:?}");
    }
}

#[test]
fn the_last_milliseconds_begin_inside_a_frame() {
    let mut home = Home::new(PLENTY);
    home.put_many(10, ms(100));
    assert_eq!(home.walk(1).len(), 1, "the frames have become one");
    assert_eq!(home.begin(&Start::LastMs(250)), (9, "replayed", 2));
}

#[test]
fn small_frames_become_one_that_all_share() {
    let mut home = Home::new(PLENTY);
    home.put_many(100, ms(1));
    let bytes = home.history.size().bytes;
    assert_eq!(home.walk(1), [(1..=100).collect::<Vec<_>>()]);
    assert_eq!(home.history.size().frames, 1);
    assert!(home.history.size().bytes < bytes / 2, "what each frame takes beside its own is saved");
    let shared = |home: &mut Home, from| match home.history.find(home.key, from, &home.limits, home.now) {
        Found::Frame { kept, shared } => (kept.bytes.as_ptr(), shared),
        other => panic!("{other:?}"),
    };
    let first = shared(&mut home, 1);
    assert_eq!(shared(&mut home, 1), first);
    assert!(first.1 && !shared(&mut home, 2).1, "one that is cut is nobody else's");
    // Not over the limits of a frame, and not where a hole or much time is between.
    home.limits.frame_samples_max = 40;
    home.put_many(60, ms(1));
    assert_eq!(home.walk(101).iter().map(Vec::len).collect::<Vec<_>>(), [40, 20]);
    home.next += 5;
    home.put_many(2, ms(0));
    home.now = home.now.plus(ms(2_000));
    home.put_many(1, ms(0));
    assert_eq!(home.walk(150), [(150..=160).collect::<Vec<_>>(), vec![], vec![166, 167], vec![168]]);
}

#[test]
fn a_frame_is_cut_at_every_sample() {
    for blocks in [&[6_u32][..], &[1, 2, 3], &[3, 3], &[1, 1, 1, 1, 1, 1]] {
        for from in 1..=6 {
            let mut home = Home::new(PLENTY);
            home.put(blocks);
            assert_eq!(home.walk(from), [(from..=6).collect::<Vec<_>>()], "{blocks:?}");
        }
    }
}

#[test]
fn a_body_that_cannot_be_read_is_gone_and_no_panic() {
    let mut home = Home::new(PLENTY);
    let kept = Kept::from_body(OF, 1, 5, [home.now.wall_ns; 2], b"\x32\x05abcde\x07", home.now);
    home.history.insert(home.key, kept, home.now);
    home.next = 6;
    home.put(&[2]);
    assert_eq!(home.walk(2), [vec![], vec![6, 7]]);
}

#[test]
fn who_was_overtaken_goes_on_with_what_is_newest() {
    let mut home = Home::new(Bounds { samples_max: 10, ..PLENTY });
    home.put_many(20, ms(1));
    let bytes = kept(1, &[1], home.now).bytes.len();
    let overtakes = |from, bytes, frames| home.history.overtakes(home.key, from, bytes, frames);
    assert_eq!(overtakes(11, usize::MAX, 100), None, "it was not");
    assert_eq!(overtakes(5, usize::MAX, 100), Some(11));
    assert_eq!(overtakes(5, 4 * bytes, 100), Some(17));
    assert_eq!(overtakes(5, usize::MAX, 3), Some(18));
    assert_eq!(overtakes(5, 1, 0), Some(20), "one at least");
}

#[test]
fn the_ceiling_empties_what_was_not_used_for_longest() {
    let now = Clock::new().now();
    let cost = {
        let mut home = Home::new(PLENTY);
        home.put(&[1]);
        home.history.size().bytes
    };
    let mut history = History::new(6 * cost);
    let keys: Vec<RingKey> = (0..3).map(|_| history.open(OF, PLENTY, Lineage::default())).collect();
    let frames = |history: &History| {
        let last = |key: &RingKey| history.summary(*key, now).map(|summary| summary.samples);
        keys.iter().map(last).collect::<Vec<_>>()
    };
    for seq in 1..=2 {
        keys.iter().for_each(|key| history.insert(*key, kept(seq, &[1], now), now));
    }
    assert_eq!(frames(&history), [Some(2), Some(2), Some(2)]);
    // A replay is a use, too.
    assert!(matches!(history.find(keys[0], 1, &BatchLimits::default(), now), Found::Frame { .. }));
    history.insert(keys[2], kept(3, &[1], now), now);
    history.insert(keys[2], kept(4, &[1], now), now);
    assert_eq!(frames(&history), [Some(2), None, Some(4)]);
    assert_eq!(history.evicted()[HistoryEviction::Ceiling], 2);
    history.insert(keys[1], kept(9, &[1], now), now);
    history.insert(keys[2], kept(5, &[1], now), now);
    assert_eq!(frames(&history), [None, Some(1), Some(5)]);
    history.close(keys[1]);
    history.close(keys[0]);
    history.insert(keys[2], kept(6, &[200], now), now);
    assert_eq!(history.size().streams, usize::from(history.size().bytes > 0));
    assert!(history.size().bytes <= 6 * cost, "also where one stream is too much by itself");
}

proptest! {
    /// Whatever is put in, at whatever time, and wherever readers begin: they get the newest samples that are within the bounds, each
    /// once and in order, and what they do not get is a hole that is said.
    #[test]
    fn readers_get_what_is_kept(
        bounds in (1..4_000_usize, 1..200_u64, 1..60_u64),
        steps in vec((vec(1..4_u32, 1..4), 0..40_u64, any::<prop::sample::Index>(), 0..8_u64), 1..60),
        sizes in (20..400_usize, 1..30_usize),
    ) {
        let (bytes_max, age_ms, samples_max) = bounds;
        let mut home = Home::new(Bounds { bytes_max, age_max: ms(age_ms), samples_max });
        home.limits.frame_bytes_max = sizes.0;
        home.limits.frame_samples_max = sizes.1;
        let mut put: Vec<(Seq, Instant)> = Vec::new();
        for (blocks, pause, reader, hole) in steps {
            home.next += hole / 7;
            home.now = home.now.plus(ms(pause));
            let first = home.next;
            home.put(&blocks);
            put.extend((first..home.next).map(|seq| (seq, home.now.at)));
            let from = put[reader.index(put.len())].0;
            let found: Vec<Seq> = home.walk(from).concat();
            let all: Vec<Seq> = put.iter().map(|(seq, _)| *seq).filter(|seq| *seq >= from).collect();
            prop_assert!(all.ends_with(&found), "{found:?} of {all:?}");
            let summary = home.history.summary(home.key, home.now).unwrap();
            prop_assert_eq!(summary.last, home.next - 1);
            prop_assert_eq!(found.first().copied(), Some(summary.first.max(from)).filter(|_| !found.is_empty()));
            // Within the bounds, the newest frame aside, which may be one of several that were put together.
            let size = home.history.size();
            prop_assert!(size.bytes <= bytes_max || size.frames == 1);
            prop_assert!(summary.samples <= samples_max || size.frames == 1);
            let oldest = put.iter().find(|(seq, _)| *seq == summary.first).unwrap().1;
            let age = home.now.at - oldest;
            prop_assert!(age <= ms(age_ms) + ms(age_ms) / 8 || size.frames == 1);
            prop_assert_eq!(u128::from(summary.age_ms), age.as_millis());
        }
    }
}
