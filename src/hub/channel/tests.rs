//! A channel and its batches in virtual time: what is sealed when, and what is in it.

use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::clock::Clock;
use crate::wire::codec::{decode_frame_json, decode_frame_msgpack};
use crate::wire::decode::scan_publish;
use crate::wire::proto::sample::Value;
use crate::wire::proto::{self, Block, Publish, Sample};
use crate::wire::{Codec, TIMED_SAMPLES};

const CLASSES_MAX: usize = 8;

/// A class that leaves out nothing.
const PLAIN: ClassKey =
    ClassKey { codec: Codec::Protobuf, delay_ms: 10, interval_us: None, newest_only: false };
const LATEST: ClassKey = ClassKey { newest_only: true, ..PLAIN };
const AT_ONCE: ClassKey = ClassKey { delay_ms: 0, ..PLAIN };

const fn rate(hz: u32, key: ClassKey) -> ClassKey {
    ClassKey { interval_us: Some(1_000_000 / hz), ..key }
}

/// A frame that was sealed, taken apart.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    at_ms: u64,
    key: ClassKey,
    seqs: Vec<Seq>,
    values: Vec<f64>,
}

/// A home with one channel, and its own time in milliseconds. The value of a sample is its sequence.
struct Home {
    channel: Channel,
    due: DueQueue,
    metrics: WorkerMetrics,
    limits: BatchLimits,
    widening: u32,
    start: Now,
    at_ms: u64,
    seen: Vec<Seen>,
}

impl Home {
    fn new(keys: &[ClassKey]) -> Self {
        let info = ChannelInfo {
            id: ChannelId(7),
            name: "a.b".into(),
            epoch: 9,
            home: 0,
            origin: None,
            floor: 0,
            life: None,
        };
        let mut home = Self {
            channel: Channel::new(Arc::new(info), 1),
            due: DueQueue::default(),
            metrics: WorkerMetrics::new(),
            limits: BatchLimits::default(),
            widening: STEPS,
            start: Clock::new().now(),
            at_ms: 0,
            seen: Vec::new(),
        };
        for key in keys {
            assert_eq!(home.join(*key), Ok(1));
        }
        home
    }

    fn now(&self) -> Now {
        self.start.plus(Duration::from_millis(self.at_ms))
    }

