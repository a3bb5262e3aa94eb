//! Policy on this node: objects and pods in, ordered writes to the programs' tables out.
//!
//! A thread of its own ([`Handle::start`]) holds the index, so that a change of a large cluster never holds up the
//! pool. Invariants: every step of a change is carried out, in order, before the next change is computed; a step that
//! fails is tried again, and nothing overtakes it; a pod is answered for ([`Enforcer::attach`]) only when the sets that
//! its labels ask for are in its entry, or when its wait is over — then it stays closed to all but its own node.
//! Deliberately absent: where objects come from, and the wiring.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::oneshot;

use veni_core::{
    config::Enforcing,
    id::SecurityGroupId,
    wire::inspect::policy::{Applied, Diagnostic, JudgedBy},
};
use veni_ebpf_common::table::OPEN_SET;
use veni_policy::{
    change::{PodKey, PodSets, Remove, Step, Write},
    index::{self, Index, Scope},
    object::{Key, Kind, Object, Pod},
    security_group::SecurityGroups,
    service::{self, OwnNode, ServiceTables},
};

mod events;
mod memory;
mod metrics;
mod plane;
mod thread;
mod unlabelled;
mod views;

pub use events::Subscriber;
pub use memory::Memory;
pub use metrics::exposition;
pub use plane::{FilterPlane, Plane};
pub use thread::{Handle, Input, Sources};
use unlabelled::Unlabelled;
pub use views::{Answer, Query};

/// After a write that failed it is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// What an earlier daemon left in the maps.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Classes, sets, and the pods' entries.
    pub policy: index::Found,
    /// Front ends and back ends.
    pub services: service::Found,
}

/// A pod of this node, as the pool knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wired {
    /// Which pod.
    pub pod: PodKey,
    /// Its UID, where the runtime gave it.
    pub uid: Option<String>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The index of its veth on the node: the key of its entry.
    pub ifindex: u32,
}

impl Wired {
    /// A sandbox that Kubernetes knows nothing of: the runtime gave no `K8S_POD_NAME`, so that no object will ever
    /// come for it.
    #[must_use]
    pub const fn is_outside(&self) -> bool {
        self.pod.namespace.is_empty() || self.pod.name.is_empty()
    }
}

/// What holds for a pod when its ADD is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judged {
    /// The sets of its labels.
    ByLabels,
    /// It is no pod of Kubernetes: what holds for pods that no policy selects.
    Outside,
    /// Its labels did not come in time.
    Otherwise(JudgedBy),
}

/// Called when a pod may be wired.
pub type Answering = Box<dyn FnOnce(Judged) + Send>;

/// The state. Time is handed in.
pub struct Enforcer<P> {
    plane: P,
    /// The node's name.
    node: String,
    index: Index,
    services: ServiceTables,
    /// Steps that are still to be carried out.
    pending: VecDeque<Step>,
    retry_at: Option<Instant>,
    wired: BTreeMap<u32, Wired>,
    /// The latest wiring of each pod: a pod that is made anew has two for a moment.
    latest: BTreeMap<PodKey, u32>,
    waiting: Vec<Waiting>,
    /// Pods as their objects say, for views and to know a pod of this name again.
    pods: BTreeMap<PodKey, Pod>,
    diagnostics: Vec<Diagnostic>,
    refused: Vec<String>,
    enforcing: Enforcing,
    memory: Memory,
    unlabelled: Unlabelled,
    progress: Progress,
    complete: bool,
    subscribers: Vec<Subscriber>,
    slots: BTreeMap<u32, PodKey>,
    /// Whose address it is, for events.
    owners: BTreeMap<IpAddr, PodKey>,
}

struct Waiting {
    wired: Wired,
    deadline: Instant,
    answer: Answering,
}

/// How far the tables have come.
#[derive(Debug, Default)]
struct Progress {
    /// Counts what was taken in.
    generation: u64,
    /// The last one in force.
    applied: u64,
    /// Told once this generation is.
    awaiting: Vec<(u64, oneshot::Sender<Applied>)>,
    changed_at: Option<SystemTime>,
    epochs: u64,
    write_failures: u64,
    write_failure: Option<String>,
    events_missed: u64,
}

