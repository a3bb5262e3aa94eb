//! What front ends and back ends are worked out from, and which of them a change touches.
//!
//! Only what is needed is kept, in little room: 150,000 pods and as many endpoints have to fit beside the index.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use super::OwnNode;
use crate::object::{
    ContainerPort, EndpointPort, EndpointSlice, Key, Kind, Labels, Node, Object, Pod, Service,
};

/// Namespace and name.
pub(super) type Name = (String, String);

/// The owners of front ends that have to be looked at again.
pub(super) type Dirty = BTreeSet<Key>;

/// The objects.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) own: OwnNode,
    services: BTreeMap<Name, Service>,
    slices: BTreeMap<Name, BTreeMap<String, Slice>>,
    /// A slice's Service.
    slice_services: BTreeMap<Name, String>,
    pods: BTreeMap<Name, PodFacts>,
    /// Addresses that our node gave its pods, before the API says so.
    attached: BTreeMap<Name, Box<[IpAddr]>>,
    templates: BTreeSet<Arc<Template>>,
    zones: BTreeMap<String, Arc<str>>,
}

/// A slice, trimmed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Slice {
    pub(super) ports: Vec<EndpointPort>,
    pub(super) endpoints: Vec<SliceEndpoint>,
}

/// An endpoint of a slice, as our node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SliceEndpoint {
    pub(super) address: IpAddr,
    pub(super) ready: bool,
    pub(super) serving: bool,
    pub(super) terminating: bool,
    pub(super) local: bool,
    pub(super) node_hint: Hint,
    /// Shared with its neighbours, which mostly have the same.
    pub(super) zones: Arc<[String]>,
}

/// For whom an endpoint is meant, as our node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hint {
    Absent,
    Elsewhere,
    Here,
}

/// A pod that can be a back end. One of our node may have no address yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodFacts {
    pub(super) template: Arc<Template>,
    pub(super) node: Option<Arc<str>>,
    pub(super) addresses: Box<[IpAddr]>,
    pub(super) host_network: bool,
    pub(super) ready: bool,
    pub(super) deleting: bool,
}

/// What the pods of a workload have in common.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Template {
    pub(super) labels: Labels,
    pub(super) ports: Vec<ContainerPort>,
}

impl Hint {
    pub(super) fn of(names: &[String], own: Option<&str>) -> Self {
        match own {
            _ if names.is_empty() => Self::Absent,
            Some(own) if names.iter().any(|name| name == own) => Self::Here,
            _ => Self::Elsewhere,
        }
    }
}

impl Sources {
    pub(super) fn new(own: OwnNode) -> Self {
        Self {
            own,
            services: BTreeMap::new(),
            slices: BTreeMap::new(),
            slice_services: BTreeMap::new(),
            pods: BTreeMap::new(),
            attached: BTreeMap::new(),
            templates: BTreeSet::new(),
            zones: BTreeMap::new(),
        }
    }

    /// The node, and what it gave its pods.
    pub(super) fn without_objects(&mut self) -> Self {
        let attached = std::mem::take(&mut self.attached);
        Self { attached, ..Self::new(self.own.clone()) }
    }

    pub(super) fn service(&self, name: &Name) -> Option<&Service> {
        self.services.get(name)
    }

    /// The Service's slices; `None` when it has none, and its selector decides.
    pub(super) fn slices(&self, service: &Name) -> Option<&BTreeMap<String, Slice>> {
        self.slices.get(service)
    }

    pub(super) fn pod(&self, name: &Name) -> Option<&PodFacts> {
        self.pods.get(name)
    }

