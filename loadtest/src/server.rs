//! Starts a server process of its own, learns its address from what it prints, and ends it by its process number.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::proc;

/// How long a server may take to print its address.
const START_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a server may take to end after SIGTERM; then it is killed. Longer than its own deadline for a drain, 10 s.
const END_TIMEOUT: Duration = Duration::from_secs(15);

/// Lines of the server's log that are kept, to show when it fails.
const LOG_LINES_MAX: usize = 20;

/// How to start a server.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    /// The program.
    pub binary: PathBuf,
    /// The CPU it is bound to.
    pub cpu: Option<usize>,
    /// Its `--workers`.
    pub workers: usize,
    /// Settings that the scenario needs, by key. An argument for the same key wins.
    pub settings: Vec<(String, String)>,
    /// Further arguments of `serve`.
    pub arguments: Vec<String>,
}

/// A running server. Ended when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// Where it listens.
    pub url: String,
    log: Arc<Mutex<Kept>>,
    logger: Option<JoinHandle<()>>,
    /// Disconnected when the server closes its standard output: when it has ended.
    output: Receiver<String>,
}

/// What is kept of a server's log.
#[derive(Debug, Default)]
struct Kept {
    /// The last ones.
    lines: VecDeque<String>,
    /// Of all lines, those that tell of a panic.
    panics: u64,
}

impl Kept {
    fn keep(&mut self, line: String) {
        // As the standard library's hook begins: `thread 'worker-0' (7) panicked at src/...`.
        self.panics += u64::from(line.contains(" panicked at "));
        if self.lines.len() == LOG_LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }
}

impl Launch {
    /// The binary to use: the one named, else the one beside this program, else the release build below the working
    /// directory. The error says how to build it.
    pub(crate) fn find_binary(named: Option<&Path>) -> Result<PathBuf, String> {
        if let Some(named) = named {
            return if named.is_file() {
                Ok(named.to_owned())
            } else {
                Err(format!("--server-bin {}: there is no such file", named.display()))
            };
        }
        let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join("tidewire")));
        let built = PathBuf::from("target/release/tidewire");
        beside.into_iter().chain([built]).find(|path| path.is_file()).ok_or_else(|| {
            "the server's binary is not there. Build it with\n    cargo build --release\n\
             or name it with --server-bin FILE, or use a running server with --url ws://HOST:PORT/ws"
                .to_owned()
        })
    }

    /// The command line, for people.
    pub(crate) fn in_a_line(&self) -> String {
        let mut line = format!("{} serve --workers {}", self.binary.display(), self.workers);
        for argument in &self.arguments {
            line.push(' ');
            line.push_str(argument);
        }
        line
    }

    /// Starts the server on a free port of 127.0.0.1 and waits until it has printed its address.
    pub(crate) fn start(&self) -> Result<Server, String> {
        let mut command = Command::new(&self.binary);
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--no-host-telemetry", "--workers"])
            .arg(self.workers.to_string())
            .args(&self.arguments)
            .envs(self.settings.iter().map(|(key, value)| (variable(key), value)));
        Server::spawn(command, self.cpu, Ready::SaysUrl)
            .map_err(|problem| format!("{}: {problem}", self.binary.display()))
    }
}

/// How a server says that it listens.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ready {
    /// It prints its URL, on its standard output or in its log.
    SaysUrl,
    /// It was told the address, and takes connections there.
    Listens(SocketAddr),
}

/// Between two tries to connect.
const TRY_AGAIN: Duration = Duration::from_millis(10);

