//! The store without its thread, against a naive model, on a disk that does everything that disks do. No file, no clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;

use super::disk::Disk;
use super::log::{Batch, Log, checkpoint_bytes_max, frame_bytes_max};
use super::record::{self, FRAME_OVERHEAD, Found, HEAD, Record, Scanner, StoredHead};
use super::registry::{Registry, Rule};
use super::simulated::Simulated;
use super::*;

const NAMES: [&str; 4] = ["plain", "short", "small", "other.plain"];

/// Some are kept by age, some by bytes.
fn retention(name: &str) -> Option<Retention> {
    let (bytes, age) = match name {
        "short" => (1 << 20, 2_000),
        "small" => (2_000, 1_000_000),
        "gone" => return None,
        _ => (8_000, 1_000_000),
    };
    Some(Retention { bytes, age: Duration::from_millis(age) })
}

fn rule() -> Rule {
    Box::new(retention)
}

fn settings(dir_bytes_max: u64) -> StoreSettings {
    StoreSettings { dir_bytes_max, ..StoreSettings::default() }
}

/// A store whose thread is the test.
struct Bench {
    disk: Simulated,
    settings: StoreSettings,
    now_ns: u64,
    log: Log<Simulated>,
    registry: Registry,
    batch: Batch,
    lives: BTreeMap<&'static str, Life>,
}

/// What a start found.
struct Start {
    streams: BTreeMap<String, (Life, Vec<StoredFrame>)>,
    notes: Vec<String>,
    full: bool,
}

impl Bench {
    fn open(disk: Simulated, settings: &StoreSettings, now_ns: u64) -> (Self, Start) {
        let OpenedLog { log, mut frames, notes, full } =
            open_log(disk.clone(), settings, &rule(), now_ns).expect("the disk can be read");
        let streams = log
            .states()
            .filter(|state| state.retired_ns == 0)
            .map(|state| {
                let frames = frames.remove(&state.key).unwrap_or_default();
                (state.name.to_string(), (Life::of(state), frames))
            })
            .collect();
        let registry = Registry::new(
            rule(),
            log.states().cloned(),
            checkpoint_bytes_max(settings.dir_bytes_max),
            frame_bytes_max(settings.dir_bytes_max),
        );
        let bench = Self {
            disk,
            settings: settings.clone(),
            now_ns,
            log,
            registry,
            batch: Batch::default(),
            lives: BTreeMap::new(),
        };
        (bench, Start { streams, notes, full: full.is_some() })
    }

    fn life(&mut self, name: &'static str) -> &mut Life {
        let registry = &mut self.registry;
        self.lives.entry(name).or_insert_with(|| registry.stream(name).expect("it is kept"))
    }

    fn frame(&self, first: Seq, samples: u64, bytes: usize) -> StoredFrame {
        StoredFrame {
            first,
            last: first + samples - 1,
            count: u32::try_from(samples).expect("few"),
            flushed_ns: self.now_ns + 1,
            received_ns: self.now_ns,
            body: std::iter::repeat_with(|| fastrand::u8(..)).take(bytes).collect::<Vec<_>>().into(),
        }
    }

    /// Gives a stream a frame; returns it with the epoch.
    fn append(&mut self, name: &'static str, samples: u64, bytes: usize) -> (u32, StoredFrame) {
        let life = self.life(name);
        let (key, epoch, first) = (life.key, life.epoch, life.next_seq);
        life.next_seq += samples;
        let frame = self.frame(first, samples, bytes);
        self.registry.offer(key, &frame).expect("it follows");
        self.batch.frames.push((key, frame.clone()));
        (epoch, frame)
    }

    /// What the thread does in a turn; returns whether the batch is safe.
    fn commit(&mut self) -> bool {
        let (states, gone) = self.registry.take_changes();
        self.batch.states.extend(states);
        self.batch.gone.extend(gone);
        let safe = self.log.commit(&self.batch).is_ok();
        if safe {
            self.batch = Batch::default();
        }
        let _ = self.log.maintain(self.now_ns);
        safe
    }

