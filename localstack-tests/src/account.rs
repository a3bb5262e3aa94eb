//! A VPC in a LocalStack, with subnets, security groups and instances, for one test.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;
use veni_core::{
    id::{InstanceId, InstanceType, SecurityGroupId, SubnetId, VpcId},
    net::Ipv4Prefix,
};
use veni_provider::{Cloud, Interface, InterfaceFilter};
use veni_provider_aws::{
    AwsCloud, Overrides,
    aws_sdk_ec2::{Client, types::InstanceType as SdkInstanceType},
};

use veni_localstack::control::{Call, Delays, Fault};

use crate::{imds::Metadata, localstack::LocalStack};

/// Where everything is.
pub(crate) const REGION: &str = "eu-central-1";
pub(crate) const ZONE: &str = "eu-central-1a";
/// LocalStack looks at no image.
const IMAGE: &str = "ami-12c6146b";

/// A VPC 10.0.0.0/16 of a test's own.
#[derive(Debug, Clone)]
pub struct Account {
    server: &'static LocalStack,
    admin: AwsCloud,
    /// Its VPC.
    pub vpc_id: VpcId,
    /// The user agent of this account's daemon, and of no other: `app/veni-…`.
    pub agent: String,
}

/// An instance, its metadata, and the cloud as the daemon on it has it.
#[derive(Debug, Clone)]
pub struct Node {
    /// The instance.
    pub instance: InstanceId,
    /// Its metadata.
    pub metadata: Metadata,
    /// EC2 and metadata, as the daemon sees them.
    pub cloud: AwsCloud,
}

impl Account {
    /// Makes a VPC.
    ///
    /// # Errors
    /// When EC2 refuses.
    pub async fn new(server: &'static LocalStack) -> anyhow::Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let admin = AwsCloud::load(overrides(server, "test-admin", None)).await?;
        let made =
            admin.ec2().create_vpc().cidr_block("10.0.0.0/16").send().await.context("CreateVpc")?;
        let vpc_id =
            made.vpc().and_then(|vpc| vpc.vpc_id()).context("a VPC without an id")?.parse()?;
        // Of one length, so that none is a part of another.
        let agent = format!("app/veni-{:04}", NUMBER.fetch_add(1, Ordering::Relaxed));
        Ok(Self { server, admin, vpc_id, agent })
    }

    /// EC2 by the test's own hand, outside the daemon's log and faults.
    #[must_use]
    pub fn ec2(&self) -> &Client {
        self.admin.ec2()
    }

    /// Makes a subnet in the zone.
    ///
    /// # Errors
    /// When EC2 refuses.
    pub async fn subnet(&self, cidr: &str) -> anyhow::Result<SubnetId> {
        let request = self.ec2().create_subnet().vpc_id(self.vpc_id.as_str()).cidr_block(cidr);
        let made = request.availability_zone(ZONE).send().await.context("CreateSubnet")?;
        Ok(made
            .subnet()
            .and_then(|subnet| subnet.subnet_id())
            .context("a subnet without an id")?
            .parse()?)
    }

    /// Makes a security group.
    ///
    /// # Errors
    /// When EC2 refuses.
    pub async fn security_group(&self, name: &str) -> anyhow::Result<SecurityGroupId> {
        let request = self.ec2().create_security_group().vpc_id(self.vpc_id.as_str());
        let made = request
            .group_name(name)
            .description(name)
            .send()
            .await
            .context("CreateSecurityGroup")?;
        Ok(made.group_id().context("a group without an id")?.parse()?)
    }

    /// Runs an instance with its primary ENI in `subnet`, and serves its metadata.
    ///
    /// # Errors
    /// When EC2 refuses or no port is free.
    pub async fn run_instance(
        &self,
        kind: &str,
        subnet: &SubnetId,
        groups: &[SecurityGroupId],
    ) -> anyhow::Result<Node> {
        let kind: InstanceType = kind.parse()?;
        let request = self.ec2().run_instances().image_id(IMAGE).min_count(1).max_count(1);
        let answer = request
            .instance_type(SdkInstanceType::from(kind.as_str()))
            .subnet_id(subnet.as_str())
            .set_security_group_ids(Some(groups.iter().map(ToString::to_string).collect()))
            .send()
            .await
            .context("RunInstances")?;
        let made =
            answer.instances().first().and_then(|i| i.instance_id()).context("no instance")?;
        let instance: InstanceId = made.parse()?;
        let vpc_cidrs: Vec<Ipv4Prefix> = vec!["10.0.0.0/16".parse()?];
        let metadata =
            Metadata::serve(self.admin.clone(), instance.clone(), kind, vpc_cidrs).await?;
        let cloud = self.cloud_of(&metadata).await?;
        Ok(Node { instance, metadata, cloud })
    }

    /// The cloud as a daemon that has just started on the instance of `metadata` has it.
    ///
    /// # Errors
    /// When it cannot be set up.
    pub async fn cloud_of(&self, metadata: &Metadata) -> anyhow::Result<AwsCloud> {
        let name = self.agent.trim_start_matches("app/");
        Ok(AwsCloud::load(overrides(self.server, name, Some(metadata.endpoint()))).await?)
    }

    /// The ENIs of an instance, as EC2 has them.
    ///
    /// # Errors
    /// When EC2 refuses.
    pub async fn attached_to(&self, instance: &InstanceId) -> anyhow::Result<Vec<Interface>> {
        Ok(self.admin.describe_interfaces(InterfaceFilter::AttachedTo(instance.clone())).await?)
    }

    /// All ENIs of the VPC, as EC2 has them, attached or not.
    ///
    /// # Errors
    /// When EC2 refuses.
    pub async fn interface_ids(&self) -> anyhow::Result<Vec<String>> {
        let filter = veni_provider_aws::aws_sdk_ec2::types::Filter::builder()
            .name("vpc-id")
            .values(self.vpc_id.as_str())
            .build();
        let answer = self.ec2().describe_network_interfaces().filters(filter).send().await?;
        Ok(answer
            .network_interfaces()
            .iter()
            .filter_map(|e| e.network_interface_id().map(Into::into))
            .collect())
    }

    /// Injects `faults` into this account's daemon's calls, instead of those before.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_faults(&self, faults: Vec<Fault>) -> anyhow::Result<()> {
        Ok(self.server.control.set_faults(&self.agent, faults)?)
    }

    /// Sets how long things take, for all accounts of the server.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_delays(&self, delays: Delays) -> anyhow::Result<()> {
        Ok(self.server.control.set_delays(delays)?)
    }

    /// The EC2 calls that this account's daemon made and that were answered.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn calls(&self) -> anyhow::Result<Vec<Call>> {
        Ok(self.server.control.calls(&self.agent)?)
    }
}

fn overrides(server: &LocalStack, app_name: &str, metadata_endpoint: Option<String>) -> Overrides {
    Overrides {
        ec2_endpoint: Some(server.endpoint()),
        // Port 9 (discard) of the loopback: nobody answers.
        metadata_endpoint: Some(
            metadata_endpoint.unwrap_or_else(|| "http://127.0.0.1:9".to_owned()),
        ),
        region: Some(REGION.to_owned()),
        app_name: Some(app_name.to_owned()),
        credentials: Some(("test".to_owned(), "test".to_owned())),
    }
}
