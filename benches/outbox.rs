//! What does an outbox cost per frame, under each policy, when it is empty and when it is full?
//!
//! * `cycle`: a frame is pushed into an empty outbox, gathered and advanced past. The life of a frame of a fast reader.
//! * `full`: a frame is pushed where the default limit of 1,024 frames is reached. `drop_oldest` drops one and notes the gap,
//!   `drop_newest` notes the gap, `latest` replaces its waiting frame, `disconnect` says no.
//! * `full/drop_oldest_behind_others`: the search for a frame that may be dropped passes over 1,023 that may not: the worst
//!   case, once for each push.
//! * `gather`: what a write is made of, out of a full outbox; nothing is copied.
//! * `advance`: the kernel has taken everything, in one write.
//!
//! Every figure is per frame. Canonical: frames of one sample of 128 bytes, the default limits, one subscription and, where
//! others fill the outbox, one more. Gap notices are made ten times a second and are not in the figures.
//!
//! What would make it lie: frames are made beforehand, pushed in order and never the last to go, so no memory is freed; one
//! outbox stays in the cache, which thousands do not; each policy is alone, so that its branches are predicted.
//!
//! Nothing is random. `cargo bench --bench outbox`; `cargo bench --bench outbox -- --test` runs each once.

use std::hint::black_box;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use tidewire::clock::{Clock, Now};
use tidewire::config::Config;
use tidewire::outbox::memory::{FrameMemory, HeldFrame};
use tidewire::outbox::{Outbox, Slot, SlotOptions, Take};
use tidewire::wire::control::{GapReason, Policy};
use tidewire::wire::{ChannelId, Frame, TIMED_SAMPLES};

/// What a frame of one sample of 128 bytes is on the wire, to within a few bytes.
const FRAME_BYTES: usize = 192;

/// Frames in one measurement.
const BATCH: usize = 1_024;

const POLICIES: [(&str, Policy); 4] = [
    ("drop_oldest", Policy::DropOldest),
    ("drop_newest", Policy::DropNewest),
    ("latest", Policy::Latest),
    ("disconnect", Policy::Disconnect),
];

struct Bench {
    now: Now,
    frames: Vec<Rc<HeldFrame>>,
    config: Config,
}

impl Bench {
    fn new() -> Self {
        let now = Clock::new().now();
        let frame = |seq| Frame {
            bytes: Bytes::from(vec![0x55; FRAME_BYTES]),
            channel: ChannelId(1),
            first: seq,
            last: seq,
            count: 1,
            head_bytes: 0,
            replayed: false,
            flushed_at: now.at,
            received_at: [now.at; TIMED_SAMPLES],
        };
        let memory = FrameMemory::new(usize::MAX);
        Self {
            now,
            frames: (1..=BATCH as u64).map(|seq| memory.hold(frame(seq))).collect(),
            config: Config::default(),
        }
    }

    fn outbox(&self) -> Outbox {
        Outbox::new(self.config.outbox.clone())
    }

    fn open(outbox: &mut Outbox, policy: Policy) -> Slot {
        let options = SlotOptions { policy, max_age: Duration::from_secs(1), hole: GapReason::Slow };
        outbox.open_slot(ChannelId(1), options, 1)
    }

    /// Fills an outbox with as many frames of a new subscription as it takes.
    fn fill(&self, outbox: &mut Outbox, policy: Policy, room_for: usize) {
        let slot = Self::open(outbox, policy);
        for frame in &self.frames[..self.config.outbox.data_frames_max - room_for] {
            outbox.push_data(slot, frame, self.now).expect("there is room");
        }
    }

    fn push_all(&self, outbox: &mut Outbox, slot: Slot) {
        for frame in &self.frames {
            let _ = black_box(outbox.push_data(slot, frame, self.now));
        }
    }

    /// Gathers all that fits in a write; returns frames and bytes.
    fn gather(&self, outbox: &Outbox) -> (usize, usize) {
        let (mut frames, mut bytes) = (0, 0);
        outbox.gather(|message| {
            frames += 1;
            bytes += black_box(message).len();
            Take::More
        });
        (frames, bytes)
    }

    /// Time per frame: as many batches of [`BATCH`] as make up the iterations asked for, scaled to them. What `prepare`
    /// does is not in it.
    fn measure<T>(
        group: &mut BenchmarkGroup<'_, WallTime>,
        name: &str,
        prepare: impl Fn() -> T,
        work: impl Fn(&mut T),
    ) {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|iterations| {
                let batches = iterations.div_ceil(BATCH as u64);
                let mut elapsed = Duration::ZERO;
                for _ in 0..batches {
                    let mut prepared = prepare();
                    let begin = Instant::now();
                    work(&mut prepared);
                    elapsed += begin.elapsed();
                }
                elapsed.mul_f64(iterations as f64 / (batches * BATCH as u64) as f64)
            });
        });
    }
}

fn outbox(criterion: &mut Criterion) {
    let bench = Bench::new();
    let mut group = criterion.benchmark_group("outbox");
    group.throughput(Throughput::Elements(1));
    for (label, policy) in POLICIES {
        let prepare = || {
            let mut outbox = bench.outbox();
            let slot = Bench::open(&mut outbox, policy);
            (outbox, slot)
        };
        Bench::measure(&mut group, &format!("cycle/{label}"), prepare, |(outbox, slot)| {
            for frame in &bench.frames {
                let _ = outbox.push_data(*slot, frame, bench.now);
                let (frames, bytes) = bench.gather(outbox);
                assert_eq!(frames, 1);
                outbox.advance(bytes, |frame| {
                    black_box(frame);
                });
            }
        });
    }
    for (label, policy) in POLICIES {
        let prepare = || {
            let mut outbox = bench.outbox();
            bench.fill(&mut outbox, Policy::DropOldest, 1);
            let slot = Bench::open(&mut outbox, policy);
            let _ = outbox.push_data(slot, &bench.frames[0], bench.now);
            assert_eq!(outbox.data_frames(), bench.config.outbox.data_frames_max);
            (outbox, slot)
        };
        Bench::measure(&mut group, &format!("full/{label}"), prepare, |(outbox, slot)| {
            bench.push_all(outbox, *slot);
        });
    }
    let prepare = || {
        let mut outbox = bench.outbox();
        bench.fill(&mut outbox, Policy::DropNewest, 1);
        let slot = Bench::open(&mut outbox, Policy::DropOldest);
        (outbox, slot)
    };
    Bench::measure(&mut group, "full/drop_oldest_behind_others", prepare, |(outbox, slot)| {
        bench.push_all(outbox, *slot);
    });
    let full = || {
        let mut outbox = bench.outbox();
        bench.fill(&mut outbox, Policy::DropOldest, 0);
        outbox
    };
    Bench::measure(&mut group, "gather", full, |outbox| assert_eq!(bench.gather(outbox).0, BATCH));
    Bench::measure(&mut group, "advance", full, |outbox| {
        outbox.advance(BATCH * FRAME_BYTES, |frame| {
            black_box(frame);
        });
    });
    group.finish();
}

criterion_group!(benches, outbox);
criterion_main!(benches);
