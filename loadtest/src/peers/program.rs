//! Other servers: how they are started, from a file of one JSON object a line, which a script writes after it has installed
//! them. Starts processes; measures nothing.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;

use clap::ValueEnum as _;
use serde::Deserialize;

use crate::dialect::Dialect;
use crate::result::Skipped;
use crate::server::{Ready, Server};

/// What a command and a configuration say for the file with the configuration, and for free ports.
const CONFIG: &str = "{config}";
const PORT: &str = "PORT";
const SPARE_PORT: &str = "SPARE_PORT";

/// One that can be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    /// What results call it.
    pub name: String,
    /// What it speaks.
    pub dialect: Dialect,
    /// As it says itself.
    pub version: Option<String>,
    /// What configuration this is.
    pub note: Option<String>,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// A template of its configuration.
    pub config: Option<PathBuf>,
}

/// A line of the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    #[serde(default)]
    dialect: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    note: String,
    #[serde(default)]
    command: Vec<String>,
    config: Option<PathBuf>,
    /// It is left out, and why.
    skipped: Option<String>,
}

/// Reads the file: programs, and what is left out.
pub(crate) fn parse(text: &str) -> Result<Vec<Result<Program, Skipped>>, String> {
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    lines.map(|(line, number)| read(line).map_err(|why| format!("line {number}: {why}"))).collect()
}

fn read(line: &str) -> Result<Result<Program, Skipped>, String> {
    let Entry { name, dialect, version, note, command, config, skipped } =
        serde_json::from_str(line).map_err(|error| error.to_string())?;
    if let Some(why) = skipped {
        return Ok(Err(Skipped { what: name, why }));
    }
    let dialect = Dialect::from_str(&dialect, false)
        .map_err(|_| format!("{name}: there is no dialect {dialect:?}; use raw, bare, nats or mqtt"))?;
    if command.is_empty() {
        return Err(format!("{name}: \"command\" is empty; give the program and its arguments"));
    }
    let some = |text: String| (!text.is_empty()).then_some(text);
    Ok(Ok(Program { name, dialect, version: some(version), note: some(note), command, config }))
}

impl Program {
    /// Starts it, bound to the CPU, and waits until it listens.
    pub(crate) fn start(&self, cpu: usize) -> Result<Server, String> {
        let failed = |why: String| format!("{}: {why}", self.name);
        let mut ready = Ready::SaysUrl;
        let mut command = self.command.clone();
        if let Some(template) = &self.config {
            let text = fs::read_to_string(template)
                .map_err(|error| failed(format!("{}: {error}", template.display())))?;
            let (port, spare) = free_ports().map_err(|error| failed(error.to_string()))?;
            let (text, takes_port) = fill(&text, port.port(), spare.port());
            if takes_port {
                ready = Ready::Listens(port);
            }
            let path =
                std::env::temp_dir().join(format!("loadtest-{}-{}.conf", std::process::id(), self.name));
            fs::write(&path, text).map_err(|error| failed(format!("{}: {error}", path.display())))?;
            for argument in &mut command {
                *argument = argument.replace(CONFIG, &path.display().to_string());
            }
        }
        let [program, arguments @ ..] = command.as_slice() else {
            return Err(failed("it has no command".to_owned()));
        };
        let mut command = Command::new(program);
        command.args(arguments);
        Server::spawn(command, Some(cpu), ready).map_err(failed)
    }
}

/// Two ports that nobody uses now, for programs that cannot choose one themselves.
fn free_ports() -> std::io::Result<(SocketAddr, SocketAddr)> {
    let (one, other) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    Ok((one.local_addr()?, other.local_addr()?))
}

/// Puts ports in their places in the lines that are no comment; whether the first one was asked for.
fn fill(template: &str, port: u16, spare: u16) -> (String, bool) {
    let mut takes_port = false;
    let mut text = String::with_capacity(template.len());
    for line in template.lines() {
        for (index, word) in line.split(' ').enumerate() {
            if index > 0 {
                text.push(' ');
            }
            match word {
                SPARE_PORT => text.push_str(&spare.to_string()),
                PORT => {
                    takes_port = true;
                    text.push_str(&port.to_string());
                }
                other => text.push_str(other),
            }
        }
        text.push('\n');
    }
    (text, takes_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_programs_or_what_is_left_out() {
        let text = r#"{"name":"x","dialect":"raw","version":"","note":"n","command":["a","b"]}

            {"name":"y","skipped":"no y here"}"#;
        let entries = parse(text).unwrap();
        let [Ok(program), Err(skipped)] = entries.as_slice() else { panic!("one of each") };
        assert_eq!((program.name.as_str(), program.dialect, &program.version), ("x", Dialect::Raw, &None));
        assert_eq!(
            (program.note.as_deref(), program.command.as_slice()),
            (Some("n"), &["a".to_owned(), "b".to_owned()][..])
        );
        assert_eq!((skipped.what.as_str(), skipped.why.as_str()), ("y", "no y here"));
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("{", "line 1"),
            (r#"{"name":"x","dialect":"latin","command":["a"]}"#, "latin"),
            (r#"{"name":"x","dialect":"raw"}"#, "command"),
            (r#"{"name":"x","colour":"red"}"#, "colour"),
        ];
        for (text, expected) in cases {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn ports_are_filled_in() {
        assert_eq!(
            fill("listener PORT 1\nPORTS SPARE_PORT\n", 7, 8),
            ("listener 7 1\nPORTS 8\n".to_owned(), true)
        );
        assert_eq!(fill("port: -1\n", 7, 8), ("port: -1\n".to_owned(), false));
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let program = Program {
            name: "x".to_owned(),
            dialect: Dialect::Raw,
            version: None,
            note: None,
            command: vec!["/nonexistent/x".to_owned()],
            config: None,
        };
        let error = program.start(0).unwrap_err();
        assert!(error.contains("x: cannot start it"), "{error}");
    }
}
