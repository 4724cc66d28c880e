"""What a sample costs as steps grow, tiny pair of `make demo`: 128 to 8,192 samples a step; metrics at step 10,000.

python -m benchmarks.scale --json scale.json

Runs `recipe.on_policy_distillation` with 8 samples a prompt. Seconds a sample: median step after the first two, from
one's end to the next one's. Our own Python: how long the threads of the trainer's process and of the agent loop's held
the interpreter in a function of ours, or in a built-in one that it called, of 250 looks a second (py-spy); a run of its
own, so that the seconds are not the looks'. Memory: the process that was started, at most.
"""

import argparse
import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.arms.runs import DEMO, report
from verl_ext.run.console import RunConsole
from verl_ext.run.files import write_json
from verl_ext.run.metrics import MetricsFile, read_metrics
from verl_ext.run.terminal import Terminal

N = 8
WARM_UP = 2
SIZES = (128, 512, 2_048, 8_192)
FIRST_COMPARED = 512
"""Below, what a step costs beside its samples shows."""
GROWTH_BAR, OWN_MS_BAR, MEMORY_BAR, LATE_BAR = 1.1, 0.5, 1.1, 1.25
TIMEOUT_S = 3_000
EARLY, LATE, REPEATS = 10, 10_000, 200
LOOKS_A_SECOND, WATCHED_STEPS = 250, 4
WATCHED = ("ray::Runner", "ray::DistillationAgentLoopWorker")
"""How the titles of the trainer's process and of the agent loop's begin."""
OURS = re.compile(r"\(.*/verl_ext/[^()]*\)$")
"""The end of a stack whose innermost function is ours."""


def watch(process: psutil.Process, folder: Path, spies: dict[str, subprocess.Popen[bytes]]) -> None:
    """Look into those of the two processes that `spies` lacks until they end; each leaves its stacks, `*.stacks`."""
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            title = next((each for each in WATCHED if " ".join(child.cmdline()).startswith(each)), None)
            if title is None or title in spies:
                continue
            command = [
                *(
                    str(Path(sys.executable).with_name("py-spy")),
                    "record",
                    "--nonblocking",
                    "--gil",
                    "--full-filenames",
                ),
                *("--rate", str(LOOKS_A_SECOND), "--format", "raw", "--output", f"{folder}/{child.pid}.stacks"),
                *("--pid", str(child.pid)),
            ]
            with (folder / f"{child.pid}.log").open("w") as log:
                spies[title] = subprocess.Popen(command, stdout=log, stderr=log)


def own_seconds(stacks: str) -> float:
    """Seconds in functions of ours: of lines `OUTERMOST;...;INNERMOST COUNT`."""
    counts = (line.rpartition(" ") for line in stacks.splitlines())
    return sum(int(count) for stack, _, count in counts if OURS.search(stack)) / LOOKS_A_SECOND


