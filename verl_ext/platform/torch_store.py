"""torch's TCP stores listen on the address that they are named for, not on every address of the machine.

Importing this module sees to it. For programs that are not ours, and the processes that they spawn (which run their
parent's main file anew), this file is a launcher that needs torch alone:

    python torch_store.py MODULE WORDS...     # as `python -m MODULE WORDS...`

Without an accelerator a program that would spawn its processes forks them: SGLang's two import for 9 s of a core each
what the first one has imported, and there is no device that must not be forked.
"""

import errno
import functools
import ipaddress
import multiprocessing
import os
import runpy
import socket
import sys
from typing import Any

from torch.distributed import DistNetworkError, TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.elastic.multiprocessing.api import SignalException

LOOPBACK = "127.0.0.1"
ON_CPU = "SGLANG_USE_CPU_ENGINE"
"""The variable that tells SGLang that there is no accelerator (`verl_ext/teacher/server/command.py`)."""
PARAMETERS = (
    "host_name",
    "port",
    "world_size",
    "is_master",
    "timeout",
    "wait_for_workers",
    "multi_tenant",
    "master_listen_fd",
    "use_libuv",
)
"""Of TCPStore, in their order; `tests/contract` holds them against torch."""


def _listening_where_named(theirs: Any) -> Any:
    @functools.wraps(theirs)
    def init(store: TCPStore, *positional: Any, **given: Any) -> None:
        given |= zip(PARAMETERS, positional, strict=False)
        if given.get("is_master") and given.get("master_listen_fd") is None:
            listener = _listener(given["host_name"], given["port"])
            if listener is not None:
                given |= {"port": listener.getsockname()[1], "master_listen_fd": listener.detach()}
        theirs(store, **given)

    return init


def _listener(host: str, port: int) -> socket.socket | None:
    """A socket that listens on `host`; None where torch itself must find the server."""
    try:
        address = ipaddress.ip_address(LOOPBACK if host == "localhost" else host)
    except ValueError:
        return None  # a name, which other machines may resolve otherwise: where they come in is not ours to say
    if address.is_unspecified:  # none that another machine can be told
        address = ipaddress.ip_address(LOOPBACK)
    listener = socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((str(address), port))
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            return None  # by a store of this process, which a second one with `multi_tenant` shares; or torch says so
        raise DistNetworkError(f"a TCPStore cannot listen on {host}:{port}: {error.strerror}") from error
    return listener


def fork_what_is_to_be_spawned() -> None:
    """For a program that chooses its start method by `multiprocessing.set_start_method`."""
    theirs = multiprocessing.set_start_method

    def set_start_method(method: str | None, force: bool = False) -> None:
        theirs("fork" if method == "spawn" else method, force)

    multiprocessing.set_start_method = set_start_method


if not hasattr(TCPStore.__init__, "__wrapped__"):  # a spawned process may get here twice
    TCPStore.__init__ = _listening_where_named(TCPStore.__init__)

if __name__ == "__main__":
    module = sys.argv.pop(1)
    if os.environ.get(ON_CPU) == "1":
        fork_what_is_to_be_spawned()
    try:
        runpy.run_module(module, run_name="__main__")
    except SignalException as error:  # torchrun's, when those that it passed the signal on to have ended
        sys.exit(128 + error.sigval)
