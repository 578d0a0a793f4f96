//! The lifecycle of one upgraded socket: greets, runs both loops, and ends in one place, whatever the reason. Never parses a
//! message.

use std::cell::{Cell, RefCell};
use std::future::{Future as _, poll_fn};
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::auth::seats::Seat;
use crate::close::{CloseReason, Retry};
use crate::config::Config;
use crate::hub::access::Standing;
use crate::hub::membership::NewMember;
use crate::inbound::{Endpoint, Inbound};
use crate::keepalive::Keepalive;
use crate::outbound;
use crate::outbox::handle::OutboxHandle;
use crate::peer::Peer;
use crate::session::Session;
use crate::wire::control::{Digits, ErrorCode, Event, WelcomeLimits, WelcomeSettings};
use crate::wire::{Codec, ConnectionId, seal, ws};
use crate::worker::{Watched, Worker};

/// What the handshake has settled.
#[derive(Debug)]
pub struct Upgraded {
    /// Who is at the other end.
    pub peer: Rc<Peer>,
    /// What was asked for.
    pub wanted: Wanted,
    /// The answer to the handshake, which is still to be written.
    pub answer: Vec<u8>,
    /// Bytes that came behind the request head.
    pub leftover: Bytes,
}

/// The endpoint that was asked for.
#[derive(Debug)]
pub enum Wanted {
    /// `/ws`.
    Protocol {
        /// The data codec.
        codec: Codec,
        /// How far the handshake says who the client is.
        standing: Standing,
        /// Its place among the subject's connections, if it is known.
        seat: Option<Seat>,
    },
    /// `/echo`.
    Echo,
}

/// Runs a connection from its upgrade to its end.
pub async fn run<S: AsyncRead + AsyncWrite + Unpin + 'static>(worker: Rc<Worker>, io: S, upgraded: Upgraded) {
    let Upgraded { peer, wanted, mut answer, leftover } = upgraded;
    let remote = peer.address;
    let id = worker.shared.next_connection();
    let now = worker.now();
    let config = Arc::clone(&worker.shared.config);
    let handle = Rc::new(OutboxHandle::new(config.outbox.clone(), Rc::clone(worker.ready())));
    let (endpoint, member) = match wanted {
        Wanted::Echo => {
            handle.push_message(answer.into());
            (Endpoint::Echo, None)
        }
        Wanted::Protocol { codec, standing, seat } => {
            let welcome = Welcome { config: &config, id, codec, standing: &standing };
            // One write for both.
            answer.extend_from_slice(&seal::event(&welcome.event(now.wall_ns)));
            handle.push_message(answer.into());
            let waits = matches!(standing, Standing::Waiting(_));
            let session = Box::new(Session::new(Arc::clone(&config), codec, waits, now));
            // From here on the hub hears who is shut out; what came since the token was checked is seen here.
            if matches!(&standing, Standing::Known(identity) if worker.shared.gate.is_shut_out(identity)) {
                let (code, message) = (ErrorCode::Forbidden, "the token has been revoked");
                handle.push_event(&Event::Error { id: None, code, message });
                handle.end(CloseReason::Forbidden);
            }
            let remote = remote.to_string().into();
            let new = NewMember { id, handle: Rc::clone(&handle), codec, standing, seat, remote };
            let member = worker.hub.borrow_mut().add_member(new, now);
            (Endpoint::Protocol { member, session }, Some(member))
        }
    };
    if worker.hub.borrow().is_draining() {
        handle.end(CloseReason::Drain);
    }
    let keepalive = RefCell::new(Keepalive::new(&config, now.at, fastrand::f64()));
    let io = Rc::new(RefCell::new(io));
    let unflushed = Cell::new(false);
    let watched = Rc::new(Watched { handle, keepalive, member, io: Rc::clone(&io) as _, unflushed });
    let place = worker.watch(Rc::clone(&watched));
    let listed = Listed { worker: &worker, watched: &watched, place };

    let reason = {
        let mut inbound = Inbound::new(Rc::clone(&worker), Rc::clone(&watched), endpoint, &leftover);
        // It is a share of the buffer of the HTTP side, all of which would stay for the life of the connection.
        drop(leftover);
        let mut loops = pin!(async {
            tokio::select! {
                biased;
                reason = outbound::run(&worker, &watched) => reason,
                reason = inbound.run(&io) => reason,
            }
        });
        poll_fn(|cx| contain(|| loops.as_mut().poll(cx))).await
    };
    finish(listed, &io, reason).await;
    let age = worker.now().at.saturating_duration_since(now.at);
    log_end(id, remote, reason, age, &watched);
}

/// A panic in the work for a connection is a bug, and ends that connection alone: it is told (1011) and counted like any end.
fn contain(poll: impl FnOnce() -> Poll<CloseReason>) -> Poll<CloseReason> {
    catch_unwind(AssertUnwindSafe(poll)).unwrap_or(Poll::Ready(CloseReason::Internal))
}

