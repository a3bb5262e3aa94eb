//! Pods of this node that are new, held back until what decides about them was read as it was when they were. Pure.
//!
//! Each resource is watched by itself, and nothing orders what two watches tell: a pod may be heard of before a policy that is
//! older than it. So a pod that is new on this node reaches policy only once its namespace and the policies that may select it
//! are known as of the pod's version or later: their watches have come there, or they were asked for. Resource versions of
//! a cluster are of one sequence, and are compared as the numbers that they are (ADR 0016). Until then the pod's ADD waits, as
//! for a pod that is not known.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::{Duration, Instant},
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
    /// Those that are held.
    held: BTreeMap<String, Held>,
    /// As of which version parts were read that were asked for.
    read: BTreeMap<Part, u64>,
    /// Parts that are being asked for.
    asked: BTreeMap<Part, Asked>,
}

#[derive(Debug)]
struct Held {
    /// The version that it was first seen in.
    version: u64,
    since: Instant,
    /// Policy was told.
    told: bool,
}

/// How asking for a part goes.
#[derive(Debug, Default)]
struct Asked {
    /// When it failed first, and why it did last.
    failed: Option<(Instant, String)>,
    warned: bool,
}

/// What to ask for from now on, and what no longer.
#[derive(Debug, Default)]
pub(crate) struct Questions {
    pub(crate) ask: Vec<Part>,
    pub(crate) leave: Vec<Part>,
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

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.resource)?;
        if self.namespace.is_empty() {
            Ok(())
        } else {
            write!(f, " of namespace {}", self.namespace)
        }
    }
}

impl Holds {
    pub(crate) fn new(node: Arc<str>) -> Self {
        Self { node, ..Self::default() }
    }

    /// Takes a pod. One that is new on this node is held.
    pub(crate) fn take(
        &mut self,
        name: &str,
        node: Option<&str>,
        uid: u64,
        version: u64,
        now: Instant,
    ) {
        if node != Some(&*self.node) || self.known.insert(name.to_owned(), uid) == Some(uid) {
            return;
        }
        // What has no number cannot be compared.
        if version > 0 {
            self.held.insert(name.to_owned(), Held { version, since: now, told: false });
        }
    }

    /// The pod is gone.
    pub(crate) fn forget(&mut self, name: &str) {
        self.known.remove(name);
        self.held.remove(name);
    }

    /// This part was read as of this version. Where that is too old for a pod, who asks goes on asking.
    pub(crate) fn read(&mut self, part: Part, version: u64, now: Instant) {
        self.unread(&part, format!("it was answered as of version {version}"), now);
        self.read.insert(part, version);
    }

    /// It could not be read, or not as new as it has to be.
    pub(crate) fn unread(&mut self, part: &Part, why: String, now: Instant) {
        let Some(asked) = self.asked.get_mut(part) else { return };
        let since = asked.failed.take().map_or(now, |(since, _)| since);
        asked.failed = Some((since, why));
    }

    /// The parts that have failed for so long, with the last failure: each once.
    pub(crate) fn failing(&mut self, long: Duration, now: Instant) -> Vec<(Part, String)> {
        let mut failing = Vec::new();
        for (part, asked) in &mut self.asked {
            let Some((since, why)) = &asked.failed else { continue };
            if now.duration_since(*since) >= long && !std::mem::replace(&mut asked.warned, true) {
                failing.push((part.clone(), why.clone()));
            }
        }
        failing
    }

    /// Lets those go for which all was read; `watched` tells how far a resource's watch has come.
    pub(crate) fn release(&mut self, watched: impl Fn(Resource) -> u64) {
        let read = &self.read;
        self.held.retain(|name, held| {
            BEFORE_A_POD
                .into_iter()
                .any(|resource| lacks(read, &watched, resource, name, held.version).is_some())
        });
        if self.held.is_empty() {
            self.read.clear();
        }
    }

    /// What has to be asked for, and is not yet; and what is, and has not to be any more.
    pub(crate) fn questions(&mut self, watched: impl Fn(Resource) -> u64) -> Questions {
        let mut questions = Questions::default();
        let mut wanted = BTreeSet::new();
        for (name, held) in &self.held {
            for resource in BEFORE_A_POD {
                let lacking = lacks(&self.read, &watched, resource, name, held.version);
                let Some(part) = lacking.filter(|part| wanted.insert(part.clone())) else {
                    continue;
                };
                if !self.asked.contains_key(&part) {
                    self.asked.insert(part.clone(), Asked::default());
                    questions.ask.push(part);
                }
            }
        }
        let leave = self.asked.keys().filter(|part| !wanted.contains(*part));
        questions.leave = leave.cloned().collect();
        questions.leave.iter().for_each(|part| drop(self.asked.remove(part)));
        questions
    }

