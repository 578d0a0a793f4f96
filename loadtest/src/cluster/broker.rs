//! Brokers: which there are, and one of our own, on a free port, with its files in a directory that goes when it does.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::server::{Ready, Server};

/// What joins the servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// Nothing: one server
    None,
    /// Redis Pub/Sub
    Redis,
    /// Redis Streams
    RedisStreams,
    /// NATS
    Nats,
    /// NATS JetStream
    Jetstream,
    /// No Tidewire: one Redis message per sample, JSON
    Seed,
}

/// Tries to find a port: another program may take it between our look and the broker's.
const START_TRIES: usize = 3;

impl Kind {
    /// All, in the order of the table.
    pub(crate) const ALL: [Self; 6] =
        [Self::None, Self::Redis, Self::RedisStreams, Self::Nats, Self::Jetstream, Self::Seed];

    /// As the command line has it.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Redis => "redis",
            Self::RedisStreams => "redis-streams",
            Self::Nats => "nats",
            Self::Jetstream => "jetstream",
            Self::Seed => "seed",
        }
    }

    /// Whether several Tidewire servers are one by it.
    pub(crate) const fn joins_servers(self) -> bool {
        !matches!(self, Self::None | Self::Seed)
    }

    /// Its program, which is the name of Debian's package, too.
    const fn program(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Redis | Self::RedisStreams | Self::Seed => Some("redis-server"),
            Self::Nats | Self::Jetstream => Some("nats-server"),
        }
    }

    /// The scheme of `--broker`.
    const fn scheme(self) -> &'static str {
        match self {
            Self::None | Self::Redis | Self::Seed => "redis",
            Self::RedisStreams => "redis-streams",
            Self::Nats => "nats",
            Self::Jetstream => "jetstream",
        }
    }

    /// Where its program is; `None` if it needs none.
    pub(crate) fn find_program(self) -> Result<Option<PathBuf>, String> {
        let Some(program) = self.program() else { return Ok(None) };
        let path = std::env::var_os("PATH").unwrap_or_default();
        // Debian has nats-server where only root's PATH leads.
        let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
        find_in(places, program).map(Some).ok_or_else(|| {
            format!(
                "{program} is not on the PATH, and the broker {} needs it. Install it with\n    apt-get install {program}\n\
                 or leave it out: --brokers none,...",
                self.label()
            )
        })
    }
}

fn find_in(mut places: impl Iterator<Item = PathBuf>, program: &str) -> Option<PathBuf> {
    places.find_map(|place| Some(place.join(program)).filter(|path| path.is_file()))
}

/// A running broker. Ended when dropped, by its process number.
#[derive(Debug)]
pub(crate) struct Broker {
    /// Before `files`, so that it has ended when they go.
    server: Server,
    /// As `--broker` wants it.
    pub url: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Where NATS shows its counters.
    pub monitor: Option<SocketAddr>,
    _files: Directory,
}

impl Broker {
    /// Starts one; `None` where none is needed.
    pub(crate) fn start(kind: Kind) -> Result<Option<Self>, String> {
        let Some(program) = kind.find_program()? else { return Ok(None) };
        let mut tries = 1;
        loop {
            match Self::try_start(kind, &program) {
                Err(_) if tries < START_TRIES => tries += 1,
                started => return started.map(Some),
            }
        }
    }

    fn try_start(kind: Kind, program: &Path) -> Result<Self, String> {
        let files = Directory::new()?;
        let (address, monitor) = (free_address()?, free_address()?);
        let mut command = Command::new(program);
        let is_nats = matches!(kind, Kind::Nats | Kind::Jetstream);
        let port = address.port().to_string();
        if is_nats {
            command.args(["--addr", "127.0.0.1", "--port", &port, "--http_port"]);
            command.arg(monitor.port().to_string());
            if kind == Kind::Jetstream {
                command.arg("--jetstream").arg("--store_dir").arg(&files.0);
            }
        } else {
            // Nothing of what crosses is worth a disk: Streams are as fast as Redis has them.
            command.args(["--bind", "127.0.0.1", "--port", &port, "--save", "", "--appendonly", "no"]);
            command.arg("--dir").arg(&files.0);
        }
        let server = Server::spawn(command, None, Ready::Listens(address))
            .map_err(|problem| format!("{}: {problem}", program.display()))?;
        Ok(Self {
            server,
            url: format!("{}://{address}", kind.scheme()),
            address,
            monitor: is_nats.then_some(monitor),
            _files: files,
        })
    }

    /// Its process number.
    pub(crate) fn pid(&self) -> u32 {
        self.server.pid()
    }
}

/// An address that nobody listened at a moment ago.
fn free_address() -> Result<SocketAddr, String> {
    let listener = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
    listener.map_err(|error| format!("no free port for the broker: {error}"))
}

/// A directory of its own, removed when dropped.
#[derive(Debug)]
struct Directory(PathBuf);

impl Directory {
    fn new() -> Result<Self, String> {
        let name = format!("tidewire-loadtest-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What cannot be removed is left in the system's directory for such.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_in_order() {
        let (first, second) = (Directory::new().unwrap(), Directory::new().unwrap());
        let places = || [first.0.clone(), second.0.clone()].into_iter();
        assert_eq!(find_in(places(), "redis-server"), None);
        fs::write(second.0.join("redis-server"), "").unwrap();
        assert_eq!(find_in(places(), "redis-server"), Some(second.0.join("redis-server")));
        fs::write(first.0.join("redis-server"), "").unwrap();
        assert_eq!(find_in(places(), "redis-server"), Some(first.0.join("redis-server")));
        let path = first.0.clone();
        drop(first);
        assert!(!path.exists(), "it is removed");
    }
}
