//! What does durable history cost: the worker that hands a frame over, and the thread that makes frames safe?
//!
//! * `append`: a frame of 4 KiB is given to the store, while the store's thread writes those before. What a worker pays.
//! * `commit/N`: N frames of 4 KiB are made safe by one sync, from the first append to the event that tells it.
//!
//! Canonical: frames of 4 KiB of random bytes, of 16 streams in turn, of which 256 KiB each are kept; so segments come and go
//! meanwhile. A commit interval of 1 ms, so that waiting for it is not most of the figure.
//!
//! What would make it lie: `append` shares two cores with the thread that writes, so it counts being displaced. `commit` is a figure of the
//! disk under the temporary folder; where that is memory, a sync costs nothing.
//!
//! `cargo bench --bench store`; `cargo bench --bench store -- --test` runs each once.

use std::hint::black_box;
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidewire::history::store::{Event, Life, Refused, Retention, Store, StoreSettings, StoredFrame};

const FRAME_BYTES: usize = 4 << 10;
const STREAMS: usize = 16;

/// How long a commit may take before the bench gives up.
const PATIENCE: Duration = Duration::from_secs(120);

struct Bench {
    store: Store,
    lives: Vec<Life>,
    body: Bytes,
    turn: usize,
    now_ns: u64,
    /// How many frames each commit made safe.
    committed: Receiver<()>,
}

impl Bench {
    fn new(folder: &Path) -> Self {
        let settings =
            StoreSettings { commit_interval: Duration::from_millis(1), ..StoreSettings::default() };
        let kept = Retention { bytes: 256 << 10, age: Duration::from_secs(3_600) };
        let (sender, committed) = sync_channel(1);
        let tell = move |event: Event<'_>| match event {
            // One that nobody has taken yet says the same.
            Event::Committed(_) => drop(sender.try_send(())),
            Event::Degraded(why) => panic!("{why}"),
            Event::Healthy => {}
        };
        let (store, _) = Store::open(folder, &settings, move |_| Some(kept), tell).expect("a new folder");
        let lives = (0..STREAMS).map(|n| store.stream(&format!("stream {n}")).expect("few")).collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is past 1970");
        let now_ns = u64::try_from(now.as_nanos()).expect("it is before 2554");
        let mut random = fastrand::Rng::with_seed(1);
        let body: Vec<u8> = (0..FRAME_BYTES).map(|_| random.u8(..)).collect();
        Self { store, lives, body: body.into(), turn: 0, now_ns, committed }
    }

    /// Appends the next stream's frame, whether or not there is room.
    fn append(&mut self) -> Result<(), Refused> {
        self.turn = (self.turn + 1) % STREAMS;
        let life = &mut self.lives[self.turn];
        let seq = life.next_seq;
        life.next_seq += 1;
        let frame = StoredFrame {
            first: seq,
            last: seq,
            count: 1,
            flushed_ns: self.now_ns,
            received_ns: self.now_ns,
            body: self.body.clone(),
        };
        self.store.append(life.key, frame)
    }

    fn wait_until_safe(&self) {
        while self.store.stats().in_flight_bytes > 0 {
            self.committed.recv_timeout(PATIENCE).expect("the store commits");
        }
    }
}

fn store(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut bench = Bench::new(folder.path());
    let mut group = criterion.benchmark_group("store");
    group.throughput(Throughput::Bytes(FRAME_BYTES as u64));
    group.bench_function("append", |bencher| {
        bencher.iter_custom(|iterations| {
            let mut elapsed = Duration::ZERO;
            let mut left = iterations;
            while left > 0 {
                // As many as there is room for in any case.
                let frames = left.min(4_096);
                let begin = Instant::now();
                for _ in 0..frames {
                    black_box(bench.append()).expect("there is room");
                }
                elapsed += begin.elapsed();
                left -= frames;
                bench.wait_until_safe();
            }
            elapsed
        });
    });
    for frames in [1_usize, 64, 1_024] {
        group.throughput(Throughput::Bytes((frames * FRAME_BYTES) as u64));
        group.bench_function(format!("commit/{frames}"), |bencher| {
            bencher.iter(|| {
                for _ in 0..frames {
                    bench.append().expect("there is room");
                }
                bench.wait_until_safe();
            });
        });
    }
    group.finish();
    let stats = bench.store.stats();
    assert!(stats.committed_frames > 0 && stats.refused_frames == 0);
    bench.store.close().expect("the disk has room");
}

criterion_group!(benches, store);
criterion_main!(benches);
