//! The command line: what is run against what, and where results go. Says what is wrong with it; does nothing.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::access::AccessArgs;
use crate::cluster::{ClusterArgs, SeedNodeArgs};
use crate::compare::CompareArgs;
use crate::peers::{PeersArgs, SpinArgs};
use crate::report::ReportArgs;
use crate::scenario::{self, Codec, Group, Kind, Load, Policy, SELECTION, Scenario, Share};
use crate::slo::Slo;
use crate::soak::SoakArgs;

/// Measures a Tidewire server. Open loop: messages are sent by a schedule, and latency counts from the scheduled instant.
///
/// Without a command it does `run`: it starts a server of its own on a free port, runs a 30-second selection of scenarios
/// and prints one table.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Cli {
    /// What to do
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run scenarios and print a table
    Run(Box<RunArgs>),
    /// Print the scenarios that come with this program
    Scenarios(ScenariosArgs),
    /// Judge a run by another: better, worse, or the same within noise
    Compare(CompareArgs),
    /// Show runs: text, or a page with plots
    Report(ReportArgs),
    /// Run good and hostile clients together for long, and judge what that did to the server
    Soak(Box<SoakArgs>),
    /// Measure Tidewire beside other servers: what scripts/peers.sh calls
    Peers(PeersArgs),
    /// Measure servers that share a broker, each broker in turn, and the way of one message per sample beside them
    Cluster(Box<ClusterArgs>),
    /// A server of that other way
    #[command(hide = true)]
    SeedNode(SeedNodeArgs),
    /// Keep a CPU awake
    #[command(hide = true)]
    Spin(SpinArgs),
    /// Search the highest rate at which a scenario meets an objective
    FindLimit(Box<LimitArgs>),
    /// Add up the results of several processes that shared a run
    Merge(MergeArgs),
}

/// Runs scenarios. It ends with 1 if anything was lost that was not announced as a gap, with 3 if it could not run.
#[derive(Debug, Parser)]
pub(crate) struct RunArgs {
    /// Scenarios to run: names (see `loadtest scenarios`), `all`, or TOML files. Default: a selection of 30 seconds
    pub scenarios: Vec<String>,
    /// Run everything so many times, in turns, and report medians
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repetitions: u32,
    /// Share each scenario among so many processes of this program. No histogram log is written
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64), conflicts_with_all = ["tls", "token"])]
    pub processes: u32,
    /// What configuration this is, in a few words: kept in the results
    #[arg(long, value_name = "TEXT")]
    pub label: Option<String>,

    /// Against what
    #[command(flatten)]
    pub server: ServerArgs,
    /// How it is spoken to
    #[command(flatten)]
    pub access: AccessArgs,
    /// This process
    #[command(flatten)]
    pub generator: GeneratorArgs,
    /// What to change in each scenario
    #[command(flatten)]
    pub changes: Changes,
    /// Which part of a run of several hosts this is
    #[command(flatten)]
    pub part: PartArgs,

    /// Results as JSON
    #[arg(long, value_name = "FILE", default_value = "loadtest-results.json", help_heading = "Results")]
    pub json: PathBuf,
    /// Latencies as an HdrHistogram interval log
    #[arg(long, value_name = "FILE", default_value = "loadtest-results.hlog", help_heading = "Results")]
    pub hlog: PathBuf,
}

/// One part of a run that several processes share, on one host or on several; `loadtest merge` adds them up.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct PartArgs {
    /// Do this part of the scenario: 1/3, 2/3 and 3/3 on three hosts
    #[arg(long, value_name = "I/N", value_parser = share, requires = "run_id", requires = "url", conflicts_with_all = ["processes", "repetitions"], help_heading = "Several hosts")]
    pub share: Option<Share>,
    /// The same word for all parts of one run, and another for each run
    #[arg(long, value_name = "WORD", value_parser = run_id, requires = "share", help_heading = "Several hosts")]
    pub run_id: Option<String>,
    /// When to begin, in seconds since 1970, the same for all parts: $(($(date +%s) + 20))
    #[arg(long, value_name = "UNIX_S", requires = "share", help_heading = "Several hosts")]
    pub start_at: Option<u64>,
    /// Say `ready`, and read from standard input when to begin
    #[arg(long, hide = true, requires = "share")]
    pub start_told: bool,
}

