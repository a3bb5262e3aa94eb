//! The [`Cloud`] trait and what it speaks of: the EC2 calls and the instance metadata that ipamd needs.
//!
//! Implementations do not retry calls that are not idempotent (`AssignPrivateIpAddresses` without a token): an
//! unknown outcome is [`ErrorClass::Transient`](crate::ErrorClass::Transient) and the caller looks first.

use std::{collections::BTreeMap, future::Future, net::Ipv4Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use veni_core::{
    id::{
        AttachmentId, EniId, InstanceId, InstanceType, PrefixListId, SecurityGroupId, SubnetId,
        VpcId,
    },
    limits::InstanceLimits,
    net::{Ipv4Prefix, Mac},
};

use crate::{CloudError, GroupMember, PrefixList, SecurityGroup, SecurityGroupRule};

/// The tag by which an ENI is known as this instance's (value: the instance id).
pub const TAG_INSTANCE_ID: &str = "node.k8s.amazonaws.com/instance_id";
/// The tag with an ENI's time of creation, RFC 3339.
pub const TAG_CREATED_AT: &str = "node.k8s.amazonaws.com/createdAt";
/// The tag that keeps our hands off an ENI.
pub const TAG_NO_MANAGE: &str = "node.k8s.amazonaws.com/no_manage";
/// The tag with the cluster's name.
pub const TAG_CLUSTER: &str = "cluster.k8s.amazonaws.com/name";
/// The tag that says who made an ENI in an EKS cluster (value `amazon-vpc-cni`, which EKS's own clean-up looks for).
pub const TAG_OWNER: &str = "eks:eni:owner";

/// The result of a cloud call.
pub type CloudResult<T> = Result<T, CloudError>;

/// Who and where this instance is (instance metadata; it does not change while the instance runs).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceIdentity {
    /// The instance.
    pub instance_id: InstanceId,
    /// Its type.
    pub instance_type: InstanceType,
    /// Its region, e.g. `eu-central-1`.
    pub region: String,
    /// Its availability zone, e.g. `eu-central-1a`.
    pub availability_zone: String,
    /// The primary ENI's MAC.
    pub primary_mac: Mac,
    /// The primary ENI's address.
    pub local_ipv4: Ipv4Addr,
}

/// An ENI as instance metadata shows it. Metadata lags behind EC2, can omit ENIs and addresses for a while: a hint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetadataInterface {
    /// Its MAC.
    pub mac: Mac,
    /// Its id.
    pub id: EniId,
    /// Its place on the network card.
    pub device_index: u8,
    /// Its card.
    pub network_card: u8,
    /// Its subnet.
    pub subnet_id: SubnetId,
    /// The subnet's CIDR.
    pub subnet_cidr: Ipv4Prefix,
    /// Its VPC.
    pub vpc_id: VpcId,
    /// The VPC's CIDRs.
    pub vpc_cidrs: Vec<Ipv4Prefix>,
    /// Its security groups.
    pub security_groups: Vec<SecurityGroupId>,
    /// Its addresses, the primary first.
    pub addresses: Vec<Ipv4Addr>,
    /// Its delegated prefixes.
    pub prefixes: Vec<Ipv4Prefix>,
}

/// An ENI as EC2 describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its id.
    pub id: EniId,
    /// Its MAC.
    pub mac: Mac,
    /// Its subnet.
    pub subnet_id: SubnetId,
    /// Its VPC.
    pub vpc_id: VpcId,
    /// Its own address.
    pub primary_address: Ipv4Addr,
    /// Its secondary addresses.
    pub secondary_addresses: Vec<Ipv4Addr>,
    /// Its delegated /28 prefixes.
    pub prefixes: Vec<Ipv4Prefix>,
    /// Its security groups.
    pub security_groups: Vec<SecurityGroupId>,
    /// Where it is in its life.
    pub status: InterfaceStatus,
    /// What it is attached to.
    pub attachment: Option<InterfaceAttachment>,
    /// What kind it is: `interface`, `trunk`, `branch`, `efa`, `efa-only`…
    pub interface_type: String,
    /// Its description.
    pub description: String,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// `NetworkInterface.Status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InterfaceStatus {
    /// Not attached.
    Available,
    /// On its way to an instance.
    Attaching,
    /// Attached.
    InUse,
    /// On its way from an instance.
    Detaching,
    /// Being made.
    Pending,
}

