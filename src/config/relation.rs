//! The rules between settings, as data. A rule on one setting alone is its range, in its declaration.

use super::{Config, Origins};

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

/// A rule about one setting, which others decide.
#[derive(Debug)]
pub(super) struct Rule {
    /// The full name of the setting; the rule holds for its default.
    pub(super) key: &'static str,
    /// The full names of the settings that decide.
    pub(super) of: &'static [&'static str],
    /// When it is broken, in words that follow "is refused".
    pub(super) when: &'static str,
    /// Whether it is broken.
    pub(super) broken: fn(&Config) -> bool,
    /// What is wrong, and the remedy.
    pub(super) remedy: &'static str,
}

/// Every such rule.
pub(super) static RULES: &[Rule] = &[
    Rule {
        key: "listen",
        of: &["insecure_open", "auth.keys_file", "auth.secret"],
        when: "for an address that others can reach, without a key",
        broken: |config| !config.listen.ip().is_loopback() && config.is_open() && !config.insecure_open,
        remedy: "everybody who reaches this address could do everything; set auth.keys_file or auth.secret, or \
                 insecure_open = true",
    },
    Rule {
        key: "server.proxy_protocol",
        of: &["server.trusted_proxies"],
        when: "without trusted proxies",
        broken: |config| config.server.proxy_protocol && config.server.trusted_proxies.is_empty(),
        remedy: "a PROXY header is believed from known proxies alone; name them in server.trusted_proxies",
    },
    Rule {
        key: "auth.cookie",
        of: &["server.origins"],
        when: "where all origins are allowed",
        broken: |config| config.auth.cookie.is_some() && config.server.origins == Origins::Any,
        remedy: "any page could use the cookies of whoever visits it; list the pages in server.origins",
    },
    Rule {
        key: "admin.token",
        of: &[],
        when: "with other characters than a token has",
        broken: |config| !config.admin.token.expose().bytes().all(may_be_sent),
        remedy: "a token that no client can send (RFC 6750); use ASCII letters, digits and - . _ ~ + / =",
    },
    Rule {
        key: "admin.listen",
        of: &["insecure_open", "auth.keys_file", "auth.secret", "admin.token"],
        when: "for an address that others can reach, with neither a key nor an admin token",
        broken: |config| {
            let exposed = config.admin.listen.is_some_and(|listen| !listen.ip().is_loopback());
            exposed && config.is_open() && config.admin.token.is_empty() && !config.insecure_open
        },
        remedy: "everybody who reaches this address could see everything; set admin.token, or keys for tokens with the \
                 right admin, or insecure_open = true",
    },
];

/// RFC 6750 section 2.1.
const fn may_be_sent(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'+' | b'/' | b'=')
}
