//! Pods of this node that are new, held back until what decides about them was read as it was when they were. Pure.
//!
//! Each resource is watched by itself, and nothing orders what two watches tell: a pod may be heard of before a policy that is
//! older than it. So a pod that is new on this node reaches policy only once its namespace and the policies that may select it
//! are known as of the pod's version or later: their watches have come there, or they were asked for. Resource versions of
//! a cluster are of one sequence, and are compared as the numbers that they are (ADR 0016). Until then the pod's ADD waits, as
//! for a pod that is not known.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::resource::Resource;

/// What decides about a new pod, beside itself.
const BEFORE_A_POD: [Resource; 4] = [
    Resource::Namespaces,
    Resource::NetworkPolicies,
    Resource::ClusterNetworkPolicies,
    Resource::SecurityGroupPolicies,
];

/// A part of a resource: what of it is about a namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Part {
    /// The resource.
    pub(crate) resource: Resource,
    /// The namespace; empty for what is in none, and about all.
    pub(crate) namespace: String,
}

#[derive(Debug, Default)]
pub(crate) struct Holds {
    /// The node's name.
    node: Arc<str>,
    /// This node's pods, by `namespace/name`, with the hash of their UID: those that were held or let through.
    known: BTreeMap<String, u64>,
    /// Those that are held, with the version that they were first seen in.
    held: BTreeMap<String, u64>,
    /// As of which version parts were read that were asked for.
    read: BTreeMap<Part, u64>,
    /// Parts that are being asked for.
    asked: BTreeSet<Part>,
}

impl Part {
    fn about(resource: Resource, namespace: &str) -> Self {
        let in_none = resource == Resource::ClusterNetworkPolicies;
        let namespace = if in_none { String::new() } else { namespace.to_owned() };
        Self { resource, namespace }
    }

    /// Whether the object of this name (`namespace/name`, or its name) is in it.
    pub(crate) fn has(&self, name: &str) -> bool {
        match self.resource {
            Resource::ClusterNetworkPolicies => true,
            Resource::Namespaces => name == self.namespace,
            _ => name.split_once('/').is_some_and(|(namespace, _)| namespace == self.namespace),
        }
    }

    /// Where the API server has it.
    pub(crate) fn path(&self) -> String {
        let Self { resource, namespace } = self;
        match resource {
            Resource::ClusterNetworkPolicies => format!("{}?", resource.path()),
            Resource::Namespaces => {
                format!("{}?fieldSelector=metadata.name%3D{namespace}&", resource.path())
            }
            _ => {
                let all = resource.path();
                let (version, plural) = all.rsplit_once('/').unwrap_or_default();
                format!("{version}/namespaces/{namespace}/{plural}?")
            }
        }
    }
}

impl Holds {
    pub(crate) fn new(node: Arc<str>) -> Self {
        Self { node, ..Self::default() }
    }

    /// Takes a pod. One that is new on this node is held.
    pub(crate) fn take(&mut self, name: &str, node: Option<&str>, uid: u64, version: u64) {
        if node != Some(&*self.node) || self.known.insert(name.to_owned(), uid) == Some(uid) {
            return;
        }
        // What has no number cannot be compared.
        if version > 0 {
            self.held.insert(name.to_owned(), version);
        }
    }

    /// The pod is gone.
    pub(crate) fn forget(&mut self, name: &str) {
        self.known.remove(name);
        self.held.remove(name);
    }

    /// This part was read as of this version.
    pub(crate) fn read(&mut self, part: Part, version: u64) {
        self.asked.remove(&part);
        self.read.insert(part, version);
    }

    /// It was not.
    pub(crate) fn unread(&mut self, part: &Part) {
        self.asked.remove(part);
    }

    /// Lets those go for which all was read; `watched` tells how far a resource's watch has come.
    pub(crate) fn release(&mut self, watched: impl Fn(Resource) -> u64) {
        let read = &self.read;
        self.held.retain(|name, version| {
            BEFORE_A_POD
                .into_iter()
                .any(|resource| lacks(read, &watched, resource, name, *version).is_some())
        });
        if self.held.is_empty() {
            self.read.clear();
        }
    }

