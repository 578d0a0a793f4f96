//! Who is at the other end of a socket, before anything is said. Pure.

use std::net::SocketAddr;

/// See the module's page.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
}
