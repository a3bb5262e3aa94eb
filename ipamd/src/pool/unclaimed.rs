//! Pods that the kernel shows and whose addresses no answer of EC2 has shown yet: the journal was lost, and the answer
//! older than the address.
//!
//! Invariants: such an address is handed to nobody else, whenever it is shown; no ENI is given back as long as there is
//! one, for any may carry it; the interface index of a living link is given to no other pod.

use veni_core::ipam::{Allocation, BootTime, Record};

use super::Pool;
use crate::{journal::Store, start};

impl<S: Store> Pool<S> {
    /// These interface indexes are in use.
    pub fn see_indexes(&mut self, indexes: impl IntoIterator<Item = u32>) {
        let last = indexes.into_iter().max();
        if let Some(last) = last.filter(|last| *last >= self.ledger.next_ifindex()) {
            self.note(vec![Record::IfindexUsed { last }]);
        }
    }

    /// Has the next pod get an interface index that is not `taken`.
    pub fn pass_over(&mut self, taken: impl Fn(u32) -> bool) {
        let first = self.ledger.next_ifindex();
        let free = (first..).find(|index| !taken(*index)).unwrap_or(first);
        if free > first {
            tracing::warn!(
                first,
                free,
                "interface indexes are taken by links that are no pod's of the ledger"
            );
            self.note(vec![Record::IfindexUsed { last: free - 1 }]);
        }
    }

    /// Waits for an answer that shows where the pod's address is.
    pub(super) fn leave_unclaimed(&mut self, pod: Allocation) {
        self.unclaimed.insert(pod.address, pod);
        self.count_unclaimed();
    }

    /// Takes over the pods whose addresses have been shown.
    pub(super) fn claim(&mut self, now: BootTime) {
        if self.unclaimed.is_empty() {
            return;
        }
        let shown = |address: &std::net::Ipv4Addr| self.ledger.address(*address).is_some();
        let shown: Vec<_> = self.unclaimed.keys().copied().filter(shown).collect();
        for pod in
            shown.iter().filter_map(|address| self.unclaimed.remove(address)).collect::<Vec<_>>()
        {
            // By now its container may have got another address: then nobody knows whose this one is.
            let pod = match self.ledger.allocation(&pod.attachment) {
                Some(_) => start::as_stranger(pod),
                None => pod,
            };
            let (address, link) = (pod.address, pod.host_ifname.clone());
            if self.adopt_pod(pod, now, |_| false) {
                self.took_over = true;
            } else {
                tracing::error!(%address, %link, "the address of a pod in the kernel is another pod's: delete one of them");
            }
        }
        self.count_unclaimed();
    }

    /// Whether pods were taken over since this was last asked.
    pub fn took_over(&mut self) -> bool {
        std::mem::take(&mut self.took_over)
    }

    /// Those that are not `alive` any more need no address.
    pub fn forget_unclaimed(&mut self, alive: impl Fn(&Allocation) -> bool) {
        self.unclaimed.retain(|_, pod| alive(pod));
        self.count_unclaimed();
    }
}
