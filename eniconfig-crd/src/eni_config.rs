//! ENIConfig, `crd.k8s.amazonaws.com/v1alpha1`: which subnet and security groups the secondary ENIs of a node have.
//!
//! AWS's objects (`subnet`, `securityGroups`) are taken unchanged. Ours beside them, optional: further `subnets`, taken in
//! their order when one is full, and the choice of both by tags. Which object is a node's own is AWS's order of precedence,
//! [`chosen`].

#![cfg_attr(
    feature = "schema",
    expect(
        unreachable_pub,
        clippy::duplicated_attributes,
        reason = "KubeSchema copies a struct into a function; columns repeat what they have in common"
    )
)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use veni_core::id::{SecurityGroupId, SubnetId};

use crate::{
    Labels, Problem,
    object::{ids, name, spec},
};

/// The node label that decides before all others: set by who manages nodes from outside.
pub const EXTERNAL_LABEL: &str = "vpc.amazonaws.com/externalEniConfig";
/// What `ENI_CONFIG_ANNOTATION_DEF` and `ENI_CONFIG_LABEL_DEF` are when they are unset or empty.
pub const DEFAULT_KEY: &str = "k8s.amazonaws.com/eniConfig";
/// The ENIConfig of a node that names none.
pub const DEFAULT_NAME: &str = "default";

const FIELDS: &[&str] = &["subnet", "subnets", "subnetTags", "securityGroups", "securityGroupTags"];

/// Which subnet and security groups the secondary ENIs of a node have.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(kube::CustomResource, kube::KubeSchema))]
#[cfg_attr(
    feature = "schema",
    kube(
        group = "crd.k8s.amazonaws.com",
        version = "v1alpha1",
        kind = "ENIConfig",
        root = "EniConfigObject",
        plural = "eniconfigs",
        singular = "eniconfig",
        doc = "Which subnet and security groups the secondary ENIs of a node have. AWS's objects are taken unchanged.",
        printcolumn(name = "Subnet", type_ = "string", json_path = ".spec.subnet"),
        printcolumn(name = "Subnets", type_ = "string", json_path = ".spec.subnets", priority = 1),
        printcolumn(
            name = "Security-Groups",
            type_ = "string",
            json_path = ".spec.securityGroups"
        )
    )
)]
#[cfg_attr(
    feature = "schema",
    schemars(extend("x-kubernetes-preserve-unknown-fields" = true)),
    x_kube(
        validation = Rule::new("has(self.subnet) || has(self.subnets) || has(self.subnetTags)").message("one of subnet, subnets, subnetTags is needed"),
        validation = Rule::new("!has(self.subnetTags) || !(has(self.subnet) || has(self.subnets))").message("subnetTags and subnets by id exclude each other"),
        validation = Rule::new("!has(self.securityGroupTags) || !has(self.securityGroups)").message("securityGroupTags and securityGroups exclude each other")
    )
)]
#[serde(rename_all = "camelCase")]
pub struct EniConfigSpec {
    /// The id of the subnet that new ENIs are made in, e.g. `subnet-0bb1c79de3EXAMPLE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
    /// Ids of further subnets of the node's zone, taken in their order when those before them are full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(min = 1, max = 16)))]
    pub subnets: Option<Vec<String>>,
    /// Instead of ids: the subnets of the node's VPC and zone with all of these tags; the value `*` is any. The one with
    /// the most free addresses is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(extend("minProperties" = 1, "maxProperties" = 16)))]
    pub subnet_tags: Option<BTreeMap<String, String>>,
    /// Ids of the ENIs' security groups; when there are none, they have those of the node's primary ENI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(length(max = 16)))]
    pub security_groups: Option<Vec<String>>,
    /// Instead of ids: the security groups of the VPC with all of these tags; the value `*` is any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(extend("minProperties" = 1, "maxProperties" = 16)))]
    pub security_group_tags: Option<BTreeMap<String, String>>,
}

/// An ENIConfig, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EniConfig {
    /// Its name.
    pub name: String,
    /// Where ENIs are made.
    pub subnets: SubnetChoice,
    /// What guards them.
    pub security_groups: GroupChoice,
    /// What was ignored in it.
    pub notes: Vec<Problem>,
}

/// Which subnets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubnetChoice {
    /// These, at least one, each once, in this order.
    Ids(Vec<SubnetId>),
    /// Those with all of these tags, at least one; the value `*` is any.
    Tags(BTreeMap<String, String>),
}

/// Which security groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupChoice {
    /// Those of the primary ENI.
    OfPrimary,
    /// These, at least one, each once.
    Ids(Vec<SecurityGroupId>),
    /// Those with all of these tags, at least one; the value `*` is any.
    Tags(BTreeMap<String, String>),
}

/// What named a node's ENIConfig.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChosenBy {
    /// The label [`EXTERNAL_LABEL`].
    ExternalLabel,
    /// The annotation of this key.
    Annotation(String),
    /// The label of this key.
    Label(String),
    /// Nothing.
    Default,
}

