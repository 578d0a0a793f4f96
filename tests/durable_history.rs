//! The durable history on real files: kill -9, full disks, damage, and who may have the folder. No server, no socket.
//!
//! What is told as safe has to be there again after `kill -9`; that shows the order of writing and telling, not that the disk keeps its
//! word: the kernel outlives the process, and has what was written whether or not it was synced. A loss of power is played through in
//! the store's own tests, on a disk in memory that forgets what was not synced. A full disk is one on which no file may
//! grow (`RLIMIT_FSIZE`), in a process of its own; that works without root, everywhere.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, getrlimit, setrlimit};
use tidewire::history::store::{
    Ancestor, Event, Health, Life, Recovered, RecoveredStream, Refused, Retention, Store, StoreSettings,
    StoredFrame, StreamKey,
};

/// Names the folder to a child, which is this program again with one test.
const FOLDER: &str = "TIDEWIRE_TEST_HISTORY_FOLDER";

/// Longer than any disk takes; only a test that would fail waits for it.
const PATIENCE: Duration = Duration::from_secs(120);

const KEPT: Retention = Retention { bytes: 1 << 20, age: Duration::from_secs(24 * 60 * 60) };

/// What a store tells, for a test to wait for.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Committed(Vec<(StreamKey, u64)>),
    Degraded(String),
    Healthy,
}

fn settings() -> StoreSettings {
    StoreSettings {
        commit_interval: Duration::from_millis(2),
        in_flight_bytes_max: 256 << 10,
        dir_bytes_max: 8 << 20,
        recovered_bytes_max: 64 << 20,
    }
}

fn open(folder: &Path) -> Result<(Store, Recovered, Receiver<Told>), String> {
    let (sender, told) = sync_channel(100_000);
    let tell = move |event: Event<'_>| {
        let _ = sender.send(match event {
            Event::Committed(streams) => Told::Committed(streams.to_vec()),
            Event::Degraded(why) => Told::Degraded(why.to_owned()),
            Event::Healthy => Told::Healthy,
        });
    };
    let (store, recovered) = Store::open(folder, &settings(), |_| Some(KEPT), tell)?;
    Ok((store, recovered, told))
}

fn next(told: &Receiver<Told>) -> Told {
    told.recv_timeout(PATIENCE).expect("the store tells something")
}

/// Waits until a stream is safe up to a sequence.
fn committed(told: &Receiver<Told>, stream: StreamKey, seq: u64) {
    loop {
        if let Told::Committed(streams) = next(told)
            && streams.iter().any(|(key, last)| *key == stream && *last >= seq)
        {
            return;
        }
    }
}

/// The frame that begins at a sequence of a name: the same in every process, but for the time.
fn frame(name: &str, first: u64) -> StoredFrame {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is past 1970");
    let now_ns = u64::try_from(now.as_nanos()).expect("it is before 2554");
    let seed = name.bytes().fold(first, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
    let mut random = fastrand::Rng::with_seed(seed);
    let samples = random.u64(1..5);
    let body: Vec<u8> = (0..random.usize(10..3_000)).map(|_| random.u8(..)).collect();
    StoredFrame {
        first,
        last: first + samples - 1,
        count: u32::try_from(samples).expect("few"),
        flushed_ns: now_ns,
        received_ns: now_ns,
        body: body.into(),
    }
}

/// Whether frames are what [`frame`] makes.
fn sound(name: &str, frames: &[StoredFrame]) -> bool {
    frames.windows(2).all(|two| two[0].last < two[1].first)
        && frames.iter().all(|stored| {
            let given = frame(name, stored.first);
            (given.last, given.count, &given.body) == (stored.last, stored.count, &stored.body)
        })
}

/// Appends until so many frames were taken; returns the next sequence.
fn append(store: &Store, life: &Life, name: &str, frames: usize) -> u64 {
    let mut first = life.next_seq;
    for _ in 0..frames {
        let frame = frame(name, first);
        first = frame.last + 1;
        store.append(life.key, frame).expect("there is room");
    }
    first
}

fn stream<'a>(recovered: &'a Recovered, name: &str) -> &'a RecoveredStream {
    recovered.streams.iter().find(|stream| &*stream.name == name).expect("the stream is there")
}

