//! The store of the history as workers see it: how a stream goes on after a restart, where its frames go, and when they are
//! safe. Shared by all workers; nothing here waits for the disk, and nothing is called for a sample.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::config::{Config, HistorySettings};
use crate::history::store::{
    Event, Health, Life, Retention, Store, StoreSettings, StoreStats, StoredFrame, StreamKey,
};
use crate::wire::{ChannelId, Frame, Seq};

/// What workers are told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// Of these channels everything up to the sequence is safe.
    Committed(Vec<(ChannelId, Seq)>),
    /// Nothing is made safe for the time being.
    Degraded,
}

/// Tells a worker, by its number. Called on the store's thread: must be quick.
pub type Tell = Box<dyn Fn(usize, Told) + Send + Sync>;

/// See the module's page. Each lock is held for one operation of a map; the store has its own.
#[derive(Debug)]
pub struct Durable {
    store: Store,
    streams: Arc<Streams>,
    /// What was read back of streams that have no home yet.
    recovered: Mutex<HashMap<Arc<str>, Recovered>>,
    opened_at: Instant,
}

/// What was read back of a stream.
#[derive(Debug)]
struct Recovered {
    key: StreamKey,
    frames: Vec<StoredFrame>,
    /// It has a channel, which will take it, or retire it.
    is_opened: bool,
}

/// Whose streams there are, for the store's thread.
#[derive(Debug)]
struct Streams {
    homes: Mutex<HashMap<StreamKey, (usize, ChannelId)>>,
    healthy: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a name's stream is one for the disk, and how much of it. What a server tells of itself is new with each life.
fn retention(history: &HistorySettings, name: &str) -> Option<Retention> {
    if name.starts_with("$sys.") || name.starts_with("$presence.") {
        return None;
    }
    let bounds = history.bounds_of(name)?;
    Some(Retention { bytes: bounds.bytes_max as u64, age: bounds.age_max })
}

impl Durable {
    /// Opens the store in a folder.
    ///
    /// # Errors
    /// Says in words why it cannot be used.
    pub fn open(dir: &Path, config: &Arc<Config>, tell: Tell) -> Result<Self, String> {
        let settings = StoreSettings {
            commit_interval: config.history.commit_interval,
            in_flight_bytes_max: config.history.in_flight_bytes_max,
            dir_bytes_max: config.history.dir_bytes_max,
            recovered_bytes_max: config.history.total_bytes_max,
        };
        let streams = Arc::new(Streams { homes: Mutex::default(), healthy: AtomicBool::new(true) });
        let (rules, workers) = (Arc::clone(config), config.workers);
        let rule = move |name: &str| retention(&rules.history, name);
        let homes = Arc::clone(&streams);
        let (store, recovered) =
            Store::open(dir, &settings, rule, move |event| homes.hear(&event, workers, &tell))?;
        for note in &recovered.notes {
            tracing::warn!(%note, "history");
        }
        tracing::info!(streams = recovered.streams.len(), "the history goes on");
        let recovered = recovered.streams.into_iter().map(|stream| {
            (stream.name, Recovered { key: stream.life.key, frames: stream.frames, is_opened: false })
        });
        let recovered = Mutex::new(recovered.collect());
        Ok(Self { store, streams, recovered, opened_at: Clock::new().now().at })
    }

    /// How the stream of a name numbers its samples from now on, if it is one for the disk. It is in use until it is forgotten.
    #[must_use]
    pub fn life_of(&self, name: &str) -> Option<Life> {
        if let Some(recovered) = lock(&self.recovered).get_mut(name) {
            recovered.is_opened = true;
        }
        self.store.stream(name).ok()
    }

    /// Up to which sequence the name's stream has what was given under an epoch: all of its own, and what it has gone on from.
    #[must_use]
    pub fn reaches(&self, name: &str, epoch: u32) -> Option<Seq> {
        self.store.reaches(name, epoch)
    }

    /// The channel that a stream has its home with.
    #[must_use]
    pub fn channel_of(&self, key: StreamKey) -> Option<ChannelId> {
        lock(&self.streams.homes).get(&key).map(|(_, channel)| *channel)
    }

