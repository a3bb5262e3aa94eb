//! One file → objects: documents, `List`s expanded, each object judged by itself.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
    sync::Arc,
};

use serde_json::Value;
use veni_policy::object::{self, Key, Object};

use crate::{
    Diagnostic, ReadError,
    node::{Data, Node},
    text,
};

/// An API group of kinds that are read.
struct Group {
    name: &'static str,
    /// Those that are read.
    read: &'static [&'static str],
    /// Its other kinds, of whatever version: nothing is to be said of them.
    others: &'static [&'static str],
}

/// The API groups of the kinds that are read.
const OUR_GROUPS: [Group; 5] = [
    Group {
        name: "",
        read: &["Namespace", "Node", "Pod", "Service"],
        others: &[
            "Binding",
            "ComponentStatus",
            "ConfigMap",
            "Endpoints",
            "Event",
            "LimitRange",
            "List",
            "PersistentVolume",
            "PersistentVolumeClaim",
            "PodTemplate",
            "ReplicationController",
            "ResourceQuota",
            "Secret",
            "ServiceAccount",
        ],
    },
    Group { name: "discovery.k8s.io", read: &["EndpointSlice"], others: &[] },
    Group {
        name: "networking.k8s.io",
        read: &["NetworkPolicy"],
        others: &["ClusterCIDR", "IPAddress", "Ingress", "IngressClass", "ServiceCIDR"],
    },
    Group { name: "policy.networking.k8s.io", read: &["ClusterNetworkPolicy"], others: &[] },
    Group { name: "vpcresources.k8s.aws", read: &["SecurityGroupPolicy"], others: &["CNINode"] },
];

/// What a file holds.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// Its objects, in its order.
    pub(crate) objects: Vec<Placed>,
    /// Objects that are there but cannot be taken, or not with all their labels: an earlier version of them is better.
    pub(crate) rejected: Vec<Key>,
    /// What is handed on as it is ([`is_beside`]).
    pub(crate) beside: Vec<Value>,
    /// What is wrong with either.
    pub(crate) diagnostics: Vec<Diagnostic>,
}

/// An object and where it is.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub(crate) object: Arc<Object>,
    pub(crate) document: usize,
    pub(crate) line: Option<u64>,
}

/// The text of a file, bounded.
pub(crate) fn load(path: &Path) -> Result<String, ReadError> {
    let fail = |source| ReadError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(fail)?;
    if file.metadata().map_err(fail)?.is_dir() {
        return Err(fail(io::Error::from(io::ErrorKind::IsADirectory)));
    }
    drain(file, path)
}

/// The text of standard input.
pub(crate) fn load_stdin() -> Result<String, ReadError> {
    drain(io::stdin().lock(), Path::new(STDIN))
}

/// How standard input is named.
pub(crate) const STDIN: &str = "-";

fn drain(source: impl io::Read, path: &Path) -> Result<String, ReadError> {
    let mut bytes = Vec::new();
    source
        .take(text::MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| ReadError::Io { path: path.to_owned(), source })?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len > text::MAX_BYTES) {
        return Err(ReadError::TooLarge { path: path.to_owned(), limit: text::MAX_BYTES });
    }
    String::from_utf8(bytes).map_err(|error| ReadError::Syntax {
        path: path.to_owned(),
        line: None,
        message: format!("not UTF-8: {}", error.utf8_error()),
    })
}

/// The objects of a text.
pub(crate) fn parse(name: &Arc<str>, text: &str) -> Result<Contents, ReadError> {
    let documents = text::documents(text).map_err(|flaw| ReadError::Syntax {
        path: Path::new(&**name).to_owned(),
        line: flaw.line,
        message: flaw.message,
    })?;
    let mut contents = Contents::default();
    for (index, node) in documents.into_iter().enumerate() {
        Document { file: name, number: index + 1, contents: &mut contents }.expand(node);
    }
    Ok(contents)
}

/// A document on its way into the contents.
struct Document<'a> {
    file: &'a Arc<str>,
    number: usize,
    contents: &'a mut Contents,
}

// === impl Document ===

