"""Security group rules and managed prefix lists, as EC2 tells them: pages, unknown lists, protocols without ports."""

import base64

from moto.core.responses import ActionResult
from moto.ec2.models.security_groups import SecurityGroupRule
from moto.ec2.responses.security_groups import SecurityGroups
from moto.ec2.responses.vpcs import VPCs

from . import errors

# Those of which EC2 reads the ports; for every other protocol it ignores them.
_WITH_PORTS = ("tcp", "udp", "icmp", "icmpv6", "6", "17", "1", "58")


def patch():
    SecurityGroups.describe_security_group_rules = describe_rules
    VPCs.get_managed_prefix_list_entries = entries
    original = SecurityGroupRule.__init__

    def init(self, ec2_backend, ip_protocol, group_id, from_port, to_port, *args, **kwargs):
        protocol = str(ip_protocol).lower()
        if protocol not in _WITH_PORTS:
            from_port = to_port = -1
        original(self, ec2_backend, ip_protocol, group_id, from_port, to_port, *args, **kwargs)
        if protocol == "58":
            self.ip_protocol = "icmpv6"
        self.group_owner_id = ec2_backend.account_id

    SecurityGroupRule.__init__ = init


def describe_rules(self):
    """describe_security_group_rules: pages."""
    self.error_on_dryrun()
    ids = self._get_param("SecurityGroupRuleIds", [])
    found = self.ec2_backend.describe_security_group_rules(ids, self._filters_from_querystring())
    page, following = _page(self, found, 5, 1000)
    return ActionResult({"SecurityGroupRules": page, "NextToken": following})


def entries(self):
    """get_managed_prefix_list_entries: pages, of a list and a version that exist."""
    list_id, version = self._get_param("PrefixListId"), self._get_param("TargetVersion")
    found = self.ec2_backend.get_managed_prefix_list_entries(list_id)
    if found is None:
        raise errors.no_prefix_list(list_id)
    # AWS's own lists have entries and no version.
    newest = list(found.entries.values())[-1] if found.entries else []
    if version and int(version) not in found.entries:
        raise errors.invalid(f"{list_id} has no version {version}")
    page, following = _page(self, found.entries[int(version)] if version else newest, 1, 100)
    return ActionResult({"Entries": page, "NextToken": following})


def _page(response, found, least, most):
    size, token = response._get_param("MaxResults"), response._get_param("NextToken")
    if size and not least <= int(size) <= most:
        raise errors.invalid(f"Value ( {size} ) for parameter maxResults is invalid. Expecting a value from {least} to {most}.")
    offset = int(base64.b64decode(token)) if token else 0
    end = offset + int(size) if size else len(found)
    following = base64.b64encode(str(end).encode()).decode() if end < len(found) else None
    return found[offset:end], following
