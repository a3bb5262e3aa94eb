"""Tells whoever listens at the Unix socket that VENI_EC2_FEED names what becomes of ENIs, as it happens: one JSON object
a line, {"interface": …} for each ENI that is new or not as it was told last (`veni_provider::Interface`), {"gone": id} for
one that is no more.

A call's news is written before the call is answered. What time brings (an attachment that is complete) is told when it
is due, without a call.
"""

import json
import os
import socket
import threading
import time

from . import addresses, lifecycle

# What was told of each backend's ENIs, by the backend's account and region.
_told = {}
_feed = None
_STATUS = {"in-use": "in_use"}


def open_socket():
    """Connects, when somebody listens."""
    global _feed
    path = os.environ.get("VENI_EC2_FEED")
    if path:
        _feed = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        _feed.connect(path)


def tell(backend, calls):
    """Tells what has changed; `calls` is the lock under which ENIs change, which the caller holds."""
    if _feed is None:
        return
    told = _told.setdefault((backend.account_id, backend.region_name), {})
    now = {eni.id: _state(eni) for eni in backend.enis.values()}
    news = [{"interface": state} for eni_id, state in now.items() if told.get(eni_id) != state]
    news += [{"gone": eni_id} for eni_id in told.keys() - now.keys()]
    told.clear()
    told.update(now)
    if news:
        _feed.sendall("".join(json.dumps(line) + "\n" for line in news).encode())
        _look_again(backend, calls)


def _look_again(backend, calls):
    """When the next attachment or detachment is complete."""
    due = [eni.settles_at for eni in backend.enis.values() if eni.settles_at is not None]
    if not due:
        return

    def look():
        with calls:
            lifecycle.settle(backend)
            tell(backend, calls)

    timer = threading.Timer(max(min(due) - time.monotonic(), 0), look)
    timer.daemon = True
    timer.start()


def _state(eni):
    held = addresses.of(eni)
    return {
        "id": eni.id,
        "mac": eni.mac_address,
        "subnet_id": eni.subnet.id,
        "vpc_id": eni.subnet.vpc_id,
        "primary_address": eni.private_ip_address,
        "secondary_addresses": [a for a in held if a != eni.private_ip_address],
        "prefixes": addresses.prefixes_of(eni),
        "security_groups": [group.id for group in eni.group_set],
        "status": _STATUS.get(eni.status, eni.status),
        "attachment": _attachment(eni),
        "interface_type": eni.interface_type,
        "description": eni.description,
        "tags": {tag["key"]: tag["value"] for tag in eni.get_tags()},
    }


def _attachment(eni):
    if eni.instance is None or eni.attachment_id is None:
        return None
    return {
        "id": eni.attachment_id,
        "instance_id": eni.instance.id,
        "device_index": eni.device_index,
        "network_card": eni.network_card,
        "delete_on_termination": bool(eni.delete_on_termination),
    }
