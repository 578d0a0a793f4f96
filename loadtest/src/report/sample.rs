//! Made-up runs for tests: whole files, with the shape of real ones. Never in the program.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use crate::ledger::Account;
use crate::publishers::Returns;
use crate::result::{
    AgeSecond, Bottleneck, BuildInfo, Core, EncodedHistogram, FORMAT, MachineInfo, Percentiles, PhaseResult,
    Repetition, RunFile, ScenarioResult, Second, Side, Skipped, StageResult, StageSource, Subject, Visits,
};
use crate::scenario::named;

/// How large, and how fast its server is.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// Names of the servers, each slower than the one before.
    pub subjects: Vec<String>,
    /// Scenarios, of those that are built in.
    pub scenarios: Vec<&'static str>,
    /// Times that each was run.
    pub repetitions: usize,
    /// Seconds measured.
    pub seconds: usize,
    /// Factor on all times.
    pub slowness: f64,
}

impl Default for Sample {
    fn default() -> Self {
        Self {
            subjects: vec!["tidewire".to_owned()],
            scenarios: vec!["steady", "saturate", "slow_reader", "idle", "churn"],
            repetitions: 3,
            seconds: 6,
            slowness: 1.0,
        }
    }
}

impl Sample {
    /// A file, its command line ending in `word`.
    pub(crate) fn run(&self, word: &str) -> RunFile {
        let mut results = Vec::new();
        for name in &self.scenarios {
            for (rank, subject) in (0u32..).zip(&self.subjects) {
                let slowness = self.slowness * 1.7f64.powi(i32::try_from(rank).unwrap());
                results.push(ScenarioResult {
                    subject: server(subject),
                    scenario: named(name).unwrap(),
                    repetitions: (0..self.repetitions)
                        .map(|it| self.repetition(name, slowness * (1.0 + 0.004 * it as f64)))
                        .collect(),
                });
            }
        }
        RunFile {
            format: FORMAT,
            started_s: 1_795_600_739,
            command: vec!["loadtest".to_owned(), "run".to_owned(), word.to_owned()],
            machine: MachineInfo {
                cpus: 2,
                processor: "AMD EPYC".to_owned(),
                kernel: "6.18.0".to_owned(),
                distribution: Some("Debian GNU/Linux 13 (trixie)".to_owned()),
                memory_bytes: 8 << 30,
                is_virtual: true,
            },
            generator: BuildInfo {
                version: "0.1.0".to_owned(),
                revision: Some("284ba3bc12ae".to_owned()),
                profile: "release".to_owned(),
                rustc: Some("rustc 1.95.0".to_owned()),
            },
            results,
            skipped: vec![Skipped {
                what: "mosquitto".to_owned(),
                why: "not installed; scripts/peers.sh installs it".to_owned(),
            }],
            shared: None,
        }
    }

    fn repetition(&self, name: &str, slowness: f64) -> Repetition {
        let labels: Vec<String> = match name {
            "slow_reader" => vec!["slow_reader/without".to_owned(), "slow_reader/with".to_owned()],
            _ => vec![name.to_owned()],
        };
        let phases = (0..).zip(&labels).map(|(at, label)| self.phase(name, label, at, slowness)).collect();
        let account = Account { published: 60_000, received: 59_990, announced: 10, ..Account::default() };
        let others = match name {
            "slow_reader" => {
                let it = Account { published: 30_000, received: 5_000, announced: 25_000, ..account };
                BTreeMap::from([("stalled".to_owned(), it)])
            }
            _ => BTreeMap::new(),
        };
        Repetition {
            started_s: 1_795_600_740,
            phases,
            account,
            others,
            visits: (name == "churn").then(|| Visits {
                per_s: 100.0,
                set_up: Percentiles::of(&histogram(400_000.0, 600)),
                set_up_histogram: EncodedHistogram::default(),
                failed: 0,
                failures: vec![],
            }),
            idle_bytes_per_connection: (name == "idle").then_some(6_226.0 * slowness),
            returns: Returns::default(),
            refused: 0,
            refusals: BTreeMap::new(),
            ended: vec![],
            sound: true,
            clock: None,
        }
    }

