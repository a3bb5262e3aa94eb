"""The actions on network interfaces, as EC2 does them: its checks in its order, then the effect, all or nothing."""

import base64

from moto.core.responses import ActionResult, EmptyResult
from moto.ec2.models import elastic_network_interfaces as moto_enis
from moto.ec2.responses.elastic_network_interfaces import ElasticNetworkInterfaces
from moto.ec2.responses.tags import TagResponse
from moto.ec2.utils import add_tag_specification

from . import addresses, errors, lifecycle, limits


def patch():
    global _modify_rest, _filter_rest
    _modify_rest = ElasticNetworkInterfaces.modify_network_interface_attribute
    _filter_rest = moto_enis.NetworkInterface.get_filter_value
    for action in (create, describe, attach, detach, delete, modify, assign, unassign):
        setattr(ElasticNetworkInterfaces, action.__doc__.split(":")[0], action)
    moto_enis.NetworkInterface.get_filter_value = _filter_value
    _patch_tags()


def _patch_tags():
    original = TagResponse.create_tags

    def create_tags(self):
        for resource in self._get_param("Resources", []):
            if resource.startswith("eni-"):
                self.ec2_backend.get_network_interface(resource)
        return original(self)

    TagResponse.create_tags = create_tags


# The methods of moto that this module falls back to, set by `patch`.
_modify_rest = None
_filter_rest = None


def create(self):
    """create_network_interface: unique addresses or prefixes; the same token returns the same ENI."""
    backend = self.ec2_backend
    subnet = backend.get_subnet(self._get_param("SubnetId"))
    groups = self._get_param("Groups", [])
    _check_groups(backend, groups)
    self.error_on_dryrun()
    token, request = self._get_param("ClientToken"), _request(self)
    made = _made_with(backend, token, request)
    if made is not None:
        return ActionResult({"NetworkInterface": made, "ClientToken": token})
    count, prefix_count = _number(self, "SecondaryPrivateIpAddressCount"), _number(self, "Ipv4PrefixCount")
    named, prefixes = _named_addresses(self), _named_prefixes(self)
    if count and (prefix_count or prefixes):
        raise errors.invalid(
            "You may not specify both SecondaryPrivateIpAddressCount and Ipv4PrefixCount.",
            code="InvalidParameterCombination",
        )
    if max(len(named), 1) + count + prefix_count + len(prefixes) > limits.UNATTACHED_ADDRESSES:
        raise errors.too_many_addresses()
    addresses.check(backend, subnet, named)
    addresses.check_prefixes(backend, subnet, prefixes)
    held = named + addresses.choose(backend, subnet, count + (0 if named else 1))
    eni = backend.create_network_interface(
        subnet,
        held[0],
        [{"Primary": i == 0, "PrivateIpAddress": a} for i, a in enumerate(held)],
        groups,
        self._get_param("Description"),
        add_tag_specification(self._get_param("TagSpecifications", [])),
    )
    try:
        eni.ipv4_prefixes = _entries(prefixes)
        eni.ipv4_prefixes += _entries(addresses.choose_prefixes(backend, subnet, prefix_count))
    except Exception:
        backend.enis.pop(eni.id)
        raise
    eni.ipv6_addresses = [x["Ipv6Address"] for x in self._get_param("Ipv6Addresses", [])]
    eni.request = (token, request)
    eni.interface_type = self._get_param("InterfaceType") or "interface"
    lifecycle.created(eni)
    return ActionResult({"NetworkInterface": eni, "ClientToken": token})


def describe(self):
    """describe_network_interfaces: pages, and not those that are invisible yet."""
    ids, most = self._get_param("NetworkInterfaceIds", []), _number(self, "MaxResults")
    self.error_on_dryrun()
    if ids and most:
        raise errors.invalid(
            "The parameter MaxResults cannot be used with the parameter NetworkInterfaceIds",
            code="InvalidParameterCombination",
        )
    backend = self.ec2_backend
    hidden = [eni.id for eni in backend.enis.values() if not lifecycle.visible(eni)]
    for eni_id in ids:
        if eni_id in hidden:
            raise moto_enis.InvalidNetworkInterfaceIdError(eni_id)
    found = backend.get_all_network_interfaces(ids, self._filters_from_querystring())
    found = [eni for eni in found if eni.id not in hidden]
    return ActionResult(_page(found, most, self._get_param("NextToken")))


