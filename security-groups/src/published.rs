//! Groups that a leader has resolved for all nodes, as objects: written in parts, read whole. Pure but for the time of day.
//!
//! The rules of a group are one thing, the members of a group another: those are published once, however many groups name them,
//! in buckets by address, so that one that is new is one bucket and the first part, which lists what the others contain.
//! A reader takes a group when it has all parts of it and of the members that its rules name, and keeps what it had until
//! then; for some seconds, after which a part is lost and what it had is stale. What it does not understand it does not take,
//! and does not keep what was before. The node reads such groups itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::Hasher as _,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;
use veni_core::id::SecurityGroupId;
use veni_eniconfig_crd::resolved_security_group::{
    GroupPart, Heartbeat, PublishedRule, ResolvedSecurityGroupSpec, State,
};
use veni_policy::security_group::{GroupPeer, GroupProtocol, GroupRule, GroupState, ResolvedGroup};

/// Rules in one object: about 150 bytes each as JSON, and etcd takes 1.5 MiB.
const ITEMS: usize = 4_000;
/// Members in one bucket, about: what one that changes costs is a bucket.
const BUCKET: usize = 1_000;
/// How long a group counts as it was while parts lack. Those of a change are written one after the other.
const PATIENCE: Duration = Duration::from_secs(10);

/// A group as a leader publishes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedGroup {
    /// The group; `None`: it does not exist.
    pub group: Option<ResolvedGroup>,
    /// Members of the groups that its rules name.
    pub members: BTreeMap<SecurityGroupId, BTreeSet<IpAddr>>,
    /// The leader does not vouch for it any more.
    pub stale: bool,
}

/// All that is published.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Published {
    /// The groups.
    pub groups: BTreeMap<SecurityGroupId, Arc<PublishedGroup>>,
    /// The last sign of the leader's life.
    pub heartbeat: Option<Heartbeat>,
    /// Whether the objects were listed to their end once; before that nothing follows from what is not there.
    pub listed: bool,
}

/// Why parts are no group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unjoined {
    /// Not all parts of a revision are there.
    Torn,
    /// They are, written by a version that this one does not understand.
    NotUnderstood,
}

/// Puts objects together.
#[derive(Debug, Default)]
pub struct Board {
    /// What each object is a part of.
    names: BTreeMap<String, Whole>,
    /// By object's name.
    parts: BTreeMap<Whole, BTreeMap<String, GroupPart>>,
    members: BTreeMap<SecurityGroupId, Members>,
    published: Published,
    /// Groups that are as they were because parts lack, and since when.
    torn: BTreeMap<SecurityGroupId, Instant>,
}

/// What parts make: a group's rules, or its members.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Whole {
    id: String,
    is_members: bool,
}

/// The members of a group. Of one that is not there nothing was told.
#[derive(Debug, PartialEq, Eq)]
enum Members {
    Known(BTreeSet<IpAddr>),
    Unjoined(Unjoined),
}

impl Board {
    /// Takes an object. Whether something whole has changed.
    pub fn apply(&mut self, name: &str, spec: ResolvedSecurityGroupSpec) -> bool {
        if let Some(heartbeat) = spec.heartbeat {
            let changed = self.published.heartbeat.as_ref() != Some(&heartbeat);
            self.published.heartbeat = Some(heartbeat);
            return changed;
        }
        let Some(part) = spec.group else { return self.remove(name) };
        let whole = Whole { id: part.id.clone(), is_members: part.state == State::Members };
        let before = self.names.insert(name.to_owned(), whole.clone());
        let moved = before.filter(|before| *before != whole);
        let other = moved.is_some_and(|before| self.take(&before, name));
        self.parts.entry(whole.clone()).or_default().insert(name.to_owned(), part);
        self.assemble(&whole) || other
    }

    /// Takes an object that is gone. Whether something has changed.
    pub fn remove(&mut self, name: &str) -> bool {
        self.names.remove(name).is_some_and(|whole| self.take(&whole, name))
    }

