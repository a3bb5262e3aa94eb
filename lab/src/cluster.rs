//! The API server in miniature: a folder of manifests that every node's daemon follows (`VENI_MANIFEST_DIR`).
//!
//! The lab writes its nodes, namespaces and pods into it, as an API server would have them: a pod's object is there
//! before its ADD, without an address, and gets its address after it. The user's manifests are copied beside them.
//! Invariants: a file is replaced as a whole (a temporary one is renamed). Of two definitions of an object the user's is
//! in force: its file's name is the first.
//!
//! A folder has no resource version, so the lab keeps one: a label of a pod that runs nowhere, written after
//! everything else. A daemon that tells the label's new value has everything that was written before it in force.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use veni_core::wire::inspect::policy::Explanation;

use crate::{
    Node,
    error::{Context as _, Error, Result, make_dir},
};

/// What the names of applied files begin with in the folder.
pub const APPLIED: &str = "apply-";
/// The namespace of pods that are not told another.
pub const NAMESPACE: &str = "lab";
/// The range of the cluster's Services.
pub const SERVICE_CIDR: &str = "172.21.0.0/16";
/// How long a change may take until every node has it in force.
pub const IN_FORCE: Duration = Duration::from_secs(10);

/// The pod that carries the revision.
const REVISION: (&str, &str) = ("veni-lab", "revision");
const POLL: Duration = Duration::from_micros(500);
/// After so long a silence it is asked whether the daemon hangs.
const SILENCE: Duration = Duration::from_secs(2);

/// The folder.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    revision: Mutex<u64>,
    namespaces: Mutex<BTreeSet<String>>,
    temporary: AtomicU64,
}

/// A pod as its author writes it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PodSpec {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// What its container serves.
    #[serde(default)]
    pub ports: Vec<PodPort>,
}

/// A container's port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodPort {
    /// Its name.
    pub name: Option<String>,
    /// Its number.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
}

// === impl Cluster ===

impl Cluster {
    /// An empty folder `dir`.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create(dir: PathBuf) -> Result<Self> {
        make_dir(&dir)?;
        let cluster = Self {
            dir,
            revision: Mutex::new(0),
            namespaces: Mutex::default(),
            temporary: AtomicU64::new(0),
        };
        cluster.raise_revision()?;
        Ok(cluster)
    }

    /// Where it is.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What a daemon has to be told to follow it.
    pub(crate) fn environment(&self) -> [(String, String); 2] {
        [
            ("VENI_MANIFEST_DIR".to_owned(), self.dir.display().to_string()),
            ("VENI_SERVICE_CIDRS".to_owned(), SERVICE_CIDR.to_owned()),
        ]
    }

    /// Writes a node's object.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put_node(&self, name: &str, zone: &str, address: Ipv4Addr) -> Result<()> {
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {
                "kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone,
            }},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]},
        });
        self.write(&format!("lab-node-{name}.yaml"), &node.to_string())
    }

    /// Writes a namespace's object.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn put_namespace(&self, name: &str, labels: &BTreeMap<String, String>) -> Result<()> {
        locked(&self.namespaces).insert(name.to_owned());
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels},
        });
        self.write(&format!("lab-namespace-{name}.yaml"), &namespace.to_string())
    }

    /// Writes a pod's object, and its namespace's when that has none.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn put_pod(
        &self,
        pod: &PodSpec,
        uid: &str,
        node: &str,
        address: Option<Ipv4Addr>,
    ) -> Result<()> {
        if !locked(&self.namespaces).contains(&pod.namespace) {
            self.put_namespace(&pod.namespace, &BTreeMap::new())?;
        }
        self.write(&pod.file(), &pod.manifest(uid, node, address).to_string())
    }

    /// Removes a pod's object, if there is one.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn remove_pod(&self, pod: &PodSpec) -> Result<()> {
        self.remove(&pod.file())
    }

    /// Removes a namespace's object, if there is one. Pods that are added to it later do not bring it back.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn remove_namespace(&self, name: &str) -> Result<()> {
        self.remove(&format!("lab-namespace-{name}.yaml"))
    }

    /// Puts the user's manifests of this file name in force, instead of those that had the name; whether there were any.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn apply(&self, file_name: &str, text: &str) -> Result<bool> {
        let name = applied(file_name);
        let exists = self.dir.join(&name).exists();
        self.write(&name, text)?;
        Ok(exists)
    }

    /// Takes the user's manifests of this file name back; whether there were any.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn delete(&self, file_name: &str) -> Result<bool> {
        let name = applied(file_name);
        let exists = self.dir.join(&name).exists();
        self.remove(&name)?;
        Ok(exists)
    }

    /// Waits until every one of `nodes` has in force what was written so far; returns how long that took from now.
    ///
    /// # Errors
    /// When a node has it not within [`IN_FORCE`], with what it says instead.
    pub fn settle<'a>(&self, nodes: impl IntoIterator<Item = &'a Node>) -> Result<Duration> {
        let start = Instant::now();
        let revision = self.raise_revision()?;
        nodes.into_iter().try_for_each(|node| self.wait_for(node, revision, start).map(drop))?;
        Ok(start.elapsed())
    }

    /// As [`Cluster::settle`], of each node by itself: how long it took there, or why it is not in force. One that hangs
    /// keeps the others waiting no longer than itself.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn settle_each<'a>(
        &self,
        nodes: impl IntoIterator<Item = &'a Node>,
    ) -> Result<Vec<(&'a Node, Result<Duration>)>> {
        let start = Instant::now();
        let revision = self.raise_revision()?;
        Ok(thread::scope(|scope| {
            let wait = |node| (node, scope.spawn(move || self.wait_for(node, revision, start)));
            let waits: Vec<_> = nodes.into_iter().map(wait).collect();
            let joined = waits.into_iter().map(|(node, wait)| {
                (node, wait.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
            });
            joined.collect()
        }))
    }

    fn wait_for(&self, node: &Node, revision: u64, start: Instant) -> Result<Duration> {
        loop {
            let last = match in_force(node) {
                Ok(now) if now >= revision => {
                    // It is known; whether every write of it is done as well, the daemon says.
                    node.get("/v1/policy/applied")?;
                    return Ok(start.elapsed());
                }
                Ok(now) => format!("it has revision {now} of {revision}"),
                Err(error) => match node.glance() {
                    Err(hangs @ Error::Hangs { .. }) if is_silence(&error) => return Err(hangs),
                    _ => error.to_string(),
                },
            };
            if start.elapsed() > IN_FORCE {
                let message = format!(
                    "has not the manifests of {} in force after {IN_FORCE:?}: {last}",
                    self.dir.display()
                );
                return Err(Error::Daemon { node: node.name.clone(), message });
            }
            thread::sleep(POLL);
        }
    }

    fn raise_revision(&self) -> Result<u64> {
        let mut revision = locked(&self.revision);
        *revision += 1;
        let mut pod = PodSpec::new(REVISION.0, REVISION.1);
        pod.labels.insert(REVISION.1.to_owned(), revision.to_string());
        self.write(&pod.file(), &pod.manifest(REVISION.1, "", None).to_string())?;
        Ok(*revision)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let number = self.temporary.fetch_add(1, Ordering::Relaxed);
        let (file, temporary) = (self.dir.join(name), self.dir.join(format!(".{number}")));
        fs::write(&temporary, text)
            .and_then(|()| fs::rename(&temporary, &file))
            .context(|| format!("cannot write {}", file.display()))
    }

    fn remove(&self, name: &str) -> Result<()> {
        let file = self.dir.join(name);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context(|| format!("cannot remove {}", file.display()))
            }
            _ => Ok(()),
        }
    }
}

