//! ClusterNetworkPolicy, `policy.networking.k8s.io/v1alpha2` (network-policy-api v0.2.0).

use ipnet::IpNet;

use super::{
    Diagnostic, Protocol, Selector,
    network_policy::{PolicyPort, PortMatch, check_port_name, read_cidr},
    reader::{Read, Reader},
};

/// A ClusterNetworkPolicy, closed where it was invalid.
///
/// An Accept rule with a peer that is not known matches nothing, a Deny or Pass rule with one denies everything, as the
/// API says; so with anything else invalid in a rule. With an invalid `subject`, `tier` or `priority` it holds for
/// every pod, first in the Admin tier; its Accept rules match nothing and its Pass rules deny.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterNetworkPolicy {
    /// Its name.
    pub name: String,
    /// Before or after NetworkPolicies.
    pub tier: Tier,
    /// 0 to 1000, lower first; ties go by name.
    pub priority: u16,
    /// The pods that it holds for. Host-network pods are never.
    pub subject: Subject,
    /// Rules, first match first. Indices are those of the manifest.
    pub ingress: Vec<ClusterRule>,
    /// As `ingress`, for egress.
    pub egress: Vec<ClusterRule>,
    /// What was wrong and is closed.
    pub diagnostics: Vec<Diagnostic>,
}

/// When a ClusterNetworkPolicy is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tier {
    /// Before NetworkPolicies.
    Admin,
    /// After them, for pods that they leave open.
    Baseline,
}

/// Pods: those of the namespaces, with the labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject {
    /// Of these namespaces.
    pub namespaces: Selector,
    /// With these labels (everything for a subject or peer `namespaces`).
    pub pods: Selector,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// Allows, finally.
    Accept,
    /// Denies, finally.
    Deny,
    /// Skips the rest of the tier.
    Pass,
}

/// A rule: peers **and** protocols.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClusterRule {
    /// Its name, if any.
    pub name: Option<String>,
    /// What it does.
    pub action: Action,
    /// Any of these; empty: no peer.
    pub peers: Vec<ClusterPeer>,
    /// Any of these; `None`: every protocol and port; `Some` and empty: none.
    pub protocols: Option<Vec<ClusterProtocol>>,
}

/// A peer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ClusterPeer {
    /// Every address: what an invalid Deny or Pass rule is turned into.
    Everything,
    /// Pods. Host-network pods never.
    Pods(Subject),
    /// Addresses of nodes with these labels (egress only).
    Nodes(Selector),
    /// Addresses in any of these, pods' and nodes' included (egress only).
    Networks(Vec<IpNet>),
}

/// Protocol and ports.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClusterProtocol {
    /// Ports of a protocol.
    Ports(PolicyPort),
    /// The port of that name on the destination pod, whatever its protocol.
    Named(String),
}

#[derive(Clone, Copy)]
enum Direction {
    Ingress,
    Egress,
}

impl ClusterRule {
    /// What stands for a rule that cannot be read.
    fn closed(name: Option<String>, action: Option<Action>) -> Self {
        let (action, peers) = match action {
            Some(Action::Accept) => (Action::Accept, Vec::new()),
            _ => (Action::Deny, vec![ClusterPeer::Everything]),
        };
        Self { name, action, peers, protocols: None }
    }
}

impl ClusterNetworkPolicy {
    pub(super) fn read(root: &Reader<'_>) -> Self {
        let spec = root.get("spec");
        let known = ["tier", "priority", "subject", "ingress", "egress"];
        let mut closed = root.noted(spec.only(&known)).is_none();
        let tier = root.noted(read_tier(&spec.get("tier")));
        let priority = root.noted(read_priority(&spec.get("priority")));
        let subject = root.noted(read_subject(&spec.get("subject")));
        closed |= tier.is_none() || priority.is_none() || subject.is_none();
        let everyone =
            || Subject { namespaces: Selector::everything(), pods: Selector::everything() };
        let rules = |field: &str, direction| {
            let mut rules = read_rules(root, &spec.get(field), direction);
            if closed {
                rules.iter_mut().for_each(close);
            }
            rules
        };
        Self {
            name: root.key().name.clone(),
            tier: tier.filter(|_| !closed).unwrap_or(Tier::Admin),
            priority: priority.filter(|_| !closed).unwrap_or(0),
            subject: subject.unwrap_or_else(everyone),
            ingress: rules("ingress", Direction::Ingress),
            egress: rules("egress", Direction::Egress),
            diagnostics: root.taken(),
        }
    }
}

/// A rule of a policy whose head is invalid.
fn close(rule: &mut ClusterRule) {
    match rule.action {
        Action::Accept => rule.peers.clear(),
        Action::Pass => rule.action = Action::Deny,
        Action::Deny => {}
    }
}

fn read_tier(at: &Reader<'_>) -> Read<Tier> {
    match at.text()? {
        Some("Admin") => Ok(Tier::Admin),
        Some("Baseline") => Ok(Tier::Baseline),
        _ => Err(at.invalid(format!("{} is neither \"Admin\" nor \"Baseline\"", at.shown()))),
    }
}

fn read_priority(at: &Reader<'_>) -> Read<u16> {
    let priority = at.number(0, 1000)?.ok_or_else(|| at.invalid("is missing"))?;
    Ok(u16::try_from(priority).expect("at most 1000"))
}

