//! The pool: ledger, activity and journal under one owner. Synchronous; no call leaves from here.
//!
//! Invariant: an allocation is in the journal before it is answered for, and an intent before its call starts.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    io,
    time::Duration,
};

use veni_core::{
    id::{InstanceId, SubnetId},
    ipam::{
        Allocation, BootTime, Ledger, LedgerError, Record,
        budget::Budget,
        plan::{self, Activity, Block, Blocked, Plan, PoolLimits, Settings, Snapshot, Step},
    },
    marks::EniSlot,
    net::{Ipv4Prefix, Mac},
    wire::{AddRequest, Attachment},
};
use veni_provider::Interface;

use crate::{fault, following::Following, journal::Store, whereabouts::Whereabouts};

mod adopt;
mod confirm;
mod explain;
mod fit;
mod groups;
mod late;
mod orphans;
mod placing;
mod settle;
mod strayed;
mod unclaimed;

pub use adopt::Adoption;
pub(crate) use explain::PROVISIONING;
pub use settle::Outcome;

/// The longest wait between two attempts.
const LONGEST: Duration = Duration::from_secs(120);
/// How long after the end of a block its attempts count.
const FORGET: Duration = Duration::from_secs(300);

/// The pool of this node.
#[derive(Debug)]
pub struct Pool<S> {
    /// Who has what.
    pub ledger: Ledger,
    /// What goes on.
    pub activity: Activity,
    /// What the instance can hold.
    pub limits: PoolLimits,
    /// What is asked for.
    pub settings: Settings,
    /// Where this node is.
    pub place: Place,
    /// ADDs that wait.
    pub waiting: u32,
    /// Whether EC2 is to be asked for all ENIs of the instance: places may be taken by others.
    pub survey_wanted: bool,
    /// When EC2's last answer to that was taken in.
    surveyed_at: Option<BootTime>,
    /// When this daemon's first was.
    first_surveyed_at: Option<BootTime>,
    store: S,
    veth_prefix: String,
    changed: BTreeMap<EniSlot, BootTime>,
    lost: Vec<std::net::Ipv4Addr>,
    attach_refusals: BTreeMap<EniSlot, u32>,
    /// Steps that fail again and again, by place and action: forgotten when the step succeeds, not when another does.
    failing: BTreeMap<(EniSlot, &'static str), Failing>,
    /// When a repeated creation was first refused without a trace of the earlier attempt.
    refused: BTreeMap<EniSlot, BootTime>,
    /// Addresses of pods that the kernel showed at start.
    pub on_pods: HashSet<std::net::Ipv4Addr>,
    /// Pods that the kernel shows and whose addresses no answer of EC2 has shown yet, by address.
    unclaimed: BTreeMap<std::net::Ipv4Addr, Allocation>,
    /// Addresses that EC2 shows on another ENI than the ledger, with that one's place.
    strayed: BTreeMap<std::net::Ipv4Addr, EniSlot>,
    /// Whether such a pod was taken over of which the kernel side has not been told.
    took_over: bool,
    /// Whether EC2 is to be asked what was left behind.
    pub orphans_wanted: bool,
    /// What was left behind and finds no place yet.
    orphans: Vec<Interface>,
    /// ENIs that EC2's last answer did not show, with the time of the first such answer.
    absent: BTreeMap<EniSlot, BootTime>,
    /// When the calls in flight were started.
    began: BTreeMap<EniSlot, BootTime>,
    survey_began: BootTime,
    /// CIDRs of subnets, as instance metadata tells them of attached ENIs.
    seen_prefixes: BTreeMap<SubnetId, Ipv4Prefix>,
    /// Whether instance metadata has told this daemon of the primary ENI's security groups.
    groups_heard: bool,
    /// When `activity.fit` was last found to be so.
    fit_at: BootTime,
    /// What could not be configured of the ENIs' links, for people.
    pub link_problems: Vec<String>,
    /// Kinds of blocks that a success has ended.
    ended: BTreeSet<&'static str>,
    /// The NodeNetworkConfig that the settings come from, for people.
    pub following: Option<Following>,
    budget: Budget,
    /// When the next call may leave, while the budget is used up.
    budget_back: Option<BootTime>,
}

/// A step that failed and has not succeeded since.
#[derive(Debug, Clone, Copy)]
struct Failing {
    /// How often in a row before the last time.
    attempts: u32,
    since: BootTime,
    /// When it may be tried again.
    until: BootTime,
}

/// Where this node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The instance.
    pub instance_id: InstanceId,
    /// The CIDR of the primary ENI's subnet.
    pub subnet_prefix: Ipv4Prefix,
}

