//! What a call's outcome means: records, blocks and doubts. The error's class alone decides.

use std::{net::Ipv4Addr, time::Duration};

use veni_core::{
    id::{AttachmentId, EniId},
    ipam::{
        BootTime, Eni, Phase, Record,
        plan::{Block, Blocked, CONFIRM, Step},
    },
    marks::EniSlot,
};
use veni_provider::{CloudError, ErrorClass, Interface, TAG_CREATED_AT};

use super::{Failing, LONGEST, Pool};
use crate::{fault, journal::Store, metrics::action};

pub(super) const SECOND: Duration = Duration::from_secs(1);
const THROTTLE: Duration = Duration::from_millis(500);
const TOKEN_REUSED: &str = "IdempotentParameterMismatch";
pub(super) const MINUTE: Duration = Duration::from_secs(60);
/// The longest wait between two ENIs that EC2 does not attach.
pub(super) const ATTACH_LONGEST: Duration = Duration::from_secs(900);

/// What came of a step.
#[derive(Debug)]
pub enum Outcome {
    /// `CreateEni` made it.
    Created(Interface),
    /// `AttachEni` has begun.
    Attached(AttachmentId),
    /// `Assign` brought these.
    Assigned(Vec<Ipv4Addr>),
    /// `Observe` saw this; `None` when there is no such ENI.
    Observed(Option<Interface>),
    /// A repeated `CreateEni` was refused; unattached ENIs of this instance are these.
    Refused {
        /// Why.
        error: CloudError,
        /// What EC2 shows.
        left: Vec<Interface>,
    },
    /// Done, with nothing to tell.
    Done,
    /// It failed.
    Failed(CloudError),
}

impl<S: Store> Pool<S> {
    /// Takes in what came of `step`.
    pub fn settle(&mut self, step: &Step, outcome: Outcome, now: BootTime) {
        let slot = step.slot();
        fault::point("step-after-call");
        self.activity.in_flight.remove(&slot);
        self.changed.insert(slot, now);
        if let Outcome::Failed(error) = outcome {
            tracing::warn!(%step, class = %error.class, code = error.code, message = error.message, "cloud call failed");
            self.settle_failure(step, &error, now);
        } else if let Outcome::Refused { error, left } = outcome {
            tracing::warn!(%step, class = %error.class, code = error.code, message = error.message, "repeated creation refused");
            self.settle_refusal(step, &error, &left, now);
        } else {
            let began = self.began.get(&slot).copied();
            self.calls_work_since(began.unwrap_or(now));
            self.settle_success(step, outcome, now);
        }
        self.began.remove(&slot);
        self.claim(now);
        fault::point("step-after-settle");
    }

    fn settle_success(&mut self, step: &Step, outcome: Outcome, now: BootTime) {
        let slot = step.slot();
        self.failing.remove(&(slot, action(step)));
        if !matches!(step, Step::Observe { .. }) {
            self.unblock(Blocked::Slot(slot));
        }
        let subnet = self.subnet_of(step);
        match (step, outcome) {
            (Step::CreateEni { addresses, .. }, Outcome::Created(interface)) => {
                self.fits_more(*addresses, now);
                self.subnet_works(subnet.as_ref());
                self.refused.remove(&slot);
                self.see_groups(&interface);
                let eni = self.facts(&interface);
                let addresses = self.unknown(&interface.secondary_addresses);
                self.note(vec![Record::EniCreated { slot, eni, addresses, at: now }]);
            }
            (Step::AttachEni { .. }, Outcome::Attached(attachment)) => {
                self.attach_refusals.remove(&slot);
                // Not before: an ENI that can be made and not attached would be made and deleted for ever.
                self.enis_come(false);
                self.note(vec![Record::EniAttaching { slot, attachment, at: now }]);
            }
            (Step::Assign { count, .. }, Outcome::Assigned(addresses)) => {
                self.fits_more(*count, now);
                self.subnet_works(subnet.as_ref());
                self.unblock(Blocked::Assign);
                self.unblock(Blocked::Room(slot));
                let addresses = self.unknown(&addresses);
                self.note(vec![Record::Gained { slot, addresses, at: now }]);
            }
            (Step::Unassign { addresses, .. }, _) => {
                self.unblock(Blocked::Shrink);
                self.subnet_has_room(subnet.as_ref(), addresses.len());
                self.note(vec![Record::Unassigned { slot, addresses: addresses.clone(), at: now }]);
            }
            (Step::SetGroups { eni, groups, .. }, _) => self.groups_set(eni, groups),
            (Step::ProtectEni { .. }, _) => {
                self.unblock(Blocked::Protect);
                self.note(vec![Record::EniProtected { slot }]);
            }
            (Step::DetachEni { .. }, _) => {
                self.note(vec![Record::EniDetaching { slot, at: now }]);
                // The link can go before EC2's answer arrives.
                if !self.activity.links.contains(&slot) {
                    self.note(vec![Record::EniDetached { slot, at: now }]);
                }
            }
            (Step::DeleteEni { .. }, _) => self.gone(slot, now),
            (Step::Observe { .. }, Outcome::Observed(seen)) => self.observed(slot, seen, now),
            (step, outcome) => {
                tracing::error!(%step, ?outcome, "outcome does not belong to its step")
            }
        }
    }

