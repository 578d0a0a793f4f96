//! What a run found: the shape of the JSON file that `run`, `peers` and `find-limit` write, and that `report`, `compare` and
//! `merge` read. Types only; how they are filled is `verdict`'s and `run`'s, what is drawn from them `figures`'.
//!
//! Durations are nanoseconds (`_ns`), memory is bytes, CPU is CPUs (1.0 is one CPU kept busy), unless a name says otherwise.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::ledger::Account;
use crate::publishers::Returns;
use crate::scenario::{Scenario, Share};

/// Version of the file's shape: raised when a field changes its meaning or goes.
pub(crate) const FORMAT: u32 = 2;

/// A whole file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RunFile {
    /// [`FORMAT`].
    pub format: u32,
    /// Seconds since the Unix epoch.
    pub started_s: u64,
    /// The command line.
    pub command: Vec<String>,
    /// Where the generator ran.
    pub machine: MachineInfo,
    /// The generator itself.
    pub generator: BuildInfo,
    /// One for each subject and scenario, in the order in which they ran first.
    pub results: Vec<ScenarioResult>,
    /// What was asked for and could not be run, and why: peers that are not installed.
    pub skipped: Vec<Skipped>,
    /// Which part of a run of several processes this is, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shared: Option<SharedRun>,
}

/// A part of a run of several processes, to be merged with the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SharedRun {
    /// The same in all parts.
    pub run_id: String,
    /// Which part.
    pub share: Share,
}

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MachineInfo {
    /// CPUs.
    pub cpus: usize,
    /// Name of the processor.
    pub processor: String,
    /// Version of the kernel.
    pub kernel: String,
    /// Name of the distribution.
    pub distribution: Option<String>,
    /// Memory.
    pub memory_bytes: u64,
    /// Whether it says that it is a virtual machine.
    pub is_virtual: bool,
}

/// How a program was built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BuildInfo {
    /// Its version.
    pub version: String,
    /// Commit, with `-dirty` where the work tree had changes; none outside a checkout.
    pub revision: Option<String>,
    /// `release` or `debug`.
    pub profile: String,
    /// The compiler.
    pub rustc: Option<String>,
}

/// What was measured: a server, as it was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Subject {
    /// What tables call it: `tidewire`, `nats-server`, `limit`.
    pub name: String,
    /// Its version as it says it itself.
    pub version: Option<String>,
    /// The command line that started it, or the URL if it ran already.
    pub command: String,
    /// What configuration this is, in a line, where that needs saying.
    pub note: Option<String>,
    /// Worker threads, if known.
    pub workers: Option<usize>,
    /// The CPU that it was bound to.
    pub cpu: Option<usize>,
    /// CPUs that it could use.
    pub cpus: usize,
    /// The CPU that the generator was bound to.
    pub generator_cpu: Option<usize>,
    /// Whether idle-priority spinners kept the CPUs from sleeping.
    pub kept_awake: bool,
}

/// Something that was left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Skipped {
    /// What.
    pub what: String,
    /// Why.
    pub why: String,
}

/// One scenario against one subject.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ScenarioResult {
    /// Against what.
    pub subject: Subject,
    /// What was run.
    pub scenario: Scenario,
    /// Each time that it was run; at least one.
    pub repetitions: Vec<Repetition>,
}

/// One time that a scenario was run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Repetition {
    /// Seconds since the Unix epoch.
    pub started_s: u64,
    /// Measured phases, in order.
    pub phases: Vec<PhaseResult>,
    /// The books of the healthy subscribers, in samples, warm-up included.
    pub account: Account,
    /// The books of the others, by behaviour.
    pub others: BTreeMap<String, Account>,
    /// Visitors that came and left, or connections that were only opened.
    pub visits: Option<Visits>,
    /// Resident memory of the server for each connection, where nothing was published.
    pub idle_bytes_per_connection: Option<f64>,
    /// What came of publishers whose connection ended.
    #[serde(default)]
    pub returns: Returns,
    /// Samples that the server did not take, and said so.
    pub refused: u64,
    /// What it said, and how often.
    pub refusals: BTreeMap<String, u64>,
    /// Connections that ended early, and why.
    pub ended: Vec<String>,
    /// Whether nothing was lost unannounced and nobody was cut off who should not be.
    pub sound: bool,
    /// The clocks of the two hosts, where they are not the same.
    pub clock: Option<ClockOffset>,
}

impl Repetition {
    /// CPU time of the server for a connection, in nanoseconds, where it did nothing else: in `accept`. It says what one
    /// costs also where the generator was the limit.
    pub(crate) fn server_ns_per_connection(&self) -> Option<f64> {
        let [phase] = self.phases.as_slice() else { return None };
        let per_s = self.visits.as_ref()?.per_s;
        let did_nothing_else = self.account.published == 0 && self.others.is_empty();
        (did_nothing_else && per_s > 0.0).then_some(phase.server.cpus? / per_s * 1e9)
    }
}