    /// All objects were told; those that are not among `names` are gone.
    pub fn listed(&mut self, names: &BTreeSet<String>) {
        let gone: Vec<_> =
            self.names.keys().filter(|name| !names.contains(*name)).cloned().collect();
        for name in gone {
            self.remove(&name);
        }
        self.published.listed = true;
    }

    /// What is whole, or was until just now.
    #[must_use]
    pub fn published(&self) -> Arc<Published> {
        let mut published = self.published.clone();
        for (id, since) in &self.torn {
            if let Some(group) =
                published.groups.get_mut(id).filter(|_| since.elapsed() >= PATIENCE)
            {
                Arc::make_mut(group).stale = true;
            }
        }
        Arc::new(published)
    }

    fn take(&mut self, whole: &Whole, name: &str) -> bool {
        if let Some(parts) = self.parts.get_mut(whole) {
            parts.remove(name);
            if parts.is_empty() {
                self.parts.remove(whole);
            }
        }
        self.assemble(whole)
    }

    fn assemble(&mut self, whole: &Whole) -> bool {
        let Ok(id) = whole.id.parse::<SecurityGroupId>() else { return false };
        if !whole.is_members {
            return self.assemble_group(id);
        }
        let members = self.parts.get(whole).map(|parts| match join(parts.values()) {
            Ok(parts) => {
                addresses(&parts).map_or(Members::Unjoined(Unjoined::NotUnderstood), Members::Known)
            }
            Err(unjoined) => Members::Unjoined(unjoined),
        });
        if self.members.get(&id) == members.as_ref() {
            return false;
        }
        match members {
            Some(members) => drop(self.members.insert(id, members)),
            None => drop(self.members.remove(&id)),
        }
        let is_naming = |parts: &BTreeMap<String, GroupPart>| {
            let mut rules = parts.values().flat_map(|part| &part.rules);
            rules.any(|rule| rule.group.as_ref() == Some(&whole.id))
        };
        let groups = self.parts.iter().filter(|(of, parts)| !of.is_members && is_naming(parts));
        let groups: Vec<_> = groups.filter_map(|(of, _)| of.id.parse().ok()).collect();
        // All of them, whichever changes.
        let mut changed = false;
        for group in groups {
            changed |= self.assemble_group(group);
        }
        changed
    }

    fn assemble_group(&mut self, key: SecurityGroupId) -> bool {
        let whole = Whole { id: key.to_string(), is_members: false };
        let parts = self.parts.get(&whole);
        let joined = parts.map(|parts| {
            let parts = join(parts.values())?;
            understand(&key, &parts, &self.members)
        });
        let group = match joined {
            // Between two revisions.
            Some(Err(Unjoined::Torn)) => {
                self.torn.entry(key).or_insert_with(Instant::now);
                return false;
            }
            None | Some(Err(Unjoined::NotUnderstood)) => {
                self.torn.remove(&key);
                return self.published.groups.remove(&key).is_some();
            }
            Some(Ok(group)) => group,
        };
        let was_torn = self.torn.remove(&key).is_some_and(|since| since.elapsed() >= PATIENCE);
        let before = self.published.groups.insert(key.clone(), Arc::new(group));
        was_torn || before.as_ref() != self.published.groups.get(&key)
    }
}

/// The name of a group's part.
#[must_use]
pub fn part_name(id: &SecurityGroupId, part: u32) -> String {
    format!("{id}.{part}")
}

/// The name of a part of a group's members.
#[must_use]
pub fn members_name(id: &SecurityGroupId, part: u32) -> String {
    format!("{id}.members.{part}")
}