/// This program again, with one test, told of a folder. Growing beyond a limit is an error there, no signal.
fn child(test: &str, folder: &Path) -> Child {
    Command::new("sh")
        .args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().expect("the test is a program"))
        .args(["--exact", test, "--nocapture"])
        .env(FOLDER, folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the test is started again")
}

fn folder_of_child() -> Option<PathBuf> {
    std::env::var_os(FOLDER).map(PathBuf::from)
}

#[test]
fn what_was_told_as_safe_survives_kill_9() {
    const NAMES: [&str; 2] = ["one", "two"];
    if let Some(folder) = folder_of_child() {
        let (store, _, told) = open(&folder).expect("the folder can be used");
        let mut lives: Vec<Life> =
            NAMES.iter().map(|name| store.stream(name).expect("there is room")).collect();
        println!("\n@ {} {}", lives[0].epoch, lives[1].epoch);
        loop {
            for (name, life) in NAMES.iter().zip(&mut lives) {
                life.next_seq = append(&store, life, name, 7);
            }
            // Not the last ones: something is always on its way.
            if let Told::Committed(streams) = next(&told) {
                for (key, last) in streams {
                    let name = if key == lives[0].key { "one" } else { "two" };
                    println!("@ {name} {last}");
                }
            }
            while store.stats().in_flight_bytes > 100 << 10 {
                assert!(matches!(next(&told), Told::Committed(_)));
            }
        }
    }

    let folder = tempfile::tempdir().unwrap();
    let mut epochs = Vec::new();
    for round in 0..16 {
        let mut running = child("what_was_told_as_safe_survives_kill_9", folder.path());
        let mut lines = BufReader::new(running.stdout.take().expect("it is a pipe")).lines();
        let mut safe: BTreeMap<String, u64> = BTreeMap::new();
        let mut begun = Vec::new();
        let mut note = |line: String| {
            let Some(words) = line.strip_prefix("@ ").map(|line| line.split(' ').collect::<Vec<_>>()) else {
                return false;
            };
            match words[0].parse::<u32>() {
                Ok(epoch) => begun = vec![epoch, words[1].parse().expect("an epoch")],
                Err(_) => {
                    safe.insert(words[0].to_owned(), words[1].parse().expect("a sequence"));
                }
            }
            true
        };
        let mut left = fastrand::usize(1..60);
        while left > 0 {
            left -= usize::from(note(lines.next().expect("it writes until it is killed").unwrap()));
        }
        running.kill().unwrap();
        // What it told before the end counts, however late it is read; the last line may be cut.
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        for line in &rest[..rest.len().saturating_sub(1)] {
            note(line.clone());
        }
        assert!(!running.wait().unwrap().success());

        let (store, recovered, _) = open(folder.path()).unwrap();
        for (name, epoch) in NAMES.iter().zip(&begun) {
            let stream = stream(&recovered, name);
            let last = safe.get(*name).copied().unwrap_or_default();
            assert!(stream.life.next_seq > last, "round {round}: {name} {last} was told as safe");
            assert!(sound(name, &stream.frames), "round {round}: {name}");
            // Frames of a life follow each other; between lives there is a hole where some were not written.
            if let Some(there) = stream.frames.iter().find(|frame| frame.last == last) {
                assert!(there.first <= last);
            } else {
                assert_eq!(last, 0, "round {round}: {name} {last} was told as safe and is not there");
            }
            let newest = stream.life.lineage.last().expect("it was killed");
            assert_eq!(*newest, Ancestor { epoch: *epoch, last: stream.life.next_seq - 1 });
            assert!(!epochs.contains(&stream.life.epoch), "an epoch is used again");
            epochs.extend([*epoch, stream.life.epoch]);
        }
        // Half of the lives between end in order, and go on.
        if round % 2 == 0 {
            store.close().unwrap();
        }
    }
}

/// Lets no file of this process be longer, or any length.
fn limit_files(bytes: Option<u64>) {
    let mut limit = getrlimit(Resource::Fsize);
    limit.current = bytes.or(limit.maximum);
    setrlimit(Resource::Fsize, limit).expect("a limit can be lowered, and raised again");
}

