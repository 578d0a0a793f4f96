//! Networks of addresses, such as those of proxies that are believed. Pure.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::setting::{Any, Given, Setting, string, text};

/// A list of networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks(Vec<Network>);

/// An address, and how many of its first bits are the network's (RFC 4632 section 3.1, RFC 4291 section 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u32,
}

/// The text is not a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a network is an address, or one that is zero behind its first N bits and /N, such as 10.0.0.0/8")]
pub struct NetworkError;

impl Networks {
    /// Whether one of them has this address.
    #[must_use]
    pub fn contain(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(address))
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Network {
    /// Whether it has this address. One of IPv4 is the same in the form of IPv6.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4()
            && first_bits(address, self.bits) == first_bits(self.address, self.bits)
    }
}

/// The number of bits of an address.
const fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The first bits of an address, the others zero.
fn first_bits(address: IpAddr, bits: u32) -> u128 {
    let number = match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    };
    // All 128 bits would be one too many for a shift.
    let others = width(address) - bits;
    number.checked_shr(others).map_or(0, |number| number << others)
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, bits) =
            text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| NetworkError)?;
        if address != address.to_canonical() {
            return Err(NetworkError);
        }
        let bits = match bits {
            None => width(address),
            // `parse` would take a sign.
            Some(bits) if bits.bytes().all(|byte| byte.is_ascii_digit()) => {
                bits.parse().ok().filter(|bits| *bits <= width(address)).ok_or(NetworkError)?
            }
            Some(_) => return Err(NetworkError),
        };
        let is_network = first_bits(address, bits) == first_bits(address, width(address));
        is_network.then_some(Self { address, bits }).ok_or(NetworkError)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, bits } = self;
        write!(f, "{address}")?;
        if *bits < width(*address) { write!(f, "/{bits}") } else { Ok(()) }
    }
}

impl FromStr for Networks {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        text.split(',').map(|network| network.trim().parse()).collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Networks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, network) in self.0.iter().enumerate() {
            let comma = if position > 0 { "," } else { "" };
            write!(f, "{comma}{network}")?;
        }
        Ok(())
    }
}

text!(
    Networks,
    "networks joined by commas, each zero behind its first bits: \"10.0.0.0/8,192.0.2.7,2001:db8::/32\", or \"\" for none"
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_network_has_the_addresses_with_its_first_bits() {
        let rows = [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.0.0.0/8", "a00::", false),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.6", false),
            ("192.0.2.6/31", "192.0.2.7", true),
            ("0.0.0.0/0", "203.0.113.1", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "2001:db8::1", true),
            ("::/0", "203.0.113.1", false),
            ("2001:db8::/33", "2001:db8:7fff::1", true),
            ("2001:db8::/33", "2001:db8:8000::1", false),
            ("2001:db8::1", "2001:db8::1", true),
        ];
        for (network, address, has) in rows {
            let networks: Networks = format!("198.51.100.0/24, {network}").parse().unwrap();
            assert_eq!(networks.contain(address.parse().unwrap()), has, "{network} {address}");
        }
        assert!(!Networks::default().contain("127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn what_is_not_a_network_is_refused() {
        for text in [
            ",",
            "10.0.0.0/8,",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/+8",
            "10.0.0.0/-8",
            "10/8",
            "2001:db8::/129",
            "2001:db8::1/64",
            "::ffff:10.0.0.0/104",
            "[::1]",
            "localhost",
            "10.0.0.0/8/8",
            " ",
            "10.0.0.0/99999999999999999999",
            "*",
        ] {
            assert_eq!(text.parse::<Networks>(), Err(NetworkError), "{text:?}");
        }
    }

    proptest! {
        /// Any text ends in an answer, and what is taken reads back as itself.
        #[test]
        fn any_text_is_answered(text in "([0-9]{1,3}\\.){3}[0-9]{1,3}(/[0-9]{1,3})?|[0-9a-f:]{1,20}(/[0-9]{1,3})?|.{0,20}") {
            if let Ok(networks) = text.parse::<Networks>() {
                prop_assert_eq!(networks.to_string().parse(), Ok(networks));
            }
        }

        /// As by the bits one by one.
        #[test]
        fn first_bits_decide(network in any::<u32>(), bits in 0..=32_u32, address in any::<u32>(), keep in 0..=32_u32) {
            let digits = |number: u32, count: u32| format!("{number:032b}")[..count as usize].to_owned();
            let network = network.checked_shr(32 - bits).map_or(0, |it| it << (32 - bits));
            let same = digits(network, keep) + &format!("{address:032b}")[keep as usize..];
            let address = u32::from_str_radix(&same, 2).unwrap();
            let parsed: Network = format!("{}/{bits}", std::net::Ipv4Addr::from_bits(network)).parse().unwrap();
            let has = digits(network, bits) == digits(address, bits);
            prop_assert_eq!(parsed.contains(IpAddr::V4(address.into())), has);
        }
    }
}
