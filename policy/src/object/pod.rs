//! Pods.

use std::net::IpAddr;

use serde_json::{Value, json};
use veni_core::id::SecurityGroupId;

use super::{
    Diagnostic, Labels, Protocol, SECURITY_GROUPS_ANNOTATION,
    reader::{Read, Reader},
};

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `metadata.uid`.
    pub uid: Option<String>,
    /// Its labels.
    pub labels: Labels,
    /// `spec.nodeName`; `None` until it is scheduled.
    pub node: Option<String>,
    /// `status.podIPs` (and `podIP`), each once, in their order. A host-network pod has its node's.
    pub addresses: Vec<IpAddr>,
    /// Shares its node's network: no pod selector matches it.
    pub host_network: bool,
    /// Phase `Succeeded` or `Failed`: its addresses are no longer its own.
    pub finished: bool,
    /// `status.conditions` has `Ready: True`, or says nothing of readiness.
    pub ready: bool,
    /// Has a deletion timestamp: it is about to go, or stuck on the way (its node is dead, a finalizer stays).
    pub deleting: bool,
    /// `metadata.creationTimestamp`, as the number that its digits make (20251121093000): later is greater.
    pub created: Option<u64>,
    /// Ports of containers and of sidecars (init containers with `restartPolicy: Always`), in their order.
    pub ports: Vec<ContainerPort>,
    /// `spec.serviceAccountName`.
    pub service_account: String,
    /// The groups that [`SECURITY_GROUPS_ANNOTATION`] chooses; `None` without the annotation.
    pub security_groups: Option<PodGroups>,
    /// What was wrong and is left out, or closed.
    pub diagnostics: Vec<Diagnostic>,
}

/// A container's port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContainerPort {
    /// Its name, which policies and Services may use.
    pub name: Option<String>,
    /// The port in the pod.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port on the node that leads here.
    pub host_port: Option<u16>,
    /// The node's address that `host_port` is bound to; `None` is every one.
    pub host_address: Option<IpAddr>,
}

/// The security groups that an annotation chooses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodGroups {
    /// Ids that could be read, sorted.
    pub ids: Vec<SecurityGroupId>,
    /// Items that are no ids: the pod is denied everything until they are mended.
    pub invalid: Vec<String>,
}

impl Pod {
    /// Whether it has addresses of its own that traffic can come from or go to.
    #[must_use]
    pub fn is_live(&self) -> bool {
        !self.finished && !self.host_network && !self.addresses.is_empty()
    }

    /// The number of a named port.
    #[must_use]
    pub fn named_port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        self.ports
            .iter()
            .find(|port| port.protocol == protocol && port.name.as_deref() == Some(name))
            .map(|port| port.port)
    }

    /// The manifest of what rules know of it, its addresses left out: [`super::parse`] makes the same pod of it.
    #[must_use]
    pub fn manifest(&self) -> Value {
        let ports: Vec<Value> = self
            .ports
            .iter()
            .map(|port| {
                let protocol = port.protocol.as_str();
                json!({"name": port.name, "containerPort": port.port, "protocol": protocol})
            })
            .collect();
        let groups = self.security_groups.as_ref().map(|groups| {
            let ids = groups.ids.iter().map(ToString::to_string);
            let items: Vec<String> = ids.chain(groups.invalid.iter().cloned()).collect();
            json!({SECURITY_GROUPS_ANNOTATION: items.join(",")})
        });
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "namespace": self.namespace, "name": self.name, "uid": self.uid,
                "labels": self.labels, "annotations": groups,
            },
            "spec": {"nodeName": self.node, "containers": [{"ports": ports}]},
        })
    }

    /// A part that cannot be read is left out, and noted: without the pod its address would be nobody's, and rules that
    /// name it would miss it.
    pub(super) fn read(root: &Reader<'_>) -> Self {
        let (metadata, spec, status) = (root.get("metadata"), root.get("spec"), root.get("status"));
        let phase = root.noted(status.get("phase").text()).flatten();
        let account = root.noted(spec.get("serviceAccountName").text()).flatten();
        Self {
            namespace: root.key().namespace.clone(),
            name: root.key().name.clone(),
            uid: root.noted(metadata.get("uid").string()).flatten(),
            labels: metadata.get("labels").sound_labels(),
            node: root
                .noted(spec.get("nodeName").string())
                .flatten()
                .filter(|node| !node.is_empty()),
            addresses: addresses(&status),
            host_network: root.noted(spec.get("hostNetwork").flag()).flatten().unwrap_or(false),
            finished: matches!(phase, Some("Succeeded" | "Failed")),
            ready: root.noted(is_ready(&status)).unwrap_or(false),
            deleting: !metadata.get("deletionTimestamp").is_absent(),
            created: root.noted(timestamp(&metadata.get("creationTimestamp"))).flatten(),
            ports: container_ports(&spec),
            service_account: account
                .filter(|name| !name.is_empty())
                .unwrap_or("default")
                .to_owned(),
            security_groups: security_groups(&metadata),
            diagnostics: root.taken(),
        }
    }
}

