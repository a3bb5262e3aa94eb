//! The [`Cloud`] trait as data: one [`Call`] a method, and its [`Answer`].
//!
//! What carries a call (the simulator, a socket) implements [`Transport`] and is thereby a [`Cloud`]; [`dispatch`]
//! goes the other way. So no carrier repeats the trait's methods.

use std::{collections::BTreeMap, future::Future, net::Ipv4Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use veni_core::{
    id::{AttachmentId, EniId, InstanceType, PrefixListId, SecurityGroupId, VpcId},
    limits::InstanceLimits,
};

use crate::{
    AttachInterface, Cloud, CloudError, CloudResult, CreateInterface, ErrorClass, GroupMember,
    InstanceIdentity, Interface, InterfaceFilter, MetadataInterface, PrefixList, SecurityGroup,
    SecurityGroupRule, Subnet, SubnetFilter,
};

/// A call of a [`Cloud`] method with its arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// [`Cloud::identity`].
    Identity,
    /// [`Cloud::metadata_interfaces`].
    MetadataInterfaces,
    /// [`Cloud::describe_interfaces`].
    DescribeInterfaces(InterfaceFilter),
    /// [`Cloud::describe_subnets`].
    DescribeSubnets(SubnetFilter),
    /// [`Cloud::describe_instance_type`].
    DescribeInstanceType(InstanceType),
    /// [`Cloud::create_interface`].
    CreateInterface(CreateInterface),
    /// [`Cloud::attach_interface`].
    AttachInterface(AttachInterface),
    /// [`Cloud::set_delete_on_termination`].
    SetDeleteOnTermination {
        /// Which ENI.
        eni: EniId,
        /// Its attachment.
        attachment: AttachmentId,
    },
    /// [`Cloud::set_security_groups`].
    SetSecurityGroups {
        /// Which ENI.
        eni: EniId,
        /// All its groups from now on.
        groups: Vec<SecurityGroupId>,
    },
    /// [`Cloud::detach_interface`].
    DetachInterface(AttachmentId),
    /// [`Cloud::delete_interface`].
    DeleteInterface(EniId),
    /// [`Cloud::assign_addresses`].
    AssignAddresses {
        /// Which ENI.
        eni: EniId,
        /// How many more.
        count: u32,
    },
    /// [`Cloud::unassign_addresses`].
    UnassignAddresses {
        /// Which ENI.
        eni: EniId,
        /// Which addresses.
        addresses: Vec<Ipv4Addr>,
    },
    /// [`Cloud::create_tags`].
    CreateTags {
        /// Which ENI.
        eni: EniId,
        /// The tags to add or to overwrite.
        tags: BTreeMap<String, String>,
    },
    /// [`Cloud::describe_security_group_rules`].
    DescribeSecurityGroupRules(Vec<SecurityGroupId>),
    /// [`Cloud::describe_security_groups`].
    DescribeSecurityGroups(Vec<SecurityGroupId>),
    /// [`Cloud::find_security_groups`].
    FindSecurityGroups {
        /// In which VPC.
        vpc_id: VpcId,
        /// With which tags.
        tags: BTreeMap<String, String>,
    },
    /// [`Cloud::describe_group_members`].
    DescribeGroupMembers(Vec<SecurityGroupId>),
    /// [`Cloud::describe_prefix_lists`].
    DescribePrefixLists(Vec<PrefixListId>),
    /// [`Cloud::prefix_list_entries`].
    PrefixListEntries {
        /// Which list.
        list: PrefixListId,
        /// As of which version; `None`: the newest.
        version: Option<u64>,
    },
}

/// What a [`Call`] answers with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Call::Identity`].
    Identity(Box<InstanceIdentity>),
    /// To [`Call::MetadataInterfaces`].
    MetadataInterfaces(Vec<MetadataInterface>),
    /// To [`Call::DescribeInterfaces`].
    Interfaces(Vec<Interface>),
    /// To [`Call::DescribeSubnets`].
    Subnets(Vec<Subnet>),
    /// To [`Call::DescribeInstanceType`].
    InstanceType(InstanceLimits),
    /// To [`Call::CreateInterface`].
    Interface(Box<Interface>),
    /// To [`Call::AttachInterface`].
    Attachment(AttachmentId),
    /// To [`Call::AssignAddresses`].
    Addresses(Vec<Ipv4Addr>),
    /// To every call that answers nothing.
    Done,
    /// To [`Call::DescribeSecurityGroupRules`].
    SecurityGroupRules(Vec<SecurityGroupRule>),
    /// To [`Call::DescribeSecurityGroups`] and [`Call::FindSecurityGroups`].
    SecurityGroups(Vec<SecurityGroup>),
    /// To [`Call::DescribeGroupMembers`].
    GroupMembers(Vec<GroupMember>),
    /// To [`Call::DescribePrefixLists`].
    PrefixLists(Vec<PrefixList>),
    /// To [`Call::PrefixListEntries`].
    PrefixListEntries(Vec<IpNet>),
}

