//! The plugin's requests.

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};
use veni_core::{
    config::POD_GATEWAY,
    ipam::Allocation,
    wire::{
        AddRequest, Attachment, DelReason, ErrorCode, GcRequest, Released, ReleasedAttachment,
        ReplyBody, WireError, Wiring,
    },
};
use veni_provider::Cloud;

use super::{Command, ConnectionId, Held, Owner, Waiter};
use crate::{
    fault,
    host::Host,
    journal::Store,
    pool::{AllocateError, Pool},
};

/// At most so many ADDs wait at once: a node has no more pods than this.
const MAX_WAITERS: usize = 2048;

impl<C: Cloud, H: Host, S: Store> Owner<C, H, S> {
    pub(super) fn handle(&mut self, command: Command) {
        let Some(command) = self.behind_its_turn(command) else { return };
        match command {
            Command::Add(connection, request, reply) => self.add(connection, request, reply),
            Command::AddClosed(connection, attachment) => self.closed(connection, &attachment),
            Command::Del(attachment, reason, reply) => {
                let body = self.del(&attachment, reason);
                fault::point("del-before-reply");
                answer(reply, body);
            }
            Command::Check(attachment, reply) => answer(reply, self.check(&attachment)),
            Command::Gc(request, reply) => {
                let body = self.gc(&request);
                answer(reply, body);
            }
            Command::Status(reply) => answer(reply, self.status()),
            Command::Inspect(query, reply) => {
                answer(reply, ReplyBody::Inspect(Box::new(self.view(query))))
            }
        }
    }

    /// What concerns an attachment that a plugin works on waits until that plugin is done.
    fn behind_its_turn(&mut self, command: Command) -> Option<Command> {
        let key = match &command {
            Command::Add(_, request, _) => &request.attachment,
            Command::Del(attachment, ..) | Command::Check(attachment, _) => attachment,
            _ => return Some(command),
        };
        let Some(held) = self.held.get_mut(key) else { return Some(command) };
        held.queue.push_back(command);
        None
    }

    fn add(
        &mut self,
        connection: ConnectionId,
        request: AddRequest,
        reply: oneshot::Sender<ReplyBody>,
    ) {
        if reply.is_closed() {
            // Its plugin died while it stood behind another.
            return;
        }
        let now = Instant::now();
        // Its plugin tells when it is done.
        self.resuming.remove(&request.attachment);
        let held = Held { by: connection, queue: VecDeque::new() };
        self.held.insert(request.attachment.clone(), held);
        // First come, first served: who comes later does not overtake those that wait.
        if (self.waiters.is_empty()
            || self.parts.pool.ledger.allocation(&request.attachment).is_some())
            && let Some(body) = self.try_add(&request)
        {
            self.count(&body, Duration::ZERO);
            self.answer_judged(&request.attachment, reply, body);
            self.plan_soon();
            return;
        }
        if self.waiters.len() >= MAX_WAITERS {
            answer(
                reply,
                no_address(format!(
                    "{MAX_WAITERS} ADDs wait for an address already; `venictl status` shows what for, and the runtime tries this one again"
                )),
            );
            return;
        }
        let bound = self.parts.config.add_wait;
        let wait =
            request.wait_millis.map_or(bound, |millis| Duration::from_millis(millis).min(bound));
        let deadline = now + wait;
        self.waiters.push_back(Waiter { connection, request, reply, since: now, deadline });
        self.plan_soon();
    }

    /// Allocates and admits; `None` when there is no address.
    fn try_add(&mut self, request: &AddRequest) -> Option<ReplyBody> {
        if let Err(error) = self.ensure_filter() {
            let message = format!(
                "the filter is not in force, no pod is wired without it: {error}; see the log of veni-ipamd"
            );
            return Some(ReplyBody::Error(WireError { code: ErrorCode::Internal, message }));
        }
        let now = self.now();
        let host = &self.parts.host;
        self.parts.pool.pass_over(|index| host.index_taken(index));
        let (allocation, fresh) = match self.parts.pool.allocate(request, now) {
            Ok(allocated) => allocated,
            Err(AllocateError::Empty) => return None,
            Err(error) => return Some(refused(&error)),
        };
        if let Err(error) = self.parts.host.admit(&allocation, Pool::<S>::pod_mac(&allocation)) {
            if fresh {
                self.release(&allocation.attachment);
            }
            let message =
                format!("the filter's map takes no entry for {}: {error}", allocation.address);
            return Some(ReplyBody::Error(WireError { code: ErrorCode::Internal, message }));
        }
        fault::point("add-after-filter");
        Some(ReplyBody::Wiring(Box::new(self.wiring(&allocation))))
    }

