//! Where a request carries a token: whatever is found stands in the request, and can be a token.

use hyper::header::{self, HeaderMap, HeaderValue};
use tidewire::auth::offered::find;
use tidewire::config::AuthSettings;

/// Lines: each is a header, chosen by its first byte (`A`, `P`, `C`), or else the query.
pub fn check(data: &[u8]) {
    let mut headers = HeaderMap::new();
    let mut query = None;
    for line in data.split(|byte| *byte == b'\n') {
        let Some((kind, value)) = line.split_first() else { continue };
        let name = match kind {
            b'A' => header::AUTHORIZATION,
            b'P' => header::SEC_WEBSOCKET_PROTOCOL,
            b'C' => header::COOKIE,
            _ => {
                query = std::str::from_utf8(line).ok();
                continue;
            }
        };
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(name, value);
        }
    }
    let settings = AuthSettings { cookie: Some("tw".into()), query: true, ..AuthSettings::default() };
    let Ok(Some(offered)) = find(&headers, query, &settings) else { return };
    let token = offered.token.as_bytes();
    assert!(!token.is_empty() && token.iter().all(u8::is_ascii_graphic));
    assert!(data.windows(token.len()).any(|window| window == token));
    assert!(
        !offered.by_cookie || !headers.contains_key(header::AUTHORIZATION),
        "what a browser adds comes last"
    );
}
