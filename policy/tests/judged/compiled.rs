//! The compiler under test: its index, the model of the maps that it writes, and the oracle beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use veni_core::{config::Enforcing, id::SecurityGroupId};
use veni_ebpf_common::table::{Decision, OPEN_SET};
use veni_policy::change::{Direction, PodKey, PodSets, Step};
use veni_policy::index::{Half, Index, Scope};
use veni_policy::object::{Key, Kind, Object, Pod};
use veni_policy::oracle::{By, Chosen, End, Family, Oracle};
use veni_policy::rule::{RuleIndex, RuleKind, RuleRef};
use veni_policy::security_group::{GroupState, SecurityGroups};

use crate::generate::{Change, PORTS, outside};
use crate::model::{Model, Touched};
use crate::support::{number, objects};

/// Protocol and port of every probe; their verdicts are the bits of a mask.
type Probe = (u8, u16);

/// The verdicts of a pod in one direction: a mask for each peer.
type Masks = Vec<u64>;

/// A pod in one direction.
type Side = (PodKey, Direction);

/// See the module.
pub(crate) struct Compiled {
    index: Index,
    scope: Scope,
    enforcing: Enforcing,
    model: Model,
    objects: BTreeMap<Key, Object>,
    groups: SecurityGroups,
    /// The groups that pods keep until those that they choose are known.
    held: BTreeMap<PodKey, Chosen>,
    /// The node's own addresses, to the programs and to the index.
    own: BTreeSet<IpAddr>,
    /// Addresses that the node gave, which count before the status says them.
    attached: BTreeMap<PodKey, Vec<IpAddr>>,
    /// What the tables say now, of the pods that have sets.
    masks: BTreeMap<Side, Masks>,
    probes: Vec<Probe>,
    peers: Vec<IpAddr>,
}

/// What a change does to one side.
struct Passage<'a> {
    old: Option<&'a Masks>,
    new: &'a Masks,
    /// The side gets another set: it changes in one step.
    at_once: bool,
}

impl Compiled {
    /// Nothing yet.
    pub(crate) fn new(scope: Scope) -> Self {
        Self::with_peers(scope, outside(), default_probes())
    }

    /// As [`Compiled::new`], for peers that are no pods' and these probes; at most 64.
    pub(crate) fn with_peers(scope: Scope, peers: Vec<IpAddr>, probes: Vec<Probe>) -> Self {
        assert!(probes.len() <= 64, "a mask has 64 bits");
        Self {
            index: Index::new(scope.clone()),
            scope,
            enforcing: Enforcing::Standard,
            model: Model::default(),
            objects: BTreeMap::new(),
            groups: SecurityGroups::default(),
            held: BTreeMap::new(),
            own: BTreeSet::new(),
            attached: BTreeMap::new(),
            masks: BTreeMap::new(),
            probes,
            peers,
        }
    }

    /// On nodes that enforce policy in this way.
    pub(crate) fn enforcing(mut self, enforcing: Enforcing) -> Self {
        self.index = self.index.enforcing(enforcing);
        self.enforcing = enforcing;
        self
    }

    /// The node of the scope has these addresses from now on; the programs are told before the index changes anything.
    pub(crate) fn own_addresses(&mut self, own: BTreeSet<IpAddr>) {
        self.peers.extend(
            own.iter().filter(|address| !self.peers.contains(address)).copied().collect::<Vec<_>>(),
        );
        self.own.clone_from(&own);
        self.index.own_addresses(own);
        self.look_again();
    }

    /// What the tables say of peers that are others now.
    fn look_again(&mut self) {
        let sides: Vec<Side> = self.masks.keys().cloned().collect();
        for side in sides {
            let masks = self.now(&side, self.model.endpoints[&side.0]);
            self.masks.insert(side, masks);
        }
    }

    /// The class of a peer, and whether it is the node itself that a pod talks to.
    fn whom(&self, direction: Direction, peer: IpAddr) -> (u32, bool) {
        let at_node = direction == Direction::Egress && self.own.contains(&peer);
        (self.model.class_of(peer), at_node)
    }

