//! Messages between the plugin (and `venictl`) and ipamd: one JSON object a line over a unix socket.
//!
//! Invariants: unknown fields are ignored; a line above [`MAX_REQUEST_BYTES`] or [`MAX_REPLY_BYTES`] is refused;
//! fields are only ever added, so that a newer plugin talks to an older daemon and the other way round. Each side
//! states the range of versions it speaks; the highest common one is used.
//!
//! One connection carries one request and one reply. The plugin keeps the connection of an ADD open until the pod
//! is wired: while it is open, a second ADD, a DEL or a CHECK for the same attachment waits for it.

use std::{net::Ipv4Addr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    id::{ContainerId, EniId, IfName, NetworkName},
    net::Mac,
};

pub mod inspect;

/// The longest request, newline included: a GC that names the 737 pods of the largest node takes 80 KB.
pub const MAX_REQUEST_BYTES: usize = 256 * 1024;
/// The longest reply, newline included.
pub const MAX_REPLY_BYTES: usize = 8 * 1024 * 1024;
/// Where ipamd listens unless `VENI_SOCKET` says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/veni/ipamd.sock";
/// How long the plugin gives an ADD, waiting for its address and wiring the pod: longer than ipamd waits for the cloud
/// (`VENI_ADD_WAIT_SECS`, 20), shorter than the kubelet waits for the runtime (4 minutes). Past it, a plugin whose connection ipamd
/// has closed wires nothing.
///
/// The daemon that comes after one that answered keeps the address for as long. Plugin and daemon may be of different releases, so
/// this never grows from one release to the next: an older daemon would give away what a newer plugin wires.
pub const ADD_PATIENCE: Duration = Duration::from_secs(60);
/// The versions that this build speaks.
pub const VERSIONS: VersionRange = VersionRange { min: 1, max: 1 };

/// The protocol versions that a side speaks, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionRange {
    /// The oldest.
    pub min: u32,
    /// The newest.
    pub max: u32,
}

/// A request with the versions that its sender speaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// What the sender speaks.
    pub versions: VersionRange,
    /// What it wants.
    #[serde(flatten)]
    pub body: RequestBody,
}

/// What is asked of ipamd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum RequestBody {
    /// Allocate an address for an attachment, or return the one that it has.
    Add(AddRequest),
    /// Release an attachment's address. Succeeds when there is none.
    Del(DelRequest),
    /// What ipamd holds for an attachment, for CHECK. Never allocates.
    Check(CheckRequest),
    /// CNI GC: release everything of `network` that is not in `valid` (kernel evidence permitting).
    Gc(GcRequest),
    /// CNI STATUS: can an ADD be served now?
    Status,
    /// A view of the daemon's state.
    Inspect(inspect::Query),
}

/// The key of an allocation: CNI spec section 2, "an attachment is uniquely identified by" these three.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attachment {
    /// The network's name.
    pub network: NetworkName,
    /// The container.
    pub container_id: ContainerId,
    /// The interface inside it.
    pub ifname: IfName,
}

/// The pod that an attachment belongs to (`K8S_POD_*` of `CNI_ARGS`); empty outside Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PodRef {
    /// Its namespace.
    #[serde(default)]
    pub namespace: String,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its UID, where the runtime gives it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// See [`RequestBody::Add`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddRequest {
    /// The key.
    pub attachment: Attachment,
    /// Whose it is.
    #[serde(default)]
    pub pod: PodRef,
    /// The pod's network namespace, kept to tell a live pod from a dead one.
    pub netns: PathBuf,
    /// How long the sender is ready to wait for an address, milliseconds; the daemon's own bound applies when absent
    /// or longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_millis: Option<u64>,
}

/// See [`RequestBody::Del`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DelRequest {
    /// The key.
    pub attachment: Attachment,
    /// Why.
    #[serde(default)]
    pub reason: DelReason,
}

/// Why an address comes back. Unknown reasons (of a newer plugin) read as [`DelReason::PodDeleted`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DelReason {
    /// An ADD failed after the allocation and has undone its wiring: what is wired all the same, by another ADD, stays.
    AddFailed,
    /// The runtime called DEL.
    #[default]
    #[serde(other)]
    PodDeleted,
}

/// See [`RequestBody::Check`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckRequest {
    /// The key.
    pub attachment: Attachment,
}

/// See [`RequestBody::Gc`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcRequest {
    /// The network.
    pub network: NetworkName,
    /// The attachments that the runtime still has (`cni.dev/valid-attachments`).
    pub valid: Vec<ValidAttachment>,
}

/// One of the attachments that the runtime still has.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ValidAttachment {
    /// The container.
    pub container_id: ContainerId,
    /// The interface inside it.
    pub ifname: IfName,
}

/// The daemon's answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The version that the reply is in.
    pub version: u32,
    /// The outcome.
    #[serde(flatten)]
    pub body: ReplyBody,
}

