"""Ray's workers of a run, forked from one process that has imported what they need (`warm.py`).

On a CPU alone, where the run's processes share a few cores and no device has been looked at; not where the run joins
somebody's Ray. A worker whose environment is not the run's, or that finds nobody to fork it, starts as Ray has it.
"""

import contextlib
import ctypes
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import files
from multiprocessing import spawn
from pathlib import Path
from typing import Any

from verl_ext.platform import warm
from verl_ext.run.visible import print

MODULES = (
    *("ray", "torch", "tensordict", "transformers", "verl.trainer.main_ppo", "transfer_queue"),
    *("verl.experimental.agent_loop.agent_loop", "verl.workers.engine_workers"),
    *("verl.workers.rollout.vllm_rollout.vllm_async_server", "vllm.v1.engine.core", "vllm.v1.worker.cpu_worker"),
)
"""Imported in this order; what changes verl or vLLM is left to the processes that it is for."""
PR_SET_CHILD_SUBREAPER = 36


@contextlib.contextmanager
def warm_workers(ray_init: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """`ray_init` of a Ray whose workers are forked, for the length of the block; the temporary folder is the run's."""
    runtime_env = ray_init.get("runtime_env") or {}
    if (runtime_env.get("env_vars") or {}).get("VERL_PLATFORM") != "cpu" or runtime_env.get("py_executable"):
        yield ray_init
        return
    path = Path(os.environ["TMPDIR"]) / "warm"
    # Where the process that they were forked from is killed, they stay below this one, where the watchdog looks.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    command = [sys.executable, warm.__file__, "serve", str(path), torchs_openmp(), *MODULES]
    with (
        path.with_suffix(".log").open("w") as log,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C in a terminal is not meant for it
        ) as server,
    ):
        try:
            yield ray_init | {"runtime_env": runtime_env | {"py_executable": shlex.join(python_of(str(path)))}}
        finally:
            if (server.poll() or 0) > 0:  # by itself: Ray, which ends first, kills what it finds here
                said = path.with_suffix(".log").read_text(errors="replace").strip().splitlines() or ["no word"]
                print(f"the run's processes were not forked, or not all: {said[-1]}")
            server.kill()


def python_of(path: str) -> list[str]:
    """A command in the place of `python`, by which who serves at `path` forks."""
    return [sys.executable, "-IS", warm.__file__, "run", path]


def torchs_openmp() -> str:
    """Path of torch's libgomp, which vLLM's engine has loaded before all else (`vllm.platforms.cpu`); "" without."""
    found = [file for file in files("torch") or () if file.name.startswith("libgomp")]
    return os.path.realpath(found[0].locate()) if found else ""


def spawn_warm() -> None:
    """In a process that was forked here, what `multiprocessing` spawns is forked here too."""
    path = os.environ.get(warm.SOCKET)
    if not path:
        return
    theirs = spawn.get_command_line

    def command_line(**words: Any) -> list[str]:
        return [*python_of(path), *theirs(**words)[1:]]

    spawn.get_command_line = command_line