def attach(self):
    """attach_network_interface: checks the zone, the card, the index and the limits; takes time."""
    backend = self.ec2_backend
    eni = backend.get_network_interface(self._get_param("NetworkInterfaceId"))
    instance = backend.get_instance(self._get_param("InstanceId"))
    index, card = _number(self, "DeviceIndex"), _number(self, "NetworkCardIndex")
    self.error_on_dryrun()
    if eni.attachment_id is not None:
        raise errors.in_use(eni.id)
    if eni.availability_zone != instance._placement.zone:
        raise errors.invalid(
            "The network interface and the instance are not in the same availability zone.",
            code="InvalidParameterCombination",
        )
    _check_place(backend, instance, index, card)
    if len(eni.private_ip_addresses) + len(eni.ipv4_prefixes) > limits.addresses_per_interface(instance):
        raise errors.too_many_addresses()
    others = dict(instance.nics)
    instance.attach_eni(eni, index)
    # moto has one ENI an index; another card's has a place of its own.
    instance.nics.clear()
    instance.nics.update(others)
    instance.nics[index if card == 0 else 1000 * card + index] = eni
    eni.delete_on_termination = False
    lifecycle.attaching(eni, card)
    return ActionResult({"AttachmentId": eni.attachment_id, "NetworkCardIndex": card})


def detach(self):
    """detach_network_interface: takes time; never the primary."""
    attachment_id = self._get_param("AttachmentId")
    self.error_on_dryrun()
    eni = _attached(self.ec2_backend, attachment_id)
    if eni.device_index == 0 and eni.network_card == 0:
        raise errors.invalid(
            "The network interface at device index 0 cannot be detached.", code="OperationNotPermitted"
        )
    if eni.attachment_status == "attaching":
        raise errors.invalid(
            f"Attachment '{attachment_id}' is not in a state to be detached.", code="IncorrectState"
        )
    if eni.attachment_status != "detaching":
        lifecycle.detaching(eni)
    return EmptyResult()


def delete(self):
    """delete_network_interface: not while it is attached."""
    eni = self.ec2_backend.get_network_interface(self._get_param("NetworkInterfaceId"))
    self.error_on_dryrun()
    if eni.attachment_id is not None:
        raise errors.in_use(eni.id)
    self.ec2_backend.delete_network_interface(eni.id)
    for address in addresses.of(eni):
        eni.subnet.del_subnet_ip(address)
    return EmptyResult()


def modify(self):
    """modify_network_interface_attribute: replaces groups; changes an attachment."""
    backend = self.ec2_backend
    eni = backend.get_network_interface(self._get_param("NetworkInterfaceId"))
    attachment_id = self._get_param("Attachment.AttachmentId")
    if attachment_id:
        if eni.attachment_id != attachment_id:
            raise errors.no_attachment(attachment_id)
        wanted = self._get_param("Attachment.DeleteOnTermination")
        eni.delete_on_termination = str(wanted).lower() == "true"
        return EmptyResult()
    groups = self._get_param("Groups", [])
    _check_groups(backend, groups)
    if not groups and all(self._get_param(f"{name}.Value") is None for name in ("SourceDestCheck", "Description")):
        raise errors.invalid("No attributes specified.", code="InvalidParameterCombination")
    return _modify_rest(self)


def assign(self):
    """assign_private_ip_addresses: answers with the new ones."""
    backend = self.ec2_backend
    eni = backend.get_network_interface(self._get_param("NetworkInterfaceId"))
    named, count = self._get_param("PrivateIpAddresses", []), _number(self, "SecondaryPrivateIpAddressCount")
    prefixes, prefix_count = _named_prefixes(self), _number(self, "Ipv4PrefixCount")
    asked = len(named) + count + len(prefixes) + prefix_count
    if asked == 0:
        raise errors.invalid("secondaryPrivateIpAddressCount must be positive")
    held = len(eni.private_ip_addresses) + len(eni.ipv4_prefixes)
    if held + asked > limits.addresses_per_interface(eni.instance):
        raise errors.too_many_addresses()
    addresses.check(backend, eni.subnet, named)
    addresses.check_prefixes(backend, eni.subnet, prefixes)
    new = named + addresses.choose(backend, eni.subnet, count)
    new_prefixes = prefixes + addresses.choose_prefixes(backend, eni.subnet, prefix_count)
    eni.private_ip_addresses.extend({"Primary": False, "PrivateIpAddress": a} for a in new)
    eni.ipv4_prefixes.extend(_entries(new_prefixes))
    return ActionResult(
        {
            "NetworkInterfaceId": eni.id,
            "AssignedPrivateIpAddresses": [{"PrivateIpAddress": a} for a in new],
            "AssignedIpv4Prefixes": _entries(new_prefixes),
        }
    )


