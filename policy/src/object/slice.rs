//! EndpointSlices.

use std::net::IpAddr;

use super::{
    Diagnostic, Protocol,
    pod::read_protocol,
    reader::{Read, Reader},
};

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// A slice of a Service's back ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The Service that it belongs to (label `kubernetes.io/service-name`).
    pub service: Option<String>,
    /// Its back ends; none when the slice holds DNS names.
    pub endpoints: Vec<Endpoint>,
    /// Ports that every back end has.
    pub ports: Vec<EndpointPort>,
    /// What was wrong.
    pub diagnostics: Vec<Diagnostic>,
}

/// A back end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its addresses; consumers use the first, as the API says.
    pub addresses: Vec<IpAddr>,
    /// `conditions.ready`; true when not said.
    pub ready: bool,
    /// `conditions.serving`; as `ready` when not said.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    /// The node that it is on.
    pub node: Option<String>,
    /// The zone that it is in.
    pub zone: Option<String>,
    /// `hints.forZones`.
    pub for_zones: Vec<String>,
    /// `hints.forNodes`.
    pub for_nodes: Vec<String>,
}

/// A port of a slice.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointPort {
    /// The Service port's name; empty when it has none.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// The back ends' port; `None`: the slice's consumer has to know it.
    pub port: Option<u16>,
}

impl EndpointSlice {
    /// Notes all that is wrong: of a slice of which a part is missing, the whole is not taken.
    pub(super) fn read(root: &Reader<'_>) -> Result<Self, Vec<Diagnostic>> {
        let metadata = root.get("metadata");
        let names_only = root.sound(root.get("addressType").text()) == Some("FQDN");
        let items = if names_only { Vec::new() } else { root.get("endpoints").sound_list() };
        let endpoints = items.iter().filter_map(|item| item.noted(Endpoint::read(item))).collect();
        let items = root.get("ports").sound_list();
        let ports = items.iter().filter_map(|item| item.noted(EndpointPort::read(item))).collect();
        root.unless_noted(Self {
            namespace: root.key().namespace.clone(),
            name: root.key().name.clone(),
            service: root.sound(metadata.get("labels").get(SERVICE_NAME_LABEL).string()),
            endpoints,
            ports,
            diagnostics: Vec::new(),
        })
    }
}

impl Endpoint {
    fn read(at: &Reader<'_>) -> Read<Self> {
        let mut addresses = Vec::new();
        for item in at.get("addresses").list()? {
            addresses.extend(item.parsed::<IpAddr>("an IP address")?);
        }
        let conditions = at.get("conditions");
        let ready = conditions.get("ready").flag()?.unwrap_or(true);
        let names = |field: &str| -> Read<Vec<String>> {
            let mut names = Vec::new();
            for item in at.get("hints").get(field).list()? {
                names.extend(item.get("name").string()?);
            }
            Ok(names)
        };
        Ok(Self {
            addresses,
            ready,
            serving: conditions.get("serving").flag()?.unwrap_or(ready),
            terminating: conditions.get("terminating").flag()?.unwrap_or(false),
            node: at.get("nodeName").string()?,
            zone: at.get("zone").string()?,
            for_zones: names("forZones")?,
            for_nodes: names("forNodes")?,
        })
    }
}

impl EndpointPort {
    fn read(at: &Reader<'_>) -> Read<Self> {
        Ok(Self {
            name: at.get("name").string()?.unwrap_or_default(),
            protocol: read_protocol(&at.get("protocol"))?,
            port: at.get("port").port()?,
        })
    }
}
