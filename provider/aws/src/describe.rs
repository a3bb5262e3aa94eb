//! The EC2 calls that only look.

use aws_sdk_ec2::{
    Client,
    types::{Filter, InstanceType as SdkInstanceType},
};
use veni_core::{id::InstanceType, limits::InstanceLimits};
use veni_provider::{
    CloudError, CloudResult, ErrorClass, Interface, InterfaceFilter, Subnet, SubnetFilter,
};

use crate::{
    classify::{Call, failed},
    convert,
};

/// The most that `DescribeNetworkInterfaces` and `DescribeSubnets` put on a page.
const PAGE: i32 = 1000;

fn filter(name: &str, value: impl Into<String>) -> Filter {
    Filter::builder().name(name).values(value).build()
}

/// `DescribeNetworkInterfaces`, all pages.
pub(crate) async fn interfaces(
    ec2: &Client,
    which: InterfaceFilter,
) -> CloudResult<Vec<Interface>> {
    const ACTION: &str = "DescribeNetworkInterfaces";
    let request = ec2.describe_network_interfaces();
    // EC2 refuses MaxResults together with ids, and ids need no pages.
    let request = match which {
        InterfaceFilter::Ids(ids) if ids.is_empty() => return Ok(Vec::new()),
        InterfaceFilter::Ids(ids) => {
            request.set_network_interface_ids(Some(ids.into_iter().map(Into::into).collect()))
        }
        InterfaceFilter::AttachedTo(instance) => {
            request.filters(filter("attachment.instance-id", instance)).max_results(PAGE)
        }
        InterfaceFilter::AvailableWithTag { key, value } => request
            .filters(filter("status", "available"))
            .filters(filter(&format!("tag:{key}"), value))
            .max_results(PAGE),
    };
    let mut pages = request.into_paginator().send();
    let mut found = Vec::new();
    while let Some(page) = pages.next().await {
        let page = page.map_err(|e| failed(Call { action: ACTION, ..Call::default() }, e))?;
        for eni in page.network_interfaces() {
            // A requester-managed or IPv6-only ENI is none that we could use; one ENI must not hide the others.
            match convert::interface(ACTION, eni) {
                Ok(interface) => found.push(interface),
                Err(error) => tracing::warn!(
                    eni = eni.network_interface_id().unwrap_or("?"),
                    error = %error,
                    "an ENI in the answer is left out"
                ),
            }
        }
    }
    Ok(found)
}

/// `DescribeSubnets`, all pages.
pub(crate) async fn subnets(ec2: &Client, which: SubnetFilter) -> CloudResult<Vec<Subnet>> {
    const ACTION: &str = "DescribeSubnets";
    let request = ec2.describe_subnets();
    let request = match which {
        SubnetFilter::Ids(ids) if ids.is_empty() => return Ok(Vec::new()),
        SubnetFilter::Ids(ids) => {
            request.set_subnet_ids(Some(ids.into_iter().map(Into::into).collect()))
        }
        SubnetFilter::InZone { vpc_id, availability_zone } => request
            .filters(filter("vpc-id", vpc_id))
            .filters(filter("availability-zone", availability_zone))
            .max_results(PAGE),
    };
    let mut pages = request.into_paginator().send();
    let mut found = Vec::new();
    while let Some(page) = pages.next().await {
        let page = page.map_err(|e| failed(Call { action: ACTION, ..Call::default() }, e))?;
        for subnet in page.subnets() {
            // An IPv6-only subnet has no IPv4 CIDR.
            match convert::subnet(ACTION, subnet) {
                Ok(subnet) => found.push(subnet),
                Err(error) => tracing::warn!(
                    subnet = subnet.subnet_id().unwrap_or("?"),
                    error = %error,
                    "a subnet in the answer is left out"
                ),
            }
        }
    }
    Ok(found)
}

/// `DescribeInstanceTypes` of one type.
pub(crate) async fn instance_type(
    ec2: &Client,
    instance_type: &InstanceType,
) -> CloudResult<InstanceLimits> {
    const ACTION: &str = "DescribeInstanceTypes";
    let answer = ec2
        .describe_instance_types()
        .instance_types(SdkInstanceType::from(instance_type.as_str()))
        .send()
        .await
        .map_err(|e| {
            failed(
                Call { action: ACTION, instance_type: Some(instance_type), ..Call::default() },
                e,
            )
        })?;
    match answer.instance_types() {
        [info, ..] => convert::limits(ACTION, info),
        [] => Err(CloudError::new(
            ACTION,
            ErrorClass::UnknownInstanceType(instance_type.clone()),
            "EmptyAnswer",
            "the region does not know this instance type",
        )),
    }
}
