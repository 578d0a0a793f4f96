//! What a trial found, in figures, and the shape of `loadtest cluster`'s file. Pure.
//!
//! Durations are nanoseconds (`_ns`), CPU is CPUs (1.0 is one kept busy), unless a name says otherwise.

use serde::{Deserialize, Serialize};

use crate::bottleneck::Evidence;
use crate::ledger::Account;
use crate::proc::{self, Load};
use crate::result::{Bottleneck, BuildInfo, MachineInfo, Percentiles};

use super::broker::Kind;
use super::trial::{Measured, Plan, Seen, Work};

/// Version of the file's shape: raised when a field changes its meaning or goes.
pub(crate) const FORMAT: u32 = 1;

/// Share of a CPU from which the broker's busiest thread counts as full, as for every other side.
const FULL: f64 = 0.9;

/// The file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ClusterFile {
    /// [`FORMAT`].
    pub format: u32,
    /// Seconds since the Unix epoch.
    pub started_s: u64,
    /// The command line.
    pub command: Vec<String>,
    /// Where it ran.
    pub machine: MachineInfo,
    /// The generator.
    pub generator: BuildInfo,
    /// How servers were started, but for the broker.
    pub server: String,
    /// Whether the servers' number grew, and each had the same work.
    pub growth: bool,
    /// Before each measurement.
    pub warmup_s: f64,
    /// Measured.
    pub duration_s: f64,
    /// Of a sample's value.
    pub payload_bytes: usize,
    /// One for each broker, or number of servers.
    pub rows: Vec<Row>,
}

/// One broker and number of servers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    /// What joins the servers.
    pub broker: Kind,
    /// Servers.
    pub nodes: usize,
    /// Channels of each publishing server.
    pub channels: usize,
    /// Subscribers of each server, without those of another's channels.
    pub subscribers: usize,
    /// Samples a second that were asked for, all together.
    pub samples_per_s: u64,
    /// In the order in which they ran.
    pub repetitions: Vec<Repetition>,
}

/// What subscribers at one place saw.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Place {
    /// Schedule to arrival; none if nothing came.
    pub latency: Option<Percentiles>,
    /// Samples that arrived in the window, over all subscribers.
    pub deliveries_per_s: f64,
    /// The books of all of the run.
    pub account: Account,
}

/// CPU of a process.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Cpu {
    /// All threads.
    pub cpus: f64,
    /// The busiest thread.
    pub busiest_thread: f64,
    /// Ready, and without a CPU.
    pub waiting: f64,
    /// For a million samples that were published; of a server of several that publish, its own samples.
    pub seconds_per_million_samples: Option<f64>,
}

/// One trial.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Repetition {
    /// Samples that went out.
    pub samples_per_s: f64,
    /// p99 of how late they did.
    pub lateness_p99_ns: u64,
    /// Deliveries in the window, as a share of those that were due: far below 1 the server did not keep up.
    pub delivered: Option<f64>,
    /// At the publishers' server.
    pub near: Place,
    /// At other servers.
    pub far: Option<Place>,
    /// p50 at other servers less p50 at the publishers': what comes before the publishers' server has it is the same for both.
    pub added_p50_ns: Option<i64>,
    /// The same of p99.
    pub added_p99_ns: Option<i64>,
    /// From a server's flush to another's receipt, by the servers themselves.
    pub broker_hop: Option<Percentiles>,
    /// Messages with samples that servers sent to the broker (`tidewire_relays_sent_total`).
    pub relays_per_s: Option<f64>,
    /// Messages that came to the broker as it counts: also what servers tell each other.
    pub broker_messages_per_s: Option<f64>,
    /// Of the latter, for a million samples.
    pub broker_messages_per_million_samples: Option<f64>,
    /// CPU of each server, the publishers' first.
    pub nodes: Vec<Option<Cpu>>,
    /// CPU of the broker.
    pub broker: Option<Cpu>,
    /// CPU of the generator.
    pub generator: Option<Cpu>,
    /// Share of the machine's CPUs that was idle.
    pub machine_idle: Option<f64>,
    /// Samples that a server did not take.
    pub refused: u64,
    /// Connections that ended early, and what was refused.
    pub ended: Vec<String>,
    /// What limited it.
    pub bottleneck: String,
    /// Nothing was lost without a word, and nobody was cut off.
    pub sound: bool,
}

impl Row {
    /// Without repetitions.
    pub(crate) fn new(plan: &Plan) -> Self {
        Self {
            broker: plan.broker,
            nodes: plan.nodes,
            channels: plan.channels,
            subscribers: plan.subscribers,
            samples_per_s: plan.per_s_of_all().get(),
            repetitions: Vec::new(),
        }
    }
}

