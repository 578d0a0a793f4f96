//! Scenarios as data: who publishes how much to whom, and what goes wrong meanwhile. Pure.

use std::num::NonZeroU64;
use std::time::Duration;

use serde::{Serialize, Serializer};

/// What the publishers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Load {
    /// Open loop: this many messages a second in all, by the schedule, whatever the server does.
    Scheduled(NonZeroU64),
    /// Closed loop: as fast as it is taken, with at most this many bytes between a publisher and the subscriber furthest
    /// behind. Less than the server's outbox, so that speed is measured and not overload.
    Saturating {
        /// Payload bytes on the way.
        outstanding_bytes_max: u64,
    },
    /// Nothing is published.
    Silent,
}

/// What happens beside the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Disturbance {
    /// Nothing.
    Calm,
    /// Measured first without, then with one more subscriber that does not read until the publishers have stopped.
    Stalled,
    /// Connections that come, subscribe and leave, this many a second.
    Churn(NonZeroU64),
}

/// One scenario, complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Scenario {
    /// What it is called on the command line and in results.
    pub name: &'static str,
    /// What it shows.
    pub about: &'static str,
    /// Connections that publish, each on a channel of its own.
    pub publishers: usize,
    /// Connections that subscribe, each to every channel of the scenario.
    pub subscribers: usize,
    /// What the publishers do.
    pub load: Load,
    /// Samples in a message.
    pub samples_per_message: u32,
    /// Bytes of a sample's value.
    pub payload_bytes: usize,
    /// Before the measurement, not measured.
    #[serde(rename = "warmup_s", serialize_with = "as_seconds")]
    pub warmup: Duration,
    /// Measured; each half where there are two.
    #[serde(rename = "duration_s", serialize_with = "as_seconds")]
    pub duration: Duration,
    /// Delivery option of the subscriptions.
    pub max_delay_ms: Option<u32>,
    /// Delivery option of the subscriptions.
    pub policy: Option<&'static str>,
    /// What happens beside.
    pub disturbance: Disturbance,
}

/// What a run without scenario names does: 30 seconds.
pub(crate) const SELECTION: [&str; 5] = ["steady", "fanout", "wide", "fanin", "slow_reader"];

/// Payload of every scenario if not told otherwise.
const PAYLOAD_BYTES: usize = 128;

/// Half of the server's default outbox.
const OUTSTANDING_BYTES_MAX: u64 = 512 << 10;

/// Samples in a message of `saturate`: a publisher that packs, as one at such rates does.
const PACKED_SAMPLES: u32 = 16;

/// Every scenario, in the order of the documentation.
pub(crate) fn all() -> [Scenario; 8] {
    let base = |name, about, publishers, subscribers, per_s| Scenario {
        name,
        about,
        publishers,
        subscribers,
        load: NonZeroU64::new(per_s).map_or(Load::Silent, Load::Scheduled),
        samples_per_message: 1,
        payload_bytes: PAYLOAD_BYTES,
        warmup: Duration::from_secs(1),
        duration: Duration::from_secs(10),
        max_delay_ms: None,
        policy: None,
        disturbance: Disturbance::Calm,
    };
    let churn_per_s = NonZeroU64::MIN.saturating_add(99);
    [
        base("steady", "one publisher, 10 subscribers", 1, 10, 1_000),
        base("fanout", "one fast publisher, 100 subscribers", 1, 100, 10_000),
        base("wide", "one publisher, 1,000 subscribers", 1, 1_000, 1_000),
        base("fanin", "50 publishers, each on its own channel, one subscriber to all", 50, 1, 20_000),
        Scenario {
            load: Load::Saturating { outstanding_bytes_max: OUTSTANDING_BYTES_MAX },
            samples_per_message: PACKED_SAMPLES,
            ..base("saturate", "one publisher, 100 subscribers, as fast as it is taken", 1, 100, 0)
        },
        Scenario {
            disturbance: Disturbance::Stalled,
            ..base(
                "slow_reader",
                "99 healthy subscribers, without and with one that stops reading",
                1,
                99,
                5_000,
            )
        },
        Scenario {
            disturbance: Disturbance::Churn(churn_per_s),
            ..base("churn", "a steady stream while others connect, subscribe and leave", 1, 10, 1_000)
        },
        Scenario {
            duration: Duration::from_secs(3),
            ..base("idle", "5,000 subscribed connections, none publishing", 1, 5_000, 0)
        },
    ]
}

