//! The figures of a result that are worth a comparison, each with its unit, its direction and one value for each repetition.
//! The one list that tables, reports, `compare` and `peers` share. Pure.

use serde::Serialize;

use crate::result::{Bottleneck, Percentiles, PhaseResult, Repetition, ScenarioResult};
use crate::units::Unit;

/// Which way a figure should go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Better {
    /// Less is better.
    Lower,
    /// More is better.
    Higher,
    /// It explains others, and is no merit by itself.
    Neutral,
}

/// What kind of figure it is; its key in JSON, and what it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    /// Stable: scripts rely on it.
    pub key: &'static str,
    /// For people.
    pub title: &'static str,
    /// What it counts.
    pub unit: Unit,
    /// Which way it should go.
    pub better: Better,
}

/// One value of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Value {
    /// In the unit of its kind.
    pub value: f64,
    /// Whether the generator was the limit, so that it says little about the server.
    pub is_generators: bool,
    /// Whether the machine was full though neither side was: what else ran there is in it.
    pub is_machines: bool,
}

/// A figure with all its values.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Figure {
    /// Which.
    pub kind: Kind,
    /// Label of the phase; none for what belongs to the whole scenario.
    pub phase: Option<String>,
    /// Behaviour of the subscribers that it is about, where they are not healthy.
    pub behaviour: Option<String>,
    /// One for each repetition that has it, in order.
    pub values: Vec<Value>,
}

impl Figure {
    /// The middle value; of an even number, the mean of the two in the middle.
    pub(crate) fn median(&self) -> f64 {
        median(&self.values.iter().map(|it| it.value).collect::<Vec<_>>())
    }

    /// The smallest.
    pub(crate) fn min(&self) -> f64 {
        self.values.iter().map(|it| it.value).fold(f64::INFINITY, f64::min)
    }

    /// The largest.
    pub(crate) fn max(&self) -> f64 {
        self.values.iter().map(|it| it.value).fold(f64::NEG_INFINITY, f64::max)
    }

    /// From the smallest to the largest, as a share of the median; 0 where all are alike.
    pub(crate) fn spread(&self) -> f64 {
        let range = self.max() - self.min();
        if range == 0.0 { 0.0 } else { range / self.median() }
    }

    /// Whether the generator was the limit in any repetition.
    pub(crate) fn is_generators(&self) -> bool {
        self.values.iter().any(|it| it.is_generators)
    }

    /// Whether the machine was the limit in any repetition.
    pub(crate) fn is_machines(&self) -> bool {
        self.values.iter().any(|it| it.is_machines)
    }

    /// What tells this figure from others of its result.
    pub(crate) fn id(&self) -> (&'static str, Option<&str>, Option<&str>) {
        (self.kind.key, self.phase.as_deref(), self.behaviour.as_deref())
    }

    /// Its title, with the behaviour where that is needed.
    pub(crate) fn title(&self) -> String {
        match &self.behaviour {
            Some(behaviour) => format!("{}, {behaviour}", self.kind.title),
            None => self.kind.title.to_owned(),
        }
    }
}

/// The middle of some values; NaN of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle), sorted.len() % 2) {
        (Some(value), 1) => *value,
        (Some(value), _) => (sorted[middle - 1] + value) / 2.0,
        (None, _) => f64::NAN,
    }
}

/// Every figure of a result: those of each phase, in the order of the phases, then those of the whole scenario.
pub(crate) fn figures(result: &ScenarioResult) -> Vec<Figure> {
    let mut found: Vec<Figure> = Vec::new();
    // Phases first in the order of the first repetition; a later one that has more of them adds them at the end.
    for repetition in &result.repetitions {
        for phase in &repetition.phases {
            let (is_generators, is_machines) = (is_generators(phase), is_machines(phase));
            of_phase(phase, &mut |kind, behaviour, value| {
                let value = Value { value, is_generators, is_machines };
                add(&mut found, kind, Some(&phase.label), behaviour, value);
            });
        }
    }
    for repetition in &result.repetitions {
        let is_generators = repetition.phases.iter().any(is_generators);
        let is_machines = repetition.phases.iter().any(is_machines);
        of_repetition(repetition, &mut |kind, value| {
            add(&mut found, kind, None, None, Value { value, is_generators, is_machines });
        });
    }
    // Figures of one phase stand together, whichever repetition had them first.
    let labels: Vec<String> = found.iter().filter_map(|it| it.phase.clone()).collect();
    let place = |figure: &Figure| match &figure.phase {
        Some(label) => labels.iter().position(|it| it == label).unwrap_or(labels.len()),
        None => labels.len(),
    };
    found.sort_by_key(place);
    found
}