impl Progress {
    fn reach(&mut self) {
        self.applied = self.generation;
        let applied = Applied { applied: self.applied };
        for (generation, reply) in std::mem::take(&mut self.awaiting) {
            if generation > self.applied {
                self.awaiting.push((generation, reply));
            } else if reply.send(applied).is_err() {
                tracing::debug!("who waited for a generation has gone");
            }
        }
    }
}

impl<P> fmt::Debug for Enforcer<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enforcer").field("index", &self.index).finish_non_exhaustive()
    }
}

impl<P: Plane> Enforcer<P> {
    /// An enforcer for the pods of the node that knows no object yet: what an earlier daemon left stays in force until
    /// the objects are known.
    pub fn new(
        plane: P,
        own: OwnNode,
        enforcing: Enforcing,
        memory: Memory,
        found: &Found,
    ) -> Self {
        let mut enforcer = Self {
            index: Index::resume(Scope::Node(own.name.clone()), &found.policy).enforcing(enforcing),
            node: own.name.clone(),
            services: ServiceTables::new(own, &found.services),
            plane,
            pending: VecDeque::new(),
            retry_at: None,
            wired: BTreeMap::new(),
            latest: BTreeMap::new(),
            waiting: Vec::new(),
            pods: BTreeMap::new(),
            diagnostics: Vec::new(),
            refused: Vec::new(),
            enforcing,
            memory,
            unlabelled: Unlabelled::default(),
            progress: Progress::default(),
            complete: false,
            subscribers: Vec::new(),
            slots: BTreeMap::new(),
            owners: BTreeMap::new(),
        };
        enforcer.settle(Instant::now());
        enforcer
    }

    /// Takes objects and what is wrong with others; `complete` once all that exist were among them.
    pub fn objects(
        &mut self,
        apply: Vec<Object>,
        delete: &[Key],
        diagnostics: Vec<Diagnostic>,
        complete: bool,
        now: Instant,
    ) {
        self.progress.generation += 1;
        self.diagnostics = diagnostics;
        let steps = self.services.update(apply.iter(), delete.iter());
        self.pending.extend(steps);
        for key in delete {
            if key.kind == Kind::Pod {
                let pod = PodKey::new(&key.namespace, &key.name);
                self.pods.remove(&pod);
                self.owners.retain(|_, owner| *owner != pod);
                if self.unlabelled.is_remembered(&pod) {
                    // What has gone is its predecessor; the index has the pod from memory.
                    continue;
                }
            }
            self.index.delete(key);
        }
        for object in apply {
            if let Object::Pod(pod) = &object {
                let key = PodKey::new(&pod.namespace, &pod.name);
                if !pod.host_network && !pod.finished {
                    self.owners.extend(pod.addresses.iter().map(|address| (*address, key.clone())));
                }
                self.unlabelled.recognise(&key);
                if self.latest.contains_key(&key) {
                    self.memory.learn(pod, now);
                }
                self.pods.insert(key, pod.clone());
            }
            self.index.apply(object);
        }
        if complete && !self.complete {
            self.complete = true;
            self.index.complete();
        }
        self.settle(now);
    }

    /// Takes the groups as they are resolved now.
    pub fn groups(&mut self, groups: SecurityGroups, now: Instant) {
        self.progress.generation += 1;
        self.index.set_security_groups(groups);
        self.settle(now);
    }

    /// The node's own addresses.
    pub fn node_addresses(&mut self, addresses: BTreeSet<IpAddr>, now: Instant) {
        self.progress.generation += 1;
        let steps = self.services.set_addresses(addresses);
        self.pending.extend(steps);
        self.settle(now);
    }

