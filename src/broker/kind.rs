//! Which brokers there are, and what each can do: the one table that a new broker has to be entered in.

use super::driver::Driver;
use super::{nats, redis};

/// What a broker can do, for the cluster and for the documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// It keeps messages: a subscription begins with a backlog, and what was published while the connection was lost is
    /// delivered after it, as far as it is still kept.
    pub keeps: bool,
    /// A message is confirmed by the broker only when it is stored.
    pub confirms_storage: bool,
    /// How many messages of a keeping broker went missing is known exactly, as long as its history is the same one.
    pub counts_losses: bool,
}

/// A kind of broker: what a URL's scheme names.
#[derive(Clone, Copy)]
pub struct Kind {
    /// The scheme without TLS.
    pub scheme: &'static str,
    /// The scheme with TLS.
    pub scheme_tls: &'static str,
    /// What people call it.
    pub name: &'static str,
    /// Its TCP port, where a URL names none.
    pub port: u16,
    /// What it can do.
    pub capabilities: Capabilities,
    /// Whether it takes a file of credentials.
    pub(super) takes_credentials: bool,
    /// Makes the driver.
    pub(super) driver: fn() -> Box<dyn Driver>,
}

const PLAIN: Capabilities = Capabilities { keeps: false, confirms_storage: false, counts_losses: false };

impl Kind {
    /// Every kind.
    pub const ALL: &'static [Self] = &[
        Self {
            scheme: "redis",
            scheme_tls: "rediss",
            name: "Redis Pub/Sub",
            port: 6379,
            capabilities: PLAIN,
            takes_credentials: false,
            driver: redis::pubsub,
        },
        Self {
            scheme: "redis-streams",
            scheme_tls: "rediss-streams",
            name: "Redis Streams",
            port: 6379,
            capabilities: Capabilities { keeps: true, confirms_storage: true, counts_losses: true },
            takes_credentials: false,
            driver: redis::streams,
        },
        Self {
            scheme: "nats",
            scheme_tls: "nats+tls",
            name: "NATS",
            port: 4222,
            capabilities: PLAIN,
            takes_credentials: true,
            driver: nats::core,
        },
        Self {
            scheme: "jetstream",
            scheme_tls: "jetstream+tls",
            name: "NATS JetStream",
            port: 4222,
            capabilities: Capabilities { keeps: true, confirms_storage: true, counts_losses: false },
            takes_credentials: true,
            driver: nats::jetstream,
        },
    ];

    /// Every scheme, for messages.
    #[must_use]
    pub fn schemes() -> String {
        let all: Vec<_> = Self::ALL.iter().flat_map(|kind| [kind.scheme, kind.scheme_tls]).collect();
        all.join(", ")
    }
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.scheme)
    }
}