    /// The pods that the Service selects. None without a selector: its back ends are someone else's to say.
    pub(super) fn selected<'a>(
        &'a self,
        service: &'a Service,
    ) -> impl Iterator<Item = &'a PodFacts> {
        let pods = in_namespace(&self.pods, &service.namespace).map(|(_, pod)| pod);
        pods.filter(|pod| selects(service, &pod.template.labels))
    }

    /// A node's zone: its label; of our own node else what the daemon knows.
    pub(super) fn zone_of(&self, node: &str) -> Option<&str> {
        let known = || self.own.zone.as_deref().filter(|_| node == self.own.name);
        self.zones.get(node).map(|zone| &**zone).or_else(known)
    }

    pub(super) fn own_zone(&self) -> Option<&str> {
        self.zone_of(&self.own.name)
    }

    /// Every owner there is.
    pub(super) fn owners(&self) -> Dirty {
        let services = self.services.keys().map(service_key);
        let pods = self.pods.iter().filter(|(_, pod)| self.has_host_ports(pod));
        services.chain(pods.map(|(name, _)| pod_key(name))).collect()
    }

    pub(super) fn has_host_ports(&self, pod: &PodFacts) -> bool {
        !pod.host_network
            && pod.node.as_deref() == Some(&*self.own.name)
            && pod.template.ports.iter().any(|port| port.host_port.is_some())
    }

    pub(super) fn apply(&mut self, object: &Object, dirty: &mut Dirty) {
        match object {
            Object::Service(service) => self.apply_service(service, dirty),
            Object::EndpointSlice(slice) => self.apply_slice(slice, dirty),
            Object::Pod(pod) => {
                let facts = self.facts(pod);
                self.replace_pod((pod.namespace.clone(), pod.name.clone()), facts, dirty);
            }
            Object::Node(node) => self.replace_zone(&node.name, Node::zone(node), dirty),
            Object::Namespace(_)
            | Object::NetworkPolicy(_)
            | Object::ClusterNetworkPolicy(_)
            | Object::SecurityGroupPolicy(_) => {}
        }
    }

    pub(super) fn delete(&mut self, key: &Key, dirty: &mut Dirty) {
        let name = (key.namespace.clone(), key.name.clone());
        match key.kind {
            Kind::Service => {
                dirty.extend(self.services.remove(&name).map(|_| key.clone()));
            }
            Kind::EndpointSlice => self.remove_slice(&name, dirty),
            Kind::Pod => self.replace_pod(name, None, dirty),
            Kind::Node => self.replace_zone(&key.name, None, dirty),
            Kind::Namespace
            | Kind::NetworkPolicy
            | Kind::ClusterNetworkPolicy
            | Kind::SecurityGroupPolicy => {}
        }
    }

    fn apply_service(&mut self, service: &Service, dirty: &mut Dirty) {
        let name = (service.namespace.clone(), service.name.clone());
        if self.services.get(&name) != Some(service) {
            dirty.insert(service_key(&name));
            self.services.insert(name, service.clone());
        }
    }

    fn apply_slice(&mut self, slice: &EndpointSlice, dirty: &mut Dirty) {
        let name = (slice.namespace.clone(), slice.name.clone());
        if self.slice_services.get(&name) != slice.service.as_ref() {
            self.remove_slice(&name, dirty);
        }
        let Some(service) = &slice.service else { return };
        let trimmed = self.trim(slice);
        let owner = (slice.namespace.clone(), service.clone());
        let of_service = self.slices.entry(owner.clone()).or_default();
        if of_service.get(&slice.name) != Some(&trimmed) {
            dirty.insert(service_key(&owner));
            of_service.insert(slice.name.clone(), trimmed);
        }
        self.slice_services.insert(name, service.clone());
    }

    fn remove_slice(&mut self, name: &Name, dirty: &mut Dirty) {
        let Some(service) = self.slice_services.remove(name) else { return };
        let owner = (name.0.clone(), service);
        dirty.insert(service_key(&owner));
        if let Some(of_service) = self.slices.get_mut(&owner) {
            of_service.remove(&name.1);
            if of_service.is_empty() {
                self.slices.remove(&owner);
            }
        }
    }

    fn trim(&self, slice: &EndpointSlice) -> Slice {
        let mut zones: Arc<[String]> = Arc::from([]);
        let endpoints = slice.endpoints.iter().filter_map(|endpoint| {
            if *zones != *endpoint.for_zones {
                zones = Arc::from(endpoint.for_zones.as_slice());
            }
            Some(SliceEndpoint {
                address: endpoint.addresses.first()?.to_canonical(),
                ready: endpoint.ready,
                serving: endpoint.serving,
                terminating: endpoint.terminating,
                local: endpoint.node.as_deref() == Some(&*self.own.name),
                node_hint: Hint::of(&endpoint.for_nodes, Some(&self.own.name)),
                zones: Arc::clone(&zones),
            })
        });
        Slice { endpoints: endpoints.collect(), ports: slice.ports.clone() }
    }

    /// The node gave this pod these addresses; none: it is gone from here.
    pub(super) fn attach(&mut self, name: Name, addresses: &[IpAddr], dirty: &mut Dirty) {
        let addresses: Box<[IpAddr]> = addresses.iter().map(IpAddr::to_canonical).collect();
        if let Some(pod) = self.pods.get(&name).filter(|pod| !pod.host_network) {
            let facts = PodFacts { addresses: addresses.clone(), ..pod.clone() };
            self.replace_pod(name.clone(), Some(facts), dirty);
        }
        if addresses.is_empty() {
            self.attached.remove(&name);
        } else {
            self.attached.insert(name, addresses);
        }
    }

    /// `None` for a pod without addresses, unless our node may give it some.
    fn facts(&mut self, pod: &Pod) -> Option<PodFacts> {
        let ours = pod.node.as_deref() == Some(&*self.own.name);
        if pod.finished || (pod.addresses.is_empty() && !ours) {
            return None;
        }
        let attached = self.attached.get(&(pod.namespace.clone(), pod.name.clone()));
        let addresses = match attached.filter(|_| ours && !pod.host_network) {
            Some(attached) => attached.clone(),
            None => pod.addresses.iter().map(IpAddr::to_canonical).collect(),
        };
        let template = Template { labels: pod.labels.clone(), ports: pod.ports.clone() };
        let template = if let Some(known) = self.templates.get(&template) {
            Arc::clone(known)
        } else {
            let template = Arc::new(template);
            self.templates.insert(Arc::clone(&template));
            template
        };
        Some(PodFacts {
            template,
            node: pod.node.as_deref().map(Arc::from),
            addresses,
            host_network: pod.host_network,
            ready: pod.ready,
            deleting: pod.deleting,
        })
    }

    fn replace_pod(&mut self, name: Name, facts: Option<PodFacts>, dirty: &mut Dirty) {
        if self.pods.get(&name) == facts.as_ref() {
            return;
        }
        let old = self.pods.remove(&name);
        for pod in old.iter().chain(&facts) {
            let services = in_namespace(&self.services, &name.0);
            let touched = services
                .filter(|(name, _)| !self.slices.contains_key(*name))
                .filter(|(_, service)| selects(service, &pod.template.labels));
            dirty.extend(touched.map(|(name, _)| service_key(name)));
            if self.has_host_ports(pod) {
                dirty.insert(pod_key(&name));
            }
        }
        if let Some(old) = old {
            self.release(old.template);
        }
        if let Some(facts) = facts {
            self.pods.insert(name, facts);
        }
    }

    fn release(&mut self, template: Arc<Template>) {
        // The set's own and this one.
        if Arc::strong_count(&template) == 2 {
            self.templates.remove(&template);
        }
    }

    fn replace_zone(&mut self, node: &str, zone: Option<&str>, dirty: &mut Dirty) {
        if self.zones.get(node).map(|zone| &**zone) == zone {
            return;
        }
        match zone {
            Some(zone) => self.zones.insert(node.to_owned(), Arc::from(zone)),
            None => self.zones.remove(node),
        };
        let own = node == self.own.name;
        let touched = self.services.iter().filter(|(name, service)| {
            own || (service.traffic_distribution.is_some() && !self.slices.contains_key(*name))
        });
        dirty.extend(touched.map(|(name, _)| service_key(name)));
    }
}

pub(super) fn service_key(name: &Name) -> Key {
    Key::new(Kind::Service, &*name.0, &*name.1)
}

fn pod_key(name: &Name) -> Key {
    Key::new(Kind::Pod, &*name.0, &*name.1)
}

fn selects(service: &Service, labels: &Labels) -> bool {
    !service.selector.is_empty()
        && service.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn in_namespace<'a, T>(
    map: &'a BTreeMap<Name, T>,
    namespace: &'a str,
) -> impl Iterator<Item = (&'a Name, &'a T)> {
    map.range((namespace.to_owned(), String::new())..)
        .take_while(move |((own, _), _)| own == namespace)
}