    /// A pod is about to be wired; its entry is in the map already. `answer` is called when it is judged.
    pub fn attach(&mut self, wired: Wired, deadline: Instant, answer: Answering, now: Instant) {
        if wired.is_outside() {
            self.outside(&wired);
            return answer(Judged::Outside);
        }
        self.place(&wired, now);
        self.waiting.push(Waiting { wired, deadline, answer });
        self.settle(now);
        self.expire(now);
    }

    /// Pods that were wired before this daemon started: nobody waits.
    pub fn adopt(&mut self, pods: Vec<Wired>, now: Instant) {
        for wired in pods {
            if wired.is_outside() {
                self.outside(&wired);
            } else {
                self.place(&wired, now);
            }
        }
        self.settle(now);
    }

    /// No policy can select it. Who runs it is root on the node, and could give it any name.
    fn outside(&self, wired: &Wired) {
        let sets = match self.enforcing {
            Enforcing::Strict => PodSets::CLOSED,
            Enforcing::None | Enforcing::Standard => PodSets::new(OPEN_SET, OPEN_SET),
        };
        if let Err(error) = self.plane.judge(wired.ifindex, sets) {
            let ifindex = wired.ifindex;
            tracing::error!(error, ifindex, "sandbox that is no pod not judged: it stays closed");
        }
    }

    fn place(&mut self, wired: &Wired, now: Instant) {
        if let Some(slot) = self.plane.slot(wired.ifindex) {
            self.slots.insert(slot, wired.pod.clone());
        }
        self.index.attach(wired.pod.clone(), wired.addresses.clone());
        self.owners.extend(wired.addresses.iter().map(|address| (*address, wired.pod.clone())));
        self.latest.insert(wired.pod.clone(), wired.ifindex);
        self.wired.insert(wired.ifindex, wired.clone());
        if let Some(pod) = self.pods.get(&wired.pod) {
            self.memory.learn(pod, now);
        }
        // A pod whose sets do not change by this has no step that would write them into its new entry.
        let sets = self.index.pod_sets(&wired.pod);
        if let Some(sets) = sets {
            self.pending.push_back(Step::Endpoint { pod: wired.pod.clone(), sets });
        }
    }

    /// The pod of this interface is gone.
    pub fn detach(&mut self, ifindex: u32, now: Instant) {
        let Some(wired) = self.wired.remove(&ifindex) else { return };
        self.waiting.retain(|waiting| waiting.wired.ifindex != ifindex);
        self.slots.retain(|_, pod| *pod != wired.pod);
        if self.latest.get(&wired.pod) == Some(&ifindex) {
            self.latest.remove(&wired.pod);
            if self.unlabelled.forget(&wired.pod) {
                let PodKey { namespace, name } = &wired.pod;
                self.index.delete(&Key::new(Kind::Pod, namespace, name));
            }
            self.index.detach(&wired.pod);
        }
        self.settle(now);
    }

    /// Carries out what is pending, then what the index wants, then answers who waits for it.
    pub fn settle(&mut self, now: Instant) {
        if !self.carry(now) {
            return;
        }
        let change = self.index.change();
        self.refused = change.refused.iter().map(ToString::to_string).collect();
        for refusal in &self.refused {
            tracing::error!(refusal, "rule set not in force");
        }
        if !change.steps.is_empty() {
            self.progress.changed_at = Some(SystemTime::now());
        }
        self.pending.extend(change.steps);
        if self.carry(now) {
            self.progress.reach();
            self.answer_known();
        }
    }

    /// Carries out pending steps. `false`: one failed and is tried again.
    fn carry(&mut self, now: Instant) -> bool {
        while let Some(step) = self.pending.pop_front() {
            let done = match &step {
                Step::Write(_) => self.write_run(&step),
                Step::Delete(_) => self.remove_run(&step),
                Step::Endpoint { pod, sets } => self.endpoint(pod, *sets),
                Step::Epoch(_) => {
                    self.progress.epochs += 1;
                    self.plane.raise_epoch()
                }
                Step::Grace => {
                    self.plane.grace();
                    Ok(())
                }
            };
            if let Err(error) = done {
                tracing::error!(error, retry_secs = RETRY.as_secs(), "policy not written");
                self.progress.write_failures += 1;
                self.progress.write_failure = Some(error);
                self.pending.push_front(step);
                self.retry_at = Some(now + RETRY);
                return false;
            }
        }
        self.retry_at = None;
        self.progress.write_failure = None;
        true
    }

