//! Runs one scenario once: set-up, warm-up, measurement, the last message, the books. Brings the other parts together and
//! measures nothing itself.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::accept;
use crate::churn::Churned;
use crate::clock::{Clock, nanos};
use crate::dialect::Dialect;
use crate::fleet::{Fleet, PANICKED, Running, Times};
use crate::ledger::Account;
use crate::measure::{Counters, Interval, Window, histogram};
use crate::offset;
use crate::others::Others;
use crate::proc::{self, Memory, own_pid};
use crate::publishers::Published;
use crate::result::{AgeSecond, ClockOffset, Second};
use crate::scenario::{Kind, Scenario, Share};
use crate::server;
use crate::snapshot::{Snapshot, Used};
use crate::stages::{Page, ServerStages};
use crate::subscribers::{Heads, Options, QUIET, Readout, Subscriber};
use crate::ws::{Endpoint, READ_BUFFER_BYTES};

/// From the end of the set-up to the first message.
const LEAD_IN: Duration = Duration::from_millis(50);

/// How often the progress is shown and an interruption is looked for.
const TICK: Duration = Duration::from_millis(100);

/// Reasons of the same kind that are shown.
const REASONS_SHOWN_MAX: usize = 3;

/// How long before a window the server's own histograms are read, where there is a warm-up: reading costs it a moment.
const BEFORE_WINDOW: Duration = Duration::from_millis(100);

/// How long after the last message every process of a shared run has surely ended its publishing.
const SHARED_END: Duration = Duration::from_secs(2);

/// When the first message goes out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Start {
    /// Right after the set-up.
    #[default]
    Soon,
    /// At an instant by the system's clock, so that several processes begin together.
    AtUnixNs(u64),
    /// The set-up is announced on standard output, and the instant read from standard input.
    Told,
}

/// Where and how to run.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// The server.
    pub endpoint: Endpoint,
    /// What it speaks.
    pub dialect: Dialect,
    /// Its process, if it is on this machine and known.
    pub server_pid: Option<u32>,
    /// Threads that read subscribers.
    pub reader_threads: usize,
    /// What of the scenario is this process's.
    pub share: Share,
    /// Common to all processes of a shared run; random if not given.
    pub run_id: Option<String>,
    /// When it begins.
    pub start: Start,
    /// Whether the server's clock is compared with this one.
    pub estimates_clock: bool,
}

impl Target {
    /// The whole scenario, at once.
    pub(crate) const fn new(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            dialect: Dialect::Tidewire,
            server_pid: None,
            reader_threads: 1,
            share: Share::WHOLE,
            run_id: None,
            start: Start::Soon,
            estimates_clock: false,
        }
    }
}

/// What was measured in one window.
#[derive(Debug)]
pub(crate) struct Phase {
    /// Name of the scenario and the phase.
    pub label: String,
    /// The window.
    pub window: Window,
    /// Messages that went out.
    pub messages: u64,
    /// Samples that arrived.
    pub arrived: u64,
    /// Samples that were announced as lost to healthy subscribers.
    pub announced: u64,
    /// Schedule to arrival, of every sample scheduled in the window.
    pub latency: Histogram<u64>,
    /// How late the generator sent.
    pub lateness: Histogram<u64>,
    /// Age of what subscribers that are not healthy read, by behaviour.
    pub ages: BTreeMap<String, Histogram<u64>>,
    /// The same over time.
    pub age_of: BTreeMap<String, Vec<AgeSecond>>,
    /// Parts of the latency, by the server.
    pub stages: ServerStages,
    /// CPU and memory.
    pub used: Used,
    /// The time series.
    pub seconds: Vec<Second>,
    /// Latencies of each of these intervals.
    pub interval_latencies: Vec<Histogram<u64>>,
}

/// What came of a scenario.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// What was run by this process.
    pub scenario: Scenario,
    /// One for each window.
    pub phases: Vec<Phase>,
    /// Latencies by interval.
    pub intervals: Vec<Interval>,
    /// The books of the healthy subscribers.
    pub account: Account,
    /// The books of the others.
    pub others: BTreeMap<String, Account>,
    /// The visitors, or all there was.
    pub churned: Option<Churned>,
    /// The server's memory before the first connection.
    pub server_before: Option<Memory>,
    /// Samples that the server did not take, and what it said.
    pub refused: u64,
    /// What it said, and how often.
    pub refusals: BTreeMap<String, u64>,
    /// Connections that ended early, and why.
    pub ended: Vec<String>,
    /// The server's clock.
    pub clock: Option<ClockOffset>,
}

