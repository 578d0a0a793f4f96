//! Whose socket or request it is that a trusted proxy has brought: asks `proxy.rs`, and the door on behalf of the client. Reads
//! not a byte more than the proxy's header.

use std::io;
use std::rc::Rc;
use std::time::Instant;

use hyper::header::{self, HeaderMap, HeaderName};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::refuse;
use crate::admission::door::Place;
use crate::metrics::{HandshakeRefusal, SocketRefusal};
use crate::peer::Peer;
use crate::proxy::{REST_BYTES_MAX, START_BYTES, Start, forwarded_for};
use crate::worker::Worker;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Reads the header of the PROXY protocol where one has to be: who the peer is then, and its place. Nothing if the socket has to
/// end; that is counted.
pub(super) async fn introduce(
    worker: &Worker,
    io: &mut TcpStream,
    peer: Peer,
    place: Place,
    opened: Instant,
) -> Option<(Peer, Place)> {
    let limits = &worker.config().server;
    if !limits.proxy_protocol || !limits.trusted_proxies.contain(peer.address.ip()) {
        return Some((peer, place));
    }
    let door = &worker.shared.door;
    let left = limits.first_byte_timeout.saturating_sub(opened.elapsed());
    let Ok(Ok(client)) = tokio::time::timeout(left, read_header(io)).await else {
        door.count(SocketRefusal::ProxyHeader);
        return None;
    };
    let Some(address) = client else { return Some((peer, place)) };
    match door.enter(Some(address.ip()), Instant::now()) {
        Ok(place) => Some((Peer { address, ..peer }, place)),
        Err(refusal) => {
            if worker.shared.tls.is_none() {
                // Nothing was written before, so there is room.
                let _ = io.try_write(refuse::answer(refusal).as_bytes());
            }
            None
        }
    }
}

async fn read_header(io: &mut TcpStream) -> io::Result<Option<std::net::SocketAddr>> {
    let mut start = [0; START_BYTES];
    io.read_exact(&mut start).await?;
    let start = Start::parse(&start).map_err(io::Error::other)?;
    let mut rest = [0; REST_BYTES_MAX];
    let rest = &mut rest[..start.rest_bytes()];
    io.read_exact(rest).await?;
    start.client(rest).map_err(io::Error::other)
}

/// Who asks: for a request of a trusted proxy the client that it tells, else the peer itself. Nobody, if the client asks for too
/// many connections a second.
pub(super) fn client_of(worker: &Worker, peer: &Rc<Peer>, headers: &HeaderMap) -> Option<Rc<Peer>> {
    let trusted = &worker.config().server.trusted_proxies;
    if !trusted.contain(peer.address.ip()) {
        return Some(Rc::clone(peer));
    }
    let lines = headers.get_all(X_FORWARDED_FOR).iter().map(|line| line.as_bytes());
    let told = forwarded_for(lines, trusted);
    let client =
        told.map_or_else(|| Rc::clone(peer), |address| Rc::new(Peer { address, ..(**peer).clone() }));
    // What costs: a connection, and the check of a token.
    let upgrades = headers.contains_key(header::UPGRADE);
    if upgrades || headers.contains_key(header::AUTHORIZATION) {
        let mut hub = worker.hub.borrow_mut();
        let counters = &mut hub.metrics().counters;
        counters.forwarded_unreadable += u64::from(upgrades && told.is_none());
        if !worker.shared.door.passes(client.address.ip(), Instant::now()) {
            counters.handshakes_refused[HandshakeRefusal::Rate] += 1;
            return None;
        }
    }
    Some(client)
}
