//! The `tidewire` command: what it can be told, and where each subcommand goes. Holds no rule of the server or of the
//! configuration: flags are handed on as they were typed.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::Layer as _;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::config::load::{self, Flag, Problems};
use crate::config::{self, Config, LogFilter, LogFormat};
use crate::server::Server;
use crate::tls::Tls;

use self::publish::PubArgs;
use self::sub::SubArgs;
use self::token::TokenArgs;

mod bearer;
pub mod publish;
#[cfg(test)]
mod stage;
pub mod sub;
mod terminal;
pub mod token;

/// The exit code of a wrong command line or configuration: `EX_USAGE` of BSD's `sysexits.h`.
const USAGE: u8 = 64;

/// A low-latency telemetry streaming server.
#[derive(Debug, Parser)]
#[command(name = "tidewire", version, max_term_width = 100, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server. What `tidewire` does without a subcommand.
    Serve(ServeArgs),
    /// Check a configuration file, or print every setting.
    Config(ConfigArgs),
    Sub(SubArgs),
    Pub(PubArgs),
    Token(TokenArgs),
}

/// Every setting can be given here with --set, in the environment and in the file. A flag wins over the environment,
/// the environment over the file.
#[derive(Args, Debug)]
struct ServeArgs {
    /// TOML file with settings [env: TIDEWIRE_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address of the listener, such as 127.0.0.1:9400; port 0 is any free one
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Threads that own connections and channels
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    workers: Option<String>,
    /// Serve /echo, for conformance suites
    #[arg(long)]
    enable_echo: bool,
    /// Serve an address that others can reach without any key: everybody may do everything
    #[arg(long)]
    insecure_open: bool,
    /// Speak TLS with a certificate of its own making, for trials; it is written to FILE, for `tidewire sub --ca FILE`
    #[arg(long, value_name = "FILE")]
    self_signed: Option<String>,
    /// The broker that joins this node to others, such as redis://127.0.0.1 or nats://127.0.0.1
    #[arg(long, value_name = "URL")]
    broker: Option<String>,
    /// Do not publish the host's telemetry on host.NAME.*
    #[arg(long)]
    no_host_telemetry: bool,
    /// How log lines look on standard error: text or json
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Which events are logged: a level, or target=level, joined by commas
    #[arg(long, value_name = "FILTER")]
    log_filter: Option<String>,
    /// Any setting, such as server.ping_interval_ms=5000; `tidewire config --print-default` lists them
    #[arg(long, value_name = "KEY=VALUE", allow_hyphen_values = true)]
    set: Vec<String>,
}

impl ServeArgs {
    /// The settings among the flags, as they were typed.
    fn flags(&self) -> Vec<Flag> {
        let on = |given: bool, value: &str| given.then(|| value.to_owned());
        let named = [
            ("--listen", "listen", self.listen.clone()),
            ("--workers", "workers", self.workers.clone()),
            ("--insecure-open", "insecure_open", on(self.insecure_open, "true")),
            ("--enable-echo", "enable_echo", on(self.enable_echo, "true")),
            ("--self-signed", "tls.self_signed_file", self.self_signed.clone()),
            ("--broker", "broker.url", self.broker.clone()),
            ("--no-host-telemetry", "host_telemetry", on(self.no_host_telemetry, "false")),
            ("--log-format", "log_format", self.log_format.clone()),
            ("--log-filter", "log_filter", self.log_filter.clone()),
        ];
        let named =
            named.into_iter().filter_map(|(flag, key, value)| Some(Flag::Named { flag, key, value: value? }));
        named.chain(self.set.iter().cloned().map(Flag::Set)).collect()
    }
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct ConfigArgs {
    /// Check FILE by itself, without this machine's environment
    #[arg(long, value_name = "FILE")]
    check: Option<PathBuf>,
    /// Print a commented TOML file with every setting at its default
    #[arg(long)]
    print_default: bool,
    /// Print the reference of every setting as Markdown
    #[arg(long)]
    print_reference: bool,
}

/// Runs the command that the process was started with.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to be done if even the message cannot be written.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match cli.command.unwrap_or(Command::Serve(cli.serve)) {
        Command::Serve(args) => match load::from_process(args.config.as_deref(), &args.flags()) {
            Ok(config) => serve(config),
            Err(problems) => refuse(&problems),
        },
        Command::Config(args) => run_config(&args),
        Command::Sub(args) => sub::run(args),
        Command::Pub(args) => publish::run(args),
        Command::Token(args) => token::run(&args),
    }
}

