//! Everything that one call of `run` does: each scenario, several times in turns, a server for each; results to files.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::args::{GeneratorArgs, MergeArgs, RunArgs};
use crate::hlog::Log;
use crate::merge;
use crate::proc;
use crate::processes;
use crate::result::{BuildInfo, FORMAT, RunFile, ScenarioResult, SharedRun};
use crate::run::{self, Outcome, Progress, Start, Target};
pub(crate) use crate::runfile::{load as load_json, save as save_json, save_bytes as save};
use crate::scenario::{Scenario, Share};
use crate::source::Source;
use crate::table;
use crate::verdict;

/// Runs it all and writes the results: whether all was sound.
pub(crate) fn run_all(args: &RunArgs) -> Result<bool, String> {
    let plan = args.plan()?;
    let source = Source::new(&args.server, args.access)?;
    let interrupted = interruption()?;
    if let Some(cpu) = args.generator.pin_client {
        proc::bind(cpu).map_err(|error| format!("--pin-client: {error}"))?;
    }
    let mut file = new_file();
    if let (Some(share), Some(run_id)) = (args.part.share, &args.part.run_id) {
        file.shared = Some(SharedRun { run_id: run_id.clone(), share });
    }
    let mut log = Log::new(Duration::from_secs(file.started_s));
    let mut problem = None;
    let total: Duration = plan.iter().map(Scenario::total).sum::<Duration>() * args.repetitions;
    let bar = Bar::new(total);
    let mut done = Duration::ZERO;
    'all: for repetition in 1..=args.repetitions {
        for scenario in &plan {
            let turn = if args.repetitions > 1 {
                format!("{repetition}/{}  ", args.repetitions)
            } else {
                String::new()
            };
            let mut on_progress = |it: &Progress<'_>| bar.show(done + it.at.min(scenario.total()), &turn, it);
            let started_s = now_s();
            let subject = source.subject(&args.generator, args.label.as_deref());
            let once = match args.processes {
                1 => run_part(scenario, &source, args, &interrupted, &mut on_progress).and_then(|outcome| {
                    log.add(&outcome).map_err(|error| format!("the histogram log: {error}"))?;
                    Ok(verdict::repetition(&outcome, scenario, started_s, subject.cpus))
                }),
                count => with_target(scenario, &source, &args.generator, |target| {
                    let count = usize::try_from(count).unwrap_or(1);
                    processes::run(scenario, target, count, subject.cpus, &interrupted, &mut on_progress)
                }),
            };
            match once {
                Ok(once) => match file.results.iter_mut().find(|it| it.scenario.name == scenario.name) {
                    Some(result) => result.repetitions.push(once),
                    None => file.results.push(ScenarioResult {
                        subject,
                        scenario: scenario.clone(),
                        repetitions: vec![once],
                    }),
                },
                Err(why) => {
                    problem = Some(why);
                    break 'all;
                }
            }
            done += scenario.total();
        }
    }
    bar.end();
    if let (Some(problem), true) = (&problem, file.results.is_empty()) {
        return Err(problem.clone());
    }
    // What was finished is shown, also if the rest failed. Who was told when to begin is not talking to a person.
    if !args.part.start_told {
        print!("{}", table::text(&file));
    }
    save_json(&args.json, &file)?;
    save(&args.hlog, log.bytes())?;
    match problem {
        Some(problem) => Err(problem),
        None => Ok(is_sound(&file)),
    }
}

/// One scenario, once, against a server of its own or the one that runs.
pub(crate) fn run_once(
    scenario: &Scenario,
    source: &Source,
    generator: &GeneratorArgs,
    interrupted: &AtomicBool,
    on_progress: run::OnProgress<'_>,
) -> Result<Outcome, String> {
    with_target(scenario, source, generator, |target| run::run(scenario, target, interrupted, on_progress))
}

/// The same, or a part of it.
fn run_part(
    scenario: &Scenario,
    source: &Source,
    args: &RunArgs,
    interrupted: &AtomicBool,
    on_progress: run::OnProgress<'_>,
) -> Result<Outcome, String> {
    let part = &args.part;
    let start = match (part.start_told, part.start_at) {
        (true, _) => Start::Told,
        (false, Some(at_s)) => Start::AtUnixNs(at_s.saturating_mul(1_000_000_000)),
        (false, None) => Start::Soon,
    };
    with_target(scenario, source, &args.generator, |target| {
        let target = Target {
            share: part.share.unwrap_or(Share::WHOLE),
            run_id: part.run_id.clone(),
            start,
            ..target.clone()
        };
        run::run(scenario, &target, interrupted, on_progress)
    })
}

/// Does it with a server, whose log explains a failure.
fn with_target<T>(
    scenario: &Scenario,
    source: &Source,
    generator: &GeneratorArgs,
    work: impl FnOnce(&Target) -> Result<T, String>,
) -> Result<T, String> {
    let (target, server) = source.target(scenario, generator)?;
    work(&target).map_err(|why| {
        let log = server.map(|server| server.log()).unwrap_or_default();
        format!("{log}{}: {why}", scenario.name)
    })
}

/// Adds up the parts and prints the table: whether all was sound.
pub(crate) fn merge_all(args: &MergeArgs) -> Result<bool, String> {
    let load = |path: &PathBuf| Ok((path.display().to_string(), load_json(path)?));
    let parts = args.parts.iter().map(load).collect::<Result<Vec<_>, String>>()?;
    let file = merge::merge_files(parts)?;
    print!("{}", table::text(&file));
    save_json(&args.output, &file)?;
    Ok(is_sound(&file))
}

/// Set when the user or the system wants the program to end.
pub(crate) fn interruption() -> Result<Arc<AtomicBool>, String> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted)).map_err(|error| error.to_string())?;
    }
    Ok(interrupted)
}

/// A file without results.
pub(crate) fn new_file() -> RunFile {
    RunFile {
        format: FORMAT,
        started_s: now_s(),
        command: std::env::args().collect(),
        machine: proc::describe(),
        generator: BuildInfo::own(),
        results: Vec::new(),
        skipped: Vec::new(),
        shared: None,
    }
}

/// Seconds since the Unix epoch.
pub(crate) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |it| it.as_secs())
}

/// Whether every repetition was.
pub(crate) fn is_sound(file: &RunFile) -> bool {
    file.results.iter().flat_map(|result| &result.repetitions).all(|it| it.sound)
}

/// Progress and live figures, on a terminal.
#[derive(Debug)]
pub(crate) struct Bar(ProgressBar);

impl Bar {
    /// Of a run that takes so long.
    pub(crate) fn new(total: Duration) -> Self {
        let bar = ProgressBar::new(millis(total));
        // The template is a constant; if it were wrong, indicatif's own would do.
        if let Ok(style) = ProgressStyle::with_template("{bar:24} {percent:>3}%  {wide_msg}") {
            bar.set_style(style);
        }
        Self(bar)
    }

    /// Shows how far it is.
    pub(crate) fn show(&self, at: Duration, turn: &str, progress: &Progress<'_>) {
        self.0.set_position(millis(at));
        self.0.set_message(format!(
            "{turn}{}{}",
            progress.what,
            progress.live.map(table::live).unwrap_or_default()
        ));
    }

    /// Takes it away.
    pub(crate) fn end(&self) {
        self.0.finish_and_clear();
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
