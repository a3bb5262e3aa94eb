//! The EC2 calls that change something. Each is sent once: an unknown outcome is `Transient`, and the caller looks.

use std::{collections::BTreeMap, net::Ipv4Addr};

use aws_sdk_ec2::{
    Client,
    types::{NetworkInterfaceAttachmentChanges, ResourceType, Tag, TagSpecification},
};
use veni_core::id::{AttachmentId, EniId, SecurityGroupId};
use veni_provider::{AttachInterface, CloudResult, CreateInterface, Interface};

use crate::{
    classify::{Call, failed},
    convert,
};

/// `CreateNetworkInterface`, tagged in the same call (so no ENI of ours is ever untagged).
pub(crate) async fn create_interface(
    ec2: &Client,
    request: CreateInterface,
) -> CloudResult<Interface> {
    const ACTION: &str = "CreateNetworkInterface";
    let subnet = request.subnet_id.clone();
    let specification = (!request.tags.is_empty()).then(|| {
        TagSpecification::builder()
            .resource_type(ResourceType::NetworkInterface)
            .set_tags(Some(tags(&request.tags)))
            .build()
    });
    let answer = ec2
        .create_network_interface()
        .subnet_id(request.subnet_id)
        .set_groups(non_empty(request.security_groups))
        .set_secondary_private_ip_address_count(count(request.secondary_addresses))
        .set_ipv4_prefix_count(count(request.prefixes))
        .description(request.description)
        .client_token(request.client_token)
        .set_tag_specifications(specification.map(|s| vec![s]))
        .send()
        .await
        .map_err(|e| {
            failed(Call { action: ACTION, subnet: Some(&subnet), ..Call::default() }, e)
        })?;
    let eni = convert::required(ACTION, "networkInterface", answer.network_interface())?;
    convert::interface(ACTION, eni)
}

/// `AttachNetworkInterface`.
pub(crate) async fn attach_interface(
    ec2: &Client,
    request: AttachInterface,
) -> CloudResult<AttachmentId> {
    const ACTION: &str = "AttachNetworkInterface";
    let answer = ec2
        .attach_network_interface()
        .network_interface_id(request.eni.as_str())
        .instance_id(request.instance)
        .device_index(i32::from(request.device_index))
        // Card 0 is the default, and the only card that most types have.
        .set_network_card_index(
            (request.network_card != 0).then(|| i32::from(request.network_card)),
        )
        .send()
        .await
        .map_err(|e| {
            failed(Call { action: ACTION, eni: Some(&request.eni), ..Call::default() }, e)
        })?;
    convert::parse(ACTION, "attachmentId", answer.attachment_id())
}

/// `ModifyNetworkInterfaceAttribute`: the ENI goes when the instance goes.
pub(crate) async fn set_delete_on_termination(
    ec2: &Client,
    eni: &EniId,
    attachment: &AttachmentId,
) -> CloudResult<()> {
    let change = NetworkInterfaceAttachmentChanges::builder()
        .attachment_id(attachment.as_str())
        .delete_on_termination(true)
        .build();
    ec2.modify_network_interface_attribute()
        .network_interface_id(eni.as_str())
        .attachment(change)
        .send()
        .await
        .map_err(|e| failed(about("ModifyNetworkInterfaceAttribute", eni), e))?;
    Ok(())
}

/// `ModifyNetworkInterfaceAttribute`: replaces the security groups.
pub(crate) async fn set_security_groups(
    ec2: &Client,
    eni: &EniId,
    groups: &[SecurityGroupId],
) -> CloudResult<()> {
    ec2.modify_network_interface_attribute()
        .network_interface_id(eni.as_str())
        .set_groups(Some(groups.iter().map(ToString::to_string).collect()))
        .send()
        .await
        .map_err(|e| failed(about("ModifyNetworkInterfaceAttribute", eni), e))?;
    Ok(())
}

/// `DetachNetworkInterface`, never by force: that can leave the instance's network broken (its documentation says so).
pub(crate) async fn detach_interface(ec2: &Client, attachment: &AttachmentId) -> CloudResult<()> {
    ec2.detach_network_interface()
        .attachment_id(attachment.as_str())
        .send()
        .await
        .map_err(|e| failed(Call { action: "DetachNetworkInterface", ..Call::default() }, e))?;
    Ok(())
}

