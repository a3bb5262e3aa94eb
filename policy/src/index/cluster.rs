//! Namespaces, pods and their identities.
//!
//! Pods of a namespace with equal labels, named ports and chosen security groups share one identity: selectors are
//! matched against identities, never against pods.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use veni_core::id::SecurityGroupId;

use crate::{
    compile::content::NamedPort,
    intern::{FastMap, FastSet, Strings},
    object::{Labels, Namespace, NetworkPolicy, Pod, SecurityGroupPolicy, Selector},
};

/// A namespace's place in [`Cluster`].
pub(crate) type NamespaceId = u32;
/// An identity's place in [`Cluster`].
pub(crate) type IdentityId = u32;
/// A pod's place in [`Cluster`].
pub(crate) type PodId = u32;

/// Labels, sorted by key.
pub(crate) type SharedLabels = Arc<[(Arc<str>, Arc<str>)]>;

/// A namespace, or what is known of one that is not among the objects.
#[derive(Debug)]
pub(crate) struct NamespaceState {
    /// Empty where the place is free.
    pub(crate) name: Arc<str>,
    /// Whether it is among the objects.
    pub(crate) known: bool,
    pub(crate) labels: Labels,
    pub(crate) identities: BTreeSet<IdentityId>,
    pub(crate) pods: FastMap<Box<str>, PodId>,
    pub(crate) policies: BTreeMap<String, Arc<NetworkPolicy>>,
    pub(crate) group_policies: BTreeMap<String, Arc<SecurityGroupPolicy>>,
}

/// What makes pods alike.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct IdentityKey {
    pub(crate) namespace: NamespaceId,
    pub(crate) labels: SharedLabels,
    pub(crate) ports: Arc<[NamedPort]>,
    /// The annotation's groups, and its items that are no ids.
    pub(crate) groups: Option<Arc<(Vec<SecurityGroupId>, Vec<String>)>>,
}

/// Pods that are alike.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) key: Arc<IdentityKey>,
    pub(crate) chosen: Chosen,
    /// Atoms that match.
    pub(crate) atoms: u32,
    /// Named ports that rules ask for.
    pub(crate) ports: u32,
    pub(crate) pods: u32,
    /// Pods among them that have rule sets here.
    pub(crate) local: u32,
}

/// The security groups of an identity.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Chosen {
    pub(crate) any: bool,
    pub(crate) ids: Vec<SecurityGroupId>,
    pub(crate) invalid: Vec<Invalid>,
}

/// What denies a pod everything in place of a security group.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Invalid {
    /// An item of a list of groups that is no id.
    Item(Arc<str>),
    /// A SecurityGroupPolicy that may select the pod or not.
    Policy { name: Arc<str>, why: Arc<str> },
}

impl Invalid {
    /// The item, or which policy.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Item(name) | Self::Policy { name, .. } => name,
        }
    }

    /// What is wrong with it.
    pub(crate) fn why(&self) -> &str {
        match self {
            Self::Item(_) => "not a security group's id",
            Self::Policy { why, .. } => why,
        }
    }
}

impl fmt::Display for Invalid {
    /// A policy's name is where the reason stands.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Item(item) => write!(f, "{item:?} is {}", self.why()),
            Self::Policy { why, .. } => f.write_str(why),
        }
    }
}

/// A pod that is neither finished nor on its node's network.
#[derive(Debug)]
pub(crate) struct PodState {
    pub(crate) name: Box<str>,
    pub(crate) namespace: NamespaceId,
    pub(crate) identity: IdentityId,
    pub(crate) addresses: Box<[IpAddr]>,
    pub(crate) uid: Option<Box<str>>,
    pub(crate) created: Option<u64>,
    pub(crate) deleting: bool,
    pub(crate) local: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    strings: Strings,
    pub(crate) namespaces: Vec<NamespaceState>,
    namespace_ids: FastMap<Arc<str>, NamespaceId>,
    free_namespaces: Vec<NamespaceId>,
    pub(crate) identities: Vec<Option<Identity>>,
    identity_ids: FastMap<Arc<IdentityKey>, IdentityId>,
    free_identities: Vec<IdentityId>,
    pub(crate) pods: Vec<Option<PodState>>,
    free_pods: Vec<PodId>,
    label_lists: FastSet<SharedLabels>,
    label_lists_swept: usize,
}

