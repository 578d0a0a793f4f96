//! One trial: publishers and subscribers at several servers at once, by the same schedule, readers, recorders and books as every other
//! run. The subscribers of a server have a reader of their own, so that their latencies stay apart. It measures; what that means is
//! `report`'s.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::clock::{Clock, nanos};
use crate::comeback::Comeback;
use crate::dialect::Dialect;
use crate::fleet::{PANICKED, Times, open_many, spawn};
use crate::ledger::Account;
use crate::measure::{Counters, Interval, Recorder, histogram};
use crate::proc::{self, Load, Machine, Usage};
use crate::publishers::{Published, Publisher, Work as Publishing, publish_all};
use crate::run::INTERRUPTED;
use crate::scenario::{self, Group, Scenario};
use crate::stages::{Page, ServerStages};
use crate::subscribers::{Options, Readout, Shared, Subscriber, read_all};
use crate::ws::Ended;

use super::broker::Kind;
use super::metrics;
use super::nodes::Nodes;
use super::report::{self, Repetition};

/// From the end of the set-up to the first message.
const LEAD_IN: Duration = Duration::from_millis(50);

/// How long before the window counters are read, where there is a warm-up: reading costs the servers a moment.
const BEFORE_WINDOW: Duration = Duration::from_millis(100);

/// How often an interruption is looked for.
const TICK: Duration = Duration::from_millis(50);

/// Between a reader and the one that adds up: an interval at each edge, and one at the end.
const INTERVALS_MAX: usize = 8;

/// Who publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// All publishers are at the first server; subscribers are at all.
    FromOne,
    /// Each server has the same publishers and subscribers of its own, and a subscriber of another's.
    OfEach,
}

/// What is run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// What joins the servers.
    pub broker: Kind,
    /// Servers.
    pub nodes: usize,
    /// Who publishes.
    pub work: Work,
    /// Channels, of each publishing server.
    pub channels: usize,
    /// Subscribers, of each server.
    pub subscribers: usize,
    /// Samples a second, of each publishing server.
    pub per_s: NonZeroU64,
}

/// What all trials have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timing {
    /// Not measured.
    pub warmup: Duration,
    /// Measured.
    pub duration: Duration,
    /// Of a sample's value.
    pub payload_bytes: usize,
}

impl Plan {
    /// Servers that publish.
    pub(crate) fn publishing(&self) -> usize {
        if self.work == Work::OfEach { self.nodes } else { 1 }
    }

    /// Samples a second, all together.
    pub(crate) fn per_s_of_all(&self) -> NonZeroU64 {
        self.per_s.saturating_mul(NonZeroU64::new(self.publishing() as u64).unwrap_or(NonZeroU64::MIN))
    }

    /// Subscribers that each sample reaches.
    pub(crate) fn readers_of_each(&self) -> usize {
        match self.work {
            Work::FromOne => self.nodes * self.subscribers,
            Work::OfEach => self.subscribers + usize::from(self.nodes > 1),
        }
    }

    /// Sockets of this program.
    pub(crate) fn connections(&self) -> usize {
        self.publishing() * self.channels + self.nodes * (self.subscribers + 1)
    }

    /// What the engine needs to know.
    pub(crate) fn scenario(&self, timing: Timing) -> Scenario {
        Scenario {
            name: "cluster".to_owned(),
            publishers: self.publishing() * self.channels,
            payload_bytes: timing.payload_bytes,
            warmup_s: timing.warmup,
            duration_s: timing.duration,
            interval_s: timing.duration,
            load: scenario::Load::Scheduled { per_s: self.per_s_of_all() },
            groups: vec![Group::healthy(self.subscribers + 1)],
            ..Scenario::default()
        }
    }

    /// Who subscribes to what: server, publishing server, how many.
    fn sides(&self) -> Vec<(usize, usize, usize)> {
        let with = |node: usize| (node, if self.work == Work::OfEach { node } else { 0 }, self.subscribers);
        let mut sides: Vec<_> = (0..self.nodes).map(with).collect();
        if self.work == Work::OfEach && self.nodes > 1 {
            sides.extend((0..self.nodes).map(|node| (node, (node + 1) % self.nodes, 1)));
        }
        sides
    }
}

/// The subscribers of one server to the channels of one server.
struct Side {
    is_far: bool,
    shared: Arc<Shared>,
    intervals: Receiver<Interval>,
    reader: JoinHandle<std::io::Result<Readout>>,
}

/// Latencies and books of those at the publishers' server, or of those elsewhere.
#[derive(Debug)]
pub(crate) struct Seen {
    /// Schedule to arrival.
    pub latency: Histogram<u64>,
    /// Samples that arrived in the window.
    pub arrived: u64,
    /// The books.
    pub account: Account,
}