    fn work<T>(&mut self, work: impl FnOnce(&mut Channel, &mut Flush<'_>) -> T) -> T {
        let mut sealed = Vec::new();
        let mut flush = Flush {
            now: self.now(),
            limits: &self.limits,
            widening: self.widening,
            due: &mut self.due,
            metrics: &mut self.metrics,
            sealed: &mut sealed,
        };
        let outcome = work(&mut self.channel, &mut flush);
        for (position, frame) in sealed {
            let key = self.channel.class(position).unwrap().key();
            self.seen.push(take_apart(key, &frame, self.at_ms, self.now()));
            // What is counted is the frame: its buffer must not be much more, whatever the one before was.
            let bytes = frame.bytes.len();
            let capacity = frame.bytes.try_into_mut().map_or(bytes, |buffer| buffer.capacity());
            assert!(capacity <= 2 * bytes + 2_048, "{bytes} bytes in a buffer of {capacity}");
        }
        outcome
    }

    fn join(&mut self, key: ClassKey) -> Result<Seq, ClassesFull> {
        self.work(|channel, flush| channel.join(key, 0, CLASSES_MAX, flush))
    }

    /// Seals what is due up to `at_ms`, each at its time.
    fn pass(&mut self, at_ms: u64) {
        while let Some(next) = self.due.next() {
            let next = u64::try_from(next.duration_since(self.start.at).as_micros().div_ceil(1_000)).unwrap();
            if next > at_ms {
                break;
            }
            self.at_ms = self.at_ms.max(next);
            let now = self.now().at;
            while let Some((_, due)) = self.due.pop(now) {
                self.work(|channel, flush| channel.handle_due(&due, flush));
            }
        }
        self.at_ms = at_ms;
    }

    /// One message of so many samples, `bytes` of text beside each.
    fn publish(&mut self, samples: u32, bytes: usize) -> Seq {
        let first = self.channel.next_seq();
        let samples = (0..u64::from(samples))
            .map(|index| {
                let text = format!("{}{}", first + index, " ".repeat(bytes));
                Sample { source_delta_ns: 0, value: Some(Value::Text(text)) }
            })
            .collect();
        let block = Some(Block { source_ns: 5, received_ns: 0, samples });
        let message = Publish { channel: 7, block, ack: 0 }.encode_to_vec();
        let mut spans = Vec::new();
        let scanned = scan_publish(&message, 1 << 20, &mut spans).unwrap();
        let (source_ns, received) = (scanned.source_ns, self.now());
        let block = BlockRef { content: scanned.block, spans: &spans, source_ns, received };
        self.work(|channel, flush| channel.publish(block, flush))
    }

    /// Times and sequences of a class's frames.
    fn frames(&self, key: ClassKey) -> Vec<(u64, Vec<Seq>)> {
        self.seen.iter().filter(|s| s.key == key).map(|s| (s.at_ms, s.seqs.clone())).collect()
    }

    fn seqs(&self, key: ClassKey) -> Vec<Seq> {
        self.seen.iter().filter(|s| s.key == key).flat_map(|s| s.seqs.clone()).collect()
    }

    /// Until no deadline is left.
    fn finish(&mut self) {
        self.pass(self.at_ms + 60_000);
        assert_eq!(self.due.next(), None, "a deadline comes again and again");
    }
}

/// Opens a frame as a client does, and checks that its parts agree.
fn take_apart(key: ClassKey, frame: &Frame, at_ms: u64, now: Now) -> Seen {
    let header = match frame.bytes[1] & 0x7F {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    assert_eq!(header, crate::wire::ws::header_len(frame.bytes.len() - header));
    let payload = &frame.bytes[header..];
    assert_eq!(frame.bytes[0], if key.codec == Codec::Json { 0x81 } else { 0x82 });
    let opened = match key.codec {
        Codec::Protobuf => proto::Frame::decode(payload).unwrap(),
        Codec::MessagePack => decode_frame_msgpack(payload).unwrap(),
        Codec::Json => {
            let opened = decode_frame_json(std::str::from_utf8(payload).unwrap()).unwrap();
            assert_eq!(opened.name, "a.b");
            opened.frame
        }
    };
    assert_eq!((opened.channel, opened.epoch, opened.flushed_ns), (7, 9, now.wall_ns));
    assert_eq!((opened.seq, opened.count), (frame.first, frame.count));
    let mut seqs = vec![opened.seq];
    if opened.seq_deltas.is_empty() {
        seqs = (opened.seq..).take(opened.count as usize).collect();
    } else {
        assert!(opened.seq_deltas.iter().any(|delta| *delta != 1), "deltas of a frame without holes");
        for delta in &opened.seq_deltas {
            seqs.push(seqs.last().unwrap() + u64::from(*delta));
        }
    }
    assert_eq!(seqs.last(), Some(&frame.last));
    let mut values = Vec::new();
    for block in &opened.blocks {
        assert_eq!(block.source_ns, 5);
        assert!(block.received_ns <= opened.flushed_ns && block.received_ns > 0);
        for sample in &block.samples {
            let Some(Value::Text(text)) = &sample.value else { panic!("{sample:?}") };
            values.push(text.trim().parse().unwrap());
        }
    }
    assert_eq!(values.len(), seqs.len());
    for (seq, value) in seqs.iter().zip(&values) {
        assert_eq!(*seq as f64, *value, "a sample stands under another one's sequence");
    }
    assert!(frame.received_at.is_sorted() && frame.received_at.len() == TIMED_SAMPLES);
    assert!(frame.received_at[TIMED_SAMPLES - 1] <= frame.flushed_at);
    Seen { at_ms, key, seqs, values }
}

#[test]
fn a_small_frame_does_not_hold_the_memory_of_a_large_one() {
    let mut home = Home::new(&[AT_ONCE]);
    for _ in 0..3 {
        home.publish(1, 60_000);
        home.publish(1, 1);
    }
    assert_eq!(home.seen.len(), 6);
}

#[test]
fn a_lone_sample_goes_at_once_and_a_batch_waits_for_its_window() {
    type Row = (&'static str, ClassKey, u32, &'static [u64], &'static [(u64, &'static [Seq])]);
    let rows: [Row; 12] = [
        ("a quiet channel", PLAIN, 1, &[3], &[(3, &[1])]),
        ("the window is measured from the first sample", PLAIN, 1, &[0, 1, 5], &[(0, &[1]), (11, &[2, 3])]),
        ("quiet again after a window", PLAIN, 1, &[0, 10], &[(0, &[1]), (10, &[2])]),
        ("one instant before that", PLAIN, 1, &[0, 9], &[(0, &[1]), (19, &[2])]),
        ("a sealed batch begins a window, too", PLAIN, 1, &[0, 1, 12], &[(0, &[1]), (11, &[2]), (22, &[3])]),
        ("until it has passed", PLAIN, 1, &[0, 1, 21], &[(0, &[1]), (11, &[2]), (21, &[3])]),
        ("delay 0", AT_ONCE, 1, &[0, 1, 1, 2], &[(0, &[1]), (1, &[2]), (1, &[3]), (2, &[4])]),
        ("delay 0 is not widened", AT_ONCE, 8, &[0, 1], &[(0, &[1]), (1, &[2])]),
        ("a widened window", PLAIN, 4, &[0, 1, 39], &[(0, &[1]), (41, &[2, 3])]),
        ("widened to the limit", PLAIN, 1_000, &[0, 1], &[(0, &[1]), (101, &[2])]),
        ("the newest of a window", LATEST, 1, &[0, 1, 5, 9], &[(0, &[1]), (11, &[4])]),
        ("the newest at once", ClassKey { delay_ms: 0, ..LATEST }, 1, &[0, 1], &[(0, &[1]), (1, &[2])]),
    ];
    for (what, key, widening, publishes, expected) in rows {
        let mut home = Home::new(&[key]);
        home.widening = widening * STEPS;
        for at_ms in publishes {
            home.pass(*at_ms);
            home.publish(1, 0);
        }
        home.finish();
        let expected: Vec<_> = expected.iter().map(|(at, seqs)| (*at, seqs.to_vec())).collect();
        assert_eq!(home.frames(key), expected, "{what}");
    }
}

