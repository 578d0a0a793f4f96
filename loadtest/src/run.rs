//! Runs one scenario once: set-up, warm-up, measurement, the last message, the books. Brings the other parts together and
//! measures nothing itself.

use std::collections::BTreeMap;
use std::io::{BufRead as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::accept;
use crate::books::Heads;
use crate::churn::Churned;
use crate::clock::{Clock, nanos};
use crate::dialect::Dialect;
use crate::finish;
use crate::fleet::Fleet;
use crate::ledger::Account;
use crate::measure::{Interval, Window};
use crate::offset;
use crate::proc::{self, Memory};
use crate::publishers::Returns;
use crate::result::{AgeSecond, ClockOffset, Second};
use crate::scenario::{Kind, Scenario, Share};
use crate::snapshot::Used;
use crate::stages::{Page, ServerStages};
use crate::subscribers::{Options, Subscriber};
use crate::watch;
use crate::ws::{Endpoint, READ_BUFFER_BYTES};

/// From the end of the set-up to the first message.
const LEAD_IN: Duration = Duration::from_millis(50);

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
    /// The server: where the publishers and the first subscriber are, and whose figures are taken.
    pub endpoint: Endpoint,
    /// Other servers that serve the same channels: subscribers are spread over all, and go on at the next when theirs is gone.
    pub others: Vec<Endpoint>,
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
            others: Vec::new(),
            dialect: Dialect::Tidewire,
            server_pid: None,
            reader_threads: 1,
            share: Share::WHOLE,
            run_id: None,
            start: Start::Soon,
            estimates_clock: false,
        }
    }

    /// What several servers cannot be asked for. The error names the option and the remedy.
    pub(crate) fn check(&self, scenario: &Scenario) -> Result<(), String> {
        if self.others.is_empty() {
            return Ok(());
        }
        if self.share != Share::WHOLE {
            return Err("--url is given several times, and the run is shared (--processes, --share): only the first server would \
                        be asked where the channels end; give one --url, or run it with one process"
                .to_owned());
        }
        if scenario.load.is_closed() {
            return Err(format!(
                "{}: --url is given several times, and load is a closed loop: it waits for samples that may be lost with a \
                 server; give one --url, or use load = {{ scheduled = {{ per_s = N }} }} (--rate)",
                scenario.name
            ));
        }
        Ok(())
    }

    /// All servers, the first one first.
    pub(crate) fn servers(&self) -> Arc<[Endpoint]> {
        std::iter::once(&self.endpoint).chain(&self.others).cloned().collect()
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
    /// What came of publishers whose connection ended.
    pub returns: Returns,
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
    target.check(whole)?;
    proc::raise_open_files(whole.connections() + OTHER_FILES).map_err(|error| error.to_string())?;
    let scenario = &whole.share(target.share);
    let clock = Clock::new();
    // What the server needs to be asked for its histograms is not the connections'.
    drop(Page::of(&target.endpoint, target.dialect));
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
    let (watched, notes) = watch::watch(&running, scenario, target, interrupted, &mut *on_progress);
    on_progress(&Progress {
        at: scenario.total(),
        what: &format!("{}: closing the books", scenario.name),
        live: None,
    });
    let heads_of_all = |clock: Clock, end_ns: u64| shared_heads(target, &channel, clock, end_ns);
    let is_shared = target.share != Share::WHOLE;
    let finished = finish::finish(running, watched.is_err(), notes, is_shared, heads_of_all);
    watched?;
    let mut outcome = finished?.into_outcome(scenario)?;
    outcome.server_before = server_before;
    if let Some(before) = before {
        outcome.clock = Some(offset::between(before, offset::estimate(&target.endpoint, clock)?));
    }
    Ok(outcome)
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
    Ok(subscriber.books().heads_at_start())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    use crate::fake::{Fault, serve, serve_tls, serve_with};
    use crate::scenario::{Behaviour, Codec, Group, Load, PhaseSpec, named};

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
    fn every_sample_is_accounted_for_within_tls() {
        let mut scenario = short("steady");
        // Reads less than comes, and then everything: none may be left where no event tells of it.
        let slow = Behaviour::Slow { read_bytes_per_s: 2_000 };
        scenario.groups.push(Group { behaviour: slow, ..Group::healthy(2) });
        let target = Target { reader_threads: 2, ..Target::new(serve_tls(Fault::Sound)) };
        let outcome = run(&scenario, &target, &AtomicBool::new(false), &mut |_| ()).unwrap();
        let published = 5 * 126;
        assert_eq!(outcome.account, Account { published, received: published, ..Account::default() });
        let slow = outcome.others["slow"];
        assert!(slow.is_exact() && slow.received > 0, "{slow:?}");
        assert_eq!(outcome.ended, Vec::<String>::new());
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
                // A flaky one gets what it missed.
                assert!(account.published <= 2 * outcome.account.published / 5, "{behaviour:?} {account:?}");
                let comes_back = matches!(behaviour, Behaviour::Flaky { .. });
                assert_eq!(
                    (account.resumed > 0, account.replayed > 0),
                    (comes_back, comes_back),
                    "{account:?}"
                );
            }
        }
    }

    /// A server as it is, on a thread; it ends with the test's process.
    fn server() -> Endpoint {
        let config = tidewire::config::Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            workers: 2,
            ..tidewire::config::Config::default()
        };
        let server = tidewire::server::Server::bind(config).unwrap();
        let address = server.local_addr().unwrap();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(server.run(std::future::pending()))
        });
        Endpoint::parse(&format!("ws://{address}/ws")).unwrap()
    }

    #[test]
    fn a_network_that_fails_costs_no_sample_of_a_server_that_keeps_the_past() {
        let s = Duration::from_secs_f64;
        let mut scenario = Scenario { publishers: 2, duration_s: s(1.5), ..short("steady") };
        let flaky =
            Group { behaviour: Behaviour::Flaky { every_s: s(0.3), away_s: s(0.2) }, ..Group::healthy(2) };
        for codec in [Codec::Protobuf, Codec::Msgpack, Codec::Json] {
            scenario.groups.push(Group { codec, ..flaky.clone() });
        }
        let target = Target::new(server());
        let outcome = run(&scenario, &target, &AtomicBool::new(false), &mut |_| ()).unwrap();
        let account = outcome.others["flaky"];
        assert!(account.is_exact() && account.announced == 0 && account.received > 0, "{account:?}");
        assert!(account.resumed >= 6 && account.replayed > 0 && account.resets == 0, "{account:?}");
        assert!(outcome.account.is_exact() && outcome.account.resumed == 0, "{:?}", outcome.account);
        assert_eq!(outcome.ended, Vec::<String>::new());
    }

    #[test]
    fn who_comes_late_may_ask_for_the_past() {
        let phase = |name: &str| PhaseSpec {
            name: name.to_owned(),
            rate_factor: 1.0,
            warmup_s: None,
            duration_s: None,
        };
        let mut scenario = Scenario { phases: vec![phase("calm"), phase("storm")], ..short("steady") };
        let behaviour = Behaviour::Paused { every_s: Duration::from_secs(9), for_s: Duration::from_secs(9) };
        for codec in [Codec::Protobuf, Codec::Msgpack, Codec::Json] {
            scenario.groups.push(Group {
                codec,
                behaviour,
                last_ms: Some(60_000),
                phases: vec!["storm".to_owned()],
                ..Group::healthy(10)
            });
        }
        // All of the past of a run as short as this.
        let target = Target::new(server());
        let outcome = run(&scenario, &target, &AtomicBool::new(false), &mut |_| ()).unwrap();
        let (storm, healthy) = (outcome.others["paused"], outcome.account.published / 5);
        assert!(storm.is_exact() && storm.announced == 0, "{storm:?}");
        assert_eq!((storm.published, storm.received), (30 * healthy, 30 * healthy), "{storm:?}");
        assert!(storm.replayed > 0 && storm.replayed < storm.received, "{storm:?}");
        assert_eq!((storm.resumed, storm.resets), (0, 0), "{storm:?}");
        // What is of the past has no age.
        let aged =
            outcome.phases.iter().map(|it| it.ages.get("paused").map_or(0, |ages| ages.len())).sum::<u64>();
        assert!(aged > 0 && aged <= storm.received - storm.replayed, "{aged} {storm:?}");
        assert_eq!(outcome.ended, Vec::<String>::new());
    }

    #[test]
    fn who_comes_back_goes_on() {
        let mut scenario = Scenario { duration_s: Duration::from_millis(500), ..short("steady") };
        scenario.groups[0].comes_back = true;
        scenario.groups.push(Group {
            comes_back: true,
            behaviour: Behaviour::Paused { every_s: Duration::from_secs(9), for_s: Duration::from_secs(9) },
            ..Group::healthy(2)
        });
        let outcome = run_against(Fault::GoneAway, scenario);
        assert_eq!(outcome.account.published, 5 * 276);
        for (account, count) in [(outcome.account, 5), (outcome.others["paused"], 2)] {
            assert!(account.is_exact(), "{account:?}");
            assert!(account.resumed >= count && account.replayed >= account.resumed, "{account:?}");
            assert_eq!(account.resets, 0);
        }
        assert_eq!(outcome.ended, Vec::<String>::new());
        // What came late since nobody was there is not the latency of the server.
        let recorded = outcome.phases[0].latency.len();
        assert!(recorded < 5 * 250, "{recorded}");
    }

    #[test]
    fn publishers_come_back_and_count_what_they_lost() {
        let mut scenario = short("steady");
        scenario.groups[0].comes_back = true;
        let outcome = run_against(Fault::Unacknowledged, scenario.clone());
        // One sample each time, taken though nobody said so: subscribers have it, and the books say that it may be so.
        let Returns { times, unacknowledged, unsent } = outcome.returns;
        assert!(times > 0 && unacknowledged >= times, "{:?}", outcome.returns);
        assert!(outcome.account.is_exact() && outcome.account.unseen == 0, "{:?}", outcome.account);
        // If the last one is lost like that, there is one more.
        let sent = 126 - unsent;
        assert_eq!(outcome.account.published, 5 * (sent + u64::from(sent.is_multiple_of(20))));
        assert_eq!(outcome.ended, Vec::<String>::new());
        scenario.groups[0].comes_back = false;
        let outcome = run_against(Fault::Unacknowledged, scenario);
        assert_eq!((outcome.returns, outcome.ended.len()), (Returns::default(), 1));
    }

    #[test]
    fn what_several_servers_cannot_do_is_refused() {
        let endpoint = || Endpoint::parse("ws://127.0.0.1:1/ws").unwrap();
        let several = Target { others: vec![endpoint()], ..Target::new(endpoint()) };
        let shared = Target { share: Share { index: 0, of: 2 }, ..several.clone() };
        let problem = |target: &Target, name| target.check(&named(name).unwrap()).unwrap_err();
        assert!(problem(&shared, "steady").contains("--processes"));
        assert!(problem(&several, "saturate").contains("saturate: --url is given several times"));
        assert_eq!(several.check(&named("steady").unwrap()), Ok(()));
        let one = Target { others: Vec::new(), ..shared };
        assert_eq!(one.check(&named("saturate").unwrap()), Ok(()));
    }

    #[test]
    fn who_has_a_second_server_goes_there() {
        let state = Arc::default();
        let servers = [(0, Fault::Dies), (1, Fault::Sound)];
        let [first, second] =
            servers.map(|(number, fault)| Endpoint::parse(&serve_with(&state, number, fault)).unwrap());
        let target = Target { others: vec![second], ..Target::new(first) };
        let mut scenario = short("steady");
        let paused = Behaviour::Paused { every_s: Duration::from_secs(9), for_s: Duration::from_secs(9) };
        scenario.groups.push(Group { behaviour: paused, ..Group::healthy(2) });
        let outcome = run(&scenario, &target, &AtomicBool::new(false), &mut |_| ()).unwrap();
        assert_eq!(outcome.ended, Vec::<String>::new());
        {
            // Subscribers were spread, three and one at the first; the publisher began there.
            let mut state = state.lock().unwrap();
            state.subscribed.sort_unstable();
            let all_and_those_again = [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1];
            assert_eq!(state.subscribed, all_and_those_again);
            assert_eq!(state.advertised, [0, 1]);
        }
        let Returns { times, unacknowledged, unsent } = outcome.returns;
        assert!(times == 1 && unacknowledged >= 1, "{:?}", outcome.returns);
        for (account, count, back) in [(outcome.account, 5, 3), (outcome.others["paused"], 2, 1)] {
            assert!(account.is_exact(), "{account:?}");
            assert_eq!((account.resumed, account.resets, account.unseen), (back, 0, 0));
            // What was on its way when the server died may have been taken or not.
            let published = account.published / count;
            assert_eq!(account.published, count * published);
            let sent = 126 - unsent;
            assert!((sent - unacknowledged..=sent).contains(&published) && published > 20, "{account:?}");
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