/// The form in which the API server writes times (`metav1.Time`): RFC 3339, whole seconds of UTC.
fn timestamp(at: &Reader<'_>) -> Read<Option<u64>> {
    const FORM: &[u8] = b"0000-00-00T00:00:00Z";
    let Some(text) = at.text()? else { return Ok(None) };
    let fits = |(found, wanted): (u8, &u8)| match wanted {
        b'0' => found.is_ascii_digit(),
        wanted => found == *wanted,
    };
    let sound = text.len() == FORM.len() && text.bytes().zip(FORM).all(fits);
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    match digits.parse().ok().filter(|_| sound) {
        Some(number) => Ok(Some(number)),
        None => Err(at.invalid(format!("{} is not a time like 2025-11-21T09:30:00Z", at.shown()))),
    }
}

/// An annotation that is no text, or null, chooses what is no group.
fn security_groups(metadata: &Reader<'_>) -> Option<PodGroups> {
    let annotations = metadata.get("annotations");
    if !annotations.has(SECURITY_GROUPS_ANNOTATION) {
        return None;
    }
    let at = annotations.get(SECURITY_GROUPS_ANNOTATION);
    Some(match at.noted(at.given_text()) {
        Some(text) => PodGroups::read(text, &at),
        None => PodGroups { ids: Vec::new(), invalid: vec![at.shown()] },
    })
}

impl PodGroups {
    fn read(text: &str, at: &Reader<'_>) -> Self {
        let mut groups = Self::default();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            match item.parse() {
                Ok(id) => groups.ids.push(id),
                Err(_) => groups.invalid.push(item.to_owned()),
            }
        }
        if groups.ids.is_empty() && groups.invalid.is_empty() {
            groups.invalid.push(text.to_owned());
        }
        for item in &groups.invalid {
            let message =
                format!("{item:?} is not a security group's id; the pod is denied everything");
            at.note(at.invalid(message));
        }
        groups.ids.sort();
        groups.ids.dedup();
        groups
    }
}

fn addresses(status: &Reader<'_>) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    let mut add = |at: Reader<'_>| {
        let address = at.noted(at.parsed("an IP address")).flatten();
        if let Some(address) = address.filter(|address| !addresses.contains(address)) {
            addresses.push(address);
        }
    };
    let first = status.get("podIP");
    if !matches!(first.text(), Ok(Some(""))) {
        add(first);
    }
    for item in status.get("podIPs").sound_list() {
        // The API's form is a map; plain text is common in files written by hand.
        let address = if item.get("ip").is_absent() { item } else { item.get("ip") };
        add(address);
    }
    addresses
}

fn is_ready(status: &Reader<'_>) -> Read<bool> {
    for condition in status.get("conditions").list()? {
        if condition.get("type").text()? == Some("Ready") {
            return Ok(condition.get("status").text()? == Some("True"));
        }
    }
    Ok(true)
}

fn container_ports(spec: &Reader<'_>) -> Vec<ContainerPort> {
    let sidecars = spec.get("initContainers").sound_list().into_iter().filter(|container| {
        let policy = container.get("restartPolicy");
        policy.noted(policy.text()).flatten() == Some("Always")
    });
    let containers = spec.get("containers").sound_list().into_iter().chain(sidecars);
    let ports = containers.flat_map(|container| container.get("ports").sound_list());
    ports.filter_map(|port| read_port(&port)).collect()
}

/// A port of which a part cannot be read is left out, whatever else is wrong with it noted too.
fn read_port(item: &Reader<'_>) -> Option<ContainerPort> {
    let at = item.get("containerPort");
    let port = item.noted(at.port().and_then(|port| port.ok_or_else(|| at.invalid("is missing"))));
    let host_port = item.noted(item.get("hostPort").number(0, u32::from(u16::MAX)));
    let at = item.get("hostIP");
    let host_address = match item.noted(at.text()) {
        Some(None | Some("")) => Some(None),
        Some(Some(_)) => item.noted(at.parsed("an IP address")),
        None => None,
    };
    let name = item.noted(item.get("name").string());
    let protocol = item.noted(read_protocol(&item.get("protocol")));
    Some(ContainerPort {
        name: name?.filter(|name| !name.is_empty()),
        port: port?,
        protocol: protocol?,
        host_port: u16::try_from(host_port?.unwrap_or(0)).ok().filter(|port| *port != 0),
        host_address: host_address?,
    })
}

/// TCP when absent.
pub(super) fn read_protocol(at: &Reader<'_>) -> Read<Protocol> {
    let Some(name) = at.text()? else { return Ok(Protocol::Tcp) };
    Protocol::parse(name)
        .ok_or_else(|| at.invalid(format!("{name:?} is none of \"TCP\", \"UDP\", \"SCTP\"")))
}
