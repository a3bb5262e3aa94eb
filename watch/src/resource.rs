//! What is watched, and where the API server has it.

use std::fmt;

use serde_json::Value;
use veni_policy::object::Kind;

/// A collection of objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Resource {
    /// Namespaces.
    Namespaces,
    /// Pods of all nodes: peers are selected by their labels.
    Pods,
    /// Services.
    Services,
    /// EndpointSlices.
    EndpointSlices,
    /// NetworkPolicies.
    NetworkPolicies,
    /// ClusterNetworkPolicies.
    ClusterNetworkPolicies,
    /// SecurityGroupPolicies.
    SecurityGroupPolicies,
    /// This node.
    OwnNode,
    /// The other nodes, which are wanted only where a ClusterNetworkPolicy selects nodes: each reports its state every
    /// few minutes, at length.
    OtherNodes,
    /// ENIConfigs.
    EniConfigs,
    /// NodeNetworkConfigs.
    NodeNetworkConfigs,
    /// ServiceCIDRs: where Services' addresses are.
    ServiceCidrs,
}

impl Resource {
    /// Those that policy needs to know in whole before it is in force.
    pub(crate) const OF_POLICY: [Self; 7] = [
        Self::Namespaces,
        Self::Pods,
        Self::Services,
        Self::EndpointSlices,
        Self::NetworkPolicies,
        Self::ClusterNetworkPolicies,
        Self::SecurityGroupPolicies,
    ];

    /// All, for the chart's role.
    pub const ALL: [Self; 12] = [
        Self::Namespaces,
        Self::Pods,
        Self::Services,
        Self::EndpointSlices,
        Self::NetworkPolicies,
        Self::ClusterNetworkPolicies,
        Self::SecurityGroupPolicies,
        Self::OwnNode,
        Self::OtherNodes,
        Self::EniConfigs,
        Self::NodeNetworkConfigs,
        Self::ServiceCidrs,
    ];

    /// API group (empty for the core), version, name in paths, kind.
    const fn names(self) -> (&'static str, &'static str, &'static str, &'static str) {
        match self {
            Self::Namespaces => ("", "v1", "namespaces", "Namespace"),
            Self::Pods => ("", "v1", "pods", "Pod"),
            Self::Services => ("", "v1", "services", "Service"),
            Self::EndpointSlices => ("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice"),
            Self::NetworkPolicies => {
                ("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
            }
            Self::ClusterNetworkPolicies => (
                "policy.networking.k8s.io",
                "v1alpha2",
                "clusternetworkpolicies",
                "ClusterNetworkPolicy",
            ),
            Self::SecurityGroupPolicies => {
                ("vpcresources.k8s.aws", "v1beta1", "securitygrouppolicies", "SecurityGroupPolicy")
            }
            Self::OwnNode | Self::OtherNodes => ("", "v1", "nodes", "Node"),
            Self::EniConfigs => ("crd.k8s.amazonaws.com", "v1alpha1", "eniconfigs", "ENIConfig"),
            Self::NodeNetworkConfigs => {
                ("veni.dev", "v1alpha1", "nodenetworkconfigs", "NodeNetworkConfig")
            }
            Self::ServiceCidrs => ("networking.k8s.io", "v1", "servicecidrs", "ServiceCIDR"),
        }
    }

    /// Its API group; empty for the core.
    #[must_use]
    pub const fn group(self) -> &'static str {
        self.names().0
    }

    /// Its name in paths and roles.
    #[must_use]
    pub const fn plural(self) -> &'static str {
        self.names().2
    }

    /// The kind of its objects.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        self.names().3
    }

    /// `apiVersion` of its objects.
    #[must_use]
    pub fn api_version(self) -> String {
        let (group, version, ..) = self.names();
        if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
    }

    /// Where the API server has it.
    #[must_use]
    pub fn path(self) -> String {
        let root = if self.group().is_empty() { "api" } else { "apis" };
        format!("/{root}/{}/{}", self.api_version(), self.plural())
    }

    /// What of it is asked for, where it is not all.
    pub(crate) fn field_selector(self, node: &str) -> Option<String> {
        match self {
            Self::OwnNode => Some(format!("metadata.name%3D{node}")),
            Self::OtherNodes => Some(format!("metadata.name%21%3D{node}")),
            _ => None,
        }
    }

    /// Whether it is defined by a CustomResourceDefinition: where there is none there are no such objects.
    #[must_use]
    pub const fn is_custom(self) -> bool {
        matches!(
            self,
            Self::ClusterNetworkPolicies
                | Self::SecurityGroupPolicies
                | Self::EniConfigs
                | Self::NodeNetworkConfigs
        )
    }

    /// Whether an API server may well not have it: custom ones, and ServiceCIDRs, which came with 1.33.
    pub(crate) const fn may_be_missing(self) -> bool {
        self.is_custom() || matches!(self, Self::ServiceCidrs)
    }

    /// What to do about one that there is not.
    pub(crate) const fn where_missing(self) -> &'static str {
        match self {
            Self::ServiceCidrs => "set VENI_SERVICE_CIDRS to the cluster's Service range",
            _ => "install its CustomResourceDefinition if there should be any",
        }
    }

    /// An object of it that says what it is: the items of a list do not.
    pub(crate) fn named(self, mut object: Value) -> Value {
        if let Some(fields) = object.as_object_mut() {
            fields.entry("apiVersion").or_insert_with(|| self.api_version().into());
            fields.entry("kind").or_insert_with(|| self.kind().into());
        }
        object
    }

    /// What policy calls its objects; `None` for what is not policy's.
    #[must_use]
    pub const fn policy_kind(self) -> Option<Kind> {
        match self {
            Self::Namespaces => Some(Kind::Namespace),
            Self::Pods => Some(Kind::Pod),
            Self::Services => Some(Kind::Service),
            Self::EndpointSlices => Some(Kind::EndpointSlice),
            Self::NetworkPolicies => Some(Kind::NetworkPolicy),
            Self::ClusterNetworkPolicies => Some(Kind::ClusterNetworkPolicy),
            Self::SecurityGroupPolicies => Some(Kind::SecurityGroupPolicy),
            Self::OwnNode | Self::OtherNodes => Some(Kind::Node),
            Self::EniConfigs | Self::NodeNetworkConfigs | Self::ServiceCidrs => None,
        }
    }
}

/// As `kubectl` and roles name it, e.g. `networkpolicies.networking.k8s.io`.
impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.plural())?;
        if self.group().is_empty() { Ok(()) } else { write!(f, ".{}", self.group()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_the_api_servers() {
        let check = |resource: Resource, path: &str, name: &str| {
            assert_eq!((resource.path().as_str(), resource.to_string().as_str()), (path, name));
        };
        check(Resource::Pods, "/api/v1/pods", "pods");
        check(Resource::OwnNode, "/api/v1/nodes", "nodes");
        check(
            Resource::NetworkPolicies,
            "/apis/networking.k8s.io/v1/networkpolicies",
            "networkpolicies.networking.k8s.io",
        );
        check(
            Resource::EniConfigs,
            "/apis/crd.k8s.amazonaws.com/v1alpha1/eniconfigs",
            "eniconfigs.crd.k8s.amazonaws.com",
        );
    }
}
