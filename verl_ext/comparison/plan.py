"""The commands of a comparison: what makes its rows, base and labels, and what trains each arm."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from verl_ext.comparison.config import BOTH, SFT, ArmConfig, CompareConfig, TaskConfig
from verl_ext.comparison.record import Arm

SFT_PART = "sft"
"""Folder of the first part of `sft_then_on_policy`, below the run's."""


@dataclass(frozen=True)
class Command:
    """A module and its words, and the folder that keeps its output, `command.log`."""

    words: list[str]
    folder: Path


def rows_words(task: TaskConfig) -> list[str]:
    return ["recipe.create_data", *task.rows, f"out_dir={task.data}"]


def preparation(config: CompareConfig) -> list[Command]:
    """What makes sentences, rows and base, where they are not given."""
    task, folder = config.task, Path(config.out) / "preparation"
    wanted = (task.sentences, rows_words(task) if task.rows else [], task.make_base)
    return [Command(words, folder) for words in wanted if words]


def headroom(config: CompareConfig) -> Command:
    """What evaluates the base without the prompt and the teacher with it."""
    folder, task = headroom_folder(config), config.task
    models = [f"base={task.base}", f"teacher={task.teacher}"]
    words = ["recipe.evaluate", f"data={heldout(task)}", *models, f"out={folder}/eval.json", *task.evaluate]
    return Command(words, folder)


def headroom_folder(config: CompareConfig) -> Path:
    return Path(config.out) / "headroom"


def heldout(task: TaskConfig) -> Path:
    return Path(task.data) / "heldout.parquet"


def labels(config: CompareConfig) -> Command:
    """What makes the teacher's labels, beside the rows."""
    task = config.task
    return Command([*rows_words(task), f"teacher={task.teacher}", *task.labels], Path(config.out) / "labels")


def needs_labels(arms: Sequence[Arm]) -> bool:
    return any(arm.kind in (SFT, BOTH) for arm in arms)


def training(config: CompareConfig, arm: Arm, teacher: Sequence[str]) -> list[Command]:
    """What trains an arm, in order. `teacher`: the words that name the server of all arms."""
    run, settings, task = Path(config.out) / arm.run, config.arm(arm.arm), config.task
    if arm.kind == SFT:
        return [_sft(task, settings.overrides, arm.seed, run)]
    if arm.kind != BOTH:
        return [_on_policy(task, settings, arm.seed, run, task.base, teacher)]
    first = run / SFT_PART
    return [
        _sft(task, settings.sft_overrides, arm.seed, first),
        _on_policy(task, settings, arm.seed, run, f"{first}/student", teacher),
    ]


def _sft(task: TaskConfig, overrides: Sequence[str], seed: int, run: Path) -> Command:
    given = [f"student.path={task.base}", f"data.train_files={task.data}/conversations.parquet", f"run_dir={run}"]
    return Command(["recipe.sft", *task.sft, *given, f"sft.seed={seed}", *overrides], run)


def _on_policy(task: TaskConfig, arm: ArmConfig, seed: int, run: Path, student: str, teacher: Sequence[str]) -> Command:
    given = [
        *(f"student.path={student}", f"teacher.model_path={task.teacher}", *teacher),
        *(f"data.train_files={task.data}/train.parquet", f"data.val_files={heldout(task)}", f"run_dir={run}"),
    ]
    words = ["recipe.on_policy_distillation", *task.on_policy, *given, f"data.seed={seed}", *arm.overrides]
    return Command(words, run)
