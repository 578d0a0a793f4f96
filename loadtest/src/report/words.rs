//! A result in plain words: what was asked, what was got, what was lost, who was the limit. Pure; the page and the terminal share it.

use crate::figures::{Figure, figures, is_generators, median};
use crate::ledger::Account;
use crate::result::{Bottleneck, PhaseResult, ScenarioResult};
use crate::units::{Unit, bytes, count, rate, time, visible};

/// Whether a sentence should be seen first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// It is as it should be.
    Plain,
    /// It limits what the figures say.
    Doubt,
    /// Something is wrong.
    Alarm,
}

/// A paragraph for each phase, and one for what belongs to all.
pub(crate) fn verdict(result: &ScenarioResult) -> Vec<(Tone, String)> {
    let figures = figures(result);
    let mut labels: Vec<&str> = Vec::new();
    for phase in result.repetitions.iter().flat_map(|it| &it.phases) {
        if !labels.contains(&phase.label.as_str()) {
            labels.push(&phase.label);
        }
    }
    let mut paragraphs: Vec<(Tone, String)> =
        labels.iter().map(|label| phase(result, label, labels.len() > 1, &figures)).collect();
    paragraphs.extend(visits(result));
    paragraphs.extend(idle(result, &figures));
    paragraphs.extend(ratio(&figures));
    paragraphs.push(loss(result));
    paragraphs
}

fn find<'a>(figures: &'a [Figure], key: &str, phase: Option<&str>) -> Option<&'a Figure> {
    figures.iter().find(|it| it.kind.key == key && it.phase.as_deref() == phase)
}

fn phase(result: &ScenarioResult, label: &str, is_named: bool, figures: &[Figure]) -> (Tone, String) {
    let all = result.repetitions.iter().flat_map(|it| &it.phases);
    let phases: Vec<&PhaseResult> = all.filter(|it| it.label == label).collect();
    let middle =
        |value: fn(&PhaseResult) -> f64| median(&phases.iter().map(|it| value(it)).collect::<Vec<_>>());
    let name = if is_named { format!("{}: ", visible(label)) } else { String::new() };
    let mut text = String::new();
    let deliveries = rate(middle(|it| it.deliveries_per_s));
    let got = rate(middle(|it| it.messages_per_s));
    match phases.first().and_then(|it| it.asked_messages_per_s) {
        Some(0.0) => text.push_str("nothing was published."),
        Some(asked) => text.push_str(&format!(
            "{} messages/s were asked for, {got} went out, {deliveries} deliveries/s arrived.",
            rate(asked)
        )),
        None => text.push_str(&format!(
            "as much as was taken: {got} messages/s went out, {deliveries} deliveries/s arrived."
        )),
    }
    if let (Some(p50), Some(p99)) =
        (find(figures, "p50_ns", Some(label)), find(figures, "p99_ns", Some(label)))
    {
        text.push_str(&format!(
            " Half of the samples arrived within {}, 99 of 100 within {}",
            time(p50.median()),
            time(p99.median())
        ));
        if p99.values.len() > 1 {
            let range = format!("{} to {}", time(p99.min()), time(p99.max()));
            text.push_str(&format!(" (medians of {} repetitions; p99 from {range})", p99.values.len()));
        }
        text.push('.');
        if phases.iter().all(|it| it.asked_messages_per_s.is_none()) {
            text.push_str(" That is what was let wait, not how fast the server is.");
        }
    }
    let (tone, limit) = limit(&phases);
    text.push(' ');
    text.push_str(&limit);
    (tone, if is_named { name + &text } else { capital(&text) })
}

