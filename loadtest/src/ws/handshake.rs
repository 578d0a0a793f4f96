//! The opening handshake of a client (RFC 6455, section 4.1): the URL, the request, and every check of the answer.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha1::{Digest, Sha1};
use socket2::SockRef;

use super::stream::{ROOM_BYTES, Received, Stream};
use super::{Ended, Refusal, SETUP_TIMEOUT};
use crate::access::Access;

/// Longest answer to the upgrade request.
const RESPONSE_BYTES_MAX: usize = 8 << 10;

/// RFC 6455, section 1.3.
const ACCEPT_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Where a server listens: `ws://HOST:PORT/PATH`, or `wss://`; and what it wants to see.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// Resolved once, so that no name lookup is part of a measurement.
    pub address: SocketAddr,
    /// How it is spoken to.
    pub access: Access,
    host: String,
    path: String,
}

impl Endpoint {
    /// Reads the URL of a server that wants nothing in particular, and resolves its host. The path is `/ws` if the URL has
    /// none.
    pub(crate) fn parse(url: &str) -> io::Result<Self> {
        Self::parse_with(url, Access::default())
    }

    /// The same for a server that is spoken to in this way: `wss://` with TLS, `ws://` without.
    pub(crate) fn parse_with(url: &str, access: Access) -> io::Result<Self> {
        let scheme = access.scheme();
        let invalid = |why: &str| {
            io::Error::new(ErrorKind::InvalidInput, format!("{url:?} {why}; want {scheme}HOST:PORT/ws"))
        };
        if url.starts_with("wss://") && access.tls.is_none() {
            return Err(invalid("is a server with TLS, which only --tls speaks, to a server of its own"));
        }
        let rest =
            url.strip_prefix(scheme).ok_or_else(|| invalid(&format!("does not begin with {scheme}")))?;
        let (authority, path) = match rest.find('/') {
            Some(at) if rest.len() > at + 1 => rest.split_at(at),
            Some(at) => (&rest[..at], "/ws"),
            None => (rest, "/ws"),
        };
        let with_port = if authority.rsplit(']').next().is_some_and(|tail| tail.contains(':')) {
            authority.to_owned()
        } else {
            format!("{authority}:80")
        };
        let printable = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if authority.is_empty() || !printable(authority) || !printable(path) {
            return Err(invalid("has no usable host or path"));
        }
        let address =
            with_port.to_socket_addrs()?.next().ok_or_else(|| invalid("has a host without address"))?;
        Ok(Self { address, access, host: authority.to_owned(), path: path.to_owned() })
    }

    /// As it was given.
    pub(crate) fn url(&self) -> String {
        format!("{}{}{}", self.access.scheme(), self.host, self.path)
    }

    /// The request that opens a WebSocket; `headers` are further ones, each with its end of line.
    pub(crate) fn opening(&self, key: &str, headers: &str) -> String {
        let Self { host, path, .. } = self;
        let authorization = self.access.authorization();
        format!(
            "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{authorization}{headers}\r\n"
        )
    }

    /// Another path of the same server.
    pub(crate) fn with_path(&self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self.clone() }
    }
}

/// Asks for the WebSocket, with the subprotocol if there is one, and checks the answer. Returns what came behind it.
pub(super) fn perform(
    stream: &mut Stream,
    endpoint: &Endpoint,
    subprotocol: Option<&str>,
) -> Result<Vec<u8>, Ended> {
    let (request, key) = request(endpoint, subprotocol);
    stream.send_all(request.as_bytes())?;
    let (head, rest) = read_response(stream)?;
    check_response(&head, &key, subprotocol).map_err(Ended::Refused)?;
    Ok(rest)
}

/// A request and its key.
fn request(endpoint: &Endpoint, subprotocol: Option<&str>) -> (String, String) {
    let key = BASE64.encode(fastrand::u128(..).to_ne_bytes());
    let offer = subprotocol.map(|name| format!("Sec-WebSocket-Protocol: {name}\r\n")).unwrap_or_default();
    (endpoint.opening(&key, &offer), key)
}

/// A handshake whose answer is not waited for, of a connection that is dropped with a reset when it has come.
#[derive(Debug)]
pub(crate) struct Opening {
    /// The socket, to register for events.
    pub stream: Stream,
    key: String,
    subprotocol: Option<&'static str>,
    response: Vec<u8>,
}

impl Opening {
    /// Connects, which only the server's kernel has to answer, and asks.
    pub(crate) fn begin(endpoint: &Endpoint, subprotocol: Option<&'static str>) -> Result<Self, Ended> {
        let mut stream = Stream::connect(endpoint, SETUP_TIMEOUT, None)?;
        SockRef::from(stream.socket()).set_linger(Some(Duration::ZERO))?;
        let (request, key) = request(endpoint, subprotocol);
        stream.send_all(request.as_bytes())?;
        stream.set_nonblocking()?;
        Ok(Self { stream, key, subprotocol, response: Vec::new() })
    }

