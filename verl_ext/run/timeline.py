"""`timeline.jsonl`: when student, teacher and trainer were busy, one object a step; unix seconds throughout.

A step's `student` and `teacher` are the times during which at least one of its samples was there, which may lie before
the step (`pipeline.mode`); its `stages` are the trainer's own, each with its start, `end` closing the last.
"""

import itertools
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from verl_ext.run.files import read_lines

Span = tuple[float, float]
WAITING = "samples and scores"
"""The trainer's stage in which it does nothing but wait."""
VALIDATION = "validation"
"""The one in which held-out rows are answered, and it waits as well."""


def union(spans: Iterable[Sequence[float]]) -> list[Span]:
    """The same times as spans that do not overlap, in order."""
    found: list[Span] = []
    for start, end in sorted((span[0], span[1]) for span in spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def length(spans: Iterable[Sequence[float]]) -> float:
    """Seconds of spans that do not overlap."""
    return sum(end - start for start, end in spans)


class TimelineFile:
    """Collects a step, then appends it to `path`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._stages: list[tuple[str, float]] = []
        self._samples: dict[str, list[Span]] = {"student": [], "teacher": []}

    def stage(self, name: str) -> None:
        """The trainer begins a stage now."""
        self._stages.append((name, time.time()))

    def samples(self, student: Iterable[Span], teacher: Iterable[Span]) -> None:
        """Where samples of this step were, sample by sample."""
        self._samples["student"] += student
        self._samples["teacher"] += teacher

    def append(self, step: int) -> None:
        row: dict[str, Any] = {"step": step, "stages": [*self._stages, ("end", time.time())]}
        row |= {name: union(spans) for name, spans in self._samples.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self._stages, self._samples = [], {"student": [], "teacher": []}


def read_timeline(path: str | Path) -> list[dict[str, Any]]:
    """The steps, in the order in which they were made; half a line at the end is passed over."""
    return read_lines(Path(path), "mend the line, or take the file away")


def lanes(steps: Sequence[dict[str, Any]]) -> dict[str, list[Span]]:
    """The times during which each of student, teacher and trainer was busy, and of the weight sync."""
    found: dict[str, list[Span]] = {
        name: union(span for step in steps for span in step[name]) for name in ("student", "teacher")
    }
    trainer: list[Span] = []
    sync: list[Span] = []
    for step in steps:
        for (name, start), (_, end) in itertools.pairwise(step["stages"]):
            if name == "weight sync":
                sync.append((start, end))
            elif name not in (WAITING, VALIDATION):
                trainer.append((start, end))
    return found | {"trainer": union(trainer), "weight sync": union(sync)}
