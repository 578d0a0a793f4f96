//! `loadtest`: arguments, run, report. Measures nothing itself.

mod args;
mod churn;
mod clock;
mod control;
mod data;
mod dialect;
#[cfg(test)]
mod fake;
mod hlog;
mod ledger;
mod measure;
mod pacer;
mod poll;
mod proc;
mod publishers;
mod report;
mod run;
mod scenario;
mod server;
mod subscribers;
mod table;
mod ws;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::args::Args;
use crate::dialect::Dialect;
use crate::report::{Report, ServerInfo};
use crate::run::{INTERRUPTED, Outcome, Target};
use crate::scenario::{Disturbance, Scenario};
use crate::server::{Launch, Server};
use crate::ws::Endpoint;

/// Something was lost that was not announced, or a connection was cut off.
const EXIT_UNSOUND: u8 = 1;
/// It could not run. (2 is the command line's.)
const EXIT_FAILED: u8 = 3;
/// As a shell reports SIGINT.
const EXIT_INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list {
        for Scenario { name, about, .. } in scenario::all() {
            println!("{name:<12} {about}");
        }
        return ExitCode::SUCCESS;
    }
    match measure(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(EXIT_UNSOUND),
        Err(problem) => {
            eprintln!("loadtest: {problem}");
            ExitCode::from(if problem.ends_with(INTERRUPTED) { EXIT_INTERRUPTED } else { EXIT_FAILED })
        }
    }
}

/// Whether all was sound.
fn measure(args: &Args) -> Result<bool, String> {
    let plan = args.plan()?;
    let source = Source::new(args)?;
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted)).map_err(|error| error.to_string())?;
    }
    if let Some(cpu) = args.pin_client {
        proc::bind(cpu).map_err(|error| format!("--pin-client: {error}"))?;
    }
    let started_ns = clock::Clock::new().now_ns();
    let started = Duration::from_nanos(started_ns);
    let mut report = Report::new(started.as_secs(), source.info());
    let mut outcomes = Vec::new();
    let mut problem = None;
    let bar = progress_bar(&plan);
    let mut done = Duration::ZERO;
    for scenario in &plan {
        let mut on_progress = |at: Duration, what: &str| {
            bar.set_position(millis(done + at.min(scenario.total())));
            bar.set_message(what.to_owned());
        };
        let outcome = source.target(scenario, args).and_then(|(target, server)| {
            run::run(scenario, &target, &interrupted, &mut on_progress).map_err(|why| {
                let log = server.map(|server| server.log()).unwrap_or_default();
                format!("{log}{}: {why}", scenario.name)
            })
        });
        match outcome {
            Ok(outcome) => {
                report.add(&outcome);
                outcomes.push(outcome);
            }
            Err(why) => {
                problem = Some(why);
                break;
            }
        }
        done += scenario.total();
    }
    bar.finish_and_clear();
    if let (Some(problem), true) = (&problem, outcomes.is_empty()) {
        return Err(problem.clone());
    }
    // What was finished is shown, also if the rest failed.
    println!("{}\n{}", table::table(&report), table::stages(&report));
    print!("{}{}", table::notes(&report), source.caption(&report));
    save(args, started, &report, &outcomes)?;
    match problem {
        Some(problem) => Err(problem),
        None => Ok(report.is_sound()),
    }
}

/// Where servers come from.
enum Source {
    /// One of our own for each scenario, so that none inherits the memory of another's.
    Own(Launch),
    /// One that runs already.
    Running { endpoint: Endpoint, url: String, pid: Option<u32> },
}

impl Source {
    fn new(args: &Args) -> Result<Self, String> {
        if let Some(url) = &args.url {
            let endpoint = Endpoint::parse(url).map_err(|error| format!("--url: {error}"))?;
            return Ok(Self::Running { endpoint, url: url.clone(), pid: args.server_pid });
        }
        let all_but_one = proc::cpus().saturating_sub(1).max(1);
        let workers = match (args.server_workers, args.pin_server) {
            (Some(workers), _) => workers,
            (None, Some(_)) => 1,
            (None, None) => all_but_one,
        };
        Ok(Self::Own(Launch {
            binary: Launch::find_binary(args.server_bin.as_deref())?,
            cpu: args.pin_server,
            workers,
            settings: Vec::new(),
            arguments: args.server_arg.clone(),
        }))
    }