/// A [`CloudError`] without its action, which the caller knows: what travels, and what a fault rule names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What it means for the caller.
    pub class: ErrorClass,
    /// The cloud's own code.
    pub code: String,
    /// The cloud's own words.
    pub message: String,
}

/// The instance metadata path that [`Call::Identity`] stands for.
pub const ACTION_IDENTITY: &str = "metadata:instance-identity/document";
/// The instance metadata path that [`Call::MetadataInterfaces`] stands for.
pub const ACTION_METADATA_INTERFACES: &str = "metadata:network/interfaces/macs";

/// The action of every [`Call`], each once.
pub const ACTIONS: [&str; 17] = [
    ACTION_IDENTITY,
    ACTION_METADATA_INTERFACES,
    "DescribeNetworkInterfaces",
    "DescribeSubnets",
    "DescribeInstanceTypes",
    "CreateNetworkInterface",
    "AttachNetworkInterface",
    "ModifyNetworkInterfaceAttribute",
    "DetachNetworkInterface",
    "DeleteNetworkInterface",
    "AssignPrivateIpAddresses",
    "UnassignPrivateIpAddresses",
    "CreateTags",
    "DescribeSecurityGroupRules",
    "DescribeSecurityGroups",
    "DescribeManagedPrefixLists",
    "GetManagedPrefixListEntries",
];

/// How EC2 and this crate's simulator count an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionClass {
    /// Instance metadata: not an EC2 call at all.
    Metadata,
    /// `Describe…` and `Get…`.
    Describe,
    /// Everything else.
    Mutating,
}

/// Something that carries a [`Call`] to a cloud and its [`Answer`] back. Whoever implements it is a [`Cloud`].
pub trait Transport: Send + Sync + 'static {
    /// Carries one call.
    ///
    /// # Errors
    /// As the [`Cloud`] method that the call stands for.
    fn carry(&self, call: Call) -> impl Future<Output = CloudResult<Answer>> + Send;
}

// === impl Call ===

impl Call {
    /// The EC2 action, or the metadata path, as [`CloudError::action`] and fault rules name it.
    #[must_use]
    pub fn action(&self) -> &'static str {
        match self {
            Self::Identity => ACTION_IDENTITY,
            Self::MetadataInterfaces => ACTION_METADATA_INTERFACES,
            Self::DescribeInterfaces(_) | Self::DescribeGroupMembers(_) => {
                "DescribeNetworkInterfaces"
            }
            Self::DescribeSubnets(_) => "DescribeSubnets",
            Self::DescribeInstanceType(_) => "DescribeInstanceTypes",
            Self::CreateInterface(_) => "CreateNetworkInterface",
            Self::AttachInterface(_) => "AttachNetworkInterface",
            Self::SetDeleteOnTermination { .. } | Self::SetSecurityGroups { .. } => {
                "ModifyNetworkInterfaceAttribute"
            }
            Self::DetachInterface(_) => "DetachNetworkInterface",
            Self::DeleteInterface(_) => "DeleteNetworkInterface",
            Self::AssignAddresses { .. } => "AssignPrivateIpAddresses",
            Self::UnassignAddresses { .. } => "UnassignPrivateIpAddresses",
            Self::CreateTags { .. } => "CreateTags",
            Self::DescribeSecurityGroupRules(_) => "DescribeSecurityGroupRules",
            Self::DescribeSecurityGroups(_) | Self::FindSecurityGroups { .. } => {
                "DescribeSecurityGroups"
            }
            Self::DescribePrefixLists(_) => "DescribeManagedPrefixLists",
            Self::PrefixListEntries { .. } => "GetManagedPrefixListEntries",
        }
    }

    /// Whether it reads metadata, describes or changes something.
    #[must_use]
    pub fn class(&self) -> ActionClass {
        match self {
            Self::Identity | Self::MetadataInterfaces => ActionClass::Metadata,
            Self::DescribeInterfaces(_)
            | Self::DescribeSubnets(_)
            | Self::DescribeInstanceType(_)
            | Self::DescribeSecurityGroupRules(_)
            | Self::DescribeSecurityGroups(_)
            | Self::FindSecurityGroups { .. }
            | Self::DescribeGroupMembers(_)
            | Self::DescribePrefixLists(_)
            | Self::PrefixListEntries { .. } => ActionClass::Describe,
            _ => ActionClass::Mutating,
        }
    }
}

// === impl Failure ===

impl Failure {
    /// A failure of `class`.
    #[must_use]
    pub fn new(class: ErrorClass, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { class, code: code.into(), message: message.into() }
    }

