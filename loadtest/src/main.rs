//! `loadtest`: the command line to its commands. Measures nothing itself.

mod accept;
mod access;
mod args;
mod books;
mod bottleneck;
mod churn;
mod clock;
mod cluster;
mod codecs;
mod comeback;
mod compare;
mod control;
mod data;
mod dialect;
mod encode;
#[cfg(test)]
mod fake;
mod figures;
mod finish;
mod fleet;
mod hlog;
mod ledger;
mod limit;
mod measure;
mod merge;
mod offset;
mod others;
mod pacer;
mod pages;
mod peers;
mod poll;
mod proc;
mod processes;
mod publishers;
mod report;
mod result;
mod run;
mod runfile;
mod scenario;
mod server;
mod session;
mod slo;
mod snapshot;
mod soak;
mod source;
mod stages;
mod subscribers;
mod table;
mod units;
mod verdict;
mod watch;
mod ws;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command, RunArgs, ScenariosArgs};
use crate::run::INTERRUPTED;

/// Something was lost that was not announced, or a connection was cut off.
const EXIT_UNSOUND: u8 = 1;
/// It could not run. (2 is the command line's.)
const EXIT_FAILED: u8 = 3;
/// As a shell reports SIGINT.
const EXIT_INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        // These two decide what they end with.
        Some(Command::Compare(args)) => return ended(compare::main(&args)),
        Some(Command::Report(args)) => return ended(report::main(&args)),
        None => session::run_all(&RunArgs::parse_from(["loadtest"])),
        Some(Command::Run(args)) => session::run_all(&args),
        Some(Command::Soak(args)) => soak::run(&args),
        Some(Command::Cluster(args)) => cluster::run_all(&args),
        Some(Command::SeedNode(args)) => cluster::seed_node(&args).map(|()| true),
        Some(Command::Peers(args)) => peers::run_all(&args),
        Some(Command::Spin(args)) => peers::spin(&args),
        Some(Command::Scenarios(args)) => print_scenarios(&args).map(|()| true),
        Some(Command::FindLimit(args)) => limit::find(&args),
        Some(Command::Merge(args)) => session::merge_all(&args),
    };
    ended(done.map(|is_sound| if is_sound { ExitCode::SUCCESS } else { ExitCode::from(EXIT_UNSOUND) }))
}

fn ended(done: Result<ExitCode, String>) -> ExitCode {
    match done {
        Ok(code) => code,
        Err(problem) => {
            eprintln!("loadtest: {problem}");
            ExitCode::from(if problem.ends_with(INTERRUPTED) { EXIT_INTERRUPTED } else { EXIT_FAILED })
        }
    }
}

fn print_scenarios(args: &ScenariosArgs) -> Result<(), String> {
    let all = ["all".to_owned()];
    let scenarios = args::find(if args.names.is_empty() { &all } else { &args.names })?;
    for scenario in scenarios {
        if args.toml {
            println!("{}", scenario::file::print(&scenario)?);
        } else {
            println!("{:<12} {}", scenario.name, scenario.about);
        }
    }
    Ok(())
}
