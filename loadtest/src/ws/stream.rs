//! The byte stream of a connection, bare or within TLS. Knows no HTTP and no WebSocket, and trusts only whom it is told to.
//!
//! What has come is always handed on whole: nothing that could be read stays within TLS, where epoll does not see it. So one
//! read for each event is enough here as it is on a bare socket.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use socket2::{Domain, Protocol, Socket, Type};

use super::handshake::Endpoint;

/// Bytes that a receive within TLS takes from the socket at a time.
const WIRE_BYTES: usize = 16 << 10;

/// Room that a receive needs: what it takes, behind a record of 16 KiB of which all but the end was there already.
pub(crate) const ROOM_BYTES: usize = 64 << 10;

/// A connected socket, with TLS or without. Blocking until [`set_nonblocking`](Self::set_nonblocking).
#[derive(Debug)]
pub(crate) enum Stream {
    /// As it is.
    Plain(TcpStream),
    /// Within TLS.
    Tls(Box<Tls>),
}

/// A socket, and the session on it.
#[derive(Debug)]
pub(crate) struct Tls {
    socket: TcpStream,
    session: ClientConnection,
}

/// What a receive brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Received {
    /// Bytes that came over the network; 0 is the end of the stream.
    pub wire: usize,
    /// Bytes for whoever reads, which may be none: some are TLS's own, or the beginning of a record.
    pub plain: usize,
}

impl Stream {
    /// Connects the socket. TLS begins with the first bytes that are sent. `receive_buffer_bytes` sets `SO_RCVBUF`, before
    /// the connect as it must be.
    pub(crate) fn connect(
        endpoint: &Endpoint,
        timeout: Duration,
        receive_buffer_bytes: Option<usize>,
    ) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(endpoint.address), Type::STREAM, Some(Protocol::TCP))?;
        if let Some(bytes) = receive_buffer_bytes {
            socket.set_recv_buffer_size(bytes)?;
        }
        socket.connect_timeout(&endpoint.address.into(), timeout)?;
        socket.set_tcp_nodelay(true)?;
        let socket = TcpStream::from(socket);
        let Some(config) = &endpoint.access.tls else { return Ok(Self::Plain(socket)) };
        let name = ServerName::from(endpoint.address.ip());
        let session = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
        Ok(Self::Tls(Box::new(Tls { socket, session })))
    }

    /// The socket, for its options.
    pub(crate) const fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => &tls.socket,
        }
    }

    /// How long a read and a write may block.
    pub(crate) fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.socket().set_read_timeout(Some(timeout))?;
        self.socket().set_write_timeout(Some(timeout))
    }

    /// From here on reads and writes return at once.
    pub(crate) fn set_nonblocking(&self) -> io::Result<()> {
        self.socket().set_nonblocking(true)
    }

    /// Reads once from the socket, at most `wire_bytes_max`, which is not 0; all that this makes readable goes into `room`,
    /// which has [`ROOM_BYTES`] or more.
    pub(crate) fn receive(&mut self, wire_bytes_max: usize, room: &mut [u8]) -> io::Result<Received> {
        match self {
            Self::Plain(socket) => {
                let end = room.len().min(wire_bytes_max);
                socket.read(&mut room[..end]).map(|count| Received { wire: count, plain: count })
            }
            Self::Tls(tls) => tls.receive(wire_bytes_max, room),
        }
    }

    /// Sends what is taken at once: how many bytes that is. Within TLS some may wait for the socket: see
    /// [`has_unsent`](Self::has_unsent).
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(tls) => {
                tls.push()?;
                let count = tls.session.writer().write(bytes)?;
                match tls.push() {
                    // Taken all the same.
                    Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(count),
                    pushed => pushed.map(|()| count),
                }
            }
        }
    }

    /// Sends all of it. For a stream that blocks.
    pub(crate) fn send_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.send(bytes)? {
                0 => return Err(ErrorKind::WriteZero.into()),
                count => bytes = &bytes[count..],
            }
        }
        self.push()
    }

    /// Sends what waits within TLS. `WouldBlock` if the socket does not take all of it.
    pub(crate) fn push(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(tls) => tls.push(),
        }
    }

    /// Whether something waits within TLS.
    pub(crate) fn has_unsent(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(tls) => tls.session.wants_write(),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket().as_fd()
    }
}

impl Tls {
    fn receive(&mut self, wire_bytes_max: usize, room: &mut [u8]) -> io::Result<Received> {
        let mut chunk = [0; WIRE_BYTES];
        let wire = self.socket.read(&mut chunk[..WIRE_BYTES.min(wire_bytes_max)])?;
        let mut left = &chunk[..wire];
        let mut plain = 0;
        while !left.is_empty() {
            self.session.read_tls(&mut left)?;
            let state = match self.session.process_new_packets() {
                Ok(state) => state,
                Err(error) => {
                    // The server is told why, if it still listens.
                    let _ = self.push();
                    return Err(io::Error::new(ErrorKind::InvalidData, error));
                }
            };
            let end = plain + state.plaintext_bytes_to_read();
            let part = room.get_mut(plain..end).ok_or(ErrorKind::OutOfMemory)?;
            self.session.reader().read_exact(part)?;
            plain = end;
        }
        match self.push() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(Received { wire, plain }),
        }
    }

    fn push(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut self.socket) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Far, listen_tls};
    use crate::poll::Poll;

    #[test]
    fn nothing_readable_stays_where_no_event_tells_of_it() {
        /// Many records, and reads that end within them.
        const BYTES: usize = 300_000;
        let endpoint = listen_tls(|mut far| {
            let mut asked = [0; 3];
            far.read_exact(&mut asked).unwrap();
            let bytes: Vec<u8> = (0u8..=255).cycle().take(BYTES).collect();
            far.write_all(&bytes).unwrap();
            // Open until the client goes: the end of the stream would be an event of its own.
            let _ = far.read(&mut asked);
        });
        for wire_bytes_max in [usize::MAX, 1_000] {
            let mut near = Stream::connect(&endpoint, Duration::from_secs(10), None).unwrap();
            near.set_timeout(Duration::from_secs(10)).unwrap();
            near.send_all(b"go\n").unwrap();
            near.set_nonblocking().unwrap();
            let mut poll = Poll::new().unwrap();
            poll.add(&near, 7).unwrap();
            let (mut room, mut got) = (vec![0; ROOM_BYTES], Vec::new());
            while got.len() < BYTES {
                assert_eq!(poll.wait(Duration::from_secs(10)).unwrap(), 1, "{} of {BYTES} bytes", got.len());
                let received = near.receive(wire_bytes_max, &mut room).unwrap();
                assert!((1..=wire_bytes_max).contains(&received.wire));
                got.extend_from_slice(&room[..received.plain]);
            }
            assert!(got.into_iter().eq((0u8..=255).cycle().take(BYTES)));
        }
    }

    /// Until the client goes.
    fn listens(mut far: Far) {
        let _ = far.read(&mut [0]);
    }

    #[test]
    fn a_server_with_another_certificate_is_not_trusted() {
        let (endpoint, other) = (listen_tls(listens), listen_tls(listens));
        let confused = Endpoint::parse_with(&endpoint.url(), other.access).unwrap();
        let mut near = Stream::connect(&confused, Duration::from_secs(10), None).unwrap();
        near.set_timeout(Duration::from_secs(10)).unwrap();
        near.send_all(b"go\n").unwrap();
        let mut room = vec![0; ROOM_BYTES];
        let refused = loop {
            if let Err(error) = near.receive(usize::MAX, &mut room) {
                break error;
            }
        };
        assert!(refused.to_string().contains("certificate"), "{refused}");
    }
}