    /// The error of a call of `action`.
    #[must_use]
    pub fn of(self, action: &'static str) -> CloudError {
        CloudError::new(action, self.class, self.code, self.message)
    }
}

impl From<CloudError> for Failure {
    fn from(error: CloudError) -> Self {
        Self { class: error.class, code: error.code, message: error.message }
    }
}

/// Calls the method of `cloud` that `call` stands for.
///
/// # Errors
/// As the method.
pub async fn dispatch(cloud: &impl Cloud, call: Call) -> CloudResult<Answer> {
    let done = |()| Answer::Done;
    match call {
        Call::Identity => cloud.identity().await.map(|id| Answer::Identity(Box::new(id))),
        Call::MetadataInterfaces => {
            cloud.metadata_interfaces().await.map(Answer::MetadataInterfaces)
        }
        Call::DescribeInterfaces(filter) => {
            cloud.describe_interfaces(filter).await.map(Answer::Interfaces)
        }
        Call::DescribeSubnets(filter) => cloud.describe_subnets(filter).await.map(Answer::Subnets),
        Call::DescribeInstanceType(kind) => {
            cloud.describe_instance_type(&kind).await.map(Answer::InstanceType)
        }
        Call::CreateInterface(request) => cloud
            .create_interface(request)
            .await
            .map(|interface| Answer::Interface(Box::new(interface))),
        Call::AttachInterface(request) => {
            cloud.attach_interface(request).await.map(Answer::Attachment)
        }
        Call::SetDeleteOnTermination { eni, attachment } => {
            cloud.set_delete_on_termination(&eni, &attachment).await.map(done)
        }
        Call::SetSecurityGroups { eni, groups } => {
            cloud.set_security_groups(&eni, &groups).await.map(done)
        }
        Call::DetachInterface(attachment) => cloud.detach_interface(&attachment).await.map(done),
        Call::DeleteInterface(eni) => cloud.delete_interface(&eni).await.map(done),
        Call::AssignAddresses { eni, count } => {
            cloud.assign_addresses(&eni, count).await.map(Answer::Addresses)
        }
        Call::UnassignAddresses { eni, addresses } => {
            cloud.unassign_addresses(&eni, &addresses).await.map(done)
        }
        Call::CreateTags { eni, tags } => cloud.create_tags(&eni, &tags).await.map(done),
        Call::DescribeSecurityGroupRules(groups) => {
            cloud.describe_security_group_rules(&groups).await.map(Answer::SecurityGroupRules)
        }
        Call::DescribeSecurityGroups(groups) => {
            cloud.describe_security_groups(&groups).await.map(Answer::SecurityGroups)
        }
        Call::FindSecurityGroups { vpc_id, tags } => {
            cloud.find_security_groups(&vpc_id, &tags).await.map(Answer::SecurityGroups)
        }
        Call::DescribeGroupMembers(groups) => {
            cloud.describe_group_members(&groups).await.map(Answer::GroupMembers)
        }
        Call::DescribePrefixLists(lists) => {
            cloud.describe_prefix_lists(&lists).await.map(Answer::PrefixLists)
        }
        Call::PrefixListEntries { list, version } => {
            cloud.prefix_list_entries(&list, version).await.map(Answer::PrefixListEntries)
        }
    }
}

/// The error for an answer that does not fit its call: the other side speaks another version, the effect is unknown.
fn misfit<T>(action: &'static str) -> CloudResult<T> {
    Err(CloudError::new(
        action,
        ErrorClass::Transient,
        "MalformedAnswer",
        "the answer does not fit the call",
    ))
}

/// Carries a call and unwraps the one variant that answers it.
macro_rules! carry {
    ($self:ident, $call:expr, $answer:pat => $value:expr) => {{
        let call = $call;
        let action = call.action();
        match $self.carry(call).await? {
            $answer => Ok($value),
            _ => misfit(action),
        }
    }};
}

impl<T: Transport> Cloud for T {
    async fn identity(&self) -> CloudResult<InstanceIdentity> {
        carry!(self, Call::Identity, Answer::Identity(identity) => *identity)
    }

    async fn metadata_interfaces(&self) -> CloudResult<Vec<MetadataInterface>> {
        carry!(self, Call::MetadataInterfaces, Answer::MetadataInterfaces(interfaces) => interfaces)
    }

    async fn describe_interfaces(&self, filter: InterfaceFilter) -> CloudResult<Vec<Interface>> {
        carry!(self, Call::DescribeInterfaces(filter), Answer::Interfaces(interfaces) => interfaces)
    }

    async fn describe_subnets(&self, filter: SubnetFilter) -> CloudResult<Vec<Subnet>> {
        carry!(self, Call::DescribeSubnets(filter), Answer::Subnets(subnets) => subnets)
    }

    async fn describe_instance_type(
        &self,
        instance_type: &InstanceType,
    ) -> CloudResult<InstanceLimits> {
        carry!(self, Call::DescribeInstanceType(instance_type.clone()), Answer::InstanceType(limits) => limits)
    }

