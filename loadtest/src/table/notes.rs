//! The lines under the table: what it has no column for. Pure.

use std::fmt::Write as _;

use super::{bottleneck, grouped, label, median_of, nanos, percent, phases, rate, time};
use crate::ledger::Account;
use crate::publishers::Returns;
use crate::result::{Bottleneck, PhaseResult, Repetition, RunFile, ScenarioResult};
use crate::verdict::back_to_normal_after;

/// What the table has no column for.
pub(super) fn notes(file: &RunFile) -> String {
    let mut text = String::new();
    for result in &file.results {
        let count = result.repetitions.first().map_or(0, |it| it.phases.len());
        for index in 0..count {
            notes_of_phase(&mut text, &label(file, result, index), &phases(result, index));
        }
        let name = &result.scenario.name;
        for (index, repetition) in result.repetitions.iter().enumerate() {
            let name = match result.repetitions.len() {
                1 => name.clone(),
                _ => format!("{name} #{}", index + 1),
            };
            notes_of(&mut text, &name, result, repetition);
        }
    }
    text
}

fn notes_of_phase(text: &mut String, label: &str, phases: &[&PhaseResult]) {
    let mut note = |line: String| {
        let _ = writeln!(text, "{label}: {line}");
    };
    let share = |figure: fn(&PhaseResult) -> Option<f64>| percent(median_of(phases, figure));
    match bottleneck(phases) {
        Bottleneck::Generator | Bottleneck::Both => note(format!(
            "the generator was a bottleneck (busiest thread {}, late by p99 {}): these are lower bounds and no verdict",
            share(|phase| phase.client.busiest_thread),
            nanos(median_of(phases, |phase| Some(phase.lateness.p99 as f64)).unwrap_or(0.0)),
        )),
        Bottleneck::Machine => note(format!(
            "all CPUs of the machine were busy: other work is in these figures (stolen {}; the server was \
             without a CPU that it wanted {} of the time, the generator {})",
            share(|phase| phase.machine_steal),
            share(|phase| phase.server.waiting),
            share(|phase| phase.client.waiting),
        )),
        Bottleneck::Neither | Bottleneck::Server => {}
    }
    let behaviours = phases.first().into_iter().flat_map(|phase| phase.age.keys());
    for behaviour in behaviours {
        let age = |figure: fn(&crate::result::Percentiles) -> u64| {
            nanos(
                median_of(phases, |phase| phase.age.get(behaviour).map(|it| figure(it) as f64))
                    .unwrap_or(0.0),
            )
        };
        note(format!(
            "age of what {behaviour} subscribers read: p50 {}, p99 {}, max {}",
            age(|it| it.p50),
            age(|it| it.p99),
            age(|it| it.max)
        ));
    }
}