/// The server that is measured.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ServerArgs {
    /// Use this running server instead of starting one: ws://HOST:PORT/ws. Given several times, subscribers are spread over all
    /// servers, which serve the same channels, as do publishers, who begin at the first, and all go on at the next when theirs is gone
    #[arg(long, value_name = "URL", help_heading = "Server", conflicts_with_all = ["server_bin", "server_workers", "server_arg", "pin_server"])]
    pub url: Vec<String>,
    /// Process number of the server at --url, on this machine: its CPU time and memory are reported
    #[arg(long, value_name = "PID", help_heading = "Server", requires = "url")]
    pub server_pid: Option<u32>,
    /// The server's binary. Default: `tidewire` beside this program, else target/release/tidewire
    #[arg(long, value_name = "FILE", help_heading = "Server")]
    pub server_bin: Option<PathBuf>,
    /// Worker threads of the server. Default: all CPUs but one, which is the generator's; 1 with --pin-server
    #[arg(long, value_name = "N", help_heading = "Server")]
    pub server_workers: Option<usize>,
    /// One more argument for the server; can be given several times: --server-arg=--set --server-arg=batch.window_ms=5
    #[arg(long, value_name = "ARG", help_heading = "Server", allow_hyphen_values = true)]
    pub server_arg: Vec<String>,
    /// Bind the server to this CPU
    #[arg(long, value_name = "CPU", help_heading = "Server")]
    pub pin_server: Option<usize>,
}

/// The generator itself.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct GeneratorArgs {
    /// Bind the generator to this CPU
    #[arg(long, value_name = "CPU", help_heading = "Generator")]
    pub pin_client: Option<usize>,
    /// Threads that read subscribers
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Generator")]
    pub reader_threads: usize,
    /// Estimate how far the server's clock is ahead, as is done by itself when the server's address is not a loopback one
    #[arg(long, help_heading = "Generator")]
    pub estimate_clock: bool,
}

/// What the command line changes in scenarios.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct Changes {
    /// Publishers, each with a channel of its own
    #[arg(long, value_name = "N", help_heading = "Scenario")]
    pub publishers: Option<usize>,
    /// Healthy subscribers, each to all channels; of the first group where there are several
    #[arg(long, value_name = "N", help_heading = "Scenario")]
    pub subscribers: Option<usize>,
    /// Messages per second, all publishers together
    #[arg(long, value_name = "PER_S", help_heading = "Scenario")]
    pub rate: Option<NonZeroU64>,
    /// Bytes of a sample's value
    #[arg(long, value_name = "BYTES", help_heading = "Scenario")]
    pub payload: Option<usize>,
    /// Samples in a message
    #[arg(long, value_name = "N", help_heading = "Scenario")]
    pub samples_per_message: Option<u32>,
    /// Seconds measured, of each phase. Default: 10, in the selection 4
    #[arg(long, value_name = "S", value_parser = seconds, help_heading = "Scenario")]
    pub duration: Option<Duration>,
    /// Seconds before the measurement
    #[arg(long, value_name = "S", value_parser = seconds, help_heading = "Scenario")]
    pub warmup: Option<Duration>,
    /// Connections per second that come and leave, in `churn`
    #[arg(long, value_name = "PER_S", help_heading = "Scenario")]
    pub churn: Option<NonZeroU64>,
    /// Longest wait in a batch; 0 sends at once. Default: the scenario's, else the server's flush window
    #[arg(long, value_name = "MS", help_heading = "Delivery options")]
    pub max_delay_ms: Option<u32>,
    /// Longest wait for a slow client. Default: the scenario's, else the server's
    #[arg(long, value_name = "MS", help_heading = "Delivery options")]
    pub max_age_ms: Option<u32>,
    /// Most samples a second of each channel
    #[arg(long, value_name = "HZ", help_heading = "Delivery options")]
    pub max_rate_hz: Option<f64>,
    /// What overflow does
    #[arg(long, value_enum, help_heading = "Delivery options")]
    pub policy: Option<Policy>,
    /// How data reaches subscribers
    #[arg(long, value_enum, help_heading = "Delivery options")]
    pub codec: Option<Codec>,
}

/// Prints scenarios.
#[derive(Debug, Args)]
pub(crate) struct ScenariosArgs {
    /// Which; all if none is named
    pub names: Vec<String>,
    /// As a TOML file, to start one of your own from: loadtest scenarios steady --toml > mine.toml
    #[arg(long)]
    pub toml: bool,
}