    /// This write and those that follow it at once, in few calls.
    fn write_run(&mut self, first: &Step) -> Result<(), String> {
        let Step::Write(first) = first else { return Ok(()) };
        let mut run: Vec<Write> = vec![first.clone()];
        while let Some(Step::Write(write)) = self.pending.front() {
            run.push(write.clone());
            self.pending.pop_front();
        }
        let done = self.plane.write(&run);
        if done.is_err() {
            // All of them again: a write is the same twice.
            run.drain(1..).rev().for_each(|write| self.pending.push_front(Step::Write(write)));
        }
        done
    }

    fn remove_run(&mut self, first: &Step) -> Result<(), String> {
        let Step::Delete(first) = first else { return Ok(()) };
        let mut run: Vec<Remove> = vec![first.clone()];
        while let Some(Step::Delete(remove)) = self.pending.front() {
            run.push(remove.clone());
            self.pending.pop_front();
        }
        let done = self.plane.remove(&run);
        if done.is_err() {
            run.drain(1..).rev().for_each(|remove| self.pending.push_front(Step::Delete(remove)));
        }
        done
    }

    fn endpoint(&mut self, pod: &PodKey, sets: PodSets) -> Result<(), String> {
        let Some(ifindex) = self.latest.get(pod) else { return Ok(()) };
        self.plane.judge(*ifindex, sets).map(drop)
    }

    /// Answers the ADDs of pods whose labels are known and in force.
    fn answer_known(&mut self) {
        let (known, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition::<Vec<_>, _>(|waiting| self.known(&waiting.wired));
        self.waiting = waiting;
        for waiting in known {
            (waiting.answer)(Judged::ByLabels);
        }
        self.recognised();
    }

    /// Whether this very pod's object is known, and judged.
    fn known(&self, wired: &Wired) -> bool {
        if self.unlabelled.is_remembered(&wired.pod) {
            return false;
        }
        let same = match self.index.pod_uid(&wired.pod) {
            None => false,
            Some(uid) => match (uid, &wired.uid) {
                (Some(known), Some(asked)) => known == asked,
                _ => true,
            },
        };
        same && self.index.pod_sets(&wired.pod).is_some()
    }

    /// Ends waits that are over.
    pub fn expire(&mut self, now: Instant) {
        let (over, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition::<Vec<_>, _>(|waiting| waiting.deadline <= now);
        self.waiting = waiting;
        for waiting in over {
            let judged = self.without_labels(&waiting.wired.pod, now);
            (waiting.answer)(Judged::Otherwise(judged));
        }
        self.memory.write(now);
        if self.retry_at.is_some_and(|at| at <= now) {
            self.settle(now);
        }
    }

    /// The security groups that the node's pods choose.
    pub fn wanted_groups(&self) -> BTreeSet<SecurityGroupId> {
        self.index.wanted_groups()
    }

    /// When [`Enforcer::expire`] has something to do.
    pub fn wake_at(&self) -> Option<Instant> {
        let deadlines = self.waiting.iter().map(|waiting| waiting.deadline);
        deadlines.chain(self.retry_at).chain(self.memory.wake_at()).min()
    }

    /// Tells once this generation (the present one unless told otherwise) is in force.
    pub fn await_applied(&mut self, generation: Option<u64>, reply: oneshot::Sender<Applied>) {
        let progress = &mut self.progress;
        progress.awaiting.retain(|(_, reply)| !reply.is_closed());
        progress.awaiting.push((generation.unwrap_or(progress.generation), reply));
        if self.pending.is_empty() {
            self.progress.reach();
        }
    }
}

#[cfg(test)]
mod tests;
