//! The server: its threads, its listener, and its end. Never works for a single message.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream};
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::net::{SocketFlags, acceptfrom_with};
use socket2::{Domain, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::auth::keyring::Keyring;
use crate::broker::BrokerSettings;
use crate::clock::nanos;
use crate::cluster;
use crate::config::Config;
use crate::config::file::Stamp;
use crate::durable::Durable;
use crate::http;
use crate::hub::router::{Router, ToWorker};
use crate::metrics::Stage;
use crate::metrics::latency::LOG_INTERVAL;
use crate::outbound;
use crate::peer::{Listener, Peer};
use crate::publisher;
use crate::tls::Tls;
use crate::worker::timer::Timer;
use crate::worker::{Shared, TICK, Worker, gate};

mod held;
pub(crate) mod keys;
mod proxied;
mod refuse;
mod socket;
mod tls;

use socket::PlainSockets;

/// Connections that the kernel keeps for the listener until it accepts them.
const BACKLOG: i32 = 1024;

/// Wait after an accept that failed because something has run out, such as file descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Sockets that are accepted before the acceptor's other work has its turn.
const ACCEPTS_PER_TURN: usize = 64;

/// Tasks that run before the sockets are looked at again, even if more are ready. The runtime's default, 61, is made for
/// tasks that do less than read or write a socket each.
const TASKS_PER_LOOK: u32 = 16;

/// Messages of an inbox that are handled before the connections of the thread have their turn.
const MESSAGES_PER_TURN: usize = 256;

/// A server whose listener is bound.
#[derive(Debug)]
pub struct Server {
    listener: StdListener,
    admin: Option<StdListener>,
    config: Config,
    keys: Keyring,
    keys_stamp: Option<Stamp>,
    tls: Option<Arc<Tls>>,
    broker: Option<BrokerSettings>,
}

impl Server {
    /// Reads the keys and the certificate, and binds the listeners.
    ///
    /// # Errors
    /// An address cannot be bound, or a file not be used: one line that says which.
    pub fn bind(config: Config) -> io::Result<Self> {
        let keys_stamp = keys::stamp(&config);
        let keys = keys::load(&config)?;
        keys::pass_over(&keys);
        gate::certificate_rights(&config)
            .map_err(|reason| io::Error::other(format!("auth.certificate_rights: {reason}")))?;
        let broker = BrokerSettings::from_config(&config);
        let listener = listen(config.listen, &config)?;
        let admin = config.admin.listen.map(|address| listen(address, &config)).transpose()?;
        // The last: a trial writes its certificate, which must not be over that of a server that has the port.
        let tls =
            Tls::from_settings(&config.tls, config.listen.ip()).map_err(io::Error::other)?.map(Arc::new);
        Ok(Self { listener, admin, config, keys, keys_stamp, tls, broker })
    }

    /// What it speaks TLS with, if it does.
    #[must_use]
    pub fn tls(&self) -> Option<&Tls> {
        self.tls.as_deref()
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Where the pages are: the admin listener, or the only one.
    ///
    /// # Errors
    /// The system's.
    pub fn pages_addr(&self) -> io::Result<SocketAddr> {
        self.admin.as_ref().unwrap_or(&self.listener).local_addr()
    }

    /// Serves until `shutdown`, then drains: no new connections, outboxes flushed, everybody told, at most
    /// `server.drain_timeout`. Runs on a current-thread runtime with time and I/O enabled; the workers are threads of their
    /// own.
    ///
    /// # Errors
    /// A thread cannot be started.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> io::Result<()> {
        let config = Arc::new(self.config);
        let (router, inboxes) = Router::new(config.workers, config.channel.channels_total_max);
        let mut shared = Shared::new(Arc::clone(&config), Arc::clone(&router));
        shared.tls = self.tls;
        shared.gate.replace_keys(self.keys);
        let shared = Arc::new(shared);
        let durable = open_history(&shared)?;
        // Before anybody connects: the hubs have to know from the start whom they publish for.
        let cluster = self.broker.map(|settings| cluster::join(settings, &shared)).transpose()?;
        let (ended, mut failed) = mpsc::channel(config.workers);
        let threads = start_workers(&shared, inboxes, &ended)?;
        let listener = watched(self.listener)?;
        let admin = self.admin.map(watched).transpose()?;
        shared.readiness.set_serving(true);

        let accept_admin = async {
            if let Some(admin) = &admin {
                accept(admin, Listener::Admin, &shared).await;
            }
        };
        let accept = accept(&listener, Listener::Public, &shared);
        let publish = publisher::run(&shared);
        let log = log_latency(&shared);
        let watch_keys = keys::watch(&shared, self.keys_stamp);
        let watch_certificates = async {
            if let Some(tls) = &shared.tls {
                Arc::clone(tls).watch().await;
            }
        };
        let watch = async { tokio::join!(watch_keys, watch_certificates) };
        let broker = cluster.as_ref().map(cluster::Cluster::broker);
        let share = async {
            if let Some(cluster) = cluster {
                cluster::run(cluster, &shared).await;
            }
        };
        let mut background = pin!(async { tokio::join!(accept, accept_admin, publish, log, watch, share) });
        tokio::select! {
            _ = &mut background => {}
            () = shutdown => {}
            Some(worker) = failed.recv() => {
                // Its channels and connections are gone, and nobody else may be sent there.
                return Err(io::Error::other(format!("worker {worker} has failed; the log says why")));
            }
        }
        tracing::info!(connections = shared.connections.load(Ordering::Relaxed), "draining");
        shared.readiness.set_serving(false);
        let all = 0..router.workers();
        all.clone().for_each(|worker| router.send(worker, ToWorker::Drain));
        let drained = async {
            let mut poll = tokio::time::interval(Duration::from_millis(10));
            while shared.connections.load(Ordering::Acquire) > 0 {
                poll.tick().await;
            }
        };
        // Meanwhile the listener answers health checks, and refuses upgrades.
        tokio::select! {
            _ = &mut background => {}
            drained = tokio::time::timeout(config.server.drain_timeout, drained) => {
                if drained.is_err() {
                    let left = shared.connections.load(Ordering::Relaxed);
                    tracing::warn!(connections = left, "the drain took too long; the rest is cut off");
                    all.clone().for_each(|worker| router.send(worker, ToWorker::Cut));
                }
            }
        }
        all.for_each(|worker| router.send(worker, ToWorker::Stop));
        let end = move || {
            threads.into_iter().for_each(|thread| drop(thread.join()));
            // What the workers have sealed last is with the broker's thread by now, which sends it before it ends.
            if let Some(broker) = broker {
                broker.join();
            }
            if let Some(durable) = durable {
                durable.close();
            }
        };
        tokio::task::spawn_blocking(end).await.map_err(io::Error::other)
    }
}

/// The history on the disk, if there is to be one.
fn open_history(shared: &Arc<Shared>) -> io::Result<Option<Arc<Durable>>> {
    let config = &shared.config;
    let Some(dir) = config.history.dir.get() else { return Ok(None) };
    let router = Arc::downgrade(&shared.router);
    let tell = move |worker, told| {
        if let Some(router) = router.upgrade() {
            router.send(worker, ToWorker::Durable(told));
        }
    };
    let durable = Durable::open(dir, config, Box::new(tell))
        .map_err(|why| io::Error::other(format!("history.dir = \"{}\": {why}", config.history.dir)))?;
    let durable = Arc::new(durable);
    shared.router.set_durable(Arc::clone(&durable));
    Ok(Some(durable))
}

/// A listener at an address.
fn listen(address: SocketAddr, config: &Config) -> io::Result<StdListener> {
    let bind = || -> io::Result<StdListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        // A server that was just ended leaves sockets behind that would keep its address busy for a minute.
        socket.set_reuse_address(true)?;
        // Accepted sockets inherit both, which saves two system calls for each.
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_notsent_lowat(config.outbox.notsent_lowat_bytes)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    };
    bind().map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))
}

