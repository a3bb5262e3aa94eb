//! The objects of manifests, and who judges them.

use std::{collections::BTreeSet, net::IpAddr, path::Path};

use ipnet::IpNet;
use veni_core::{
    config::{Enforcing, NodePorts},
    wire::inspect::policy::{Decision, DefaultVerdict, Diagnostic, Explanation, Flow, PolicyRef},
};
use veni_policy::{
    change::{Direction, PodKey},
    index::{Change, Index, Scope},
    object::{Key, Kind, Namespace, Object, Pod, Protocol},
    service::{Found, FrontEnd, OwnNode, ServiceTables},
    view::{self, Judge, Judgement, Party, Translated, Unanswerable, View},
};

use super::groups;
use crate::Usage;

/// The programs' word for what goes to a Service's address or a NodePort that no Service is known for.
const UNKNOWN_SERVICE: &str = "unknown_service";
/// What the daemon says of the end that another node's daemon judges.
pub(super) const ELSEWHERE: &str = "judged on its own node";

/// Manifests as one node's daemon would judge them.
#[derive(Debug)]
pub(super) struct OfNode<'a> {
    pub(super) cluster: &'a Cluster,
    /// Pods whose end another node's daemon judges.
    pub(super) elsewhere: BTreeSet<String>,
}

/// What manifests describe.
#[derive(Debug)]
pub(super) struct Cluster {
    objects: Vec<Object>,
    index: Index,
    /// The node's Service range, as far as it is known.
    service_cidrs: Vec<IpNet>,
    node_ports: NodePorts,
    /// What is wrong with them.
    pub(super) diagnostics: Vec<Diagnostic>,
}

impl Cluster {
    /// Reads files and folders of manifests, and the rules of security groups, without which the pods' groups do not
    /// count.
    ///
    /// # Errors
    /// When one cannot be read.
    pub(super) fn read(
        manifests: &[impl AsRef<Path>],
        groups: &[impl AsRef<Path>],
    ) -> Result<Self, Usage> {
        let manifests = veni_manifests::read_all(manifests.iter().map(AsRef::as_ref))
            .map_err(|error| Usage(vec![veni_core::chain::chain(&error)]))?;
        let mut objects = manifests.objects;
        let mut diagnostics: Vec<_> =
            manifests.diagnostics.into_iter().map(Diagnostic::from).collect();
        if groups.is_empty() && forget_groups(&mut objects) {
            let message = "security groups are not looked at, because their rules are not given (--security-groups)";
            diagnostics.push(Diagnostic { message: message.to_owned(), ..Diagnostic::default() });
        }
        let mut index = Index::new(Scope::All);
        index.set_security_groups(groups::read(groups, &mut diagnostics)?);
        index.reset(objects.clone());
        let Change { refused, .. } = index.change();
        diagnostics.extend(
            refused.iter().map(|refusal| Diagnostic {
                message: refusal.to_string(),
                ..Diagnostic::default()
            }),
        );
        let (service_cidrs, node_ports) = (Vec::new(), NodePorts::default());
        Ok(Self { objects, index, service_cidrs, node_ports, diagnostics })
    }

    /// On a node with this Service range.
    pub(super) fn with_service_cidrs(self, service_cidrs: Vec<IpNet>) -> Self {
        Self { service_cidrs, ..self }
    }

    /// In a cluster with these node ports.
    pub(super) fn with_node_ports(self, node_ports: NodePorts) -> Self {
        Self { node_ports, ..self }
    }

    /// In this mode (`none`, `standard`, `strict`).
    pub(super) fn in_mode(self, mode: &str) -> Self {
        let mode = match mode {
            "none" => Enforcing::None,
            "strict" => Enforcing::Strict,
            _ => Enforcing::Standard,
        };
        let mut index = self.index.enforcing(mode);
        drop(index.change());
        Self { index, ..self }
    }

