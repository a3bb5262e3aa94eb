//! Security groups with their rules, managed prefix lists, and who carries a group.
//!
//! Invariant: every group and list has its past, so that a stale `Describe…` shows what was.
//!
//! Deliberately absent: quotas of rules, what the rules mean for a packet, other accounts' groups (a rule may name one).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use veni_core::id::{EniId, PrefixListId, SecurityGroupId, SecurityGroupRuleId, VpcId};

use super::{Sim, WorldError, history::History, refusal, world::refused_by};
use crate::{
    GroupMember, GroupReference, Interface, PrefixList, RuleDirection, RulePeer, RuleTraffic,
    SecurityGroup, SecurityGroupRule,
    call::Failure,
    security_group::{FILTER_VALUES, has_tags},
};

/// What the region has of them.
#[derive(Debug, Default)]
pub(super) struct Groups {
    groups: BTreeMap<SecurityGroupId, History<GroupView>>,
    lists: BTreeMap<PrefixListId, History<List>>,
    /// IPv6 addresses of ENIs, which [`Interface`] does not know.
    ipv6: BTreeMap<EniId, BTreeSet<Ipv6Addr>>,
    rules_made: u64,
}

/// A security group as it really is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupView {
    /// Its id.
    pub id: SecurityGroupId,
    /// Its VPC.
    pub vpc_id: VpcId,
    /// Its rules, the oldest first.
    pub rules: Vec<SecurityGroupRule>,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
}

/// A rule to add to a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleSpec {
    /// To which group.
    pub group: SecurityGroupId,
    /// Which way it looks.
    pub direction: RuleDirection,
    /// What it admits.
    pub traffic: RuleTraffic,
    /// Whom.
    pub peer: RulePeer,
}

/// A managed prefix list: its entries by version, the first one's version being 1.
#[derive(Debug, Clone)]
struct List {
    versions: Vec<Vec<IpNet>>,
}

// --- what EC2 answers ---------------------------------------------------------------------------------------------

impl Sim {
    pub(super) fn group_rules(
        &mut self,
        ids: &[SecurityGroupId],
    ) -> Result<Vec<SecurityGroupRule>, Failure> {
        Ok(self.groups_seen(ids)?.flat_map(|group| group.rules.clone()).collect())
    }

    pub(super) fn existing_groups(
        &mut self,
        ids: &[SecurityGroupId],
    ) -> Result<Vec<SecurityGroup>, Failure> {
        Ok(self.groups_seen(ids)?.map(GroupView::told).collect())
    }

    pub(super) fn tagged_groups(
        &mut self,
        vpc_id: &VpcId,
        tags: &BTreeMap<String, String>,
    ) -> Vec<SecurityGroup> {
        let at = self.describe_time();
        let seen = self.groups.groups.values().filter_map(|group| group.at(at));
        let found = seen.filter(|group| group.vpc_id == *vpc_id && has_tags(&group.tags, tags));
        found.filter(|_| !tags.is_empty()).map(GroupView::told).collect()
    }

    fn groups_seen(
        &mut self,
        ids: &[SecurityGroupId],
    ) -> Result<impl Iterator<Item = &GroupView>, Failure> {
        check_filter(ids.len())?;
        let at = self.describe_time();
        let asked: BTreeSet<_> = ids.iter().cloned().collect();
        let groups = self.groups.groups.values().filter_map(move |group| group.at(at));
        Ok(groups.filter(move |group| asked.contains(&group.id)))
    }

    pub(super) fn group_members(
        &mut self,
        ids: &[SecurityGroupId],
    ) -> Result<Vec<GroupMember>, Failure> {
        check_filter(ids.len())?;
        let at = self.describe_time();
        let seen = self.enis.values().filter_map(|eni| eni.at(at));
        let carriers = seen.filter(|eni| eni.security_groups.iter().any(|g| ids.contains(g)));
        Ok(carriers.map(|eni| self.member(eni)).collect())
    }

    fn member(&self, eni: &Interface) -> GroupMember {
        let v4 = [eni.primary_address].into_iter().chain(eni.secondary_addresses.iter().copied());
        let v6 = self.groups.ipv6.get(&eni.id).into_iter().flatten().copied();
        GroupMember {
            eni: eni.id.clone(),
            security_groups: eni.security_groups.clone(),
            addresses: v4.map(IpAddr::V4).chain(v6.map(IpAddr::V6)).collect(),
            prefixes: eni.prefixes.iter().map(|prefix| net(*prefix)).collect(),
        }
    }

