"""What a run needs in memory, before anything is started: weights, caches, optimizer, activations, by device and phase.

    python -m recipe.plan memory model=qwen3_4b_from_30b hardware=gb10_128gb update=lora teacher=fp8
    python -m recipe.plan memory ... picture=plan.svg       # and as stacked bars against the capacity

Takes any override of the training command. Reads configurations only: of the run, and each model's config.json (a
folder's, or the numbers of the published Qwen3 models, which ship with this package). Exit status 1: does not fit.
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig
from rich.console import Console

from verl_ext.checks.schemas import prepare_training_configs
from verl_ext.plan.advice import single_changes
from verl_ext.plan.hardware import HardwareConfig, hardware_of
from verl_ext.plan.layout import overflows, pools, problems
from verl_ext.plan.report import draw, table, title
from verl_ext.plan.run import Run, read_run

WHAT = "memory"
REQUIRED = ("data.train_files=-", "data.val_files=-")
"""Rows that the training configuration asks for and no plan needs."""


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


@hydra.main(version_base=None, config_path="../configs", config_name="on_policy_distillation")
def main(config: DictConfig) -> None:
    try:
        hardware = hardware_of(config.get("hardware"))
        run = read_run(config)
    except ValueError as error:
        sys.exit(f"error: {error}")
    fits = explain(run, hardware, Console())
    if config.get("picture"):
        draw(pools(run, hardware), title(run, hardware), Path(config.picture))
        print(f"picture: {config.picture}")
    sys.exit(not fits)


def command_line(words: list[str]) -> list[str]:
    """Hydra's overrides from ours: without the word `memory`, with `picture=` as a key of its own."""
    if words[:1] == [WHAT]:
        words = words[1:]
    elif not words or not words[0].startswith("-"):
        sys.exit(f"error: what to plan? python -m recipe.plan {WHAT} [key=value ...]")
    words = [f"+{word}" if word.startswith("picture=") else word for word in words]
    # argparse wants the overrides in one piece, before or after the flags.
    return [*words, *REQUIRED] if words and words[0].startswith("-") else [*REQUIRED, *words]


if __name__ == "__main__":
    prepare_training_configs()
    if {"--help", "-h"} & set(sys.argv):
        print(__doc__)
    sys.argv[1:] = command_line(sys.argv[1:])
    main()
