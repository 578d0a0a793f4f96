//! `loadtest soak`: good and slow subscribers, first alone and then in a crowd of clients that come, go and misbehave; at the
//! end a verdict. Brings a scenario, the crowd and the verdict together; the acts are `acts`', the promises `verdict`'s.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::access::AccessArgs;
use crate::args::{GeneratorArgs, ServerArgs, seconds};
use crate::fleet::PANICKED;
use crate::pages;
use crate::proc;
use crate::result::{Bottleneck, PhaseResult, RunFile, ScenarioResult};
use crate::run::{self, OTHER_FILES, Progress, Target};
use crate::scenario::{Behaviour, Group, Load, PhaseSpec, Scenario};
use crate::server::Server;
use crate::session::{self, Bar};
use crate::source::Source;
use crate::table;
use crate::verdict as figures;

use self::acts::{ACTS, Place};
use self::crowd::{Cue, Tally};
use self::verdict::{Check, Evidence, State, judge, tally_text};

mod acts;
mod crowd;
mod verdict;

/// Shortest soak: the acts that are let wait the longest, 10 s, should end within it at least once.
const DURATION_MIN: Duration = Duration::from_secs(15);

/// Shares of the run: good subscribers alone, warming up and measured; then with the crowd, settling and measured. Memory is
/// judged in the last, when everybody has been there for a while.
const SHARES: [f64; 4] = [0.05, 0.15, 0.2, 0.6];

/// Windows of the run, each with a p99 and a reading of the memory: enough for medians, and few enough for all pairs.
const WINDOWS: f64 = 100.0;

/// Shortest window: some hundred messages, so that its p99 is one.
const WINDOW_MIN: Duration = Duration::from_millis(250);

/// How long the server may take to be rid of a crowd that has gone. Longer than its time for a close, 2 s, and its write
/// deadline, 10 s.
const CLEAR_TIMEOUT: Duration = Duration::from_secs(30);

/// Between two looks at it.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Runs good, slow, short-lived and hostile clients together against a server, for long. It ends with 1 if the server has
/// broken a promise, with 3 if it could not run.
#[derive(Debug, Args)]
pub(crate) struct SoakArgs {
    /// Seconds in all; the first fifth is without the crowd. At least 15
    #[arg(long, value_name = "S", value_parser = duration, default_value = "600")]
    pub duration: Duration,
    /// Against what
    #[command(flatten)]
    pub server: ServerArgs,
    /// This process
    #[command(flatten)]
    pub generator: GeneratorArgs,
    /// Results as JSON, which `loadtest report` reads, too
    #[arg(long, value_name = "FILE", default_value = "loadtest-soak.json", help_heading = "Results")]
    pub json: PathBuf,
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = seconds(text)?;
    if duration < DURATION_MIN {
        return Err(format!(
            "want at least {} seconds: some clients are let wait for 10",
            DURATION_MIN.as_secs()
        ));
    }
    Ok(duration)
}

/// The good and the slow ones. The slow ones come with the crowd.
fn scenario(duration: Duration) -> Scenario {
    let [quiet_warmup, quiet, settling, measured] = SHARES.map(|share| duration.mul_f64(share));
    let phase = |name: &str, warmup, duration| PhaseSpec {
        name: name.to_owned(),
        rate_factor: 1.0,
        warmup_s: Some(warmup),
        duration_s: Some(duration),
    };
    let two = Duration::from_secs(2);
    let with_crowd = |count, behaviour| Group {
        behaviour,
        // Small, so that the backlog is the server's to deal with, and a thin link makes progress all the time.
        receive_buffer_bytes: Some(8 << 10),
        phases: vec!["crowd".to_owned()],
        ..Group::healthy(count)
    };
    Scenario {
        name: "soak".to_owned(),
        about: "10 good subscribers, without and with slow readers and a crowd that misbehaves".to_owned(),
        publishers: 2,
        load: NonZeroU64::new(1_000).map_or(Load::Silent, |per_s| Load::Scheduled { per_s }),
        interval_s: duration.div_f64(WINDOWS).max(WINDOW_MIN),
        phases: vec![phase("alone", quiet_warmup, quiet), phase("crowd", settling, measured)],
        groups: vec![
            // Whoever is not slow loses nothing. On a busy machine the generator itself may stand still for a second,
            // which is the server's usual patience.
            Group { max_age_ms: Some(10_000), ..Group::healthy(10) },
            // A tenth of the stream.
            with_crowd(3, Behaviour::Slow { read_bytes_per_s: 14_000 }),
            with_crowd(2, Behaviour::Paused { every_s: two, for_s: two + Duration::from_secs(1) }),
            with_crowd(2, Behaviour::Flaky { every_s: two, away_s: Duration::from_secs(1) }),
        ],
        ..Scenario::default()
    }
}