    /// Answers an ADD once its pod is judged by its rule sets: no packet of it is before them.
    fn answer_judged(
        &mut self,
        attachment: &Attachment,
        reply: oneshot::Sender<ReplyBody>,
        body: ReplyBody,
    ) {
        fault::point("add-before-reply");
        match self.parts.pool.ledger.allocation(attachment) {
            Some(allocation) if matches!(body, ReplyBody::Wiring(_)) => {
                let allocation = allocation.clone();
                self.tell_assigned(&allocation);
                self.parts.host.judge(&allocation, Box::new(move |_| answer(reply, body)));
            }
            _ => answer(reply, body),
        }
    }

    /// A refusal is no ADD with an address.
    fn count(&self, body: &ReplyBody, waited: Duration) {
        if let ReplyBody::Wiring(_) = body {
            self.parts.metrics.added(waited);
        }
    }

    fn wiring(&self, allocation: &Allocation) -> Wiring {
        let eni = self.parts.pool.ledger.eni(allocation.slot).and_then(|eni| eni.facts.as_ref());
        Wiring {
            address: allocation.address,
            gateway: POD_GATEWAY,
            host_ifname: allocation.host_ifname.clone(),
            host_ifindex: allocation.host_ifindex,
            host_mac: Pool::<S>::host_mac(allocation),
            pod_mac: Pool::<S>::pod_mac(allocation),
            mtu: self.parts.config.pod_mtu,
            pod_table: self.parts.config.table_base,
            node_address: self.parts.whereabouts.identity.local_ipv4,
            blocks: self.parts.host.blocks(),
            eni: eni.map(|facts| facts.id.clone()).expect("an allocation's ENI is in the ledger"),
        }
    }

    /// Gives waiting ADDs what is there, in their order.
    pub(super) fn serve_waiters(&mut self) {
        while let Some(waiter) = self.waiters.front() {
            if waiter.reply.is_closed() {
                let waiter = self.waiters.pop_front().expect("there is a first");
                self.let_go_of(waiter.connection, &waiter.request.attachment);
                continue;
            }
            let request = waiter.request.clone();
            let Some(body) = self.try_add(&request) else { break };
            let waiter = self.waiters.pop_front().expect("there is a first");
            self.count(&body, waiter.since.elapsed());
            self.answer_judged(&request.attachment, waiter.reply, body);
            self.plan_soon();
        }
    }

    /// Ends waits that are over. A plugin that hangs keeps its attachment: what it wires when it goes on must be its own still,
    /// and the kernel tells of its end.
    pub(super) fn expire(&mut self) {
        let now = Instant::now();
        self.end_resuming();
        while let Some(at) = self.waiters.iter().position(|w| w.deadline <= now) {
            let waiter = self.waiters.remove(at).expect("found above");
            let why = self.parts.pool.why_no_address(self.now());
            self.parts.metrics.starved();
            let pod = &waiter.request.pod;
            tracing::warn!(ns = pod.namespace, pod = pod.name, why, "no address within the wait");
            self.tell_starved(pod, &why);
            answer(waiter.reply, no_address(format!("no address: {why}")));
        }
    }

    /// A plugin has let go: the wiring is watched from now on, where there is a link. The end of one that stood behind
    /// another frees nothing: the other is at work still.
    fn closed(&mut self, connection: ConnectionId, attachment: &Attachment) {
        if self.held.get(attachment).is_some_and(|held| held.by != connection) {
            return;
        }
        if let Some(allocation) = self.parts.pool.ledger.allocation(attachment) {
            self.parts.host.wired(allocation);
        }
        self.let_go(attachment);
    }

    pub(super) fn let_go_of(&mut self, connection: ConnectionId, attachment: &Attachment) {
        if self.held.get(attachment).is_some_and(|held| held.by == connection) {
            self.let_go(attachment);
        }
    }