impl NamespaceState {
    fn new(name: Arc<str>, labels: Labels) -> Self {
        Self {
            name,
            known: false,
            labels,
            identities: BTreeSet::new(),
            pods: FastMap::default(),
            policies: BTreeMap::new(),
            group_policies: BTreeMap::new(),
        }
    }

    fn is_idle(&self) -> bool {
        !self.known
            && self.identities.is_empty()
            && self.pods.is_empty()
            && self.policies.is_empty()
            && self.group_policies.is_empty()
    }

    pub(crate) fn matches(&self, selector: &Selector) -> bool {
        selector.matches(&self.labels)
    }
}

impl Identity {
    pub(crate) fn matches(&self, selector: &Selector) -> bool {
        let labels = &self.key.labels;
        selector.matches_by(|key| {
            let found = labels.binary_search_by(|label| (*label.0).cmp(key)).ok()?;
            Some(&*labels[found].1)
        })
    }
}

impl Cluster {
    /// The namespace, made of its name alone when it is new.
    pub(crate) fn namespace(&mut self, name: &str) -> NamespaceId {
        if let Some(id) = self.namespace_ids.get(name) {
            return *id;
        }
        let shared = self.strings.share(name);
        let state = NamespaceState::new(Arc::clone(&shared), Namespace::named(name).labels);
        let id = if let Some(id) = self.free_namespaces.pop() {
            self.namespaces[id as usize] = state;
            id
        } else {
            self.namespaces.push(state);
            NamespaceId::try_from(self.namespaces.len() - 1).expect("namespaces fit in memory")
        };
        self.namespace_ids.insert(shared, id);
        id
    }

    /// Forgets a namespace of which nothing is left.
    pub(crate) fn release_namespace(&mut self, id: NamespaceId) {
        let state = &mut self.namespaces[id as usize];
        if state.is_idle() && self.namespace_ids.remove(&state.name).is_some() {
            *state = NamespaceState::new(Arc::from(""), Labels::new());
            self.free_namespaces.push(id);
        }
    }

    pub(crate) fn namespace_id(&self, name: &str) -> Option<NamespaceId> {
        self.namespace_ids.get(name).copied()
    }

    pub(crate) fn namespace_state(&self, id: NamespaceId) -> &NamespaceState {
        &self.namespaces[id as usize]
    }

    pub(crate) fn identity(&self, id: IdentityId) -> &Identity {
        self.identities[id as usize].as_ref().expect("pods have live identities")
    }

    pub(crate) fn identity_mut(&mut self, id: IdentityId) -> &mut Identity {
        self.identities[id as usize].as_mut().expect("pods have live identities")
    }

    pub(crate) fn live_identities(&self) -> impl Iterator<Item = (IdentityId, &Identity)> {
        (0..).zip(&self.identities).filter_map(|(id, identity)| Some((id, identity.as_ref()?)))
    }

    pub(crate) fn pod(&self, id: PodId) -> &PodState {
        self.pods[id as usize].as_ref().expect("only live pods are referred to")
    }

    pub(crate) fn pod_id(&self, namespace: &str, name: &str) -> Option<PodId> {
        let namespace = self.namespace_state(self.namespace_id(namespace)?);
        namespace.pods.get(name).copied()
    }

    /// The identity of a pod, one more pod's; and whether it is new.
    pub(crate) fn join_identity(&mut self, pod: &Pod) -> (IdentityId, bool) {
        let namespace = self.namespace(&pod.namespace);
        let key = IdentityKey {
            namespace,
            labels: self.labels(&pod.labels),
            ports: self.named_ports(pod),
            groups: pod
                .security_groups
                .as_ref()
                .map(|groups| Arc::new((groups.ids.clone(), groups.invalid.clone()))),
        };
        if let Some(id) = self.identity_ids.get(&key).copied() {
            self.identity_mut(id).pods += 1;
            return (id, false);
        }
        let key = Arc::new(key);
        let chosen = self.choose(&key);
        let identity =
            Identity { key: Arc::clone(&key), chosen, atoms: 0, ports: 0, pods: 1, local: 0 };
        let id = if let Some(id) = self.free_identities.pop() {
            self.identities[id as usize] = Some(identity);
            id
        } else {
            self.identities.push(Some(identity));
            IdentityId::try_from(self.identities.len() - 1).expect("identities fit in memory")
        };
        self.namespaces[namespace as usize].identities.insert(id);
        self.identity_ids.insert(key, id);
        (id, true)
    }