/// The objects of groups and of the members that their rules name, by name. `existing`: what there is, whose buckets are
/// kept where they are neither too few nor too many.
#[must_use]
pub fn split(
    groups: &BTreeMap<SecurityGroupId, PublishedGroup>,
    existing: &BTreeMap<String, ResolvedSecurityGroupSpec>,
) -> BTreeMap<String, ResolvedSecurityGroupSpec> {
    let mut objects = BTreeMap::new();
    let mut members: BTreeMap<&SecurityGroupId, (bool, &BTreeSet<IpAddr>)> = BTreeMap::new();
    for (id, group) in groups {
        objects.extend(numbered(parts_of_group(id, group), |part| part_name(id, part)));
        for (id, addresses) in &group.members {
            // What one group has anew all have.
            let known = members.entry(id).or_insert((group.stale, addresses));
            if known.0 && !group.stale {
                *known = (false, addresses);
            }
        }
    }
    for (id, (_, addresses)) in members {
        let before = existing.get(&members_name(id, 0)).and_then(|spec| spec.group.as_ref());
        let buckets = buckets(addresses.len(), before.map(|part| part.revisions.len()));
        let parts = parts_of_members(id, addresses, buckets);
        objects.extend(numbered(parts, |part| members_name(id, part)));
    }
    objects
}

fn parts_of_group(id: &SecurityGroupId, published: &PublishedGroup) -> Vec<GroupPart> {
    let state = if published.group.is_some() { State::Resolved } else { State::Gone };
    let empty = || GroupPart { id: id.to_string(), state, ..GroupPart::default() };
    let rules = published.group.iter().flat_map(|group| {
        let ingress = group.ingress.iter().map(|rule| told(rule, false));
        ingress.chain(group.egress.iter().map(|rule| told(rule, true)))
    });
    let rules: Vec<_> = rules.collect();
    let mut parts: Vec<_> =
        rules.chunks(ITEMS).map(|rules| GroupPart { rules: rules.to_vec(), ..empty() }).collect();
    if parts.is_empty() {
        parts.push(empty());
    }
    parts[0].stale = published.stale;
    parts
}

/// All in the first, or each in its bucket.
fn parts_of_members(
    id: &SecurityGroupId,
    addresses: &BTreeSet<IpAddr>,
    buckets: usize,
) -> Vec<GroupPart> {
    let empty = GroupPart { id: id.to_string(), state: State::Members, ..GroupPart::default() };
    let mut parts = vec![empty; 1 + buckets];
    for address in addresses {
        let part = if buckets == 0 { 0 } else { 1 + bucket(*address, buckets) };
        parts[part].members.push(address.to_string());
    }
    parts
}

/// How many buckets so many members have, those that the first part is not enough for; a power of two, so that it changes
/// seldom, and only once what there is does not fit.
fn buckets(members: usize, before: Option<usize>) -> usize {
    let fits = |buckets: usize| {
        let most = buckets.max(1) * BUCKET * 2;
        let least = if buckets == 0 { 0 } else { buckets * BUCKET / 4 };
        (least..=most).contains(&members) && (buckets == 0 || buckets.is_power_of_two())
    };
    match before.filter(|before| fits(*before)) {
        Some(before) => before,
        None if members <= BUCKET => 0,
        None => members.div_ceil(BUCKET).next_power_of_two(),
    }
}

fn bucket(address: IpAddr, buckets: usize) -> usize {
    let bits = match address {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => {
            let [high, low] = [address.to_bits() >> 64, address.to_bits() & u128::from(u64::MAX)]
                .map(|half| u64::try_from(half).unwrap_or_default());
            high.rotate_left(32) ^ low
        }
    };
    // splitmix64 (Steele, Lea, Flood): a subnet's addresses differ in few bits.
    let mut z = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    usize::try_from(z ^ (z >> 31)).unwrap_or_default() % buckets
}

