//! The rules of this repository that a program can check. Never starts a server and needs nothing but the sources and git.
//!
//! Each rule is a function from text to findings, so that a test beside it shows that it finds what it is for. A rule that
//! cannot look (no git, no document, no table) fails: it does not pass unseen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use tidewire::close::{CloseReason, Retry};
use tidewire::metrics::TlsFailure;
use tidewire::wire::control::ErrorCode;

mod code;
mod documents;
mod ladder;

/// Which file may use which, lowest rung first: a file uses only what stands on a lower rung.
///
/// A name is a file of `src/` without its suffix. `wire/*` is `wire.rs` and all below `wire/`, as one noun: they may use each
/// other, as may names joined by `|`. Two entries on one rung may not. `NAME/tests.rs` belongs to its name. A new file needs
/// a decision here.
const LADDER: &[&[&str]] = &[
    &["bucket", "clock", "close", "pattern/*", "peer", "readiness"],
    &["config/*"],
    &["auth/*", "proxy", "wire/*"],
    &["metrics/*", "presence", "reading"],
    &["history/*"],
    &["durable"],
    &[
        "admission/*",
        "broker/*",
        "hub/batch",
        "hub/crossing",
        "hub/directory",
        "hub/overload",
        "keepalive",
        "outbox/*",
        "session/*",
        "tls/*",
    ],
    &["hub/channel"],
    &["hub/router"],
    &["hub/acks"],
    // Seven files of one struct: the data half, the control half, who may do it, other servers' streams, who is there, what it
    // replays, and what it tells.
    &["hub|hub/access|hub/membership|hub/mirror|hub/presence|hub/replay|hub/report"],
    &["worker/*", "host/*", "system"],
    &["inbound", "outbound"],
    &["connection"],
    &["http/*"],
    &["cluster/*", "publisher"],
    &["server/*"],
    &["client/*"],
    &["cli/*"],
    &["lib", "main"],
];

/// What a file may use at the most, where that is less than the ladder allows.
const ONLY: &[(&str, &[&str])] = &[
    // The client is what others would write against the public contract: it may not know how the server works.
    ("client/*", &["wire/*", "close", "config/*"]),
];

/// What a reader relies on: every file that these name exists.
const DOCUMENTS: &[&str] = &[
    "README.md",
    "CONTRIBUTING.md",
    "docs/ARCHITECTURE.md",
    "docs/PROTOCOL.md",
    "docs/SCALING.md",
    "docs/TLS.md",
    "docs/SECURITY.md",
];

/// Most bytes of a file in git: more is data, and data has another place.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What must not be in the sources, with the reason.
const FORBIDDEN: &[(&str, &str)] = &[
    ("unbounded_channel", "no queue without a bound"),
    ("unbounded(", "no queue without a bound"),
    ("mpsc::channel()", "the channel of std has no bound; use sync_channel"),
    ("dbg!", "left over"),
    ("todo!", "left over"),
    ("unimplemented!", "left over"),
];

/// What must not be in the tests, beside [`FORBIDDEN`].
const FORBIDDEN_IN_TESTS: &[(&str, &str)] = &[
    ("sleep(", "wait for the event, or use virtual time"),
    ("#[ignore", "a test that does not run is no test"),
];

#[test]
fn every_source_file_uses_only_lower_rungs() {
    let files: BTreeMap<String, String> =
        sources().into_iter().filter_map(|(path, text)| Some((module_of(&path)?, text))).collect();
    let modules: BTreeSet<String> = files.keys().cloned().collect();
    none(
        files
            .iter()
            .flat_map(|(module, text)| ladder::findings(module, &code::without_comments(text), &modules)),
    );
}

#[test]
fn every_source_file_says_what_it_is() {
    none(sources().into_iter().filter(|(_, text)| !text.starts_with("//! ")).map(|(path, _)| {
        format!("{path}: the first line is no `//! `: say what the file is for, and what may never be in it")
    }));
}

#[test]
fn nothing_forbidden_is_in_the_sources() {
    none(sources().iter().flat_map(|(path, text)| {
        let text = code::without_comments(text);
        let mut findings = code::forbidden(path, &text, FORBIDDEN);
        if path.starts_with("tests/") {
            findings.extend(code::forbidden(path, &text, FORBIDDEN_IN_TESTS));
        }
        findings
    }));
}

