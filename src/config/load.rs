//! Layers to configuration: flags over environment over file over defaults. Every mistake is collected, each with where
//! it is, the value and the remedy; only a configuration without one comes out. Never prints, never exits.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::file;
use super::problem::{Place, nearest, nearest_key, printable, quoted, shown, unknown};
use super::relation::{RELATIONS, Relation};
use super::rule::{RULES, Rule};
use super::setting::{Given, VARIABLE_PREFIX};
use super::{Config, KEYS, Key, SECTIONS};

pub use super::problem::{Problem, Problems};

/// The variable that names the file, where `--config` does not.
pub const FILE_VARIABLE: &str = "TIDEWIRE_CONFIG";

/// The variable that holds the token of the client commands.
pub const TOKEN_VARIABLE: &str = "TIDEWIRE_TOKEN";

/// A setting given on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flag {
    /// A flag of its own, such as `--listen`.
    Named {
        /// The flag as it is typed.
        flag: &'static str,
        /// The full name of its key.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// `--set KEY=VALUE`: what follows `--set`.
    Set(String),
}

/// The configuration of this process: `flags` over its environment over the file over the defaults. The file is the one
/// given, else the one that `TIDEWIRE_CONFIG` names, else none.
///
/// # Errors
/// Every mistake in any layer.
pub fn from_process(file: Option<&Path>, flags: &[Flag]) -> Result<Config, Problems> {
    let mut layers = Layers::default();
    let named = std::env::var_os(FILE_VARIABLE).map(PathBuf::from);
    match file.or(named.as_deref()) {
        Some(path) if path.as_os_str().is_empty() => {
            let (place, subject) = match file {
                Some(_) => (Place::Flags, "--config"),
                None => (Place::Environment, FILE_VARIABLE),
            };
            let reason = "name a file, or leave it out".to_owned();
            layers.report(place, subject.to_owned(), Some(quoted("")), reason);
        }
        Some(path) => layers.file(path),
        None => {}
    }
    layers.environment(std::env::vars_os());
    layers.flags(flags);
    layers.finish()
}

/// The configuration that the file at `path` gives over the defaults.
///
/// # Errors
/// Every mistake in the file.
pub fn from_file(path: &Path) -> Result<Config, Problems> {
    let mut layers = Layers::default();
    layers.file(path);
    layers.finish()
}

/// Layers of settings: each layer goes over those before it. Begins with the defaults.
#[derive(Debug)]
pub struct Layers {
    config: Config,
    /// Where the value of each of [`KEYS`] comes from.
    origins: Vec<Origin>,
    problems: Vec<Problem>,
}

#[derive(Clone, Debug)]
enum Origin {
    Default,
    Given {
        place: Place,
        subject: String,
    },
    /// What was given was refused and reported.
    Refused,
}

impl Default for Layers {
    fn default() -> Self {
        Self { config: Config::default(), origins: vec![Origin::Default; KEYS.len()], problems: Vec::new() }
    }
}

impl Layers {
    /// Adds the TOML file at `path`. A file that cannot be read is a problem of its own.
    pub fn file(&mut self, path: &Path) {
        let name = printable(&path.to_string_lossy());
        match file::read(path) {
            Ok((text, mode)) => {
                self.toml(&name, &text);
                if mode & 0o077 != 0 {
                    self.report_open_secrets(&name, mode);
                }
            }
            Err(error) => {
                let reason = format!("the file cannot be read: {error}");
                self.report(Place::File(name), String::new(), None, reason);
            }
        }
    }

    /// Adds the TOML document `text`, called `name` in messages.
    pub fn toml(&mut self, name: &str, text: &str) {
        let earlier = self.problems.len();
        Document { name, text, layers: self }.read();
        // The parser hands out keys in the order of the alphabet.
        self.problems[earlier..].sort_by_key(|problem| problem.place.line());
    }

    /// Adds the variables that begin with `TIDEWIRE_`; others are not looked at.
    pub fn environment(&mut self, variables: impl IntoIterator<Item = (OsString, OsString)>) {
        let mut variables: Vec<_> = variables
            .into_iter()
            .map(|(name, value)| (name.to_string_lossy().into_owned(), value))
            .filter(|(name, _)| {
                name.starts_with(VARIABLE_PREFIX) && name != FILE_VARIABLE && name != TOKEN_VARIABLE
            })
            .collect();
        variables.sort();
        for (name, value) in variables {
            let Some(index) = KEYS.iter().position(|key| key.variable() == name) else {
                let known = KEYS.iter().map(Key::variable).chain([FILE_VARIABLE.to_owned()]);
                let reason = unknown("variable", nearest(&name, known));
                self.report(Place::Environment, printable(&name), None, reason);
                continue;
            };
            // What is not UTF-8 gets a replacement character, and no key takes one.
            let value = value.to_string_lossy();
            self.offer(index, Place::Environment, name, quoted(&value), Given::Text(&value));
        }
    }