/// How far a run is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress<'a> {
    /// Of its total time.
    pub at: Duration,
    /// Scenario, phase, step.
    pub what: &'a str,
    /// Figures so far.
    pub live: Option<Live>,
}

/// Figures while a run goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Live {
    /// In the last interval.
    pub messages_per_s: f64,
    /// In the last interval.
    pub deliveries_per_s: f64,
    /// Of the phase so far.
    pub p99_ns: u64,
    /// Samples announced as lost to healthy subscribers.
    pub announced: u64,
}

/// Is told how far a run is.
pub(crate) type OnProgress<'a> = &'a mut dyn FnMut(&Progress<'_>);

/// Runs the scenario, or the target's share of it. `interrupted` gives it up.
pub(crate) fn run(
    whole: &Scenario,
    target: &Target,
    interrupted: &AtomicBool,
    on_progress: OnProgress<'_>,
) -> Result<Outcome, String> {
    proc::raise_open_files(whole.connections() + OTHER_FILES).map_err(|error| error.to_string())?;
    let scenario = &whole.share(target.share);
    let clock = Clock::new();
    let server_before = target.server_pid.and_then(Memory::of);
    on_progress(&Progress {
        at: Duration::ZERO,
        what: &format!("{}: connecting", scenario.name),
        live: None,
    });
    if let Kind::Accept { in_flight } = scenario.kind {
        let start_ns = start_instant(target.start, clock)?;
        let outcome = accept::run(scenario, target, in_flight, (clock, start_ns), interrupted, on_progress)?;
        return Ok(Outcome { server_before, ..outcome });
    }
    let before = if target.estimates_clock { Some(offset::estimate(&target.endpoint, clock)?) } else { None };
    let fleet = Fleet::connect(scenario, whole, target, interrupted)?;
    let channel = fleet.channel.clone();
    let start_ns = start_instant(target.start, clock)?;
    let running = fleet.start(scenario, target, clock, start_ns)?;
    let mut watch = Watch {
        scenario,
        target,
        interrupted,
        on_progress,
        counters: &running.shared.counters.clone(),
        clock,
        intervals: Vec::new(),
        snapshots: Vec::new(),
        pages: Vec::new(),
        live: Live::default(),
        so_far: histogram(),
    };
    let watched = watch.watch(&running);
    let Watch { intervals, snapshots, pages, on_progress, .. } = watch;
    on_progress(&Progress {
        at: scenario.total(),
        what: &format!("{}: closing the books", scenario.name),
        live: None,
    });
    let heads_of_all = |clock: Clock, end_ns: u64| shared_heads(target, &channel, clock, end_ns);
    let finished = finish(running, watched.is_err(), intervals, target.share != Share::WHOLE, heads_of_all);
    watched?;
    let mut outcome = finished?.into_outcome(scenario, &snapshots, stages(pages))?;
    outcome.server_before = server_before;
    if let Some(before) = before {
        outcome.clock = Some(offset::between(before, offset::estimate(&target.endpoint, clock)?));
    }
    Ok(outcome)
}

/// What was recorded between the two pages of each window.
fn stages(pages: Vec<JoinHandle<Page>>) -> Vec<ServerStages> {
    let all: Vec<ServerStages> =
        pages.into_iter().map(|page| ServerStages::of(&page.join().unwrap_or_default())).collect();
    all.as_chunks::<2>().0.iter().map(|[before, after]| after.clone().since(before)).collect()
}

/// Files beside the sockets: epoll, pipes, logs, results.
pub(crate) const OTHER_FILES: usize = 64;

/// What an interrupted run ends with.
pub(crate) const INTERRUPTED: &str = "interrupted";

/// What a process of a shared run says when it is set up.
pub(crate) const READY: &str = "ready";

fn start_instant(start: Start, clock: Clock) -> Result<u64, String> {
    let told = match start {
        Start::Soon => return Ok(clock.now_ns() + nanos(LEAD_IN)),
        Start::AtUnixNs(at_ns) => at_ns,
        Start::Told => {
            let mut out = std::io::stdout();
            writeln!(out, "{READY}").and_then(|()| out.flush()).map_err(|error| error.to_string())?;
            let mut line = String::new();
            std::io::stdin().lock().read_line(&mut line).map_err(|error| error.to_string())?;
            line.trim().parse().map_err(|_| INTERRUPTED.to_owned())?
        }
    };
    let now_ns = clock.now_ns();
    if told < now_ns {
        return Err(format!(
            "--start-at: the set-up ended {:.1} s after that instant; give a later one",
            Duration::from_nanos(now_ns - told).as_secs_f64()
        ));
    }
    Ok(told)
}

/// Where each channel of a shared run ends, whoever published it: a new subscription is told what comes next.
fn shared_heads(target: &Target, channel: &str, clock: Clock, end_ns: u64) -> Result<Heads, String> {
    let settled = Duration::from_nanos((end_ns + nanos(SHARED_END)).saturating_sub(clock.now_ns()));
    thread::park_timeout(settled);
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    let subscriber = Subscriber::open(&target.endpoint, channel, &Options::default(), &mut buffer)
        .map_err(|why| format!("to learn where the channels end: {why}"))?;
    Ok(subscriber.heads_at_start())
}

/// What happens at an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// The server's own histograms are read, for the start of a phase.
    StagesBefore,
    /// A window begins.
    WindowFrom,
    /// An interval ends.
    Boundary,
    /// The server's process is stopped.
    Stop,
    /// And goes on.
    Continue,
    /// A window ends.
    WindowTo,
}