/// A figure of a phase, or of the whole scenario.
pub(crate) fn figure(result: &ScenarioResult, phase: usize, key: &str) -> Option<Figure> {
    let label = result.scenario.label(phase);
    let of_phase = |it: Option<&str>| it.is_none_or(|it| it == label);
    figures(result).into_iter().find(|it| it.kind.key == key && of_phase(it.phase.as_deref()))
}

/// A server that delivered less of what was asked for has dropped out: its other figures are of something else.
pub(crate) const KEPT_UP: f64 = 0.99;

/// What arrived by what was asked for, in an open loop.
pub(crate) fn delivered_share(result: &ScenarioResult, phase: usize) -> Option<f64> {
    let samples = f64::from(result.scenario.samples_per_message) * result.scenario.healthy() as f64;
    let asked = result.scenario.messages_per_s(phase).filter(|&asked| asked > 0.0)? * samples;
    Some(figure(result, phase, "deliveries_per_s")?.median() / asked)
}

/// Whether a phase says more about the generator than about the server.
pub(crate) fn is_generators(phase: &PhaseResult) -> bool {
    matches!(phase.bottleneck, Bottleneck::Generator | Bottleneck::Both)
}

/// Whether the machine was the limit of a phase.
pub(crate) fn is_machines(phase: &PhaseResult) -> bool {
    phase.bottleneck == Bottleneck::Machine
}

fn add(found: &mut Vec<Figure>, kind: Kind, phase: Option<&str>, behaviour: Option<&str>, value: Value) {
    if !value.value.is_finite() {
        return;
    }
    match found.iter_mut().find(|it| it.id() == (kind.key, phase, behaviour)) {
        Some(figure) => figure.values.push(value),
        None => found.push(Figure {
            kind,
            phase: phase.map(str::to_owned),
            behaviour: behaviour.map(str::to_owned),
            values: vec![value],
        }),
    }
}

fn of_phase(phase: &PhaseResult, add: &mut dyn FnMut(Kind, Option<&str>, f64)) {
    use Better::{Higher, Lower, Neutral};
    use Unit::{Bytes, Count, CpuSecondsPerMillion, Cpus, Nanoseconds, PerSecond};
    let kind = |key, title, unit, better| Kind { key, title, unit, better };
    let is_closed_loop = phase.asked_messages_per_s.is_none();
    let is_silent = phase.asked_messages_per_s == Some(0.0);
    if !is_silent {
        add(kind("messages_per_s", "messages/s out", PerSecond, Neutral), None, phase.messages_per_s);
        add(kind("samples_per_s", "samples/s out", PerSecond, Neutral), None, phase.samples_per_s);
        add(kind("deliveries_per_s", "deliveries/s", PerSecond, Higher), None, phase.deliveries_per_s);
    }
    let Percentiles { count, mean, p50, p90, p99, p999, max } = phase.latency;
    if count > 0 {
        // As fast as it is taken, latency is how much was let wait, which the load generator chose.
        let better = if is_closed_loop { Neutral } else { Lower };
        add(kind("mean_ns", "latency, mean", Nanoseconds, better), None, mean);
        add(kind("p50_ns", "latency p50", Nanoseconds, better), None, p50 as f64);
        add(kind("p90_ns", "latency p90", Nanoseconds, better), None, p90 as f64);
        add(kind("p99_ns", "latency p99", Nanoseconds, better), None, p99 as f64);
        add(kind("p999_ns", "latency p99.9", Nanoseconds, better), None, p999 as f64);
        // One sample decides it.
        add(kind("max_ns", "latency, largest", Nanoseconds, Neutral), None, max as f64);
    }
    for (behaviour, age) in phase.age.iter().filter(|(_, age)| age.count > 0) {
        let behaviour = Some(behaviour.as_str());
        add(kind("age_p50_ns", "age p50 of what is read", Nanoseconds, Lower), behaviour, age.p50 as f64);
        add(kind("age_p99_ns", "age p99 of what is read", Nanoseconds, Lower), behaviour, age.p99 as f64);
    }
    if !is_silent {
        add(kind("announced", "samples announced as lost", Count, Lower), None, phase.announced as f64);
    }
    if let Some(cpus) = phase.server.cpus {
        add(kind("server_cpus", "server CPU", Cpus, Neutral), None, cpus);
    }
    if let Some(seconds) = phase.server_cpu_s_per_million {
        let title = "server CPU for 1 M deliveries";
        add(kind("server_cpu_s_per_million", title, CpuSecondsPerMillion, Lower), None, seconds);
    }
    if let Some(bytes) = phase.server.peak_bytes {
        add(kind("server_peak_bytes", "server memory, peak", Bytes, Lower), None, bytes as f64);
    }
    if let Some(cpus) = phase.client.cpus {
        add(kind("client_cpus", "generator CPU", Cpus, Neutral), None, cpus);
    }
    if phase.lateness.count > 0 {
        let title = "generator late p99";
        add(kind("lateness_p99_ns", title, Nanoseconds, Neutral), None, phase.lateness.p99 as f64);
    }
}

