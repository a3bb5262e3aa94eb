//! ENIs whose link does not come, and ENIs that were to go and have pods again.

use veni_core::{
    id::EniId,
    ipam::{
        BootTime, Eni, Phase, Record,
        plan::{Block, Blocked, LINK_GIVE_UP, LINK_PATIENCE, NO_LINK, Step},
    },
    marks::EniSlot,
};

use super::{
    Pool,
    settle::{ATTACH_LONGEST, MINUTE},
};
use crate::journal::Store;

/// A problem's kind: an ENI's link is on the node, and the node cannot make it usable.
const UNCONFIGURED: &str = "link_not_configured";

impl<S: Store> Pool<S> {
    /// ENIs whose link is late: a word, which, and what to do next.
    pub(super) fn late_problems(&self, now: BootTime) -> Vec<(&'static str, String, String)> {
        let snapshot = self.snapshot(now);
        let late = self.ledger.enis().filter(|eni| snapshot.is_late(eni));
        let told = late.filter_map(|eni| {
            let (id, device) = (&eni.facts.as_ref()?.id, eni.slot.device_index());
            let patience = LINK_PATIENCE.as_secs();
            if snapshot.is_unconfigured(eni) {
                let what = format!(
                    "the link of {id} (device {device}) is on the node and was not configured within {patience} s of its \
                     attachment, its addresses are not counted on and no other ENI is made: {}",
                    self.link_problem(id)
                );
                return Some((UNCONFIGURED, id.to_string(), what));
            }
            let what = format!(
                "the link of {id} (device {device}) did not come within {patience} s of its attachment, its addresses are not \
                 counted on: the node does not show it; see `ip link` and the kernel's log (`dmesg`) for a hot-plug that \
                 failed, and whether the link was moved to another namespace; without pods it is detached after {} s",
                LINK_GIVE_UP.as_secs()
            );
            Some((NO_LINK, id.to_string(), what))
        });
        told.collect()
    }

    /// An ENI that has addresses for pods, or brings some, and whose link does not work: what is wrong with it.
    pub(super) fn unusable_link(&self, now: BootTime) -> Option<String> {
        let snapshot = self.snapshot(now);
        let unplugged =
            |eni: &&Eni| eni.in_use() && eni.counts().free > 0 && !self.activity.plugged(eni.slot);
        let eni = self.ledger.enis().find(|eni| unplugged(eni) || snapshot.is_unconfigured(eni))?;
        let id = &eni.facts.as_ref()?.id;
        let what = match self.activity.present.contains(&eni.slot) {
            true => self.link_problem(id),
            false => "it is not on the node: see `ip link` there and the ENI's attachment in EC2",
        };
        Some(format!("the link of {id} is not configured: {what}"))
    }

    /// What keeps a link that is on the node from being used: the ENI's own trouble, or what all of them suffer from.
    fn link_problem(&self, id: &EniId) -> &str {
        let own = |problem: &&String| problem.contains(id.as_str());
        let problem = self.link_problems.iter().find(own).or(self.link_problems.first());
        problem.map_or("see the log of veni-ipamd", String::as_str)
    }

    /// The ENI that `step` gives back because its link did not come.
    pub(super) fn never_came(&self, step: &Step) -> Option<(EniSlot, EniId)> {
        let Step::DetachEni { slot, draining: false, .. } = step else { return None };
        let eni = self.ledger.eni(*slot).filter(|eni| eni.phase == Phase::Attaching)?;
        Some((*slot, eni.facts.as_ref()?.id.clone()))
    }

    /// The next one may do no better: each attempt makes an ENI, attaches and deletes it.
    pub(super) fn hold_new_enis(&mut self, late: Option<(EniSlot, EniId)>, now: BootTime) {
        let Some((slot, id)) = late else { return };
        let former = self.activity.blocks.get(&Blocked::NewEni).filter(|b| b.kind == NO_LINK);
        let attempts = former.map_or(0, |b| b.attempts + 1);
        let since = former.map_or(now, |b| b.since);
        let until = now.after(self.backoff(MINUTE, attempts, ATTACH_LONGEST, now));
        let reason = format!(
            "{id} was given back, its link as device {} did not come: see the kernel's log (`dmesg`) for a hot-plug that failed",
            slot.device_index()
        );
        self.hold(Blocked::NewEni, Block { until, attempts, kind: NO_LINK, reason, since }, now);
    }

    /// An ENI was attached, or more: its link is there.
    pub(super) fn enis_come(&mut self, with_links: bool) {
        let no_link = |block: &Block| block.kind == NO_LINK;
        if self.activity.blocks.get(&Blocked::NewEni).is_some_and(no_link) == with_links {
            self.unblock(Blocked::NewEni);
        }
    }

    /// An ENI that was to be detached, and of which pods that the kernel showed have addresses, is in use again. The records are
    /// those of one that turns out to be attached after all: an older ipamd knows them.
    pub(super) fn keep_with_pods(&mut self, now: BootTime) {
        let back: Vec<_> = self
            .ledger
            .enis()
            .filter(|eni| eni.phase == Phase::Draining && eni.counts().assigned > 0)
            .filter(|eni| !self.activity.in_flight.contains_key(&eni.slot))
            .filter(|eni| !self.activity.doubts.contains(&eni.slot))
            .filter_map(|eni| Some((eni.slot, eni.attachment.clone()?)))
            .collect();
        for (slot, attachment) in back {
            tracing::warn!(slot = slot.get(), "an ENI that was to go has pods: it stays");
            self.note(vec![
                Record::EniDetached { slot, at: now },
                Record::EniAttaching { slot, attachment, at: now },
            ]);
        }
    }
}