/// Parts as objects: the first has the others' revisions.
fn numbered(
    mut parts: Vec<GroupPart>,
    name: impl Fn(u32) -> String,
) -> impl Iterator<Item = (String, ResolvedSecurityGroupSpec)> {
    let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
    for (number, part) in (0..count).zip(&mut parts) {
        (part.part, part.parts, part.revision) = (number, count, revision(part));
    }
    let revisions = parts.iter().skip(1).map(|part| part.revision.clone()).collect();
    if let Some(first) = parts.first_mut() {
        first.revisions = revisions;
    }
    // Only the first says of how many: one more must not change them all.
    for part in parts.iter_mut().skip(1) {
        part.parts = 0;
    }
    parts.into_iter().map(move |part| {
        (name(part.part), ResolvedSecurityGroupSpec { group: Some(part), heartbeat: None })
    })
}

/// FNV-1a, which nobody has a reason to collide.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl std::hash::Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// The same for the same content, whoever leads.
fn revision(part: &GroupPart) -> String {
    let mut hash = Fnv::default();
    hash.write(format!("{:?} {:?}", part.rules, part.members).as_bytes());
    format!("{:016x}", hash.finish())
}

fn told(rule: &GroupRule, egress: bool) -> PublishedRule {
    let (cidr, group) = match &rule.peer {
        GroupPeer::Cidr(net) => (Some(net.to_string()), None),
        GroupPeer::Group(id) => (None, Some(id.to_string())),
    };
    let protocol = match rule.protocol {
        GroupProtocol::Any => None,
        GroupProtocol::Number(number) => Some(number.into()),
    };
    let (first, last) = (rule.first.into(), rule.last.into());
    PublishedRule { id: rule.id.clone(), egress, protocol, first, last, cidr, group }
}

fn read(rule: &PublishedRule) -> Option<GroupRule> {
    let peer = match (&rule.cidr, &rule.group) {
        (Some(net), None) => GroupPeer::Cidr(net.parse().ok()?),
        (None, Some(id)) => GroupPeer::Group(id.parse().ok()?),
        _ => return None,
    };
    let protocol = match rule.protocol {
        None => GroupProtocol::Any,
        Some(number) => GroupProtocol::Number(number.try_into().ok()?),
    };
    let (first, last) = (rule.first.try_into().ok()?, rule.last.try_into().ok()?);
    Some(GroupRule { id: rule.id.clone(), protocol, first, last, peer })
}

/// The parts in their order, if they are all that the first one lists.
fn join<'a>(parts: impl Iterator<Item = &'a GroupPart>) -> Result<Vec<&'a GroupPart>, Unjoined> {
    let parts: BTreeMap<_, _> = parts.map(|part| (part.part, part)).collect();
    let first = *parts.get(&0).ok_or(Unjoined::Torn)?;
    if usize::try_from(first.parts) != Ok(first.revisions.len() + 1) {
        return Err(Unjoined::NotUnderstood);
    }
    let others = (1..first.parts).zip(&first.revisions).map(|(number, revision)| {
        let part = parts.get(&number).filter(|part| part.revision == *revision);
        part.copied().ok_or(Unjoined::Torn)
    });
    std::iter::once(Ok(first)).chain(others).collect()
}

fn addresses(parts: &[&GroupPart]) -> Option<BTreeSet<IpAddr>> {
    parts.iter().flat_map(|part| &part.members).map(|address| address.parse().ok()).collect()
}

