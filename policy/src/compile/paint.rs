//! From the rules that match a class, in their order, to what each protocol and port gets.
//!
//! A canvas is every (protocol, port). The first rule to reach a spot decides it; what a Pass reached is open again
//! for the next tier. Policies and security groups are painted apart and then intersected.

use std::collections::{BTreeMap, BTreeSet};

use veni_ebpf_common::table::Decision;

use super::{
    content::{Content, FlatPort, FlatRule, Groups, NamedPort, Stage, Verb},
    profile::Body,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spot {
    Open,
    Passed,
    Decided(Decision),
}

/// First port, last port, and what they are.
type Segment<T> = (u16, u16, T);

/// What is decided so far: by protocol, from the first port to the last without a gap, and for every protocol that is
/// not there.
#[derive(Debug)]
struct Canvas {
    protocols: BTreeMap<u8, Vec<Segment<Spot>>>,
    rest: Spot,
}

/// A finished canvas.
type Painted = (BTreeMap<u8, Vec<Segment<Decision>>>, Decision);

/// What these rules, which match a class with these named ports, say.
pub(crate) fn paint<'a>(
    content: &Content,
    matching: impl Iterator<Item = &'a FlatRule> + Clone,
    ports: &[NamedPort],
) -> Body {
    let policy = paint_policy(content, matching.clone(), ports);
    match content.groups {
        Groups::Absent => body(policy),
        Groups::Deny(number) => body(intersect(policy, (BTreeMap::new(), Decision::deny(number)))),
        Groups::Rules(number) => body(intersect(policy, paint_groups(number, matching, ports))),
    }
}

/// What the security groups alone say; `None` for a pod without any.
pub(crate) fn paint_groups_only<'a>(
    content: &Content,
    matching: impl Iterator<Item = &'a FlatRule>,
) -> Option<Body> {
    match content.groups {
        Groups::Absent => None,
        Groups::Deny(number) => Some(body((BTreeMap::new(), Decision::deny(number)))),
        Groups::Rules(number) => Some(body(paint_groups(number, matching, &[]))),
    }
}

fn paint_policy<'a>(
    content: &Content,
    matching: impl Iterator<Item = &'a FlatRule> + Clone,
    ports: &[NamedPort],
) -> Painted {
    let mut canvas = Canvas::new();
    for stage in [Stage::Admin, Stage::NetworkPolicy, Stage::Baseline] {
        for rule in matching.clone().filter(|rule| rule.stage == stage) {
            canvas.apply(rule, ports);
        }
        if stage == Stage::NetworkPolicy
            && let Some(number) = content.isolated
        {
            canvas.turn(Spot::Open, Spot::Decided(Decision::deny(number)));
        }
        canvas.turn(Spot::Passed, Spot::Open);
    }
    canvas.finish(content.unselected.map_or(Decision::allow(0), Decision::deny))
}

fn paint_groups<'a>(
    number: u32,
    matching: impl Iterator<Item = &'a FlatRule>,
    ports: &[NamedPort],
) -> Painted {
    let mut canvas = Canvas::new();
    for rule in matching.filter(|rule| rule.stage == Stage::Group) {
        canvas.apply(rule, ports);
    }
    canvas.finish(Decision::deny(number))
}

impl Canvas {
    const fn new() -> Self {
        Self { protocols: BTreeMap::new(), rest: Spot::Open }
    }

    fn apply(&mut self, rule: &FlatRule, named: &[NamedPort]) {
        let spot = match rule.verb {
            Verb::Allow => Spot::Decided(Decision::allow(rule.number)),
            Verb::Deny => Spot::Decided(Decision::deny(rule.number)),
            Verb::Pass => Spot::Passed,
        };
        let Some(ports) = &rule.ports else { return self.turn(Spot::Open, spot) };
        for port in ports {
            match port {
                FlatPort::Range { protocol, first, last } => {
                    self.range(*protocol, *first, *last, spot);
                }
                FlatPort::Named { name, protocol } => {
                    for port in named.iter().filter(|port| {
                        port.name == *name && protocol.is_none_or(|wanted| wanted == port.protocol)
                    }) {
                        self.range(port.protocol.number(), port.number, port.number, spot);
                    }
                }
            }
        }
    }

