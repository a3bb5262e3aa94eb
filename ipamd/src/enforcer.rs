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
    change::{PodKey, PodSets, Step},
    index::{self, Index, Scope},
    object::{Key, Kind, Object, Pod},
    security_group::SecurityGroups,
    service::{self, OwnNode, ServiceTables},
};

mod carry;
mod events;
mod foreign;
mod matrix;
mod memory;
mod metrics;
mod plane;
mod thread;
mod unlabelled;
mod views;
mod wirings;

use carry::tidying;
pub use events::Subscriber;
pub use foreign::Look;
pub use matrix::Reply;
pub use memory::Memory;
pub use metrics::exposition;
pub use plane::{FilterPlane, Plane};
pub use thread::{Handle, Input, Sources};
use unlabelled::Unlabelled;
pub use views::{Answer, Query, ServiceRanges};
use wirings::Wirings;
pub use wirings::{keyed, pod_of, stranger};

/// Changes in a row, each for the room that the one before made. What there is still room for after them follows whatever is
/// told next.
const ROUNDS: usize = 8;
/// After a write that failed it is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// The longest that grows to for the node's addresses.
const OWN_LONGEST: Duration = Duration::from_secs(300);

/// What an earlier daemon left in the maps.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Classes, sets, and the pods' entries.
    pub policy: index::Found,
    /// Front ends and back ends.
    pub services: service::Found,
    /// Whose each interface is that has an entry: the pods of `policy.endpoints`.
    pub interfaces: BTreeMap<u32, PodKey>,
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
    ranges: ServiceRanges,
    /// Steps that are still to be carried out.
    pending: VecDeque<Step>,
    /// What tidies up after Services' steps: nobody waits for it, so it follows those of policy.
    later: Vec<Step>,
    /// Whether pods may want other security groups than when that was asked last.
    unasked: bool,
    retry_at: Option<Instant>,
    /// Sandboxes that are no pods whose entry could not be written: closed until it is.
    outsiders: BTreeMap<u32, PodSets>,
    outsiders_at: Option<Instant>,
    /// The node's own addresses that the programs could not be told, and when to try again.
    own_again: Option<(Instant, BTreeSet<IpAddr>)>,
    /// How often in a row they were not.
    own_failures: u32,
    /// Told of flows that are denied.
    denials: Option<tokio::sync::mpsc::Sender<crate::report::denied::Denial>>,
    wirings: Wirings,
    waiting: Vec<Waiting>,
    /// Pods whose objects are there, but are told later, and what each waits for.
    held: BTreeMap<PodKey, String>,
    /// Pods as their objects say, for views and to know a pod of this name again.
    pods: BTreeMap<PodKey, Pod>,
    diagnostics: Vec<Diagnostic>,
    refused: Vec<String>,
    enforcing: Enforcing,
    memory: Memory,
    unlabelled: Unlabelled,
    progress: Progress,
    complete: bool,
    /// Whether the pool has told of the pods that were there before.
    adopted: bool,
    /// Both were so once.
    concluded: bool,
    subscribers: Vec<Subscriber>,
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
            ranges: ServiceRanges::default(),
            plane,
            pending: VecDeque::new(),
            later: Vec::new(),
            unasked: true,
            retry_at: None,
            outsiders: BTreeMap::new(),
            outsiders_at: None,
            own_again: None,
            own_failures: 0,
            denials: None,
            wirings: Wirings::found(&found.interfaces),
            waiting: Vec::new(),
            held: BTreeMap::new(),
            pods: BTreeMap::new(),
            diagnostics: Vec::new(),
            refused: Vec::new(),
            enforcing,
            memory,
            unlabelled: Unlabelled::default(),
            progress: Progress::default(),
            complete: false,
            adopted: false,
            concluded: false,
            subscribers: Vec::new(),
        };
        enforcer.settle(Instant::now());
        enforcer
    }

    /// As the programs know the Services' ranges, for answers.
    #[must_use]
    pub fn with_ranges(self, ranges: ServiceRanges) -> Self {
        Self { ranges, ..self }
    }

    /// The programs know them to be others now.
    pub const fn set_ranges(&mut self, ranges: ServiceRanges) {
        self.ranges = ranges;
    }

    /// Takes which pods are held back, with what each waits for: before the objects that come with that.
    pub fn hold(&mut self, held: BTreeMap<PodKey, String>) {
        let before = std::mem::replace(&mut self.held, held);
        for pod in before.keys().filter(|pod| !self.held.contains_key(*pod)) {
            self.index.let_go(pod);
        }
        for (pod, waits) in &self.held {
            self.unlabelled.explain(pod, waits);
        }
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
        self.lead(steps);
        for key in delete {
            if key.kind == Kind::Pod {
                let pod = PodKey::new(&key.namespace, &key.name);
                self.pods.remove(&pod);
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
                self.unlabelled.recognise(&key);
                if self.wirings.of(&key).next().is_some() {
                    self.memory.learn(pod, now);
                }
                self.pods.insert(key, pod.clone());
            }
            self.index.apply(object);
        }
        if complete && !self.complete {
            self.complete = true;
            let steps = self.services.complete();
            self.lead(steps);
            self.conclude();
        }
        self.settle(now);
        self.miss(now);
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
        // The programs know them before a class of theirs is written.
        self.index.own_addresses(addresses.clone());
        let steps = self.services.set_addresses(addresses);
        self.lead(steps);
        self.settle(now);
    }

    /// A pod is about to be wired; its entry is in the map already. `answer` is called when it is judged.
    pub fn attach(&mut self, wired: Wired, deadline: Instant, answer: Answering, now: Instant) {
        if wired.is_outside() {
            self.outside(&wired, now);
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
                self.outside(&wired, now);
            } else {
                self.place(&wired, now);
            }
        }
        self.adopted = true;
        self.conclude();
        self.settle(now);
        self.miss(now);
    }

    /// Only once both the objects and the names of interfaces are known is an entry nobody's: after a journal was lost
    /// the names come later than the objects.
    fn conclude(&mut self) {
        if !self.complete || !self.adopted {
            return;
        }
        self.index.complete_but(|pod| self.held.contains_key(pod));
        if std::mem::replace(&mut self.concluded, true) {
            return;
        }
        for ifindex in self.wirings.strangers() {
            tracing::warn!(
                ifindex,
                "no pod is known by name on this interface (is libcni's cache mounted?): closed to all but its own node; delete the pod there, to have it made anew"
            );
        }
    }

    /// No policy can select it. Who runs it is root on the node, and could give it any name.
    fn outside(&mut self, wired: &Wired, now: Instant) {
        let sets = match self.enforcing {
            Enforcing::Strict => PodSets::CLOSED,
            Enforcing::None | Enforcing::Standard => PodSets::new(OPEN_SET, OPEN_SET),
        };
        self.outsiders.insert(wired.ifindex, sets);
        self.judge_outsiders(now);
        // These sets are never given up; those of an earlier daemon are, once all objects are known.
        self.wirings.release(wired.ifindex);
    }

    /// They share no sets with pods, so that nothing else waits for them.
    fn judge_outsiders(&mut self, now: Instant) {
        let (plane, progress) = (&self.plane, &mut self.progress);
        self.outsiders.retain(|ifindex, sets| {
            let Err(error) = plane.judge(*ifindex, *sets) else { return false };
            let retry_secs = RETRY.as_secs();
            tracing::error!(
                error,
                ifindex,
                retry_secs,
                "sandbox that is no pod not judged: it stays closed"
            );
            progress.write_failures += 1;
            true
        });
        self.outsiders_at = (!self.outsiders.is_empty()).then(|| now + RETRY);
    }

    fn place(&mut self, wired: &Wired, now: Instant) {
        let pod = &wired.pod;
        let nameless = self.wirings.add(wired, self.plane.identity(wired.ifindex));
        self.index.hand_over(&stranger(wired.ifindex), pod);
        for ifindex in nameless {
            tracing::warn!(%pod, ifindex, "another pod has its name: closed to all but its own node");
            self.pending
                .push_back(Step::Endpoint { pod: stranger(ifindex), sets: PodSets::CLOSED });
        }
        let addresses = self.wirings.addresses(pod);
        let steps = self.services.attach(pod, &addresses);
        self.lead(steps);
        self.index.attach(pod.clone(), addresses);
        if let Some(object) = self.pods.get(pod) {
            self.memory.learn(object, now);
        }
        // A pod whose sets do not change by this has no step that would write them into its new entry.
        if let Some(sets) = self.index.pod_sets(pod) {
            self.pending.push_back(Step::Endpoint { pod: pod.clone(), sets });
        }
    }

    /// The pod of this interface is gone.
    pub fn detach(&mut self, ifindex: u32, now: Instant) {
        self.outsiders.remove(&ifindex);
        let Some(Wired { pod, .. }) = self.wirings.remove(ifindex) else { return };
        self.waiting.retain(|waiting| waiting.wired.ifindex != ifindex);
        let left = self.wirings.addresses(&pod);
        let steps = self.services.attach(&pod, &left);
        self.lead(steps);
        if self.wirings.of(&pod).next().is_some() {
            self.index.attach(pod, left);
        } else {
            if self.unlabelled.forget(&pod) {
                // What was remembered may stand before an object of another node's pod.
                match self.pods.get(&pod) {
                    Some(known) => self.index.apply(Object::Pod(known.clone())),
                    None => self.index.delete(&Key::new(Kind::Pod, &pod.namespace, &pod.name)),
                }
            }
            self.index.detach(&pod);
        }
        self.settle(now);
    }

    /// Carries out what is pending, then what the index wants, then answers who waits for it.
    pub fn settle(&mut self, now: Instant) {
        if !self.carry(now) {
            return;
        }
        self.unasked = true;
        let mut refused = Vec::new();
        for _ in 0..ROUNDS {
            let change = self.index.change();
            refused = change.refused;
            if !self.enforce(change.steps, now) || !self.index.may_fit() {
                break;
            }
        }
        let refused: Vec<String> = refused.iter().map(ToString::to_string).collect();
        // Once for each: the status goes on saying it.
        for refusal in refused.iter().filter(|refusal| !self.refused.contains(refusal)) {
            tracing::error!(refusal, "rule set not in force");
        }
        self.refused = refused;
    }

    /// Carries out a change, and answers who waits for it. `false`: a step failed, and is tried again.
    fn enforce(&mut self, steps: Vec<Step>, now: Instant) -> bool {
        if !steps.is_empty() {
            self.progress.changed_at = Some(SystemTime::now());
        }
        self.pending.extend(steps);
        // Once it is in force nobody waits for the rest: for programs that are still running, and what goes after them.
        let tidying = tidying(self.pending.make_contiguous());
        let mut rest = self.pending.split_off(tidying);
        rest.extend(self.later.drain(..));
        let in_force = self.carry(now);
        self.pending.append(&mut rest);
        if in_force {
            self.progress.reach();
            self.answer_known();
        }
        in_force && self.carry(now)
    }

    /// Services' steps, before those of policy. What was left over of the last ones comes first: it may give up numbers that
    /// these take.
    fn lead(&mut self, mut steps: Vec<Step>) {
        if steps.is_empty() {
            return;
        }
        self.pending.extend(self.later.drain(..));
        let tidying = steps.iter().position(|step| matches!(step, Step::Grace));
        self.later = steps.split_off(tidying.unwrap_or(steps.len()));
        self.pending.extend(steps);
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

    /// Whether this very pod's object is known, and judged by all that it says: its security groups are known, too.
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
        let (pod, named) = (&wired.pod, self.wirings.has_its_name(wired));
        let judged =
            self.index.pod_sets(pod).is_some() && self.index.awaited_groups(pod).is_empty();
        same && named && judged
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
        if let Some((_, own)) = self.own_again.take_if(|(at, _)| *at <= now) {
            self.own(own, now);
            if self.own_again.is_none() {
                // Flows that began meanwhile were judged as if it were somebody else's.
                self.pending.push_back(Step::Epoch);
                self.settle(now);
            }
        }
        if self.outsiders_at.is_some_and(|at| at <= now) {
            self.judge_outsiders(now);
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.settle(now);
        }
    }

    /// The security groups that the node's pods choose.
    pub fn wanted_groups(&self) -> BTreeSet<SecurityGroupId> {
        self.index.wanted_groups()
    }

    /// They, if they may be others than when this was asked last.
    pub fn wanted_anew(&mut self) -> Option<BTreeSet<SecurityGroupId>> {
        std::mem::take(&mut self.unasked).then(|| self.wanted_groups())
    }

    /// When [`Enforcer::expire`] has something to do.
    pub fn wake_at(&self) -> Option<Instant> {
        let deadlines = self.waiting.iter().map(|waiting| waiting.deadline);
        let own = self.own_again.as_ref().map(|(at, _)| *at);
        let retries = self.retry_at.into_iter().chain(self.outsiders_at).chain(own);
        deadlines.chain(retries).chain(self.memory.wake_at()).min()
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