/// Which side was the limit, over all repetitions.
fn limit(phases: &[&PhaseResult]) -> (Tone, String) {
    let some = |test: fn(&PhaseResult) -> bool| phases.iter().filter(|it| test(it)).count();
    let of = |number: usize| match phases.len() {
        1 => String::new(),
        all => format!(" in {number} of {all} repetitions"),
    };
    let share = |values: &mut dyn Iterator<Item = Option<f64>>| {
        values.flatten().reduce(f64::max).map_or_else(|| "unknown".to_owned(), |it| Unit::Cpus.show(it))
    };
    let generators = some(is_generators);
    if generators > 0 {
        let busiest = share(&mut phases.iter().map(|it| it.client.busiest_thread));
        let late = phases.iter().map(|it| it.lateness.p99).max().unwrap_or(0);
        let both = some(|it| it.bottleneck == Bottleneck::Both);
        let too = if both > 0 { " The server was full as well." } else { "" };
        return (
            Tone::Doubt,
            format!(
                "No verdict: the generator was the limit{} (its busiest thread {busiest}, late by p99 {}), so the server \
                 may be better than this.{too}",
                of(generators),
                time(late as f64)
            ),
        );
    }
    let machines = some(|it| it.bottleneck == Bottleneck::Machine);
    if machines > 0 {
        let steal = share(&mut phases.iter().map(|it| it.machine_steal));
        let text = format!(
            "The machine had no CPU left{} (stolen {steal}): other work is in these figures.",
            of(machines)
        );
        return (Tone::Doubt, text);
    }
    let servers = some(|it| it.bottleneck == Bottleneck::Server);
    if servers > 0 {
        return (Tone::Plain, format!("The server was the limit{}: its CPUs were full.", of(servers)));
    }
    (Tone::Plain, "Neither side was at its limit.".to_owned())
}

fn visits(result: &ScenarioResult) -> Option<(Tone, String)> {
    let visits: Vec<_> = result.repetitions.iter().filter_map(|it| it.visits.as_ref()).collect();
    let per_s = median(&visits.iter().map(|it| it.per_s).collect::<Vec<_>>());
    let p99 = median(&visits.iter().map(|it| it.set_up.p99 as f64).collect::<Vec<_>>());
    let failed: u64 = visits.iter().map(|it| it.failed).sum();
    visits.first()?;
    let mut text =
        format!("{} connections/s came and left; 99 of 100 were set up within {}.", rate(per_s), time(p99));
    for why in visits.iter().flat_map(|it| &it.failures).take(3) {
        text.push_str(&format!(" Failed: {}.", visible(why)));
    }
    Some(match failed {
        0 => (Tone::Plain, text + " None failed."),
        some => (Tone::Alarm, format!("{text} {} failed.", count(some as f64))),
    })
}

fn idle(result: &ScenarioResult, figures: &[Figure]) -> Option<(Tone, String)> {
    let figure = find(figures, "idle_bytes_per_connection", None)?;
    let connections = count(result.scenario.connections() as f64);
    let each = bytes(figure.median());
    Some((Tone::Plain, format!("{each} of the server's memory for each of {connections} connections.")))
}

fn ratio(figures: &[Figure]) -> Option<(Tone, String)> {
    let ratio = find(figures, "p99_ratio", None)?;
    Some((Tone::Plain, format!("p99 of the second phase is {:.2} times that of the first.", ratio.median())))
}

/// The books of all repetitions together.
fn loss(result: &ScenarioResult) -> (Tone, String) {
    let mut healthy = Account::default();
    let mut others = Account::default();
    for repetition in &result.repetitions {
        healthy += repetition.account;
        repetition.others.values().for_each(|it| others += *it);
    }
    let silent = |it: &Account| it.unannounced + it.excess + it.irregular;
    let lost = silent(&healthy) + silent(&others);
    let refused: u64 = result.repetitions.iter().map(|it| it.refused).sum();
    let mut text = match (healthy.announced, lost) {
        (0, 0) => "The healthy subscribers lost nothing.".to_owned(),
        (announced, 0) => format!(
            "The healthy subscribers were told of {} of {} samples that they missed; none was lost without a word.",
            count(announced as f64),
            count(healthy.published as f64)
        ),
        (_, lost) => format!(
            "THE BOOKS DO NOT BALANCE: {} samples or frames are not accounted for.",
            count(lost as f64)
        ),
    };
    if others.announced > 0 {
        text.push_str(&format!(
            " The others were told of {} of {}.",
            count(others.announced as f64),
            count(others.published as f64)
        ));
    }
    if refused > 0 {
        text.push_str(&format!(" The server refused {} samples, and said so.", count(refused as f64)));
    }
    let ended: Vec<&String> = result.repetitions.iter().flat_map(|it| &it.ended).collect();
    if !ended.is_empty() {
        text.push_str(&format!(" {} connections ended early.", count(ended.len() as f64)));
    }
    let is_sound = result.repetitions.iter().all(|it| it.sound);
    let tone = if lost > 0 || !is_sound {
        Tone::Alarm
    } else if refused > 0 {
        Tone::Doubt
    } else {
        Tone::Plain
    };
    (tone, text)
}

