//! Systematic cases in the shape of cyclonus: one policy, and one part of it different in every case.
//!
//! Nine pods, x, y, z × a, b, c, each serving 80 and 81 over TCP, UDP and SCTP under names such as `serve-80-tcp`.
//! The base policy targets x/a: in from pods b and c of x and y on TCP 80, out to pods a and b of y and z on TCP 80,
//! and out to DNS. A case is a list of cluster states; what a state lets through is worked out by the oracle.
//!
//! Invariants: cases are the same in every run and each has its own name. Objects are manifests, so that the same
//! case runs against the compiler, or as files under a node with real sockets.
//!
//! Deliberately absent: cyclonus' load-balancer cases (Services have tests of their own).

pub mod actions;
pub mod conflicts;
pub mod peers;
pub mod ports;
pub mod upstream;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};

use super::manifest::{expression, labels, namespace, network_policy, pod};
use super::{End, Family, Oracle};
use crate::object::{Diagnostic, Object, Pod, Protocol, parse};
use crate::security_group::SecurityGroups;

/// What a family of cases changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Theme {
    /// Whom the policy selects.
    Target,
    /// All rules at once.
    Rules,
    /// The peers of one rule.
    Peers,
    /// The ports of one rule.
    Ports,
    /// Cyclonus' worked example.
    Example,
    /// Objects that come, change and go.
    Action,
    /// Two policies that disagree.
    Conflict,
    /// The label that every namespace has.
    Namespace,
    /// What Kubernetes' own tests do.
    Upstream,
}

/// One case: the states that the cluster goes through.
#[derive(Debug, Clone)]
pub struct Case {
    /// Its family.
    pub theme: Theme,
    /// Unique among all cases.
    pub name: String,
    /// In order; the difference between two is applied at once.
    pub states: Vec<Vec<Value>>,
}

/// What one connection of a state comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// The source pod: namespace, name.
    pub from: (String, String),
    /// The destination pod.
    pub to: (String, String),
    /// Where it is served.
    pub address: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The destination's port.
    pub port: u16,
    /// Whether it comes about.
    pub allowed: bool,
}

/// The ports that every pod serves, over TCP, UDP and SCTP.
pub const PORTS: [u16; 2] = [80, 81];
/// The protocols, as Kubernetes writes them.
pub const PROTOCOLS: [&str; 3] = ["TCP", "UDP", "SCTP"];
/// The namespaces.
pub const NAMESPACES: [&str; 3] = ["x", "y", "z"];
/// The pods of each namespace.
pub const PODS: [&str; 3] = ["a", "b", "c"];

/// The addresses of a pod, by namespace and name. Besides the nine there are `y-2/a`, `y-2/b`, `x/d` and `w/a`, which
/// some cases create.
pub type Addresses<'a> = &'a dyn Fn(&str, &str) -> Vec<IpAddr>;

/// Addresses for runs without sockets. z/c and y/b share a /28, all of z and y/b a /24: the blocks of the cases cut
/// through namespaces.
#[must_use]
pub fn example_addresses(namespace: &str, name: &str) -> Vec<IpAddr> {
    let host = match (namespace, name) {
        ("x", "a") => [0, 10],
        ("x", "b") => [0, 11],
        ("x", "c") => [0, 12],
        ("x", "d") => [0, 13],
        ("y", "a") => [1, 10],
        ("y", "b") => [2, 36],
        ("y", "c") => [1, 12],
        ("z", "a") => [2, 5],
        ("z", "b") => [2, 20],
        ("z", "c") => [2, 35],
        ("y-2", "a") => [3, 10],
        ("y-2", "b") => [3, 11],
        _ => [4, 10],
    };
    vec![IpAddr::V4(Ipv4Addr::new(10, 0, host[0], host[1]))]
}

/// All 230 cases.
#[must_use]
pub fn cases(addresses: Addresses<'_>) -> Vec<Case> {
    let mut cases = targets(addresses);
    cases.extend(rules(addresses));
    cases.extend(peers::cases(addresses));
    cases.extend(ports::cases(addresses));
    cases.extend(actions::example(addresses));
    cases.extend(actions::cases(addresses));
    cases.extend(conflicts::cases(addresses));
    cases.extend(namespaces(addresses));
    cases.extend(upstream::cases(addresses));
    cases
}

