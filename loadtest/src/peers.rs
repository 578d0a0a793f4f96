//! `loadtest peers`: the same scenarios against Tidewire and other servers, in turns, each started anew on one CPU while the
//! generator has another. It starts and ends what it measures; what is run is `plan`'s, what is measured `run`'s, and what
//! the targets are `targets`'.

mod awake;
mod plan;
mod program;
mod targets;

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Parser;

use crate::bottleneck;
use crate::dialect::Dialect;
use crate::proc;
use crate::result::{Repetition, RunFile, ScenarioResult, Skipped, Subject};
use crate::run::{self, INTERRUPTED, OTHER_FILES, Progress, Target};
use crate::runfile;
use crate::scenario::{Load, Scenario};
use crate::server::{Launch, Server};
use crate::session::{self, Bar};
use crate::source;
use crate::verdict;
use crate::ws::Endpoint;

use self::awake::Awake;
pub(crate) use self::awake::{SpinArgs, spin};
use self::plan::{Trial, trials};
use self::program::Program;

/// Measures Tidewire beside other servers, which the file at --programs names: scripts/peers.sh writes one
#[derive(Debug, Parser)]
pub(crate) struct PeersArgs {
    /// Print the scenarios
    #[arg(long)]
    pub list: bool,
    /// The servers: a line of JSON for each
    #[arg(long, value_name = "FILE", default_value = "target/peers/programs.jsonl")]
    pub programs: PathBuf,
    /// Tidewire's binary. Default: `tidewire` beside this program, else target/release/tidewire
    #[arg(long, value_name = "FILE")]
    pub server_bin: Option<PathBuf>,
    /// Medians of so many; what takes long is run fewer times
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repetitions: u32,
    /// Once, with windows of a second: to see that it works
    #[arg(long)]
    pub quick: bool,
    /// Only these servers
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub only: Vec<String>,
    /// Only these scenarios
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub scenarios: Vec<String>,
    /// The CPU of the servers
    #[arg(long, value_name = "CPU", default_value_t = 0)]
    pub pin_server: usize,
    /// The CPU of the generator
    #[arg(long, value_name = "CPU", default_value_t = 1)]
    pub pin_client: usize,
    /// Run nothing: the tables of these results
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    /// Results as JSON
    #[arg(long, value_name = "FILE", default_value = "target/peers/peers.json")]
    pub json: PathBuf,
    /// The targets as a table of text, which is printed as well
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// The same as Markdown
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
}

/// A server that is measured.
#[derive(Debug)]
struct Contender {
    name: String,
    how: How,
    note: Option<String>,
    version: Option<String>,
}

/// How a contender is started.
#[derive(Debug)]
enum How {
    /// Tidewire, with this `max_delay_ms` asked for.
    Tidewire { launch: Launch, max_delay_ms: Option<u32> },
    /// Another program.
    Other(Program),
}

/// What Tidewire is called with its flush window, and without.
const TIDEWIRE: &str = "tidewire";
const TIDEWIRE_AT_ONCE: &str = "tidewire-0ms";

/// Runs it all and writes the results. Fails where Tidewire lost something unannounced, or nothing could be run.
pub(crate) fn run_all(args: &PeersArgs) -> Result<bool, String> {
    let trials = trials(args.quick, args.repetitions, &args.scenarios)?;
    if args.list {
        for trial in &trials {
            println!("{:<12} {}", trial.scenario.name, trial.scenario.about);
        }
        return Ok(true);
    }
    if args.pin_server == args.pin_client {
        return Err(format!("--pin-server and --pin-client are both {}: give two CPUs", args.pin_server));
    }
    if let Some(path) = &args.from {
        let mut file = runfile::load(path)?;
        for result in file.results.iter_mut().filter(|it| it.subject.kept_awake) {
            result.repetitions.iter_mut().for_each(never_idle);
        }
        return show(args, &file);
    }
    let mut file = session::new_file();
    let contenders = contenders(args, &mut file.skipped)?;
    let interrupted = session::interruption()?;
    proc::bind(args.pin_client).map_err(|error| format!("--pin-client: {error}"))?;
    let mut total = Duration::ZERO;
    for trial in &trials {
        let count = contenders.iter().filter(|it| trial.is_for(&it.name)).count();
        total += trial.scenario.total() * trial.repetitions * u32::try_from(count).unwrap_or(u32::MAX);
    }
    let mut meeting = Meeting { args, interrupted: &interrupted, bar: Bar::new(total), done: Duration::ZERO };
    let problem = meeting.hold(&trials, &contenders, &mut file).err();
    meeting.bar.end();
    if file.results.is_empty() {
        return Err(problem.unwrap_or_else(|| "nothing was left to run".to_owned()));
    }
    session::save_json(&args.json, &file)?;
    let is_sound = show(args, &file)?;
    problem.map_or(Ok(is_sound), Err)
}