/// All of a run, in order.
fn plan(scenario: &Scenario, times: &Times) -> Vec<(u64, Event)> {
    let mut plan: Vec<(u64, Event)> =
        times.boundaries.iter().map(|&at_ns| (at_ns, Event::Boundary)).collect();
    for (index, window) in times.windows.iter().enumerate() {
        let (phase_ns, _) = times.phase(index);
        let before_ns = window.from_ns.saturating_sub(nanos(BEFORE_WINDOW)).max(phase_ns);
        plan.extend([
            (before_ns, Event::StagesBefore),
            (window.from_ns, Event::WindowFrom),
            (window.to_ns, Event::WindowTo),
        ]);
        if let Some(stop_ms) = scenario.stop_server_ms {
            let middle_ns = window.from_ns.midpoint(window.to_ns);
            let again_ns = middle_ns.saturating_add(stop_ms.get().saturating_mul(1_000_000));
            plan.extend([(middle_ns, Event::Stop), (again_ns.min(window.to_ns), Event::Continue)]);
        }
    }
    // At one instant: an interval ends before a window does, and a window ends before the next begins.
    let rank = |event: Event| match event {
        Event::Continue => 0,
        Event::Boundary => 1,
        Event::WindowTo => 2,
        Event::StagesBefore => 3,
        Event::WindowFrom => 4,
        Event::Stop => 5,
    };
    plan.sort_by_key(|&(at_ns, event)| (at_ns, rank(event)));
    plan
}

/// Sees a run through to the end of its last window.
struct Watch<'a> {
    scenario: &'a Scenario,
    target: &'a Target,
    interrupted: &'a AtomicBool,
    on_progress: OnProgress<'a>,
    counters: &'a Counters,
    clock: Clock,
    intervals: Vec<Interval>,
    /// One for each boundary.
    snapshots: Vec<Snapshot>,
    /// The server's histograms, before and after each window.
    pages: Vec<JoinHandle<Page>>,
    live: Live,
    so_far: Histogram<u64>,
}

