//! Runs one scenario: set-up, warm-up, measurement, the last message, the books. Brings the other parts together and
//! measures nothing itself.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::churn::{self, Churned};
use crate::clock::{Clock, nanos};
use crate::dialect::Dialect;
use crate::ledger::Account;
use crate::measure::{Interval, Recorder, Seen, Window, histogram};
use crate::proc::{self, Load as CpuLoad, Machine, Memory, Usage, own_pid};
use crate::publishers::{Published, Publisher, Span, publish_all};
use crate::scenario::{Disturbance, Load, Scenario};
use crate::subscribers::{Heads, Options, Readout, Shared, Subscriber, read_all};
use crate::ws::{Endpoint, READ_BUFFER_BYTES};

/// From the end of the set-up to the first message.
const LEAD_IN: Duration = Duration::from_millis(50);

/// How often the progress is shown and an interruption is looked for.
const TICK: Duration = Duration::from_millis(100);

/// Intervals between the readers and the main thread; it takes them as they come.
const INTERVALS_MAX: usize = 64;

/// `SO_RCVBUF` of a stalled subscriber: small, so that the backlog is the server's to deal with within a fraction of a
/// second, and not the kernel's.
const STALLED_RECEIVE_BUFFER_BYTES: usize = 16 << 10;

/// Subscribers from whose frames the parts of the latency are taken.
const WATCHED_MAX: usize = 5;

/// Reasons of the same kind that are shown.
const REASONS_SHOWN_MAX: usize = 3;

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
    /// Schedule to arrival, of every sample scheduled in the window.
    pub latency: Histogram<u64>,
    /// How late the generator sent.
    pub lateness: Histogram<u64>,
    /// Parts of the latency.
    pub seen: Seen,
    /// CPU of the server, if its process is known.
    pub server_cpu: Option<CpuLoad>,
    /// Its memory at the end of the window.
    pub server_memory: Option<Memory>,
    /// CPU of this process.
    pub client_cpu: Option<CpuLoad>,
    /// Its memory.
    pub client_memory: Option<Memory>,
    /// Shares of the machine's CPUs that were idle and stolen.
    pub machine: Option<(f64, f64)>,
}

/// What came of a scenario.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// What was run.
    pub scenario: Scenario,
    /// One for each window.
    pub phases: Vec<Phase>,
    /// Latencies by second.
    pub intervals: Vec<Interval>,
    /// The books of the healthy subscribers.
    pub account: Account,
    /// The books of the stalled one.
    pub stalled: Option<Account>,
    /// The visitors.
    pub churned: Option<Churned>,
    /// The server's memory before the first connection.
    pub server_before: Option<Memory>,
    /// Samples that the server did not take, and what it said.
    pub refused: u64,
    /// What it said, and how often.
    pub refusals: BTreeMap<String, u64>,
    /// Connections that ended early, and why.
    pub ended: Vec<String>,
}

/// How far a run is: of its total time, and in words.
pub(crate) type OnProgress<'a> = &'a mut dyn FnMut(Duration, &str);

/// Runs the scenario. `interrupted` gives it up.
pub(crate) fn run(
    scenario: &Scenario,
    target: &Target,
    interrupted: &AtomicBool,
    on_progress: OnProgress<'_>,
) -> Result<Outcome, String> {
    proc::raise_open_files(scenario.connections() + OTHER_FILES).map_err(|error| error.to_string())?;
    let clock = Clock::new();
    let server_before = target.server_pid.and_then(Memory::of);
    on_progress(Duration::ZERO, "connecting");
    let fleet = Fleet::connect(scenario, target, interrupted)?;
    let mut running = fleet.start(scenario, target, clock)?;
    let measured = running.watch(scenario, target, interrupted, on_progress);
    on_progress(scenario.total(), "closing the books");
    let outcome = running.finish(measured.is_err());
    let (phases, stalled) = measured?;
    outcome?.into_outcome(scenario, phases, stalled, clock, server_before)
}

/// Files beside the sockets: epoll, pipes, logs, results.
pub(crate) const OTHER_FILES: usize = 64;

