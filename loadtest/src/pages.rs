//! The pages that a server has beside its WebSocket, over one HTTP request each. Knows no page's content.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::ws::Endpoint;

/// How long the server may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Largest page that is read; the server keeps at most 16 MiB of intervals.
const PAGE_BYTES_MAX: usize = 32 << 20;

/// How an answer begins that has a page.
const OK: &[u8] = b"HTTP/1.1 200 ";

/// The answer as it came; of one that is not the page, its beginning.
pub(crate) fn fetch(endpoint: &Endpoint, path: &str) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&endpoint.address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", endpoint.address);
    stream.write_all(request.as_bytes())?;
    let (mut response, mut chunk) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        let count = stream.read(&mut chunk)?;
        response.extend_from_slice(&chunk[..count]);
        let is_ok = response.len() < OK.len() || response.starts_with(OK);
        if count == 0 || !is_ok || response.len() > PAGE_BYTES_MAX {
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
