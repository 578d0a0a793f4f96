//! From what was measured to what is written: figures, whether the books balance, the parts of the latency. Pure; the shape
//! of the result is `result`'s, which side was the bottleneck `bottleneck`'s, the table `table`'s.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use crate::bottleneck::Evidence;
use crate::proc::{Load, Memory};
use crate::result::{
    ClockOffset, EncodedHistogram, Percentiles, PhaseResult, Repetition, Side, StageResult, StageSource,
    Visits,
};
use crate::run::{Outcome, Phase};
use crate::scenario::{Kind, Policy, Scenario};

/// One time that a scenario was run, as the file has it. `whole` is the scenario of all processes, if there are several.
pub(crate) fn repetition(
    outcome: &Outcome,
    whole: &Scenario,
    started_s: u64,
    server_cpus: usize,
) -> Repetition {
    let scenario = &outcome.scenario;
    let phases: Vec<PhaseResult> = outcome
        .phases
        .iter()
        .enumerate()
        .map(|(index, phase)| {
            let mut result = phase_result(phase, scenario.messages_per_s(index), outcome, server_cpus);
            if scenario != whole {
                // A part: merging needs more than percentiles.
                result.second_histograms =
                    phase.interval_latencies.iter().map(EncodedHistogram::of).collect();
            }
            result
        })
        .collect();
    let is_idle = whole.messages_per_s(0) == Some(0.0) && whole.kind == Kind::Stream;
    let idle_bytes_per_connection = outcome.server_before.filter(|_| is_idle).and_then(|before| {
        let now = outcome.phases.last()?.used.server_memory?;
        Some(now.resident.saturating_sub(before.resident) as f64 / whole.connections() as f64)
    });
    let visits = outcome.churned.as_ref().map(|churned| {
        let seconds = match scenario.kind {
            Kind::Accept { .. } => phases.iter().map(|phase| phase.seconds).sum(),
            Kind::Stream => scenario.total().as_secs_f64(),
        };
        Visits {
            per_s: churned.to_subscribed.len() as f64 / seconds,
            set_up: Percentiles::of(&churned.to_subscribed),
            set_up_histogram: EncodedHistogram::of(&churned.to_subscribed),
            failed: churned.failed,
            failures: churned.failures.clone(),
        }
    });
    let disconnects = scenario.groups.iter().any(|group| group.policy == Some(Policy::Disconnect));
    let sound = outcome.account.is_exact()
        && outcome.others.values().all(|account| account.is_exact())
        // Under this policy being cut off is what was asked for, and the close code says it.
        && (outcome.ended.is_empty() || disconnects);
    Repetition {
        started_s,
        phases,
        account: outcome.account,
        others: outcome.others.clone(),
        visits,
        idle_bytes_per_connection,
        returns: outcome.returns,
        refused: outcome.refused,
        refusals: outcome.refusals.clone(),
        ended: outcome.ended.clone(),
        sound,
        clock: outcome.clock,
    }
}

/// Where a scenario goes above its first rate and back: seconds from the start of the last phase until p99 was, to the end, at
/// most twice that of the first phase. `Some(None)` if it never was.
pub(crate) fn back_to_normal_after(scenario: &Scenario, repetition: &Repetition) -> Option<Option<f64>> {
    /// Of the usual p99: what still counts as usual.
    const NORMAL: u64 = 2;
    let (first, last) = (scenario.phases.first()?, scenario.phases.last()?);
    let peak = scenario.phases.iter().map(|phase| phase.rate_factor).fold(0.0, f64::max);
    if peak <= first.rate_factor || last.rate_factor > first.rate_factor {
        return None;
    }
    let usual_ns = repetition.phases.first()?.latency.p99.saturating_mul(NORMAL);
    let phase = repetition.phases.last()?;
    let start_s =
        scenario.total().as_secs_f64() - phase.seconds - scenario.parts().last()?.warmup.as_secs_f64();
    let is_normal = |at: &usize| phase.seconds_of[*at..].iter().all(|it| it.p99_ns <= usual_ns);
    let first_normal = (0..phase.seconds_of.len()).find(is_normal);
    Some(first_normal.map(|at| match at.checked_sub(1) {
        Some(before) => phase.seconds_of[before].at_s - start_s,
        None => 0.0,
    }))
}

fn side(load: Option<Load>, memory: Option<Memory>) -> Side {
    Side {
        cpus: load.map(|load| load.cpus),
        busiest_thread: load.map(|load| load.busiest),
        waiting: load.map(|load| load.waiting),
        peak_bytes: memory.map(|memory| memory.peak),
    }
}