    fn info(&self) -> ServerInfo {
        match self {
            Self::Own(Launch { binary, cpu, workers, .. }) => ServerInfo {
                what: binary.display().to_string(),
                workers: Some(*workers),
                cpu: *cpu,
                cpus: cpu.map_or(*workers, |_| 1).min(proc::cpus()),
            },
            Self::Running { url, .. } => {
                ServerInfo { what: url.clone(), workers: None, cpu: None, cpus: proc::cpus() }
            }
        }
    }

    /// What to run the scenario against, and the server to keep until it is over.
    fn target(&self, scenario: &Scenario, args: &Args) -> Result<(Target, Option<Server>), String> {
        let reader_threads = args.reader_threads;
        match self {
            Self::Own(launch) => {
                proc::raise_open_files(scenario.connections() + run::OTHER_FILES)
                    .map_err(|error| error.to_string())?;
                let mut launch = launch.clone();
                launch.settings = server_settings(scenario);
                let server = launch.start()?;
                let endpoint = Endpoint::parse(&server.url).map_err(|error| error.to_string())?;
                let target = Target {
                    endpoint,
                    dialect: Dialect::Tidewire,
                    server_pid: Some(server.pid()),
                    reader_threads,
                };
                Ok((target, Some(server)))
            }
            Self::Running { endpoint, pid, .. } => Ok((
                Target {
                    endpoint: endpoint.clone(),
                    dialect: Dialect::Tidewire,
                    server_pid: *pid,
                    reader_threads,
                },
                None,
            )),
        }
    }

    /// Under the table: what the figures are of.
    fn caption(&self, report: &Report) -> String {
        let workers = report.server.workers.map(|count| format!(", workers: {count}")).unwrap_or_default();
        format!("server: {}{workers}; {}\n", report.server.what, report.machine)
    }
}

/// Limits that would get into the scenario's way. They travel in the environment, over which the user's own arguments win.
fn server_settings(scenario: &Scenario) -> Vec<(&'static str, String)> {
    let connections = (2 * scenario.connections()).max(CONNECTIONS_MAX);
    let mut settings = vec![
        ("inbound.publish_messages_per_s_max", "0".to_owned()),
        ("inbound.publish_bytes_per_s_max", "0".to_owned()),
        ("server.connections_max", connections.to_string()),
    ];
    let stall = scenario.warmup + scenario.duration;
    if scenario.disturbance == Disturbance::Stalled && stall > STALL_MAX {
        // Long stalls are to be counted, not ended: the server may neither give up writing nor miss the pong.
        let patience = millis(stall + scenario.total()).to_string();
        settings.push(("outbox.write_deadline_ms", patience.clone()));
        settings.push(("server.ping_interval_ms", patience));
    }
    settings
}

/// What the server allows by default: room for whoever looks at it meanwhile, and for visitors on their way out.
const CONNECTIONS_MAX: usize = 10_000;

/// A stall that the server bears by default: its write deadline is 10 s.
const STALL_MAX: Duration = Duration::from_secs(8);

fn progress_bar(plan: &[Scenario]) -> ProgressBar {
    let bar = ProgressBar::new(millis(plan.iter().map(Scenario::total).sum()));
    // The template is a constant; if it were wrong, indicatif's own would do.
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent:>3}%  {msg}") {
        bar.set_style(style);
    }
    bar
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn save(args: &Args, started: Duration, report: &Report, outcomes: &[Outcome]) -> Result<(), String> {
    let failed =
        |path: &Path, error: &dyn std::fmt::Display| format!("cannot write {}: {error}", path.display());
    let create = |path: &Path| File::create(path).map(BufWriter::new).map_err(|error| failed(path, &error));
    let mut json = create(&args.json)?;
    serde_json::to_writer_pretty(&mut json, report).map_err(|error| failed(&args.json, &error))?;
    json.write_all(b"\n").and_then(|()| json.flush()).map_err(|error| failed(&args.json, &error))?;
    let mut hlog = create(&args.hlog)?;
    hlog::write(&mut hlog, started, outcomes)
        .and_then(|()| hlog.flush())
        .map_err(|error| failed(&args.hlog, &error))
}