#[test]
fn a_batch_is_sealed_before_it_passes_its_limits() {
    // Of each message: samples, and bytes of each sample. The first message takes the leading edge.
    type Row = (&'static str, &'static [(u32, usize)], &'static [(u64, &'static [Seq])]);
    let rows: [Row; 6] = [
        ("samples at the limit", &[(1, 0), (2, 0), (2, 0)], &[(0, &[1]), (0, &[2, 3, 4, 5])]),
        ("one below it", &[(1, 0), (3, 0)], &[(0, &[1]), (10, &[2, 3, 4])]),
        ("one message over it stays whole", &[(1, 0), (6, 0)], &[(0, &[1]), (0, &[2, 3, 4, 5, 6, 7])]),
        (
            "the message that would pass the bytes opens the next",
            &[(1, 0), (1, 600), (1, 600)],
            &[(0, &[1]), (0, &[2]), (10, &[3])],
        ),
        (
            "a message larger than a frame goes alone",
            &[(1, 0), (1, 100), (1, 2_000), (1, 100)],
            &[(0, &[1]), (0, &[2]), (0, &[3]), (10, &[4])],
        ),
        ("bytes at the limit", &[(1, 0), (1, 985)], &[(0, &[1]), (0, &[2])]),
    ];
    for (what, messages, expected) in rows {
        let mut home = Home::new(&[PLAIN]);
        home.limits.frame_bytes_max = 1_000;
        home.limits.frame_samples_max = 4;
        for (samples, bytes) in messages {
            home.publish(*samples, *bytes);
        }
        home.finish();
        let expected: Vec<_> = expected.iter().map(|(at, seqs)| (*at, seqs.to_vec())).collect();
        assert_eq!(home.frames(PLAIN), expected, "{what}");
    }
}