fn phase_result(
    phase: &Phase,
    asked_messages_per_s: Option<f64>,
    outcome: &Outcome,
    server_cpus: usize,
) -> PhaseResult {
    let seconds = (phase.window.to_ns - phase.window.from_ns) as f64 / 1e9;
    let deliveries_per_s = phase.arrived as f64 / seconds;
    let messages_per_s = phase.messages as f64 / seconds;
    let lateness = Percentiles::of(&phase.lateness);
    let latency = Percentiles::of(&phase.latency);
    let used = &phase.used;
    let evidence = Evidence {
        server: used.server_cpu,
        server_cpus,
        client: used.client_cpu,
        client_cpus: crate::proc::allowed_cpus(),
        lateness_p99_ns: lateness.p99,
        latency_p99_ns: latency.p99,
        idle: used.machine.map(|(idle, _)| idle),
    };
    PhaseResult {
        label: phase.label.clone(),
        seconds,
        asked_messages_per_s,
        messages_per_s,
        samples_per_s: messages_per_s * f64::from(outcome.scenario.samples_per_message),
        deliveries_per_s,
        announced: phase.announced,
        latency,
        lateness,
        age: phase.ages.iter().map(|(name, age)| (name.clone(), Percentiles::of(age))).collect(),
        latency_histogram: EncodedHistogram::of(&phase.latency),
        lateness_histogram: EncodedHistogram::of(&phase.lateness),
        age_histograms: phase
            .ages
            .iter()
            .map(|(name, age)| (name.clone(), EncodedHistogram::of(age)))
            .collect(),
        age_of: phase.age_of.clone(),
        // In a closed loop a share of the samples is recorded here, and all of them there: there is no sum to explain.
        stages: match asked_messages_per_s {
            Some(_) => stages(&phase.stages.0, latency.mean, &phase.lateness, outcome.clock),
            None => Vec::new(),
        },
        seconds_of: phase.seconds.clone(),
        second_histograms: Vec::new(),
        server: side(used.server_cpu, used.server_memory),
        client: side(used.client_cpu, used.client_memory),
        cores: used.cores.clone(),
        server_cpu_s_per_million: used
            .server_cpu
            .filter(|_| phase.arrived > 0)
            .map(|load| load.cpus * 1e6 / deliveries_per_s),
        machine_idle: used.machine.map(|(idle, _)| idle),
        machine_steal: used.machine.map(|(_, steal)| steal),
        bottleneck: evidence.weigh(),
    }
}

/// Name and meaning of the parts that the server measures.
const OF_SERVER: [(&str, &str); 3] = [
    (
        "source_to_received",
        "from sending to the server's reading. The percentiles count from the schedule, as the server does; the mean is \
         less what the generator was late",
    ),
    ("batch_wait", "wait in the server's batch for its flush window"),
    ("outbox_wait", "wait in the server's outbox until the kernel took it"),
];

/// Explains the latency as a sum. Empty without the server's histograms, or without any latency.
pub(crate) fn stages(
    of_server: &BTreeMap<String, Histogram<u64>>,
    latency_mean: f64,
    lateness: &Histogram<u64>,
    clock: Option<ClockOffset>,
) -> Vec<StageResult> {
    let batch_wait = of_server.get("batch_wait").is_some_and(|it| !it.is_empty());
    if !batch_wait || latency_mean == 0.0 {
        return Vec::new();
    }
    let late = Percentiles::of(lateness);
    let mut stages = vec![StageResult {
        name: "generator_late".to_owned(),
        meaning: "from the scheduled instant to sending: the generator's own".to_owned(),
        source: StageSource::Generator,
        latency: late,
    }];
    for (name, meaning) in OF_SERVER {
        let mut latency = of_server.get(name).map(Percentiles::of).unwrap_or_default();
        let mut meaning = meaning.to_owned();
        if name == "source_to_received" {
            if let Some(clock) = clock {
                latency = latency.earlier_by(clock.offset_ns);
                meaning.push_str("; corrected by the estimated offset of the clocks");
            }
            latency.mean = (latency.mean - late.mean).max(0.0);
        }
        stages.push(StageResult { name: name.to_owned(), meaning, source: StageSource::Server, latency });
    }
    let known: f64 = stages.iter().map(|stage| stage.latency.mean).sum();
    stages.push(StageResult {
        name: "kernel_to_arrival".to_owned(),
        meaning: "the rest: both kernels, the network, and the generator's reading".to_owned(),
        source: StageSource::Remainder,
        latency: Percentiles { mean: (latency_mean - known).max(0.0), ..Percentiles::default() },
    });
    stages
}

