//! `loadtest cluster`: servers that share a broker, on one machine. Publishers on one server, subscribers on it and on the others, so
//! that within one run the difference between the two is what the way through the broker costs. It decides what is run in which
//! turn; `trial` runs it, `broker` starts brokers, `seed` is the way of one message per sample, `text` the table.

mod broker;
mod metrics;
mod nodes;
mod report;
mod seed;
mod text;
mod trial;

use std::fs;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::args;
use crate::proc;
use crate::run::Progress;
use crate::server::Launch;
use crate::session::{self, Bar};

use self::broker::Kind;
use self::nodes::Nodes;
use self::report::{ClusterFile, FORMAT, Repetition, Row};
pub(crate) use self::seed::{SeedNodeArgs, run as seed_node};
use self::trial::{Plan, Timing, Work};

/// Numbers of servers whose growth is measured.
const GROWTH: [usize; 3] = [1, 2, 4];

/// Measures servers that share a broker. It starts the brokers (redis-server, nats-server) and the servers itself, and ends with 1 if
/// a server lost anything that it did not announce, with 3 if it could not run
#[derive(Debug, Parser)]
pub(crate) struct ClusterArgs {
    /// Brokers, in turns. none: one server without a broker. seed: one Redis message per sample, JSON
    #[arg(long, value_name = "KIND", value_enum, value_delimiter = ',', default_values_t = Kind::ALL)]
    pub brokers: Vec<Kind>,
    /// Servers
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(2..=16))]
    pub nodes: u32,
    /// Channels, each with a publisher; with --growth, of each server
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub channels: u32,
    /// Subscribers of each server, each to all channels; with --growth, to those of its own server
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub subscribers: u32,
    /// Samples a second, all publishers together; with --growth, of each server
    #[arg(long, value_name = "PER_S", default_value = "2000")]
    pub rate: NonZeroU64,
    /// Bytes of a sample's value
    #[arg(long, value_name = "BYTES", default_value_t = 128, value_parser = clap::value_parser!(u32).range(20..=65_536))]
    pub payload: u32,
    /// Seconds measured, of each broker
    #[arg(long, value_name = "S", value_parser = args::seconds, default_value = "5")]
    pub duration: Duration,
    /// Seconds before the measurement
    #[arg(long, value_name = "S", value_parser = args::seconds, default_value = "1")]
    pub warmup: Duration,
    /// Run everything so many times, in turns, and report medians
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub repetitions: u32,
    /// Instead: 1, 2 and 4 servers with the same work each, and one subscriber each of another server's channels
    #[arg(long)]
    pub growth: bool,
    /// The servers' binary. Default: `tidewire` beside this program, else target/release/tidewire
    #[arg(long, value_name = "FILE", help_heading = "Server")]
    pub server_bin: Option<PathBuf>,
    /// Worker threads of each server
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Server")]
    pub server_workers: usize,
    /// Results as JSON
    #[arg(long, value_name = "FILE", default_value = "loadtest-cluster.json", help_heading = "Results")]
    pub json: PathBuf,
}

impl ClusterArgs {
    fn plans(&self) -> Result<Vec<Plan>, String> {
        if self.duration.is_zero() {
            return Err("--duration: 0 seconds measure nothing".to_owned());
        }
        let whole = |count: u32| usize::try_from(count).unwrap_or(usize::MAX);
        let (channels, subscribers) = (whole(self.channels), whole(self.subscribers));
        let mut plans = Vec::new();
        for (index, &broker) in self.brokers.iter().enumerate() {
            if self.brokers[..index].contains(&broker) {
                return Err(format!("--brokers: {} is named twice", broker.label()));
            }
            let plan = |nodes, work| Plan { broker, nodes, work, channels, subscribers, per_s: self.rate };
            if !self.growth {
                plans.push(plan(if broker == Kind::None { 1 } else { whole(self.nodes) }, Work::FromOne));
            } else if broker.joins_servers() {
                plans.extend(GROWTH.map(|nodes| plan(nodes, Work::OfEach)));
            }
        }
        if plans.is_empty() {
            return Err("--growth: name a broker by which servers grow: --brokers redis".to_owned());
        }
        Ok(plans)
    }
}