#[test]
fn a_rate_keeps_evenly_spaced_samples_and_the_newest() {
    let key = rate(100, PLAIN);
    let wide = rate(1_000, PLAIN);
    type Row = (&'static str, ClassKey, &'static [(u64, u32)], &'static [(u64, &'static [Seq])]);
    let rows: [Row; 7] = [
        ("the newest of a message", key, &[(0, 5)], &[(0, &[5])]),
        (
            "spread over a message",
            wide,
            &[(0, 1), (10, 20)],
            &[(0, &[1]), (10, &[3, 5, 7, 9, 11, 13, 15, 17, 19, 21])],
        ),
        ("held back, then sent", key, &[(0, 1), (3, 4)], &[(0, &[1]), (13, &[5])]),
        ("a newer one takes the place", key, &[(0, 1), (3, 1), (8, 2)], &[(0, &[1]), (13, &[4])]),
        (
            "a sample behind one that is held back waits no longer than its window",
            rate(10, PLAIN),
            &[(0, 1), (50, 1), (100, 1)],
            &[(0, &[1]), (100, &[3])],
        ),
        (
            "a batch with a sample that is held back",
            rate(50, ClassKey { delay_ms: 50, ..PLAIN }),
            &[(0, 1), (20, 1), (69, 1), (70, 1)],
            &[(0, &[1]), (70, &[2, 3]), (120, &[4])],
        ),
        ("rate and latest", rate(50, LATEST), &[(0, 3), (1, 2), (19, 1)], &[(0, &[3]), (21, &[6])]),
    ];
    for (what, key, messages, expected) in rows {
        let mut home = Home::new(&[key]);
        for (at_ms, samples) in messages {
            home.pass(*at_ms);
            home.publish(*samples, 0);
        }
        home.finish();
        let expected: Vec<_> = expected.iter().map(|(at, seqs)| (*at, seqs.to_vec())).collect();
        assert_eq!(home.frames(key), expected, "{what}");
    }
}

#[test]
fn what_a_rate_allows_is_not_lost_to_bursts() {
    let key = rate(1_000, PLAIN);
    let mut home = Home::new(&[key]);
    for burst in 0..50 {
        home.pass(burst * 10);
        // As fast as the limit in the long run, but ten messages at once.
        for _ in 0..10 {
            home.publish(1, 0);
        }
    }
    home.finish();
    // The first burst had earned nothing yet.
    assert!(home.seqs(key).len() >= 490, "{}", home.seqs(key).len());
}

#[test]
fn a_sample_held_back_goes_with_a_drain() {
    for key in [rate(1, PLAIN), rate(1, LATEST), rate(1, AT_ONCE), LATEST, PLAIN] {
        let mut home = Home::new(&[key]);
        home.publish(1, 0);
        home.at_ms = 1;
        home.publish(1, 0);
        home.work(Channel::seal_all);
        assert_eq!(home.seqs(key), [1, 2], "{key:?}");
    }
}

#[test]
fn a_frame_may_begin_with_a_sample_that_was_held_back() {
    for codec in Codec::ALL {
        let key = ClassKey { codec, ..rate(50, PLAIN) };
        let mut home = Home::new(&[key]);
        home.publish(1, 0);
        home.pass(20);
        home.publish(1, 0);
        home.pass(21);
        home.publish(1, 0);
        home.finish();
        assert_eq!(home.seqs(key), [1, 2, 3], "{codec:?}");
    }
}