impl Watch<'_> {
    fn watch(&mut self, running: &Running) -> Result<(), String> {
        let mut phase = 0;
        let mut stopped: Option<server::Stopped> = None;
        for (at_ns, event) in plan(self.scenario, &running.times) {
            let measured = running.times.windows[phase].from_ns < at_ns;
            let label = self.scenario.label(phase);
            let what = if measured { label } else { format!("{label}: warm-up") };
            self.wait_until(at_ns, running, &what)?;
            match event {
                Event::StagesBefore => self.fetch_stages(),
                Event::WindowFrom => {
                    self.target.server_pid.into_iter().chain([own_pid()]).for_each(proc::reset_peak);
                    self.so_far = histogram();
                }
                Event::Boundary => {
                    let pid = self.target.server_pid;
                    self.snapshots.push(Snapshot::take(at_ns, pid, self.clock, self.counters));
                    self.look();
                }
                Event::Stop => {
                    stopped = Some(server::Stopped::stop(self.target.server_pid)?);
                }
                Event::Continue => stopped = None,
                Event::WindowTo => {
                    self.fetch_stages();
                    phase = (phase + 1).min(running.times.windows.len() - 1);
                }
            }
        }
        drop(stopped);
        Ok(())
    }

    /// Fetches the server's histograms beside everything else, which does not wait for a busy server.
    fn fetch_stages(&mut self) {
        let (endpoint, dialect) = (self.target.endpoint.clone(), self.target.dialect);
        let fetch = move || match dialect {
            // Without them there is one table less.
            Dialect::Tidewire => Page::fetch(&endpoint).unwrap_or_default(),
            _ => Page::default(),
        };
        self.pages.push(thread::spawn(fetch));
    }

    /// Takes the figures of the interval that has just ended.
    fn look(&mut self) {
        let [.., before, now] = self.snapshots.as_slice() else { return };
        let seconds = (now.due_ns - before.due_ns).max(1) as f64 / 1e9;
        self.live.messages_per_s = (now.messages - before.messages) as f64 / seconds;
        self.live.announced = now.announced;
    }

    fn keep(&mut self, interval: Interval) {
        if interval.others.is_none() {
            let seconds = interval.to_ns.saturating_sub(interval.from_ns).max(1) as f64 / 1e9;
            self.live.deliveries_per_s = interval.latency.len() as f64 / seconds;
            // Same bounds, so adding cannot fail.
            let _ = self.so_far.add(&interval.latency);
            self.live.p99_ns = self.so_far.value_at_quantile(0.99);
        }
        self.intervals.push(interval);
    }

    fn wait_until(&mut self, until_ns: u64, running: &Running, what: &str) -> Result<(), String> {
        loop {
            let now_ns = self.clock.now_ns();
            let at = Duration::from_nanos(now_ns.saturating_sub(running.times.span.start_ns));
            let live = (!self.intervals.is_empty()).then_some(self.live);
            (self.on_progress)(&Progress { at, what, live });
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(INTERRUPTED.to_owned());
            }
            if now_ns >= until_ns {
                return Ok(());
            }
            let pause = Duration::from_nanos(until_ns - now_ns).min(TICK);
            match running.intervals.recv_timeout(pause) {
                Ok(interval) => self.keep(interval),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err("the threads that read subscribers have ended".to_owned());
                }
            }
        }
    }
}

/// Waits for the publishers, then for the subscribers to have everything, then for all threads. Where other processes
/// publish as well, `heads_of_all` says where their channels end.
fn finish(
    running: Running,
    abort: bool,
    mut intervals: Vec<Interval>,
    is_shared: bool,
    heads_of_all: impl FnOnce(Clock, u64) -> Result<Heads, String>,
) -> Result<Finished, String> {
    let Running { shared, times, intervals: receiver, readers, publisher, others, visitors } = running;
    shared.abort.store(abort, Ordering::Relaxed);
    let failed = |error: std::io::Error| format!("the generator failed: {error}");
    let panicked = |_| PANICKED.to_owned();
    let published = publisher.join().map_err(panicked)?.map_err(failed)?;
    let mut heads = Ok(published.heads.clone());
    if is_shared && !abort {
        heads = heads_of_all(shared.clock, times.span.end_ns + nanos(QUIET));
    }
    let problem = heads.as_ref().err().cloned();
    if problem.is_some() {
        shared.abort.store(true, Ordering::Relaxed);
    }
    // Set once, here.
    let _ = shared.heads.set(heads.unwrap_or_default());
    let mut readouts = Vec::with_capacity(readers.len());
    // Ends when every reader has: they hold the senders.
    intervals.extend(receiver.iter());
    for reader in readers {
        readouts.push(reader.join().map_err(panicked)?.map_err(failed)?);
    }
    let others = match others {
        Some(others) => others.join().map_err(panicked)?.map_err(failed)?,
        None => Others::default(),
    };
    let churned = match visitors {
        Some((stop, visitors)) => {
            drop(stop);
            Some(visitors.join().map_err(panicked)?)
        }
        None => None,
    };
    match problem {
        Some(problem) => Err(problem),
        None => Ok(Finished { times, published, readouts, others, intervals, churned }),
    }
}

