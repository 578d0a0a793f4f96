//! One server of several: what is published on one is received on all, through a broker. Brings the parts together: what
//! clients want (from the hubs), what the broker brings, and what servers tell each other. Runs beside the acceptor and never
//! touches a sample; frames go from their home to the broker's thread, and from there to their home on the other server.
//!
//! Which topics: `c.NAME`, behind `broker.prefix`, carries what is published under NAME (`proto/cluster.proto`), `PREFIX.nodes` what servers tell each
//! other (`cluster/message.rs`).

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::MissedTickBehavior;

use crate::auth::revocations::Revoked;
use crate::broker::{Broker, BrokerSettings, Event, Events, Keep, Outgoing, Topic};
use crate::clock::{Clock, Now};
use crate::hub::router::{Outlet, PresenceAcross, ToWorker, Waiter};
use crate::pattern::Pattern;
use crate::wire::relay::{NodeId, Payload};
use crate::worker::Shared;

pub mod catalogue;
pub mod core;
pub mod message;
pub mod presence;

use self::core::{Core, Told, Wire};

/// What stands before a channel's name in its topic.
const CHANNEL_TOPICS: &str = "c.";

/// The topic that all servers read.
const NODES_TOPIC: &str = "nodes";

/// Events that are handled before anything else has its turn.
const EVENTS_PER_TURN: usize = 256;

/// Time between two looks at who waits too long.
const TICK: Duration = Duration::from_millis(100);

/// Requests on their way: each stands for a subscription or a request of a connection, which limits bound, or for what a worker
/// says once a tick at the most.
const REQUESTS_MAX: usize = tokio::sync::Semaphore::MAX_PERMITS >> 8;

/// Why there is no broker after the end of its thread.
const ENDED: &str = "its thread has ended; restart the server";

/// The hubs' side.
#[derive(Debug)]
pub struct Port {
    node: NodeId,
    broker: Arc<Broker>,
    host_telemetry: bool,
    requests: mpsc::Sender<Request>,
    changed: Arc<Notify>,
}

/// What the hubs ask for.
#[derive(Debug)]
enum Request {
    Want(Pattern, Waiter),
    Unwant(Pattern),
    Opened(Waiter),
    Revoked(Revoked, u64),
    Presence(PresenceAcross),
}

/// What [`run`] needs.
#[derive(Debug)]
pub struct Cluster {
    node: NodeId,
    broker: Arc<Broker>,
    events: Events,
    requests: mpsc::Receiver<Request>,
    changed: Arc<Notify>,
}

/// Begins to connect, and makes the hubs know that there are other servers. To be called once, before anybody connects.
///
/// # Errors
/// The settings name a file that cannot be used, or a thread cannot be started.
pub fn join(settings: BrokerSettings, shared: &Shared) -> io::Result<Cluster> {
    let (broker, events) = Broker::start(settings).map_err(|error| io::Error::other(error.to_string()))?;
    if let Ok(topic) = Topic::new(NODES_TOPIC) {
        // There is room for the first.
        let _ = broker.subscribe(topic, Keep::No);
    }
    let node = NodeId(fastrand::u64(1..));
    let (sender, requests) = mpsc::channel(REQUESTS_MAX);
    let (broker, changed) = (Arc::new(broker), Arc::new(Notify::new()));
    shared.readiness.doubt_broker("not connected yet");
    shared.router.set_outlet(Arc::new(Port {
        node,
        broker: Arc::clone(&broker),
        host_telemetry: shared.config.host_telemetry,
        requests: sender,
        changed: Arc::clone(&changed),
    }));
    Ok(Cluster { node, broker, events, requests, changed })
}

impl Cluster {
    /// The broker, for the end.
    #[must_use]
    pub fn broker(&self) -> Arc<Broker> {
        Arc::clone(&self.broker)
    }
}

impl Outlet for Port {
    fn node(&self) -> NodeId {
        self.node
    }

    fn crosses(&self, name: &str) -> bool {
        // What a server tells of itself, of its machine and of who is connected to it is its own.
        let own = name.starts_with("$sys.") || name.starts_with("$presence.");
        !(own || (self.host_telemetry && name.starts_with("host.")))
    }