/// `DeleteNetworkInterface`.
pub(crate) async fn delete_interface(ec2: &Client, eni: &EniId) -> CloudResult<()> {
    ec2.delete_network_interface()
        .network_interface_id(eni.as_str())
        .send()
        .await
        .map_err(|e| failed(about("DeleteNetworkInterface", eni), e))?;
    Ok(())
}

/// `AssignPrivateIpAddresses` by count.
pub(crate) async fn assign_addresses(
    ec2: &Client,
    eni: &EniId,
    count: u32,
) -> CloudResult<Vec<Ipv4Addr>> {
    const ACTION: &str = "AssignPrivateIpAddresses";
    let answer = ec2
        .assign_private_ip_addresses()
        .network_interface_id(eni.as_str())
        .secondary_private_ip_address_count(i32::try_from(count).unwrap_or(i32::MAX))
        .send()
        .await
        .map_err(|e| failed(about(ACTION, eni), e))?;
    let assigned = answer
        .assigned_private_ip_addresses()
        .iter()
        .map(|address| convert::parse(ACTION, "privateIpAddress", address.private_ip_address()))
        .collect::<CloudResult<Vec<Ipv4Addr>>>()?;
    Ok(newly_assigned(assigned, count))
}

/// EC2 answers with exactly the new addresses. Plain LocalStack answers with all of the ENI's, the new ones last
/// (and may repeat one); more than were asked for is how the two are told apart.
fn newly_assigned(mut answered: Vec<Ipv4Addr>, asked: u32) -> Vec<Ipv4Addr> {
    let asked = usize::try_from(asked).unwrap_or(usize::MAX);
    let mut new = answered.split_off(answered.len().saturating_sub(asked));
    new.sort_unstable();
    new.dedup();
    new.retain(|address| !answered.contains(address));
    new
}

/// `UnassignPrivateIpAddresses`.
pub(crate) async fn unassign_addresses(
    ec2: &Client,
    eni: &EniId,
    addresses: &[Ipv4Addr],
) -> CloudResult<()> {
    ec2.unassign_private_ip_addresses()
        .network_interface_id(eni.as_str())
        .set_private_ip_addresses(Some(addresses.iter().map(ToString::to_string).collect()))
        .send()
        .await
        .map_err(|e| failed(about("UnassignPrivateIpAddresses", eni), e))?;
    Ok(())
}

/// `CreateTags`.
pub(crate) async fn create_tags(
    ec2: &Client,
    eni: &EniId,
    wanted: &BTreeMap<String, String>,
) -> CloudResult<()> {
    ec2.create_tags()
        .resources(eni.as_str())
        .set_tags(Some(tags(wanted)))
        .send()
        .await
        .map_err(|e| failed(about("CreateTags", eni), e))?;
    Ok(())
}

fn about<'a>(action: &'static str, eni: &'a EniId) -> Call<'a> {
    Call { action, eni: Some(eni), ..Call::default() }
}

fn tags(tags: &BTreeMap<String, String>) -> Vec<Tag> {
    tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build()).collect()
}

/// EC2 refuses a count of 0 beside another way to ask for addresses: absent, not zero.
fn count(count: u32) -> Option<i32> {
    (count > 0).then(|| i32::try_from(count).unwrap_or(i32::MAX))
}

/// Without groups an ENI gets the VPC's default group; an empty list would be refused.
fn non_empty(groups: Vec<SecurityGroupId>) -> Option<Vec<String>> {
    (!groups.is_empty()).then(|| groups.into_iter().map(Into::into).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(answered: &[u8], asked: u32, expect: &[u8]) {
        let addresses =
            |last: &[u8]| last.iter().map(|l| Ipv4Addr::new(10, 0, 0, *l)).collect::<Vec<_>>();
        assert_eq!(
            newly_assigned(addresses(answered), asked),
            addresses(expect),
            "{answered:?}, {asked} asked for"
        );
    }

    #[test]
    fn the_new_addresses_are_the_answer_or_its_end_where_all_are_listed() {
        check(&[10, 11], 2, &[10, 11]);
        check(&[10], 2, &[10]);
        check(&[], 2, &[]);
        check(&[4, 5, 10, 11], 2, &[10, 11]);
        check(&[4, 5, 10, 10], 2, &[10]);
        check(&[4, 5, 5, 10], 2, &[10]);
    }
}
