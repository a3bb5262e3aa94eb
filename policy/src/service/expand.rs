//! From one Service, or one pod with hostPorts, to the front ends that it claims and their back ends.

use std::{net::IpAddr, sync::Arc};

use super::{
    choice,
    claims::{Claimant, Rank, Target},
    endpoints,
    front_end::{BackEnd, Family, FrontEnd, PortName, is_special},
    sources::{Name, PodFacts, Sources},
};
use crate::object::{
    ContainerPort, Diagnostic, Key, Kind, Service, ServicePort, ServiceType, TrafficPolicy,
};

/// A Service with this label belongs to another proxy (kube-proxy's `LabelServiceProxyName`).
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// What an owner claims.
#[derive(Debug, Default)]
pub(super) struct Expansion {
    pub(super) claims: Vec<(FrontEnd, Claimant, Target)>,
    pub(super) diagnostics: Vec<Diagnostic>,
}

/// The claims of a Service or of a pod; none when there is no such object.
pub(super) fn of(sources: &Sources, owner: &Key) -> Expansion {
    let name: Name = (owner.namespace.clone(), owner.name.clone());
    let mut expansion = Expansion::default();
    match owner.kind {
        Kind::Service => {
            if let Some(service) = sources.service(&name).filter(|service| has_front_ends(service))
            {
                expansion.service(sources, service, owner);
            }
        }
        _ => {
            if let Some(pod) = sources.pod(&name).filter(|pod| sources.has_host_ports(pod)) {
                expansion.host_ports(sources, pod, owner);
            }
        }
    }
    expansion
}

/// util.go `ShouldSkipService`.
fn has_front_ends(service: &Service) -> bool {
    !service.headless
        && service.service_type != ServiceType::ExternalName
        && !service.labels.contains_key(PROXY_NAME_LABEL)
}

impl Expansion {
    fn service(&mut self, sources: &Sources, service: &Service, owner: &Key) {
        for (index, port) in service.ports.iter().enumerate() {
            let claimant = Claimant {
                rank: Rank::Service {
                    undated: service.created.is_none(),
                    created: service.created.clone().unwrap_or_default(),
                },
                owner: owner.clone(),
                index,
            };
            let name = Arc::new(PortName {
                owner: owner.clone(),
                port: port.name.clone(),
                protocol: port.protocol,
            });
            for family in Family::ALL.into_iter().filter(|family| serves(service, *family)) {
                self.service_port(sources, service, port, family, &claimant, &name);
            }
        }
        self.report_special(sources, service, owner);
    }

    /// A pod's packet to an external address or a NodePort is subject to no external traffic policy: it takes the
    /// back ends of policy "Cluster", as if it went out to a load balancer and came back in (proxier.go, "short-circuit
    /// pod traffic").
    fn service_port(
        &mut self,
        sources: &Sources,
        service: &Service,
        port: &ServicePort,
        family: Family,
        claimant: &Claimant,
        name: &Arc<PortName>,
    ) {
        let endpoints = endpoints::of(sources, service, port, family);
        let cluster = choice::cluster(&endpoints);
        let internal = match service.internal_traffic {
            TrafficPolicy::Cluster => Arc::clone(&cluster),
            TrafficPolicy::Local => choice::local(&endpoints),
        };
        let mut claim = |address: IpAddr, port: u16, back_ends: Option<&Arc<[BackEnd]>>| {
            let address = address.to_canonical();
            if Family::of(address) == family {
                let front_end = FrontEnd { address, port, protocol: name.protocol };
                let target = Target {
                    name: Arc::clone(name),
                    affinity_secs: service.affinity_secs.unwrap_or(0),
                    back_ends: back_ends.map_or_else(|| Arc::from([]), Arc::clone),
                    of_proxy: back_ends.is_none(),
                };
                self.claims.push((front_end, claimant.clone(), target));
            }
        };
        let usable = |address: &&IpAddr| !is_special(address.to_canonical());
        for address in service.cluster_addresses.iter().filter(usable) {
            claim(*address, port.port, Some(&internal));
        }
        for address in service.external_addresses.iter().filter(usable) {
            claim(*address, port.port, Some(&cluster));
        }
        for address in service.load_balancer_addresses.iter().filter(usable) {
            claim(*address, port.port, for_everyone(service, family).then_some(&cluster));
        }
        let on_nodes =
            matches!(service.service_type, ServiceType::NodePort | ServiceType::LoadBalancer);
        if let Some(node_port) = port.node_port.filter(|_| on_nodes) {
            for address in own(sources) {
                claim(address, node_port, Some(&cluster));
            }
        }
    }

