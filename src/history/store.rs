//! Durable history: frames on disk, so that a restart is no outage. Never a socket, never the hub; nobody who calls it waits for the
//! disk.
//!
//! A [`Store`] is a folder, a lock on it and one thread. Workers give it frames; the thread writes all that came within the commit
//! interval, has the disk make it safe once, and tells what is safe. **The loss window**: what was accepted within the last
//! interval and one sync, which with the defaults and a disk that syncs in 10 ms is 110 ms. A sequence that was told as
//! committed survives `kill -9` and, as far as the disk keeps its word, a loss of power.
//!
//! **Lives.** A stream numbers its samples within an epoch. After a stop in order it goes on with both. After any other end
//! there may be subscribers that saw samples which were not safe yet; so it goes on under a new random epoch, at the next sequence, and
//! remembers where the old one ended: [`Life::lineage`]. The same holds if anything stored cannot be read. Whatever happens, no pair of
//! epoch and sequence is used for two samples.
//!
//! **Space.** Each stream keeps what its [`Retention`] says; what is beyond it is given back to the file system, at the latest
//! when it is as much as what lives. All of it never takes more than [`StoreSettings::dir_bytes_max`]; if it would, the oldest
//! goes.
//!
//! **Faults.** If the disk is full, or writing fails otherwise, the store is [`Health::Degraded`], keeps what it was given up to
//! [`StoreSettings::in_flight_bytes_max`], refuses what is more, and tries again until it succeeds. Every record has a checksum:
//! what is damaged is left out and told in [`Recovered::notes`].
//!
//! The format is our own, see `store/record.rs`. The embedded stores that we tried write everything two or three times,
//! give no space back while they are open, and do not take up their work again when the disk had been full.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;

use crate::clock::{Clock, nanos};
use crate::metrics::TIME_NS_MAX;
use crate::wire::Seq;
use disk::Folder;
use log::Batch;
use registry::{Registry, Rule};

mod disk;
mod log;
mod record;
mod recovery;
mod registry;
#[cfg(test)]
mod simulated;
#[cfg(test)]
mod tests;

/// How many former epochs a stream remembers: one for each end that was not in order.
pub const LINEAGE_MAX: usize = 16;

/// Largest body of a frame that is stored, where `dir_bytes_max` is at least eight times as much; the largest that
/// `batch.frame_bytes_max` allows fits.
const FRAME_BYTES_MAX: u64 = (64 << 20) + (64 << 10);

/// What a frame in flight takes beside its body.
const IN_FLIGHT_OVERHEAD: usize = 128;

/// How often space is given back where nothing is committed.
const MAINTENANCE_INTERVAL: Duration = Duration::from_secs(1);

/// The first wait after a failure; it doubles up to [`BACKOFF_MAX`], so that a disk that got room is used within seconds.
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// See [`BACKOFF_MIN`].
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// A stream in the store: random, for the life of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamKey(pub(crate) u64);

/// A former epoch of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ancestor {
    /// The epoch.
    pub epoch: u32,
    /// Its last sample that the stream has, or may have had: a cursor behind it means this one.
    pub last: Seq,
}

/// How a stream numbers its samples from now on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// For [`Store::append`] and [`Store::forget`].
    pub key: StreamKey,
    /// Its epoch.
    pub epoch: u32,
    /// The sequence of the next sample.
    pub next_seq: Seq,
    /// The epochs before, the oldest first, at most [`LINEAGE_MAX`]. Sequences go on through all of them.
    pub lineage: Vec<Ancestor>,
}

/// What is kept of a stream. The newest frame is kept in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Bytes of its frames on disk, each with 64 bytes of its own.
    pub bytes: u64,
    /// Age of a frame's newest sample, by the wall clock.
    pub age: Duration,
}

impl Retention {
    const NONE: Self = Self { bytes: 0, age: Duration::ZERO };
}

