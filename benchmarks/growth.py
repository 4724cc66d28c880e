"""Whether a long run grows: memory, descriptors and threads of every process of it, by step, and shared memory.

    python -m benchmarks.growth --steps 200 --json growth.json

Real engines, the demo's model and rows, the managed teacher among them. The slope is that of a line through the second
half of the steps, where buffers and caches are filled; memory is what a process has of its own (resident, less what it
shares).
"""

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import linear_regression, mean
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.arms.runs import DEMO, report
from verl_ext.run.watchdog import kind_of

MIB = 2**20
LOOK_S = 2.0
SLOPE_MIB = 0.1
"""A step and process: 10,000 steps then take a gigabyte."""
COUNT_SLOPE = 0.01
"""Descriptors and threads a step."""
Seen = dict[str, dict[str, float]]


def look(driver: psutil.Process) -> Seen:
    """By the kind of process: MiB of its own, descriptors, threads; those of one kind together."""
    found: Seen = defaultdict(lambda: {"mib": 0.0, "descriptors": 0.0, "threads": 0.0})
    for process in [driver, *driver.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            title = " ".join(process.cmdline())
            name = "driver" if process == driver else kind_of(title) or title.split(" ")[0].rpartition("/")[2]
            if name in ("IDLE", "python"):
                continue
            memory = process.memory_info()
            own = found[name]
            own["mib"] += (memory.rss - memory.shared) / MIB
            own["descriptors"] += process.num_fds()
            own["threads"] += process.num_threads()
    found["shared memory"] = {"mib": sum(file.stat().st_size for file in Path("/dev/shm").iterdir()) / MIB}
    return found


def followed(steps: int, folder: Path) -> list[tuple[int, Seen]]:
    """(step, what was seen at it) of a run of so many steps."""
    data, metrics = DEMO / "data", folder / "run" / "metrics.jsonl"
    command = [
        *(sys.executable, "-m", "recipe.on_policy_distillation", "platform=cpu", "task=demo"),
        *(f"run_dir={folder}/run", f"student.path={DEMO}/models/base", "data.train_batch_size=8"),
        *(f"data.train_files={data}/train.parquet", f"data.val_files={data}/heldout.parquet"),
        *(f"trainer.total_training_steps={steps}", "trainer.save_freq=50", "pipeline.mode=one_step_off"),
    ]
    seen: list[tuple[int, Seen]] = []
    with (folder / "run.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    driver = psutil.Process(process.pid)
    while process.poll() is None:
        step = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        if 0 < step < steps:  # not while it ends
            seen.append((step, look(driver)))
        time.sleep(LOOK_S)
    if process.returncode:
        raise RuntimeError(f"the run failed: {folder}/run.log")
    return seen


def slopes(seen: list[tuple[int, Seen]]) -> list[dict[str, Any]]:
    """A row a kind of process that was there in the whole second half."""
    half = [(step, found) for step, found in seen if step > seen[-1][0] / 2]
    rows = []
    for name in sorted(set.intersection(*(set(found) for _, found in half))):
        row: dict[str, Any] = {"process": name}
        for key in half[0][1][name]:
            values = [found[name][key] for _, found in half]
            row[key] = mean(values)
            row[f"{key} a step"] = linear_regression([step for step, _ in half], values).slope
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="training steps, at least 20")
    parser.add_argument("--out", type=Path, help="folder for the run; default: a new temporary one")
    parser.add_argument("--json", type=Path, help="write the table and the bars here")
    options = parser.parse_args()
    if options.steps < 20:
        parser.error(f"--steps={options.steps}: a slope needs at least 20")
    folder = (options.out or Path(tempfile.mkdtemp(prefix="benchmark-"))).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    rows = slopes(followed(options.steps, folder))
    table = Table(title=f"growth over the second half of {options.steps} steps")
    for column in ("process", "MiB", "MiB a step", "descriptors a step", "threads a step"):
        table.add_column(column, justify="left" if column == "process" else "right")
    for row in rows:
        table.add_row(
            *(row["process"], f"{row['mib']:.0f}", f"{row['mib a step']:+.3f}"),
            *(f"{row[key]:+.3f}" if key in row else "-" for key in ("descriptors a step", "threads a step")),
        )
    Console().print(table)
    bars = [("largest_mib_a_step", max(row["mib a step"] for row in rows), SLOPE_MIB)]
    for key in ("descriptors a step", "threads a step"):
        bars.append((f"largest_{key.replace(' ', '_')}", max(row.get(key, 0.0) for row in rows), COUNT_SLOPE))
    report(rows, bars, options.json)


if __name__ == "__main__":
    main()