    fn report_special(&mut self, sources: &Sources, service: &Service, owner: &Key) {
        let lists = [
            ("spec.clusterIPs", &service.cluster_addresses),
            ("spec.externalIPs", &service.external_addresses),
            ("status.loadBalancer.ingress", &service.load_balancer_addresses),
        ];
        for (field, addresses) in lists {
            for address in addresses {
                self.report(owner.clone(), field, *address, "the Service does not get it");
            }
        }
        let name = (owner.namespace.clone(), owner.name.clone());
        for (slice, contents) in sources.slices(&name).into_iter().flatten() {
            let key = Key::new(Kind::EndpointSlice, &*owner.namespace, &**slice);
            for endpoint in &contents.endpoints {
                self.report(key.clone(), "endpoints", endpoint.address, "it is no back end");
            }
        }
    }

    fn report(&mut self, key: Key, field: &str, address: IpAddr, so: &str) {
        if is_special(address.to_canonical()) {
            let what = "is unspecified, loopback, link-local or multicast";
            let message = format!("{address} {what}; {so}");
            self.diagnostics.push(Diagnostic { key, field: field.to_owned(), message });
        }
    }

    /// The portmap plugin's rules: an address of ours, or the one that is named, to the pod's of the same family.
    fn host_ports(&mut self, sources: &Sources, pod: &PodFacts, owner: &Key) {
        for (index, port) in pod.template.ports.iter().enumerate() {
            let Some(host_port) = port.host_port else { continue };
            for address in bound(sources, port) {
                let family = Family::of(address);
                let Some(own) = pod.addresses.iter().find(|own| Family::of(**own) == family) else {
                    continue;
                };
                self.claims.push((
                    FrontEnd { address, port: host_port, protocol: port.protocol },
                    Claimant {
                        rank: Rank::HostPort {
                            deleting: pod.deleting,
                            any_address: named_address(port).is_none(),
                        },
                        owner: owner.clone(),
                        index,
                    },
                    Target {
                        name: Arc::new(PortName {
                            owner: owner.clone(),
                            port: host_port.to_string(),
                            protocol: port.protocol,
                        }),
                        affinity_secs: 0,
                        back_ends: Arc::from([BackEnd { address: *own, port: port.port }]),
                        of_proxy: false,
                    },
                ));
            }
        }
    }
}

/// kube-proxy knows a Service in the families of its cluster addresses. One without any (a manifest that no API
/// server has seen) is known in both.
fn serves(service: &Service, family: Family) -> bool {
    let mut addresses = service.cluster_addresses.iter();
    service.cluster_addresses.is_empty()
        || addresses.any(|address| Family::of(address.to_canonical()) == family)
}

/// Load-balancer addresses with source ranges that leave someone out are kube-proxy's: it looks at the source, which a
/// front end cannot.
fn for_everyone(service: &Service, family: Family) -> bool {
    let mut of_family = service.source_ranges.iter().filter(|net| Family::of(net.addr()) == family);
    service.source_ranges.is_empty() || of_family.any(|range| range.prefix_len() == 0)
}

/// The node's own addresses that have NodePorts and hostPorts: every one that pods reach, link-local ones too. kube-proxy and
/// the portmap plugin lead on what any local address is sent (`fib daddr type local`, `--dst-type LOCAL`), and to an address
/// of the node at which nothing is claimed a pod may talk unless a policy names nodes.
fn own(sources: &Sources) -> impl Iterator<Item = IpAddr> {
    let own = sources.own.addresses.iter().map(|address| address.to_canonical());
    own.filter(|address| !address.is_loopback())
}

/// The own addresses that a hostPort is bound to.
fn bound(sources: &Sources, port: &ContainerPort) -> Vec<IpAddr> {
    let own = own(sources);
    match port.host_address.map(|address| address.to_canonical()) {
        None => own.collect(),
        // Every address of that family, as the plugin has it.
        Some(any) if any.is_unspecified() => {
            own.filter(|address| Family::of(*address) == Family::of(any)).collect()
        }
        Some(named) => own.filter(|address| *address == named).collect(),
    }
}

fn named_address(port: &ContainerPort) -> Option<IpAddr> {
    port.host_address.filter(|address| !address.is_unspecified())
}
