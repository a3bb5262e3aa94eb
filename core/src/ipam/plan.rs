//! The planner: what to ask of the cloud now, and why.
//!
//! `plan(snapshot)` is pure and deterministic. It emits at most one cloud call per ENI slot, never one for a slot
//! that has a call in flight, and leaves the executor no choice. Several slots run side by side.
//!
//! It minimises calls: addresses go onto ENIs that must be made anyway before an extra `AssignPrivateIpAddresses`
//! fills a remaining gap, and idle ENIs are freed whole before single addresses are given back.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use super::{
    BootTime, Counts, Eni, Ledger,
    placement::{EniPlace, Networking},
    targets::{Grow, PoolState},
};
use crate::{
    config::Targets,
    id::{AttachmentId, EniId, SecurityGroupId, SubnetId},
    marks::EniSlot,
};

mod grow;
mod late;
mod life;
mod place;
mod shrink;

pub use late::{LINK_GIVE_UP, LINK_PATIENCE, NO_LINK};
pub use place::Leaving;

/// An ENI is not freed before this age (the peer's `minENILifeTime`).
pub const MIN_ENI_AGE: Duration = Duration::from_secs(60);
/// How long an excess may wait for the last cooldowns to end, so that it goes back in few calls.
pub const SHRINK_PATIENCE: Duration = Duration::from_secs(30);
/// How long EC2 may take to attach or detach before it is asked how things stand.
pub const TRANSITION_PATIENCE: Duration = Duration::from_secs(15);

/// A [`Block`]'s kind: the subnet has no free address.
pub const SUBNET_FULL: &str = "subnet_full";

/// How far apart two EC2 answers must be to agree that something is gone.
pub const CONFIRM: Duration = Duration::from_secs(30);

/// How long after its link has gone an ENI is deleted: EC2 goes on detaching for a while and refuses until it is done.
pub const DETACH_SETTLE: Duration = Duration::from_secs(5);

/// What the planner looks at.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot<'a> {
    /// Who has what.
    pub ledger: &'a Ledger,
    /// What runs, what is blocked, what is in doubt.
    pub activity: &'a Activity,
    /// What the instance can hold.
    pub limits: PoolLimits,
    /// What is asked for.
    pub settings: &'a Settings,
    /// ADDs that wait for an address.
    pub waiting: u32,
    /// Now.
    pub now: BootTime,
}

/// What the instance can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolLimits {
    /// ENIs, the primary included (`MAX_ENI` applied).
    pub max_enis: u32,
    /// Addresses per ENI, its primary excluded (K).
    pub per_eni: u32,
    /// Device indexes of the card.
    pub device_indexes: u8,
}

/// What the planner is told to want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The warm-pool variables.
    pub targets: Targets,
    /// `IP_COOLDOWN_PERIOD`.
    pub cooldown: Duration,
    /// The pool never grows past this.
    pub max_pods: Option<u32>,
    /// Whether the pool is grown and shrunk at all.
    pub provisioning: bool,
    /// The setting that says so, for people.
    pub provisioned_by: String,
    /// Where ENIs are made.
    pub networking: Networking,
    /// Distinguishes this node's and this boot's tokens from all others: at most 40 characters.
    pub token_seed: String,
}

