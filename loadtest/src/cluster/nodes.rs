//! The servers of one trial and what joins them, started anew for each so that none inherits another's memory. Starts and ends;
//! measures nothing.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::dialect::Dialect;
use crate::pages;
use crate::server::{Launch, Ready, Server};
use crate::source;
use crate::ws::Endpoint;

use super::broker::{Broker, Kind};
use super::trial::{Plan, Timing};

/// How long a server may take to find the broker and to say that it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(20);

/// Between two looks at whether it is.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Servers, and the broker. Ended when dropped, the servers first.
#[derive(Debug)]
pub(crate) struct Nodes {
    servers: Vec<Server>,
    /// Where they listen, in order.
    pub endpoints: Vec<Endpoint>,
    /// What they speak.
    pub dialect: Dialect,
    /// What joins them.
    pub broker: Option<Broker>,
}

impl Nodes {
    /// Starts the broker, then the servers, and waits until each is ready.
    pub(crate) fn start(plan: &Plan, timing: Timing, launch: &Launch) -> Result<Self, String> {
        let broker = Broker::start(plan.broker)?;
        let mut arguments = launch.arguments.clone();
        if let Some(broker) = broker.as_ref().filter(|_| plan.broker.joins_servers()) {
            arguments.extend(["--broker".to_owned(), broker.url.clone()]);
        }
        let launch = Launch { arguments, ..launch.clone() };
        let scenario = plan.scenario(timing);
        let is_seed = plan.broker == Kind::Seed;
        let mut nodes = Self {
            servers: Vec::new(),
            endpoints: Vec::new(),
            dialect: if is_seed { Dialect::Json } else { Dialect::Tidewire },
            broker,
        };
        for _ in 0..plan.nodes {
            let server = match &nodes.broker {
                Some(broker) if is_seed => start_seed(broker)?,
                _ => source::start(&launch, &scenario)?,
            };
            nodes.endpoints.push(Endpoint::parse(&server.url).map_err(|error| error.to_string())?);
            nodes.servers.push(server);
        }
        // All at once: a server is ready when what it sent through the broker has come back.
        if !is_seed {
            for (endpoint, server) in nodes.endpoints.iter().zip(&nodes.servers) {
                wait_until_ready(endpoint).map_err(|why| format!("{}{why}", server.log()))?;
            }
        }
        Ok(nodes)
    }

    /// One that is not ours to end.
    #[cfg(test)]
    pub(crate) fn running(url: &str) -> Self {
        let endpoints = vec![Endpoint::parse(url).unwrap()];
        Self { servers: Vec::new(), endpoints, dialect: Dialect::Tidewire, broker: None }
    }

    /// Their process numbers, in order.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.servers.iter().map(Server::pid).collect()
    }

    /// The last lines of each server's log.
    pub(crate) fn log(&self) -> String {
        self.servers.iter().map(Server::log).collect()
    }
}

/// This program in the role of a server of the seed's way.
fn start_seed(broker: &Broker) -> Result<Server, String> {
    let own = std::env::current_exe().map_err(|error| format!("this program's file: {error}"))?;
    let mut command = Command::new(own);
    command.args(["seed-node", "--redis", &broker.address.to_string()]);
    Server::spawn(command, None, Ready::SaysUrl)
}

fn wait_until_ready(endpoint: &Endpoint) -> Result<(), String> {
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        let answer = pages::fetch(endpoint, "/readyz").unwrap_or_default();
        if answer.starts_with(b"HTTP/1.1 200 ") {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let why = String::from_utf8_lossy(&answer)
                .lines()
                .last()
                .unwrap_or_default()
                .escape_debug()
                .to_string();
            return Err(format!("{}: not ready after {READY_TIMEOUT:?}: {why}", endpoint.url()));
        }
        thread::park_timeout(LOOK_AGAIN);
    }
}