/// Runs it, and prints and writes what came of it: whether the server has kept its promises.
pub(crate) fn run(args: &SoakArgs) -> Result<bool, String> {
    let scenario = scenario(args.duration);
    scenario.check()?;
    let source = Source::new(&args.server, AccessArgs::default())?;
    let interrupted = session::interruption()?;
    if let Some(cpu) = args.generator.pin_client {
        proc::bind(cpu).map_err(|error| format!("--pin-client: {error}"))?;
    }
    // The server inherits it.
    let files = scenario.connections() + crowd::OPEN_MAX + OTHER_FILES;
    proc::raise_open_files(files).map_err(|error| error.to_string())?;
    let mut file = session::new_file();
    let subject = source.subject(&args.generator, None);
    let bar = Bar::new(scenario.total());
    let (target, server) = source.target(&scenario, &args.generator)?;
    let target = Target { run_id: Some(format!("{:08x}", fastrand::u32(..))), ..target };
    let mut on_progress = |it: &Progress<'_>| bar.show(it.at.min(scenario.total()), "", it);
    let soaked = soak(&scenario, &target, &interrupted, &mut on_progress);
    bar.end();
    let soaked = soaked.map_err(|why| {
        let log = server.as_ref().map(Server::log).unwrap_or_default();
        format!("{log}soak: {why}")
    })?;
    let once = figures::repetition(&soaked.outcome, &scenario, file.started_s, subject.cpus);
    let checks = judge(&soaked.evidence(&once.phases, server.as_ref()));
    file.results.push(ScenarioResult { subject, scenario, repetitions: vec![once] });
    print!("{}\n{}", table::text(&file), text(&soaked.acts, &checks));
    let is_sound = verdict::is_sound(&checks);
    if !is_sound && let Some(server) = &server {
        eprint!("{}", server.log());
    }
    session::save(&args.json, &json(&file, &soaked.acts, &checks)?)?;
    Ok(is_sound)
}

/// What was seen of a soak.
struct Soaked {
    outcome: run::Outcome,
    acts: Vec<Tally>,
    before: State,
    after: State,
    elapsed: Duration,
    process: Option<(u32, bool)>,
    is_healthy: bool,
}

