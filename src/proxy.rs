//! What a proxy says about its client: the header of the PROXY protocol, version 2, and `X-Forwarded-For`. Bytes in, address
//! or error out; whether a proxy is believed is decided before it is asked here. Pure.
//!
//! Our own few lines: the crate for it has version 1, builders and owned TLVs, and would have to be kept from all of them; these
//! are fuzzed (`fuzz/src/proxy.rs`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::Networks;

/// Bytes of a header up to and with its length.
pub const START_BYTES: usize = 16;

/// Most bytes behind [`START_BYTES`]: what a sender may rely on by section 2.2 of the specification; addresses take 36.
pub const REST_BYTES_MAX: usize = 536;

/// Most addresses of `X-Forwarded-For` that are looked at.
pub const HOPS_MAX: usize = 32;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Why the bytes are no header of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// The signature is not there, or it is another version.
    #[error("not the PROXY protocol, version 2")]
    Signature,
    /// A command, family or transport that the specification does not have.
    #[error("an unknown command, family or transport")]
    Unknown,
    /// More than [`REST_BYTES_MAX`].
    #[error("the header is too long")]
    TooLong,
    /// Less than its addresses take.
    #[error("the header is too short")]
    TooShort,
}

/// The first [`START_BYTES`] of a header: what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    family: Family,
    rest_bytes: usize,
}

/// What the header tells about the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    /// Nothing that can be used: the proxy speaks for itself (LOCAL), or of no TCP over IP.
    None,
    V4,
    V6,
}

impl Start {
    /// Reads the start of a header.
    ///
    /// # Errors
    /// It is none that is taken.
    pub fn parse(bytes: &[u8; START_BYTES]) -> Result<Self, ProxyError> {
        let [.., version, kind, high, low] = *bytes;
        if !bytes.starts_with(&SIGNATURE) || version >> 4 != 2 {
            return Err(ProxyError::Signature);
        }
        let family = match (version & 0xF, kind >> 4, kind & 0xF) {
            // LOCAL: what family it names means nothing.
            (0, _, _) => Family::None,
            (1, 1, 1) => Family::V4,
            (1, 2, 1) => Family::V6,
            // Unspecified, UNIX, or datagrams.
            (1, 0..=3, 0..=2) => Family::None,
            _ => return Err(ProxyError::Unknown),
        };
        let rest_bytes = usize::from(u16::from_be_bytes([high, low]));
        if rest_bytes > REST_BYTES_MAX {
            return Err(ProxyError::TooLong);
        }
        Ok(Self { family, rest_bytes })
    }

    /// How many bytes follow, at most [`REST_BYTES_MAX`].
    #[must_use]
    pub const fn rest_bytes(self) -> usize {
        self.rest_bytes
    }

    /// The client, from the bytes that follow; nothing where the header does not name one. What is behind the addresses
    /// (TLVs) is not looked at.
    ///
    /// # Errors
    /// There are fewer than the addresses take.
    pub fn client(self, rest: &[u8]) -> Result<Option<SocketAddr>, ProxyError> {
        match self.family {
            Family::None => Ok(None),
            // Source and destination address, source and destination port.
            Family::V4 => {
                let bytes: &[u8; 12] = rest.first_chunk().ok_or(ProxyError::TooShort)?;
                let [a, b, c, d, _, _, _, _, high, low, _, _] = *bytes;
                let port = u16::from_be_bytes([high, low]);
                Ok(Some(SocketAddr::from((Ipv4Addr::new(a, b, c, d), port))))
            }
            Family::V6 => {
                let bytes: &[u8; 36] = rest.first_chunk().ok_or(ProxyError::TooShort)?;
                let (source, _) = bytes.split_first_chunk::<16>().ok_or(ProxyError::TooShort)?;
                let port = u16::from_be_bytes([bytes[32], bytes[33]]);
                Ok(Some(SocketAddr::new(Ipv6Addr::from_octets(*source).to_canonical(), port)))
            }
        }
    }
}

/// The client that `X-Forwarded-For` tells: the rightmost address that is not of a trusted proxy, or the leftmost if all are.
/// `lines` are the values of the header in the order of the request. What stands left of the client is its own claim and is
/// not looked at. The port is 0 unless the proxy told it.
///
/// Nothing if there is no address, or something else stands where one should, or too many proxies do.
#[must_use]
pub fn forwarded_for<'a>(
    lines: impl DoubleEndedIterator<Item = &'a [u8]>,
    trusted: &Networks,
) -> Option<SocketAddr> {
    let mut client = None;
    for (hop, position) in lines.rev().flat_map(|line| line.rsplit(|byte| *byte == b',')).zip(0..) {
        if position == HOPS_MAX {
            return None;
        }
        let address = std::str::from_utf8(hop).ok().and_then(|text| address(text.trim()))?;
        client = Some(address);
        if !trusted.contain(address.ip()) {
            return client;
        }
    }
    client
}

