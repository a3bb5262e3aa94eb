"""EC2's refusals: codes and words as EC2 has them ("Error codes for the Amazon EC2 API")."""

from moto.ec2.exceptions import EC2ClientError


def refused(code, message):
    return EC2ClientError(code, message)


def subnet_full():
    return refused(
        "InsufficientFreeAddressesInSubnet",
        "The specified subnet does not have enough free addresses to satisfy the request.",
    )


def no_prefix():
    return refused(
        "InsufficientCidrBlocks",
        "The specified subnet does not have enough free cidr blocks to satisfy the request.",
    )


def too_many_addresses():
    return refused("PrivateIpAddressLimitExceeded", "Number of private addresses will exceed limit.")


def too_many_attachments(limit, instance_type):
    return refused("AttachmentLimitExceeded", f"Interface count {limit + 1} exceeds the limit for {instance_type}")


def index_taken(instance_id, index):
    return refused(
        "InvalidParameterValue",
        f"Instance '{instance_id}' already has an interface attached at device index '{index}'.",
    )


def in_use(eni_id):
    return refused("InvalidParameterValue", f"Network interface '{eni_id}' is currently in use.")


def no_attachment(attachment_id):
    return refused("InvalidAttachmentID.NotFound", f"The attachment ID '{attachment_id}' does not exist")


def no_group(group_id):
    return refused("InvalidGroup.NotFound", f"The security group '{group_id}' does not exist")


def no_prefix_list(list_id):
    return refused("InvalidPrefixListID.NotFound", f"The prefix list ID '{list_id}' does not exist")


def invalid(message, code="InvalidParameterValue"):
    return refused(code, message)
