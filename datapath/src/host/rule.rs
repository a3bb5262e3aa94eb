//! ip rules as values.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::RouteProtocol,
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use veni_core::net::Ipv4Prefix;

use super::PROTOCOL;
use crate::{
    error::{Error, Result},
    netlink::{Request, Socket},
};

/// `RT_TABLE_MAIN`.
pub const TABLE_MAIN: u32 = 254;

/// A rule of the kinds that we make.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// Its priority: lower first.
    pub priority: u32,
    /// Which packets.
    pub selector: Selector,
    /// Which table they are looked up in.
    pub table: u32,
}

/// Which packets a rule is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selector {
    /// All.
    All,
    /// By mark.
    Mark {
        /// The bits.
        value: u32,
        /// Of these.
        mask: u32,
    },
    /// By destination.
    To(Ipv4Prefix),
    /// By source.
    From(Ipv4Addr),
}

/// A rule as the kernel has it.
#[derive(Debug, Clone)]
pub(super) struct KernelRule {
    pub(super) message: RuleMessage,
    pub(super) protocol: u8,
    pub(super) priority: u32,
    /// `None` when it has anything that ours do not have.
    pub(super) rule: Option<Rule>,
}

// === impl Rule ===

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {}: ", self.priority)?;
        match &self.selector {
            Selector::All => f.write_str("from all")?,
            Selector::Mark { value, mask } => write!(f, "fwmark {value:#x}/{mask:#x}")?,
            Selector::To(prefix) => write!(f, "to {prefix}")?,
            Selector::From(address) => write!(f, "from {address}")?,
        }
        write!(f, " lookup {}", self.table)
    }
}

impl Rule {
    pub(super) fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.action = RuleAction::ToTable;
        message.header.table = u8::try_from(self.table).unwrap_or(0);
        let attributes = &mut message.attributes;
        attributes.push(RuleAttribute::Table(self.table));
        attributes.push(RuleAttribute::Priority(self.priority));
        attributes.push(RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)));
        match &self.selector {
            Selector::All => {}
            Selector::Mark { value, mask } => {
                attributes.push(RuleAttribute::FwMark(*value));
                attributes.push(RuleAttribute::FwMask(*mask));
            }
            Selector::To(prefix) => {
                message.header.dst_len = prefix.len();
                attributes.push(RuleAttribute::Destination(IpAddr::V4(prefix.network())));
            }
            Selector::From(address) => {
                message.header.src_len = 32;
                attributes.push(RuleAttribute::Source(IpAddr::V4(*address)));
            }
        }
        message
    }
}

// === impl KernelRule ===

impl KernelRule {
    fn parse(message: RuleMessage) -> Self {
        let mut raw = Raw { table: u32::from(message.header.table), ..Raw::default() };
        let simple = message.attributes.iter().all(|attribute| raw.take(attribute))
            && message.header.action == RuleAction::ToTable
            && message.header.tos == 0
            && !message.header.flags.contains(netlink_packet_route::rule::RuleFlags::Invert);
        let rule = if simple { raw.rule(&message) } else { None };
        Self { protocol: raw.protocol, priority: raw.priority, rule, message }
    }

    /// For people, also where it is of no kind of ours.
    pub(super) fn describe(&self) -> String {
        self.rule.as_ref().map_or_else(
            || format!("rule {} (protocol {})", self.priority, self.protocol),
            |rule| format!("{rule} (protocol {})", self.protocol),
        )
    }
}

#[derive(Default)]
struct Raw {
    table: u32,
    priority: u32,
    protocol: u8,
    mark: u32,
    mask: u32,
    to: Option<Ipv4Addr>,
    from: Option<Ipv4Addr>,
}

impl Raw {
    /// `false` for an attribute that our rules do not have.
    fn take(&mut self, attribute: &RuleAttribute) -> bool {
        match attribute {
            RuleAttribute::Table(table) => self.table = *table,
            RuleAttribute::Priority(priority) => self.priority = *priority,
            RuleAttribute::Protocol(protocol) => self.protocol = u8::from(*protocol),
            RuleAttribute::FwMark(mark) => self.mark = *mark,
            RuleAttribute::FwMask(mask) => self.mask = *mask,
            RuleAttribute::Destination(IpAddr::V4(to)) => self.to = Some(*to),
            RuleAttribute::Source(IpAddr::V4(from)) => self.from = Some(*from),
            // The kernel always states it; -1 is "none".
            RuleAttribute::SuppressPrefixLen(length) => return *length == u32::MAX,
            RuleAttribute::SuppressIfGroup(group) => return *group == u32::MAX,
            // FRA_DSCP and later ones: unknown to us, so not ours.
            _ => return false,
        }
        true
    }

    fn rule(&self, message: &RuleMessage) -> Option<Rule> {
        let selector = match (self.to, self.from, self.mask) {
            (None, None, 0) => Selector::All,
            (None, None, mask) => Selector::Mark { value: self.mark, mask },
            (Some(to), None, 0) => Selector::To(Ipv4Prefix::new(to, message.header.dst_len).ok()?),
            (None, Some(from), 0) if message.header.src_len == 32 => Selector::From(from),
            _ => return None,
        };
        Some(Rule { priority: self.priority, selector, table: self.table })
    }
}

pub(super) fn dump(socket: &mut Socket) -> Result<Vec<KernelRule>> {
    let mut request = RuleMessage::default();
    request.header.family = AddressFamily::Inet;
    socket
        .dump(RouteNetlinkMessage::GetRule(request), |message| match message {
            RouteNetlinkMessage::NewRule(rule) if rule.header.family == AddressFamily::Inet => {
                Some(KernelRule::parse(rule))
            }
            _ => None,
        })
        .map_err(Error::netlink("listing ip rules"))
}

pub(super) fn add(rule: &Rule) -> Request {
    Request::create(RouteNetlinkMessage::NewRule(rule.message()))
}

pub(super) fn remove(rule: &KernelRule) -> Request {
    Request::plain(RouteNetlinkMessage::DelRule(rule.message.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_make_parses_back_to_itself() {
        let selectors = [
            Selector::All,
            Selector::Mark { value: 0x2_0000, mask: 0xff_0000 },
            Selector::To("10.9.0.0/16".parse().unwrap()),
            Selector::From(Ipv4Addr::new(10, 0, 2, 10)),
        ];
        for selector in selectors {
            let rule = Rule { priority: 1536, selector, table: 7602 };
            let parsed = KernelRule::parse(rule.message());
            assert_eq!((parsed.rule, parsed.protocol), (Some(rule), PROTOCOL));
        }
    }

    #[test]
    fn a_rule_with_more_than_ours_is_no_rule_of_ours() {
        let mut message = Rule { priority: 1, selector: Selector::All, table: 254 }.message();
        message.attributes.push(RuleAttribute::Iifname("eth0".into()));
        assert_eq!(KernelRule::parse(message).rule, None);
    }
}
