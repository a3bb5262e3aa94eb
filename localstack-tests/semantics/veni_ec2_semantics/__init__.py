"""Gives LocalStack's EC2 (moto) the semantics of real network interfaces, for the tests of an IPAM daemon.

Plain moto hands out the same address twice, ignores limits, prefixes, device indexes, client tokens and pages, and
attaches at once (localstack-tests/tests/plain.rs asserts what it gets wrong). This package mends that, and adds what a
test has to be able to ask for: refusals before and after the effect, delays, and ENIs that Describe does not show yet.

Modules: `addresses` (what a subnet has left), `limits` (what a type takes), `interfaces` (the actions), `lifecycle`
(attaching and detaching take time), `instances` (the primary interface), `security_groups` (rules and prefix lists),
`control` (the file that a test writes), `dispatch` (one call at a time, and the log), `feed` (what becomes of ENIs, told as it
happens), `hook` (LocalStack's entry point).

Deliberately absent: IPv6 (but for addresses that are named), elastic addresses, permissions, and anything that ipamd
does not call.
"""

from . import dispatch, instances, interfaces, lifecycle, security_groups

_applied = False


def apply():
    """Patches moto, once, for this process."""
    global _applied
    if _applied:
        return
    _applied = True
    lifecycle.patch()
    instances.patch()
    interfaces.patch()
    security_groups.patch()
    dispatch.patch()
