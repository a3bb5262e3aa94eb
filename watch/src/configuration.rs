//! What of the cluster is about this node's own network: its object, ENIConfigs, NodeNetworkConfigs.

use std::collections::BTreeMap;

use serde_json::Value;
use veni_eniconfig_crd::{EniConfig, Labels, NodeNetworkConfig, Problem};

/// The resource that EKS has each pod request that a SecurityGroupPolicy selects: a branch ENI.
pub(crate) const POD_ENI: &str = "vpc.amazonaws.com/pod-eni";

/// It. Parts that were not read yet are `None`: nothing follows from their absence.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Configuration {
    /// This node.
    pub node: Option<NodeMetadata>,
    /// ENIConfigs, by name.
    pub eni_configs: Option<BTreeMap<String, Known<EniConfig>>>,
    /// NodeNetworkConfigs, by name.
    pub node_network_configs: Option<BTreeMap<String, Known<NodeNetworkConfig>>>,
    /// Whether there are SecurityGroupPolicies, as far as is known.
    pub has_group_policies: bool,
}

/// A node's labels and annotations.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct NodeMetadata {
    /// Its object's UID: another one is another registration of the node.
    pub uid: String,
    /// They.
    pub labels: Labels,
    /// They.
    pub annotations: Labels,
    /// How many pods with a branch ENI fit, as its status has it; `None`: that is not said.
    pub pod_enis: Option<String>,
}

/// An object that there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known<T> {
    /// The last version of it that could be understood.
    pub value: Option<T>,
    /// What is wrong with the present one.
    pub problems: Vec<Problem>,
    /// Counts the changes of the object's spec; that of the present one.
    pub generation: i64,
    /// The object's UID: another one is another object of the same name.
    pub uid: String,
}

impl NodeMetadata {
    pub(crate) fn read(object: &Value) -> Self {
        let texts = |pointer: &str| {
            let fields = object.pointer(pointer).and_then(Value::as_object);
            let text =
                |(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned()));
            fields.into_iter().flatten().filter_map(text).collect()
        };
        let capacity = object.pointer("/status/capacity");
        let pod_enis = capacity.and_then(|all| all.get(POD_ENI)).and_then(Value::as_str);
        Self {
            uid: uid(object),
            pod_enis: pod_enis.map(str::to_owned),
            labels: texts("/metadata/labels"),
            annotations: texts("/metadata/annotations"),
        }
    }
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self { value: None, problems: Vec::new(), generation: 0, uid: String::new() }
    }
}

impl<T> Known<T> {
    pub(crate) fn take(&mut self, object: &Value, read: Result<T, Vec<Problem>>) {
        let generation = object.pointer("/metadata/generation").and_then(Value::as_i64);
        self.generation = generation.unwrap_or_default();
        self.uid = uid(object);
        match read {
            Ok(value) => (self.value, self.problems) = (Some(value), Vec::new()),
            Err(problems) => self.problems = problems,
        }
    }
}

fn uid(object: &Value) -> String {
    object.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default().to_owned()
}