    /// Adds what the command line says. A key given twice is a mistake, since one of the two would be ignored.
    pub fn flags(&mut self, flags: &[Flag]) {
        let mut seen = HashSet::new();
        for flag in flags {
            let (subject, path, value) = match flag {
                Flag::Named { flag, key, value } => ((*flag).to_owned(), *key, value.as_str()),
                Flag::Set(text) => match text.split_once('=') {
                    Some((key, value)) => (format!("--set {}", shown(key)), key, value),
                    None => {
                        // What stands behind the key may be a secret.
                        let key = |char: char| char.is_ascii_alphanumeric() || matches!(char, '_' | '.');
                        let subject = format!(
                            "--set {}",
                            shown(&text[..text.find(|char| !key(char)).unwrap_or(text.len())])
                        );
                        let reason = "write --set KEY=VALUE".to_owned();
                        self.report(Place::Flags, subject, None, reason);
                        continue;
                    }
                },
            };
            let Some(index) = KEYS.iter().position(|key| key.path() == path) else {
                self.report(Place::Flags, subject, None, unknown("key", nearest_key(path)));
                continue;
            };
            if !seen.insert(index) {
                let reason = format!("{path} is given twice; keep one");
                let value = (!KEYS[index].hides(Given::Text(value))).then(|| quoted(value));
                self.report(Place::Flags, subject, value, reason);
                continue;
            }
            self.offer(index, Place::Flags, subject, quoted(value), Given::Text(value));
        }
    }

    /// The configuration of all layers.
    ///
    /// # Errors
    /// Every mistake in any layer, then every broken rule between settings that are sound one by one.
    pub fn finish(mut self) -> Result<Config, Problems> {
        for relation in RELATIONS.iter().filter(|relation| !relation.holds(&self.config)) {
            if let Some(problem) = self.broken(relation) {
                self.problems.push(problem);
            }
        }
        for rule in RULES.iter().filter(|rule| (rule.broken)(&self.config)) {
            if let Some(problem) = self.broken_rule(rule) {
                self.problems.push(problem);
            }
        }
        if self.problems.is_empty() { Ok(self.config) } else { Err(Problems(self.problems)) }
    }

    /// Takes a value for a key, or reports it.
    fn offer(&mut self, index: usize, place: Place, subject: String, value: String, given: Given<'_>) {
        let key = &KEYS[index];
        let hides = key.hides(given);
        self.origins[index] = if hides && place == Place::Flags {
            let remedy = format!(
                "every user of the machine can read the command line; set {} or a file instead",
                key.variable()
            );
            self.report(place, format!("--set {}", key.path()), None, remedy);
            Origin::Refused
        } else if (key.set)(&mut self.config, given) {
            Origin::Given { place, subject }
        } else {
            let value = (!hides).then_some(value);
            self.report(place, subject, value, format!("give {}", key.expected()));
            Origin::Refused
        };
    }

    /// Others than its owner can read the file `name`: there may be no secret in it.
    fn report_open_secrets(&mut self, name: &str, mode: u32) {
        for (index, key) in KEYS.iter().enumerate() {
            if !key.holds_secret(&self.config) {
                continue;
            }
            if let Origin::Given { place: place @ Place::Line(file, _), subject } = &self.origins[index]
                && file == name
                && !key.is_default(&self.config)
            {
                let reason = format!(
                    "a secret in a file that others can read (mode {:03o}); chmod 600 the file",
                    mode & 0o777
                );
                let problem = Problem { place: place.clone(), subject: subject.clone(), value: None, reason };
                self.problems.push(problem);
            }
        }
    }

    /// The message of a broken relation, at the place of the first of its settings that was given. `None` if one was
    /// refused: its value is not what the operator meant, so the relation may hold once it is corrected.
    fn broken(&self, relation: &Relation) -> Option<Problem> {
        let mut named = None;
        let mut others = Vec::new();
        for path in std::iter::once(relation.key).chain(relation.of.iter().copied()) {
            let index = KEYS.iter().position(|key| key.path() == path)?;
            let value = KEYS[index].value(&self.config);
            match &self.origins[index] {
                Origin::Refused => return None,
                Origin::Given { place, subject } if named.is_none() => {
                    named = Some((path, place.clone(), subject.clone(), value));
                }
                Origin::Given { place, .. } => others.push(format!("{path} = {value} ({place})")),
                Origin::Default => others.push(format!("{path} = {value} (default)")),
            }
        }
        let (path, place, subject, value) = named?;
        let least = (relation.least)(&self.config);
        let demand = if path == relation.key {
            format!("give at least {least}")
        } else {
            format!("{} must then be at least {least}", relation.key)
        };
        let reason = format!("{demand}, since {}; with {}", relation.since, others.join(", "));
        Some(Problem { place, subject, value: Some(value), reason })
    }

    /// The message of a broken rule, at the place of its setting. `None` if a value of it was refused, as in
    /// [`Layers::broken`].
    fn broken_rule(&self, rule: &Rule) -> Option<Problem> {
        let origin = |path: &str| {
            let index = KEYS.iter().position(|key| key.path() == path)?;
            Some((&KEYS[index], &self.origins[index]))
        };
        if rule.of.iter().any(|path| matches!(origin(path), Some((_, Origin::Refused)))) {
            return None;
        }
        let (key, Origin::Given { place, subject }) = origin(rule.key)? else { return None };
        Some(Problem {
            place: place.clone(),
            subject: subject.clone(),
            value: (!key.is_secret()).then(|| shown(&key.value(&self.config))),
            reason: rule.remedy.to_owned(),
        })
    }

