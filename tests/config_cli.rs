//! The configuration as an operator meets it: the real binary, its exit code and what it prints.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The exit code of a wrong configuration: `EX_USAGE`.
const USAGE: i32 = 64;

/// The binary with no environment but `variables`.
fn command(arguments: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidewire"));
    command.args(arguments).env_clear().envs(variables.iter().copied()).stdin(Stdio::null());
    command
}

fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    command(arguments, variables).output().expect("the binary starts")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the output is UTF-8")
}

/// A file with `toml` in a directory that lives as long as the guard.
fn file(toml: &str) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("tidewire.toml");
    std::fs::write(&path, toml).expect("the file is written");
    (directory, path)
}

fn name(path: &Path) -> &str {
    path.to_str().expect("the temporary directory is UTF-8")
}

/// Asserts that the run was refused with exactly these lines on standard error.
fn assert_refused(output: &Output, lines: &[String]) {
    assert_eq!(text(&output.stderr).lines().collect::<Vec<_>>(), *lines);
    assert_eq!(text(&output.stdout), "");
    assert_eq!(output.status.code(), Some(USAGE));
}

#[test]
fn a_good_file_is_ok() {
    let (_directory, path) = file("workers = 1\n[batch]\nwindow_ms = 5\n");
    // A check is about the file alone.
    let output = run(&["config", "--check", name(&path)], &[("TIDEWIRE_WORKERS", "none")]);
    assert_eq!(text(&output.stdout), format!("{}: ok\n", path.display()));
    assert_eq!(text(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn every_mistake_is_reported_at_once_with_its_line() {
    let (_directory, path) =
        file("workers = 0\n\n[server]\nping_intervall_ms = 5\nhandshake_timeout_ms = 1\n");
    let output = run(&["config", "--check", name(&path)], &[]);
    let path = path.display();
    assert_refused(
        &output,
        &[
            format!("tidewire: {path}:1: workers = 0: give a whole number from 1 to 1024 (threads)"),
            format!(
                "tidewire: {path}:4: server.ping_intervall_ms: unknown key; the nearest is server.ping_interval_ms"
            ),
            format!(
                "tidewire: {path}:5: server.handshake_timeout_ms = 1: give at least 5000, since a request head cannot end \
                 before it begins; with server.first_byte_timeout_ms = 5000 (default)"
            ),
        ],
    );
}

#[test]
fn serve_refuses_mistakes_of_every_layer() {
    let (_directory, path) = file("enable_echo = 1\n");
    let by_flag: &[&str] = &["--config", name(&path), "--workers", "-1", "--set", "listen=here"];
    let by_variable: &[&str] = &by_flag[2..];
    let with_serve: Vec<_> = std::iter::once("serve").chain(by_flag.iter().copied()).collect();
    for arguments in [by_flag, by_variable, &with_serve] {
        let output = run(arguments, &[("TIDEWIRE_CONFIG", name(&path)), ("TIDEWIRE_WORKER", "2")]);
        assert_refused(
            &output,
            &[
                format!("tidewire: {}:1: enable_echo = 1: give true or false", path.display()),
                "tidewire: environment: TIDEWIRE_WORKER: unknown variable; the nearest is TIDEWIRE_WORKERS"
                    .to_owned(),
                "tidewire: flags: --workers = \"-1\": give a whole number from 1 to 1024 (threads)".to_owned(),
                "tidewire: flags: --set listen = \"here\": give an IP address and a port, such as \"127.0.0.1:9400\" or \
                 \"[::]:9400\""
                    .to_owned(),
            ],
        );
    }
}

#[test]
fn a_missing_or_unnamed_file_is_refused() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let absent = directory.path().join("absent.toml");
    for arguments in [["config", "--check"], ["serve", "--config"]] {
        let output = run(&[&arguments[..], &[name(&absent)]].concat(), &[]);
        let start = format!("tidewire: {}: the file cannot be read: ", absent.display());
        assert!(text(&output.stderr).starts_with(&start), "{}", text(&output.stderr));
        assert_eq!(text(&output.stderr).lines().count(), 1);
        assert_eq!(output.status.code(), Some(USAGE));
    }
    assert_refused(
        &run(&[], &[("TIDEWIRE_CONFIG", "")]),
        &["tidewire: environment: TIDEWIRE_CONFIG = \"\": name a file, or leave it out".to_owned()],
    );
}

#[test]
fn the_default_file_passes_the_check() {
    let printed = run(&["config", "--print-default"], &[]);
    assert_eq!(printed.status.code(), Some(0));
    assert_eq!(text(&printed.stderr), "");
    for line in ["listen = \"127.0.0.1:9400\"", "[server]", "ping_interval_ms = 25000"] {
        assert!(text(&printed.stdout).lines().any(|printed| printed == line), "{line}");
    }
    let (_directory, path) = file(text(&printed.stdout));
    let checked = run(&["config", "--check", name(&path)], &[]);
    assert_eq!(text(&checked.stdout), format!("{}: ok\n", path.display()));
}

#[test]
fn the_reference_in_the_docs_is_the_printed_one() {
    let printed = run(&["config", "--print-reference"], &[]);
    let committed = include_str!("../docs/CONFIGURATION.md");
    assert_eq!(
        text(&printed.stdout),
        committed,
        "run `tidewire config --print-reference > docs/CONFIGURATION.md`"
    );
}

#[test]
fn wrong_command_lines_have_the_exit_code_of_usage_and_help_has_none() {
    for arguments in [&["config"][..], &["--no-such-flag"], &["no-such-command"], &["--listen"]] {
        let output = run(arguments, &[]);
        assert_eq!(output.status.code(), Some(USAGE), "{arguments:?}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{arguments:?}");
    }
    for arguments in [&["--help"][..], &["--version"], &["serve", "--help"]] {
        let output = run(arguments, &[]);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(output.stderr.is_empty() && !output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let output =
        command(&["config", "--print-default"], &[]).stdout(writer).output().expect("the binary starts");
    assert_eq!(text(&output.stderr), "");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_port_in_use_is_one_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    for arguments in [
        vec!["serve", "--listen", &address],
        vec!["serve", "--listen", "127.0.0.1:0", "--set", &format!("admin.listen={address}")],
    ] {
        let output = run(&arguments, &[]);
        let told = text(&output.stderr);
        assert!(told.starts_with(&format!("tidewire: cannot listen on {address}: ")), "{told}");
        assert_eq!((told.lines().count(), output.status.code()), (1, Some(1)), "{told}");
    }
}
