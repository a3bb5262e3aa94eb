"""What an instance type takes, from moto's copy of DescribeInstanceTypes."""

from moto.ec2.models.instance_types import INSTANCE_TYPES

# What an ENI may hold while it is attached to nothing: no type takes more.
UNATTACHED_ADDRESSES = 64


def network(instance_type):
    return INSTANCE_TYPES.get(instance_type, {}).get("NetworkInfo", {})


def addresses_per_interface(instance):
    if instance is None:
        return UNATTACHED_ADDRESSES
    return network(instance.instance_type).get("Ipv4AddressesPerInterface", UNATTACHED_ADDRESSES)


def cards(instance_type):
    """{card index: how many ENIs it takes}."""
    info = network(instance_type)
    found = {c["NetworkCardIndex"]: c["MaximumNetworkInterfaces"] for c in info.get("NetworkCards", [])}
    return found or {0: info.get("MaximumNetworkInterfaces", 15)}
