"""A Ray of a run's own starts without what a run never uses, most of which `ray.init` waits for.

The API server (of no use without a dashboard), the autoscaler's monitor, the log monitor (`log_to_driver`), and
workers that are started before anyone asks, without the run's environment, which therefore nobody takes.
"""

from typing import Any

from ray._private.node import Node

UNUSED = ("start_api_server", "start_monitor", "start_log_monitor")
SYSTEM = {"prestart_worker_first_driver": False, "enable_worker_prestart": False}


def lean(ray_init: dict[str, Any]) -> dict[str, Any]:
    """`ray_init` of such a start; one that asks for the dashboard, or for its workers' output, gets what that takes."""
    unused = set(UNUSED)
    if ray_init["include_dashboard"]:
        unused.discard("start_api_server")
    if ray_init["log_to_driver"]:
        unused.discard("start_log_monitor")
    for name in unused:
        setattr(Node, name, _nothing)
    return ray_init | {"_system_config": SYSTEM | (ray_init.get("_system_config") or {})}


def _nothing(*_: Any, **__: Any) -> None:
    return None
