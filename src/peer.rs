//! Who is at the other end of a socket, before anything is said. Pure.

use std::net::SocketAddr;

/// See the module's page.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// Where it came in.
    pub listener: Listener,
}

/// A door of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// `listen`: the stream, and the pages where they have no door of their own.
    Public,
    /// `admin.listen`: the pages alone.
    Admin,
}