/// Exactly one of `namespaces` and `pods`.
fn read_subject(at: &Reader<'_>) -> Read<Subject> {
    match one_field(at)? {
        "namespaces" => Ok(Subject {
            namespaces: Selector::read(&at.get("namespaces"))?,
            pods: Selector::everything(),
        }),
        "pods" => read_pods(&at.get("pods")),
        other => Err(at.get(other).invalid("is not a known kind of subject")),
    }
}

fn read_pods(at: &Reader<'_>) -> Read<Subject> {
    at.only(&["namespaceSelector", "podSelector"])?;
    Ok(Subject {
        namespaces: Selector::read(&at.get("namespaceSelector"))?,
        pods: Selector::read(&at.get("podSelector"))?,
    })
}

fn one_field<'a>(at: &Reader<'a>) -> Read<&'a str> {
    match at.fields()?.as_slice() {
        [field] => Ok(field),
        fields => Err(at.invalid(format!("needs exactly one field, has {}", fields.len()))),
    }
}

fn read_rules(root: &Reader<'_>, at: &Reader<'_>, direction: Direction) -> Vec<ClusterRule> {
    let Some(items) = root.noted(at.list()) else {
        return vec![ClusterRule::closed(None, None)];
    };
    items.iter().map(|item| read_rule(root, item, direction)).collect()
}

fn read_rule(root: &Reader<'_>, at: &Reader<'_>, direction: Direction) -> ClusterRule {
    let action = root.noted(read_action(&at.get("action")));
    let name = root.noted(at.get("name").string()).flatten();
    let peers_field = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    let known = ["name", "action", peers_field, "protocols"];
    let protocols = root.noted(at.only(&known).and_then(|()| read_protocols(at)));
    let peers = root.noted(read_peers(&at.get(peers_field), direction));
    match (action, peers, protocols) {
        (Some(action), Some(peers), Some(protocols)) => {
            ClusterRule { name, action, peers, protocols }
        }
        _ => ClusterRule::closed(name, action),
    }
}

fn read_action(at: &Reader<'_>) -> Read<Action> {
    match at.text()? {
        Some("Accept") => Ok(Action::Accept),
        Some("Deny") => Ok(Action::Deny),
        Some("Pass") => Ok(Action::Pass),
        _ => {
            let shown = at.shown();
            Err(at.invalid(format!(
                "{shown} is none of \"Accept\", \"Deny\", \"Pass\"; the rule denies everything"
            )))
        }
    }
}

/// The peers. One that is not known spoils the rule.
fn read_peers(at: &Reader<'_>, direction: Direction) -> Read<Vec<ClusterPeer>> {
    let items = at.list()?;
    if items.is_empty() {
        return Err(at.invalid("needs at least one peer"));
    }
    items.iter().map(|item| read_peer(item, direction)).collect()
}

fn read_peer(at: &Reader<'_>, direction: Direction) -> Read<ClusterPeer> {
    let field = one_field(at)?;
    let value = at.get(field);
    match (field, direction) {
        ("namespaces" | "pods", _) => read_subject(at).map(ClusterPeer::Pods),
        ("nodes", Direction::Egress) => Selector::read(&value).map(ClusterPeer::Nodes),
        ("networks", Direction::Egress) => {
            let networks = value.list()?;
            if networks.is_empty() {
                return Err(value.invalid("needs at least one network"));
            }
            networks.iter().map(read_cidr).collect::<Read<_>>().map(ClusterPeer::Networks)
        }
        ("domainNames", Direction::Egress) => {
            Err(value.invalid("domain names are not enforced yet; the peer fails closed"))
        }
        _ => Err(value.invalid("is not a known kind of peer; it fails closed")),
    }
}

fn read_protocols(rule: &Reader<'_>) -> Read<Option<Vec<ClusterProtocol>>> {
    let at = rule.get("protocols");
    let Some(items) = at.items()? else { return Ok(None) };
    if items.is_empty() {
        return Err(at.invalid("needs at least one protocol; leave it out for all of them"));
    }
    items.iter().map(read_protocol).collect::<Read<_>>().map(Some)
}

fn read_protocol(at: &Reader<'_>) -> Read<ClusterProtocol> {
    let field = one_field(at)?;
    let value = at.get(field);
    let protocol = match field {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        "destinationNamedPort" => {
            let name = value.text()?.unwrap_or_default();
            check_port_name(name, &value)?;
            return Ok(ClusterProtocol::Named(name.to_owned()));
        }
        _ => return Err(value.invalid("is not a known protocol")),
    };
    value.only(&["destinationPort"])?;
    let port = read_port(&value.get("destinationPort"))?;
    Ok(ClusterProtocol::Ports(PolicyPort { protocol, port }))
}

/// The API has no form for "all ports of a protocol": an empty matcher is an unknown one (`MinProperties=1`).
fn read_port(at: &Reader<'_>) -> Read<PortMatch> {
    match one_field(at)? {
        "number" => {
            let port = at.get("number").port()?.unwrap_or_default();
            Ok(PortMatch::Range(port, port))
        }
        "range" => {
            let range = at.get("range");
            range.only(&["start", "end"])?;
            match (range.get("start").port()?, range.get("end").port()?) {
                (Some(first), Some(last)) if first <= last => Ok(PortMatch::Range(first, last)),
                _ => Err(range.invalid("needs a start and an end that is not below it")),
            }
        }
        other => Err(at.get(other).invalid("is not a known way to name ports")),
    }
}
