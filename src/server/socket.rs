//! A socket from its accept to its end: its first byte, HTTP, and a WebSocket if it is upgraded. Never looks into a message.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::TcpStream as StdStream;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::held::{Held, Hold};
use super::refuse::refuse;
use super::{proxied, tls};
use crate::admission::PLAIN_SOCKETS_MAX;
use crate::admission::door::Place;
use crate::connection::{self, Upgraded};
use crate::http::{self, Outcome};
use crate::metrics::SocketRefusal;
use crate::peer::{Listener, Peer};
use crate::worker::{ConnectionSlot, Worker};

/// Largest request head, in bytes, and most headers in it.
const HEAD_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;

/// Sockets of the admin listener that a worker serves at once: a few people and a few scrapers.
const ADMIN_SOCKETS_MAX: usize = 64;

/// Serves a socket until it ends.
pub(super) async fn serve(
    worker: Rc<Worker>,
    plain_sockets: Rc<PlainSockets>,
    socket: StdStream,
    peer: Peer,
    place: Place,
) {
    let placed = Placed { worker: &worker };
    let (count, most) = match peer.listener {
        Listener::Public => (&plain_sockets.public, PLAIN_SOCKETS_MAX),
        Listener::Admin => (&plain_sockets.admin, ADMIN_SOCKETS_MAX),
    };
    if count.get() >= most {
        worker.shared.door.count(SocketRefusal::Sockets);
        refuse(socket, SocketRefusal::Sockets, worker.shared.tls.is_some());
        return;
    }
    let upgraded = {
        let _plain = Plain::count(count);
        // Its state is larger than that of a WebSocket, and would stay as long: it has an allocation of its own.
        Box::pin(serve_http(&worker, socket, peer, place)).await.unwrap_or_default()
    };
    if let Some((wire, WebSocket { upgraded, slot })) = upgraded {
        match wire {
            Wire::Plain(io) => connection::run(Rc::clone(&worker), io, upgraded).await,
            Wire::Tls(io) => connection::run(Rc::clone(&worker), io, upgraded).await,
        }
        drop(slot);
    }
    drop(placed);
}

/// What is written to and read from.
enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What a socket is that was upgraded.
struct WebSocket {
    upgraded: Upgraded,
    slot: ConnectionSlot,
}

/// Serves a proxy's header, TLS, if it is on, and HTTP until the socket ends or becomes a WebSocket.
async fn serve_http(
    worker: &Rc<Worker>,
    socket: StdStream,
    peer: Peer,
    place: Place,
) -> io::Result<Option<(Wire, WebSocket)>> {
    let limits = &worker.config().server;
    let mut io = TcpStream::from_std(socket)?;
    let opened = Instant::now();
    let Some((mut peer, _place)) = proxied::introduce(worker, &mut io, peer, place, opened).await else {
        return Ok(None);
    };
    let first_byte_timeout = limits.first_byte_timeout.saturating_sub(opened.elapsed());
    match tokio::time::timeout(first_byte_timeout, io.readable()).await {
        Ok(readable) => readable?,
        Err(_) => return Ok(None),
    }
    let Some(tls) = &worker.shared.tls else {
        let upgraded = speak_http(worker, io, peer, opened).await?;
        return Ok(upgraded.map(|(io, upgraded)| (Wire::Plain(io), upgraded)));
    };
    let Some(io) = tls::shake_hands(worker, tls, io, &mut peer, opened).await else { return Ok(None) };
    let upgraded = speak_http(worker, io, peer, opened).await?;
    Ok(upgraded.map(|(io, upgraded)| (Wire::Tls(io), upgraded)))
}

/// Serves HTTP on what was accepted at `opened`, until it ends or becomes a WebSocket.
async fn speak_http<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    worker: &Rc<Worker>,
    io: S,
    peer: Peer,
    opened: Instant,
) -> io::Result<Option<(S, WebSocket)>> {
    let limits = &worker.config().server;
    let peer = Rc::new(peer);
    let outcome = Rc::new(RefCell::new(None));
    let hold = Hold::default();
    let io = Held::new(io, Arc::clone(&hold));
    let service = service_fn(|request| {
        let (worker, peer) = (Rc::clone(worker), Rc::clone(&peer));
        let (outcome, hold) = (Rc::clone(&outcome), Arc::clone(&hold));
        async move {
            let Some(peer) = proxied::client_of(&worker, &peer, request.headers()) else {
                return Ok(http::too_many_requests());
            };
            Ok::<_, std::convert::Infallible>(match http::answer(&worker, &peer, request).await {
                Outcome::Reply(reply) => reply,
                Outcome::Upgrade { reply, wanted, socket, slot } => {
                    *outcome.borrow_mut() = Some((peer, wanted, socket, slot));
                    hold.store(true, Ordering::Relaxed);
                    reply
                }
            })
        }
    });
    let head_timeout = limits.handshake_timeout.saturating_sub(opened.elapsed());
    let mut connection = pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(head_timeout)
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .serve_connection(TokioIo::new(io), service)
            .with_upgrades()
    );
    let served = tokio::select! {
        served = &mut connection => served,
        // A peer that asks and does not read would keep its socket for ever.
        () = tokio::time::sleep(limits.plain_timeout) => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(limits.handshake_timeout, connection).await {
                Ok(served) => served,
                Err(_) => return Ok(None),
            }
        }
    };
    let Some((peer, wanted, socket, slot)) = outcome.take() else { return Ok(None) };
    served.map_err(io::Error::other)?;
    // Nothing has been read from the socket by its new owner, so nothing is lost on the way back to the bare stream.
    let upgraded = socket.await.map_err(io::Error::other)?.into_inner();
    let parts = upgraded
        .into_inner()
        .downcast::<TokioIo<Held<S>>>()
        .map_err(|_| io::Error::other("the upgraded socket is not the one that was served"))?;
    let (io, answer) = parts.io.into_inner().into_parts();
    let upgraded = Upgraded { peer, wanted, answer, leftover: parts.read_buf };
    Ok(Some((io, WebSocket { upgraded, slot })))
}

/// A place at a worker, given back when the socket ends.
struct Placed<'a> {
    worker: &'a Worker,
}

impl Drop for Placed<'_> {
    fn drop(&mut self) {
        self.worker.shared.router.forget_connection(self.worker.index);
    }
}

/// How many sockets of a worker are no WebSocket yet.
#[derive(Debug, Default)]
pub(super) struct PlainSockets {
    public: Cell<usize>,
    admin: Cell<usize>,
}

/// A socket that is not a WebSocket yet.
struct Plain<'a> {
    count: &'a Cell<usize>,
}

impl<'a> Plain<'a> {
    fn count(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self { count }
    }
}

impl Drop for Plain<'_> {
    fn drop(&mut self) {
        self.count.set(self.count.get() - 1);
    }
}
