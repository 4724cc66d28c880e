"""Launch our training and stock verl's on the demo's model and rows, and report bars."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

DEMO = Path("outputs/demo")
RUN_TIMEOUT_S = 900


@dataclass(frozen=True)
class Run:
    """One finished training run: unix time of its launch, its folder and its per-step metrics."""

    launched: float
    folder: Path
    rows: list[dict[str, float]]

    def median(self, key: str) -> float:
        """Median over the steps after the first two, which warm caches up."""
        values = sorted(row.get(key, 0.0) for row in self.rows[2:])
        return values[len(values) // 2]


def launch(module: str, folder: Path, steps: int, *overrides: str) -> Run:
    """Run `python -m module` to its end and read its metrics.

    Raises:
        subprocess.CalledProcessError: if it fails.
        FileNotFoundError: before the demo's model and rows exist.
    """
    base, data = DEMO / "models/base", DEMO / "data"
    if not (base / "config.json").is_file():
        raise FileNotFoundError(f"{base}: make the demo's model and rows first with `make demo`")
    command = [
        *(sys.executable, "-m", module, "platform=cpu", "task=demo", f"run_dir={folder}", f"student.path={base}"),
        *(f"data.train_files={data}/train.parquet", f"data.val_files={data}/heldout.parquet"),
        *(f"trainer.total_training_steps={steps}", "trainer.save_freq=-1", *overrides),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    print(f"running {module}, {steps} steps (log: {folder}/run.log)", flush=True)
    launched = time.time()
    with (folder / "run.log").open("w") as log:
        subprocess.run(
            command,
            stdout=log,
            stderr=log,
            timeout=RUN_TIMEOUT_S,
            check=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    stock = folder / "stock.jsonl"
    lines = (stock if stock.exists() else folder / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return Run(launched, folder, [row.get("data", row) for row in rows])


def arguments(description: str, steps: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, help="write the table and the bars here")
    parser.add_argument("--steps", type=int, default=steps, help="training steps of each arm")
    parser.add_argument("--out", type=Path, help="folder for the runs; default: a new temporary one")
    parsed = parser.parse_args()
    parsed.out = parsed.out or Path(tempfile.mkdtemp(prefix="benchmark-"))
    return parsed


def show(rows: list[dict[str, Any]], title: str, *, numbers: str = ".3g", width: int = 140) -> None:
    """A table of rows of the same keys, the first of which is a name. `numbers`: format of those with a point."""
    table = Table(title=title)
    for number, column in enumerate(rows[0]):
        table.add_column(column.replace("_", " "), justify="right" if number else "left")
    for row in rows:
        table.add_row(*(f"{value:{numbers}}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=width).print(table)


def report(rows: list[dict], bars: list[tuple[str, float, float]], file: Path | None) -> None:
    """Print the bars (`value` must be at most `target`), write the JSON, exit 0 only when all are ok."""
    results = [(name, value, target, "ok" if value <= target else "short") for name, value, target in bars]
    if file is not None:
        file.write_text(json.dumps({"rows": rows, "bars": results}, indent=2) + "\n")
    for name, value, target, verdict in results:
        print(f"bar: {name} {value:.3g} {target:.3g} {verdict}")
    sys.exit(any(verdict != "ok" for *_, verdict in results))
