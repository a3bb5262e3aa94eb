//! Puts the resources together: what is heard of each becomes batches for policy, and this node's configuration. Pure.
//!
//! Invariants: nothing reaches policy before each of its resources was listed to its end, so that no pod is open for want of a
//! policy that was not read yet; a resource that may not be read therefore keeps policy from beginning, and says so. After
//! that nothing is taken away because it could not be read; the first batch waits for pods that are held, for some seconds,
//! and names those that it lacks. A ClusterNetworkPolicy that selects nodes waits for them, and a pod
//! that is new on this node for policies as new as it ([`Holds`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    hash::{BuildHasher as _, DefaultHasher, Hasher as _, RandomState},
    sync::Arc,
    time::Instant,
};

use serde_json::Value;
use veni_core::wire::inspect::policy::Diagnostic;
use veni_eniconfig_crd::{EniConfig, NodeNetworkConfig};
use veni_policy::object::{self, ClusterPeer, Key, Kind, Object};

use crate::{
    Settings,
    configuration::{Configuration, Known, NodeMetadata},
    follow::Told,
    hold::{Holds, Part, Questions},
    resource::Resource,
    store::{Seen, Store},
};

/// The annotation of a mirror pod: the UID that the kubelet, and so the runtime, gives the static pod that it shows.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What changed of policy's objects.
#[derive(Debug, Default)]
pub struct Batch {
    /// New and changed objects.
    pub apply: Vec<Object>,
    /// Objects that are gone.
    pub delete: Vec<Key>,
    /// Everything that is wrong now, not only what is new.
    pub diagnostics: Vec<Diagnostic>,
    /// Whether every resource was listed to its end: before that there are no objects, and one that is not known may well
    /// exist.
    pub complete: bool,
    /// All pods of this node that are held back for long, or were when this became complete, and what each waits for: their
    /// objects are there, and are told later.
    pub held: BTreeMap<Key, String>,
}

#[derive(Default)]
pub(crate) struct Hub {
    stores: BTreeMap<Resource, Store>,
    listed: BTreeSet<Resource>,
    complete: bool,
    /// What policy was not told yet; `None` is gone.
    pending: BTreeMap<Key, Option<Object>>,
    /// Of each object, what is wrong.
    wrong: BTreeMap<(Resource, String), Vec<Diagnostic>>,
    troubles: BTreeMap<Resource, String>,
    /// What is wrong may have changed since it was told.
    restated: bool,
    /// What was told of it.
    stated: Vec<Diagnostic>,
    /// ClusterNetworkPolicies that select nodes.
    of_nodes: BTreeSet<String>,
    configuration: Configuration,
    reconfigured: bool,
    /// Pods that are held back.
    holds: Holds,
    /// What was told of them.
    held: BTreeMap<Key, String>,
    /// When all was listed, and pods were held still.
    listed_at: Option<Instant>,
    settings: Settings,
    /// Resources that the API server does not have.
    absent: BTreeSet<Resource>,
    /// Resources that it has in versions only that are not read here.
    otherwise: BTreeSet<Resource>,
    /// By name; `None` before it was read.
    service_cidrs: Option<ServiceCidrs>,
    recidred: bool,
    hashes: RandomState,
}

/// The Services' ranges of each ServiceCIDR object, by its name.
pub type ServiceCidrs = BTreeMap<String, Vec<String>>;

impl Hub {
    /// A hub for the node of this name.
    pub(crate) fn new(node: Arc<str>, settings: Settings) -> Self {
        Self { holds: Holds::new(node), settings, ..Self::default() }
    }

