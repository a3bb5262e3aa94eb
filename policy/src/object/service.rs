//! Services.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Diagnostic, Labels, Protocol,
    pod::read_protocol,
    reader::{Read, Reader},
};

/// A Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `metadata.creationTimestamp`, as written: RFC 3339 in UTC, so the order of the texts is that of the times.
    pub created: Option<String>,
    /// Its labels.
    pub labels: Labels,
    /// `spec.type`.
    pub service_type: ServiceType,
    /// `spec.clusterIPs` (and `clusterIP`) without `None`, each once.
    pub cluster_addresses: Vec<IpAddr>,
    /// `clusterIP: None`: has no front end.
    pub headless: bool,
    /// Labels that its pods have; empty when its slices are written by someone else.
    pub selector: Labels,
    /// `spec.externalIPs`.
    pub external_addresses: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` whose `ipMode` is not `Proxy`.
    pub load_balancer_addresses: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges`; empty: any source.
    pub source_ranges: Vec<IpNet>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// `sessionAffinity: ClientIP`: seconds that it holds (default 10800).
    pub affinity_secs: Option<u32>,
    /// Which back ends traffic from pods may use.
    pub internal_traffic: TrafficPolicy,
    /// Which back ends traffic to external addresses and NodePorts may use.
    pub external_traffic: TrafficPolicy,
    /// `spec.publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// `spec.trafficDistribution`, e.g. `PreferClose`.
    pub traffic_distribution: Option<String>,
    /// What was wrong.
    pub diagnostics: Vec<Diagnostic>,
}

/// A Service's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServiceType {
    /// An address inside the cluster.
    ClusterIp,
    /// And a port on every node.
    NodePort,
    /// And an address outside.
    LoadBalancer,
    /// A DNS name only.
    ExternalName,
}

/// Which back ends may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TrafficPolicy {
    /// All of the cluster's.
    Cluster,
    /// Only those on the node itself.
    Local,
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePort {
    /// Its name; empty when it has none.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The front end's port.
    pub port: u16,
    /// The pods' port.
    pub target: TargetPort,
    /// The nodes' port.
    pub node_port: Option<u16>,
}

/// The port on the pods.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TargetPort {
    /// The same on each.
    Number(u16),
    /// Each pod's container port of that name.
    Name(String),
}

impl Service {
    /// Notes all that is wrong: half a Service would lead elsewhere than the whole.
    pub(super) fn read(root: &Reader<'_>) -> Result<Self, Vec<Diagnostic>> {
        let (metadata, spec) = (root.get("metadata"), root.get("spec"));
        let (cluster_addresses, headless) = root.sound(cluster_addresses(&spec));
        let policy = |field: &str| {
            root.noted(traffic_policy(&spec.get(field))).unwrap_or(TrafficPolicy::Cluster)
        };
        let service = Self {
            namespace: root.key().namespace.clone(),
            name: root.key().name.clone(),
            created: root.sound(metadata.get("creationTimestamp").string()),
            labels: metadata.get("labels").sound_labels(),
            service_type: root
                .noted(service_type(&spec.get("type")))
                .unwrap_or(ServiceType::ClusterIp),
            cluster_addresses,
            headless,
            selector: spec.get("selector").sound_labels(),
            external_addresses: parsed_list(&spec.get("externalIPs"), "an IP address"),
            load_balancer_addresses: root.sound(load_balancer_addresses(root)),
            source_ranges: parsed_list(&spec.get("loadBalancerSourceRanges"), "a CIDR"),
            ports: ports(&spec),
            affinity_secs: root.sound(affinity(&spec)),
            internal_traffic: policy("internalTrafficPolicy"),
            external_traffic: policy("externalTrafficPolicy"),
            publish_not_ready: root
                .sound(spec.get("publishNotReadyAddresses").flag())
                .unwrap_or(false),
            traffic_distribution: root.sound(spec.get("trafficDistribution").string()),
            diagnostics: Vec::new(),
        };
        root.unless_noted(service)
    }
}

