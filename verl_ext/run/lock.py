"""One run at a time works in a folder: a lock that the kernel releases when its holder ends, however that ends."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

LOCK = ".lock"


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the lock of `run_dir`, which is made where it is missing, for the length of a `with`.

    Raises:
        ValueError: if another process holds it, naming process and host.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / LOCK).open("a+") as file:  # closed in every program that is started meanwhile
        _take(file.fileno(), run_dir)
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()}))
        file.flush()
        yield


def check_unlocked(run_dir: Path) -> None:
    """Raises ValueError naming process and host where a run works in `run_dir`; makes nothing.

    Of the processes of one run the first alone looks, which is the one that holds the lock then.
    """
    if (run_dir / LOCK).is_file() and os.environ.get("RANK", "0") == "0":
        with (run_dir / LOCK).open("a+") as file:
            _take(file.fileno(), run_dir)


def _take(descriptor: int, run_dir: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"run_dir={run_dir}: another run works there ({_holder(run_dir)}); wait until it ends, or take another "
            "run_dir"
        ) from None
    except OSError as error:
        raise ValueError(f"run_dir={run_dir}: {error.strerror}: its file system has no locks; take another") from None


def _holder(run_dir: Path) -> str:
    """Who says that it holds the lock."""
    try:
        said = json.loads((run_dir / LOCK).read_text())
        return f"process {said['pid']} on {said['host']}"
    except (ValueError, KeyError, TypeError):  # it is just writing that
        return "a process that has just begun"