/// The scenario of that name.
pub(crate) fn named(name: &str) -> Option<Scenario> {
    all().into_iter().find(|scenario| scenario.name == name)
}

fn as_seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

impl Scenario {
    /// Measured phases and what tells them apart in a result's name.
    pub(crate) fn phases(&self) -> &'static [&'static str] {
        match self.disturbance {
            Disturbance::Stalled => &["without", "with"],
            Disturbance::Calm | Disturbance::Churn(_) => &[""],
        }
    }

    /// The name of a phase's result.
    pub(crate) fn label(&self, phase: usize) -> String {
        match self.phases().get(phase) {
            Some(&suffix) if !suffix.is_empty() => format!("{}/{suffix}", self.name),
            _ => self.name.to_owned(),
        }
    }

    /// Warm-ups and measurements together.
    pub(crate) fn total(&self) -> Duration {
        let phases = u32::try_from(self.phases().len()).unwrap_or(1);
        (self.warmup + self.duration) * phases
    }

    /// Messages asked for per second; `None` in a closed loop.
    pub(crate) fn messages_per_s(&self) -> Option<u64> {
        match self.load {
            Load::Scheduled(per_s) => Some(per_s.get()),
            Load::Silent => Some(0),
            Load::Saturating { .. } => None,
        }
    }

    /// Connections at once, all kinds.
    pub(crate) fn connections(&self) -> usize {
        let beside = match self.disturbance {
            Disturbance::Calm => 0,
            Disturbance::Stalled => 1,
            // One at a time, but the server may see a few before it has let the last ones go.
            Disturbance::Churn(_) => 16,
        };
        self.publishers + self.subscribers + beside
    }

    /// What cannot be run, and what to change.
    pub(crate) fn check(&self) -> Result<(), String> {
        let name = self.name;
        if self.publishers == 0 {
            return Err(format!("{name}: --publishers must be at least 1"));
        }
        if self.subscribers == 0 {
            return Err(format!("{name}: --subscribers must be at least 1"));
        }
        if self.samples_per_message == 0 {
            return Err(format!("{name}: --samples-per-message must be at least 1"));
        }
        if self.duration < Duration::from_millis(100) {
            return Err(format!("{name}: --duration must be at least 0.1 s"));
        }
        let message_bytes = self.payload_bytes.saturating_mul(self.samples_per_message as usize);
        if message_bytes > crate::ws::MESSAGE_BYTES_MAX / 2 {
            return Err(format!(
                "{name}: --payload {} times --samples-per-message {} is more than a message holds ({} bytes)",
                self.payload_bytes,
                self.samples_per_message,
                crate::ws::MESSAGE_BYTES_MAX / 2
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_is_sound_and_found_by_name() {
        for scenario in all() {
            assert_eq!(scenario.check(), Ok(()), "{}", scenario.name);
            assert_eq!(named(scenario.name), Some(scenario));
        }
        assert_eq!(named("nonsense"), None);
    }

    #[test]
    fn the_selection_has_names_only() {
        for name in SELECTION {
            assert!(named(name).is_some(), "{name}");
        }
    }

    #[test]
    fn labels_tell_phases_apart() {
        let steady = named("steady").unwrap();
        assert_eq!((steady.label(0), steady.phases().len()), ("steady".to_owned(), 1));
        let slow = named("slow_reader").unwrap();
        assert_eq!([slow.label(0), slow.label(1)], ["slow_reader/without", "slow_reader/with"]);
        assert_eq!(slow.total(), 2 * (slow.warmup + slow.duration));
    }

    #[test]
    fn what_cannot_run_is_refused_with_the_flag() {
        let good = named("steady").unwrap();
        let cases = [
            (Scenario { publishers: 0, ..good.clone() }, "--publishers"),
            (Scenario { subscribers: 0, ..good.clone() }, "--subscribers"),
            (Scenario { samples_per_message: 0, ..good.clone() }, "--samples-per-message"),
            (Scenario { duration: Duration::ZERO, ..good.clone() }, "--duration"),
            (Scenario { payload_bytes: 70_000, ..good }, "--payload"),
        ];
        for (scenario, flag) in cases {
            assert!(scenario.check().unwrap_err().contains(flag), "{flag}");
        }
    }
}
