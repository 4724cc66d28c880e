"""Seconds until a wrong command is refused, as its user waits for them: the whole process, one after another.

python -m recipe.demo && python -m benchmarks.refusals --demo outputs/demo

A machine under load shows more; beside each stands its CPU time.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

from rich.console import Console
from rich.table import Table

from benchmarks.arms.runs import report

ROOT = Path(__file__).parents[1]
BAR = 5.0
"""Seconds within which a user is told."""


def cases(demo: Path, scratch: Path) -> dict[str, list[str]]:
    """Commands by what is wrong with each; every one holds a demo's pair and rows and one fault."""
    rows, base = demo / "data", demo / "models/base"
    chats = scratch / "chats.jsonl"
    said = {"messages": [{"role": role, "content": "word " * 400} for role in ("user", "assistant")]}
    chats.write_text(json.dumps(said) + "\n")
    files = [f"data.train_files={rows}/train.parquet", f"data.val_files={rows}/heldout.parquet"]
    models = [f"student.path={base}", f"teacher.model_path={base}", "platform=cpu", "teacher=cpu_fp32"]
    train = ["train", *models, *files, f"run_dir={scratch}/run"]
    sft = ["sft", "platform=cpu", f"student.path={base}", f"data.train_files={chats}", f"run_dir={scratch}/sft"]
    evaluate = ["evaluate", f"data={rows}/heldout.parquet", f"base={base}"]
    below_a_file = f"run_dir={chats}/run"
    return {
        "an unknown key": [*train, "methd.loss=policy"],
        "text for a number": [*train, "actor_rollout_ref.actor.optim.lr=fast"],
        "a batch of zero": [*train, "data.train_batch_size=0"],
        "a negative n": [*train, "actor_rollout_ref.rollout.n=-1"],
        "NaN": [*train, "method.guards.reference_kl_coef=nan"],
        "a key that breaks the method": [*train, "actor_rollout_ref.rollout.calculate_log_probs=false"],
        "GPU settings without a GPU": [*train, "platform=cuda"],
        "FP8 on a CPU": [*train, "teacher=fp8"],
        "more ranks than devices": [*train, "trainer.n_gpus_per_node=4096"],
        "W&B without a login": [*train, "trainer.logger=[wandb]"],
        "no training file": [*train, f"data.train_files={scratch}/none.parquet"],
        "no validation file named": [each for each in train if not each.startswith("data.val_files")],
        "a file of another form": [*train, f"data.train_files={chats}"],
        "a folder that cannot be made": [*train, below_a_file],
        "a response beyond the student's context": [*train, "data.max_response_length=4000"],
        "a prompt too long": [*train, "data.max_prompt_length=4"],
        "a teacher prompt beyond its context": [*train, "teacher.context_length=40"],
        "no model": [*train, f"student.path={scratch}/none"],
        "no server answers": [*train, "teacher.mode=external", "teacher.urls=[http://127.0.0.1:9]"],
        "SFT: an unknown key": [*sft, "optim.lrr=1"],
        "SFT: a rate of zero": [*sft, "optim.lr=0"],
        "SFT: a row too long": [*sft, "data.max_length=64", "data.truncation=error"],
        "SFT: rows of on-policy training": [*sft, f"data.train_files={rows}/train.parquet"],
        "evaluate: no model": [*evaluate, f"base={scratch}/none"],
        "evaluate: an unknown key": [*evaluate, "temprature=0"],
        "data: no file": ["data", "source=file", f"sentences={scratch}/none.txt"],
        "doctor: a batch of zero": ["doctor", *train[1:], "data.train_batch_size=0"],
        "plan: an unknown group": ["plan", "memory", "hardware=h100_9x"],
        "report: an unknown flag": ["report", f"{scratch}/none", "--watc"],
        "report: no run": ["report", f"{scratch}/none"],
        "an unknown verb": ["trian"],
    }


def refused(command: list[str]) -> tuple[float, float, int, str]:
    """Seconds, seconds of CPU, exit status and what stood on stderr."""
    began, before = time.perf_counter(), getrusage(RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - began, getrusage(RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, done.returncode, done.stderr.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("outputs/demo"), help="folder of a demo: its pair and rows")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    options = parser.parse_args()
    verb = str(Path(sys.executable).with_name("verl-opd"))
    table = Table(title="refusals")
    for column in ("what is wrong", "s", "CPU s", "what is said"):
        seconds = column in ("s", "CPU s")
        table.add_column(column, justify="right" if seconds else "left", no_wrap=column != "what is said")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, words in cases(options.demo.resolve(), Path(scratch)).items():
            seconds, cpu, status, said = refused([verb, *words])
            print(f"{name}: {seconds:.1f} s", flush=True)
            rows.append({"wrong": name, "seconds": seconds, "cpu_seconds": cpu, "status": status, "said": said})
            table.add_row(name, f"{seconds:.1f}", f"{cpu:.1f}", said)
    Console().print(table)
    unclear = sum(row["status"] == 0 or len(row["said"].splitlines()) != 1 for row in rows)
    slowest = max(row["seconds"] for row in rows)
    report(rows, [("seconds_until_refused", slowest, BAR), ("not_one_line", float(unclear), 0.0)], options.json)


if __name__ == "__main__":
    main()
