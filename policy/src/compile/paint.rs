//! From the rules that match a class, in their order, to what each protocol and port gets.
//!
//! A lane is a protocol's ports; there is one for every protocol that a rule names, and one for the others. The first rule
//! to reach a spot decides it; what a Pass reached is open again for the next tier. Policies and security groups are painted apart and then intersected.

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

/// What a rule paints: a protocol's ports from the first to the last, or all of every protocol.
#[derive(Debug, Clone, Copy)]
struct Stroke {
    stage: Stage,
    /// `None`: every one.
    protocol: Option<u8>,
    first: u16,
    last: u16,
    spot: Spot,
}

/// One protocol's ports, cut into cells wherever a stroke begins or ends, so that a policy of 30,000 ports is one sweep.
#[derive(Debug)]
struct Lane {
    /// First port of each cell; from 0, without a gap.
    starts: Vec<u16>,
    spots: Vec<Spot>,
    /// For each cell one at or after it, no farther than the next that is open; an open one's is itself. One more at the
    /// end.
    open: Vec<usize>,
}

/// Finished lanes, and every other protocol.
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

/// What these rules say to the node itself, which some of them name, and all of which reach it. What they do not decide
/// NetworkPolicies accept, and security groups are not asked.
pub(crate) fn paint_own_node<'a>(
    content: &Content,
    matching: impl Iterator<Item = &'a FlatRule>,
    ports: &[NamedPort],
) -> Body {
    let by_default = Decision::allow(0);
    let accepted = content.isolated.map(|_| by_default);
    let painted = paint_all(&strokes(matching, ports), accepted, by_default);
    Body { of_node: true, ..body(painted) }
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
    matching: impl Iterator<Item = &'a FlatRule>,
    ports: &[NamedPort],
) -> Painted {
    let strokes = strokes(matching.filter(|rule| rule.stage != Stage::Group), ports);
    let otherwise = content.unselected.map_or(Decision::allow(0), Decision::deny);
    paint_all(&strokes, content.isolated.map(Decision::deny), otherwise)
}

fn paint_groups<'a>(
    number: u32,
    matching: impl Iterator<Item = &'a FlatRule>,
    ports: &[NamedPort],
) -> Painted {
    let strokes = strokes(matching.filter(|rule| rule.stage == Stage::Group), ports);
    paint_all(&strokes, None, Decision::deny(number))
}

fn strokes<'a>(rules: impl Iterator<Item = &'a FlatRule>, named: &[NamedPort]) -> Vec<Stroke> {
    let mut strokes = Vec::new();
    for rule in rules {
        let spot = match rule.verb {
            Verb::Allow => Spot::Decided(Decision::allow(rule.number)),
            Verb::Deny => Spot::Decided(Decision::deny(rule.number)),
            Verb::Pass => Spot::Passed,
        };
        let stage = rule.stage;
        let stroke = |protocol, first, last| Stroke { stage, protocol, first, last, spot };
        let Some(ports) = &rule.ports else {
            strokes.push(stroke(None, 0, u16::MAX));
            continue;
        };
        for port in ports {
            match port {
                FlatPort::Range { protocol, first, last } => {
                    strokes.push(stroke(Some(*protocol), *first, *last));
                }
                FlatPort::Named { name, protocol } => {
                    // They are sorted by name.
                    let from = named.partition_point(|port| port.name < *name);
                    let of_name = named[from..].iter().take_while(|port| port.name == *name);
                    strokes.extend(
                        of_name
                            .filter(|port| protocol.is_none_or(|wanted| wanted == port.protocol))
                            .map(|port| {
                                stroke(Some(port.protocol.number()), port.number, port.number)
                            }),
                    );
                }
            }
        }
    }
    strokes
}

/// `isolated` decides what is open after the NetworkPolicies, `otherwise` what is in the end.
fn paint_all(strokes: &[Stroke], isolated: Option<Decision>, otherwise: Decision) -> Painted {
    let protocols: BTreeSet<u8> = strokes.iter().filter_map(|stroke| stroke.protocol).collect();
    let lane = |protocol: Option<u8>| {
        let reaches = |of: Option<u8>| of.is_none() || of == protocol;
        let own: Vec<Stroke> =
            strokes.iter().filter(|stroke| reaches(stroke.protocol)).copied().collect();
        Lane::new(&own).painted(&own, isolated, otherwise)
    };
    let rest = lane(None).first().map_or(otherwise, |segment| segment.2);
    (protocols.into_iter().map(|protocol| (protocol, lane(Some(protocol)))).collect(), rest)
}

impl Lane {
    fn new(strokes: &[Stroke]) -> Self {
        let ends = |stroke: &Stroke| [Some(stroke.first), stroke.last.checked_add(1)];
        let mut starts: Vec<u16> = strokes.iter().flat_map(ends).flatten().chain([0]).collect();
        starts.sort_unstable();
        starts.dedup();
        let cells = starts.len();
        Self { starts, spots: vec![Spot::Open; cells], open: (0..=cells).collect() }
    }

    /// The strokes are of this lane, and in the order in which their rules are asked.
    fn painted(
        mut self,
        strokes: &[Stroke],
        isolated: Option<Decision>,
        otherwise: Decision,
    ) -> Vec<Segment<Decision>> {
        for stage in [Stage::Admin, Stage::NetworkPolicy, Stage::Baseline, Stage::Group] {
            for stroke in strokes.iter().filter(|stroke| stroke.stage == stage) {
                self.paint(stroke);
            }
            if stage == Stage::NetworkPolicy
                && let Some(decision) = isolated
            {
                self.turn(Spot::Open, Spot::Decided(decision));
            }
            self.turn(Spot::Passed, Spot::Open);
        }
        let lasts = self.starts.iter().skip(1).map(|start| start - 1).chain([u16::MAX]);
        let segments = self.starts.iter().zip(lasts).zip(&self.spots);
        let decided = segments.map(|((first, last), spot)| match spot {
            Spot::Decided(decision) => (*first, last, *decision),
            Spot::Open | Spot::Passed => (*first, last, otherwise),
        });
        decided.collect()
    }

    /// What is open of a stroke's ports.
    fn paint(&mut self, stroke: &Stroke) {
        let cell = |port: u16| self.starts.partition_point(|start| *start < port);
        let end = stroke.last.checked_add(1).map_or(self.spots.len(), cell);
        let mut next = self.next_open(cell(stroke.first));
        while next < end {
            self.spots[next] = stroke.spot;
            self.open[next] = next + 1;
            next = self.next_open(next + 1);
        }
    }

    /// The first open cell at or after this one. Halves the way for those who ask next.
    fn next_open(&mut self, mut cell: usize) -> usize {
        while self.open[cell] != cell {
            self.open[cell] = self.open[self.open[cell]];
            cell = self.open[cell];
        }
        cell
    }

    /// All that is `from` becomes `to`.
    fn turn(&mut self, from: Spot, to: Spot) {
        self.spots.iter_mut().filter(|spot| **spot == from).for_each(|spot| *spot = to);
        for cell in (0..self.spots.len()).rev() {
            self.open[cell] =
                if self.spots[cell] == Spot::Open { cell } else { self.open[cell + 1] };
        }
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
    Body { otherwise, ranges, of_node: false }
}
