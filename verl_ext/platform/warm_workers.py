"""Ray's workers of a run, forked from one process that has imported what they need (`warm.py`).

On a CPU alone, where the run's processes share a few cores and nothing was on a device yet; not where the run joins
somebody's Ray. A worker whose environment is not the run's, or that finds nobody to fork it, starts as Ray has it.
"""

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from verl_ext.platform import warm

MODULES = (
    *("ray", "torch", "tensordict", "transformers", "verl.trainer.main_ppo", "transfer_queue"),
    *("verl.experimental.agent_loop.agent_loop", "verl.workers.engine_workers"),
    *("verl.workers.rollout.vllm_rollout.vllm_async_server", "vllm.v1.engine.core", "vllm.v1.worker.cpu_worker"),
)
"""Imported in this order; what changes verl or vLLM is left to the processes that it is for."""


@contextlib.contextmanager
def warm_workers(ray_init: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """`ray_init` of a Ray whose workers are forked, for the length of the block; the temporary folder is the run's."""
    runtime_env = ray_init.get("runtime_env") or {}
    variables = runtime_env.get("env_vars") or {}
    if variables.get("VERL_PLATFORM") != "cpu" or runtime_env.get("py_executable"):
        yield ray_init
        return
    path = Path(os.environ["TMPDIR"]) / "warm"
    errors = path.with_suffix(".log").open("w")
    with (
        errors,
        subprocess.Popen(
            [sys.executable, warm.__file__, "serve", str(path), *MODULES],
            env=os.environ | variables,
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            start_new_session=True,  # Ctrl-C in a terminal is not meant for it
        ) as server,
    ):
        python = shlex.join([sys.executable, "-IS", warm.__file__, "run", str(path)])
        try:
            yield ray_init | {"runtime_env": runtime_env | {"py_executable": python}}
        finally:
            server.kill()
