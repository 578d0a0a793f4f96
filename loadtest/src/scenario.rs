//! Scenarios as data: who publishes how much to whom, how the subscribers behave, and what goes wrong meanwhile. The same
//! types are read from TOML files and written to results. Pure; the scenarios that come with the program are in `builtin`.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use self::builtin::{SELECTION, all, named};
pub(crate) use self::group::{Behaviour, Codec, Group, Policy};
pub(crate) use self::share::Share;

mod builtin;
mod check;
pub(crate) mod file;
mod group;
mod share;

/// What the publishers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Load {
    /// Open loop: this many messages a second in all, by the schedule, whatever the server does.
    Scheduled {
        /// Messages.
        per_s: NonZeroU64,
    },
    /// Closed loop: as fast as it is taken, with at most this many bytes between a publisher and the subscriber furthest
    /// behind. Less than the server's outbox, so that speed is measured and not overload.
    Saturating {
        /// Payload bytes on the way.
        outstanding_bytes_max: u64,
    },
    /// Closed loop at a rate, as many tools measure: a message waits until the one before it has arrived, and its latency
    /// counts from when it was sent. Here only to show what that hides.
    Closed {
        /// Messages at most.
        per_s: NonZeroU64,
    },
    /// Nothing is published.
    Silent,
}

impl Load {
    /// Whether sending waits for what arrives.
    pub(crate) const fn is_closed(self) -> bool {
        matches!(self, Self::Saturating { .. } | Self::Closed { .. })
    }
}

/// What is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Kind {
    /// Publishers, subscribers, a stream between them.
    #[default]
    Stream,
    /// Connections that are opened and dropped as fast as the server takes them. Nobody publishes or subscribes.
    Accept {
        /// Connections that wait for the server's answer at a time.
        in_flight: usize,
    },
}

/// A measured part of a scenario.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PhaseSpec {
    /// What tells its result apart: `slow_reader/with`.
    pub name: String,
    /// The load's rate times this.
    #[serde(default = "one")]
    pub rate_factor: f64,
    /// Before its measurement, if not the scenario's.
    #[serde(default, with = "optional_seconds", skip_serializing_if = "Option::is_none")]
    pub warmup_s: Option<Duration>,
    /// Measured, if not the scenario's.
    #[serde(default, with = "optional_seconds", skip_serializing_if = "Option::is_none")]
    pub duration_s: Option<Duration>,
}

/// One scenario, complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    /// What it is called on the command line and in results.
    pub name: String,
    /// What it shows.
    #[serde(default)]
    pub about: String,
    /// Connections that publish, each on a channel of its own.
    #[serde(default = "one_publisher")]
    pub publishers: usize,
    /// Samples in a message.
    #[serde(default = "one_sample")]
    pub samples_per_message: u32,
    /// Bytes of a sample's value.
    #[serde(default = "payload_bytes")]
    pub payload_bytes: usize,
    /// What falls due within this many milliseconds is due at once, at their start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_ms: Option<NonZeroU64>,
    /// Connections that come, subscribe and leave, this many a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub churn_per_s: Option<NonZeroU64>,
    /// The server's process is stopped for this long in the middle of each phase, and goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_server_ms: Option<NonZeroU64>,
    /// Before the measurement, not measured.
    #[serde(default = "warmup", with = "seconds")]
    pub warmup_s: Duration,
    /// Measured; each phase where there are several.
    #[serde(default = "duration", with = "seconds")]
    pub duration_s: Duration,
    /// Length of the intervals of the time series.
    #[serde(default = "interval", with = "seconds")]
    pub interval_s: Duration,
    /// What is run.
    #[serde(default)]
    pub kind: Kind,
    /// What the publishers do.
    #[serde(default = "silent")]
    pub load: Load,
    /// Settings of the server that the scenario needs, by key.
    #[serde(default)]
    pub server: BTreeMap<String, String>,
    /// The subscribers.
    #[serde(default)]
    pub groups: Vec<Group>,
    /// Measured parts, in order; one without a name if there are none.
    #[serde(default)]
    pub phases: Vec<PhaseSpec>,
}

const fn one() -> f64 {
    1.0
}

const fn one_publisher() -> usize {
    1
}

const fn one_sample() -> u32 {
    1
}

const fn payload_bytes() -> usize {
    128
}

const fn warmup() -> Duration {
    Duration::from_secs(1)
}

const fn duration() -> Duration {
    Duration::from_secs(10)
}

const fn interval() -> Duration {
    Duration::from_secs(1)
}

const fn silent() -> Load {
    Load::Silent
}

