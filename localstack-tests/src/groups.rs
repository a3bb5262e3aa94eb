//! Security groups and managed prefix lists of a test's own, made by its own hand.

use anyhow::Context;
use veni_core::id::{PrefixListId, SecurityGroupId};
use veni_provider::{
    RuleDirection, RulePeer, RuleTraffic, conformance::GroupWorld, security_group,
};
use veni_provider_aws::aws_sdk_ec2::types::{
    AddPrefixListEntry, IpPermission, IpRange, Ipv6Range, PrefixListId as SdkPrefixListId,
    RemovePrefixListEntry, Tag, UserIdGroupPair,
};

use crate::Account;

impl Account {
    /// Makes the groups and the list that the conformance suite reads.
    ///
    /// # Errors
    /// When EC2 refuses.
    pub async fn group_world(&self) -> anyhow::Result<GroupWorld> {
        let [first, second] = GroupWorld::prefix_list_versions();
        let words =
            |nets: &[ipnet::IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
        let prefix_list = self.prefix_list("conformance", &words(&first)).await?;
        let new: Vec<_> = second.iter().filter(|net| !first.contains(net)).copied().collect();
        let old: Vec<_> = first.iter().filter(|net| !second.contains(net)).copied().collect();
        self.change_prefix_list(&prefix_list, 1, &words(&new), &words(&old)).await?;
        let world = GroupWorld {
            ruled: self.security_group("ruled").await?,
            referenced: self.security_group("referenced").await?,
            prefix_list,
        };
        for (direction, traffic, peer) in world.rules() {
            self.authorize(&world.ruled, direction, &traffic, &peer).await?;
        }
        for (id, tags) in [&world.ruled, &world.referenced].into_iter().zip(GroupWorld::tags()) {
            let tag = |(key, value)| Tag::builder().key(key).value(value).build();
            let request = self.ec2().create_tags().resources(id.as_str());
            let tags = tags.into_iter().map(tag).collect();
            request.set_tags(Some(tags)).send().await.context("CreateTags")?;
        }
        Ok(world)
    }

    /// Adds a rule to a group.
    ///
    /// # Errors
    /// When EC2 refuses, or the rule is one that cannot be asked for.
    pub async fn authorize(
        &self,
        group: &SecurityGroupId,
        direction: RuleDirection,
        traffic: &RuleTraffic,
        peer: &RulePeer,
    ) -> anyhow::Result<()> {
        let permission = permission(traffic, peer)?;
        match direction {
            RuleDirection::Ingress => {
                let request = self.ec2().authorize_security_group_ingress();
                request.group_id(group.as_str()).ip_permissions(permission).send().await?;
            }
            RuleDirection::Egress => {
                let request = self.ec2().authorize_security_group_egress();
                request.group_id(group.as_str()).ip_permissions(permission).send().await?;
            }
        }
        Ok(())
    }

    /// Makes a managed prefix list of IPv4 ranges.
    ///
    /// # Errors
    /// When EC2 refuses.
    pub async fn prefix_list(&self, name: &str, cidrs: &[String]) -> anyhow::Result<PrefixListId> {
        let request = self.ec2().create_managed_prefix_list().prefix_list_name(name);
        let made = request
            .address_family("IPv4")
            .max_entries(1000)
            .set_entries(Some(cidrs.iter().map(entry).collect()))
            .send()
            .await
            .context("CreateManagedPrefixList")?;
        let list = made.prefix_list().and_then(|list| list.prefix_list_id());
        Ok(list.context("a prefix list without an id")?.parse()?)
    }

    /// Makes a new version of a prefix list.
    ///
    /// # Errors
    /// When EC2 refuses.
    pub async fn change_prefix_list(
        &self,
        list: &PrefixListId,
        current_version: i64,
        add: &[String],
        remove: &[String],
    ) -> anyhow::Result<()> {
        let removal = |cidr: &String| RemovePrefixListEntry::builder().cidr(cidr).build();
        self.ec2()
            .modify_managed_prefix_list()
            .prefix_list_id(list.as_str())
            .current_version(current_version)
            .set_add_entries(Some(add.iter().map(entry).collect()))
            .set_remove_entries(Some(remove.iter().map(removal).collect()))
            .send()
            .await
            .context("ModifyManagedPrefixList")?;
        Ok(())
    }
}

fn entry(cidr: &String) -> AddPrefixListEntry {
    AddPrefixListEntry::builder().cidr(cidr).build()
}

fn permission(traffic: &RuleTraffic, peer: &RulePeer) -> anyhow::Result<IpPermission> {
    let permission = IpPermission::builder();
    let permission = match traffic {
        RuleTraffic::All => permission.ip_protocol("-1"),
        // For ICMP −1 means every type; other protocols have no ports.
        RuleTraffic::Protocol(number @ (security_group::ICMP | security_group::ICMPV6)) => {
            permission.ip_protocol(number.to_string()).from_port(-1).to_port(-1)
        }
        RuleTraffic::Protocol(number) => permission.ip_protocol(number.to_string()),
        RuleTraffic::Ports { protocol, first, last } => permission
            .ip_protocol(protocol.to_string())
            .from_port(i32::from(*first))
            .to_port(i32::from(*last)),
        RuleTraffic::Icmp { protocol, kind, code } => permission
            .ip_protocol(protocol.to_string())
            .from_port(i32::from(*kind))
            .to_port(code.map_or(-1, i32::from)),
        RuleTraffic::Unknown(words) => anyhow::bail!("a rule for {words} cannot be made"),
    };
    Ok(match peer {
        RulePeer::Cidr(ipnet::IpNet::V4(net)) => {
            permission.ip_ranges(IpRange::builder().cidr_ip(net.to_string()).build())
        }
        RulePeer::Cidr(ipnet::IpNet::V6(net)) => {
            permission.ipv6_ranges(Ipv6Range::builder().cidr_ipv6(net.to_string()).build())
        }
        RulePeer::Group(group) => permission
            .user_id_group_pairs(UserIdGroupPair::builder().group_id(group.id.as_str()).build()),
        RulePeer::PrefixList(list) => permission
            .prefix_list_ids(SdkPrefixListId::builder().prefix_list_id(list.as_str()).build()),
        RulePeer::Unknown(words) => anyhow::bail!("a rule for {words} cannot be made"),
    }
    .build())
}
