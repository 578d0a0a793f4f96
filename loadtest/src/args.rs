//! The command line: what is run against what, and where results go.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::scenario::{self, Disturbance, Load, SELECTION, Scenario};

/// Measures a Tidewire server. Open loop: messages are sent by a schedule, and latency counts from the scheduled instant.
///
/// Without arguments it starts a server of its own on a free port, runs a 30-second selection of scenarios and prints one
/// table. It ends with 1 if anything was lost that was not announced as a gap, with 3 if it could not run.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Args {
    /// Scenarios to run, or `all`; see --list. Default: a selection of 30 seconds
    pub scenarios: Vec<String>,
    /// Print the scenarios
    #[arg(long)]
    pub list: bool,

    /// Use this running server instead of starting one: ws://HOST:PORT/ws
    #[arg(long, value_name = "URL", help_heading = "Server", conflicts_with_all = ["server_bin", "server_workers", "server_arg", "pin_server"])]
    pub url: Option<String>,
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
    /// Bind the generator to this CPU
    #[arg(long, value_name = "CPU", help_heading = "Generator")]
    pub pin_client: Option<usize>,
    /// Threads that read subscribers
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Generator")]
    pub reader_threads: usize,

    /// Publishers, each with a channel of its own
    #[arg(long, value_name = "N", help_heading = "Scenario")]
    pub publishers: Option<usize>,
    /// Subscribers, each to all channels
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
    /// Seconds measured. Default: 10, in the selection 4
    #[arg(long, value_name = "S", value_parser = seconds, help_heading = "Scenario")]
    pub duration: Option<Duration>,
    /// Seconds before the measurement
    #[arg(long, value_name = "S", value_parser = seconds, help_heading = "Scenario")]
    pub warmup: Option<Duration>,
    /// Connections per second that come and leave, in `churn`
    #[arg(long, value_name = "PER_S", help_heading = "Scenario")]
    pub churn: Option<NonZeroU64>,
    /// Longest wait in a batch; 0 sends at once. Default: the server's flush window
    #[arg(long, value_name = "MS", help_heading = "Delivery options")]
    pub max_delay_ms: Option<u32>,
    /// What overflow does
    #[arg(long, value_enum, help_heading = "Delivery options")]
    pub policy: Option<Policy>,
    /// How data is encoded; this generator reads protobuf only so far
    #[arg(long, value_enum, default_value_t = Codec::Protobuf, help_heading = "Delivery options")]
    pub codec: Codec,

    /// Results as JSON
    #[arg(long, value_name = "FILE", default_value = "loadtest-results.json", help_heading = "Results")]
    pub json: PathBuf,
    /// Latencies as an HdrHistogram interval log
    #[arg(long, value_name = "FILE", default_value = "loadtest-results.hlog", help_heading = "Results")]
    pub hlog: PathBuf,
}

/// `policy` of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Policy {
    /// The oldest waiting frame makes room
    DropOldest,
    /// The new frame is not taken
    DropNewest,
    /// Only the newest sample matters
    Latest,
    /// The connection ends
    Disconnect,
}

impl Policy {
    const fn label(self) -> &'static str {
        match self {
            Self::DropOldest => "drop_oldest",
            Self::DropNewest => "drop_newest",
            Self::Latest => "latest",
            Self::Disconnect => "disconnect",
        }
    }
}

/// The data codec of all connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Codec {
    /// tidewire.v1
    Protobuf,
    /// tidewire.v1.msgpack
    Msgpack,
    /// tidewire.v1.json
    Json,
}

/// Measured in the selection: with warm-ups, 30 seconds in all.
const SELECTION_DURATION: Duration = Duration::from_secs(4);

