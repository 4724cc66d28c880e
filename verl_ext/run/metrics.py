"""`metrics.jsonl`: one flat JSON object a training step, appended, so that a resumed run goes on in the same file."""

import json
import os
import time
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from verl_ext.run.files import read_lines, write_json
from verl_ext.run.lines import end_of_lines

METRICS = "metrics.jsonl"
PLACE = "place.json"


class MetricsFile:
    """Appends rows to `path`; a row whose step was written before (a resumed run repeats it) replaces it on read."""

    def __init__(self, path: str | Path) -> None:
        """Half a line at the end, as a killed run leaves it, is cut off: the next row would be glued to it."""
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            os.truncate(self.path, end_of_lines(self.path))

    def append(self, step: int, metrics: Mapping[str, object]) -> None:
        """Write one row: `step` and every scalar of `metrics`; anything else is left out."""
        scalars = {key: float(value) for key, value in metrics.items() if isinstance(value, Real)}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **scalars}) + "\n")


class MetricsTail:
    """Follows a file of JSON lines that another process writes: each look reads what was appended since the last."""

    def __init__(self, path: str | Path) -> None:
        """Rows that are there already belong to an earlier run, and are passed over."""
        self.path = Path(path)
        self._offset = end_of_lines(self.path) if self.path.exists() else 0

    def new_rows(self) -> list[dict[str, Any]]:
        """The rows that were finished since the last call."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            lines = file.read().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]
        self._offset += sum(map(len, whole))
        return [json.loads(line) for line in whole]


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """Rows of a `metrics.jsonl` in step order. An unfinished last line is dropped.

    A row undoes what stands above it of its own step and of later ones: a resumed run takes those steps again.
    """
    fix = "mend the line, or take it out"
    rows: dict[int, dict[str, float]] = {}
    for number, row in enumerate(read_lines(Path(path), fix), 1):
        if type(row.get("step")) is not int:
            raise ValueError(f"{path}:{number}: no step; {fix}")
        while rows and next(reversed(rows)) >= row["step"]:
            rows.popitem()
        rows[row["step"]] = row
    return list(rows.values())


def mark_stage(run_dir: Path | str, name: str) -> None:
    """Append `{"stage": name, "time": unix seconds}` to the run's `stages.jsonl`: what became true, and when.

    Written by the driver and by the trainer's process; `benchmarks/startup.py` reads it.
    """
    with (Path(run_dir) / "stages.jsonl").open("a") as file:
        file.write(json.dumps({"stage": name, "time": time.time()}) + "\n")


def reach_stage(run_dir: Path | str, name: str) -> None:
    """`mark_stage` and `write_place` in one: what the trainer's process says while it starts."""
    mark_stage(run_dir, name)
    write_place(run_dir, name)


def write_place(run_dir: Path | str, place: str) -> None:
    """Keep where the run is, in words: what is shown while it is there, and named when it stays there too long."""
    write_json(Path(run_dir) / PLACE, {"place": place, "time": time.time()})


def read_place(run_dir: Path) -> str:
    """Where the run is; "" before it said so."""
    file = run_dir / PLACE
    return json.loads(file.read_text())["place"] if file.exists() else ""


def forget_place(run_dir: Path) -> None:
    """Of an earlier start, which a start must not show, nor take for its own when a signal comes."""
    (run_dir / PLACE).unlink(missing_ok=True)
