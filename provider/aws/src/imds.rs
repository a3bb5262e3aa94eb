//! Instance metadata: who this instance is, and its ENIs as metadata knows them.
//!
//! A 404 has a meaning here: a key that an ENI need not have is absent (no prefixes, network card 0), and an ENI
//! without the keys that every ENI has is one that comes or goes at this moment, and is left out.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use aws_config::imds::{Client, client::error::ImdsError};
use aws_smithy_types::error::display::DisplayErrorContext;
use veni_core::net::Mac;
use veni_provider::{CloudError, CloudResult, ErrorClass, InstanceIdentity, MetadataInterface};

const ROOT: &str = "/latest/meta-data/";

/// Who and where this instance is.
pub(crate) async fn identity(imds: &Client, region: &str) -> CloudResult<InstanceIdentity> {
    // Boxed: the SDK's futures are kilobytes each, and there are many at once.
    let key = |name| Box::pin(value(imds, name));
    let (instance_id, instance_type, availability_zone, primary_mac, local_ipv4) = tokio::try_join!(
        key("instance-id"),
        key("instance-type"),
        key("placement/availability-zone"),
        key("mac"),
        key("local-ipv4"),
    )?;
    Ok(InstanceIdentity {
        instance_id: parse("instance-id", &instance_id)?,
        instance_type: parse("instance-type", &instance_type)?,
        region: region.to_owned(),
        availability_zone: availability_zone.trim().to_owned(),
        primary_mac: parse("mac", &primary_mac)?,
        local_ipv4: parse("local-ipv4", &local_ipv4)?,
    })
}

/// The ENIs that metadata lists, one after the other (there are at most tens), each one's keys at once.
pub(crate) async fn interfaces(imds: &Client) -> CloudResult<Vec<MetadataInterface>> {
    let listed = value(imds, "network/interfaces/macs/").await?;
    let mut found = Vec::new();
    for mac in
        listed.lines().map(|line| line.trim().trim_end_matches('/')).filter(|l| !l.is_empty())
    {
        match interface(imds, parse("network/interfaces/macs", mac)?).await? {
            Some(interface) => found.push(interface),
            None => tracing::debug!(mac, "instance metadata lists an ENI whose keys are not there"),
        }
    }
    Ok(found)
}

async fn interface(imds: &Client, mac: Mac) -> CloudResult<Option<MetadataInterface>> {
    let base = format!("network/interfaces/macs/{mac}");
    let key = |name: &'static str| Box::pin(optional(imds, name, format!("{base}/{name}")));
    let (
        id,
        device_index,
        network_card,
        subnet_id,
        subnet_cidr,
        vpc_id,
        vpc_cidrs,
        groups,
        addresses,
        prefixes,
    ) = tokio::try_join!(
        key("interface-id"),
        key("device-number"),
        key("network-card"),
        key("subnet-id"),
        key("subnet-ipv4-cidr-block"),
        key("vpc-id"),
        key("vpc-ipv4-cidr-blocks"),
        key("security-group-ids"),
        key("local-ipv4s"),
        key("ipv4-prefix"),
    )?;
    let (Some(id), Some(device_index), Some(subnet_id), Some(subnet_cidr), Some(vpc_id)) =
        (id, device_index, subnet_id, subnet_cidr, vpc_id)
    else {
        return Ok(None);
    };
    Ok(Some(MetadataInterface {
        mac,
        id: parse("interface-id", &id)?,
        device_index: parse("device-number", &device_index)?,
        network_card: network_card.map_or(Ok(0), |card| parse("network-card", &card))?,
        subnet_id: parse("subnet-id", &subnet_id)?,
        subnet_cidr: parse("subnet-ipv4-cidr-block", &subnet_cidr)?,
        vpc_id: parse("vpc-id", &vpc_id)?,
        vpc_cidrs: list("vpc-ipv4-cidr-blocks", vpc_cidrs.as_deref())?,
        security_groups: list("security-group-ids", groups.as_deref())?,
        addresses: list::<Ipv4Addr>("local-ipv4s", addresses.as_deref())?,
        prefixes: list("ipv4-prefix", prefixes.as_deref())?,
    }))
}

fn parse<T: FromStr<Err: fmt::Display>>(key: &'static str, text: &str) -> CloudResult<T> {
    text.trim().parse().map_err(|error| {
        CloudError::new(key, ErrorClass::Transient, "MalformedMetadata", format!("{error}"))
    })
}

/// One value a line.
fn list<T: FromStr<Err: fmt::Display>>(
    key: &'static str,
    text: Option<&str>,
) -> CloudResult<Vec<T>> {
    text.unwrap_or_default()
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| parse(key, line))
        .collect()
}

async fn value(imds: &Client, key: &'static str) -> CloudResult<String> {
    optional(imds, key, key.to_owned()).await?.ok_or_else(|| {
        CloudError::new(key, ErrorClass::NotFound, "404", "instance metadata does not have it")
    })
}

/// The text under `path`, `None` for a 404.
async fn optional(imds: &Client, key: &'static str, path: String) -> CloudResult<Option<String>> {
    match imds.get(format!("{ROOT}{path}")).await {
        Ok(text) => Ok(Some(text.into())),
        Err(ImdsError::ErrorResponse(refused)) if refused.response().status().as_u16() == 404 => {
            Ok(None)
        }
        Err(ImdsError::ErrorResponse(refused)) => {
            let status = refused.response().status().as_u16();
            let class = match status {
                429 => ErrorClass::Throttled { retry_after_millis: None },
                // Metadata can be turned off for an instance.
                403 => ErrorClass::Denied { action: "instance metadata".into() },
                _ => ErrorClass::Transient,
            };
            Err(CloudError::new(key, class, format!("HTTP {status}"), "instance metadata refused"))
        }
        Err(error) => Err(CloudError::new(
            key,
            ErrorClass::Transient,
            "Unreachable",
            DisplayErrorContext(&error).to_string(),
        )),
    }
}
