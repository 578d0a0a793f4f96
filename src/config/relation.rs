//! The rules between settings, as data. A rule on one setting alone is its range, in its declaration.

use super::Config;

/// One setting that may not be less than what others make of it.
#[derive(Debug)]
pub(super) struct Relation {
    /// The setting with the floor.
    pub(super) key: &'static str,
    /// The settings that the floor is made of.
    pub(super) of: &'static [&'static str],
    /// The value of `key`, in its unit.
    pub(super) value: fn(&Config) -> u128,
    /// The floor, in the unit of `key`.
    pub(super) least: fn(&Config) -> u128,
    /// Why.
    pub(super) since: &'static str,
}

impl Relation {
    pub(super) fn holds(&self, config: &Config) -> bool {
        (self.value)(config) >= (self.least)(config)
    }
}

/// Every rule.
pub(super) static RELATIONS: &[Relation] = &[
    Relation {
        key: "server.handshake_timeout_ms",
        of: &["server.first_byte_timeout_ms"],
        value: |config| config.server.handshake_timeout.as_millis(),
        least: |config| config.server.first_byte_timeout.as_millis(),
        since: "a request head cannot end before it begins",
    },
    Relation {
        key: "channel.channels_total_max",
        of: &["channel.channels_max"],
        value: |config| config.channel.channels_total_max as u128,
        least: |config| config.channel.channels_max as u128,
        since: "a connection cannot have more channels than the server",
    },
    Relation {
        key: "batch.window_max_ms",
        of: &["batch.window_ms"],
        value: |config| config.batch.window_max.as_millis(),
        least: |config| config.batch.window.as_millis(),
        since: "overload widens the window and never narrows it",
    },
    Relation {
        key: "broker.outgoing_bytes_max",
        of: &["inbound.message_bytes_max", "batch.frame_bytes_max"],
        value: |config| config.broker.outgoing_bytes_max as u128,
        least: |config| 2 * config.inbound.message_bytes_max.max(config.batch.frame_bytes_max) as u128,
        since: "one frame can get that large, and must fit beside another",
    },
    Relation {
        key: "outbox.data_bytes_max",
        of: &[
            "inbound.message_bytes_max",
            "inbound.message_samples_max",
            "batch.frame_bytes_max",
            "batch.frame_samples_max",
        ],
        value: |config| config.outbox.data_bytes_max as u128,
        least: |config| config.frame_bytes_largest() as u128,
        since: "one frame can get that large in JSON, and must fit",
    },
    Relation {
        key: "outbox.control_bytes_max",
        of: &["channel.channels_max", "channel.channel_name_bytes_max"],
        value: |config| config.outbox.control_bytes_max as u128,
        least: |config| config.control_bytes_largest() as u128,
        since: "one answer can get that large, and must fit",
    },
];
