"""The runs of a comparison, grouped by arm: what each reached, and after how much."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from verl_ext.report.curves import KEYS
from verl_ext.report.files import RunFiles, read_object
from verl_ext.report.spent import flops_of

FILE = "comparison.json"
CONTROL = "control"
MEASURES = {"samples": "samples", "updates": "updates", "flops": "FLOP", "seconds": "seconds"}
"""What an accuracy is shown against."""


@dataclass(frozen=True)
class Point:
    """A validation, and what was spent until then; None where no ledger says it."""

    samples: float
    updates: float
    accuracy: float
    flops: float | None
    seconds: float | None


@dataclass(frozen=True)
class ArmRun:
    """One run of an arm."""

    record: Mapping[str, Any]
    """Its entry in comparison.json."""
    files: RunFiles | None
    """None where it has not begun."""

    @cached_property
    def points(self) -> list[Point]:
        """Its validations in order, with what its own ledger had spent by then."""
        if self.files is None:
            return []
        ledger = self.files.ledger.rows
        found = []
        for row in sorted(self.files.accuracy.rows, key=lambda row: row["samples"]):
            before = [entry for entry in ledger if (entry["step"] or 0) <= row["step"] and entry["phase"] != "evaluate"]
            spent = (sum(map(flops_of, before)), sum(entry["seconds"] for entry in before)) if ledger else (None, None)
            found.append(Point(row["samples"], row["updates"], row["accuracy"], *spent))
        return found

    @property
    def final(self) -> float | None:
        """Its last held-out accuracy: of its evaluation, else of its last validation."""
        if self.files is None:
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
        raise ValueError(f"{folder / FILE} has schema {record.get('schema')}, this version reads 1")
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


def spread_of(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, smallest and largest of at least one value."""
    return float(np.mean(values)), min(values), max(values)