/// Everything connected, nothing running.
struct Fleet {
    publishers: Vec<Publisher>,
    subscribers: Vec<Subscriber>,
    /// What subscribers subscribe to.
    channel: String,
    options: Options,
}

impl Fleet {
    fn connect(scenario: &Scenario, target: &Target, interrupted: &AtomicBool) -> Result<Self, String> {
        // Channels of this run only: another run against the same server is not in its way.
        let prefix = format!("loadtest.{:08x}.{}", fastrand::u32(..), scenario.name);
        let mut buffer = vec![0; READ_BUFFER_BYTES];
        let endpoint = &target.endpoint;
        let mut publishers = Vec::with_capacity(scenario.publishers);
        let count = u32::try_from(scenario.publishers).map_err(|error| error.to_string())?;
        for index in 0..count {
            let name = format!("{prefix}.{index}");
            let Scenario { samples_per_message, payload_bytes, .. } = *scenario;
            let publisher = Publisher::open(
                endpoint,
                target.dialect,
                (index, &name),
                samples_per_message,
                payload_bytes,
                &mut buffer,
            );
            publishers.push(publisher.map_err(|why| format!("publisher {} of {count}: {why}", index + 1))?);
        }
        let channel = match scenario.publishers {
            1 => format!("{prefix}.0"),
            _ => format!("{prefix}.*"),
        };
        let options = Options {
            policy: scenario.policy,
            max_delay_ms: scenario.max_delay_ms,
            receive_buffer_bytes: None,
            dialect: target.dialect,
            publishers: count,
            joins_late: false,
        };
        let mut subscribers = Vec::with_capacity(scenario.subscribers);
        for index in 0..scenario.subscribers {
            if interrupted.load(Ordering::Relaxed) {
                return Err(INTERRUPTED.to_owned());
            }
            let subscriber = Subscriber::open(endpoint, &channel, options, &mut buffer)
                .map_err(|why| format!("subscriber {} of {}: {why}", index + 1, scenario.subscribers))?;
            subscribers.push(subscriber);
        }
        // Evenly spread: a server that writes to its subscribers in turn reaches the first one early and the last one late.
        let step = subscribers.len().div_ceil(WATCHED_MAX);
        subscribers.iter_mut().skip(step / 2).step_by(step.max(1)).for_each(Subscriber::watch);
        Ok(Self { publishers, subscribers, channel, options })
    }

    fn start(self, scenario: &Scenario, target: &Target, clock: Clock) -> Result<Running, String> {
        let Self { publishers, mut subscribers, channel, options } = self;
        let shared = Arc::new(Shared { clock, heads: OnceLock::new(), abort: AtomicBool::new(false) });
        let span_start_ns = clock.now_ns() + nanos(LEAD_IN);
        let windows = windows(scenario, span_start_ns);
        let end_ns = windows.last().map_or(span_start_ns, |window| window.to_ns);
        let span = Span { start_ns: span_start_ns, end_ns };
        let (sender, intervals) = sync_channel(INTERVALS_MAX);
        let threads = target.reader_threads.clamp(1, subscribers.len().max(1));
        let progress: Arc<Vec<AtomicU64>> = Arc::new((0..threads).map(|_| AtomicU64::new(0)).collect());
        let paced = matches!(scenario.load, Load::Saturating { .. });
        let mut readers = Vec::with_capacity(threads);
        for thread in 0..threads {
            let share = subscribers.len().div_ceil(threads - thread);
            let mine: Vec<Subscriber> = subscribers.drain(..share).collect();
            let (shared, progress) = (Arc::clone(&shared), Arc::clone(&progress));
            let recorder = Recorder::new(&windows, clock.now_ns(), sender.clone());
            let recorder = if paced { recorder.sparse() } else { recorder };
            readers.push(spawn(format!("reader-{thread}"), move || {
                read_all(mine, &shared, recorder, &progress[thread], paced)
            })?);
        }
        let publisher = {
            let (shared, progress, windows) = (Arc::clone(&shared), Arc::clone(&progress), windows.clone());
            let Scenario { load, payload_bytes, .. } = *scenario;
            spawn("publisher".to_owned(), move || {
                publish_all(publishers, load, payload_bytes, span, &windows, &shared, &progress)
            })?
        };
        let mut running = Running {
            shared,
            windows,
            span,
            intervals,
            kept: Vec::new(),
            readers,
            publisher,
            visitors: None,
            stalled: None,
            channel,
            options,
        };
        if let Disturbance::Churn(per_s) = scenario.disturbance {
            running.start_churn(target, per_s)?;
        }
        Ok(running)
    }
}

