//! The end of a run: waits for the publishers, the subscribers and everybody else, closes the books, and puts together what
//! each thread saw. Measures nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;

use hdrhistogram::Histogram;

use crate::books::Heads;
use crate::churn::Churned;
use crate::clock::{Clock, nanos};
use crate::fleet::{PANICKED, Running, Times};
use crate::ledger::Account;
use crate::measure::{Interval, histogram};
use crate::others::Others;
use crate::publishers::Published;
use crate::result::{AgeSecond, Second};
use crate::run::{Outcome, Phase};
use crate::scenario::Scenario;
use crate::snapshot::Snapshot;
use crate::stages::{Page, ServerStages};
use crate::subscribers::{QUIET, Readout};
use crate::watch::Notes;

/// Reasons of the same kind that are shown.
const REASONS_SHOWN_MAX: usize = 3;

/// Waits for the publishers, then for the subscribers to have everything, then for all threads. Where other processes
/// publish as well, `heads_of_all` says where their channels end.
pub(crate) fn finish(
    running: Running,
    abort: bool,
    notes: Notes,
    is_shared: bool,
    heads_of_all: impl FnOnce(Clock, u64) -> Result<Heads, String>,
) -> Result<Finished, String> {
    let Notes { mut intervals, snapshots, pages } = notes;
    let Running { shared, times, intervals: receiver, readers, publisher, others, visitors } = running;
    shared.abort.store(abort, Ordering::Relaxed);
    let failed = |error: std::io::Error| format!("the generator failed: {error}");
    let panicked = |_| PANICKED.to_owned();
    let published = publisher.join().map_err(panicked)?.map_err(failed)?;
    let mut heads = Ok(published.heads.clone());
    if is_shared && !abort {
        // What publishers here had to leave may be known nowhere else.
        heads = heads_of_all(shared.clock, times.span.end_ns + nanos(QUIET)).map(|all| {
            published.heads.iter().map(|(stream, head)| (stream.clone(), *head)).chain(all).collect()
        });
    }
    let problem = heads.as_ref().err().cloned();
    if problem.is_some() {
        shared.abort.store(true, Ordering::Relaxed);
    }
    // Set once, here.
    let _ = shared.heads.set(heads.unwrap_or_default());
    let mut readouts = Vec::with_capacity(readers.len());
    // Ends when every reader has: they hold the senders.
    intervals.extend(receiver.iter());
    for reader in readers {
        readouts.push(reader.join().map_err(panicked)?.map_err(failed)?);
    }
    let others = match others {
        Some(others) => others.join().map_err(panicked)?.map_err(failed)?,
        None => Others::default(),
    };
    let churned = match visitors {
        Some((stop, visitors)) => {
            drop(stop);
            Some(visitors.join().map_err(panicked)?)
        }
        None => None,
    };
    match problem {
        Some(problem) => Err(problem),
        None => {
            let stages = stages(pages);
            Ok(Finished { times, published, readouts, others, intervals, snapshots, stages, churned })
        }
    }
}

/// Everything has ended.
pub(crate) struct Finished {
    times: Times,
    published: Published,
    readouts: Vec<Readout>,
    others: Others,
    intervals: Vec<Interval>,
    snapshots: Vec<Snapshot>,
    stages: Vec<ServerStages>,
    churned: Option<Churned>,
}