    /// Applies a batch and checks the tables after every step.
    pub(crate) fn apply(&mut self, batch: &[Change]) -> Result<(), String> {
        for change in batch {
            match change {
                Change::Apply(manifest) => {
                    for object in objects(std::slice::from_ref(manifest)) {
                        if let Object::Pod(pod) = &object
                            && (pod.finished || pod.host_network)
                        {
                            self.detach(&key(pod));
                        }
                        self.objects.insert(object.key(), object.clone());
                        self.index.apply(object);
                    }
                }
                Change::Delete(manifest) => {
                    for object in objects(std::slice::from_ref(manifest)) {
                        self.objects.remove(&object.key());
                        self.index.delete(&object.key());
                    }
                }
                Change::Attach(pod, addresses) => self.attach(pod, addresses),
                Change::Detach(pod) => self.detach(pod),
                Change::Groups(groups) => self.resolve(groups),
            }
        }
        self.carry_out()
    }

    /// On a node somebody resolves, who never takes back what he knew.
    fn resolve(&mut self, groups: &SecurityGroups) {
        let before = std::mem::replace(&mut self.groups, groups.clone());
        if matches!(self.scope, Scope::Node(_)) {
            let known = |groups: &SecurityGroups, id: &SecurityGroupId| {
                !matches!(groups.state(id), None | Some(GroupState::Pending { .. }))
            };
            for (id, group) in before.groups {
                if !known(&self.groups, &id) {
                    self.groups.groups.insert(id, group);
                }
            }
        }
        self.index.set_security_groups(self.groups.clone());
    }

    fn carry_out(&mut self) -> Result<(), String> {
        let change = self.index.change();
        if !change.refused.is_empty() {
            return Err(format!("refused: {:?}", change.refused));
        }
        let steps = &change.steps;
        self.learn_peers();
        let objects = self.effective();
        let groups = self.groups.clone();
        let held = self.held.clone();
        let attached = self.attached.clone();
        let own = self.own.clone();
        let scope = self.scope.clone();
        let mut oracle =
            Oracle::new(&objects, &groups).enforcing(self.enforcing).attached(&attached);
        if let Scope::Node(node) = &scope {
            oracle = oracle.holding(&held).at_node(node, &own);
        }
        let ours = |pod: &&Pod| match &self.scope {
            Scope::All => true,
            Scope::Node(node) => pod.node.as_ref() == Some(node),
        };
        let pods: Vec<&Pod> = objects.iter().filter_map(subject).filter(ours).collect();
        let expected = self.expected(&oracle, &pods);
        self.replay(steps, &expected).map_err(|error| format!("{error}\n{}", lines(steps)))?;
        let live: BTreeSet<PodKey> = pods.iter().map(|pod| key(pod)).collect();
        self.model.endpoints.retain(|pod, _| live.contains(pod));
        self.masks.retain(|(pod, _), _| live.contains(pod));
        self.held.retain(|pod, _| live.contains(pod));
        for pod in &pods {
            let settled = oracle.settled(pod);
            let waits = settled.is_none() && matches!(self.scope, Scope::Node(_));
            let awaited = self.index.awaited_groups(&key(pod));
            if waits == awaited.is_empty() {
                return Err(format!("{} waits for {awaited:?}", key(pod)));
            }
            if waits && !held.contains_key(&key(pod)) {
                let sets = self.model.endpoints.get(&key(pod));
                if sets.is_some() {
                    return Err(format!("{} has {sets:?} before its groups are known", key(pod)));
                }
                continue;
            }
            self.compare(&oracle, pod)?;
            self.held.extend(settled.map(|settled| (key(pod), settled)));
        }
        if let [pod, ..] = pods.as_slice() {
            self.compare_explained(&oracle, pod)?;
        }
        Ok(())
    }

    /// Only a pod that runs, or that nobody knows yet, has addresses from its node.
    fn attach(&mut self, pod: &PodKey, addresses: &[IpAddr]) {
        let object = self.objects.get(&Key::new(Kind::Pod, &pod.namespace, &pod.name));
        if object.is_none_or(|object| subject(object).is_some()) {
            self.attached.insert(pod.clone(), addresses.to_vec());
            self.index.attach(pod.clone(), addresses.to_vec());
        }
    }