/// Everything has ended.
struct Finished {
    times: Times,
    published: Published,
    readouts: Vec<Readout>,
    others: Others,
    intervals: Vec<Interval>,
    churned: Option<Churned>,
}

impl Finished {
    fn into_outcome(
        self,
        scenario: &Scenario,
        snapshots: &[Snapshot],
        stages: Vec<ServerStages>,
    ) -> Result<Outcome, String> {
        let Self { times, published, readouts, others, intervals, churned } = self;
        let Published { sent, heads: _, refused, refusals, ended: mut reasons } = published;
        let mut account = Account::default();
        let mut arrived = vec![0; times.windows.len()];
        for readout in readouts {
            account += readout.account;
            reasons.extend(readout.ended);
            for (sum, part) in arrived.iter_mut().zip(&readout.arrived) {
                *sum += part;
            }
        }
        reasons.extend(others.ended);
        let mut phases = Vec::with_capacity(times.windows.len());
        let parts = times.windows.iter().zip(sent).zip(arrived).zip(stages).enumerate();
        for (index, (((window, sent), arrived), stages)) in parts {
            let of_phase = || intervals.iter().filter(move |it| it.window == index);
            let latency = sum(of_phase().filter(|it| it.others.is_none()));
            let mut ages = BTreeMap::new();
            let mut age_of: BTreeMap<String, Vec<AgeSecond>> = BTreeMap::new();
            for interval in of_phase() {
                if let Some(others) = interval.others {
                    // Same bounds, so adding cannot fail.
                    let _ = ages.entry(others.to_owned()).or_insert_with(histogram).add(&interval.latency);
                    age_of.entry(others.to_owned()).or_default().push(AgeSecond {
                        at_s: interval.to_ns.saturating_sub(times.span.start_ns) as f64 / 1e9,
                        p50_ns: interval.latency.value_at_quantile(0.5),
                        p99_ns: interval.latency.value_at_quantile(0.99),
                        max_ns: interval.latency.max(),
                    });
                }
            }
            let within: Vec<&Snapshot> =
                snapshots.iter().filter(|it| (window.from_ns..=window.to_ns).contains(&it.due_ns)).collect();
            let (Some(first), Some(last)) = (within.first(), within.last()) else {
                return Err("a window was not measured".to_owned());
            };
            let (seconds, interval_latencies) = series(&within, times.span.start_ns, &intervals);
            phases.push(Phase {
                label: scenario.label(index),
                window: *window,
                messages: sent.messages,
                arrived,
                announced: last.announced - first.announced,
                latency,
                lateness: sent.lateness,
                ages,
                age_of,
                stages,
                used: last.since(first),
                seconds,
                interval_latencies,
            });
        }
        Ok(Outcome {
            scenario: scenario.clone(),
            phases,
            intervals,
            account,
            others: others.accounts,
            churned,
            server_before: None,
            refused,
            refusals,
            ended: summarise(reasons),
            clock: None,
        })
    }
}

fn sum<'a>(intervals: impl Iterator<Item = &'a Interval>) -> Histogram<u64> {
    let mut sum = histogram();
    for interval in intervals {
        // Same bounds, so adding cannot fail.
        let _ = sum.add(&interval.latency);
    }
    sum
}

/// The time series of a window, from what was counted at its boundaries.
fn series(
    snapshots: &[&Snapshot],
    start_ns: u64,
    intervals: &[Interval],
) -> (Vec<Second>, Vec<Histogram<u64>>) {
    let mut by_end: HashMap<u64, Vec<&Interval>> = HashMap::new();
    for interval in intervals.iter().filter(|it| it.others.is_none()) {
        by_end.entry(interval.to_ns).or_default().push(interval);
    }
    let pairs = snapshots.iter().zip(snapshots.iter().skip(1));
    pairs
        .map(|(before, now)| {
            let latency = sum(by_end.get(&now.due_ns).into_iter().flatten().copied());
            let seconds = (now.due_ns - before.due_ns).max(1) as f64 / 1e9;
            let used = now.since(before);
            let second = Second {
                at_s: now.due_ns.saturating_sub(start_ns) as f64 / 1e9,
                messages_per_s: (now.messages - before.messages) as f64 / seconds,
                deliveries_per_s: latency.len() as f64 / seconds,
                p50_ns: latency.value_at_quantile(0.5),
                p99_ns: latency.value_at_quantile(0.99),
                max_ns: latency.max(),
                server_cpus: used.server_cpu.map(|load| load.cpus),
                client_cpus: used.client_cpu.map(|load| load.cpus),
                server_bytes: now.server_memory.map(|memory| memory.resident),
            };
            (second, latency)
        })
        .unzip()
}

