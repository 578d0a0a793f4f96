//! Tidewire: a low-latency telemetry streaming server.
//!
//! The way of a sample, in the order of the modules:
//!
//! ```text
//! socket -> inbound -> wire/decode -> session -> hub -> hub/channel -> hub/batch -> wire/encode (once per class)
//!        -> outbox (per connection) -> outbound -> socket
//! ```
//!
//! Words, one for a thing: a **sample** is one datum published, with its source time; a **channel** a named stream of
//! samples with one sequence; a **batch** the open set of samples of a channel that waits for its flush; a **frame** a
//! sealed batch, immutable bytes shared by all its receivers; an **outbox** the bounded send queue of one connection; a
//! **session** the rules of one client's conversation; a **connection** the lifecycle of one socket; the **hub** the
//! registry of channels and their subscribers; a **worker** one thread with its own runtime, connections and hub shard;
//! a **gap** samples that a subscriber will not get, announced in band; the **history** the newest frames of a channel, kept for
//! those who come back; the **flush window** the longest that a sample
//! waits in a batch.

pub mod admission;
pub mod auth;
pub mod broker;
pub mod bucket;
pub mod cli;
pub mod client;
pub mod clock;
pub mod close;
pub mod cluster;
pub mod config;
pub mod connection;
pub mod durable;
pub mod history;
pub mod host;
pub mod http;
pub mod hub;
pub mod inbound;
pub mod keepalive;
pub mod metrics;
pub mod outbound;
pub mod outbox;
pub mod pattern;
pub mod peer;
pub mod presence;
pub mod proxy;
pub mod publisher;
pub mod readiness;
pub mod reading;
pub mod server;
pub mod session;
pub mod system;
pub mod tls;
pub mod wire;
pub mod worker;
