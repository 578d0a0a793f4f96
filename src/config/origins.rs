//! Which web pages may use the server: the browser's answer to "who is asking?" (RFC 6454), checked before a handshake is
//! taken. Without it any page that a viewer visits could read what the viewer may read. A page whose host name was made to
//! point to the server (DNS rebinding) looks like one of its own: where an address alone lets somebody in, [`is_local`] tells. Pure.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::setting::{Any, Given, Setting, string, text};

/// Origins that are allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origins {
    /// Only pages that came from the host that they now talk to.
    #[default]
    Same,
    /// Every page.
    Any,
    /// These, and no others.
    Listed(Vec<Origin>),
}

/// A scheme, a host and a port (RFC 6454 section 4), in the form in which browsers send them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    scheme: String,
    /// In lower case; an IPv6 address in brackets.
    host: String,
    port: u16,
}

/// The text is not an origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an origin is scheme://host or scheme://host:port, such as https://panel.example.org")]
pub struct OriginError;

impl Origins {
    /// Whether a page with this `Origin` header may talk to a server that it calls by this `Host` header.
    #[must_use]
    pub fn allow(&self, origin: &str, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Same => origin.parse::<Origin>().is_ok_and(|origin| origin.is_of(host)),
            Self::Listed(origins) => origin.parse().is_ok_and(|origin| origins.contains(&origin)),
        }
    }

    /// Whether this `Host` is one of an origin that is listed.
    #[must_use]
    pub fn list_host(&self, host: &str) -> bool {
        match self {
            Self::Same | Self::Any => false,
            Self::Listed(origins) => origins.iter().any(|origin| origin.is_of(host)),
        }
    }

    /// Whether a page from elsewhere may read answers to plain requests (CORS): what is listed may, and all if all are allowed.
    #[must_use]
    pub fn share_with(&self, origin: &str) -> bool {
        !matches!(self, Self::Same) && self.allow(origin, "")
    }
}

/// Whether only this machine itself can be meant by a `Host` header: `localhost` or an address. Any other name may have been
/// made to point here (DNS rebinding), and a page that came from it looks like one of the server's own.
#[must_use]
pub fn is_local(host: &str) -> bool {
    let Some((name, _)) = split_port(host) else { return false };
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

impl Origin {
    /// Whether a page of this origin calls its own server so. The scheme is the browser's: in front of the server may be a
    /// proxy that speaks TLS, so it is not compared with the server's own.
    fn is_of(&self, host: &str) -> bool {
        let Some(usual) = usual_port(&self.scheme) else { return false };
        split_port(host).is_some_and(|(name, port)| {
            name.eq_ignore_ascii_case(&self.host) && port.unwrap_or(usual) == self.port
        })
    }
}

/// The port of a scheme that needs none.
fn usual_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}

/// A host and its port, if there is one; nothing for what is neither.
fn split_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let end = if authority.starts_with('[') {
        authority.find(']')? + 1
    } else {
        authority.find(':').unwrap_or(authority.len())
    };
    let (host, rest) = authority.split_at(end);
    let in_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    if host.is_empty() || !host.bytes().all(in_host) {
        return None;
    }
    match rest.strip_prefix(':') {
        None if rest.is_empty() => Some((host, None)),
        None => None,
        // `parse` would take a sign.
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some((host, Some(port.parse().ok()?)))
        }
        Some(_) => None,
    }
}

impl FromStr for Origin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, OriginError> {
        let (scheme, authority) = text.split_once("://").ok_or(OriginError)?;
        let in_scheme =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"+-.".contains(&byte);
        if !scheme.starts_with(|first: char| first.is_ascii_lowercase()) || !scheme.bytes().all(in_scheme) {
            return Err(OriginError);
        }
        let (host, port) = split_port(authority).ok_or(OriginError)?;
        let port = port.or_else(|| usual_port(scheme)).unwrap_or(0);
        Ok(Self { scheme: scheme.to_owned(), host: host.to_ascii_lowercase(), port })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scheme, host, port } = self;
        write!(f, "{scheme}://{host}")?;
        if *port != usual_port(scheme).unwrap_or(0) { write!(f, ":{port}") } else { Ok(()) }
    }
}