    /// All that is `from` becomes `to`.
    fn turn(&mut self, from: Spot, to: Spot) {
        let spots = self.protocols.values_mut().flatten().map(|segment| &mut segment.2);
        for spot in spots.chain([&mut self.rest]).filter(|spot| **spot == from) {
            *spot = to;
        }
    }

    /// What is open of a range.
    fn range(&mut self, protocol: u8, first: u16, last: u16, spot: Spot) {
        let rest = self.rest;
        let segments = self.protocols.entry(protocol).or_insert_with(|| vec![(0, u16::MAX, rest)]);
        let open = |segment: &Segment<Spot>| {
            segment.2 == Spot::Open && segment.0 <= last && first <= segment.1
        };
        if !segments.iter().any(open) {
            return;
        }
        let mut cut = Vec::with_capacity(segments.len() + 2);
        for segment in segments.drain(..) {
            if !open(&segment) {
                cut.push(segment);
                continue;
            }
            let (start, end) = (segment.0.max(first), segment.1.min(last));
            if segment.0 < start {
                cut.push((segment.0, start - 1, Spot::Open));
            }
            cut.push((start, end, spot));
            if end < segment.1 {
                cut.push((end + 1, segment.1, Spot::Open));
            }
        }
        *segments = cut;
    }

    fn finish(self, otherwise: Decision) -> Painted {
        let decide = |spot| match spot {
            Spot::Decided(decision) => decision,
            Spot::Open | Spot::Passed => otherwise,
        };
        let protocols = self.protocols.into_iter().map(|(protocol, segments)| {
            let decided =
                segments.into_iter().map(|(first, last, spot)| (first, last, decide(spot)));
            (protocol, decided.collect())
        });
        (protocols.collect(), decide(self.rest))
    }
}

/// Both must allow. A denial is the policy's where both deny. A permission is always the policy's: a rule's number in it
/// opens what is closed by default (instance metadata), and a security group opens nothing there, in EC2 neither.
fn both(policy: Decision, group: Decision) -> Decision {
    if policy.allowed() && !group.allowed() { group } else { policy }
}

fn intersect(policy: Painted, groups: Painted) -> Painted {
    let rest = both(policy.1, groups.1);
    let mut protocols = BTreeMap::new();
    let keys: BTreeSet<u8> = policy.0.keys().chain(groups.0.keys()).copied().collect();
    for protocol in keys {
        let of = |painted: &Painted| {
            painted.0.get(&protocol).cloned().unwrap_or_else(|| vec![(0, u16::MAX, painted.1)])
        };
        let (left, right) = (of(&policy), of(&groups));
        let mut merged = Vec::new();
        let (mut i, mut j) = (0, 0);
        while let (Some(one), Some(other)) = (left.get(i), right.get(j)) {
            let (first, last) = (one.0.max(other.0), one.1.min(other.1));
            merged.push((first, last, both(one.2, other.2)));
            i += usize::from(one.1 == last);
            j += usize::from(other.1 == last);
        }
        protocols.insert(protocol, merged);
    }
    (protocols, rest)
}

/// Neighbours with one decision joined, what is as the rest left out.
fn body((protocols, otherwise): Painted) -> Body {
    let mut ranges = Vec::new();
    for (protocol, segments) in protocols {
        let mut joined: Vec<(u16, u16, Decision)> = Vec::new();
        for (first, last, decision) in segments {
            match joined.last_mut() {
                Some(before)
                    if before.2 == decision && u32::from(before.1) + 1 == u32::from(first) =>
                {
                    before.1 = last;
                }
                _ => joined.push((first, last, decision)),
            }
        }
        let kept = joined.into_iter().filter(|(_, _, decision)| *decision != otherwise);
        ranges.extend(kept.map(|(first, last, decision)| (protocol, first, last, decision)));
    }
    Body { otherwise, ranges }
}