/// Runs the server until it is told to end: SIGTERM or SIGINT drains it, a second one ends it at once.
fn serve(config: Config) -> ExitCode {
    init_logging(config.log_format, &config.log_filter);
    match run_server(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tidewire: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run_server(config: Config) -> io::Result<()> {
    let (open, exposed) = (config.is_open(), !config.listen.ip().is_loopback());
    let trial = config.tls.self_signed_file.to_string();
    let server = Server::bind(config)?;
    let secure = if server.tls().is_some() { "s" } else { "" };
    let fingerprint = server.tls().and_then(Tls::trial_fingerprint);
    let (address, pages) = (server.local_addr()?, server.pages_addr()?);
    let mut out = io::stdout().lock();
    // Whoever started the server may not be listening; the log says the same.
    let _ = writeln!(
        out,
        "tidewire: serving ws{secure}://{address}/ws\ntidewire: pages  http{secure}://{pages}/"
    );
    if let Some(fingerprint) = &fingerprint {
        // The certificate is for addresses that clients use, which 0.0.0.0 is not.
        let at = match address.ip().is_unspecified() {
            true => format!("localhost:{}", address.port()),
            false => address.to_string(),
        };
        let _ = writeln!(
            out,
            "tidewire: TRIAL certificate, made by this server for itself: not for production\n\
             tidewire: SHA-256 {fingerprint}\n\
             tidewire: try     tidewire sub --url wss://{at}/ws --ca {trial} '>'"
        );
    }
    let _ = out.flush();
    drop(out);
    if let Some(fingerprint) = fingerprint {
        tracing::warn!(%fingerprint, file = trial, "TLS with a TRIAL certificate: not for production");
    }
    tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "serving");
    if open && exposed {
        tracing::warn!(
            "open to everybody who reaches {address}: no keys are set (auth.keys_file, auth.secret)"
        );
    } else if open {
        tracing::info!(
            "open: whoever reaches this machine's loopback address may do everything (auth.keys_file)"
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tokio::spawn(async move {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                tracing::warn!("second signal: ending at once");
                std::process::exit(130);
            });
        };
        server.run(shutdown).await
    })
}

fn run_config(args: &ConfigArgs) -> ExitCode {
    match &args.check {
        Some(path) => match load::from_file(path) {
            Ok(_) => print(&format!("{}: ok\n", path.display())),
            Err(problems) => refuse(&problems),
        },
        None if args.print_default => print(&config::default_file()),
        None => print(&config::reference()),
    }
}

/// Sends log lines to standard error. The first call counts: a subscriber that is already there, as in a test, stays.
fn init_logging(format: LogFormat, filter: &LogFilter) {
    // A line that cannot be written is lost; the complaint about it would go to the same place, and panic.
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr).log_internal_errors(false);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let subscriber = tracing_subscriber::registry().with(lines.with_filter(filter.targets().clone()));
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Says what is wrong with the configuration, a line for each mistake.
fn refuse(problems: &Problems) -> ExitCode {
    let lines: String = problems.iter().map(|problem| format!("tidewire: {problem}\n")).collect();
    // Not `eprint`, which panics where standard error is closed.
    let _ = io::stderr().write_all(lines.as_bytes());
    ExitCode::from(USAGE)
}

/// Writes to standard output. A reader that has seen enough, such as `head`, is no failure.
fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let _ = writeln!(io::stderr(), "tidewire: standard output cannot be written: {error}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::config::load::Layers;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("tidewire").chain(line.split_whitespace()))
    }

    fn serve_args(line: &str) -> ServeArgs {
        let cli = parse(line).expect("the line is sound");
        match cli.command {
            None => cli.serve,
            Some(Command::Serve(args)) => args,
            Some(_) => panic!("{line} is not serve"),
        }
    }

    #[test]
    fn the_command_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_is_the_default_and_its_flags_reach_the_configuration() {
        const FLAGS: &str = "--listen [::1]:0 --workers 3 --enable-echo --self-signed a.pem --no-host-telemetry --log-format json \
                             --log-filter off --set batch.window_ms=1 --set server.idle_timeout_ms=0";
        for line in [FLAGS.to_owned(), format!("serve {FLAGS}")] {
            let mut layers = Layers::default();
            layers.flags(&serve_args(&line).flags());
            let config = layers.finish().expect("every flag is sound");
            assert_eq!(config.listen.to_string(), "[::1]:0");
            assert_eq!(config.workers, 3);
            assert!(config.enable_echo && !config.host_telemetry);
            assert_eq!(config.tls.self_signed_file.to_string(), "a.pem");
            assert_eq!(config.log_format, LogFormat::Json);
            assert_eq!(config.log_filter.to_string(), "off");
            assert_eq!(config.batch.window.as_millis(), 1);
            assert!(config.server.idle_timeout.is_zero());
        }
        assert_eq!(serve_args("").flags(), []);
    }

    #[test]
    fn wrong_lines_are_refused() {
        for line in [
            "config",
            "config --check a --print-default",
            "--listen",
            "--workers 1 --workers 2",
            "--listen 127.0.0.1:0 serve",
            "--unknown",
            "unknown",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
