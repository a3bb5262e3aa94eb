//! AWS as a [`Cloud`]: EC2 through `aws-sdk-ec2`, instance metadata through the SDK's IMDSv2 client.
//!
//! The only crate that names the AWS SDK: it costs minutes and about 8 GiB to compile, so nothing depends on it but
//! the daemon's feature `aws` and the LocalStack tests.
//!
//! Invariants:
//! - The SDK never retries an EC2 call ([`config`]): backoff, budget and "look before repeating" belong to the caller.
//! - An error's class comes from one table ([`classify`]).
//! - Every EC2 action used is in [`iam::ACTIONS`], from which the documented policy is made.
//!
//! Deliberately absent: caches, rate limits and decisions.

pub mod classify;
pub mod iam;

pub use aws_sdk_ec2;
pub use config::Overrides;

mod change;
mod config;
mod convert;
mod describe;
mod group;
mod imds;

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnet::IpNet;
use veni_core::{
    id::{AttachmentId, EniId, InstanceType, PrefixListId, SecurityGroupId, VpcId},
    limits::InstanceLimits,
};
use veni_provider::{
    AttachInterface, Cloud, CloudResult, CreateInterface, GroupMember, InstanceIdentity, Interface,
    InterfaceFilter, MetadataInterface, PrefixList, SecurityGroup, SecurityGroupRule, Subnet,
    SubnetFilter,
};

/// EC2 and the metadata of the instance this runs on. Cheap to clone; calls may overlap.
#[derive(Debug, Clone)]
pub struct AwsCloud {
    ec2: aws_sdk_ec2::Client,
    imds: aws_config::imds::Client,
    region: String,
}

impl AwsCloud {
    /// Configured by what every SDK program obeys: `AWS_REGION`, credentials from the environment, a web identity
    /// (IRSA), EKS Pod Identity or the instance's role, `AWS_ENDPOINT_URL_EC2`, `AWS_ENDPOINT_URL`,
    /// `AWS_EC2_METADATA_SERVICE_ENDPOINT`, `AWS_CA_BUNDLE`, the profile files. Without a region set, metadata's.
    ///
    /// # Errors
    /// `Transient` when neither the environment nor metadata names a region: metadata may yet answer.
    pub async fn from_env() -> CloudResult<Self> {
        Self::load(Overrides::default()).await
    }

    /// As [`AwsCloud::from_env`], but for what `overrides` sets.
    ///
    /// # Errors
    /// As [`AwsCloud::from_env`]; `Invalid` for an endpoint that is no URL.
    pub async fn load(overrides: Overrides) -> CloudResult<Self> {
        let (ec2, imds, region) = config::load(overrides).await?;
        Ok(Self { ec2, imds, region })
    }

    /// The EC2 client beneath, for what is no part of [`Cloud`] (tests that make VPCs and instances).
    #[must_use]
    pub fn ec2(&self) -> &aws_sdk_ec2::Client {
        &self.ec2
    }
}

impl Cloud for AwsCloud {
    async fn identity(&self) -> CloudResult<InstanceIdentity> {
        imds::identity(&self.imds, &self.region).await
    }

    async fn metadata_interfaces(&self) -> CloudResult<Vec<MetadataInterface>> {
        imds::interfaces(&self.imds).await
    }

    async fn describe_interfaces(&self, filter: InterfaceFilter) -> CloudResult<Vec<Interface>> {
        describe::interfaces(&self.ec2, filter).await
    }

    async fn describe_subnets(&self, filter: SubnetFilter) -> CloudResult<Vec<Subnet>> {
        describe::subnets(&self.ec2, filter).await
    }

    async fn describe_instance_type(
        &self,
        instance_type: &InstanceType,
    ) -> CloudResult<InstanceLimits> {
        describe::instance_type(&self.ec2, instance_type).await
    }

    async fn create_interface(&self, request: CreateInterface) -> CloudResult<Interface> {
        change::create_interface(&self.ec2, request).await
    }

    async fn attach_interface(&self, request: AttachInterface) -> CloudResult<AttachmentId> {
        change::attach_interface(&self.ec2, request).await
    }

    async fn set_delete_on_termination(
        &self,
        eni: &EniId,
        attachment: &AttachmentId,
    ) -> CloudResult<()> {
        change::set_delete_on_termination(&self.ec2, eni, attachment).await
    }

    async fn set_security_groups(
        &self,
        eni: &EniId,
        groups: &[SecurityGroupId],
    ) -> CloudResult<()> {
        change::set_security_groups(&self.ec2, eni, groups).await
    }

    async fn detach_interface(&self, attachment: &AttachmentId) -> CloudResult<()> {
        change::detach_interface(&self.ec2, attachment).await
    }

    async fn delete_interface(&self, eni: &EniId) -> CloudResult<()> {
        change::delete_interface(&self.ec2, eni).await
    }

    async fn assign_addresses(&self, eni: &EniId, count: u32) -> CloudResult<Vec<Ipv4Addr>> {
        change::assign_addresses(&self.ec2, eni, count).await
    }

    async fn unassign_addresses(&self, eni: &EniId, addresses: &[Ipv4Addr]) -> CloudResult<()> {
        change::unassign_addresses(&self.ec2, eni, addresses).await
    }

    async fn create_tags(&self, eni: &EniId, tags: &BTreeMap<String, String>) -> CloudResult<()> {
        change::create_tags(&self.ec2, eni, tags).await
    }

    async fn describe_security_group_rules(
        &self,
        groups: &[SecurityGroupId],
    ) -> CloudResult<Vec<SecurityGroupRule>> {
        group::rules(&self.ec2, groups).await
    }

    async fn describe_security_groups(
        &self,
        groups: &[SecurityGroupId],
    ) -> CloudResult<Vec<SecurityGroup>> {
        group::existing(&self.ec2, groups).await
    }

    async fn find_security_groups(
        &self,
        vpc_id: &VpcId,
        tags: &BTreeMap<String, String>,
    ) -> CloudResult<Vec<SecurityGroup>> {
        group::tagged(&self.ec2, vpc_id, tags).await
    }

    async fn describe_group_members(
        &self,
        groups: &[SecurityGroupId],
    ) -> CloudResult<Vec<GroupMember>> {
        group::members(&self.ec2, groups).await
    }

    async fn describe_prefix_lists(&self, lists: &[PrefixListId]) -> CloudResult<Vec<PrefixList>> {
        group::prefix_lists(&self.ec2, lists).await
    }

    async fn prefix_list_entries(
        &self,
        list: &PrefixListId,
        version: Option<u64>,
    ) -> CloudResult<Vec<IpNet>> {
        group::entries(&self.ec2, list, version).await
    }
}