    fn forget(&mut self, name: &'static str) {
        if let Some(life) = self.lives.remove(name) {
            self.registry.forget(life.key, self.now_ns);
        }
    }

    /// Returns whether it succeeded.
    fn close(&mut self) -> bool {
        self.commit() && self.log.close(self.registry.states()).is_ok()
    }

    fn again(&self) -> (Self, Start) {
        Self::open(self.disk.clone(), &self.settings, self.now_ns)
    }
}

#[derive(Clone, Debug)]
enum Step {
    Append { name: usize, samples: u64, bytes: usize },
    Commit,
    Forget { name: usize },
    Wait { ms: u64 },
    Room(Option<usize>),
    FailSyncs(u32),
    Close,
    Kill,
    LosePower(u64),
    Damage(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        24 => (0..NAMES.len(), 1..20_u64, 0..600_usize)
            .prop_map(|(name, samples, bytes)| Step::Append { name, samples, bytes }),
        12 => Just(Step::Commit),
        1 => (0..NAMES.len()).prop_map(|name| Step::Forget { name }),
        3 => (0..3_000_u64).prop_map(|ms| Step::Wait { ms }),
        1 => (0..2_000_usize).prop_map(|room| Step::Room(Some(room))),
        2 => Just(Step::Room(None)),
        1 => (0..3_u32).prop_map(Step::FailSyncs),
        1 => Just(Step::Close),
        1 => Just(Step::Kill),
        2 => any::<u64>().prop_map(Step::LosePower),
        1 => any::<u64>().prop_map(Step::Damage),
    ]
}

/// A stream as the model sees it: everything that was ever given, in order, with whether it was told to be safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Nobody was told that it is safe.
    Pending,
    Safe,
    /// It need not be there, and may be: it was not kept any longer, but its file lasts as long as anything else in it.
    Old,
}

#[derive(Default)]
struct Told {
    frames: Vec<(StoredFrame, Fate)>,
    /// Up to here it is forgotten, as soon as that is safe.
    forgotten: Option<Seq>,
    /// The life that samples are numbered in.
    life: Option<Life>,
}

struct Model {
    streams: BTreeMap<&'static str, Told>,
    /// Every pair of epoch and sequence that a sample of a name ever had.
    used: BTreeSet<(&'static str, u32, Seq)>,
    /// Every frame that was ever given.
    given: BTreeMap<&'static str, Vec<StoredFrame>>,
    /// Something rotted: not everything that was safe is there.
    rotten: bool,
    /// Something failed in this life: there may be damage at the end of a file.
    failed: bool,
}

impl Model {
    /// What has to be there: walks from the newest frame to the oldest. One that may have been there ends it where it did not fit.
    fn expected(told: &Told, retention: Retention, now_ns: u64, there: &[StoredFrame]) -> Vec<StoredFrame> {
        let mut left = retention.bytes;
        let mut expected = Vec::new();
        for (frame, fate) in told.frames.iter().rev() {
            let bytes = (FRAME_OVERHEAD + frame.body.len()) as u64;
            let age = now_ns.saturating_sub(frame.received_ns);
            let fits = bytes <= left && u128::from(age) <= retention.age.as_nanos();
            if !expected.is_empty() && !fits {
                break;
            }
            if *fate != Fate::Safe && !there.contains(frame) {
                continue;
            }
            left = left.saturating_sub(bytes);
            expected.push(frame.clone());
        }
        expected.reverse();
        expected
    }

