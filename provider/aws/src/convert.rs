//! The SDK's types → ours. What EC2 always sends but the SDK calls optional is required here; its absence is a
//! malformed answer, named by the field.

use std::{collections::BTreeMap, fmt, net::Ipv4Addr, str::FromStr};

use aws_sdk_ec2::types::{
    self as ec2, AttachmentStatus, InstanceTypeHypervisor, InstanceTypeInfo, NetworkInterface,
    NetworkInterfaceStatus, Tag,
};
use veni_core::{
    limits::{Hypervisor, InstanceLimits, NetworkCard},
    net::Mac,
};
use veni_provider::{
    CloudError, CloudResult, ErrorClass, Interface, InterfaceAttachment, InterfaceStatus, Subnet,
};

/// An answer of `action` that cannot be what EC2 sends. `Transient`: the call may have had its effect.
pub(crate) fn malformed(action: &'static str, field: &str, value: impl fmt::Display) -> CloudError {
    CloudError::new(action, ErrorClass::Transient, "MalformedAnswer", format!("{field}: {value}"))
}

/// `value`, which the answer of `action` must have.
pub(crate) fn required<T>(action: &'static str, field: &str, value: Option<T>) -> CloudResult<T> {
    value.ok_or_else(|| malformed(action, field, "missing"))
}

