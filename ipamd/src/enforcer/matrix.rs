//! Who may talk to whom, worked out in slices: who is added meanwhile waits for one of them at most.
//!
//! Invariants: a slice judges [`SLICE`] connections at most (or what one pod has to one other); between two of them the thread takes
//! everything that it is told. So a matrix of more than a slice is of no single moment, and says so where that matters.

use std::collections::{BTreeSet, VecDeque};

use tokio::sync::oneshot;
use veni_core::wire::inspect::policy::{Diagnostic, Flow, Flows};
use veni_policy::{
    change::PodKey,
    object::Pod,
    view::{End, PodFilter, Unanswerable, View},
};

use super::{Answer, Enforcer, Plane};

/// Connections of a matrix, at most.
const FLOWS: usize = 100_000;

/// Connections that are judged at once.
pub(super) const SLICE: usize = 1000;

/// Who waits for an answer.
pub type Reply = oneshot::Sender<Result<Answer, Unanswerable>>;

/// A matrix in the making.
#[derive(Debug)]
pub(super) struct Matrix {
    sources: Vec<PodKey>,
    /// Destinations with as many ports as one slice takes, and how many ports that is.
    groups: Vec<(Vec<PodKey>, usize)>,
    /// How many pairs of a source and a group are done, source by source.
    done: usize,
    pub(super) flows: Flows,
    /// Of which generation the first slice is.
    began: Option<u64>,
    /// Whose side others judge.
    others: BTreeSet<Diagnostic>,
}

/// Matrices that are worked out, one after the other.
#[derive(Debug, Default)]
pub(super) struct Matrices(VecDeque<(Matrix, Reply)>);

// === impl Matrices ===

impl Matrices {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Begins one, or says why there is none.
    pub(super) fn ask<P: Plane>(
        &mut self,
        enforcer: &Enforcer<P>,
        [from, to]: [Option<PodFilter>; 2],
        reply: Reply,
    ) {
        match enforcer.matrix(from.as_ref(), to.as_ref()) {
            Ok(matrix) => self.0.push_back((matrix, reply)),
            Err(unanswerable) => drop(reply.send(Err(unanswerable))),
        }
    }

    /// Works out a slice, and answers when it was the last.
    pub(super) fn advance<P: Plane>(&mut self, enforcer: &Enforcer<P>) {
        let Some((mut matrix, reply)) = self.0.pop_front() else { return };
        // Who asked and went away needs no answer.
        if reply.is_closed() {
            return;
        }
        enforcer.slice(&mut matrix);
        if matrix.is_over() {
            drop(reply.send(Ok(Answer::Flows(enforcer.finish(matrix)))));
        } else {
            self.0.push_front((matrix, reply));
        }
    }
}

// === impl Matrix ===

impl Matrix {
    pub(super) fn is_over(&self) -> bool {
        self.done >= self.sources.len() * self.groups.len()
    }

    /// The source and the group that come next, if they fit in.
    fn next(&mut self, room: usize) -> Option<(&PodKey, &[PodKey], usize)> {
        if self.is_over() {
            return None;
        }
        let at = self.done;
        let (group, ports) = &self.groups[at % self.groups.len()];
        if *ports > room && room < SLICE {
            return None;
        }
        self.done += 1;
        Some((&self.sources[at / self.groups.len()], group, *ports))
    }
}

// === impl Enforcer ===

impl<P: Plane> Enforcer<P> {
    /// Begins the matrix of all pods, or those chosen.
    ///
    /// # Errors
    /// When what is asked about does not exist, or is too much.
    pub(super) fn matrix(
        &self,
        from: Option<&PodFilter>,
        to: Option<&PodFilter>,
    ) -> Result<Matrix, Unanswerable> {
        let (sources, destinations) = (self.select(from)?, self.select(to)?);
        let ports: usize = destinations.iter().map(|pod| ports(pod)).sum();
        let flows = sources.len().saturating_mul(ports);
        if flows > FLOWS {
            return Err(Unanswerable::TooMany { flows, most: FLOWS });
        }
        // What is wrong with any pod comes with the flows of any other.
        let one = self.pods.keys().next().map(filter);
        let all = View::new(self.pods.values(), self).matrix(one.as_ref(), one.as_ref())?;
        let diagnostics = all.diagnostics.into_iter().chain(self.wrong()).collect();
        Ok(Matrix {
            sources: sources.into_iter().map(key).collect(),
            groups: groups(&destinations),
            done: 0,
            flows: Flows { diagnostics, ..Flows::default() },
            began: None,
            others: BTreeSet::new(),
        })
    }

