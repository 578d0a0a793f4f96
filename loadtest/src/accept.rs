//! Connections that are opened and dropped as fast as the server takes them: so many wait for its answer at a time. A
//! connection counts when its WebSocket handshake is answered; with TLS that is the second one. It is then dropped with a
//! reset, which leaves no socket in TIME_WAIT: thousands a second would otherwise run out of port numbers.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::churn::{Churned, FAILURES_SHOWN_MAX};
use crate::clock::{Clock, nanos};
use crate::fleet::Times;
use crate::measure::{Counters, histogram, window_of};
use crate::poll::Poll;
use crate::run::{INTERRUPTED, Live, OnProgress, Outcome, Phase, Progress, Target};
use crate::scenario::Scenario;
use crate::snapshot::Snapshot;
use crate::stages::ServerStages;
use crate::ws::{Opening, ROOM_BYTES, SETUP_TIMEOUT};

/// How often the progress is shown and an interruption is looked for.
const TICK_NS: u64 = 100_000_000;

/// After a failure, so that a server that refuses everything is not called without a pause.
const AFTER_FAILURE: Duration = Duration::from_millis(10);

/// One that waits for its answer.
struct Caller {
    opening: Opening,
    since_ns: u64,
}

/// Opens and drops until the scenario's time is over.
pub(crate) fn run(
    scenario: &Scenario,
    target: &Target,
    in_flight: usize,
    (clock, start_ns): (Clock, u64),
    interrupted: &AtomicBool,
    on_progress: OnProgress<'_>,
) -> Result<Outcome, String> {
    let subprotocol = target.dialect.subprotocol();
    let endpoint = target.dialect.endpoint_to_open(&target.endpoint);
    let failed = |error: std::io::Error| format!("the generator failed: {error}");
    let mut poll = Poll::new().map_err(failed)?;
    let times = Times::new(scenario, start_ns);
    let (counters, mut snapshots) = (Counters::default(), Vec::new());
    let mut callers: Vec<Option<Caller>> = (0..in_flight).map(|_| None).collect();
    let mut churned = Churned { to_subscribed: histogram(), failed: 0, failures: Vec::new() };
    let mut buffer = vec![0; ROOM_BYTES];
    let mut shown_ns = 0;
    loop {
        let now_ns = clock.now_ns();
        while let Some(&due_ns) = times.boundaries.get(snapshots.len()).filter(|&&due_ns| due_ns <= now_ns) {
            snapshots.push(Snapshot::take(due_ns, target.server_pid, clock, &counters));
        }
        if snapshots.len() == times.boundaries.len() {
            break;
        }
        if interrupted.load(Ordering::Relaxed) {
            return Err(INTERRUPTED.to_owned());
        }
        if now_ns - shown_ns >= TICK_NS {
            shown_ns = now_ns;
            let at = Duration::from_nanos(now_ns.saturating_sub(times.span.start_ns));
            let p99_ns = churned.to_subscribed.value_at_quantile(0.99);
            let live = Some(Live { p99_ns, ..Live::default() });
            on_progress(&Progress { at, what: &scenario.label(0), live });
        }
        for (token, caller) in callers.iter_mut().enumerate() {
            if caller.as_ref().is_some_and(|it| now_ns - it.since_ns > nanos(SETUP_TIMEOUT)) {
                *caller = None;
                churned.fail("the server did not answer in time".to_owned());
            }
            if caller.is_none() {
                let since_ns = clock.now_ns();
                match Opening::begin(&endpoint, subprotocol) {
                    Ok(opening) => {
                        poll.add(&opening.stream, token).map_err(failed)?;
                        *caller = Some(Caller { opening, since_ns });
                    }
                    Err(why) => {
                        churned.fail(why.to_string());
                        std::thread::park_timeout(AFTER_FAILURE);
                        break;
                    }
                }
            }
        }
        for at in 0..poll.wait(Duration::from_nanos(TICK_NS)).map_err(failed)? {
            let slot = &mut callers[poll.token(at)];
            let Some(caller) = slot else { continue };
            let answer = caller.opening.advance(&mut buffer);
            let done_ns = clock.now_ns();
            match answer {
                Ok(false) => continue,
                Ok(true) => {
                    if window_of(&times.windows, done_ns).is_some() {
                        churned
                            .to_subscribed
                            .saturating_record(done_ns.saturating_sub(caller.since_ns).max(1));
                    }
                }
                Err(why) => churned.fail(why.to_string()),
            }
            // Closing the socket takes it out of the poll.
            *slot = None;
        }
    }
    let phases = times.windows.iter().enumerate().filter_map(|(index, window)| {
        let within = |it: &&Snapshot| (window.from_ns..=window.to_ns).contains(&it.due_ns);
        let (first, last) = (snapshots.iter().find(within)?, snapshots.iter().rfind(within)?);
        Some(Phase {
            label: scenario.label(index),
            window: *window,
            messages: 0,
            arrived: 0,
            announced: 0,
            latency: histogram(),
            lateness: histogram(),
            ages: BTreeMap::new(),
            age_of: BTreeMap::new(),
            stages: ServerStages::default(),
            used: last.since(first),
            seconds: Vec::new(),
            interval_latencies: Vec::new(),
        })
    });
    Ok(Outcome {
        scenario: scenario.clone(),
        phases: phases.collect(),
        churned: Some(churned),
        ..Outcome::default()
    })
}

impl Churned {
    fn fail(&mut self, why: String) {
        self.failed += 1;
        if self.failures.len() < FAILURES_SHOWN_MAX {
            self.failures.push(why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fault, serve, serve_tls};
    use crate::scenario::named;
    use crate::ws::Endpoint;

    fn outcome(endpoint: Endpoint) -> Outcome {
        let scenario = Scenario {
            warmup_s: Duration::ZERO,
            duration_s: Duration::from_millis(200),
            ..named("accept").unwrap()
        };
        let target = Target::new(endpoint);
        let clock = Clock::new();
        run(&scenario, &target, 4, (clock, clock.now_ns()), &AtomicBool::new(false), &mut |_| ()).unwrap()
    }

    #[test]
    fn connections_are_counted() {
        for endpoint in [Endpoint::parse(&serve(Fault::Sound)).unwrap(), serve_tls(Fault::Sound)] {
            let outcome = outcome(endpoint);
            let visits = outcome.churned.unwrap();
            assert!(visits.to_subscribed.len() > 4 && visits.failed == 0, "{:?}", visits.failures);
            assert_eq!(outcome.phases.len(), 1);
        }
    }

    #[test]
    fn refusals_are_counted() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let visits = outcome(Endpoint::parse(&format!("ws://{closed}/ws")).unwrap()).churned.unwrap();
        assert!(
            visits.to_subscribed.is_empty() && visits.failed > 1 && visits.failures[0].contains("refused")
        );
    }
}
