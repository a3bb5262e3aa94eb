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

    pub(super) fn read(root: &Reader<'_>) -> Read<Self> {
        let mut addresses = Vec::new();
        for item in root.get("status").get("addresses").list()? {
            if matches!(item.get("type").text()?, Some("InternalIP" | "ExternalIP")) {
                addresses.extend(item.get("address").parsed::<IpAddr>("an IP address")?);
            }
        }
        addresses.sort_unstable();
        addresses.dedup();
        let labels = root.get("metadata").get("labels").labels()?;
        Ok(Self { name: root.key().name.clone(), labels, addresses })
    }
}