impl Server {
    /// Starts it on the CPU, with all that it starts itself, and waits until it listens.
    pub(crate) fn spawn(mut command: Command, cpu: Option<usize>, ready: Ready) -> Result<Self, String> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // The child inherits the affinity of the thread that starts it, so no tool is needed for that.
        let mut child = proc::bound_to(cpu, move || command.spawn())
            .map_err(|error| format!("cannot start it: {error}"))?;
        let log = Arc::new(Mutex::new(Kept::default()));
        let (found, output) = sync_channel(1);
        // Both pipes are read to their ends, or a talkative server would block on a full one.
        let (kept, found_in_log) = (Arc::clone(&log), found.clone());
        if let Some(stdout) = child.stdout.take() {
            thread::spawn(move || find_url(stdout, &found));
        }
        let logger = child
            .stderr
            .take()
            .map(|stderr| thread::spawn(move || keep_last_lines(stderr, &kept, &found_in_log)));
        let mut server = Self { child, url: String::new(), log, logger, output };
        let said = match ready {
            Ready::SaysUrl => server.output.recv_timeout(START_TIMEOUT),
            Ready::Listens(address) => server.wait_for_listener(address),
        };
        let problem = match said {
            Ok(url) => {
                server.url = url;
                return Ok(server);
            }
            Err(RecvTimeoutError::Timeout) => "it did not print its address in time",
            Err(RecvTimeoutError::Disconnected) => "it ended before it printed its address",
        };
        // Ended first: then its log is complete.
        server.end();
        Err(format!("{problem}\n{}", server.log()))
    }

    fn wait_for_listener(&mut self, address: SocketAddr) -> Result<String, RecvTimeoutError> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if TcpStream::connect_timeout(&address, START_TIMEOUT).is_ok() {
                return Ok(format!("ws://{address}/"));
            }
            // Not a sleep alone: it ends early when the server does.
            match self.output.recv_timeout(TRY_AGAIN) {
                Err(RecvTimeoutError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
                _ if Instant::now() >= deadline => return Err(RecvTimeoutError::Timeout),
                _ => {}
            }
        }
    }

    /// Its process number.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The last lines of its log.
    pub(crate) fn log(&self) -> String {
        let kept = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        kept.lines.iter().flat_map(|line| ["  server: ", line, "\n"]).collect()
    }

    /// Lines of its log that tell of a panic.
    pub(crate) fn panics(&self) -> u64 {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).panics
    }

    fn end(&mut self) {
        if matches!(self.child.try_wait(), Ok(None))
            && let Some(pid) = proc::pid(self.child.id())
        {
            // Not waited for yet, so the number cannot have passed to another process.
            let _ = kill_process(pid, Signal::TERM);
        }
        let ended = loop {
            match self.output.recv_timeout(END_TIMEOUT) {
                Ok(_) => {}
                Err(why) => break why == RecvTimeoutError::Disconnected,
            }
        };
        if !ended {
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
        if let Some(logger) = self.logger.take() {
            let _ = logger.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// A server's process that stands still. It goes on when this is dropped.
#[derive(Debug)]
pub(crate) struct Stopped(rustix::process::Pid);

impl Stopped {
    /// Stops it.
    pub(crate) fn stop(pid: Option<u32>) -> Result<Self, String> {
        let pid = pid.and_then(proc::pid).ok_or_else(|| {
            "stop_server_ms: the server's process is not known; name it with --server-pid".to_owned()
        })?;
        kill_process(pid, Signal::STOP).map_err(|error| format!("stop_server_ms: {error}"))?;
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// The environment variable of a setting.
fn variable(key: &str) -> String {
    format!("TIDEWIRE_{}", key.replace('.', "_").to_ascii_uppercase())
}

/// Sends the first WebSocket URL and reads on, until the end.
fn find_url(stdout: impl Read, found: &SyncSender<String>) {
    let mut sent = false;
    for line in BufReader::new(stdout).lines().map_while(Result::ok) {
        if !sent && let Some(url) = first_url(&line) {
            sent = found.try_send(url.to_owned()).is_ok();
        }
    }
}

fn keep_last_lines(stderr: impl Read, kept: &Mutex<Kept>, found: &SyncSender<String>) {
    let mut sent = false;
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        if !sent && let Some(url) = first_url(&line) {
            // Fails where the standard output was first.
            sent = true;
            let _ = found.try_send(url.to_owned());
        }
        kept.lock().unwrap_or_else(PoisonError::into_inner).keep(line);
    }
}

/// The first word of the line that is a WebSocket URL.
fn first_url(line: &str) -> Option<&str> {
    let start = ["ws://", "wss://"].iter().filter_map(|scheme| line.find(scheme)).min()?;
    let url = &line[start..];
    let end =
        url.find(|c: char| c.is_whitespace() || matches!(c, ',' | ')' | '"' | '\x1b')).unwrap_or(url.len());
    Some(&url[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_in_lines() {
        let cases = [
            ("tidewire: serving ws://127.0.0.1:40123/ws", Some("ws://127.0.0.1:40123/ws")),
            ("listening (ws://[::1]:9/ws), http://127.0.0.1:9/", Some("ws://[::1]:9/ws")),
            ("tidewire: serving wss://127.0.0.1:9/ws", Some("wss://127.0.0.1:9/ws")),
            ("http://127.0.0.1:9/metrics", None),
        ];
        for (line, expected) in cases {
            assert_eq!(first_url(line), expected, "{line}");
        }
    }

    /// Runs a shell script in the place of a server.
    fn spawn(script: &str) -> Result<Server, String> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        Server::spawn(command, Some(0), Ready::SaysUrl)
    }

    #[test]
    fn a_server_is_started_and_ended() {
        let server = spawn("echo serving ws://127.0.0.1:1/ws; exec sleep 100").unwrap();
        assert_eq!(server.url, "ws://127.0.0.1:1/ws");
        let pid = server.pid();
        drop(server);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_server_may_say_its_address_in_its_log_or_be_found_there() {
        let server = spawn("echo on ws://127.0.0.1:1/ >&2; exec sleep 100").unwrap();
        assert_eq!(server.url, "ws://127.0.0.1:1/");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let run = |script: &str, address| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script]);
            Server::spawn(command, None, Ready::Listens(address))
        };
        assert_eq!(run("exec sleep 100", address).unwrap().url, format!("ws://{address}/"));
        drop(listener);
        let error = run("echo no port >&2; exit 1", address).unwrap_err();
        assert!(error.contains("ended before") && error.contains("no port"), "{error}");
    }

    #[test]
    fn a_server_that_fails_shows_its_log() {
        let error = spawn("echo cannot bind >&2; exit 1").unwrap_err();
        assert!(error.contains("ended before") && error.contains("cannot bind"), "{error}");
    }

    #[test]
    fn panics_are_counted_and_a_few_lines_kept() {
        let mut kept = Kept::default();
        for line in 0..LOG_LINES_MAX {
            kept.keep(format!("thread 'worker-{line}' (7) panicked at src/hub.rs:1:2:"));
        }
        kept.keep("a client said panicked".to_owned());
        assert_eq!((kept.panics, kept.lines.len()), (LOG_LINES_MAX as u64, LOG_LINES_MAX));
        assert!(kept.lines[0].contains("worker-1"), "the oldest has gone");
    }

    #[test]
    fn settings_are_variables() {
        assert_eq!(variable("outbox.write_deadline_ms"), "TIDEWIRE_OUTBOX_WRITE_DEADLINE_MS");
    }

    #[test]
    fn a_missing_binary_is_named() {
        let error = Launch::find_binary(Some(Path::new("/nonexistent/tidewire"))).unwrap_err();
        assert!(error.contains("/nonexistent/tidewire"));
    }
}
