//! NodeNetworkConfig, `veni.dev/v1alpha1`: settings of the pool for the nodes that it selects, changed while they run.
//!
//! Each setting has the name of its environment variable in the API's spelling, and its meaning; what is not set stays as
//! the node's environment has it. A node follows one object as a whole: of those that select it the one with the highest
//! priority, and of equals the first by name ([`in_force`]).

#![cfg_attr(
    feature = "schema",
    expect(
        unreachable_pub,
        clippy::duplicated_attributes,
        reason = "KubeSchema copies a struct into a function; columns repeat what they have in common"
    )
)]

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use veni_core::config::Config;

use crate::{
    LabelSelector, Labels, Problem,
    object::{name, spec},
};

const FIELDS: &[&str] = &["nodeSelector", "priority", "pool"];
/// A day: longer is a slip.
const LONGEST_COOLDOWN: u32 = 86_400;

/// Settings of the pool for the nodes that it selects.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(kube::CustomResource, kube::KubeSchema))]
#[cfg_attr(
    feature = "schema",
    kube(
        group = "veni.dev",
        version = "v1alpha1",
        kind = "NodeNetworkConfig",
        root = "NodeNetworkConfigObject",
        plural = "nodenetworkconfigs",
        singular = "nodenetworkconfig",
        shortname = "nnc",
        status = "NodeNetworkConfigStatus",
        doc = "Settings of the address pool for the nodes that it selects, in force without a restart. Of several the highest priority wins.",
        printcolumn(name = "Priority", type_ = "integer", json_path = ".spec.priority"),
        printcolumn(name = "Generation", type_ = "integer", json_path = ".metadata.generation"),
        printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
    )
)]
#[serde(rename_all = "camelCase")]
pub struct NodeNetworkConfigSpec {
    /// The nodes; an empty selector is all of them.
    pub node_selector: LabelSelector,
    /// Of several objects that select a node the highest wins; of equals the first by name.
    #[serde(default)]
    pub priority: i32,
    /// The settings.
    pub pool: PoolSpec,
}

/// Settings of the pool. Those that are not set stay as the node's environment has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(kube::KubeSchema))]
#[cfg_attr(
    feature = "schema",
    x_kube(
        validation = Rule::new("has(self.warmENITarget) || has(self.warmIPTarget) || has(self.minimumIPTarget) || has(self.warmPrefixTarget) || has(self.maxENI) || has(self.maxPods) || has(self.cooldownSeconds) || has(self.disableProvisioning)").message("needs at least one setting"),
        validation = Rule::new("!has(self.warmENITarget) || !((has(self.warmIPTarget) && self.warmIPTarget > 0) || (has(self.minimumIPTarget) && self.minimumIPTarget > 0))").message("warmENITarget is ignored beside warmIPTarget and minimumIPTarget: leave it out")
    )
)]
#[serde(deny_unknown_fields)]
pub struct PoolSpec {
    /// `WARM_ENI_TARGET`: spare ENIs' worth of addresses; ignored beside warmIPTarget and minimumIPTarget.
    #[serde(rename = "warmENITarget", default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 64)))]
    pub warm_eni: Option<u32>,
    /// `WARM_IP_TARGET`: unassigned addresses to keep; 0 is none.
    #[serde(rename = "warmIPTarget", default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 4096)))]
    pub warm_ip: Option<u32>,
    /// `MINIMUM_IP_TARGET`: addresses to keep at least, those of pods included; 0 is none.
    #[serde(rename = "minimumIPTarget", default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 4096)))]
    pub minimum_ip: Option<u32>,
    /// `WARM_PREFIX_TARGET`: whole free /28 prefixes, with prefix delegation.
    #[serde(rename = "warmPrefixTarget", default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 256)))]
    pub warm_prefix: Option<u32>,
    /// `MAX_ENI`: at most so many ENIs; the instance type's limit holds anyway.
    #[serde(rename = "maxENI", default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 64)))]
    pub max_eni: Option<u32>,
    /// `VENI_MAX_PODS`: the kubelet's maxPods; the pool never grows past it.
    #[serde(rename = "maxPods", default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 4096)))]
    pub max_pods: Option<u32>,
    /// `IP_COOLDOWN_PERIOD`: how long a released address is not reused.
    #[serde(rename = "cooldownSeconds", default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 86_400)))]
    pub cooldown_secs: Option<u32>,
    /// `DISABLE_NETWORK_RESOURCE_PROVISIONING`: the pool is neither grown nor shrunk.
    #[serde(rename = "disableProvisioning", default, skip_serializing_if = "Option::is_none")]
    pub disable_provisioning: Option<bool>,
}

/// Who follows it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", default)]
pub struct NodeNetworkConfigStatus {
    /// Nodes that follow it, each with an entry that it writes itself; at most 10. The metric
    /// veni_node_network_config_generation has all of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(
        feature = "schema",
        schemars(
            length(max = 10),
            extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"])
        )
    )]
    pub nodes: Vec<NodeStanding>,
}

/// How one node stands.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct NodeStanding {
    /// The node.
    pub name: String,
    /// The object's generation that is in force there.
    pub generation: i64,
    /// Why it is not the present one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 256)))]
    pub message: Option<String>,
}

/// A NodeNetworkConfig, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeNetworkConfig {
    /// Its name.
    pub name: String,
    /// Counts its changes.
    pub generation: i64,
    /// Whom it selects.
    pub nodes: LabelSelector,
    /// The highest wins.
    pub priority: i32,
    /// What it sets.
    pub overrides: Overrides,
    /// What was ignored in it.
    pub notes: Vec<Problem>,
}

