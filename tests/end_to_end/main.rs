//! The server from outside: bytes in, bytes out, over sockets on 127.0.0.1. One binary, so that it is linked once. A test
//! waits for events, with a deadline that only a failure reaches; none measures speed.

#![expect(clippy::unwrap_used, reason = "a helper that cannot go on fails its test")]

mod admission;
mod bad_input;
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
mod shutdown;
mod slow_subscriber;
mod support;
mod tls;