    /// The pods with their judge.
    pub(super) fn view(&self) -> View<'_, Self> {
        View::new(self.pods(), self)
    }

    /// As the daemon of one node judges: `elsewhere` are the pods whose end another node's daemon judges.
    pub(super) fn view_of<'a>(&'a self, node: &'a OfNode<'a>) -> View<'a, OfNode<'a>> {
        View::new(self.pods(), node)
    }

    /// What is to be known about a verdict on an address that is no pod's: whether the programs refuse it first.
    pub(super) fn note(&self, flow: &Flow) -> Option<String> {
        let address: IpAddr = flow.to.parse().ok()?;
        if flow.service.is_some() || !flow.allowed || self.is_of_node(address) {
            return None;
        }
        let pod = self.pods().find(|pod| format!("{}/{}", pod.namespace, pod.name) == flow.from)?;
        let restricted = self.index.is_isolated(pod, Direction::Egress);
        let note = || unknown_service(&flow.from, address);
        (restricted && self.service_cidrs.is_empty()).then(note).flatten()
    }

    /// Addresses of Services, and which are nodes'.
    fn is_of_service(&self, address: IpAddr) -> bool {
        self.service_cidrs.iter().any(|cidr| cidr.contains(&address))
            || self.objects.iter().any(|object| match object {
                Object::Service(service) => service.cluster_addresses.contains(&address),
                _ => false,
            })
    }

    pub(super) fn is_of_node(&self, address: IpAddr) -> bool {
        self.objects.iter().any(|object| match object {
            Object::Node(node) => node.addresses.contains(&address),
            _ => false,
        })
    }

    pub(super) fn pods(&self) -> impl Iterator<Item = &Pod> + Clone {
        self.objects.iter().filter_map(|object| match object {
            Object::Pod(pod) => Some(pod),
            _ => None,
        })
    }

    /// What applies to a pod.
    ///
    /// # Errors
    /// When it does not exist.
    pub(super) fn explain(&self, namespace: &str, name: &str) -> Result<Explanation, Unanswerable> {
        let pod = self.view().pod(namespace, name)?;
        let of_namespace = self.namespace(namespace);
        let key = PodKey { namespace: namespace.to_owned(), name: name.to_owned() };
        let found = self.index.explain(&key).map(|found| view::explanation(&found));
        let note = if pod.finished {
            Some("It has finished: nothing is judged for it.")
        } else if pod.addresses.is_empty() {
            Some("It has no address yet (status.podIPs): nothing comes to it.")
        } else {
            None
        };
        let mut explanation = found.unwrap_or_else(|| Explanation {
            pod: key.to_string(),
            addresses: pod.addresses.clone(),
            labels: pod.labels.clone(),
            namespace_labels: of_namespace.labels.clone(),
            host_network: pod.host_network,
            ..Explanation::default()
        });
        explanation.notes.extend(note.map(str::to_owned));
        let policies = explanation.egress.policies.iter().chain(&explanation.ingress.policies);
        let mut concerned: BTreeSet<String> = policies.map(object).collect();
        concerned.insert(Key::new(Kind::Pod, namespace, name).to_string());
        let mine = self.diagnostics.iter().filter(|d| concerned.contains(&d.object));
        explanation.diagnostics = mine.cloned().collect();
        Ok(explanation)
    }

    /// A namespace that is not in the input has only its name.
    fn namespace(&self, name: &str) -> Namespace {
        let found = self.objects.iter().find_map(|object| match object {
            Object::Namespace(namespace) if namespace.name == name => Some(namespace.clone()),
            _ => None,
        });
        found.unwrap_or_else(|| Namespace::named(name))
    }
}

/// As diagnostics name it.
fn object(policy: &PolicyRef) -> String {
    match &policy.namespace {
        Some(namespace) => format!("{} {namespace}/{}", policy.kind, policy.name),
        None => format!("{} {}", policy.kind, policy.name),
    }
}

