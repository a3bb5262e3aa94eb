//! Where the node is and its ENIs are made: what instance metadata and the placement's source tell, kept for the next start
//! and handed to the kernel side.

use veni_core::ipam::{BootTime, Eni, EniFacts};
use veni_provider::{Cloud, MetadataInterface};

use super::{METADATA_PERIOD, Owner};
use crate::{
    host::{Host, Wanted},
    journal::Store,
    placement,
};

impl<C: Cloud, H: Host, S: Store> Owner<C, H, S> {
    /// Who tells where ENIs are made, with custom networking.
    #[must_use]
    pub fn placed_by(self, source: placement::Source) -> Self {
        Self { placement: Some(source), ..self }
    }

    /// What instance metadata says of the attached ENIs.
    pub(super) fn metadata(&mut self, interfaces: &[MetadataInterface], now: BootTime) {
        self.parts.pool.see_prefixes(interfaces);
        if let Some(primary) =
            interfaces.iter().find(|i| i.device_index == 0 && i.network_card == 0)
        {
            if self.vpc_cidrs.observe(&primary.vpc_cidrs, now) {
                tracing::info!(cidrs = ?self.vpc_cidrs.held(), "CIDRs of the VPC have changed");
            }
            if !primary.security_groups.is_empty() {
                self.parts.pool.groups_told(&primary.security_groups);
            }
            self.keep_whereabouts();
        }
        // What the former daemon did last, metadata may not show yet.
        if self.started.elapsed() >= METADATA_PERIOD {
            self.parts.pool.compare_metadata(interfaces, now);
        }
    }

    /// ENIs are made elsewhere from now on.
    pub(super) fn place(&mut self, news: placement::News) {
        if self.parts.pool.take_placement(news) {
            self.keep_whereabouts();
            self.plan_now();
        }
    }

    /// Keeps what the next start needs before metadata answers.
    pub(super) fn keep_whereabouts(&mut self) {
        let known = &mut self.parts.whereabouts.primary;
        known.vpc_cidrs = self.vpc_cidrs.held().to_vec();
        let networking = &self.parts.pool.settings.networking;
        known.security_groups.clone_from(&networking.primary.security_groups);
        // Without it nothing is told of it: what was known stays for who turns it on again.
        if networking.custom.is_some() {
            self.parts.whereabouts.custom.clone_from(&networking.custom);
        }
        self.parts.pool.keep_whereabouts(&self.parts.whereabouts);
    }

    /// Tells the kernel side what the node must look like, when that has changed.
    pub(super) fn configure_host(&mut self) {
        use veni_core::ipam::Phase::{Attaching, InUse};
        let pool = &self.parts.pool;
        let ledger = &pool.ledger;
        let enis = ledger.enis().filter(|eni| matches!(eni.phase, Attaching | InUse));
        let with_prefix = |eni: &Eni| {
            let facts = eni.facts.clone()?;
            let subnet_prefix = facts.subnet_prefix.or_else(|| pool.prefix_of(&facts.subnet));
            Some((eni.slot, EniFacts { subnet_prefix, ..facts }))
        };
        let in_use = ledger.enis().filter(|eni| matches!(eni.phase, InUse));
        let wanted = Wanted {
            enis: enis.filter_map(with_prefix).collect(),
            in_use: in_use.map(|eni| eni.slot).collect(),
            vpc_cidrs: self.vpc_cidrs.held().to_vec(),
        };
        if wanted != self.wanted {
            self.wanted = wanted.clone();
            self.parts.host.configure(wanted);
        }
    }
}
