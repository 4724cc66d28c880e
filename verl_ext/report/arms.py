"""The runs of a comparison, grouped by arm: what each reached, and after how much."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from verl_ext.comparison import accounting
from verl_ext.comparison.record import DONE
from verl_ext.ledger import ledger
from verl_ext.ledger.entries import LABELS, SFT, Entry
from verl_ext.report.curves import KEYS
from verl_ext.report.files import RunFiles, read_object

FILE = "comparison.json"
CONTROL = "control"
FIRST = "sft"
"""Folder of the first training of an arm that has two, below the run's."""


@dataclass(frozen=True)
class Point:
    """A validation, counted from the start of the first training."""

    step: int
    samples: int
    updates: int
    accuracy: float


def _entries(folder: Path) -> Sequence[Entry]:
    file = folder / ledger.FILE
    return ledger.read(file).entries if file.is_file() else ()


@dataclass(frozen=True)
class ArmRun:
    """One run of an arm."""

    record: Mapping[str, Any]
    """Its entry in comparison.json."""
    files: RunFiles | None
    """None where it has not begun."""

    @cached_property
    def points(self) -> list[Point]:
        """Its validations in order."""
        rows = self.files.accuracy.rows if self.files else []
        found = [Point(row["step"], row["samples"], row["updates"], row["accuracy"]) for row in rows]
        return sorted(found, key=lambda point: point.step)

    @cached_property
    def account(self) -> accounting.Run | None:
        """What the costs of its validations follow from; None without a ledger or a validation."""
        if self.files is None or self.files.ledger is None or not self.points:
            return None
        before = _entries(self.files.folder / FIRST)
        steps = max((entry.step for entry in before if entry.phase == SFT and entry.step is not None), default=0)
        return accounting.Run(
            arm=self.record["arm"],
            seed=self.record["seed"],
            points=self.points,
            entries=self.files.ledger.entries,
            before=before,
            steps_before=steps,
            labels=self._labels(),
        )

    def _labels(self) -> Sequence[Entry] | None:
        """What the labels cost that it was trained on: their ledger is beside them, or in the comparison's folder.

        None where there is none: labels whose cost nobody knows are not free.
        """
        assert self.files is not None
        taught = self.files if not self.files.on_policy else None
        if (self.files.folder / FIRST).is_dir():
            taught = RunFiles(self.files.folder / FIRST)
        if taught is None or taught.config is None:
            return ()
        rows = OmegaConf.select(taught.config, "data.train_files")
        file = Path(str(rows if isinstance(rows, str) else rows[0])).expanduser()
        for folder in (file.parent, self.files.folder.parent / file.parent.name):  # the comparison may have been moved
            if found := [entry for entry in _entries(folder) if entry.phase == LABELS]:
                return found
        return None

    def spent(self, point: Point, unit: str, paid: str) -> float | None:
        """What a validation had cost; samples and updates are known without a ledger."""
        if self.account is None:
            return {accounting.SAMPLES: point.samples, accounting.UPDATES: point.updates}.get(unit)
        return accounting.cost(self.account, point, unit, paid)

    @property
    def final(self) -> float | None:
        """Its last held-out accuracy: of its evaluation, else of its last validation; None where it is not done."""
        if self.files is None or self.record["status"] != DONE:
            return None
        if self.files.evaluation and "student" in self.files.evaluation:
            return float(self.files.evaluation["student"]["accuracy"])
        return self.points[-1].accuracy if self.points else None

    def to(self, accuracy: float) -> Point | None:
        """The first validation with at least this accuracy."""
        return next((point for point in self.points if point.accuracy >= accuracy), None)


@dataclass(frozen=True)
class Arm:
    """One way to train, with its seeds."""

    name: str
    kind: str
    runs: tuple[ArmRun, ...]
    colour: int

    @property
    def finals(self) -> list[float]:
        return [run.final for run in self.runs if run.final is not None]

    @property
    def mean(self) -> float | None:
        """Mean of the seeds' last accuracies."""
        return float(np.mean(self.finals)) if self.finals else None

    @property
    def done(self) -> list[RunFiles]:
        """Runs that have left something."""
        return [run.files for run in self.runs if run.files is not None]


@dataclass(frozen=True)
class Comparison:
    """A folder with a comparison.json."""

    folder: Path
    record: Mapping[str, Any]
    arms: tuple[Arm, ...]

    @property
    def target(self) -> float | None:
        """The accuracy that counts as learned; None before the headroom is known."""
        headroom = self.record["headroom"]
        return self.record["target_share"] * headroom["teacher"] if headroom else None

    @property
    def target_words(self) -> str:
        """The target, and what it is a share of."""
        return f"{self.target or 0.0:.3f} ({self.record['target_share']:.0%} of the teacher's accuracy)"

    @property
    def tried(self) -> list[Arm]:
        """The arms that are meant to learn."""
        return [arm for arm in self.arms if arm.kind != CONTROL]

    @property
    def controls(self) -> list[Arm]:
        return [arm for arm in self.arms if arm.kind == CONTROL]


def read_comparison(folder: Path) -> Comparison:
    """A comparison and its runs.

    Raises:
        ValueError: if there is none, or one of another schema.
    """
    record = read_object(folder / FILE)
    if record is None:
        raise ValueError(f"{folder} holds no comparison (no {FILE}); `python -m recipe.compare run` makes one")
    if record.get("schema") != 1:
        schema = record.get("schema")
        raise ValueError(f"{folder / FILE} has schema {schema}, this version reads 1; take the verl-opd that wrote it")
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for each in record["arms"]:
        grouped.setdefault(each["arm"], []).append(each)
    arms = []
    for number, (name, entries) in enumerate(grouped.items()):
        runs = tuple(ArmRun(entry, _files(folder / entry["run"])) for entry in entries)
        arms.append(Arm(name, entries[0]["kind"], runs, number))
    return Comparison(folder, record, tuple(arms))


def _files(folder: Path) -> RunFiles | None:
    """None where the run has left nothing yet."""
    begun = any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl", "accuracy.jsonl"))
    return RunFiles(folder, KEYS) if begun else None
