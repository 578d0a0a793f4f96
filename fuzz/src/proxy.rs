//! What a proxy says about its client, against both formats written down as plainly as possible.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tidewire::config::Networks;
use tidewire::proxy::{HOPS_MAX, REST_BYTES_MAX, START_BYTES, Start, forwarded_for};

/// The bytes are a header of the PROXY protocol, and the lines of an `X-Forwarded-For`.
pub fn check(data: &[u8]) {
    assert_eq!(read_header(data), read_header_naively(data), "{data:?}");
    let lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
    let trusted: Networks = "10.0.0.0/8,2001:db8::1".parse().expect("networks");
    assert_eq!(forwarded_for(lines.iter().copied(), &trusted), forwarded_naively(&lines), "{data:?}");
}

/// The client and the length of the whole header; nothing if it is none or not whole.
fn read_header(data: &[u8]) -> Option<(Option<SocketAddr>, usize)> {
    let (start, rest) = data.split_first_chunk::<START_BYTES>()?;
    let start = Start::parse(start).ok()?;
    assert!(start.rest_bytes() <= REST_BYTES_MAX);
    let rest = rest.get(..start.rest_bytes())?;
    Some((start.client(rest).ok()?, START_BYTES + rest.len()))
}

/// Section 2.2 of the specification as it is written.
fn read_header_naively(data: &[u8]) -> Option<(Option<SocketAddr>, usize)> {
    let signature = [0x0D, 0x0A, 0x0D, 0x0A, 0x00, 0x0D, 0x0A, 0x51, 0x55, 0x49, 0x54, 0x0A];
    if data.get(..12)? != signature {
        return None;
    }
    let (version, command) = (data.get(12)? / 16, data.get(12)? % 16);
    let (family, transport) = (data.get(13)? / 16, data.get(13)? % 16);
    let length = usize::from(*data.get(14)?) * 256 + usize::from(*data.get(15)?);
    if version != 2 || command > 1 || length > 536 || data.len() < 16 + length {
        return None;
    }
    if command == 1 && (family > 3 || transport > 2) {
        return None;
    }
    let body = &data[16..16 + length];
    let port = |at: usize| Some(u16::from(*body.get(at)?) * 256 + u16::from(*body.get(at + 1)?));
    let client = match (command, family, transport) {
        (1, 1, 1) => {
            body.get(11)?;
            Some(SocketAddr::from((Ipv4Addr::new(body[0], body[1], body[2], body[3]), port(8)?)))
        }
        (1, 2, 1) => {
            body.get(35)?;
            let mut groups = [0; 8];
            for (at, group) in groups.iter_mut().enumerate() {
                *group = port(2 * at)?;
            }
            Some(SocketAddr::new(canonical(Ipv6Addr::from(groups).into()), port(32)?))
        }
        _ => None,
    };
    Some((client, 16 + length))
}

fn canonical(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
        IpAddr::V4(_) => ip,
    }
}

/// All hops from left to right; then those that are proxies are taken from the end.
fn forwarded_naively(lines: &[&[u8]]) -> Option<SocketAddr> {
    let mut hops: Vec<&[u8]> = lines.iter().flat_map(|line| line.split(|byte| *byte == b',')).collect();
    let mut seen = 0;
    loop {
        let hop = hops.pop()?;
        seen += 1;
        if seen > HOPS_MAX {
            return None;
        }
        let text = std::str::from_utf8(hop).ok()?.trim();
        let (ip, port) = if let Ok(ip) = text.parse::<IpAddr>() {
            (ip, 0)
        } else if let Ok(address) = text.parse::<SocketAddr>() {
            (address.ip(), address.port())
        } else {
            let inside = text.strip_prefix('[')?.strip_suffix(']')?;
            (IpAddr::V6(inside.parse().ok()?), 0)
        };
        let ip = canonical(ip);
        let is_proxy = match ip {
            IpAddr::V4(v4) => v4.octets()[0] == 10,
            IpAddr::V6(v6) => v6.segments() == [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1],
        };
        if !is_proxy || hops.is_empty() {
            return Some(SocketAddr::new(ip, port));
        }
    }
}
