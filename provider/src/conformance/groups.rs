//! Security groups: rules, existence, members, managed prefix lists.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use ipnet::IpNet;

use super::{Case, GroupWorld, Stage, ensure, refuses_as_not_found};
use crate::{
    Cloud, CreateInterface, GroupMember, GroupReference, Interface, RuleDirection, RulePeer,
    RuleTraffic, security_group, sim::Timer,
};

/// Ids that no cloud has given out.
const UNKNOWN_GROUP: &str = "sg-00000000000000000";
const UNKNOWN_VPC: &str = "vpc-00000000000000000";
const UNKNOWN_LIST: &str = "pl-00000000000000000";

impl GroupWorld {
    /// The rules of [`GroupWorld::ruled`], beside the one that EC2 gives a new group (everything out to 0.0.0.0/0).
    #[must_use]
    pub fn rules(&self) -> Vec<(RuleDirection, RuleTraffic, RulePeer)> {
        use RuleDirection::{Egress, Ingress};
        let cidr = |cidr: &str| RulePeer::Cidr(cidr.parse().expect("a literal"));
        let ports = |protocol, first, last| RuleTraffic::Ports { protocol, first, last };
        let (tcp, udp) = (security_group::TCP, security_group::UDP);
        let (icmp, icmpv6) = (security_group::ICMP, security_group::ICMPV6);
        let group = RulePeer::Group(GroupReference {
            id: self.referenced.clone(),
            foreign_account: None,
            peering_connection: None,
            stale: false,
        });
        let list = RulePeer::PrefixList(self.prefix_list.clone());
        vec![
            (Ingress, ports(tcp, 443, 443), cidr("10.0.0.0/8")),
            (Ingress, ports(tcp, 8000, 8999), cidr("2001:db8::/32")),
            (Ingress, ports(udp, 0, 65_535), group),
            (Ingress, RuleTraffic::Icmp { protocol: icmp, kind: 8, code: None }, cidr("0.0.0.0/0")),
            (Ingress, RuleTraffic::Protocol(icmpv6), cidr("::/0")),
            (Egress, ports(tcp, 443, 443), list),
        ]
    }

    /// The tags of [`GroupWorld::ruled`] and [`GroupWorld::referenced`].
    #[must_use]
    pub fn tags() -> [BTreeMap<String, String>; 2] {
        [tags(&[("pods", "yes"), ("team", "a*c")]), tags(&[("pods", "no"), ("team", "abc")])]
    }

    /// The versions of [`GroupWorld::prefix_list`], from the first on.
    #[must_use]
    pub fn prefix_list_versions() -> [Vec<IpNet>; 2] {
        let nets = |nets: &[&str]| nets.iter().map(|n| n.parse().expect("a literal")).collect();
        [nets(&["192.0.2.0/24", "198.51.100.0/25"]), nets(&["198.51.100.0/25", "203.0.113.7/32"])]
    }
}

fn tags(tags: &[(&str, &str)]) -> BTreeMap<String, String> {
    tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn same<T: Ord + fmt::Debug>(what: &str, seen: Vec<T>, expected: Vec<T>) -> Case {
    let sorted = |mut list: Vec<T>| {
        list.sort();
        list
    };
    let (seen, expected) = (sorted(seen), sorted(expected));
    ensure!(seen == expected, "{what}: {seen:?}, not {expected:?}");
    Ok(())
}

pub(super) async fn rules_are_as_they_were_made<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let world = &stage.world.groups;
    let seen =
        stage.cloud.describe_security_group_rules(std::slice::from_ref(&world.ruled)).await?;
    let ids: BTreeSet<_> = seen.iter().map(|rule| &rule.id).collect();
    ensure!(ids.len() == seen.len(), "a rule's id is there twice: {seen:?}");
    ensure!(seen.iter().all(|rule| rule.group == world.ruled), "others' rules: {seen:?}");
    let mut expected = world.rules();
    let all = RulePeer::Cidr(IpNet::V4(ipnet::Ipv4Net::default()));
    expected.push((RuleDirection::Egress, RuleTraffic::All, all));
    let words = |rule: (RuleDirection, RuleTraffic, RulePeer)| format!("{rule:?}");
    let seen = seen.into_iter().map(|rule| words((rule.direction, rule.traffic, rule.peer)));
    same("rules", seen.collect(), expected.into_iter().map(words).collect())
}

pub(super) async fn rules_of_several_groups_come_at_once<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let world = &stage.world.groups;
    let unknown = UNKNOWN_GROUP.parse().expect("a literal");
    let asked = [world.ruled.clone(), unknown, world.referenced.clone()];
    let seen = stage.cloud.describe_security_group_rules(&asked).await?;
    let mut by_group = BTreeMap::new();
    for rule in seen {
        *by_group.entry(rule.group).or_insert(0_usize) += 1;
    }
    // EC2 gives a new group one rule.
    let expected = [(world.ruled.clone(), world.rules().len() + 1), (world.referenced.clone(), 1)];
    same("rules by group", by_group.into_iter().collect(), expected.into())
}

pub(super) async fn no_group_asked_for_is_no_rule<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let rules = stage.cloud.describe_security_group_rules(&[]).await?;
    let members = stage.cloud.describe_group_members(&[]).await?;
    ensure!(rules.is_empty() && members.is_empty(), "{rules:?} {members:?}");
    Ok(())
}

pub(super) async fn only_groups_that_exist_are_listed<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let world = &stage.world.groups;
    let asked = [UNKNOWN_GROUP.parse().expect("a literal"), world.ruled.clone()];
    let seen = stage.cloud.describe_security_groups(&asked).await?;
    same("groups", seen.into_iter().map(|g| g.id).collect(), vec![world.ruled.clone()])
}