#[cfg(test)]
pub(crate) mod fixture {
    //! Outcomes for tests.

    use super::*;
    use crate::ledger::Account;
    use crate::measure::{Window, histogram};
    use crate::result::{BuildInfo, RunFile, ScenarioResult, Subject};
    use crate::scenario::named;
    use crate::snapshot::Used;
    use crate::stages::ServerStages;

    pub(crate) fn load(cpus: f64, busiest: f64) -> Load {
        Load { cpus, busiest, waiting: 0.0 }
    }

    pub(crate) fn phase(label: &str, latency_ns: u64) -> Phase {
        let mut latency = histogram();
        latency.record_n(latency_ns, 10_000).unwrap();
        Phase {
            label: label.to_owned(),
            window: Window { from_ns: 0, to_ns: 2_000_000_000 },
            messages: 10_000,
            arrived: 990_000,
            latency,
            lateness: histogram(),
            announced: 0,
            ages: BTreeMap::new(),
            age_of: BTreeMap::new(),
            stages: ServerStages::default(),
            seconds: Vec::new(),
            interval_latencies: Vec::new(),
            used: Used {
                server_cpu: Some(load(0.198, 0.1)),
                server_memory: Some(Memory { resident: 3 << 20, peak: 4 << 20 }),
                client_cpu: Some(load(0.5, 0.4)),
                client_memory: Some(Memory { resident: 5 << 20, peak: 6 << 20 }),
                machine: Some((0.5, 0.0)),
                cores: Vec::new(),
            },
        }
    }

    pub(crate) fn outcome(name: &str, phases: Vec<Phase>) -> Outcome {
        Outcome {
            scenario: named(name).unwrap(),
            phases,
            account: Account { published: 100, received: 100, ..Account::default() },
            server_before: Some(Memory { resident: 1 << 20, peak: 1 << 20 }),
            ..Outcome::default()
        }
    }

    pub(crate) fn subject() -> Subject {
        Subject {
            name: "tidewire".into(),
            version: None,
            command: "tidewire serve".into(),
            note: None,
            workers: Some(1),
            cpu: None,
            cpus: 1,
            generator_cpu: None,
            kept_awake: false,
        }
    }

    pub(crate) fn file(outcomes: &[Outcome]) -> RunFile {
        let result = |outcome: &Outcome| ScenarioResult {
            subject: subject(),
            scenario: outcome.scenario.clone(),
            repetitions: vec![repetition(outcome, &outcome.scenario, 1_700_000_000, 1)],
        };
        RunFile {
            format: crate::result::FORMAT,
            started_s: 1_700_000_000,
            command: vec!["loadtest".into()],
            machine: crate::proc::describe(),
            generator: BuildInfo::own(),
            results: outcomes.iter().map(result).collect(),
            skipped: Vec::new(),
            shared: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::{file, outcome, phase};
    use super::*;
    use crate::churn::Churned;
    use crate::ledger::Account;
    use crate::measure::histogram;
    use crate::scenario::named;

    #[test]
    fn what_makes_a_run_unsound() {
        let good = || outcome("steady", vec![phase("steady", 1)]);
        let lost = Account { published: 5, received: 4, unannounced: 1, ..Account::default() };
        let cases: [(&str, Outcome, bool); 5] = [
            ("nothing", good(), true),
            ("a loss", Outcome { account: lost, ..good() }, false),
            (
                "a loss of the stalled one",
                Outcome { others: [("stalled".into(), lost)].into(), ..good() },
                false,
            ),
            ("a connection cut off", Outcome { ended: vec!["x".into()], ..good() }, false),
            ("a refusal, which was said", Outcome { refused: 3, ..good() }, true),
        ];
        for (name, outcome, sound) in cases {
            assert_eq!(repetition(&outcome, &outcome.scenario, 0, 1).sound, sound, "{name}");
        }
    }

    #[test]
    fn the_json_has_what_tools_need() {
        let mut visits = histogram();
        visits.record(400_000).unwrap();
        let churned = Churned { to_subscribed: visits, failed: 0, failures: vec![] };
        let file = file(&[
            Outcome { churned: Some(churned), ..outcome("churn", vec![phase("churn", 105_000)]) },
            outcome("idle", vec![phase("idle", 1)]),
        ]);
        let json = serde_json::to_value(&file).unwrap();
        assert_eq!(json["format"], 2);
        assert_eq!(json["results"][0]["scenario"]["load"]["scheduled"]["per_s"], 1_000);
        assert_eq!(json["results"][0]["scenario"]["warmup_s"], 1.0);
        let repetition = &json["results"][0]["repetitions"][0];
        let phase = &repetition["phases"][0];
        assert_eq!(phase["latency"]["count"], 10_000);
        assert_eq!(phase["bottleneck"], "neither");
        for field in
            ["asked_messages_per_s", "messages_per_s", "deliveries_per_s", "server_cpu_s_per_million"]
        {
            assert!(phase[field].is_number(), "{field}");
        }
        for field in ["latency", "lateness"] {
            for figure in ["p50", "p90", "p99", "p999", "max", "mean"] {
                assert!(phase[field][figure].is_number(), "{field}.{figure}");
            }
        }
        assert_eq!(phase["server"]["peak_bytes"], 4 << 20);
        assert_eq!(repetition["visits"]["set_up"]["count"], 1);
        assert_eq!(repetition["account"]["unannounced"], 0);
        assert!(json["results"][1]["repetitions"][0]["idle_bytes_per_connection"].as_f64().unwrap() > 400.0);
        let read: crate::result::RunFile = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), json, "it reads back");
    }

