//! The bundled client: one WebSocket to a server, control and data as typed messages. `tidewire sub` and `tidewire pub`
//! are built on it.
//!
//! One connection is one [`Client`]: it never connects again by itself. [`Reconnect`] says when the caller should, and
//! [`Closed::retry`] whether. Waiting for a message may be cancelled at any time without losing bytes, so `recv` fits
//! into a `select!`. No compression.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use fastwebsockets::OpCode;
use serde::Serialize;
use tokio::io::{AsyncWriteExt, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

pub use self::cursors::{Cursors, Met};
pub use self::event::Event;
pub use self::reconnect::Reconnect;
pub use self::samples::{Arrived, samples};
pub use self::socket::MESSAGE_BYTES_MAX;
pub use self::stream::{Trust, TrustError};
pub use self::url::{Url, UrlError};

use self::socket::Incoming;
use self::stream::Stream;
use crate::close::{CloseReason, Retry};
use crate::config::Secret;
use crate::wire::{Codec, proto};

pub mod cursors;
mod data;
pub mod event;
mod handshake;
pub mod reconnect;
mod samples;
#[cfg(test)]
pub(crate) mod scripted;
mod socket;
mod stream;
mod url;

/// From the start of [`Client::connect`] to the server's `welcome`.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a write may make no progress before the connection counts as lost: the server's own write deadline.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long [`Client::close`] waits for the echo: the server's own close timeout.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes that may wait to be written when a ping comes in; above, it is not answered, since the peer is not reading.
const PONG_BACKLOG_BYTES_MAX: usize = 4 << 10;

/// What [`Client::recv`] returns.
#[derive(Debug)]
pub enum Message {
    /// A control message.
    Control(Event),
    /// Samples of one channel, checked: as many as `count` says, with sequences that fit. See [`samples()`].
    Frame(proto::Frame),
    /// The end. Every later call returns it again.
    Closed(Closed),
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} ({code})", if reason.is_empty() { "closed" } else { reason.as_str() })]
pub struct Closed {
    /// The close code; 1006 where the connection was lost without one.
    pub code: u16,
    /// The server's words, or this client's. Escape it before it reaches a terminal.
    pub reason: String,
    /// Whether to connect again: the advice for the code, or a stricter `goodbye`.
    pub retry: Retry,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Name resolution or TCP.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// TLS failed, whoever is at fault.
    #[error("the TLS handshake failed: {0}")]
    Tls(String),
    /// The server's certificate is not one to trust. Says why, and what to do.
    #[error("the server's certificate is not trusted: {0}")]
    Certificate(String),
    /// HTTP: the peer does not speak it, or ended the connection.
    #[error("the answer to the HTTP request failed: {0}{hint}", hint = hint(.0))]
    Http(#[from] hyper::Error),
    /// Not done within [`CONNECT_TIMEOUT`].
    #[error("no welcome within {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout,
    /// An HTTP status other than 101.
    #[error("refused with HTTP status {status}{}{message}", if message.is_empty() { "" } else { ": " })]
    Refused {
        /// The status.
        status: u16,
        /// The server's words, empty if it has none. Escape it before it reaches a terminal.
        message: String,
        /// `Retry-After`, if it is a number of seconds.
        retry_after: Option<Duration>,
    },
    /// The answer to the upgrade is not that of a Tidewire server.
    #[error("{0}")]
    Handshake(&'static str),
    /// The first message was not `welcome`.
    #[error("the server's first message was not a welcome")]
    NoWelcome,
    /// Closed before the welcome.
    #[error("{0}")]
    Closed(Closed),
}

/// An alert of TLS is no HTTP.
fn hint(error: &hyper::Error) -> &'static str {
    if error.is_parse() { "; a server with TLS is at wss://" } else { "" }
}

impl ConnectError {
    /// Whether to try again.
    #[must_use]
    pub const fn retry(&self) -> Retry {
        match self {
            Self::Io(_) | Self::Tls(_) | Self::Http(_) | Self::Timeout => Retry::Backoff,
            Self::Refused { status: 429 | 500..=599, retry_after, .. } => match retry_after {
                Some(after) => Retry::After(*after),
                None => Retry::Backoff,
            },
            Self::Certificate(_) | Self::Refused { .. } | Self::Handshake(_) | Self::NoWelcome => {
                Retry::Never
            }
            Self::Closed(closed) => closed.retry,
        }
    }
}

/// Why a message was not sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Over `welcome.limits.message_bytes_max`; the server would close the connection with 1009. Nothing was sent.
    #[error("a message of {bytes} bytes is over the server's limit of {bytes_max}")]
    TooBig {
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The connection is lost; [`Client::recv`] says how, after the messages that came before.
    #[error("the connection is lost: {0}")]
    Lost(#[from] io::Error),
}

/// One open connection, after the server's `welcome`.
#[derive(Debug)]
pub struct Client {
    codec: Codec,
    welcome: event::Welcome,
    incoming: mpsc::Receiver<Incoming>,
    writer: WriteHalf<Stream>,
    /// Bytes of whole frames that wait to be written; the first may be partly written.
    out: BytesMut,
    /// What was written may lie in TLS, and not in the kernel yet.
    unflushed: bool,
    /// Nothing can be written any more.
    mute: bool,
    close_sent: bool,
    goodbye: Option<Duration>,
    /// When the connection counts as lost for silence; the server's pings push it on.
    silent_at: Option<Instant>,
    closed: Option<Closed>,
    /// Holds the reading task, which ends with it.
    _reader: JoinSet<()>,
}

impl Client {
    /// Connects, upgrades with the codec's subprotocol and waits for the `welcome`. A server at `wss://` has to show a
    /// certificate that `trust`, which was made for this address, trusts. A token is shown in the handshake. Needs a tokio
    /// runtime with I/O and time.
    ///
    /// # Errors
    /// Says what failed; [`ConnectError::retry`] says whether to try again.
    pub async fn connect(
        url: &Url,
        codec: Codec,
        trust: &Trust,
        token: Option<&Secret>,
    ) -> Result<Self, ConnectError> {
        timeout(CONNECT_TIMEOUT, Self::connect_unhurried(url, codec, trust, token))
            .await
            .map_err(|_| ConnectError::Timeout)?
    }

    async fn connect_unhurried(
        url: &Url,
        codec: Codec,
        trust: &Trust,
        token: Option<&Secret>,
    ) -> Result<Self, ConnectError> {
        let halves = handshake::open(url, codec, trust, token).await?;
        let (messages, incoming) = mpsc::channel(socket::INCOMING_MAX);
        let mut reader = JoinSet::new();
        reader.spawn(socket::read_loop(halves.reader, messages));
        let mut client = Self {
            codec,
            welcome: event::Welcome::none(),
            incoming,
            writer: halves.writer,
            out: BytesMut::new(),
            unflushed: false,
            mute: false,
            close_sent: false,
            goodbye: None,
            silent_at: None,
            closed: None,
            _reader: reader,
        };
        match client.recv().await {
            Message::Control(Event::Welcome(welcome)) => client.welcome = welcome,
            Message::Closed(closed) => return Err(ConnectError::Closed(closed)),
            Message::Control(_) | Message::Frame(_) => return Err(ConnectError::NoWelcome),
        }
        client.heard();
        Ok(client)
    }

    /// The server's first message: its limits and settings.
    #[must_use]
    pub const fn welcome(&self) -> &event::Welcome {
        &self.welcome
    }

    /// Waits for the next message; answers pings and finishes writes that were cut short meanwhile. Cancel-safe.
    pub async fn recv(&mut self) -> Message {
        loop {
            if let Some(closed) = &self.closed {
                return Message::Closed(closed.clone());
            }
            let silent_at = self.silent_at;
            let silence = async move {
                match silent_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let incoming = tokio::select! {
                biased;
                written = socket::drain(&mut self.writer, &mut self.out, &mut self.unflushed),
                    if !self.out.is_empty() || self.unflushed =>
                {
                    if written.is_err() {
                        self.silence_writes();
                    }
                    continue;
                }
                incoming = self.incoming.recv() => incoming.unwrap_or_else(|| Incoming::Failed {
                    code: CloseReason::PeerGone.code(),
                    reason: "the connection ended".to_owned(),
                }),
                () = silence => Incoming::Failed {
                    code: CloseReason::PeerGone.code(),
                    reason: "the server has been silent for too long".to_owned(),
                },
            };
            self.heard();
            if let Some(message) = self.take(incoming).await {
                return message;
            }
        }
    }

    /// Sends a request, such as `serde_json::json!({"type": "subscribe", "id": 1, "channel": "robot.*"})`.
    ///
    /// If it is cancelled, the rest is written by the next call of any method.
    ///
    /// # Errors
    /// The message is over the server's limit, or the connection is lost.
    pub async fn send_control(&mut self, request: &impl Serialize) -> Result<(), SendError> {
        let text = serde_json::to_vec(request).map_err(io::Error::from)?;
        self.send(OpCode::Text, text).await
    }

    /// Publishes samples on an advertised channel. `ack` other than 0 asks for an `ack` with that id.
    ///
    /// If it is cancelled, the rest is written by the next call of any method.
    ///
    /// # Errors
    /// The message is over the server's limit, or the connection is lost.
    pub async fn publish(&mut self, channel: u32, block: proto::Block, ack: u64) -> Result<(), SendError> {
        let (opcode, payload) =
            data::encode(self.codec, &proto::Publish { channel, block: Some(block), ack });
        self.send(opcode, payload).await
    }

    /// Closes with this code and waits, at most [`CLOSE_TIMEOUT`], for the server's echo. Frames that arrive meanwhile
    /// are dropped. Returns how it ended.
    pub async fn close(mut self, code: u16, reason: &str) -> Option<Closed> {
        if self.closed.is_none() && !self.close_sent {
            self.close_sent = true;
            socket::put_close(&mut self.out, code, reason);
        }
        let ending = async {
            loop {
                if let Message::Closed(closed) = self.recv().await {
                    return closed;
                }
            }
        };
        timeout(CLOSE_TIMEOUT, ending).await.ok()
    }

    async fn send(&mut self, opcode: OpCode, payload: Vec<u8>) -> Result<(), SendError> {
        let bytes_max = self.welcome.limits.message_bytes_max;
        if payload.len() > bytes_max {
            return Err(SendError::TooBig { bytes: payload.len(), bytes_max });
        }
        if self.mute || self.closed.is_some() || self.close_sent {
            return Err(SendError::Lost(io::ErrorKind::NotConnected.into()));
        }
        socket::put_frame(&mut self.out, opcode, payload);
        self.flush().await.map_err(SendError::Lost)
    }

    async fn flush(&mut self) -> io::Result<()> {
        let written =
            timeout(WRITE_TIMEOUT, socket::drain(&mut self.writer, &mut self.out, &mut self.unflushed))
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        if written.is_err() {
            self.silence_writes();
        }
        written
    }

    /// A failed write ends this direction only: what the server said before, perhaps why, can still be read.
    fn silence_writes(&mut self) {
        self.mute = true;
        self.out.clear();
        self.unflushed = false;
    }

    fn heard(&mut self) {
        let event::Settings { ping_ms, pong_timeout_ms } = self.welcome.settings;
        // Two pings: one may be late.
        let silence_ms = ping_ms.saturating_mul(2).saturating_add(pong_timeout_ms);
        self.silent_at = match ping_ms {
            0 => None,
            _ => Instant::now().checked_add(Duration::from_millis(silence_ms)),
        };
    }

    async fn take(&mut self, incoming: Incoming) -> Option<Message> {
        match incoming {
            Incoming::Ping(payload) => {
                if !self.mute && !self.close_sent && self.out.len() <= PONG_BACKLOG_BYTES_MAX {
                    socket::put_frame(&mut self.out, OpCode::Pong, payload.into());
                }
                None
            }
            Incoming::Pong => None,
            Incoming::Close { code, reason } => Some(self.end(code, reason).await),
            Incoming::Failed { code, reason } => Some(self.end(code, reason).await),
            Incoming::Text(text) => Some(match data::decode_text(self.codec, &text) {
                Ok(message) => {
                    if let Message::Control(Event::Goodbye(goodbye)) = &message {
                        self.goodbye = Some(Duration::from_millis(goodbye.reconnect_after_ms));
                    }
                    message
                }
                Err(what) => self.end(CloseReason::WrongData.code(), what).await,
            }),
            Incoming::Binary(payload) => Some(match data::decode_binary(self.codec, payload) {
                Ok(frame) => Message::Frame(frame),
                Err(what) => self.end(CloseReason::WrongData.code(), what).await,
            }),
        }
    }

    /// The one way out: answers or sends the close frame, unless it was sent, and ends the socket.
    async fn end(&mut self, code: u16, reason: String) -> Message {
        /// RFC 6455 section 7.4.1: these stand for something in an API and are never sent.
        const NEVER_SENT: [u16; 2] = [1005, 1006];
        let closed = Closed {
            code,
            reason,
            retry: reconnect::stricter(CloseReason::retry_for_code(code), self.goodbye),
        };
        // Before anything is awaited, so that a cancelled call has ended the connection too.
        self.closed = Some(closed.clone());
        if !self.mute && code != CloseReason::PeerGone.code() {
            if !self.close_sent {
                self.close_sent = true;
                let echo = if NEVER_SENT.contains(&code) { CloseReason::PeerClosed.code() } else { code };
                socket::put_close(&mut self.out, echo, "");
            }
            // The peer may have stopped reading; its end of the socket closes either way.
            let _ = timeout(CLOSE_TIMEOUT, async {
                socket::drain(&mut self.writer, &mut self.out, &mut self.unflushed).await?;
                self.writer.shutdown().await
            })
            .await;
        }
        Message::Closed(closed)
    }
}

impl event::Welcome {
    /// Stands in before the real one has come: nothing may be sent.
    const fn none() -> Self {
        Self {
            protocol: String::new(),
            connection: 0,
            server_ns: crate::wire::control::Digits(0),
            limits: event::Limits { message_bytes_max: 0, message_samples_max: 0, channels_max: 0 },
            settings: event::Settings { ping_ms: 0, pong_timeout_ms: 0 },
            auth_timeout_ms: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;
    use tokio_tungstenite::tungstenite::Message as WsMessage;
    use tokio_tungstenite::tungstenite::protocol::frame::Frame as WsFrame;
    use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode as WsOpCode};

    use super::scripted::Server;
    use super::*;

    async fn connect(server: &Server) -> Result<Client, ConnectError> {
        Client::connect(&server.url().parse().unwrap(), Codec::Protobuf, &Trust::default(), None).await
    }

    #[tokio::test]
    async fn answers_that_are_no_welcome_are_told_apart() {
        let head = "HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n";
        let wrong =
            "Sec-WebSocket-Accept: AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\nSec-WebSocket-Protocol: tidewire.v1\r\n";
        let body = r#"{"error":{"code":"capacity","message":"full"}}"#;
        let length = body.len();
        let rows = [
            (format!("{head}{wrong}\r\n"), "the answer's Sec-WebSocket-Accept does not belong", Retry::Never),
            (
                "HTTP/1.1 404 x\r\nContent-Length: 0\r\n\r\n".to_owned(),
                "refused with HTTP status 404",
                Retry::Never,
            ),
            (
                format!("HTTP/1.1 503 x\r\nRetry-After: 5\r\nContent-Length: {length}\r\n\r\n{body}"),
                "refused with HTTP status 503: full",
                Retry::After(Duration::from_secs(5)),
            ),
            ("SSH-2.0-x\r\n\r\n".to_owned(), "the answer to the HTTP request failed", Retry::Backoff),
            (String::new(), "the answer to the HTTP request failed", Retry::Backoff),
        ];
        for (answer, told, retry) in rows {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("ws://{}/ws", listener.local_addr().unwrap()).parse().unwrap();
            let nobody = Trust::default();
            let script = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    assert!(stream.read_buf(&mut request).await.unwrap() > 0);
                }
                stream.write_all(answer.as_bytes()).await.unwrap();
            };
            let (connected, ()) = tokio::join!(Client::connect(&url, Codec::Protobuf, &nobody, None), script);
            let error = connected.err().unwrap();
            assert!(error.to_string().starts_with(told), "{error} for {answer:?}");
            assert_eq!(error.retry(), retry, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn the_welcome_comes_first() {
        let server = Server::bind().await;
        let (connected, _peer) = tokio::join!(connect(&server), async {
            let mut peer = server.accept_silently().await;
            peer.say(&json!({"type": "heartbeat", "server_ns": "1", "heads": []})).await;
            peer
        });
        assert!(matches!(connected, Err(ConnectError::NoWelcome)));
        let (connected, ()) = tokio::join!(connect(&server), async {
            server.accept_silently().await.close(1013).await;
        });
        let error = connected.err().unwrap();
        assert_eq!(error.retry(), Retry::After(Duration::from_secs(5)));
    }

    #[tokio::test]
    async fn fragments_are_joined_and_pings_answered_between_them() {
        let server = Server::bind().await;
        let script = async {
            let mut peer = server.accept().await;
            let part = |payload: &'static str, opcode, last| {
                WsMessage::Frame(WsFrame::message(payload, WsOpCode::Data(opcode), last))
            };
            peer.send(part(r#"{"type":"ack","id":7,"#, Data::Text, false)).await;
            // The answer comes back in the middle of the message.
            peer.fence().await;
            peer.send(part(r#""channel":3,"seq":1,"count":2}"#, Data::Continue, true)).await;
            assert_eq!(peer.closed().await, Some(1000));
        };
        let client = async {
            let mut client = connect(&server).await.unwrap();
            assert_eq!(client.welcome().connection, 17);
            let message = client.recv().await;
            assert!(matches!(message, Message::Control(Event::Ack(event::Ack { id: 7, .. }))), "{message:?}");
            let closed = client.close(1000, "done").await;
            assert_eq!(closed.map(|closed| closed.code), Some(1000));
        };
        tokio::join!(script, client);
    }

    #[tokio::test]
    async fn a_goodbye_delays_the_return() {
        let server = Server::bind().await;
        let script = async {
            let mut peer = server.accept().await;
            peer.say(&json!({"type": "goodbye", "reason": "drain", "reconnect_after_ms": 1500})).await;
            peer.close(1001).await;
        };
        let client = async {
            let mut client = connect(&server).await.unwrap();
            assert!(matches!(client.recv().await, Message::Control(Event::Goodbye(_))));
            for _ in 0..2 {
                let Message::Closed(closed) = client.recv().await else { panic!("not closed") };
                assert_eq!(closed.code, 1001);
                assert_eq!(closed.retry, Retry::After(Duration::from_millis(1_500)));
            }
            let sent = client.send_control(&json!({"type": "ping"})).await;
            assert!(matches!(sent, Err(SendError::Lost(_))));
        };
        tokio::join!(script, client);
    }

    #[tokio::test]
    async fn messages_over_the_servers_limit_are_not_sent() {
        let server = Server::bind().await;
        let (connected, _peer) = tokio::join!(connect(&server), server.accept());
        let mut client = connected.unwrap();
        let sent = client.send_control(&"x".repeat(65_536 - 1)).await;
        assert!(matches!(sent, Err(SendError::TooBig { bytes: 65_537, bytes_max: 65_536 })), "{sent:?}");
        client.send_control(&"x".repeat(65_536 - 2)).await.unwrap();
    }

    /// A peer that is gone without a trace: no byte, no end.
    #[tokio::test]
    async fn a_silent_server_counts_as_lost() {
        let server = Server::bind().await;
        let (connected, _peer) = tokio::join!(connect(&server), server.accept());
        let mut client = connected.unwrap();
        tokio::time::pause();
        let began = Instant::now();
        let Message::Closed(closed) = client.recv().await else { panic!("not closed") };
        assert_eq!((closed.code, closed.retry), (1006, Retry::Backoff));
        // Two pings of 25 s, and 10 s to answer.
        assert_eq!(began.elapsed().as_secs(), 60);
    }

    #[test]
    fn a_task_may_hold_it() {
        const fn assert_send<T: Send>() {}
        const { assert_send::<Client>() };
    }
}
