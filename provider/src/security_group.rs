//! Security groups as EC2 tells them: rules, members, managed prefix lists.
//!
//! Invariant: what EC2 says and this version does not understand stays visible ([`RuleTraffic::Unknown`],
//! [`RulePeer::Unknown`]): groups only allow, so whoever reads it admits nobody by such a rule, and can say why.
//!
//! Deliberately absent: changing them, names and descriptions, what the rules mean for a packet.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use veni_core::id::{EniId, PrefixListId, SecurityGroupId, SecurityGroupRuleId, VpcId};

/// How many values EC2 takes in one filter ("List and filter your resources": 200 a filter): how many groups or
/// prefix lists one request of each method below asks for. More are asked for in several requests.
pub const FILTER_VALUES: usize = 200;

/// ICMP's protocol number.
pub const ICMP: u8 = 1;
/// TCP's protocol number.
pub const TCP: u8 = 6;
/// UDP's protocol number.
pub const UDP: u8 = 17;
/// `ICMPv6`'s protocol number.
pub const ICMPV6: u8 = 58;

/// A security group that exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroup {
    /// Its id.
    pub id: SecurityGroupId,
    /// Its VPC.
    pub vpc_id: VpcId,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// The value of a wanted tag that every value is.
pub const ANY_VALUE: &str = "*";

/// Whether a thing with the tags `has` is one with all of the tags `wanted`, where the value [`ANY_VALUE`] is any.
///
/// Providers filter by it themselves: in EC2's filters `*`, `?` and `\` are more than characters.
#[must_use]
pub fn has_tags(has: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    let is = |(key, value): (&String, &String)| {
        has.get(key).is_some_and(|it| value == ANY_VALUE || it == value)
    };
    wanted.iter().all(is)
}

/// One rule (`DescribeSecurityGroupRules`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityGroupRule {
    /// Its id.
    pub id: SecurityGroupRuleId,
    /// Whose rule it is.
    pub group: SecurityGroupId,
    /// Which way it looks.
    pub direction: RuleDirection,
    /// What it admits.
    pub traffic: RuleTraffic,
    /// From whom, or to whom.
    pub peer: RulePeer,
}

/// Which way a rule looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleDirection {
    /// At what comes in.
    Ingress,
    /// At what goes out.
    Egress,
}

/// What a rule admits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleTraffic {
    /// Everything (`IpProtocol` −1).
    All,
    /// All of one protocol. EC2 ignores the ports of every protocol but TCP, UDP, ICMP and `ICMPv6`.
    Protocol(u8),
    /// TCP or UDP to these ports.
    Ports {
        /// [`TCP`] or [`UDP`].
        protocol: u8,
        /// The first port.
        first: u16,
        /// The last port, not below the first.
        last: u16,
    },
    /// ICMP messages of one type.
    Icmp {
        /// [`ICMP`] or [`ICMPV6`].
        protocol: u8,
        /// The type.
        kind: u8,
        /// The code; `None`: every one.
        code: Option<u8>,
    },
    /// What EC2 says and this version does not understand, in words.
    Unknown(String),
}

/// Whom a rule admits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RulePeer {
    /// A range of addresses of either family.
    Cidr(IpNet),
    /// The members of a group.
    Group(GroupReference),
    /// The entries of a managed prefix list.
    PrefixList(PrefixListId),
    /// What EC2 says and this version does not understand, in words.
    Unknown(String),
}

/// A group that a rule refers to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupReference {
    /// Which.
    pub id: SecurityGroupId,
    /// Its account, where that is another one than the rule's. This account cannot see its members then.
    #[serde(default)]
    pub foreign_account: Option<String>,
    /// The peering connection (`pcx-…`) behind which it is, where it is of another VPC.
    #[serde(default)]
    pub peering_connection: Option<String>,
    /// The peering connection is not active any more: EC2 calls such a rule stale, and it admits nobody.
    #[serde(default)]
    pub stale: bool,
}

/// An ENI that carries security groups (`DescribeNetworkInterfaces`), whatever it belongs to: an instance, a load
/// balancer, a database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMember {
    /// Which.
    pub eni: EniId,
    /// Its groups.
    pub security_groups: Vec<SecurityGroupId>,
    /// Its addresses of both families, secondary ones too.
    pub addresses: Vec<IpAddr>,
    /// The prefixes delegated to it, of both families.
    pub prefixes: Vec<IpNet>,
}

/// A managed prefix list (`DescribeManagedPrefixLists`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefixList {
    /// Its id.
    pub id: PrefixListId,
    /// Its version, which grows with every change. AWS's own lists have none.
    pub version: Option<u64>,
}

// === impl RuleTraffic ===

