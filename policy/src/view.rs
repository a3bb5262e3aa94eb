//! Verdicts as documents: who may talk to whom, and which rule says so.
//!
//! What `venictl policy` prints from manifests and what the daemon serves of its index is made here, so that both say
//! the same. Judged are new connections between pods' own addresses. Deliberately absent: the exemption of what the node
//! makes, which depends on where a packet comes from rather than on addresses; Services, whose back ends policy sees.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use veni_core::wire::inspect::policy::{
    DecidedBy, Decision, DefaultVerdict, Diagnostic, Family, Flow, Flows, GroupVerdicts,
};

use crate::object::{Key, Kind, Pod, Protocol};
pub use compiled::{decision, explanation};
pub use name::{End, NoEnd, NoFilter, PodFilter};

mod compiled;
mod name;

/// Who judges.
pub trait Judge {
    /// The verdict on a new connection between two ends that are not the same. `port` is the destination's, in host
    /// order; for ICMP and ICMPv6 type << 8 | code.
    fn judge(&self, from: Party<'_>, to: Party<'_>, protocol: u8, port: u16) -> Judgement;

    /// Where a pod's packet to the address goes instead; `None` when it is no front end.
    fn translate(&self, from: &Pod, to: IpAddr, protocol: u8, port: u16) -> Option<Translated> {
        let _ = (from, to, protocol, port);
        None
    }

    /// Why the programs refuse a pod's packet to the address before any rule is asked: their word for it.
    fn refuses(&self, from: &Pod, to: IpAddr, protocol: u8, port: u16) -> Option<&'static str> {
        let _ = (from, to, protocol, port);
        None
    }
}

/// The back ends of a front end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Translated {
    /// Whose front end it is: `namespace/name`.
    pub service: String,
    /// Addresses and ports; none: the packet is refused.
    pub back_ends: Vec<(IpAddr, u16)>,
}

/// A verdict of both ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// Whether both allow it.
    pub allowed: bool,
    /// What says so.
    pub decided_by: DecidedBy,
    /// What the security groups of the two say by themselves, where they have some.
    pub security_groups: Option<GroupVerdicts>,
}

/// One end of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Party<'a> {
    /// The pod, unless it is somebody else's address.
    pub pod: Option<&'a Pod>,
    /// Its address.
    pub address: IpAddr,
}

/// A question about a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Its source.
    pub from: End,
    /// Its destination.
    pub to: End,
    /// IP protocol number.
    pub protocol: u8,
    /// The destination's port.
    pub port: u16,
}

/// A question without an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unanswerable {
    /// There is no such pod.
    #[error("there is no pod {0}")]
    NoPod(End),
    /// There is no pod in it.
    #[error("there is no pod in the namespace {0}")]
    NoNamespace(String),
    /// It has nowhere to send from or to.
    #[error("{pod} {why}, so nothing can be sent from it or to it")]
    NotLive {
        /// Which pod.
        pod: End,
        /// What it is or lacks.
        why: &'static str,
    },
    /// More than may be worked out where pods wait for answers, too.
    #[error(
        "the matrix has {flows} flows, at most {most} are worked out at once: narrow it with `from` and `to`"
    )]
    TooMany {
        /// As many as there would be, at least.
        flows: usize,
        /// As many as there may be.
        most: usize,
    },
    /// One has IPv4 only, the other IPv6.
    #[error("{0} and {1} have no address family in common")]
    NoFamily(End, End),
    /// ICMP between ends that have no IPv4 in common.
    #[error("ICMP is IPv4's, and {0} and {1} have no IPv4 addresses in common: IPv6 has ICMPv6")]
    OfIpv4(End, End),
    /// ICMPv6 between ends that have no IPv6 in common.
    #[error("ICMPv6 is IPv6's, and {0} and {1} have no IPv6 addresses in common: IPv4 has ICMP")]
    OfIpv6(End, End),
}

/// Pods, and who judges them.
#[derive(Debug)]
pub struct View<'a, J> {
    pods: BTreeMap<(&'a str, &'a str), &'a Pod>,
    judge: &'a J,
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