/// A frame as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredFrame {
    /// Sequence of the first sample in it.
    pub first: Seq,
    /// Sequence of the last sample in it.
    pub last: Seq,
    /// Samples in it.
    pub count: u32,
    /// When it was sealed, in nanoseconds since the Unix epoch.
    pub flushed_ns: u64,
    /// When its newest sample was received, in nanoseconds since the Unix epoch.
    pub received_ns: u64,
    /// The blocks of the samples, as in the wire's frame behind its header.
    pub body: Bytes,
}

/// How a store works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreSettings {
    /// The longest that a frame waits to be written.
    pub commit_interval: Duration,
    /// Frames that wait to be safe, in bytes of memory: more than a disk is behind by in its slow moments.
    pub in_flight_bytes_max: usize,
    /// All that the store has on the disk.
    pub dir_bytes_max: u64,
    /// Frames that [`Store::open`] reads back, in bytes of memory. What is more, the oldest, is gone then.
    pub recovered_bytes_max: usize,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            commit_interval: Duration::from_millis(100),
            in_flight_bytes_max: 64 << 20,
            dir_bytes_max: 1 << 30,
            recovered_bytes_max: 256 << 20,
        }
    }
}

/// What a folder had.
#[derive(Debug)]
pub struct Recovered {
    /// The streams in use, by name.
    pub streams: Vec<RecoveredStream>,
    /// What an operator should know: an end that was not in order, damage and what it cost.
    pub notes: Vec<String>,
}

/// A stream that goes on.
#[derive(Debug)]
pub struct RecoveredStream {
    /// Its name.
    pub name: Arc<str>,
    /// How it goes on.
    pub life: Life,
    /// What is kept of it, by sequence. A hole between frames is a hole.
    pub frames: Vec<StoredFrame>,
}

/// Why a store does not take something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The disk is too slow, or full: as much as may be waits for it.
    #[error("too much waits for the disk")]
    Full,
    /// The frame is too large.
    #[error("the frame is larger than an eighth of the store")]
    TooLarge,
    /// It does not follow what was appended before.
    #[error("the frame's samples do not follow those before")]
    OutOfOrder,
    /// The stream was forgotten.
    #[error("the stream was forgotten")]
    Forgotten,
    /// The rule says that nothing is kept of the name.
    #[error("nothing is kept of this name")]
    NotKept,
    /// The states of all streams take as much as they may.
    #[error("there are as many streams as the store has room for")]
    TooManyStreams,
}

/// What a store tells, on its thread: whoever listens must be quick.
#[derive(Debug)]
pub enum Event<'a> {
    /// For each stream, the last sequence up to which everything that was accepted is safe.
    Committed(&'a [(StreamKey, Seq)]),
    /// Writing fails, for this reason. Told once for each reason.
    Degraded(&'a str),
    /// Writing succeeds again.
    Healthy,
}

/// Whether a store does what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Healthy,
    /// What it is given is not made safe.
    Degraded {
        /// In words.
        why: String,
        /// Since when, in nanoseconds since the Unix epoch.
        since_ns: u64,
    },
}

/// What a store did since it was opened, and what it has.
#[derive(Clone, Debug)]
pub struct StoreStats {
    /// Frames made safe.
    pub committed_frames: u64,
    /// Bytes of their bodies.
    pub committed_bytes: u64,
    /// Commits with something in them.
    pub commits: u64,
    /// Commits that failed.
    pub failed_commits: u64,
    /// Nanoseconds of each commit, from its first write to the end of its sync.
    pub commit_ns: Histogram<u64>,
    /// Their sum.
    pub commit_ns_sum: u128,
    /// Frames that were refused.
    pub refused_frames: u64,
    /// Bytes of memory that wait to be safe.
    pub in_flight_bytes: usize,
    /// Bytes on the disk.
    pub disk_bytes: u64,
    /// Files on the disk.
    pub segments: usize,
    /// Bytes written for the second time, to give back the space between them.
    pub moved_bytes: u64,
    /// Bytes that went for want of room, though some of it was to be kept.
    pub evicted_bytes: u64,
    /// Bytes that could not be read again after the start.
    pub damaged_bytes: u64,
}

