"""`comparison.json`: which arms there are, and how far each is. Written whole at every change."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from verl_ext.comparison.config import CompareConfig
from verl_ext.run.files import write_json

FILE = "comparison.json"
SCHEMA = 1
WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"
TRAINED = "trained"
"""File in a run's folder: its training came to its end."""
EVALUATION = "eval.json"
"""File in a run's folder: its student was evaluated."""


@dataclass(frozen=True)
class Arm:
    """One run of the comparison."""

    arm: str
    kind: str
    seed: int
    run: str
    """Folder below the comparison's."""
    status: str
    """`waiting`, `running`, `done` or `failed`."""
    overrides: list[str]
    error: str | None
    """Why it failed, in one line."""


@dataclass(frozen=True)
class Headroom:
    """What can be gained: accuracy on held-out rows, before anything is trained."""

    base: float
    """Of the base without the prompt, in [0, 1]."""
    teacher: float
    """Of the teacher with the prompt, in [0, 1]."""
    rows: int
    """Rows with a right answer."""


class Record:
    """The file of one comparison, and what stands in it."""

    def __init__(self, config: CompareConfig) -> None:
        """What an earlier call did is kept.

        Raises:
            ValueError: if the folder holds the comparison of another task, or an arm with other overrides.
        """
        self.out = Path(config.out)
        self._task, self._share = config.task, config.target_share
        found = read_comparison(self.out) if (self.out / FILE).is_file() else None
        if found and found["task"] != config.task.name:
            raise ValueError(f"out={config.out} holds the comparison of the task {found['task']}; take another folder")
        self.headroom = Headroom(**found["headroom"]) if found and found["headroom"] else None
        self.commands: list[str] = found["commands"] if found else []
        before = {each["run"]: Arm(**each) for each in found["arms"]} if found else {}
        asked = {each.run: each for each in arms_of(config)}
        for run, arm in asked.items():
            if run in before and (before[run].kind, before[run].overrides) != (arm.kind, arm.overrides):
                raise ValueError(
                    f"{self.out / run} was begun as {before[run].kind} with {before[run].overrides}, and is {arm.kind} "
                    f"with {arm.overrides} now: give the arm another name, or take another out"
                )
        self.arms: dict[str, Arm] = asked | before
        self.asked = list(asked)
        """Runs that this call asks for, in order."""
        for run in self.asked:
            status = DONE if self.is_trained(run) else WAITING
            self.arms[run] = dataclasses.replace(self.arms[run], status=status, error=None)

    def is_trained(self, run: str) -> bool:
        return (self.out / run / TRAINED).is_file()

    @property
    def unevaluated(self) -> list[Arm]:
        """Trained arms that are asked for and whose students were not evaluated yet."""
        trained = [run for run in self.asked if self.is_trained(run)]
        return [self.arms[run] for run in trained if not (self.out / run / EVALUATION).is_file()]

    def set(self, run: str, status: str, error: str | None = None) -> None:
        self.arms[run] = dataclasses.replace(self.arms[run], status=status, error=error)
        self.write()

    def add_command(self, command: str) -> None:
        """A command that was run, as one types it; each once."""
        if command not in self.commands:
            self.commands.append(command)
            self.write()

    def write(self) -> None:
        content = {
            "schema": SCHEMA,
            "task": self._task.name,
            "question": self._task.question,
            "target_share": self._share,
            "headroom": asdict(self.headroom) if self.headroom else None,
            "commands": self.commands,
            "arms": [asdict(arm) for arm in self.arms.values()],
        }
        write_json(self.out / FILE, content)


def arms_of(config: CompareConfig) -> list[Arm]:
    """A run for each arm and seed that is asked for."""
    return [
        Arm(name, arm.kind, seed, f"{name}-seed{seed}", WAITING, [*arm.overrides, *arm.sft_overrides], None)
        for name, arm in config.chosen.items()
        for seed in arm.seeds
    ]


def read_comparison(out: Path) -> dict[str, Any]:
    """The comparison of a folder.

    Raises:
        ValueError: if there is none, or one of another schema.
    """
    file = out / FILE
    if not file.is_file():
        raise ValueError(f"{out} holds no comparison (no {FILE}); `python -m recipe.compare run` makes one")
    found = json.loads(file.read_text(encoding="utf-8"))
    if found.get("schema") != SCHEMA:
        raise ValueError(f"{file} has schema {found.get('schema')}, this version reads {SCHEMA}; take another out")
    return found


def failures(arms: Sequence[Arm]) -> list[str]:
    """A line for each run that failed."""
    return [f"{arm.run} failed: {arm.error}" for arm in arms if arm.status == FAILED]
