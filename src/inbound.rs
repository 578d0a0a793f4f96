//! The read loop of a connection: socket, frames, session, hub. Never writes to the socket.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};

use crate::auth::token::TOKEN_BYTES_MAX;
use crate::clock::Now;
use crate::close::CloseReason;
use crate::config::Secret;
use crate::hub::router::ForwardedPublish;
use crate::hub::{Published, Refused};
use crate::metrics::Stage;
use crate::session::{Action, PublishTo, Refusal, Session};
use crate::wire::control::{Digits, ErrorCode, Event};
use crate::wire::decode::{DecodeError, SampleSpan, ScannedPublish, scan_publish};
use crate::wire::ws::{self, Reader};
use crate::wire::{ChannelId, Codec};
use crate::worker::gate::Denied;
use crate::worker::{READ_BYTES_MAX, Watched, Worker};

/// What a connection does with messages.
#[derive(Debug)]
pub enum Endpoint {
    /// `/ws`: the protocol; its place in the hub and its rules.
    Protocol {
        /// Place in the hub.
        member: usize,
        /// The rules.
        session: Box<Session>,
    },
    /// `/echo`: sends everything back.
    Echo,
}

/// See the module's page.
#[derive(Debug)]
pub struct Inbound {
    worker: Rc<Worker>,
    watched: Rc<Watched>,
    endpoint: Endpoint,
    reader: Reader,
    /// Bytes that were read since the connection had to wait for some, or the others had their turn.
    turn_bytes: usize,
    /// Only a first message is taken, which needs no more than [`FIRST_MESSAGE_BYTES_MAX`].
    confined: bool,
    /// Bytes that were read, and could not be handled yet because something has to be waited for.
    carry: Vec<u8>,
    /// A publish by name, until every pattern has joined its new channel.
    announced: Option<(ChannelId, Vec<u8>)>,
}

/// What a subject gets that has `server.connections_per_subject_max`.
const SEATS_TAKEN: &str = "the subject of the token has all the connections that one may have; end one first";

/// The largest message of somebody who is not known yet: a token and what is around it.
const FIRST_MESSAGE_BYTES_MAX: usize = TOKEN_BYTES_MAX + 1_024;

/// How far a read was handled.
enum Step {
    /// All of it.
    Done,
    /// The channel's home has too much: this publish waits, and what is behind it.
    Wait(Box<ForwardedPublish>),
    /// Another worker has to answer before the rest can be handled.
    Answer,
    /// As [`Step::Answer`], and then this publish is the first of its channel.
    Announce(ChannelId, Vec<u8>),
    /// The connection ends.
    Close(CloseReason),
}

impl Inbound {
    /// The loop of a connection. `leftover` was read behind the request head.
    #[must_use]
    pub fn new(worker: Rc<Worker>, watched: Rc<Watched>, endpoint: Endpoint, leftover: &Bytes) -> Self {
        let message_bytes_max = worker.config().inbound.message_bytes_max;
        let confined = matches!(&endpoint, Endpoint::Protocol { session, .. } if session.waits());
        let reader = Reader::new(if confined {
            FIRST_MESSAGE_BYTES_MAX.min(message_bytes_max)
        } else {
            message_bytes_max
        });
        Self {
            worker,
            watched,
            endpoint,
            reader,
            turn_bytes: 0,
            confined,
            carry: leftover.to_vec(),
            announced: None,
        }
    }

    /// Reads until the connection ends, and says why.
    pub async fn run<S: AsyncRead + Unpin>(&mut self, io: &RefCell<S>) -> CloseReason {
        loop {
            let step = if let Some((channel, message)) = self.announced.take() {
                self.publish_announced(channel, &message)
            } else if self.carry.is_empty() {
                self.read(io).await
            } else {
                let mut carry = std::mem::take(&mut self.carry);
                self.consume(&mut carry, self.worker.now())
            };
            let waits = matches!(step, Step::Wait(_) | Step::Answer | Step::Announce(..));
            if waits {
                self.watched.keepalive.borrow_mut().pause_reading();
            }
            match step {
                Step::Done => {}
                Step::Wait(publish) => self.worker.shared.router.publish(publish).await,
                Step::Answer => self.answered().await,
                Step::Announce(channel, message) => {
                    self.answered().await;
                    self.announced = Some((channel, message));
                }
                Step::Close(reason) => return reason,
            }
            if waits {
                let now = self.worker.now().at;
                self.watched.keepalive.borrow_mut().resume_reading(self.worker.config(), now);
            }
        }
    }

