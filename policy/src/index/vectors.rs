//! Answers to atoms: which identities, regions and addresses each question matches.

use std::{net::IpAddr, sync::Arc};

use super::{
    Entry, Index,
    atom::{Namespaces, Question},
    cluster::{Cluster, Identity, IdentityId},
    region::ABSENT,
};
use crate::{
    compile::{AtomId, content::NamedPort},
    intern::{FastMap, FastSet},
};

impl Index {
    /// Brings every answer up to date with the atoms that sets ask. Returns whether regions changed.
    pub(super) fn refresh_vectors(&mut self) -> bool {
        let (added, removed) = self.atoms.settle();
        for (atom, question) in &removed {
            match &**question {
                Question::Block { cidr, except } => self.regions.remove_block(*atom, *cidr, except),
                Question::Unlisted { v6 } => self.regions.remove_unlisted(*atom, *v6),
                _ => {}
            }
        }
        for (atom, question) in &added {
            match &**question {
                Question::Block { cidr, except } => self.regions.add_block(*atom, *cidr, except),
                Question::Unlisted { v6 } => self.regions.add_unlisted(*atom, *v6),
                _ => {}
            }
        }
        let asks_addresses = |question: &Question| {
            matches!(question, Question::Nodes(_) | Question::OwnNode(_) | Question::Group(_))
        };
        let gone: FastSet<AtomId> = removed.iter().map(|(atom, _)| *atom).collect();
        self.extra_atoms.retain(|(atom, _)| !gone.contains(atom));
        let more = added.iter().filter(|(_, question)| asks_addresses(question));
        self.extra_atoms.extend(more.cloned());
        self.extra_atoms.sort_unstable_by_key(|(atom, _)| *atom);
        self.mark_extras(added.iter().chain(&removed).map(|(_, question)| &**question));
        self.refresh_identities(&added, &removed);
        if std::mem::take(&mut self.dirty.port_names) {
            self.refresh_all_ports();
        }
        self.regions.refresh(&mut self.lists.atoms)
    }

