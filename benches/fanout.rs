//! What does one delivery cost, a sample times a subscriber: from a checked publish through the hub and the outboxes to the
//! bytes of a write? And does it allocate?
//!
//! One channel, subscribers of the default class. each round is one publish, 100 ms of virtual time after the last, so it is
//! sealed at once: as many frames as blocks, the dearest case. Canonical: blocks of 1 and of 32 samples of 128 bytes; 10,
//! 100 and 1,000 subscribers; one worker. The first number of a name is the samples, the second the subscribers.
//!
//! * `core`: `Outbox::gather`, a copy into one buffer, `Outbox::advance`.
//! * `writer`: the writer as it runs, with its clock reads and histograms; the write itself goes nowhere.
//!
//! Every figure is per delivery. A round's allocations (the frame's) are printed first; with twice the subscribers they must
//! be as many, or the bench fails. tests/allocations.rs holds the same in every test run.
//!
//! What would make it lie:
//! - No system call, which is most of what a delivery costs on a socket.
//! - No tasks: the writer is polled without a scheduler, and wakers do nothing.
//! - One channel: its frame, and up to 100 subscribers' outboxes, stay in the cache.
//! - Virtual time runs ahead of the clock that the writer reads, so all waits are recorded as zero, in one bucket.
//! - 32 samples in one frame share its cost; compare frames, not samples, when the samples in a block change.
//!
//! Nothing is random. `cargo bench --bench fanout`; `cargo bench --bench fanout -- --test` runs each once.

use std::time::Instant;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

#[path = "fanout/room.rs"]
mod room;

use room::{Drain, Room};

const SAMPLES: [usize; 2] = [1, 32];
const SUBSCRIBERS: [usize; 3] = [10, 100, 1_000];
/// Rounds whose allocations are counted together.
const ROUNDS: u64 = 100;

fn allocations(room: &mut Room, drain: Drain) -> u64 {
    allocation_counter::measure(|| (0..ROUNDS).for_each(|_| room.round(drain))).count_total
}

fn check_allocations(drain: Drain, samples: usize) {
    let count = |subscribers| allocations(&mut Room::new(subscribers, samples), drain);
    let (some, twice) = (count(SUBSCRIBERS[1]), count(SUBSCRIBERS[1] * 2));
    println!(
        "{drain:?}, {samples} samples: {some} allocations in {ROUNDS} frames, {twice} with twice the subscribers"
    );
    assert_eq!(some, twice, "a delivery allocates");
}

fn fanout(criterion: &mut Criterion) {
    for drain in Drain::ALL {
        for samples in SAMPLES {
            check_allocations(drain, samples);
        }
        let mut group = criterion.benchmark_group(format!("fanout/{drain:?}").to_lowercase());
        group.throughput(Throughput::Elements(1));
        for (samples, subscribers) in SAMPLES.into_iter().flat_map(|s| SUBSCRIBERS.map(|n| (s, n))) {
            let mut room = Room::new(subscribers, samples);
            group.bench_function(BenchmarkId::new(samples.to_string(), subscribers), |bencher| {
                // As many rounds as make up the deliveries asked for, scaled to them.
                bencher.iter_custom(|iterations| {
                    let rounds = iterations.div_ceil(room.deliveries());
                    let begin = Instant::now();
                    (0..rounds).for_each(|_| room.round(drain));
                    begin.elapsed().mul_f64(iterations as f64 / (rounds * room.deliveries()) as f64)
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, fanout);
criterion_main!(benches);