    /// Works out the next connections.
    pub(super) fn slice(&self, matrix: &mut Matrix) {
        matrix.began.get_or_insert(self.progress.generation);
        let (mut flows, mut room) = (Vec::new(), SLICE);
        while let Some((source, group, ports)) = matrix.next(room) {
            flows.extend(self.flows_of(source, group));
            room = room.saturating_sub(ports);
        }
        let slice = Flows { flows, ..Flows::default() };
        matrix.others.extend(self.others(&slice));
        matrix.flows.flows.extend(slice.flows);
    }

    /// All that is to be said, once no slice is left.
    pub(super) fn finish(&self, matrix: Matrix) -> Flows {
        let Matrix { mut flows, others, began, .. } = matrix;
        flows.diagnostics.extend(others);
        if began.is_some_and(|began| began != self.progress.generation) {
            let message = "objects, groups or addresses changed while this was worked out: some of it may be from before. Ask \
                           again, or narrow it with `from` and `to`"
                .to_owned();
            flows.diagnostics.push(Diagnostic { message, ..Diagnostic::default() });
        }
        flows.pending = !self.pending.is_empty();
        flows
    }

    /// From one pod to these; nothing of those that have gone.
    fn flows_of(&self, source: &PodKey, group: &[PodKey]) -> Vec<Flow> {
        let pods = group.iter().chain([source]).filter_map(|key| self.pods.get(key));
        let Ok(found) = View::new(pods, self).matrix(Some(&filter(source)), None) else {
            return Vec::new();
        };
        let mut flows = found.flows;
        if group.binary_search(source).is_err() {
            // It is in the view as a source alone.
            flows.retain(|flow| flow.from != flow.to);
        }
        flows
    }

    fn select(&self, wanted: Option<&PodFilter>) -> Result<Vec<&Pod>, Unanswerable> {
        let is_wanted = |pod: &&Pod| match wanted {
            None => true,
            Some(PodFilter::Namespace(namespace)) => pod.namespace == *namespace,
            Some(PodFilter::Pod { namespace, name }) => {
                pod.namespace == *namespace && pod.name == *name
            }
        };
        let found: Vec<_> = self.pods.values().filter(is_wanted).collect();
        match wanted {
            Some(PodFilter::Namespace(namespace)) if found.is_empty() => {
                Err(Unanswerable::NoNamespace(namespace.clone()))
            }
            Some(PodFilter::Pod { namespace, name }) if found.is_empty() => {
                let (namespace, name) = (namespace.clone(), name.clone());
                Err(Unanswerable::NoPod(End::Pod { namespace, name }))
            }
            _ => Ok(found),
        }
    }
}

fn key(pod: &Pod) -> PodKey {
    PodKey::new(&pod.namespace, &pod.name)
}

fn filter(pod: &PodKey) -> PodFilter {
    PodFilter::Pod { namespace: pod.namespace.clone(), name: pod.name.clone() }
}

/// How many connections there are to it from one pod, in one family.
fn ports(pod: &Pod) -> usize {
    pod.ports.iter().map(|port| (port.protocol, port.port)).collect::<BTreeSet<_>>().len()
}

/// Destinations in groups of [`SLICE`] ports. What has no port is in none: nothing can be said of it, however many there are.
fn groups(destinations: &[&Pod]) -> Vec<(Vec<PodKey>, usize)> {
    let mut groups: Vec<(Vec<PodKey>, usize)> = Vec::new();
    for pod in destinations {
        let ports = ports(pod);
        match groups.last_mut() {
            _ if ports == 0 => {}
            Some((group, sum)) if *sum + ports <= SLICE => {
                group.push(key(pod));
                *sum += ports;
            }
            _ => groups.push((vec![key(pod)], ports)),
        }
    }
    groups
}