/// Key of the figure that is a regression whenever it grows.
pub(crate) const UNANNOUNCED: &str = "unannounced";

fn of_repetition(repetition: &Repetition, add: &mut dyn FnMut(Kind, f64)) {
    use Better::{Higher, Lower};
    use Unit::{Bytes, Count, Nanoseconds, PerSecond, Ratio};
    let kind = |key, title, unit, better| Kind { key, title, unit, better };
    if let [without, with] = repetition.phases.as_slice()
        && without.latency.p99 > 0
        && with.latency.count > 0
    {
        let ratio = with.latency.p99 as f64 / without.latency.p99 as f64;
        add(kind("p99_ratio", "latency p99, second phase / first", Ratio, Lower), ratio);
    }
    if let Some(visits) = &repetition.visits {
        add(kind("accept_per_s", "connections/s", PerSecond, Higher), visits.per_s);
        if visits.set_up.count > 0 {
            add(kind("set_up_p99_ns", "set-up p99", Nanoseconds, Lower), visits.set_up.p99 as f64);
        }
        if let Some(ns) = repetition.server_ns_per_connection() {
            add(kind("server_ns_per_connection", "server CPU for a connection", Nanoseconds, Lower), ns);
        }
        add(kind("visits_failed", "connections failed", Count, Lower), visits.failed as f64);
    }
    if let Some(bytes) = repetition.idle_bytes_per_connection {
        let title = "server memory for an idle connection";
        add(kind("idle_bytes_per_connection", title, Bytes, Lower), bytes);
    }
    add(kind("refused", "samples refused", Count, Lower), repetition.refused as f64);
    let books = std::iter::once(&repetition.account).chain(repetition.others.values());
    let lost: u64 = books.map(|it| it.unannounced + it.excess + it.irregular).sum();
    add(kind(UNANNOUNCED, "lost without a word", Count, Lower), lost as f64);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Account;
    use crate::report::sample::Sample;

    fn find<'a>(figures: &'a [Figure], key: &str, phase: Option<&str>) -> &'a Figure {
        let it = figures.iter().find(|it| it.kind.key == key && it.phase.as_deref() == phase);
        it.unwrap_or_else(|| panic!("no {key} of {phase:?}"))
    }

    #[test]
    fn a_figure_has_a_value_for_each_repetition() {
        let run = Sample::default().run("x");
        let mut result = run.results.into_iter().find(|it| it.scenario.name == "slow_reader").unwrap();
        for (number, repetition) in (1..).zip(&mut result.repetitions) {
            repetition.phases[0].latency.p99 = number * 10;
            repetition.phases[1].latency.p99 = number * 12;
        }
        let all = figures(&result);
        let p99 = find(&all, "p99_ns", Some("slow_reader/without"));
        assert_eq!(p99.values.iter().map(|it| it.value).collect::<Vec<_>>(), [10.0, 20.0, 30.0]);
        assert_eq!((p99.median(), p99.min(), p99.max(), p99.spread()), (20.0, 10.0, 30.0, 1.0));
        let ratio = find(&all, "p99_ratio", None);
        assert!((ratio.median() - 1.2).abs() < 1e-9 && ratio.spread().abs() < 1e-9, "{ratio:?}");
        // No figure stands twice, and those of a phase stand together.
        let mut ids: Vec<_> = all.iter().map(Figure::id).collect();
        let phases: Vec<_> = all.iter().map(|it| it.phase.as_deref()).collect();
        let blocks = phases.chunk_by(|a, b| a == b).count();
        assert_eq!(blocks, 3, "{phases:?}");
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), all.len());
    }

    #[test]
    fn what_is_in_the_figures() {
        let run = Sample::default().run("x");
        let mut result = run.results.into_iter().next().unwrap();
        result.repetitions.truncate(1);
        let has = |result: &ScenarioResult, key: &str| figures(result).iter().any(|it| it.kind.key == key);
        for key in ["p99_ns", "deliveries_per_s", "announced", "server_cpu_s_per_million", "unannounced"] {
            assert!(has(&result, key), "{key}");
        }
        for key in ["accept_per_s", "idle_bytes_per_connection", "age_p99_ns", "p99_ratio"] {
            assert!(!has(&result, key), "{key}");
        }
        let label = result.repetitions[0].phases[0].label.clone();
        // What the generator limited is kept, and marked.
        assert!(!find(&figures(&result), "p99_ns", Some(&label)).is_generators());
        result.repetitions[0].phases[0].bottleneck = Bottleneck::Both;
        assert!(find(&figures(&result), "p99_ns", Some(&label)).is_generators());
        assert!(find(&figures(&result), "refused", None).is_generators());
        // As fast as it is taken, latency is no merit; nothing published, nothing delivered.
        result.repetitions[0].phases[0].asked_messages_per_s = None;
        assert_eq!(find(&figures(&result), "p99_ns", Some(&label)).kind.better, Better::Neutral);
        result.repetitions[0].phases[0].asked_messages_per_s = Some(0.0);
        result.repetitions[0].phases[0].latency = Percentiles::default();
        assert!(!has(&result, "deliveries_per_s") && !has(&result, "p50_ns"));
        // Whoever lost it.
        let lost = Account { unannounced: 3, irregular: 2, ..Account::default() };
        result.repetitions[0].others.insert("stalled".to_owned(), lost);
        assert!((find(&figures(&result), "unannounced", None).median() - 5.0).abs() < 1e-9);
    }

    #[test]
    fn what_a_connection_costs_is_told_where_there_was_nothing_else() {
        let run = Sample::default().run("x");
        let mut result = run.results.into_iter().find(|it| it.scenario.name == "churn").unwrap();
        let costs = |result: &ScenarioResult| {
            figures(result).into_iter().find(|it| it.kind.key == "server_ns_per_connection")
        };
        assert!(costs(&result).is_none(), "its CPU went to deliveries, too");
        for repetition in &mut result.repetitions {
            repetition.account = Account::default();
            repetition.phases[0].server.cpus = Some(0.02);
        }
        // 100 connections a second, and a fiftieth of a CPU.
        assert!((costs(&result).unwrap().median() - 200_000.0).abs() < 1e-6);
        result.repetitions.iter_mut().for_each(|it| it.phases[0].server.cpus = None);
        assert!(costs(&result).is_none());
    }

    #[test]
    fn medians() {
        for (values, expected) in [(&[3.0, 1.0, 2.0][..], 2.0), (&[4.0, 1.0], 2.5), (&[7.0], 7.0)] {
            assert!((median(values) - expected).abs() < 1e-9);
        }
        assert!(median(&[]).is_nan());
    }
}