fn notes_of(text: &mut String, name: &str, result: &ScenarioResult, repetition: &Repetition) {
    let mut note = |line: String| {
        let _ = writeln!(text, "{name}: {line}");
    };
    if let ([without, with], true) = (repetition.phases.as_slice(), result.scenario.name == "slow_reader")
        && without.latency.p99 > 0
    {
        let ratio = with.latency.p99 as f64 / without.latency.p99 as f64;
        note(format!("p99 of the healthy with the stalled one is {ratio:.2} x that without"));
    }
    match back_to_normal_after(&result.scenario, repetition) {
        Some(Some(seconds)) => note(format!(
            "p99 was back at twice that of the first phase, or less, {seconds:.1} s after the rate went down"
        )),
        Some(None) => note("p99 did not come back to twice that of the first phase".to_owned()),
        None => {}
    }
    for (behaviour, account) in &repetition.others {
        note(format!("books of {behaviour} subscribers: {}", books(account)));
    }
    if let Some(visits) = &repetition.visits {
        let cpu = repetition.server_ns_per_connection();
        note(format!(
            "{} connections/s, {} in all, {} failed; set up in p50 {}, p99 {}{}{}",
            rate(visits.per_s),
            grouped(visits.set_up.count + visits.failed),
            visits.failed,
            time(visits.set_up.p50),
            time(visits.set_up.p99),
            cpu.map(|ns| format!("; server CPU {:.0} us each", ns / 1e3)).unwrap_or_default(),
            visits.failures.iter().map(|why| format!("; {why}")).collect::<String>()
        ));
    }
    if let Some(bytes) = repetition.idle_bytes_per_connection {
        note(format!(
            "{:.2} KiB of the server's resident memory for each of {} connections",
            bytes / 1024.0,
            grouped(result.scenario.connections() as u64)
        ));
    }
    if let Some(clock) = repetition.clock {
        note(format!(
            "the server's clock is {:.3} ms ahead of this one, give or take {:.3} ms; it drifted {:.3} ms meanwhile. \
             Latency needs no correction, since this clock gives both of its instants",
            clock.offset_ns as f64 / 1e6,
            clock.error_ns as f64 / 1e6,
            clock.drift_ns as f64 / 1e6
        ));
    }
    if repetition.refused > 0 {
        note(format!("the server did not take {} samples", grouped(repetition.refused)));
    }
    for (what, times) in &repetition.refusals {
        note(format!("{times} x error {what}"));
    }
    for why in &repetition.ended {
        note(format!("a connection ended early: {why}"));
    }
    let Returns { times, unacknowledged, unsent } = repetition.returns;
    if repetition.returns != Returns::default() {
        note(format!(
            "publishers came back {} times: {} samples were not acknowledged when a connection ended, {} fell due meanwhile and were not sent",
            grouped(times),
            grouped(unacknowledged),
            grouped(unsent)
        ));
    }
    if has_lives(&repetition.account) {
        note(format!("healthy subscribers: {}", lives(&repetition.account)));
    }
    if !repetition.account.is_exact() {
        note(format!("THE BOOKS DO NOT BALANCE: {}", books(&repetition.account)));
    }
}

/// The ledger in words.
fn books(account: &Account) -> String {
    let Account { published, received, announced, unannounced, excess, irregular, .. } = *account;
    let mut text = format!(
        "published {} = received {} + announced {}",
        grouped(published),
        grouped(received),
        grouped(announced)
    );
    if account.unseen > 0 {
        let _ = write!(text, " + unseen {}", grouped(account.unseen));
    }
    for (count, what) in [
        (unannounced, "lost without a word"),
        (excess, "announced as lost but delivered"),
        (irregular, "frames out of order or repeated"),
    ] {
        if count > 0 {
            let _ = write!(text, ", {} {what}", grouped(count));
        }
    }
    if has_lives(account) {
        let _ = write!(text, "; {}", lives(account));
    }
    text
}

/// Whether there is anything to say of reconnecting. What was not seen or begins anew need not be of one who came back.
const fn has_lives(account: &Account) -> bool {
    account.resumed > 0 || account.unseen > 0 || account.resets > 0 || account.left_out > 0
}

/// What came of reconnecting, in words.
fn lives(account: &Account) -> String {
    let mut text = format!(
        "{} times a connection went on where one had ended, with {} samples of the past",
        grouped(account.resumed),
        grouped(account.replayed)
    );
    if account.unseen > 0 {
        let _ = write!(
            text,
            "; {} samples of streams that began meanwhile were unseen: they came before the first one that a subscriber was told of",
            grouped(account.unseen)
        );
    }
    if account.left_out > 0 {
        let _ = write!(
            text,
            "; {} cursors had no room in a subscribe and were left out, the oldest first: their streams began with what was kept",
            grouped(account.left_out)
        );
    }
    if account.resets > 0 {
        let _ = write!(
            text,
            "; {} CHANNELS WERE RESET: what was published meanwhile is not known",
            grouped(account.resets)
        );
    }
    text
}
