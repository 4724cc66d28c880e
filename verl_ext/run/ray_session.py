"""Start and stop what a run stands on: Ray first, alone; then the teacher beside the trainer. Imports no verl."""

import contextlib
import getpass
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RaySystemError

from verl_ext.run import sweep
from verl_ext.run.stop import STOPPING, blocked, catch, end_at_once
from verl_ext.run.visible import print

RAY_ATTEMPTS = 3
SHUTDOWN_S = 20.0  # for Ray's own way to end; what lives then is killed
SWEEP_S = 60.0
Workers = Callable[[dict[str, Any]], AbstractContextManager[dict[str, Any]]]
LONGEST_TEMPORARY = 24
"""Characters of a folder below which Ray's sockets still have paths that the system takes (107 in all)."""


def start_ray(ray_init: dict[str, Any], log_link: Path) -> None:
    """`ray.init`, tried a few times, with its log folder linked at `log_link`.

    Ray's raylet aborts when its own agent is not up in time, which happens on a loaded machine.

    Raises:
        RuntimeError: when Ray did not start in any attempt.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    for attempt in range(1, RAY_ATTEMPTS + 1):
        try:
            context: Any = ray.init(logging_level=logging.ERROR, **ray_init)
        except (RuntimeError, ConnectionError, TimeoutError, ValueError, RaySystemError) as error:
            ray.shutdown()
            if attempt == RAY_ATTEMPTS:
                raise RuntimeError(f"Ray did not start in {RAY_ATTEMPTS} attempts: {error}") from error
            print(f"Ray did not start ({error}); trying again ({attempt + 1}/{RAY_ATTEMPTS})")
            time.sleep(2)
            continue
        sweep.remove(log_link)
        log_link.parent.mkdir(parents=True, exist_ok=True)
        log_link.symlink_to(Path(context["session_dir"]) / "logs")
        return


@contextlib.contextmanager
def ray_session(ray_init: dict[str, Any], log_link: Path, workers: Workers = nullcontext) -> Iterator[None]:
    """Ray for the length of a `with`; nothing that was started in it outlives it, or this process.

    At its end `log_link` is a folder with the logs. `workers`: what stands beside Ray, and may change how it is begun.
    """
    with swept(log_link), workers(ray_init) as ray_init:
        try:
            with blocked(signal.SIGHUP):  # with its terminal gone, a run still saves its last step
                start_ray(ray_init, log_link)
            catch(end_at_once)  # Ray has taken SIGTERM, and would show a stack
            yield
        finally:
            with blocked(*STOPPING):
                shut_down()


def shut_down() -> None:
    """`ray.shutdown`, which waits for ever for a Ray that was killed; what it leaves is swept."""
    ending = threading.Thread(target=ray.shutdown, daemon=True)
    ending.start()
    ending.join(SHUTDOWN_S)


@contextlib.contextmanager
def swept(logs: Path) -> Iterator[None]:
    """No process, shared memory or temporary file that comes from the block is left on this machine after it.

    A process of its own sees to that (`verl_ext/run/sweep.py`), since this one may be killed.
    """
    base = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="opd-", dir=base if len(base) <= LONGEST_TEMPORARY else "/tmp")
    mark = uuid.uuid4().hex
    sweeper = subprocess.Popen(
        [sys.executable, "-I", sweep.__file__, mark, folder, str(logs)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C in a terminal is not meant for it
    )
    assert sweeper.stdin is not None
    try:
        with environment(
            {
                sweep.MARK: mark,
                "SPT_NOENV": "1",  # a process that takes a title, as Ray's do, would write it over its environment
                "TMPDIR": folder,
                # With an arena a thread, what a checkpoint leaves in each is never given back: MiBs a checkpoint.
                "MALLOC_ARENA_MAX": "2",
                # Compiled kernels are of use to the next run.
                "TORCHINDUCTOR_CACHE_DIR": f"{base}/torchinductor_{getpass.getuser()}",
                # Ray keeps a record of every call for a dashboard that a run does not have: 1.5 MiB a step.
                "RAY_task_events_report_interval_ms": "0",
            }
        ):
            yield
    finally:
        sweeper.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it goes on
            sweeper.wait(SWEEP_S)


@contextlib.contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Variables for what is started in the block; one of the user's own stays as it is, but for ours."""
    ours = ("TMPDIR", sweep.MARK)
    before = dict(os.environ)
    os.environ.update({name: value for name, value in variables.items() if name in ours or name not in before})
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]


def as_actor(actor_class: Any) -> Any:
    """A `@ray.remote` class as what it is: pyright sees a plain function."""
    return actor_class
