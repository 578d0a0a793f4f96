//! Runs a scenario with several processes of this program: starts them, tells them when to begin, and adds up what they
//! saw. Measures nothing itself.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::clock::{Clock, nanos};
use crate::merge;
use crate::result::Repetition;
use crate::run::{INTERRUPTED, OnProgress, Progress, READY, Target};
use crate::scenario::{Scenario, Share, file};
use crate::session;

/// From the last process's set-up to the first message.
const LEAD_IN: Duration = Duration::from_millis(200);

/// How often it looks whether they have ended.
const TICK: Duration = Duration::from_millis(100);

/// A process of a shared run. Ended when dropped.
struct Part {
    child: Child,
    stdin: Option<ChildStdin>,
    results: PathBuf,
}

impl Drop for Part {
    fn drop(&mut self) {
        // It has ended already unless something failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Files of a shared run. Removed when dropped.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs the scenario once with `count` processes.
pub(crate) fn run(
    scenario: &Scenario,
    target: &Target,
    count: usize,
    server_cpus: usize,
    interrupted: &AtomicBool,
    on_progress: OnProgress<'_>,
) -> Result<Repetition, String> {
    // Here, too, before any is started.
    Target { share: Share { index: 0, of: count }, ..target.clone() }.check(scenario)?;
    let failed = |error: std::io::Error| format!("cannot run several processes: {error}");
    let run_id = format!("{:016x}", fastrand::u64(..));
    let folder = Folder(std::env::temp_dir().join(format!("loadtest-{run_id}")));
    std::fs::create_dir(&folder.0).map_err(failed)?;
    let plan = folder.0.join("scenario.toml");
    session::save(&plan, file::print(scenario)?.as_bytes())?;
    on_progress(&Progress {
        at: Duration::ZERO,
        what: &format!("{}: connecting", scenario.name),
        live: None,
    });
    let mut parts = Vec::with_capacity(count);
    for index in 0..count {
        let results = folder.0.join(format!("{index}.json"));
        let mut command = Command::new(std::env::current_exe().map_err(failed)?);
        command.arg("run").arg(&plan).args(["--url", &target.endpoint.url(), "--run-id", &run_id]);
        command.args(target.others.iter().flat_map(|other| ["--url".to_owned(), other.url()]));
        command.args(["--share", &format!("{}/{count}", index + 1), "--start-told"]);
        command.args(["--reader-threads", &target.reader_threads.to_string()]);
        command.arg("--json").arg(&results);
        command.arg("--hlog").arg(folder.0.join(format!("{index}.hlog")));
        // One of them looks at the server's process: twice the figures would not be twice the use.
        if let (0, Some(pid)) = (index, target.server_pid) {
            command.args(["--server-pid", &pid.to_string()]);
        }
        if target.estimates_clock {
            command.arg("--estimate-clock");
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(failed)?;
        let stdin = child.stdin.take();
        parts.push(Part { child, stdin, results });
    }
    for (index, part) in parts.iter_mut().enumerate() {
        let mut line = String::new();
        if let Some(stdout) = part.child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line).map_err(failed)?;
        }
        if line.trim() != READY {
            let why = if interrupted.load(Ordering::Relaxed) { INTERRUPTED } else { "its set-up failed" };
            return Err(format!("process {} of {count}: {why}", index + 1));
        }
    }
    let clock = Clock::new();
    let start_ns = clock.now_ns() + nanos(LEAD_IN);
    for part in &mut parts {
        if let Some(mut stdin) = part.stdin.take() {
            writeln!(stdin, "{start_ns}").map_err(failed)?;
        }
    }
    wait_for(&mut parts, scenario, (clock, start_ns), interrupted, on_progress)?;
    let mut repetitions = Vec::with_capacity(count);
    for part in &parts {
        let mut file = session::load_json(&part.results)?;
        let repetition = file.results.pop().and_then(|mut result| result.repetitions.pop());
        repetitions.push(repetition.ok_or_else(|| format!("{}: it has no result", part.results.display()))?);
    }
    merge::merge_repetitions(&repetitions.iter().collect::<Vec<_>>(), server_cpus)
}

fn wait_for(
    parts: &mut [Part],
    scenario: &Scenario,
    (clock, start_ns): (Clock, u64),
    interrupted: &AtomicBool,
    on_progress: OnProgress<'_>,
) -> Result<(), String> {
    /// A part that was not sound, which the merged result will say.
    const UNSOUND: i32 = crate::EXIT_UNSOUND as i32;
    let mut left: Vec<usize> = (0..parts.len()).collect();
    while !left.is_empty() {
        if interrupted.load(Ordering::Relaxed) {
            return Err(INTERRUPTED.to_owned());
        }
        let at = Duration::from_nanos(clock.now_ns().saturating_sub(start_ns));
        let what = format!("{}: {} processes", scenario.name, parts.len());
        on_progress(&Progress { at, what: &what, live: None });
        thread::park_timeout(TICK);
        let mut problem = None;
        left.retain(|&index| match parts[index].child.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) if matches!(status.code(), Some(0 | UNSOUND)) => false,
            ended => {
                let ended = ended.map_or_else(
                    |error| error.to_string(),
                    |it| it.map(|it| it.to_string()).unwrap_or_default(),
                );
                problem.get_or_insert((index, ended));
                false
            }
        });
        if let Some((index, ended)) = problem {
            return Err(format!("process {} of {}: {ended}", index + 1, parts.len()));
        }
    }
    Ok(())
}
