//! What came of a run in figures: the shape of the JSON file, the bottleneck, the verdict. Pure; `table` makes text of it.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::ledger::Account;
use crate::proc::Load;
use crate::run::{Outcome, Phase};
use crate::scenario::{Disturbance, Scenario};

/// Version of the JSON file's shape: raised when a field changes its meaning or goes.
const FORMAT: u32 = 1;

/// Share of a CPU from which a thread, or a set of CPUs, counts as full.
const FULL: f64 = 0.9;

/// Share of the latency, both at p99, from which the lateness of the generator's own schedule makes the figures its own.
const LATE_SHARE: f64 = 0.25;

/// Lateness, at p99, that is never blamed: timers and wake-ups of a virtual machine.
const LATENESS_NS_ALLOWED: u64 = 500_000;

/// Which side limited a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bottleneck {
    /// Neither: what was asked for was done, with room left.
    Neither,
    /// The server's CPUs were full.
    Server,
    /// The generator's thread was full, or its schedule late: the figures say little about the server.
    Generator,
    /// Both were full.
    Both,
    /// Neither was full, but the machine was, or its CPUs were taken away.
    Machine,
}

impl Bottleneck {
    /// As the table shows it.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Neither => "-",
            Self::Server => "server",
            Self::Generator => "GENERATOR",
            Self::Both => "both",
            Self::Machine => "machine",
        }
    }
}

/// What speaks for one side or the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Evidence {
    /// CPU of the server.
    pub server: Option<Load>,
    /// CPUs that the server can use.
    pub server_cpus: usize,
    /// CPU of the generator.
    pub client: Option<Load>,
    /// CPUs that the generator can use.
    pub client_cpus: usize,
    /// p99 of its lateness.
    pub lateness_p99_ns: u64,
    /// p99 of the latency.
    pub latency_p99_ns: u64,
    /// Share of the machine's CPUs that was idle.
    pub idle: Option<f64>,
}

impl Evidence {
    /// Weighs it.
    pub(crate) fn weigh(&self) -> Bottleneck {
        let full = |load: Option<Load>, cpus: usize| load.is_some_and(|load| load.cpus >= FULL * cpus as f64);
        let server = full(self.server, self.server_cpus);
        // One full thread is enough: the subscribers of a thread cannot move to another.
        let thread = self.client.is_some_and(|load| load.busiest >= FULL);
        let client = thread || full(self.client, self.client_cpus);
        let late = self.lateness_p99_ns > LATENESS_NS_ALLOWED
            && self.lateness_p99_ns as f64 > LATE_SHARE * self.latency_p99_ns as f64;
        match (server, client) {
            (true, true) => Bottleneck::Both,
            (true, false) if late => Bottleneck::Both,
            (true, false) => Bottleneck::Server,
            (false, true) => Bottleneck::Generator,
            (false, false) if self.idle.is_some_and(|idle| idle < 1.0 - FULL) => Bottleneck::Machine,
            (false, false) if late => Bottleneck::Generator,
            (false, false) => Bottleneck::Neither,
        }
    }
}

/// A whole run, as the JSON file has it. Durations are nanoseconds, memory is bytes, CPU is CPUs (1.0 is one).
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Of this shape.
    pub format: u32,
    /// Seconds since the Unix epoch.
    pub started_s: u64,
    /// The machine.
    pub machine: String,
    /// The command line.
    pub command: Vec<String>,
    /// The server that was measured.
    pub server: ServerInfo,
    /// One for each scenario.
    pub results: Vec<ScenarioResult>,
}

/// The server that was measured.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ServerInfo {
    /// Its binary, or its URL if it was running already.
    pub what: String,
    /// Its worker threads, if they are known.
    pub workers: Option<usize>,
    /// The CPU it was bound to.
    pub cpu: Option<usize>,
    /// CPUs that it can use.
    #[serde(skip)]
    pub cpus: usize,
}

/// One scenario.
#[derive(Debug, Serialize)]
pub(crate) struct ScenarioResult {
    /// What was run.
    pub scenario: Scenario,
    /// Measured phases.
    pub phases: Vec<PhaseResult>,
    /// The books of the healthy subscribers, in samples, warm-up included.
    pub account: Account,
    /// The books of the stalled one.
    pub stalled: Option<Account>,
    /// p99 with the stalled subscriber over p99 without.
    pub p99_ratio: Option<f64>,
    /// The visitors of `churn`.
    pub churn: Option<ChurnResult>,
    /// Resident memory of the server for each connection, where nothing was published.
    pub idle_bytes_per_connection: Option<f64>,
    /// Samples that the server did not take, and said so.
    pub refused: u64,
    /// What it said, and how often.
    pub refusals: Vec<(String, u64)>,
    /// Connections that ended early.
    pub ended: Vec<String>,
    /// Whether nothing was lost unannounced and nobody was cut off.
    pub sound: bool,
}

