//! What the commands share with the world: lines for a terminal, signals, and the runtime that they run on.

use std::ffi::OsString;
use std::fmt;
use std::fmt::Write as _;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use tokio::sync::watch;

/// Text from a peer as it may be shown: what is not printable (control characters, escape sequences, marks that turn the
/// direction of writing) is spelled as `\u{..}`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Escaped<'t>(pub(super) &'t str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '"' | '\'' | '\\' => f.write_char(character)?,
                _ => write!(f, "{}", character.escape_debug())?,
            }
        }
        Ok(())
    }
}

/// Appends `value` as one line of JSON, with everything outside printable characters as `\uXXXX`: JSON itself escapes
/// only the first 32, and a terminal obeys more.
pub(super) fn push_json(line: &mut String, value: &impl serde::Serialize) -> serde_json::Result<()> {
    push_printable(line, &serde_json::to_string(value)?);
    Ok(())
}

/// The same over several lines, as people read it.
pub(super) fn push_json_pretty(lines: &mut String, value: &impl serde::Serialize) -> serde_json::Result<()> {
    push_printable(lines, &serde_json::to_string_pretty(value)?);
    Ok(())
}

fn push_printable(line: &mut String, json: &str) {
    for character in json.chars() {
        match character {
            // A new line stands between members only: within a text it is spelled.
            '"' | '\'' | '\\' | '\n' => line.push(character),
            _ if character.escape_debug().len() == 1 => line.push(character),
            _ => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    // Writing to a String cannot fail.
                    let _ = write!(line, "\\u{unit:04x}");
                }
            }
        }
    }
    line.push('\n');
}

/// The time of day, UTC, of an instant in nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimeOfDay(pub(super) u64);

impl fmt::Display for TimeOfDay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0 / 1_000_000;
        let (seconds, minutes, hours) = (ms / 1_000, ms / 60_000, ms / 3_600_000);
        write!(f, "{:02}:{:02}:{:02}.{:03}", hours % 24, minutes % 60, seconds % 60, ms % 1_000)
    }
}

/// From one instant to another in milliseconds; negative where two clocks disagree.
pub(super) fn millis_between(from_ns: u64, to_ns: u64) -> f64 {
    let ms = Duration::from_nanos(to_ns.abs_diff(from_ns)).as_secs_f64() * 1e3;
    if to_ns < from_ns { -ms } else { ms }
}

/// Says when the command should end. Every clone hears of it, and it stays said.
#[derive(Clone, Debug)]
pub(super) struct Stop(watch::Receiver<bool>);

impl Stop {
    /// A stop, and the end that says so: by sending `true`, or by being dropped.
    pub(super) fn new() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    /// Waits for it. Cancel-safe.
    pub(super) async fn wait(&mut self) {
        let _ = self.0.wait_for(|stopped| *stopped).await;
    }

    /// A stop at Ctrl-C or, on Unix, SIGTERM.
    fn at_signals() -> io::Result<Self> {
        let (sender, stop) = Self::new();
        #[cfg(unix)]
        let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::spawn(async move {
            #[cfg(unix)]
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminated.recv() => {}
            }
            #[cfg(not(unix))]
            let _ = tokio::signal::ctrl_c().await;
            let _ = sender.send(true);
        });
        Ok(stop)
    }
}

/// Looks a variable up.
pub(super) type Variable = fn(&str) -> Option<OsString>;

/// Where a command writes, when it ends, and its luck: all that a test replaces.
pub(super) struct Shell<O> {
    /// Standard output.
    pub(super) out: O,
    /// Standard error. What cannot be written there is lost: there is no better place for it.
    pub(super) log: Box<dyn io::Write + Send>,
    /// When to end.
    pub(super) stop: Stop,
    /// From 0 up to 1, for the backoff.
    pub(super) random: fn() -> f64,
    /// The environment, by a variable's name.
    pub(super) variable: Variable,
}

impl<O> Shell<O> {
    /// A line on standard error.
    pub(super) fn log(&mut self, line: impl fmt::Display) {
        // One write for a line, so that two processes do not mix theirs.
        let _ = self.log.write_all(format!("{line}\n").as_bytes());
    }
}

/// Runs a command on a runtime of its own, with the process's streams and signals.
pub(super) fn run<F>(command: impl FnOnce(Shell<tokio::io::Stdout>) -> F) -> ExitCode
where
    F: Future<Output = ExitCode>,
{
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(async {
        match Stop::at_signals() {
            Ok(stop) => {
                let (out, log) = (tokio::io::stdout(), Box::new(io::stderr()));
                let variable = |name: &str| std::env::var_os(name);
                command(Shell { out, log, stop, random: fastrand::f64, variable }).await
            }
            Err(error) => {
                eprintln!("error: cannot listen for signals: {error}");
                ExitCode::FAILURE
            }
        }
    });
    // A read of standard input cannot be cancelled, and a write to a stopped terminal may never return.
    runtime.shutdown_background();
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_spelled_out() {
        let rows = [
            ("robot.7.imu", "robot.7.imu"),
            ("caf\u{e9} \u{6c34}", "caf\u{e9} \u{6c34}"),
            ("say \"hi\" \\ 'there'", "say \"hi\" \\ 'there'"),
            ("\u{1b}[31mred", "\\u{1b}[31mred"),
            ("a\r\nb\t\0\u{7f}", "a\\r\\nb\\t\\0\\u{7f}"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("\u{202e}abc\u{2066}", "\\u{202e}abc\\u{2066}"),
            ("\u{2028}\u{feff}", "\\u{2028}\\u{feff}"),
        ];
        for (text, shown) in rows {
            assert_eq!(Escaped(text).to_string(), shown);
        }
    }

    #[test]
    fn json_lines_are_printable_and_still_json() {
        let text = "\u{1b}[31m \u{9b} \u{202e} \u{e0001} \"q\" \\ caf\u{e9}\n";
        let mut line = String::new();
        push_json(&mut line, &text).unwrap();
        let printable = |c: char| matches!(c, '"' | '\\') || c.escape_debug().len() == 1;
        assert!(line.strip_suffix('\n').unwrap().chars().all(printable), "{line}");
        assert_eq!(serde_json::from_str::<String>(&line).unwrap(), text);
        let mut lines = String::new();
        push_json_pretty(&mut lines, &[text, "b"]).unwrap();
        assert_eq!(lines.lines().count(), 4, "{lines}");
        assert!(lines.lines().all(|line| line.chars().all(printable)), "{lines}");
    }

    #[test]
    fn times_are_shown() {
        let rows = [
            (0, "00:00:00.000"),
            (1_763_864_091_123_456_789, "02:14:51.123"),
            (86_399_999_999_999, "23:59:59.999"),
            (u64::MAX, "23:34:33.709"),
        ];
        for (ns, shown) in rows {
            assert_eq!(TimeOfDay(ns).to_string(), shown);
        }
    }

    #[test]
    fn differences_have_a_sign() {
        let rows = [(1_000_000, 3_500_000, "2.5"), (3_500_000, 1_000_000, "-2.5"), (7, 7, "0.0")];
        for (from, to, shown) in rows {
            assert_eq!(format!("{:.1}", millis_between(from, to)), shown);
        }
    }
}