def unassign(self):
    """unassign_private_ip_addresses: all or nothing, and never the primary."""
    eni = self.ec2_backend.get_network_interface(self._get_param("NetworkInterfaceId"))
    gone, prefixes = self._get_param("PrivateIpAddresses", []), _named_prefixes(self)
    if not gone and not prefixes:
        raise errors.invalid("The request must contain privateIpAddress", code="MissingParameter")
    secondary = [a for a in addresses.of(eni) if a != eni.private_ip_address]
    foreign = [a for a in gone if a not in secondary] + [p for p in prefixes if p not in addresses.prefixes_of(eni)]
    if foreign:
        raise errors.invalid(
            f"Some of the specified addresses are not assigned to interface {eni.id}: {', '.join(foreign)}"
        )
    eni.private_ip_addresses = [e for e in eni.private_ip_addresses if e["PrivateIpAddress"] not in gone]
    eni.ipv4_prefixes = [e for e in eni.ipv4_prefixes if e["Ipv4Prefix"] not in prefixes]
    for address in gone:
        eni.subnet.del_subnet_ip(address)
    return EmptyResult()


def _number(response, name):
    return int(response._get_param(name) or 0)


def _entries(prefixes):
    return [{"Ipv4Prefix": p} for p in prefixes]


def _named_addresses(response):
    """The addresses that a CreateNetworkInterface names, the primary first."""
    one = response._get_param("PrivateIpAddress")
    listed = [x["PrivateIpAddress"] if isinstance(x, dict) else x for x in response._get_param("PrivateIpAddresses", [])]
    return [one] if one else listed


def _named_prefixes(response):
    return [x["Ipv4Prefix"] if isinstance(x, dict) else x for x in response._get_param("Ipv4Prefixes", [])]


def _request(response):
    """What a repeated token must repeat."""
    names = ("SubnetId", "Groups", "Description", "SecondaryPrivateIpAddressCount", "Ipv4PrefixCount", "TagSpecifications")
    return tuple(str(response._get_param(name)) for name in names)


def _made_with(backend, token, request):
    for eni in backend.enis.values():
        if token and eni.request and eni.request[0] == token:
            if eni.request[1] != request:
                raise errors.invalid(
                    "The specified client token was used with different parameters.",
                    code="IdempotentParameterMismatch",
                )
            return eni
    return None


def _check_groups(backend, groups):
    for group in groups:
        if not backend.get_security_group_from_id(group):
            raise errors.no_group(group)


def _check_place(backend, instance, index, card):
    cards = limits.cards(instance.instance_type)
    if card not in cards:
        raise errors.invalid(f"Network card index {card} is not valid for {instance.instance_type}")
    on_card = [e for e in backend.enis.values() if e.instance is instance and e.network_card == card]
    if any(e.device_index == index for e in on_card):
        raise errors.index_taken(instance.id, index)
    if len(on_card) >= cards[card]:
        raise errors.too_many_attachments(cards[card], instance.instance_type)


def _attached(backend, attachment_id):
    for eni in backend.enis.values():
        if attachment_id and eni.attachment_id == attachment_id:
            return eni
    raise errors.no_attachment(attachment_id)


def _page(found, most, token):
    offset = int(base64.b64decode(token)) if token else 0
    end = offset + most if most else len(found)
    following = base64.b64encode(str(end).encode()).decode() if end < len(found) else None
    return {"NetworkInterfaces": found[offset:end], "NextToken": following}


def _filter_value(eni, name, method_name=None):
    if name in ("addresses.private-ip-address", "private-ip-address"):
        return addresses.of(eni)
    if name == "attachment.device-index":
        return str(eni.device_index) if eni.instance else None
    if name == "attachment.status":
        return eni.attachment_status
    return _filter_rest(eni, name, method_name)
