//! Security groups of the ENIs, as EC2 last showed them: found out again by each daemon.

use std::time::Duration;

use veni_core::{
    id::{EniId, SecurityGroupId},
    ipam::{BootTime, plan::Blocked},
    marks::EniSlot,
};
use veni_provider::{CloudError, ErrorClass, Interface};

use super::{
    Pool,
    settle::{MINUTE, SECOND, kind},
};
use crate::journal::Store;

impl<S: Store> Pool<S> {
    /// An answer shows the groups. An older one makes a call be repeated at most, which is harmless.
    pub(super) fn see_groups(&mut self, interface: &Interface) {
        let groups = interface.security_groups.iter().cloned().collect();
        self.activity.groups.insert(interface.id.clone(), groups);
    }

    pub(super) fn groups_set(&mut self, eni: &EniId, groups: &[SecurityGroupId]) {
        tracing::info!(%eni, ?groups, "security groups of the primary ENI taken over");
        self.unblock(Blocked::Groups);
        self.activity.groups.insert(eni.clone(), groups.iter().cloned().collect());
    }

    /// Pods keep their traffic under the former groups until it succeeds.
    pub(super) fn groups_not_set(&mut self, error: &CloudError, now: BootTime) {
        let passing = matches!(error.class, ErrorClass::Transient);
        let base: Duration = if passing { SECOND } else { MINUTE };
        let reason = format!(
            "security groups not set: {} ({}); see that the groups of the primary ENI exist",
            error.message, error.code
        );
        self.block(Blocked::Groups, kind(&error.class), now, base, reason);
    }

    pub(super) fn forget_groups(&mut self, slot: EniSlot) {
        if let Some(facts) = self.ledger.eni(slot).and_then(|eni| eni.facts.as_ref()) {
            self.activity.groups.remove(&facts.id);
        }
    }
}