/// The first few reasons, and how many more there are.
pub(crate) fn summarise(mut reasons: Vec<String>) -> Vec<String> {
    let more = reasons.len().saturating_sub(REASONS_SHOWN_MAX);
    if more > 0 {
        reasons.truncate(REASONS_SHOWN_MAX);
        reasons.push(format!("and {more} more"));
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fault, serve};
    use crate::scenario::{Behaviour, Group, Load, PhaseSpec, named};

    #[test]
    fn reasons_are_not_endless() {
        let reasons = |count: usize| (0..count).map(|index| index.to_string()).collect::<Vec<_>>();
        assert_eq!(summarise(reasons(3)), ["0", "1", "2"]);
        assert_eq!(summarise(reasons(9)), ["0", "1", "2", "and 6 more"]);
    }

    #[test]
    fn the_plan_is_in_order() {
        let scenario = named("stop").unwrap();
        let times = Times::new(&scenario, 0);
        let s = |seconds: f64| nanos(Duration::from_secs_f64(seconds));
        let plan = plan(&scenario, &times);
        let expected = [
            (0.9, Event::StagesBefore),
            (1.0, Event::Boundary),
            (1.0, Event::WindowFrom),
            (2.0, Event::Boundary),
            (3.0, Event::Boundary),
            (3.0, Event::Stop),
            (3.2, Event::Continue),
            (4.0, Event::Boundary),
            (5.0, Event::Boundary),
            (5.0, Event::WindowTo),
        ];
        assert_eq!(plan, expected.map(|(at_s, event)| (s(at_s), event)));
    }

    fn run_against(fault: Fault, scenario: Scenario) -> Outcome {
        let endpoint = Endpoint::parse(&serve(fault)).unwrap();
        let target = Target { reader_threads: 2, ..Target::new(endpoint) };
        run(&scenario, &target, &AtomicBool::new(false), &mut |_| ()).unwrap()
    }

    fn short(name: &str) -> Scenario {
        let per_s = std::num::NonZeroU64::new(500).unwrap();
        let mut scenario = Scenario {
            load: Load::Scheduled { per_s },
            warmup_s: Duration::from_millis(50),
            duration_s: Duration::from_millis(200),
            ..named(name).unwrap()
        };
        scenario.groups[0].count = 5;
        scenario
    }

    #[test]
    fn every_sample_is_accounted_for() {
        // 125 messages of the schedule and the last one; every third is sequence 3, 6, ... 126.
        let (published, third) = (5 * 126, 5 * 42);
        let sound = Account { published, received: published, ..Account::default() };
        let cases = [
            (Fault::Sound, sound),
            (Fault::Silent, Account { received: published - third, unannounced: third, ..sound }),
            (Fault::Announced, Account { received: published - third, announced: third, ..sound }),
        ];
        for (fault, expected) in cases {
            let outcome = run_against(fault, short("steady"));
            assert_eq!(outcome.account, expected, "{fault:?}");
            assert_eq!((outcome.refused, outcome.ended.len()), (0, 0), "{fault:?}");
            let [phase] = outcome.phases.as_slice() else { panic!("one phase") };
            let lost = if fault == Fault::Sound { 0 } else { 1 };
            // A late generator may send a message outside the window, but each is counted by its schedule.
            assert!(phase.latency.len() <= 500 && phase.latency.len() >= 500 - lost * 5 * 34, "{fault:?}");
            assert_eq!(outcome.intervals.iter().map(|it| it.latency.len()).sum::<u64>(), phase.latency.len());
            assert_eq!(phase.announced > 0, fault == Fault::Announced, "{fault:?} {phase:?}");
            assert_eq!(phase.seconds.len(), 1, "one interval, shorter than its length");
        }
    }

    #[test]
    fn a_subscriber_that_is_cut_off_is_reported() {
        let outcome = run_against(Fault::CutOff, short("steady"));
        assert_eq!(outcome.ended.len(), 4, "three of five, and how many more: {:?}", outcome.ended);
        assert!(outcome.ended[0].contains("4413 too slow"), "{:?}", outcome.ended);
    }

    #[test]
    fn a_stalled_subscriber_catches_up() {
        let outcome = run_against(Fault::Sound, short("slow_reader"));
        let account = outcome.others["stalled"];
        assert!(account.is_exact() && account.received > 0 && account.published < 250, "{account:?}");
        assert_eq!(outcome.phases.len(), 2);
        assert!(outcome.phases[1].ages.is_empty(), "it read nothing within the window");
    }

    #[test]
    fn each_behaviour_has_books_that_balance() {
        let s = Duration::from_secs_f64;
        let cases = [
            Behaviour::Slow { read_bytes_per_s: 20_000 },
            Behaviour::Paused { every_s: s(0.1), for_s: s(0.1) },
            Behaviour::Flaky { every_s: s(0.1), away_s: s(0.1) },
        ];
        for fault in [Fault::Sound, Fault::Announced, Fault::Silent] {
            for behaviour in cases {
                let mut scenario = Scenario { duration_s: s(0.5), ..short("steady") };
                scenario.groups.push(Group { behaviour, ..Group::healthy(2) });
                let outcome = run_against(fault, scenario);
                let account = outcome.others[behaviour.label()];
                assert_eq!(account.is_exact(), fault != Fault::Silent, "{fault:?} {behaviour:?} {account:?}");
                assert!(account.received > 0 && outcome.ended.is_empty(), "{:?}", outcome.ended);
                assert!(!outcome.phases[0].ages[behaviour.label()].is_empty());
                // What a flaky one could not have got is not in its books.
                let (published, whole) = (account.published, 2 * outcome.account.published / 5);
                let is_away = matches!(behaviour, Behaviour::Flaky { .. });
                assert!(published < whole || (published == whole && !is_away), "{behaviour:?} {account:?}");
            }
        }
    }

    #[test]
    fn a_subscriber_may_leave_before_the_end() {
        let phase = |name: &str| PhaseSpec {
            name: name.to_owned(),
            rate_factor: 1.0,
            warmup_s: None,
            duration_s: None,
        };
        let mut scenario = Scenario { phases: vec![phase("with"), phase("without")], ..short("steady") };
        let behaviour = Behaviour::Stalled;
        scenario.groups.push(Group { behaviour, phases: vec!["with".to_owned()], ..Group::healthy(1) });
        let outcome = run_against(Fault::Sound, scenario);
        let (stalled, healthy) = (outcome.others["stalled"], outcome.account.published / 5);
        assert!(stalled.is_exact() && stalled.received > 0 && stalled.published < healthy, "{stalled:?}");
    }

    #[test]
    fn a_closed_loop_ends_and_balances() {
        let load = Load::Saturating { outstanding_bytes_max: 8 << 10 };
        let outcome = run_against(Fault::Sound, Scenario { load, ..short("saturate") });
        assert!(outcome.account.is_exact() && outcome.phases[0].arrived > 0, "{:?}", outcome.account);
        let per_s = std::num::NonZeroU64::new(500).unwrap();
        let outcome = run_against(Fault::Sound, Scenario { load: Load::Closed { per_s }, ..short("steady") });
        let account = outcome.account;
        assert!(account.is_exact() && account.published > 5 && account.published <= 5 * 126, "{account:?}");
    }

    #[test]
    fn visitors_come_and_go() {
        let outcome = run_against(Fault::Sound, short("churn"));
        let churned = outcome.churned.unwrap();
        assert!(!churned.to_subscribed.is_empty() && churned.failed == 0, "{:?}", churned.failures);
        assert!(outcome.account.is_exact());
    }

    #[test]
    fn an_interrupted_run_ends() {
        let endpoint = Endpoint::parse(&serve(Fault::Sound)).unwrap();
        let interrupted = AtomicBool::new(false);
        let mut on_progress =
            |it: &Progress<'_>| interrupted.store(it.at > Duration::ZERO, Ordering::Relaxed);
        let scenario = Scenario { duration_s: Duration::from_secs(3_600), ..short("steady") };
        let end = run(&scenario, &Target::new(endpoint), &interrupted, &mut on_progress);
        assert_eq!(end.unwrap_err(), INTERRUPTED);
    }
}
