//! EC2's refusals: code and words as EC2 has them ("Error codes for the Amazon EC2 API"), class as we read them.

use std::net::Ipv4Addr;

use veni_core::id::{
    AttachmentId, EniId, InstanceId, InstanceType, PrefixListId, SecurityGroupId, SubnetId,
};

use crate::{ErrorClass, call::Failure};

fn not_found(code: &str, kind: &str, id: &str) -> Failure {
    Failure::new(ErrorClass::NotFound, code, format!("The {kind} '{id}' does not exist"))
}

pub(super) fn invalid(code: &str, message: impl Into<String>) -> Failure {
    Failure::new(ErrorClass::Invalid, code, message)
}

pub(super) fn no_eni(eni: &EniId) -> Failure {
    not_found("InvalidNetworkInterfaceID.NotFound", "networkInterface ID", eni.as_str())
}

pub(super) fn no_attachment(attachment: &AttachmentId) -> Failure {
    not_found("InvalidAttachmentID.NotFound", "attachment ID", attachment.as_str())
}

pub(super) fn no_subnet(subnet: &SubnetId) -> Failure {
    not_found("InvalidSubnetID.NotFound", "subnet ID", subnet.as_str())
}

pub(super) fn no_group(group: &SecurityGroupId) -> Failure {
    not_found("InvalidGroup.NotFound", "security group", group.as_str())
}

pub(super) fn no_prefix_list(list: &PrefixListId) -> Failure {
    not_found("InvalidPrefixListID.NotFound", "prefix list ID", list.as_str())
}

pub(super) fn no_instance(instance: &InstanceId) -> Failure {
    not_found("InvalidInstanceID.NotFound", "instance ID", instance.as_str())
}

pub(super) fn no_type(kind: &InstanceType) -> Failure {
    let class = ErrorClass::UnknownInstanceType(kind.clone());
    Failure::new(
        class,
        "InvalidInstanceType",
        format!("The following supplied instance types do not exist: [{kind}]"),
    )
}

pub(super) fn subnet_full(subnet: &SubnetId) -> Failure {
    let class = ErrorClass::SubnetExhausted { subnet: Some(subnet.clone()) };
    let message =
        "The specified subnet does not have enough free addresses to satisfy the request.";
    Failure::new(class, "InsufficientFreeAddressesInSubnet", message)
}

pub(super) fn no_prefix(subnet: &SubnetId) -> Failure {
    let class = ErrorClass::SubnetExhausted { subnet: Some(subnet.clone()) };
    let message =
        "The specified subnet does not have enough free cidr blocks to satisfy the request.";
    Failure::new(class, "InsufficientCidrBlocks", message)
}

pub(super) fn too_many_addresses(eni: Option<&EniId>) -> Failure {
    let class = ErrorClass::AddressLimit { eni: eni.cloned() };
    Failure::new(
        class,
        "PrivateIpAddressLimitExceeded",
        "Number of private addresses will exceed limit.",
    )
}

pub(super) fn too_many_attachments(limit: u32, kind: &InstanceType) -> Failure {
    let message = format!("Interface count {} exceeds the limit for {kind}", u64::from(limit) + 1);
    Failure::new(ErrorClass::AttachmentLimit, "AttachmentLimitExceeded", message)
}

pub(super) fn index_taken(instance: &InstanceId, index: u8) -> Failure {
    let message = format!(
        "Instance '{instance}' already has an interface attached at device index '{index}'."
    );
    Failure::new(ErrorClass::AttachmentLimit, "InvalidParameterValue", message)
}

pub(super) fn in_use(eni: &EniId) -> Failure {
    invalid("InvalidParameterValue", format!("Network interface '{eni}' is currently in use."))
}

pub(super) fn not_assigned(eni: &EniId, address: Ipv4Addr) -> Failure {
    let message =
        format!("Some of the specified addresses are not assigned to interface {eni}: {address}");
    invalid("InvalidParameterValue", message)
}

pub(super) fn token_reused() -> Failure {
    invalid(
        "IdempotentParameterMismatch",
        "The specified client token was used with different parameters.",
    )
}

pub(super) fn quota() -> Failure {
    let message = "The maximum number of network interfaces has been reached.";
    Failure::new(ErrorClass::Quota, "NetworkInterfaceLimitExceeded", message)
}

pub(super) fn throttled(retry_after_millis: Option<u64>) -> Failure {
    let class = ErrorClass::Throttled { retry_after_millis };
    Failure::new(class, "RequestLimitExceeded", "Request limit exceeded.")
}

pub(super) fn denied(action: &str) -> Failure {
    let class = ErrorClass::Denied { action: action.into() };
    Failure::new(
        class,
        "UnauthorizedOperation",
        "You are not authorized to perform this operation.",
    )
}