impl Finished {
    /// Figures of each window, and the books of all.
    pub(crate) fn into_outcome(self, scenario: &Scenario) -> Result<Outcome, String> {
        let Self { times, published, readouts, others, intervals, snapshots, stages, churned } = self;
        let Published { sent, heads: _, returns, refused, refusals, ended: mut reasons } = published;
        let mut account = Account::default();
        let mut arrived = vec![0; times.windows.len()];
        for readout in readouts {
            account += readout.account;
            reasons.extend(readout.ended);
            for (sum, part) in arrived.iter_mut().zip(&readout.arrived) {
                *sum += part;
            }
        }
        reasons.extend(others.ended);
        let mut phases = Vec::with_capacity(times.windows.len());
        let parts = times.windows.iter().zip(sent).zip(arrived).zip(stages).enumerate();
        for (index, (((window, sent), arrived), stages)) in parts {
            let of_phase = || intervals.iter().filter(move |it| it.window == index);
            let latency = sum(of_phase().filter(|it| it.others.is_none()));
            let mut ages = BTreeMap::new();
            let mut age_of: BTreeMap<String, Vec<AgeSecond>> = BTreeMap::new();
            for interval in of_phase() {
                if let Some(others) = interval.others.filter(|_| !interval.latency.is_empty()) {
                    // Same bounds, so adding cannot fail.
                    let _ = ages.entry(others.to_owned()).or_insert_with(histogram).add(&interval.latency);
                    age_of.entry(others.to_owned()).or_default().push(AgeSecond {
                        at_s: interval.to_ns.saturating_sub(times.span.start_ns) as f64 / 1e9,
                        p50_ns: interval.latency.value_at_quantile(0.5),
                        p99_ns: interval.latency.value_at_quantile(0.99),
                        max_ns: interval.latency.max(),
                    });
                }
            }
            let within: Vec<&Snapshot> =
                snapshots.iter().filter(|it| (window.from_ns..=window.to_ns).contains(&it.due_ns)).collect();
            let (Some(first), Some(last)) = (within.first(), within.last()) else {
                return Err("a window was not measured".to_owned());
            };
            let (seconds, interval_latencies) = series(&within, times.span.start_ns, &intervals);
            phases.push(Phase {
                label: scenario.label(index),
                window: *window,
                messages: sent.messages,
                arrived,
                announced: last.announced - first.announced,
                latency,
                lateness: sent.lateness,
                ages,
                age_of,
                stages,
                used: last.since(first),
                seconds,
                interval_latencies,
            });
        }
        Ok(Outcome {
            scenario: scenario.clone(),
            phases,
            intervals,
            account,
            others: others.accounts,
            churned,
            server_before: None,
            returns,
            refused,
            refusals,
            ended: summarise(reasons),
            clock: None,
        })
    }
}

fn sum<'a>(intervals: impl Iterator<Item = &'a Interval>) -> Histogram<u64> {
    let mut sum = histogram();
    for interval in intervals {
        // Same bounds, so adding cannot fail.
        let _ = sum.add(&interval.latency);
    }
    sum
}

/// The time series of a window, from what was counted at its boundaries.
fn series(
    snapshots: &[&Snapshot],
    start_ns: u64,
    intervals: &[Interval],
) -> (Vec<Second>, Vec<Histogram<u64>>) {
    let mut by_end: HashMap<u64, Vec<&Interval>> = HashMap::new();
    for interval in intervals.iter().filter(|it| it.others.is_none()) {
        by_end.entry(interval.to_ns).or_default().push(interval);
    }
    let pairs = snapshots.iter().zip(snapshots.iter().skip(1));
    pairs
        .map(|(before, now)| {
            let ended = || by_end.get(&now.due_ns).into_iter().flatten().copied();
            let (latency, arrived) = (sum(ended()), ended().map(|it| it.arrived).sum::<u64>());
            let seconds = (now.due_ns - before.due_ns).max(1) as f64 / 1e9;
            let used = now.since(before);
            let second = Second {
                at_s: now.due_ns.saturating_sub(start_ns) as f64 / 1e9,
                messages_per_s: (now.messages - before.messages) as f64 / seconds,
                deliveries_per_s: arrived as f64 / seconds,
                p50_ns: latency.value_at_quantile(0.5),
                p99_ns: latency.value_at_quantile(0.99),
                max_ns: latency.max(),
                server_cpus: used.server_cpu.map(|load| load.cpus),
                client_cpus: used.client_cpu.map(|load| load.cpus),
                server_bytes: now.server_memory.map(|memory| memory.resident),
            };
            (second, latency)
        })
        .unzip()
}

/// The first few reasons, and how many more there are.
pub(crate) fn summarise(mut reasons: Vec<String>) -> Vec<String> {
    let more = reasons.len().saturating_sub(REASONS_SHOWN_MAX);
    if more > 0 {
        reasons.truncate(REASONS_SHOWN_MAX);
        reasons.push(format!("and {more} more"));
    }
    reasons
}

/// What was recorded between the two pages of each window.
fn stages(pages: Vec<JoinHandle<Page>>) -> Vec<ServerStages> {
    let all: Vec<ServerStages> =
        pages.into_iter().map(|page| ServerStages::of(&page.join().unwrap_or_default())).collect();
    all.as_chunks::<2>().0.iter().map(|[before, after]| after.clone().since(before)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_not_endless() {
        let reasons = |count: usize| (0..count).map(|index| index.to_string()).collect::<Vec<_>>();
        assert_eq!(summarise(reasons(3)), ["0", "1", "2"]);
        assert_eq!(summarise(reasons(9)), ["0", "1", "2", "and 6 more"]);
    }
}