    pub(super) fn prefix_lists(
        &mut self,
        ids: &[PrefixListId],
    ) -> Result<Vec<PrefixList>, Failure> {
        check_filter(ids.len())?;
        let at = self.describe_time();
        let asked: BTreeSet<_> = ids.iter().collect();
        let version = |list: &List| Some(list.versions.len() as u64);
        Ok(asked
            .into_iter()
            .filter_map(|id| Some((id, self.groups.lists.get(id)?.at(at)?)))
            .map(|(id, list)| PrefixList { id: id.clone(), version: version(list) })
            .collect())
    }

    pub(super) fn list_entries(
        &mut self,
        id: &PrefixListId,
        version: Option<u64>,
    ) -> Result<Vec<IpNet>, Failure> {
        let at = self.describe_time();
        let list = self.groups.lists.get(id).and_then(|list| list.at(at));
        let list = list.ok_or_else(|| refusal::no_prefix_list(id))?;
        let newest = list.versions.len() as u64;
        let index = usize::try_from(version.unwrap_or(newest).wrapping_sub(1));
        let entries = index.ok().and_then(|index| list.versions.get(index));
        entries.cloned().ok_or_else(|| {
            refusal::invalid("InvalidParameterValue", format!("{id} has no version {version:?}"))
        })
    }
}

// --- what tests and the lab do to them ----------------------------------------------------------------------------

impl Sim {
    /// Notes a new group with the rules that EC2 gives one: all out; and for a VPC's default group, all in from
    /// itself (VPC user guide, "Default security groups").
    pub(super) fn put_new_group(&mut self, id: SecurityGroupId, vpc_id: VpcId, is_default: bool) {
        self.security_groups.insert(id.clone(), vpc_id.clone());
        let (rules, tags) = (Vec::new(), BTreeMap::new());
        let group = GroupView { id: id.clone(), vpc_id, rules, tags };
        self.groups.groups.insert(id.clone(), History::new(self.now, group));
        let own = GroupReference {
            id: id.clone(),
            foreign_account: None,
            peering_connection: None,
            stale: false,
        };
        let all_out = (RuleDirection::Egress, RulePeer::Cidr(everything()));
        let all_in = is_default.then_some((RuleDirection::Ingress, RulePeer::Group(own)));
        for (direction, peer) in [Some(all_out), all_in].into_iter().flatten() {
            let rule = RuleSpec { group: id.clone(), direction, traffic: RuleTraffic::All, peer };
            self.authorize(rule).expect("the group was made above and refers to itself at most");
        }
    }

    /// `AuthorizeSecurityGroupIngress`, `…Egress`: adds a rule to a group.
    ///
    /// # Errors
    /// When the group, or one in its account that the rule refers to, or the prefix list does not exist; or the group
    /// has the same rule.
    pub fn authorize(&mut self, spec: RuleSpec) -> Result<SecurityGroupRuleId, WorldError> {
        let RuleSpec { group: id, direction, traffic, peer } = spec;
        let mut group = self.group(&id)?;
        match &peer {
            RulePeer::Group(other) if other.foreign_account.is_none() => {
                self.group(&other.id)?;
            }
            RulePeer::PrefixList(list) => drop(self.list(list)?),
            _ => {}
        }
        let same = |r: &SecurityGroupRule| {
            (r.direction, &r.traffic, &r.peer) == (direction, &traffic, &peer)
        };
        if group.rules.iter().any(same) {
            let words = "the specified rule already exists";
            return Err(refused_by("AuthorizeSecurityGroup", "InvalidPermission.Duplicate", words));
        }
        self.groups.rules_made += 1;
        let rule_id: SecurityGroupRuleId = format!("sgr-{:017x}", self.groups.rules_made)
            .parse()
            .expect("a prefix and hexadecimal digits");
        group.rules.push(SecurityGroupRule {
            id: rule_id.clone(),
            group: id,
            direction,
            traffic,
            peer,
        });
        self.put_group(group);
        Ok(rule_id)
    }

    /// `RevokeSecurityGroupIngress`, `…Egress`: takes a rule away.
    ///
    /// # Errors
    /// When no group has it.
    pub fn revoke(&mut self, rule: &SecurityGroupRuleId) -> Result<(), WorldError> {
        let has = |group: &&GroupView| group.rules.iter().any(|r| r.id == *rule);
        let mut group = self
            .security_groups()
            .find(has)
            .cloned()
            .ok_or_else(|| WorldError::Missing(rule.to_string()))?;
        group.rules.retain(|r| r.id != *rule);
        self.put_group(group);
        Ok(())
    }

