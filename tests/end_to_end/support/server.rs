//! A server in this process, or the real binary as a process of its own.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;
use tidewire::config::Config;
use tidewire::server::Server;
use tokio::sync::oneshot;

use super::{Client, Options, Peer, Response, wait_for};

/// A server on a thread of its own; ended when it is dropped.
pub(crate) struct TestServer {
    pub(crate) address: SocketAddr,
    /// Where its pages are.
    pub(crate) pages: SocketAddr,
    shutdown: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl TestServer {
    /// Starts one with a worker, `/echo`, and what `change` makes of its configuration.
    pub(crate) fn start(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            workers: 1,
            enable_echo: true,
            host_telemetry: false,
            ..Config::default()
        };
        config.server.drain_timeout = Duration::from_millis(200);
        change(&mut config);
        let server = Server::bind(config).unwrap();
        let (address, pages) = (server.local_addr().unwrap(), server.pages_addr().unwrap());
        let (shutdown, wanted) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(server.run(async { drop(wanted.await) })).unwrap();
        });
        Self { address, pages, shutdown: Some(shutdown), thread: Some(thread) }
    }

    /// Asks it to drain.
    pub(crate) fn shut_down(&mut self) {
        drop(self.shutdown.take());
    }

    /// A client of `/ws` with protobuf data.
    pub(crate) fn client(&self) -> Client {
        self.client_with(&Options::default())
    }

    /// A client of `/ws`.
    pub(crate) fn client_with(&self, options: &Options<'_>) -> Client {
        Client::connect(self.address, options)
    }

    /// The JSON of a page.
    pub(crate) fn json(&self, path: &str) -> Value {
        let response = http(self.pages, path);
        assert_eq!(response.status, 200, "{path}");
        serde_json::from_slice(&response.body).unwrap()
    }

    /// A number of `/metrics`; `name` with its label.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        metric(self.pages, name)
    }

    /// Waits until a number of `/metrics` is what it should be.
    pub(crate) fn wait_for_metric(&self, name: &str, wanted: f64) {
        let mut last = f64::NAN;
        wait_for(&format!("{name} {wanted}"), || {
            last = self.metric(name);
            (last >= wanted && (wanted > 0.0 || last == 0.0)).then_some(())
        });
    }

    /// The row of a connection in `/api/connections`.
    pub(crate) fn connection(&self, number: u64) -> Option<Value> {
        let rows = self.json("/api/connections");
        rows["connections"].as_array().unwrap().iter().find(|row| row["connection"] == number).cloned()
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.shut_down();
        let ended = self.thread.take().map_or(Ok(()), JoinHandle::join);
        if !std::thread::panicking() {
            ended.expect("the server ends without a panic");
        }
    }
}

/// Asks for a page.
pub(crate) fn http(address: SocketAddr, path: &str) -> Response {
    let mut peer = Peer::connect(address);
    peer.write(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes());
    peer.response()
}

/// Asks for a page in any way.
pub(crate) fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Response {
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    if !body.is_empty() {
        request.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    let mut peer = Peer::connect(address);
    peer.write(format!("{request}\r\n{body}").as_bytes());
    peer.response()
}

/// A number of `/metrics`; `name` with its label.
pub(crate) fn metric(address: SocketAddr, name: &str) -> f64 {
    let text = String::from_utf8(http(address, "/metrics").body).unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no metric {name}")).parse().unwrap()
}

/// The real binary; killed when it is dropped.
pub(crate) struct Process {
    pub(crate) address: SocketAddr,
    child: Child,
    stderr: Option<ChildStderr>,
}

impl Process {
    /// Starts `tidewire serve` with these settings, and waits until it listens.
    pub(crate) fn start(settings: &[&str]) -> Self {
        Self::start_at("127.0.0.1:0", settings)
    }

    /// Starts it at an address and a port.
    pub(crate) fn start_at(listen: &str, settings: &[&str]) -> Self {
        let mut command = Self::command(listen);
        for setting in settings {
            command.args(["--set", setting]);
        }
        Self::spawn(command.stderr(Stdio::piped()))
    }

    /// Starts it at an address and a port with these arguments, and has it log into a file: more than a pipe holds that nobody reads.
    pub(crate) fn start_logging(listen: &str, arguments: &[&str], log: &Path) -> Self {
        let log = File::create(log).unwrap();
        Self::spawn(Self::command(listen).args(arguments).stderr(log))
    }

    /// Starts it so that a write over the limit of [`Process::limit_files`] fails as on a full disk, instead of ending the process.
    pub(crate) fn start_without_size_signal(settings: &[&str]) -> Self {
        let plain = Self::command("127.0.0.1:0");
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
            .arg(plain.get_program())
            .args(plain.get_args());
        for setting in settings {
            command.args(["--set", setting]);
        }
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped());
        Self::spawn(command.stderr(Stdio::piped()))
    }

    /// No file of it may grow over that many bytes.
    pub(crate) fn limit_files(&self, bytes: u64) {
        let id = self.child.id().to_string();
        let status =
            Command::new("prlimit").args(["--pid", &id, &format!("--fsize={bytes}:")]).status().unwrap();
        assert!(status.success(), "prlimit --pid {id}");
    }

    fn command(listen: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidewire"));
        command.args(["serve", "--listen", listen, "--no-host-telemetry", "--enable-echo"]);
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stderr = child.stderr.take();
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        let address = first.split("://").nth(1).and_then(|rest| rest.split('/').next());
        let address = address.unwrap_or_else(|| panic!("no address in {first:?}")).parse().unwrap();
        Self { address, child, stderr }
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status().unwrap();
        assert!(status.success(), "kill -s {name} {id}");
    }

    /// Leaves it so many file descriptors, those that it has included.
    pub(crate) fn limit_descriptors(&self, most: usize) {
        let id = self.child.id().to_string();
        let status =
            Command::new("prlimit").args(["--pid", &id, &format!("--nofile={most}")]).status().unwrap();
        assert!(status.success(), "prlimit --pid {id}");
    }

    /// Open file descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Its memory, in bytes: `VmRSS` is what is resident, `VmData` what is reserved, touched or not (proc(5)).
    pub(crate) fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap().trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() << 10
    }

    /// Connections that ended for this reason.
    pub(crate) fn closed(&self, reason: &str) -> f64 {
        metric(self.address, &format!("tidewire_connections_closed_total{{reason=\"{reason}\"}}"))
    }

    /// The rows of `/api/connections`.
    pub(crate) fn connections(&self) -> Vec<Value> {
        let rows: Value = serde_json::from_slice(&http(self.address, "/api/connections").body).unwrap();
        rows["connections"].as_array().unwrap().clone()
    }

    /// Whether it has ended, and how.
    pub(crate) fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Its log.
    pub(crate) fn take_log(&mut self) -> ChildStderr {
        self.stderr.take().unwrap()
    }

    /// Waits for its end; what it logged, too.
    pub(crate) fn wait(&mut self) -> (ExitStatus, String) {
        let mut log = String::new();
        // Ends when the process does.
        self.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap(), log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