    /// Compares what a start found with what has to be there, and goes on with it.
    fn check(&mut self, start: &Start, in_order: bool, now_ns: u64, evicted: bool) {
        for (name, told) in &mut self.streams {
            let Some((life, frames)) = start.streams.get(*name) else {
                // Nothing of it was safe, or it rotted: a later life has an epoch of its own.
                let safe = told.frames.iter().any(|(_, fate)| *fate == Fate::Safe);
                assert!(!safe || self.rotten, "{name} is lost");
                // What says that it was forgotten may be as unsafe as anything on a full disk.
                told.frames.retain(|(_, fate)| start.full && *fate != Fate::Pending);
                told.frames.iter_mut().for_each(|(_, fate)| *fate = Fate::Old);
                (told.life, told.forgotten) = (None, None);
                continue;
            };
            told.frames.retain(|(frame, fate)| {
                let possible = frame.last < life.next_seq;
                assert!(possible || *fate != Fate::Safe || self.rotten, "{name}: {} was safe", frame.last);
                possible
            });
            for frame in frames {
                // What was safe and forgotten may be back where something rotted.
                let known = told.frames.iter().any(|(given, _)| given == frame);
                let old = self.rotten && self.given[name].contains(frame);
                assert!(known || old, "{name}: nobody gave {frame:?}");
            }
            let expected = Self::expected(told, retention(name).expect("it is kept"), now_ns, frames);
            told.forgotten = None;
            let order = frames.windows(2).all(|two| two[0].last < two[1].first);
            assert!(order, "{name}: out of order");
            let bytes: usize = frames.iter().map(|frame| FRAME_OVERHEAD + frame.body.len()).sum();
            let most = retention(name).expect("it is kept").bytes;
            assert!(frames.len() <= 1 || bytes as u64 <= most, "{name}: {bytes} bytes are kept");
            if !self.rotten && !evicted {
                // There may be more: behind one that did not fit, an older one that does, if it lasted longer.
                let missing = expected.iter().find(|frame| !frames.contains(frame));
                assert_eq!(missing, None, "{name}");
            }
            told.frames.retain(|(frame, fate)| *fate != Fate::Pending || frames.contains(frame));
            for (frame, fate) in &mut told.frames {
                *fate = match (frames.contains(frame), *fate) {
                    // It is there, and cannot be written again.
                    (true, Fate::Pending | Fate::Old) if start.full => Fate::Old,
                    (true, _) => Fate::Safe,
                    (false, _) => Fate::Old,
                };
            }
            let Some(before) = told.life.replace(life.clone()) else { continue };
            if before.epoch == life.epoch {
                assert!(in_order, "{name} goes on with its epoch");
                assert_eq!(&before, life, "{name}");
            } else {
                let allowed = !in_order || self.rotten || self.failed || start.full;
                assert!(allowed, "{name} has a new epoch after a stop in order: {:?}", start.notes);
                let mut lineage = before.lineage.clone();
                lineage.push(Ancestor { epoch: before.epoch, last: life.next_seq - 1 });
                lineage.drain(..lineage.len().saturating_sub(LINEAGE_MAX));
                // A life that was never safe, because the disk was full, is not remembered; its epoch is not used again.
                let same = lineage == life.lineage;
                assert!(
                    same || self.rotten || self.failed || before.lineage.is_empty(),
                    "{name}: {lineage:?} {life:?}"
                );
            }
        }
        self.failed = start.full;
    }
}

fn run(steps: &[Step], dir_bytes_max: u64) {
    let evicts = dir_bytes_max < 1 << 20;
    fastrand::seed(1);
    let disk = Simulated::default();
    let (mut bench, _) = Bench::open(disk.clone(), &settings(dir_bytes_max), 1_000_000_000_000);
    let mut model = Model {
        streams: BTreeMap::new(),
        used: BTreeSet::new(),
        given: BTreeMap::new(),
        rotten: false,
        failed: false,
    };
    let commit = |bench: &mut Bench, model: &mut Model| {
        let safe = bench.commit();
        model.failed |= !safe;
        if safe {
            for told in model.streams.values_mut() {
                let forgotten = told.forgotten.take().unwrap_or_default();
                told.frames.retain(|(frame, _)| frame.last > forgotten);
                for (_, fate) in &mut told.frames {
                    if *fate == Fate::Pending {
                        *fate = Fate::Safe;
                    }
                }
            }
        }
        safe
    };
    for step in steps {
        match step {
            Step::Append { name, samples, bytes } => {
                let name = NAMES[*name];
                let (epoch, frame) = bench.append(name, *samples, *bytes);
                for seq in frame.first..=frame.last {
                    assert!(model.used.insert((name, epoch, seq)), "{name}: {epoch}:{seq} is used twice");
                }
                let told = model.streams.entry(name).or_default();
                model.given.entry(name).or_default().push(frame.clone());
                told.frames.push((frame, Fate::Pending));
                told.life = bench.lives.get(name).cloned();
            }
            Step::Commit => {
                commit(&mut bench, &mut model);
            }
            Step::Forget { name } => {
                bench.forget(NAMES[*name]);
                if let Some(told) = model.streams.get_mut(NAMES[*name]) {
                    told.forgotten = told.frames.last().map(|(frame, _)| frame.last);
                    told.frames
                        .iter_mut()
                        .filter(|(_, fate)| *fate == Fate::Safe)
                        .for_each(|(_, fate)| *fate = Fate::Old);
                    told.life = None;
                }
            }
            Step::Wait { ms } => bench.now_ns += ms * 1_000_000,
            Step::Room(room) => disk.set_room(*room),
            Step::FailSyncs(syncs) => {
                model.failed |= *syncs > 0;
                disk.fail_syncs(*syncs);
            }
            Step::Close | Step::Kill | Step::LosePower(_) => {
                let in_order = matches!(step, Step::Close) && commit(&mut bench, &mut model) && bench.close();
                if let Step::LosePower(seed) = step {
                    disk.lose_power(*seed);
                }
                bench = reopen(&bench, &mut model, in_order, evicts);
            }
            Step::Damage(seed) => {
                let mut random = fastrand::Rng::with_seed(*seed);
                let names = disk.names();
                let Some(name) = random.choice(names) else { continue };
                model.rotten = true;
                match random.u8(..3) {
                    0 => disk.destroy(&name),
                    1 => disk.change(&name, |data| data.truncate(random.usize(..=data.len()))),
                    _ => disk.change(&name, |data| {
                        for _ in 0..random.usize(..8) {
                            if !data.is_empty() {
                                let at = random.usize(..data.len());
                                data[at] ^= 1 << random.u8(..8);
                            }
                        }
                    }),
                }
                bench = reopen(&bench, &mut model, false, evicts);
            }
        }
        let bytes = disk.bytes();
        assert!(bytes <= dir_bytes_max + slack(&model), "{bytes} bytes after {step:?}");
    }
}

/// Another process on the same disk, which works again.
fn reopen(bench: &Bench, model: &mut Model, in_order: bool, evicts: bool) -> Bench {
    bench.disk.fail_syncs(0);
    let (mut again, start) = bench.again();
    model.check(&start, in_order, bench.now_ns, evicts);
    for (name, told) in &model.streams {
        if let Some(life) = &told.life {
            again.lives.insert(name, life.clone());
        }
    }
    again
}

/// What a failed disk may not have let go.
fn slack(model: &Model) -> u64 {
    if model.failed || model.rotten { u64::MAX / 2 } else { 0 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn nothing_safe_is_lost_and_no_number_used_twice(steps in prop::collection::vec(step(), 1..200)) {
        run(&steps, 1 << 20);
    }

    #[test]
    fn a_small_store_stays_small(steps in prop::collection::vec(step(), 1..200)) {
        run(&steps, 48 << 10);
    }

    #[test]
    fn any_bytes_are_scanned_without_a_panic(
        mut bytes in prop::collection::vec(any::<u8>(), 0..2_000),
        salt in any::<u64>(),
    ) {
        let head = record::head();
        let length = head.len().min(bytes.len());
        bytes[..length].copy_from_slice(&head[..length]);
        let read: usize = Scanner::new(&bytes, salt)
            .map(|found| match found {
                Found::Record(range, _) | Found::Damage(range) => range.len(),
            })
            .sum();
        prop_assert_eq!(read, bytes.len() - if length == head.len() { length } else { 0 });
    }
}

/// A store that appends to some streams, with a commit after each round.
fn filled(dir_bytes_max: u64, rounds: usize, mut each: impl FnMut(&mut Bench, usize)) -> (Bench, u64) {
    fastrand::seed(2);
    let (mut bench, _) = Bench::open(Simulated::default(), &settings(dir_bytes_max), 1_000_000_000_000);
    let mut most = 0;
    for round in 0..rounds {
        each(&mut bench, round);
        assert!(bench.commit());
        most = most.max(bench.disk.bytes());
    }
    (bench, most)
}

#[test]
fn space_is_given_back_while_the_store_is_open() {
    // Of the many bytes of one stream 2,000 are to be kept, and one frame of another stands between them for good.
    let (mut bench, most) = filled(16 << 20, 4_000, |bench, round| {
        bench.append("small", 10, 1_000);
        if round % 50 == 0 {
            bench.append("plain", 1, 10);
        }
    });
    let written = 4_000 * 1_064;
    // Two segments of a 64th, what lives, and as much again.
    assert!(most < 4 * (16 << 20) / 64, "{most} bytes on the disk for some 10,000 that live");
    let moved = bench.log.totals().moved_bytes;
    assert!(moved < written / 10, "{moved} bytes written twice, of {written}");
    assert_eq!(bench.log.totals().evicted_bytes, 0);
    // Nothing but the newest frame of each stays when all is old, and no more than the segment that is written to.
    bench.now_ns += 10_000_000_000_000;
    for _ in 0..10 {
        assert!(bench.commit());
    }
    assert!(bench.close());
    let (_, start) = bench.again();
    for name in ["small", "plain"] {
        assert_eq!(start.streams[name].1.len(), 1, "{name}");
    }
}

#[test]
fn a_frame_of_an_idle_stream_outlasts_the_log_around_it() {
    let mut kept = None;
    let (mut bench, _) = filled(1 << 20, 3_000, |bench, round| {
        if round == 0 {
            kept = Some(bench.append("plain", 3, 100).1);
        }
        bench.append("small", 1, 900);
    });
    assert_eq!(bench.log.totals().evicted_bytes, 0);
    assert!(bench.close());
    assert_eq!(bench.again().1.streams["plain"].1, [kept.expect("it was given")]);
}

#[test]
fn the_oldest_goes_where_all_that_is_to_be_kept_is_too_much() {
    let (bench, most) = filled(32 << 10, 500, |bench, _| {
        for name in ["plain", "small", "other.plain"] {
            bench.append(name, 1, 500);
        }
    });
    assert!(most <= 32 << 10, "{most}");
    assert!(bench.log.totals().evicted_bytes == 0, "8,000 bytes of two, 2,000 of one: they fit");
    let (mut bench, most) = filled(32 << 10, 500, |bench, _| {
        // By its rule a megabyte of it is kept.
        bench.append("short", 1, 500);
        bench.append("small", 1, 10);
    });
    assert!(most <= 32 << 10, "{most}");
    assert!(bench.log.totals().evicted_bytes > 0);
    assert!(bench.close());
    let frames = &bench.again().1.streams["short"].1;
    assert_eq!(frames.last().map(|frame| frame.last), Some(500));
    assert!(frames.len() > 20 && frames.windows(2).all(|two| two[0].last + 1 == two[1].first));
}

#[test]
fn a_stream_that_comes_back_goes_on_with_its_numbers() {
    let (mut bench, _) = filled(1 << 20, 3, |bench, _| {
        bench.append("plain", 5, 100);
    });
    let before = bench.life("plain").clone();
    bench.forget("plain");
    assert!(bench.close());
    let (mut bench, start) = bench.again();
    assert!(!start.streams.contains_key("plain"));
    assert_eq!(bench.life("plain"), &before);
    let frame = bench.append("plain", 1, 10).1;
    assert_eq!(frame.first, 16);
    assert!(bench.close());
    assert_eq!(bench.again().1.streams["plain"].1, [frame]);
}

#[test]
fn a_retired_stream_is_remembered_for_a_day() {
    let day = 24 * 60 * 60 * 1_000_000_000;
    let (mut bench, _) = filled(1 << 20, 1, |bench, _| {
        bench.append("plain", 5, 100);
    });
    let before = bench.life("plain").clone();
    bench.forget("plain");
    bench.registry.expire(bench.now_ns + day);
    assert_eq!(bench.life("plain").key, before.key);
    bench.forget("plain");
    bench.now_ns += day + 1;
    bench.registry.expire(bench.now_ns);
    let after = bench.life("plain").clone();
    assert_eq!(after.next_seq, 1);
    assert_ne!((after.key, after.epoch), (before.key, before.epoch));
}

#[test]
fn a_name_of_which_nothing_is_kept_is_refused_and_its_past_forgotten() {
    let mut registry = Registry::new(rule(), [], 10_000, 1_000);
    assert_eq!(registry.stream("gone"), Err(Refused::NotKept));
    let (mut bench, _) = filled(1 << 20, 1, |bench, _| {
        bench.append("plain", 5, 100);
    });
    assert!(bench.close());
    let none: Rule = Box::new(|_| None);
    let opened = open_log(bench.disk.clone(), &bench.settings, &none, bench.now_ns).expect("it can be read");
    assert!(opened.frames.values().all(Vec::is_empty));
    assert!(opened.log.states().all(|state| state.retired_ns > 0 && state.next_seq == 6));
}

#[test]
fn states_and_frames_are_bounded() {
    let mut registry = Registry::new(Box::new(|_| Some(Retention::NONE)), [], 2_000, 1_000);
    let lives: Vec<_> = (0..).map_while(|n| registry.stream(&format!("name {n}")).ok()).collect();
    assert_eq!(lives.len(), 2_000 / record::State::bytes_max("name 0"));
    assert_eq!(registry.stream("one more"), Err(Refused::TooManyStreams));
    registry.forget(lives[0].key, 1);
    assert!(registry.stream("one more").is_ok(), "a retired one makes room");

    let (bench, _) = Bench::open(Simulated::default(), &settings(1 << 20), 1);
    let key = lives[1].key;
    let mut offer = |frame: &StoredFrame| registry.offer(key, frame);
    assert_eq!(offer(&bench.frame(1, 5, 1_001)), Err(Refused::TooLarge));
    assert_eq!(offer(&bench.frame(5, 1, 1)), Err(Refused::OutOfOrder), "what was refused was given out");
    assert_eq!(offer(&bench.frame(6, 1, 1)), Ok(()));
    assert_eq!(registry.offer(lives[0].key, &bench.frame(1, 1, 1)), Err(Refused::Forgotten));
}

#[test]
fn sixteen_ends_are_remembered() {
    let (mut bench, _) = filled(1 << 20, 1, |bench, _| {
        bench.append("plain", 1, 10);
    });
    let mut ancestors = Vec::new();
    for round in 1..40 {
        let life = bench.life("plain").clone();
        ancestors.push(Ancestor { epoch: life.epoch, last: round });
        let (again, start) = bench.again();
        bench = again;
        let lineage = &start.streams["plain"].0.lineage;
        assert_eq!(lineage, &ancestors[ancestors.len().saturating_sub(LINEAGE_MAX)..]);
        bench.append("plain", 1, 10);
        assert!(bench.commit());
    }
}

#[test]
fn a_disk_that_is_full_at_the_start_gives_new_epochs_and_loses_nothing() {
    let (mut bench, _) = filled(1 << 20, 3, |bench, _| {
        bench.append("plain", 5, 100);
    });
    let before = bench.life("plain").clone();
    assert!(bench.close());
    bench.disk.set_room(Some(0));
    for _ in 0..3 {
        let (again, start) = bench.again();
        assert!(start.full);
        let (life, frames) = &start.streams["plain"];
        assert_ne!(life.epoch, before.epoch, "the mark of the stop stands: the next start believes it");
        assert_eq!((life.next_seq, frames.len()), (16, 3));
        bench = again;
    }
    bench.disk.set_room(None);
    bench.append("plain", 5, 100);
    assert!(bench.commit());
    let (life, frames) = bench.again().1.streams.remove("plain").expect("it is there");
    assert_eq!((life.next_seq, frames.len()), (21, 4));
    assert_ne!(life.epoch, before.epoch);
}

#[test]
fn only_so_much_is_read_back() {
    let (mut bench, _) = filled(4 << 20, 200, |bench, _| {
        bench.append("short", 1, 1_000);
    });
    assert!(bench.close());
    bench.settings.recovered_bytes_max = 50_000;
    let (_, start) = bench.again();
    let frames = &start.streams["short"].1;
    assert!((30..60).contains(&frames.len()), "{}", frames.len());
    assert_eq!(frames.last().map(|frame| frame.last), Some(200), "the newest");
    assert!(start.notes.iter().any(|note| note.contains("left out")), "{:?}", start.notes);
}

#[test]
fn another_format_is_refused_in_words() {
    let (mut bench, _) = filled(1 << 20, 1, |bench, _| {
        bench.append("plain", 5, 100);
    });
    assert!(bench.close());
    let name = bench.disk.names().pop().expect("a segment");
    bench.disk.change(&name, |data| {
        data[8] = 2;
        let sum = crc32fast::hash(&data[..12]);
        data[12..HEAD].copy_from_slice(&sum.to_le_bytes());
    });
    let refused =
        open_log(bench.disk.clone(), &bench.settings, &rule(), 1).err().expect("it is another format");
    assert!(refused.contains("format 2") && refused.contains(&name), "{refused}");
}

#[test]
fn a_record_within_a_sample_is_never_found() {
    let key = StreamKey(7);
    let head = StoredHead { key, first: 1, last: 1, count: 1, flushed_ns: 1, received_ns: 1 };
    let (salt, guessed) = (0x1234_5678, 0x1234_5679);
    // A publisher who knows all but the salt puts a record where it will be, behind a head that then rots.
    let mut forged = Vec::new();
    record::put_frame(&mut forged, guessed, (HEAD + FRAME_OVERHEAD) as u64, &head, b"forged");
    let mut segment = record::head().to_vec();
    record::put_frame(&mut segment, salt, HEAD as u64, &head, &forged);
    let end = segment.len() as u64;
    record::put_frame(&mut segment, salt, end, &head, b"next");
    segment[HEAD + 5] ^= 1;
    let found: Vec<_> = Scanner::new(&segment, salt).collect();
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(matches!(&found[1], Found::Record(_, Record::Frame(_, b"next"))), "{found:?}");
    // It was a good forgery but for the salt.
    let found: Vec<_> = Scanner::new(&segment, guessed).collect();
    assert!(
        found.iter().any(|found| matches!(found, Found::Record(_, Record::Frame(_, b"forged")))),
        "{found:?}"
    );
}

#[test]
fn every_flipped_bit_is_noticed() {
    let (mut bench, _) = filled(1 << 20, 4, |bench, _| {
        bench.append("plain", 5, 20);
    });
    assert!(bench.close());
    let name = bench.disk.names().pop().expect("a segment");
    let image = bench.disk.read(&name, u64::MAX).expect("it is there");
    let open = |image: &[u8]| {
        let disk = Simulated::default();
        disk.put(&name, image);
        let opened = open_log(disk, &bench.settings, &rule(), bench.now_ns).expect("it can be read");
        (opened.frames.into_values().flatten().collect::<Vec<_>>(), opened.notes)
    };
    let (all, notes) = open(&image);
    assert_eq!((all.len(), notes.len()), (4, 0));
    for at in 0..image.len() {
        let mut rotten = image.clone();
        rotten[at] ^= 1 << (at % 8);
        let (frames, notes) = open(&rotten);
        assert!(!notes.is_empty(), "nobody is told of the bit at {at}");
        assert!(frames.len() >= 3, "the bit at {at} costs more than one record");
        assert!(frames.iter().all(|frame| all.contains(frame)), "the bit at {at} makes a frame");
    }
    for length in 0..image.len() {
        let (frames, notes) = open(&image[..length]);
        assert!(!notes.is_empty(), "nobody is told of the end at {length}");
        assert_eq!(frames, all[..frames.len()], "the end at {length}");
    }
}
