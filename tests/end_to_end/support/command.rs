//! `tidewire sub` and `tidewire pub` as processes of their own, to be stopped and told to go on.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};

use serde_json::Value;

use super::DEADLINE;

/// Lines that wait for the test. More, and the process waits for its output, as it would for a pipe.
const LINES_MAX: usize = 1 << 16;

/// See the module's page; killed when it is dropped.
pub(crate) struct Command {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<Value>,
}

impl Command {
    /// Starts `tidewire` with these arguments and the address of the server.
    pub(crate) fn start(arguments: &[&str], address: SocketAddr) -> Self {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tidewire"));
        command.args(arguments).args(["--url", &format!("ws://{address}/ws")]);
        command.env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let (sender, lines) = sync_channel(LINES_MAX);
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let parsed = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if sender.send(parsed).is_err() {
                    return;
                }
            }
        });
        let input = child.stdin.take();
        Self { child, input, lines }
    }

    /// The next line of its output.
    pub(crate) fn line(&self) -> Value {
        self.lines.recv_timeout(DEADLINE).expect("a line comes")
    }

    /// The next line of this type; those before are passed over.
    pub(crate) fn line_of(&self, kind: &str) -> Value {
        loop {
            let line = self.line();
            if line["type"] == kind {
                return line;
            }
        }
    }

    /// Writes a line to its input.
    pub(crate) fn say(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let status = std::process::Command::new("kill").args(["-s", name, &id]).status().unwrap();
        assert!(status.success(), "kill -s {name} {id}");
    }
}

impl Drop for Command {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