    fn publish(&self, name: &str, payload: Payload) {
        if let Some(topic) = topic_of(name) {
            let Payload { head, body } = payload;
            self.broker.publish(Outgoing { topic, keep: Keep::Yes, head, body });
        }
    }

    fn want(&self, pattern: &Pattern, waiter: Waiter) {
        self.ask(Request::Want(pattern.clone(), waiter));
    }

    fn unwant(&self, pattern: &Pattern) {
        self.ask(Request::Unwant(pattern.clone()));
    }

    fn tell_opened(&self, waiter: Waiter) {
        self.ask(Request::Opened(waiter));
    }

    fn note_changed(&self) {
        self.changed.notify_one();
    }

    fn tell_revoked(&self, revoked: &Revoked, issued_s: u64) {
        self.ask(Request::Revoked(revoked.clone(), issued_s));
    }

    fn presence(&self, across: PresenceAcross) {
        self.ask(Request::Presence(across));
    }
}

impl Port {
    fn ask(&self, request: Request) {
        // A server that ends takes nothing any more.
        let full = matches!(self.requests.try_send(request), Err(mpsc::error::TrySendError::Full(_)));
        debug_assert!(!full, "there is room for every subscription");
    }
}

impl Wire for Broker {
    fn subscribe(&self, name: &str) -> bool {
        topic_of(name).is_some_and(|topic| Self::subscribe(self, topic, Keep::Yes))
    }

    fn unsubscribe(&self, name: &str) {
        if let Some(topic) = topic_of(name) {
            Self::unsubscribe(self, &topic);
        }
    }

    fn say(&self, message: Vec<u8>) {
        if let Ok(topic) = Topic::new(NODES_TOPIC) {
            self.publish(Outgoing { topic, keep: Keep::No, head: message.into(), body: bytes::Bytes::new() });
        }
    }
}

/// The topic of a channel.
fn topic_of(name: &str) -> Option<Topic> {
    // Every name is one; the limits of both leave room for the prefix.
    Topic::new(&format!("{CHANNEL_TOPICS}{name}")).ok()
}

/// Works until it is dropped.
pub async fn run(cluster: Cluster, shared: &Arc<Shared>) {
    let Cluster { node, broker, mut events, mut requests, changed } = cluster;
    let keeps = broker.kind().capabilities.keeps;
    let mut core = Core::new(node, Arc::clone(&shared.router), keeps, &shared.config.channel);
    tracing::info!(%node, broker = broker.kind().name, url = %broker.url(), "one server of several");
    let mut clock = Clock::new();
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut ticks = 0_u64;
    let mut ended = false;
    loop {
        tokio::select! {
            event = events.recv(), if !ended => {
                let Some(event) = event else {
                    // It takes itself up again after whatever can be foreseen. The server's own clients lose nothing by it, so they
                    // stay; no new ones should come.
                    tracing::error!("the broker's thread has ended; only a restart of the server brings it back");
                    shared.readiness.doubt_broker(ENDED);
                    core.disconnected();
                    ended = true;
                    continue;
                };
                let now = clock.now();
                handle(event, &mut core, &broker, shared, now);
                for _ in 1..EVENTS_PER_TURN {
                    let Some(event) = events.try_recv() else { break };
                    handle(event, &mut core, &broker, shared, now);
                }
            }
            request = requests.recv() => {
                let now = clock.now();
                match request {
                    Some(Request::Want(pattern, waiter)) => core.want(pattern, waiter, &*broker, now),
                    Some(Request::Unwant(pattern)) => core.unwant(&pattern, &*broker, now),
                    Some(Request::Opened(waiter)) => core.open(waiter, &*broker, now),
                    Some(Request::Revoked(revoked, issued_s)) => core.tell_revoked(revoked, issued_s, &*broker),
                    Some(Request::Presence(across)) => core.presence(across, now),
                    None => return,
                }
            }
            () = changed.notified() => core.take_changes(&*broker, clock.now()),
            _ = tick.tick() => {
                let now = clock.now();
                core.tick(now);
                ticks += 1;
                if ticks.is_multiple_of(10) {
                    clock.resync();
                    core.second(&*broker, now);
                }
            }
        }
        core.ask_where(&*broker);
        core.tell_presence(&*broker, clock.now());
        shared.cluster_counters.lock().unwrap_or_else(PoisonError::into_inner).clone_from(core.counters());
    }
}