/// What a scenario asks for, in a line.
pub(crate) fn settings(result: &ScenarioResult) -> String {
    let scenario = &result.scenario;
    let about = visible(&scenario.about);
    let each = if scenario.samples_per_message == 1 { "sample" } else { "samples" };
    format!(
        "{about}{}{} publishing, {} connections in all, {} {each} of {} bytes in a message",
        if about.is_empty() { "" } else { ": " },
        count(scenario.publishers as f64),
        count(scenario.connections() as f64),
        scenario.samples_per_message,
        scenario.payload_bytes
    )
}

fn capital(text: &str) -> String {
    let mut rest = text.chars();
    rest.next().map(|first| first.to_uppercase().chain(rest).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample::Sample;

    fn result(name: &str) -> ScenarioResult {
        Sample::default().run("x").results.into_iter().find(|it| it.scenario.name == name).unwrap()
    }

    fn says(result: &ScenarioResult) -> String {
        verdict(result).into_iter().map(|(tone, text)| format!("{tone:?}: {text}\n")).collect()
    }

    #[test]
    fn what_was_asked_got_and_lost() {
        let steady = says(&result("steady"));
        for part in [
            "Plain: 1,000 messages/s were asked for, 1,000 went out, 10,000 deliveries/s",
            "medians of 3 repetitions",
            "Neither side",
            "told of 30 of 180,000",
        ] {
            assert!(steady.contains(part), "{part}: {steady}");
        }
        let slow = says(&result("slow_reader"));
        for part in [
            "slow_reader/without: 1,000",
            "slow_reader/with: 1,000",
            "1.00 times",
            "The others were told of 75,000 of 90,000",
        ] {
            assert!(slow.contains(part), "{part}: {slow}");
        }
        assert!(
            says(&result("saturate")).contains("As much as was taken: 398,406 messages/s"),
            "{}",
            says(&result("saturate"))
        );
        assert!(says(&result("idle")).contains("Nothing was published. Neither"));
        assert!(
            says(&result("idle")).contains("6.10 KiB of the server's memory"),
            "{}",
            says(&result("idle"))
        );
        assert!(says(&result("churn")).contains("100 connections/s came and left"));
    }

    #[test]
    fn limits_and_losses_come_to_the_fore() {
        let mut steady = result("steady");
        steady.repetitions[1].phases[0].bottleneck = Bottleneck::Generator;
        assert!(says(&steady).contains("Doubt: 1,000 messages/s"), "{}", says(&steady));
        assert!(says(&steady).contains("No verdict: the generator was the limit in 1 of 3 repetitions"));
        steady.repetitions[1].phases[0].bottleneck = Bottleneck::Server;
        assert!(says(&steady).contains("The server was the limit in 1 of 3 repetitions"));
        steady.repetitions[0].account.irregular = 2;
        assert!(says(&steady).contains("Alarm: THE BOOKS DO NOT BALANCE: 2 samples"), "{}", says(&steady));
        steady.repetitions[0].account.irregular = 0;
        steady.repetitions[0].ended.push("x".to_owned());
        steady.repetitions[0].sound = false;
        assert!(says(&steady).contains("1 connections ended early"));
    }
}
