//! What the tables should be, worked out from nothing but the objects that are there now, by the text of the
//! Kubernetes documentation ("Virtual IPs and Service Proxies", "EndpointSlices") rather than by our code.

use std::{cmp::Ordering, collections::BTreeMap, net::IpAddr};

use veni_policy::{
    object::{Object, Pod, Protocol, Service, ServicePort, ServiceType, TargetPort, TrafficPolicy},
    service::{BackEnd, FrontEnd, OwnNode},
};

/// Affinity and back ends.
pub(crate) type Expected = BTreeMap<FrontEnd, (u32, Vec<BackEnd>)>;

struct Cluster<'a> {
    objects: &'a [Object],
    own: &'a OwnNode,
}

struct Endpoint {
    to: BackEnd,
    ready: bool,
    serving: bool,
    terminating: bool,
    node: String,
    for_zones: Vec<String>,
    for_nodes: Vec<String>,
}

/// One who wants a front end: (hostPort, its order, affinity, back ends).
type Wish = (bool, Order, u32, Vec<BackEnd>);
/// For Services: undated last, then by date, then by name. For hostPorts: leaving ones last, then those of any address.
type Order = (bool, String, String, String, usize);

pub(crate) fn expected(objects: &[Object], own: &OwnNode) -> Expected {
    let cluster = Cluster { objects, own };
    let mut wishes: Vec<(FrontEnd, Wish)> = Vec::new();
    for object in objects {
        match object {
            Object::Service(service) => cluster.wishes_of_service(service, &mut wishes),
            Object::Pod(pod) => cluster.wishes_of_pod(pod, &mut wishes),
            _ => {}
        }
    }
    let mut granted: BTreeMap<FrontEnd, Wish> = BTreeMap::new();
    for (at, wish) in wishes {
        match granted.get(&at) {
            Some(other) if (other.0, &other.1).cmp(&(wish.0, &wish.1)) != Ordering::Greater => {}
            _ => {
                granted.insert(at, wish);
            }
        }
    }
    granted.into_iter().map(|(at, (_, _, affinity, to))| (at, (affinity, to))).collect()
}