    fn report(&mut self, place: Place, subject: String, value: Option<String>, reason: String) {
        self.problems.push(Problem { place, subject, value, reason });
    }
}

/// A TOML document on its way into the layers.
struct Document<'a> {
    name: &'a str,
    text: &'a str,
    layers: &'a mut Layers,
}

impl Document<'_> {
    fn read(&mut self) {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        // The parser goes on after a syntax error; what it makes of the line itself means nothing.
        let mut broken = HashSet::new();
        for error in &errors {
            let line = self.line(error.span().map_or(0, |span| span.start));
            broken.insert(line);
            self.report(line, String::new(), None, format!("not TOML: {}", printable(error.message())));
        }
        for (key, value) in table.get_ref() {
            match (SECTIONS.iter().find(|(section, _)| section == key.get_ref()), value.get_ref()) {
                (Some((section, _)), DeValue::Table(settings)) => {
                    for (key, value) in settings {
                        self.setting(Some(section), key, value, &broken);
                    }
                }
                (Some((section, _)), _) => {
                    let line = self.line(key.span().start);
                    if !broken.contains(&line) {
                        let reason = format!("a section; write [{section}] and its keys below");
                        // What is there instead may be the secret that was meant to be in it.
                        let secret = KEYS.iter().any(|key| key.is_secret() && key.section() == Some(section));
                        let value = (!secret).then(|| self.shown(value));
                        self.report(line, (*section).to_owned(), value, reason);
                    }
                }
                (None, _) => self.setting(None, key, value, &broken),
            }
        }
    }

    fn setting(
        &mut self,
        section: Option<&str>,
        key: &Spanned<impl AsRef<str>>,
        value: &Spanned<DeValue<'_>>,
        broken: &HashSet<usize>,
    ) {
        let line = self.line(key.span().start);
        if broken.contains(&line) || broken.contains(&self.line(value.span().start)) {
            return;
        }
        let name = key.get_ref().as_ref();
        let path = section.map_or_else(|| name.to_owned(), |section| format!("{section}.{name}"));
        let known = KEYS.iter().position(|key| key.section() == section && key.name() == name);
        if let Some(index) = known {
            let place = Place::Line(self.name.to_owned(), line);
            self.layers.offer(index, place, path, self.shown(value), Given::Toml(value.get_ref()));
        } else if section.is_none() && value.get_ref().is_table() {
            let sections = SECTIONS.iter().map(|(section, _)| (*section).to_owned());
            let nearest = nearest(name, sections).map(|section| format!("[{section}]"));
            self.report(line, format!("[{}]", shown(name)), None, unknown("section", nearest));
        } else {
            self.report(line, shown(&path), None, unknown("key", nearest_key(&path)));
        }
    }

    fn report(&mut self, line: usize, subject: String, value: Option<String>, reason: String) {
        self.layers.report(Place::Line(self.name.to_owned(), line), subject, value, reason);
    }

    /// The line, from 1, of a byte of the text.
    fn line(&self, offset: usize) -> usize {
        1 + self.text.bytes().take(offset).filter(|&byte| byte == b'\n').count()
    }

    /// A value as the file has it.
    fn shown(&self, value: &Spanned<DeValue<'_>>) -> String {
        match value.get_ref() {
            DeValue::Table(_) => "a table".to_owned(),
            _ => shown(self.text.get(value.span()).unwrap_or_default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::config::{LogFormat, default_file};

    fn layered(toml: &str, variables: &[(&str, &str)], flags: &[&str]) -> Result<Config, Problems> {
        let mut layers = Layers::default();
        layers.toml("t.toml", toml);
        layers.environment(variables.iter().map(|(name, value)| (name.into(), value.into())));
        layers.flags(&flags.iter().map(|text| Flag::Set((*text).to_owned())).collect::<Vec<_>>());
        layers.finish()
    }

    fn messages(toml: &str, variables: &[(&str, &str)], flags: &[&str]) -> Vec<String> {
        match layered(toml, variables, flags) {
            Ok(_) => Vec::new(),
            Err(problems) => problems.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn mistakes_in_the_file_are_reported_with_line_value_and_remedy() {
        const WORKERS: &str = "give a whole number from 1 to 1024 (threads)";
        const ADDRESS: &str = r#"give an IP address and a port, such as "127.0.0.1:9400" or "[::]:9400""#;
        const RATE: &str = "give a number from 0.01 to 1000 (samples/s)";
        const FILTER: &str = "give off, error, warn, info, debug or trace, or target=level, joined by commas: \
                              \"info,tidewire::hub=debug\"";
        const LIST: &str = "`tidewire config --print-default` lists what there is";
        let rows: &[(&str, &[String])] = &[
            ("", &[]),
            ("workers = 3\nlisten = '[::1]:0'\n[server]\nidle_timeout_ms = 0\n[batch]\nframe_bytes_max = 0x1_000", &[]),
            ("server.ping_interval_ms = 5\nbatch = { window_ms = 0 }", &[]),
            ("host_telemetry_hz = 5\nlog_filter = 'warn,tidewire::hub=trace'\nlog_format = 'json'", &[]),
            ("\n\nworkers = 0", &[format!("t.toml:3: workers = 0: {WORKERS}")]),
            ("workers = 1025", &[format!("t.toml:1: workers = 1025: {WORKERS}")]),
            ("workers = -1", &[format!("t.toml:1: workers = -1: {WORKERS}")]),
            ("workers = 2.0", &[format!("t.toml:1: workers = 2.0: {WORKERS}")]),
            ("workers = \"2\"", &[format!("t.toml:1: workers = \"2\": {WORKERS}")]),
            ("workers = 99999999999999999999", &[format!("t.toml:1: workers = 99999999999999999999: {WORKERS}")]),
            ("[workers]", &[format!("t.toml:1: workers = a table: {WORKERS}")]),
            ("enable_echo = 1", &["t.toml:1: enable_echo = 1: give true or false".to_owned()]),
            ("listen = 'localhost:9400'", &[format!("t.toml:1: listen = 'localhost:9400': {ADDRESS}")]),
            ("listen = 9400", &[format!("t.toml:1: listen = 9400: {ADDRESS}")]),
            ("log_format = \"jsn\"", &[r#"t.toml:1: log_format = "jsn": give "text" or "json""#.to_owned()]),
            ("log_filter = \"wran\"", &[format!("t.toml:1: log_filter = \"wran\": {FILTER}")]),
            ("log_filter = \"\u{202e}\"", &[format!("t.toml:1: log_filter = \"\\u{{202e}}\": {FILTER}")]),
            ("host_telemetry_hz = 0", &[format!("t.toml:1: host_telemetry_hz = 0: {RATE}")]),
            ("host_telemetry_hz = nan", &[format!("t.toml:1: host_telemetry_hz = nan: {RATE}")]),
            ("host_telemetry_hz = inf", &[format!("t.toml:1: host_telemetry_hz = inf: {RATE}")]),
            ("host_telemetry_hz = -1.0", &[format!("t.toml:1: host_telemetry_hz = -1.0: {RATE}")]),
            (
                "[server]\nping_interval_ms = \"25s\"",
                &["t.toml:2: server.ping_interval_ms = \"25s\": give a whole number from 1 to 604800000 (ms)"
                    .to_owned()],
            ),
            (
                "[outbox]\nnotsent_lowat_bytes = 0",
                &["t.toml:2: outbox.notsent_lowat_bytes = 0: give a whole number from 1 to 1073741824 (bytes)"
                    .to_owned()],
            ),
            (
                "[server]\nping_interval = 25",
                &["t.toml:2: server.ping_interval: unknown key; the nearest is server.ping_interval_ms".to_owned()],
            ),
            (
                "[server]\nping_intervall_ms = 25",
                &["t.toml:2: server.ping_intervall_ms: unknown key; the nearest is server.ping_interval_ms"
                    .to_owned()],
            ),
            (
                "ping_interval_ms = 25",
                &["t.toml:1: ping_interval_ms: unknown key; the nearest is server.ping_interval_ms".to_owned()],
            ),
            ("zzz = 'a secret'", &[format!("t.toml:1: zzz: unknown key; {LIST}")]),
            ("\"a\\nb\\u001b[31m\" = 1", &[format!("t.toml:1: a\\nb\\u{{1b}}[31m: unknown key; {LIST}")]),
            ("[server.deep]\na = 1", &[format!("t.toml:1: server.deep: unknown key; {LIST}")]),
            (
                "[servr]\nping_interval_ms = 25\nx = 2",
                &["t.toml:1: [servr]: unknown section; the nearest is [server]".to_owned()],
            ),
            ("server = 1", &["t.toml:1: server = 1: a section; write [server] and its keys below".to_owned()]),
            (
                "[[server]]\nclose_timeout_ms = 1",
                &["t.toml:1: server = [[server]]: a section; write [server] and its keys below".to_owned()],
            ),
            (
                "workers = 0\r\n[server]\r\nping_interval_ms = 0\r\n\r\n[batch]\r\nwindow_ms = 'a'",
                &[
                    format!("t.toml:1: workers = 0: {WORKERS}"),
                    "t.toml:3: server.ping_interval_ms = 0: give a whole number from 1 to 604800000 (ms)".to_owned(),
                    "t.toml:6: batch.window_ms = 'a': give a whole number from 0 to 604800000 (ms)".to_owned(),
                ],
            ),
        ];
        for (toml, expected) in rows {
            assert_eq!(messages(toml, &[], &[]), *expected, "{toml}");
        }
    }

    #[test]
    fn what_is_not_toml_is_reported_by_line_and_the_rest_is_still_checked() {
        let rows: &[(&str, &[&str])] = &[
            ("workers =\nenable_echo = 1", &["t.toml:1: not TOML: ", "t.toml:2: enable_echo = 1: "]),
            ("workers = 1\nworkers = 2", &["t.toml:2: not TOML: duplicate key"]),
            ("workers = 0\n[server", &["t.toml:1: workers = 0: ", "t.toml:2: not TOML: "]),
            ("log_filter = \"\u{1b}[31m\"", &["t.toml:1: not TOML: "]),
        ];
        for (toml, expected) in rows {
            let messages = messages(toml, &[], &[]);
            assert_eq!(messages.len(), expected.len(), "{messages:?}");
            for (message, start) in messages.iter().zip(*expected) {
                assert!(message.starts_with(start), "{message}");
            }
        }
    }

    #[test]
    fn mistakes_in_the_environment_and_in_flags_are_reported() {
        const WORKERS: &str = "give a whole number from 1 to 1024 (threads)";
        type Row<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], Vec<String>);
        let rows: &[Row<'_>] = &[
            (&[("TIDEWIRE_WORKERS", "2"), ("HOME", "x"), (FILE_VARIABLE, "x")], &["workers=0x10"], vec![]),
            (
                &[("TIDEWIRE_WORKERS", ""), ("TIDEWIRE_LISTEN", "a\nb")],
                &[],
                vec![
                    "environment: TIDEWIRE_LISTEN = \"a\\nb\": give an IP address and a port, such as \
                     \"127.0.0.1:9400\" or \"[::]:9400\""
                        .to_owned(),
                    format!("environment: TIDEWIRE_WORKERS = \"\": {WORKERS}"),
                ],
            ),
            (
                &[("TIDEWIRE_WORKER", "2"), ("TIDEWIRE_QQQ", "a secret")],
                &[],
                vec![
                    "environment: TIDEWIRE_QQQ: unknown variable; `tidewire config --print-default` lists what there is"
                        .to_owned(),
                    "environment: TIDEWIRE_WORKER: unknown variable; the nearest is TIDEWIRE_WORKERS".to_owned(),
                ],
            ),
            (
                &[],
                &["workers=two", "workres=2", "workers", "=", "listen=127.0.0.1:1", "listen=127.0.0.1:2"],
                vec![
                    format!("flags: --set workers = \"two\": {WORKERS}"),
                    "flags: --set workres: unknown key; the nearest is workers".to_owned(),
                    "flags: --set workers: write --set KEY=VALUE".to_owned(),
                    "flags: --set : unknown key; `tidewire config --print-default` lists what there is".to_owned(),
                    "flags: --set listen = \"127.0.0.1:2\": listen is given twice; keep one".to_owned(),
                ],
            ),
            // The rule between keys is not judged by a value that was refused.
            (
                &[("TIDEWIRE_BATCH_WINDOW_MS", "1000")],
                &["batch.window_max_ms=-1"],
                vec![
                    "flags: --set batch.window_max_ms = \"-1\": give a whole number from 0 to 604800000 (ms)"
                        .to_owned(),
                ],
            ),
        ];
        for (variables, flags, expected) in rows {
            assert_eq!(messages("", variables, flags), *expected);
        }
    }

    #[test]
    fn a_variable_that_is_not_utf8_is_a_mistake() {
        let mut layers = Layers::default();
        layers.environment([("TIDEWIRE_LOG_FILTER".into(), OsString::from_vec(vec![b'a', 0xff]))]);
        let problems = layers.finish().expect_err("the value is refused").to_string();
        assert!(
            problems.starts_with("environment: TIDEWIRE_LOG_FILTER = \"a\u{fffd}\": give "),
            "{problems}"
        );
    }

    #[test]
    fn rules_between_keys_are_checked() {
        let rows: &[(&str, &str)] = &[
            (
                "[server]\nhandshake_timeout_ms = 1000",
                "t.toml:2: server.handshake_timeout_ms = 1000: give at least 5000, since a request head cannot end before \
                 it begins; with server.first_byte_timeout_ms = 5000 (default)",
            ),
            (
                "[server]\nfirst_byte_timeout_ms = 10001",
                "t.toml:2: server.first_byte_timeout_ms = 10001: server.handshake_timeout_ms must then be at least 10001, \
                 since a request head cannot end before it begins; with server.handshake_timeout_ms = 10000 (default)",
            ),
            (
                "[channel]\nchannels_total_max = 9\nchannels_max = 10",
                "t.toml:2: channel.channels_total_max = 9: give at least 10, since a connection cannot have more channels \
                 than the server; with channel.channels_max = 10 (t.toml:3)",
            ),
            (
                "batch.window_max_ms = 9",
                "t.toml:1: batch.window_max_ms = 9: give at least 10, since overload widens the window and never narrows \
                 it; with batch.window_ms = 10 (default)",
            ),
            (
                "outbox.data_bytes_max = 656383",
                "t.toml:1: outbox.data_bytes_max = 656383: give at least 656384, since one frame can get that large in \
                 JSON, and must fit; with inbound.message_bytes_max = 65536 (default), inbound.message_samples_max = 4096 \
                 (default), batch.frame_bytes_max = 16384 (default), batch.frame_samples_max = 4096 (default)",
            ),
            ("outbox.data_bytes_max = 656384", ""),
            (
                "[channel]\nchannels_max = 10000",
                "t.toml:2: channel.channels_max = 10000: outbox.control_bytes_max must then be at least 5111024, since one \
                 answer can get that large, and must fit; with outbox.control_bytes_max = 1048576 (default), \
                 channel.channel_name_bytes_max = 255 (default)",
            ),
        ];
        for (toml, expected) in rows {
            assert_eq!(messages(toml, &[], &[]).join("\n"), *expected, "{toml}");
        }
    }

    #[test]
    fn rules_of_single_keys_are_checked() {
        const REMEDY: &str = "everybody who reaches this address could do everything; set auth.keys_file or auth.secret, or \
                              insecure_open = true";
        let rows = [
            ("listen = '0.0.0.0:9400'", format!("t.toml:1: listen = \"0.0.0.0:9400\": {REMEDY}")),
            ("listen = '[::]:9400'", format!("t.toml:1: listen = \"[::]:9400\": {REMEDY}")),
            ("listen = '127.1.2.3:9400'", String::new()),
            ("listen = '0.0.0.0:9400'\ninsecure_open = true", String::new()),
            ("auth.cookie = 'a'\nserver.origins = '*'", "t.toml:1: auth.cookie = \"a\": any page could use the cookies of \
                whoever visits it; list the pages in server.origins".to_owned()),
            ("admin.token = 'a token that nobody can send, at all'", "t.toml:1: admin.token: a token that no client can send \
                (RFC 6750); use ASCII letters, digits and - . _ ~ + / =".to_owned()),
            ("server.proxy_protocol = true", "t.toml:1: server.proxy_protocol = true: a PROXY header is believed from known \
                proxies alone; name them in server.trusted_proxies".to_owned()),
            ("server.proxy_protocol = true\nserver.trusted_proxies = '10.0.0.0/8'", String::new()),
            ("admin.listen = '0.0.0.0:9401'", "t.toml:1: admin.listen = \"0.0.0.0:9401\": everybody who reaches this address \
                could see everything; set admin.token, or keys for tokens with the right admin, or insecure_open = true".to_owned()),
            ("listen = '0.0.0.0:9400'\nauth.keys_file = 'keys.json'", String::new()),
            ("listen = '0.0.0.0:9400'\nauth.secret = 'a key that nobody guesses, at all'", String::new()),
        ];
        for (toml, expected) in rows {
            assert_eq!(messages(toml, &[], &[]).join("\n"), expected, "{toml}");
        }
    }

    #[test]
    fn secrets_are_not_shown_and_not_taken_from_open_files() {
        use std::os::unix::fs::PermissionsExt as _;
        let short = "shorter than it has to be";
        let slips = format!("auth.secret = '{short}'\nadmin = '{short}'");
        let flags: Vec<_> = ["auth.secret:", "admin.token "].map(|slip| format!("{slip}{short}")).into();
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        let problems = messages(&slips, &[("TIDEWIRE_ADMIN_TOKEN", short)], &flags);
        assert_eq!(problems.len(), 5, "{problems:?}");
        assert!(!problems.join("").contains(short), "{problems:?}");
        assert_eq!(messages("", &[(TOKEN_VARIABLE, short)], &[]), [""; 0], "it is for the client commands");

        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("t.toml");
        std::fs::write(&path, "[admin]\ntoken = 'a-key-that-nobody-guesses-at-all'\n").expect("written");
        for (mode, sound) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("the mode");
            let read = from_file(&path);
            assert_eq!(read.is_ok(), sound, "{mode:o}");
            if let Err(problems) = read {
                let expected = format!(
                    "{}:2: admin.token: a secret in a file that others can read (mode {mode:03o}); chmod 600 the file",
                    path.display()
                );
                assert_eq!(problems.to_string(), expected);
            }
        }
        std::fs::write(&path, default_file()).expect("written");
        assert_eq!(from_file(&path), Ok(Config::default()), "an empty secret is none");
    }

    #[test]
    fn an_address_with_a_password_is_a_secret_and_one_without_is_none() {
        use std::os::unix::fs::PermissionsExt as _;
        let (plain, secret) = ("redis://h:1", "redis://u:s3cret@h:1");
        let config = layered("", &[], &[&format!("broker.url={plain}")]).expect("it has no password");
        assert_eq!(config.broker.url.to_string(), plain);
        let config = layered("", &[("TIDEWIRE_BROKER_URL", secret)], &[]).expect("nobody else sees it");
        assert_eq!(config.broker.url.expose().expose(), secret);
        assert!(!format!("{config:?}").contains("s3cret"));
        let flag = Flag::Named { flag: "--broker", key: "broker.url", value: secret.to_owned() };
        for flags in [vec![flag.clone()], vec![flag.clone(), flag]] {
            let mut layers = Layers::default();
            layers.flags(&flags);
            let problems = layers.finish().expect_err("others would see it").to_string();
            assert!(problems.contains("TIDEWIRE_BROKER_URL") && !problems.contains("s3cret"), "{problems}");
        }
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("t.toml");
        for (url, mode, sound) in [(secret, 0o600, true), (secret, 0o644, false), (plain, 0o644, true)] {
            std::fs::write(&path, format!("broker.url = '{url}'\n")).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("the mode");
            let read = from_file(&path);
            assert_eq!(read.is_ok(), sound, "{url} {mode:o}");
            assert!(!read.err().is_some_and(|problems| problems.to_string().contains("s3cret")));
        }
        let problems = messages("[broker]\nprefix = 'a.*'\nca_file = 'c'", &[], &[]);
        assert_eq!(
            problems,
            [
                "t.toml:2: broker.prefix = \"a.*\": a prefix that a broker could read as more than a name; use ASCII letters, \
                 digits, _ and -, in tokens joined by dots",
                "t.toml:3: broker.ca_file = \"c\": needs broker.url, the broker that it is for",
            ]
        );
    }

    #[test]
    fn settings_that_go_together_are_checked() {
        let rows: &[(&str, &[&str], &str)] = &[
            ("tls.certificate_file = 'c'\ntls.key_file = 'k'", &[], ""),
            (
                "[tls]\ncertificate_file = 'c'",
                &[],
                "t.toml:2: tls.certificate_file = \"c\": needs tls.key_file, the private key that belongs to the certificate",
            ),
            ("[tls]\ncertificate_file = 'c'", &["tls.key_file=k"], ""),
            (
                "[tls]\ncertificate_file = 'c'\nkey_file = 'k'",
                &["tls.certificate_file="],
                "t.toml:3: tls.key_file = \"k\": needs tls.certificate_file, the certificate that belongs to the key",
            ),
            // What was refused may have been meant well.
            (
                "[tls]\ncertificate_file = 'c'\nkey_file = 3",
                &[],
                "t.toml:3: tls.key_file = 3: give the path of a file, or an empty text for none",
            ),
            (
                "[tls]\ncertificate_file = 'c'\nkey_file = 'k'",
                &["tls.self_signed_file=s"],
                "flags: --set tls.self_signed_file = \"s\": a trial certificate stands in for tls.certificate_file and \
                 tls.key_file; leave out one or the other",
            ),
            (
                "tls.client_ca_file = 'a'",
                &[],
                "t.toml:1: tls.client_ca_file = \"a\": needs TLS; set tls.certificate_file and tls.key_file, too",
            ),
            (
                "tls.client_certificate_required = true\ntls.self_signed_file = 's'",
                &[],
                "t.toml:1: tls.client_certificate_required = true: needs tls.client_ca_file, which names the CAs whose \
                 clients are let in",
            ),
        ];
        for (toml, flags, expected) in rows {
            assert_eq!(messages(toml, &[], flags).join("\n"), *expected, "{toml}");
        }
    }

    #[test]
    fn later_layers_win() {
        const FILE: &str = "[server]\nping_interval_ms = 1";
        const VARIABLE: &[(&str, &str)] = &[("TIDEWIRE_SERVER_PING_INTERVAL_MS", "2")];
        const FLAG: &[&str] = &["server.ping_interval_ms=3"];
        let rows = [
            ("", &[][..], &[][..], 25_000),
            (FILE, &[], &[], 1),
            (FILE, VARIABLE, &[], 2),
            (FILE, VARIABLE, FLAG, 3),
            ("", VARIABLE, FLAG, 3),
            (FILE, &[], FLAG, 3),
        ];
        for (file, variables, flags, expected) in rows {
            let config = layered(file, variables, flags).expect("every layer is sound");
            assert_eq!(config.server.ping_interval, Duration::from_millis(expected));
        }
    }

    /// Another value than the default, as TOML and as bare text.
    fn other_value(key: &Key) -> (String, String) {
        let default = key.value(&Config::default());
        let other = match DeValue::parse(&default).expect("a default is TOML").get_ref() {
            DeValue::Boolean(value) => (!value).to_string(),
            DeValue::Integer(value) => {
                (value.as_str().parse::<u64>().expect("a whole number") + 1).to_string()
            }
            DeValue::Float(value) => format!("{:?}", value.as_str().parse::<f64>().expect("a number") + 0.5),
            _ => {
                let text = match key.name().as_str() {
                    "listen" => "[::1]:1",
                    "log_format" => LogFormat::Json.label(),
                    "log_filter" => "warn,tidewire::hub=debug",
                    "trusted_proxies" => "10.0.0.0/8,2001:db8::1",
                    "origins" => "https://a.example,http://b.example:81",
                    "issuer" | "audience" | "cookie" | "certificate_rights" => "some-text",
                    "channels" => {
                        let text = "a.* off";
                        return (format!("[\"{text}\"]"), text.to_owned());
                    }
                    "dir" => "/var/lib/tidewire",
                    "url" => "redis://127.0.0.1:6379",
                    "prefix" => "some-text",
                    name if name.ends_with("_file") => "/etc/a b.pem",
                    _ if key.is_secret() => "a-key-that-nobody-guesses-at-all",
                    name => panic!("{name} needs another value for this test"),
                };
                return (format!("\"{text}\""), text.to_owned());
            }
        };
        (other.clone(), other)
    }

    /// What a key cannot be set without, as a file.
    fn companions(path: &str) -> &'static str {
        match path {
            "server.proxy_protocol" => "server.trusted_proxies = '10.0.0.0/8'\n",
            "broker.password_file" | "broker.credentials_file" | "broker.ca_file" => {
                "broker.url = 'redis://127.0.0.1:6379'\n"
            }
            "tls.certificate_file" => "tls.key_file = 'k'\n",
            "tls.key_file" => "tls.certificate_file = 'c'\n",
            "tls.client_ca_file" => "tls.self_signed_file = 's'\n",
            "tls.client_certificate_required" => "tls.self_signed_file = 's'\ntls.client_ca_file = 'a'\n",
            _ => "",
        }
    }

    #[test]
    fn every_key_can_be_set_in_three_ways() {
        for key in KEYS {
            let (toml, text) = other_value(key);
            let (path, variable) = (key.path(), key.variable());
            let with = companions(&path);
            let file = layered(&format!("{with}{path} = {toml}"), &[], &[]).expect("the file is sound");
            let environment = layered(with, &[(&variable, &text)], &[]).expect("the variable is sound");
            let flag = layered(with, &[], &[&format!("{path}={text}")]);
            assert_ne!(file, Config::default(), "{path}");
            assert_eq!(environment, file, "{path}");
            if key.is_secret() {
                let problems = flag.expect_err("others would see it").to_string();
                assert!(problems.contains(&variable) && !problems.contains(&text), "{problems}");
                assert_eq!(key.value(&file), "\"\"", "{path} is not shown");
                assert!(!format!("{file:?}").contains(&text), "{path} is not shown");
            } else {
                assert_eq!(flag.expect("the flag is sound"), file, "{path}");
                assert_eq!(key.value(&file), toml, "{path}");
            }
        }
    }

    #[test]
    fn the_default_file_is_the_default() {
        assert_eq!(layered(&default_file(), &[], &[]), Ok(Config::default()));
        for key in KEYS {
            let line = format!("{} = {}\n", key.name(), key.value(&Config::default()));
            assert!(default_file().contains(&line), "{line}");
        }
    }

    #[test]
    fn the_table_is_sound() {
        let paths: HashSet<_> = KEYS.iter().map(Key::path).collect();
        let variables: HashSet<_> = KEYS.iter().map(Key::variable).collect();
        assert_eq!(paths.len(), KEYS.len());
        assert_eq!(variables.len(), KEYS.len());
        assert!(!variables.contains(FILE_VARIABLE));
        for relation in RELATIONS {
            assert!(relation.holds(&Config::default()), "{}", relation.key);
            for key in std::iter::once(&relation.key).chain(relation.of) {
                assert!(paths.contains(*key), "{key}");
            }
        }
        for rule in RULES {
            assert!(!(rule.broken)(&Config::default()), "{}", rule.key);
            for key in std::iter::once(&rule.key).chain(rule.of) {
                assert!(paths.contains(*key), "{key}");
            }
        }
        for key in KEYS {
            assert!(!SECTIONS.iter().any(|(section, _)| key.section().is_none() && *section == key.name()));
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_a_mistake_beside_others() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let big = directory.path().join("big.toml");
        std::fs::write(&big, vec![b'\n'; usize::try_from(file::FILE_BYTES_MAX).expect("fits") + 1])
            .expect("written");
        let latin = directory.path().join("latin.toml");
        std::fs::write(&latin, b"# \xe9\n").expect("written");
        for path in [directory.path().to_owned(), directory.path().join("absent.toml"), big, latin] {
            let mut layers = Layers::default();
            layers.file(&path);
            layers.flags(&[Flag::Named { flag: "--workers", key: "workers", value: "0".to_owned() }]);
            let problems = layers.finish().expect_err("two mistakes").to_string();
            let lines: Vec<_> = problems.lines().collect();
            assert!(
                lines[0].starts_with(&format!("{}: the file cannot be read: ", path.display())),
                "{problems}"
            );
            assert_eq!(
                lines[1..],
                ["flags: --workers = \"0\": give a whole number from 1 to 1024 (threads)"]
            );
        }
    }

    proptest! {
        #[test]
        fn no_input_panics_or_breaks_a_line(
            toml in "([a-z_]{0,12}(\\.[a-z_]{0,8})?|\\[[a-z]{0,8}\\]|workers|\\PC{0,9}|.{0,4})( ?= ?(.{0,12}|[0-9.e_-]{0,9}))?\n?",
            name in "TIDEWIRE_(WORKERS|LISTEN|HOST_TELEMETRY_HZ|LOG_FILTER|.{0,9})",
            value in ".{0,20}",
            flag in "(workers|host_telemetry_hz|.{0,9})=?.{0,12}",
        ) {
            let mut layers = Layers::default();
            layers.toml("t.toml", &toml);
            layers.environment([(name.into(), value.into())]);
            layers.flags(&[Flag::Set(flag)]);
            if let Err(problems) = layers.finish() {
                for problem in problems.iter() {
                    prop_assert!(!problem.to_string().contains(char::is_control), "{problem}");
                }
            }
        }
    }
}
