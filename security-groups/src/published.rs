//! Groups that a leader has resolved for all nodes, as objects: written in parts, read whole. Pure but for the time of day.
//!
//! A reader takes a group when it has all parts of one revision, and keeps what it had until then; for some seconds, after
//! which a part is lost and what it had is stale. What it does not understand it does not take, and does not keep what was
//! before. The node reads such groups itself.

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

/// Rules and addresses in one object: about 100 bytes each as JSON, and etcd takes 1.5 MiB.
const ITEMS: usize = 4_000;
/// How long a group counts as it was while parts lack. Those of a revision are written one after the other.
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
    /// By object's name.
    parts: BTreeMap<String, GroupPart>,
    published: Published,
    /// Groups that are as they were because parts lack, and since when.
    torn: BTreeMap<SecurityGroupId, Instant>,
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
        let id = part.id.clone();
        let before = self.parts.insert(name.to_owned(), part);
        let moved = before.filter(|before| before.id != id);
        let other = moved.is_some_and(|before| self.assemble(&before.id));
        self.assemble(&id) || other
    }

    /// Takes an object that is gone. Whether something has changed.
    pub fn remove(&mut self, name: &str) -> bool {
        match self.parts.remove(name) {
            Some(part) => self.assemble(&part.id),
            None => false,
        }
    }

    /// All objects were told; those that are not among `names` are gone.
    pub fn listed(&mut self, names: &BTreeSet<String>) {
        let gone: Vec<_> =
            self.parts.keys().filter(|name| !names.contains(*name)).cloned().collect();
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

    fn assemble(&mut self, id: &str) -> bool {
        let Ok(key) = id.parse::<SecurityGroupId>() else { return false };
        let parts: Vec<_> = self.parts.values().filter(|part| part.id == id).collect();
        let whole = match join(&key, &parts) {
            // Between two revisions.
            Err(Unjoined::Torn) if !parts.is_empty() => {
                self.torn.entry(key).or_insert_with(Instant::now);
                return false;
            }
            Err(_) => {
                self.torn.remove(&key);
                return self.published.groups.remove(&key).is_some();
            }
            Ok(whole) => whole,
        };
        self.torn.remove(&key);
        let before = self.published.groups.insert(key.clone(), Arc::new(whole));
        before.as_ref() != self.published.groups.get(&key)
    }
}

/// The name of a group's part.
#[must_use]
pub fn part_name(id: &SecurityGroupId, part: u32) -> String {
    format!("{id}.{part}")
}

/// The objects of a group, by name.
#[must_use]
pub fn split(
    id: &SecurityGroupId,
    published: &PublishedGroup,
) -> BTreeMap<String, ResolvedSecurityGroupSpec> {
    let state = if published.group.is_some() { State::Resolved } else { State::Gone };
    let empty =
        GroupPart { id: id.to_string(), state, stale: published.stale, ..GroupPart::default() };
    let mut parts = vec![empty.clone()];
    let mut held = 0;
    let mut room = |parts: &mut Vec<GroupPart>| {
        if held == ITEMS {
            parts.push(empty.clone());
            held = 0;
        }
        held += 1;
    };
    if let Some(group) = &published.group {
        let rules = group.ingress.iter().map(|rule| (rule, false));
        for (rule, egress) in rules.chain(group.egress.iter().map(|rule| (rule, true))) {
            room(&mut parts);
            parts.last_mut().expect("the first is there").rules.push(told(rule, egress));
        }
    }
    for (group, addresses) in &published.members {
        // A group without members is told, too.
        parts.last_mut().expect("the first is there").members.entry(group.to_string()).or_default();
        for address in addresses {
            room(&mut parts);
            let part = parts.last_mut().expect("the first is there");
            part.members.entry(group.to_string()).or_default().push(address.to_string());
        }
    }
    let revision = revision(&parts);
    let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
    (0..count)
        .zip(parts)
        .map(|(number, mut part)| {
            (part.part, part.parts, part.revision) = (number, count, revision.clone());
            let spec = ResolvedSecurityGroupSpec { group: Some(part), heartbeat: None };
            (part_name(id, number), spec)
        })
        .collect()
}

