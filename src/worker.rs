//! One thread that owns its connections, its hub and its runtime for life. What the loops of its connections share lives
//! here, behind no lock, because it never leaves the thread.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use slab::Slab;
use tokio::io::AsyncWrite;
use tokio::sync::{Notify, Semaphore};

use crate::admission::door::{Door, Place as AddressPlace};
use crate::clock::{Clock, Now};
use crate::close::CloseReason;
use crate::config::Config;
use crate::hub::Hub;
use crate::hub::router::Router;
use crate::keepalive::{Due, Keepalive};
use crate::metrics::latency::LatencyLog;
use crate::metrics::{Counters, WorkerMetrics};
use crate::outbox::handle::OutboxHandle;
use crate::outbox::ready::{Place, ReadyList};
use crate::readiness::Readiness;
use crate::tls::Tls;
use crate::wire::control::{Digits, Event};
use crate::wire::{ConnectionId, ws};

pub mod gate;
pub mod timer;

use gate::Gate;
use timer::Timer;

/// Bytes that one read takes at the most. One buffer for all connections of a worker.
pub const READ_BYTES_MAX: usize = 64 << 10;

/// Exports (metrics, latency, lists) that run at a time.
pub const EXPORTS_MAX: usize = 2;

/// What all workers and the acceptor share. Touched by control, never by a sample.
#[derive(Debug)]
pub struct Shared {
    /// The configuration.
    pub config: Arc<Config>,
    /// The way between workers.
    pub router: Arc<Router>,
    /// Who is let in.
    pub gate: Gate,
    /// What every listener speaks, if not plain text.
    pub tls: Option<Arc<Tls>>,
    /// When the server started.
    pub started: Instant,
    /// Whether new connections are welcome.
    pub readiness: Readiness,
    /// Upgraded connections.
    pub connections: AtomicUsize,
    next_connection: AtomicU64,
    /// What each address has open; only accepts, handshakes and ends of connections take its lock.
    pub door: Door,
    /// Turns of the exports: each copies some MiB of metrics, or lists every connection, so few run at a time and the rest
    /// wait.
    pub exports: Semaphore,
    /// Buffers for copies of workers' metrics, as many as [`EXPORTS_MAX`] exports need; only they take this lock.
    pub metrics_buffers: std::sync::Mutex<Vec<Box<WorkerMetrics>>>,
    /// What is counted of other servers outside the workers; only that task and the exports take this lock.
    pub cluster_counters: std::sync::Mutex<Counters>,
    /// The intervals of `/api/latency.hlog`; only the exports take this lock.
    pub latency_log: std::sync::Mutex<LatencyLog>,
}

impl Shared {
    /// The state of a server that starts now; not ready yet.
    #[must_use]
    pub fn new(config: Arc<Config>, router: Arc<Router>) -> Self {
        let clock = Clock::new();
        let door = Door::new(&config.server, clock.now().at);
        Self {
            gate: Gate::new(Arc::clone(&config)),
            config,
            router,
            tls: None,
            started: clock.now().at,
            readiness: Readiness::default(),
            connections: AtomicUsize::new(0),
            next_connection: AtomicU64::new(1),
            door,
            exports: Semaphore::new(EXPORTS_MAX),
            metrics_buffers: std::sync::Mutex::new(Vec::new()),
            cluster_counters: std::sync::Mutex::default(),
            latency_log: std::sync::Mutex::new(LatencyLog::new(clock.now())),
        }
    }

    /// Takes a slot for a connection of `peer`, if there is one.
    ///
    /// # Errors
    /// Says what there is too much of.
    pub fn take_slot(self: &Arc<Self>, peer: IpAddr) -> Result<ConnectionSlot, NoSlot> {
        let most = self.config.server.connections_max;
        let taken = self
            .connections
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| (now < most).then_some(now + 1));
        taken.map_err(|_| NoSlot::Server)?;
        // From here on, dropping the slot gives back what was taken.
        let mut slot = ConnectionSlot { shared: Arc::clone(self), place: None };
        let place = self.door.connect(peer, Instant::now()).ok_or(NoSlot::Address)?;
        slot.place = Some(place);
        Ok(slot)
    }

    /// A number that no other connection has.
    pub fn next_connection(&self) -> ConnectionId {
        ConnectionId(self.next_connection.fetch_add(1, Ordering::Relaxed))
    }
}

/// Why there is no slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoSlot {
    /// `server.connections_max` are taken.
    Server,
    /// `server.connections_per_address_max` are taken.
    Address,
}