/// Runs it all, prints the table and writes the results: whether no server lost anything without a word.
pub(crate) fn run_all(args: &ClusterArgs) -> Result<bool, String> {
    let plans = args.plans()?;
    let launch = Launch {
        binary: Launch::find_binary(args.server_bin.as_deref())?,
        cpu: None,
        workers: args.server_workers.max(1),
        settings: Vec::new(),
        arguments: Vec::new(),
    };
    // Said before anything has run, not after the first broker's minute.
    for plan in &plans {
        plan.broker.find_program()?;
    }
    let timing = Timing {
        warmup: args.warmup,
        duration: args.duration,
        payload_bytes: usize::try_from(args.payload).unwrap_or(usize::MAX),
    };
    let interrupted = session::interruption()?;
    let of_all = session::new_file();
    let mut file = ClusterFile {
        format: FORMAT,
        started_s: of_all.started_s,
        command: of_all.command,
        machine: of_all.machine,
        generator: of_all.generator,
        server: launch.in_a_line(),
        growth: args.growth,
        warmup_s: args.warmup.as_secs_f64(),
        duration_s: args.duration.as_secs_f64(),
        payload_bytes: timing.payload_bytes,
        rows: plans.iter().map(Row::new).collect(),
    };
    let connections = plans.iter().map(Plan::connections).max().unwrap_or(0);
    proc::raise_open_files(connections + crate::run::OTHER_FILES).map_err(|error| error.to_string())?;
    let once = args.warmup + args.duration;
    let total = once * args.repetitions * u32::try_from(plans.len()).unwrap_or(u32::MAX);
    let bar = Bar::new(total);
    let mut done = Duration::ZERO;
    for repetition in 1..=args.repetitions {
        for (plan, row) in plans.iter().zip(&mut file.rows) {
            let turn = format!("{repetition}/{}  ", args.repetitions);
            let what = format!("{}, {} servers", plan.broker.label(), plan.nodes);
            bar.show(done, &turn, &Progress { at: done, what: &what, live: None });
            let nodes = Nodes::start(plan, timing, &launch).map_err(|why| format!("{what}: {why}"))?;
            let ran: Result<Repetition, String> = trial::run(plan, timing, &nodes, &interrupted);
            match ran {
                Ok(repetition) => row.repetitions.push(repetition),
                Err(why) => {
                    bar.end();
                    return Err(format!("{}{what}: {why}", nodes.log()));
                }
            }
            done += once;
        }
    }
    bar.end();
    print!("{}", text::text(&file));
    let json = serde_json::to_string_pretty(&file).map_err(|error| error.to_string())?;
    fs::write(&args.json, json + "\n").map_err(|error| format!("--json {}: {error}", args.json.display()))?;
    Ok(file.is_sound())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plans(arguments: &[&str]) -> Result<Vec<(Kind, usize)>, String> {
        let args =
            ClusterArgs::try_parse_from([&["cluster"], arguments].concat()).map_err(|it| it.to_string())?;
        Ok(args.plans()?.iter().map(|it| (it.broker, it.nodes)).collect())
    }

    #[test]
    fn what_is_run_follows_from_the_arguments() {
        let all = plans(&[]).unwrap();
        assert_eq!(all.iter().map(|it| it.0).collect::<Vec<_>>(), Kind::ALL);
        assert_eq!(all[..2], [(Kind::None, 1), (Kind::Redis, 2)]);
        assert_eq!(plans(&["--brokers=nats", "--nodes=3"]).unwrap(), [(Kind::Nats, 3)]);
        let grown = plans(&["--growth", "--brokers=none,nats,seed"]).unwrap();
        assert_eq!(grown, GROWTH.map(|nodes| (Kind::Nats, nodes)));
    }

    #[test]
    fn mistakes_are_named() {
        let cases: [(&[&str], &str); 6] = [
            (&["--brokers=kafka"], "--brokers"),
            (&["--brokers=redis,nats,redis"], "redis is named twice"),
            (&["--growth", "--brokers=seed"], "--growth"),
            (&["--nodes=1"], "--nodes"),
            (&["--duration=0"], "--duration"),
            (&["--payload=19"], "--payload"),
        ];
        for (arguments, expected) in cases {
            let error = plans(arguments).unwrap_err();
            assert!(error.contains(expected), "{arguments:?}: {error}");
        }
    }
}