    pub(crate) fn take(&mut self, told: Told, now: Instant) {
        match told {
            Told::Begun(resource) => self.store(resource).begin(),
            Told::Object(resource, object) => self.object(resource, object, Store::apply, now),
            Told::Answer(resource, object) => self.object(resource, object, Store::answer, now),
            Told::Gone(resource, object) => {
                let (name, seen) = (name(&object), self.seen(&object));
                if self.store(resource).delete(&name, seen) {
                    self.gone(resource, &name);
                }
                self.state(resource, &name, Vec::new());
            }
            Told::Reached(resource, version) => self.store(resource).reach(version),
            Told::Listed(resource, version) => {
                self.absent.remove(&resource);
                self.otherwise.remove(&resource);
                self.listed(resource, version);
            }
            Told::Part(part, version, objects) => self.part(part, version, objects, now),
            Told::NoPart(part, why) => self.holds.unread(&part, why, now),
            Told::Absent(resource) => {
                self.absent.insert(resource);
                self.otherwise.remove(&resource);
                if self.listed.insert(resource) {
                    let next = resource.where_missing();
                    tracing::warn!(%resource, next, "the API server does not have it: taken as none");
                }
                self.store(resource).begin();
                self.listed(resource, 0);
            }
            Told::Otherwise(resource, trouble) => {
                self.restated |= self.otherwise.insert(resource);
                self.take(Told::Trouble(resource, trouble), now);
            }
            Told::Trouble(resource, trouble) => {
                if self.troubles.get(&resource) != Some(&trouble) {
                    tracing::warn!(%resource, trouble, "not watched");
                    self.troubles.insert(resource, trouble);
                    self.restated = true;
                }
            }
            Told::Well(resource) => {
                self.otherwise.remove(&resource);
                if self.troubles.remove(&resource).is_some() {
                    tracing::info!(%resource, "watched again");
                    self.restated = true;
                }
            }
        }
    }

    /// A part of a resource, all of it, as of this version.
    fn part(&mut self, part: Part, version: u64, objects: Vec<Value>, now: Instant) {
        let there: BTreeSet<String> = objects.iter().map(name).collect();
        for object in objects {
            self.object(part.resource, object, Store::answer, now);
        }
        let resource = part.resource;
        for name in self.store(resource).gone_from(|name| part.has(name), &there, version) {
            self.gone(resource, &name);
            self.state(resource, &name, Vec::new());
        }
        self.holds.read(part, version, now);
    }