/// Warm-up, window, and again for each phase.
fn windows(scenario: &Scenario, start_ns: u64) -> Vec<Window> {
    let mut from_ns = start_ns;
    let phases = scenario.phases().iter();
    phases
        .map(|_| {
            let window = Window {
                from_ns: from_ns + nanos(scenario.warmup),
                to_ns: from_ns + nanos(scenario.warmup + scenario.duration),
            };
            from_ns = window.to_ns;
            window
        })
        .collect()
}

/// What an interrupted run ends with.
pub(crate) const INTERRUPTED: &str = "interrupted";

fn spawn<T: Send + 'static>(
    name: String,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, String> {
    thread::Builder::new().name(name).spawn(work).map_err(|error| format!("cannot start a thread: {error}"))
}

/// Everything runs.
struct Running {
    shared: Arc<Shared>,
    windows: Vec<Window>,
    span: Span,
    intervals: Receiver<Interval>,
    kept: Vec<Interval>,
    readers: Vec<JoinHandle<std::io::Result<Readout>>>,
    publisher: JoinHandle<std::io::Result<Published>>,
    visitors: Option<(std::sync::mpsc::SyncSender<()>, JoinHandle<Churned>)>,
    stalled: Option<Subscriber>,
    channel: String,
    options: Options,
}

/// What the machine used in a window.
type Used = (Option<CpuLoad>, Option<Memory>, Option<CpuLoad>, Option<Memory>, Option<(f64, f64)>);

impl Running {
    fn start_churn(&mut self, target: &Target, per_s: std::num::NonZeroU64) -> Result<(), String> {
        let (stop, stopped) = sync_channel(0);
        let (endpoint, channel, options) = (target.endpoint.clone(), self.channel.clone(), self.options);
        let (clock, time) = (self.shared.clock, (self.span.start_ns, self.span.end_ns));
        let visitors = spawn("churn".to_owned(), move || {
            churn::visit(&endpoint, &channel, options, clock, time, per_s, &stopped)
        })?;
        self.visitors = Some((stop, visitors));
        Ok(())
    }

    /// Sees the run through to the end of its last window.
    fn watch(
        &mut self,
        scenario: &Scenario,
        target: &Target,
        interrupted: &AtomicBool,
        on_progress: OnProgress<'_>,
    ) -> Result<(Vec<Used>, Option<Subscriber>), String> {
        let mut used = Vec::new();
        for (phase, window) in self.windows.clone().into_iter().enumerate() {
            let label = scenario.label(phase);
            if phase > 0 && scenario.disturbance == Disturbance::Stalled {
                let options = Options {
                    receive_buffer_bytes: Some(STALLED_RECEIVE_BUFFER_BYTES),
                    joins_late: true,
                    ..self.options
                };
                let mut buffer = vec![0; READ_BUFFER_BYTES];
                let stalled = Subscriber::open(&target.endpoint, &self.channel, options, &mut buffer)
                    .map_err(|why| format!("the stalled subscriber: {why}"))?;
                self.stalled = Some(stalled);
            }
            self.wait_until(window.from_ns, interrupted, on_progress, &format!("{label}: warm-up"))?;
            target.server_pid.into_iter().chain([own_pid()]).for_each(proc::reset_peak);
            let before = Snapshot::take(target, self.shared.clock);
            self.wait_until(window.to_ns, interrupted, on_progress, &label)?;
            used.push(Snapshot::take(target, self.shared.clock).since(&before, target));
        }
        Ok((used, self.stalled.take()))
    }

