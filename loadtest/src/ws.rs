//! A WebSocket client of our own (RFC 6455), independent of the server's code: frames parsed in place over a
//! read buffer that all connections of a thread share, masked writes. The opening handshake is in `handshake`, TLS in
//! `stream`.
//!
//! It never holds a message: what is incomplete stays as raw bytes in the connection's `carry` until the rest is there.
//! It knows no Tidewire, only subprotocol names as text.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

pub(crate) use self::handshake::{Endpoint, Opening};
pub(crate) use self::stream::{ROOM_BYTES, Stream};

mod handshake;
mod stream;

/// Largest message taken from a server; Tidewire's largest frame is one publish of 64 KiB and its header.
pub(crate) const MESSAGE_BYTES_MAX: usize = 128 << 10;

/// Room for the rest of a message behind the largest carry, so that every read can make progress.
pub(crate) const READ_BUFFER_BYTES: usize = 2 * MESSAGE_BYTES_MAX;

/// How long a step of the set-up (connect, handshake, answer to a request) may take.
pub(crate) const SETUP_TIMEOUT: Duration = Duration::from_secs(10);

/// RFC 6455, section 5.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opcode {
    /// Text message.
    Text,
    /// Binary message.
    Binary,
    /// Close.
    Close,
    /// Ping.
    Ping,
    /// Pong.
    Pong,
}

impl Opcode {
    const fn number(self) -> u8 {
        match self {
            Self::Text => 1,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }
}

/// A whole message, in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    /// What kind.
    pub opcode: Opcode,
    /// Its bytes.
    pub payload: &'a [u8],
}

/// What a server may not send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProtocolError {
    /// Section 5.2: no extension was negotiated.
    #[error("the server set a reserved bit in a WebSocket frame")]
    Reserved,
    /// Section 5.2.
    #[error("the server sent the unknown opcode {0}")]
    Opcode(u8),
    /// Allowed by the RFC, but Tidewire says that it never does so, and this client takes it at its word.
    #[error("the server sent a fragmented message")]
    Fragmented,
    /// Section 5.1.
    #[error("the server sent a masked frame")]
    Masked,
    /// Section 5.2 asks for the shortest form.
    #[error("the server encoded a frame length in more bytes than needed")]
    Length,
    /// Section 5.5: control frames end at 125 bytes.
    #[error("the server sent a control frame of {0} bytes")]
    Control(usize),
    /// Over [`MESSAGE_BYTES_MAX`].
    #[error("the server sent a message of {0} bytes; this client takes {MESSAGE_BYTES_MAX}")]
    TooLarge(u64),
}

/// The first message in `bytes` and its length on the wire; `None` if it is not all there.
pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(Message<'_>, usize)>, ProtocolError> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err(ProtocolError::Reserved);
    }
    let opcode = match first & 0x0f {
        0 => return Err(ProtocolError::Fragmented),
        1 => Opcode::Text,
        2 => Opcode::Binary,
        8 => Opcode::Close,
        9 => Opcode::Ping,
        10 => Opcode::Pong,
        other => return Err(ProtocolError::Opcode(other)),
    };
    if first & 0x80 == 0 {
        return Err(ProtocolError::Fragmented);
    }
    if second & 0x80 != 0 {
        return Err(ProtocolError::Masked);
    }
    let (length, header) = match second {
        126 => match rest.first_chunk() {
            Some(&length) => (u64::from(u16::from_be_bytes(length)), 4),
            None => return Ok(None),
        },
        127 => match rest.first_chunk() {
            Some(&length) => (u64::from_be_bytes(length), 10),
            None => return Ok(None),
        },
        &short => (u64::from(short), 2),
    };
    if (header == 4 && length < 126) || (header == 10 && length <= u64::from(u16::MAX)) {
        return Err(ProtocolError::Length);
    }
    let size = match usize::try_from(length) {
        Ok(size) if size <= MESSAGE_BYTES_MAX => size,
        _ => return Err(ProtocolError::TooLarge(length)),
    };
    if size > 125 && opcode.number() >= 8 {
        return Err(ProtocolError::Control(size));
    }
    let end = header + size;
    Ok(bytes.get(header..end).map(|payload| (Message { opcode, payload }, end)))
}