// === impl View ===

impl<'a, J: Judge> View<'a, J> {
    /// A view of these pods.
    pub fn new(pods: impl IntoIterator<Item = &'a Pod>, judge: &'a J) -> Self {
        let named = |pod: &'a Pod| ((pod.namespace.as_str(), pod.name.as_str()), pod);
        Self { pods: pods.into_iter().map(named).collect(), judge }
    }

    /// Every pod to every pod, itself included, on each of the destination's container ports, in each family that
    /// both have.
    ///
    /// # Errors
    /// When a filter names a pod or namespace that does not exist.
    pub fn matrix(
        &self,
        from: Option<&PodFilter>,
        to: Option<&PodFilter>,
    ) -> Result<Flows, Unanswerable> {
        let sources = self.select(from)?;
        let destinations = self.select(to)?;
        let mut flows = Vec::new();
        for from in sources.iter().copied().filter(|pod| is_present(pod)) {
            for to in destinations.iter().copied().filter(|pod| is_present(pod)) {
                for (protocol, port) in served(to) {
                    flows.extend(self.between(from, to, protocol.number(), port));
                }
            }
        }
        Ok(Flows { flows, diagnostics: self.diagnostics(), ..Flows::default() })
    }

    /// As [`View::matrix`], if it has at most so many flows of one family.
    ///
    /// # Errors
    /// As [`View::matrix`], and when it has more.
    pub fn bounded_matrix(
        &self,
        from: Option<&PodFilter>,
        to: Option<&PodFilter>,
        most: usize,
    ) -> Result<Flows, Unanswerable> {
        let ports: usize = self.select(to)?.iter().map(|pod| served(pod).len()).sum();
        let flows = self.select(from)?.len().saturating_mul(ports);
        if flows > most {
            return Err(Unanswerable::TooMany { flows, most });
        }
        self.matrix(from, to)
    }

    /// One connection, in each family that both ends have.
    ///
    /// # Errors
    /// When an end does not exist or has no address.
    pub fn check(&self, question: &Question) -> Result<Flows, Unanswerable> {
        let Question { from, to, protocol, port } = question;
        let flows: Vec<_> = match (self.find(from)?, self.find(to)?) {
            (Ok(source), Ok(destination)) => {
                self.between(source, destination, *protocol, *port).collect()
            }
            (_, Err(address)) | (Err(address), _) if !carries(Family::of(address), *protocol) => {
                Vec::new()
            }
            (Ok(source), Err(address)) => address_of(source, Family::of(address))
                .map(|own| self.outwards(source, own, address, *protocol, *port))
                .unwrap_or_default(),
            (Err(address), Ok(destination)) => address_of(destination, Family::of(address))
                .map(|own| self.flow(outside(address), of_pod(destination, own), *protocol, *port))
                .into_iter()
                .collect(),
            (Err(source), Err(destination)) if source.is_ipv4() == destination.is_ipv4() => {
                vec![self.flow(outside(source), outside(destination), *protocol, *port)]
            }
            (Err(_), Err(_)) => Vec::new(),
        };
        if flows.is_empty() {
            return Err(unanswerable(from.clone(), to.clone(), *protocol));
        }
        Ok(Flows { flows, ..Flows::default() })
    }

