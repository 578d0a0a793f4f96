//! Connections that come, subscribe and leave, by a schedule, beside a stream that is measured. Half of them say goodbye
//! with a close frame, half just go, as browsers do when a tab is closed.

use std::num::NonZeroU64;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::clock::Clock;
use crate::measure::histogram;
use crate::pacer::Pacer;
use crate::subscribers::{Options, Subscriber};
use crate::ws::{Endpoint, READ_BUFFER_BYTES};

/// Failures that are kept to be shown.
pub(crate) const FAILURES_SHOWN_MAX: usize = 3;

/// What the visitors saw.
#[derive(Debug)]
pub(crate) struct Churned {
    /// Schedule to `subscribed`, of every visit that worked.
    pub to_subscribed: Histogram<u64>,
    /// Visits that did not work.
    pub failed: u64,
    /// Why, of the first ones.
    pub failures: Vec<String>,
}

/// Visits until `end_ns`, or until `stop` is disconnected.
pub(crate) fn visit(
    endpoint: &Endpoint,
    channel: &str,
    options: &Options,
    clock: Clock,
    (start_ns, end_ns): (u64, u64),
    per_s: NonZeroU64,
    stop: &Receiver<()>,
) -> Churned {
    let mut churned = Churned { to_subscribed: histogram(), failed: 0, failures: Vec::new() };
    let mut pacer = Pacer::new(start_ns, end_ns, per_s);
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    let mut polite = false;
    while let Some(due_ns) = pacer.next_due() {
        let now_ns = clock.now_ns();
        if due_ns > now_ns {
            match stop.recv_timeout(Duration::from_nanos(due_ns - now_ns)) {
                Err(RecvTimeoutError::Timeout) => continue,
                Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        pacer.pop_due(now_ns);
        polite = !polite;
        let visit = Subscriber::open(endpoint, channel, options, &mut buffer).and_then(|visitor| {
            let subscribed_ns = clock.now_ns();
            if polite {
                visitor.leave()?;
            }
            Ok(subscribed_ns)
        });
        match visit {
            Ok(subscribed_ns) => {
                churned.to_subscribed.saturating_record(subscribed_ns.saturating_sub(due_ns).max(1))
            }
            Err(why) => {
                churned.failed += 1;
                if churned.failures.len() < FAILURES_SHOWN_MAX {
                    churned.failures.push(why.to_string());
                }
            }
        }
    }
    churned
}