/// Searches the highest rate, in messages a second, at which the scenario meets the objective: doubles it until it does not,
/// then halves the gap, then confirms it with a run of twice the time. It ends with 1 if no rate does.
#[derive(Debug, Parser)]
pub(crate) struct LimitArgs {
    /// Name of a scenario with a rate, or a TOML file with one; its rate is tried first
    pub scenario: String,
    /// What has to hold: p50, p90, p99, p999, max (us, ms, s), loss, gaps (samples), cpu (of the server, CPUs or %)
    #[arg(long, default_value = "p99<20ms,loss=0")]
    pub slo: Slo,
    /// Seconds measured in each step
    #[arg(long, value_name = "S", value_parser = seconds, default_value = "3")]
    pub step_duration: Duration,
    /// Highest rate tried
    #[arg(long, value_name = "PER_S", default_value = "10000000")]
    pub max_rate: NonZeroU64,
    /// Ends when the gap is this share of the rate
    #[arg(long, value_name = "SHARE", default_value_t = 0.05, value_parser = precision)]
    pub precision: f64,
    /// Against what
    #[command(flatten)]
    pub server: ServerArgs,
    /// How it is spoken to
    #[command(flatten)]
    pub access: AccessArgs,
    /// This process
    #[command(flatten)]
    pub generator: GeneratorArgs,
    /// What to change in the scenario
    #[command(flatten)]
    pub changes: Changes,
    /// The confirmation as JSON
    #[arg(long, value_name = "FILE", default_value = "loadtest-limit.json", help_heading = "Results")]
    pub json: PathBuf,
}

/// Adds up parts.
#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    /// Results of all parts of one run, made with --share
    #[arg(required = true)]
    pub parts: Vec<PathBuf>,
    /// The whole, as JSON
    #[arg(short, long, value_name = "FILE", default_value = "loadtest-results.json")]
    pub output: PathBuf,
}

fn precision(text: &str) -> Result<f64, String> {
    let share = text.parse().unwrap_or(f64::NAN);
    if (0.001..=1.0).contains(&share) { Ok(share) } else { Err("want 0.001 to 1, such as 0.05".to_owned()) }
}

fn share(text: &str) -> Result<Share, String> {
    let parsed = text.split_once('/').and_then(|(index, of)| Some((index.parse().ok()?, of.parse().ok()?)));
    match parsed {
        Some((index, of)) if (1..=of).contains(&index) => Ok(Share { index: index - 1, of }),
        _ => Err("want I/N with I from 1 to N, such as 1/3".to_owned()),
    }
}

fn run_id(text: &str) -> Result<String, String> {
    let fits = (1..=32).contains(&text.len()) && text.bytes().all(|it| it.is_ascii_alphanumeric());
    if fits {
        Ok(text.to_owned())
    } else {
        Err("it becomes part of channel names; want 1 to 32 letters and digits".to_owned())
    }
}

/// Measured in the selection: with warm-ups, 30 seconds in all.
const SELECTION_DURATION: Duration = Duration::from_secs(4);

/// Scenarios by name, `all`, or the path of a file. Without any the selection. The error names what is not there.
pub(crate) fn find(wanted: &[String]) -> Result<Vec<Scenario>, String> {
    if wanted.is_empty() {
        let shorter =
            |name| scenario::named(name).map(|it| Scenario { duration_s: SELECTION_DURATION, ..it });
        return Ok(SELECTION.into_iter().filter_map(shorter).collect());
    }
    let mut found: Vec<Scenario> = Vec::new();
    for name in wanted {
        let path = Path::new(name);
        if name == "all" {
            found.extend(scenario::all());
        } else if path.extension().is_some_and(|it| it == "toml") || name.contains('/') {
            found.extend(scenario::file::read(path)?);
        } else {
            found.push(scenario::named(name).ok_or_else(|| {
                format!(
                    "there is no scenario {name:?}; `loadtest scenarios` prints them, and a file's name ends in .toml"
                )
            })?);
        }
    }
    let twice =
        found.iter().enumerate().find(|(at, it)| found[..*at].iter().any(|other| other.name == it.name));
    match twice {
        Some((_, scenario)) => Err(format!(
            "scenario {:?} is there twice; give each its own name, or use --repetitions",
            scenario.name
        )),
        None => Ok(found),
    }
}

impl RunArgs {
    /// The scenarios, with what the flags change. The error names the flag.
    pub(crate) fn plan(&self) -> Result<Vec<Scenario>, String> {
        find(&self.scenarios)?
            .into_iter()
            .map(|scenario| {
                let scenario = self.changes.apply(scenario);
                scenario.check().map(|()| scenario)
            })
            .collect()
    }
}

