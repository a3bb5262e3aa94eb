//! ResolvedSecurityGroup, `veni.dev/v1alpha1`: what the controller's leader has resolved, for the nodes to read.
//!
//! Written by the controller only. A group's rules, and once for all groups that name them the members of a group, are one
//! object or, when they are many, several parts, of which the first says what the others contain: a reader takes them only
//! together, and a change is written to the first and to the part that it is in. One object beside them is the leader's
//! [`Heartbeat`], so that a group that does not change is not written. What it means is `veni_security_groups::published`'s to
//! say.

#![cfg_attr(
    feature = "schema",
    expect(
        unreachable_pub,
        clippy::duplicated_attributes,
        reason = "KubeSchema copies a struct into a function; columns repeat what they have in common"
    )
)]

use serde::{Deserialize, Serialize};

/// The name of the object with the heartbeat.
pub const HEARTBEAT: &str = "heartbeat";

/// A part of a group or of its members, or the heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(kube::CustomResource, kube::KubeSchema))]
#[cfg_attr(
    feature = "schema",
    kube(
        group = "veni.dev",
        version = "v1alpha1",
        kind = "ResolvedSecurityGroup",
        root = "ResolvedSecurityGroupObject",
        plural = "resolvedsecuritygroups",
        singular = "resolvedsecuritygroup",
        shortname = "rsg",
        doc = "A security group as veni's controller read it from EC2. Written by the controller; nobody else need touch it.",
        printcolumn(name = "Group", type_ = "string", json_path = ".spec.group.id"),
        printcolumn(name = "State", type_ = "string", json_path = ".spec.group.state"),
        printcolumn(name = "Stale", type_ = "boolean", json_path = ".spec.group.stale"),
        printcolumn(
            name = "Parts",
            type_ = "integer",
            json_path = ".spec.group.parts",
            priority = 1
        )
    )
)]
#[cfg_attr(
    feature = "schema",
    x_kube(
        validation = Rule::new("has(self.heartbeat) != has(self.group)").message("one of heartbeat, group is needed")
    )
)]
#[serde(rename_all = "camelCase")]
pub struct ResolvedSecurityGroupSpec {
    /// That there is a leader, and that it vouches for what is published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<Heartbeat>,
    /// A group or the members of one, or a part of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupPart>,
}

/// That there is a leader.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct Heartbeat {
    /// Who it is.
    pub leader: String,
    /// When, seconds since 1970.
    pub at_secs: i64,
    /// When the next one is due, seconds later.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 3600)))]
    pub every_secs: u32,
}

/// A part of a group, or of its members.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub struct GroupPart {
    /// The group.
    pub id: String,
    /// Which part, from 0.
    pub part: u32,
    /// In part 0: of how many.
    pub parts: u32,
    /// Of what content.
    pub revision: String,
    /// In part 0: the revisions of the others, from 1, that belong to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revisions: Vec<String>,
    /// Whether it exists, or that these are members.
    pub state: State,
    /// It is as it was when the leader could read it last: nodes read it themselves.
    #[serde(default)]
    pub stale: bool,
    /// Its rules, prefix lists expanded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<PublishedRule>,
    /// The addresses of its members: in objects of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<String>,
}

/// Whether a group exists, or what else is said of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub enum State {
    /// It does.
    #[default]
    Resolved,
    /// EC2 says twice that it does not.
    Gone,
    /// Its members, for the groups whose rules name it.
    Members,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PublishedRule {
    /// Its id, `sgr-…`.
    pub id: String,
    /// Whether it allows out; else in.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub egress: bool,
    /// The IP protocol's number; none: every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 255)))]
    pub protocol: Option<u32>,
    /// First port; for ICMP type × 256 + code.
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 65535)))]
    pub first: u32,
    /// Last port.
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 65535)))]
    pub last: u32,
    /// With whom: a block of addresses,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cidr: Option<String>,
    /// or the members of a group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
}
