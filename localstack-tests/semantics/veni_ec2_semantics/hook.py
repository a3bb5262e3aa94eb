"""The entry point by which LocalStack loads this package (`localstack.hooks.on_infra_start`).

Loaded only when VENI_EC2_SEMANTICS=1, so that one installation serves the plain tier too.
"""

import os

from localstack.runtime import hooks

from . import apply, feed


def _wanted():
    return os.environ.get("VENI_EC2_SEMANTICS") == "1"


@hooks.on_infra_start(should_load=_wanted)
def install():
    apply()
    feed.open_socket()
