//! A peer that sends any bytes and takes the server's apart: HTTP responses and WebSocket frames, read strictly.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};

use super::DEADLINE;

/// What the server sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    /// Its code, if any, and reason.
    Close(Option<u16>, String),
    /// The end of the stream, in order.
    End,
    /// The connection was reset.
    Reset,
}

/// An HTTP response.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// `error.code` of a JSON body.
    pub(crate) fn error_code(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).expect("a JSON body");
        assert!(body["error"]["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
        body["error"]["code"].as_str().expect("a code").to_owned()
    }
}

/// One socket.
pub(crate) struct Peer {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Peer {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).unwrap())
    }

    /// A peer whose kernel takes few bytes that nobody reads.
    pub(crate) fn connect_small(address: SocketAddr) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4 << 10).unwrap();
        socket.connect(&address.into()).unwrap();
        Self::over(socket.into())
    }

    /// A peer that has shaken hands on `path`.
    pub(crate) fn upgraded(address: SocketAddr, path: &str) -> Self {
        let mut peer = Self::connect(address);
        peer.write(&Handshake::new(path).bytes());
        assert_eq!(peer.response().status, 101);
        peer
    }

    fn over(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Self { stream, unread: Vec::new() }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.try_write(bytes).expect("the server takes bytes");
    }

    /// Writes to a server that may have ended the connection.
    pub(crate) fn try_write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Ends this side of the stream.
    pub(crate) fn finish(&self) {
        // The server may have been faster.
        drop(self.stream.shutdown(Shutdown::Write));
    }

    /// Leaves with a reset.
    pub(crate) fn reset(self) {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Reads more. What ended the stream, if it has ended.
    fn fill(&mut self) -> Option<Message> {
        let mut chunk = [0; 16 << 10];
        let start = Instant::now();
        loop {
            let left = DEADLINE.saturating_sub(start.elapsed()).max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(left)).unwrap();
            return match self.stream.read(&mut chunk) {
                Ok(0) => Some(Message::End),
                Ok(bytes) => {
                    self.unread.extend_from_slice(&chunk[..bytes]);
                    None
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                    Some(Message::Reset)
                }
                Err(error) => panic!("nothing came: {error}; unread: {:?}", self.unread),
            };
        }
    }

    /// Reads until `parse` finds something at the front, and takes that away.
    fn read<T>(&mut self, parse: impl Fn(&[u8]) -> Option<(T, usize)>) -> Result<T, Message> {
        loop {
            if let Some((value, used)) = parse(&self.unread) {
                self.unread.drain(..used);
                return Ok(value);
            }
            if let Some(end) = self.fill() {
                return Err(end);
            }
        }
    }

    /// The next HTTP response.
    pub(crate) fn response(&mut self) -> Response {
        self.read(parse_response).unwrap_or_else(|end| panic!("no response: {end:?}"))
    }

    /// The next HTTP response, if one comes before the end.
    pub(crate) fn try_response(&mut self) -> Option<Response> {
        self.read(parse_response).ok()
    }

    /// The next message, or the end.
    pub(crate) fn message(&mut self) -> Message {
        match self.read(parse_message) {
            Ok(message) => message,
            Err(end) => {
                assert!(end == Message::Reset || self.unread.is_empty(), "the stream ended inside a frame");
                end
            }
        }
    }

    /// The next message that is not a ping, nor control of the protocol that comes unasked.
    pub(crate) fn answer(&mut self) -> Message {
        loop {
            match self.message() {
                Message::Ping(_) => {}
                Message::Text(text) if text.contains("\"welcome\"") => {}
                message => return message,
            }
        }
    }

    /// Reads up to the close frame, and the end of the stream behind it. Returns the code.
    pub(crate) fn close_code(&mut self) -> Option<u16> {
        loop {
            match self.message() {
                Message::Close(code, _) => {
                    assert_eq!(self.message(), Message::End, "after the close frame {code:?}");
                    return code;
                }
                end @ (Message::End | Message::Reset) => panic!("{end:?} without a close frame"),
                _ => {}
            }
        }
    }

    /// Reads and ignores up to the end of the stream, however it ends.
    pub(crate) fn read_to_end(&mut self) {
        while self.fill().is_none() {
            self.unread.clear();
        }
    }
}