#[test]
fn who_joins_gets_exactly_what_comes_next() {
    for key in [PLAIN, LATEST, AT_ONCE, rate(1, PLAIN), rate(100, LATEST)] {
        let mut home = Home::new(&[key]);
        home.publish(1, 0);
        home.at_ms = 1;
        home.publish(2, 0);
        assert_eq!(home.join(key), Ok(4), "{key:?}");
        assert_eq!(*home.seqs(key).last().unwrap(), 3, "{key:?}: the past has been sealed");
        let before = home.seen.len();
        home.publish(1, 0);
        home.finish();
        let after: Vec<Seq> = home.seen[before..].iter().flat_map(|seen| seen.seqs.clone()).collect();
        assert_eq!(after, [4], "{key:?}");
    }
}

#[test]
fn who_moves_to_another_class_misses_nothing_and_gets_nothing_twice() {
    let keys = [PLAIN, LATEST, AT_ONCE, rate(1, PLAIN), ClassKey { codec: Codec::Json, ..PLAIN }];
    for from in keys {
        for to in keys {
            let mut home = Home::new(&[from, to]);
            home.publish(1, 0);
            home.at_ms = 1;
            home.publish(3, 0);
            let seq = home.work(|channel, flush| channel.switch(from, to, 0, CLASSES_MAX, flush));
            home.channel.leave(from, 0);
            assert_eq!(seq, Ok(5), "{from:?} to {to:?}");
            for key in [from, to] {
                assert_eq!(*home.seqs(key).last().unwrap(), 4, "{key:?} of {from:?} to {to:?}");
            }
            home.publish(1, 0);
            home.finish();
            assert_eq!(*home.seqs(to).last().unwrap(), 5, "{from:?} to {to:?}");
        }
    }
}

#[test]
fn a_class_goes_with_its_last_receiver_and_the_limit_holds() {
    let mut home = Home::new(&[PLAIN]);
    let other = |delay_ms| ClassKey { delay_ms, ..PLAIN };
    for delay_ms in 1..=7 {
        assert_eq!(home.join(other(1_000 + delay_ms)), Ok(1));
    }
    assert_eq!(home.join(other(5)), Err(ClassesFull));
    assert_eq!(home.join(PLAIN), Ok(1), "a class in use has room for more");
    assert_eq!(home.channel.receivers(), 9);
    home.channel.leave(PLAIN, 0);
    assert_eq!(home.join(other(5)), Err(ClassesFull), "one is left in it");
    home.channel.leave(PLAIN, 0);
    assert_eq!(home.join(other(5)), Ok(1));
    // Leaving what one is not in changes nothing.
    home.channel.leave(PLAIN, 3);
    home.channel.leave(other(5), 3);
    assert_eq!(home.channel.classes().len(), CLASSES_MAX);
}

#[test]
fn a_deadline_of_the_past_does_nothing() {
    let mut home = Home::new(&[PLAIN]);
    home.publish(1, 0);
    home.at_ms = 1;
    home.publish(1, 0);
    // The join seals what the deadline at 11 ms was for.
    home.join(PLAIN).unwrap();
    home.at_ms = 2;
    home.publish(1, 0);
    home.pass(11);
    assert_eq!(home.frames(PLAIN).len(), 2, "the batch of 2 ms is not due yet");
    home.pass(12);
    assert_eq!(home.frames(PLAIN).last().unwrap(), &(12, vec![3]));
}

#[test]
fn a_head_says_what_is_settled() {
    for key in [PLAIN, LATEST, rate(10, PLAIN)] {
        let mut home = Home::new(&[key]);
        assert_eq!(home.channel.head(key), Some(0));
        home.publish(3, 0);
        assert_eq!(home.channel.head(key), Some(3));
        home.at_ms = 1;
        home.publish(2, 0);
        assert_eq!(home.channel.head(key), Some(3), "two wait: {key:?}");
        home.finish();
        assert_eq!(home.channel.head(key), Some(5));
        assert_eq!(home.channel.head(AT_ONCE), None);
    }
}