/// An address as proxies write it: bare, with a port, IPv6 with or without brackets.
fn address(text: &str) -> Option<SocketAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let address = match bare {
        Some(v6) => SocketAddr::from((v6.parse::<Ipv6Addr>().ok()?, 0)),
        None => text.parse::<IpAddr>().map(|ip| SocketAddr::from((ip, 0))).or_else(|_| text.parse()).ok()?,
    };
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with this command and version, family and transport, and content.
    fn header(version: u8, kind: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap();
        [&SIGNATURE[..], &[version, kind], &length.to_be_bytes(), rest].concat()
    }

    fn parse(bytes: &[u8]) -> Result<Option<SocketAddr>, ProxyError> {
        let (start, rest) = bytes.split_first_chunk().unwrap();
        let start = Start::parse(start)?;
        assert_eq!(start.rest_bytes(), rest.len());
        start.client(rest)
    }

    #[test]
    fn a_header_names_the_client_or_nobody() {
        let v4 = [203, 0, 113, 9, 10, 0, 0, 1, 0x12, 0x34, 0, 80];
        let v6 = |source: &str| {
            let source: Ipv6Addr = source.parse().unwrap();
            [&source.octets()[..], &[0; 16], &[0x12, 0x34, 0, 80]].concat()
        };
        let tlv = [4, 0, 1, 0xFF];
        let client = |text: &str| Ok(Some(text.parse().unwrap()));
        let rows = [
            (header(0x21, 0x11, &v4), client("203.0.113.9:4660")),
            (header(0x21, 0x11, &[&v4[..], &tlv].concat()), client("203.0.113.9:4660")),
            (header(0x21, 0x21, &v6("2001:db8::9")), client("[2001:db8::9]:4660")),
            (header(0x21, 0x21, &v6("::ffff:203.0.113.9")), client("203.0.113.9:4660")),
            (header(0x21, 0x21, &[&v6("2001:db8::9")[..], &tlv].concat()), client("[2001:db8::9]:4660")),
            (header(0x20, 0x00, &[]), Ok(None)),
            (header(0x20, 0x11, &v4), Ok(None)),
            (header(0x20, 0xFF, &tlv), Ok(None)),
            (header(0x21, 0x00, &tlv), Ok(None)),
            (header(0x21, 0x12, &v4), Ok(None)),
            (header(0x21, 0x31, &[b'/'; 216]), Ok(None)),
            (header(0x21, 0x11, &v4[..11]), Err(ProxyError::TooShort)),
            (header(0x21, 0x21, &v6("::1")[..35]), Err(ProxyError::TooShort)),
            (header(0x22, 0x11, &v4), Err(ProxyError::Unknown)),
            (header(0x21, 0x41, &v4), Err(ProxyError::Unknown)),
            (header(0x21, 0x13, &v4), Err(ProxyError::Unknown)),
            (header(0x11, 0x11, &v4), Err(ProxyError::Signature)),
            (header(0x21, 0x11, &[&v4[..], &[0; REST_BYTES_MAX - 12]].concat()), client("203.0.113.9:4660")),
            (header(0x21, 0x11, &[&v4[..], &[0; REST_BYTES_MAX - 11]].concat()), Err(ProxyError::TooLong)),
            (b"GET / HTTP/1.1\r\n".to_vec(), Err(ProxyError::Signature)),
            (b"PROXY TCP4 203.0".to_vec(), Err(ProxyError::Signature)),
        ];
        for (bytes, expected) in rows {
            assert_eq!(parse(&bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn the_client_is_the_rightmost_address_that_is_no_proxy() {
        let trusted: Networks = "10.0.0.0/8,2001:db8:f::/48".parse().unwrap();
        // (lines, client)
        let rows: [(&[&str], Option<&str>); 22] = [
            (&["203.0.113.9"], Some("203.0.113.9:0")),
            (&["203.0.113.9:4660"], Some("203.0.113.9:4660")),
            (&["2001:db8::9"], Some("[2001:db8::9]:0")),
            (&["[2001:db8::9]"], Some("[2001:db8::9]:0")),
            (&["[2001:db8::9]:4660"], Some("[2001:db8::9]:4660")),
            (&["::ffff:203.0.113.9"], Some("203.0.113.9:0")),
            (&["127.0.0.1, 203.0.113.9"], Some("203.0.113.9:0")),
            (&["203.0.113.9, 10.1.2.3,\t2001:db8:f::1 "], Some("203.0.113.9:0")),
            (&["127.0.0.1", "203.0.113.9, 10.1.2.3", "10.1.2.4"], Some("203.0.113.9:0")),
            (&["<script>, 203.0.113.9"], Some("203.0.113.9:0")),
            (&["\u{1b}[31m", "203.0.113.9"], Some("203.0.113.9:0")),
            (&["10.0.0.1, 10.0.0.2"], Some("10.0.0.1:0")),
            (&["203.0.113.9, unknown"], None),
            (&["203.0.113.9, unknown, 10.0.0.1"], None),
            (&["203.0.113.9,"], None),
            (&[",203.0.113.9"], Some("203.0.113.9:0")),
            (&["203.0.113.9", ""], None),
            (&["203.0.113.999"], None),
            (&["203.0.113.9:70000"], None),
            (&["\"203.0.113.9\""], None),
            (&["_hidden"], None),
            (&[], None),
        ];
        for (lines, expected) in rows {
            let client = forwarded_for(lines.iter().map(|line| line.as_bytes()), &trusted);
            assert_eq!(client, expected.map(|text| text.parse().unwrap()), "{lines:?}");
        }
        assert_eq!(forwarded_for([&b"\xff"[..]].into_iter(), &trusted), None);
        let proxies = |count| vec!["10.0.0.1"; count].join(",");
        let hops = |text: &str| forwarded_for([text.as_bytes()].into_iter(), &trusted);
        assert_eq!(hops(&proxies(HOPS_MAX)), Some(SocketAddr::from(([10, 0, 0, 1], 0))));
        assert_eq!(hops(&proxies(HOPS_MAX + 1)), None);
        let client = SocketAddr::from(([203, 0, 113, 9], 0));
        assert_eq!(hops(&format!("203.0.113.9,{}", proxies(HOPS_MAX - 1))), Some(client));
        assert_eq!(hops(&format!("203.0.113.9,{}", proxies(HOPS_MAX))), None);
    }
}