impl Seen {
    fn none() -> Self {
        Self { latency: histogram(), arrived: 0, account: Account::default() }
    }
}

/// CPU of all processes of the trial at one instant.
struct Snapshot {
    at_ns: u64,
    nodes: Vec<Option<Usage>>,
    broker: Option<Usage>,
    generator: Option<Usage>,
    machine: Option<Machine>,
}

impl Snapshot {
    fn take(nodes: &Nodes, clock: Clock) -> Self {
        Self {
            at_ns: clock.now_ns(),
            nodes: nodes.pids().into_iter().map(Usage::of).collect(),
            broker: nodes.broker.as_ref().and_then(|it| Usage::of(it.pid())),
            generator: Usage::of(proc::own_pid()),
            machine: Machine::read(),
        }
    }
}

/// Counters and histograms of servers and broker at one instant.
struct Reading {
    at_ns: u64,
    sent: Option<u64>,
    brought: Option<u64>,
    pages: Vec<Page>,
}

impl Reading {
    fn take(nodes: &Nodes, clock: Clock) -> Self {
        let at_ns = clock.now_ns();
        let endpoints = || nodes.endpoints.iter();
        let sent = match (&nodes.broker, nodes.dialect) {
            (Some(_), Dialect::Tidewire) => {
                endpoints().map(|it| metrics::counter(it, "tidewire_relays_sent_total")).sum()
            }
            _ => None,
        };
        let brought = nodes.broker.as_ref().and_then(metrics::brought);
        Self { at_ns, sent, brought, pages: endpoints().map(|it| Page::of(it, nodes.dialect)).collect() }
    }
}

/// What was measured.
#[derive(Debug)]
pub(crate) struct Measured {
    /// Length of the window.
    pub seconds: f64,
    /// Samples that went out in it.
    pub samples: u64,
    /// How late they did.
    pub lateness: Histogram<u64>,
    /// At the publishers' server.
    pub near: Seen,
    /// At other servers.
    pub far: Option<Seen>,
    /// The servers' own histogram of the way between them.
    pub broker_hop: Option<Histogram<u64>>,
    /// Frames that servers sent to the broker, each second.
    pub relays_per_s: Option<f64>,
    /// Messages that came to the broker, of all kinds, as it counts.
    pub brought_per_s: Option<f64>,
    /// CPU of each server.
    pub nodes: Vec<Option<Load>>,
    /// Of the broker.
    pub broker: Option<Load>,
    /// Of this program.
    pub generator: Option<Load>,
    /// Share of the machine's CPUs.
    pub idle: Option<f64>,
    /// Samples that a server did not take.
    pub refused: u64,
    /// Connections that ended early, and what was refused.
    pub ended: Vec<String>,
}

