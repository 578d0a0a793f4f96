//! Adds up the parts that several processes made of one run: histograms are merged, counts, rates and books added, CPU of the
//! generators added. What they saw alike, such as the server's CPU, is taken from the first that has it. Pure.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use crate::bottleneck;
use crate::finish::summarise;
use crate::ledger::Account;
use crate::measure::histogram;
use crate::result::{
    AgeSecond, EncodedHistogram, Percentiles, PhaseResult, Repetition, RunFile, ScenarioResult, Second, Side,
    StageResult, StageSource, Visits,
};

/// The file of the whole run. The error says which parts do not belong together.
pub(crate) fn merge_files(parts: Vec<(String, RunFile)>) -> Result<RunFile, String> {
    let Some(((first_name, first), others)) = parts.split_first() else {
        return Err("there is nothing to merge".to_owned());
    };
    let Some(whole) = &first.shared else {
        return Err(format!(
            "{first_name}: it is not a part of a shared run; make parts with --share I/N --run-id X"
        ));
    };
    let mut seen: Vec<usize> = vec![whole.share.index];
    for (name, part) in others {
        let Some(shared) = &part.shared else {
            return Err(format!(
                "{name}: it is not a part of a shared run; make parts with --share I/N --run-id X"
            ));
        };
        if (&shared.run_id, shared.share.of) != (&whole.run_id, whole.share.of) {
            return Err(format!(
                "{name}: it is a part of run {:?} of {}, and {first_name} of {:?} of {}",
                shared.run_id, shared.share.of, whole.run_id, whole.share.of
            ));
        }
        if seen.contains(&shared.share.index) {
            return Err(format!("{name}: part {} of the run is there already", shared.share.index + 1));
        }
        seen.push(shared.share.index);
    }
    if seen.len() != whole.share.of {
        return Err(format!("{} parts of {} are there; name them all", seen.len(), whole.share.of));
    }
    let mut results = Vec::with_capacity(first.results.len());
    for (at, result) in first.results.iter().enumerate() {
        let mut repetitions = Vec::new();
        for turn in 0..result.repetitions.len() {
            let mut once = Vec::with_capacity(parts.len());
            for (name, part) in &parts {
                let other = part.results.get(at).filter(|it| it.scenario == result.scenario);
                let repetition = other.and_then(|it| it.repetitions.get(turn));
                once.push(repetition.ok_or_else(|| {
                    format!(
                        "{name}: it has no repetition {} of {:?}, as {first_name} has",
                        turn + 1,
                        result.scenario.name
                    )
                })?);
            }
            repetitions.push(merge_repetitions(&once, result.subject.cpus)?);
        }
        // The part that saw the server's process knows it best.
        let sees_server = |part: &&(String, RunFile)| {
            let repetition = part.1.results.get(at).and_then(|it| it.repetitions.first());
            repetition.is_some_and(|it| it.phases.iter().any(|phase| phase.server.cpus.is_some()))
        };
        let subject =
            parts.iter().find(sees_server).map_or(&result.subject, |part| &part.1.results[at].subject);
        results.push(ScenarioResult {
            subject: subject.clone(),
            scenario: result.scenario.clone(),
            repetitions,
        });
    }
    let command = parts.iter().flat_map(|(_, part)| part.command.iter().cloned().chain([";".to_owned()]));
    Ok(RunFile { command: command.collect(), results, shared: None, ..first.clone() })
}

