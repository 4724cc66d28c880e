"""Where the project meets the machine: what listens on it, verl's CPU platform, and what installs them.

verl loads this module through the entry point `verl.plugins` in every process that imports verl, and vLLM in each of
its own. The CPU platform does nothing unless the run asks for it (`platform=cpu` sets `VERL_PLATFORM=cpu`), so a GPU
machine never sees it. verl swallows plugin errors: `assert_platform` is what fails loud.
"""

import os

from verl_ext.platform import torch_store as torch_store  # importing it is the effect


def load() -> None:
    """Entry point `verl.plugins`: register the CPU platform where the run asks for it."""
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