impl Args {
    /// The scenarios, with what the flags change. The error names the flag.
    pub(crate) fn plan(&self) -> Result<Vec<Scenario>, String> {
        if self.codec != Codec::Protobuf {
            return Err("--codec: this generator reads protobuf only so far; use --codec protobuf".to_owned());
        }
        let scenarios = if self.scenarios.is_empty() {
            let shorter =
                |name| scenario::named(name).map(|it| Scenario { duration: SELECTION_DURATION, ..it });
            SELECTION.into_iter().filter_map(shorter).collect()
        } else if self.scenarios.iter().any(|name| name == "all") {
            Vec::from(scenario::all())
        } else {
            let find = |name: &String| {
                scenario::named(name)
                    .ok_or_else(|| format!("there is no scenario {name:?}; --list prints them"))
            };
            self.scenarios.iter().map(find).collect::<Result<Vec<_>, _>>()?
        };
        scenarios
            .into_iter()
            .map(|scenario| {
                let scenario = self.adapt(scenario);
                scenario.check().map(|()| scenario)
            })
            .collect()
    }

    fn adapt(&self, mut scenario: Scenario) -> Scenario {
        fn set<T: Copy>(field: &mut T, flag: Option<T>) {
            if let Some(value) = flag {
                *field = value;
            }
        }
        set(&mut scenario.publishers, self.publishers);
        set(&mut scenario.subscribers, self.subscribers);
        set(&mut scenario.load, self.rate.map(Load::Scheduled));
        set(&mut scenario.payload_bytes, self.payload);
        set(&mut scenario.samples_per_message, self.samples_per_message);
        set(&mut scenario.duration, self.duration);
        set(&mut scenario.warmup, self.warmup);
        if let Disturbance::Churn(per_s) = &mut scenario.disturbance {
            set(per_s, self.churn);
        }
        scenario.max_delay_ms = self.max_delay_ms;
        scenario.policy = self.policy.map(Policy::label);
        scenario
    }
}

/// Seconds, with or without a fraction.
fn seconds(text: &str) -> Result<Duration, String> {
    /// A day: longer runs are typing errors.
    const MAX: f64 = 86_400.0;
    match text.trim_end_matches('s').parse::<f64>() {
        Ok(seconds) if (0.0..=MAX).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("want seconds from 0 to {MAX}, such as 4 or 0.5")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    fn plan(arguments: &[&str]) -> Result<Vec<Scenario>, String> {
        Args::try_parse_from([&["loadtest"], arguments].concat()).map_err(|it| it.to_string())?.plan()
    }

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn no_arguments_are_the_selection_of_30_seconds() {
        let plan = plan(&[]).unwrap();
        assert_eq!(plan.iter().map(|it| it.name).collect::<Vec<_>>(), SELECTION);
        assert_eq!(plan.iter().map(Scenario::total).sum::<Duration>(), Duration::from_secs(30));
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
            "--policy=latest",
            "--churn=7",
        ];
        let plan = plan(&flags).unwrap();
        for scenario in &plan {
            assert_eq!(
                (scenario.publishers, scenario.subscribers, scenario.messages_per_s()),
                (2, 3, Some(4))
            );
            assert_eq!((scenario.payload_bytes, scenario.samples_per_message), (5, 6));
            assert_eq!((scenario.duration, scenario.warmup), (Duration::from_millis(500), Duration::ZERO));
            assert_eq!((scenario.max_delay_ms, scenario.policy), (Some(0), Some("latest")));
        }
        assert_eq!(plan[1].disturbance, Disturbance::Churn(NonZeroU64::new(7).unwrap()));
    }

    #[test]
    fn mistakes_are_named() {
        let cases: [(&[&str], &str); 6] = [
            (&["stedy"], "stedy"),
            (&["--codec=json"], "--codec"),
            (&["--rate=0"], "--rate"),
            (&["--duration=-1"], "--duration"),
            (&["--subscribers=0"], "--subscribers"),
            (&["--url=ws://x", "--pin-server=0"], "--pin-server"),
        ];
        for (arguments, expected) in cases {
            let error = plan(arguments).unwrap_err();
            assert!(error.contains(expected), "{arguments:?}: {error}");
        }
    }
}