/// One time that a scenario was run by all of them.
pub(crate) fn merge_repetitions(parts: &[&Repetition], server_cpus: usize) -> Result<Repetition, String> {
    let Some(first) = parts.first() else { return Err("there is nothing to merge".to_owned()) };
    let mut account = Account::default();
    let mut others: BTreeMap<String, Account> = BTreeMap::new();
    let mut refusals: BTreeMap<String, u64> = BTreeMap::new();
    for part in parts {
        account += part.account;
        for (behaviour, books) in &part.others {
            *others.entry(behaviour.clone()).or_default() += *books;
        }
        for (what, times) in &part.refusals {
            *refusals.entry(what.clone()).or_default() += times;
        }
    }
    let mut phases = Vec::with_capacity(first.phases.len());
    for index in 0..first.phases.len() {
        let of_all: Option<Vec<&PhaseResult>> = parts.iter().map(|part| part.phases.get(index)).collect();
        phases.push(merge_phases(&of_all.ok_or("a part has fewer phases than another")?, server_cpus)?);
    }
    Ok(Repetition {
        started_s: parts.iter().map(|it| it.started_s).min().unwrap_or(first.started_s),
        phases,
        account,
        others,
        visits: merge_visits(parts.iter().filter_map(|it| it.visits.as_ref()))?,
        idle_bytes_per_connection: parts.iter().find_map(|it| it.idle_bytes_per_connection),
        returns: parts.iter().map(|it| it.returns).sum(),
        refused: parts.iter().map(|it| it.refused).sum(),
        refusals,
        ended: summarise(parts.iter().flat_map(|it| it.ended.iter().cloned()).collect()),
        sound: parts.iter().all(|it| it.sound),
        clock: parts.iter().find_map(|it| it.clock),
    })
}

fn merge_visits<'a>(parts: impl Iterator<Item = &'a Visits> + Clone) -> Result<Option<Visits>, String> {
    if parts.clone().next().is_none() {
        return Ok(None);
    }
    let set_up = sum(parts.clone().map(|it| &it.set_up_histogram))?;
    Ok(Some(Visits {
        per_s: parts.clone().map(|it| it.per_s).sum(),
        set_up: Percentiles::of(&set_up),
        set_up_histogram: EncodedHistogram::of(&set_up),
        failed: parts.clone().map(|it| it.failed).sum(),
        failures: summarise(parts.flat_map(|it| it.failures.iter().cloned()).collect()),
    }))
}

fn sum<'a>(parts: impl Iterator<Item = &'a EncodedHistogram>) -> Result<Histogram<u64>, String> {
    let mut sum = histogram();
    for part in parts {
        // Decoded into the same bounds, so adding cannot fail.
        let _ = sum.add(part.decode()?);
    }
    Ok(sum)
}

fn merge_phases(parts: &[&PhaseResult], server_cpus: usize) -> Result<PhaseResult, String> {
    let first = parts[0];
    if let Some(other) = parts.iter().find(|it| it.label != first.label) {
        return Err(format!("phases {:?} and {:?} do not belong together", first.label, other.label));
    }
    let total = |figure: fn(&PhaseResult) -> f64| parts.iter().map(|it| figure(it)).sum::<f64>();
    let latency_of_all = sum(parts.iter().map(|it| &it.latency_histogram))?;
    let lateness_of_all = sum(parts.iter().map(|it| &it.lateness_histogram))?;
    let (latency, lateness) = (Percentiles::of(&latency_of_all), Percentiles::of(&lateness_of_all));
    let mut age_histograms = BTreeMap::new();
    let mut age_of: BTreeMap<String, Vec<AgeSecond>> = BTreeMap::new();
    for behaviour in parts.iter().flat_map(|it| it.age_histograms.keys()) {
        let sum = sum(parts.iter().filter_map(|it| it.age_histograms.get(behaviour)))?;
        age_histograms.insert(behaviour.clone(), sum);
        let series = parts.iter().filter_map(|it| it.age_of.get(behaviour)).flatten().copied();
        age_of.insert(behaviour.clone(), series.collect());
    }
    let deliveries_per_s = total(|it| it.deliveries_per_s);
    let server = parts.iter().map(|it| it.server).find(|it| it.cpus.is_some()).unwrap_or_default();
    let asked = parts.iter().filter_map(|it| it.asked_messages_per_s);
    let mut phase = PhaseResult {
        label: first.label.clone(),
        seconds: first.seconds,
        asked_messages_per_s: asked.clone().next().map(|_| asked.sum()),
        messages_per_s: total(|it| it.messages_per_s),
        samples_per_s: total(|it| it.samples_per_s),
        deliveries_per_s,
        announced: parts.iter().map(|it| it.announced).sum(),
        latency,
        lateness,
        age: age_histograms.iter().map(|(name, age)| (name.clone(), Percentiles::of(age))).collect(),
        latency_histogram: EncodedHistogram::of(&latency_of_all),
        lateness_histogram: EncodedHistogram::of(&lateness_of_all),
        age_histograms: age_histograms
            .iter()
            .map(|(name, age)| (name.clone(), EncodedHistogram::of(age)))
            .collect(),
        age_of,
        stages: merge_stages(parts, latency.mean, lateness),
        seconds_of: merge_seconds(parts)?,
        second_histograms: Vec::new(),
        server,
        client: clients(parts),
        cores: first.cores.clone(),
        server_cpu_s_per_million: server
            .cpus
            .filter(|_| deliveries_per_s > 0.0)
            .map(|it| it * 1e6 / deliveries_per_s),
        machine_idle: first.machine_idle,
        machine_steal: first.machine_steal,
        bottleneck: first.bottleneck,
    };
    phase.bottleneck = bottleneck::weigh_again(&phase, server_cpus, crate::proc::allowed_cpus());
    Ok(phase)
}