impl Document<'_> {
    /// A `List`, or `PodList` and the like: its items; anything else: itself.
    fn expand(&mut self, node: Node) {
        let items_kind =
            node.text("kind").and_then(|kind| kind.strip_suffix("List")).map(str::to_owned);
        match (items_kind, node.get("items").map(|items| &items.data)) {
            (Some(kind), Some(Data::List(_) | Data::Null)) => {
                let version = node.text("apiVersion").map(str::to_owned);
                for mut item in node.into_items() {
                    // The items of a typed list need not repeat what they are.
                    if !kind.is_empty() {
                        item.default_text("kind", &kind);
                        item.default_text("apiVersion", version.as_deref().unwrap_or_default());
                    }
                    self.take(item);
                }
            }
            _ => self.take(node),
        }
    }

    fn take(&mut self, node: Node) {
        if !matches!(node.data, Data::Object(_)) || node.text("kind").is_none() {
            let line = known(node.line);
            let message = "is no Kubernetes object (a mapping with `kind`); left out".to_owned();
            let whole = Diagnostic::of_file(self.file, message);
            self.contents.diagnostics.push(Diagnostic { document: self.number, line, ..whole });
            return;
        }
        let value = node.to_value();
        if is_beside(&value) {
            self.contents.beside.push(value.clone());
        }
        match object::parse(&value) {
            Ok(None) => self.doubt(&node),
            Ok(Some(object)) => {
                for what in object.diagnostics() {
                    self.report(&node, what);
                }
                if object.lacks_labels() {
                    self.contents.rejected.push(object.key());
                }
                let line = known(node.line);
                let object = Arc::new(object);
                self.contents.objects.push(Placed { object, document: self.number, line });
            }
            Err(wrong) => {
                for what in &wrong {
                    self.report(&node, what);
                }
                let key = wrong.into_iter().next().map(|what| what.key);
                self.contents.rejected.extend(key.filter(|_| is_ours(&node)));
            }
        }
    }

    /// Another project's policy closes nothing here, nor does one whose kind is misspelt, and whoever wrote it would not
    /// know.
    fn doubt(&mut self, node: &Node) {
        let kind = node.text("kind").unwrap_or_default();
        let version = node.text("apiVersion").unwrap_or_default();
        let message = if kind.ends_with("NetworkPolicy") {
            format!(
                "veni does not enforce the kind {kind} of apiVersion {version:?}: what it denies is not denied"
            )
        } else if let Some(group) = group_of(node).filter(|group| !group.has(kind)) {
            format!(
                "apiVersion {version:?} has no kind {kind}: left out (veni reads {} of it)",
                group.read.join(", ")
            )
        } else {
            return;
        };
        let metadata = |field: &str| node.get("metadata").and_then(|data| data.text(field));
        let name = metadata("name").unwrap_or_default();
        let object = match metadata("namespace") {
            Some(namespace) => format!("{kind} {namespace}/{name}"),
            None => format!("{kind} {name}"),
        };
        let whole = Diagnostic::of_file(self.file, message);
        let (document, line) = (self.number, known(node.line));
        self.contents.diagnostics.push(Diagnostic { document, line, object, ..whole });
    }

    fn report(&mut self, node: &Node, what: &object::Diagnostic) {
        let line = known(node.line_of(&what.field));
        self.contents.diagnostics.push(Diagnostic::of_object(self.file, self.number, line, what));
    }
}

/// Whether others than policy read it: Nodes, with all of their metadata, and ENIConfigs.
fn is_beside(value: &Value) -> bool {
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
    let named = value.pointer("/metadata/name").is_some();
    named
        && matches!(
            (text("apiVersion").rsplit_once('/').map_or("", |(group, _)| group), text("kind")),
            ("", "Node") | ("crd.k8s.amazonaws.com", "ENIConfig")
        )
}

/// Kind and name of what is handed on as it is.
pub(crate) fn beside_key(value: &Value) -> (&str, &str) {
    let text = |at: &str| value.pointer(at).and_then(Value::as_str).unwrap_or_default();
    (text("/kind"), text("/metadata/name"))
}

/// Whether its API group has kinds of ours: of another group it is no version of an object of ours.
fn is_ours(node: &Node) -> bool {
    group_of(node).is_some()
}

fn group_of(node: &Node) -> Option<&'static Group> {
    let version = node.text("apiVersion").unwrap_or_default();
    let name = version.rsplit_once('/').map_or("", |(group, _)| group);
    OUR_GROUPS.iter().find(|group| group.name == name)
}

impl Group {
    fn has(&self, kind: &str) -> bool {
        self.read.contains(&kind) || self.others.contains(&kind)
    }
}

const fn known(line: u64) -> Option<u64> {
    if line == 0 { None } else { Some(line) }
}