fn soak(
    scenario: &Scenario,
    target: &Target,
    interrupted: &AtomicBool,
    on_progress: run::OnProgress<'_>,
) -> Result<Soaked, String> {
    let started = target.server_pid.and_then(proc::started);
    let before = settled(target)?;
    let start = Instant::now();
    let crowd_from = scenario.parts().first().map(|part| part.warmup + part.duration).unwrap_or_default();
    let cue = Arc::new(Cue::default());
    let crowd = {
        let run = target.run_id.as_deref().unwrap_or_default();
        let channel = format!("loadtest.{run}.{}.*", scenario.name);
        let place = Place { endpoint: target.endpoint.clone(), channel };
        let cue = Arc::clone(&cue);
        thread::Builder::new()
            .name("crowd".to_owned())
            .spawn(move || crowd::act(ACTS, &place, &cue))
            .map_err(|error| format!("cannot start a thread: {error}"))?
    };
    let outcome = run::run(scenario, target, interrupted, &mut |progress| {
        // The time is that of the schedule, by the watcher's tick: a tenth of a second.
        cue.begin.fetch_or(progress.at >= crowd_from, Ordering::Relaxed);
        cue.end.fetch_or(progress.at >= scenario.total(), Ordering::Relaxed);
        on_progress(progress);
    });
    cue.end.store(true, Ordering::Relaxed);
    let acts = crowd.join().map_err(|_| PANICKED.to_owned())?;
    let (outcome, acts) = (outcome?, acts.map_err(|error| format!("the crowd failed: {error}"))?);
    let after = cleared(target, &before)?;
    let elapsed = start.elapsed();
    let is_healthy = pages::fetch(&target.endpoint, "/healthz").is_ok_and(|it| pages::body(&it).is_some());
    let process = target.server_pid.map(|pid| (pid, started.is_some() && proc::started(pid) == started));
    Ok(Soaked { outcome, acts, before, after, elapsed, process, is_healthy })
}

impl Soaked {
    fn evidence(&self, phases: &[PhaseResult], server: Option<&Server>) -> Evidence<'_> {
        let seconds = |index: usize| phases.get(index).map(|it| it.seconds_of.as_slice()).unwrap_or_default();
        // A window in which nothing arrived has none.
        let p99 =
            |index| seconds(index).iter().filter(|it| it.max_ns > 0).map(|it| it.p99_ns as f64).collect();
        Evidence {
            memory: seconds(1).iter().filter_map(|it| Some((it.at_s, it.server_bytes? as f64))).collect(),
            before: self.before,
            after: self.after,
            elapsed_s: self.elapsed.as_secs_f64(),
            process: self.process,
            is_healthy: self.is_healthy,
            panics: server.map(Server::panics),
            good: self.outcome.account,
            slow: &self.outcome.others,
            ended: &self.outcome.ended,
            quiet_p99_ns: p99(0),
            noisy_p99_ns: p99(1),
            bottleneck: phases.get(1).map_or(Bottleneck::Neither, |it| it.bottleneck),
            acts: ACTS.iter().zip(self.acts.iter().cloned()).collect(),
        }
    }
}

/// What the server says of itself.
fn look(target: &Target) -> Result<State, String> {
    let page = pages::fetch(&target.endpoint, "/metrics").map_err(|error| format!("/metrics: {error}"))?;
    let text = pages::body(&page).and_then(|it| std::str::from_utf8(it).ok()).unwrap_or_default();
    let value = |name: &str| {
        metric(text, name).ok_or_else(|| format!("/metrics of {} has no {name}", target.endpoint.url()))
    };
    Ok(State {
        connections: value("tidewire_connections")?,
        internal: value("tidewire_connections_closed_total{reason=\"internal\"}")?,
        uptime_s: value("tidewire_uptime_seconds")?,
        descriptors: target.server_pid.and_then(proc::descriptors),
    })
}

