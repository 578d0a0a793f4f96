//! Sees a run through to the end of its last window: looks at the machine at the edges of intervals, reads the server's
//! histograms, stops the server where the scenario wants that, shows the progress. It takes notes and draws no conclusion.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::clock::{Clock, nanos};
use crate::fleet::{Running, Times};
use crate::measure::{Counters, Interval, histogram};
use crate::proc::{self, own_pid};
use crate::run::{INTERRUPTED, Live, OnProgress, Progress, Target};
use crate::scenario::Scenario;
use crate::server;
use crate::snapshot::Snapshot;
use crate::stages::Page;

/// How often the progress is shown and an interruption is looked for.
const TICK: Duration = Duration::from_millis(100);

/// How long before a window the server's own histograms are read, where there is a warm-up: reading costs it a moment.
const BEFORE_WINDOW: Duration = Duration::from_millis(100);

/// What happens at an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// The server's own histograms are read, for the start of a phase.
    StagesBefore,
    /// A window begins.
    WindowFrom,
    /// An interval ends.
    Boundary,
    /// The server's process is stopped.
    Stop,
    /// And goes on.
    Continue,
    /// A window ends.
    WindowTo,
}

/// All of a run, in order.
fn plan(scenario: &Scenario, times: &Times) -> Vec<(u64, Event)> {
    let mut plan: Vec<(u64, Event)> =
        times.boundaries.iter().map(|&at_ns| (at_ns, Event::Boundary)).collect();
    for (index, window) in times.windows.iter().enumerate() {
        let (phase_ns, _) = times.phase(index);
        let before_ns = window.from_ns.saturating_sub(nanos(BEFORE_WINDOW)).max(phase_ns);
        plan.extend([
            (before_ns, Event::StagesBefore),
            (window.from_ns, Event::WindowFrom),
            (window.to_ns, Event::WindowTo),
        ]);
        if let Some(stop_ms) = scenario.stop_server_ms {
            let middle_ns = window.from_ns.midpoint(window.to_ns);
            let again_ns = middle_ns.saturating_add(stop_ms.get().saturating_mul(1_000_000));
            plan.extend([(middle_ns, Event::Stop), (again_ns.min(window.to_ns), Event::Continue)]);
        }
    }
    // At one instant: an interval ends before a window does, and a window ends before the next begins.
    let rank = |event: Event| match event {
        Event::Continue => 0,
        Event::Boundary => 1,
        Event::WindowTo => 2,
        Event::StagesBefore => 3,
        Event::WindowFrom => 4,
        Event::Stop => 5,
    };
    plan.sort_by_key(|&(at_ns, event)| (at_ns, rank(event)));
    plan
}

/// What was seen of a run from outside.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    /// From the readers, so far.
    pub intervals: Vec<Interval>,
    /// One for each boundary.
    pub snapshots: Vec<Snapshot>,
    /// The server's histograms, before and after each window.
    pub pages: Vec<JoinHandle<Page>>,
}

/// Sees the run through to the end of its last window. What was seen until a failure is there too.
pub(crate) fn watch(
    running: &Running,
    scenario: &Scenario,
    target: &Target,
    interrupted: &AtomicBool,
    on_progress: OnProgress<'_>,
) -> (Result<(), String>, Notes) {
    let mut watch = Watch {
        scenario,
        target,
        interrupted,
        on_progress,
        counters: &running.shared.counters,
        clock: running.shared.clock,
        notes: Notes::default(),
        live: Live::default(),
        so_far: histogram(),
    };
    let watched = watch.watch(running);
    (watched, watch.notes)
}

struct Watch<'a> {
    scenario: &'a Scenario,
    target: &'a Target,
    interrupted: &'a AtomicBool,
    on_progress: OnProgress<'a>,
    counters: &'a Counters,
    clock: Clock,
    notes: Notes,
    live: Live,
    so_far: Histogram<u64>,
}

