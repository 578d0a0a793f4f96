//! Where servers come from: one of our own for each repetition, or one that runs already. Starts; measures nothing.

use std::process::Command;
use std::time::Duration;

use crate::access::{AccessArgs, Trial};
use crate::args::{GeneratorArgs, ServerArgs};
use crate::proc;
use crate::result::Subject;
use crate::run::{self, Target};
use crate::scenario::{Behaviour, Scenario};
use crate::server::{Launch, Server};
use crate::session;
use crate::ws::Endpoint;

/// What the server allows by default: room for whoever looks at it meanwhile, and for visitors on their way out.
const CONNECTIONS_MAX: usize = 10_000;

/// A stall that the server bears by default: its write deadline is 10 s.
const STALL_MAX: Duration = Duration::from_secs(8);

/// Where servers come from.
#[derive(Debug)]
pub(crate) enum Source {
    /// One of our own for each scenario and repetition, so that none inherits the memory of another's.
    Own {
        /// How it is started.
        launch: Launch,
        /// How it is spoken to.
        access: AccessArgs,
    },
    /// One that runs already.
    Running {
        /// Its address.
        endpoint: Endpoint,
        /// Those of others that serve the same channels.
        others: Vec<Endpoint>,
        /// As they were given.
        url: String,
        /// Its process, if it was given.
        pid: Option<u32>,
    },
}

impl Source {
    /// As the command line says.
    pub(crate) fn new(args: &ServerArgs, access: AccessArgs) -> Result<Self, String> {
        if let [first, others @ ..] = args.url.as_slice() {
            let parse = |url: &String| Endpoint::parse(url).map_err(|error| format!("--url: {error}"));
            let others = others.iter().map(parse).collect::<Result<_, _>>()?;
            let url = args.url.join(" ");
            return Ok(Self::Running { endpoint: parse(first)?, others, url, pid: args.server_pid });
        }
        let all_but_one = proc::cpus().saturating_sub(1).max(1);
        let workers = match (args.server_workers, args.pin_server) {
            (Some(workers), _) => workers,
            (None, Some(_)) => 1,
            (None, None) => all_but_one,
        };
        let launch = Launch {
            binary: Launch::find_binary(args.server_bin.as_deref())?,
            cpu: args.pin_server,
            workers,
            settings: Vec::new(),
            arguments: args.server_arg.clone(),
        };
        Ok(Self::Own { launch, access })
    }

    /// What results call it.
    pub(crate) fn subject(&self, generator: &GeneratorArgs, label: Option<&str>) -> Subject {
        let name = "tidewire".to_owned();
        let (note, generator_cpu) = (label.map(str::to_owned), generator.pin_client);
        match self {
            Self::Own { launch, access } => Subject {
                name,
                version: version_of(launch),
                command: launch.in_a_line(),
                note: described(*access, note),
                workers: Some(launch.workers),
                cpu: launch.cpu,
                cpus: launch.cpu.map_or(launch.workers, |_| 1).min(proc::cpus()),
                generator_cpu,
                kept_awake: false,
            },
            Self::Running { url, .. } => Subject {
                name,
                version: None,
                command: url.clone(),
                note,
                workers: None,
                cpu: None,
                cpus: proc::cpus(),
                generator_cpu,
                kept_awake: false,
            },
        }
    }

    /// What to run the scenario against, and the server to keep until it is over.
    pub(crate) fn target(
        &self,
        scenario: &Scenario,
        generator: &GeneratorArgs,
    ) -> Result<(Target, Option<Server>), String> {
        let mut others = Vec::new();
        let (endpoint, server_pid, server) = match self {
            Self::Own { launch, access } => {
                let trial = Trial::new(*access, session::now_s())?;
                let launch = Launch { settings: trial.settings.clone(), ..launch.clone() };
                let server = start(&launch, scenario)?;
                let endpoint =
                    Endpoint::parse_with(&server.url, trial.access()?).map_err(|error| error.to_string())?;
                (endpoint, Some(server.pid()), Some(server))
            }
            Self::Running { endpoint, others: more, pid, .. } => {
                others.clone_from(more);
                (endpoint.clone(), *pid, None)
            }
        };
        let is_elsewhere = std::iter::once(&endpoint).chain(&others).any(|it| !it.address.ip().is_loopback());
        let target = Target {
            others,
            server_pid,
            reader_threads: generator.reader_threads,
            estimates_clock: generator.estimate_clock || is_elsewhere,
            ..Target::new(endpoint)
        };
        Ok((target, server))
    }
}