/// `NetworkInterface.Attachment`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceAttachment {
    /// Its id.
    pub id: AttachmentId,
    /// The instance.
    pub instance_id: InstanceId,
    /// The place on the card.
    pub device_index: u8,
    /// The card.
    pub network_card: u8,
    /// Whether the ENI goes when the instance goes.
    pub delete_on_termination: bool,
}

/// Which ENIs to describe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InterfaceFilter {
    /// Those attached to an instance.
    AttachedTo(InstanceId),
    /// These. An unknown id is `NotFound`, as in EC2.
    Ids(Vec<EniId>),
    /// Unattached ones (`available`) with this tag and value.
    AvailableWithTag {
        /// The tag's key.
        key: String,
        /// The tag's value.
        value: String,
    },
}

/// `CreateNetworkInterface`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateInterface {
    /// Where.
    pub subnet_id: SubnetId,
    /// Its security groups.
    pub security_groups: Vec<SecurityGroupId>,
    /// How many secondary addresses it gets at once.
    pub secondary_addresses: u32,
    /// How many /28 prefixes it gets at once. EC2 refuses both.
    pub prefixes: u32,
    /// `aws-K8S-<instance-id>`.
    pub description: String,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Makes the call idempotent: the same token returns the same ENI. At most 64 ASCII characters.
    pub client_token: String,
}

/// `AttachNetworkInterface`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachInterface {
    /// Which ENI.
    pub eni: EniId,
    /// To what.
    pub instance: InstanceId,
    /// The place on the card.
    pub device_index: u8,
    /// The card.
    pub network_card: u8,
}

/// A subnet (`DescribeSubnets`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// Its id.
    pub id: SubnetId,
    /// Its VPC.
    pub vpc_id: VpcId,
    /// Its zone.
    pub availability_zone: String,
    /// Its CIDR.
    pub cidr: Ipv4Prefix,
    /// Addresses left.
    pub available_addresses: u32,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// Which subnets to describe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubnetFilter {
    /// These.
    Ids(Vec<SubnetId>),
    /// Those of a VPC in a zone.
    InZone {
        /// The VPC.
        vpc_id: VpcId,
        /// The zone.
        availability_zone: String,
    },
}