    /// What an earlier attempt has made is deleted, and its place planned anew; nothing of it is left either way.
    fn settle_refusal(
        &mut self,
        step: &Step,
        error: &CloudError,
        left: &[Interface],
        now: BootTime,
    ) {
        let slot = step.slot();
        let made_now = |s: &Step| matches!(s, Step::CreateEni { .. });
        if self.activity.in_flight.values().any(made_now) {
            // What EC2 shows may be that one's.
            self.block_step(step, error, now);
            return;
        }
        if let Some(eni) = self.left_by(step, error, left).map(|interface| self.facts(interface)) {
            tracing::info!(eni = %eni.id, slot = slot.get(), "ENI of an earlier attempt found, it will be deleted");
            self.refused.remove(&slot);
            self.drop_block(Blocked::Slot(slot));
            let addresses = Vec::new();
            self.note(vec![
                Record::EniCreated { slot, eni, addresses, at: now },
                Record::EniDetached { slot, at: now },
            ]);
            return;
        }
        // EC2 may not show it yet.
        let first = *self.refused.entry(slot).or_insert(now);
        if now.since(first) < CONFIRM {
            self.block_step(step, error, now);
            return;
        }
        self.refused.remove(&slot);
        self.settle_failure(step, error, now);
    }

    /// The ENI that an earlier attempt of `step` has made.
    fn left_by<'a>(
        &self,
        step: &Step,
        error: &CloudError,
        left: &'a [Interface],
    ) -> Option<&'a Interface> {
        let Step::CreateEni { token, .. } = step else { return None };
        let known = |id: &EniId| {
            self.ledger.enis().any(|eni| eni.facts.as_ref().is_some_and(|f| f.id == *id))
        };
        let strays = || left.iter().filter(|i| i.attachment.is_none() && !known(&i.id));
        let made_at = crate::executor::created_at(token);
        let same = |i: &&Interface| i.tags.get(TAG_CREATED_AT) == Some(&made_at);
        // The token was used, so there was one: whatever its tags say.
        let any = || strays().next().filter(|_| error.code == TOKEN_REUSED);
        strays().find(same).or_else(any)
    }

    fn settle_failure(&mut self, step: &Step, error: &CloudError, now: BootTime) {
        let slot = step.slot();
        match &error.class {
            ErrorClass::Throttled { .. } => {
                let began = self.began.get(&slot).copied();
                self.throttle(error, began.unwrap_or(now), now);
            }
            ErrorClass::Denied { action } => self.denied(step, action, now),
            ErrorClass::SubnetExhausted { .. } if grows(step) => self.subnet_exhausted(step, now),
            ErrorClass::AddressLimit { .. } if grows(step) => self.eni_full(step, error, now),
            ErrorClass::Quota if grows(step) => {
                let reason = format!(
                    "EC2 gives no more: {} ({}); ask AWS for a higher quota",
                    error.message, error.code
                );
                self.hold_growth(step, "limit_reached", MINUTE, &reason, now);
            }
            _ => match step {
                Step::CreateEni { .. } => self.creation_failed(step, error, now),
                Step::AttachEni { .. } => self.attachment_failed(step, error, now),
                Step::DeleteEni { .. } => self.deletion_failed(step, error, now),
                Step::ProtectEni { .. } if matches!(error.class, ErrorClass::Transient) => {
                    self.block_step(step, error, now);
                }
                Step::Observe { .. } if matches!(error.class, ErrorClass::NotFound) => {
                    self.observed(slot, None, now);
                }
                _ => self.doubt(step, error, now),
            },
        }
    }

    fn creation_failed(&mut self, step: &Step, error: &CloudError, now: BootTime) {
        let (kind, next) = match &error.class {
            // The token makes a repetition harmless.
            ErrorClass::Transient => return self.block_step(step, error, now),
            ErrorClass::AttachmentLimit => {
                self.survey_wanted = true;
                ("limit_reached", self.enis_next())
            }
            ErrorClass::Invalid | ErrorClass::UnknownInstanceType(_) | ErrorClass::NotFound => {
                ("invalid", self.place_next())
            }
            _ => return self.doubt(step, error, now),
        };
        let reason = format!("EC2 refuses a new ENI: {} ({}); {next}", error.message, error.code);
        self.hold_growth(step, kind, MINUTE, &reason, now);
    }

    fn attachment_failed(&mut self, step: &Step, error: &CloudError, now: BootTime) {
        match &error.class {
            ErrorClass::AttachmentLimit | ErrorClass::Invalid => {
                self.attach_refused(step, error, now)
            }
            // At first EC2 may not know it everywhere; then it never will, and its place is of use to another.
            ErrorClass::NotFound if self.attach_is_hopeless(step) => {
                self.give_back_unattached(step.slot(), error, now)
            }
            _ => self.doubt(step, error, now),
        }
    }

    fn deletion_failed(&mut self, step: &Step, error: &CloudError, now: BootTime) {
        let slot = step.slot();
        match &error.class {
            // The nature of the call makes a repetition harmless.
            ErrorClass::Transient => self.block_step(step, error, now),
            ErrorClass::NotFound => {
                // One that was never attached may be too young for every part of EC2 to know it.
                let young = |eni: &Eni| eni.attachment.is_none() && now.since(eni.since) < CONFIRM;
                if self.ledger.eni(slot).is_some_and(young) {
                    self.block_step(step, error, now);
                } else {
                    self.gone(slot, now);
                }
            }
            ErrorClass::Invalid => {
                // Still detaching, or attached after all: EC2 is asked before it is tried again.
                self.activity.doubts.insert(slot);
                self.block_step(step, error, now);
            }
            _ => self.doubt(step, error, now),
        }
    }

    /// Begins to ask EC2 for all ENIs of the instance, out of the same budget as every call.
    ///
    /// # Errors
    /// When that must wait: until when.
    pub fn begin_survey(&mut self, now: BootTime) -> Result<(), BootTime> {
        match self.snapshot(now).blocked(Blocked::Survey) {
            Some(block) => Err(block.until),
            None => {
                self.budget.take(now)?;
                self.survey_began = now;
                Ok(())
            }
        }
    }

    /// EC2 throttles: no call for a while. One that was under way already is no sign that the wait was too short.
    fn throttle(&mut self, error: &CloudError, began: BootTime, now: BootTime) {
        let base = error.retry_after().unwrap_or(THROTTLE);
        match self.activity.blocks.get_mut(&Blocked::Cloud) {
            Some(block) if began < block.until => block.until = block.until.max(now.after(base)),
            _ => self.block(Blocked::Cloud, "throttled", now, base, throttled(error)),
        }
    }

    /// A call that was started at `began` has succeeded: calls need not wait any more, unless it was under way when it
    /// was found that they must.
    pub(super) fn calls_work_since(&mut self, began: BootTime) {
        if self.activity.blocks.get(&Blocked::Cloud).is_some_and(|block| began >= block.until) {
            self.unblock(Blocked::Cloud);
        }
    }

    /// EC2 did not tell: it is asked again, after a wait that follows from the error's class.
    pub fn survey_failed(&mut self, error: &CloudError, now: BootTime) {
        self.survey_wanted = true;
        match &error.class {
            ErrorClass::Throttled { .. } => self.throttle(error, self.survey_began, now),
            _ => {
                let (kind, base, reason) = unanswered("ENIs of the instance not listed", error);
                self.block(Blocked::Survey, kind, now, base, reason);
            }
        }
    }

    /// The outcome is unknown, or the ENI is not as the ledger has it: EC2 is asked before anything else happens to it.
    fn doubt(&mut self, step: &Step, error: &CloudError, now: BootTime) {
        if matches!(step, Step::ProtectEni { .. }) {
            let began = self.began.get(&step.slot());
            let block = self.activity.blocks.get(&Blocked::Protect);
            if block.zip(began).is_some_and(|(block, began)| *began < block.until) {
                // Of several at once the first has set the wait: the others are no sign that it was too short.
                return;
            }
            let reason = format!("DeleteOnTermination not set: {} ({})", error.message, error.code);
            self.block(Blocked::Protect, "transient", now, SECOND, reason);
            return;
        }
        if matches!(step, Step::SetGroups { .. }) {
            return self.groups_not_set(error, now);
        }
        self.activity.doubts.insert(step.slot());
        let key = (step.slot(), action(step));
        let first = error.effect_unknown() && !self.failing.contains_key(&key);
        if first && !matches!(step, Step::Observe { .. }) {
            // What it did is seen at once.
            self.failing.insert(key, Failing { attempts: 0, since: now, until: now });
        } else {
            self.block_step(step, error, now);
        }
    }

    /// Any call on the step's ENI waits, the longer the more often in a row this step has failed.
    fn block_step(&mut self, step: &Step, error: &CloudError, now: BootTime) {
        let slot = step.slot();
        let reason = format!(
            "{} on device {}: {} ({})",
            error.action,
            slot.device_index(),
            error.message,
            error.code
        );
        let key = (slot, action(step));
        let former = self.failing.get(&key);
        let (attempts, since) = former.map_or((0, now), |f| (f.attempts + 1, f.since));
        let until = now.after(self.backoff(SECOND, attempts, LONGEST, now));
        self.failing.insert(key, Failing { attempts, since, until });
        let kind = kind(&error.class);
        self.hold(Blocked::Slot(slot), Block { until, attempts, kind, reason, since }, now);
    }

    fn denied(&mut self, step: &Step, action: &str, now: BootTime) {
        let reason = lacking(action);
        match step {
            Step::CreateEni { .. } | Step::Assign { .. } => {
                self.hold_growth(step, "denied", MINUTE, &reason, now)
            }
            Step::ProtectEni { .. } => self.block(Blocked::Protect, "denied", now, MINUTE, reason),
            Step::SetGroups { .. } => self.block(Blocked::Groups, "denied", now, MINUTE, reason),
            Step::Unassign { slot, addresses, .. } => {
                self.note(vec![Record::UnassignRefused {
                    slot: *slot,
                    addresses: addresses.clone(),
                    at: now,
                }]);
                self.block(Blocked::Shrink, "denied", now, MINUTE, reason);
            }
            step => self.block(Blocked::Slot(step.slot()), "denied", now, MINUTE, reason),
        }
    }

    /// Growth of the step's kind waits; an ENI that was only planned is not planned any more.
    fn hold_growth(
        &mut self,
        step: &Step,
        kind: &'static str,
        base: Duration,
        reason: &str,
        now: BootTime,
    ) {
        if let Step::CreateEni { slot, .. } = step {
            self.gone(*slot, now);
            self.block(Blocked::NewEni, kind, now, base, reason.to_owned());
        } else {
            self.block(Blocked::Assign, kind, now, base, reason.to_owned());
        }
    }

    /// A subnet that has no room for many may have room for few: halves what a call asks for, then waits. Of several the
    /// next one is asked first.
    fn subnet_exhausted(&mut self, step: &Step, now: BootTime) {
        let asked = match step {
            Step::CreateEni { addresses, .. } => *addresses,
            Step::Assign { count, .. } => *count,
            _ => 0,
        };
        let subnet = self.subnet_of(step);
        if let Step::CreateEni { slot, .. } = step {
            self.gone(*slot, now);
        }
        if let Some(subnet) = subnet {
            self.subnet_full(&subnet, asked, now);
        }
    }

    /// What to do when EC2 does not like what a new ENI is asked for with.
    fn place_next(&self) -> String {
        match self.settings.networking.placement() {
            Some(placement) => format!(
                "see that the subnets and security groups of {} exist, in the VPC and zone of this node",
                placement.source
            ),
            None => "see that the primary ENI's subnet and security groups exist".to_owned(),
        }
    }

    /// An ENI takes no more, although its type's limit says so: it is left as it is for a while. One that is not made
    /// yet is made with fewer.
    fn eni_full(&mut self, step: &Step, error: &CloudError, now: BootTime) {
        match step {
            Step::CreateEni { slot, addresses, .. } if *addresses > 1 => {
                self.gone(*slot, now);
                self.fits_less(*addresses, now);
            }
            Step::CreateEni { .. } => {
                self.activity.fit = None;
                let reason = format!(
                    "EC2 refuses a new ENI: {} ({}); {}",
                    error.message,
                    error.code,
                    self.enis_next()
                );
                self.hold_growth(step, "limit_reached", MINUTE, &reason, now);
            }
            step => {
                // It may hold some that the ledger does not know.
                self.activity.doubts.insert(step.slot());
                let reason = format!(
                    "EC2 gives the ENI of device {} no more addresses: {} ({})",
                    step.slot().device_index(),
                    error.message,
                    error.code
                );
                self.block(Blocked::Room(step.slot()), "limit_reached", now, MINUTE, reason);
            }
        }
    }

    /// The place is taken or the instance is full: look, and after the second refusal give the ENI back.
    fn attach_refused(&mut self, step: &Step, error: &CloudError, now: BootTime) {
        let slot = step.slot();
        self.survey_wanted = true;
        if self.ledger.eni(slot).is_some_and(|eni| eni.phase != Phase::Created) {
            self.activity.doubts.insert(slot);
            self.block_step(step, error, now);
            return;
        }
        let refusals = self.attach_refusals.entry(slot).or_default();
        *refusals += 1;
        if *refusals >= 2 {
            self.give_back_unattached(slot, error, now);
        } else {
            self.activity.doubts.insert(slot);
        }
    }

    fn give_back_unattached(&mut self, slot: EniSlot, error: &CloudError, now: BootTime) {
        self.attach_refusals.remove(&slot);
        self.forget_failures(slot);
        self.note(vec![Record::EniDetached { slot, at: now }]);
        let reason = format!(
            "EC2 attaches no further ENI: {} ({}); {}",
            error.message,
            error.code,
            self.enis_next()
        );
        let former = self.activity.blocks.get(&Blocked::NewEni);
        let attempts = former.map_or(0, |b| b.attempts + 1);
        let since = former.map_or(now, |b| b.since);
        // Each attempt makes an ENI and deletes it.
        let until = now.after(self.backoff(MINUTE, attempts, ATTACH_LONGEST, now));
        let kind = "limit_reached";
        self.hold(Blocked::NewEni, Block { until, attempts, kind, reason, since }, now);
    }

    fn attach_is_hopeless(&self, step: &Step) -> bool {
        let key = (step.slot(), action(step));
        matches!(step, Step::AttachEni { .. })
            && self.ledger.eni(step.slot()).is_some_and(|eni| eni.phase == Phase::Created)
            && self.failing.get(&key).is_some_and(|f| f.attempts >= 4)
    }

    /// The ENI does not exist (any more): everything known of it goes, unless pods still have its addresses.
    pub(super) fn gone(&mut self, slot: EniSlot, now: BootTime) {
        if self.ledger.eni(slot).is_some_and(|eni| eni.counts().assigned > 0 || eni.primary) {
            return;
        }
        self.activity.doubts.remove(&slot);
        self.activity.links.remove(&slot);
        self.activity.present.remove(&slot);
        self.forget_groups(slot);
        self.refused.remove(&slot);
        self.absent.remove(&slot);
        self.forget_failures(slot);
        self.drop_block(Blocked::Slot(slot));
        self.drop_block(Blocked::Room(slot));
        self.note(vec![Record::EniGone { slot, at: now }]);
    }

    /// Those that the ledger does not have. EC2 hands an address out once; a double that does not is not believed.
    pub(super) fn unknown(&self, addresses: &[Ipv4Addr]) -> Vec<Ipv4Addr> {
        let mut unknown: Vec<_> = addresses
            .iter()
            .copied()
            .filter(|address| self.ledger.address(*address).is_none())
            .collect();
        unknown.sort_unstable();
        unknown.dedup();
        unknown
    }
}