/// One of `server.connections_max`, and of `server.connections_per_address_max`; given back when it is dropped.
#[derive(Debug)]
pub struct ConnectionSlot {
    shared: Arc<Shared>,
    /// Its place among those of its address.
    place: Option<AddressPlace>,
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What the worker looks after for a connection: its writer and its ticker.
pub struct Watched {
    /// Its outbox.
    pub handle: Rc<OutboxHandle>,
    /// Its timeouts.
    pub keepalive: RefCell<Keepalive>,
    /// Its place in the hub; an echo connection has none.
    pub member: Option<usize>,
    /// What its messages are written to.
    pub io: Rc<RefCell<dyn AsyncWrite + Unpin>>,
    /// Whether `io` has taken bytes that the kernel has not: only with TLS, and only while the socket is full.
    pub unflushed: Cell<bool>,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { handle, keepalive, member, io: _, unflushed: _ } = self;
        f.debug_struct("Watched")
            .field("handle", handle)
            .field("keepalive", keepalive)
            .field("member", member)
            .finish_non_exhaustive()
    }
}

/// See the module's page.
#[derive(Debug)]
pub struct Worker {
    /// Its number.
    pub index: usize,
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// Its hub. Never borrowed over an await.
    pub hub: RefCell<Hub>,
    /// Every read of every connection goes through this.
    pub read_buffer: RefCell<Box<[u8]>>,
    /// Small messages that go out in one write are put together here.
    pub write_buffer: RefCell<Vec<u8>>,
    clock: RefCell<Clock>,
    watched: RefCell<Slab<Rc<Watched>>>,
    ready: Rc<ReadyList>,
    /// What the timer of the worker's loop is set to.
    armed: Cell<Option<Instant>>,
    rearm: Notify,
}

impl Worker {
    /// Worker number `index`.
    #[must_use]
    pub fn new(index: usize, shared: Arc<Shared>) -> Self {
        let hub = Hub::new(index, Arc::clone(&shared.config), Arc::clone(&shared.router));
        Self {
            index,
            shared,
            hub: RefCell::new(hub),
            read_buffer: RefCell::new(vec![0; READ_BYTES_MAX].into_boxed_slice()),
            write_buffer: RefCell::new(Vec::new()),
            clock: RefCell::new(Clock::new()),
            watched: RefCell::new(Slab::new()),
            ready: Rc::default(),
            armed: Cell::new(None),
            rearm: Notify::new(),
        }
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.shared.config
    }

    /// Reads the clock.
    #[must_use]
    pub fn now(&self) -> Now {
        self.clock.borrow().now()
    }

    /// Follows the system's wall clock.
    pub fn resync_clock(&self) {
        self.clock.borrow_mut().resync();
    }

    /// The connections that have something to write.
    #[must_use]
    pub const fn ready(&self) -> &Rc<ReadyList> {
        &self.ready
    }

    /// Has the writer and the ticker look after a connection. Returns its place.
    pub fn watch(&self, watched: Rc<Watched>) -> usize {
        let handle = Rc::clone(&watched.handle);
        let place = self.watched.borrow_mut().insert(watched);
        // More connections than that do not fit a process.
        handle.set_place(Place::try_from(place).unwrap_or(Place::MAX));
        place
    }

    /// Works for the connection at a place, if there is one. `work` must not reach [`Worker::watch`] or its counterpart.
    pub fn with_watched(&self, place: Place, work: impl FnOnce(&Watched)) {
        if let Some(watched) = self.watched.borrow().get(place as usize) {
            work(watched);
        }
    }

    /// The connection has ended.
    pub fn unwatch(&self, place: usize) {
        if let Some(watched) = self.watched.borrow_mut().try_remove(place) {
            watched.handle.clear_place();
        }
    }

    /// Seals what is due, and sees to it that the worker's loop wakes for the next deadline. To be called after anything
    /// that may have opened a batch.
    pub fn poll_due(&self, now: Now) {
        let mut hub = self.hub.borrow_mut();
        let mut next = hub.next_deadline();
        if next.is_some_and(|next| next <= now.at) {
            hub.poll_due(now);
            next = hub.next_deadline();
        }
        if let Some(next) = next
            && self.armed.get().is_none_or(|armed| next < armed)
        {
            self.rearm.notify_one();
        }
    }