    fn wait_until(
        &mut self,
        until_ns: u64,
        interrupted: &AtomicBool,
        on_progress: OnProgress<'_>,
        what: &str,
    ) -> Result<(), String> {
        loop {
            let now_ns = self.shared.clock.now_ns();
            on_progress(Duration::from_nanos(now_ns.saturating_sub(self.span.start_ns)), what);
            if interrupted.load(Ordering::Relaxed) {
                return Err(INTERRUPTED.to_owned());
            }
            if now_ns >= until_ns {
                return Ok(());
            }
            let pause = Duration::from_nanos(until_ns - now_ns).min(TICK);
            match self.intervals.recv_timeout(pause) {
                Ok(interval) => self.kept.push(interval),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err("the threads that read subscribers have ended".to_owned());
                }
            }
        }
    }

    /// Waits for the publishers, then for the subscribers to have everything, then for all threads.
    fn finish(mut self, abort: bool) -> Result<Finished, String> {
        self.shared.abort.store(abort, Ordering::Relaxed);
        let failed = |error: std::io::Error| format!("the generator failed: {error}");
        let panicked = |_| "a thread of the generator panicked".to_owned();
        let published = self.publisher.join().map_err(panicked)?.map_err(failed)?;
        // Set once, here.
        let _ = self.shared.heads.set(published.heads.clone());
        let mut readouts = Vec::with_capacity(self.readers.len());
        let kept = &mut self.kept;
        // Ends when every reader has: they hold the senders.
        kept.extend(self.intervals.iter());
        for reader in self.readers {
            readouts.push(reader.join().map_err(panicked)?.map_err(failed)?);
        }
        let churned = match self.visitors {
            Some((stop, visitors)) => {
                drop(stop);
                Some(visitors.join().map_err(panicked)?)
            }
            None => None,
        };
        Ok(Finished { windows: self.windows, published, readouts, intervals: self.kept, churned })
    }
}

/// What the operating system counts, at one instant.
struct Snapshot {
    at_ns: u64,
    server: Option<Usage>,
    client: Option<Usage>,
    machine: Option<Machine>,
}

impl Snapshot {
    fn take(target: &Target, clock: Clock) -> Self {
        Self {
            at_ns: clock.now_ns(),
            server: target.server_pid.and_then(Usage::of),
            client: Usage::of(own_pid()),
            machine: Machine::read(),
        }
    }

    fn since(&self, before: &Self, target: &Target) -> Used {
        let elapsed_ns = self.at_ns.saturating_sub(before.at_ns);
        let load = |now: &Option<Usage>, before: &Option<Usage>| {
            Some(now.as_ref()?.since(before.as_ref()?, elapsed_ns))
        };
        (
            load(&self.server, &before.server),
            target.server_pid.and_then(Memory::of),
            load(&self.client, &before.client),
            Memory::of(own_pid()),
            self.machine.zip(before.machine).map(|(now, before)| now.since(&before)),
        )
    }
}

/// Everything has ended.
struct Finished {
    windows: Vec<Window>,
    published: Published,
    readouts: Vec<Readout>,
    intervals: Vec<Interval>,
    churned: Option<Churned>,
}

impl Finished {
    fn into_outcome(
        self,
        scenario: &Scenario,
        used: Vec<Used>,
        stalled: Option<Subscriber>,
        clock: Clock,
        server_before: Option<Memory>,
    ) -> Result<Outcome, String> {
        let Self { windows, published, readouts, intervals, churned } = self;
        let Published { sent, heads, refused, refusals, ended: unpublished } = published;
        let mut account = Account::default();
        let mut ended = unpublished;
        let mut seen: Vec<Seen> = windows.iter().map(|_| Seen::new()).collect();
        for readout in readouts {
            account += readout.account;
            ended.extend(readout.ended);
            for (sum, part) in seen.iter_mut().zip(&readout.seen) {
                sum.merge(part);
            }
        }
        let stalled = match stalled {
            Some(subscriber) => match settle_stalled(subscriber, &heads, clock) {
                Ok(account) => Some(account),
                Err(why) => {
                    ended.push(format!("the stalled subscriber: {why}"));
                    None
                }
            },
            None => None,
        };
        let phases = windows
            .iter()
            .zip(sent)
            .zip(seen)
            .zip(used)
            .enumerate()
            .map(|(index, (((window, sent), seen), used))| {
                let mut latency = histogram();
                for interval in intervals.iter().filter(|it| it.window == index) {
                    // Same bounds, so adding cannot fail.
                    let _ = latency.add(&interval.latency);
                }
                let (server_cpu, server_memory, client_cpu, client_memory, machine) = used;
                Phase {
                    label: scenario.label(index),
                    window: *window,
                    messages: sent.messages,
                    arrived: seen.arrived,
                    latency,
                    lateness: sent.lateness,
                    seen,
                    server_cpu,
                    server_memory,
                    client_cpu,
                    client_memory,
                    machine,
                }
            })
            .collect();
        Ok(Outcome {
            scenario: scenario.clone(),
            phases,
            intervals,
            account,
            stalled,
            churned,
            server_before,
            refused,
            refusals,
            ended: summarise(ended),
        })
    }
}

