//! The hand that plugs and unplugs ENIs in the fabric, as EC2 has them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::{Arc, Mutex, PoisonError},
};

use veni_core::{
    id::{EniId, InstanceId},
    net::Ipv4Prefix,
};
use veni_provider::{
    Interface, InterfaceStatus,
    sim::{Event, EventKind},
};

use crate::{
    error::Result,
    ns::Namespace,
    vpc::{Port, Vpc, cable_name},
};

/// Which namespace an instance is.
pub(super) type Nodes = Arc<Mutex<BTreeMap<InstanceId, Namespace>>>;

/// The hand: what it has plugged in.
#[derive(Debug)]
pub(super) struct Hand {
    vpc: Arc<Vpc>,
    nodes: Nodes,
    plugged: BTreeMap<EniId, Plugged>,
}

#[derive(Debug)]
struct Plugged {
    cable: String,
    addresses: BTreeSet<Ipv4Addr>,
}

// === impl Hand ===

impl Hand {
    pub(super) fn new(vpc: Arc<Vpc>, nodes: Nodes) -> Self {
        Self { vpc, nodes, plugged: BTreeMap::new() }
    }

    /// Does what the simulator says has happened.
    pub(super) fn follow(&mut self, event: Event) {
        let done = match event.kind {
            EventKind::Attached { instance, interface } => self.attach(&instance, &interface),
            EventKind::Detaching { interface, .. } | EventKind::Detached { interface, .. } => {
                self.detach(&interface.id)
            }
            EventKind::Assigned { eni, addresses, prefixes, .. } => {
                self.change(&eni, |held| held.extend(inside(&prefixes).chain(addresses)))
            }
            EventKind::Unassigned { eni, addresses, .. } => {
                self.change(&eni, |held| held.retain(|address| !addresses.contains(address)))
            }
            EventKind::Created { .. } | EventKind::Deleted { .. } => Ok(()),
        };
        tell(done);
    }

    /// Makes an ENI what it is now; again and again is the same as once.
    pub(super) fn see(&mut self, interface: &Interface) {
        let attached = interface.attachment.as_ref();
        let done = match attached.filter(|_| interface.status == InterfaceStatus::InUse) {
            None => self.detach(&interface.id),
            Some(_) if self.plugged.contains_key(&interface.id) => {
                self.change(&interface.id, |held| *held = addresses_of(interface))
            }
            Some(attachment) => self.attach(&attachment.instance_id, interface),
        };
        tell(done);
    }

    /// An ENI that is no more.
    pub(super) fn gone(&mut self, eni: &EniId) {
        tell(self.detach(eni));
    }

    fn attach(&mut self, instance: &InstanceId, interface: &Interface) -> Result<()> {
        let Some(attachment) = &interface.attachment else {
            return Ok(());
        };
        let node = self.nodes.lock().unwrap_or_else(PoisonError::into_inner).get(instance).cloned();
        let Some(node) = node else { return Ok(()) };
        let addresses = addresses_of(interface);
        let cable = cable_name(node.name(), attachment.device_index);
        self.plugged.insert(interface.id.clone(), Plugged { cable, addresses: addresses.clone() });
        // The primary one was there when the node booted.
        if attachment.device_index == 0 {
            return Ok(());
        }
        let node_name = node.name().to_owned();
        let port = Port {
            node: node_name,
            device_index: attachment.device_index,
            mac: interface.mac,
            addresses,
        };
        self.vpc.plug(&node, &port)
    }

    fn detach(&mut self, eni: &EniId) -> Result<()> {
        self.plugged.remove(eni).map_or(Ok(()), |plugged| self.vpc.unplug(&plugged.cable))
    }

    fn change(&mut self, eni: &EniId, change: impl FnOnce(&mut BTreeSet<Ipv4Addr>)) -> Result<()> {
        let Some(plugged) = self.plugged.get_mut(eni) else {
            return Ok(());
        };
        change(&mut plugged.addresses);
        self.vpc.set_addresses(&plugged.cable, &plugged.addresses)
    }
}

fn addresses_of(interface: &Interface) -> BTreeSet<Ipv4Addr> {
    let own = std::iter::once(interface.primary_address);
    own.chain(interface.secondary_addresses.iter().copied())
        .chain(inside(&interface.prefixes))
        .collect()
}

/// All addresses of these prefixes.
fn inside(prefixes: &[Ipv4Prefix]) -> impl Iterator<Item = Ipv4Addr> {
    prefixes.iter().flat_map(|prefix| {
        let first = u32::from(prefix.network());
        (first..first + (1 << (32 - prefix.len()))).map(Ipv4Addr::from)
    })
}

#[expect(clippy::print_stderr, reason = "the lab's own trouble, with nobody else to tell")]
fn tell(done: Result<()>) {
    use std::error::Error as _;
    let Err(error) = done else { return };
    let source = error.source().map(|s| format!(": {s}")).unwrap_or_default();
    eprintln!("veni-lab: the fabric could not follow EC2: {error}{source}");
}