impl Watch<'_> {
    fn watch(&mut self, running: &Running) -> Result<(), String> {
        let mut phase = 0;
        let mut stopped: Option<server::Stopped> = None;
        for (at_ns, event) in plan(self.scenario, &running.times) {
            let measured = running.times.windows[phase].from_ns < at_ns;
            let label = self.scenario.label(phase);
            let what = if measured { label } else { format!("{label}: warm-up") };
            self.wait_until(at_ns, running, &what)?;
            match event {
                Event::StagesBefore => self.fetch_stages(),
                Event::WindowFrom => {
                    self.target.server_pid.into_iter().chain([own_pid()]).for_each(proc::reset_peak);
                    self.so_far = histogram();
                }
                Event::Boundary => {
                    let pid = self.target.server_pid;
                    self.notes.snapshots.push(Snapshot::take(at_ns, pid, self.clock, self.counters));
                    self.look();
                }
                Event::Stop => {
                    stopped = Some(server::Stopped::stop(self.target.server_pid)?);
                }
                Event::Continue => stopped = None,
                Event::WindowTo => {
                    self.fetch_stages();
                    phase = (phase + 1).min(running.times.windows.len() - 1);
                }
            }
        }
        drop(stopped);
        Ok(())
    }

    /// Fetches the server's histograms beside everything else, which does not wait for a busy server.
    fn fetch_stages(&mut self) {
        let (endpoint, dialect) = (self.target.endpoint.clone(), self.target.dialect);
        self.notes.pages.push(thread::spawn(move || Page::of(&endpoint, dialect)));
    }

    /// Takes the figures of the interval that has just ended.
    fn look(&mut self) {
        let [.., before, now] = self.notes.snapshots.as_slice() else { return };
        let seconds = (now.due_ns - before.due_ns).max(1) as f64 / 1e9;
        self.live.messages_per_s = (now.messages - before.messages) as f64 / seconds;
        self.live.announced = now.announced;
    }

    fn keep(&mut self, interval: Interval) {
        if interval.others.is_none() {
            let seconds = interval.to_ns.saturating_sub(interval.from_ns).max(1) as f64 / 1e9;
            self.live.deliveries_per_s = interval.arrived as f64 / seconds;
            // Same bounds, so adding cannot fail.
            let _ = self.so_far.add(&interval.latency);
            self.live.p99_ns = self.so_far.value_at_quantile(0.99);
        }
        self.notes.intervals.push(interval);
    }

    fn wait_until(&mut self, until_ns: u64, running: &Running, what: &str) -> Result<(), String> {
        loop {
            let now_ns = self.clock.now_ns();
            let at = Duration::from_nanos(now_ns.saturating_sub(running.times.span.start_ns));
            let live = (!self.notes.intervals.is_empty()).then_some(self.live);
            (self.on_progress)(&Progress { at, what, live });
            if self.interrupted.load(Ordering::Relaxed) {
                return Err(INTERRUPTED.to_owned());
            }
            if now_ns >= until_ns {
                return Ok(());
            }
            let pause = Duration::from_nanos(until_ns - now_ns).min(TICK);
            match running.intervals.recv_timeout(pause) {
                Ok(interval) => self.keep(interval),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err("the threads that read subscribers have ended".to_owned());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::named;

    #[test]
    fn the_plan_is_in_order() {
        let scenario = named("stop").unwrap();
        let times = Times::new(&scenario, 0);
        let s = |seconds: f64| nanos(Duration::from_secs_f64(seconds));
        let plan = plan(&scenario, &times);
        let expected = [
            (0.9, Event::StagesBefore),
            (1.0, Event::Boundary),
            (1.0, Event::WindowFrom),
            (2.0, Event::Boundary),
            (3.0, Event::Boundary),
            (3.0, Event::Stop),
            (3.2, Event::Continue),
            (4.0, Event::Boundary),
            (5.0, Event::Boundary),
            (5.0, Event::WindowTo),
        ];
        assert_eq!(plan, expected.map(|(at_s, event)| (s(at_s), event)));
    }
}