    /// What has to be asked for, and is not yet.
    pub(crate) fn questions(&mut self, watched: impl Fn(Resource) -> u64) -> Vec<Part> {
        let mut questions = Vec::new();
        for (name, version) in &self.held {
            for resource in BEFORE_A_POD {
                if let Some(part) = lacks(&self.read, &watched, resource, name, *version)
                    && self.asked.insert(part.clone())
                {
                    questions.push(part);
                }
            }
        }
        questions
    }

    pub(crate) fn is_held(&self, namespace: &str, name: &str) -> bool {
        !self.held.is_empty() && self.held.contains_key(&format!("{namespace}/{name}"))
    }
}

/// The part of this resource that is older than the pod.
fn lacks(
    read: &BTreeMap<Part, u64>,
    watched: impl Fn(Resource) -> u64,
    resource: Resource,
    pod: &str,
    version: u64,
) -> Option<Part> {
    let namespace = pod.split_once('/').map_or("", |(namespace, _)| namespace);
    let part = Part::about(resource, namespace);
    let reached = watched(resource).max(read.get(&part).copied().unwrap_or_default());
    (reached < version).then_some(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(questions: &[Part]) -> Vec<String> {
        questions.iter().map(Part::path).collect()
    }

    #[test]
    fn a_new_pod_waits_for_what_is_older_than_it_and_asks_once() {
        let mut holds = Holds::new("here".into());
        holds.take("x/far", Some("there"), 1, 9);
        holds.take("x/unbound", None, 1, 9);
        holds.take("x/a", Some("here"), 1, 9);
        assert!(holds.is_held("x", "a") && !holds.is_held("x", "far") && !holds.is_held("x", "b"));
        let watched = |resource| if resource == Resource::SecurityGroupPolicies { 9 } else { 8 };
        let asked = holds.questions(watched);
        let expected = [
            "/api/v1/namespaces?fieldSelector=metadata.name%3Dx&",
            "/apis/networking.k8s.io/v1/namespaces/x/networkpolicies?",
            "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies?",
        ];
        assert_eq!(paths(&asked), expected);
        holds.take("x/b", Some("here"), 2, 9);
        assert!(holds.questions(watched).is_empty(), "they are being asked for");
        for part in &asked[..2] {
            holds.read(part.clone(), 12);
        }
        holds.read(asked[2].clone(), 8);
        holds.release(watched);
        assert!(holds.is_held("x", "a"), "an answer from before the pod is none");
        assert_eq!(paths(&holds.questions(watched)), expected[2..]);
        holds.unread(&asked[2]);
        assert_eq!(paths(&holds.questions(watched)), expected[2..], "again");
        holds.read(asked[2].clone(), 9);
        holds.release(watched);
        assert!(!holds.is_held("x", "a") && !holds.is_held("x", "b"));
    }

    #[test]
    fn a_pod_is_new_once() {
        let mut holds = Holds::new("here".into());
        holds.take("x/a", Some("here"), 1, 9);
        holds.release(|_| 9);
        holds.take("x/a", Some("here"), 1, 11);
        assert!(!holds.is_held("x", "a"), "the same, changed");
        holds.take("x/a", Some("here"), 2, 12);
        assert!(holds.is_held("x", "a"), "another of its name");
        holds.forget("x/a");
        assert!(!holds.is_held("x", "a") && holds.questions(|_| 0).is_empty());
        holds.take("x/a", Some("here"), 2, 13);
        assert!(holds.is_held("x", "a"));
        holds.take("x/odd", Some("here"), 2, 0);
        assert!(!holds.is_held("x", "odd"), "a version that is no number");
    }

    #[test]
    fn a_part_knows_what_is_in_it() {
        let part = |resource, namespace: &str| Part { resource, namespace: namespace.to_owned() };
        assert!(part(Resource::NetworkPolicies, "x").has("x/p"));
        assert!(!part(Resource::NetworkPolicies, "x").has("xy/p"));
        assert!(part(Resource::Namespaces, "x").has("x"));
        assert!(!part(Resource::Namespaces, "x").has("xy"));
        assert!(part(Resource::ClusterNetworkPolicies, "").has("any"));
    }
}
