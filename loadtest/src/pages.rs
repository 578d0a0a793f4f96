//! The pages that a server has beside its WebSocket, over one HTTP request each. Knows no page's content.

use std::io;
use std::time::Duration;

use crate::ws::{Endpoint, ROOM_BYTES, Stream};

/// How long the server may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Largest page that is read; the server keeps at most 16 MiB of intervals.
const PAGE_BYTES_MAX: usize = 32 << 20;

/// How an answer begins that has a page.
const OK: &[u8] = b"HTTP/1.1 200 ";

/// The answer as it came; of one that is not the page, its beginning.
pub(crate) fn fetch(endpoint: &Endpoint, path: &str) -> io::Result<Vec<u8>> {
    let mut stream = Stream::connect(endpoint, TIMEOUT, None)?;
    stream.set_timeout(TIMEOUT)?;
    let (address, authorization) = (endpoint.address, endpoint.access.authorization());
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{authorization}Connection: close\r\n\r\n");
    stream.send_all(request.as_bytes())?;
    let (mut response, mut chunk) = (Vec::new(), vec![0; ROOM_BYTES]);
    loop {
        let received = stream.receive(usize::MAX, &mut chunk)?;
        response.extend_from_slice(&chunk[..received.plain]);
        let is_ok = response.len() < OK.len() || response.starts_with(OK);
        if received.wire == 0 || !is_ok || response.len() > PAGE_BYTES_MAX {
            return Ok(response);
        }
    }
}

/// The page in the answer, if there is one.
pub(crate) fn body(response: &[u8]) -> Option<&[u8]> {
    let end = response.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&response[..end]).ok()?;
    let is_chunked = head.to_ascii_lowercase().contains("\r\ntransfer-encoding:");
    (response.starts_with(OK) && !is_chunked).then(|| &response[end + 4..])
}