    #[test]
    fn how_soon_all_is_normal_again() {
        let scenario = named("overload").unwrap();
        let phases = vec![phase("half", 10_000_000), phase("twice", 900_000_000), phase("again", 12_000_000)];
        let outcome = outcome("overload", phases);
        let of = |p99_ms: [u64; 4]| {
            let mut once = repetition(&outcome, &scenario, 0, 1);
            let last = once.phases.last_mut().unwrap();
            last.seconds = 5.0;
            let second = |(at, p99_ms): (usize, u64)| crate::result::Second {
                at_s: 11.1 + 0.1 * at as f64,
                messages_per_s: 0.0,
                deliveries_per_s: 0.0,
                p50_ns: 0,
                p99_ns: p99_ms * 1_000_000,
                max_ns: 0,
                server_cpus: None,
                client_cpus: None,
                server_bytes: None,
            };
            last.seconds_of = p99_ms.into_iter().enumerate().map(second).collect();
            back_to_normal_after(&scenario, &once).map(|it| it.map(|seconds| (seconds * 10.0).round()))
        };
        assert_eq!(of([5, 5, 5, 5]), Some(Some(0.0)));
        assert_eq!(of([500, 30, 19, 5]), Some(Some(2.0)));
        assert_eq!(of([5, 500, 5, 5]), Some(Some(2.0)), "and stays so");
        assert_eq!(of([500, 500, 500, 500]), Some(None));
        let steady = named("steady").unwrap();
        assert_eq!(back_to_normal_after(&steady, &repetition(&outcome, &steady, 0, 1)), None);
    }

    #[test]
    fn a_part_without_publishers_is_not_an_idle_scenario() {
        let whole = named("steady").unwrap();
        let share = crate::scenario::Share { index: 0, of: 2 };
        let part = Outcome { scenario: whole.share(share), ..outcome("steady", vec![phase("steady", 1)]) };
        assert_eq!(part.scenario.messages_per_s(0), Some(0.0));
        assert_eq!(repetition(&part, &whole, 0, 1).idle_bytes_per_connection, None);
        assert!(repetition(&part, &part.scenario, 0, 1).idle_bytes_per_connection.is_some());
    }

    #[test]
    fn the_parts_add_up_to_the_latency() {
        let of = |ns: u64| {
            let mut histogram = histogram();
            histogram.record_n(ns, 100).unwrap();
            histogram
        };
        let names = [("source_to_received", 300_000), ("batch_wait", 5_000_000), ("outbox_wait", 20_000)];
        let of_server: BTreeMap<_, _> = names.map(|(name, ns)| (name.to_owned(), of(ns))).into();
        let means = |clock: Option<ClockOffset>| -> Vec<f64> {
            let stages = stages(&of_server, 6_000_000.0, &of(100_000), clock);
            stages.iter().map(|stage| (stage.latency.mean / 1e4).round()).collect()
        };
        assert_eq!(means(None), [10.0, 20.0, 500.0, 2.0, 68.0]);
        let ahead = ClockOffset { offset_ns: 150_000, error_ns: 1, drift_ns: 0 };
        assert_eq!(means(Some(ahead)), [10.0, 5.0, 500.0, 2.0, 83.0], "the rest takes what the clocks gave");
        assert!(stages(&BTreeMap::new(), 6e6, &of(1), None).is_empty(), "a server without histograms");
        assert!(stages(&of_server, 0.0, &of(1), None).is_empty(), "nothing arrived");
    }
}