/// A number of `/metrics`.
fn metric(text: &str, name: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// Before anybody comes. The socket of a look may still be open at the next, so it is the least of a few.
fn settled(target: &Target) -> Result<State, String> {
    const LOOKS: usize = 5;
    let mut least = look(target)?;
    for _ in 1..LOOKS {
        thread::park_timeout(LOOK_AGAIN);
        let now = look(target)?;
        least = State {
            descriptors: least.descriptors.min(now.descriptors),
            connections: least.connections.min(now.connections),
            ..now
        };
    }
    Ok(least)
}

/// When everybody has gone: as soon as the server has nothing left of them, or when the time for that is over.
fn cleared(target: &Target, before: &State) -> Result<State, String> {
    let deadline = Instant::now() + CLEAR_TIMEOUT;
    loop {
        let now = look(target)?;
        let is_clear = now.connections <= before.connections && now.descriptors <= before.descriptors;
        if is_clear || Instant::now() >= deadline {
            return Ok(now);
        }
        thread::park_timeout(LOOK_AGAIN);
    }
}

/// What the crowd got, and the verdict.
fn text(acts: &[Tally], checks: &[Check]) -> String {
    let width = ACTS.iter().map(|act| act.name.len()).max().unwrap_or_default();
    let mut text = format!("{:<width$}  {:>7}  what it got\n", "act", "times");
    for (act, tally) in ACTS.iter().zip(acts) {
        text.push_str(&format!("{:<width$}  {:>7}  {}\n", act.name, tally.begun, tally_text(tally)));
    }
    text.push('\n');
    for Check { name, verdict, figures } in checks {
        text.push_str(&format!("{}  {name}: {figures}\n", verdict.label()));
    }
    text
}

/// The file of a run, and beside it the verdict and the acts.
#[derive(Serialize)]
struct SoakFile<'a> {
    #[serde(flatten)]
    run: &'a RunFile,
    soak: SoakPart<'a>,
}

#[derive(Serialize)]
struct SoakPart<'a> {
    checks: &'a [Check],
    acts: Vec<ActPart>,
}

#[derive(Serialize)]
struct ActPart {
    name: &'static str,
    begun: u64,
    /// Times, by what came of it.
    got: BTreeMap<String, u64>,
}

fn json(run: &RunFile, acts: &[Tally], checks: &[Check]) -> Result<Vec<u8>, String> {
    let acts = ACTS.iter().zip(acts).map(|(act, tally)| ActPart {
        name: act.name,
        begun: tally.begun,
        got: tally.got.iter().map(|(got, times)| (got.label(), *times)).collect(),
    });
    let file = SoakFile { run, soak: SoakPart { checks, acts: acts.collect() } };
    serde_json::to_vec_pretty(&file).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::Sample;

    #[test]
    fn a_soak_of_any_length_can_be_run() {
        for seconds in [15, 60, 600, 86_400] {
            let duration = Duration::from_secs(seconds);
            let scenario = scenario(duration);
            assert_eq!(scenario.check(), Ok(()));
            assert!(scenario.total().abs_diff(duration) < Duration::from_millis(1));
            let phase = scenario.phases[1].duration_s.unwrap();
            let windows = phase.div_duration_f64(scenario.interval_s);
            assert!(
                (30.0..=100.0).contains(&windows),
                "{windows}: enough for a median, few enough for pairs"
            );
        }
        assert!(duration("14").unwrap_err().contains("at least 15"));
        assert_eq!(duration("15"), Ok(DURATION_MIN));
    }

    #[test]
    fn metrics_are_found_by_their_whole_name() {
        let text = "# HELP a b\na_b 7\na 5\na{reason=\"x\"} 0.5\n";
        assert_eq!((metric(text, "a"), metric(text, "a{reason=\"x\"}")), (Some(5.0), Some(0.5)));
        assert_eq!((metric(text, "b"), metric(text, "a{reason=\"y\"}")), (None, None));
    }

    #[test]
    fn the_file_is_that_of_a_run_and_has_the_verdict() {
        let run = Sample::default().run("soak");
        let mut acts = vec![Tally::default(); ACTS.len()];
        acts[0] = Tally { begun: 3, got: [(acts::Got::Closed(1000), 2)].into() };
        let checks = [Check { name: "memory", verdict: verdict::Verdict::Fail, figures: "much".to_owned() }];
        let bytes = json(&run, &acts, &checks).unwrap();
        let read: RunFile = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), serde_json::to_value(&run).unwrap());
        let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(value["soak"]["checks"][0]["verdict"], "fail");
        assert_eq!(value["soak"]["acts"][0]["got"]["closed 1000"], 2);
        let text = text(&acts, &checks);
        assert!(
            text.contains("FAIL  memory: much\n") && text.contains("closed 1000 x 2, still there"),
            "{text}"
        );
    }
}