/// What goes on beside the ledger. Not journaled: it is found out again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Activity {
    /// Cloud calls under way, by slot.
    pub in_flight: BTreeMap<EniSlot, Step>,
    /// Slots of which EC2 must be asked before anything is changed: a call's outcome is unknown.
    pub doubts: BTreeSet<EniSlot>,
    /// Slots whose link is on the node and can be used.
    pub links: BTreeSet<EniSlot>,
    /// Slots whose link is on the node, whether it can be used or not.
    pub present: BTreeSet<EniSlot>,
    /// Whether `links` says anything: the node's links have been looked at.
    pub links_known: bool,
    /// Whether part of the journal was lost and EC2 has not been heard of since: nothing is handed out.
    pub unheard: bool,
    /// ENIs attached here that are not ours to manage: their slots are taken.
    pub foreign: BTreeSet<EniSlot>,
    /// What must wait, and why.
    pub blocks: BTreeMap<Blocked, Block>,
    /// Of several subnets those that are full.
    pub full: BTreeMap<SubnetId, Block>,
    /// Addresses that EC2's last answer did not show, with the time of the first such answer.
    pub missing: BTreeMap<Ipv4Addr, BootTime>,
    /// Since when there has been something to give back.
    pub excess_since: Option<BootTime>,
    /// At most so many addresses a call: a subnet had no room for more.
    pub fit: Option<u32>,
    /// Addresses that the node leads to a link which is no pod's of the ledger: neither handed out nor given back.
    pub quarantined: BTreeSet<Ipv4Addr>,
    /// How many pods have addresses that no answer of EC2 has shown yet: any ENI may carry them.
    pub unclaimed: usize,
    /// Security groups of the ENIs, as EC2 last showed them.
    pub groups: BTreeMap<EniId, BTreeSet<SecurityGroupId>>,
    /// Since when this daemon looks: no link is late before it has had time to see it.
    pub began: BootTime,
}

/// What a block keeps from happening.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Blocked {
    /// Any call: EC2 throttles.
    Cloud,
    /// New ENIs.
    NewEni,
    /// More addresses on any ENI.
    Assign,
    /// Giving back addresses and ENIs.
    Shrink,
    /// More addresses on one ENI: EC2 says that it is full.
    Room(EniSlot),
    /// Setting `DeleteOnTermination`.
    Protect,
    /// Changing security groups.
    Groups,
    /// Asking EC2 for all ENIs of the instance.
    Survey,
    /// Asking EC2 for the ENIs that were left behind.
    Orphans,
    /// Any call on one ENI.
    Slot(EniSlot),
}

/// Why something must wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Until when.
    pub until: BootTime,
    /// How often in a row it failed.
    pub attempts: u32,
    /// A stable word: `subnet_full`, `throttled`, `denied`, `limit_reached`, `transient`, `invalid`.
    pub kind: &'static str,
    /// What failed and what to do next, in one line.
    pub reason: String,
    /// When it was first seen.
    pub since: BootTime,
}

/// One cloud call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Create an ENI. `planned` when its intent is in the journal already.
    CreateEni {
        /// Its place.
        slot: EniSlot,
        /// The idempotency token.
        token: String,
        /// Secondary addresses.
        addresses: u32,
        /// Where.
        place: EniPlace,
        /// Whether the journal has the intent.
        planned: bool,
    },
    /// Attach it.
    AttachEni {
        /// Its place.
        slot: EniSlot,
        /// Which.
        eni: EniId,
    },
    /// Let it go when the instance goes.
    ProtectEni {
        /// Its place.
        slot: EniSlot,
        /// Which.
        eni: EniId,
        /// Its attachment.
        attachment: AttachmentId,
    },
    /// Other security groups.
    SetGroups {
        /// Its place.
        slot: EniSlot,
        /// Which.
        eni: EniId,
        /// The groups, all of them.
        groups: Vec<SecurityGroupId>,
    },
    /// More addresses.
    Assign {
        /// Its place.
        slot: EniSlot,
        /// Which.
        eni: EniId,
        /// How many.
        count: u32,
    },
    /// Fewer addresses. `announced` when its intent is in the journal already.
    Unassign {
        /// Its place.
        slot: EniSlot,
        /// Which.
        eni: EniId,
        /// Which addresses.
        addresses: Vec<Ipv4Addr>,
        /// Whether the journal has the intent.
        announced: bool,
    },
    /// Detach it. `draining` when its intent is in the journal already.
    DetachEni {
        /// Its place.
        slot: EniSlot,
        /// Its attachment.
        attachment: AttachmentId,
        /// Whether the journal has the intent.
        draining: bool,
    },
    /// Delete it.
    DeleteEni {
        /// Its place.
        slot: EniSlot,
        /// Which.
        eni: EniId,
    },
    /// Ask EC2 how it stands with an ENI.
    Observe {
        /// Its place.
        slot: EniSlot,
        /// Which.
        eni: EniId,
    },
}

