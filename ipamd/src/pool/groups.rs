//! Security groups of the ENIs, as EC2 last showed them: found out again by each daemon.
//!
//! Invariant: what is compared with each other comes out of one answer about all ENIs. One about a single ENI would show it as it is
//! now beside the primary as it was, and whoever changes the groups of all would have theirs taken back.

use std::{collections::BTreeSet, time::Duration};

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
    /// An answer about all ENIs, or about one that has just been made, shows the groups.
    pub(super) fn see_groups(&mut self, interface: &Interface) {
        let groups = interface.security_groups.iter().cloned().collect();
        self.activity.groups.insert(interface.id.clone(), groups);
    }

    /// What instance metadata says of the primary ENI's. It does not say it of the others: EC2 is asked about all until both agree.
    pub fn groups_told(&mut self, of_primary: &[SecurityGroupId]) {
        let networking = &mut self.settings.networking;
        networking.primary.security_groups = of_primary.to_vec();
        self.groups_heard = true;
        let primary = self.ledger.enis().find(|eni| eni.primary).and_then(|eni| eni.facts.as_ref());
        let shown = primary.and_then(|facts| self.activity.groups.get(&facts.id));
        let told: BTreeSet<_> = of_primary.iter().collect();
        if networking.custom.is_none() && shown.is_some_and(|shown| !shown.iter().eq(told)) {
            self.survey_wanted = true;
        }
    }

    /// EC2's answer about all ENIs. Until metadata has told, the primary's groups are those that it shows: what was kept of them is a
    /// former daemon's.
    pub(super) fn groups_shown(&mut self, interfaces: &[Interface]) {
        for interface in interfaces {
            self.see_groups(interface);
        }
        let primary =
            interfaces.iter().find(|i| self.slot_of(i).is_some_and(|(_, primary)| primary));
        if let Some(primary) =
            primary.filter(|i| !i.security_groups.is_empty() && !self.groups_heard)
        {
            self.settings.networking.primary.security_groups.clone_from(&primary.security_groups);
        }
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