    /// Waits until other workers have answered what was asked.
    async fn answered(&self) {
        let handle = &self.watched.handle;
        poll_fn(|cx| if handle.awaits_answer(cx) { Poll::Pending } else { Poll::Ready(()) }).await;
    }

    fn publish_announced(&mut self, channel: ChannelId, message: &[u8]) -> Step {
        let Endpoint::Protocol { member, .. } = &self.endpoint else { return Step::Done };
        let (member, now) = (*member, self.worker.now());
        let mut handling =
            Handling { worker: &self.worker, watched: &self.watched, endpoint: &mut self.endpoint, now };
        let step = handling.publish(member, Some(channel), message);
        self.worker.poll_due(now);
        step
    }

    async fn read<S: AsyncRead + Unpin>(&mut self, io: &RefCell<S>) -> Step {
        let worker = Rc::clone(&self.worker);
        let step = poll_fn(|cx| {
            let mut buffer = worker.read_buffer.borrow_mut();
            let mut read = ReadBuf::new(&mut buffer);
            let Poll::Ready(outcome) = Pin::new(&mut *io.borrow_mut()).poll_read(cx, &mut read) else {
                self.turn_bytes = 0;
                return Poll::Pending;
            };
            if outcome.is_err() || read.filled().is_empty() {
                return Poll::Ready(Step::Close(CloseReason::PeerGone));
            }
            self.turn_bytes += read.filled().len();
            Poll::Ready(self.consume(read.filled_mut(), worker.now()))
        })
        .await;
        if self.turn_bytes >= READ_BYTES_MAX {
            // There is more where this came from; the others on this thread go first. TLS hands out a record at a time.
            self.turn_bytes = 0;
            tokio::task::yield_now().await;
        }
        step
    }

    /// Handles the bytes of one read, all received `now`.
    fn consume(&mut self, bytes: &mut [u8], now: Now) -> Step {
        let mut input = bytes;
        let mut whole_message = false;
        let step = loop {
            let event = match self.reader.next(&mut input) {
                Ok(Some(event)) => event,
                Ok(None) => break Step::Done,
                Err(error) => break Step::Close(error.close_reason()),
            };
            // A ping between its fragments does not end a message.
            whole_message |= matches!(event, ws::Event::Text(_) | ws::Event::Binary(_));
            let mut handling =
                Handling { worker: &self.worker, watched: &self.watched, endpoint: &mut self.endpoint, now };
            let handled = handling.handle(event);
            if self.confined
                && !matches!(&self.endpoint, Endpoint::Protocol { session, .. } if session.waits())
            {
                self.confined = false;
                self.reader.take_messages_of(self.worker.config().inbound.message_bytes_max);
            }
            match handled {
                Step::Done => {}
                stop => break stop,
            }
        };
        if matches!(step, Step::Wait(_) | Step::Answer | Step::Announce(..)) {
            self.carry.extend_from_slice(input);
        }
        let mut keepalive = self.watched.keepalive.borrow_mut();
        if whole_message {
            keepalive.note_message();
        }
        keepalive.note_read(self.reader.is_mid_message(), now.at);
        drop(keepalive);
        self.worker.poll_due(now);
        step
    }
}

/// One message on its way to the hub.
struct Handling<'a> {
    worker: &'a Rc<Worker>,
    watched: &'a Watched,
    endpoint: &'a mut Endpoint,
    now: Now,
}

thread_local! {
    /// Where the samples of the message at hand lie; kept for its capacity.
    static SPANS: RefCell<Vec<SampleSpan>> = const { RefCell::new(Vec::new()) };
}

