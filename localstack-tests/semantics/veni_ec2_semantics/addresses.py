"""What a subnet has left: single addresses and whole /28 blocks.

AWS, "Subnet CIDR blocks": the first four addresses and the last one of a subnet are not handed out.
"""

import ipaddress
import random

from . import errors

RESERVED_AT_START = 4
PREFIX_LENGTH = 28
PREFIX_SIZE = 1 << (32 - PREFIX_LENGTH)


def of(eni):
    """The IPv4 addresses of an ENI, as text."""
    return [entry["PrivateIpAddress"] for entry in eni.private_ip_addresses]


def prefixes_of(eni):
    return [entry["Ipv4Prefix"] for entry in eni.ipv4_prefixes]


def reserved(subnet):
    first = int(subnet.cidr.network_address)
    return set(range(first, first + RESERVED_AT_START)) | {int(subnet.cidr.broadcast_address)}


def taken(backend, subnet):
    """Every address that cannot be handed out now, as integers."""
    held = reserved(subnet)
    # Addresses of instances, and of other services' endpoints, which moto keeps apart from its ENIs.
    held |= {int(ipaddress.ip_address(a)) for a in subnet._subnet_ips if "." in str(a)}
    for eni in backend.enis.values():
        if eni.subnet.id != subnet.id:
            continue
        held |= {int(ipaddress.ip_address(a)) for a in of(eni)}
        for prefix in prefixes_of(eni):
            held |= _block(prefix)
    return held


def available(backend, subnet):
    return subnet.cidr.num_addresses - len(taken(backend, subnet))


def choose(backend, subnet, count):
    """`count` free addresses, all or nothing; at random, as EC2's choice looks from outside."""
    if count <= 0:
        return []
    held = taken(backend, subnet)
    free = [a for a in _all(subnet) if a not in held]
    if len(free) < count:
        raise errors.subnet_full()
    return [str(ipaddress.ip_address(a)) for a in random.sample(free, count)]


def choose_prefixes(backend, subnet, count):
    """`count` aligned /28 blocks of which nothing is in use; all or nothing."""
    held = taken(backend, subnet)
    chosen = []
    for start in range(int(subnet.cidr.network_address), int(subnet.cidr.broadcast_address), PREFIX_SIZE):
        if len(chosen) == count:
            break
        if held.isdisjoint(range(start, start + PREFIX_SIZE)):
            chosen.append(f"{ipaddress.ip_address(start)}/{PREFIX_LENGTH}")
    if len(chosen) < count:
        raise errors.no_prefix()
    return chosen


def check(backend, subnet, wanted):
    """Refuses addresses named by the caller that cannot be given."""
    held = taken(backend, subnet)
    for text in wanted:
        address = ipaddress.ip_address(text)
        if address not in subnet.cidr:
            raise errors.invalid(f"Address {text} does not fall within the subnet's address range")
        if int(address) in reserved(subnet):
            raise errors.invalid(f"Address {text} is in subnet's reserved address range")
        if int(address) in held:
            raise errors.invalid(f"Address {text} is in use.", code="InvalidIPAddress.InUse")


def check_prefixes(backend, subnet, wanted):
    held = taken(backend, subnet)
    for text in wanted:
        network = ipaddress.ip_network(text)
        inside = network.prefixlen == PREFIX_LENGTH and network.subnet_of(subnet.cidr)
        if not inside or not held.isdisjoint(_block(text)):
            raise errors.invalid(f"Cidr {text} is not available")


def _all(subnet):
    first = int(subnet.cidr.network_address)
    return range(first, first + subnet.cidr.num_addresses)


def _block(prefix):
    start = int(ipaddress.ip_network(prefix).network_address)
    return set(range(start, start + PREFIX_SIZE))