/// The user's files come before the lab's.
fn applied(file_name: &str) -> String {
    format!("{APPLIED}{file_name}")
}

/// The revision that a node's daemon has in force.
fn in_force(node: &Node) -> Result<u64> {
    let (namespace, name) = REVISION;
    let path = format!("/v1/policy/explain?pod={namespace}/{name}");
    let explanation: Explanation = node.document_within(&path, SILENCE)?;
    let revision = explanation.labels.get(name).and_then(|revision| revision.parse().ok());
    revision.ok_or_else(|| Error::invalid(format!("ipamd on {} tells no revision", node.name)))
}

fn is_silence(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::WouldBlock)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind it is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl PodSpec ===

impl PodSpec {
    /// A pod without labels and ports.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned(), ..Self::default() }
    }

    /// A pod by the name that it has in the lab: `name`, or `namespace/name`.
    #[must_use]
    pub fn called(lab_name: &str) -> Self {
        let (namespace, name) = lab_name.split_once('/').unwrap_or((NAMESPACE, lab_name));
        Self::new(namespace, name)
    }

    /// With a label.
    #[must_use]
    pub fn label(mut self, name: &str, value: &str) -> Self {
        self.labels.insert(name.to_owned(), value.to_owned());
        self
    }

    /// With a port.
    #[must_use]
    pub fn port(mut self, port: PodPort) -> Self {
        self.ports.push(port);
        self
    }

    /// Its name in the lab: alone in the lab's own namespace, after its namespace's in others.
    #[must_use]
    pub fn lab_name(&self) -> String {
        match self.namespace.as_str() {
            NAMESPACE => self.name.clone(),
            namespace => format!("{namespace}/{}", self.name),
        }
    }

    /// Its name in the cluster: `namespace/name`.
    #[must_use]
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Whether a cluster would take it.
    ///
    /// # Errors
    /// When a name is none.
    pub(crate) fn check(&self) -> Result<()> {
        let fits = |name: &String| {
            (1..=63).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        match [&self.namespace, &self.name].into_iter().find(|name| !fits(name)) {
            None => Ok(()),
            Some(name) => Err(Error::invalid(format!(
                "{name:?} is no name of a pod or a namespace: 1 to 63 lower-case letters, digits and `-`"
            ))),
        }
    }

    fn file(&self) -> String {
        // Neither part has the separator: both are DNS names.
        format!("lab-pod-{}_{}.yaml", self.namespace, self.name)
    }

    fn manifest(&self, uid: &str, node: &str, address: Option<Ipv4Addr>) -> Value {
        let ports = self.ports.iter().map(|port| {
            let mut item = json!({"containerPort": port.port, "protocol": port.protocol});
            if let Some(name) = &port.name {
                item["name"] = json!(name);
            }
            item
        });
        let status = match address {
            None => json!({"phase": "Pending"}),
            Some(address) => json!({
                "phase": "Running", "podIP": address, "podIPs": [{"ip": address}],
                "conditions": [{"type": "Ready", "status": "True"}],
            }),
        };
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "namespace": self.namespace, "name": self.name, "uid": uid,
                "labels": self.labels, "annotations": self.annotations,
            },
            "spec": {
                "nodeName": node,
                "containers": [{"name": "main", "ports": ports.collect::<Vec<_>>()}],
            },
            "status": status,
        })
    }
}