/// The generators together; the busiest thread is the busiest of all.
fn clients(parts: &[&PhaseResult]) -> Side {
    let sides = || parts.iter().map(|it| it.client);
    let total = |figure: fn(Side) -> Option<f64>| sides().filter_map(figure).reduce(|sum, it| sum + it);
    Side {
        cpus: total(|it| it.cpus),
        busiest_thread: sides().filter_map(|it| it.busiest_thread).reduce(f64::max),
        waiting: total(|it| it.waiting),
        peak_bytes: sides().filter_map(|it| it.peak_bytes).reduce(|sum, it| sum + it),
    }
}

/// The server's parts are the same in all; what the generators were late, and the rest, are worked out anew.
fn merge_stages(parts: &[&PhaseResult], latency_mean: f64, lateness: Percentiles) -> Vec<StageResult> {
    let Some(one) = parts.iter().find(|it| !it.stages.is_empty()) else { return Vec::new() };
    let mut stages = one.stages.clone();
    for stage in &mut stages {
        match (stage.source, stage.name.as_str()) {
            (StageSource::Generator, _) => stage.latency = lateness,
            (StageSource::Server, "source_to_received") => {
                stage.latency.mean = (stage.latency.mean + one.lateness.mean - lateness.mean).max(0.0);
            }
            _ => {}
        }
    }
    let is_known = |stage: &&StageResult| stage.source != StageSource::Remainder;
    let known: f64 = stages.iter().filter(is_known).map(|stage| stage.latency.mean).sum();
    if let Some(rest) = stages.iter_mut().find(|stage| stage.source == StageSource::Remainder) {
        rest.latency.mean = (latency_mean - known).max(0.0);
    }
    stages
}

