//! Namespaces and nodes.

use std::net::IpAddr;

use super::{
    Diagnostic, Labels, NAMESPACE_NAME_LABEL, ZONE_LABEL,
    reader::{Read, Reader},
};

/// A namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels, always with [`NAMESPACE_NAME_LABEL`].
    pub labels: Labels,
    /// What was wrong and is left out.
    pub diagnostics: Vec<Diagnostic>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Labels,
    /// `InternalIP` and `ExternalIP` of its status.
    pub addresses: Vec<IpAddr>,
}

impl Namespace {
    /// A namespace of which nothing but the name is known.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let labels = [(NAMESPACE_NAME_LABEL.to_owned(), name.to_owned())].into();
        Self { name: name.to_owned(), labels, diagnostics: Vec::new() }
    }

    /// A label that cannot be read is left out, and noted.
    pub(super) fn read(root: &Reader<'_>) -> Self {
        let name = root.key().name.clone();
        let mut labels = root.get("metadata").get("labels").sound_labels();
        labels.insert(NAMESPACE_NAME_LABEL.to_owned(), name.clone());
        Self { name, labels, diagnostics: root.taken() }
    }
}

impl Node {
    /// Its zone, when labelled.
    #[must_use]
    pub fn zone(&self) -> Option<&str> {
        self.labels.get(ZONE_LABEL).map(String::as_str)
    }

    /// Notes all that is wrong: without its addresses or labels a node would be taken for another.
    pub(super) fn read(root: &Reader<'_>) -> Result<Self, Vec<Diagnostic>> {
        let items = root.get("status").get("addresses").sound_list();
        let read = |item: &Reader<'_>| -> Read<Option<IpAddr>> {
            match item.get("type").text()? {
                Some("InternalIP" | "ExternalIP") => item.get("address").parsed("an IP address"),
                _ => Ok(None),
            }
        };
        let mut addresses: Vec<IpAddr> =
            items.iter().filter_map(|item| root.sound(read(item))).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let labels = root.get("metadata").get("labels").sound_labels();
        root.unless_noted(Self { name: root.key().name.clone(), labels, addresses })
    }
}