    /// Sleeps until a batch is due; seals it. `timer` is the worker's only one.
    ///
    /// # Errors
    /// The system's timer has failed.
    pub async fn flush_when_due(&self, timer: &Timer) -> io::Result<()> {
        let next = self.hub.borrow().next_deadline();
        if let Some(next) = next
            && self.armed.get() != Some(next)
        {
            timer.set(next, self.now().at)?;
            self.armed.set(Some(next));
        }
        if next.is_some() {
            tokio::select! {
                biased;
                expired = timer.expired() => {
                    expired?;
                    self.armed.set(None);
                }
                () = self.rearm.notified() => {}
            }
        } else {
            self.armed.set(None);
            self.rearm.notified().await;
        }
        let now = self.now();
        self.hub.borrow_mut().poll_due(now);
        Ok(())
    }

    /// The periodic work of the worker: timeouts, pings, heartbeats and gap notices of its connections.
    pub fn tick(&self, now: Now) {
        self.hub.borrow_mut().tick(now);
        for (_, watched) in self.watched.borrow().iter() {
            let idle = watched.member.is_some_and(|member| self.hub.borrow().is_idle(member));
            loop {
                let due = watched.keepalive.borrow_mut().poll(self.config(), idle, now.at);
                match due {
                    None => break,
                    Some(Due::Ping) => watched.handle.push_message(ping()),
                    Some(Due::Heartbeat) => self.send_heartbeat(watched, now),
                    Some(Due::Close(reason)) => {
                        watched.handle.end(reason);
                        break;
                    }
                }
            }
        }
    }

    fn send_heartbeat(&self, watched: &Watched, now: Now) {
        let heads = watched.member.map(|member| self.hub.borrow().heads(member)).unwrap_or_default();
        if !heads.is_empty() {
            watched.handle.push_event(&Event::Heartbeat { server_ns: Digits(now.wall_ns), heads: &heads });
            self.hub.borrow_mut().metrics().counters.heartbeats_sent += 1;
        }
    }

    /// Asks the connections to end that the hub does not know: the server is shutting down.
    pub fn drain_echoes(&self) {
        for (_, watched) in self.watched.borrow().iter().filter(|(_, watched)| watched.member.is_none()) {
            watched.handle.end(CloseReason::Drain);
        }
    }

    /// Ends every connection that is still open: the drain took too long.
    pub fn cut_connections(&self) {
        for (_, watched) in self.watched.borrow().iter() {
            watched.handle.cut();
        }
    }

    /// Connections that the ticker looks after.
    #[must_use]
    pub fn watched(&self) -> usize {
        self.watched.borrow().len()
    }

    /// Counts a connection that has ended.
    pub fn count_close(&self, reason: CloseReason) {
        self.hub.borrow_mut().metrics().counters.connections_closed[reason] += 1;
    }
}

/// Time between two ticks: the resolution of timeouts and gap notices.
pub const TICK: Duration = Duration::from_millis(100);

fn ping() -> Bytes {
    ws::message(ws::Opcode::Ping, b"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_by_address_and_given_back() {
        let mut config = Config::default();
        config.server.connections_max = 6;
        config.server.connections_per_address_max = 2;
        let config = Arc::new(config);
        let (router, _inboxes) = Router::new(1, 16);
        let shared = Arc::new(Shared::new(config, router));
        let take = |peer: &str| shared.take_slot(peer.parse().unwrap());
        // One network of 64 bits, and the same address of IPv4 in two forms.
        let mut slots = vec![take("2001:db8::1").unwrap(), take("2001:db8::2:0:0:1").unwrap()];
        assert_eq!(take("2001:db8::3").unwrap_err(), NoSlot::Address);
        slots.extend(["192.0.2.1", "::ffff:192.0.2.1"].map(|peer| take(peer).unwrap()));
        assert_eq!(take("192.0.2.1").unwrap_err(), NoSlot::Address);
        assert_eq!(shared.connections.load(Ordering::Relaxed), 4, "what was refused takes nothing");
        slots.extend(["127.0.0.1", "::1"].map(|peer| take(peer).unwrap()));
        assert_eq!(take("127.0.0.1").unwrap_err(), NoSlot::Server);
        slots.clear();
        assert_eq!(shared.connections.load(Ordering::Relaxed), 0);
        assert!(take("192.0.2.1").is_ok(), "what was given back can be taken");
        let own: Vec<_> = (0..6).map(|_| take("127.0.0.1").unwrap()).collect();
        assert_eq!(own.len(), 6, "this machine's own are not counted");
    }
}