/// The cloud: EC2's network interfaces and this instance's metadata. Cheap to call concurrently.
///
/// Every method fails with a [`CloudError`] whose class says what to do next.
pub trait Cloud: Send + Sync + 'static {
    /// Instance metadata: who and where this instance is.
    fn identity(&self) -> impl Future<Output = CloudResult<InstanceIdentity>> + Send;
    /// Instance metadata: the attached ENIs, as far as metadata knows.
    fn metadata_interfaces(
        &self,
    ) -> impl Future<Output = CloudResult<Vec<MetadataInterface>>> + Send;

    /// `DescribeNetworkInterfaces`, all pages.
    fn describe_interfaces(
        &self,
        filter: InterfaceFilter,
    ) -> impl Future<Output = CloudResult<Vec<Interface>>> + Send;
    /// `DescribeSubnets`, all pages.
    fn describe_subnets(
        &self,
        filter: SubnetFilter,
    ) -> impl Future<Output = CloudResult<Vec<Subnet>>> + Send;
    /// `DescribeInstanceTypes` of one type.
    fn describe_instance_type(
        &self,
        instance_type: &InstanceType,
    ) -> impl Future<Output = CloudResult<InstanceLimits>> + Send;

    /// `CreateNetworkInterface`, idempotent by its token.
    fn create_interface(
        &self,
        request: CreateInterface,
    ) -> impl Future<Output = CloudResult<Interface>> + Send;
    /// `AttachNetworkInterface`. Answers while the attachment is still under way.
    fn attach_interface(
        &self,
        request: AttachInterface,
    ) -> impl Future<Output = CloudResult<AttachmentId>> + Send;
    /// `ModifyNetworkInterfaceAttribute`: the ENI goes when the instance goes.
    fn set_delete_on_termination(
        &self,
        eni: &EniId,
        attachment: &AttachmentId,
    ) -> impl Future<Output = CloudResult<()>> + Send;
    /// `ModifyNetworkInterfaceAttribute`: replaces the security groups.
    fn set_security_groups(
        &self,
        eni: &EniId,
        groups: &[SecurityGroupId],
    ) -> impl Future<Output = CloudResult<()>> + Send;
    /// `DetachNetworkInterface`. Answers while the detachment is still under way.
    fn detach_interface(
        &self,
        attachment: &AttachmentId,
    ) -> impl Future<Output = CloudResult<()>> + Send;
    /// `DeleteNetworkInterface`. `Invalid` (`InvalidParameterValue`, "in use") while it is attached or detaching.
    fn delete_interface(&self, eni: &EniId) -> impl Future<Output = CloudResult<()>> + Send;
    /// `AssignPrivateIpAddresses` by count: exactly the new addresses. All or nothing.
    fn assign_addresses(
        &self,
        eni: &EniId,
        count: u32,
    ) -> impl Future<Output = CloudResult<Vec<Ipv4Addr>>> + Send;
    /// `UnassignPrivateIpAddresses`. All or nothing: `Invalid` when one of them is not a secondary address of the ENI.
    fn unassign_addresses(
        &self,
        eni: &EniId,
        addresses: &[Ipv4Addr],
    ) -> impl Future<Output = CloudResult<()>> + Send;
    /// `CreateTags`.
    fn create_tags(
        &self,
        eni: &EniId,
        tags: &BTreeMap<String, String>,
    ) -> impl Future<Output = CloudResult<()>> + Send;

    /// `DescribeSecurityGroupRules` of these groups, all pages, in both directions. A group that does not exist has
    /// no rules: a filter names nobody who has to be there. This method and the next three take as many ids as EC2
    /// takes values in a filter, [`FILTER_VALUES`](crate::security_group::FILTER_VALUES); `Invalid` beyond.
    fn describe_security_group_rules(
        &self,
        groups: &[SecurityGroupId],
    ) -> impl Future<Output = CloudResult<Vec<SecurityGroupRule>>> + Send;
    /// `DescribeSecurityGroups`, all pages: those of these groups that exist. Tells a group without rules from one
    /// that is not there.
    fn describe_security_groups(
        &self,
        groups: &[SecurityGroupId],
    ) -> impl Future<Output = CloudResult<Vec<SecurityGroup>>> + Send;
    /// `DescribeSecurityGroups`, all pages: the groups of a VPC with all of these tags, at least one; the value
    /// [`ANY_VALUE`](crate::security_group::ANY_VALUE) is any. No tag finds no group.
    fn find_security_groups(
        &self,
        vpc_id: &VpcId,
        tags: &BTreeMap<String, String>,
    ) -> impl Future<Output = CloudResult<Vec<SecurityGroup>>> + Send;
    /// `DescribeNetworkInterfaces` by group, all pages: every ENI that carries one of these groups, as far as the
    /// account sees it, each once.
    fn describe_group_members(
        &self,
        groups: &[SecurityGroupId],
    ) -> impl Future<Output = CloudResult<Vec<GroupMember>>> + Send;
    /// `DescribeManagedPrefixLists`, all pages: those of these lists that exist, with their versions.
    fn describe_prefix_lists(
        &self,
        lists: &[PrefixListId],
    ) -> impl Future<Output = CloudResult<Vec<PrefixList>>> + Send;
    /// `GetManagedPrefixListEntries`, all pages, of a version or of the newest one. `NotFound` for an unknown list.
    fn prefix_list_entries(
        &self,
        list: &PrefixListId,
        version: Option<u64>,
    ) -> impl Future<Output = CloudResult<Vec<IpNet>>> + Send;
}