impl StoreStats {
    fn new() -> Self {
        Self {
            committed_frames: 0,
            committed_bytes: 0,
            commits: 0,
            failed_commits: 0,
            commit_ns: Histogram::new_with_bounds(1, TIME_NS_MAX, 3).expect("the range is valid"),
            commit_ns_sum: 0,
            refused_frames: 0,
            in_flight_bytes: 0,
            disk_bytes: 0,
            segments: 0,
            moved_bytes: 0,
            evicted_bytes: 0,
            damaged_bytes: 0,
        }
    }
}

/// See the module. Dropping it makes safe what it was given, and is no stop in order: only [`Store::close`] is.
pub struct Store {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<Result<(), String>>>>,
}

/// How the thread ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    InOrder,
    Dropped,
}

struct Shared {
    inner: Mutex<Inner>,
    wake: Condvar,
    in_flight_bytes_max: usize,
}

/// What workers and the thread share. The lock is held for a push or a swap, never for I/O.
struct Inner {
    registry: Registry,
    queue: Vec<(StreamKey, StoredFrame)>,
    queued_bytes: usize,
    /// When the first of the queue, or a change of the registry, came.
    since: Option<Instant>,
    stop: Option<Stop>,
    /// The thread is gone: nothing will be written any more.
    ended: bool,
    health: Health,
    stats: StoreStats,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("health", &self.health()).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store of a folder, which is made if it is not there, and starts its thread. `rule` says what is kept of a name;
    /// streams of which nothing is kept any more are forgotten. `tell` is called on the thread.
    ///
    /// Reads every file once. When it returns, the epochs of all streams are safe on the disk; only if that is full they
    /// are not, and then the store starts degraded, with new epochs.
    ///
    /// # Errors
    /// Says in words why the folder cannot be used: it cannot be made, read, written or locked, or is of another format.
    pub fn open(
        dir: &Path,
        settings: &StoreSettings,
        rule: impl Fn(&str) -> Option<Retention> + Send + 'static,
        mut tell: impl FnMut(Event<'_>) + Send + 'static,
    ) -> Result<(Self, Recovered), String> {
        let folder = Folder::open(dir)?;
        let rule: Rule = Box::new(rule);
        let mut clock = Clock::new();
        let now_ns = clock.now().wall_ns;
        let opened = open_log(folder, settings, &rule, now_ns)?;
        let OpenedLog { log, mut frames, notes, full } = opened;
        let registry = Registry::new(
            rule,
            log.states().cloned(),
            log::checkpoint_bytes_max(settings.dir_bytes_max),
            log::frame_bytes_max(settings.dir_bytes_max),
        );
        let mut streams: Vec<RecoveredStream> = log
            .states()
            .filter(|state| state.retired_ns == 0)
            .map(|state| RecoveredStream {
                name: Arc::clone(&state.name),
                life: Life::of(state),
                frames: frames.remove(&state.key).unwrap_or_default(),
            })
            .collect();
        streams.sort_unstable_by(|one, other| one.name.cmp(&other.name));

        let mut stats = StoreStats::new();
        (stats.disk_bytes, stats.segments) = (log.disk_bytes(), log.segments());
        let health = match &full {
            Some(why) => Health::Degraded { why: why.clone(), since_ns: now_ns },
            None => Health::Healthy,
        };
        let shared = Arc::new(Shared {
            inner: Mutex::new(Inner {
                registry,
                queue: Vec::new(),
                queued_bytes: 0,
                since: None,
                stop: None,
                ended: false,
                health,
                stats,
            }),
            wake: Condvar::new(),
            in_flight_bytes_max: settings.in_flight_bytes_max,
        });
        if let Some(why) = &full {
            tell(Event::Degraded(why));
        }
        let backoff = full.is_some().then_some(BACKOFF_MIN);
        let (interval, writers) = (settings.commit_interval, Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name("history".to_owned())
            .spawn(move || {
                clock.resync();
                let guard = EndGuard(&writers);
                Writer { shared: &writers, log, tell: &mut tell, clock, interval, backoff }.run(guard)
            })
            .map_err(|error| format!("its thread cannot be started: {error}"))?;
        Ok((Self { shared, thread: Mutex::new(Some(thread)) }, Recovered { streams, notes }))
    }

    /// How the stream of a name numbers its samples: as it did when it was last here, if that is known, else from 1 under an epoch of
    /// its own. Call it before its first sample is published, and again after [`Store::forget`].
    ///
    /// # Errors
    /// [`Refused::NotKept`] and [`Refused::TooManyStreams`]: the stream has no durable history.
    pub fn stream(&self, name: &str) -> Result<Life, Refused> {
        let mut inner = self.shared.lock();
        let life = inner.registry.stream(name);
        if inner.registry.has_changes() {
            self.came(&mut inner);
        }
        life
    }

    /// Takes a frame, to be written within the commit interval. Never waits for the disk. Every frame of a stream has to be given,
    /// in order: what is refused counts as given out too, and is a hole in what is stored.
    ///
    /// # Errors
    /// The frame is not stored.
    pub fn append(&self, key: StreamKey, frame: StoredFrame) -> Result<(), Refused> {
        let mut inner = self.shared.lock();
        let taken = self.take(&mut inner, key, frame);
        inner.stats.refused_frames += u64::from(taken.is_err());
        taken
    }

    fn take(&self, inner: &mut Inner, key: StreamKey, frame: StoredFrame) -> Result<(), Refused> {
        inner.registry.offer(key, &frame)?;
        let bytes = in_flight_bytes(&frame);
        let in_flight = inner.stats.in_flight_bytes + bytes;
        if inner.ended || in_flight > self.shared.in_flight_bytes_max {
            return Err(Refused::Full);
        }
        inner.stats.in_flight_bytes = in_flight;
        inner.queued_bytes += bytes;
        inner.queue.push((key, frame));
        self.came(inner);
        Ok(())
    }

    /// Forgets a stream that has ended: its frames go. How it numbers its samples is remembered for a day, so that it goes on
    /// under its epoch if it comes back.
    pub fn forget(&self, key: StreamKey) {
        let now_ns = Clock::new().now().wall_ns;
        let mut inner = self.shared.lock();
        inner.registry.forget(key, now_ns);
        self.came(&mut inner);
    }

    /// Up to which sequence the stream of a name has what was given under an epoch; of none that was forgotten.
    #[must_use]
    pub fn reaches(&self, name: &str, epoch: u32) -> Option<Seq> {
        self.shared.lock().registry.reaches(name, epoch)
    }

    /// Whether a name's stream is there and was not forgotten.
    #[must_use]
    pub fn is_in_use(&self, name: &str) -> bool {
        self.shared.lock().registry.is_in_use(name)
    }

    /// Wakes the thread for the first of a commit, and when half of what may wait does: sooner than the interval says.
    fn came(&self, inner: &mut Inner) {
        let first = inner.since.is_none();
        if first {
            inner.since = Some(Clock::new().now().at);
        }
        if first || self.shared.is_much(inner) {
            self.shared.wake.notify_one();
        }
    }

    /// Whether it does what it is for.
    #[must_use]
    pub fn health(&self) -> Health {
        self.shared.lock().health.clone()
    }

    /// What it did and has. Copies a histogram: for a page of metrics, not for a sample.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        self.shared.lock().stats.clone()
    }

    /// Makes everything safe and marks the stop as in order; nothing is taken any more. Waits for the disk.
    ///
    /// # Errors
    /// Says why it could not; then the streams get new epochs at the next start.
    pub fn close(&self) -> Result<(), String> {
        self.stop(Stop::InOrder)
    }

    fn stop(&self, stop: Stop) -> Result<(), String> {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return Ok(()) };
        self.shared.lock().stop = Some(stop);
        self.shared.wake.notify_one();
        thread.join().unwrap_or_else(|_| Err("the store's thread failed".to_owned()))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // Who drops it does not ask; the next start tells.
        let _ = self.stop(Stop::Dropped);
    }
}