    /// A pod.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<&'a Pod, Unanswerable> {
        let absent = || {
            Unanswerable::NoPod(End::Pod { namespace: namespace.to_owned(), name: name.to_owned() })
        };
        self.pods.get(&(namespace, name)).copied().ok_or_else(absent)
    }

    fn select(&self, filter: Option<&PodFilter>) -> Result<Vec<&'a Pod>, Unanswerable> {
        match filter {
            None => Ok(self.pods.values().copied().collect()),
            Some(PodFilter::Pod { namespace, name }) => Ok(vec![self.pod(namespace, name)?]),
            Some(PodFilter::Namespace(namespace)) => {
                let inside = |pod: &&Pod| pod.namespace == *namespace;
                let found: Vec<_> = self.pods.values().copied().filter(inside).collect();
                if found.is_empty() {
                    return Err(Unanswerable::NoNamespace(namespace.clone()));
                }
                Ok(found)
            }
        }
    }

    /// The pod that is meant, or the address that is no pod's.
    fn find(&self, end: &End) -> Result<Result<&'a Pod, IpAddr>, Unanswerable> {
        match end {
            End::Address(address) => {
                let has = |pod: &&Pod| pod.is_live() && pod.addresses.contains(address);
                // As the index ranks those that claim one address.
                let claim = |pod: &&'a Pod| (!pod.deleting, pod.created, pod.uid.as_deref());
                let owner = self.pods.values().copied().filter(has).max_by_key(claim);
                Ok(owner.ok_or(*address))
            }
            End::Pod { namespace, name } => {
                let pod = self.pod(namespace, name)?;
                let why = if pod.finished {
                    "has finished"
                } else if pod.addresses.is_empty() {
                    "has no address (status.podIPs)"
                } else {
                    return Ok(Ok(pod));
                };
                Err(Unanswerable::NotLive { pod: end.clone(), why })
            }
        }
    }

    /// To an address that is no pod's: a Service's, whose back ends are judged, or somebody else's.
    fn outwards(
        &self,
        from: &'a Pod,
        own: IpAddr,
        to: IpAddr,
        protocol: u8,
        port: u16,
    ) -> Vec<Flow> {
        let source = of_pod(from, own);
        let Some(Translated { service, back_ends }) =
            self.judge.translate(from, to, protocol, port)
        else {
            let flow = self.flow(source, outside(to), protocol, port);
            return vec![match self.judge.refuses(from, to, protocol, port) {
                Some(because) => refused(flow, because),
                None => flow,
            }];
        };
        if back_ends.is_empty() {
            let flow = refused(self.flow(source, outside(to), protocol, port), "no_back_end");
            return vec![Flow { service: Some(service), ..flow }];
        }
        let flows = back_ends.into_iter().map(|(address, port)| {
            let destination = match self.find(&End::Address(address)) {
                Ok(Ok(pod)) => of_pod(pod, address),
                _ => outside(address),
            };
            let mut flow = self.flow(source, destination, protocol, port);
            if address == own {
                // The programs turn it round at the pod's own veth. NetworkPolicy leaves open whether it holds for
                // that; ClusterNetworkPolicy would, and is not asked either.
                let turned = || {
                    Decision::because(
                        DefaultVerdict::Allow,
                        "self: no policy is asked, a ClusterNetworkPolicy neither",
                    )
                };
                flow.decided_by = DecidedBy { egress: turned(), ingress: turned() };
            }
            Flow { service: Some(service.clone()), ..flow }
        });
        flows.collect()
    }

    fn between(
        &self,
        from: &'a Pod,
        to: &'a Pod,
        protocol: u8,
        port: u16,
    ) -> impl Iterator<Item = Flow> {
        let families = FAMILIES.into_iter().filter(move |family| carries(*family, protocol));
        families.filter_map(move |family| {
            let (source, destination) = (address_of(from, family)?, address_of(to, family)?);
            let flow = self.flow(of_pod(from, source), of_pod(to, destination), protocol, port);
            let dual = [from, to].into_iter().any(has_both_families);
            Some(Flow { family: dual.then_some(family), ..flow })
        })
    }

    fn flow(&self, from: Party<'a>, to: Party<'a>, protocol: u8, port: u16) -> Flow {
        // A pod cannot be denied access to itself.
        let judgement = if from.address == to.address {
            let itself = || Decision::because(DefaultVerdict::Allow, "self");
            let decided_by = DecidedBy { egress: itself(), ingress: itself() };
            Judgement { allowed: true, decided_by, security_groups: None }
        } else {
            self.judge.judge(from, to, protocol, port)
        };
        Flow {
            from: from.to_string(),
            to: to.to_string(),
            protocol: protocol_name(protocol),
            port,
            family: None,
            service: None,
            allowed: judgement.allowed,
            decided_by: judgement.decided_by,
            security_groups: judgement.security_groups,
        }
    }

    /// Who is left out, and whose addresses cannot be told apart.
    fn diagnostics(&self) -> Vec<Diagnostic> {
        let mut owners: BTreeMap<IpAddr, &Pod> = BTreeMap::new();
        let mut diagnostics = Vec::new();
        for pod in self.pods.values().copied() {
            let mut tell = |field: &str, message: String| {
                let object = Key::new(Kind::Pod, &pod.namespace, &pod.name).to_string();
                let field = field.to_owned();
                diagnostics.push(Diagnostic { object, field, message, ..Diagnostic::default() });
            };
            if pod.finished {
                tell("status.phase", "has finished; left out".to_owned());
            } else if pod.addresses.is_empty() {
                tell("status.podIPs", "has no address; left out".to_owned());
            } else if !pod.host_network {
                for address in &pod.addresses {
                    if let Some(first) = owners.insert(*address, pod) {
                        let first = format!("{}/{}", first.namespace, first.name);
                        tell("status.podIPs", format!("{address} is the address of {first} too"));
                    }
                }
            }
        }
        diagnostics
    }
}