    /// How far a resource's watch has come. Of one that there is not, nothing is older than anything; of one that nobody
    /// here can read, nothing newer will be known, however long a pod waits.
    fn watched<'a>(
        stores: &'a BTreeMap<Resource, Store>,
        [absent, otherwise]: [&'a BTreeSet<Resource>; 2],
    ) -> impl Fn(Resource) -> u64 + 'a {
        move |resource| {
            let come = || stores.get(&resource).map_or(0, Store::version);
            let never = absent.contains(&resource) || otherwise.contains(&resource);
            if never { u64::MAX } else { come() }
        }
    }

    /// What has to be asked for before pods that are held back can be let go: also those that the first batch waits for.
    pub(crate) fn questions(&mut self) -> Questions {
        if !self.complete && !self.all_listed() {
            return Questions::default();
        }
        self.holds.questions(Self::watched(&self.stores, [&self.absent, &self.otherwise]))
    }

    fn all_listed(&self) -> bool {
        Resource::OF_POLICY.iter().all(|resource| self.listed.contains(resource))
    }

    fn store(&mut self, resource: Resource) -> &mut Store {
        self.stores.entry(resource).or_default()
    }

    fn seen(&self, object: &Value) -> Seen {
        let text =
            |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        Seen {
            uid: self.hashes.hash_one(text("/metadata/uid")),
            version: text("/metadata/resourceVersion").parse().unwrap_or_default(),
        }
    }

    fn listed(&mut self, resource: Resource, version: u64) {
        for name in self.store(resource).end(version) {
            self.gone(resource, &name);
            self.state(resource, &name, Vec::new());
        }
        self.listed.insert(resource);
        self.restated |= self.troubles.remove(&resource).is_some();
        match resource {
            Resource::EniConfigs => {
                self.configuration.eni_configs.get_or_insert_default();
            }
            Resource::NodeNetworkConfigs => {
                self.configuration.node_network_configs.get_or_insert_default();
            }
            Resource::ServiceCidrs => {
                self.service_cidrs.get_or_insert_default();
                self.recidred = true;
                return;
            }
            _ => return,
        }
        self.reconfigured = true;
    }

    fn object(
        &mut self,
        resource: Resource,
        mut object: Value,
        take: fn(&mut Store, &str, Seen, Option<u64>) -> bool,
        now: Instant,
    ) {
        let (name, seen) = (name(&object), self.seen(&object));
        if resource == Resource::OwnNode {
            let metadata = NodeMetadata::read(&object);
            self.reconfigured |= self.configuration.node.as_ref() != Some(&metadata);
            self.configuration.node = Some(metadata);
        }
        if resource.policy_kind().is_none() {
            let metadata = |field: &str| object.get("metadata").and_then(|all| all.get(field));
            // A status decides nothing. One spec after another, though it be the same, is another generation.
            let decides = (object.get("spec"), metadata("generation"), metadata("uid"));
            let fingerprint = self.fingerprint(&decides);
            if take(self.store(resource), &name, seen, Some(fingerprint)) {
                self.configure(resource, &name, &object);
            }
            return;
        }
        show_static_pod(resource, &mut object);
        match object::parse(&object) {
            Ok(Some(object)) => {
                if let Object::Pod(pod) = &object {
                    self.holds.take(&name, pod.node.as_deref(), seen.uid, seen.version, now);
                }
                let fingerprint = Some(self.fingerprint(&object));
                let is_new = take(self.store(resource), &name, seen, fingerprint);
                // It may be what was in force before it could not be read.
                if is_new || self.wrong.contains_key(&(resource, name.clone())) {
                    self.state(resource, &name, object.diagnostics().iter().map(told).collect());
                }
                if is_new {
                    self.note_nodes(&name, &object);
                    self.pending.insert(object.key(), Some(object));
                }
            }
            Ok(None) => tracing::error!(%resource, name, "not of its resource's kind: passed over"),
            Err(wrong) => {
                take(self.store(resource), &name, seen, None);
                let mut wrong: Vec<Diagnostic> = wrong.iter().map(told).collect();
                if self.store(resource).has(&name) {
                    let object = format!("{} {name}", resource.kind());
                    let message = "its previous version stays in force".to_owned();
                    wrong.push(Diagnostic { object, message, ..Diagnostic::default() });
                }
                self.state(resource, &name, wrong);
            }
        }
    }

    /// What of it decides, as a number: most of what an API server tells of a pod changes nothing.
    fn fingerprint(&self, value: &impl fmt::Debug) -> u64 {
        let mut hashing = Hashing(self.hashes.build_hasher());
        let _infallible = write!(hashing, "{value:?}");
        hashing.0.finish()
    }

    fn note_nodes(&mut self, name: &str, object: &Object) {
        let Object::ClusterNetworkPolicy(policy) = object else { return };
        let rules = policy.ingress.iter().chain(&policy.egress);
        let selects = |peer: &ClusterPeer| matches!(peer, ClusterPeer::Nodes(_));
        if rules.flat_map(|rule| &rule.peers).any(selects) {
            self.of_nodes.insert(name.to_owned());
        } else {
            self.of_nodes.remove(name);
        }
    }

    fn configure(&mut self, resource: Resource, name: &str, object: &Value) {
        let configuration = &mut self.configuration;
        let problems = match resource {
            Resource::EniConfigs => {
                let known = configuration.eni_configs.get_or_insert_default();
                let known = known.entry(name.to_owned()).or_default();
                known.take(object, EniConfig::parse(object));
                known.told(|config| &config.notes)
            }
            Resource::NodeNetworkConfigs => {
                let known = configuration.node_network_configs.get_or_insert_default();
                let known = known.entry(name.to_owned()).or_default();
                known.take(object, NodeNetworkConfig::parse(object));
                known.told(|config| &config.notes)
            }
            Resource::ServiceCidrs => {
                let cidrs = object.pointer("/spec/cidrs").and_then(Value::as_array);
                let cidrs = cidrs.into_iter().flatten().filter_map(Value::as_str);
                let known = self.service_cidrs.get_or_insert_default();
                known.insert(name.to_owned(), cidrs.map(str::to_owned).collect());
                // Told with the rest once all are listed.
                self.recidred |= self.listed.contains(&resource);
                return;
            }
            _ => return,
        };
        let object = format!("{} {name}", resource.kind());
        let told = problems.into_iter().map(|problem| Diagnostic {
            object: object.clone(),
            field: problem.field,
            message: problem.message,
            ..Diagnostic::default()
        });
        self.state(resource, name, told.collect());
        self.reconfigured = true;
    }

    fn gone(&mut self, resource: Resource, name: &str) {
        if let Some(kind) = resource.policy_kind() {
            let (namespace, bare) = name.split_once('/').unwrap_or(("", name));
            self.pending.insert(Key::new(kind, namespace, bare), None);
        }
        let configuration = &mut self.configuration;
        match resource {
            Resource::Pods => return self.holds.forget(name),
            Resource::ServiceCidrs => {
                drop(self.service_cidrs.as_mut().map(|known| known.remove(name)));
                self.recidred = true;
                return;
            }
            Resource::ClusterNetworkPolicies => drop(self.of_nodes.remove(name)),
            Resource::OwnNode => configuration.node = None,
            Resource::EniConfigs => {
                drop(configuration.eni_configs.as_mut().map(|known| known.remove(name)));
            }
            Resource::NodeNetworkConfigs => {
                drop(configuration.node_network_configs.as_mut().map(|known| known.remove(name)));
            }
            _ => return,
        }
        self.reconfigured = true;
    }

    fn state(&mut self, resource: Resource, name: &str, wrong: Vec<Diagnostic>) {
        let at = (resource, name.to_owned());
        self.restated |= if wrong.is_empty() {
            self.wrong.remove(&at).is_some()
        } else {
            self.wrong.insert(at, wrong.clone()).as_ref() != Some(&wrong)
        };
    }

    /// Whether the other nodes are wanted.
    pub(crate) fn wants_nodes(&self) -> bool {
        !self.of_nodes.is_empty()
    }

    fn nodes_known(&self) -> bool {
        [Resource::OwnNode, Resource::OtherNodes].iter().all(|nodes| self.listed.contains(nodes))
    }

    /// What policy was not told yet, if there is anything.
    pub(crate) fn batch(&mut self, now: Instant) -> Option<Batch> {
        let nodes = !self.wants_nodes() || self.nodes_known();
        if nodes && (self.complete || self.all_listed()) {
            self.holds.release(Self::watched(&self.stores, [&self.absent, &self.otherwise]));
        }
        let completed = !self.complete && self.is_to_complete(nodes, now);
        self.complete |= completed;
        let diagnostics = self.diagnostics();
        let mut batch = Batch { complete: self.complete, ..Batch::default() };
        if self.complete {
            let waits = |key: &Key| match key.kind {
                Kind::ClusterNetworkPolicy => !nodes && self.of_nodes.contains(&key.name),
                Kind::Pod => self.holds.is_held(&key.namespace, &key.name),
                _ => false,
            };
            let (waiting, ready): (BTreeMap<_, _>, BTreeMap<_, _>) =
                std::mem::take(&mut self.pending).into_iter().partition(|(key, _)| waits(key));
            self.pending = waiting;
            for (key, object) in ready {
                match object {
                    Some(object) => batch.apply.push(object),
                    None => batch.delete.push(key),
                }
            }
        }
        let reheld = self.hold(completed, now);
        let is_same = batch.apply.is_empty() && batch.delete.is_empty() && !completed && !reheld;
        if is_same && diagnostics.is_none() {
            return None;
        }
        batch.held.clone_from(&self.held);
        self.stated = diagnostics.unwrap_or_else(|| std::mem::take(&mut self.stated));
        batch.diagnostics.clone_from(&self.stated);
        Some(batch)
    }

    /// Whether all is there for the first batch: a running pod whose object it lacks would be closed. What cannot be read
    /// for long does not keep policy from beginning; what is in force for pods that are held then stays.
    fn is_to_complete(&mut self, nodes: bool, now: Instant) -> bool {
        if !nodes || !self.all_listed() {
            self.listed_at = None;
            return false;
        }
        let since = *self.listed_at.get_or_insert(now);
        self.holds.is_empty() || now.duration_since(since) >= self.settings.held_most
    }

    /// When [`Hub::batch`] has something to say by the time alone.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        if self.complete {
            return self.holds.due(self.settings.explain);
        }
        self.listed_at.map(|at| at + self.settings.held_most)
    }

    /// Looks after pods that are held. Whether there is something to be told of them.
    fn hold(&mut self, completed: bool, now: Instant) -> bool {
        let explain = self.settings.explain;
        for (part, failure) in self.holds.failing(explain * 2, now) {
            tracing::warn!(%part, failure, "new pods of this node wait for it");
        }
        if !self.complete {
            return false;
        }
        let watched = Self::watched(&self.stores, [&self.absent, &self.otherwise]);
        let long = (!completed).then_some(explain);
        let waiting = self.holds.waiting(watched, long, now);
        let key = |name: String| {
            let (namespace, name) = name.split_once('/').unwrap_or(("", &name));
            Key::new(Kind::Pod, namespace, name)
        };
        let held = waiting.into_iter().map(|(name, waits)| (key(name), waits)).collect();
        let is_new = self.held != held;
        self.held = held;
        if completed {
            for (pod, waits) in &self.held {
                tracing::warn!(%pod, waits, "policy begins without this pod: what is in force for it stays");
            }
        }
        is_new
    }

    /// Everything that is wrong, if that is something else than what was told.
    fn diagnostics(&mut self) -> Option<Vec<Diagnostic>> {
        if !std::mem::take(&mut self.restated) {
            return None;
        }
        let troubles = self.troubles.iter().map(|(resource, trouble)| {
            let then = if self.complete && self.otherwise.contains(resource) {
                "what was read of it stays in force, for new pods too, which do not wait for it"
            } else if self.complete {
                "what was read of it stays in force"
            } else {
                "no policy is in force anew before all is read"
            };
            let (object, message) = (resource.to_string(), format!("{trouble}; {then}"));
            Diagnostic { object, message, ..Diagnostic::default() }
        });
        let diagnostics: Vec<_> = troubles.chain(self.wrong.values().flatten().cloned()).collect();
        (diagnostics != self.stated).then_some(diagnostics)
    }

    /// This node's configuration, if it is another than what was told.
    pub(crate) fn configuration(&mut self) -> Option<Configuration> {
        let policies = self.stores.get(&Resource::SecurityGroupPolicies);
        let has_group_policies = policies.is_some_and(|all| all.len() > 0);
        self.reconfigured |= self.configuration.has_group_policies != has_group_policies;
        self.configuration.has_group_policies = has_group_policies;
        std::mem::take(&mut self.reconfigured).then(|| self.configuration.clone())
    }

    /// The Services' ranges, if they are others than what was told.
    pub(crate) fn service_cidrs(&mut self) -> Option<ServiceCidrs> {
        if std::mem::take(&mut self.recidred) { self.service_cidrs.clone() } else { None }
    }

    /// How many objects of each resource there are.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (Resource, usize)> {
        self.stores.iter().map(|(resource, store)| (*resource, store.len()))
    }
}