    fn detach(&mut self, pod: &PodKey) {
        if self.attached.remove(pod).is_some() {
            self.index.detach(pod);
        }
    }

    /// The objects, pods with the addresses that count.
    fn effective(&self) -> Vec<Object> {
        let effective = |object: &Object| match object {
            Object::Pod(pod) if self.attached.contains_key(&key(pod)) => {
                Object::Pod(Pod { addresses: self.attached[&key(pod)].clone(), ..pod.clone() })
            }
            object => object.clone(),
        };
        self.objects.values().map(effective).collect()
    }

    /// Every address that a pod ever had stays a peer.
    fn learn_peers(&mut self) {
        let mut added = false;
        for object in self.effective() {
            let Object::Pod(pod) = object else { continue };
            for address in &pod.addresses {
                if !self.peers.contains(address) {
                    self.peers.push(*address);
                    added = true;
                }
            }
        }
        if added {
            self.look_again();
        }
    }

    fn expected(&self, oracle: &Oracle<'_>, pods: &[&Pod]) -> BTreeMap<Side, Masks> {
        let mut expected = BTreeMap::new();
        for pod in pods {
            for direction in Direction::BOTH {
                let mask = |peer: &IpAddr| {
                    if pod.addresses.contains(peer) {
                        return u64::MAX;
                    }
                    self.mask(|(protocol, port)| {
                        oracle.judge(direction, pod, *peer, protocol, port).allowed
                    })
                };
                expected.insert((key(pod), direction), self.peers.iter().map(mask).collect());
            }
        }
        expected
    }

    fn mask(&self, allowed: impl Fn(Probe) -> bool) -> u64 {
        let bits = self.probes.iter().enumerate();
        bits.fold(0, |mask, (bit, probe)| mask | u64::from(allowed(*probe)) << bit)
    }

    /// What the tables say now about a side.
    fn now(&self, (_, direction): &Side, sets: PodSets) -> Masks {
        let class = |peer: &IpAddr| {
            let whom = self.whom(*direction, *peer);
            self.mask(|(protocol, port)| {
                self.model.judge(sets, *direction, whom, protocol, port).allowed()
            })
        };
        self.peers.iter().map(class).collect()
    }

    /// Carries out the steps; after each, what it touched is of before or of after.
    fn replay(&mut self, steps: &[Step], expected: &BTreeMap<Side, Masks>) -> Result<(), String> {
        let old = self.masks.clone();
        let before = self.model.endpoints.clone();
        let mut after = before.clone();
        for step in steps {
            if let Step::Endpoint { pod, sets } = step {
                after.insert(pod.clone(), *sets);
            }
        }
        let mut flipped: BTreeSet<PodKey> = BTreeSet::new();
        let mut judged_before = None;
        for (number, step) in steps.iter().enumerate() {
            let touched =
                self.model.step(step).map_err(|error| format!("step {number}: {error}"))?;
            if let Step::Epoch = step {
                judged_before = None;
            }
            if let Touched::Pod(pod) = &touched {
                flipped.insert(pod.clone());
            }
            for (side, sets) in self.touched_sides(&touched) {
                let Some(new) = expected.get(&side) else { continue };
                let old_set = before.get(&side.0).map(|sets| sets.of(side.1));
                let new_set = after.get(&side.0).map(|sets| sets.of(side.1));
                let passage = Passage { old: old.get(&side), new, at_once: old_set != new_set };
                let now = self.now(&side, sets);
                let last = self.masks.get(&side);
                let result = passage.check(&now, last, flipped.contains(&side.0));
                result.map_err(|peer| {
                    let address = self.peers[peer];
                    format!("step {number} {step:?}: {side:?} on {address}: a mixture")
                })?;
                if self.masks.get(&side).is_some_and(|last| *last != now) {
                    judged_before = Some(side.clone());
                }
                self.masks.insert(side, now);
            }
        }
        match judged_before {
            None => Ok(()),
            Some(side) => Err(format!("{side:?} changed, and its flows are not judged again")),
        }
    }