/// Runs it once.
pub(crate) fn run(
    plan: &Plan,
    timing: Timing,
    nodes: &Nodes,
    interrupted: &AtomicBool,
) -> Result<Repetition, String> {
    let clock = Clock::new();
    let scenario = plan.scenario(timing);
    let prefix = format!("loadtest.{:08x}.cluster", fastrand::u32(..));
    let of = |what: &str, why: &Ended| format!("{what}: {why}");
    let (endpoints, dialect, publishing) = (&nodes.endpoints, nodes.dialect, plan.publishing());
    let publishers = open_many(scenario.publishers, interrupted, |index, buffer| {
        // In turns, so that the schedule, which goes round, gives each server its share at once.
        let node = index % publishing;
        let number = u32::try_from(index).unwrap_or(u32::MAX);
        let name = format!("{prefix}.{node}.{}", index / publishing);
        Publisher::open(&endpoints[node], dialect, (number, &name), 1, timing.payload_bytes, buffer)
            .map_err(|why| of("a publisher", &why))
    })?;
    let mut connected = Vec::new();
    for (node, from, count) in plan.sides() {
        let pattern = format!("{prefix}.{from}.*");
        let options = Options {
            dialect,
            publishers: u32::try_from(scenario.publishers).unwrap_or(u32::MAX),
            ..Options::default()
        };
        let subscribers = open_many(count, interrupted, |_, buffer| {
            let mut subscriber = Subscriber::open(&endpoints[node], &pattern, &options, buffer)
                .map_err(|why| of("a subscriber", &why))?;
            subscriber.wait_for_channels(plan.channels, buffer).map_err(|why| {
                of(
                    &format!("server {node} did not tell its subscriber of the channels of server {from}"),
                    &why,
                )
            })?;
            Ok(subscriber)
        })?;
        let back = Comeback::new(Arc::new([endpoints[node].clone()]), vec![0; count]);
        connected.push((node != from, subscribers, back));
    }
    let times = Times::new(&scenario, clock.now_ns() + nanos(LEAD_IN));
    let shared = || {
        Arc::new(Shared {
            clock,
            heads: OnceLock::new(),
            abort: AtomicBool::new(false),
            counters: Arc::new(Counters::default()),
        })
    };
    let mut sides = Vec::with_capacity(connected.len());
    for (index, (is_far, subscribers, back)) in connected.into_iter().enumerate() {
        let (sender, intervals) = sync_channel(INTERVALS_MAX);
        let shared = shared();
        let counters = Arc::clone(&shared.counters);
        let recorder =
            Recorder::new(&times.windows, times.boundaries.clone(), clock.now_ns(), sender, counters);
        let reader = {
            let shared = Arc::clone(&shared);
            spawn(format!("reader-{index}"), move || {
                read_all(subscribers, &shared, recorder, (&AtomicU64::new(0), false), back)
            })?
        };
        sides.push(Side { is_far, shared, intervals, reader });
    }
    let of_publishers = shared();
    let publisher = {
        let (shared, times) = (Arc::clone(&of_publishers), times.clone());
        let Scenario { load, payload_bytes, .. } = scenario;
        let work = Publishing {
            load,
            payload_bytes,
            schedule: times.schedule(&scenario),
            span: times.span,
            servers: None,
        };
        spawn("publisher".to_owned(), move || publish_all(publishers, work, &times.windows, &shared, &[]))?
    };
    let watched = watch(&times, nodes, clock, interrupted);
    if watched.is_err() {
        of_publishers.abort.store(true, Ordering::Relaxed);
        sides.iter().for_each(|it| it.shared.abort.store(true, Ordering::Relaxed));
    }
    let failed = |error: std::io::Error| format!("the generator failed: {error}");
    let published = publisher.join().map_err(|_| PANICKED)?.map_err(failed);
    if published.is_err() {
        sides.iter().for_each(|it| it.shared.abort.store(true, Ordering::Relaxed));
    }
    let heads = published.as_ref().map(|it| it.heads.clone()).unwrap_or_default();
    for side in &sides {
        // Set once, here.
        let _ = side.shared.heads.set(heads.clone());
    }
    let (mut near, mut far, mut ended) = (Seen::none(), None, Vec::new());
    for side in sides {
        let seen = if side.is_far { far.get_or_insert_with(Seen::none) } else { &mut near };
        // Ends when the reader does: it holds the sender.
        for interval in &side.intervals {
            // Same bounds, so adding cannot fail.
            let _ = seen.latency.add(&interval.latency);
        }
        let readout = side.reader.join().map_err(|_| PANICKED)?.map_err(failed)?;
        seen.arrived += readout.arrived.iter().sum::<u64>();
        seen.account += readout.account;
        ended.extend(readout.ended);
    }
    let (snapshots, readings) = watched?;
    let Published { mut sent, refused, refusals, ended: of_publishers, .. } = published?;
    ended.extend(of_publishers);
    ended.extend(refusals.into_iter().map(|(what, times)| format!("{what} ({times} times)")));
    let sent = sent.pop().ok_or("a window was not measured")?;
    let measured = Measured {
        samples: sent.messages,
        lateness: sent.lateness,
        near,
        far,
        refused,
        ended: crate::finish::summarise(ended),
        ..used(&times, &snapshots, readings)
    };
    Ok(report::repetition(plan, &measured))
}

/// Sees the run through to the end of its window: CPU at both edges, counters and histograms around it.
fn watch(
    times: &Times,
    nodes: &Nodes,
    clock: Clock,
    interrupted: &AtomicBool,
) -> Result<([Snapshot; 2], [Reading; 2]), String> {
    let window = times.windows.first().ok_or("a window was not measured")?;
    let wait_until = |until_ns: u64| loop {
        if interrupted.load(Ordering::Relaxed) {
            return Err(INTERRUPTED.to_owned());
        }
        let left_ns = until_ns.saturating_sub(clock.now_ns());
        if left_ns == 0 {
            return Ok(());
        }
        thread::park_timeout(Duration::from_nanos(left_ns).min(TICK));
    };
    wait_until(window.from_ns.saturating_sub(nanos(BEFORE_WINDOW)).max(times.span.start_ns))?;
    let reading = Reading::take(nodes, clock);
    wait_until(window.from_ns)?;
    let from = Snapshot::take(nodes, clock);
    wait_until(window.to_ns)?;
    let to = Snapshot::take(nodes, clock);
    Ok(([from, to], [reading, Reading::take(nodes, clock)]))
}

