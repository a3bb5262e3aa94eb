//! Addresses that the node leads to a link of which the ledger does not know: not to be handed out, nor given back.
//!
//! They come from a release whose link stayed (a plugin that died in a DEL), from a pod that a damaged journal and the
//! kernel tell differently of, or from somebody's hand. Invariant: an address leaves the quarantine only when the
//! kernel shows neither route nor link any more.

use std::{collections::BTreeSet, net::Ipv4Addr};

use veni_core::ipam::{AddressState::Assigned, Allocation};
use veni_provider::Cloud;

use super::Owner;
use crate::{host::Host, journal::Store};

impl<C: Cloud, H: Host, S: Store> Owner<C, H, S> {
    /// A pod was released. The plugin removes the link first; where it is there still, somebody may send from it.
    pub(super) fn leave(&mut self, allocation: &Allocation) {
        let Allocation { host_ifname: name, host_ifindex: index, .. } = allocation;
        // The kernel's own word costs a system call: it is asked only where the link was there a moment ago.
        if self.parts.host.has_link(name, *index) && self.parts.host.link_remains(name, *index) {
            self.left.push(allocation.clone());
            self.quarantine();
        } else {
            // What was told of it while it was being wired.
            self.strays.retain(|_, stray| stray.ifindex != *index);
        }
    }

    /// Sets aside what must be, and lets go of what may be used again.
    pub(super) fn quarantine(&mut self) {
        let host = &self.parts.host;
        self.left.retain(|pod| host.has_link(&pod.host_ifname, pod.host_ifindex));
        let now: BTreeSet<Ipv4Addr> =
            self.suspects().into_iter().map(|(address, _)| address).collect();
        let former = &self.parts.pool.activity.quarantined;
        if now == *former {
            return;
        }
        for (address, link) in self.suspects().into_iter().filter(|(a, _)| !former.contains(a)) {
            let next =
                "remove the link or the route, or restart ipamd to have a pod of veni taken over";
            tracing::error!(%address, link, next, "address leads to a link of no pod: it is set aside");
        }
        for address in former.difference(&now) {
            tracing::info!(%address, "address leads nowhere any more: it can be used again");
        }
        self.parts.pool.activity.quarantined = now;
        self.plan_soon();
    }

    /// Each with the link that it leads to.
    pub(super) fn suspects(&self) -> Vec<(Ipv4Addr, &str)> {
        let strays =
            self.strays.iter().filter(|(address, stray)| !self.owns(**address, stray.ifindex));
        let strays = strays.map(|(address, stray)| (*address, stray.ifname.as_str()));
        let left = self.left.iter().filter(|pod| !self.owns(pod.address, pod.host_ifindex));
        let left = left.map(|pod| (pod.address, pod.host_ifname.as_str()));
        let mut all: Vec<_> = strays.chain(left).collect();
        all.sort_unstable();
        all.dedup_by_key(|(address, _)| *address);
        all
    }

    /// Whether the ledger has a pod with this address and link.
    fn owns(&self, address: Ipv4Addr, ifindex: u32) -> bool {
        let ledger = &self.parts.pool.ledger;
        match ledger.address(address) {
            Some((_, Assigned(attachment), _)) => {
                ledger.allocation(attachment).is_some_and(|a| a.host_ifindex == ifindex)
            }
            _ => false,
        }
    }
}
