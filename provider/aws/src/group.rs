//! Security groups: the EC2 calls that read rules, members and prefix lists, and what their answers say.
//!
//! One rule that cannot be read must not hide the others, and must not open anything: it stays in the answer as
//! unknown ([`RuleTraffic::Unknown`], [`RulePeer::Unknown`]). An answer without ids is malformed.

use std::{collections::BTreeMap, fmt, str::FromStr};

use aws_sdk_ec2::{
    Client,
    types::{self as ec2, Filter, PrefixListState},
};
use ipnet::IpNet;
use veni_core::id::{PrefixListId, SecurityGroupId, VpcId};
use veni_provider::{
    CloudResult, GroupMember, GroupReference, PrefixList, RuleDirection, RulePeer, RuleTraffic,
    SecurityGroup, SecurityGroupRule, security_group::has_tags,
};

use crate::{
    classify::{Call, failed},
    convert::{parse, required},
};

/// The most that these actions put on a page.
const PAGE: i32 = 1000;
/// The most that the actions on prefix lists put on a page.
const LIST_PAGE: i32 = 100;

fn filter<'a, T: fmt::Display + 'a>(name: &str, values: impl IntoIterator<Item = &'a T>) -> Filter {
    let values = values.into_iter().map(ToString::to_string).collect();
    Filter::builder().name(name).set_values(Some(values)).build()
}