/// Prints and writes the tables. Whether Tidewire lost nothing unannounced and did not fail.
fn show(args: &PeersArgs, file: &RunFile) -> Result<bool, String> {
    let rows = targets::rows(file);
    let text = targets::text(&rows, file);
    print!("{text}");
    if let Some(path) = &args.text {
        session::save(path, text.as_bytes())?;
    }
    if let Some(path) = &args.markdown {
        session::save(path, targets::markdown(&rows, file).as_bytes())?;
    }
    Ok(own_are_sound(file))
}

/// CPUs that are kept awake are never idle, which says nothing about the machine.
fn never_idle(repetition: &mut Repetition) {
    for phase in &mut repetition.phases {
        phase.machine_idle = None;
        phase.bottleneck = bottleneck::weigh_again(phase, 1, 1);
    }
}

/// Peers lose without a word, which is theirs to do. Tidewire may not, and it may not fail.
fn own_are_sound(file: &RunFile) -> bool {
    let own = file.results.iter().filter(|it| it.subject.name.starts_with(TIDEWIRE));
    let failed = file.skipped.iter().any(|it| it.what.starts_with(TIDEWIRE));
    !failed && own.flat_map(|it| &it.repetitions).all(|it| it.sound)
}

/// Tidewire twice, and the programs; those that are left out are noted.
fn contenders(args: &PeersArgs, skipped: &mut Vec<Skipped>) -> Result<Vec<Contender>, String> {
    let binary = Launch::find_binary(args.server_bin.as_deref())?;
    let own = |name: &str, max_delay_ms, note: &str| Contender {
        name: name.to_owned(),
        how: How::Tidewire {
            launch: Launch {
                binary: binary.clone(),
                cpu: Some(args.pin_server),
                workers: 1,
                settings: Vec::new(),
                arguments: Vec::new(),
            },
            max_delay_ms,
        },
        note: Some(note.to_owned()),
        version: None,
    };
    let mut all = vec![
        own(TIDEWIRE, None, "the flush window of 10 ms: sequences, gaps, stages"),
        own(TIDEWIRE_AT_ONCE, Some(0), "max_delay_ms 0: sequences, gaps, stages"),
    ];
    let text = fs::read_to_string(&args.programs).map_err(|error| {
        format!("--programs {}: {error}; scripts/peers.sh writes it", args.programs.display())
    })?;
    for entry in
        program::parse(&text).map_err(|why| format!("--programs {}: {why}", args.programs.display()))?
    {
        match entry {
            Ok(program) => all.push(Contender {
                name: program.name.clone(),
                note: program.note.clone(),
                version: program.version.clone(),
                how: How::Other(program),
            }),
            Err(left_out) => skipped.push(left_out),
        }
    }
    if let Some(unknown) = args
        .only
        .iter()
        .find(|name| !all.iter().any(|it| it.name == **name) && !skipped.iter().any(|it| it.what == **name))
    {
        let names: Vec<&str> = all.iter().map(|it| it.name.as_str()).collect();
        return Err(format!("--only: there is no server {unknown:?}; there are: {}", names.join(", ")));
    }
    all.retain(|it| args.only.is_empty() || args.only.contains(&it.name));
    Ok(all)
}

/// What a whole run shares.
struct Meeting<'a> {
    args: &'a PeersArgs,
    interrupted: &'a AtomicBool,
    bar: Bar,
    done: Duration,
}