/// One measured phase.
#[derive(Debug, Serialize)]
pub(crate) struct PhaseResult {
    /// Scenario and phase; the tag in the histogram log.
    pub label: String,
    /// Messages per second asked for; null in a closed loop.
    pub asked_messages_per_s: Option<u64>,
    /// Messages per second that went out.
    pub messages_per_s: f64,
    /// Samples per second that arrived.
    pub deliveries_per_s: f64,
    /// Schedule to arrival.
    pub latency: Percentiles,
    /// Schedule to sending: what the generator adds by itself.
    pub lateness: Percentiles,
    /// Scheduled to read by the server.
    pub to_received: Percentiles,
    /// Read by the server to sealed.
    pub batch_wait: Percentiles,
    /// Sealed to read by the subscriber.
    pub delivery: Percentiles,
    /// The server's process.
    pub server: Side,
    /// This process.
    pub client: Side,
    /// CPU seconds of the server for a million deliveries.
    pub server_cpu_s_per_million: Option<f64>,
    /// Share of the machine's CPUs that was idle.
    pub machine_idle: Option<f64>,
    /// Share of the machine's CPUs that the hypervisor took.
    pub machine_steal: Option<f64>,
    /// Which side was the limit.
    pub bottleneck: Bottleneck,
}

/// CPU and memory of a process.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Side {
    /// CPUs.
    pub cpus: Option<f64>,
    /// CPUs of its busiest thread.
    pub busiest_thread: Option<f64>,
    /// CPUs that it could have used and did not get.
    pub waiting: Option<f64>,
    /// Peak resident memory in the phase.
    pub peak_bytes: Option<u64>,
}

/// Visitors that come and leave.
#[derive(Debug, Serialize)]
pub(crate) struct ChurnResult {
    /// Schedule to `subscribed`.
    pub to_subscribed: Percentiles,
    /// Visits that failed.
    pub failed: u64,
    /// Why.
    pub failures: Vec<String>,
}

/// A histogram in a few figures, nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Percentiles {
    /// Values recorded.
    pub count: u64,
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: u64,
    /// 90 of 100 are at most this.
    pub p90: u64,
    /// 99 of 100.
    pub p99: u64,
    /// 999 of 1,000.
    pub p999: u64,
    /// The largest.
    pub max: u64,
}

impl Percentiles {
    /// Of the histogram; all 0 if it is empty.
    pub(crate) fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self {
            count: histogram.len(),
            mean: histogram.mean(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max(),
        }
    }
}

impl Report {
    /// An empty one.
    pub(crate) fn new(started_s: u64, server: ServerInfo) -> Self {
        Self {
            format: FORMAT,
            started_s,
            machine: crate::proc::describe(),
            command: std::env::args().collect(),
            server,
            results: Vec::new(),
        }
    }

    /// Adds what came of a scenario.
    pub(crate) fn add(&mut self, outcome: &Outcome) {
        self.results.push(ScenarioResult::of(outcome, self.server.cpus));
    }

    /// Whether every scenario was sound.
    pub(crate) fn is_sound(&self) -> bool {
        self.results.iter().all(|result| result.sound)
    }
}