impl Cluster<'_> {
    fn wishes_of_service(&self, service: &Service, wishes: &mut Vec<(FrontEnd, Wish)>) {
        let foreign = service.labels.contains_key("service.kubernetes.io/service-proxy-name");
        if service.headless || service.service_type == ServiceType::ExternalName || foreign {
            return;
        }
        for (index, port) in service.ports.iter().enumerate() {
            for v4 in [true, false] {
                let known = service.cluster_addresses.iter().any(|a| a.is_ipv4() == v4);
                if !known && !service.cluster_addresses.is_empty() {
                    continue;
                }
                let all = self.endpoints(service, port, v4);
                let anywhere = self.by_topology(&all);
                let inside = match service.internal_traffic {
                    TrafficPolicy::Cluster => anywhere.clone(),
                    TrafficPolicy::Local => self.on_own_node(&all),
                };
                let mut wanted: Vec<(IpAddr, u16, &Vec<BackEnd>)> = Vec::new();
                wanted.extend(service.cluster_addresses.iter().map(|a| (*a, port.port, &inside)));
                wanted
                    .extend(service.external_addresses.iter().map(|a| (*a, port.port, &anywhere)));
                wanted.extend(
                    service.load_balancer_addresses.iter().map(|a| (*a, port.port, &anywhere)),
                );
                if service.service_type != ServiceType::ClusterIp
                    && let Some(node_port) = port.node_port
                {
                    wanted.extend(self.own.addresses.iter().map(|a| (*a, node_port, &anywhere)));
                }
                for (address, number, to) in wanted {
                    if address.is_ipv4() != v4 || address.is_loopback() {
                        continue;
                    }
                    let at = FrontEnd { address, port: number, protocol: port.protocol };
                    let (namespace, name) = (service.namespace.clone(), service.name.clone());
                    let created = service.created.clone();
                    let order =
                        (created.is_none(), created.unwrap_or_default(), namespace, name, index);
                    wishes
                        .push((at, (false, order, service.affinity_secs.unwrap_or(0), to.clone())));
                }
            }
        }
    }

    fn wishes_of_pod(&self, pod: &Pod, wishes: &mut Vec<(FrontEnd, Wish)>) {
        if pod.finished || pod.host_network || pod.node.as_deref() != Some(&self.own.name) {
            return;
        }
        for (index, port) in pod.ports.iter().enumerate() {
            let Some(host_port) = port.host_port else { continue };
            for own in self.own.addresses.iter().filter(|own| !own.is_loopback()) {
                let any = match port.host_address {
                    None => true,
                    Some(of_family) if of_family.is_unspecified() => {
                        if of_family.is_ipv4() != own.is_ipv4() {
                            continue;
                        }
                        true
                    }
                    Some(named) if named == *own => false,
                    Some(_) => continue,
                };
                let Some(to) = pod.addresses.iter().find(|a| a.is_ipv4() == own.is_ipv4()) else {
                    continue;
                };
                let rank = format!("{}{}", u8::from(pod.deleting), u8::from(any));
                let order = (false, rank, pod.namespace.clone(), pod.name.clone(), index);
                let to = vec![BackEnd { address: *to, port: port.port }];
                let at = FrontEnd { address: *own, port: host_port, protocol: port.protocol };
                wishes.push((at, (true, order, 0, to)));
            }
        }
    }

    fn endpoints(&self, service: &Service, port: &ServicePort, v4: bool) -> Vec<Endpoint> {
        let slices = self.objects.iter().filter_map(|object| match object {
            Object::EndpointSlice(slice)
                if slice.namespace == service.namespace
                    && slice.service.as_deref() == Some(&service.name) =>
            {
                Some(slice)
            }
            _ => None,
        });
        let slices: Vec<_> = slices.collect();
        if slices.is_empty() {
            return self.of_selector(service, port, v4);
        }
        let mut all: Vec<Endpoint> = Vec::new();
        for slice in slices {
            for own in &slice.ports {
                if own.name != port.name || own.protocol != port.protocol {
                    continue;
                }
                let Some(number) = own.port else { continue };
                for item in &slice.endpoints {
                    let address = item.addresses[0];
                    if address.is_ipv4() != v4 {
                        continue;
                    }
                    let to = BackEnd { address, port: number };
                    let node = item.node.clone().unwrap_or_default();
                    let local = node == self.own.name;
                    if all.iter().any(|other| other.to == to) {
                        if !local {
                            continue;
                        }
                        all.retain(|other| other.to != to);
                    }
                    all.push(Endpoint {
                        to,
                        ready: item.ready,
                        serving: item.serving,
                        terminating: item.terminating,
                        node,
                        for_zones: item.for_zones.clone(),
                        for_nodes: item.for_nodes.clone(),
                    });
                }
            }
        }
        all
    }

    fn of_selector(&self, service: &Service, port: &ServicePort, v4: bool) -> Vec<Endpoint> {
        let mut all = Vec::new();
        for object in self.objects {
            let Object::Pod(pod) = object else { continue };
            let matches = service.selector.iter().all(|(k, v)| pod.labels.get(k) == Some(v));
            if pod.namespace != service.namespace || service.selector.is_empty() || !matches {
                continue;
            }
            let Some(address) = pod.addresses.iter().find(|a| a.is_ipv4() == v4) else { continue };
            let number = match &port.target {
                TargetPort::Number(number) => Some(*number),
                TargetPort::Name(name) => named(pod, name, port.protocol),
            };
            let (false, Some(number)) = (pod.finished, number) else { continue };
            let node = pod.node.clone().unwrap_or_default();
            let prefer = service.traffic_distribution.as_deref().unwrap_or_default();
            let mut for_zones = Vec::new();
            let mut for_nodes = Vec::new();
            if ["PreferClose", "PreferSameZone", "PreferSameNode"].contains(&prefer) {
                for_zones.extend(self.zone(&node));
            }
            if prefer == "PreferSameNode" && !node.is_empty() {
                for_nodes.push(node.clone());
            }
            all.push(Endpoint {
                to: BackEnd { address: *address, port: number },
                ready: service.publish_not_ready || (pod.ready && !pod.deleting),
                serving: pod.ready,
                terminating: pod.deleting,
                node,
                for_zones,
                for_nodes,
            });
        }
        all
    }

    fn zone(&self, name: &str) -> Option<String> {
        let labelled = self.objects.iter().find_map(|object| match object {
            Object::Node(node) if node.name == name => node.zone().map(str::to_owned),
            _ => None,
        });
        labelled.or_else(|| self.own.zone.clone().filter(|_| name == self.own.name))
    }

    fn by_topology(&self, all: &[Endpoint]) -> Vec<BackEnd> {
        let zone = self.zone(&self.own.name).unwrap_or_default();
        let ready: Vec<&Endpoint> = all.iter().filter(|e| e.ready).collect();
        let for_node: Vec<&Endpoint> =
            ready.iter().copied().filter(|e| e.for_nodes.contains(&self.own.name)).collect();
        let for_zone: Vec<&Endpoint> =
            ready.iter().copied().filter(|e| e.for_zones.contains(&zone)).collect();
        let chosen = if !for_node.is_empty() && ready.iter().all(|e| !e.for_nodes.is_empty()) {
            for_node
        } else if !for_zone.is_empty() && ready.iter().all(|e| !e.for_zones.is_empty()) {
            for_zone
        } else if ready.is_empty() {
            all.iter().filter(|e| e.serving && e.terminating).collect()
        } else {
            ready
        };
        sorted(&chosen)
    }

    fn on_own_node(&self, all: &[Endpoint]) -> Vec<BackEnd> {
        let own = all.iter().filter(|e| e.node == self.own.name);
        let (ready, rest): (Vec<&Endpoint>, Vec<&Endpoint>) = own.partition(|e| e.ready);
        if !ready.is_empty() {
            return sorted(&ready);
        }
        let leaving: Vec<&Endpoint> =
            rest.into_iter().filter(|e| e.serving && e.terminating).collect();
        sorted(&leaving)
    }
}

fn named(pod: &Pod, name: &str, protocol: Protocol) -> Option<u16> {
    let mut ports = pod.ports.iter();
    ports.find(|p| p.name.as_deref() == Some(name) && p.protocol == protocol).map(|p| p.port)
}

fn sorted(endpoints: &[&Endpoint]) -> Vec<BackEnd> {
    let mut all: Vec<BackEnd> = endpoints.iter().map(|e| e.to).collect();
    all.sort();
    all.dedup();
    all
}
