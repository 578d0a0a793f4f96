//! The opening handshake (RFC 6455 section 4.1), with every check that a client must make: the accept key, the upgrade,
//! and that nothing was agreed that was not offered.

use std::io::Cursor;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fastwebsockets::{Role, WebSocketRead};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use sha1::{Digest, Sha1};
use tokio::io::{AsyncReadExt, ReadHalf, WriteHalf};
use tokio::task::JoinSet;

use super::stream::{Stream, Trust, connect};
use super::{ConnectError, Url};
use crate::config::Secret;
use crate::wire::Codec;

/// Bytes of the server's answer, head and body of a refusal each.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// Headers of the server's answer.
const HEADERS_MAX: usize = 64;

/// RFC 6455 section 1.3.
const ACCEPT_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The two directions of an open WebSocket.
pub(super) struct Halves {
    pub(super) reader: WebSocketRead<tokio::io::Chain<Cursor<Bytes>, ReadHalf<Stream>>>,
    pub(super) writer: WriteHalf<Stream>,
}

/// Connects and upgrades.
pub(super) async fn open(
    url: &Url,
    codec: Codec,
    trust: &Trust,
    token: Option<&Secret>,
) -> Result<Halves, ConnectError> {
    let stream = connect(url, trust).await?;
    let key = fastwebsockets::handshake::generate_key();
    let mut request = Request::get(url.target())
        .header(header::HOST, url.authority())
        .header(header::UPGRADE, "websocket")
        .header(header::CONNECTION, "Upgrade")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, &key)
        .header(header::SEC_WEBSOCKET_PROTOCOL, codec.subprotocol())
        .body(Empty::<Bytes>::new())
        .map_err(|_| ConnectError::Handshake("the address does not fit an HTTP request"))?;
    if let Some(token) = token {
        let mut bearer = HeaderValue::from_str(&format!("Bearer {}", token.expose()))
            .map_err(|_| ConnectError::Handshake("the token does not fit an HTTP request"))?;
        bearer.set_sensitive(true);
        request.headers_mut().insert(header::AUTHORIZATION, bearer);
    }
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(ANSWER_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .handshake(TokioIo::new(stream))
        .await?;
    // The set ends the task if this future is dropped.
    let mut driver = JoinSet::new();
    driver.spawn(connection.with_upgrades());
    let response = sender.send_request(request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refusal(response).await);
    }
    verify(response.headers(), &key, codec).map_err(ConnectError::Handshake)?;
    let upgraded = hyper::upgrade::on(response).await?;
    let parts = upgraded
        .downcast::<TokioIo<Stream>>()
        .map_err(|_| ConnectError::Handshake("the connection is not the one that was opened"))?;
    let (read_half, writer) = tokio::io::split(parts.io.into_inner());
    // hyper may have read beyond the answer's head: those are the first WebSocket frames.
    let source = Cursor::new(parts.read_buf).chain(read_half);
    let (reader, _) = fastwebsockets::after_handshake_split(source, tokio::io::sink(), Role::Client);
    Ok(Halves { reader, writer })
}

/// RFC 6455 section 4.1, the checks of the server's answer, after its status.
fn verify(headers: &HeaderMap, key: &str, codec: Codec) -> Result<(), &'static str> {
    let lists = |name: header::HeaderName, wanted: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|list| list.split(','))
            .any(|item| item.trim().eq_ignore_ascii_case(wanted))
    };
    if !lists(header::UPGRADE, "websocket") {
        return Err("the answer does not upgrade to a WebSocket");
    }
    if !lists(header::CONNECTION, "upgrade") {
        return Err("the answer's Connection header does not say Upgrade");
    }
    let accepted = headers.get(header::SEC_WEBSOCKET_ACCEPT);
    if accepted.is_none_or(|value| value.as_bytes() != accept(key).as_bytes()) {
        return Err("the answer's Sec-WebSocket-Accept does not belong to the request");
    }
    if headers.contains_key(header::SEC_WEBSOCKET_EXTENSIONS) {
        return Err("the answer turns on an extension that was not asked for");
    }
    let protocol = headers.get(header::SEC_WEBSOCKET_PROTOCOL);
    if protocol.is_none_or(|value| value.as_bytes() != codec.subprotocol().as_bytes()) {
        return Err("the server does not speak the asked version of the Tidewire protocol");
    }
    Ok(())
}

fn accept(key: &str) -> String {
    let mut hash = Sha1::new();
    hash.update(key.as_bytes());
    hash.update(ACCEPT_GUID);
    STANDARD.encode(hash.finalize())
}

/// The server's own words for a refusal, where it has some: `{"error":{"code":..,"message":..}}`.
async fn refusal(response: Response<Incoming>) -> ConnectError {
    #[derive(serde::Deserialize)]
    struct Body {
        error: Words,
    }
    #[derive(serde::Deserialize)]
    struct Words {
        message: String,
    }
    let (parts, body) = response.into_parts();
    let retry_after = parts
        .headers
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(|seconds| seconds.parse().ok())
        .map(Duration::from_secs);
    let message = match Limited::new(body, ANSWER_BYTES_MAX).collect().await {
        Ok(body) => serde_json::from_slice(&body.to_bytes()).map_or(String::new(), |b: Body| b.error.message),
        Err(_) => String::new(),
    };
    ConnectError::Refused { status: parts.status.as_u16(), message, retry_after }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_accept_key_is_that_of_the_rfc() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn answers_are_verified() {
        const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
        const GOOD: [(&str, &str); 4] = [
            ("upgrade", "WebSocket"),
            ("connection", "keep-alive, Upgrade"),
            ("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
            ("sec-websocket-protocol", "tidewire.v1"),
        ];
        // A header that replaces the good one (empty: removes it), and whether the answer still passes.
        let rows = [
            ("x-other", "1", true),
            ("upgrade", "", false),
            ("upgrade", "h2c", false),
            ("connection", "keep-alive", false),
            ("sec-websocket-accept", "", false),
            ("sec-websocket-accept", "AAAAAAAAAAAAAAAAAAAAAAAAAAA=", false),
            ("sec-websocket-protocol", "", false),
            ("sec-websocket-protocol", "tidewire.v1.json", false),
            ("sec-websocket-extensions", "permessage-deflate", false),
        ];
        for (name, value, passes) in rows {
            let mut headers = HeaderMap::new();
            for (name, value) in GOOD {
                headers.insert(name, value.parse().unwrap());
            }
            headers.remove(name);
            if !value.is_empty() {
                headers.insert(name, value.parse().unwrap());
            }
            let result = verify(&headers, KEY, Codec::Protobuf);
            assert_eq!(result.is_ok(), passes, "{name}: {value}: {result:?}");
        }
    }
}
