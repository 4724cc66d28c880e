"""The demo's stages, each a verb in a process of its own, and what they left in numbers."""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.table import Table

from verl_ext.demo.config import DemoConfig
from verl_ext.demo.picture import draw
from verl_ext.run.metrics import read_metrics
from verl_ext.run.visible import print


def run_verb(module: str, *arguments: str) -> float:
    """Run one verb and show its command; returns its seconds, exits with its status if it fails."""
    command = [sys.executable, "-m", module, *arguments]
    print(f"\n$ python -m {module} {shlex.join(arguments)}", flush=True)
    started = time.perf_counter()
    status = subprocess.run(command, check=False).returncode
    if status:
        sys.exit(status)
    return time.perf_counter() - started


def run_stages(config: DemoConfig, package: str) -> dict[str, float]:
    """All stages in order, by the verbs of `package`; returns their seconds."""
    out = config.out
    data, base, run = f"{out}/data", f"{out}/models/base", f"{out}/run"
    return {
        "data": run_verb(f"{package}.create_data", f"out_dir={data}", "max_chars=64"),
        "tiny_pair": run_verb(f"{package}.tiny_pair", f"data_dir={data}", f"out_dir={base}", "guess_label=ot"),
        "on_policy_distillation": run_verb(
            f"{package}.on_policy_distillation",
            "platform=cpu",
            "task=demo",
            f"run_dir={run}",
            f"student.path={base}",
            f"data.train_files={data}/train.parquet",
            f"data.val_files={data}/heldout.parquet",
            f"trainer.total_training_steps={config.steps}",
            *("trainer.val_before_train=true", "trainer.test_freq=4"),
        ),
        "evaluate": run_verb(
            f"{package}.evaluate",
            f"data={data}/heldout.parquet",
            f"edge={data}/edge.parquet",
            f"base={base}",
            f"teacher={base}",
            f"student={run}/student",
            f"out={out}/eval.json",
            "max_tokens=8",
            "dtype=float32",
        ),
    }


def summarise(config: DemoConfig, stage_seconds: dict[str, float]) -> dict[str, Any]:
    """The numbers of the run, read back from what the stages wrote."""
    out = Path(config.out)
    evaluation = json.loads((out / "eval.json").read_text())
    run = json.loads((out / "run" / "run.json").read_text())
    rows = read_metrics(out / "run" / "metrics.jsonl")
    return {
        "base_accuracy": evaluation["base"]["accuracy"],
        "teacher_accuracy": evaluation["teacher"]["accuracy"],
        "student_accuracy": evaluation["student"]["accuracy"],
        "student_over_teacher": evaluation["student"]["accuracy"] / evaluation["teacher"]["accuracy"],
        "teacher_kl_first": rows[0]["teacher_kl"],
        "teacher_kl_last": rows[-1]["teacher_kl"],
        "steps": len(rows),
        "seconds_step_median": sorted(row["timing_s/step"] for row in rows)[len(rows) // 2],
        "seconds_install": config.install_seconds,
        "seconds_startup": run["seconds"]["startup"],
        "seconds_train": run["seconds"]["train"],
        "seconds_stages": stage_seconds,
        "seconds_total": config.install_seconds + sum(stage_seconds.values()),
    }


def draw_demo(config: DemoConfig) -> Path:
    """The picture of the run (`verl_ext.demo.picture`); its file."""
    out = Path(config.out)
    evaluation = json.loads((out / "eval.json").read_text())
    draw(read_metrics(out / "run" / "metrics.jsonl"), evaluation, out / "demo.svg")
    return out / "demo.svg"


def summary_table(summary: dict[str, Any]) -> Table:
    table = Table(title="demo: the prompt moved into the weights")
    table.add_column("")
    table.add_column("value", justify="right")
    for key, value in summary.items():
        if not isinstance(value, dict):
            table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    return table