impl Shared {
    fn is_much(&self, inner: &Inner) -> bool {
        inner.queued_bytes > self.in_flight_bytes_max / 2
    }
}

impl Life {
    fn of(state: &record::State) -> Self {
        Self { key: state.key, epoch: state.epoch, next_seq: state.next_seq, lineage: state.lineage.clone() }
    }

    /// Up to which sequence the stream has what was given under an epoch: all of its own, and what it has gone on from.
    #[must_use]
    pub fn reaches(&self, epoch: u32) -> Option<Seq> {
        if self.epoch == epoch {
            return Some(Seq::MAX);
        }
        self.lineage.iter().find(|ancestor| ancestor.epoch == epoch).map(|ancestor| ancestor.last)
    }
}

/// A log that was opened, and what was in it.
struct OpenedLog<D: disk::Disk> {
    log: log::Log<D>,
    frames: BTreeMap<StreamKey, Vec<StoredFrame>>,
    notes: Vec<String>,
    /// Why nothing can be written now, though the disk is sound.
    full: Option<String>,
}

fn open_log<D: disk::Disk>(
    disk: D,
    settings: &StoreSettings,
    rule: &Rule,
    now_ns: u64,
) -> Result<OpenedLog<D>, String> {
    let recovery::Recovery { mut log, frames, sound, notes } =
        recovery::recover(disk, settings.dir_bytes_max, settings.recovered_bytes_max, rule, now_ns)?;
    if !sound {
        log.renew(recovery::renew);
    }
    let full = match log.begin(now_ns) {
        Ok(()) => log.settle(now_ns).err().map(|error| in_words(&error)),
        Err(error) if disk::is_full(&error) => {
            // The mark of the stop stands, so a crash now would look like a stop in order: the numbers that are given out
            // until there is room must be of other epochs.
            if sound {
                log.renew(recovery::renew);
            }
            Some(in_words(&error))
        }
        Err(error) => return Err(format!("the folder cannot be written to: {error}")),
    };
    Ok(OpenedLog { log, frames, notes, full })
}

