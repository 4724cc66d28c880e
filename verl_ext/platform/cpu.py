"""verl's platform interface for a machine with no accelerator: real FSDP2 on gloo, real vLLM on the CPU.

Ray's `GPU` resource is used as a count of logical slots (`ray.init(num_gpus=N)`), so verl's resource
pools work unchanged. No CUDA IPC: verl then moves weights through its own shared-memory buckets.
"""

import functools
import os
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import psutil
import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry

from verl_ext.platform.products import multiply_with_onednn


def _rss(*_: Any) -> int:
    return psutil.Process().memory_info().rss


def _mem_get_info(*_: Any) -> tuple[int, int]:
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def _nothing(*_: Any, **__: Any) -> None:
    return None


class _CpuDevice(ModuleType):
    """`torch.cpu`, plus the `torch.cuda` functions that verl calls on a device module.

    Memory figures are this process' resident set; caches and IPC do not exist, so clearing them is a no-op.
    """

    memory_allocated = memory_reserved = max_memory_allocated = max_memory_reserved = staticmethod(_rss)
    mem_get_info = staticmethod(_mem_get_info)
    empty_cache = ipc_collect = reset_peak_memory_stats = set_per_process_memory_fraction = staticmethod(_nothing)
    manual_seed = manual_seed_all = staticmethod(torch.manual_seed)
    get_rng_state = staticmethod(torch.get_rng_state)
    set_rng_state = staticmethod(torch.set_rng_state)

    @staticmethod
    def get_device_name(*_: Any) -> str:
        return "cpu"

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def set_device(*_: Any) -> None:
        return None  # torch.cpu.set_device takes no index

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)


_DEVICE = _CpuDevice("verl_ext.platform.cpu.device")


@PlatformRegistry.register(platform="cpu")
class CpuPlatform(PlatformBase):
    """A machine with no accelerator."""

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> ModuleType:
        return _DEVICE

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        del use_smi_check
        return False  # never picked by detection, only by VERL_PLATFORM=cpu

    def current_device(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        # verl passes this to `.to()` and `torch.device()`, where an index would mean an accelerator.
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        del device_index

    def synchronize(self, device_index: int | None = None) -> None:
        del device_index

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        del settings

    def empty_cache(self) -> None:
        return None

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        del device_index
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    @contextmanager
    def nvtx_range(self, msg: str):  # pyright: ignore[reportIncompatibleMethodOverride]  verl annotates it as None
        del msg
        yield

    def profiler_start(self) -> None:
        return None

    def profiler_stop(self) -> None:
        return None

    def cudart(self) -> None:
        return None


VERLS_BACKEND = "cpu:gloo,cpu:gloo"


def adapt_process_groups() -> None:
    """Make `init_process_group` work for verl's trainer ranks on a CPU.

    verl builds `cpu:gloo,{device}:{backend}` (`verl/utils/distributed.py`), which on this platform names the
    CPU twice, and torch refuses that. A process that asks for it is a trainer rank: the engines sleep while the
    ranks update, so the ranks share all cores, whatever OMP_NUM_THREADS says for the engines.
    """
    original = torch.distributed.init_process_group
    if isinstance(original, functools.partial):
        return  # already adapted in this process

    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
        if backend != VERLS_BACKEND:
            original(backend, *args, **kwargs)
            return
        original("cpu:gloo", *args, **kwargs)
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // torch.distributed.get_world_size()))
        multiply_with_onednn()

    torch.distributed.init_process_group = functools.partial(init_process_group)
