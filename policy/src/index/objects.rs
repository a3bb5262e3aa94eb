//! Objects into the model, and what has to be looked at because of them.

use std::{collections::BTreeSet, net::IpAddr};

use veni_ebpf_common::table::OPEN_SET;

use super::{
    Entry, Index, Local, Scope,
    cluster::{IdentityId, NamespaceId, PodId, PodState},
    region,
};
use crate::{
    change::{Direction, PodKey},
    object::{Namespace, Node, Pod},
};

impl Index {
    /// Whether some set judges what goes this way.
    #[must_use]
    pub fn is_isolated(&self, pod: &Pod, direction: Direction) -> bool {
        let sets = self.pod_sets(&PodKey::new(&*pod.namespace, &*pod.name));
        sets.is_some_and(|sets| sets.of(direction) != OPEN_SET)
    }

    /// What `from` was judged by judges `to` from now on: its name is known now. Where `to` has sets already, those stay,
    /// and `from`'s are given up with the next change.
    pub fn hand_over(&mut self, from: &PodKey, to: &PodKey) {
        if from == to {
            return;
        }
        let Some(mut had) = self.locals.remove(from) else { return };
        match self.locals.get_mut(to) {
            Some(Local { sets: Some(_), .. }) => {
                had.held = false;
                self.locals.insert(from.clone(), had);
            }
            Some(local) => local.sets = had.sets,
            None => drop(self.locals.insert(to.clone(), had)),
        }
    }

    pub(super) fn apply_namespace(&mut self, namespace: Namespace) {
        let id = self.cluster.namespace(&namespace.name);
        let state = &mut self.cluster.namespaces[id as usize];
        state.known = true;
        if state.labels == namespace.labels {
            return;
        }
        state.labels = namespace.labels;
        self.dirty.atoms.extend(state.identities.iter().copied());
        self.dirty.rules.extend(state.identities.iter().copied());
    }

    /// Its pods and policies stay until they are deleted themselves.
    pub(super) fn remove_namespace(&mut self, name: &str) {
        let Some(id) = self.cluster.namespace_id(name) else { return };
        self.apply_namespace(Namespace::named(name));
        self.cluster.namespaces[id as usize].known = false;
        self.cluster.release_namespace(id);
    }

    /// The node's own addresses are exactly these, to the programs before the next change. It is exempt from what judges
    /// its pods' egress, unless a ClusterNetworkPolicy names nodes and it is among them.
    pub fn own_addresses(&mut self, addresses: BTreeSet<IpAddr>) {
        let old = std::mem::replace(&mut self.own_addresses, addresses);
        self.dirty.addresses.extend(old.symmetric_difference(&self.own_addresses));
    }

    /// The node that the scope names.
    pub(super) fn own_node(&self) -> Option<&Node> {
        match &self.scope {
            Scope::Node(name) => self.nodes.get(name),
            Scope::All => None,
        }
    }

    fn touch_own_addresses(&mut self, node: &str) {
        if matches!(&self.scope, Scope::Node(name) if name == node) {
            self.dirty.addresses.extend(&self.own_addresses);
        }
    }

    pub(super) fn apply_node(&mut self, node: Node) {
        if self.nodes.get(&node.name) == Some(&node) {
            return;
        }
        self.remove_node(&node.name);
        for address in &node.addresses {
            self.nodes_by_address.entry(*address).or_default().insert(node.name.clone());
            self.dirty.addresses.insert(*address);
        }
        self.touch_own_addresses(&node.name);
        self.nodes.insert(node.name.clone(), node);
    }

    pub(super) fn remove_node(&mut self, name: &str) {
        let Some(node) = self.nodes.remove(name) else { return };
        self.touch_own_addresses(name);
        for address in node.addresses {
            if let Some(names) = self.nodes_by_address.get_mut(&address) {
                names.remove(name);
                if names.is_empty() {
                    self.nodes_by_address.remove(&address);
                }
            }
            self.dirty.addresses.insert(address);
        }
    }

    pub(super) fn choose_groups(&mut self, namespace: NamespaceId) {
        let identities: Vec<IdentityId> =
            self.cluster.namespace_state(namespace).identities.iter().copied().collect();
        for id in identities {
            let chosen = self.cluster.choose(&self.cluster.identity(id).key);
            let identity = self.cluster.identity_mut(id);
            if identity.chosen != chosen {
                if identity.chosen.any != chosen.any {
                    // Its pods are, or are not any more, members of their ENI's groups.
                    self.dirty.moved.insert(id);
                }
                identity.chosen = chosen;
                self.dirty.atoms.insert(id);
                self.dirty.rules.insert(id);
            }
        }
    }

    fn is_local(&self, pod: &Pod) -> bool {
        match &self.scope {
            Scope::All => true,
            Scope::Node(node) => pod.node.as_ref() == Some(node),
        }
    }

