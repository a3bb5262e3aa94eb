//! Addresses' neighbours: MACs and prefixes that cannot hold host bits.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::id::ParseIdError;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

/// An IPv4 prefix whose host bits are proved to be zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Prefix(Ipv4Net);

// === impl Mac ===

impl Mac {
    /// A locally administered unicast address made of 40 bits of `seed`.
    #[must_use]
    pub fn local(seed: u64) -> Self {
        let b = seed.to_be_bytes();
        Self([0x02, b[3], b[4], b[5], b[6], b[7]])
    }
}

impl FromStr for Mac {
    type Err = ParseIdError;
    fn from_str(value: &str) -> Result<Self, ParseIdError> {
        let error = || {
            ParseIdError::new(
                "MAC address",
                value,
                "six pairs of hexadecimal digits separated by `:`",
            )
        };
        let mut bytes = [0u8; 6];
        let mut parts = value.split(':');
        for byte in &mut bytes {
            let part =
                parts.next().filter(|p| p.len() == 2 && !p.starts_with('+')).ok_or_else(error)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| error())?;
        }
        if parts.next().is_some() { Err(error()) } else { Ok(Self(bytes)) }
    }
}

impl TryFrom<String> for Mac {
    type Error = ParseIdError;
    fn try_from(value: String) -> Result<Self, ParseIdError> {
        value.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

// === impl Ipv4Prefix ===

impl Ipv4Prefix {
    /// The prefix of `len` bits at `address`.
    ///
    /// # Errors
    /// When `len` is above 32 or `address` has host bits set.
    pub fn new(address: Ipv4Addr, len: u8) -> Result<Self, ParseIdError> {
        format!("{address}/{len}").parse()
    }

    /// The first address.
    #[must_use]
    pub fn network(self) -> Ipv4Addr {
        self.0.network()
    }

    /// The number of leading bits that are fixed.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a prefix's length is not a container's")]
    pub fn len(self) -> u8 {
        self.0.prefix_len()
    }

    /// Whether `address` is inside.
    #[must_use]
    pub fn contains(self, address: Ipv4Addr) -> bool {
        self.0.contains(&address)
    }

    /// The VPC router's address in a subnet: the network address + 1
    /// (AWS: "Subnet CIDR reservations", the second address is reserved for the VPC router).
    #[must_use]
    pub fn vpc_router(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.network()).saturating_add(1))
    }
}

impl FromStr for Ipv4Prefix {
    type Err = ParseIdError;
    fn from_str(value: &str) -> Result<Self, ParseIdError> {
        let error = || {
            ParseIdError::new(
                "IPv4 prefix",
                value,
                "address/length with no bits set after the length",
            )
        };
        let net: Ipv4Net = value.parse().map_err(|_| error())?;
        if net.network() == net.addr() { Ok(Self(net)) } else { Err(error()) }
    }
}

impl TryFrom<String> for Ipv4Prefix {
    type Error = ParseIdError;
    fn try_from(value: String) -> Result<Self, ParseIdError> {
        value.parse()
    }
}

impl From<Ipv4Prefix> for String {
    fn from(prefix: Ipv4Prefix) -> Self {
        prefix.to_string()
    }
}

impl fmt::Display for Ipv4Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Ipv4Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_with_host_bits_is_refused() {
        assert!("10.0.0.0/16".parse::<Ipv4Prefix>().is_ok());
        for bad in ["10.0.0.1/16", "10.0.0.0/33", "10.0.0.0", "", "::/0"] {
            assert!(bad.parse::<Ipv4Prefix>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn the_vpc_router_is_the_second_address() {
        let prefix: Ipv4Prefix = "10.0.16.0/20".parse().unwrap();
        assert_eq!(prefix.vpc_router(), Ipv4Addr::new(10, 0, 16, 1));
    }

    #[test]
    fn macs_round_trip() {
        let mac: Mac = "02:00:0a:ff:00:01".parse().unwrap();
        assert_eq!(mac.to_string(), "02:00:0a:ff:00:01");
        for bad in
            ["", "02:00:0a:ff:00", "02:00:0a:ff:00:01:02", "2:0:a:f:0:1", "+2:00:0a:ff:00:01"]
        {
            assert!(bad.parse::<Mac>().is_err(), "{bad:?} was accepted");
        }
        assert_eq!(Mac::local(1).0[0] & 0x03, 0x02, "locally administered, unicast");
    }
}