/// The group of these parts.
fn understand(
    id: &SecurityGroupId,
    parts: &[&GroupPart],
    known: &BTreeMap<SecurityGroupId, Members>,
) -> Result<PublishedGroup, Unjoined> {
    let first = parts.first().ok_or(Unjoined::Torn)?;
    let (mut ingress, mut egress) = (Vec::new(), Vec::new());
    let mut members = BTreeMap::new();
    for published in parts.iter().flat_map(|part| &part.rules) {
        let rule = read(published).ok_or(Unjoined::NotUnderstood)?;
        if let GroupPeer::Group(peer) = &rule.peer
            && !members.contains_key(peer)
        {
            let addresses = match known.get(peer) {
                Some(Members::Known(addresses)) => addresses.clone(),
                Some(Members::Unjoined(unjoined)) => return Err(*unjoined),
                None => return Err(Unjoined::Torn),
            };
            members.insert(peer.clone(), addresses);
        }
        if published.egress { egress.push(rule) } else { ingress.push(rule) }
    }
    let group = (first.state == State::Resolved).then(|| {
        let state = GroupState::Resolved;
        ResolvedGroup { id: id.clone(), state, ingress, egress }
    });
    Ok(PublishedGroup { group, members, stale: first.stale })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(id: &str) -> SecurityGroupId {
        id.parse().unwrap()
    }

    fn rule(number: u32, peer: GroupPeer) -> GroupRule {
        let protocol = if number == 0 { GroupProtocol::Any } else { GroupProtocol::Number(6) };
        GroupRule { id: format!("sgr-{number:017x}"), protocol, first: 80, last: 90, peer }
    }

    fn group(rules: u32, members: u32) -> PublishedGroup {
        let net = |number: u32| {
            GroupPeer::Cidr(format!("10.{}.{}.0/24", number / 256, number % 256).parse().unwrap())
        };
        let mut ingress: Vec<_> = (0..rules).map(|number| rule(number, net(number))).collect();
        ingress.push(rule(rules, GroupPeer::Group(id("sg-app"))));
        ingress.push(rule(rules, GroupPeer::Group(id("sg-none"))));
        let egress = vec![rule(0, GroupPeer::Cidr("::/0".parse().unwrap()))];
        let resolved =
            ResolvedGroup { id: id("sg-web"), state: GroupState::Resolved, ingress, egress };
        let addresses =
            (0..members).map(|number| IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + number)));
        let members =
            [(id("sg-app"), addresses.collect()), (id("sg-none"), BTreeSet::new())].into();
        PublishedGroup { group: Some(resolved), members, stale: false }
    }

    type Objects = BTreeMap<String, ResolvedSecurityGroupSpec>;

    fn objects(published: &PublishedGroup) -> Vec<(String, ResolvedSecurityGroupSpec)> {
        let groups = [(id("sg-web"), published.clone())].into();
        split(&groups, &Objects::new()).into_iter().collect()
    }

    /// The names of what differs.
    fn written<'a>(before: &'a Objects, after: &'a Objects) -> Vec<&'a str> {
        let differs = |name: &&String| before.get(*name) != after.get(*name);
        let names: BTreeSet<_> = before.keys().chain(after.keys()).collect();
        names.into_iter().filter(differs).map(String::as_str).collect()
    }

    #[test]
    fn what_is_published_is_read_as_it_was_whatever_its_size() {
        let gone = PublishedGroup { group: None, members: BTreeMap::new(), stale: false };
        let stale = PublishedGroup { stale: true, ..group(3, 3) };
        for (published, count) in [
            (group(0, 0), 3),
            (group(10, 100), 3),
            (group(9_000, 100), 5),
            (group(1_000, 131_072), 259),
            (gone, 1),
            (stale, 3),
        ] {
            let objects = objects(&published);
            assert_eq!(objects.len(), count);
            let mut board = Board::default();
            for (index, (name, spec)) in objects.iter().enumerate() {
                let size = serde_json::to_string(spec).unwrap().len();
                assert!(size < 1 << 20, "{name} has {size} bytes");
                let read = serde_json::from_str(&serde_json::to_string(spec).unwrap()).unwrap();
                assert_eq!(board.apply(name, read), index + 1 == count, "{name}");
            }
            assert_eq!(*board.published().groups[&id("sg-web")], published);
        }
    }

    /// As one pod more in a group that everything names: every node that follows is sent this.
    #[test]
    fn one_member_more_is_one_bucket_and_the_first_part_whoever_names_the_group() {
        let groups = |members: u32| -> BTreeMap<_, _> {
            let web = group(10, members);
            let mut other = group(20, members);
            if let Some(group) = &mut other.group {
                group.id = id("sg-other");
            }
            [(id("sg-web"), web), (id("sg-other"), other)].into()
        };
        for (members, most) in [(100, 1), (60_000, 2)] {
            let before = split(&groups(members), &Objects::new());
            let after = split(&groups(members + 1), &before);
            let written = written(&before, &after);
            assert!(written.len() <= most && written.contains(&"sg-app.members.0"), "{written:?}");
            let bytes: usize = written
                .iter()
                .map(|name| serde_json::to_string(&after[*name]).unwrap().len())
                .sum();
            assert!(bytes < 40_000, "{bytes}");
            let lists = after.keys().filter(|name| name.starts_with("sg-app.members.")).count();
            let addresses: usize =
                after.values().map(|spec| spec.group.as_ref().unwrap().members.len()).sum();
            assert_eq!(addresses, members as usize + 1, "once, in {lists} objects");
        }
    }

    #[test]
    fn a_group_that_is_stale_is_one_object_that_differs() {
        let of = |stale| [(id("sg-web"), PublishedGroup { stale, ..group(9_000, 9_000) })].into();
        let fresh = split(&of(false), &Objects::new());
        let stale = split(&of(true), &fresh);
        assert_eq!(written(&fresh, &stale), ["sg-web.0"]);
    }

    #[test]
    fn buckets_are_kept_until_they_are_too_few_or_too_many_and_filled_alike() {
        let check = |members: usize, before: Option<usize>, expected: usize| {
            assert_eq!(buckets(members, before), expected, "{members} {before:?}");
        };
        check(0, None, 0);
        check(1_000, None, 0);
        check(1_001, None, 2);
        check(1_999, Some(0), 0);
        check(2_001, Some(0), 4);
        check(500, Some(2), 2);
        check(499, Some(2), 0);
        check(60_000, None, 64);
        check(128_000, Some(64), 64);
        check(128_001, Some(64), 256);
        check(60_000, Some(7), 64);
        for buckets in [2, 64, 256] {
            let mut filled = vec![0_u32; buckets];
            let all = 1_000 * u32::try_from(buckets).unwrap();
            for number in 0..all {
                let address = std::net::Ipv4Addr::from(0x0a00_0000 + number);
                filled[bucket(address.into(), buckets)] += 1;
            }
            assert!(filled.iter().all(|count| (500..2_000).contains(count)), "{filled:?}");
        }
    }

    #[test]
    fn a_group_is_as_it_was_until_all_parts_that_the_first_lists_are_there() {
        let (first, second) = (group(9_000, 3), group(9_001, 3));
        let mut board = Board::default();
        for (name, spec) in objects(&first) {
            board.apply(&name, spec);
        }
        let after = objects(&second);
        let (last, others) = after.split_last().unwrap();
        for (name, spec) in others {
            assert!(!board.apply(name, spec.clone()), "{name}");
            assert_eq!(*board.published().groups[&id("sg-web")], first);
        }
        assert!(board.apply(&last.0, last.1.clone()));
        assert_eq!(*board.published().groups[&id("sg-web")], second);
        // A smaller one, whose left-over parts are deleted later.
        for (name, spec) in objects(&group(1, 3)) {
            board.apply(&name, spec);
        }
        assert_eq!(*board.published().groups[&id("sg-web")], group(1, 3));
        assert!(!board.remove("sg-web.1") && !board.remove("sg-web.2"));
        assert!(board.remove("sg-web.0"));
        assert!(board.published().groups.is_empty());
    }

    #[test]
    fn members_change_for_all_groups_that_name_them_and_whole() {
        let groups = |members: u32| -> BTreeMap<_, _> {
            [(id("sg-web"), group(1, members)), (id("sg-other"), group(2, members))].into()
        };
        let before = split(&groups(9_000), &Objects::new());
        let mut board = Board::default();
        for (name, spec) in &before {
            board.apply(name, spec.clone());
        }
        let count = |board: &Board, of: &str| {
            board.published().groups.get(&id(of)).map(|group| group.members[&id("sg-app")].len())
        };
        assert_eq!(
            (count(&board, "sg-web"), count(&board, "sg-other")),
            (Some(9_000), Some(9_000))
        );
        let after = split(&groups(9_001), &before);
        let names = written(&before, &after);
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(!board.apply(names[0], after[names[0]].clone()), "the one without the other");
        assert_eq!(count(&board, "sg-web"), Some(9_000));
        assert!(board.apply(names[1], after[names[1]].clone()));
        assert_eq!(
            (count(&board, "sg-web"), count(&board, "sg-other")),
            (Some(9_001), Some(9_001))
        );
        // One that this version does not understand.
        let mut spoilt = after["sg-app.members.0"].clone();
        spoilt.group.as_mut().unwrap().revisions.pop();
        assert!(board.apply("sg-app.members.0", spoilt));
        assert_eq!(count(&board, "sg-web"), None);
    }

    #[test]
    fn what_is_not_understood_is_not_taken() {
        let spoilt: [fn(&mut PublishedRule); 4] = [
            |rule| rule.protocol = Some(300),
            |rule| rule.cidr = Some("everybody".to_owned()),
            |rule| rule.cidr = None,
            |rule| rule.last = 70_000,
        ];
        for spoil in spoilt {
            let mut board = Board::default();
            let mut all = objects(&group(1, 1));
            let (name, whole) = all.pop().unwrap();
            for (name, spec) in all {
                board.apply(&name, spec);
            }
            let mut spec = whole.clone();
            spoil(&mut spec.group.as_mut().unwrap().rules[0]);
            assert!(!board.apply(&name, spec.clone()));
            assert!(board.published().groups.is_empty());
            // Nor does what was before stay: it is not what holds now, and the leader vouches for what nobody here reads.
            assert!(board.apply(&name, whole));
            assert!(board.apply(&name, spec));
            assert!(board.published().groups.is_empty() && board.torn.is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_that_lacks_a_part_for_long_is_stale() {
        // Of the rules, and of the members that they name.
        for (first, second) in
            [(group(9_000, 3), group(9_001, 3)), (group(10, 9_000), group(10, 9_001))]
        {
            let before: Objects = objects(&first).into_iter().collect();
            let after: Objects = objects(&second).into_iter().collect();
            let names = written(&before, &after);
            assert_eq!(names.len(), 2, "{names:?}");
            let mut board = Board::default();
            let stale = |board: &Board| board.published().groups[&id("sg-web")].stale;
            for (name, spec) in &before {
                board.apply(name, spec.clone());
            }
            tokio::time::advance(PATIENCE).await;
            assert!(!stale(&board));
            // A part that nobody here can read says nothing.
            board.apply(names[1], ResolvedSecurityGroupSpec::default());
            tokio::time::advance(PATIENCE / 2).await;
            assert!(!stale(&board));
            board.apply(names[0], after[names[0]].clone());
            tokio::time::advance(PATIENCE / 2).await;
            assert!(stale(&board), "since it was whole");
            assert!(board.apply(names[1], after[names[1]].clone()), "whole again");
            assert!(!stale(&board));
            for name in after.keys().filter(|name| *name != "sg-web.0") {
                board.remove(name);
            }
            assert!(board.remove("sg-web.0"));
            assert!(board.torn.is_empty() && board.published().groups.is_empty());
        }
    }

    #[test]
    fn the_same_content_is_the_same_revision_and_other_content_is_not() {
        let revisions = |published: &PublishedGroup| -> Vec<_> {
            let objects = objects(published);
            objects.iter().map(|(_, spec)| spec.group.as_ref().unwrap().revision.clone()).collect()
        };
        assert_eq!(revisions(&group(3, 3)), revisions(&group(3, 3)));
        assert_ne!(revisions(&group(3, 3)), revisions(&group(3, 4)));
        assert_ne!(revisions(&group(3, 3)), revisions(&group(4, 3)));
    }
}