fn in_words(error: &std::io::Error) -> String {
    if disk::is_full(error) {
        format!("the disk of history.dir is full: {error}")
    } else {
        format!("history.dir cannot be written to: {error}")
    }
}

const fn in_flight_bytes(frame: &StoredFrame) -> usize {
    frame.body.len() + IN_FLIGHT_OVERHEAD
}

/// Says that the thread is gone, however it ended.
struct EndGuard<'a>(&'a Arc<Shared>);

impl Drop for EndGuard<'_> {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        inner.ended = true;
        inner.queue = Vec::new();
        inner.queued_bytes = 0;
        if std::thread::panicking() {
            let why = "the store's thread failed: nothing is stored until the server is started again";
            inner.health = Health::Degraded { why: why.to_owned(), since_ns: Clock::new().now().wall_ns };
        }
    }
}

/// What the thread does.
struct Writer<'a, D: disk::Disk> {
    shared: &'a Shared,
    log: log::Log<D>,
    tell: &'a mut dyn FnMut(Event<'_>),
    clock: Clock,
    interval: Duration,
    /// How long to wait before the next try.
    backoff: Option<Duration>,
}

impl<D: disk::Disk> Writer<'_, D> {
    fn run(mut self, _guard: EndGuard<'_>) -> Result<(), String> {
        let mut batch = Batch::default();
        loop {
            let stop = self.wait();
            // What failed is tried again before anything else, so that nothing overtakes it.
            if self.backoff.is_none() || stop.is_some() {
                self.take(&mut batch);
            }
            let written = self.write(&mut batch);
            match stop {
                None => {}
                Some(Stop::Dropped) => return written,
                Some(Stop::InOrder) => return written.and_then(|()| self.close()),
            }
        }
    }

    /// Waits for something to do.
    fn wait(&mut self) -> Option<Stop> {
        let begin = self.clock.now().at;
        let mut inner = self.shared.lock();
        loop {
            if inner.stop.is_some() {
                return inner.stop;
            }
            let due = match (self.backoff, inner.since) {
                (Some(backoff), _) => begin + backoff,
                (None, Some(_)) if self.shared.is_much(&inner) => begin,
                (None, Some(since)) => since + self.interval,
                (None, None) => begin + MAINTENANCE_INTERVAL,
            };
            let left = due.saturating_duration_since(self.clock.now().at);
            if left.is_zero() {
                return None;
            }
            inner = self.shared.wake.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Moves all that came into the batch.
    fn take(&self, batch: &mut Batch) {
        let mut inner = self.shared.lock();
        inner.since = None;
        inner.queued_bytes = 0;
        let frames = std::mem::take(&mut inner.queue);
        let (states, gone) = inner.registry.take_changes();
        drop(inner);
        batch.frames.extend(frames);
        batch.states.extend(states);
        batch.gone.extend(gone);
    }

    /// One commit, and giving space back.
    fn write(&mut self, batch: &mut Batch) -> Result<(), String> {
        let begin = self.clock.now();
        let empty = batch.is_empty() && self.log.is_ready();
        let committed = if empty { Ok(()) } else { self.log.commit(batch) };
        let end = self.clock.now();
        if committed.is_ok() && !empty {
            self.committed(batch, end.at - begin.at);
        }
        // Even where nothing can be written, what is old can go.
        let maintained = self.log.maintain(end.wall_ns);
        let result = committed.and(maintained);
        self.clock.resync();
        self.report(&result, !empty);
        result.map_err(|error| in_words(&error))
    }

    fn committed(&mut self, batch: &mut Batch, took: Duration) {
        let mut last: BTreeMap<StreamKey, Seq> = BTreeMap::new();
        let (mut memory, mut bytes) = (0, 0);
        for (key, frame) in &batch.frames {
            last.insert(*key, frame.last);
            memory += in_flight_bytes(frame);
            bytes += frame.body.len() as u64;
        }
        let frames = batch.frames.len() as u64;
        *batch = Batch::default();
        {
            let mut inner = self.shared.lock();
            let stats = &mut inner.stats;
            stats.in_flight_bytes -= memory;
            stats.committed_frames += frames;
            stats.committed_bytes += bytes;
            stats.commits += 1;
            let took = nanos(took);
            stats.commit_ns.saturating_record(took);
            stats.commit_ns_sum += u128::from(took);
        }
        let last: Vec<_> = last.into_iter().collect();
        if !last.is_empty() {
            (self.tell)(Event::Committed(&last));
        }
    }

    /// Keeps health and figures, and tells of a change.
    fn report(&mut self, result: &std::io::Result<()>, tried: bool) {
        let now_ns = self.clock.now().wall_ns;
        let totals = self.log.totals();
        let mut inner = self.shared.lock();
        inner.registry.expire(now_ns);
        let stats = &mut inner.stats;
        (stats.disk_bytes, stats.segments) = (self.log.disk_bytes(), self.log.segments());
        (stats.moved_bytes, stats.evicted_bytes) = (totals.moved_bytes, totals.evicted_bytes);
        stats.damaged_bytes = totals.damaged_bytes;
        match result {
            Ok(()) => {
                self.backoff = None;
                let was = std::mem::replace(&mut inner.health, Health::Healthy);
                drop(inner);
                if was != Health::Healthy {
                    (self.tell)(Event::Healthy);
                }
            }
            Err(error) => {
                self.backoff = Some(self.backoff.map_or(BACKOFF_MIN, |before| (before * 2).min(BACKOFF_MAX)));
                stats.failed_commits += u64::from(tried);
                let words = in_words(error);
                let since_ns = match &inner.health {
                    Health::Degraded { why, .. } if *why == words => return,
                    Health::Degraded { since_ns, .. } => *since_ns,
                    Health::Healthy => now_ns,
                };
                inner.health = Health::Degraded { why: words.clone(), since_ns };
                drop(inner);
                (self.tell)(Event::Degraded(&words));
            }
        }
    }

    fn close(&mut self) -> Result<(), String> {
        let states = self.shared.lock().registry.states();
        self.log.close(states).map_err(|error| in_words(&error))
    }
}