#[test]
fn a_full_disk_is_told_and_left_by_itself() {
    if let Some(folder) = folder_of_child() {
        // Nothing at all; less than a checkpoint; some frames, cut anywhere.
        for limit in [0, 100, 777, 5_000] {
            let (store, _, told) = open(&folder).unwrap();
            let mut life = store.stream("full").unwrap();
            life.next_seq = append(&store, &life, "full", 10);
            committed(&told, life.key, life.next_seq - 1);
            assert_eq!(store.health(), Health::Healthy);

            limit_files(Some(limit));
            let mut last_taken = 0;
            let refused = loop {
                let frame = frame("full", life.next_seq);
                life.next_seq = frame.last + 1;
                let last = frame.last;
                match store.append(life.key, frame) {
                    Ok(()) => last_taken = last,
                    Err(refused) => break refused,
                }
            };
            assert_eq!(refused, Refused::Full);
            let why = loop {
                match next(&told) {
                    Told::Degraded(why) => break why,
                    // A first batch may be small enough.
                    Told::Committed(_) | Told::Healthy => {}
                }
            };
            assert!(why.contains("full"), "{why}");
            let checkpoint_fits = limit > 100;
            assert!(checkpoint_fits || matches!(store.health(), Health::Degraded { .. }));
            let stats = store.stats();
            assert!(stats.in_flight_bytes <= settings().in_flight_bytes_max, "memory is bounded");
            assert_eq!(stats.refused_frames, 1);
            assert!(stats.failed_commits > 0);

            limit_files(None);
            // All that was taken, in order. Health follows what was made safe.
            let (mut safe, mut healthy) = (0, false);
            while safe < last_taken || !healthy {
                match next(&told) {
                    Told::Committed(streams) => {
                        assert!(streams[0].1 > safe);
                        safe = streams[0].1;
                    }
                    Told::Healthy => healthy = true,
                    Told::Degraded(_) => healthy = false,
                }
            }
            assert_eq!(safe, last_taken);
            assert_eq!(store.health(), Health::Healthy);
            let after = append(&store, &life, "full", 10);
            committed(&told, life.key, after - 1);
            store.close().unwrap();
        }
        // Full from the start.
        limit_files(Some(0));
        let (store, recovered, told) = open(&folder).expect("what is there can be read");
        assert!(matches!(next(&told), Told::Degraded(why) if why.contains("full")));
        let life = stream(&recovered, "full").life.clone();
        assert_eq!(life.lineage.len(), 1, "no epoch is safe now, so this one is new");
        let end = append(&store, &life, "full", 5);
        limit_files(None);
        committed(&told, life.key, end - 1);
        store.close().unwrap();
        return;
    }

    let folder = tempfile::tempdir().unwrap();
    let output = child("a_full_disk_is_told_and_left_by_itself", folder.path()).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let (_, recovered, _) = open(folder.path()).unwrap();
    let stream = stream(&recovered, "full");
    assert!(sound("full", &stream.frames));
    let holes = stream.frames.windows(2).filter(|two| two[0].last + 1 != two[1].first).count();
    assert_eq!(holes, 4, "one for each refusal");
    assert_eq!(stream.frames.last().map(|frame| frame.last + 1), Some(stream.life.next_seq));
    assert_eq!(recovered.notes, Vec::<String>::new());
}

#[test]
fn a_stop_in_order_goes_on_and_any_other_begins_a_new_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("made/when needed");
    let (store, recovered, _) = open(&folder).unwrap();
    assert!(recovered.streams.is_empty() && recovered.notes.is_empty());
    let first = store.stream("a").unwrap();
    assert_eq!((first.next_seq, first.lineage.len()), (1, 0));
    let end = append(&store, &first, "a", 20);
    store.close().unwrap();

    let (store, recovered, _) = open(&folder).unwrap();
    assert_eq!(recovered.notes, Vec::<String>::new());
    let again = &stream(&recovered, "a").life;
    assert_eq!(*again, Life { next_seq: end, ..first.clone() });
    assert_eq!(store.stream("a").unwrap(), *again);
    assert!(sound("a", &stream(&recovered, "a").frames));
    assert_eq!(stream(&recovered, "a").frames.len(), 20);
    let end = append(&store, again, "a", 3);
    drop(store);

    let (_, recovered, _) = open(&folder).unwrap();
    let again = stream(&recovered, "a");
    assert_ne!(again.life.epoch, first.epoch);
    assert_eq!(again.life.lineage, [Ancestor { epoch: first.epoch, last: end - 1 }]);
    assert_eq!(again.frames.len(), 23, "dropping makes safe what was taken");
    assert_eq!(recovered.notes, ["the last stop was not in order"]);
}

