//! What does it cost to find the subscriptions that a new channel matches, among 10,000: the index, and asking each? And to
//! subscribe and unsubscribe?
//!
//! Canonical: a fleet of 1,000 robots. 8,000 subscriptions by name (`robot.N.SENSOR`, eight sensors), 1,000 to one robot
//! (`robot.N.>`), 990 to a sensor of one group (`group.N.*.SENSOR`), and 10 to a sensor of the whole fleet
//! (`robot.*.SENSOR`). The names that are matched are a robot's sensors, old and new, and names that nobody waits for.
//!
//! * `match/index`, `match/linear`: per name.
//! * `insert_remove`: a subscription comes and goes, with the branches that it needs.
//! * `permission/name`, `permission/pattern`: whether a token with 20 patterns, 16 allowed and 4 denied, gives the right to a
//!   channel or a pattern; the last of those allowed does, so that all are asked.
//! * `remove/popular`: one of 10,000 subscriptions to the same pattern goes, and comes again: the worst case.
//!
//! What would make it lie: a name finds two or three subscriptions; a pattern that everybody has costs each of its values,
//! which no index can save. The same names come again and again, so their part of the tree is in the cache. The linear
//! search is the plain one; with literals in a hash table, it would ask 2,000 patterns instead of 10,000.
//!
//! Fixed seed. `cargo bench --bench pattern`; `cargo bench --bench pattern -- --test` runs each once.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tidewire::auth::grants::{Claim, Grants, Right};
use tidewire::pattern::Pattern;
use tidewire::pattern::index::PatternIndex;

const ROBOTS: usize = 1_000;
const SENSORS: [&str; 8] = ["imu", "gps", "battery", "lidar", "pose", "arm", "grip", "log"];
const SUBSCRIPTIONS: usize = 10_000;
const NAMES: usize = 256;
const SEED: u64 = 0x7469_6465;

fn pattern(text: &str) -> Pattern {
    Pattern::parse(text, 255).expect("a valid pattern")
}

fn subscriptions() -> Vec<Pattern> {
    let mut patterns = Vec::with_capacity(SUBSCRIPTIONS);
    for robot in 0..ROBOTS {
        patterns.extend(SENSORS.iter().map(|sensor| pattern(&format!("robot.{robot}.{sensor}"))));
        patterns.push(pattern(&format!("robot.{robot}.>")));
    }
    patterns.extend((0..10).map(|sensor| match SENSORS.get(sensor) {
        Some(sensor) => pattern(&format!("robot.*.{sensor}")),
        None => pattern(&format!("robot.*.extra-{sensor}")),
    }));
    let groups = (patterns.len()..SUBSCRIPTIONS)
        .map(|group| pattern(&format!("group.{group}.*.{}", SENSORS[group % SENSORS.len()])));
    patterns.extend(groups);
    fastrand::Rng::with_seed(SEED).shuffle(&mut patterns);
    patterns
}

fn names() -> Vec<String> {
    let mut random = fastrand::Rng::with_seed(SEED);
    let mut name = |index: usize| {
        let sensor = SENSORS[random.usize(..SENSORS.len())];
        match index % 4 {
            // Known; a new sensor; a new robot; nobody's.
            0 => format!("robot.{}.{sensor}", random.usize(..ROBOTS)),
            1 => format!("robot.{}.new-{sensor}", random.usize(..ROBOTS)),
            2 => format!("robot.{}.{sensor}", ROBOTS + random.usize(..ROBOTS)),
            _ => format!("plant.{}.{sensor}", random.usize(..ROBOTS)),
        }
    };
    (0..NAMES).map(&mut name).collect()
}

fn index_of(patterns: &[Pattern]) -> PatternIndex<usize> {
    let mut index = PatternIndex::new();
    patterns.iter().enumerate().for_each(|(value, pattern)| index.insert(pattern, value));
    index
}

fn find_by_index(index: &PatternIndex<usize>, name: &str) -> usize {
    let mut found = 0;
    index.matching(name, &mut |value| {
        black_box(value);
        found += 1;
    });
    found
}

fn find_linearly(patterns: &[Pattern], name: &str) -> usize {
    patterns.iter().filter(|pattern| pattern.matches(name)).count()
}

fn benches(criterion: &mut Criterion) {
    let (patterns, names) = (subscriptions(), names());
    assert_eq!(patterns.len(), SUBSCRIPTIONS);
    let mut index = index_of(&patterns);
    let counts = |find: &dyn Fn(&str) -> usize| names.iter().map(|name| find(name)).collect::<Vec<_>>();
    let found = counts(&|name| find_by_index(&index, name));
    assert_eq!(found, counts(&|name| find_linearly(&patterns, name)), "both find the same");
    println!("{} names find {} subscriptions", names.len(), found.iter().sum::<usize>());

    let mut group = criterion.benchmark_group("pattern");
    group.throughput(Throughput::Elements(1));
    let mut next = names.iter().cycle();
    let mut name = || next.next().expect("an endless list").as_str();
    group.bench_function("match/index", |bencher| bencher.iter(|| find_by_index(&index, name())));
    group.bench_function("match/linear", |bencher| bencher.iter(|| find_linearly(&patterns, name())));

    let mut next = patterns.iter().enumerate().cycle();
    group.bench_function("insert_remove", |bencher| {
        bencher.iter(|| {
            let (value, pattern) = next.next().expect("an endless list");
            index.remove(pattern, value);
            index.insert(pattern, value);
        });
    });

    let everybody = vec![pattern("robot.*.imu"); SUBSCRIPTIONS];
    let mut popular = index_of(&everybody);
    let mut random = fastrand::Rng::with_seed(SEED);
    group.bench_function("remove/popular", |bencher| {
        bencher.iter(|| {
            let value = random.usize(..SUBSCRIPTIONS);
            popular.remove(&everybody[value], value);
            popular.insert(&everybody[value], value);
        });
    });

    let grants = grants();
    let (name, wanted) = ("robot.7.imu", pattern("robot.7.*"));
    assert!(grants.allow_name(Right::Subscribe, name) && grants.allow_pattern(Right::Subscribe, &wanted));
    group.bench_function("permission/name", |bencher| {
        bencher.iter(|| black_box(&grants).allow_name(Right::Subscribe, black_box(name)));
    });
    group.bench_function("permission/pattern", |bencher| {
        bencher.iter(|| black_box(&grants).allow_pattern(Right::Subscribe, black_box(&wanted)));
    });
    group.finish();
}

/// The rights of one who looks after a few robots, of a fleet in which a few channels are secret.
fn grants() -> Grants {
    let mut claim = Claim::default();
    claim.subscribe.extend((0..8).map(|plant| format!("plant.{plant}.>")));
    claim.subscribe.extend((0..7).map(|robot| format!("robot.{}.>", 100 + robot)));
    claim.subscribe.push("robot.7.>".into());
    claim.deny.subscribe.extend(["key", "camera"].map(|secret| format!("robot.*.{secret}.>")));
    claim.deny.subscribe.extend(["plant.*.door", "robot.9.>"].map(str::to_owned));
    Grants::try_from(&claim).expect("valid patterns")
}

criterion_group!(pattern_index, benches);
criterion_main!(pattern_index);