/// How many addresses, for people: `1 address`, `2 addresses`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses(pub u32);

/// What to do now, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Calls to start now, all at once.
    pub steps: Vec<Step>,
    /// Addresses that are missing.
    pub wanted: u32,
    /// Addresses that could go back.
    pub excess: u32,
    /// Why each step, and why not others.
    pub reasons: Vec<String>,
    /// What is waited for.
    pub waiting_for: Vec<String>,
    /// When to plan again, should nothing happen before.
    pub wake_at: Option<BootTime>,
}

/// Plans.
#[must_use]
pub fn plan(snapshot: &Snapshot<'_>) -> Plan {
    let mut plan = Plan::default();
    plan.lifecycle(snapshot);
    place::tell(&mut plan, snapshot);
    if snapshot.settings.provisioning {
        grow::grow(&mut plan, snapshot);
        shrink::shrink(&mut plan, snapshot);
        place::retire(&mut plan, snapshot);
    } else {
        let by = &snapshot.settings.provisioned_by;
        plan.reasons.push(format!("the pool is left as it is: {by} is set"));
    }
    plan.wake_by(snapshot.ledger.next_thaw(snapshot.settings.cooldown));
    plan
}

// === impl Activity ===

impl Activity {
    /// Whether the ENI in `slot` can carry packets, as far as is known.
    #[must_use]
    pub fn plugged(&self, slot: EniSlot) -> bool {
        !self.links_known || self.links.contains(&slot)
    }
}

// === impl Snapshot ===

impl Snapshot<'_> {
    /// The pool as the targets see it.
    #[must_use]
    pub fn pool(&self) -> PoolState {
        let mut counts = Counts::default();
        let mut incoming = 0;
        for eni in self.ledger.enis() {
            if !self.serves(eni) {
                // Nothing of it comes to new pods; those that it has are pods all the same.
                counts.assigned += eni.counts().assigned;
            } else if eni.arriving() && !self.is_late(eni) {
                incoming += eni.promised();
            } else if eni.in_use() {
                // What nobody can get is not warm.
                counts += Counts { free: self.usable_free(eni), ..eni.counts() };
            }
        }
        let for_pods =
            |step: &&Step| self.ledger.eni(step.slot()).is_none_or(|eni| self.serves(eni));
        incoming +=
            self.activity.in_flight.values().filter(for_pods).map(Step::incoming).sum::<u32>();
        PoolState {
            counts,
            incoming,
            waiting: self.waiting,
            per_eni: self.limits.per_eni,
            max_pods: self.settings.max_pods,
        }
    }

    /// Whether a free address of an ENI in use can be handed out: its ENI's link is there, and EC2 shows it or it is too
    /// new to be shown (a damaged journal may have lost the record by which it went); and nobody uses it unasked.
    #[must_use]
    pub fn usable(&self, slot: EniSlot, address: Ipv4Addr) -> bool {
        let old = || {
            let gained = self.ledger.address(address).map(|(_, _, gained)| gained);
            gained.is_some_and(|gained| self.now.since(gained) >= CONFIRM)
        };
        self.ledger.eni(slot).is_some_and(|eni| self.can_hand_out_of(eni))
            && !self.quarantined(address)
            && !(self.activity.missing.contains_key(&address) && old())
    }

    fn can_hand_out_of(&self, eni: &Eni) -> bool {
        self.activity.plugged(eni.slot) && !self.activity.unheard && self.serves(eni)
    }

    /// Addresses that can be handed out now.
    #[must_use]
    pub fn available(&self) -> u32 {
        self.ledger.enis().filter(|eni| eni.in_use()).map(|eni| self.usable_free(eni)).sum()
    }

    fn usable_free(&self, eni: &Eni) -> u32 {
        if !self.can_hand_out_of(eni) {
            return 0;
        }
        if self.activity.missing.is_empty() && self.activity.quarantined.is_empty() {
            return eni.counts().free;
        }
        let usable = eni.free().filter(|address| self.usable(eni.slot, *address)).count();
        u32::try_from(usable).unwrap_or(u32::MAX)
    }

    /// Whether somebody may use `address` of whom the ledger does not know.
    fn quarantined(&self, address: Ipv4Addr) -> bool {
        self.activity.quarantined.contains(&address)
    }

    /// The block that keeps `what` from happening now, if any.
    #[must_use]
    pub fn blocked(&self, what: Blocked) -> Option<&Block> {
        let active = |key| self.activity.blocks.get(&key).filter(|b: &&Block| b.until > self.now);
        active(Blocked::Cloud).or_else(|| active(what))
    }

    /// How many addresses more `eni` takes, as far as is known.
    fn room(&self, eni: &Eni) -> u32 {
        match self.blocked(Blocked::Room(eni.slot)) {
            None if self.serves(eni) && !self.in_full_subnet(eni) => {
                self.limits.per_eni.saturating_sub(eni.counts().held())
            }
            _ => 0,
        }
    }

    fn idle(&self, eni: &Eni) -> bool {
        !self.activity.in_flight.contains_key(&eni.slot)
            && !self.activity.doubts.contains(&eni.slot)
            && self.blocked(Blocked::Slot(eni.slot)).is_none()
    }
}

