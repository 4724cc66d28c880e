"""What a run needs in memory, by device and phase, before anything is started.

    # on a CPU: the tiny pair
    python -m recipe.plan memory student.path=outputs/demo/models/base hardware=cpu task=demo
    # on a GPU; as stacked bars against the capacity too
    python -m recipe.plan memory model=qwen3_4b_from_30b hardware=gb10_128gb update=lora teacher=fp8
    python -m recipe.plan memory ... picture=plan.svg

Takes any override of the training command. Reads configurations only: of the run, and each model's
config.json (a folder's, or the numbers of the published Qwen3 models, which ship with this
package). Exit status 1: does not fit.
"""

import sys
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from verl_ext.checks.schemas import prepare_training_configs
from verl_ext.checks.verl_values import TRAIN, check_ranges
from verl_ext.plan.advice import single_changes
from verl_ext.plan.hardware import HardwareConfig, hardware_of
from verl_ext.plan.layout import overflows, pools, problems
from verl_ext.plan.report import draw, table, title
from verl_ext.plan.run import Run, read_run
from verl_ext.run.files import check_writable
from verl_ext.run.settings import check_given
from verl_ext.run.verb import Verb, run_verb
from verl_ext.teacher.config import TeacherConfig
from verl_ext.trainer.config import MethodConfig
from verl_ext.trainer.keys import PLANNED
from verl_ext.trainer.pipeline_config import PipelineConfig
from verl_ext.trainer.replay.config import ReplayConfig

from . import CONFIGS

VERB = Verb(
    "on_policy_distillation",
    doc=str(__doc__),
    settings={"method": MethodConfig, "teacher": TeacherConfig, "pipeline": PipelineConfig, "replay": ReplayConfig},
    config_dir=CONFIGS,
    noun="memory",
    keys=PLANNED,
    added=("+picture=null",),
    prepare=prepare_training_configs,
    more="More: docs/planner.md.",
)


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


def plan(config: DictConfig) -> None:
    check_given(config, "student.path")
    check_ranges(config, TRAIN)
    if config.picture:
        check_writable("picture", config.picture)
    hardware = hardware_of(config.get("hardware"))
    run = read_run(config)
    fits = explain(run, hardware, Console())
    if config.picture:
        draw(pools(run, hardware), title(run, hardware), Path(config.picture))
        print(f"picture: {config.picture}")
    sys.exit(not fits)


def main() -> None:
    run_verb(VERB, plan)


if __name__ == "__main__":
    main()