impl ScenarioResult {
    fn of(outcome: &Outcome, server_cpus: usize) -> Self {
        let scenario = &outcome.scenario;
        let phases: Vec<PhaseResult> =
            outcome.phases.iter().map(|phase| PhaseResult::of(phase, scenario, server_cpus)).collect();
        let p99_ratio = match (scenario.disturbance, phases.as_slice()) {
            (Disturbance::Stalled, [without, with]) if without.latency.p99 > 0 => {
                Some(with.latency.p99 as f64 / without.latency.p99 as f64)
            }
            _ => None,
        };
        let idle_bytes_per_connection = match (scenario.messages_per_s(), outcome.server_before) {
            (Some(0), Some(before)) => outcome.phases.last().and_then(|phase| {
                let grown = phase.server_memory?.resident.saturating_sub(before.resident);
                Some(grown as f64 / scenario.connections() as f64)
            }),
            _ => None,
        };
        let churn = outcome.churned.as_ref().map(|churned| ChurnResult {
            to_subscribed: Percentiles::of(&churned.to_subscribed),
            failed: churned.failed,
            failures: churned.failures.clone(),
        });
        let sound = outcome.account.is_exact()
            && outcome.stalled.is_none_or(|account| account.is_exact())
            // Under this policy being cut off is what was asked for, and the close code says it.
            && (outcome.ended.is_empty() || scenario.policy == Some("disconnect"));
        Self {
            scenario: scenario.clone(),
            phases,
            account: outcome.account,
            stalled: outcome.stalled,
            p99_ratio,
            churn,
            idle_bytes_per_connection,
            refused: outcome.refused,
            refusals: outcome.refusals.clone().into_iter().collect(),
            ended: outcome.ended.clone(),
            sound,
        }
    }
}

impl PhaseResult {
    fn of(phase: &Phase, scenario: &Scenario, server_cpus: usize) -> Self {
        let seconds = (phase.window.to_ns - phase.window.from_ns) as f64 / 1e9;
        let deliveries_per_s = phase.arrived as f64 / seconds;
        let side = |load: Option<Load>, memory: Option<crate::proc::Memory>| Side {
            cpus: load.map(|load| load.cpus),
            busiest_thread: load.map(|load| load.busiest),
            waiting: load.map(|load| load.waiting),
            peak_bytes: memory.map(|memory| memory.peak),
        };
        let lateness = Percentiles::of(&phase.lateness);
        let evidence = Evidence {
            server: phase.server_cpu,
            server_cpus,
            client: phase.client_cpu,
            client_cpus: crate::proc::allowed_cpus(),
            lateness_p99_ns: lateness.p99,
            latency_p99_ns: phase.latency.value_at_quantile(0.99),
            idle: phase.machine.map(|(idle, _)| idle),
        };
        let stages = &phase.seen.stages;
        Self {
            label: phase.label.clone(),
            asked_messages_per_s: scenario.messages_per_s(),
            messages_per_s: phase.messages as f64 / seconds,
            deliveries_per_s,
            latency: Percentiles::of(&phase.latency),
            lateness,
            to_received: Percentiles::of(&stages.to_received),
            batch_wait: Percentiles::of(&stages.batch_wait),
            delivery: Percentiles::of(&stages.delivery),
            server: side(phase.server_cpu, phase.server_memory),
            client: side(phase.client_cpu, phase.client_memory),
            server_cpu_s_per_million: phase
                .server_cpu
                .filter(|_| phase.arrived > 0)
                .map(|load| load.cpus * 1e6 / deliveries_per_s),
            machine_idle: phase.machine.map(|(idle, _)| idle),
            machine_steal: phase.machine.map(|(_, steal)| steal),
            bottleneck: evidence.weigh(),
        }
    }
}

#[cfg(test)]
pub(crate) mod fixture {
    //! Outcomes for tests.