impl ClusterFile {
    /// Whether the servers kept their word. The seed's way gives none.
    pub(crate) fn is_sound(&self) -> bool {
        let ours = self.rows.iter().filter(|row| row.broker != Kind::Seed);
        ours.flat_map(|row| &row.repetitions).all(|it| it.sound)
    }
}

/// The figures of a trial.
pub(crate) fn repetition(plan: &Plan, measured: &Measured) -> Repetition {
    let samples_per_s = measured.samples as f64 / measured.seconds;
    let cpu_of = |load: Load, samples_per_s: f64| Cpu {
        cpus: load.cpus,
        busiest_thread: load.busiest,
        waiting: load.waiting,
        seconds_per_million_samples: (samples_per_s > 0.0).then(|| load.cpus / samples_per_s * 1e6),
    };
    let cpu = |load: Load| cpu_of(load, samples_per_s);
    // Where each server has publishers, a server's CPU is for its own part of the samples.
    let of_node = |load: Load| cpu_of(load, samples_per_s / plan.publishing() as f64);
    let near = place(&measured.near, measured.seconds);
    let far = measured.far.as_ref().map(|it| place(it, measured.seconds));
    let due_per_s = samples_per_s * plan.readers_of_each() as f64;
    let delivered = (due_per_s > 0.0)
        .then(|| (near.deliveries_per_s + far.map_or(0.0, |it| it.deliveries_per_s)) / due_per_s);
    let added = |figure: fn(&Percentiles) -> u64| {
        let (near, far) = (figure(&near.latency?), figure(&far?.latency?));
        i64::try_from(i128::from(far) - i128::from(near)).ok()
    };
    let mut places = [Some(near), far].into_iter().flatten();
    let sound = places.all(|it| it.account.is_exact()) && measured.ended.is_empty();
    Repetition {
        samples_per_s,
        lateness_p99_ns: measured.lateness.value_at_quantile(0.99),
        delivered,
        near,
        far,
        added_p50_ns: added(|it| it.p50),
        added_p99_ns: added(|it| it.p99),
        broker_hop: measured.broker_hop.as_ref().and_then(latency),
        relays_per_s: measured.relays_per_s,
        broker_messages_per_s: measured.brought_per_s,
        broker_messages_per_million_samples: measured.brought_per_s.map(|it| it / samples_per_s * 1e6),
        nodes: measured.nodes.iter().map(|load| load.map(of_node)).collect(),
        broker: measured.broker.map(cpu),
        generator: measured.generator.map(cpu),
        machine_idle: measured.idle,
        refused: measured.refused,
        ended: measured.ended.clone(),
        bottleneck: bottleneck(plan, measured),
        sound: sound && measured.refused == 0,
    }
}

fn latency(histogram: &hdrhistogram::Histogram<u64>) -> Option<Percentiles> {
    (!histogram.is_empty()).then(|| Percentiles::of(histogram))
}

fn place(seen: &Seen, seconds: f64) -> Place {
    Place {
        latency: latency(&seen.latency),
        deliveries_per_s: seen.arrived as f64 / seconds,
        account: seen.account,
    }
}

/// Who was full: the broker, a server, the generator, or the machine before any of them.
fn bottleneck(plan: &Plan, measured: &Measured) -> String {
    if measured.broker.is_some_and(|it| it.busiest >= FULL) {
        return "broker".to_owned();
    }
    let fullest = measured.nodes.iter().enumerate().filter_map(|(node, load)| Some((node, (*load)?)));
    let fullest = fullest.max_by(|(_, one), (_, other)| one.busiest.total_cmp(&other.busiest));
    let evidence = Evidence {
        // A worker that is full holds up its connections, whatever the others do.
        server: fullest.map(|(_, load)| Load { cpus: load.busiest, ..load }),
        server_cpus: 1,
        client: measured.generator,
        client_cpus: proc::cpus(),
        lateness_p99_ns: measured.lateness.value_at_quantile(0.99),
        latency_p99_ns: measured.near.latency.value_at_quantile(0.99),
        idle: measured.idle,
    };
    match (evidence.weigh(), fullest) {
        (Bottleneck::Server, Some((0, _))) if plan.work == Work::FromOne => "publishing server".to_owned(),
        (Bottleneck::Server, Some(_)) if plan.work == Work::FromOne => "receiving server".to_owned(),
        (Bottleneck::Server, Some((node, _))) => format!("server {node}"),
        (side, _) => side.label().to_owned(),
    }
}
