//! A Service port's endpoints: from its slices, or worked out from its selector as the API server's controller does.

use std::{collections::BTreeMap, net::IpAddr};

use super::{
    front_end::{BackEnd, Family, is_special},
    sources::{Hint, PodFacts, Slice, SliceEndpoint, Sources},
};
use crate::object::{Service, ServicePort, TargetPort};

/// An endpoint, as our node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) ready: bool,
    pub(super) serving: bool,
    pub(super) terminating: bool,
    /// On our node.
    pub(super) local: bool,
    pub(super) node_hint: Hint,
    pub(super) zone_hint: Hint,
}

/// Endpoints of one family, each back end once.
pub(super) type Endpoints = BTreeMap<BackEnd, Endpoint>;

/// The endpoints of a Service's port. Back ends at special addresses (loopback, link-local: the API server takes
/// none) are left out.
pub(super) fn of(
    sources: &Sources,
    service: &Service,
    port: &ServicePort,
    family: Family,
) -> Endpoints {
    let name = (service.namespace.clone(), service.name.clone());
    let mut endpoints = Endpoints::new();
    match sources.slices(&name) {
        Some(slices) => {
            for slice in slices.values() {
                of_slice(&mut endpoints, slice, port, family, sources.own_zone());
            }
        }
        None => {
            for pod in sources.selected(service) {
                let found = of_pod(sources, service, pod, port, family);
                endpoints.extend(found);
            }
        }
    }
    endpoints
}

/// endpointslicecache.go `addEndpoints`: ports belong to a Service port by name and protocol; of an endpoint that is
/// in two slices, the one that is local counts.
fn of_slice(
    endpoints: &mut Endpoints,
    slice: &Slice,
    port: &ServicePort,
    family: Family,
    zone: Option<&str>,
) {
    let ports = slice
        .ports
        .iter()
        .filter(|own| own.name == port.name && own.protocol == port.protocol)
        .filter_map(|own| own.port);
    for port in ports {
        for item in slice.endpoints.iter().filter(|item| usable(item.address, family)) {
            let back_end = BackEnd { address: item.address, port };
            if item.local || !endpoints.contains_key(&back_end) {
                endpoints.insert(back_end, Endpoint::of_slice(item, zone));
            }
        }
    }
}

/// endpointslice/utils.go `podToEndpoint` and `getEndpointPorts`: the first address of the family; a named port is
/// each pod's own.
fn of_pod(
    sources: &Sources,
    service: &Service,
    pod: &PodFacts,
    port: &ServicePort,
    family: Family,
) -> Option<(BackEnd, Endpoint)> {
    let address = pod.addresses.iter().copied().find(|address| Family::of(*address) == family)?;
    let number = match &port.target {
        TargetPort::Number(number) => *number,
        TargetPort::Name(name) => pod
            .template
            .ports
            .iter()
            .find(|own| own.protocol == port.protocol && own.name.as_deref() == Some(name))
            .map(|own| own.port)?,
    };
    if !usable(address, family) {
        return None;
    }
    let (zone_hint, node_hint) = distribution(sources, service, pod.node.as_deref());
    let endpoint = Endpoint {
        ready: service.publish_not_ready || (pod.ready && !pod.deleting),
        serving: pod.ready,
        terminating: pod.deleting,
        local: pod.node.as_deref() == Some(&*sources.own.name),
        node_hint,
        zone_hint,
    };
    Some((BackEnd { address, port: number }, endpoint))
}

/// endpointslice/trafficdist `ReconcileHints`: each endpoint is meant for its own zone; with `PreferSameNode` for its
/// own node, too. (Topology mode "Auto" weighs zones by their CPUs: such hints come from slices only.)
fn distribution(sources: &Sources, service: &Service, node: Option<&str>) -> (Hint, Hint) {
    let prefer = service.traffic_distribution.as_deref();
    let same_node = prefer == Some("PreferSameNode");
    let same_zone = same_node || matches!(prefer, Some("PreferClose" | "PreferSameZone"));
    let hint = |wanted: bool, of: Option<&str>, own: Option<&str>| match of {
        Some(of) if wanted && own == Some(of) => Hint::Here,
        Some(_) if wanted => Hint::Elsewhere,
        _ => Hint::Absent,
    };
    let zone = node.and_then(|node| sources.zone_of(node));
    (hint(same_zone, zone, sources.own_zone()), hint(same_node, node, Some(&sources.own.name)))
}

fn usable(address: IpAddr, family: Family) -> bool {
    Family::of(address) == family && !is_special(address)
}

impl Endpoint {
    fn of_slice(item: &SliceEndpoint, zone: Option<&str>) -> Self {
        Self {
            ready: item.ready,
            serving: item.serving,
            terminating: item.terminating,
            local: item.local,
            node_hint: item.node_hint,
            zone_hint: Hint::of(&item.zones, zone),
        }
    }
}