/// What the programs refuse at the source.
fn refused(flow: Flow, because: &str) -> Flow {
    let deny = || Decision::because(DefaultVerdict::Deny, because);
    let decided_by = DecidedBy { egress: deny(), ingress: deny() };
    Flow { allowed: false, decided_by, ..flow }
}

/// Whether packets of the family carry the protocol: each has its own ICMP.
const fn carries(family: Family, protocol: u8) -> bool {
    !matches!((family, protocol), (Family::V4, 58) | (Family::V6, 1))
}

const fn unanswerable(from: End, to: End, protocol: u8) -> Unanswerable {
    match protocol {
        1 => Unanswerable::OfIpv4(from, to),
        58 => Unanswerable::OfIpv6(from, to),
        _ => Unanswerable::NoFamily(from, to),
    }
}

/// Whether traffic can come from it or go to it; of one on its node's network too.
fn is_present(pod: &Pod) -> bool {
    !pod.finished && !pod.addresses.is_empty()
}

/// Ports of containers and sidecars, each once.
fn served(pod: &Pod) -> BTreeSet<(Protocol, u16)> {
    pod.ports.iter().map(|port| (port.protocol, port.port)).collect()
}

fn address_of(pod: &Pod, family: Family) -> Option<IpAddr> {
    pod.addresses.iter().copied().find(|address| Family::of(*address) == family)
}

fn has_both_families(pod: &Pod) -> bool {
    FAMILIES.into_iter().all(|family| address_of(pod, family).is_some())
}

const fn of_pod(pod: &Pod, address: IpAddr) -> Party<'_> {
    Party { pod: Some(pod), address }
}

const fn outside<'a>(address: IpAddr) -> Party<'a> {
    Party { pod: None, address }
}

/// `TCP`, or the number of a protocol without a name here.
#[must_use]
pub fn protocol_name(number: u8) -> String {
    match number {
        1 => "ICMP".to_owned(),
        58 => "ICMPv6".to_owned(),
        _ => Protocol::from_number(number)
            .map_or_else(|| number.to_string(), |protocol| protocol.as_str().to_owned()),
    }
}

/// The number of `tcp`, `TCP`, `132`…
#[must_use]
pub fn protocol_number(text: &str) -> Option<u8> {
    match text.to_ascii_uppercase().as_str() {
        "ICMP" => Some(1),
        "ICMPV6" => Some(58),
        upper => Protocol::parse(upper).map(Protocol::number).or_else(|| upper.parse().ok()),
    }
}

// === impl Party ===

impl fmt::Display for Party<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pod {
            Some(pod) => write!(f, "{}/{}", pod.namespace, pod.name),
            None => self.address.fmt(f),
        }
    }
}