    /// Reads what is there: whether the answer is complete, and right. `buffer` has [`ROOM_BYTES`] or more, and may be
    /// shared.
    pub(crate) fn advance(&mut self, buffer: &mut [u8]) -> Result<bool, Ended> {
        match self.stream.receive(usize::MAX, buffer) {
            Ok(Received { wire: 0, .. }) => return Err(Ended::EndOfStream),
            Ok(received) => self.response.extend_from_slice(&buffer[..received.plain]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
        if let Some(end) = self.response.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&self.response[..end + 4]);
            check_response(&head, &self.key, self.subprotocol).map_err(Ended::Refused)?;
            return Ok(true);
        }
        if self.response.len() > RESPONSE_BYTES_MAX {
            return Err(Ended::Refused("its HTTP response head does not end".into()));
        }
        Ok(false)
    }
}

/// The head of the response and the bytes behind it.
fn read_response(stream: &mut Stream) -> Result<(String, Vec<u8>), Ended> {
    let mut bytes = Vec::new();
    let mut chunk = vec![0; ROOM_BYTES];
    loop {
        let received = stream.receive(2048, &mut chunk)?;
        if received.wire == 0 {
            return Err(Ended::EndOfStream);
        }
        bytes.extend_from_slice(&chunk[..received.plain]);
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return Ok((String::from_utf8_lossy(&bytes).into_owned(), rest));
        }
        if bytes.len() > RESPONSE_BYTES_MAX {
            return Err(Ended::Refused("its HTTP response head does not end".into()));
        }
    }
}

/// RFC 6455, section 4.1, the list of what a client must check.
fn check_response(head: &str, key: &str, subprotocol: Option<&str>) -> Result<(), Refusal> {
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    let mut words = status.split(' ');
    let code = (words.next() == Some("HTTP/1.1")).then(|| words.next()).flatten();
    if code != Some("101") {
        let why = format!("it answered \"{}\"", status.escape_debug());
        return Err(Refusal { status: code.and_then(|it| it.parse().ok()), why });
    }
    let header = |wanted: &str| {
        head.split("\r\n")
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| value.trim())
    };
    let accept = BASE64.encode(Sha1::new().chain_update(key).chain_update(ACCEPT_GUID).finalize());
    if !header("upgrade").is_some_and(|value| value.eq_ignore_ascii_case("websocket")) {
        return Err("its response has no \"Upgrade: websocket\"".into());
    }
    let upgrades = |value: &str| value.split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    if !header("connection").is_some_and(upgrades) {
        return Err("its response has no \"Connection: Upgrade\"".into());
    }
    if header("sec-websocket-accept") != Some(&accept) {
        return Err("its Sec-WebSocket-Accept does not answer the key".into());
    }
    if header("sec-websocket-extensions").is_some() {
        return Err("it chose an extension that nobody offered".into());
    }
    match (header("sec-websocket-protocol"), subprotocol) {
        (chosen, offered) if chosen == offered => Ok(()),
        (Some(chosen), _) => Err(format!("it chose the subprotocol \"{}\"", chosen.escape_debug()).into()),
        (None, offered) => Err(format!("it does not speak {}", offered.unwrap_or_default()).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handshake_is_checked() {
        // Key and accept value are those of RFC 6455, section 1.3.
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        let good = "HTTP/1.1 101 Switching Protocols\r\nupgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n\
            Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: tidewire.v1\r\n\r\n";
        assert_eq!(check_response(good, key, Some("tidewire.v1")), Ok(()));
        let none = good.replace("Sec-WebSocket-Protocol: tidewire.v1\r\n", "");
        assert_eq!(check_response(&none, key, None), Ok(()));
        assert!(check_response(good, key, None).unwrap_err().why.contains("chose the subprotocol"));
        let cases = [
            ("101 Switching Protocols", "503 Service Unavailable", "503"),
            ("upgrade: WebSocket", "upgrade: h2c", "Upgrade: websocket"),
            ("keep-alive, Upgrade", "close", "Connection: Upgrade"),
            ("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "AAAA", "Sec-WebSocket-Accept"),
            (": tidewire.v1", ": tidewire.v1.json", "subprotocol"),
            ("Sec-WebSocket-Protocol: tidewire.v1\r\n", "", "does not speak"),
            ("Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions: x\r\nSec-WebSocket-Protocol", "extension"),
        ];
        for (from, to, expected) in cases {
            let refusal = check_response(&good.replace(from, to), key, Some("tidewire.v1")).unwrap_err();
            assert_eq!(refusal.status, (expected == "503").then_some(503));
            let refusal = refusal.why;
            assert!(refusal.contains(expected), "{to}: {refusal}");
        }
    }

    #[test]
    fn urls() {
        let cases = [
            ("ws://127.0.0.1:9400/ws", Some(("127.0.0.1:9400", "/ws"))),
            ("ws://127.0.0.1:9400", Some(("127.0.0.1:9400", "/ws"))),
            ("ws://127.0.0.1:9400/", Some(("127.0.0.1:9400", "/ws"))),
            ("ws://[::1]:80/a?b=c", Some(("[::1]:80", "/a?b=c"))),
            ("ws://127.0.0.1", Some(("127.0.0.1:80", "/ws"))),
            ("wss://127.0.0.1:1/ws", None),
            ("http://127.0.0.1:1/ws", None),
            ("ws://", None),
            ("ws://127.0.0.1:1/w s", None),
            ("127.0.0.1:9400", None),
        ];
        for (url, expected) in cases {
            let got = Endpoint::parse(url).ok().map(|it| (it.address.to_string(), it.path));
            assert_eq!(got, expected.map(|(address, path)| (address.to_owned(), path.to_owned())), "{url}");
        }
    }
}