impl Judge for Cluster {
    fn translate(&self, from: &Pod, to: IpAddr, protocol: u8, port: u16) -> Option<Translated> {
        // Front ends are those of the node that the pod is on: NodePorts, and Services that stay on a node.
        let node = self.objects.iter().find_map(|object| match object {
            Object::Node(node) if Some(&node.name) == from.node.as_ref() => Some(node),
            _ => None,
        });
        let own = OwnNode {
            name: from.node.clone().unwrap_or_default(),
            zone: None,
            addresses: node
                .map(|node| node.addresses.iter().copied().collect())
                .unwrap_or_default(),
        };
        let mut tables = ServiceTables::new(own, &Found::default());
        drop(tables.reset(&self.objects));
        let protocol = Protocol::from_number(protocol)?;
        let translation = tables.translate(FrontEnd { address: to, port, protocol })?;
        if translation.of_proxy && !self.index.is_isolated(from, Direction::Egress) {
            return None;
        }
        let owner = &translation.port.owner;
        Some(Translated {
            service: format!("{}/{}", owner.namespace, owner.name),
            back_ends: translation.back_ends.iter().map(|end| (end.address, end.port)).collect(),
        })
    }

    /// As `to_node` does in ebpf/src/policy.rs.
    fn refuses(&self, from: &Pod, to: IpAddr, protocol: u8, port: u16) -> Option<&'static str> {
        if !self.index.is_isolated(from, Direction::Egress) {
            return None;
        }
        let is_node_port = Protocol::from_number(protocol).is_some()
            && self.node_ports.contains(port)
            && self.is_of_node(to);
        (self.is_of_service(to) || is_node_port).then_some(UNKNOWN_SERVICE)
    }

    fn judge(&self, from: Party<'_>, to: Party<'_>, protocol: u8, port: u16) -> Judgement {
        Judge::judge(&self.index, from, to, protocol, port)
    }
}

impl Judge for OfNode<'_> {
    fn judge(&self, from: Party<'_>, to: Party<'_>, protocol: u8, port: u16) -> Judgement {
        let index = &self.cluster.index;
        let found = index.judge(from.address, to.address, protocol, port);
        let mut judged = Judge::judge(index, from, to, protocol, port);
        let is_elsewhere = |end: Party<'_>| {
            end.pod.is_some_and(|pod| {
                self.elsewhere.contains(&format!("{}/{}", pod.namespace, pod.name))
            })
        };
        let elsewhere = || Decision::because(DefaultVerdict::Allow, ELSEWHERE);
        let (source, destination) = (is_elsewhere(from), is_elsewhere(to));
        if source {
            judged.decided_by.egress = elsewhere();
        }
        if destination {
            judged.decided_by.ingress = elsewhere();
        }
        judged.allowed = (source || found.egress.allowed) && (destination || found.ingress.allowed);
        judged
    }
}

/// What the programs may do before any rule is asked, where it is not known whether they do. No Service range is of
/// addresses that are public.
fn unknown_service(from: &str, address: IpAddr) -> Option<String> {
    let ranges = [
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "198.18.0.0/15",
        "fc00::/7",
    ];
    let mut ranges = ranges.iter().filter_map(|range| range.parse::<IpNet>().ok());
    ranges.any(|range| range.contains(&address)).then(|| {
        format!(
            "{address} is no pod's and no known Service's front end. If it is in the node's VENI_SERVICE_CIDRS (or a node's, \
             with a port of the NodePort range), the programs refuse it as unknown_service, because the egress of {from} is \
             restricted: `venictl observe --pod {from}` shows that"
        )
    })
}

/// Takes the groups from all pods; whether any had some.
fn forget_groups(objects: &mut Vec<Object>) -> bool {
    let before = objects.len();
    objects.retain(|object| !matches!(object, Object::SecurityGroupPolicy(_)));
    let mut forgotten = objects.len() < before;
    for object in objects {
        if let Object::Pod(pod) = object {
            forgotten |= pod.security_groups.take().is_some();
        }
    }
    forgotten
}