/// Every pod to every pod on every port in every family that they share, as the oracle has it.
///
/// # Errors
///
/// What is wrong with the first object that cannot be read.
pub fn matrix(state: &[Value]) -> Result<Vec<Cell>, Vec<Diagnostic>> {
    let objects: Vec<Object> = state
        .iter()
        .filter_map(|manifest| parse(manifest).transpose())
        .collect::<Result<_, _>>()?;
    let groups = SecurityGroups::default();
    let oracle = Oracle::new(&objects, &groups);
    let mut pods: Vec<&Pod> = Vec::new();
    for object in &objects {
        if let Object::Pod(pod) = object {
            pods.push(pod);
        }
    }
    let mut cells = Vec::new();
    for from in &pods {
        for to in &pods {
            for address in &to.addresses {
                let family = Family::of(*address);
                if from.addresses.iter().any(|own| Family::of(*own) == family) {
                    cells.extend(row(&oracle, from, to, *address));
                }
            }
        }
    }
    Ok(cells)
}

/// One pod to one address of another.
fn row(oracle: &Oracle<'_>, from: &Pod, to: &Pod, address: IpAddr) -> Vec<Cell> {
    let name = |pod: &Pod| (pod.namespace.clone(), pod.name.clone());
    let mut cells = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        for port in PORTS {
            let [source, destination] = [from, to].map(|pod| End::pod(&pod.namespace, &pod.name));
            let family = Family::of(address);
            let number = protocol.number();
            let allowed = oracle.verdict(&source, &destination, number, port, family).allowed();
            cells.push(Cell { from: name(from), to: name(to), address, protocol, port, allowed });
        }
    }
    cells
}

/// The base policy, in the parts that cases replace.
#[derive(Debug, Clone)]
pub(crate) struct Base {
    pub(crate) namespace: &'static str,
    pub(crate) selector: Value,
    pub(crate) ingress: Value,
    pub(crate) egress: Value,
}

impl Base {
    pub(crate) fn new() -> Self {
        let web = json!([{"protocol": "TCP", "port": 80}]);
        let peer = |pods: &[&str], namespaces: &[&str]| {
            json!([{
                "podSelector": expression("pod", "In", pods),
                "namespaceSelector": expression("ns", "In", namespaces),
            }])
        };
        Self {
            namespace: "x",
            selector: labels(&json!({"pod": "a"})),
            ingress: json!([{"ports": web, "from": peer(&["b", "c"], &["x", "y"])}]),
            egress: json!([{"ports": web, "to": peer(&["a", "b"], &["y", "z"])}, dns_rule()]),
        }
    }

    /// The first rule of a direction.
    pub(crate) fn rule(&mut self, direction: Direction) -> &mut Value {
        match direction {
            Direction::Ingress => &mut self.ingress[0],
            Direction::Egress => &mut self.egress[0],
        }
    }

    pub(crate) fn manifest(&self) -> Value {
        let (ingress, egress) = (self.ingress.clone(), self.egress.clone());
        network_policy(self.namespace, "base", &self.selector, Some(ingress), Some(egress))
    }
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    pub(crate) const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    /// The field that holds a rule's peers.
    pub(crate) const fn peers(self) -> &'static str {
        match self {
            Self::Ingress => "from",
            Self::Egress => "to",
        }
    }
}

/// A cluster that a case changes step by step.
pub(crate) struct World<'a> {
    addresses: Addresses<'a>,
    objects: BTreeMap<(String, String, String), Value>,
    states: Vec<Vec<Value>>,
}

impl<'a> World<'a> {
    /// The nine pods, no policy.
    pub(crate) fn new(addresses: Addresses<'a>) -> Self {
        let mut world = Self { addresses, objects: BTreeMap::new(), states: Vec::new() };
        for name in NAMESPACES {
            world.put(namespace(name, &json!({"ns": name})));
            for pod in PODS {
                world.pod(name, pod, &json!({"pod": pod}));
            }
        }
        world
    }

