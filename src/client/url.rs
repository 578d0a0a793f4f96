//! Where a server is: `ws://HOST[:PORT][/PATH][?QUERY]`, or `wss` for TLS. Pure.

use std::fmt;
use std::fmt::Write as _;
use std::str::FromStr;

/// Ports of `ws` and `wss` where the address names none (RFC 6455 section 3).
const WS_PORT: u16 = 80;
const WSS_PORT: u16 = 443;

/// Path where the address names none: the server's own.
const WS_PATH: &str = "/ws";

/// The address of a server's WebSocket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    secure: bool,
    host: String,
    port: u16,
    target: String,
}

/// Why an address was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// No scheme, or one that is not a WebSocket's.
    #[error("does not begin with ws:// or wss://; an address looks like ws://127.0.0.1:9400/ws")]
    Scheme,
    /// `user:password@`.
    #[error("has a user name before the host; use --user to give a name")]
    UserInfo,
    /// `#`.
    #[error("has a fragment (#), which never reaches a server")]
    Fragment,
    /// No host, a port out of range, a character that no address holds.
    #[error("is not a valid address; one looks like ws://127.0.0.1:9400/ws")]
    Malformed,
}

impl Url {
    /// Whether it asks for TLS.
    #[must_use]
    pub const fn is_secure(&self) -> bool {
        self.secure
    }

    const fn usual_port(secure: bool) -> u16 {
        if secure { WSS_PORT } else { WS_PORT }
    }

    /// Host name or IP address, an IPv6 address without its brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// TCP port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Path and query, as the request line carries them.
    #[must_use]
    pub fn target(&self) -> &str {
        &self.target
    }

    /// What the `Host` header carries (RFC 9110 section 7.2).
    #[must_use]
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.port == Self::usual_port(self.secure) { host } else { format!("{host}:{}", self.port) }
    }

    /// The same address with `user=NAME` in its query: who the client says it is.
    #[must_use]
    pub fn with_user(mut self, name: &str) -> Self {
        self.target.push(if self.target.contains('?') { '&' } else { '?' });
        self.target.push_str("user=");
        for &byte in name.as_bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                self.target.push(char::from(byte));
            } else {
                // Writing to a String cannot fail.
                let _ = write!(self.target, "%{byte:02X}");
            }
        }
        self
    }
}

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = text.split_once("://").ok_or(UrlError::Scheme)?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "ws" => false,
            "wss" => true,
            _ => return Err(UrlError::Scheme),
        };
        if rest.contains('#') {
            return Err(UrlError::Fragment);
        }
        let uri: hyper::Uri = text.parse().map_err(|_| UrlError::Malformed)?;
        let authority = uri.authority().ok_or(UrlError::Malformed)?;
        if authority.as_str().contains('@') {
            return Err(UrlError::UserInfo);
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        // An authority such as `host:` or `host:99999` has a colon and no port that can be read.
        let named = authority.as_str().len() > authority.host().len();
        let port = match authority.port_u16() {
            Some(0) => return Err(UrlError::Malformed),
            Some(port) => port,
            None if named => return Err(UrlError::Malformed),
            None => Self::usual_port(secure),
        };
        if host.is_empty() {
            return Err(UrlError::Malformed);
        }
        let path = if uri.path() == "/" { WS_PATH } else { uri.path() };
        let target = match uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        };
        Ok(Self { secure, host: host.to_owned(), port, target })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.secure { "wss" } else { "ws" };
        write!(f, "{scheme}://{}{}", self.authority(), self.target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        use UrlError as E;
        /// Host, port, target and authority.
        type Parts = (&'static str, u16, &'static str, &'static str);
        let rows: &[(&str, Result<Parts, E>)] = &[
            ("ws://127.0.0.1:9400/ws", Ok(("127.0.0.1", 9400, "/ws", "127.0.0.1:9400"))),
            ("ws://127.0.0.1:9400", Ok(("127.0.0.1", 9400, "/ws", "127.0.0.1:9400"))),
            ("ws://localhost/", Ok(("localhost", 80, "/ws", "localhost"))),
            ("WS://example.org:80/a/b?x=1&y=2", Ok(("example.org", 80, "/a/b?x=1&y=2", "example.org"))),
            ("ws://h?x=1", Ok(("h", 80, "/ws?x=1", "h"))),
            ("ws://[::1]:9400/ws", Ok(("::1", 9400, "/ws", "[::1]:9400"))),
            ("ws://[::1]/ws", Ok(("::1", 80, "/ws", "[::1]"))),
            ("wss://127.0.0.1/ws", Ok(("127.0.0.1", 443, "/ws", "127.0.0.1"))),
            ("wss://[::1]:443", Ok(("::1", 443, "/ws", "[::1]"))),
            ("WSS://h:80/ws", Ok(("h", 80, "/ws", "h:80"))),
            ("ws://h:443/ws", Ok(("h", 443, "/ws", "h:443"))),
            ("https://127.0.0.1/ws", Err(E::Scheme)),
            ("http://127.0.0.1/ws", Err(E::Scheme)),
            ("127.0.0.1:9400", Err(E::Scheme)),
            ("", Err(E::Scheme)),
            ("ws://", Err(E::Malformed)),
            ("ws://:9400/ws", Err(E::Malformed)),
            ("ws://h:/ws", Err(E::Malformed)),
            ("ws://h:0/ws", Err(E::Malformed)),
            ("ws://h:65536/ws", Err(E::Malformed)),
            ("ws://h:x/ws", Err(E::Malformed)),
            ("ws://a b/ws", Err(E::Malformed)),
            ("ws://h/ws\r\nX: y", Err(E::Malformed)),
            ("ws://me:secret@h/ws", Err(E::UserInfo)),
            ("ws://h/ws#top", Err(E::Fragment)),
        ];
        for (text, expected) in rows {
            let parsed = text.parse::<Url>();
            let found = parsed.as_ref().map(|url| (url.host(), url.port(), url.target()));
            assert_eq!(found, expected.as_ref().map(|row| (row.0, row.1, row.2)), "{text:?}");
            if let (Ok(url), Ok(row)) = (parsed, expected) {
                assert_eq!(url.authority(), row.3, "{text:?}");
                assert_eq!(url.is_secure(), text.to_lowercase().starts_with("wss:"), "{text:?}");
                assert_eq!(url.to_string().parse(), Ok(url), "{text:?}");
            }
        }
    }

    #[test]
    fn a_user_is_escaped_into_the_query() {
        let rows = [
            ("ws://h/ws", "alice", "/ws?user=alice"),
            ("ws://h/ws?x=1", "a b&c=\u{e9}", "/ws?x=1&user=a%20b%26c%3D%C3%A9"),
        ];
        for (text, name, target) in rows {
            let url: Url = text.parse().unwrap();
            assert_eq!(url.with_user(name).target(), target);
        }
    }
}