/// Wakes this task when a socket can be accepted.
fn watched(listener: StdListener) -> io::Result<AsyncFd<StdListener>> {
    #[expect(
        deprecated,
        reason = "its successor is unsafe, for descriptors that may change hands; a listener's does not"
    )]
    AsyncFd::with_interest(listener, Interest::READABLE)
}

/// Starts them; each tells its number when it ends, however it does.
fn start_workers(
    shared: &Arc<Shared>,
    inboxes: Vec<mpsc::Receiver<ToWorker>>,
    ended: &mpsc::Sender<usize>,
) -> io::Result<Vec<JoinHandle<()>>> {
    let start = |(index, inbox)| {
        let shared = Arc::clone(shared);
        let end = End { worker: index, ended: ended.clone() };
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
            let _end = end;
            // It stays on the thread that makes it.
            let built = Builder::new_current_thread()
                .enable_all()
                .event_interval(TASKS_PER_LOOK)
                .build_local(LocalOptions::default());
            let (runtime, outcome) = match built {
                Ok(runtime) => (Some(runtime), Ok(())),
                Err(error) => (None, Err(error)),
            };
            // Whoever starts it waits for this.
            let _ = tell.send(outcome);
            let Some(runtime) = runtime else { return };
            if let Err(error) = runtime.block_on(run_worker(index, shared, inbox)) {
                tracing::error!(%error, worker = index, "a worker has failed");
            }
        })?;
        told.recv().map_err(io::Error::other)??;
        Ok(thread)
    };
    inboxes.into_iter().enumerate().map(start).collect()
}

/// Tells that a worker has ended.
struct End {
    worker: usize,
    ended: mpsc::Sender<usize>,
}

impl Drop for End {
    fn drop(&mut self) {
        // There is room for each worker once, and nobody listens once the server ends.
        let _ = self.ended.try_send(self.worker);
    }
}

/// A worker: its writer, and a task for each of its connections, beside its own loop.
async fn run_worker(index: usize, shared: Arc<Shared>, inbox: mpsc::Receiver<ToWorker>) -> io::Result<()> {
    let worker = Rc::new(Worker::new(index, shared));
    let writer = Rc::clone(&worker);
    drop(tokio::task::spawn_local(async move { outbound::run_writer(&writer).await }));
    // A task, too: to wake what the thread itself waits for takes a system call.
    tokio::task::spawn_local(serve_worker(worker, inbox)).await.map_err(io::Error::other)?
}