/// Appends a masked frame to `out`; `fill` writes its payload of `length` bytes.
pub(crate) fn write_frame(
    out: &mut Vec<u8>,
    opcode: Opcode,
    length: usize,
    key: u32,
    fill: impl FnOnce(&mut [u8]),
) {
    out.push(0x80 | opcode.number());
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..126), _) => out.push(0x80 | short),
        (_, Ok(medium)) => {
            out.push(0x80 | 126);
            out.extend(medium.to_be_bytes());
        }
        _ => {
            out.push(0x80 | 127);
            out.extend((length as u64).to_be_bytes());
        }
    }
    let key = key.to_ne_bytes();
    out.extend(key);
    let start = out.len();
    out.resize(start + length, 0);
    let payload = &mut out[start..];
    fill(payload);
    mask(payload, key);
}

/// RFC 6455, section 5.3; eight bytes at a time.
fn mask(payload: &mut [u8], key: [u8; 4]) {
    let [a, b, c, d] = key;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, tail) = payload.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
}

/// Why a connection could not be opened, or ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    /// The socket.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The bytes.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The answer to the upgrade request.
    #[error("the server refused the WebSocket: {0}")]
    Refused(Refusal),
    /// A close frame.
    #[error("the server closed the connection: {code} {reason}")]
    Closed {
        /// RFC 6455, section 7.4, or Tidewire's 44xx; 1005 for none.
        code: u16,
        /// Its text, escaped.
        reason: String,
    },
    /// The end of the stream without a close frame.
    #[error("the server ended the stream without a close frame")]
    EndOfStream,
    /// Something the conversation does not allow, from the layer above.
    #[error("{0}")]
    Unexpected(String),
}

/// Why there is no WebSocket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub(crate) struct Refusal {
    /// That of the answer, if it was one that refuses.
    pub status: Option<u16>,
    /// In words, escaped.
    pub why: String,
}

impl Refusal {
    /// Whether it would be refused again: who it is, or what it may do, is not taken (RFC 9110, sections 15.5.2 and 15.5.4).
    pub(crate) fn is_for_good(&self) -> bool {
        matches!(self.status, Some(401 | 403))
    }
}

impl From<&str> for Refusal {
    fn from(why: &str) -> Self {
        why.to_owned().into()
    }
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        Self { status: None, why }
    }
}

/// What one read did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// This many bytes came over the network.
    Read(usize),
    /// None were there.
    Idle,
}

/// One open WebSocket. Blocking until [`set_nonblocking`](Self::set_nonblocking).
#[derive(Debug)]
pub(crate) struct Connection {
    /// The socket, to register for events.
    pub stream: Stream,
    /// Bytes of an incomplete message. Empty between most reads, and then it holds no memory worth the name.
    carry: Vec<u8>,
    /// Bytes that the socket did not take yet, from `written` on.
    outgoing: Vec<u8>,
    written: usize,
}

impl Connection {
    /// Connects and shakes hands. `receive_buffer_bytes` sets `SO_RCVBUF`, before the connect as it must be.
    pub(crate) fn open(
        endpoint: &Endpoint,
        subprotocol: Option<&str>,
        receive_buffer_bytes: Option<usize>,
    ) -> Result<Self, Ended> {
        let mut connection = Self::connect(endpoint, receive_buffer_bytes)?;
        connection.carry = handshake::perform(&mut connection.stream, endpoint, subprotocol)?;
        Ok(connection)
    }

    /// Connects only: what is said on the stream is the caller's.
    pub(crate) fn connect(endpoint: &Endpoint, receive_buffer_bytes: Option<usize>) -> Result<Self, Ended> {
        let stream = Stream::connect(endpoint, SETUP_TIMEOUT, receive_buffer_bytes)?;
        stream.set_timeout(SETUP_TIMEOUT)?;
        Ok(Self { stream, carry: Vec::new(), outgoing: Vec::new(), written: 0 })
    }

    /// From here on reads and writes return at once.
    pub(crate) fn set_nonblocking(&mut self) -> io::Result<()> {
        self.stream.set_nonblocking()
    }