#[test]
fn deadlines_come_due_in_order() {
    let start = Clock::new().now().at;
    let ms = Duration::from_millis;
    let due = |serial| Due { channel: ChannelId(1), class: PLAIN, serial };
    let mut queue = DueQueue::default();
    assert_eq!(queue.next(), None);
    queue.push(start, ms(50), due(1));
    queue.push(start, ms(10), due(2));
    queue.push(start + ms(5), ms(10), due(3));
    queue.push(start + ms(30), ms(10), due(4));
    queue.push(start + ms(30), ms(50), due(5));
    assert_eq!(queue.next(), Some(start + ms(10)));
    assert_eq!(queue.pop(start + ms(9)), None);
    let mut popped = Vec::new();
    for at in [10, 60, 80] {
        while let Some((when, due)) = queue.pop(start + ms(at)) {
            popped.push((u64::try_from(when.duration_since(start).as_millis()).unwrap(), due.serial));
        }
    }
    assert_eq!(popped, [(10, 2), (15, 3), (40, 4), (50, 1), (80, 5)]);
    assert_eq!(queue.next(), None);
}

#[test]
fn all_codecs_carry_the_same_frames() {
    for base in [PLAIN, LATEST, rate(200, PLAIN)] {
        let keys = Codec::ALL.map(|codec| ClassKey { codec, ..base });
        let mut home = Home::new(&keys);
        for at_ms in [0, 3, 4, 15, 16, 40] {
            home.pass(at_ms);
            home.publish(3, 10);
        }
        home.finish();
        let frames = keys.map(|key| home.frames(key));
        assert!(frames[0].len() > 2);
        assert_eq!(frames[0], frames[1], "{base:?}");
        assert_eq!(frames[0], frames[2], "{base:?}");
    }
}

proptest! {
    #[test]
    fn whatever_is_published_is_sealed_in_time(
        steps in vec((0_u64..30, 1_u32..6), 1..60),
        delay_ms in prop::sample::select(vec![0_u32, 2, 10, 50]),
        hz in prop::sample::select(vec![5_u32, 50, 100, 1_000]),
    ) {
        let plain = ClassKey { delay_ms, ..PLAIN };
        let latest = ClassKey { delay_ms, ..LATEST };
        let (limited, both) = (rate(hz, plain), rate(hz, latest));
        let keys = [plain, latest, limited, both];
        let mut home = Home::new(&keys);
        let mut published_ms = vec![0];
        let mut at_ms = 0;
        for (pause, samples) in &steps {
            at_ms += pause;
            home.pass(at_ms);
            home.publish(*samples, 0);
            published_ms.extend((0..*samples).map(|_| at_ms));
        }
        home.finish();
        let newest = home.channel.next_seq() - 1;
        prop_assert_eq!(home.seqs(plain), (1..=newest).collect::<Vec<_>>());
        for (sealed_ms, seqs) in home.frames(plain) {
            let waited = sealed_ms - published_ms[usize::try_from(seqs[0]).unwrap()];
            prop_assert!(waited <= u64::from(delay_ms), "waited {} ms", waited);
        }
        for key in keys {
            let seqs = home.seqs(key);
            prop_assert!(seqs.is_sorted_by(|a, b| a < b));
            prop_assert_eq!(seqs.last(), Some(&newest), "the newest sample comes in the end: {:?}", key);
            // So there are never more frames in a second than with trailing windows of that length.
            let sealed: Vec<u64> = home.frames(key).iter().map(|(at, _)| *at).collect();
            prop_assert!(
                delay_ms == 0 || sealed.windows(2).all(|pair| pair[1] - pair[0] >= u64::from(delay_ms)),
                "frames closer than the window: {:?} {:?}", key, sealed
            );
        }
        for key in [limited, both] {
            let burst = u64::from(delay_ms) * u64::from(hz) / 1_000;
            let last_ms = home.frames(key).last().unwrap().0;
            let most = last_ms * u64::from(hz) / 1_000 + burst.max(1) + 1;
            prop_assert!(home.seqs(key).len() as u64 <= most, "{} of at most {most}", home.seqs(key).len());
        }
        for (_, seqs) in home.frames(latest) {
            prop_assert_eq!(seqs.len(), 1);
        }
    }
}