/// The same for the same content, whoever leads: FNV-1a over it, which nobody has a reason to collide.
fn revision(parts: &[GroupPart]) -> String {
    struct Fnv(u64);
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
    let mut hash = Fnv(0xcbf2_9ce4_8422_2325);
    for part in parts {
        hash.write(format!("{part:?}").as_bytes());
    }
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

/// The group, if these are all parts of one revision, and understood.
fn join(id: &SecurityGroupId, parts: &[&GroupPart]) -> Result<PublishedGroup, Unjoined> {
    let first = parts.iter().find(|part| part.part == 0).ok_or(Unjoined::Torn)?;
    let numbers: BTreeSet<_> = parts
        .iter()
        .filter(|part| part.revision == first.revision && part.parts == first.parts)
        .map(|part| part.part)
        .collect();
    let same = numbers.iter().copied().eq(0..first.parts);
    if !same {
        return Err(Unjoined::Torn);
    }
    understand(id, first, parts).ok_or(Unjoined::NotUnderstood)
}

/// The group of all parts of this one's revision.
fn understand(
    id: &SecurityGroupId,
    first: &GroupPart,
    parts: &[&GroupPart],
) -> Option<PublishedGroup> {
    let mut sorted: Vec<_> = parts.iter().filter(|part| part.revision == first.revision).collect();
    sorted.sort_by_key(|part| part.part);
    let (mut ingress, mut egress) = (Vec::new(), Vec::new());
    let mut members: BTreeMap<SecurityGroupId, BTreeSet<IpAddr>> = BTreeMap::new();
    for part in sorted {
        for rule in &part.rules {
            let direction = if rule.egress { &mut egress } else { &mut ingress };
            direction.push(read(rule)?);
        }
        for (group, addresses) in &part.members {
            let of_group = members.entry(group.parse().ok()?).or_default();
            for address in addresses {
                of_group.insert(address.parse().ok()?);
            }
        }
    }
    let group = (first.state == State::Resolved).then(|| {
        let state = GroupState::Resolved;
        ResolvedGroup { id: id.clone(), state, ingress, egress }
    });
    Some(PublishedGroup { group, members, stale: first.stale })
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

    fn objects(published: &PublishedGroup) -> Vec<(String, ResolvedSecurityGroupSpec)> {
        split(&id("sg-web"), published).into_iter().collect()
    }

    #[test]
    fn what_is_published_is_read_as_it_was_whatever_its_size() {
        let gone = PublishedGroup { group: None, members: BTreeMap::new(), stale: false };
        let stale = PublishedGroup { stale: true, ..group(3, 3) };
        for (published, count) in [
            (group(0, 0), 1),
            (group(10, 100), 1),
            (group(1_000, 131_072), 34),
            (gone, 1),
            (stale, 1),
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

    #[test]
    fn a_group_is_as_it_was_until_all_parts_of_another_revision_are_there() {
        let (first, second) = (group(10, 9_000), group(11, 9_000));
        let mut board = Board::default();
        for (name, spec) in objects(&first) {
            board.apply(&name, spec);
        }
        let objects = objects(&second);
        let (last, others) = objects.split_last().unwrap();
        for (name, spec) in others {
            assert!(!board.apply(name, spec.clone()));
            assert_eq!(*board.published().groups[&id("sg-web")], first);
        }
        assert!(board.apply(&last.0, last.1.clone()));
        assert_eq!(*board.published().groups[&id("sg-web")], second);
        // A smaller one, whose left-over part is deleted later.
        for (name, spec) in split(&id("sg-web"), &group(1, 1)) {
            assert!(board.apply(&name, spec));
        }
        assert_eq!(*board.published().groups[&id("sg-web")], group(1, 1));
        assert!(!board.remove("sg-web.1"));
        assert!(board.remove("sg-web.2") || !board.published().groups.is_empty());
        assert!(board.remove("sg-web.0"));
        assert!(board.published().groups.is_empty());
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
            let (name, mut spec) = objects(&group(1, 1)).remove(0);
            spoil(&mut spec.group.as_mut().unwrap().rules[0]);
            let mut board = Board::default();
            assert!(!board.apply(&name, spec.clone()));
            assert!(board.published().groups.is_empty());
            // Nor does what was before stay: it is not what holds now, and the leader vouches for what nobody here reads.
            let (_, whole) = objects(&group(1, 1)).remove(0);
            assert!(board.apply(&name, whole));
            assert!(board.apply(&name, spec));
            assert!(board.published().groups.is_empty() && board.torn.is_empty());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_group_that_lacks_a_part_for_long_is_stale() {
        let (first, second) = (objects(&group(10, 9_000)), objects(&group(11, 9_000)));
        let mut board = Board::default();
        let stale = |board: &Board| board.published().groups[&id("sg-web")].stale;
        for (name, spec) in first {
            board.apply(&name, spec);
        }
        tokio::time::advance(PATIENCE).await;
        assert!(!stale(&board));
        // A part that nobody here can read says nothing.
        board.apply("sg-web.1", ResolvedSecurityGroupSpec::default());
        tokio::time::advance(PATIENCE / 2).await;
        assert!(!stale(&board));
        let (name, spec) = second[0].clone();
        board.apply(&name, spec);
        tokio::time::advance(PATIENCE / 2).await;
        assert!(stale(&board), "since it was whole");
        for (name, spec) in second {
            board.apply(&name, spec);
        }
        assert!(!stale(&board));
        board.remove("sg-web.1");
        board.remove("sg-web.2");
        assert!(board.remove("sg-web.0"));
        assert!(board.torn.is_empty() && board.published().groups.is_empty());
    }

    #[test]
    fn the_same_content_is_the_same_revision_and_other_content_is_not() {
        let revision = |published: &PublishedGroup| {
            objects(published)[0].1.group.as_ref().unwrap().revision.clone()
        };
        assert_eq!(revision(&group(3, 3)), revision(&group(3, 3)));
        assert_ne!(revision(&group(3, 3)), revision(&group(3, 4)));
    }
}
