//! Groups of subscribers: how many, how they behave, what they ask for. Data only; `subscribers` and `others` act it out.

use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::seconds;

/// Subscribers that are alike. Each subscribes to every channel of the scenario.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Group {
    /// How many.
    pub count: usize,
    /// The data codec.
    #[serde(default)]
    pub codec: Codec,
    /// Delivery option; left to the server if not given, as are the next three.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// Delivery option.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_delay_ms: Option<u32>,
    /// Delivery option.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<u32>,
    /// Delivery option.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rate_hz: Option<f64>,
    /// What of the past a first subscription asks for: what the server received in so many milliseconds. One that comes back goes
    /// on where it was instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_ms: Option<u64>,
    /// `SO_RCVBUF`. The kernel keeps twice as much.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receive_buffer_bytes: Option<usize>,
    /// When the connection ends, it connects again and goes on, and that is no failure. So do publishers then, and all where there
    /// are several servers; flaky ones do in any case.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub comes_back: bool,
    /// Names of the phases that they are there for; all if empty. Not for healthy ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<String>,
    /// How they read.
    #[serde(default)]
    pub behaviour: Behaviour,
}

/// How a subscriber reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Behaviour {
    /// As fast as it can. The latency of these is the result.
    #[default]
    Healthy,
    /// So many bytes a second, as over a thin link.
    Slow {
        /// Bytes.
        read_bytes_per_s: u64,
    },
    /// Nothing, until the publishers have stopped. Then it reads everything, so that its books can be closed.
    Stalled,
    /// Reads for a while, then not, and again: a browser's tab in the background.
    Paused {
        /// Reading.
        #[serde(with = "seconds")]
        every_s: Duration,
        /// Not reading.
        #[serde(with = "seconds")]
        for_s: Duration,
    },
    /// Reads for a while, goes without a word, comes back and goes on where it was.
    Flaky {
        /// Connected.
        #[serde(with = "seconds")]
        every_s: Duration,
        /// Not connected.
        #[serde(with = "seconds")]
        away_s: Duration,
    },
}

impl Behaviour {
    /// Its name: in results, and in files.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Slow { .. } => "slow",
            Self::Stalled => "stalled",
            Self::Paused { .. } => "paused",
            Self::Flaky { .. } => "flaky",
        }
    }
}

/// `policy` of a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub(crate) enum Policy {
    /// The oldest waiting frame makes room
    DropOldest,
    /// The new frame is not taken
    DropNewest,
    /// Only the newest sample matters
    Latest,
    /// The connection ends
    Disconnect,
}

impl Policy {
    /// As the protocol names it.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::DropOldest => "drop_oldest",
            Self::DropNewest => "drop_newest",
            Self::Latest => "latest",
            Self::Disconnect => "disconnect",
        }
    }
}

/// How data reaches a subscriber.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Codec {
    /// tidewire.v1
    #[default]
    Protobuf,
    /// tidewire.v1.msgpack
    Msgpack,
    /// tidewire.v1.json
    Json,
}

impl Codec {
    /// The subprotocol that asks for it.
    pub(crate) const fn subprotocol(self) -> &'static str {
        match self {
            Self::Protobuf => "tidewire.v1",
            Self::Msgpack => "tidewire.v1.msgpack",
            Self::Json => "tidewire.v1.json",
        }
    }
}

impl Group {
    /// Healthy ones that ask for nothing.
    pub(crate) const fn healthy(count: usize) -> Self {
        Self {
            count,
            codec: Codec::Protobuf,
            policy: None,
            max_delay_ms: None,
            max_age_ms: None,
            max_rate_hz: None,
            last_ms: None,
            receive_buffer_bytes: None,
            comes_back: false,
            phases: Vec::new(),
            behaviour: Behaviour::Healthy,
        }
    }

    /// Whether it is there in the phase.
    pub(crate) fn is_in(&self, phase: &str) -> bool {
        self.phases.is_empty() || self.phases.iter().any(|name| name == phase)
    }
}