/// Longest time in a scenario, a day: longer ones are typing errors.
pub(crate) const SECONDS_MAX: f64 = 86_400.0;

/// A duration of so many seconds.
pub(crate) fn from_seconds(seconds: f64) -> Result<Duration, String> {
    if (0.0..=SECONDS_MAX).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(format!("want seconds from 0 to {SECONDS_MAX}, such as 4 or 0.5"))
    }
}

pub(crate) mod seconds {
    //! Durations as seconds, with or without a fraction.

    use super::{Deserialize, Duration, from_seconds};
    use serde::{Deserializer, Serializer, de::Error as _};

    pub(crate) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(value.as_secs_f64())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        from_seconds(f64::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

mod optional_seconds {
    //! The same, where there may be none.

    use super::{Deserialize, Duration, from_seconds};
    use serde::{Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(
        value: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.serialize_some(&value.as_secs_f64()),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        Option::<f64>::deserialize(deserializer)?.map(from_seconds).transpose().map_err(D::Error::custom)
    }
}

/// A phase with everything decided.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    /// Empty if there is only one.
    pub name: String,
    /// The load's rate times this.
    pub rate_factor: f64,
    /// Before the measurement.
    pub warmup: Duration,
    /// Measured.
    pub duration: Duration,
}

impl Scenario {
    /// The measured phases: at least one.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let part = |name: &str, rate_factor, warmup: Option<Duration>, duration: Option<Duration>| Part {
            name: name.to_owned(),
            rate_factor,
            warmup: warmup.unwrap_or(self.warmup_s),
            duration: duration.unwrap_or(self.duration_s),
        };
        if self.phases.is_empty() {
            return vec![part("", 1.0, None, None)];
        }
        self.phases.iter().map(|it| part(&it.name, it.rate_factor, it.warmup_s, it.duration_s)).collect()
    }

    /// The name of a phase's result.
    pub(crate) fn label(&self, phase: usize) -> String {
        match self.phases.get(phase) {
            Some(spec) if !spec.name.is_empty() => format!("{}/{}", self.name, spec.name),
            _ => self.name.clone(),
        }
    }

    /// Warm-ups and measurements together.
    pub(crate) fn total(&self) -> Duration {
        self.parts().iter().map(|part| part.warmup + part.duration).sum()
    }

    /// Messages asked for per second in a phase; `None` in a closed loop.
    pub(crate) fn messages_per_s(&self, phase: usize) -> Option<f64> {
        match self.load {
            Load::Scheduled { per_s } => {
                let factor = self.phases.get(phase).map_or(1.0, |spec| spec.rate_factor);
                Some(per_s.get() as f64 * factor)
            }
            Load::Silent => Some(0.0),
            Load::Saturating { .. } | Load::Closed { .. } => None,
        }
    }

    /// Subscribers whose latency is the result.
    pub(crate) fn healthy(&self) -> usize {
        self.groups.iter().filter(|it| it.behaviour == Behaviour::Healthy).map(|it| it.count).sum()
    }

    /// All subscribers.
    pub(crate) fn subscribers(&self) -> usize {
        self.groups.iter().map(|it| it.count).sum()
    }

    /// Connections at once, all kinds.
    pub(crate) fn connections(&self) -> usize {
        if let Kind::Accept { in_flight } = self.kind {
            // The server may see a few before it has let the last ones go.
            return 4 * in_flight;
        }
        // One visitor at a time, but the server may see a few before it has let the last ones go.
        let visitors = if self.churn_per_s.is_some() { 16 } else { 0 };
        self.publishers + self.subscribers() + visitors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_tell_phases_apart() {
        let steady = named("steady").unwrap();
        assert_eq!((steady.label(0), steady.parts().len()), ("steady".to_owned(), 1));
        let slow = named("slow_reader").unwrap();
        assert_eq!([slow.label(0), slow.label(1)], ["slow_reader/without", "slow_reader/with"]);
        assert_eq!(slow.total(), 2 * (slow.warmup_s + slow.duration_s));
    }

    #[test]
    fn phases_may_differ_in_rate_and_time() {
        let mut scenario = named("steady").unwrap();
        let phase = |name: &str, rate_factor, duration_s| PhaseSpec {
            name: name.to_owned(),
            rate_factor,
            warmup_s: Some(Duration::ZERO),
            duration_s,
        };
        scenario.phases = vec![phase("a", 0.5, None), phase("b", 2.0, Some(Duration::from_secs(3)))];
        assert_eq!(scenario.total(), scenario.duration_s + Duration::from_secs(3));
        assert_eq!([0, 1].map(|it| scenario.messages_per_s(it)), [Some(500.0), Some(2_000.0)]);
    }
}