// === impl Step ===

impl Step {
    /// The slot that it is about.
    #[must_use]
    pub fn slot(&self) -> EniSlot {
        match self {
            Self::CreateEni { slot, .. }
            | Self::AttachEni { slot, .. }
            | Self::ProtectEni { slot, .. }
            | Self::SetGroups { slot, .. }
            | Self::Assign { slot, .. }
            | Self::Unassign { slot, .. }
            | Self::DetachEni { slot, .. }
            | Self::DeleteEni { slot, .. }
            | Self::Observe { slot, .. } => *slot,
        }
    }

    /// Addresses that it brings and that no ENI in the ledger promises.
    fn incoming(&self) -> u32 {
        if let Self::Assign { count, .. } = self { *count } else { 0 }
    }
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::CreateEni { slot, addresses, .. } => {
                write!(
                    f,
                    "create an ENI with {} for device {}",
                    Addresses(*addresses),
                    slot.device_index()
                )
            }
            Self::AttachEni { slot, eni } => {
                write!(f, "attach {eni} as device {}", slot.device_index())
            }
            Self::ProtectEni { eni, .. } => write!(f, "let {eni} go when the instance goes"),
            Self::SetGroups { eni, .. } => write!(f, "set the security groups of {eni}"),
            Self::Assign { eni, count, .. } => {
                write!(f, "assign {} to {eni}", Addresses(*count))
            }
            Self::Unassign { eni, addresses, .. } => {
                let count = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
                write!(f, "give back {} of {eni}", Addresses(count))
            }
            Self::DetachEni { slot, .. } => {
                write!(f, "detach the ENI at device {}", slot.device_index())
            }
            Self::DeleteEni { eni, .. } => write!(f, "delete {eni}"),
            Self::Observe { eni, .. } => write!(f, "ask EC2 how it stands with {eni}"),
        }
    }
}

// === impl Addresses ===

impl Addresses {
    /// `1 address is`, `2 addresses are`.
    fn are(self) -> String {
        format!("{self} {}", if self.0 == 1 { "is" } else { "are" })
    }
}

impl std::fmt::Display for Addresses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(count) = self;
        write!(f, "{count} {}", if *count == 1 { "address" } else { "addresses" })
    }
}

// === impl Plan ===

impl Plan {
    fn wake_by(&mut self, at: Option<BootTime>) {
        if let Some(at) = at {
            self.wake_at = Some(self.wake_at.map_or(at, |earlier| earlier.min(at)));
        }
    }

    /// Notes that `what` is waited for, until then at the latest: once, however much it blocks.
    pub fn wait(&mut self, until: BootTime, what: String) {
        self.wake_by(Some(until));
        if !self.waiting_for.contains(&what) {
            self.waiting_for.push(what);
        }
    }
}

#[cfg(test)]
mod tests;
