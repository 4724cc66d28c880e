"""Where the project meets the machine: what listens on it, verl's CPU platform, and what installs them.

verl loads this module through the entry point `verl.plugins` in every process that imports verl, and vLLM in each of
its own. The CPU platform does nothing unless the run asks for it (`platform=cpu` sets `VERL_PLATFORM=cpu`), so a GPU
machine never sees it. verl swallows plugin errors: `assert_platform` is what fails loud.
"""

import os
import sys
from importlib.util import find_spec

from verl_ext.platform import torch_store as torch_store  # importing it is the effect

HUAWEIS = "verl.checkpoint_engine.hccl_checkpoint_engine"
"""verl imports it where it can, and it vLLM with the kernels of torch's compiler: a second of a core a process."""


def load() -> None:
    """Entry point `verl.plugins`: register the CPU platform where the run asks for it; pass over what no run uses."""
    if find_spec("torch_npu") is None:
        sys.modules.setdefault(HUAWEIS, None)  # pyright: ignore[reportArgumentType]  an import of it then fails
    if os.environ.get("VERL_PLATFORM") == "cpu":
        from verl_ext.platform import cpu

        cpu.adapt_process_groups()


def assert_platform(name: str) -> None:
    """Raise RuntimeError unless verl runs on the platform that the run asked for.

    verl logs a failed plugin at DEBUG only, and then trains on whatever it finds.
    """
    from verl.plugin.platform import get_platform

    found = get_platform().device_name
    if found != name:
        raise RuntimeError(
            f"verl runs on platform {found!r}, the run asked for {name!r}: "
            "the plugin verl_ext is not installed in this environment; run `make setup`"
        )


# Entry points load a module attribute; verl only calls `.load()` on the entry point, so importing is the effect.
load()
