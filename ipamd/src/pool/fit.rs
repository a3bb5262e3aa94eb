//! How many addresses a call may ask for while a subnet, or an ENI to be made, has no room for all.
//!
//! Invariant: a limit that was found holds until a call has shown that there is more room, and never for long: a
//! subnet that has room again is asked for everything that is missing.

use std::time::Duration;

use veni_core::{
    id::SubnetId,
    ipam::{
        BootTime,
        plan::{Blocked, SUBNET_FULL},
    },
};

use super::Pool;
use crate::journal::Store;

/// How long a limit is believed that no call has met again.
const LASTS: Duration = Duration::from_secs(30);

impl<S: Store> Pool<S> {
    /// There was no room for `asked`: what has no room for many may have room for few.
    pub(super) fn fits_less(&mut self, asked: u32, now: BootTime) {
        let half = asked / 2;
        self.activity.fit = Some(self.activity.fit.map_or(half, |fit| fit.min(half)));
        self.fit_at = now;
    }

    /// There was room for `asked`. What asked for less than the limit says nothing of it.
    pub(super) fn fits_more(&mut self, asked: u32, now: BootTime) {
        let Some(fit) = self.activity.fit.filter(|fit| asked >= *fit) else { return };
        let more = fit.saturating_mul(2);
        self.activity.fit = (more < self.limits.per_eni).then_some(more);
        self.fit_at = now;
    }

    /// Addresses went back to a subnet.
    pub(super) fn subnet_has_room(&mut self, subnet: Option<&SubnetId>, count: usize) {
        self.subnet_works(subnet);
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.activity.fit = self.activity.fit.map(|fit| fit.max(count));
        for what in [Blocked::NewEni, Blocked::Assign] {
            if self.activity.blocks.get(&what).is_some_and(|block| block.kind == SUBNET_FULL) {
                self.unblock(what);
                self.activity.fit = Some(count);
            }
        }
    }

    pub(super) fn forget_fit(&mut self, now: BootTime) {
        if now.since(self.fit_at) >= LASTS {
            self.activity.fit = None;
        }
    }
}
