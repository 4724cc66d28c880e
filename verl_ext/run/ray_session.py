"""Start and stop what a run stands on: Ray first, alone; then the teacher beside the trainer. Imports no verl."""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RaySystemError

from verl_ext.run.visible import print

RAY_ATTEMPTS = 3


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
        log_link.parent.mkdir(parents=True, exist_ok=True)
        log_link.unlink(missing_ok=True)
        log_link.symlink_to(Path(context["session_dir"]) / "logs")
        return


@contextlib.contextmanager
def ray_session(ray_init: dict[str, Any], log_link: Path) -> Iterator[None]:
    """Ray for the length of a `with`; every actor, and with it every engine, ends when it ends."""
    start_ray(ray_init, log_link)
    try:
        yield
    finally:
        ray.shutdown()


def as_actor(actor_class: Any) -> Any:
    """A `@ray.remote` class as what it is: pyright sees a plain function."""
    return actor_class