impl RuleTraffic {
    /// As EC2 says it: `IpProtocol` (a name, a number or `-1`), `FromPort` and `ToPort`, which for ICMP are type and
    /// code (API reference, `SecurityGroupRule`).
    #[must_use]
    pub fn parse(protocol: &str, from: Option<i32>, to: Option<i32>) -> Self {
        let number = match protocol.to_ascii_lowercase().as_str() {
            "-1" | "all" => return Self::All,
            "tcp" => Some(TCP),
            "udp" => Some(UDP),
            "icmp" => Some(ICMP),
            "icmpv6" => Some(ICMPV6),
            number => number.parse().ok(),
        };
        let understood = number.and_then(|protocol| match protocol {
            TCP | UDP => ports(protocol, from, to),
            ICMP | ICMPV6 => icmp(protocol, from, to),
            other => Some(Self::Protocol(other)),
        });
        let side = |port: Option<i32>| port.map_or_else(|| "none".to_owned(), |p| p.to_string());
        understood.unwrap_or_else(|| {
            Self::Unknown(format!("protocol {protocol:?}, from {}, to {}", side(from), side(to)))
        })
    }
}

fn ports(protocol: u8, from: Option<i32>, to: Option<i32>) -> Option<RuleTraffic> {
    // −1 on both sides, or nothing: every port.
    if (from.unwrap_or(-1), to.unwrap_or(-1)) == (-1, -1) {
        return Some(RuleTraffic::Protocol(protocol));
    }
    let (first, last) = (u16::try_from(from?).ok()?, u16::try_from(to?).ok()?);
    (first <= last).then_some(RuleTraffic::Ports { protocol, first, last })
}

fn icmp(protocol: u8, kind: Option<i32>, code: Option<i32>) -> Option<RuleTraffic> {
    match (kind.unwrap_or(-1), code.unwrap_or(-1)) {
        (-1, -1) => Some(RuleTraffic::Protocol(protocol)),
        (kind, code) => {
            let kind = u8::try_from(kind).ok()?;
            let code = if code == -1 { None } else { Some(u8::try_from(code).ok()?) };
            Some(RuleTraffic::Icmp { protocol, kind, code })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(protocol: &str, from: Option<i32>, to: Option<i32>, expect: &RuleTraffic) {
        assert_eq!(RuleTraffic::parse(protocol, from, to), *expect, "{protocol} {from:?} {to:?}");
    }

    #[test]
    fn traffic_reads_as_ec2_says_it() {
        let ports = |protocol, first, last| RuleTraffic::Ports { protocol, first, last };
        let icmp = |protocol, kind, code| RuleTraffic::Icmp { protocol, kind, code };
        check("-1", Some(-1), Some(-1), &RuleTraffic::All);
        check("-1", None, None, &RuleTraffic::All);
        check("tcp", Some(443), Some(443), &ports(TCP, 443, 443));
        check("17", Some(0), Some(65_535), &ports(UDP, 0, 65_535));
        check("tcp", Some(-1), Some(-1), &RuleTraffic::Protocol(TCP));
        check("icmp", Some(-1), Some(-1), &RuleTraffic::Protocol(ICMP));
        check("icmp", Some(8), Some(-1), &icmp(ICMP, 8, None));
        check("icmpv6", Some(1), Some(4), &icmp(ICMPV6, 1, Some(4)));
        check("58", Some(128), Some(0), &icmp(ICMPV6, 128, Some(0)));
        check("50", Some(7), Some(9), &RuleTraffic::Protocol(50));
        check("132", None, None, &RuleTraffic::Protocol(132));
    }

    #[test]
    fn all_wanted_tags_have_to_be_there_and_a_star_is_any_value() {
        let tags = |list: &[(&str, &str)]| {
            list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let has: BTreeMap<_, _> = tags(&[("pods", "yes"), ("team", "a*")]);
        for (wanted, expect) in [
            (tags(&[("pods", "yes")]), true),
            (tags(&[("pods", "*"), ("team", "a*")]), true),
            (tags(&[("pods", "y*")]), false),
            (tags(&[("pods", "yes"), ("zone", "*")]), false),
            (tags(&[("team", "ab")]), false),
        ] {
            assert_eq!(has_tags(&has, &wanted), expect, "{wanted:?}");
        }
    }

    #[test]
    fn what_cannot_be_is_not_taken_for_something_wider() {
        for (protocol, from, to) in [
            ("tcp", Some(80), Some(79)),
            ("tcp", Some(80), None),
            ("tcp", Some(-1), Some(80)),
            ("udp", Some(0), Some(65_536)),
            ("icmp", Some(256), Some(0)),
            ("icmp", Some(-1), Some(3)),
            ("256", None, None),
            ("", None, None),
            ("quic", Some(443), Some(443)),
        ] {
            let traffic = RuleTraffic::parse(protocol, from, to);
            assert!(matches!(traffic, RuleTraffic::Unknown(_)), "{protocol}: {traffic:?}");
        }
    }
}