/// `value` parsed, which the answer of `action` must have.
pub(crate) fn parse<T>(action: &'static str, field: &str, value: Option<&str>) -> CloudResult<T>
where
    T: FromStr<Err: fmt::Display>,
{
    required(action, field, value)?.parse().map_err(|error| malformed(action, field, error))
}

fn number<T: TryFrom<i32>>(
    action: &'static str,
    field: &str,
    value: Option<i32>,
) -> CloudResult<T> {
    let value = required(action, field, value)?;
    T::try_from(value).map_err(|_| malformed(action, field, value))
}

fn tags(tags: &[Tag]) -> BTreeMap<String, String> {
    tags.iter()
        .filter_map(|tag| Some((tag.key()?.to_owned(), tag.value().unwrap_or_default().to_owned())))
        .collect()
}

/// An ENI.
pub(crate) fn interface(action: &'static str, eni: &NetworkInterface) -> CloudResult<Interface> {
    let primary_address: Ipv4Addr = parse(action, "privateIpAddress", eni.private_ip_address())?;
    let attachment = eni.attachment().map(|a| attachment(action, a)).transpose()?.flatten();
    Ok(Interface {
        id: parse(action, "networkInterfaceId", eni.network_interface_id())?,
        mac: mac(action, eni.mac_address())?,
        subnet_id: parse(action, "subnetId", eni.subnet_id())?,
        vpc_id: parse(action, "vpcId", eni.vpc_id())?,
        primary_address,
        secondary_addresses: secondary_addresses(action, eni, primary_address)?,
        prefixes: eni
            .ipv4_prefixes()
            .iter()
            .map(|prefix| parse(action, "ipv4Prefix", prefix.ipv4_prefix()))
            .collect::<CloudResult<_>>()?,
        security_groups: eni
            .groups()
            .iter()
            .map(|group| parse(action, "groupId", group.group_id()))
            .collect::<CloudResult<_>>()?,
        status: status(eni),
        attachment,
        interface_type: eni.interface_type().map_or("interface", |t| t.as_str()).to_owned(),
        description: eni.description().unwrap_or_default().to_owned(),
        tags: tags(eni.tag_set()),
    })
}

/// A MAC, also as moto up to 5.1 (LocalStack) misprints it: a byte as its decimal digits and a literal `02x`.
fn mac(action: &'static str, text: Option<&str>) -> CloudResult<Mac> {
    let text = required(action, "macAddress", text)?;
    let byte = |part: &str| match part.strip_suffix("02x") {
        Some(decimal) => {
            decimal.parse::<u8>().map_or_else(|_| part.to_owned(), |byte| format!("{byte:02x}"))
        }
        None => part.to_owned(),
    };
    let mended = text.split(':').map(byte).collect::<Vec<_>>().join(":");
    parse(action, "macAddress", Some(&mended))
}

/// Each address once: plain LocalStack can list one twice (localstack-tests/tests/plain.rs).
fn secondary_addresses(
    action: &'static str,
    eni: &NetworkInterface,
    primary: Ipv4Addr,
) -> CloudResult<Vec<Ipv4Addr>> {
    let mut addresses: Vec<Ipv4Addr> = Vec::new();
    for listed in eni.private_ip_addresses() {
        let address = parse(action, "privateIpAddress", listed.private_ip_address())?;
        if address != primary && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

/// An attachment's own status is the finer one: the ENI says `in-use` all the while it attaches and detaches.
fn status(eni: &NetworkInterface) -> InterfaceStatus {
    match eni.attachment().and_then(ec2::NetworkInterfaceAttachment::status) {
        Some(AttachmentStatus::Attaching) => return InterfaceStatus::Attaching,
        Some(AttachmentStatus::Detaching) => return InterfaceStatus::Detaching,
        _ => {}
    }
    match eni.status() {
        Some(NetworkInterfaceStatus::Available) => InterfaceStatus::Available,
        Some(NetworkInterfaceStatus::Attaching) => InterfaceStatus::Attaching,
        Some(NetworkInterfaceStatus::Detaching) => InterfaceStatus::Detaching,
        // `associated`: a branch interface with its trunk.
        Some(NetworkInterfaceStatus::InUse | NetworkInterfaceStatus::Associated) => {
            InterfaceStatus::InUse
        }
        // `pending` right after CreateNetworkInterface, and whatever is new: not ready for anything.
        _ => InterfaceStatus::Pending,
    }
}

/// `None` for what holds an ENI but is no instance of ours (a load balancer, a NAT gateway: no instance id).
fn attachment(
    action: &'static str,
    attachment: &ec2::NetworkInterfaceAttachment,
) -> CloudResult<Option<InterfaceAttachment>> {
    if attachment.instance_id().is_none()
        || attachment.status() == Some(&AttachmentStatus::Detached)
    {
        return Ok(None);
    }
    Ok(Some(InterfaceAttachment {
        id: parse(action, "attachmentId", attachment.attachment_id())?,
        instance_id: parse(action, "instanceId", attachment.instance_id())?,
        device_index: number(action, "deviceIndex", attachment.device_index())?,
        network_card: number(
            action,
            "networkCardIndex",
            Some(attachment.network_card_index().unwrap_or(0)),
        )?,
        delete_on_termination: attachment.delete_on_termination().unwrap_or(false),
    }))
}

/// A subnet.
pub(crate) fn subnet(action: &'static str, subnet: &ec2::Subnet) -> CloudResult<Subnet> {
    Ok(Subnet {
        id: parse(action, "subnetId", subnet.subnet_id())?,
        vpc_id: parse(action, "vpcId", subnet.vpc_id())?,
        availability_zone: required(action, "availabilityZone", subnet.availability_zone())?
            .to_owned(),
        cidr: parse(action, "cidrBlock", subnet.cidr_block())?,
        // Below zero on plain LocalStack, which hands out more addresses than there are.
        available_addresses: subnet
            .available_ip_address_count()
            .map_or(0, |count| u32::try_from(count).unwrap_or(0)),
        tags: tags(subnet.tags()),
    })
}

/// An instance type's limits.
pub(crate) fn limits(action: &'static str, info: &InstanceTypeInfo) -> CloudResult<InstanceLimits> {
    let network = required(action, "networkInfo", info.network_info())?;
    let max_enis =
        number(action, "maximumNetworkInterfaces", network.maximum_network_interfaces())?;
    let mut network_cards = network
        .network_cards()
        .iter()
        .map(|card| {
            Ok(NetworkCard {
                index: number(action, "networkCardIndex", card.network_card_index())?,
                max_enis: number(
                    action,
                    "maximumNetworkInterfaces",
                    card.maximum_network_interfaces(),
                )?,
            })
        })
        .collect::<CloudResult<Vec<_>>>()?;
    if network_cards.is_empty() {
        network_cards.push(NetworkCard { index: 0, max_enis });
    }
    Ok(InstanceLimits {
        max_enis,
        addresses_per_eni: number(
            action,
            "ipv4AddressesPerInterface",
            network.ipv4_addresses_per_interface(),
        )?,
        default_network_card: number(
            action,
            "defaultNetworkCardIndex",
            Some(network.default_network_card_index().unwrap_or(0)),
        )?,
        network_cards,
        hypervisor: match info.hypervisor() {
            Some(InstanceTypeHypervisor::Nitro) => Hypervisor::Nitro,
            Some(InstanceTypeHypervisor::Xen) => Hypervisor::Xen,
            _ => Hypervisor::Unknown,
        },
        bare_metal: info.bare_metal().unwrap_or(false),
    })
}

#[cfg(test)]
mod tests {
    use aws_sdk_ec2::types::{NetworkInterfaceAttachment, NetworkInterfacePrivateIpAddress};

    use super::*;

    const ACTION: &str = "DescribeNetworkInterfaces";

    fn address(address: &str) -> NetworkInterfacePrivateIpAddress {
        NetworkInterfacePrivateIpAddress::builder().private_ip_address(address).build()
    }

    fn an_eni() -> aws_sdk_ec2::types::builders::NetworkInterfaceBuilder {
        NetworkInterface::builder()
            .network_interface_id("eni-1")
            .mac_address("02:00:00:00:00:01")
            .subnet_id("subnet-1")
            .vpc_id("vpc-1")
            .private_ip_address("10.0.0.4")
            .private_ip_addresses(address("10.0.0.4"))
            .private_ip_addresses(address("10.0.0.5"))
            .private_ip_addresses(address("10.0.0.5"))
            .status(NetworkInterfaceStatus::InUse)
    }

    fn attached(status: AttachmentStatus) -> NetworkInterfaceAttachment {
        NetworkInterfaceAttachment::builder()
            .attachment_id("eni-attach-1")
            .instance_id("i-1")
            .device_index(2)
            .status(status)
            .build()
    }

    #[test]
    fn an_interface_lists_each_secondary_address_once_and_not_its_own() {
        let eni = interface(ACTION, &an_eni().build()).unwrap();
        assert_eq!(eni.primary_address, Ipv4Addr::new(10, 0, 0, 4));
        assert_eq!(eni.secondary_addresses, [Ipv4Addr::new(10, 0, 0, 5)]);
        assert_eq!(eni.interface_type, "interface");
        assert_eq!(eni.attachment, None);
    }

    #[test]
    fn the_attachments_status_is_the_interfaces() {
        for (status, expect) in [
            (AttachmentStatus::Attaching, InterfaceStatus::Attaching),
            (AttachmentStatus::Attached, InterfaceStatus::InUse),
            (AttachmentStatus::Detaching, InterfaceStatus::Detaching),
        ] {
            let eni = interface(ACTION, &an_eni().attachment(attached(status)).build()).unwrap();
            assert_eq!(eni.status, expect);
            assert_eq!(eni.attachment.map(|a| a.device_index), Some(2));
        }
    }

    #[test]
    fn an_answer_without_what_ec2_always_sends_names_the_field() {
        let eni = an_eni().set_mac_address(None).build();
        let error = interface(ACTION, &eni).unwrap_err();
        assert_eq!(
            (error.class, error.message.as_str()),
            (ErrorClass::Transient, "macAddress: missing")
        );
    }

    #[test]
    fn a_mac_is_read_as_ec2_and_as_moto_prints_it() {
        for (text, expect) in [
            ("02:00:00:fa:07:5b", Some("02:00:00:fa:07:5b")),
            ("02:00:00:25002x:702x:9102x", Some("02:00:00:fa:07:5b")),
            ("02:00:00:25602x:702x:9102x", None),
            ("02:00:00:02x:702x:9102x", None),
        ] {
            let read = mac(ACTION, Some(text)).ok().map(|mac| mac.to_string());
            assert_eq!(read.as_deref(), expect, "{text}");
        }
    }

    #[test]
    fn a_subnet_below_zero_has_no_address() {
        let described = ec2::Subnet::builder()
            .subnet_id("subnet-1")
            .vpc_id("vpc-1")
            .availability_zone("eu-central-1a")
            .cidr_block("10.0.0.0/28")
            .available_ip_address_count(-3)
            .build();
        assert_eq!(subnet("DescribeSubnets", &described).unwrap().available_addresses, 0);
    }
}
