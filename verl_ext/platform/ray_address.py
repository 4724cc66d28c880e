"""A Ray of a run's own listens on this machine's loopback; with it all that verl, TransferQueue and vLLM open.

They listen on the address that Ray calls its node's. TransferQueue's key is `run/sealed_queue.py`'s, torch's stores are
`torch_store.py`'s.
"""

import os
import secrets
from typing import Any

from ray._private import ray_constants

from verl_ext.run.loopback import ENVIRONMENT
from verl_ext.run.ray_token import OWN_RAY, RAY_TOKEN, is_own


def keep_to_loopback(ray_init: dict[str, Any]) -> dict[str, Any]:
    """`ray_init` such that nothing of a Ray of our own listens elsewhere; that of a running cluster as it is.

    Call before `ray.init`. Ray turns a `_node_ip_address` of 127.0.0.1 into the machine's outside address; the switch
    that it has for desktops, whose firewalls ask at every port, makes it stay.
    """
    if not is_own(ray_init["address"]):
        return ray_init
    # Else Ray makes one for all runs of a user, and writes it into a file that every user may read.
    os.environ.setdefault(RAY_TOKEN, secrets.token_hex(32))
    os.environ[ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR] = "0"  # what Ray's processes read
    ray_constants.ENABLE_RAY_CLUSTER = False  # what this one read when it imported Ray
    runtime = ray_init["runtime_env"]
    # Without an address Ray would look for a cluster to join.
    return ray_init | {"address": OWN_RAY, "runtime_env": runtime | {"env_vars": ENVIRONMENT | runtime["env_vars"]}}
