//! What a former daemon left: pods, ADDs that were under way, addresses that cool.
//!
//! Invariant: the kernel side looks after a pod's route and qdisc only once its plugin cannot be making them any more:
//! a plugin takes what is there already for a leftover. Until then nothing of the pod is dropped either.

use tokio::time::Instant;
use veni_core::{
    ipam::{AddressState, Allocation},
    net::Mac,
};
use veni_provider::Cloud;

use super::{HOLD, Owner};
use crate::{host::Host, journal::Store, pool::Pool};

impl<C: Cloud, H: Host, S: Store> Owner<C, H, S> {
    /// After a start: exactly the ledger's pods pass the filter (they did all the time; this mends what is missing).
    pub(super) fn resume(&mut self) {
        let pods: Vec<_> = self
            .parts
            .pool
            .ledger
            .allocations()
            .map(|a| (a.clone(), Pool::<S>::pod_mac(a)))
            .collect();
        self.unfiltered = match self.parts.host.resume(&pods) {
            Ok(()) => self.first_look(&pods),
            Err(error) => {
                tracing::error!(error, "filter not in force");
                Some(error)
            }
        };
        for (allocation, _) in &pods {
            if !self.may_be_in_wiring(allocation) {
                self.parts.host.wired(allocation);
            }
        }
    }

    /// Sets aside what the node leads elsewhere, and what is on ENIs whose links it does not have, before an address is
    /// handed out. Returns why it cannot.
    fn first_look(&mut self, pods: &[(Allocation, Mac)]) -> Option<String> {
        let host = &self.parts.host;
        match host.eni_links().and_then(|links| Ok((links, host.strays(pods)?))) {
            Ok((links, strays)) => {
                if let Some(links) = links {
                    self.parts.pool.links_found(&links);
                }
                self.strays = strays;
                self.quarantine();
                None
            }
            Err(error) => {
                tracing::error!(error, "links and routes not looked at: no address is handed out");
                Some(error)
            }
        }
    }

    /// The former daemon may have died between a release and its flush; who cools now has no pod to lose connections.
    pub(super) fn flush_cooling(&mut self) {
        let state = |s: &AddressState| matches!(s, AddressState::Cooling { .. });
        for (address, ..) in self.parts.pool.ledger.addresses().filter(|(.., s)| state(s)) {
            self.parts.host.flush(address);
        }
    }

    /// No ADD is answered before the filter is in force, and before it is known what the node leads where.
    pub(super) fn ensure_filter(&mut self) -> Result<(), &str> {
        if self.unfiltered.is_some() {
            self.resume();
        }
        self.unfiltered.as_deref().map_or(Ok(()), Err)
    }

    /// Whether a plugin may be wiring this pod now: one that this daemon answered says when it is done; one that the
    /// former daemon answered has the time that it had, unless the runtime has its result already.
    fn may_be_in_wiring(&mut self, allocation: &Allocation) -> bool {
        let attachment = &allocation.attachment;
        if self.held.contains_key(attachment) {
            return true;
        }
        if self.plugin_is_done(allocation) || self.parts.evidence.has_result(attachment) {
            return false;
        }
        let left = HOLD.saturating_sub(self.began.since(allocation.at));
        let until = self.started + left;
        self.resuming.insert(attachment.clone(), until);
        until > Instant::now()
    }

    /// Plugins of the former daemon that had their time: what has a link is a pod, the rest is for `sweep`.
    pub(super) fn end_resuming(&mut self) {
        let now = Instant::now();
        let over: Vec<_> = self.resuming.extract_if(.., |_, until| *until <= now).collect();
        for (attachment, _) in over {
            let Some(pod) = self.parts.pool.ledger.allocation(&attachment) else { continue };
            if self.parts.host.has_link(&pod.host_ifname, pod.host_ifindex) {
                self.parts.host.wired(pod);
            }
        }
    }

    /// Whether no plugin can be at work for it: this daemon knows its plugins, and one of the former daemon has ended.
    fn plugin_is_done(&self, allocation: &Allocation) -> bool {
        allocation.at >= self.began || self.began.since(allocation.at) >= HOLD
    }
}
