//! Settings of network policy, Services and security groups.

use std::{fmt, str::FromStr, time::Duration};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::reader::Reader;

/// How policy is enforced on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicySettings {
    /// `VENI_MANIFEST_DIR`: a folder of Kubernetes manifests that is watched. `None`: nothing selects any pod.
    pub manifest_dir: Option<String>,
    /// `NETWORK_POLICY_ENFORCING_MODE`: what holds for pods that no policy selects, and whether policies hold at all.
    pub enforcing: Enforcing,
    /// `VENI_POLICY_WAIT_MILLIS`: how long an ADD waits for its pod's labels.
    pub wait: Duration,
    /// `VENI_ESTABLISHED_FLOWS`: what a change of policy does to them.
    pub established: Established,
    /// `VENI_INSTANCE_METADATA`: whether pods reach it without a rule that opens it.
    pub metadata: MetadataAccess,
    /// `VENI_FLOW_EVENTS`: which new flows are told.
    pub flow_events: FlowEvents,
    /// `VENI_SERVICE_CIDRS`, the IPv4 range.
    pub service_v4: Option<Ipv4Net>,
    /// `VENI_SERVICE_CIDRS`, the IPv6 range.
    pub service_v6: Option<Ipv6Net>,
    /// `VENI_NODE_PORT_RANGE`.
    pub node_ports: NodePorts,
}

/// The cluster's node ports, as the API server's `--service-node-port-range` has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodePorts {
    first: u16,
    last: u16,
}

/// What holds for pods that no policy selects, and whether policies hold at all. Security groups hold in every mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Enforcing {
    /// `none`: `NetworkPolicy` and `ClusterNetworkPolicy` objects are not looked at.
    None,
    /// `standard`: a pod that no policy selects is open.
    #[default]
    Standard,
    /// `strict`: a pod that no `NetworkPolicy` selects is closed both ways, but to itself, to its own node, and for what a
    /// `ClusterNetworkPolicy` accepts.
    Strict,
}

/// What a change of policy does to established flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Established {
    /// `rejudge`: a flow that is not allowed any more ends.
    #[default]
    Rejudge,
    /// `keep`: it goes on until its own end.
    Keep,
}

/// Whether pods reach instance metadata (169.254.169.254, fd00:ec2::254).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MetadataAccess {
    /// `open`: an address like any other.
    #[default]
    Open,
    /// `closed`: only pods that a policy's rule opens it for.
    Closed,
}

/// Which new flows are told to `venictl observe` and the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FlowEvents {
    /// `all`: allowed and denied.
    #[default]
    All,
    /// `denied`.
    Denied,
    /// `none`.
    None,
}

impl Default for PolicySettings {
    fn default() -> Self {
        Self {
            manifest_dir: None,
            enforcing: Enforcing::default(),
            wait: Duration::from_secs(2),
            established: Established::default(),
            metadata: MetadataAccess::default(),
            flow_events: FlowEvents::default(),
            service_v4: None,
            service_v6: None,
            node_ports: NodePorts::default(),
        }
    }
}

// === impl NodePorts ===

impl NodePorts {
    /// The first; never 0.
    #[must_use]
    pub fn first(self) -> u16 {
        self.first
    }

    /// Whether the port is one of them.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// The last, not before the first.
    #[must_use]
    pub fn last(self) -> u16 {
        self.last
    }
}

impl Default for NodePorts {
    fn default() -> Self {
        Self { first: 30_000, last: 32_767 }
    }
}

/// Not `FIRST-LAST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected the first and the last port, such as 30000-32767")]
pub struct NoNodePorts;

impl FromStr for NodePorts {
    type Err = NoNodePorts;

    fn from_str(text: &str) -> Result<Self, NoNodePorts> {
        let ends = text.split_once('-').ok_or(NoNodePorts)?;
        match (ends.0.trim().parse(), ends.1.trim().parse()) {
            (Ok(first), Ok(last)) if 0 < first && first <= last => Ok(Self { first, last }),
            _ => Err(NoNodePorts),
        }
    }
}

impl fmt::Display for NodePorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Reads them.
pub(super) fn settings(reader: &mut Reader) -> PolicySettings {
    let defaults = PolicySettings::default();
    let (service_v4, service_v6) = service_cidrs(reader);
    PolicySettings {
        manifest_dir: reader
            .text("VENI_MANIFEST_DIR")
            .map(|_| reader.path("VENI_MANIFEST_DIR", String::new()))
            .filter(|path| !path.is_empty()),
        enforcing: word(
            reader,
            "NETWORK_POLICY_ENFORCING_MODE",
            &[
                ("none", Enforcing::None),
                ("standard", Enforcing::Standard),
                ("strict", Enforcing::Strict),
            ],
        ),
        wait: reader
            .in_range("VENI_POLICY_WAIT_MILLIS", 0..=60_000)
            .map_or(defaults.wait, |millis| Duration::from_millis(millis.into())),
        established: word(
            reader,
            "VENI_ESTABLISHED_FLOWS",
            &[("rejudge", Established::Rejudge), ("keep", Established::Keep)],
        ),
        metadata: word(
            reader,
            "VENI_INSTANCE_METADATA",
            &[("open", MetadataAccess::Open), ("closed", MetadataAccess::Closed)],
        ),
        flow_events: word(
            reader,
            "VENI_FLOW_EVENTS",
            &[("all", FlowEvents::All), ("denied", FlowEvents::Denied), ("none", FlowEvents::None)],
        ),
        service_v4,
        service_v6,
        node_ports: node_ports(reader),
    }
}

/// One of a few words; anything else is an error, because each word is about protection.
fn word<T: Copy + Default>(reader: &mut Reader, name: &str, words: &[(&str, T)]) -> T {
    let Some(value) = reader.text(name) else { return T::default() };
    if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == value) {
        return *meaning;
    }
    let allowed: Vec<_> = words.iter().map(|(word, _)| *word).collect();
    reader.fail(name, format!("expected one of {}", allowed.join(", ")));
    T::default()
}

/// An error, not the default, when it is none: in another range than the cluster's, an isolated pod would reach pods by
/// node ports that are not known yet.
fn node_ports(reader: &mut Reader) -> NodePorts {
    const NAME: &str = "VENI_NODE_PORT_RANGE";
    let Some(value) = reader.text(NAME) else { return NodePorts::default() };
    value.parse().unwrap_or_else(|error: NoNodePorts| {
        reader.fail(NAME, error.to_string());
        NodePorts::default()
    })
}

/// One range a family, as the API server's `--service-cluster-ip-range`.
fn service_cidrs(reader: &mut Reader) -> (Option<Ipv4Net>, Option<Ipv6Net>) {
    const NAME: &str = "VENI_SERVICE_CIDRS";
    let list = reader.text(NAME).unwrap_or_default();
    let (mut v4, mut v6) = (None, None);
    for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let twice = match item.parse::<IpNet>() {
            Ok(IpNet::V4(net)) => v4.replace(net.trunc()).is_some(),
            Ok(IpNet::V6(net)) => v6.replace(net.trunc()).is_some(),
            Err(_) => {
                reader.fail(
                    NAME,
                    format!("{item:?} is not a CIDR; expected such as 10.100.0.0/16,fd12::/108"),
                );
                false
            }
        };
        if twice {
            reader.fail(NAME, "expected one range a family");
        }
    }
    (v4, v6)
}
