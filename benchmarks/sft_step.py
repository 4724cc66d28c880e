"""Tokens/s and memory of SFT, ours beside stock verl's SFT trainer: same model, rows, batch, LoRA and LR.

python -m benchmarks.sft_step --json sft_step.json

The stock arm (`benchmarks.sft_arm`) is verl's own trainer, dataset, loader, engine and schedule on the same file.
Both arms run three times in turn, so that a busy machine slows both; the ratio is of the medians.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.runs import DEMO, RUN_TIMEOUT_S, arguments, report
from verl_ext import labels, preflight

ROUNDS = 3
SPEED_BAR = 1.05  # stock's tokens/s over ours
MEMORY_BAR = 1.05  # our peak resident memory over stock's
ARMS = ("ours", "stock")


def write_rows(file: Path) -> None:
    """The demo's training rows as conversations; the label stands for the teacher's."""
    rows = preflight.check_rows("data.train_files", str(DEMO / "data" / "train.parquet"))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(labels.to_parquet([labels.conversation(row, row["label"]) for row in rows]))


def run(arm: str, folder: Path, rows: Path, steps: int) -> tuple[list[float], float]:
    """Tokens/s of each step after the first two, and the peak resident memory of the process in GiB."""
    folder.mkdir(parents=True)
    command = [
        *(sys.executable, "-m", "benchmarks.sft_arm", f"+arm={arm}", "sft_platform=cpu", "sft_task=demo"),
        *(f"student.path={DEMO}/models/base", f"data.train_files={rows}", f"run_dir={folder}"),
        *(f"trainer.total_training_steps={steps}", "trainer.save_freq=-1"),
    ]
    print(f"running {arm}, {steps} steps (log: {folder}/run.log)", flush=True)
    with (folder / "run.log").open("w") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, stdout=log, stderr=log, timeout=RUN_TIMEOUT_S, check=True, env=environment)
    *timed, last = [json.loads(line) for line in (folder / "speed.jsonl").read_text().splitlines()]
    return [step["tokens"] / step["seconds"] for step in timed[2:]], last["peak_gib"]


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def main() -> None:
    options = arguments("tokens/s and memory of SFT, ours and stock verl's", steps=24)
    write_rows(options.out / "rows.parquet")
    speeds: dict[str, list[float]] = {arm: [] for arm in ARMS}
    peaks: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for number in range(ROUNDS):
        for arm in ARMS:
            folder = options.out / f"{arm}-{number}"
            rates, peak = run(arm, folder, options.out / "rows.parquet", options.steps)
            speeds[arm] += rates
            peaks[arm].append(peak)
    table = Table(title=f"SFT on one CPU rank, {ROUNDS} x {options.steps} steps of 128 rows, LoRA 32")
    for column in ("", *ARMS, "ours / stock"):
        table.add_column(column, justify="left" if not column else "right")
    speed, peak = ({arm: median(values[arm]) for arm in ARMS} for values in (speeds, peaks))
    for name, value in (("tokens/s (median step)", speed), ("peak memory, GiB", peak)):
        ours, stock = value.values()
        table.add_row(name, f"{ours:.3g}", f"{stock:.3g}", f"{ours / stock:.2f}")
    Console().print(table)
    results = [{"arm": arm, "tokens_per_s": speed[arm], "peak_gib": peak[arm]} for arm in ARMS]
    bars = [
        ("stock_tokens_per_s_over_ours", speed["stock"] / speed["ours"], SPEED_BAR),
        ("peak_memory_over_stock", peak["ours"] / peak["stock"], MEMORY_BAR),
    ]
    report(results, bars, options.json)


if __name__ == "__main__":
    main()