// === impl PodPort ===

impl std::str::FromStr for PodPort {
    type Err = Error;

    /// `80`, `80/UDP`, `http=80`, `http=80/TCP`.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::invalid(format!("port {text:?}: wants [NAME=]NUMBER[/PROTOCOL]"));
        let (name, rest) = text.split_once('=').map_or((None, text), |(n, r)| (Some(n), r));
        let (port, protocol) = rest.split_once('/').unwrap_or((rest, "TCP"));
        let protocol = protocol.to_ascii_uppercase();
        if !["TCP", "UDP", "SCTP"].contains(&protocol.as_str()) {
            return Err(wrong());
        }
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?;
        Ok(Self { name: name.map(str::to_owned), port, protocol })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_read_as_they_are_written() {
        let port = |name: Option<&str>, port, protocol: &str| {
            Some(PodPort { name: name.map(str::to_owned), port, protocol: protocol.to_owned() })
        };
        for (text, expect) in [
            ("80", port(None, 80, "TCP")),
            ("53/udp", port(None, 53, "UDP")),
            ("http=8080/TCP", port(Some("http"), 8080, "TCP")),
            ("0", None),
            ("80/QUIC", None),
            ("http", None),
        ] {
            assert_eq!(text.parse::<PodPort>().ok(), expect, "{text}");
        }
    }

    /// The folder as the daemons read it.
    fn objects(cluster: &Cluster) -> (Vec<String>, Vec<String>) {
        let manifests = veni_manifests::read(cluster.dir()).unwrap();
        let mut keys: Vec<_> = manifests.objects.iter().map(|o| o.key().to_string()).collect();
        keys.sort();
        let wrong = manifests.diagnostics.iter().map(ToString::to_string);
        (keys, wrong.collect())
    }

    #[test]
    fn the_folder_reads_as_a_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let cluster = Cluster::create(dir.path().join("manifests")).unwrap();
        cluster.put_node("node-1", "a", Ipv4Addr::new(10, 0, 0, 10)).unwrap();
        let pod = PodSpec::called("shop/web").label("app", "web").port("http=80".parse().unwrap());
        cluster.put_pod(&pod, "u", "node-1", None).unwrap();
        cluster.put_pod(&pod, "u", "node-1", Some(Ipv4Addr::new(10, 0, 0, 11))).unwrap();
        let (keys, wrong) = objects(&cluster);
        let all = ["Namespace shop", "Node node-1", "Pod shop/web", "Pod veni-lab/revision"];
        assert_eq!((keys, wrong), (all.map(str::to_owned).to_vec(), Vec::new()));
        cluster.remove_pod(&pod).unwrap();
        assert!(!objects(&cluster).0.contains(&"Pod shop/web".to_owned()));
    }

    #[test]
    fn applied_manifests_go_as_they_came() {
        let dir = tempfile::tempdir().unwrap();
        let cluster = Cluster::create(dir.path().join("manifests")).unwrap();
        cluster.put_namespace("shop", &BTreeMap::new()).unwrap();
        let mine =
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {mine: 'yes'}}\n";
        cluster.apply("ns.yaml", mine).unwrap();
        let manifests = veni_manifests::read(cluster.dir()).unwrap();
        let shop = manifests.objects.iter().find_map(|object| match object {
            veni_policy::object::Object::Namespace(namespace) => Some(namespace),
            _ => None,
        });
        assert!(shop.is_some_and(|shop| shop.labels.contains_key("mine")), "the user's one wins");
        assert!(cluster.delete("ns.yaml").unwrap());
        assert!(!cluster.delete("ns.yaml").unwrap());
    }

    #[test]
    fn lab_names_are_short_in_the_labs_own_namespace() {
        for (name, full) in [("web", "lab/web"), ("shop/web", "shop/web")] {
            let pod = PodSpec::called(name);
            assert_eq!((pod.lab_name().as_str(), pod.full_name().as_str()), (name, full));
        }
    }
}