/// A node's ENIConfig.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// Its name. Empty when what decides is there and empty: no object has that name.
    pub name: String,
    /// What named it.
    pub by: ChosenBy,
}

/// The keys that name a node's ENIConfig.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    /// `ENI_CONFIG_ANNOTATION_DEF`.
    pub annotation: String,
    /// `ENI_CONFIG_LABEL_DEF`.
    pub label: String,
}

// === impl EniConfig ===

impl EniConfig {
    /// Reads an object as the API server has it.
    ///
    /// # Errors
    /// All that is wrong, together: an ENI in half of what was meant would be in another network.
    pub fn parse(object: &Value) -> Result<Self, Vec<Problem>> {
        let mut notes = Vec::new();
        let name = name(object).map_err(|problem| vec![problem])?;
        let spec: EniConfigSpec =
            spec(object, FIELDS, &mut notes).map_err(|problem| vec![problem])?;
        let mut problems = Vec::new();
        let subnets = subnets(&spec, &mut problems);
        let security_groups = groups(&spec, &mut problems);
        match (subnets, security_groups) {
            (Some(subnets), Some(security_groups)) if problems.is_empty() => {
                Ok(Self { name, subnets, security_groups, notes })
            }
            _ => Err(problems),
        }
    }
}

fn subnets(spec: &EniConfigSpec, problems: &mut Vec<Problem>) -> Option<SubnetChoice> {
    let first = spec.subnet.iter().filter(|id| !id.trim().is_empty());
    let mut subnets: Vec<SubnetId> = ids("spec.subnet", first, problems);
    for problem in problems.iter_mut() {
        "spec.subnet".clone_into(&mut problem.field);
    }
    for id in ids("spec.subnets", spec.subnets.iter().flatten(), problems) {
        if !subnets.contains(&id) {
            subnets.push(id);
        }
    }
    match (&spec.subnet_tags, subnets.is_empty()) {
        (None, false) => Some(SubnetChoice::Ids(subnets)),
        (None, true) => {
            if problems.is_empty() {
                let message = "is missing; one of subnet, subnets, subnetTags is needed";
                problems.push(Problem::new("spec.subnet", message));
            }
            None
        }
        (Some(_), false) => {
            let message = "excludes spec.subnet and spec.subnets: leave one of them out";
            problems.push(Problem::new("spec.subnetTags", message));
            None
        }
        (Some(tags), true) => some_tags("spec.subnetTags", tags, problems).map(SubnetChoice::Tags),
    }
}

fn groups(spec: &EniConfigSpec, problems: &mut Vec<Problem>) -> Option<GroupChoice> {
    let items = spec.security_groups.iter().flatten();
    let found: Vec<SecurityGroupId> = ids("spec.securityGroups", items, problems);
    match (&spec.security_group_tags, found.is_empty()) {
        (None, true) => Some(GroupChoice::OfPrimary),
        (None, false) => Some(GroupChoice::Ids(found)),
        (Some(_), false) => {
            let message = "excludes spec.securityGroups: leave one of them out";
            problems.push(Problem::new("spec.securityGroupTags", message));
            None
        }
        (Some(tags), true) => {
            some_tags("spec.securityGroupTags", tags, problems).map(GroupChoice::Tags)
        }
    }
}

/// No tag at all would choose everything.
fn some_tags(
    field: &str,
    tags: &BTreeMap<String, String>,
    problems: &mut Vec<Problem>,
) -> Option<BTreeMap<String, String>> {
    if tags.is_empty() || tags.contains_key("") {
        problems.push(Problem::new(field, "needs at least one tag, each with a key"));
        return None;
    }
    Some(tags.clone())
}

// === impl Keys ===

impl Default for Keys {
    fn default() -> Self {
        Self { annotation: DEFAULT_KEY.to_owned(), label: DEFAULT_KEY.to_owned() }
    }
}

/// The ENIConfig of a node with these labels and annotations. What is there decides, though it be empty (aws-node's
/// `GetNodeSpecificENIConfigName`).
#[must_use]
pub fn chosen(labels: &Labels, annotations: &Labels, keys: &Keys) -> Chosen {
    let by =
        |name: Option<&String>, by: ChosenBy| name.map(|name| Chosen { name: name.clone(), by });
    by(labels.get(EXTERNAL_LABEL), ChosenBy::ExternalLabel)
        .or_else(|| {
            let key = &keys.annotation;
            by(annotations.get(key), ChosenBy::Annotation(key.clone()))
        })
        .or_else(|| by(labels.get(&keys.label), ChosenBy::Label(keys.label.clone())))
        .unwrap_or_else(|| Chosen { name: DEFAULT_NAME.to_owned(), by: ChosenBy::Default })
}

#[cfg(test)]
mod tests;