/// Why no address was allocated.
#[derive(Debug, thiserror::Error)]
pub enum AllocateError {
    /// None is free now.
    #[error("no address is free")]
    Empty,
    /// The journal took no record.
    #[error(
        "the allocation could not be written to the journal: free space in the state directory"
    )]
    Storage(#[source] io::Error),
    /// The record does not fit: a bug.
    #[error("the allocation does not fit the ledger: please report this")]
    Ledger(#[source] LedgerError),
}

// === impl Pool ===

impl<S: Store> Pool<S> {
    /// A pool over what the journal held.
    pub fn new(
        ledger: Ledger,
        store: S,
        limits: PoolLimits,
        settings: Settings,
        place: Place,
        veth_prefix: String,
        now: BootTime,
    ) -> Self {
        let unheard = ledger.unconfirmed();
        let activity = Activity { unheard, began: now, ..Activity::default() };
        Self {
            ledger,
            activity,
            limits,
            settings,
            place,
            waiting: 0,
            survey_wanted: false,
            surveyed_at: None,
            first_surveyed_at: None,
            store,
            veth_prefix,
            changed: BTreeMap::new(),
            lost: Vec::new(),
            attach_refusals: BTreeMap::new(),
            failing: BTreeMap::new(),
            refused: BTreeMap::new(),
            on_pods: HashSet::new(),
            unclaimed: BTreeMap::new(),
            strayed: BTreeMap::new(),
            took_over: false,
            orphans_wanted: false,
            orphans: Vec::new(),
            absent: BTreeMap::new(),
            began: BTreeMap::new(),
            survey_began: now,
            seen_prefixes: BTreeMap::new(),
            groups_heard: false,
            fit_at: now,
            link_problems: Vec::new(),
            ended: BTreeSet::new(),
            following: None,
            budget: Budget::new(now),
            budget_back: None,
        }
    }

    /// Allocates an address, or returns the one that the attachment has. The second value tells which.
    ///
    /// # Errors
    /// See [`AllocateError`]; nothing is allocated then.
    pub fn allocate(
        &mut self,
        request: &AddRequest,
        now: BootTime,
    ) -> Result<(Allocation, bool), AllocateError> {
        if let Some(known) = self.ledger.allocation(&request.attachment) {
            return Ok((known.clone(), false));
        }
        self.thaw(now);
        let snapshot = self.snapshot(now);
        let picked = self.ledger.pick_among(|slot, address| snapshot.usable(slot, address));
        let (slot, address) = picked.ok_or(AllocateError::Empty)?;
        let allocation = Allocation {
            attachment: request.attachment.clone(),
            pod: request.pod.clone(),
            netns: request.netns.clone(),
            address,
            slot,
            host_ifname: self.host_ifname(&request.attachment),
            host_ifindex: self.ledger.next_ifindex(),
            at: now,
        };
        let record = Record::Assigned(allocation.clone());
        fault::point("add-before-journal");
        self.store.commit(std::slice::from_ref(&record)).map_err(AllocateError::Storage)?;
        fault::point("add-after-journal");
        self.ledger.apply(&record).map_err(AllocateError::Ledger)?;
        Ok((allocation, true))
    }

    /// Releases an attachment's address; `None` when it has none.
    pub fn release(&mut self, attachment: &Attachment, now: BootTime) -> Option<Allocation> {
        let allocation = self.ledger.allocation(attachment)?.clone();
        fault::point("del-before-journal");
        self.note(vec![Record::Released { attachment: attachment.clone(), at: now }]);
        fault::point("del-after-journal");
        Some(allocation)
    }

    /// Plans, and announces what must be announced: the steps that come back are to be started now.
    pub fn next_steps(&mut self, now: BootTime) -> (Plan, Vec<Step>) {
        self.thaw(now);
        self.activity.blocks.retain(|_, block| block.until.after(FORGET) > now);
        self.failing.retain(|_, failing| failing.until.after(FORGET) > now);
        self.forget_fit(now);
        self.forget_full(now);
        self.place_orphans(now);
        self.keep_with_pods(now);
        let mut plan = plan::plan(&self.snapshot(now));
        let shrinkable =
            plan.excess > 0 || plan.steps.iter().any(|s| matches!(s, Step::DetachEni { .. }));
        self.activity.excess_since = shrinkable.then(|| self.activity.excess_since.unwrap_or(now));
        self.budget_back = None;
        let mut started = Vec::new();
        for step in plan.steps.clone() {
            if let Err(back) = self.budget.take(now) {
                self.budget_back = Some(back);
                plan.wait(back, "this node has used up its budget of cloud calls".to_owned());
                break;
            }
            fault::point("step-before-intent");
            let late = self.never_came(&step);
            if self.announce(&step, now) {
                self.hold_new_enis(late, now);
                fault::point("step-after-intent");
                self.activity.in_flight.insert(step.slot(), step.clone());
                self.began.insert(step.slot(), now);
                started.push(step);
            }
        }
        (plan, started)
    }

    /// What the planner looks at.
    pub fn snapshot(&self, now: BootTime) -> Snapshot<'_> {
        Snapshot {
            ledger: &self.ledger,
            activity: &self.activity,
            limits: self.limits,
            settings: &self.settings,
            waiting: self.waiting,
            now,
        }
    }

    /// Rewrites the journal when that is worth it.
    pub fn compact(&mut self) {
        if self.store.backlog() == 0 {
            self.store.compact(&self.ledger);
        }
    }

    /// Keeps what the next daemon of this boot is to know before the cloud answers.
    pub fn keep_whereabouts(&mut self, whereabouts: &Whereabouts) {
        self.store.keep_whereabouts(whereabouts);
    }

    /// Facts that the disk has not taken yet.
    pub fn backlog(&self) -> usize {
        self.store.backlog()
    }

    /// Why the disk took nothing the last time that it was written to.
    pub fn storage_trouble(&self) -> Option<&str> {
        self.store.trouble()
    }

    /// Tries again to write, when the disk took nothing the last time.
    pub fn flush(&mut self) {
        if self.store.trouble().is_none() {
            return;
        }
        self.store.retry();
        if self.store.trouble().is_none() {
            self.activity.blocks.retain(|_, block| block.kind != "storage");
        }
    }

    /// Addresses on pods that EC2 does not show any more.
    pub fn lost(&self) -> &[std::net::Ipv4Addr] {
        &self.lost
    }

    /// Whether nothing was changed on this ENI for `age`.
    pub fn settled(&self, slot: EniSlot, now: BootTime, age: Duration) -> bool {
        !self.activity.in_flight.contains_key(&slot)
            && self.changed.get(&slot).is_none_or(|at| now.since(*at) >= age)
    }

    /// The MAC of the interface inside a pod.
    pub fn pod_mac(allocation: &Allocation) -> Mac {
        Mac::local(attachment_hash(&allocation.attachment))
    }

    /// The MAC of a pod's veth on the node.
    pub fn host_mac(allocation: &Allocation) -> Mac {
        Mac::local(attachment_hash(&allocation.attachment) ^ 1)
    }

    /// Writes the intent of a step that needs one. `false`: it could not be written, the step must not start.
    fn announce(&mut self, step: &Step, now: BootTime) -> bool {
        let record = match step {
            Step::CreateEni { slot, token, addresses, place, planned: false } => {
                Record::EniPlanned {
                    slot: *slot,
                    token: token.clone(),
                    addresses: *addresses,
                    place: Some(place.clone()),
                    at: now,
                }
            }
            Step::Unassign { slot, addresses, announced: false, .. } => {
                Record::Unassigning { slot: *slot, addresses: addresses.clone(), at: now }
            }
            Step::DetachEni { slot, draining: false, .. } => {
                Record::EniDraining { slot: *slot, at: now }
            }
            _ => return true,
        };
        if let Err(error) = self.store.commit(std::slice::from_ref(&record)) {
            self.block(
                Blocked::Cloud,
                "storage",
                now,
                Duration::from_secs(5),
                format!(
                    "the journal cannot be written ({error}): free space in the state directory"
                ),
            );
            return false;
        }
        match self.ledger.apply(&record) {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, ?record, "intent does not fit the ledger");
                false
            }
        }
    }

    /// Ends the cooldowns that are over.
    fn thaw(&mut self, now: BootTime) {
        if let Some(thawed) = self.ledger.thaw(now, self.settings.cooldown) {
            self.note(vec![thawed]);
        }
    }

    /// Records facts.
    fn note(&mut self, records: Vec<Record>) {
        let mut fitting = Vec::with_capacity(records.len());
        for record in records {
            match self.ledger.apply(&record) {
                Ok(()) => fitting.push(record),
                Err(error) => tracing::error!(%error, ?record, "fact does not fit the ledger"),
            }
        }
        self.settle_missing(&fitting);
        if !fitting.is_empty() {
            self.store.note(fitting);
        }
    }

    /// Blocks `what` for `base` × 2^attempts, at most 2 minutes, ± 20 % so that nodes do not march in step.
    fn block(
        &mut self,
        what: Blocked,
        kind: &'static str,
        now: BootTime,
        base: Duration,
        reason: String,
    ) {
        let former = self.activity.blocks.get(&what);
        let attempts = former.map_or(0, |b| b.attempts + 1);
        let since = former.map_or(now, |b| b.since);
        let wait = self.backoff(base, attempts, LONGEST, now);
        self.hold(what, Block { until: now.after(wait), attempts, kind, reason, since }, now);
    }

    fn hold(&mut self, what: Blocked, block: Block, now: BootTime) {
        let (kind, reason) = (block.kind, &block.reason);
        tracing::warn!(kind, reason, wait_millis = block.until.0 - now.0, "cloud call held back");
        self.activity.blocks.insert(what, block);
    }

    fn backoff(&self, base: Duration, attempts: u32, longest: Duration, now: BootTime) -> Duration {
        let wait = base.saturating_mul(1 << attempts.min(6)).min(longest).max(base);
        wait.mul_f64(0.8 + 0.4 * jitter(&self.place.instance_id, now.0))
    }

    /// What was tried on this ENI has happened, or is of no use any more.
    fn forget_failures(&mut self, slot: EniSlot) {
        self.failing.retain(|(at, _), _| *at != slot);
    }

    /// A call has succeeded that could not be made.
    fn unblock(&mut self, what: Blocked) {
        let block = self.activity.blocks.remove(&what);
        self.ended.extend(block.map(|block| block.kind));
    }

    /// The block has no object any more, or may have none: that says nothing of its cause.
    fn drop_block(&mut self, what: Blocked) {
        self.activity.blocks.remove(&what);
    }

    /// Kinds of blocks that a success has ended since this was last asked.
    pub fn take_ended(&mut self) -> BTreeSet<&'static str> {
        std::mem::take(&mut self.ended)
    }

    fn host_ifname(&self, attachment: &Attachment) -> veni_core::id::IfName {
        let mut hash = attachment_hash(attachment);
        loop {
            let name = format!("{}{:011x}", self.veth_prefix, hash & 0xfff_ffff_ffff);
            if !self.ledger.allocations().any(|a| a.host_ifname.as_str() == name) {
                return name.parse().expect(
                    "a prefix of at most 4 bytes and 11 hexadecimal digits are a valid name",
                );
            }
            hash = hash.wrapping_add(0x9e37_79b9_7f4a_7c15);
        }
    }
}

/// FNV-1a over the key: names and MACs need to differ, nothing more.
fn attachment_hash(attachment: &Attachment) -> u64 {
    let parts =
        [attachment.network.as_str(), attachment.container_id.as_str(), attachment.ifname.as_str()];
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// 0 to 1 out of the instance and the time, or whatever else differs from one attempt to the next.
pub(crate) fn jitter(instance: &InstanceId, attempt: u64) -> f64 {
    let mut hash = attempt.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for byte in instance.as_str().bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    f64::from(u32::try_from(hash >> 32).unwrap_or(0)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests;