fn service_type(at: &Reader<'_>) -> Read<ServiceType> {
    match at.text()? {
        None | Some("ClusterIP") => Ok(ServiceType::ClusterIp),
        Some("NodePort") => Ok(ServiceType::NodePort),
        Some("LoadBalancer") => Ok(ServiceType::LoadBalancer),
        Some("ExternalName") => Ok(ServiceType::ExternalName),
        Some(other) => Err(at.invalid(format!("{other:?} is not a Service's type"))),
    }
}

fn cluster_addresses(spec: &Reader<'_>) -> Read<(Vec<IpAddr>, bool)> {
    let mut headless = false;
    let mut addresses = Vec::new();
    let mut items = spec.get("clusterIPs").list()?;
    items.insert(0, spec.get("clusterIP"));
    for item in items {
        match item.text()? {
            None | Some("") => {}
            Some("None") => headless = true,
            Some(_) => {
                let address = item.parsed("an IP address or \"None\"")?;
                addresses.extend(address.filter(|address| !addresses.contains(address)));
            }
        }
    }
    Ok((addresses, headless))
}

fn load_balancer_addresses(root: &Reader<'_>) -> Read<Vec<IpAddr>> {
    let mut addresses = Vec::new();
    for item in root.get("status").get("loadBalancer").get("ingress").list()? {
        // KEP-1860: with `Proxy` the traffic has to pass the load balancer.
        if item.get("ipMode").text()? != Some("Proxy") {
            addresses.extend(item.get("ip").parsed::<IpAddr>("an IP address")?);
        }
    }
    Ok(addresses)
}

fn parsed_list<T: std::str::FromStr>(at: &Reader<'_>, expected: &str) -> Vec<T> {
    at.sound_list().iter().filter_map(|item| item.sound(item.parsed(expected))).collect()
}

fn ports(spec: &Reader<'_>) -> Vec<ServicePort> {
    let items = spec.get("ports").sound_list();
    items.iter().filter_map(|item| item.noted(port(item))).collect()
}

fn port(item: &Reader<'_>) -> Read<ServicePort> {
    let at = item.get("port");
    let port = at.port()?.ok_or_else(|| at.invalid("is missing"))?;
    let target = item.get("targetPort");
    Ok(ServicePort {
        name: item.get("name").string()?.unwrap_or_default(),
        protocol: read_protocol(&item.get("protocol"))?,
        port,
        target: if target.is_absent() {
            TargetPort::Number(port)
        } else if target.is_number() {
            TargetPort::Number(target.port()?.unwrap_or(port))
        } else {
            target_by_text(&target, port)?
        },
        node_port: match item.get("nodePort").number(0, u32::from(u16::MAX))? {
            None | Some(0) => None,
            Some(_) => item.get("nodePort").port()?,
        },
    })
}

fn target_by_text(at: &Reader<'_>, port: u16) -> Read<TargetPort> {
    Ok(match at.text()? {
        None | Some("") => TargetPort::Number(port),
        Some(name) => TargetPort::Name(name.to_owned()),
    })
}

fn affinity(spec: &Reader<'_>) -> Read<Option<u32>> {
    if spec.get("sessionAffinity").text()? != Some("ClientIP") {
        return Ok(None);
    }
    let timeout = spec.get("sessionAffinityConfig").get("clientIP").get("timeoutSeconds");
    Ok(Some(timeout.number(1, 86_400)?.unwrap_or(10_800)))
}

fn traffic_policy(at: &Reader<'_>) -> Read<TrafficPolicy> {
    match at.text()? {
        None | Some("" | "Cluster") => Ok(TrafficPolicy::Cluster),
        Some("Local") => Ok(TrafficPolicy::Local),
        Some(other) => Err(at.invalid(format!("{other:?} is neither \"Cluster\" nor \"Local\""))),
    }
}