impl Meeting<'_> {
    /// Each repetition, each scenario, each server in turn: what changes on the machine meanwhile meets all alike.
    fn hold(&mut self, trials: &[Trial], contenders: &[Contender], file: &mut RunFile) -> Result<(), String> {
        for repetition in 0..self.args.repetitions {
            for trial in trials.iter().filter(|it| repetition < it.repetitions) {
                let awake = if trial.keep_awake {
                    Some(Awake::start(&[self.args.pin_server, self.args.pin_client])?)
                } else {
                    None
                };
                for contender in contenders.iter().filter(|it| trial.is_for(&it.name)) {
                    let Some(scenario) = trial.scenario_for(contender, file) else {
                        let what = format!("{} in {}", contender.name, trial.scenario.name);
                        let why = format!("its rate follows from {}, which was not run", plan::SATURATED);
                        file.skipped.push(Skipped { what, why });
                        continue;
                    };
                    let turn = format!("{}/{}  {}  ", repetition + 1, trial.repetitions, contender.name);
                    let mut once = self.run_once(contender, &scenario, &turn);
                    if let (Some(_), Ok(once)) = (&awake, &mut once) {
                        never_idle(once);
                    }
                    self.done += trial.scenario.total();
                    match once {
                        Ok(once) => self.keep(contender, scenario, once, awake.is_some(), file),
                        Err(why) if why.ends_with(INTERRUPTED) => return Err(why),
                        // One that fails does not end the comparison; that it failed is a result.
                        Err(why) => {
                            let what = format!("{} in {}", contender.name, scenario.name);
                            eprintln!("loadtest: {what}: {why}");
                            if !file.skipped.iter().any(|it| it.what == what) {
                                file.skipped.push(Skipped { what, why });
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn run_once(&self, contender: &Contender, scenario: &Scenario, turn: &str) -> Result<Repetition, String> {
        let started_s = session::now_s();
        proc::raise_open_files(scenario.connections() + OTHER_FILES).map_err(|error| error.to_string())?;
        let (target, server) = contender.start(scenario, self.args.pin_server)?;
        let mut on_progress =
            |it: &Progress<'_>| self.bar.show(self.done + it.at.min(scenario.total()), turn, it);
        let outcome = run::run(scenario, &target, self.interrupted, &mut on_progress)
            .map_err(|why| format!("{}{why}", server.log()))?;
        Ok(verdict::repetition(&outcome, scenario, started_s, 1))
    }

    fn keep(
        &self,
        contender: &Contender,
        scenario: Scenario,
        once: Repetition,
        kept_awake: bool,
        file: &mut RunFile,
    ) {
        let same =
            |it: &&mut ScenarioResult| it.subject.name == contender.name && it.scenario.name == scenario.name;
        match file.results.iter_mut().find(same) {
            Some(result) => result.repetitions.push(once),
            None => file.results.push(ScenarioResult {
                subject: contender.subject(self.args, kept_awake),
                scenario,
                repetitions: vec![once],
            }),
        }
    }
}

impl Contender {
    fn subject(&self, args: &PeersArgs, kept_awake: bool) -> Subject {
        let (version, command) = match &self.how {
            How::Tidewire { launch, .. } => (source::version_of(launch), launch.in_a_line()),
            How::Other(program) => (self.version.clone(), program.command.join(" ")),
        };
        Subject {
            name: self.name.clone(),
            version,
            command,
            note: self.note.clone(),
            workers: matches!(self.how, How::Tidewire { .. }).then_some(1),
            cpu: Some(args.pin_server),
            cpus: 1,
            generator_cpu: Some(args.pin_client),
            kept_awake,
        }
    }

    /// Starts it, on its CPU.
    fn start(&self, scenario: &Scenario, cpu: usize) -> Result<(Target, Server), String> {
        let (server, dialect) = match &self.how {
            How::Tidewire { launch, .. } => (source::start(launch, scenario)?, Dialect::Tidewire),
            How::Other(program) => (program.start(cpu)?, program.dialect),
        };
        let endpoint = Endpoint::parse(&server.url).map_err(|error| error.to_string())?;
        Ok((Target { server_pid: Some(server.pid()), dialect, ..Target::new(endpoint) }, server))
    }
}

impl Trial {
    /// The scenario as this contender runs it; none where it depends on a result that there is not.
    fn scenario_for(&self, contender: &Contender, file: &RunFile) -> Option<Scenario> {
        let mut scenario = self.scenario.clone();
        if let How::Tidewire { max_delay_ms: Some(delay_ms), .. } = contender.how {
            scenario.groups.iter_mut().for_each(|group| group.max_delay_ms = Some(delay_ms));
        }
        if self.at_capacity {
            let samples = f64::from(scenario.samples_per_message);
            let per_s = targets::capacity(file, &contender.name)? / samples;
            scenario.load = Load::Scheduled { per_s: plan::whole_rate(per_s)? };
        }
        Some(scenario)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::Sample;
    use crate::result::{Bottleneck, Side};

    #[test]
    fn kept_awake_a_late_generator_is_still_late() {
        let mut file = Sample::default().run("x");
        let repetition = &mut file.results[0].repetitions[0];
        for (late_ns, expected) in [(1, Bottleneck::Neither), (u64::MAX, Bottleneck::Generator)] {
            for phase in &mut repetition.phases {
                let idle =
                    Side { cpus: Some(0.3), busiest_thread: Some(0.3), waiting: Some(0.0), ..phase.server };
                (phase.server, phase.client) = (idle, idle);
                (phase.machine_idle, phase.bottleneck) = (Some(0.0), Bottleneck::Machine);
                phase.lateness.p99 = late_ns;
            }
            never_idle(repetition);
            assert!(repetition.phases.iter().all(|phase| phase.bottleneck == expected));
        }
    }
}
