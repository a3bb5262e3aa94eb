//! What earlier daemons left: ENIs that are attached to nothing, and pods whose address EC2 has shown at last.

use veni_core::ipam::BootTime;
use veni_provider::{Cloud, InterfaceFilter, TAG_INSTANCE_ID};

use super::{Done, Owner};
use crate::{executor, host::Host, journal::Store};

impl<C: Cloud, H: Host, S: Store> Owner<C, H, S> {
    /// Looks for ENIs that were left behind, until EC2 has told once.
    pub(super) fn look_for_orphans(&mut self, now: BootTime) {
        if !self.parts.pool.orphans_wanted || self.looking || !self.oriented {
            return;
        }
        match self.parts.pool.begin_orphans(now) {
            Ok(()) => {}
            Err(Some(at)) => return self.plan_by(at, now),
            Err(None) => return,
        }
        self.looking = true;
        let cloud = self.parts.cloud.clone();
        let filter = InterfaceFilter::AvailableWithTag {
            key: TAG_INSTANCE_ID.to_owned(),
            value: self.parts.whereabouts.identity.instance_id.to_string(),
        };
        self.calls.spawn(async move {
            let call = cloud.describe_interfaces(filter);
            Done::Orphans(executor::bounded("DescribeNetworkInterfaces", call).await)
        });
    }

    /// The kernel side looks after pods that were taken over late.
    pub(super) fn take_over(&mut self) {
        if self.parts.pool.took_over() {
            self.resume();
        }
    }

    /// Pods whose address EC2 has not shown, and which both the kernel and the runtime say are gone, need none.
    pub(super) fn forget_unclaimed(&mut self) {
        let (host, evidence) = (&self.parts.host, &self.parts.evidence);
        self.parts.pool.forget_unclaimed(|pod| {
            host.has_link(&pod.host_ifname, pod.host_ifindex)
                || evidence.runtime_has(&pod.attachment)
        });
    }
}
