//! Questions to the enforcer, and its answers: the documents that `venictl policy --live` prints.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Instant, UNIX_EPOCH},
};

use ipnet::{Ipv4Net, Ipv6Net};
use veni_core::{
    config::{Enforcing, NodePorts, PolicySettings},
    wire::inspect::policy::{Decision, DefaultVerdict, Diagnostic, Explanation, Flows, Standing},
};
use veni_policy::{
    change::{Direction, PodKey},
    object::{Pod, Protocol},
    service::FrontEnd,
    view::{self, Judge, Judgement, Party, Question, Translated, Unanswerable, View},
};

use super::{Enforcer, Plane};

/// A question.
#[derive(Debug)]
pub enum Query {
    /// About one connection.
    Check(Question),
    /// What applies to a pod.
    Explain(PodKey),
}

/// An answer.
#[derive(Debug)]
pub enum Answer {
    /// To [`Query::Check`] and [`super::Input::Matrix`].
    Flows(Flows),
    /// To [`Query::Explain`].
    Explanation(Box<Explanation>),
}

/// Where addresses and ports are Services', known ones or not.
#[derive(Debug, Clone, Copy, Default)]
pub struct ServiceRanges {
    /// The IPv4 range.
    pub v4: Option<Ipv4Net>,
    /// The IPv6 range.
    pub v6: Option<Ipv6Net>,
    /// `VENI_NODE_PORT_RANGE`, on the node's own addresses.
    pub node_ports: NodePorts,
}

impl ServiceRanges {
    /// As the settings have them.
    #[must_use]
    pub const fn of(policy: &PolicySettings) -> Self {
        Self { v4: policy.service_v4, v6: policy.service_v6, node_ports: policy.node_ports }
    }
}

impl<P: Plane> Enforcer<P> {
    /// Answers from the index that the tables follow.
    ///
    /// # Errors
    /// When what is asked about does not exist.
    pub fn query(&self, query: &Query) -> Result<Answer, Unanswerable> {
        let view = View::new(self.pods.values(), self);
        match query {
            Query::Check(question) => {
                let mut flows = view.check(question)?;
                flows.diagnostics.extend(self.others(&flows));
                flows.pending = !self.pending.is_empty();
                Ok(Answer::Flows(flows))
            }
            Query::Explain(pod) => {
                // One that is judged by what is remembered of it is in the index alone.
                if self.wirings.of(pod).next().is_none() {
                    view.pod(&pod.namespace, &pod.name)?;
                }
                let found = self.index.explain(pod).map(|found| view::explanation(&found));
                let mut explanation = found.unwrap_or_else(|| Explanation {
                    pod: pod.to_string(),
                    ..Explanation::default()
                });
                explanation.notes.extend(self.unlabelled.note(pod));
                explanation.notes.extend(self.awaits(pod));
                explanation.notes.extend(self.refused.iter().cloned());
                explanation.pending = !self.pending.is_empty();
                Ok(Answer::Explanation(Box::new(explanation)))
            }
        }
    }

    /// Whether what this end sends or takes is judged by another node's daemon: this one has no rule sets for it.
    fn is_elsewhere(&self, end: Party<'_>) -> bool {
        let without_sets =
            |pod: &Pod| self.index.pod_sets(&PodKey::new(&pod.namespace, &pod.name)).is_none();
        end.pod.is_some_and(|pod| !pod.host_network && without_sets(pod))
    }

    /// Which ends of these flows others judge.
    pub(super) fn others(&self, flows: &Flows) -> Vec<Diagnostic> {
        let ends = flows.flows.iter().flat_map(|flow| [flow.from.as_str(), &flow.to]);
        let pods: BTreeSet<&str> = ends.collect();
        let of_others = pods.into_iter().filter_map(|end| {
            let (namespace, name) = end.split_once('/')?;
            let pod = self.pods.get(&PodKey::new(namespace, name))?;
            let address = *pod.addresses.first()?;
            self.is_elsewhere(Party { pod: Some(pod), address }).then(|| {
                let node = pod.node.as_deref().unwrap_or("another node");
                Diagnostic {
                    object: format!("Pod {namespace}/{name}"),
                    message: format!("is on {node}: its side is judged there, and not looked at here. Ask there, too"),
                    ..Diagnostic::default()
                }
            })
        });
        of_others.collect()
    }