#[test]
fn a_folder_that_cannot_be_used_is_an_error_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |path: &Path| open(path).expect_err("it cannot be used");
    let (_store, ..) = open(folder.path()).unwrap();
    let words = refused(folder.path());
    assert!(words.contains("another process uses the folder"), "{words}");
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    for path in [&file, &file.join("below")] {
        let words = refused(path);
        assert!(words.contains("the folder cannot be made"), "{words}");
    }
    // Root may write wherever a mode forbids it, but not there.
    let words = refused(Path::new("/proc"));
    assert!(words.contains("the folder cannot be written to"), "{words}");
}

#[test]
fn what_is_damaged_is_left_out_and_told() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("0001.log"), "not ours").unwrap();
    let (store, ..) = open(folder.path()).unwrap();
    let life = store.stream("a").unwrap();
    append(&store, &life, "a", 60);
    store.close().unwrap();
    let segment = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&segment, bytes).unwrap();

    let (store, recovered, _) = open(folder.path()).unwrap();
    assert!(
        recovered.notes.iter().any(|note| note.contains("are damaged and lost")),
        "{:?}",
        recovered.notes
    );
    let stored = stream(&recovered, "a");
    assert!(sound("a", &stored.frames));
    assert_eq!(stored.frames.len(), 59, "one record is lost");
    assert_ne!(stored.life.epoch, life.epoch);
    store.close().unwrap();
    let (_, recovered, _) = open(folder.path()).unwrap();
    assert_eq!(recovered.notes, Vec::<String>::new(), "damage is met once");
    assert_eq!(stream(&recovered, "a").frames.len(), 59);
    assert_eq!(fs::read_to_string(folder.path().join("0001.log")).unwrap(), "not ours");
}

#[test]
fn workers_append_at_once_and_each_stream_stays_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _, told) = open(folder.path()).unwrap();
    let names: Vec<String> = (0..4).map(|worker| format!("worker {worker}")).collect();
    std::thread::scope(|scope| {
        for name in &names {
            let store = &store;
            scope.spawn(move || {
                let life = store.stream(name).unwrap();
                let mut first = life.next_seq;
                let mut taken = 0;
                while taken < 200 {
                    let frame = frame(name, first);
                    let last = frame.last;
                    match store.append(life.key, frame) {
                        Ok(()) => taken += 1,
                        Err(refused) => assert_eq!(refused, Refused::Full),
                    }
                    first = last + 1;
                    std::thread::yield_now();
                }
            });
        }
    });
    let stats = store.stats();
    assert!(stats.commits <= stats.committed_frames && stats.in_flight_bytes <= 256 << 10);
    store.close().unwrap();
    let told: u64 = told.iter().filter(|told| matches!(told, Told::Committed(_))).count() as u64;
    assert!(told > 0);
    let (store, recovered, _) = open(folder.path()).unwrap();
    for name in &names {
        let frames = &stream(&recovered, name).frames;
        assert_eq!(frames.len(), 200, "{name}");
        assert!(sound(name, frames), "{name}");
    }
    let key = stream(&recovered, "worker 0").life.key;
    store.forget(key);
    store.forget(key);
    assert_eq!(store.append(key, frame("worker 0", 10_000)), Err(Refused::Forgotten));
    store.close().unwrap();
    let (store, recovered, _) = open(folder.path()).unwrap();
    assert!(recovered.streams.iter().all(|stream| &*stream.name != "worker 0"));
    assert!(store.stream("worker 0").unwrap().next_seq > 200, "it goes on where it was");
}

#[test]
fn commits_are_counted_and_timed() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _, told) = open(folder.path()).unwrap();
    let life = store.stream("a").unwrap();
    let end = append(&store, &life, "a", 30);
    committed(&told, life.key, end - 1);
    let stats = store.stats();
    assert_eq!(stats.committed_frames, 30);
    let bodies: usize = (0..30)
        .scan(1, |first, _| {
            let frame = frame("a", *first);
            *first = frame.last + 1;
            Some(frame.body.len())
        })
        .sum();
    assert_eq!(stats.committed_bytes, bodies as u64);
    assert!((1..=31).contains(&stats.commits));
    assert_eq!(stats.commit_ns.len(), stats.commits);
    assert!(stats.commit_ns_sum > 0 && stats.commit_ns.max() > 0);
    assert_eq!(stats.in_flight_bytes, 0);
    store.close().unwrap();
}
