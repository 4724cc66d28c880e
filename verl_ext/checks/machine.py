"""How much memory is left beside a running teacher."""

import psutil

from verl_ext.checks.finding import OK, WARN, Finding

SPARE_SHARE = 0.05  # of a memory that should stay free


def memory_finding(own_gib: float, children_gib: float, free: dict[str, tuple[float, float]]) -> Finding:
    """`free` maps a memory's name to (free, total), GiB."""
    parts = [f"{name} {left:.1f} of {total:.1f} GiB free" for name, (left, total) in free.items()]
    seen = f"driver {own_gib:.2f} GiB, its processes {children_gib:.2f} GiB (resident); {', '.join(parts)}"
    numbers = {"driver_gib": own_gib, "children_gib": children_gib, "free_total_gib": free}
    tight = [name for name, (left, total) in free.items() if left < SPARE_SHARE * total]
    if tight:
        fix = f"less than {SPARE_SHARE:.0%} of {', '.join(tight)} is free: lower teacher.mem_fraction_static"
        return Finding(WARN, seen, fix, numbers)
    return Finding(OK, seen, numbers=numbers)


def measure_memory() -> Finding:
    """Of this process, the teacher that it started, and this machine's memories, now."""
    own = psutil.Process()
    children = 0
    for child in own.children(recursive=True):
        try:
            children += child.memory_info().rss
        except psutil.NoSuchProcess:
            continue  # ended while we looked
    machine = psutil.virtual_memory()
    free = {"host": (machine.available / 2**30, machine.total / 2**30)} | _gpu_memory()
    return memory_finding(own.memory_info().rss / 2**30, children / 2**30, free)


def _gpu_memory() -> dict[str, tuple[float, float]]:
    import torch

    found = {}
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found[f"gpu{index}"] = (free / 2**30, total / 2**30)
    return found