/// One measured phase.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PhaseResult {
    /// Scenario and phase, such as `slow_reader/with`; also the tag in the histogram log.
    pub label: String,
    /// Measured seconds.
    pub seconds: f64,
    /// Messages per second asked for; none in a closed loop.
    pub asked_messages_per_s: Option<f64>,
    /// Messages per second that went out.
    pub messages_per_s: f64,
    /// Samples per second that went out.
    pub samples_per_s: f64,
    /// Samples per second that arrived, over all healthy subscribers.
    pub deliveries_per_s: f64,
    /// Samples announced as lost to healthy subscribers within the phase.
    pub announced: u64,
    /// Schedule to arrival, at healthy subscribers.
    pub latency: Percentiles,
    /// Schedule to sending: what the generator adds by itself.
    pub lateness: Percentiles,
    /// Age of the samples (schedule to arrival) at subscribers that are not healthy, by behaviour.
    pub age: BTreeMap<String, Percentiles>,
    /// Histogram of `latency`.
    pub latency_histogram: EncodedHistogram,
    /// Histogram of `lateness`.
    #[serde(default)]
    pub lateness_histogram: EncodedHistogram,
    /// Histograms of `age`.
    #[serde(default)]
    pub age_histograms: BTreeMap<String, EncodedHistogram>,
    /// `age` over time.
    #[serde(default)]
    pub age_of: BTreeMap<String, Vec<AgeSecond>>,
    /// The parts of the latency, in the order in which a sample meets them; their means add up to that of `latency`.
    pub stages: Vec<StageResult>,
    /// By interval: `interval_s` of the scenario, mostly a second.
    pub seconds_of: Vec<Second>,
    /// Latencies of each of these intervals; only in parts that are to be merged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub second_histograms: Vec<EncodedHistogram>,
    /// The server's process.
    pub server: Side,
    /// The generator's processes.
    pub client: Side,
    /// Each CPU of the machine.
    pub cores: Vec<Core>,
    /// CPU seconds of the server for a million deliveries.
    pub server_cpu_s_per_million: Option<f64>,
    /// Share of the machine's CPUs that was idle.
    pub machine_idle: Option<f64>,
    /// Share of the machine's CPUs that the hypervisor took.
    pub machine_steal: Option<f64>,
    /// Which side was the limit.
    pub bottleneck: Bottleneck,
}

/// Which side limited a phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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

/// A part of the latency.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct StageResult {
    /// `generator_late`, `source_to_received`, `batch_wait`, `outbox_wait`, `kernel_to_arrival`.
    pub name: String,
    /// What it is, for a reader.
    pub meaning: String,
    /// Who measured it.
    pub source: StageSource,
    /// Its figures. A part that is inferred has a mean only, and 0 elsewhere.
    pub latency: Percentiles,
}

/// Who measured a part of the latency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StageSource {
    /// The server's own histograms.
    Server,
    /// The generator, by its clock.
    Generator,
    /// What is left of the total.
    Remainder,
}

/// One second of a phase.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Second {
    /// Seconds from the start of the scenario to the end of this one.
    pub at_s: f64,
    /// Messages that went out in it, per second.
    pub messages_per_s: f64,
    /// Samples that arrived in it, per second.
    pub deliveries_per_s: f64,
    /// Latency of the samples that arrived in it.
    pub p50_ns: u64,
    /// 99 of 100.
    pub p99_ns: u64,
    /// The largest.
    pub max_ns: u64,
    /// CPU of the server.
    pub server_cpus: Option<f64>,
    /// CPU of the generator.
    pub client_cpus: Option<f64>,
    /// Resident memory of the server.
    pub server_bytes: Option<u64>,
}

/// Age of what subscribers of a kind read in one interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct AgeSecond {
    /// Seconds from the start of the scenario to the end of the interval.
    pub at_s: f64,
    /// Median.
    pub p50_ns: u64,
    /// 99 of 100.
    pub p99_ns: u64,
    /// The oldest.
    pub max_ns: u64,
}

/// CPU and memory of a process, or of several that belong together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Side {
    /// CPUs.
    pub cpus: Option<f64>,
    /// CPUs of its busiest thread.
    pub busiest_thread: Option<f64>,
    /// CPUs that it could have used and did not get: time in a run queue.
    pub waiting: Option<f64>,
    /// Peak resident memory in the phase.
    pub peak_bytes: Option<u64>,
}

/// One CPU in a phase, as shares of its time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Core {
    /// Its number.
    pub cpu: usize,
    /// Not idle and not stolen.
    pub busy: f64,
    /// Taken by the hypervisor.
    pub steal: f64,
}

/// Connections that come and go beside the stream, or all there is in `accept`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Visits {
    /// Per second that worked.
    pub per_s: f64,
    /// Start of the connect, or the schedule, to the answer that ends the set-up.
    pub set_up: Percentiles,
    /// Histogram of `set_up`.
    #[serde(default)]
    pub set_up_histogram: EncodedHistogram,
    /// How many failed.
    pub failed: u64,
    /// Why.
    pub failures: Vec<String>,
}

/// The server's clock minus the generator's, estimated as NTP does (RFC 5905, section 8).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClockOffset {
    /// The estimate.
    pub offset_ns: i64,
    /// It is within this of the truth: half of the shortest round trip seen.
    pub error_ns: u64,
    /// How far two estimates, before and after, lie apart.
    pub drift_ns: i64,
}

/// A histogram in a few figures, nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
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

/// An HdrHistogram of nanoseconds: V2, deflated, in base64, as the interval logs have it. Empty for none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct EncodedHistogram(pub String);