    fn phase(&self, name: &str, label: &str, index: usize, slowness: f64) -> PhaseResult {
        let asked = match name {
            "saturate" => None,
            "idle" => Some(0.0),
            _ => Some(1_000.0),
        };
        let is_silent = asked == Some(0.0);
        let got = if is_silent { 0.0 } else { asked.unwrap_or(400_000.0 / slowness) };
        let latency = histogram(5_200_000.0 * slowness, if is_silent { 0 } else { 60_000 });
        let total = Percentiles::of(&latency);
        let stage = |name: &str, meaning: &str, source, share: f64| StageResult {
            name: name.to_owned(),
            meaning: meaning.to_owned(),
            source,
            latency: Percentiles {
                mean: total.mean * share,
                ..Percentiles::of(&histogram(5e6 * share, 1_000))
            },
        };
        let second = |at: usize| Second {
            at_s: (index * (self.seconds + 1) + at + 2) as f64,
            messages_per_s: got * (1.0 - 0.002 * (at % 3) as f64),
            deliveries_per_s: got * 10.0,
            p50_ns: total.p50 + 20_000 * at as u64,
            p99_ns: total.p99 + 90_000 * (at as u64 % 4),
            max_ns: total.max,
            server_cpus: Some(0.04 * slowness + 0.002 * (at % 2) as f64),
            client_cpus: Some(0.05),
            server_bytes: Some((18 << 20) + (at as u64) * (1 << 16)),
        };
        PhaseResult {
            label: label.to_owned(),
            seconds: self.seconds as f64,
            asked_messages_per_s: asked,
            messages_per_s: got,
            samples_per_s: got,
            deliveries_per_s: got * 10.0,
            announced: 0,
            latency: total,
            lateness: Percentiles::of(&histogram(30_000.0, 6_000)),
            age: if index == 1 {
                BTreeMap::from([("stalled".to_owned(), Percentiles::of(&histogram(4e8, 900)))])
            } else {
                BTreeMap::new()
            },
            latency_histogram: EncodedHistogram::of(&latency),
            lateness_histogram: EncodedHistogram::default(),
            age_histograms: BTreeMap::new(),
            age_of: if index == 1 {
                let read = |at: usize| AgeSecond {
                    at_s: second(at).at_s,
                    p50_ns: 300_000_000,
                    p99_ns: 560_000_000 + 3_000_000 * (at as u64 % 5),
                    max_ns: 600_000_000,
                };
                BTreeMap::from([("stalled".to_owned(), (0..self.seconds).map(read).collect())])
            } else {
                BTreeMap::new()
            },
            second_histograms: vec![],
            stages: if is_silent {
                vec![]
            } else {
                vec![
                    stage("generator_late", "due until sent", StageSource::Generator, 0.01),
                    stage("source_to_received", "sent until read by the server", StageSource::Server, 0.02),
                    stage("batch_wait", "read until sealed", StageSource::Server, 0.9),
                    stage("outbox_wait", "sealed until handed to the kernel", StageSource::Server, 0.01),
                    stage("kernel_to_arrival", "handed over until read", StageSource::Remainder, 0.06),
                ]
            },
            seconds_of: if is_silent { vec![] } else { (0..self.seconds).map(second).collect() },
            server: Side {
                cpus: Some(0.04 * slowness),
                busiest_thread: Some(0.03),
                waiting: Some(0.0),
                peak_bytes: Some(19 << 20),
            },
            client: Side {
                cpus: Some(0.05),
                busiest_thread: Some(0.05),
                waiting: Some(0.0),
                peak_bytes: Some(9 << 20),
            },
            cores: vec![Core { cpu: 0, busy: 0.05, steal: 0.0 }, Core { cpu: 1, busy: 0.07, steal: 0.001 }],
            server_cpu_s_per_million: (!is_silent).then_some(4.1 * slowness),
            machine_idle: Some(0.9),
            machine_steal: Some(0.0005),
            bottleneck: Bottleneck::Neither,
        }
    }
}

fn server(name: &str) -> Subject {
    Subject {
        name: name.to_owned(),
        version: Some(format!("{name} 0.1.0")),
        command: format!("target/release/{name} serve --workers 1"),
        note: None,
        workers: Some(1),
        cpu: Some(0),
        cpus: 1,
        generator_cpu: Some(1),
        kept_awake: false,
    }
}

/// Values spread around a middle, with a tail, as latencies are.
fn histogram(middle: f64, count: u32) -> Histogram<u64> {
    let mut histogram = Histogram::new_with_bounds(1, 60_000_000_000, 2).unwrap();
    // So many values at once, since tests make many of these.
    let steps = count.min(600);
    for index in 0..steps {
        let quantile = (f64::from(index) + 0.5) / f64::from(steps);
        let value = middle * (0.4 + 1.2 * quantile + 0.02 / (1.0 - quantile).powf(0.35));
        histogram.record_n(value.round().to_string().parse().unwrap(), u64::from(count / steps)).unwrap();
    }
    histogram
}