    /// A stream has its home at a worker, with a channel that was opened with this life. Returns the sequence of its next sample, and
    /// what was read back of it.
    #[must_use]
    pub fn begin(
        &self,
        name: &str,
        life: &Life,
        worker: usize,
        channel: ChannelId,
    ) -> (Seq, Vec<StoredFrame>) {
        lock(&self.streams.homes).insert(life.key, (worker, channel));
        let recovered = lock(&self.recovered).remove(name);
        // Since the channel was opened, one that had the name before may have gone on, and may have been forgotten.
        match self.store.stream(name) {
            Ok(now) if (now.key, now.epoch) == (life.key, life.epoch) => {
                (now.next_seq, recovered.map_or_else(Vec::new, |recovered| recovered.frames))
            }
            // The store takes nothing of it.
            _ => (life.next_seq, Vec::new()),
        }
    }

    /// Takes a frame of the full class; `false` if it will not be safe.
    #[must_use]
    pub fn append(&self, key: StreamKey, frame: &Frame, [flushed_ns, received_ns]: [u64; 2]) -> bool {
        let stored = StoredFrame {
            first: frame.first,
            last: frame.last,
            count: frame.count,
            flushed_ns,
            received_ns,
            body: frame.bytes.slice(usize::from(frame.head_bytes)..),
        };
        self.store.append(key, stored).is_ok()
    }

    /// Whether what is appended is made safe.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.streams.healthy.load(Ordering::Relaxed)
    }

    /// Nobody needs the channel of a stream any more: the stream is forgotten, unless another channel has it by now.
    pub fn forget(&self, name: &str, key: StreamKey, channel: ChannelId) {
        let mut homes = lock(&self.streams.homes);
        if homes.get(&key).is_some_and(|(_, has)| *has != channel) {
            return;
        }
        homes.remove(&key);
        drop(homes);
        lock(&self.recovered).remove(name);
        self.store.forget(key);
    }

    /// Forgets the streams that were read back and that nobody has opened in all this time, as channels are that nobody needs.
    pub fn sweep(&self, linger: Duration, now: Instant) {
        if now.saturating_duration_since(self.opened_at) < linger {
            return;
        }
        lock(&self.recovered).retain(|_, recovered| {
            if !recovered.is_opened {
                self.store.forget(recovered.key);
            }
            recovered.is_opened
        });
    }

    /// Whether a name's stream is in use: in the store, and not forgotten.
    #[must_use]
    pub fn is_in_use(&self, name: &str) -> bool {
        self.store.is_in_use(name)
    }

    /// What it did and has, and what is wrong with it.
    #[must_use]
    pub fn stats(&self) -> (StoreStats, Health) {
        (self.store.stats(), self.store.health())
    }

    /// Makes everything safe, and the next start one that goes on. Waits for the disk: for the end of the server.
    pub fn close(&self) {
        if let Err(error) = self.store.close() {
            tracing::error!(%error, "the history was not closed in order");
        }
    }
}

impl Streams {
    fn hear(&self, event: &Event<'_>, workers: usize, tell: &Tell) {
        match event {
            Event::Committed(streams) => {
                let mut told: Vec<Vec<(ChannelId, Seq)>> = vec![Vec::new(); workers];
                let homes = lock(&self.homes);
                for (key, seq) in *streams {
                    if let Some((worker, channel)) = homes.get(key)
                        && let Some(told) = told.get_mut(*worker)
                    {
                        told.push((*channel, *seq));
                    }
                }
                drop(homes);
                let some = told.into_iter().enumerate().filter(|(_, told)| !told.is_empty());
                some.for_each(|(worker, committed)| tell(worker, Told::Committed(committed)));
            }
            Event::Degraded(why) => {
                tracing::error!(%why, "the history is not made safe");
                self.healthy.store(false, Ordering::Relaxed);
                (0..workers).for_each(|worker| tell(worker, Told::Degraded));
            }
            Event::Healthy => {
                tracing::info!("the history is made safe again");
                self.healthy.store(true, Ordering::Relaxed);
            }
        }
    }
}
