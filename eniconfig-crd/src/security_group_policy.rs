//! SecurityGroupPolicy, `vpcresources.k8s.aws/v1beta1`: its definition, for clusters that do not have it.
//!
//! EKS installs it with its control plane. What an object means is `veni_policy::object`'s to say.

#![cfg(feature = "schema")]

use serde::{Deserialize, Serialize};

use crate::LabelSelector;

/// Gives security groups to the pods that it selects.
#[derive(
    Debug, Clone, Default, Serialize, Deserialize, kube::CustomResource, schemars::JsonSchema,
)]
#[kube(
    group = "vpcresources.k8s.aws",
    version = "v1beta1",
    kind = "SecurityGroupPolicy",
    root = "SecurityGroupPolicyObject",
    plural = "securitygrouppolicies",
    singular = "securitygrouppolicy",
    shortname = "sgp",
    namespaced,
    doc = "Gives security groups to the pods that it selects.",
    printcolumn(
        name = "Security-Group-Ids",
        type_ = "string",
        json_path = ".spec.securityGroups.groupIds",
        description = "The security groups of the pods that match this policy"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct SecurityGroupPolicySpec {
    /// The pods of its namespace; an empty selector is all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// Their service accounts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_selector: Option<LabelSelector>,
    /// What they get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub security_groups: Option<SecurityGroups>,
}

/// Security groups.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecurityGroups {
    /// Their ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16))]
    pub group_ids: Option<Vec<String>>,
}
