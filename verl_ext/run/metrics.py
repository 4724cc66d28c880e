"""`metrics.jsonl`: one flat JSON object a training step, appended, so that a resumed run goes on in the same file."""

import json
import time
from collections.abc import Mapping
from numbers import Real
from pathlib import Path


class MetricsFile:
    """Appends rows to `path`; a row whose step was written before (a resumed run repeats it) replaces it on read."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def append(self, step: int, metrics: Mapping[str, object]) -> None:
        """Write one row: `step` and every scalar of `metrics`; anything else is left out."""
        scalars = {key: float(value) for key, value in metrics.items() if isinstance(value, Real)}
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **scalars}) + "\n")


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """Rows of a `metrics.jsonl` in step order; the last row of a step wins. An unfinished last line is dropped."""
    rows: dict[int, dict[str, float]] = {}
    with Path(path).open() as file:
        for line in file:
            if line.endswith("\n"):
                row = json.loads(line)
                rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def mark_stage(run_dir: Path | str, name: str) -> None:
    """Append `{"stage": name, "time": unix seconds}` to the run's `stages.jsonl`: what became true, and when.

    Written by the driver and by the trainer's process; `benchmarks/startup.py` reads it.
    """
    with (Path(run_dir) / "stages.jsonl").open("a") as file:
        file.write(json.dumps({"stage": name, "time": time.time()}) + "\n")