impl FromStr for Origins {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, OriginError> {
        match text {
            "same" => Ok(Self::Same),
            "*" => Ok(Self::Any),
            list => list
                .split(',')
                .map(|origin| origin.trim().parse())
                .collect::<Result<_, _>>()
                .map(Self::Listed),
        }
    }
}

impl fmt::Display for Origins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same => f.write_str("same"),
            Self::Any => f.write_str("*"),
            Self::Listed(origins) => {
                for (position, origin) in origins.iter().enumerate() {
                    let comma = if position > 0 { "," } else { "" };
                    write!(f, "{comma}{origin}")?;
                }
                Ok(())
            }
        }
    }
}

text!(
    Origins,
    "\"same\", \"*\", or origins joined by commas: \"https://panel.example.org,http://localhost:3000\""
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_pages_of_the_host_itself_are_allowed_by_default() {
        // (Origin, Host, whether it is allowed)
        let rows = [
            ("http://a.example", "a.example", true),
            ("https://a.example", "a.example", true),
            ("https://a.example", "A.Example:443", true),
            ("http://localhost:9400", "localhost:9400", true),
            ("http://[::1]:9400", "[::1]:9400", true),
            ("http://a.example", "a.example:9400", false),
            ("http://a.example:9400", "a.example", false),
            ("http://b.example", "a.example", false),
            ("https://a.example.evil.example", "a.example", false),
            ("http://evil.example", "a.example", false),
            ("null", "a.example", false),
            ("", "a.example", false),
            ("file://", "a.example", false),
            ("moz-extension://a.example", "a.example", false),
            ("http://a.example/", "a.example", false),
            ("http://user@a.example", "a.example", false),
            ("http://a.example, http://b.example", "a.example", false),
            ("http://a.example", "", false),
        ];
        for (origin, host, allowed) in rows {
            assert_eq!(Origins::Same.allow(origin, host), allowed, "{origin} {host}");
            assert!(!Origins::Same.share_with(origin));
        }
    }

    #[test]
    fn a_list_is_compared_exactly() {
        let origins: Origins = "https://good.example, http://localhost:3000".parse().unwrap();
        let rows = [
            ("https://good.example", true),
            ("https://GOOD.example", true),
            ("https://good.example:443", true),
            ("http://localhost:3000", true),
            ("http://good.example", false),
            ("https://good.example:8443", false),
            ("https://good.example.evil.example", false),
            ("https://evilgood.example", false),
            ("http://localhost", false),
            ("null", false),
        ];
        for (origin, allowed) in rows {
            assert_eq!(origins.allow(origin, "good.example"), allowed, "{origin}");
            assert_eq!(origins.share_with(origin), allowed, "{origin}");
        }
        assert!(Origins::Any.allow("null", "x") && Origins::Any.share_with("http://x"));
    }

    #[test]
    fn only_this_machines_own_names_are_local() {
        for host in
            ["localhost", "LocalHost:9400", "127.0.0.1", "127.0.0.1:9400", "[::1]:9400", "192.0.2.1:80"]
        {
            assert!(is_local(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:9400",
            "a b",
            "[::1",
            "localhost:x",
        ] {
            assert!(!is_local(host), "{host}");
        }
        let origins: Origins = "https://a.example,http://b.example:81".parse().unwrap();
        assert!(origins.list_host("a.example") && origins.list_host("B.example:81"));
        assert!(!origins.list_host("b.example") && !Origins::Any.list_host("a.example"));
    }

    #[test]
    fn settings_come_out_as_they_went_in() {
        for text in ["same", "*", "https://a.example", "http://[::1]:9400,https://b.example:8443"] {
            assert_eq!(text.parse::<Origins>().map(|it| it.to_string()).as_deref(), Ok(text));
        }
        for text in [
            "",
            "a.example",
            "https://",
            "https://a.example/x",
            "null",
            "https://a.example:99999",
            "https://a.example:+1",
            "SAME",
        ] {
            assert_eq!(text.parse::<Origins>(), Err(OriginError), "{text:?}");
        }
    }

    proptest! {
        /// Any text ends in an answer, and what is taken for an origin reads back as itself.
        #[test]
        fn any_text_is_answered(text in ".{0,60}", host in ".{0,30}") {
            let _ = Origins::Same.allow(&text, &host);
            if let Ok(origin) = text.parse::<Origin>() {
                prop_assert_eq!(origin.to_string().parse(), Ok(origin));
            }
        }
    }
}