/// The head, and the body by `Content-Length`.
fn parse_response(bytes: &[u8]) -> Option<(Response, usize)> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8(bytes[..end].to_vec()).expect("a head is text");
    let status = head.split(' ').nth(1).expect("a status").parse().unwrap();
    let mut response = Response { status, head, body: Vec::new() };
    let length = response.header("content-length").map_or(0, |length| length.parse().unwrap());
    response.body = bytes.get(end..end + length)?.to_vec();
    Some((response, end + length))
}

/// A frame of a server: whole, unmasked, without reserved bits, its length in the shortest form.
fn parse_message(bytes: &[u8]) -> Option<(Message, usize)> {
    let (&[first, second], rest) = bytes.split_first_chunk()?;
    assert_eq!(first & 0xF0, 0x80, "FIN, and no reserved bit");
    let (length, header) = match second {
        0..=125 => (usize::from(second), 2),
        126 => (usize::from(u16::from_be_bytes(*rest.first_chunk()?)), 4),
        127 => (usize::try_from(u64::from_be_bytes(*rest.first_chunk()?)).unwrap(), 10),
        _ => panic!("a server does not mask"),
    };
    let shortest = [(0..=125, 2), (126..=0xFFFF, 4), (0x1_0000..=usize::MAX, 10)];
    assert!(shortest.iter().any(|(range, bytes)| range.contains(&length) && *bytes == header));
    let payload = bytes.get(header..header + length)?.to_vec();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    let message = match first & 0x0F {
        1 => Message::Text(text(&payload)),
        2 => Message::Binary(payload),
        8 => match payload.split_first_chunk() {
            None => Message::Close(None, String::new()),
            Some((code, reason)) => Message::Close(Some(u16::from_be_bytes(*code)), text(reason)),
        },
        9 => Message::Ping(payload),
        10 => Message::Pong(payload),
        opcode => panic!("opcode {opcode}"),
    };
    Some((message, header + length))
}

/// The request that opens a WebSocket, to be spoilt.
#[derive(Clone, Debug)]
pub(crate) struct Handshake {
    line: String,
    headers: Vec<(String, String)>,
}

impl Handshake {
    /// A good one.
    pub(crate) fn new(path: &str) -> Self {
        let headers = [
            ("Host", "localhost"),
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Self { line: format!("GET {path} HTTP/1.1"), headers }
    }

    /// Another request line.
    pub(crate) fn line(mut self, line: &str) -> Self {
        line.clone_into(&mut self.line);
        self
    }

    /// One header more.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(key, _)| key != name);
        self
    }

    /// Another value.
    pub(crate) fn set(self, name: &str, value: &str) -> Self {
        self.without(name).with(name, value)
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let headers: String =
            self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        format!("{}\r\n{headers}\r\n", self.line).into_bytes()
    }
}

/// A client's frame: `first` is FIN, the reserved bits and the opcode.
pub(crate) fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    const KEY: [u8; 4] = [0x37, 0xFA, 0x21, 0x3D];
    let mut frame = vec![first];
    match payload.len() {
        short @ 0..=125 => frame.push(0x80 | u8::try_from(short).unwrap()),
        medium @ 126..=0xFFFF => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(medium).unwrap().to_be_bytes());
        }
        long => {
            frame.push(0x80 | 127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    frame.extend(KEY);
    frame.extend(payload.iter().zip(KEY.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// A client's close frame.
pub(crate) fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    masked(0x88, &[&code.to_be_bytes()[..], reason].concat())
}
