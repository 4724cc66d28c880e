"""The machines that a run is planned for, as data: `configs/hardware/*.yaml` fill one `HardwareConfig` each."""

from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, ValidationError

from verl_ext.run.settings import above, check_sizes

TEACHER_PLACES = ("own", "shared", "elsewhere")
GIB = 2**30


@dataclass(frozen=True)
class HardwareConfig:
    """Devices, their memory, and where the teacher runs. `recipe.plan` reads it; training needs none of it."""

    name: str
    """As people call it."""
    device_memory_gib: float
    """Memory of one device as its driver reports it, GiB (2**30 bytes), > 0."""
    devices_per_node: int
    """Devices of one node, >= 1. A CPU without accelerator is one device."""
    nodes: int
    """Nodes, >= 1."""
    host_memory_gib: float
    """Main memory of one node, GiB, > 0. Where `unified_memory`, it is the devices' own and not counted twice."""
    unified_memory: bool = False
    """Device and host share one memory: what is offloaded still takes it."""
    fp8: bool = True
    """The device multiplies FP8 matrices (Ada, Hopper, Blackwell: yes; Ampere, CPU: no)."""
    reserve_gib: float = 1.0
    """Memory of each device that is left to the driver, the desktop or the operating system, GiB, >= 0."""
    teacher: str = "own"
    """Where the teacher runs: on `own` devices beside the trainer's, `shared` with the trainer on one device
    (`teacher.share_device`, or an external server on this machine), or `elsewhere` (not planned)."""

    def __post_init__(self) -> None:
        for key in ("device_memory_gib", "host_memory_gib"):
            above(f"hardware.{key}", vars(self)[key], 0)
        for key in ("devices_per_node", "nodes"):
            if vars(self)[key] < 1:
                raise ValueError(f"hardware.{key}={vars(self)[key]} must be >= 1")
        if not 0 <= self.reserve_gib < self.device_memory_gib:
            raise ValueError(f"hardware.reserve_gib={self.reserve_gib} must be in [0, device_memory_gib)")
        if self.teacher not in TEACHER_PLACES:
            raise ValueError(f"hardware.teacher={self.teacher} must be one of {', '.join(TEACHER_PLACES)}")
        if self.unified_memory and self.devices_per_node != 1:
            raise ValueError("hardware.devices_per_node must be 1 where hardware.unified_memory is true")

    @property
    def devices(self) -> int:
        """Of all nodes."""
        return self.devices_per_node * self.nodes

    @property
    def capacity(self) -> int:
        """Bytes of one device that a run may use."""
        return int((self.device_memory_gib - self.reserve_gib) * GIB)


def hardware_of(node: Any) -> HardwareConfig:
    """The machine behind the configuration node `hardware`.

    Raises:
        ValueError: if no machine is chosen, a key is unknown or missing, or a value is out of range.
    """
    if node is None:
        raise ValueError("hardware is not set: give hardware=NAME (the files of configs/hardware)")
    try:
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(HardwareConfig), node))
    except (ConfigKeyError, MissingMandatoryValue, ValidationError) as error:
        raise ValueError(
            f"hardware.{error.full_key}: {str(error).splitlines()[0]}; correct it (verl_ext/plan/hardware.py)"
        ) from None
    assert isinstance(settings, HardwareConfig)
    check_sizes(settings, "hardware")
    return settings