/// What takes the place of a node's settings. `None` leaves them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Overrides {
    /// `WARM_ENI_TARGET`.
    pub warm_eni: Option<u32>,
    /// `WARM_IP_TARGET`.
    pub warm_ip: Option<u32>,
    /// `MINIMUM_IP_TARGET`.
    pub minimum_ip: Option<u32>,
    /// `WARM_PREFIX_TARGET`.
    pub warm_prefix: Option<u32>,
    /// `MAX_ENI`.
    pub max_eni: Option<u32>,
    /// `VENI_MAX_PODS`.
    pub max_pods: Option<u32>,
    /// `IP_COOLDOWN_PERIOD`.
    pub cooldown: Option<Duration>,
    /// `DISABLE_NETWORK_RESOURCE_PROVISIONING`.
    pub disable_provisioning: Option<bool>,
}

// === impl NodeNetworkConfig ===

impl NodeNetworkConfig {
    /// Reads an object as the API server has it.
    ///
    /// # Errors
    /// All that is wrong, together: half of what was meant is another size than was meant.
    pub fn parse(object: &Value) -> Result<Self, Vec<Problem>> {
        let mut notes = Vec::new();
        let name = name(object).map_err(|problem| vec![problem])?;
        let spec: NodeNetworkConfigSpec =
            spec(object, FIELDS, &mut notes).map_err(|problem| vec![problem])?;
        let mut problems = spec.node_selector.problems("spec.nodeSelector");
        problems.extend(spec.pool.problems());
        if !problems.is_empty() {
            return Err(problems);
        }
        let generation = object.pointer("/metadata/generation").and_then(Value::as_i64);
        Ok(Self {
            name,
            generation: generation.unwrap_or_default(),
            nodes: spec.node_selector,
            priority: spec.priority,
            overrides: spec.pool.into(),
            notes,
        })
    }
}

/// The object that a node with these labels follows.
#[must_use]
pub fn in_force<'a>(
    all: impl IntoIterator<Item = &'a NodeNetworkConfig>,
    labels: &Labels,
) -> Option<&'a NodeNetworkConfig> {
    let selecting = all.into_iter().filter(|config| config.nodes.matches(labels));
    selecting.min_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.name.cmp(&b.name)))
}

// === impl PoolSpec ===

impl PoolSpec {
    /// What the definition refuses too: an older one may be installed.
    fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut refuse = |field: &str, wrong: bool, message: &str| {
            if wrong {
                problems.push(Problem::new(format!("spec.pool{field}"), message));
            }
        };
        refuse("", *self == Self::default(), "needs at least one setting");
        refuse(".maxENI", self.max_eni == Some(0), "must be 1 or more");
        refuse(".maxPods", self.max_pods == Some(0), "must be 1 or more");
        let long = self.cooldown_secs.is_some_and(|secs| secs > LONGEST_COOLDOWN);
        refuse(".cooldownSeconds", long, "must be 86400 or less");
        problems
    }
}

// === impl Overrides ===

impl From<PoolSpec> for Overrides {
    fn from(spec: PoolSpec) -> Self {
        Self {
            warm_eni: spec.warm_eni,
            warm_ip: spec.warm_ip,
            minimum_ip: spec.minimum_ip,
            warm_prefix: spec.warm_prefix,
            max_eni: spec.max_eni,
            max_pods: spec.max_pods,
            cooldown: spec.cooldown_secs.map(|secs| Duration::from_secs(secs.into())),
            disable_provisioning: spec.disable_provisioning,
        }
    }
}

impl Overrides {
    /// The variables that it takes the place of, by name.
    #[must_use]
    pub fn variables(&self) -> Vec<&'static str> {
        let all = [
            ("WARM_ENI_TARGET", self.warm_eni.is_some()),
            ("WARM_IP_TARGET", self.warm_ip.is_some()),
            ("MINIMUM_IP_TARGET", self.minimum_ip.is_some()),
            ("WARM_PREFIX_TARGET", self.warm_prefix.is_some()),
            ("MAX_ENI", self.max_eni.is_some()),
            ("VENI_MAX_PODS", self.max_pods.is_some()),
            ("IP_COOLDOWN_PERIOD", self.cooldown.is_some()),
            ("DISABLE_NETWORK_RESOURCE_PROVISIONING", self.disable_provisioning.is_some()),
        ];
        all.into_iter().filter(|(_, set)| *set).map(|(name, _)| name).collect()
    }

    /// The node's settings with these in place of its own.
    #[must_use]
    pub fn over(&self, base: &Config) -> Config {
        let mut config = base.clone();
        let targets = &mut config.targets;
        targets.warm_eni = self.warm_eni.unwrap_or(targets.warm_eni);
        targets.warm_ip = self.warm_ip.unwrap_or(targets.warm_ip);
        targets.minimum_ip = self.minimum_ip.unwrap_or(targets.minimum_ip);
        targets.warm_prefix = self.warm_prefix.unwrap_or(targets.warm_prefix);
        config.max_eni = self.max_eni.or(base.max_eni);
        config.max_pods = self.max_pods.or(base.max_pods);
        config.cooldown = self.cooldown.unwrap_or(base.cooldown);
        config.disable_provisioning =
            self.disable_provisioning.unwrap_or(base.disable_provisioning);
        config
    }
}

#[cfg(test)]
mod tests;
