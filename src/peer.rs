//! Who is at the other end of a socket, before it asks for anything. Pure.

use std::net::SocketAddr;

/// See the module's page.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// Where it came in.
    pub listener: Listener,
    /// Who the client's certificate says it is: its common name, at most
    /// [`COMMON_NAME_BYTES_MAX`](crate::tls::COMMON_NAME_BYTES_MAX) printable bytes. Only with `tls.client_ca_file`, and then
    /// vouched for by one of those CAs. Nothing for a client that showed no certificate.
    pub certificate: Option<Box<str>>,
}

/// A door of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// `listen`: the stream, and the pages where they have no door of their own.
    Public,
    /// `admin.listen`: the pages alone.
    Admin,
}

impl Peer {
    /// One of which nothing is known but its address and where it came in.
    #[must_use]
    pub const fn at(address: SocketAddr, listener: Listener) -> Self {
        Self { address, listener, certificate: None }
    }
}