impl<T> Known<T> {
    fn told(
        &self,
        notes: impl Fn(&T) -> &Vec<veni_eniconfig_crd::Problem>,
    ) -> Vec<veni_eniconfig_crd::Problem> {
        if self.problems.is_empty() {
            return self.value.as_ref().map(|value| notes(value).clone()).unwrap_or_default();
        }
        self.problems.clone()
    }
}

/// `namespace/name`, or the name of what is in none.
fn name(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (namespace, name) = (text("/metadata/namespace"), text("/metadata/name"));
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
}

/// The API server's object of a static pod has a UID of its own.
fn show_static_pod(resource: Resource, object: &mut Value) {
    if resource != Resource::Pods {
        return;
    }
    let Some(metadata) = object.get_mut("metadata") else { return };
    let mirrored = metadata.get("annotations").and_then(|all| all.get(MIRROR)).cloned();
    if let (Some(uid @ Value::String(_)), Some(fields)) = (mirrored, metadata.as_object_mut()) {
        fields.insert("uid".to_owned(), uid);
    }
}

fn told(wrong: &object::Diagnostic) -> Diagnostic {
    Diagnostic {
        object: wrong.key.to_string(),
        field: wrong.field.clone(),
        message: wrong.message.clone(),
        ..Diagnostic::default()
    }
}

struct Hashing(DefaultHasher);

impl fmt::Write for Hashing {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}