    /// The attachment is free again: what waited behind it goes on.
    fn let_go(&mut self, attachment: &Attachment) {
        let Some(held) = self.held.remove(attachment) else { return };
        let mut queue = held.queue;
        while let Some(command) = queue.pop_front() {
            self.handle(command);
            if let Some(held) = self.held.get_mut(attachment) {
                held.queue.append(&mut queue);
            }
        }
    }

    fn del(&mut self, attachment: &Attachment, reason: DelReason) -> ReplyBody {
        // An ADD that failed has undone its wiring. A link that is there is another ADD's, and its pod runs.
        let host = &self.parts.host;
        let wired = |pod: &Allocation| host.link_remains(&pod.host_ifname, pod.host_ifindex);
        let known = self.parts.pool.ledger.allocation(attachment);
        if reason == DelReason::AddFailed && known.is_some_and(wired) {
            tracing::warn!(container = %attachment.container_id, "an ADD failed for a pod that another one has wired: it keeps its address");
            return ReplyBody::Released(Released::default());
        }
        let released = self.release(attachment);
        self.parts.metrics.deleted(reason);
        self.plan_soon();
        ReplyBody::Released(Released {
            released: released.into_iter().map(released_attachment).collect(),
        })
    }

    fn check(&self, attachment: &Attachment) -> ReplyBody {
        match self.parts.pool.ledger.allocation(attachment) {
            Some(allocation) => ReplyBody::Wiring(Box::new(self.wiring(allocation))),
            None => ReplyBody::Error(WireError {
                code: ErrorCode::UnknownAttachment,
                message: format!(
                    "ipamd has no address for container {} interface {}: delete the pod, its controller makes a new one",
                    attachment.container_id, attachment.ifname
                ),
            }),
        }
    }

    /// Collects what the runtime does not have any more. Where the link is still there it is the plugin's to remove,
    /// and the address is released once the kernel says that it has gone (`sweep`).
    fn gc(&mut self, request: &GcRequest) -> ReplyBody {
        let valid: HashSet<_> =
            request.valid.iter().map(|v| (v.container_id.as_str(), v.ifname.as_str())).collect();
        let stale: Vec<_> = self
            .parts
            .pool
            .ledger
            .allocations()
            .map(|allocation| &allocation.attachment)
            .filter(|a| a.network == request.network)
            .filter(|a| !valid.contains(&(a.container_id.as_str(), a.ifname.as_str())))
            // A plugin is at work on it, of this daemon or of the former one.
            .filter(|a| !self.held.contains_key(*a) && !self.resuming.contains_key(*a))
            .cloned()
            .collect();
        let released =
            stale.iter().filter_map(|attachment| self.collect(attachment)).map(released_attachment);
        let released = released.collect();
        self.plan_soon();
        ReplyBody::Released(Released { released })
    }

    fn collect(&mut self, attachment: &Attachment) -> Option<Allocation> {
        let allocation = self.parts.pool.ledger.allocation(attachment)?;
        if self.parts.host.has_link(&allocation.host_ifname, allocation.host_ifindex) {
            return Some(allocation.clone());
        }
        self.release(attachment)
    }
}

fn released_attachment(allocation: Allocation) -> ReleasedAttachment {
    ReleasedAttachment {
        attachment: allocation.attachment,
        address: allocation.address,
        host_ifname: allocation.host_ifname,
    }
}

fn no_address(message: String) -> ReplyBody {
    ReplyBody::Error(WireError { code: ErrorCode::NoAddress, message })
}

fn refused(error: &AllocateError) -> ReplyBody {
    let code = if matches!(error, AllocateError::Storage(_)) {
        ErrorCode::Storage
    } else {
        ErrorCode::Internal
    };
    let source = std::error::Error::source(error).map(|e| format!(" ({e})")).unwrap_or_default();
    ReplyBody::Error(WireError { code, message: format!("{error}{source}") })
}

/// Sends. Who does not listen any more has gone; what was allocated for it is found again by its next ADD or DEL.
fn answer(reply: oneshot::Sender<ReplyBody>, body: ReplyBody) {
    drop(reply.send(body));
}