impl Changes {
    /// The scenario with these changes.
    pub(crate) fn apply(&self, mut scenario: Scenario) -> Scenario {
        fn set<T: Copy>(field: &mut T, flag: Option<T>) {
            if let Some(value) = flag {
                *field = value;
            }
        }
        set(&mut scenario.duration_s, self.duration);
        set(&mut scenario.warmup_s, self.warmup);
        if self.duration.is_some() {
            scenario.phases.iter_mut().for_each(|phase| phase.duration_s = None);
        }
        if let Kind::Accept { .. } = scenario.kind {
            return scenario;
        }
        set(&mut scenario.publishers, self.publishers);
        set(&mut scenario.load, self.rate.map(|per_s| Load::Scheduled { per_s }));
        set(&mut scenario.payload_bytes, self.payload);
        set(&mut scenario.samples_per_message, self.samples_per_message);
        if let Some(per_s) = &mut scenario.churn_per_s {
            set(per_s, self.churn);
        }
        let healthy = |group: &&mut Group| group.behaviour == scenario::Behaviour::Healthy;
        if let (Some(count), Some(group)) = (self.subscribers, scenario.groups.iter_mut().find(healthy)) {
            group.count = count;
        }
        for group in &mut scenario.groups {
            group.max_delay_ms = self.max_delay_ms.or(group.max_delay_ms);
            group.max_age_ms = self.max_age_ms.or(group.max_age_ms);
            group.max_rate_hz = self.max_rate_hz.or(group.max_rate_hz);
            group.policy = self.policy.or(group.policy);
            set(&mut group.codec, self.codec);
        }
        scenario
    }
}

/// Seconds, with or without a fraction.
pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.trim_end_matches('s').parse().unwrap_or(f64::NAN);
    scenario::from_seconds(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn plan(arguments: &[&str]) -> Result<Vec<Scenario>, String> {
        let cli =
            Cli::try_parse_from([&["loadtest", "run"], arguments].concat()).map_err(|it| it.to_string())?;
        let Some(Command::Run(run)) = cli.command else { panic!("run") };
        run.plan()
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_arguments_are_the_selection_of_30_seconds() {
        let plan = plan(&[]).unwrap();
        assert_eq!(plan.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), SELECTION);
        assert_eq!(plan.iter().map(Scenario::total).sum::<Duration>(), Duration::from_secs(30));
        assert!(Cli::try_parse_from(["loadtest"]).unwrap().command.is_none());
    }

    #[test]
    fn flags_change_every_scenario() {
        let flags = [
            "steady",
            "churn",
            "--publishers=2",
            "--subscribers=3",
            "--rate=4",
            "--payload=5",
            "--duration=0.5",
            "--samples-per-message=6",
            "--warmup=0",
            "--max-delay-ms=0",
            "--max-age-ms=70",
            "--max-rate-hz=8.5",
            "--policy=latest",
            "--codec=json",
            "--churn=7",
        ];
        let plan = plan(&flags).unwrap();
        for scenario in &plan {
            assert_eq!(
                (scenario.publishers, scenario.healthy(), scenario.messages_per_s(0)),
                (2, 3, Some(4.0))
            );
            assert_eq!((scenario.payload_bytes, scenario.samples_per_message), (5, 6));
            assert_eq!(
                (scenario.duration_s, scenario.warmup_s),
                (Duration::from_millis(500), Duration::ZERO)
            );
            let group = &scenario.groups[0];
            assert_eq!(
                (group.max_delay_ms, group.max_age_ms, group.max_rate_hz),
                (Some(0), Some(70), Some(8.5))
            );
            assert_eq!((group.policy, group.codec), (Some(Policy::Latest), Codec::Json));
        }
        assert_eq!((plan[0].churn_per_s, plan[1].churn_per_s), (None, NonZeroU64::new(7)));
    }

    #[test]
    fn what_is_not_given_stays_as_the_scenario_has_it() {
        for name in scenario::all().iter().map(|it| &it.name) {
            assert_eq!(plan(&[name]).unwrap(), [scenario::named(name).unwrap()]);
        }
    }

    #[test]
    fn mistakes_are_named() {
        let cases: [(&[&str], &str); 14] = [
            (&["--share=1/2"], "--run-id"),
            (&["--share=0/2", "--run-id=x", "--url=ws://x"], "I/N"),
            (&["--share=1/2", "--run-id=a.b", "--url=ws://x"], "letters and digits"),
            (&["--share=1/2", "--run-id=x"], "--url"),
            (&["--start-at=7"], "--share"),
            (&["stedy"], "stedy"),
            (&["missing.toml"], "missing.toml"),
            (&["steady", "all"], "twice"),
            (&["--codec=xml"], "--codec"),
            (&["--rate=0"], "--rate"),
            (&["--duration=-1"], "--duration"),
            (&["--repetitions=0"], "--repetitions"),
            (&["--subscribers=0"], "--subscribers"),
            (&["--url=ws://x", "--pin-server=0"], "--pin-server"),
        ];
        for (arguments, expected) in cases {
            let error = plan(arguments).unwrap_err();
            assert!(error.contains(expected), "{arguments:?}: {error}");
        }
    }
}