    pub(super) fn apply_pod(&mut self, pod: &Pod) {
        let known = self.cluster.pod_id(&pod.namespace, &pod.name);
        if pod.finished || pod.host_network {
            if let Some(id) = known {
                self.remove_pod(id);
            }
            return;
        }
        let (identity, new) = self.cluster.join_identity(pod);
        if new {
            self.dirty.atoms.insert(identity);
        }
        let local = self.is_local(pod);
        let id = match known {
            Some(id) => self.replace_pod(id, identity, local),
            None => {
                let namespace = self.cluster.namespace(&pod.namespace);
                let name = pod.name.as_str().into();
                let addresses = Box::default();
                let (uid, created, deleting) = (None, None, false);
                self.cluster.insert_pod(PodState {
                    name,
                    namespace,
                    identity,
                    addresses,
                    uid,
                    created,
                    deleting,
                    local,
                })
            }
        };
        let state = self.cluster.pods[id as usize].as_mut().expect("just put there");
        state.uid = pod.uid.as_deref().map(Into::into);
        (state.created, state.deleting) = (pod.created, pod.deleting);
        let key = PodKey::new(&*pod.namespace, &*pod.name);
        let addresses = match self.attached.get_mut(&key) {
            Some(attached) => {
                attached.status.clone_from(&pod.addresses);
                attached.given.clone()
            }
            None => pod.addresses.clone(),
        };
        if local {
            self.cluster.identity_mut(identity).local += 1;
            let absent = Local { pod: None, sets: None, held: false, chosen: None };
            let state = self.locals.entry(key.clone()).or_insert(absent);
            (state.pod, state.held) = (Some(id), false);
            self.dirty.locals.insert(key);
            self.dirty.rules.insert(identity);
        }
        self.set_addresses(id, addresses.into());
    }

    /// Leaves the old identity, not the addresses.
    fn replace_pod(&mut self, id: PodId, identity: IdentityId, local: bool) -> PodId {
        let state = self.cluster.pods[id as usize].as_mut().expect("it is known");
        let (old, was_local) = (state.identity, state.local);
        (state.identity, state.local) = (identity, local);
        if old != identity {
            self.dirty.addresses.extend(state.addresses.iter().copied());
        }
        if was_local {
            self.cluster.identity_mut(old).local -= 1;
            if !local {
                self.forget_local(id);
            }
        }
        self.leave_identity(old);
        id
    }

    fn leave_identity(&mut self, id: IdentityId) {
        if self.cluster.leave_identity(id) {
            self.dirty.atoms.remove(&id);
            self.dirty.rules.remove(&id);
            self.dirty.moved.remove(&id);
        }
    }

    fn forget_local(&mut self, id: PodId) {
        let pod = self.cluster.pod(id);
        let namespace = &self.cluster.namespace_state(pod.namespace).name;
        let key = PodKey::new(&**namespace, &*pod.name);
        if let Some(local) = self.locals.get_mut(&key) {
            local.pod = None;
            self.dirty.locals.insert(key);
        }
    }

    pub(super) fn remove_pod(&mut self, id: PodId) {
        self.set_addresses(id, Box::default());
        if self.cluster.pod(id).local {
            self.forget_local(id);
            let identity = self.cluster.pod(id).identity;
            self.cluster.identity_mut(identity).local -= 1;
        }
        let pod = self.cluster.remove_pod(id);
        self.leave_identity(pod.identity);
        self.cluster.release_namespace(pod.namespace);
    }

    /// What the pod says that its addresses are. Whose they are is [`Index::settle_owner`]'s.
    pub(super) fn set_addresses(&mut self, id: PodId, addresses: Box<[IpAddr]>) {
        let state = self.cluster.pods[id as usize].as_mut().expect("it is known");
        let old = std::mem::replace(&mut state.addresses, addresses.clone());
        for address in old.iter().filter(|address| !addresses.contains(address)) {
            self.dirty.addresses.insert(*address);
            if let Some(others) = self.contested.get_mut(address) {
                others.retain(|other| *other != id);
            }
            if let Some(entry) = self.entries.get_mut(address)
                && entry.pod == Some(id)
            {
                entry.pod = None;
                // What an earlier daemon knew of it was of the pod that leaves.
                entry.origin = 0;
            }
            self.settle_owner(*address);
        }
        for address in addresses {
            if !old.contains(&address) {
                self.contested.entry(address).or_default().push(id);
            }
            self.settle_owner(address);
        }
    }

    /// Gives an address to the pod whose it is: what this node gave, nobody else has; of other pods that claim it, one
    /// that is not being deleted has it before one that is, and then the newest. The rest makes all nodes say the same
    /// whatever they heard first.
    pub(super) fn settle_owner(&mut self, address: IpAddr) {
        let mut claimants = self.contested.remove(&address).unwrap_or_default();
        let before = self.entries.get(&address).and_then(|entry| entry.pod);
        claimants.extend(before);
        let owner = match self.given_to.get(&address) {
            Some(pod) => {
                let given = self.cluster.pod_id(&pod.namespace, &pod.name);
                given.filter(|id| claimants.contains(id))
            }
            None => claimants.iter().copied().max_by(|one, other| {
                let (one, other) = (self.cluster.pod(*one), self.cluster.pod(*other));
                self.claim(one).cmp(&self.claim(other))
            }),
        };
        claimants.retain(|id| Some(*id) != owner);
        let contested = owner.is_some() && !claimants.is_empty();
        if !claimants.is_empty() {
            self.contested.insert(address, claimants);
        }
        let changed = owner != before;
        // What an earlier daemon knew of it was of the pod that had it. Of objects that are read in any order it may have
        // been either's.
        let forget =
            if self.complete { changed } else { contested || (changed && before.is_some()) };
        if forget
            && let Some(entry) = self.entries.get_mut(&address)
            && std::mem::take(&mut entry.origin) != 0
        {
            self.dirty.addresses.insert(address);
        }
        if !changed {
            return;
        }
        self.dirty.addresses.insert(address);
        let blocks = self.regions.blocks_at(address);
        let absent = Entry { pod: None, blocks, extra: 0, class: region::ABSENT, origin: 0 };
        let entry = self.entries.entry(address).or_insert(absent);
        entry.pod = owner;
    }

    fn claim<'a>(&'a self, pod: &'a PodState) -> impl Ord + 'a {
        let namespace = &*self.cluster.namespace_state(pod.namespace).name;
        (!pod.deleting, pod.created, pod.uid.as_deref(), namespace, &*pod.name)
    }
}