fn merge_seconds(parts: &[&PhaseResult]) -> Result<Vec<Second>, String> {
    let count = parts.iter().map(|it| it.seconds_of.len()).min().unwrap_or(0);
    let mut merged = Vec::with_capacity(count);
    for at in 0..count {
        let seconds = || parts.iter().map(|it| it.seconds_of[at]);
        let latency = sum(parts.iter().filter_map(|it| it.second_histograms.get(at)))?;
        merged.push(Second {
            at_s: parts[0].seconds_of[at].at_s,
            messages_per_s: seconds().map(|it| it.messages_per_s).sum(),
            deliveries_per_s: seconds().map(|it| it.deliveries_per_s).sum(),
            p50_ns: latency.value_at_quantile(0.5),
            p99_ns: latency.value_at_quantile(0.99),
            max_ns: latency.max(),
            server_cpus: seconds().find_map(|it| it.server_cpus),
            client_cpus: seconds().filter_map(|it| it.client_cpus).reduce(|sum, it| sum + it),
            server_bytes: seconds().find_map(|it| it.server_bytes),
        });
    }
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::{Bottleneck, SharedRun};
    use crate::run::{Outcome, Phase};
    use crate::scenario::{Share, named};
    use crate::snapshot::Used;
    use crate::verdict;
    use crate::verdict::fixture::{file, outcome, phase, subject};

    /// A part of a run of two: 10,000 samples of this latency.
    fn part(index: usize, latency_ns: u64, sees_server: bool) -> RunFile {
        let mut one = phase("fanout", latency_ns);
        if !sees_server {
            one.used = Used { server_cpu: None, server_memory: None, ..one.used };
        }
        let account = Account { published: 10, received: 9, announced: 1, ..Account::default() };
        let seconds = Second {
            at_s: 1.0,
            messages_per_s: 5.0,
            deliveries_per_s: 50.0,
            p50_ns: latency_ns,
            p99_ns: latency_ns,
            max_ns: latency_ns,
            server_cpus: sees_server.then_some(0.3),
            client_cpus: Some(0.2),
            server_bytes: None,
        };
        let one = Phase { seconds: vec![seconds], interval_latencies: vec![one.latency.clone()], ..one };
        let share = Share { index, of: 2 };
        let whole = named("fanout").unwrap();
        let outcome = Outcome { account, scenario: whole.share(share), ..outcome("fanout", vec![one]) };
        let mut file = file(&[]);
        file.results = vec![ScenarioResult {
            subject: subject(),
            repetitions: vec![verdict::repetition(&outcome, &whole, 0, 1)],
            scenario: whole,
        }];
        let shared = SharedRun { run_id: "x".to_owned(), share };
        RunFile { shared: Some(shared), ..file }
    }

    fn named_parts(parts: Vec<RunFile>) -> Vec<(String, RunFile)> {
        parts.into_iter().enumerate().map(|(at, part)| (format!("{at}.json"), part)).collect()
    }

    #[test]
    fn parts_add_up() {
        let merged =
            merge_files(named_parts(vec![part(0, 1_000_000, false), part(1, 3_000_000, true)])).unwrap();
        let once = &merged.results[0].repetitions[0];
        assert_eq!((once.account.published, once.account.announced), (20, 2));
        let phase = &once.phases[0];
        assert_eq!((phase.latency.count, phase.latency.p50 / 1_000_000), (20_000, 1));
        assert_eq!((phase.latency.p99 / 1_000_000, (phase.latency.mean / 1e5).round()), (3, 20.0));
        assert_eq!(phase.latency_histogram.decode().unwrap().len(), 20_000);
        assert!((phase.deliveries_per_s - 2.0 * 495_000.0).abs() < 1e-6);
        assert_eq!((phase.client.cpus, phase.client.busiest_thread), (Some(1.0), Some(0.4)));
        assert_eq!((phase.server.cpus, phase.server_cpu_s_per_million), (Some(0.198), Some(0.2)));
        let [second] = phase.seconds_of.as_slice() else { panic!("one") };
        assert_eq!(
            (second.deliveries_per_s, second.server_cpus, second.client_cpus),
            (100.0, Some(0.3), Some(0.4))
        );
        assert_eq!((second.p50_ns / 1_000_000, second.p99_ns / 1_000_000), (1, 3));
        assert!(merged.shared.is_none() && phase.second_histograms.is_empty());
        assert_eq!(phase.bottleneck, Bottleneck::Neither);
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused() {
        let good = || part(0, 1, true);
        let with = |change: fn(&mut RunFile)| {
            let mut other = part(1, 1, true);
            change(&mut other);
            merge_files(named_parts(vec![good(), other]))
        };
        assert!(with(|_| ()).is_ok());
        let problems = [
            (with(|it| it.shared = None), "not a part"),
            (with(|it| it.shared.as_mut().unwrap().run_id = "y".to_owned()), "run \"y\""),
            (with(|it| it.shared.as_mut().unwrap().share.index = 0), "already"),
            (with(|it| it.results.clear()), "no repetition"),
            (with(|it| it.results[0].repetitions[0].phases[0].label = "other".to_owned()), "other"),
            (merge_files(named_parts(vec![good()])), "1 parts of 2"),
            (merge_files(Vec::new()), "nothing"),
        ];
        for (merged, expected) in problems {
            let problem = merged.unwrap_err();
            assert!(problem.contains(expected), "{expected}: {problem}");
        }
    }
}
