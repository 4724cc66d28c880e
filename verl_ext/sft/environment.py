"""What verl's SFT trainer finds around it: the environment, and where its output goes."""

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from verl_ext.run.loopback import ENVIRONMENT, LOOPBACK

SILENCE_S = 20
"""Seconds that the other ranks wait before they complain too: torchrun ends them when rank 0 has said it."""


def prepare_environment(environment: dict[str, Any]) -> tuple[int, int]:
    """Set what verl reads when it is imported; return this process' rank and the number of ranks.

    Started without torchrun, this is the only rank.
    """
    for key, value in environment.items():
        os.environ.setdefault(key, str(value))
    if "RANK" not in os.environ:
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            port = probe.getsockname()[1]
        single = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        os.environ.update(single | {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(port)})
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:  # all of them on this machine
        os.environ.update(ENVIRONMENT)
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


@contextlib.contextmanager
def output_into(file: Path) -> Iterator[None]:
    """What verl, torch and gloo print goes to a file, so that the console stays readable.

    File descriptors are redirected, since gloo writes to them directly. An error still reaches the console.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = {stream: os.dup(stream.fileno()) for stream in (sys.stdout, sys.stderr)}
    try:
        with file.open("a") as log:
            for stream in kept:
                stream.flush()
                os.dup2(log.fileno(), stream.fileno())
        yield
    finally:
        for stream, descriptor in kept.items():
            stream.flush()
            os.dup2(descriptor, stream.fileno())
            os.close(descriptor)