impl Handling<'_> {
    fn handle(&mut self, event: ws::Event<'_>) -> Step {
        match event {
            ws::Event::Close(last) => {
                self.watched.handle.set_peer_close(last.map(|(code, _)| code));
                return Step::Close(CloseReason::PeerClosed);
            }
            ws::Event::Ping(payload) => {
                if let Endpoint::Protocol { session, .. } = &mut self.endpoint
                    && let Err(refusal) = session.check_control_rate(self.now)
                {
                    return self.refuse(refusal);
                }
                self.watched.handle.push_message(ws::message(ws::Opcode::Pong, payload));
                return Step::Done;
            }
            ws::Event::Pong(_) => return Step::Done,
            ws::Event::Text(_) | ws::Event::Binary(_) => {}
        }
        let Endpoint::Protocol { member, session } = &mut *self.endpoint else {
            let (opcode, payload) = match event {
                ws::Event::Text(text) => (ws::Opcode::Text, text.as_bytes()),
                ws::Event::Binary(bytes) => (ws::Opcode::Binary, bytes),
                _ => return Step::Done,
            };
            self.watched.handle.push_message(ws::message(opcode, payload));
            return Step::Done;
        };
        let (member, now) = (*member, self.now);
        let outcome = match event {
            ws::Event::Text(text) => {
                count_message(self.worker, text.len());
                session.handle_text(text, now)
            }
            ws::Event::Binary(message) if session.codec() == Codec::Protobuf => {
                if let Err(refusal) = session.check_publish_rate(message.len(), now) {
                    count_message(self.worker, message.len());
                    return self.refuse(refusal);
                }
                return self.publish(member, None, message);
            }
            ws::Event::Binary(message) => {
                count_message(self.worker, message.len());
                if session.codec() == Codec::Json && !session.waits() {
                    Err(Refusal::Error {
                        id: None,
                        code: ErrorCode::Unsupported,
                        message: "a binary message; in tidewire.v1.json data is JSON text".into(),
                    })
                } else {
                    session
                        .check_publish_rate(message.len(), now)
                        .and_then(|()| session.handle_msgpack(message))
                }
            }
            _ => return Step::Done,
        };
        match outcome {
            Ok(action) => self.act(member, action),
            Err(refusal) => self.refuse(refusal),
        }
    }

    fn act(&mut self, member: usize, action: Action) -> Step {
        let now = self.now;
        if !matches!(action, Action::Publish { .. }) {
            self.worker.hub.borrow_mut().metrics().counters.control_messages_received += 1;
        }
        match action {
            Action::Publish { channel, message } => {
                let channel = match channel {
                    PublishTo::Id(id) => id,
                    PublishTo::Name(name) => match self.advertise_implicitly(member, &name) {
                        Ok(id) => id,
                        Err(refused) => return self.refuse_request(None, refused),
                    },
                };
                if self.watched.handle.has_unanswered() {
                    return Step::Announce(channel, message);
                }
                self.publish(member, Some(channel), &message)
            }
            Action::Subscribe { id, pattern, delivery, past } => {
                let mut hub = self.worker.hub.borrow_mut();
                let outcome = hub.subscribe(member, id, &pattern, delivery, past, now);
                drop(hub);
                self.after_request(id, outcome)
            }
            Action::History { id, name } => {
                let outcome = self.worker.hub.borrow_mut().describe(member, id, &name, now);
                self.after_request(id, outcome)
            }
            Action::Unsubscribe { id, pattern } => {
                let outcome = self.worker.hub.borrow_mut().unsubscribe(member, id, &pattern, now);
                self.after_request(id, outcome)
            }
            Action::Advertise { id, name } => {
                let outcome = self.worker.hub.borrow_mut().advertise(member, id, &name, now).map(drop);
                self.after_request(id, outcome)
            }
            Action::Presence { id, name } => {
                let outcome = self.worker.hub.borrow_mut().presence(member, id, &name);
                self.after_request(id, outcome)
            }
            Action::Auth { id, token } => self.authenticate(member, id, &token),
            Action::Ping { id, client_ns } => {
                let (received_ns, sent_ns) = (Digits(now.wall_ns), Digits(self.worker.now().wall_ns));
                self.watched.handle.push_event(&Event::Pong { id, client_ns, received_ns, sent_ns });
                Step::Done
            }
            Action::Stats { id, arrival_ns } => {
                let mut hub = self.worker.hub.borrow_mut();
                for latency in arrival_ns {
                    hub.metrics().record(Stage::Arrival, latency, 1);
                }
                drop(hub);
                let event = {
                    let outbox = self.watched.handle.outbox().borrow();
                    Event::Stats {
                        id,
                        outbox_frames: outbox.data_frames(),
                        outbox_bytes: outbox.data_bytes(),
                        channels: outbox.ledgers().collect(),
                    }
                };
                self.watched.handle.push_event(&event);
                Step::Done
            }
        }
    }

    fn authenticate(&mut self, member: usize, id: Option<u64>, token: &Secret) -> Step {
        let Endpoint::Protocol { session, .. } = &mut *self.endpoint else { return Step::Done };
        let (code, reason, message) = match self.worker.shared.gate.admit(token.expose(), self.now) {
            Ok(identity) => {
                let seat = if session.waits() { self.worker.shared.gate.seat(&identity) } else { None };
                if session.waits() && seat.is_none() {
                    let (code, reason) = (ErrorCode::LimitExceeded, CloseReason::Capacity);
                    return self.refuse(Refusal::Last { id, code, message: SEATS_TAKEN.into(), reason });
                }
                let mut hub = self.worker.hub.borrow_mut();
                let outcome = hub.authenticate(member, id, identity, seat, self.now);
                drop(hub);
                if outcome.is_ok() {
                    session.note_known();
                }
                return self.after_request(id, outcome);
            }
            Err(denied) => {
                tracing::debug!(reason = %denied, "a token was refused in an auth message");
                match denied {
                    Denied::Revoked => {
                        (ErrorCode::Forbidden, CloseReason::Forbidden, "the token has been revoked")
                    }
                    Denied::Token(_) => (
                        ErrorCode::Unauthorized,
                        CloseReason::Unauthenticated,
                        "the token is not taken; ask its issuer for another",
                    ),
                }
            }
        };
        let message = message.into();
        if session.waits() {
            return self.refuse(Refusal::Last { id, code, message, reason });
        }
        self.refuse(Refusal::Error { id, code, message })
    }

    fn advertise_implicitly(&self, member: usize, name: &str) -> Result<ChannelId, Refused> {
        let mut hub = self.worker.hub.borrow_mut();
        match hub.advertised(member, name) {
            Some(id) => Ok(id),
            None => hub.advertise(member, None, name, self.now),
        }
    }

    fn publish(&mut self, member: usize, channel: Option<ChannelId>, message: &[u8]) -> Step {
        let samples_max = self.worker.config().inbound.message_samples_max;
        let outcome = SPANS.with_borrow_mut(|spans| {
            let scanned = scan_publish(message, samples_max, spans)?;
            if let Endpoint::Protocol { session, .. } = &mut *self.endpoint
                && let Err(refusal) = session.check_samples_rate(spans.len(), self.now)
            {
                return Ok(Err(refusal));
            }
            let scanned = ScannedPublish { channel: channel.unwrap_or(scanned.channel), ..scanned };
            let mut hub = self.worker.hub.borrow_mut();
            if channel.is_none() {
                let counters = &mut hub.metrics().counters;
                counters.messages_received += 1;
                counters.bytes_received += message.len() as u64;
            }
            let published = hub.publish(member, &scanned, spans, self.now);
            Ok::<_, DecodeError>(Ok((scanned.channel, scanned.ack, published)))
        });
        let (id, code, message) = match outcome {
            Ok(Err(refusal)) => return self.refuse(refusal),
            Ok(Ok((_, _, Published::Taken))) => return Step::Done,
            Ok(Ok((_, _, Published::Wait(publish)))) => return Step::Wait(publish),
            Ok(Ok((channel, ack, Published::NotAdvertised))) => (
                (ack != 0).then_some(ack),
                ErrorCode::NotAdvertised,
                format!(
                    "channel {channel} is not advertised by this connection; send an advertise with its name"
                ),
            ),
            Err(error) => (None, ErrorCode::BadPayload, error.to_string()),
        };
        self.refuse(Refusal::Error { id, code, message })
    }

    fn after_request(&mut self, id: Option<u64>, outcome: Result<(), Refused>) -> Step {
        match outcome {
            Ok(()) if self.watched.handle.has_unanswered() => Step::Answer,
            Ok(()) => Step::Done,
            Err(refused) => self.refuse_request(id, refused),
        }
    }

    fn refuse_request(&mut self, id: Option<u64>, refused: Refused) -> Step {
        self.refuse(Refusal::Error { id, code: refused.code, message: refused.message })
    }

    fn refuse(&mut self, refusal: Refusal) -> Step {
        match refusal {
            Refusal::Silence => Step::Done,
            Refusal::Close(reason) => Step::Close(reason),
            Refusal::Last { id, code, message, reason } => {
                self.watched.handle.push_event(&Event::Error { id, code, message: &message });
                Step::Close(reason)
            }
            Refusal::Error { id, code, message } => {
                self.watched.handle.push_event(&Event::Error { id, code, message: &message });
                // Being above a rate has an end of its own.
                if code != ErrorCode::RateLimited
                    && let Endpoint::Protocol { session, .. } = &mut *self.endpoint
                    && let Err(Refusal::Close(reason)) = session.count_invalid(self.now)
                {
                    return Step::Close(reason);
                }
                Step::Done
            }
        }
    }
}

fn count_message(worker: &Worker, bytes: usize) {
    let mut hub = worker.hub.borrow_mut();
    let counters = &mut hub.metrics().counters;
    counters.messages_received += 1;
    counters.bytes_received += bytes as u64;
}