    fn touched_sides(&self, touched: &Touched) -> Vec<(Side, PodSets)> {
        let sides = self.model.endpoints.iter().flat_map(|(pod, sets)| {
            Direction::BOTH.map(|direction| ((pod.clone(), direction), *sets))
        });
        let meets = |((pod, direction), sets): &(Side, PodSets)| match touched {
            Touched::Nothing => false,
            Touched::Peer(address) => self.peers.contains(address),
            Touched::Peers(net) => self.peers.iter().any(|peer| net.contains(peer)),
            Touched::Set(set) => sets.of(*direction) == *set,
            Touched::Pod(touched) => touched == pod,
            Touched::Everything => true,
        };
        sides.filter(meets).collect()
    }

    /// The tables against the oracle, the deciding rule too.
    fn compare(&self, oracle: &Oracle<'_>, pod: &Pod) -> Result<(), String> {
        let key = key(pod);
        let Some(sets) = self.model.endpoints.get(&key) else {
            return Err(format!("{key} has no sets"));
        };
        for direction in Direction::BOTH {
            if !self.model.is_complete(sets.of(direction)) {
                return Err(format!("{key} {direction}: the set has no entry for any class"));
            }
            for peer in self.peers.iter().filter(|peer| !pod.addresses.contains(peer)) {
                let whom = self.whom(direction, *peer);
                for (protocol, port) in &self.probes {
                    let decision = self.model.judge(*sets, direction, whom, *protocol, *port);
                    let half = oracle.judge(direction, pod, *peer, *protocol, *port);
                    let rule = self.index.rules().get(decision.rule());
                    if decision.allowed() != half.allowed || !names(decision, rule, &half.rules) {
                        return Err(format!(
                            "{key} {direction} on {peer}, protocol {protocol} port {port}: the \
                             tables say {} by {rule:?}, the oracle {} by {:?}",
                            decision.allowed(),
                            half.allowed,
                            half.rules,
                        ));
                    }
                }
            }
        }
        Ok(())
    }