/// The stalled subscriber reads on: what it gets now and what it is told must be everything.
fn settle_stalled(mut subscriber: Subscriber, heads: &Heads, clock: Clock) -> Result<Account, String> {
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    subscriber.catch_up(heads, clock, &mut buffer).map_err(|why| why.to_string())?;
    Ok(subscriber.close(heads))
}

/// The first few reasons, and how many more there are.
fn summarise(mut reasons: Vec<String>) -> Vec<String> {
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
    use crate::scenario::named;

    #[test]
    fn windows_follow_one_another_with_a_warm_up_each() {
        let mut scenario = named("slow_reader").unwrap();
        scenario.warmup = Duration::from_nanos(10);
        scenario.duration = Duration::from_nanos(100);
        let window = |from_ns, to_ns| Window { from_ns, to_ns };
        assert_eq!(windows(&scenario, 1_000), [window(1_010, 1_110), window(1_120, 1_220)]);
        scenario.disturbance = Disturbance::Calm;
        assert_eq!(windows(&scenario, 0), [window(10, 110)]);
    }

    #[test]
    fn reasons_are_not_endless() {
        let reasons = |count: usize| (0..count).map(|index| index.to_string()).collect::<Vec<_>>();
        assert_eq!(summarise(reasons(3)), ["0", "1", "2"]);
        assert_eq!(summarise(reasons(9)), ["0", "1", "2", "and 6 more"]);
    }

    fn run_against(fault: Fault, scenario: Scenario) -> Outcome {
        let endpoint = Endpoint::parse(&serve(fault)).unwrap();
        let target = Target { endpoint, dialect: Dialect::Tidewire, server_pid: None, reader_threads: 2 };
        run(&scenario, &target, &AtomicBool::new(false), &mut |_, _| ()).unwrap()
    }

    fn short(name: &str) -> Scenario {
        let per_s = std::num::NonZeroU64::new(500).unwrap();
        Scenario {
            load: Load::Scheduled(per_s),
            subscribers: 5,
            warmup: Duration::from_millis(50),
            duration: Duration::from_millis(200),
            ..named(name).unwrap()
        }
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
        let account = outcome.stalled.unwrap();
        assert!(account.is_exact() && account.received > 0 && account.published < 250, "{account:?}");
        assert_eq!(outcome.phases.len(), 2);
    }

    #[test]
    fn a_closed_loop_keeps_within_its_bound() {
        let load = Load::Saturating { outstanding_bytes_max: 8 << 10 };
        let outcome = run_against(Fault::Sound, Scenario { load, ..short("saturate") });
        assert!(outcome.account.is_exact() && outcome.phases[0].arrived > 0, "{:?}", outcome.account);
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
        let target = Target { endpoint, dialect: Dialect::Tidewire, server_pid: None, reader_threads: 1 };
        let interrupted = AtomicBool::new(false);
        let mut on_progress =
            |at: Duration, _: &str| interrupted.store(at > Duration::ZERO, Ordering::Relaxed);
        let scenario = Scenario { duration: Duration::from_secs(3_600), ..short("steady") };
        assert_eq!(run(&scenario, &target, &interrupted, &mut on_progress).unwrap_err(), INTERRUPTED);
    }
}
