//! Flow events for people: the programs' numbers become names.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::sync::mpsc::{Sender, error::TrySendError};
use veni_core::wire::inspect::policy::{Decision, Direction, FlowEvent, Verdict};
use veni_ebpf_common::{DropReason, Event, event::ALLOWED};
use veni_policy::view::{self, protocol_name};

use super::{Enforcer, Plane};
use crate::report::denied::Denial;

/// Someone who follows flows. What it does not take in time is counted and told with the next.
#[derive(Debug)]
pub struct Subscriber {
    flows: Sender<FlowEvent>,
    lost: u64,
}

impl Subscriber {
    /// Flows go to `flows`; whoever drops the receiver is forgotten.
    #[must_use]
    pub const fn new(flows: Sender<FlowEvent>) -> Self {
        Self { flows, lost: 0 }
    }

    /// `false`: it has gone. What it does not take counts as `missed`.
    fn tell(&mut self, mut flow: FlowEvent, missed: &mut u64) -> bool {
        flow.lost += self.lost;
        match self.flows.try_send(flow) {
            Ok(()) => self.lost = 0,
            Err(TrySendError::Full(_)) => {
                self.lost += 1;
                *missed += 1;
            }
            Err(TrySendError::Closed(_)) => return false,
        }
        true
    }
}

impl<P: Plane> Enforcer<P> {
    /// From now on this one is told of flows.
    pub fn subscribe(&mut self, subscriber: Subscriber) {
        self.subscribers.push(subscriber);
    }

    /// Tells the subscribers of new flows. Without any it costs nothing.
    pub fn tell(&mut self, events: &[Event]) {
        self.tell_denied(events);
        self.subscribers.retain(|subscriber| !subscriber.flows.is_closed());
        if self.subscribers.is_empty() {
            return;
        }
        for event in events {
            let Some(flow) = self.flow(event) else { continue };
            let missed = &mut self.progress.events_missed;
            self.subscribers.retain_mut(|subscriber| subscriber.tell(flow.clone(), missed));
        }
    }

    /// From now on this one is told of flows that are denied.
    pub fn tell_denials(&mut self, denials: Sender<Denial>) {
        self.denials = Some(denials);
    }

    /// What it does not take in time is lost: the same is denied again.
    fn tell_denied(&self, events: &[Event]) {
        let Some(denials) = &self.denials else { return };
        for event in events.iter().filter(|event| event.reason != ALLOWED) {
            if denials.capacity() == 0 {
                return;
            }
            let Some(flow) = self.flow(event).filter(|flow| flow.verdict == Verdict::Denied) else {
                continue;
            };
            let wired = self.wirings.by_slot(event.slot, event.incarnation);
            let known = |pod| self.index.pod_uid(pod).flatten().map(str::to_owned);
            let uid = wired.and_then(|wired| known(&wired.pod).or_else(|| wired.uid.clone()));
            // Checked above; who has gone wants none.
            drop(denials.try_send(Denial { uid, flow }));
        }
    }

    fn flow(&self, event: &Event) -> Option<FlowEvent> {
        let wired = self.wirings.by_slot(event.slot, event.incarnation)?;
        let v6 = event.family == 6;
        let own = wired.addresses.iter().copied().find(|address| address.is_ipv6() == v6);
        let own = own.unwrap_or(if v6 {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        } else {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        });
        let remote = SocketAddr::new(address(event.remote, v6), event.remote_port);
        let own = SocketAddr::new(own, event.local_port);
        let egress = event.direction == veni_ebpf_common::Direction::Egress as u8;
        let (source, destination) = if egress { (own, remote) } else { (remote, own) };
        let reason = DropReason::from_slot(event.reason.into());
        let judged = event.reason == ALLOWED
            || matches!(
                reason,
                Some(DropReason::EgressDenied | DropReason::IngressDenied | DropReason::Revoked)
            );
        Some(FlowEvent {
            time_millis: wall_millis(),
            verdict: match (event.reason == ALLOWED, judged) {
                (true, _) => Verdict::Allowed,
                (false, true) => Verdict::Denied,
                (false, false) => Verdict::Dropped,
            },
            pod: wired.pod.to_string(),
            direction: if egress { Direction::Egress } else { Direction::Ingress },
            peer: self.index.name_at(remote.ip()).map(|pod| pod.to_string()),
            source,
            destination,
            protocol: protocol_name(event.protocol),
            decided_by: judged.then(|| self.decision(event)),
            // What a rule decided is said by the rule.
            reason: reason.filter(|_| !judged).map(|reason| reason.name().to_owned()),
            lost: 0,
        })
    }

    fn decision(&self, event: &Event) -> Decision {
        let rule = self.index.rules().get(event.decision.rule());
        view::decision(event.reason == ALLOWED, rule)
    }
}

fn address(bytes: [u8; 16], v6: bool) -> IpAddr {
    if v6 { IpAddr::from(bytes) } else { IpAddr::from([bytes[0], bytes[1], bytes[2], bytes[3]]) }
}

/// Milliseconds since 1970: what people compare with their own logs.
fn wall_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