    /// What the index explains, both sides, of connections between a pod and every peer.
    fn compare_explained(&self, oracle: &Oracle<'_>, pod: &Pod) -> Result<(), String> {
        for own in &pod.addresses {
            for peer in self.peers.iter().filter(|peer| peer.is_ipv4() == own.is_ipv4()) {
                for (from, to) in [(own, peer), (peer, own)] {
                    let (protocol, port) = self.probes[self.probes.len() / 2];
                    let said = self.index.judge(*from, *to, protocol, port);
                    let family = Family::of(*own);
                    let ends = [*from, *to].map(End::Address);
                    let verdict = oracle.verdict(&ends[0], &ends[1], protocol, port, family);
                    // A pod of another node has no set here: its side is left open.
                    let ours =
                        |half: &Half, right: bool| half.set == OPEN_SET || half.allowed == right;
                    let right = match self.scope {
                        Scope::All => said.allowed == verdict.allowed(),
                        Scope::Node(_) => {
                            ours(&said.egress, verdict.egress.allowed)
                                && ours(&said.ingress, verdict.ingress.allowed)
                        }
                    };
                    if !right {
                        return Err(format!("explained {said:?}, the oracle {verdict:?}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Everything given at once to an index that knew nothing.
    pub(crate) fn at_once(
        &mut self,
        objects: &[Object],
        groups: &SecurityGroups,
    ) -> Result<(), String> {
        self.objects = objects.iter().map(|object| (object.key(), object.clone())).collect();
        self.groups = groups.clone();
        self.index.set_security_groups(groups.clone());
        self.index.reset(objects.to_vec());
        self.carry_out()
    }

    /// The tables after all changes against those of an index that is given everything at once.
    pub(crate) fn compare_with_fresh(&self) -> Result<(), String> {
        let mut fresh =
            Self::with_peers(self.scope.clone(), self.peers.clone(), self.probes.clone())
                .enforcing(self.enforcing);
        fresh.own_addresses(self.own.clone());
        fresh.attached = self.attached.clone();
        for (pod, addresses) in &self.attached {
            fresh.index.attach(pod.clone(), addresses.clone());
        }
        let objects: Vec<Object> = self.objects.values().cloned().collect();
        fresh.at_once(&objects, &self.groups).map_err(|error| format!("fresh: {error}"))?;
        // Those that wait have what they had; who knows only the present has nothing for them.
        let waits = |pod: &PodKey| !self.index.awaited_groups(pod).is_empty();
        let settled = |masks: &BTreeMap<Side, Masks>| -> BTreeMap<Side, Masks> {
            masks.clone().into_iter().filter(|((pod, _), _)| !waits(pod)).collect()
        };
        if settled(&fresh.masks) != settled(&self.masks) {
            return Err("the tables depend on the way to them".to_owned());
        }
        let sets: Vec<PodSets> = self.model.endpoints.values().copied().collect();
        let unused = self.model.unused(&sets);
        if unused.is_empty() { Ok(()) } else { Err(format!("left behind: {unused:?}")) }
    }
}

impl Passage<'_> {
    /// The first peer whose verdicts are of neither before nor after, or fall back.
    fn check(&self, now: &Masks, last: Option<&Masks>, flipped: bool) -> Result<(), usize> {
        for (peer, mask) in now.iter().enumerate() {
            let new = self.new[peer];
            let right = match self.old {
                None => *mask | own(new) == new,
                Some(_) if self.at_once && flipped => *mask | own(new) == new,
                Some(old) if self.at_once => *mask == old[peer],
                Some(old) => {
                    let strays = (mask ^ old[peer]) & (mask ^ new);
                    let reached = last.map_or(0, |last| !(last[peer] ^ new));
                    new == u64::MAX || (strays == 0 && reached & (mask ^ new) == 0)
                }
            };
            if !right {
                return Err(peer);
            }
        }
        Ok(())
    }
}

/// All bits when the peer is the pod itself, which the programs let through whatever the tables say.
const fn own(new: u64) -> u64 {
    if new == u64::MAX { u64::MAX } else { 0 }
}

/// Steps, one in a line.
fn lines(steps: &[Step]) -> String {
    steps.iter().enumerate().map(|(number, step)| format!("  {number} {step:?}\n")).collect()
}

fn default_probes() -> Vec<Probe> {
    let mut probes = vec![
        (number("ICMP"), 0x0800),
        (number("ICMP"), 0x0801),
        (number("ICMP"), 0x0302),
        (number("ICMPv6"), 0x8000),
        (47, 0),
    ];
    for protocol in ["TCP", "UDP", "SCTP"] {
        probes.extend(PORTS.map(|port| (number(protocol), port)));
    }
    probes
}

fn subject(object: &Object) -> Option<&Pod> {
    match object {
        Object::Pod(pod) if !pod.finished && !pod.host_network => Some(pod),
        _ => None,
    }
}

fn key(pod: &Pod) -> PodKey {
    PodKey::new(&pod.namespace, &pod.name)
}

/// Whether the rule that the tables name is one that the oracle would name.
fn names(decision: Decision, rule: Option<&RuleRef>, candidates: &BTreeSet<By>) -> bool {
    let Some(rule) = rule else {
        return decision.rule() == 0 && candidates.contains(&By::Default);
    };
    candidates.iter().any(|by| match (rule.kind, by) {
        (RuleKind::NetworkPolicy, By::NetworkPolicy { namespace, name, rule: index }) => {
            let place = index.map_or(RuleIndex::None, place);
            rule.namespace == *namespace && rule.name == *name && rule.rule == place
        }
        (RuleKind::ClusterNetworkPolicy, By::ClusterNetworkPolicy { name, rule: index }) => {
            rule.name == *name && rule.rule == place(*index)
        }
        // A rule that is named opens what is closed by default, and a group's does not: it is never named.
        (RuleKind::Unselected, By::Strict) => true,
        (RuleKind::SecurityGroup, By::SecurityGroup { rule: None, .. } | By::InvalidGroups) => {
            rule.rule == RuleIndex::None
        }
        _ => false,
    })
}

fn place(index: usize) -> RuleIndex {
    RuleIndex::Index(u32::try_from(index).expect("few rules"))
}