    /// Addresses of which more or less is asked now.
    fn mark_extras<'a>(&mut self, questions: impl Iterator<Item = &'a Question>) {
        for question in questions {
            match question {
                Question::Nodes(_) => {
                    self.dirty.addresses.extend(self.nodes_by_address.keys().copied());
                }
                Question::OwnNode(_) => self.dirty.addresses.extend(&self.own_addresses),
                Question::Group(id) => {
                    let members = self.groups.members.get(id);
                    self.dirty.addresses.extend(members.into_iter().flatten().copied());
                }
                Question::Pods { .. } | Question::Block { .. } | Question::Unlisted { .. } => {}
            }
        }
    }

    fn refresh_identities(
        &mut self,
        added: &[(AtomId, Arc<Question>)],
        removed: &[(AtomId, Arc<Question>)],
    ) {
        let gone: FastSet<AtomId> = removed
            .iter()
            .filter(|(_, question)| asks_pods(question))
            .map(|(atom, _)| *atom)
            .collect();
        let mut more: FastMap<IdentityId, Vec<AtomId>> = FastMap::default();
        for (atom, question) in added.iter().filter(|(_, question)| asks_pods(question)) {
            for id in matching(&self.cluster, question) {
                more.entry(id).or_default().push(*atom);
            }
        }
        let anew = std::mem::take(&mut self.dirty.atoms);
        if !gone.is_empty() {
            self.drop_atoms(&gone, &anew);
        }
        for (id, atoms) in more {
            if !anew.contains(&id) {
                let list = self.cluster.identity(id).atoms;
                let mut all = [self.lists.atoms.get(list), &atoms].concat();
                all.sort_unstable();
                self.set_atoms(id, &all);
            }
        }
        for id in anew {
            let identity = self.cluster.identity(id);
            let mut atoms: Vec<AtomId> = self
                .atoms
                .answered()
                .filter(|(_, question)| matches(&self.cluster, identity, question))
                .map(|(atom, _)| atom)
                .collect();
            atoms.sort_unstable();
            self.set_atoms(id, &atoms);
            self.refresh_ports(id);
        }
    }

    fn drop_atoms(&mut self, gone: &FastSet<AtomId>, anew: &FastSet<IdentityId>) {
        let mut without: FastMap<u32, u32> = FastMap::default();
        for (id, identity) in (0..).zip(&mut self.cluster.identities) {
            let Some(identity) = identity.as_mut().filter(|_| !anew.contains(&id)) else {
                continue;
            };
            let lists = &mut self.lists.atoms;
            let new = *without.entry(identity.atoms).or_insert_with(|| {
                let kept = lists.get(identity.atoms).iter().filter(|atom| !gone.contains(atom));
                let kept: Vec<AtomId> = kept.copied().collect();
                lists.number(&kept)
            });
            if new != identity.atoms {
                identity.atoms = new;
                self.dirty.moved.insert(id);
            }
        }
    }

    fn set_atoms(&mut self, id: IdentityId, atoms: &[AtomId]) {
        let list = self.lists.atoms.number(atoms);
        let identity = self.cluster.identity_mut(id);
        if identity.atoms != list {
            identity.atoms = list;
            self.dirty.moved.insert(id);
        }
    }

    fn refresh_ports(&mut self, id: IdentityId) {
        let identity = self.cluster.identity(id);
        let asked =
            identity.key.ports.iter().filter(|port| self.port_names.contains_key(&port.name));
        let asked: Vec<NamedPort> = asked.cloned().collect();
        let list = self.lists.ports.number(&asked);
        let identity = self.cluster.identity_mut(id);
        if identity.ports != list {
            identity.ports = list;
            self.dirty.moved.insert(id);
        }
    }

    fn refresh_all_ports(&mut self) {
        let with_ports: Vec<IdentityId> = self
            .cluster
            .live_identities()
            .filter(|(_, identity)| !identity.key.ports.is_empty())
            .map(|(id, _)| id)
            .collect();
        with_ports.into_iter().for_each(|id| self.refresh_ports(id));
    }

    /// What is known of an address itself: its nodes, whether it is this one, and groups whose members it is among. A pod that chooses groups is
    /// a member of those: its ENI's are the node's, not its own.
    fn extra(&mut self, address: IpAddr) -> u32 {
        let pod = self.entries.get(&address).and_then(|entry| entry.pod);
        let chooses =
            pod.is_some_and(|pod| self.cluster.identity(self.cluster.pod(pod).identity).chosen.any);
        let nodes = self.nodes_by_address.get(&address);
        let groups = self.groups_by_address.get(&address).filter(|_| !chooses);
        let own = self.own_node().filter(|_| self.own_addresses.contains(&address));
        if nodes.is_none() && groups.is_none() && own.is_none() {
            return 0;
        }
        let mut atoms = Vec::new();
        for (atom, question) in &self.extra_atoms {
            let yes = match &**question {
                Question::Nodes(selector) => nodes.into_iter().flatten().any(|name| {
                    self.nodes.get(name).is_some_and(|node| selector.matches(&node.labels))
                }),
                Question::OwnNode(selector) => own.is_some_and(|own| selector.matches(&own.labels)),
                Question::Group(id) => groups.is_some_and(|groups| groups.contains(id)),
                Question::Pods { .. } | Question::Block { .. } | Question::Unlisted { .. } => false,
            };
            if yes {
                atoms.push(*atom);
            }
        }
        self.lists.atoms.number(&atoms)
    }

    /// Brings an address' entry up to date. Without a pod and anything known of it, it has none.
    pub(super) fn refresh_address(&mut self, address: IpAddr) {
        let extra = self.extra(address);
        let blocks = self.regions.blocks_at(address);
        if let Some(entry) = self.entries.get_mut(&address) {
            (entry.extra, entry.blocks) = (extra, blocks);
        } else if extra != 0 {
            let entry = Entry { pod: None, blocks, extra, class: ABSENT, origin: 0 };
            self.entries.insert(address, entry);
        }
    }
}

const fn asks_pods(question: &Question) -> bool {
    matches!(question, Question::Pods { .. } | Question::Group(_))
}

/// Identities that a question matches.
fn matching<'a>(
    cluster: &'a Cluster,
    question: &'a Question,
) -> Box<dyn Iterator<Item = IdentityId> + 'a> {
    match question {
        Question::Pods { namespaces, pods } => {
            let states = cluster.namespaces.iter().filter(move |state| match namespaces {
                Namespaces::Named(name) => *state.name == **name,
                Namespaces::Selected(selector) => state.matches(selector),
            });
            let ids = states.flat_map(|state| state.identities.iter().copied());
            Box::new(ids.filter(move |id| cluster.identity(*id).matches(pods)))
        }
        Question::Group(group) => {
            let live = cluster.live_identities();
            let members = live.filter(move |(_, id)| id.chosen.ids.binary_search(group).is_ok());
            Box::new(members.map(|(id, _)| id))
        }
        Question::Block { .. }
        | Question::Nodes(_)
        | Question::OwnNode(_)
        | Question::Unlisted { .. } => Box::new(std::iter::empty()),
    }
}

fn matches(cluster: &Cluster, identity: &Identity, question: &Question) -> bool {
    let namespace = cluster.namespace_state(identity.key.namespace);
    match question {
        Question::Pods { namespaces, pods } => {
            let in_namespace = match namespaces {
                Namespaces::Named(name) => *namespace.name == **name,
                Namespaces::Selected(selector) => namespace.matches(selector),
            };
            in_namespace && identity.matches(pods)
        }
        Question::Group(group) => identity.chosen.ids.binary_search(group).is_ok(),
        Question::Block { .. }
        | Question::Nodes(_)
        | Question::OwnNode(_)
        | Question::Unlisted { .. } => false,
    }
}