def run(folder: Path, size: int, steps: int, *, watched: bool = False) -> float:
    """Train to the end; returns the most memory of the process that was started, MiB. `watched`: after the warm-up."""
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    for earlier in folder.glob("*.stacks"):  # of a run before, in the same folder
        earlier.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, "-m", "recipe.on_policy_distillation", "platform=cpu", "task=demo", f"run_dir={folder}"),
        *(f"student.path={DEMO}/models/base", f"data.train_files={DEMO}/data/train.parquet"),
        *(f"data.val_files={DEMO}/data/heldout.parquet", f"data.train_batch_size={size // N}"),
        *(f"actor_rollout_ref.rollout.n={N}", f"trainer.total_training_steps={steps}", "trainer.save_freq=-1"),
        *("trainer.resume_mode=disable", "stall_timeout_s=3000"),
    ]
    print(f"running {steps} steps of {size} samples (log: {folder}/run.log)", flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    spies: dict[str, subprocess.Popen[bytes]] = {}
    most, deadline = 0.0, time.monotonic() + TIMEOUT_S
    with (folder / "run.log").open("w") as log:
        process = psutil.Popen(command, stdout=log, stderr=log, env=environment)
        while process.poll() is None:
            if time.monotonic() > deadline:
                process.send_signal(signal.SIGINT)  # on which it ends its engines
                sys.exit(f"error: no end after {TIMEOUT_S} s; see {folder}/run.log")
            with contextlib.suppress(psutil.NoSuchProcess):
                most = max(most, process.memory_info().rss / 2**20)
            if watched and len(spies) < len(WATCHED) and steps_done(folder) >= WARM_UP:
                watch(process, folder, spies)
            time.sleep(0.1)
    if process.returncode:
        sys.exit(f"error: the run ended with status {process.returncode}; see {folder}/run.log")
    if watched and len(spies) < len(WATCHED):
        sys.exit(f"error: of {' and '.join(WATCHED)} only {' and '.join(spies) or 'none'} was seen")
    for spy in spies.values():
        spy.wait(timeout=60)  # it writes its file when its process has ended
    return most


def steps_done(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return len(file.read_bytes().splitlines()) if file.exists() else 0


def of_size(out: Path, size: int, steps: int) -> dict[str, float]:
    """One line of the table."""
    memory = run(out / f"{size}", size, steps)
    times = [row["training/unix_time"] for row in read_metrics(out / f"{size}/metrics.jsonl")]
    seconds = statistics.median(b - a for a, b in zip(times[WARM_UP - 1 :], times[WARM_UP:], strict=False))
    watched = out / f"{size}-watched"
    run(watched, size, WARM_UP + WATCHED_STEPS, watched=True)
    own = sum(own_seconds(file.read_text()) for file in watched.glob("*.stacks")) / WATCHED_STEPS
    return {
        "samples": size,
        "seconds_a_step": seconds,
        "ms_a_sample": 1000 * seconds / size,
        "our_python_ms_a_sample": 1000 * own / size,
        "driver_mib": memory,
    }


def seconds_of_a_row(folder: Path, rows: int) -> float:
    """Median time to write a row and to show it, behind `rows` others."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "metrics.jsonl"
    file.unlink(missing_ok=True)
    metrics = MetricsFile(file)
    row: dict[str, object] = {f"group/metric_{number}": 1.5 * number for number in range(120)}
    row |= {"teacher_kl": 0.5, "critic/rewards/mean": 0.5, "timing_s/step": 1.0, "training/total_steps": 2 * LATE}
    spent = []
    console = RunConsole(folder, time.perf_counter())
    console.console = Terminal(file=(folder / "shown.txt").open("w"))
    for number in range(rows):
        metrics.append(number + 1, row)
    console.update()
    for number in range(REPEATS):
        start = time.perf_counter()
        metrics.append(rows + number + 1, row)
        console.update()
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description="what a sample costs as steps grow")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="samples a step")
    parser.add_argument("--steps", type=int, default=6, help=f"of a run, of which {WARM_UP} warm up")
    parser.add_argument("--out", type=Path, help="folder of the runs; default: a new temporary one")
    parser.add_argument("--json", type=Path, help="write the table and the bars here")
    options = parser.parse_args()
    out = (options.out or Path(tempfile.mkdtemp(prefix="benchmark-"))).resolve()
    early, late = (seconds_of_a_row(out / f"rows-{rows}", rows) for rows in (EARLY, LATE))
    print(f"a row of metrics, written and shown: {1e6 * early:.0f} us at {EARLY} rows, {1e6 * late:.0f} us at {LATE}")
    rows = []
    for size in map(int, options.sizes.split(",")):
        rows.append(of_size(out, size, options.steps))
        write_json(out / "scale.json", rows)
    table = Table(title=f"{options.steps} steps, {N} samples a prompt")
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in row.values()))
    Console().print(table)
    compared = [row["ms_a_sample"] for row in rows if row["samples"] >= FIRST_COMPARED]
    memory = [row["driver_mib"] for row in rows]
    bars = [
        *([("ms_a_sample_growth", max(compared) / compared[0], GROWTH_BAR)] if compared else []),
        ("our_python_ms_a_sample", max(row["our_python_ms_a_sample"] for row in rows), OWN_MS_BAR),
        ("driver_memory_growth", max(memory) / memory[0], MEMORY_BAR),
        ("row_at_10000_over_10", late / early, LATE_BAR),
    ]
    report([*rows, {"row_seconds_early": early, "row_seconds_late": late}], bars, options.json)


if __name__ == "__main__":
    main()
