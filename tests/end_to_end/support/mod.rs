//! A server to test, a peer that sends any bytes, a client that speaks the protocol, and the count of what it got. Never
//! sleeps, never uses a fixed port.

mod client;
mod command;
pub(crate) mod issuer;
mod peer;
mod relay;
mod server;
mod tally;

pub(crate) use client::{Client, Options, publish_message};
pub(crate) use command::Command;
pub(crate) use peer::{Handshake, Message, Peer, Response, close, masked};
pub(crate) use relay::Relay;
pub(crate) use server::{Process, TestServer, ask, http, metric};
pub(crate) use tally::{Tally, samples};

use std::time::{Duration, Instant};

/// How long anything may take. Only a failure takes so long.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Asks until there is an answer. Each question should be a round trip to the server, so that the two take turns.
pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < DEADLINE, "waited in vain for {what}");
        std::thread::yield_now();
    }
}
