//! The server from outside: bytes in, bytes out, over sockets on 127.0.0.1. One binary, so that it is linked once. A test
//! waits for events, with a deadline that only a failure reaches; none measures speed.

#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

mod admission;
mod bad_input;
mod cluster;
mod durable;
mod faults;
mod faults_of_networks;
mod faults_of_processes;
mod foreign_clients;
mod framing;
mod handshake;
mod history;
mod identity;
mod memory;
mod presence;
mod protocol;
#[expect(dead_code, reason = "the contract of the brokers needs all of it")]
#[path = "../broker/servers.rs"]
mod servers;
mod shutdown;
mod slow_subscriber;
mod support;
mod tls;
