//! Whether ADDs are served: for readiness, and for the plugin's STATUS.
//!
//! Two questions. *Ready* (`/readyz`, `veni_ready`, `venictl status`): the next ADD has its address at once, or the instance
//! holds no more pods and ipamd has nothing left to do for one. *STATUS*: is
//! there a defect for which ADDs end in an error? Runtimes pass STATUS on as the node's `NetworkReady`, and a node that is
//! not ready is tainted and loses its healthy pods. So STATUS does not fail because ADDs wait or the pool is empty while it
//! can grow, nor for want of addresses on a node that has pods: a full node or a full subnet is the scheduler's
//! affair (maxPods), and an ADD says why. (docs/cni.md)

use veni_core::{
    ipam::plan::Blocked,
    wire::{ErrorCode, ReplyBody, WireError},
};
use veni_provider::Cloud;

use super::Owner;
use crate::{host::Host, journal::Store};

impl<C: Cloud, H: Host, S: Store> Owner<C, H, S> {
    /// Whether an ADD would be served now, without a wait, or could not be on this instance by whatever ipamd.
    pub(super) fn ready(&self) -> bool {
        let at_once =
            self.waiters.is_empty() && self.parts.pool.snapshot(self.now()).available() > 0;
        self.unfiltered.is_none()
            && self.parts.pool.storage_trouble().is_none()
            && (at_once || self.parts.pool.holds_no_more())
    }

    /// The node has been seen able to take pods: with an address at hand, or full of pods that it has taken.
    pub(super) fn announce(&mut self) {
        if self.told.able {
            return;
        }
        let serves = || matches!(self.status(), ReplyBody::Ready);
        let full = || self.parts.pool.ledger.counts().assigned > 0 && serves();
        if self.ready() || full() {
            self.told.able = true;
            let told = self.able.take().is_some_and(|able| able.send(()).is_ok());
            tracing::info!(told, "the node can take pods");
            self.tell_able();
        }
    }

    pub(super) fn status(&self) -> ReplyBody {
        let hindrance = self.unfiltered().or_else(|| self.unwritten()).or_else(|| self.stranded());
        match hindrance {
            None => ReplyBody::Ready,
            Some((code, message)) => ReplyBody::Error(WireError { code, message }),
        }
    }

    /// The filter's problem, in one line.
    pub(super) fn unfiltered(&self) -> Option<(ErrorCode, String)> {
        let why = self.unfiltered.as_ref()?;
        let message = format!(
            "the filter is not in force, no pod is wired without it: {why}; it is tried again every 10 s"
        );
        Some((ErrorCode::NotReady, message))
    }

    /// The disk's.
    pub(super) fn unwritten(&self) -> Option<(ErrorCode, String)> {
        let pool = &self.parts.pool;
        let why = pool.storage_trouble()?;
        let waiting = match pool.backlog() {
            0 => String::new(),
            n => format!("; {n} facts wait for it"),
        };
        let message = format!(
            "the journal cannot be written ({why}): no pod is added until it can, free space in the state \
             directory{waiting}"
        );
        Some((ErrorCode::Storage, message))
    }

    /// A node without pods that has no address and gets none.
    fn stranded(&self) -> Option<(ErrorCode, String)> {
        let (pool, now) = (&self.parts.pool, self.now());
        let snapshot = pool.snapshot(now);
        if snapshot.available() > 0 || pool.ledger.counts().assigned > 0 {
            return None;
        }
        let blocked = |what| snapshot.blocked(what).is_some();
        let has_room = pool.settings.networking.waits_for().is_none() || snapshot.has_room();
        let grows = pool.settings.provisioning
            && !pool.unheard(now)
            && has_room
            && !(blocked(Blocked::Assign) && blocked(Blocked::NewEni));
        (!grows).then(|| {
            (
                ErrorCode::NotReady,
                format!("no address, and none to be had: {}", pool.why_no_address(now)),
            )
        })
    }
}