    /// That the pod's security groups are not in force, where they are not.
    fn awaits(&self, pod: &PodKey) -> Option<String> {
        let awaited = self.index.awaited_groups(pod);
        let awaited = awaited.iter().map(|(group, _)| group.as_str()).collect::<Vec<_>>();
        (!awaited.is_empty()).then(|| {
            format!(
                "{} not known yet: until then it keeps what it had, which is nothing for a new pod.",
                awaited.join(", ")
            )
        })
    }

    /// How policy stands, but for the security groups and others' programs: the former others know, the latter are looked
    /// for where no pod waits.
    pub fn standing(&self, now: Instant) -> Standing {
        let sizes = self.index.sizes();
        let progress = &self.progress;
        let changed = progress.changed_at.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        Standing {
            mode: match self.enforcing {
                Enforcing::None => "none",
                Enforcing::Standard => "standard",
                Enforcing::Strict => "strict",
            }
            .to_owned(),
            complete: self.complete,
            ranges_unknown: self.complete && self.ranges.v4.is_none() && self.ranges.v6.is_none(),
            flow_tables: Vec::new(),
            generation: progress.generation,
            applied: progress.applied,
            pending: self.pending.len(),
            changed_millis: changed.map(|at| u64::try_from(at.as_millis()).unwrap_or(u64::MAX)),
            epochs: progress.epochs,
            write_failures: progress.write_failures,
            write_failure: progress.write_failure.clone(),
            waiting_addresses: self.services.waiting_addresses(),
            unlabelled: self.unlabelled.pods(now),
            unlabelled_adds: self.unlabelled.adds(),
            refused: self.refused.clone(),
            diagnostics: self.diagnostics.len() + self.services.diagnostics().len(),
            pods: self.wirings.len(),
            sets: sizes.sets,
            classes: sizes.classes,
            verdicts: sizes.verdicts,
            rules: self.index.rules().len(),
            drops: self.plane.drops(),
            counters: self.plane.counters(),
            events_missed: progress.events_missed,
            security_groups: Vec::new(),
            foreign: Vec::new(),
        }
    }

    /// Everything that is wrong with objects.
    pub(super) fn wrong(&self) -> Vec<Diagnostic> {
        let services = self.services.diagnostics().into_iter().map(|found| Diagnostic {
            object: found.key.to_string(),
            field: found.field,
            message: found.message,
            ..Diagnostic::default()
        });
        self.diagnostics.iter().cloned().chain(services).collect()
    }
}

impl<P: Plane> Judge for Enforcer<P> {
    fn judge(&self, from: Party<'_>, to: Party<'_>, protocol: u8, port: u16) -> Judgement {
        let mut judged = Judge::judge(&self.index, from, to, protocol, port);
        let elsewhere = || Decision::because(DefaultVerdict::Allow, "judged on its own node");
        if self.is_elsewhere(from) {
            judged.decided_by.egress = elsewhere();
        }
        if self.is_elsewhere(to) {
            judged.decided_by.ingress = elsewhere();
        }
        judged
    }

    fn translate(&self, from: &Pod, to: IpAddr, protocol: u8, port: u16) -> Option<Translated> {
        let protocol = Protocol::from_number(protocol)?;
        let translation = self.services.translate(FrontEnd { address: to, port, protocol })?;
        if translation.of_proxy && !self.index.is_isolated(from, Direction::Egress) {
            return None;
        }
        let owner = &translation.port.owner;
        Some(Translated {
            service: format!("{}/{}", owner.namespace, owner.name),
            back_ends: translation.back_ends.iter().map(|end| (end.address, end.port)).collect(),
        })
    }

    /// As `to_node` does in ebpf/src/policy.rs: the programs know no front end, and what kube-proxy would make of the
    /// packet is not asked of any rule.
    fn refuses(&self, from: &Pod, to: IpAddr, protocol: u8, port: u16) -> Option<&'static str> {
        let ranges = self.ranges;
        let of_service = match to {
            IpAddr::V4(to) => ranges.v4.is_some_and(|net| net.contains(&to)),
            IpAddr::V6(to) => ranges.v6.is_some_and(|net| net.contains(&to)),
        };
        let of_node = Protocol::from_number(protocol).is_some()
            && ranges.node_ports.contains(port)
            && self.services.own_addresses().contains(&to);
        let isolated = self.index.is_isolated(from, Direction::Egress);
        (isolated && (of_service || of_node)).then_some("unknown_service")
    }
}