#[test]
fn no_file_in_git_is_large() {
    none(tracked().into_iter().filter_map(|path| {
        let bytes = fs::symlink_metadata(root().join(&path)).expect("a file of git").len();
        (bytes > FILE_BYTES_MAX).then(|| format!("{path}: {bytes} bytes, at most {FILE_BYTES_MAX}"))
    }));
}

#[test]
fn documents_name_files_that_exist() {
    let files: BTreeSet<String> = tracked().into_iter().collect();
    none(DOCUMENTS.iter().flat_map(|document| {
        let names = documents::paths_in(&read(document));
        let missing: Vec<_> = names.into_iter().filter(|name| !documents::exists(name, &files)).collect();
        missing.into_iter().map(move |name| format!("{document}: {name} does not exist"))
    }));
}

#[test]
fn close_codes_are_documented() {
    let expected: Vec<_> = CloseReason::ALL
        .into_iter()
        .map(|reason| [reason.code().to_string(), reason.label().to_owned(), retry_text(reason.retry())])
        .collect();
    let documented = documents::table_with(&read("docs/PROTOCOL.md"), &["1000", "peer_closed"], 3);
    assert_eq!(documented, expected, "the close codes of docs/PROTOCOL.md are not CloseReason::ALL");
}

#[test]
fn error_codes_are_documented() {
    let expected: Vec<_> = ErrorCode::ALL.into_iter().map(|code| [code.label()]).collect();
    let documented = documents::table_with(&read("docs/PROTOCOL.md"), &[ErrorCode::BadRequest.label()], 1);
    assert_eq!(documented, expected, "the error codes of docs/PROTOCOL.md are not ErrorCode::ALL");
}

#[test]
fn failures_of_tls_handshakes_are_documented() {
    let expected: Vec<_> = TlsFailure::ALL.into_iter().map(|reason| [reason.label()]).collect();
    let documented = documents::table_with(&read("docs/TLS.md"), &[TlsFailure::Timeout.label()], 1);
    assert_eq!(documented, expected, "the reasons of docs/TLS.md are not TlsFailure::ALL");
}

#[test]
fn promises_name_tests_that_exist() {
    let tests: BTreeSet<String> = sources()
        .iter()
        .flat_map(|(path, text)| documents::tests_in(path, &code::without_comments(text)))
        .collect();
    none(["docs/SECURITY.md", "tests/BAD_INPUT.md"].into_iter().flat_map(|document| {
        let named = documents::tests_named(&read(document));
        assert!(named.len() > 10, "{document} names {} tests", named.len());
        let missing: Vec<_> = named.into_iter().filter(|name| !tests.contains(name)).collect();
        missing.into_iter().map(move |name| format!("{document}: there is no test {name}"))
    }));
}

/// How the documents write a retry advice.
fn retry_text(retry: Retry) -> String {
    match retry {
        Retry::Backoff => "backoff".to_owned(),
        Retry::After(delay) => format!("after {} s", delay.as_secs()),
        Retry::Never => "never".to_owned(),
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The files of the repository: those in git, and new ones that git does not ignore.
fn tracked() -> Vec<String> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git is needed to know the files");
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let listing = String::from_utf8(output.stdout).expect("paths are UTF-8");
    // One that was just deleted is still listed.
    let exists = |path: &&str| fs::symlink_metadata(root().join(path)).is_ok();
    listing.split_terminator('\0').filter(exists).map(str::to_owned).collect()
}

/// All Rust files with their text.
fn sources() -> BTreeMap<String, String> {
    let sources: BTreeMap<_, _> = tracked()
        .into_iter()
        .filter(|path| path.ends_with(".rs"))
        .map(|path| (path.clone(), read(&path)))
        .collect();
    assert!(sources.contains_key("src/lib.rs"), "git does not list the sources");
    sources
}

/// `src/hub/batch.rs` as `hub/batch`; nothing for a file of another folder.
fn module_of(path: &str) -> Option<String> {
    Some(path.strip_prefix("src/")?.strip_suffix(".rs")?.to_owned())
}

/// Fails with the findings, one a line.
fn none(findings: impl IntoIterator<Item = String>) {
    let findings: Vec<String> = findings.into_iter().collect();
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}
