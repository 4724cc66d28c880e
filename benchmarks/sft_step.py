"""Tokens/s and memory of SFT, ours beside stock verl's SFT trainer (and TRL's): same model, rows, batch, LoRA and LR.

python -m benchmarks.sft_step --json sft_step.json

The stock arm (`benchmarks.arms.sft_arm`) is verl's own trainer, dataset, loader, engine and schedule on the same file.
`TRL_PYTHON`, the interpreter of an environment with TRL 1.16.0, adds TRL's SFTTrainer (without the adapter on lm_head,
which it refuses); the bar is against stock verl.
All arms run three times in turn, so that a busy machine slows each; the ratio is of the medians.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.arms.runs import DEMO, RUN_TIMEOUT_S, arguments, report
from verl_ext.data.conversations import conversation, to_parquet
from verl_ext.data.rows import check_rows

ROUNDS = 3
SPEED_BAR = 1.0  # stock's tokens/s over ours
MEMORY_BAR = 1.05  # our peak resident memory over stock's
TRL_PYTHON = os.environ.get("TRL_PYTHON", "")
ARMS = ("ours", "stock", "trl") if TRL_PYTHON else ("ours", "stock")


def write_rows(file: Path) -> None:
    """The demo's training rows as conversations; the label stands for the teacher's."""
    rows = check_rows("data.train_files", str(DEMO / "data" / "train.parquet"))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(to_parquet([conversation(row, row["label"]) for row in rows]))


def run(arm: str, folder: Path, rows: Path, steps: int) -> tuple[list[float], float]:
    """Tokens/s of each step after the first two, and the peak resident memory of the process in GiB."""
    folder.mkdir(parents=True)
    command = [
        *(sys.executable, "-m", "benchmarks.arms.sft_arm", f"+arm={arm}", "platform=cpu", "task=demo"),
        *(f"student.path={DEMO}/models/base", f"data.train_files={rows}", f"run_dir={folder}"),
        *(f"trainer.total_training_steps={steps}", "trainer.save_freq=-1"),
    ]
    if arm == "trl":
        script = str(Path(__file__).with_name("arms") / "sft_trl.py")
        command = [TRL_PYTHON, script, f"{DEMO}/models/base", str(rows), str(folder), str(steps)]
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
    speed, peak = ({arm: median(values[arm]) for arm in ARMS} for values in (speeds, peaks))
    table = Table(title=f"SFT on one CPU rank, {ROUNDS} x {options.steps} steps of 128 rows, LoRA 32")
    for column in ("", *ARMS, *(f"ours / {arm}" for arm in ARMS[1:])):
        table.add_column(column, justify="left" if not column else "right")
    for name, values in (("tokens/s (median step)", speed), ("peak memory, GiB", peak)):
        ratios = [f"{values['ours'] / values[arm]:.2f}" for arm in ARMS[1:]]
        table.add_row(name, *(f"{values[arm]:.3g}" for arm in ARMS), *ratios)
    Console().print(table)
    results = [{"arm": arm, "tokens_per_s": speed[arm], "peak_gib": peak[arm]} for arm in ARMS]
    bars = [
        ("stock_tokens_per_s_over_ours", speed["stock"] / speed["ours"], SPEED_BAR),
        ("peak_memory_over_stock", peak["ours"] / peak["stock"], MEMORY_BAR),
    ]
    report(results, bars, options.json)


if __name__ == "__main__":
    main()