/// What ipamd answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum ReplyBody {
    /// To Add, and to Check of a known attachment: how to wire the pod.
    Wiring(Box<Wiring>),
    /// To Del and Gc.
    Released(Released),
    /// To Status.
    Ready,
    /// To Inspect.
    Inspect(Box<inspect::View>),
    /// To anything.
    Error(WireError),
}

/// All that the plugin needs to wire a pod, with nothing left to choose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wiring {
    /// The pod's address; its length is always 32.
    pub address: Ipv4Addr,
    /// The on-link gateway inside the pod, 169.254.1.1.
    pub gateway: Ipv4Addr,
    /// The name of the veth on the node.
    pub host_ifname: IfName,
    /// Its interface index, chosen by ipamd: the filter's map already knows it.
    pub host_ifindex: u32,
    /// Its MAC: the gateway's permanent neighbour entry inside the pod.
    pub host_mac: Mac,
    /// The MAC of the interface inside the pod.
    pub pod_mac: Mac,
    /// The MTU of both ends.
    pub mtu: u32,
    /// The routing table of the pod's /32 route on the node.
    pub pod_table: u32,
    /// The source of what the node itself sends to the pod (the primary ENI's address).
    pub node_address: Ipv4Addr,
    /// The shared filter blocks for the host veth's clsact qdisc. Absent when the daemon runs without filters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<FilterBlocks>,
    /// The ENI that the address belongs to, for people.
    pub eni: EniId,
}

/// Indexes of the shared TC blocks (`TCA_INGRESS_BLOCK`, `TCA_EGRESS_BLOCK`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilterBlocks {
    /// What leaves the pod: ingress of the host veth.
    pub ingress: u32,
    /// What goes to the pod: egress of the host veth.
    pub egress: u32,
}

/// See [`ReplyBody::Released`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Released {
    /// The attachments that were released, with the host veth that may still be there.
    #[serde(default)]
    pub released: Vec<ReleasedAttachment>,
}

/// One released attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleasedAttachment {
    /// The key.
    pub attachment: Attachment,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its veth on the node.
    pub host_ifname: IfName,
}

/// A refusal: one line that a person can act on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireError {
    /// What kind.
    pub code: ErrorCode,
    /// What failed, with what value, and the next step.
    pub message: String,
}

/// Kinds of refusals. Unknown ones (of a newer daemon) read as [`ErrorCode::Internal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request could not be read, or is too long.
    BadRequest,
    /// No common protocol version.
    Version,
    /// No address within the wait; the message says why (subnet full, limit reached, throttled until, missing action).
    NoAddress,
    /// The attachment is unknown (CHECK).
    UnknownAttachment,
    /// Not ready: starting, or the pool is empty.
    NotReady,
    /// The state could not be made durable (disk full, I/O error): nothing was allocated.
    Storage,
    /// Anything else.
    #[serde(other)]
    Internal,
}

// === impl VersionRange ===

impl VersionRange {
    /// The highest version that both sides speak.
    #[must_use]
    pub fn common(self, other: Self) -> Option<u32> {
        let version = self.max.min(other.max);
        (version >= self.min.max(other.min)).then_some(version)
    }
}

// === impl Request ===

impl Request {
    /// A request in this build's versions.
    #[must_use]
    pub fn new(body: RequestBody) -> Self {
        Self { versions: VERSIONS, body }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_common_version_is_chosen() {
        let ours = VersionRange { min: 2, max: 4 };
        assert_eq!(ours.common(VersionRange { min: 1, max: 3 }), Some(3));
        assert_eq!(ours.common(VersionRange { min: 4, max: 9 }), Some(4));
        assert_eq!(ours.common(VersionRange { min: 5, max: 9 }), None);
    }

    #[test]
    fn unknown_fields_are_ignored_and_unknown_error_codes_read_as_internal() {
        let request: Request = serde_json::from_str(
            r#"{"versions":{"min":1,"max":7,"x":1},"op":"status","extra":true}"#,
        )
        .unwrap();
        assert_eq!(request.body, RequestBody::Status);
        let reply: Reply = serde_json::from_str(
            r#"{"version":1,"result":"error","code":"from_the_future","message":"m"}"#,
        )
        .unwrap();
        assert_eq!(
            reply.body,
            ReplyBody::Error(WireError { code: ErrorCode::Internal, message: "m".into() })
        );
        let reason = |text: &str| serde_json::from_str::<DelReason>(text).unwrap();
        assert_eq!(reason(r#""from_the_future""#), DelReason::PodDeleted);
        assert_eq!(reason(r#""add_failed""#), DelReason::AddFailed);
        assert_eq!(serde_json::to_string(&DelReason::PodDeleted).unwrap(), r#""pod_deleted""#);
    }
}
