"""Whether the machine can hold a run: by the plan where `hardware=NAME` is given, by what is free on a CPU."""

from pathlib import Path

import psutil
from omegaconf import DictConfig

from verl_ext.checks.context import Context
from verl_ext.plan.advice import single_changes
from verl_ext.plan.hardware import GIB, hardware_of
from verl_ext.plan.layout import overflows, pools, problems
from verl_ext.plan.run import read_run
from verl_ext.plan.shape import UnknownModelError


def plan(context: Context) -> str:
    """The machine that `hardware=` describes holds the run (`recipe.plan memory` shows the whole plan)."""
    return check_plan(context.config)


def free_memory(context: Context) -> str:
    """Enough free memory for a run on the CPU."""
    if context.config.trainer.device != "cpu":
        return "of a GPU run: see the memory plan"
    check_memory(context.student[1])
    return "enough for a run"


def check_plan(config: DictConfig) -> str:
    """Refuse a run that its machine cannot hold; else one line that says what the fullest device keeps free.

    A run without `hardware`, of several teachers, or of a model of unknown size is not planned; the line says so.

    Raises:
        ValueError: naming what does not fit or cannot work, and a change that makes it fit where there is one.
    """
    machine = config.get("hardware")  # the group is in the configuration only where one is chosen
    if machine is None:
        return "memory is not planned: no hardware=NAME"
    if config.teachers:
        return "memory is not planned: the planner knows one teacher"
    hardware = hardware_of(machine)
    try:
        run = read_run(config)
    except UnknownModelError as error:
        return f"memory is not planned: {error}"
    if wrong := [*problems(run, hardware), *overflows(run, hardware)]:
        changes = [change.overrides for change in single_changes(run, hardware)]
        fix = (
            f"this change alone makes it fit: {changes[0]}"
            if changes
            else "`python -m recipe.plan memory` shows all of it"
        )
        raise ValueError(
            f"on {hardware.name} {wrong[0]}; {fix}, or set hardware=null, which drops that file's settings too"
        )
    free, name, phase = min(
        (pool.capacity - pool.total(phase), pool.name, phase) for pool in pools(run, hardware) for phase in pool.phases
    )
    return f"fits {hardware.name}: {free / GIB:.1f} GiB stay free at the tightest, {name} in {phase}"


# Resident memory of a run on the CPU with a model of negligible size: Ray, trainer, vLLM, SGLang (measured: see
# docs/results/cpu-demo.md).
CPU_BASE_GIB = 9.0


def check_memory(model_path: str, *, needed_gib: float | None = None) -> None:
    """Enough free memory for a CPU run: the engines' own, and ten copies of the weights in fp32.

    The copies: trainer weights, gradients, two Adam moments, export, vLLM, SGLang, the transfer buckets.
    """
    weights = sum(file.stat().st_size for file in Path(model_path).glob("*.safetensors"))
    needed = needed_gib if needed_gib is not None else CPU_BASE_GIB + 10 * weights / 2**30
    free = psutil.virtual_memory().available / 2**30
    if free < needed:
        raise ValueError(
            f"not enough memory: this run needs about {needed:.1f} GiB, {free:.1f} GiB are free; "
            "stop other programs or take a smaller student.path"
        )