/// Whether the step brings addresses.
fn grows(step: &Step) -> bool {
    matches!(step, Step::CreateEni { .. } | Step::Assign { .. })
}

fn lacking(action: &str) -> String {
    format!("the node's IAM role lacks ec2:{action}: add it to the role's policy")
}

fn throttled(error: &CloudError) -> String {
    format!("EC2 throttles this account ({} of {}): calls wait", error.code, error.action)
}

/// What a list that EC2 did not give means: a word for it, how long to wait, and why.
pub(super) fn unanswered(what: &str, error: &CloudError) -> (&'static str, Duration, String) {
    let base = if matches!(error.class, ErrorClass::Transient) { SECOND } else { MINUTE };
    let reason = match &error.class {
        ErrorClass::Denied { action } => lacking(action),
        _ => format!("{what}: {} ({})", error.message, error.code),
    };
    (kind(&error.class), base, reason)
}

pub(super) fn kind(class: &ErrorClass) -> &'static str {
    match class {
        ErrorClass::Throttled { .. } => "throttled",
        ErrorClass::SubnetExhausted { .. } => "subnet_full",
        ErrorClass::AddressLimit { .. } | ErrorClass::AttachmentLimit | ErrorClass::Quota => {
            "limit_reached"
        }
        ErrorClass::NotFound => "not_found",
        ErrorClass::Denied { .. } => "denied",
        ErrorClass::Transient => "transient",
        ErrorClass::Invalid | ErrorClass::UnknownInstanceType(_) => "invalid",
    }
}