    /// Creates or replaces an object.
    pub(crate) fn put(&mut self, object: Value) {
        let field = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
        let kind = object["kind"].as_str().unwrap_or_default().to_owned();
        self.objects.insert((kind, field("namespace"), field("name")), object);
    }

    /// Creates or replaces a pod; it serves what all pods serve.
    pub(crate) fn pod(&mut self, namespace: &str, name: &str, labels: &Value) {
        let ips = (self.addresses)(namespace, name);
        self.put(pod(namespace, name, labels, &ips, &served()));
    }

    /// Deletes an object; a namespace takes what it holds with it.
    pub(crate) fn delete(&mut self, kind: &str, namespace: &str, name: &str) {
        self.objects.remove(&(kind.to_owned(), namespace.to_owned(), name.to_owned()));
        if kind == "Namespace" {
            self.objects.retain(|(_, namespace, _), _| namespace != name);
        }
    }

    /// The end of a step.
    pub(crate) fn probe(&mut self) {
        self.states.push(self.objects.values().cloned().collect());
    }

    /// The end of the case.
    pub(crate) fn case(self, theme: Theme, name: impl Into<String>) -> Case {
        Case { theme, name: name.into(), states: self.states }
    }
}

/// A case of one step that creates these policies.
pub(crate) fn one_step(
    addresses: Addresses<'_>,
    theme: Theme,
    name: impl Into<String>,
    policies: impl IntoIterator<Item = Value>,
) -> Case {
    let mut world = World::new(addresses);
    policies.into_iter().for_each(|policy| world.put(policy));
    world.probe();
    world.case(theme, name)
}

/// The container ports of every pod.
pub fn served() -> Value {
    let ports = PORTS.iter().flat_map(|port| {
        PROTOCOLS.iter().map(move |protocol| {
            let name = port_name(*port, protocol);
            json!({"name": name, "containerPort": port, "protocol": protocol})
        })
    });
    Value::Array(ports.collect())
}

/// `serve-80-tcp`.
pub(crate) fn port_name(port: u16, protocol: &str) -> String {
    format!("serve-{port}-{}", protocol.to_lowercase())
}

/// Egress to DNS, which every case with egress keeps.
pub(crate) fn dns_rule() -> Value {
    json!({"ports": [{"protocol": "UDP", "port": 53}]})
}

fn targets(addresses: Addresses<'_>) -> Vec<Case> {
    let by_namespace = NAMESPACES.map(|namespace| {
        let policy = Base { namespace, ..Base::new() }.manifest();
        one_step(addresses, Theme::Target, format!("target: namespace {namespace}"), [policy])
    });
    let selectors = [
        ("all", json!({})),
        ("a", labels(&json!({"pod": "a"}))),
        ("in (a, b)", expression("pod", "In", &["a", "b"])),
    ];
    let by_selector = selectors.map(|(what, selector)| {
        let policy = Base { selector, ..Base::new() }.manifest();
        one_step(addresses, Theme::Target, format!("target: pods {what}"), [policy])
    });
    by_namespace.into_iter().chain(by_selector).collect()
}

fn rules(addresses: Addresses<'_>) -> Vec<Case> {
    let mut cases = Vec::new();
    for direction in Direction::BOTH {
        for (what, rules) in [("deny all", json!([])), ("allow all", json!([{}]))] {
            let mut base = Base::new();
            match direction {
                Direction::Ingress => base.ingress = rules,
                Direction::Egress => base.egress = rules,
            }
            let name = format!("rules: {} {what}", direction.name());
            cases.push(one_step(addresses, Theme::Rules, name, [base.manifest()]));
        }
    }
    cases
}

fn namespaces(addresses: Addresses<'_>) -> Vec<Case> {
    let mut cases = Vec::new();
    for direction in Direction::BOTH {
        let mut base = Base::new();
        let selector = labels(&json!({"kubernetes.io/metadata.name": "z"}));
        base.rule(direction)[direction.peers()] = json!([{"namespaceSelector": selector}]);
        let name = format!("namespace: {} by the default label", direction.name());
        cases.push(one_step(addresses, Theme::Namespace, name, [base.manifest()]));
    }
    cases
}