/// What was used and counted between the two.
fn used(times: &Times, [from, to]: &[Snapshot; 2], [before, after]: [Reading; 2]) -> Measured {
    let elapsed_ns = to.at_ns.saturating_sub(from.at_ns);
    let load =
        |now: &Option<Usage>, before: &Option<Usage>| Some(now.as_ref()?.since(before.as_ref()?, elapsed_ns));
    let idle = match (&from.machine, &to.machine) {
        (Some(from), Some(to)) => Some(to.all.since(&from.all).0),
        _ => None,
    };
    // Nothing is published after the window, so what was counted belongs to the time until its end.
    let counted_s = times.span.end_ns.saturating_sub(before.at_ns).max(1) as f64 / 1e9;
    let per_s = |now: Option<u64>, before: Option<u64>| Some(now?.saturating_sub(before?) as f64 / counted_s);
    let mut broker_hop: Option<Histogram<u64>> = None;
    for (now, earlier) in after.pages.iter().zip(&before.pages) {
        let stages = ServerStages::of(now).since(&ServerStages::of(earlier));
        if let Some(hop) = stages.0.get("broker_hop").filter(|it| !it.is_empty()) {
            // Same bounds, so adding cannot fail.
            let _ = broker_hop.get_or_insert_with(histogram).add(hop);
        }
    }
    let window_ns = times.windows.first().map_or(0, |it| it.to_ns - it.from_ns);
    Measured {
        seconds: window_ns.max(1) as f64 / 1e9,
        samples: 0,
        lateness: histogram(),
        near: Seen::none(),
        far: None,
        broker_hop,
        relays_per_s: per_s(after.sent, before.sent),
        brought_per_s: per_s(after.brought, before.brought),
        nodes: to.nodes.iter().zip(&from.nodes).map(|(now, before)| load(now, before)).collect(),
        broker: load(&to.broker, &from.broker),
        generator: load(&to.generator, &from.generator),
        idle,
        refused: 0,
        ended: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fault, serve};

    fn plan(nodes: usize, work: Work) -> Plan {
        let per_s = NonZeroU64::new(10).unwrap();
        Plan { broker: Kind::Redis, nodes, work, channels: 3, subscribers: 7, per_s }
    }

    #[test]
    fn a_trial_finds_what_was_lost_without_a_word() {
        let per_s = NonZeroU64::new(500).unwrap();
        let plan = Plan { channels: 1, per_s, broker: Kind::None, ..plan(1, Work::FromOne) };
        let ms = Duration::from_millis;
        let timing = Timing { warmup: ms(50), duration: ms(200), payload_bytes: 32 };
        for (fault, lost) in [(Fault::Sound, 0), (Fault::Silent, 7 * 42), (Fault::Announced, 0)] {
            let nodes = Nodes::running(&serve(fault));
            let found = run(&plan, timing, &nodes, &AtomicBool::new(false)).unwrap();
            // 125 of the schedule and the last one, to each of seven; every third is lost.
            assert_eq!(found.near.account.published, 7 * 126, "{fault:?}");
            assert_eq!((found.near.account.unannounced, found.sound), (lost, lost == 0), "{fault:?}");
            let announced = if fault == Fault::Announced { 7 * 42 } else { 0 };
            assert_eq!(found.near.account.announced, announced, "{fault:?}");
            assert!(found.far.is_none() && found.added_p50_ns.is_none() && found.near.latency.is_some());
        }
    }

    #[test]
    fn who_subscribes_to_whom() {
        assert_eq!(plan(3, Work::FromOne).sides(), [(0, 0, 7), (1, 0, 7), (2, 0, 7)]);
        assert_eq!(plan(1, Work::OfEach).sides(), [(0, 0, 7)]);
        assert_eq!(plan(2, Work::OfEach).sides(), [(0, 0, 7), (1, 1, 7), (0, 1, 1), (1, 0, 1)]);
    }

    #[test]
    fn work_grows_with_the_servers_only_where_each_has_its_own() {
        let rate = |nodes, work| plan(nodes, work).per_s_of_all().get();
        let readers = |nodes, work| plan(nodes, work).readers_of_each();
        assert_eq!(
            [readers(4, Work::FromOne), readers(1, Work::OfEach), readers(4, Work::OfEach)],
            [28, 7, 8]
        );
        assert_eq!([rate(4, Work::FromOne), rate(1, Work::OfEach), rate(4, Work::OfEach)], [10, 10, 40]);
    }
}