    /// Queues a text message and sends what the socket takes.
    pub(crate) fn send_text(&mut self, text: &str) -> io::Result<()> {
        self.queue(Opcode::Text, text.len(), |out| out.copy_from_slice(text.as_bytes()));
        self.flush()
    }

    /// Queues a message; [`flush`](Self::flush) sends.
    pub(crate) fn queue(&mut self, opcode: Opcode, length: usize, fill: impl FnOnce(&mut [u8])) {
        write_frame(&mut self.outgoing, opcode, length, fastrand::u32(..), fill);
    }

    /// Queues bytes as they are, without a frame.
    pub(crate) fn queue_bytes(&mut self, bytes: &[u8]) {
        self.outgoing.extend_from_slice(bytes);
    }

    /// Bytes that wait for the socket; those within TLS, which are few, count as one.
    pub(crate) fn unsent(&self) -> usize {
        self.outgoing.len() - self.written + usize::from(self.stream.has_unsent())
    }

    /// Sends what the socket takes.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        while self.written < self.outgoing.len() {
            match self.stream.send(&self.outgoing[self.written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.outgoing.clear();
        self.written = 0;
        match self.stream.push() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }

    /// Reads once and hands every whole message to `on`, in place. Answers pings; a close frame is an error.
    /// `buffer` is [`READ_BUFFER_BYTES`] long and may be shared, since nothing stays in it.
    pub(crate) fn read(
        &mut self,
        buffer: &mut [u8],
        on: impl FnMut(Message<'_>) -> Result<(), Ended>,
    ) -> Result<Progress, Ended> {
        self.read_at_most(usize::MAX, buffer, on)
    }

    /// The same, but leaves what is over `bytes_max`, which is not 0, in the socket.
    pub(crate) fn read_at_most(
        &mut self,
        bytes_max: usize,
        buffer: &mut [u8],
        mut on: impl FnMut(Message<'_>) -> Result<(), Ended>,
    ) -> Result<Progress, Ended> {
        self.read_bytes_at_most(bytes_max, buffer, |bytes, out| take_messages(bytes, out, &mut on))
    }

    /// Reads once and hands the bytes to `take`, behind those that it left the last time. It returns how many it has used,
    /// all but the beginning of a message; what it appends to its second argument is sent.
    pub(crate) fn read_bytes(
        &mut self,
        buffer: &mut [u8],
        take: impl FnOnce(&[u8], &mut Vec<u8>) -> Result<usize, Ended>,
    ) -> Result<Progress, Ended> {
        self.read_bytes_at_most(usize::MAX, buffer, take)
    }

    /// The same, but leaves what is over `bytes_max` on the wire, which is not 0, in the socket.
    pub(crate) fn read_bytes_at_most(
        &mut self,
        bytes_max: usize,
        buffer: &mut [u8],
        take: impl FnOnce(&[u8], &mut Vec<u8>) -> Result<usize, Ended>,
    ) -> Result<Progress, Ended> {
        let kept = self.carry.len();
        let received = match self.stream.receive(bytes_max, &mut buffer[kept..]) {
            Ok(received) if received.wire == 0 => return Err(Ended::EndOfStream),
            Ok(received) => received,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(Progress::Idle);
            }
            Err(error) => return Err(error.into()),
        };
        buffer[..kept].copy_from_slice(&self.carry);
        self.carry.clear();
        self.take_from(&buffer[..kept + received.plain], take)?;
        Ok(Progress::Read(received.wire))
    }

    /// Like [`read_bytes`](Self::read_bytes) for what came with an earlier read, such as behind the handshake.
    pub(crate) fn carried_bytes(
        &mut self,
        take: impl FnOnce(&[u8], &mut Vec<u8>) -> Result<usize, Ended>,
    ) -> Result<(), Ended> {
        let bytes = std::mem::take(&mut self.carry);
        self.take_from(&bytes, take)
    }

    fn take_from(
        &mut self,
        bytes: &[u8],
        take: impl FnOnce(&[u8], &mut Vec<u8>) -> Result<usize, Ended>,
    ) -> Result<(), Ended> {
        let unsent = self.outgoing.len();
        let used = take(bytes, &mut self.outgoing);
        // A ping in front of what ends the connection is answered too.
        if self.outgoing.len() > unsent {
            self.flush()?;
        }
        self.carry.extend_from_slice(&bytes[used?..]);
        Ok(())
    }

    /// Blocks until `pick` finds what it looks for in a message, at most [`SETUP_TIMEOUT`]. Messages behind it in the same
    /// read are offered to `pick` too, so nothing is lost; it must remember.
    pub(crate) fn wait_for<T>(
        &mut self,
        buffer: &mut [u8],
        mut pick: impl FnMut(Message<'_>) -> Result<Option<T>, Ended>,
    ) -> Result<T, Ended> {
        let deadline = Instant::now() + SETUP_TIMEOUT;
        let mut found = None;
        let mut on = |message: Message<'_>| {
            if let Some(value) = pick(message)? {
                found.get_or_insert(value);
            }
            Ok(())
        };
        self.carried_bytes(|bytes, out| take_messages(bytes, out, &mut on))?;
        loop {
            if let Some(value) = found {
                return Ok(value);
            }
            if Instant::now() >= deadline {
                return Err(io::Error::new(ErrorKind::TimedOut, "the server did not answer in time").into());
            }
            let mut on = |message: Message<'_>| {
                if let Some(value) = pick(message)? {
                    found.get_or_insert(value);
                }
                Ok(())
            };
            self.read(buffer, &mut on)?;
        }
    }
}

/// Length of the messages taken. What is to be answered is appended to `out`.
fn take_messages(
    bytes: &[u8],
    out: &mut Vec<u8>,
    on: &mut impl FnMut(Message<'_>) -> Result<(), Ended>,
) -> Result<usize, Ended> {
    let mut used = 0;
    while let Some((message, length)) = parse(&bytes[used..])? {
        used += length;
        match message.opcode {
            Opcode::Text | Opcode::Binary => on(message)?,
            Opcode::Ping | Opcode::Pong | Opcode::Close => answer(message, out)?,
        }
    }
    Ok(used)
}

/// What a control message calls for: a ping is answered, a close is an error.
pub(crate) fn answer(message: Message<'_>, out: &mut Vec<u8>) -> Result<(), Ended> {
    match message.opcode {
        Opcode::Ping => {
            let payload = message.payload;
            write_frame(out, Opcode::Pong, payload.len(), fastrand::u32(..), |out| {
                out.copy_from_slice(payload)
            });
            Ok(())
        }
        Opcode::Close => Err(closed(message.payload)),
        Opcode::Pong | Opcode::Text | Opcode::Binary => Ok(()),
    }
}

fn closed(payload: &[u8]) -> Ended {
    match payload.split_first_chunk() {
        Some((&code, reason)) => Ended::Closed {
            code: u16::from_be_bytes(code),
            reason: String::from_utf8_lossy(reason).escape_debug().to_string(),
        },
        None => Ended::Closed { code: 1005, reason: String::new() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    /// What a server sends: unmasked.
    fn server_frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x80 | opcode.number()];
        match payload.len() {
            length @ 0..=125 => bytes.push(u8::try_from(length).unwrap()),
            length @ 126..=65_535 => {
                bytes.push(126);
                bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
            length => {
                bytes.push(127);
                bytes.extend(u64::try_from(length).unwrap().to_be_bytes());
            }
        }
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn lengths_at_their_borders() {
        for length in [0, 1, 125, 126, 127, 65_535, 65_536, MESSAGE_BYTES_MAX] {
            let payload = vec![7; length];
            let bytes = server_frame(Opcode::Binary, &payload);
            let (message, used) = parse(&bytes).unwrap().unwrap();
            assert_eq!((message.opcode, message.payload, used), (Opcode::Binary, &payload[..], bytes.len()));
            assert_eq!(parse(&bytes[..bytes.len() - 1]), Ok(None), "one byte short of {length}");
        }
    }

    #[test]
    fn what_a_server_may_not_send() {
        use ProtocolError::*;
        let cases: [(&[u8], ProtocolError); 9] = [
            (&[0xc2, 0], Reserved),
            (&[0x83, 0], Opcode(3)),
            (&[0x02, 0], Fragmented),
            (&[0x80, 0], Fragmented),
            (&[0x82, 0x80], Masked),
            (&[0x82, 126, 0, 125], Length),
            (&[0x82, 127, 0, 0, 0, 0, 0, 0, 255, 255], Length),
            (&[0x89, 126, 0, 126], Control(126)),
            (&[0x82, 127, 255, 0, 0, 0, 0, 0, 0, 0], TooLarge(0xff << 56)),
        ];
        for (bytes, error) in cases {
            assert_eq!(parse(bytes), Err(error), "{bytes:x?}");
        }
    }

    /// A connected pair: the far end, and a client past its handshake.
    fn pair() -> (TcpStream, Connection) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        (
            far,
            Connection { stream: Stream::Plain(stream), carry: Vec::new(), outgoing: Vec::new(), written: 0 },
        )
    }

    #[test]
    fn a_ping_is_answered_and_a_close_ends() {
        let (mut far, mut near) = pair();
        let mut bytes = server_frame(Opcode::Ping, b"are you there");
        bytes.extend(server_frame(Opcode::Close, b"\x11\x3dslow\n"));
        far.write_all(&bytes).unwrap();
        let mut buffer = vec![0; READ_BUFFER_BYTES];
        let ended = near.read(&mut buffer, |_| Ok(())).unwrap_err();
        assert_eq!(ended.to_string(), "the server closed the connection: 4413 slow\\n");
        let mut pong = [0; 6 + 13];
        far.read_exact(&mut pong).unwrap();
        assert_eq!(pong[..2], [0x8a, 0x80 | 13]);
        let key = [pong[2], pong[3], pong[4], pong[5]];
        mask(&mut pong[6..], key);
        assert_eq!(&pong[6..], b"are you there");
    }

    fn messages() -> impl Strategy<Value = Vec<(bool, Vec<u8>)>> {
        let payload = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..140),
            (65_530usize..65_545).prop_map(|length| vec![3; length]),
        ];
        prop::collection::vec((any::<bool>(), payload), 1..6)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Split anywhere, the same messages come out. Through a real socket, one write for each part.
        #[test]
        fn splits_do_not_matter(messages in messages(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12)) {
            let (mut far, mut near) = pair();
            let kind = |text: bool| if text { Opcode::Text } else { Opcode::Binary };
            let bytes: Vec<u8> = messages.iter().flat_map(|(text, payload)| server_frame(kind(*text), payload)).collect();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut got = Vec::new();
            let mut buffer = vec![0; READ_BUFFER_BYTES];
            for part in cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]) {
                far.write_all(part).unwrap();
                let mut left = part.len();
                while left > 0 {
                    let progress = near.read(&mut buffer, |message| {
                        got.push((message.opcode == Opcode::Text, message.payload.to_vec()));
                        Ok(())
                    }).unwrap();
                    if let Progress::Read(count) = progress { left -= count }
                }
            }
            prop_assert_eq!(got, messages);
            prop_assert!(near.carry.is_empty());
        }

        /// What this client writes unmasks to what was meant, at every length form.
        #[test]
        fn masked_writes(length in prop_oneof![0usize..300, 65_530usize..65_545], key: u32) {
            let payload: Vec<u8> = (0u8..=255).cycle().take(length).collect();
            let mut bytes = Vec::new();
            write_frame(&mut bytes, Opcode::Binary, length, key, |out| out.copy_from_slice(&payload));
            let header = bytes.len() - length;
            prop_assert_eq!(&bytes[header - 4..header], &key.to_ne_bytes());
            prop_assert_eq!(bytes[1] & 0x80, 0x80);
            let mut unmasked = bytes.split_off(header);
            mask(&mut unmasked, key.to_ne_bytes());
            prop_assert_eq!(unmasked, payload);
        }

        /// Any bytes end in an answer.
        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Some((_, used))) = parse(&bytes) { prop_assert!(used <= bytes.len()) }
        }
    }
}
