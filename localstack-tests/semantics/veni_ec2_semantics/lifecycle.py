"""Attaching and detaching take time; a new ENI can stay invisible for a while.

No thread: what is due has happened when the next call looks (`settle`).
"""

import random
import time

from moto.ec2.models import elastic_network_interfaces as moto_enis

from . import control


def patch():
    original = moto_enis.NetworkInterface.__init__

    def init(self, *args, **kwargs):
        original(self, *args, **kwargs)
        # moto prints a byte as its decimal digits and a literal "02x".
        self.mac_address = "02:" + ":".join(f"{random.randrange(256):02x}" for _ in range(5))
        self.ipv4_prefixes = []
        self.network_card = 0
        self.attachment_status = None
        self.settles_at = None
        self.visible_at = 0.0
        self.request = None

    moto_enis.NetworkInterface.__init__ = init

    original_attachment = moto_enis.Attachment.__init__

    def attachment_init(self, eni):
        original_attachment(self, eni)
        self.network_card_index = eni.network_card
        self.status = eni.attachment_status or "attached"

    moto_enis.Attachment.__init__ = attachment_init


def created(eni):
    eni.visible_at = time.monotonic() + control.delay("create_visible_ms")


def visible(eni):
    return time.monotonic() >= eni.visible_at


def attaching(eni, card):
    eni.network_card = card
    _start(eni, "attaching", control.delay("attach_ms"))


def detaching(eni):
    _start(eni, "detaching", control.delay("detach_ms"))


def _start(eni, status, seconds):
    eni.attachment_status = status
    eni.status = status
    eni.settles_at = time.monotonic() + seconds
    if seconds == 0:
        _finish(eni)


def settle(backend):
    """Completes what is due."""
    now = time.monotonic()
    for eni in list(backend.enis.values()):
        if eni.settles_at is not None and now >= eni.settles_at:
            _finish(eni)


def _finish(eni):
    eni.settles_at = None
    if eni.attachment_status == "attaching":
        eni.attachment_status = "attached"
        eni.status = "in-use"
        return
    if eni.instance is not None:
        # moto keys an instance's ENIs by device index alone; `attach` files those of other cards apart.
        nics = eni.instance.nics
        for key in [key for key, nic in nics.items() if nic is eni]:
            nics.pop(key)
    eni.instance = None
    eni.attachment_id = None
    eni.attach_time = None
    eni.attachment_status = None
    eni.device_index = None
    eni.network_card = 0
    eni.delete_on_termination = False
    eni.status = "available"