    async fn create_interface(&self, request: CreateInterface) -> CloudResult<Interface> {
        carry!(self, Call::CreateInterface(request), Answer::Interface(interface) => *interface)
    }

    async fn attach_interface(&self, request: AttachInterface) -> CloudResult<AttachmentId> {
        carry!(self, Call::AttachInterface(request), Answer::Attachment(attachment) => attachment)
    }

    async fn set_delete_on_termination(
        &self,
        eni: &EniId,
        attachment: &AttachmentId,
    ) -> CloudResult<()> {
        let call =
            Call::SetDeleteOnTermination { eni: eni.clone(), attachment: attachment.clone() };
        carry!(self, call, Answer::Done => ())
    }

    async fn set_security_groups(
        &self,
        eni: &EniId,
        groups: &[SecurityGroupId],
    ) -> CloudResult<()> {
        carry!(self, Call::SetSecurityGroups { eni: eni.clone(), groups: groups.to_vec() }, Answer::Done => ())
    }

    async fn detach_interface(&self, attachment: &AttachmentId) -> CloudResult<()> {
        carry!(self, Call::DetachInterface(attachment.clone()), Answer::Done => ())
    }

    async fn delete_interface(&self, eni: &EniId) -> CloudResult<()> {
        carry!(self, Call::DeleteInterface(eni.clone()), Answer::Done => ())
    }

    async fn assign_addresses(&self, eni: &EniId, count: u32) -> CloudResult<Vec<Ipv4Addr>> {
        carry!(self, Call::AssignAddresses { eni: eni.clone(), count }, Answer::Addresses(addresses) => addresses)
    }

    async fn unassign_addresses(&self, eni: &EniId, addresses: &[Ipv4Addr]) -> CloudResult<()> {
        carry!(self, Call::UnassignAddresses { eni: eni.clone(), addresses: addresses.to_vec() }, Answer::Done => ())
    }

    async fn create_tags(&self, eni: &EniId, tags: &BTreeMap<String, String>) -> CloudResult<()> {
        carry!(self, Call::CreateTags { eni: eni.clone(), tags: tags.clone() }, Answer::Done => ())
    }

    async fn describe_security_group_rules(
        &self,
        groups: &[SecurityGroupId],
    ) -> CloudResult<Vec<SecurityGroupRule>> {
        carry!(self, Call::DescribeSecurityGroupRules(groups.to_vec()), Answer::SecurityGroupRules(rules) => rules)
    }

    async fn describe_security_groups(
        &self,
        groups: &[SecurityGroupId],
    ) -> CloudResult<Vec<SecurityGroup>> {
        carry!(self, Call::DescribeSecurityGroups(groups.to_vec()), Answer::SecurityGroups(found) => found)
    }

    async fn find_security_groups(
        &self,
        vpc_id: &VpcId,
        tags: &BTreeMap<String, String>,
    ) -> CloudResult<Vec<SecurityGroup>> {
        let call = Call::FindSecurityGroups { vpc_id: vpc_id.clone(), tags: tags.clone() };
        carry!(self, call, Answer::SecurityGroups(found) => found)
    }

    async fn describe_group_members(
        &self,
        groups: &[SecurityGroupId],
    ) -> CloudResult<Vec<GroupMember>> {
        carry!(self, Call::DescribeGroupMembers(groups.to_vec()), Answer::GroupMembers(members) => members)
    }

    async fn describe_prefix_lists(&self, lists: &[PrefixListId]) -> CloudResult<Vec<PrefixList>> {
        carry!(self, Call::DescribePrefixLists(lists.to_vec()), Answer::PrefixLists(found) => found)
    }

    async fn prefix_list_entries(
        &self,
        list: &PrefixListId,
        version: Option<u64>,
    ) -> CloudResult<Vec<IpNet>> {
        carry!(self, Call::PrefixListEntries { list: list.clone(), version }, Answer::PrefixListEntries(entries) => entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_action_of_a_call_is_listed() {
        let eni: EniId = "eni-1".parse().unwrap();
        let attachment: AttachmentId = "eni-attach-1".parse().unwrap();
        let calls = [
            Call::Identity,
            Call::MetadataInterfaces,
            Call::DescribeInterfaces(InterfaceFilter::Ids(vec![eni.clone()])),
            Call::DescribeInstanceType("m5.large".parse().unwrap()),
            Call::SetDeleteOnTermination { eni: eni.clone(), attachment: attachment.clone() },
            Call::DetachInterface(attachment),
            Call::DeleteInterface(eni.clone()),
            Call::AssignAddresses { eni, count: 1 },
        ];
        for call in calls {
            assert!(ACTIONS.contains(&call.action()), "{}", call.action());
        }
    }
}
