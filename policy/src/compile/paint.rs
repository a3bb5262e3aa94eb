//! From the rules that match a class, in their order, to what each protocol and port gets.
//!
//! A canvas is every (protocol, port). The first rule to reach a spot decides it; what a Pass reached is open again
//! for the next tier. Policies and security groups are painted apart and then intersected.

use std::collections::BTreeMap;

use veni_ebpf_common::table::Decision;

use super::{
    content::{Content, FlatPort, FlatRule, Groups, NamedPort, Stage, Verb},
    profile::Body,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Decided(Decision),
    Passed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    first: u16,
    last: u16,
    mark: Mark,
}

/// What is decided so far: sorted segments by protocol, and the mark of everything else.
#[derive(Debug, Default)]
struct Canvas {
    protocols: BTreeMap<u8, Vec<Segment>>,
    rest: Option<Mark>,
}

/// A finished canvas: decisions by protocol where they differ from the rest.
type Painted = (BTreeMap<u8, Vec<(u16, u16, Decision)>>, Decision);

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
    let mut canvas = Canvas::default();
    for stage in [Stage::Admin, Stage::NetworkPolicy, Stage::Baseline] {
        for rule in matching.clone().filter(|rule| rule.stage == stage) {
            canvas.apply(rule, ports);
        }
        if stage == Stage::NetworkPolicy
            && let Some(number) = content.isolated
        {
            canvas.all(Mark::Decided(Decision::deny(number)));
        }
        canvas.reopen();
    }
    canvas.finish(Decision::allow(0))
}

fn paint_groups<'a>(
    number: u32,
    matching: impl Iterator<Item = &'a FlatRule>,
    ports: &[NamedPort],
) -> Painted {
    let mut canvas = Canvas::default();
    for rule in matching.filter(|rule| rule.stage == Stage::Group) {
        canvas.apply(rule, ports);
    }
    canvas.finish(Decision::deny(number))
}

impl Canvas {
    fn apply(&mut self, rule: &FlatRule, named: &[NamedPort]) {
        let mark = match rule.verb {
            Verb::Allow => Mark::Decided(Decision::allow(rule.number)),
            Verb::Deny => Mark::Decided(Decision::deny(rule.number)),
            Verb::Pass => Mark::Passed,
        };
        let Some(ports) = &rule.ports else { return self.all(mark) };
        for port in ports {
            match port {
                FlatPort::Range { protocol, first, last } => {
                    self.range(*protocol, *first, *last, mark);
                }
                FlatPort::Named { name, protocol } => {
                    for port in named.iter().filter(|port| {
                        port.name == *name && protocol.is_none_or(|wanted| wanted == port.protocol)
                    }) {
                        self.range(port.protocol.number(), port.number, port.number, mark);
                    }
                }
            }
        }
    }

    /// Everything that is open.
    fn all(&mut self, mark: Mark) {
        self.rest.get_or_insert(mark);
    }

    /// What is open of a range.
    fn range(&mut self, protocol: u8, first: u16, last: u16, mark: Mark) {
        if self.rest.is_some() {
            return;
        }
        let segments = self.protocols.entry(protocol).or_default();
        let mut gaps = Vec::new();
        let mut next = u32::from(first);
        let end = u32::from(last);
        for segment in segments.iter() {
            if u32::from(segment.first) > end {
                break;
            }
            if u32::from(segment.first) > next {
                gaps.push((next, u32::from(segment.first) - 1));
            }
            next = next.max(u32::from(segment.last) + 1);
        }
        if next <= end {
            gaps.push((next, end));
        }
        if gaps.is_empty() {
            return;
        }
        let port = |port: u32| u16::try_from(port).expect("a gap lies between two ports");
        segments.extend(gaps.into_iter().map(|(first, last)| Segment {
            first: port(first),
            last: port(last),
            mark,
        }));
        segments.sort_unstable_by_key(|segment| segment.first);
    }

    /// What was passed is open for the next tier.
    fn reopen(&mut self) {
        for segments in self.protocols.values_mut() {
            segments.retain(|segment| segment.mark != Mark::Passed);
        }
        if self.rest == Some(Mark::Passed) {
            self.rest = None;
        }
    }

    fn finish(self, otherwise: Decision) -> Painted {
        let rest = match self.rest {
            Some(Mark::Decided(decision)) => decision,
            _ => otherwise,
        };
        let protocols = self.protocols.into_iter().map(|(protocol, segments)| {
            let decided = segments.into_iter().filter_map(|segment| match segment.mark {
                Mark::Decided(decision) => Some((segment.first, segment.last, decision)),
                Mark::Passed => None,
            });
            (protocol, decided.collect())
        });
        (protocols.collect(), rest)
    }
}

/// Both must allow. A denial is the policy's where both deny; a permission is the policy's rule's, or the group's
/// where the policy has only its default to say.
fn both(policy: Decision, group: Decision) -> Decision {
    if !policy.allowed() || (group.allowed() && policy.rule() != 0) { policy } else { group }
}

fn intersect(policy: Painted, groups: Painted) -> Painted {
    let rest = both(policy.1, groups.1);
    let mut protocols = BTreeMap::new();
    let mut keys: Vec<u8> = policy.0.keys().chain(groups.0.keys()).copied().collect();
    keys.sort_unstable();
    keys.dedup();
    for protocol in keys {
        let of = |painted: &Painted| {
            filled(painted.0.get(&protocol).map_or(&[][..], Vec::as_slice), painted.1)
        };
        let (left, right) = (of(&policy), of(&groups));
        let mut merged = Vec::new();
        let (mut i, mut j, mut next) = (0, 0, 0_u32);
        while i < left.len() && j < right.len() {
            let last = left[i].1.min(right[j].1);
            let first = u16::try_from(next).expect("the lists end at the last port");
            merged.push((first, last, both(left[i].2, right[j].2)));
            next = u32::from(last) + 1;
            i += usize::from(left[i].1 == last);
            j += usize::from(right[j].1 == last);
        }
        protocols.insert(protocol, merged);
    }
    (protocols, rest)
}

/// The segments with the gaps between them, from port 0 to the last.
fn filled(segments: &[(u16, u16, Decision)], rest: Decision) -> Vec<(u16, u16, Decision)> {
    let mut all = Vec::with_capacity(2 * segments.len() + 1);
    let mut next = 0_u32;
    for (first, last, decision) in segments {
        if u32::from(*first) > next {
            let start = u16::try_from(next).expect("below `first`");
            all.push((start, first - 1, rest));
        }
        all.push((*first, *last, *decision));
        next = u32::from(*last) + 1;
    }
    if let Ok(start) = u16::try_from(next) {
        all.push((start, u16::MAX, rest));
    }
    all
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