    /// `CreateTags` of a group: adds or overwrites.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn tag_security_group(
        &mut self,
        id: &SecurityGroupId,
        tags: BTreeMap<String, String>,
    ) -> Result<(), WorldError> {
        let mut group = self.group(id)?;
        group.tags.extend(tags);
        self.put_group(group);
        Ok(())
    }

    /// `DeleteSecurityGroup`.
    ///
    /// # Errors
    /// When it does not exist, an ENI carries it or another group's rule refers to it.
    pub fn delete_security_group(&mut self, id: &SecurityGroupId) -> Result<(), WorldError> {
        self.group(id)?;
        let refers = |r: &SecurityGroupRule| matches!(&r.peer, RulePeer::Group(g) if g.id == *id);
        let carried = self.interfaces().any(|eni| eni.security_groups.contains(id));
        let mut others = self.security_groups().filter(|group| group.id != *id);
        if carried || others.any(|group| group.rules.iter().any(refers)) {
            let words = format!("resource {id} has a dependent object");
            return Err(refused_by("DeleteSecurityGroup", "DependencyViolation", &words));
        }
        drop(others);
        self.security_groups.remove(id);
        let (now, horizon) = (self.now, self.config.consistency.horizon());
        if let Some(history) = self.groups.groups.get_mut(id) {
            history.set(now, None, horizon);
        }
        Ok(())
    }

    /// Makes a managed prefix list, or a new version of it.
    pub fn set_prefix_list(&mut self, id: PrefixListId, entries: Vec<IpNet>) {
        let (now, horizon) = (self.now, self.config.consistency.horizon());
        let mut versions = self.list(&id).map(|list| list.versions).unwrap_or_default();
        versions.push(entries);
        match self.groups.lists.get_mut(&id) {
            Some(history) => history.set(now, Some(List { versions }), horizon),
            None => {
                self.groups.lists.insert(id, History::new(now, List { versions }));
            }
        }
    }

    /// Takes a managed prefix list away, as when its owner does not share it any more.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn delete_prefix_list(&mut self, id: &PrefixListId) -> Result<(), WorldError> {
        self.list(id)?;
        let (now, horizon) = (self.now, self.config.consistency.horizon());
        if let Some(history) = self.groups.lists.get_mut(id) {
            history.set(now, None, horizon);
        }
        Ok(())
    }

    /// Gives an ENI these IPv6 addresses instead of those it had. Only [`GroupMember`] shows them.
    ///
    /// # Errors
    /// When the ENI does not exist.
    pub fn set_ipv6_addresses(
        &mut self,
        eni: &EniId,
        addresses: BTreeSet<Ipv6Addr>,
    ) -> Result<(), WorldError> {
        if self.interface(eni).is_none() {
            return Err(WorldError::Missing(eni.to_string()));
        }
        self.groups.ipv6.insert(eni.clone(), addresses);
        Ok(())
    }

    /// All groups as they really are, by id.
    pub fn security_groups(&self) -> impl Iterator<Item = &GroupView> {
        self.groups.groups.values().filter_map(History::current)
    }

    fn group(&self, id: &SecurityGroupId) -> Result<GroupView, WorldError> {
        let group = self.groups.groups.get(id).and_then(History::current);
        group.cloned().ok_or_else(|| WorldError::Missing(id.to_string()))
    }

    fn list(&self, id: &PrefixListId) -> Result<List, WorldError> {
        let list = self.groups.lists.get(id).and_then(History::current);
        list.cloned().ok_or_else(|| WorldError::Missing(id.to_string()))
    }

    fn put_group(&mut self, group: GroupView) {
        let (now, horizon) = (self.now, self.config.consistency.horizon());
        if let Some(history) = self.groups.groups.get_mut(&group.id) {
            history.set(now, Some(group), horizon);
        }
    }
}

impl GroupView {
    fn told(&self) -> SecurityGroup {
        let Self { id, vpc_id, tags, .. } = self.clone();
        SecurityGroup { id, vpc_id, tags }
    }
}

/// A filter takes so many values and no more.
fn check_filter(values: usize) -> Result<(), Failure> {
    if values > FILTER_VALUES {
        let words = format!("{values} values in one filter: {FILTER_VALUES} at most");
        return Err(refusal::invalid("FilterLimitExceeded", words));
    }
    Ok(())
}

fn everything() -> IpNet {
    IpNet::from(ipnet::Ipv4Net::default())
}

fn net(prefix: veni_core::net::Ipv4Prefix) -> IpNet {
    let net = ipnet::Ipv4Net::new(prefix.network(), prefix.len());
    IpNet::from(net.expect("a prefix's length is 32 at most"))
}
