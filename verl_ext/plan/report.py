"""A plan as tables and words, and as a picture."""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from verl_ext.plan.advice import single_changes
from verl_ext.plan.hardware import GIB, HardwareConfig
from verl_ext.plan.layout import PHASES, Pool, overflows, pools, problems
from verl_ext.plan.run import Run


def title(run: Run, hardware: HardwareConfig) -> str:
    """One line: models, update, machine."""
    adapters = f"LoRA {run.trainer.lora_rank} ({run.adapters / 1e6:.1f} M){' on NF4' if run.trainer.nf4 else ''}"
    update = adapters if run.trainer.lora_rank else "full"
    return (
        f"{run.student_path} ({run.student.total / 1e9:.2f} B, {update}) from {run.teacher.path} "
        f"({run.teacher_shape.total / 1e9:.2f} B{', FP8' if run.teacher.quantized else ''}) on {hardware.name}"
    )


def purposes(pool: Pool) -> list[str]:
    """Everything that takes memory in some phase, in the order of first appearance."""
    return list(dict.fromkeys(key for phase in PHASES for key in pool.phases[phase]))


def table(pool: Pool) -> Table:
    """GiB by purpose and phase of one device of a pool."""
    result = Table(title=f"{pool.name}: {pool.count} x {pool.capacity / GIB:.1f} GiB", title_justify="left")
    result.add_column("GiB of each")
    for phase in PHASES:
        result.add_column(phase, justify="right")
    for key in purposes(pool):
        values = [pool.phases[phase].get(key, 0) / GIB for phase in PHASES]
        result.add_row(key, *(f"{value:.2f}" if value else "" for value in values))
    result.add_section()
    totals = [pool.total(phase) for phase in PHASES]
    result.add_row("total", *(f"{value / GIB:.2f}" for value in totals))
    free = [(pool.capacity - value) / GIB for value in totals]
    result.add_row("free", *(Text(f"{value:.2f}", "red" if value < 0 else "") for value in free))
    return result


def explain(run: Run, hardware: HardwareConfig, console: Console) -> bool:
    """Print the plan; returns whether the run fits."""
    console.print(title(run, hardware), soft_wrap=True, highlight=False)
    for pool in pools(run, hardware):
        console.print(table(pool))
    wrong = problems(run, hardware)
    if not wrong and not overflows(run, hardware):
        console.print("fits", style="green")
        return True
    for line in [*wrong, *overflows(run, hardware)]:
        console.print(f"does not work: {line}", style="red", soft_wrap=True, highlight=False)
    changes = single_changes(run, hardware)
    for change in changes:
        console.print(f"this change alone makes it fit: {change.overrides}", soft_wrap=True, highlight=False)
    if not changes:
        console.print("no single change that the planner knows makes it fit: take a smaller model or more devices")
    return False


def draw(pools: list[Pool], heading: str, file: Path) -> None:
    """Stacked bars by phase, one panel a pool, against the capacity; the ending of `file` chooses the format."""
    import matplotlib
    from matplotlib.figure import Figure

    everything = dict.fromkeys(key for pool in pools for key in purposes(pool))
    colours = dict(zip(everything, matplotlib.colormaps["tab20"](range(20)), strict=False))
    figure = Figure(figsize=(max(9, 6 * len(pools)), 6), layout="constrained")
    figure.suptitle(heading, fontsize=9)
    for axes, pool in zip(figure.subplots(1, len(pools), squeeze=False)[0], pools, strict=True):
        bottom = dict.fromkeys(PHASES, 0.0)
        for key in purposes(pool):
            heights = {phase: max(0, pool.phases[phase].get(key, 0)) / GIB for phase in PHASES}
            axes.bar(PHASES, heights.values(), bottom=list(bottom.values()), label=key, color=colours[key])
            bottom = {phase: bottom[phase] + heights[phase] for phase in PHASES}
        axes.axhline(pool.capacity / GIB, color="black", linestyle="--", label="capacity")
        axes.set_title(f"{pool.name} ({pool.count})", fontsize=9)
        axes.set_ylabel("GiB of each")
        axes.tick_params(axis="x", labelsize=8)
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(file)