    /// One pod less; the identity goes with its last pod. Returns whether it went.
    pub(crate) fn leave_identity(&mut self, id: IdentityId) -> bool {
        let identity = self.identity_mut(id);
        identity.pods -= 1;
        if identity.pods > 0 {
            return false;
        }
        let key = Arc::clone(&identity.key);
        self.namespaces[key.namespace as usize].identities.remove(&id);
        self.identity_ids.remove(&key);
        self.identities[id as usize] = None;
        self.free_identities.push(id);
        true
    }

    pub(crate) fn insert_pod(&mut self, pod: PodState) -> PodId {
        let (namespace, name) = (pod.namespace, pod.name.clone());
        let id = if let Some(id) = self.free_pods.pop() {
            self.pods[id as usize] = Some(pod);
            id
        } else {
            self.pods.push(Some(pod));
            PodId::try_from(self.pods.len() - 1).expect("pods fit in memory")
        };
        self.namespaces[namespace as usize].pods.insert(name, id);
        id
    }

    pub(crate) fn remove_pod(&mut self, id: PodId) -> PodState {
        let pod = self.pods[id as usize].take().expect("only live pods are referred to");
        self.namespaces[pod.namespace as usize].pods.remove(&pod.name);
        self.free_pods.push(id);
        pod
    }

    /// Union of what the annotation and the policies of the namespace choose.
    pub(crate) fn choose(&self, key: &IdentityKey) -> Chosen {
        let mut chosen = Chosen::default();
        if let Some(groups) = &key.groups {
            chosen.any = true;
            chosen.ids.extend(groups.0.iter().cloned());
            chosen.invalid.extend(groups.1.iter().map(|item| Invalid::Item(item.as_str().into())));
        }
        let label = |wanted: &str| {
            let found = key.labels.binary_search_by(|label| (*label.0).cmp(wanted)).ok()?;
            Some(&*key.labels[found].1)
        };
        for policy in self.namespace_state(key.namespace).group_policies.values() {
            if policy.pods.matches_by(label) {
                chosen.any = true;
                chosen.ids.extend(policy.groups.iter().cloned());
                let items = policy.invalid_groups.iter().map(|item| item.as_str().into());
                chosen.invalid.extend(items.map(Invalid::Item));
                chosen.invalid.extend(policy.undecided.as_ref().map(|why| Invalid::Policy {
                    name:
                        format!("SecurityGroupPolicy {}/{}", policy.namespace, policy.name).into(),
                    why: why.as_str().into(),
                }));
            }
        }
        chosen.ids.sort();
        chosen.ids.dedup();
        chosen.invalid.sort();
        chosen.invalid.dedup();
        chosen
    }

    fn labels(&mut self, labels: &Labels) -> SharedLabels {
        let list: Vec<(Arc<str>, Arc<str>)> = labels
            .iter()
            .map(|(key, value)| (self.strings.share(key), self.strings.share(value)))
            .collect();
        if let Some(known) = self.label_lists.get(list.as_slice()) {
            return Arc::clone(known);
        }
        if self.label_lists.len() > 2 * self.label_lists_swept + 1024 {
            self.label_lists.retain(|list| Arc::strong_count(list) > 1);
            self.label_lists_swept = self.label_lists.len();
        }
        let shared: SharedLabels = Arc::from(list);
        self.label_lists.insert(Arc::clone(&shared));
        shared
    }

    fn named_ports(&mut self, pod: &Pod) -> Arc<[NamedPort]> {
        let mut ports: Vec<NamedPort> = Vec::new();
        for port in &pod.ports {
            if let Some(name) = &port.name {
                let name = self.strings.share(name);
                ports.push(NamedPort { name, protocol: port.protocol, number: port.port });
            }
        }
        ports.sort();
        ports.dedup();
        Arc::from(ports)
    }
}