/// Starts a server for the scenario.
pub(crate) fn start(launch: &Launch, scenario: &Scenario) -> Result<Server, String> {
    proc::raise_open_files(scenario.connections() + run::OTHER_FILES).map_err(|error| error.to_string())?;
    let settings = [launch.settings.clone(), settings(scenario)].concat();
    Launch { settings, ..launch.clone() }.start()
}

/// How it is spoken to, where that is not the usual way, in front of what the user calls it.
fn described(access: AccessArgs, label: Option<String>) -> Option<String> {
    let way = match access {
        AccessArgs { tls: false, token: false } => return label,
        AccessArgs { tls: true, token: false } => "TLS",
        AccessArgs { tls: false, token: true } => "token",
        AccessArgs { tls: true, token: true } => "TLS and token",
    };
    Some(label.map_or_else(|| way.to_owned(), |label| format!("{way}; {label}")))
}

/// As it says itself.
pub(crate) fn version_of(launch: &Launch) -> Option<String> {
    let output = Command::new(&launch.binary).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.split_whitespace().nth(1)?;
    Some(version.to_owned())
}

/// Limits that would get into the scenario's way, and what it asks for itself. They travel in the environment, over which
/// the user's own arguments win.
fn settings(scenario: &Scenario) -> Vec<(String, String)> {
    let connections = (2 * scenario.connections()).max(CONNECTIONS_MAX);
    let mut settings = vec![
        ("inbound.publish_messages_per_s_max".to_owned(), "0".to_owned()),
        ("inbound.publish_bytes_per_s_max".to_owned(), "0".to_owned()),
        ("inbound.publish_samples_per_s_max".to_owned(), "0".to_owned()),
        // All have the same token, where they have one.
        ("server.connections_per_subject_max".to_owned(), "0".to_owned()),
        ("server.connections_max".to_owned(), connections.to_string()),
    ];
    let stall = scenario.groups.iter().map(|group| match group.behaviour {
        Behaviour::Stalled => scenario.total(),
        Behaviour::Paused { for_s, .. } => for_s,
        Behaviour::Healthy | Behaviour::Slow { .. } | Behaviour::Flaky { .. } => Duration::ZERO,
    });
    let stall = stall.max().unwrap_or_default();
    if stall > STALL_MAX {
        // Long stalls are to be counted, not ended: the server may neither give up writing nor miss the pong.
        let patience = (stall + scenario.total()).as_millis().to_string();
        settings.push(("outbox.write_deadline_ms".to_owned(), patience.clone()));
        settings.push(("server.ping_interval_ms".to_owned(), patience));
    }
    settings.retain(|(key, _)| !scenario.server.contains_key(key));
    settings.extend(scenario.server.clone());
    settings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::named;

    #[test]
    fn results_say_how_the_server_was_spoken_to() {
        let label = || Some("before".to_owned());
        let both = AccessArgs { tls: true, token: true };
        assert_eq!(described(AccessArgs::default(), label()), label());
        assert_eq!(described(both, None).as_deref(), Some("TLS and token"));
        assert_eq!(described(AccessArgs { token: false, ..both }, label()).as_deref(), Some("TLS; before"));
    }

    #[test]
    fn settings_follow_from_the_scenario() {
        let of = |scenario: &Scenario, key: &str| {
            settings(scenario).into_iter().find(|it| it.0 == key).map(|it| it.1)
        };
        let big = named("big").unwrap();
        assert_eq!(of(&big, "server.connections_max").as_deref(), Some("20002"));
        assert_eq!(of(&big, "outbox.write_deadline_ms"), None);
        let mut stalled = named("slow_reader").unwrap();
        assert_eq!(of(&stalled, "outbox.write_deadline_ms").as_deref(), Some("44000"));
        stalled.server.insert("server.connections_max".to_owned(), "7".to_owned());
        assert_eq!(of(&stalled, "server.connections_max").as_deref(), Some("7"), "the scenario's own wins");
    }
}