/// The loop of a worker beside its connections: inbox, deadlines, ticks.
async fn serve_worker(worker: Rc<Worker>, mut inbox: mpsc::Receiver<ToWorker>) -> io::Result<()> {
    let plain_sockets = Rc::new(PlainSockets::default());
    let timer = Timer::new()?;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut messages = Vec::with_capacity(MESSAGES_PER_TURN);
    let mut ticks = 0_u64;
    loop {
        tokio::select! {
            biased;
            due = tick.tick() => {
                let now = worker.now();
                let late = now.at.saturating_duration_since(due.into());
                worker.hub.borrow_mut().metrics().record(Stage::LoopLag, nanos(late), 1);
                worker.tick(now);
                ticks += 1;
                if ticks.is_multiple_of(10) {
                    worker.resync_clock();
                    if worker.index == 0 {
                        worker.hub.borrow().sweep(now);
                    }
                }
            }
            flushed = worker.flush_when_due(&timer) => flushed?,
            received = inbox.recv_many(&mut messages, MESSAGES_PER_TURN) => {
                if received == 0 {
                    return Ok(());
                }
                let now = worker.now();
                let more = received == MESSAGES_PER_TURN;
                for message in messages.drain(..) {
                    match message {
                        ToWorker::Socket(socket, peer, place) => {
                            let sockets = Rc::clone(&plain_sockets);
                            let serve = socket::serve(Rc::clone(&worker), sockets, socket, peer, place);
                            drop(tokio::task::spawn_local(serve));
                        }
                        ToWorker::Cut => worker.cut_connections(),
                        ToWorker::Stop => return Ok(()),
                        ToWorker::Drain => {
                            worker.hub.borrow_mut().handle(ToWorker::Drain, now);
                            worker.drain_echoes();
                        }
                        message => worker.hub.borrow_mut().handle(message, now),
                    }
                }
                worker.poll_due(now);
                if more {
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}

/// Hands every socket to the worker with the fewest connections. Takes them from the listener as they are: a stream of the
/// runtime would be registered here, only to be registered again with its worker.
async fn accept(listener: &AsyncFd<StdListener>, door: Listener, shared: &Shared) {
    loop {
        match accept_some(listener, door, shared).await {
            Ok(()) => tokio::task::yield_now().await,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

/// Up to [`ACCEPTS_PER_TURN`] sockets; waits for the first.
async fn accept_some(listener: &AsyncFd<StdListener>, door: Listener, shared: &Shared) -> io::Result<()> {
    let mut ready = listener.readable().await?;
    for _ in 0..ACCEPTS_PER_TURN {
        let Ok(accepted) = ready.try_io(|listener| accept_one(listener.get_ref())) else { break };
        let (socket, address) = accepted?;
        // A proxy's socket is its client's, who is not known yet.
        let limited = (!shared.config.server.trusted_proxies.contain(address.ip())).then_some(address.ip());
        let admitted = match door {
            Listener::Public => shared.door.accept(limited, Instant::now()),
            // Those who run the server are not kept out by how many come to the other door.
            Listener::Admin => shared.door.enter(limited, Instant::now()),
        };
        match admitted {
            Ok(place) => {
                let message = ToWorker::Socket(socket, Peer::at(address, door), place);
                shared.router.send(shared.router.place_connection(), message);
            }
            Err(refusal) => refuse::refuse(socket, refusal, shared.tls.is_some()),
        }
    }
    Ok(())
}

/// The next socket, in the mode that its worker needs: std's accept takes a system call more for that.
fn accept_one(listener: &StdListener) -> io::Result<(StdStream, SocketAddr)> {
    let (socket, address) = acceptfrom_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?;
    let address = address.and_then(|address| SocketAddr::try_from(address).ok());
    // The listener is bound to such an address.
    let address = address.ok_or_else(|| io::Error::other("a peer without an IP address"))?;
    Ok((socket.into(), address))
}

async fn log_latency(shared: &Arc<Shared>) {
    let mut interval = tokio::time::interval_at((Instant::now() + LOG_INTERVAL).into(), LOG_INTERVAL);
    loop {
        interval.tick().await;
        let (metrics, _) = http::collect(shared).await;
        let now = crate::clock::Clock::new().now();
        shared.latency_log.lock().unwrap_or_else(PoisonError::into_inner).record(&metrics, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_worker_that_ends_says_so() {
        let config = Arc::new(Config { workers: 2, ..Config::default() });
        let (router, inboxes) = Router::new(2, 16);
        let shared = Arc::new(Shared::new(config, Arc::clone(&router)));
        let (ended, mut failed) = mpsc::channel(2);
        let threads = start_workers(&shared, inboxes, &ended).unwrap();
        for worker in [1, 0] {
            router.send(worker, ToWorker::Stop);
            assert_eq!(failed.recv().await, Some(worker));
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
