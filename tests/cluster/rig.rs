//! A broker, and servers that share it.

use std::cell::Cell;
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use tempfile::TempDir;
use tidewire::broker::Kind;

use crate::servers::{Options, Program, Server};
use crate::support::{self, Client, Process, http, metric, wait_for};

pub(crate) struct Rig {
    pub(crate) kind: &'static Kind,
    pub(crate) broker: Server,
    dir: TempDir,
    nodes: Cell<usize>,
}

/// One of the servers.
pub(crate) struct Node {
    pub(crate) process: Process,
    log: PathBuf,
}

impl Rig {
    pub(crate) fn start(kind: &'static Kind) -> Self {
        Self::over(kind, Server::start(program(kind), Options::default()))
    }

    /// With a broker that is as it is.
    pub(crate) fn over(kind: &'static Kind, broker: Server) -> Self {
        Self { kind, broker, dir: tempfile::tempdir().unwrap(), nodes: Cell::new(0) }
    }

    pub(crate) fn keeps(&self) -> bool {
        self.kind.capabilities.keeps
    }

    /// A server that is ready.
    pub(crate) fn node(&self) -> Node {
        let node = self.node_with("", "");
        node.wait_until_ready();
        node
    }

    /// A server with these lines at the top of its configuration, and these for its broker.
    pub(crate) fn node_with(&self, sections: &str, broker: &str) -> Node {
        self.node_at("127.0.0.1:0", sections, broker)
    }

    /// The same at an address and a port.
    pub(crate) fn node_at(&self, listen: &str, sections: &str, broker: &str) -> Node {
        let number = self.nodes.replace(self.nodes.get() + 1);
        let path = |suffix: &str| self.dir.path().join(format!("{number}.{suffix}"));
        // NATS has users; Redis has one that needs no name.
        let named = broker.contains("password") && program(self.kind) != Program::Redis;
        let user = if named { "tide@" } else { "" };
        let url = format!("{}://{user}127.0.0.1:{}", self.kind.scheme, self.broker.port);
        let text = format!(
            "workers = 2\n[server]\ndrain_timeout_ms = 500\n{sections}\n[broker]\nurl = \"{url}\"\ntimeout_ms = 1000\n{broker}\n"
        );
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path("toml")).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let config = path("toml");
        let arguments = ["--config", config.to_str().unwrap()];
        Node { process: Process::start_logging(listen, &arguments, &path("log")), log: path("log") }
    }

    /// A file that only its owner reads.
    pub(crate) fn secret_file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        path
    }

    /// Publishes like a stranger: where the servers listen for what is kept, or for what is not.
    pub(crate) fn publish_as_stranger(&self, topic: &str, kept: bool, payload: &[u8]) {
        match (program(self.kind), kept && self.keeps()) {
            (Program::Redis, true) => {
                let channel = format!("tidewire.kept.{topic}");
                drop(self.broker.redis_command(&[b"PUBLISH", channel.as_bytes(), payload]));
            }
            (Program::Redis, false) => {
                let channel = format!("tidewire.plain.{topic}");
                drop(self.broker.redis_command(&[b"PUBLISH", channel.as_bytes(), payload]));
            }
            (_, true) => drop(self.broker.nats_publish(&format!("tidewire.live.{topic}"), None, payload)),
            (_, false) => drop(self.broker.nats_publish(&format!("tidewire.plain.{topic}"), None, payload)),
        }
    }
}

/// What serves a kind of broker.
pub(crate) fn program(kind: &Kind) -> Program {
    match kind.scheme {
        "redis" | "redis-streams" => Program::Redis,
        "nats" => Program::Nats,
        "jetstream" => Program::JetStream,
        other => panic!("no server is known for {other}://"),
    }
}

impl Node {
    pub(crate) fn address(&self) -> SocketAddr {
        self.process.address
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.address(), &support::Options::default())
    }

    pub(crate) fn metric(&self, name: &str) -> f64 {
        metric(self.address(), name)
    }

    pub(crate) fn refused(&self, reason: &str) -> f64 {
        self.metric(&format!("tidewire_relays_refused_total{{reason=\"{reason}\"}}"))
    }

    /// What `/readyz` says against it, if anything.
    pub(crate) fn unready(&self) -> Option<String> {
        let response = http(self.address(), "/readyz");
        match response.status {
            200 => None,
            503 => Some(String::from_utf8(response.body).unwrap().trim().to_owned()),
            other => panic!("/readyz says {other}"),
        }
    }

    pub(crate) fn wait_until_ready(&self) {
        let mut last = None;
        wait_for("readiness", || {
            last = self.unready();
            last.is_none().then_some(())
        });
    }

    /// Why it is not ready any more.
    pub(crate) fn wait_until_unready(&self) -> String {
        wait_for("no readiness", || self.unready())
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}