fn call(action: &'static str) -> Call<'static> {
    Call { action, ..Call::default() }
}

/// `DescribeSecurityGroupRules`, all pages.
pub(crate) async fn rules(
    ec2: &Client,
    groups: &[SecurityGroupId],
) -> CloudResult<Vec<SecurityGroupRule>> {
    const ACTION: &str = "DescribeSecurityGroupRules";
    let mut found = Vec::new();
    // A filter without values is no filter: the answer would be everything.
    if groups.is_empty() {
        return Ok(found);
    }
    let request =
        ec2.describe_security_group_rules().filters(filter("group-id", groups)).max_results(PAGE);
    let mut pages = request.into_paginator().send();
    while let Some(page) = pages.next().await {
        let page = page.map_err(|e| failed(call(ACTION), e))?;
        for told in page.security_group_rules() {
            found.push(rule(ACTION, told)?);
        }
    }
    Ok(found)
}

/// `DescribeSecurityGroups`, all pages.
pub(crate) async fn existing(
    ec2: &Client,
    groups: &[SecurityGroupId],
) -> CloudResult<Vec<SecurityGroup>> {
    const ACTION: &str = "DescribeSecurityGroups";
    let mut found = Vec::new();
    if groups.is_empty() {
        return Ok(found);
    }
    // By filter, not by id: an unknown id would fail the call for all of them.
    let request =
        ec2.describe_security_groups().filters(filter("group-id", groups)).max_results(PAGE);
    let mut pages = request.into_paginator().send();
    while let Some(page) = pages.next().await {
        let page = page.map_err(|e| failed(call(ACTION), e))?;
        for told in page.security_groups() {
            found.push(group(ACTION, told)?);
        }
    }
    Ok(found)
}

/// `DescribeSecurityGroups` by VPC and tags, all pages.
pub(crate) async fn tagged(
    ec2: &Client,
    vpc_id: &VpcId,
    tags: &BTreeMap<String, String>,
) -> CloudResult<Vec<SecurityGroup>> {
    const ACTION: &str = "DescribeSecurityGroups";
    let mut found = Vec::new();
    if tags.is_empty() {
        return Ok(found);
    }
    let mut request =
        ec2.describe_security_groups().filters(filter("vpc-id", [vpc_id])).max_results(PAGE);
    for (key, value) in tags {
        request = match (is_literal(key), is_literal(value)) {
            (true, true) => request.filters(filter(&format!("tag:{key}"), [value])),
            (true, false) => request.filters(filter("tag-key", [key])),
            (false, _) => request,
        };
    }
    let mut pages = request.into_paginator().send();
    while let Some(page) = pages.next().await {
        let page = page.map_err(|e| failed(call(ACTION), e))?;
        for told in page.security_groups() {
            let group = group(ACTION, told)?;
            if has_tags(&group.tags, tags) {
                found.push(group);
            }
        }
    }
    Ok(found)
}

/// Whether EC2 takes a filter's value for nothing but itself (EC2 user guide, "List and filter your resources"): others
/// are compared here.
fn is_literal(value: &str) -> bool {
    !value.contains(['*', '?', '\\'])
}

fn group(action: &'static str, told: &ec2::SecurityGroup) -> CloudResult<SecurityGroup> {
    let tag = |tag: &ec2::Tag| Some((tag.key()?.to_owned(), tag.value()?.to_owned()));
    Ok(SecurityGroup {
        id: parse(action, "groupId", told.group_id())?,
        vpc_id: parse(action, "vpcId", told.vpc_id())?,
        tags: told.tags().iter().filter_map(tag).collect(),
    })
}

/// `DescribeNetworkInterfaces` by group, all pages.
pub(crate) async fn members(
    ec2: &Client,
    groups: &[SecurityGroupId],
) -> CloudResult<Vec<GroupMember>> {
    const ACTION: &str = "DescribeNetworkInterfaces";
    let mut found = Vec::new();
    if groups.is_empty() {
        return Ok(found);
    }
    let request =
        ec2.describe_network_interfaces().filters(filter("group-id", groups)).max_results(PAGE);
    let mut pages = request.into_paginator().send();
    while let Some(page) = pages.next().await {
        let page = page.map_err(|e| failed(call(ACTION), e))?;
        for eni in page.network_interfaces() {
            found.push(member(ACTION, eni)?);
        }
    }
    Ok(found)
}

/// `DescribeManagedPrefixLists`, all pages.
pub(crate) async fn prefix_lists(
    ec2: &Client,
    lists: &[PrefixListId],
) -> CloudResult<Vec<PrefixList>> {
    const ACTION: &str = "DescribeManagedPrefixLists";
    let mut found = Vec::new();
    if lists.is_empty() {
        return Ok(found);
    }
    let request = ec2
        .describe_managed_prefix_lists()
        .filters(filter("prefix-list-id", lists))
        .max_results(LIST_PAGE);
    let mut pages = request.into_paginator().send();
    while let Some(page) = pages.next().await {
        let page = page.map_err(|e| failed(call(ACTION), e))?;
        for list in page.prefix_lists() {
            // EC2 shows a deleted list for a while.
            if list.state() == Some(&PrefixListState::DeleteComplete) {
                continue;
            }
            found.push(PrefixList {
                id: parse(ACTION, "prefixListId", list.prefix_list_id())?,
                version: list.version().and_then(|version| u64::try_from(version).ok()),
            });
        }
    }
    Ok(found)
}

/// `GetManagedPrefixListEntries`, all pages.
pub(crate) async fn entries(
    ec2: &Client,
    list: &PrefixListId,
    version: Option<u64>,
) -> CloudResult<Vec<IpNet>> {
    const ACTION: &str = "GetManagedPrefixListEntries";
    let request = ec2
        .get_managed_prefix_list_entries()
        .prefix_list_id(list.as_str())
        .set_target_version(version.and_then(|version| i64::try_from(version).ok()))
        .max_results(LIST_PAGE);
    let mut pages = request.into_paginator().send();
    let mut found = Vec::new();
    while let Some(page) = pages.next().await {
        let page = page.map_err(|e| failed(call(ACTION), e))?;
        for entry in page.entries() {
            found.push(parse::<IpNet>(ACTION, "cidr", entry.cidr())?.trunc());
        }
    }
    Ok(found)
}

fn rule(action: &'static str, told: &ec2::SecurityGroupRule) -> CloudResult<SecurityGroupRule> {
    let direction = match required(action, "isEgress", told.is_egress())? {
        true => RuleDirection::Egress,
        false => RuleDirection::Ingress,
    };
    Ok(SecurityGroupRule {
        id: parse(action, "securityGroupRuleId", told.security_group_rule_id())?,
        group: parse(action, "groupId", told.group_id())?,
        direction,
        traffic: RuleTraffic::parse(
            told.ip_protocol().unwrap_or_default(),
            told.from_port(),
            told.to_port(),
        ),
        peer: peer(told),
    })
}

fn peer(told: &ec2::SecurityGroupRule) -> RulePeer {
    if let Some(cidr) = told.cidr_ipv4().or(told.cidr_ipv6()) {
        return read(cidr, |net: IpNet| RulePeer::Cidr(net.trunc()));
    }
    if let Some(list) = told.prefix_list_id() {
        return read(list, RulePeer::PrefixList);
    }
    let Some(group) = told.referenced_group_info() else {
        return RulePeer::Unknown(
            "neither an address range, nor a group, nor a prefix list".into(),
        );
    };
    let Some(id) = group.group_id() else {
        return RulePeer::Unknown("a group without an id".into());
    };
    let foreign_account =
        group.user_id().filter(|account| told.group_owner_id().is_some_and(|own| own != *account));
    let active = |status: &str| status == "active";
    read(id, |id| {
        RulePeer::Group(GroupReference {
            id,
            foreign_account: foreign_account.map(Into::into),
            peering_connection: group.vpc_peering_connection_id().map(Into::into),
            stale: group.peering_status().is_some_and(|status| !active(status)),
        })
    })
}

fn read<T: FromStr<Err: fmt::Display>>(text: &str, peer: impl FnOnce(T) -> RulePeer) -> RulePeer {
    match text.parse() {
        Ok(value) => peer(value),
        Err(error) => RulePeer::Unknown(format!("{text}: {error}")),
    }
}

fn member(action: &'static str, eni: &ec2::NetworkInterface) -> CloudResult<GroupMember> {
    let v4 = eni.private_ip_addresses().iter();
    let v4 = v4.map(|a| ("privateIpAddress", a.private_ip_address()));
    let v6 = eni.ipv6_addresses().iter().map(|a| ("ipv6Address", a.ipv6_address()));
    let v4_prefixes = eni.ipv4_prefixes().iter().map(|p| ("ipv4Prefix", p.ipv4_prefix()));
    let v6_prefixes = eni.ipv6_prefixes().iter().map(|p| ("ipv6Prefix", p.ipv6_prefix()));
    let mut addresses = v4
        .chain(v6)
        .map(|(field, address)| parse(action, field, address))
        .collect::<CloudResult<Vec<_>>>()?;
    // Plain LocalStack can list an address twice.
    addresses.sort_unstable();
    addresses.dedup();
    Ok(GroupMember {
        eni: parse(action, "networkInterfaceId", eni.network_interface_id())?,
        security_groups: eni
            .groups()
            .iter()
            .map(|group| parse(action, "groupId", group.group_id()))
            .collect::<CloudResult<_>>()?,
        addresses,
        prefixes: v4_prefixes
            .chain(v6_prefixes)
            .map(|(field, prefix)| parse::<IpNet>(action, field, prefix))
            .collect::<CloudResult<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::types::{
        NetworkInterface, NetworkInterfaceIpv6Address, NetworkInterfacePrivateIpAddress,
        ReferencedSecurityGroup, builders::SecurityGroupRuleBuilder,
    };

    use super::*;

    const ACTION: &str = "DescribeSecurityGroupRules";

    fn told() -> SecurityGroupRuleBuilder {
        ec2::SecurityGroupRule::builder()
            .security_group_rule_id("sgr-1")
            .group_id("sg-1")
            .group_owner_id("111111111111")
            .is_egress(false)
            .ip_protocol("tcp")
            .from_port(443)
            .to_port(444)
    }

    fn group() -> aws_sdk_ec2::types::builders::ReferencedSecurityGroupBuilder {
        ReferencedSecurityGroup::builder().group_id("sg-2").user_id("111111111111")
    }

    fn peer_of(told: SecurityGroupRuleBuilder) -> RulePeer {
        rule(ACTION, &told.build()).unwrap().peer
    }

    #[test]
    fn a_rule_reads_whole() {
        let read = rule(ACTION, &told().cidr_ipv4("10.0.0.0/8").build()).unwrap();
        assert_eq!(
            read,
            SecurityGroupRule {
                id: "sgr-1".parse().unwrap(),
                group: "sg-1".parse().unwrap(),
                direction: RuleDirection::Ingress,
                traffic: RuleTraffic::Ports { protocol: 6, first: 443, last: 444 },
                peer: RulePeer::Cidr("10.0.0.0/8".parse().unwrap()),
            }
        );
    }

    #[test]
    fn every_kind_of_peer_reads() {
        let reference = |foreign_account: Option<&str>, peering: Option<&str>, stale| {
            RulePeer::Group(GroupReference {
                id: "sg-2".parse().unwrap(),
                foreign_account: foreign_account.map(Into::into),
                peering_connection: peering.map(Into::into),
                stale,
            })
        };
        let peered = || {
            group()
                .user_id("222222222222")
                .vpc_peering_connection_id("pcx-1")
                .peering_status("active")
        };
        for (told, expect) in [
            (told().cidr_ipv6("2001:db8::/32"), RulePeer::Cidr("2001:db8::/32".parse().unwrap())),
            (told().prefix_list_id("pl-1"), RulePeer::PrefixList("pl-1".parse().unwrap())),
            (told().referenced_group_info(group().build()), reference(None, None, false)),
            (
                told().referenced_group_info(peered().build()),
                reference(Some("222222222222"), Some("pcx-1"), false),
            ),
            (
                told().referenced_group_info(peered().peering_status("deleted").build()),
                reference(Some("222222222222"), Some("pcx-1"), true),
            ),
        ] {
            assert_eq!(peer_of(told), expect);
        }
    }

    #[test]
    fn a_peer_that_is_not_understood_stays_as_unknown() {
        for told in [told(), told().cidr_ipv4("everybody"), told().prefix_list_id("list")] {
            let peer = peer_of(told);
            assert!(matches!(peer, RulePeer::Unknown(_)), "{peer:?}");
        }
    }

    #[test]
    fn a_rule_without_a_direction_is_a_malformed_answer() {
        let error = rule(ACTION, &told().set_is_egress(None).build()).unwrap_err();
        assert_eq!(
            (error.code.as_str(), error.message.as_str()),
            ("MalformedAnswer", "isEgress: missing")
        );
    }

    #[test]
    fn a_member_has_its_addresses_of_both_families() {
        let v4 =
            |a: &str| NetworkInterfacePrivateIpAddress::builder().private_ip_address(a).build();
        let eni = NetworkInterface::builder()
            .network_interface_id("eni-1")
            .groups(ec2::GroupIdentifier::builder().group_id("sg-2").build())
            .private_ip_addresses(v4("10.0.0.4"))
            .private_ip_addresses(v4("10.0.0.5"))
            .ipv6_addresses(
                NetworkInterfaceIpv6Address::builder().ipv6_address("2001:db8::4").build(),
            )
            .ipv4_prefixes(
                ec2::Ipv4PrefixSpecification::builder().ipv4_prefix("10.0.0.16/28").build(),
            )
            .build();
        let read = member(ACTION, &eni).unwrap();
        let expected =
            ["10.0.0.4", "10.0.0.5", "2001:db8::4"].map(|a| a.parse::<std::net::IpAddr>().unwrap());
        assert_eq!(read.addresses, expected);
        assert_eq!(read.prefixes, ["10.0.0.16/28".parse().unwrap()]);
        assert_eq!(read.security_groups, ["sg-2".parse().unwrap()]);
    }
}