pub(super) async fn groups_are_found_by_their_tags_in_their_vpc<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let GroupWorld { ruled, referenced, .. } = &stage.world.groups;
    let here = stage.subnet(&stage.world.subnet).await?.vpc_id;
    let elsewhere = UNKNOWN_VPC.parse().expect("a literal");
    for (vpc, wanted, expected) in [
        (&here, tags(&[("pods", "yes")]), vec![ruled]),
        (&here, tags(&[("pods", "*")]), vec![ruled, referenced]),
        (&here, tags(&[("pods", "*"), ("team", "abc")]), vec![referenced]),
        // A star within a value is a star.
        (&here, tags(&[("team", "a*c")]), vec![ruled]),
        (&here, tags(&[("pods", "yes"), ("zone", "*")]), vec![]),
        (&here, tags(&[]), vec![]),
        (&elsewhere, tags(&[("pods", "yes")]), vec![]),
    ] {
        let found = stage.cloud.find_security_groups(vpc, &wanted).await?;
        let found = found.into_iter().map(|group| group.id).collect();
        same(
            &format!("groups of {vpc} with {wanted:?}"),
            found,
            expected.into_iter().cloned().collect(),
        )?;
    }
    Ok(())
}

pub(super) async fn members_are_those_who_carry_the_group<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let group = stage.world.groups.referenced.clone();
    let [other, _] = &stage.world.security_groups;
    let asked = CreateInterface {
        security_groups: vec![other.clone(), group.clone()],
        ..stage.request("a", 3)
    };
    let carrier = stage.make(asked).await?;
    stage.roomy("b", 1).await?;
    let members = stage.cloud.describe_group_members(std::slice::from_ref(&group)).await?;
    let [member] = members.as_slice() else {
        return Err(super::Stop::Fail(format!("one member was expected: {members:?}")));
    };
    ensure!(member.eni == carrier.id, "it is {}, not {}", member.eni, carrier.id);
    same("groups", member.security_groups.clone(), vec![other.clone(), group.clone()])?;
    same("addresses", member.addresses.clone(), addresses(&carrier))?;
    stage.cloud.set_security_groups(&carrier.id, std::slice::from_ref(other)).await?;
    no_members(stage, group).await
}

/// Whether nobody carries a group: at once where the provider says so, else after a while.
async fn no_members<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
    group: veni_core::id::SecurityGroupId,
) -> Case {
    let end = stage.timer.now() + stage.world.patience;
    loop {
        let left = stage.cloud.describe_group_members(std::slice::from_ref(&group)).await?;
        if left.is_empty() {
            return Ok(());
        }
        let waits = !stage.world.describe_is_consistent && stage.timer.now() < end;
        ensure!(waits, "nobody carries {group} any more, but: {left:?}");
        stage.timer.sleep(stage.world.pause).await;
    }
}

fn addresses(eni: &Interface) -> Vec<std::net::IpAddr> {
    let secondary = eni.secondary_addresses.iter().copied();
    std::iter::once(eni.primary_address).chain(secondary).map(Into::into).collect()
}

pub(super) async fn a_member_of_several_groups_is_told_once<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let groups = [stage.world.groups.referenced.clone(), stage.world.groups.ruled.clone()];
    let asked = CreateInterface { security_groups: groups.to_vec(), ..stage.request("a", 0) };
    let carrier = stage.make(asked).await?;
    let members = stage.cloud.describe_group_members(&groups).await?;
    let told = members.into_iter().map(|m| m.eni).collect();
    same("members", told, vec![carrier.id])
}

pub(super) async fn a_members_prefixes_are_told<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let group = stage.world.groups.referenced.clone();
    let security_groups = vec![group.clone()];
    let asked = CreateInterface { security_groups, prefixes: 2, ..stage.request("a", 0) };
    let carrier = stage.make(asked).await?;
    let members = stage.cloud.describe_group_members(&[group]).await?;
    let told = members.into_iter().flat_map(|GroupMember { prefixes, .. }| prefixes);
    let told = told.map(|prefix| prefix.to_string()).collect::<Vec<_>>();
    ensure!(told.len() == 2, "2 prefixes were delegated: {told:?}");
    same("prefixes", told, carrier.prefixes.iter().map(ToString::to_string).collect())
}

pub(super) async fn prefix_lists_tell_their_version<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let list = stage.world.groups.prefix_list.clone();
    let asked = [UNKNOWN_LIST.parse().expect("a literal"), list.clone()];
    let seen = stage.cloud.describe_prefix_lists(&asked).await?;
    let versions = GroupWorld::prefix_list_versions().len() as u64;
    let seen = seen.into_iter().map(|list| (list.id, list.version)).collect();
    same("lists", seen, vec![(list, Some(versions))])
}

pub(super) async fn prefix_list_entries_are_those_of_the_version<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let list = &stage.world.groups.prefix_list;
    let [first, second] = GroupWorld::prefix_list_versions();
    for (version, expected) in [(Some(1), first), (Some(2), second.clone()), (None, second)] {
        let seen = stage.cloud.prefix_list_entries(list, version).await?;
        same(&format!("entries of version {version:?}"), seen, expected)?;
    }
    Ok(())
}

pub(super) async fn an_unknown_prefix_list_is_not_found<C: Cloud, T: Timer>(
    stage: &Stage<'_, C, T>,
) -> Case {
    let unknown = UNKNOWN_LIST.parse().expect("a literal");
    refuses_as_not_found(stage.cloud.prefix_list_entries(&unknown, None)).await
}