    /// The pods that are held for so long (all, where that is `None`) or were told before, and what each waits for.
    pub(crate) fn waiting(
        &mut self,
        watched: impl Fn(Resource) -> u64,
        long: Option<Duration>,
        now: Instant,
    ) -> BTreeMap<String, String> {
        let (read, asked) = (&self.read, &self.asked);
        let mut waiting = BTreeMap::new();
        for (name, held) in &mut self.held {
            held.told |= long.is_none_or(|long| now.duration_since(held.since) >= long);
            if !held.told {
                continue;
            }
            let version = held.version;
            let lacking = BEFORE_A_POD.into_iter();
            let lacking =
                lacking.filter_map(|resource| lacks(read, &watched, resource, name, version));
            let parts: Vec<String> = lacking
                .map(|part| {
                    let failed = asked.get(&part).and_then(|asked| asked.failed.as_ref());
                    let why = failed.map_or("no answer yet", |(_, why)| why.as_str());
                    format!("{part} as of version {version}: {why}")
                })
                .collect();
            waiting.insert(name.clone(), format!("waits for {}", parts.join("; ")));
        }
        waiting
    }

    /// When the next pod will have been held for so long.
    pub(crate) fn due(&self, long: Duration) -> Option<Instant> {
        self.held.values().filter(|held| !held.told).map(|held| held.since + long).min()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
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
        let (mut holds, now) = (Holds::new("here".into()), Instant::now());
        holds.take("x/far", Some("there"), 1, 9, now);
        holds.take("x/unbound", None, 1, 9, now);
        holds.take("x/a", Some("here"), 1, 9, now);
        assert!(holds.is_held("x", "a") && !holds.is_held("x", "far") && !holds.is_held("x", "b"));
        let watched = |resource| if resource == Resource::SecurityGroupPolicies { 9 } else { 8 };
        let asked = holds.questions(watched).ask;
        let expected = [
            "/api/v1/namespaces?fieldSelector=metadata.name%3Dx&",
            "/apis/networking.k8s.io/v1/namespaces/x/networkpolicies?",
            "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies?",
        ];
        assert_eq!(paths(&asked), expected);
        holds.take("x/b", Some("here"), 2, 9, now);
        assert!(holds.questions(watched).ask.is_empty(), "they are being asked for");
        for part in &asked[..2] {
            holds.read(part.clone(), 12, now);
        }
        assert_eq!(holds.questions(watched).leave, asked[..2], "they are answered");
        holds.read(asked[2].clone(), 8, now);
        holds.release(watched);
        assert!(holds.is_held("x", "a"), "an answer from before the pod is none");
        let questions = holds.questions(watched);
        assert!(questions.ask.is_empty() && questions.leave.is_empty(), "who asks goes on");
        holds.read(asked[2].clone(), 9, now);
        holds.release(watched);
        assert_eq!(holds.questions(watched).leave, asked[2..]);
        assert!(!holds.is_held("x", "a") && !holds.is_held("x", "b"));
    }

    #[test]
    fn a_pod_is_new_once() {
        let (mut holds, now) = (Holds::new("here".into()), Instant::now());
        holds.take("x/a", Some("here"), 1, 9, now);
        holds.release(|_| 9);
        holds.take("x/a", Some("here"), 1, 11, now);
        assert!(!holds.is_held("x", "a"), "the same, changed");
        holds.take("x/a", Some("here"), 2, 12, now);
        assert!(holds.is_held("x", "a"), "another of its name");
        holds.forget("x/a");
        assert!(!holds.is_held("x", "a") && holds.questions(|_| 0).ask.is_empty());
        holds.take("x/a", Some("here"), 2, 13, now);
        assert!(holds.is_held("x", "a"));
        holds.take("x/odd", Some("here"), 2, 0, now);
        assert!(!holds.is_held("x", "odd"), "a version that is no number");
    }

    #[test]
    fn a_pod_says_what_it_waits_for_once_that_takes_long() {
        let (mut holds, begun) = (Holds::new("here".into()), Instant::now());
        let (long, after) = (Duration::from_secs(2), |secs| begun + Duration::from_secs(secs));
        let watched = |resource| if resource == Resource::NetworkPolicies { 8 } else { 9 };
        holds.take("x/a", Some("here"), 1, 9, begun);
        let asked = holds.questions(watched).ask;
        assert!(holds.waiting(watched, Some(long), after(1)).is_empty());
        assert_eq!(holds.due(long), Some(after(2)));
        let waits = |why: &str| {
            let text = format!(
                "waits for networkpolicies.networking.k8s.io of namespace x as of version 9: {why}"
            );
            BTreeMap::from([("x/a".to_owned(), text)])
        };
        assert_eq!(holds.waiting(watched, Some(long), after(2)), waits("no answer yet"));
        assert_eq!(holds.due(long), None);
        holds.unread(&asked[0], "it says no".to_owned(), after(3));
        assert!(holds.failing(long, after(4)).is_empty());
        holds.unread(&asked[0], "it says so again".to_owned(), after(5));
        assert_eq!(
            holds.failing(long, after(5)),
            [(asked[0].clone(), "it says so again".to_owned())]
        );
        assert!(holds.failing(long, after(6)).is_empty(), "once");
        assert_eq!(holds.waiting(watched, Some(long), after(6)), waits("it says so again"));
        holds.forget("x/a");
        assert_eq!(holds.questions(watched).leave, asked, "nobody waits for it");
        holds.take("x/b", Some("here"), 1, 9, after(6));
        assert_eq!(holds.waiting(watched, None, after(6)).len(), 1, "all");
        assert_eq!(holds.waiting(watched, Some(long), after(6)).len(), 1, "as was told before");
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
