//! ENIs whose link does not come: a hot-plug that failed, an attachment that EC2 does not end, a link that somebody moved.
//!
//! Invariants: what such an ENI has promised keeps nobody waiting for ever. It is not counted on after [`LINK_PATIENCE`], and goes
//! after [`LINK_GIVE_UP`] unless it holds something of pods. A link that is there, and that the node cannot make usable, is the
//! node's trouble, not the ENI's: it stays, and no other ENI is made, which would fare no better.

use std::time::Duration;

use super::{Activity, Blocked, BootTime, Plan, Snapshot, Step};
use crate::ipam::{Eni, Phase};

/// How long the addresses of an ENI that is being attached are counted as coming. EC2 attaches in 2 to 5 s, the kernel plugs in
/// one more; a slow attachment is not taken for a lost one within a minute, and an ADD, which waits 20 s, fails at most three times.
pub const LINK_PATIENCE: Duration = Duration::from_secs(60);
/// When it is detached: late enough for somebody to look at it, early enough for its place to be of use to another.
pub const LINK_GIVE_UP: Duration = Duration::from_secs(180);
/// A [`Block`](super::Block)'s kind: an ENI was given back because its link did not come.
pub const NO_LINK: &str = "no_link";

impl Snapshot<'_> {
    /// Whether the ENI is attached, or being attached, for longer than its link may take.
    #[must_use]
    pub fn is_late(&self, eni: &Eni) -> bool {
        eni.phase == Phase::Attaching && self.awaited_from(eni).after(LINK_PATIENCE) <= self.now
    }

    /// Whether its link is on the node, and the node has not made it usable: it tells why.
    #[must_use]
    pub fn is_unconfigured(&self, eni: &Eni) -> bool {
        let Activity { present, links, .. } = self.activity;
        eni.phase == Phase::Attaching && present.contains(&eni.slot) && !links.contains(&eni.slot)
    }

    /// An ENI that shows that the node would not make another one usable either.
    pub(super) fn stuck(&self) -> Option<&Eni> {
        self.ledger.enis().find(|eni| self.is_unconfigured(eni) && self.is_late(eni))
    }

    fn awaited_from(&self, eni: &Eni) -> BootTime {
        eni.since.max(self.activity.began)
    }

    /// Whether nothing is lost with it.
    fn is_empty_handed(&self, eni: &Eni) -> bool {
        let counts = eni.counts();
        counts.assigned + counts.cooling + counts.releasing == 0
            && self.activity.unclaimed == 0
            && !eni.free().any(|address| self.quarantined(address))
    }
}

impl Plan {
    /// Says which ENI's link is late; the step that gives it back when it does not come.
    pub(super) fn late(&mut self, snapshot: &Snapshot<'_>, eni: &Eni) -> Option<Step> {
        if eni.phase != Phase::Attaching {
            return None;
        }
        let since = snapshot.awaited_from(eni);
        if !snapshot.is_late(eni) {
            self.wake_by(Some(since.after(LINK_PATIENCE)));
            return None;
        }
        let id = &eni.facts.as_ref()?.id;
        if snapshot.is_unconfigured(eni) {
            self.reasons.push(format!(
                "{id}: its link is on the node and was not configured within {LINK_PATIENCE:?}, its addresses are not counted on, \
                 and another ENI would fare no better"
            ));
            return None;
        }
        self.reasons.push(format!(
            "{id}: no link on the node {LINK_PATIENCE:?} after it was attached, its addresses are not counted on"
        ));
        let until = since.after(LINK_GIVE_UP);
        if until > snapshot.now {
            self.wake_by(Some(until));
            return None;
        }
        let slot = eni.slot;
        // The wait for the link is over; what failed on the ENI is not.
        let held_back = |block: &super::Block| block.kind != "attaching";
        let waits = snapshot.activity.doubts.contains(&slot)
            || snapshot.blocked(Blocked::Slot(slot)).is_some_and(held_back)
            || snapshot.blocked(Blocked::Shrink).is_some();
        if waits || !snapshot.settings.provisioning || !snapshot.is_empty_handed(eni) {
            return None;
        }
        let attachment = eni.attachment.clone()?;
        self.reasons.push(format!("{id} goes: its link did not come within {LINK_GIVE_UP:?}"));
        Some(Step::DetachEni { slot, attachment, draining: false })
    }
}
