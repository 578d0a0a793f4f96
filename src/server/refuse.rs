//! What a socket gets that is refused right after its accept: an answer, and the end. Nothing is read, since to refuse must cost
//! less than to serve. Knows no connection.

use std::io::Write as _;
use std::net::TcpStream;

use crate::metrics::SocketRefusal;

/// The answer, whatever is asked. Nothing for who does not speak HTTP yet.
pub(super) fn answer(refusal: SocketRefusal) -> String {
    let (status, code, message) = match refusal {
        SocketRefusal::Rate => (
            "503 Service Unavailable",
            "capacity",
            "the server takes no more new sockets this second (server.accepts_per_s_max)",
        ),
        SocketRefusal::Sockets => (
            "503 Service Unavailable",
            "capacity",
            "the server has all the handshakes under way that it takes",
        ),
        SocketRefusal::AddressRate => (
            "429 Too Many Requests",
            "rate",
            "this address opens too many sockets a second (server.accepts_per_address_per_s_max); if it is a proxy's, name it \
             in server.trusted_proxies",
        ),
        SocketRefusal::AddressSockets => (
            "429 Too Many Requests",
            "address",
            "this address has too many handshakes under way; if it is a proxy's, name it in server.trusted_proxies",
        ),
        SocketRefusal::ProxyHeader => return String::new(),
    };
    let body = format!("{{\"error\":{{\"code\":\"{code}\",\"message\":\"{message}\"}}}}");
    format!(
        "HTTP/1.1 {status}\r\nretry-after: 5\r\nconnection: close\r\ncache-control: no-store\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Ends a socket that nobody has written to: its buffer is empty and takes the answer at once. Who wants TLS would not
/// understand it.
pub(super) fn refuse(mut socket: TcpStream, refusal: SocketRefusal, tls: bool) {
    if !tls {
        // A peer that has gone already gets nothing.
        let _ = socket.write(answer(refusal).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_whole() {
        for refusal in SocketRefusal::ALL {
            let answer = answer(refusal);
            if answer.is_empty() {
                continue;
            }
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
            assert!(head.lines().all(|line| !line.contains("  ")), "{head}");
            let body: serde_json::Value = serde_json::from_str(body).unwrap();
            assert!(body["error"]["code"].is_string() && body["error"]["message"].is_string());
        }
    }
}