    use super::*;
    use crate::measure::{Seen, Window, histogram};
    use crate::proc::Memory;
    use crate::scenario::named;
    use std::collections::BTreeMap;

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
            seen: Seen::new(),
            server_cpu: Some(load(0.198, 0.1)),
            server_memory: Some(Memory { resident: 3 << 20, peak: 4 << 20 }),
            client_cpu: Some(load(0.5, 0.4)),
            client_memory: Some(Memory { resident: 5 << 20, peak: 6 << 20 }),
            machine: Some((0.5, 0.0)),
        }
    }

    pub(crate) fn outcome(name: &str, phases: Vec<Phase>) -> Outcome {
        Outcome {
            scenario: named(name).unwrap(),
            phases,
            intervals: vec![],
            account: Account { published: 100, received: 100, ..Account::default() },
            stalled: None,
            churned: None,
            server_before: Some(Memory { resident: 1 << 20, peak: 1 << 20 }),
            refused: 0,
            refusals: BTreeMap::new(),
            ended: vec![],
        }
    }

    pub(crate) fn report(outcomes: &[Outcome]) -> Report {
        let server = ServerInfo { what: "tidewire".into(), workers: Some(1), cpu: None, cpus: 1 };
        let mut report = Report::new(1_700_000_000, server);
        outcomes.iter().for_each(|outcome| report.add(outcome));
        report
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::{load, outcome, phase, report};
    use super::*;
    use crate::churn::Churned;
    use crate::measure::histogram;

    #[test]
    fn what_makes_a_run_unsound() {
        let good = || outcome("steady", vec![phase("steady", 1)]);
        let lost = Account { published: 5, received: 4, unannounced: 1, ..Account::default() };
        let cases: [(&str, Outcome, bool); 5] = [
            ("nothing", good(), true),
            ("a loss", Outcome { account: lost, ..good() }, false),
            ("a loss of the stalled one", Outcome { stalled: Some(lost), ..good() }, false),
            ("a connection cut off", Outcome { ended: vec!["x".into()], ..good() }, false),
            ("a refusal, which was said", Outcome { refused: 3, ..good() }, true),
        ];
        for (name, outcome, sound) in cases {
            assert_eq!(report(&[outcome]).is_sound(), sound, "{name}");
        }
    }

    #[test]
    fn who_was_the_bottleneck() {
        let evidence = |server: f64, busiest: f64, late_us: u64, idle: f64| Evidence {
            server: Some(load(server, server)),
            server_cpus: 1,
            client: Some(load(busiest, busiest)),
            client_cpus: 2,
            lateness_p99_ns: late_us * 1_000,
            latency_p99_ns: 12_000_000,
            idle: Some(idle),
        };
        let cases = [
            (evidence(0.2, 0.3, 50, 0.7), Bottleneck::Neither),
            (evidence(0.95, 0.3, 50, 0.3), Bottleneck::Server),
            (evidence(0.5, 0.95, 50, 0.2), Bottleneck::Generator),
            (evidence(0.95, 0.95, 50, 0.0), Bottleneck::Both),
            (evidence(0.95, 0.5, 5_000, 0.2), Bottleneck::Both),
            (evidence(0.2, 0.3, 5_000, 0.7), Bottleneck::Generator),
            (evidence(0.2, 0.3, 2_900, 0.7), Bottleneck::Neither),
            (Evidence { latency_p99_ns: 2_000_000, ..evidence(0.2, 0.3, 600, 0.7) }, Bottleneck::Generator),
            (Evidence { latency_p99_ns: 200_000, ..evidence(0.2, 0.3, 400, 0.7) }, Bottleneck::Neither),
            (evidence(0.4, 0.4, 50, 0.01), Bottleneck::Machine),
            (Evidence { client_cpus: 1, ..evidence(0.4, 0.91, 50, 0.3) }, Bottleneck::Generator),
            (Evidence { server: None, ..evidence(0.0, 0.2, 50, 0.5) }, Bottleneck::Neither),
        ];
        for (evidence, expected) in cases {
            assert_eq!(evidence.weigh(), expected, "{evidence:?}");
        }
    }

    #[test]
    fn the_json_has_what_tools_need() {
        let mut visits = histogram();
        visits.record(400_000).unwrap();
        let churned = Churned { to_subscribed: visits, failed: 0, failures: vec![] };
        let report = report(&[
            Outcome { churned: Some(churned), ..outcome("churn", vec![phase("churn", 105_000)]) },
            outcome("idle", vec![phase("idle", 1)]),
        ]);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["format"], 1);
        assert_eq!(json["results"][0]["scenario"]["load"]["scheduled"], 1_000);
        assert_eq!(json["results"][0]["scenario"]["warmup_s"], 1.0);
        let phase = &json["results"][0]["phases"][0];
        assert_eq!(phase["latency"]["count"], 10_000);
        assert_eq!(phase["bottleneck"], "neither");
        for field in
            ["asked_messages_per_s", "messages_per_s", "deliveries_per_s", "server_cpu_s_per_million"]
        {
            assert!(phase[field].is_number(), "{field}");
        }
        for field in ["latency", "lateness", "to_received", "batch_wait", "delivery"] {
            for figure in ["p50", "p90", "p99", "p999", "max", "mean"] {
                assert!(phase[field][figure].is_number(), "{field}.{figure}");
            }
        }
        assert_eq!(phase["server"]["peak_bytes"], 4 << 20);
        assert_eq!(json["results"][0]["churn"]["to_subscribed"]["count"], 1);
        assert_eq!(json["results"][0]["account"]["unannounced"], 0);
        assert!(json["results"][1]["idle_bytes_per_connection"].as_f64().unwrap() > 400.0);
    }
}
