//! Pods whose labels are not known, because they did not come in time or have gone: by what they are judged until they
//! are, and why.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use veni_core::wire::inspect::policy::{self as wire, JudgedBy};
use veni_policy::{
    change::{PodKey, PodSets},
    object::{Object, Pod},
};

use super::{Enforcer, Plane};

/// They, and how often it came to that.
#[derive(Debug, Default)]
pub(super) struct Unlabelled {
    pods: BTreeMap<PodKey, Instead>,
    adds: BTreeMap<JudgedBy, u64>,
}

#[derive(Debug)]
struct Instead {
    judged_by: JudgedBy,
    reason: String,
    since: Instant,
}

impl Unlabelled {
    /// Whether the index has the pod's labels from memory.
    pub(super) fn is_remembered(&self, pod: &PodKey) -> bool {
        self.pods.get(pod).is_some_and(|instead| instead.judged_by == JudgedBy::Remembered)
    }

    /// Its object is here: the index takes it over the one from memory. Whether it is in force is seen later.
    pub(super) fn recognise(&mut self, pod: &PodKey) {
        if let Some(instead) = self.pods.get_mut(pod)
            && instead.judged_by == JudgedBy::Remembered
        {
            instead.judged_by = JudgedBy::Predecessor;
        }
    }

    /// Why is known better.
    pub(super) fn explain(&mut self, pod: &PodKey, reason: &str) {
        if let Some(instead) = self.pods.get_mut(pod) {
            reason.clone_into(&mut instead.reason);
        }
    }

    /// It is gone. Returns whether the index has it from memory.
    pub(super) fn forget(&mut self, pod: &PodKey) -> bool {
        self.pods.remove(pod).is_some_and(|instead| instead.judged_by == JudgedBy::Remembered)
    }

    /// In a sentence.
    pub(super) fn note(&self, pod: &PodKey) -> Option<String> {
        let Instead { judged_by, reason, .. } = self.pods.get(pod)?;
        Some(format!(
            "Its labels are not known ({reason}): {} until they are.",
            judged_by.sentence()
        ))
    }

    pub(super) fn adds(&self) -> BTreeMap<JudgedBy, u64> {
        let all = [JudgedBy::Predecessor, JudgedBy::Remembered, JudgedBy::Closed];
        all.map(|by| (by, self.adds.get(&by).copied().unwrap_or(0))).into()
    }

    pub(super) fn pods(&self, now: Instant) -> Vec<wire::Unlabelled> {
        let pods = self.pods.iter().map(|(pod, instead)| wire::Unlabelled {
            pod: pod.to_string(),
            judged_by: instead.judged_by,
            reason: instead.reason.clone(),
            age_secs: now.saturating_duration_since(instead.since).as_secs(),
        });
        pods.collect()
    }
}

impl<P: Plane> Enforcer<P> {
    /// The wait for its labels is over. What judges it from now on; its sets are in its entry.
    pub(super) fn without_labels(&mut self, pod: &PodKey, now: Instant) -> JudgedBy {
        let (judged_by, reason) = (self.last_known(pod), self.reason(pod));
        tracing::warn!(%pod, judged_by = judged_by.as_str(), reason, "the pod's labels did not come in time");
        *self.unlabelled.adds.entry(judged_by).or_default() += 1;
        self.unlabelled.pods.insert(pod.clone(), Instead { judged_by, reason, since: now });
        if judged_by == JudgedBy::Remembered
            && let Some(known) = self.memory.get(pod).cloned()
        {
            let node = Some(self.node.clone());
            self.index.apply(Object::Pod(Pod { node, finished: false, ..known }));
            self.settle(now);
        }
        judged_by
    }

    fn last_known(&self, pod: &PodKey) -> JudgedBy {
        if !self.pending.is_empty() {
            return JudgedBy::Closed;
        }
        if self.index.pod_sets(pod).is_some_and(|sets| sets != PodSets::CLOSED) {
            return JudgedBy::Predecessor;
        }
        if !self.index.awaited_groups(pod).is_empty() {
            // Its labels are known.
            return JudgedBy::Closed;
        }
        // Labels judge only beside all policies: without them they would open everything.
        let remembered = self.complete && self.memory.get(pod).is_some();
        if remembered { JudgedBy::Remembered } else { JudgedBy::Closed }
    }

    fn reason(&self, pod: &PodKey) -> String {
        if !self.complete {
            return "the objects have not been read yet".to_owned();
        }
        if let Some(failure) = &self.progress.write_failure {
            return format!("the tables cannot be written: {failure}");
        }
        if let Some(waits) = self.held.get(pod) {
            return waits.clone();
        }
        let node = self.pods.get(pod).and_then(|object| object.node.as_deref());
        if let Some(node) = node.filter(|node| *node != self.node) {
            return format!(
                "the object of this name is of node {node}, and this one is {} (MY_NODE_NAME)",
                self.node
            );
        }
        if let Some((group, reason)) = self.index.awaited_groups(pod).first() {
            let reason = reason.as_deref().unwrap_or("EC2 has not answered yet");
            return format!("its security group {group} is not known yet: {reason}");
        }
        match self.index.pod_uid(pod) {
            Some(Some(uid)) => format!("the object of this name has another uid, {uid}"),
            _ => "there is no object of this name".to_owned(),
        }
    }

    /// Takes in pods that are closed because what was known of them has gone, or is not there after a restart.
    pub(super) fn miss(&mut self, now: Instant) {
        let waiting: BTreeSet<&PodKey> = self.waiting.iter().map(|asks| &asks.wired.pod).collect();
        let closed = |pod: &PodKey| self.index.pod_sets(pod).is_none_or(|s| s == PodSets::CLOSED);
        let missed: BTreeSet<PodKey> = self
            .wirings
            .all()
            .filter(|wired| !self.known(wired) && closed(&wired.pod))
            .map(|wired| &wired.pod)
            .filter(|pod| !waiting.contains(pod) && !self.unlabelled.pods.contains_key(*pod))
            .cloned()
            .collect();
        for pod in missed {
            let (judged_by, reason) = (JudgedBy::Closed, self.reason(&pod));
            tracing::warn!(%pod, reason, "the pod's labels are not known: closed to all but its own node");
            self.unlabelled.pods.insert(pod, Instead { judged_by, reason, since: now });
        }
    }

    /// Forgets those that are judged by labels of their own now.
    pub(super) fn recognised(&mut self) {
        let waiting = std::mem::take(&mut self.unlabelled.pods);
        let unknown = |pod: &PodKey| self.wirings.wired(pod).any(|wired| !self.known(wired));
        let (left, _): (BTreeMap<_, _>, BTreeMap<_, _>) = waiting
            .into_iter()
            .partition(|(pod, instead)| instead.judged_by == JudgedBy::Remembered || unknown(pod));
        self.unlabelled.pods = left;
    }
}