fn handle(event: Event, core: &mut Core, broker: &Broker, shared: &Shared, now: Now) {
    match event {
        Event::Up => {
            tracing::info!("connected to the broker");
            shared.readiness.doubt_broker("connected; nothing has come back yet");
            core.connected(broker, now);
        }
        Event::Down { why } => {
            tracing::warn!(%why, "no connection to the broker");
            shared.readiness.doubt_broker(&why);
            core.disconnected();
        }
        Event::Subscribed { topic, backlog } => {
            if let Some(name) = topic.strip_prefix(CHANNEL_TOPICS) {
                core.subscribed(name, backlog, now);
            } else {
                core.listens(broker, now);
            }
        }
        Event::Message { topic, payload } => {
            if let Some(name) = topic.strip_prefix(CHANNEL_TOPICS) {
                core.message(name, payload, now);
            } else {
                for told in core.heard(&payload, broker, now) {
                    obey(told, core, broker, shared, now);
                }
            }
        }
        Event::Refused { topic, why } => {
            tracing::warn!(%topic, %why, "a topic cannot be subscribed to: what other servers publish there does not come");
            if let Some(name) = topic.strip_prefix(CHANNEL_TOPICS) {
                core.refused(name);
            }
        }
        Event::Lost(lost) => {
            tracing::warn!(side = ?lost.side, topic = ?lost.topic, messages = ?lost.messages, why = %lost.why, "messages are lost");
            core.doubt(lost.topic.as_deref().and_then(|topic| topic.strip_prefix(CHANNEL_TOPICS)));
        }
    }
}

fn obey(told: Told, core: &Core, broker: &Broker, shared: &Shared, now: Now) {
    match told {
        Told::Echo => shared.readiness.prove_broker(now.at),
        Told::Revoked(revoked, issued_s) => {
            if let Err(error) = shared.gate.note_revoked(&revoked, issued_s, now) {
                tracing::error!(%error, ?revoked, "a revocation of another server is not taken");
                return;
            }
            let (revoked, router) = (Arc::new(revoked), &shared.router);
            for worker in 0..router.workers() {
                router.send(worker, ToWorker::Revoke(Arc::clone(&revoked), issued_s));
            }
        }
        Told::NewServer => {
            for (revoked, issued_s) in shared.gate.revoked() {
                core.tell_revoked(revoked, issued_s, broker);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::hub::router::Router;

    #[tokio::test]
    async fn nobody_waits_for_a_broker_whose_thread_has_ended() {
        let config = Arc::new(Config::default());
        let (router, mut inboxes) = Router::new(1, config.channel.channels_total_max);
        let shared = Arc::new(Shared::new(config, router));
        shared.readiness.set_serving(true);
        // Nobody listens there.
        let cluster = join(BrokerSettings::new("redis://127.0.0.1:1"), &shared).expect("a broker");
        cluster.broker().join();
        let clock = Clock::new();
        let asks = async {
            while shared.readiness.check(clock.now().at) != Err(format!("broker: {ENDED}")) {
                tokio::task::yield_now().await;
            }
            let outlet = shared.router.outlet().expect("there are other servers");
            outlet.want(&Pattern::parse("a.*", 255).expect("a pattern"), Waiter { worker: 0, wait: 7 });
            inboxes[0].recv().await
        };
        tokio::select! {
            () = run(cluster, &shared) => panic!("who subscribes later would wait for ever"),
            answer = asks => {
                let Some(ToWorker::Arrived(arrival)) = answer else { panic!("{answer:?}") };
                assert_eq!(arrival.waiter.wait, 7);
            }
        }
    }
}