/// The one exit: out of every list, the last words, the close frame, a bounded wait for the peer, the end of the socket.
async fn finish<S: AsyncRead + AsyncWrite + Unpin>(listed: Listed<'_>, io: &RefCell<S>, reason: CloseReason) {
    let (worker, watched) = (listed.worker, listed.watched);
    let handle = &watched.handle;
    let goodbye = watched
        .member
        .filter(|_| reason == CloseReason::Drain)
        .map(|member| worker.hub.borrow().positions(member));
    let before = *handle.outbox().borrow().totals();
    listed.leave(reason);
    if reason == CloseReason::PeerGone || handle.is_cut() {
        return;
    }
    if let Some(positions) = goodbye {
        let reconnect_after_ms = match reason.retry() {
            // Spread over as long again, so that the clients of a restarting server do not come back all at once.
            Retry::After(delay) => millis(delay.mul_f64(1.0 + fastrand::f64())),
            Retry::Backoff | Retry::Never => 0,
        };
        let positions = &positions;
        handle.push_event(&Event::Goodbye { reason: reason.label(), reconnect_after_ms, positions });
    }
    let close = match (reason, handle.peer_close()) {
        // RFC 6455 section 5.5.1: the answer to a close frame carries its code.
        (CloseReason::PeerClosed, Some(code)) => ws::close_frame(code, ""),
        (CloseReason::PeerClosed, None) => ws::message(ws::Opcode::Close, b""),
        _ => ws::close_frame(reason.code(), reason.label()),
    };
    let farewell = async {
        handle.outbox().borrow_mut().close(close);
        outbound::flush(worker, watched).await?;
        // RFC 6455 section 7.1.1: the server ends the TCP connection first. What the peer still sends is read and ignored,
        // because a socket that is closed over unread bytes resets the connection and may take the close frame with it.
        poll_fn(|cx| Pin::new(&mut *io.borrow_mut()).poll_shutdown(cx)).await?;
        loop {
            let read = poll_fn(|cx| {
                let mut ignored = worker.read_buffer.borrow_mut();
                let mut buffer = ReadBuf::new(&mut ignored);
                std::task::ready!(Pin::new(&mut *io.borrow_mut()).poll_read(cx, &mut buffer))?;
                Poll::Ready(std::io::Result::Ok(buffer.filled().len()))
            });
            if read.await? == 0 {
                return std::io::Result::Ok(());
            }
        }
    };
    // A peer that does not take its leave in time is cut off.
    let _ = tokio::time::timeout(worker.config().server.close_timeout, farewell).await;
    if watched.member.is_some() {
        worker.hub.borrow_mut().count_farewell(&before, handle.outbox().borrow().totals());
    }
}

/// A connection in the worker's lists. However its task ends, also by a panic, it leaves them: no ghost stays.
struct Listed<'a> {
    worker: &'a Worker,
    watched: &'a Watched,
    place: usize,
}

impl Listed<'_> {
    fn leave(self, reason: CloseReason) {
        // Once, even if it panics.
        ManuallyDrop::new(self).remove(reason);
    }

    fn remove(&self, reason: CloseReason) {
        self.worker.unwatch(self.place);
        if let Some(member) = self.watched.member {
            self.worker.hub.borrow_mut().remove_member(member, self.worker.now());
        }
        self.worker.count_close(reason);
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        // It runs while a panic unwinds, and a second one would end the process.
        drop(catch_unwind(AssertUnwindSafe(|| self.remove(CloseReason::Internal))));
    }
}

/// One line for each connection that ends.
fn log_end(id: ConnectionId, remote: SocketAddr, reason: CloseReason, age: Duration, watched: &Watched) {
    let outbox = watched.handle.outbox().borrow();
    let totals = outbox.totals();
    macro_rules! log {
        ($level:ident) => {
            tracing::$level!(
                connection = id.0,
                %remote,
                reason = reason.label(),
                code = reason.code(),
                age_ms = millis(age),
                delivered = totals.samples_delivered,
                dropped = totals.dropped(),
                conflated = totals.conflated + totals.rate_limited,
                bytes = totals.bytes,
                "connection ended"
            )
        };
    }
    // A client that leaves is no news: where many come and go, the log would hold little else.
    match reason {
        CloseReason::PeerClosed | CloseReason::PeerGone => log!(debug),
        _ => log!(info),
    }
}

/// The first message of a connection.
struct Welcome<'a> {
    config: &'a Config,
    id: ConnectionId,
    codec: Codec,
    standing: &'a Standing,
}

impl<'a> Welcome<'a> {
    fn event(&self, server_ns: u64) -> Event<'a> {
        let Config { inbound, channel, batch, outbox, server, auth, .. } = self.config;
        let (expires_s, auth_timeout_ms) = match self.standing {
            Standing::Open { .. } => (None, None),
            Standing::Waiting(_) => (None, Some(millis(auth.first_message_timeout))),
            Standing::Known(identity) => (identity.expires_s, None),
        };
        Event::Welcome {
            protocol: self.codec.subprotocol(),
            connection: self.id.0,
            server_ns: Digits(server_ns),
            user: self.standing.user(),
            expires_s,
            auth_timeout_ms,
            limits: WelcomeLimits {
                message_bytes_max: inbound.message_bytes_max,
                message_samples_max: inbound.message_samples_max,
                subscriptions_max: channel.subscriptions_max,
                channels_max: channel.channels_max,
                channel_name_bytes_max: channel.channel_name_bytes_max,
                publish_messages_per_s_max: inbound.publish_messages_per_s_max,
                publish_bytes_per_s_max: inbound.publish_bytes_per_s_max,
                publish_samples_per_s_max: inbound.publish_samples_per_s_max,
                control_messages_per_s_max: inbound.control_messages_per_s_max,
            },
            settings: WelcomeSettings {
                max_delay_ms: u32::try_from(millis(batch.window)).unwrap_or(u32::MAX),
                max_age_ms: u32::try_from(millis(outbox.max_age)).unwrap_or(u32::MAX),
                heartbeat_ms: millis(outbox.heartbeat_interval),
                ping_ms: millis(server.ping_interval),
                pong_timeout_ms: millis(server.pong_timeout),
            },
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_end_like_any_other() {
        assert!(contain(|| Poll::Pending).is_pending());
        assert_eq!(contain(|| Poll::Ready(CloseReason::PeerGone)), Poll::Ready(CloseReason::PeerGone));
        assert_eq!(contain(|| panic!("a bug")), Poll::Ready(CloseReason::Internal));
    }
}
