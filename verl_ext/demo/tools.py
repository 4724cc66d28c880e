"""The task of sums: its rows, its base, and the table of what two runs made of it (examples/tools_cpu.sh).

python -m verl_ext.demo.tools rows outputs/tools/data
python -m verl_ext.demo.tools base outputs/tools/base --tools examples/calculator.py
python -m verl_ext.demo.tools table outputs/tools --least 0.9
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from rich.table import Table

from verl_ext.demo.calculator import write_rows
from verl_ext.demo.config import TinyPairConfig
from verl_ext.run.samples import SAMPLES, read_samples
from verl_ext.run.terminal import Terminal
from verl_ext.run.visible import print

CALL = "<tool_call>"
BATCH, STEPS = 40, 400


class Arm(NamedTuple):
    """Answers to one kind of held-out rows at one validation."""

    right: float
    """Share of right answers, greedy."""
    calls: float
    """Calls a sample."""
    samples: int


def arms_of(run: Path, sources: Sequence[str], step: int) -> dict[str, Arm]:
    """By `data_source`, what a run answered at its first (0) or last (-1) validation. ValueError where rows miss."""
    lines, _ = read_samples(run / SAMPLES)
    steps = sorted({line["step"] for line in lines})
    kept = [line for line in lines if line["step"] == steps[step]]
    if len(kept) != len(sources):
        raise ValueError(f"{run / SAMPLES}: {len(kept)} answers to {len(sources)} rows; set report.keep_samples higher")
    found: dict[str, list[Mapping[str, Any]]] = {}
    for line in kept:
        found.setdefault(sources[int(line["row"])], []).append(line)
    return {source: arm(each) for source, each in found.items()}


def arm(lines: Sequence[Mapping[str, Any]]) -> Arm:
    calls = sum(said(line).count(CALL) for line in lines)
    return Arm(sum(line["score"] for line in lines) / len(lines), calls / len(lines), len(lines))


def said(line: Mapping[str, Any]) -> str:
    """The text that the student sampled."""
    pairs = zip(line["tokens"], line["student_logprobs"], strict=True)
    return "".join(token for token, logprob in pairs if logprob is not None)


def show_table(out: Path, least: float) -> None:
    """Print the table. Raises SystemExit where the student has less than `least` of the teacher's accuracy."""
    sources = pq.read_table(out / "data" / "heldout.parquet", columns=["data_source"])["data_source"].to_pylist()
    first, last = (arms_of(out / "run", sources, step) for step in (0, -1))
    control = arms_of(out / "control", sources, -1)
    rows = {
        "teacher: the base, told to use the tool": first["sums_prompted"],
        "student before training": first["sums"],
        "student": last["sums"],
        "student without the tool": last["sums_without_tool"],
        "control: a constant advantage": control["sums"],
    }
    table = Table(title="held-out sums")
    for name in ("", "right", "calls a sample", "answers"):
        table.add_column(name, justify="left" if not name else "right")
    for name, found in rows.items():
        table.add_row(name, f"{found.right:.3f}", f"{found.calls:.2f}", str(found.samples))
    Terminal().print(table)
    share = last["sums"].right / first["sums_prompted"].right if first["sums_prompted"].right else 0.0
    print(f"student / teacher: {share:.3f}")
    if share < least:
        raise SystemExit(f"error: below {least}")


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(description="the task of sums, for which there is a calculator")
    verbs = whole.add_subparsers(dest="verb", required=True)
    rows = verbs.add_parser("rows", help="write train.parquet and heldout.parquet")
    rows.add_argument("folder", type=Path)
    base = verbs.add_parser("base", help="train the model that student and teacher begin with")
    base.add_argument("folder", type=Path)
    base.add_argument("--tools", type=Path, required=True, help="file of the calculator")
    base.add_argument("--steps", type=int, default=STEPS)
    base.add_argument("--seed", type=int, default=0)
    table = verbs.add_parser("table", help="show what OUT/run and OUT/control learned")
    table.add_argument("folder", type=Path, metavar="OUT")
    table.add_argument(
        "--least", type=float, default=0.0, help="exit with 1 below this share of the teacher's accuracy"
    )
    return whole


def main() -> None:
    options = parser().parse_args()
    if options.verb == "rows":
        print(f"{options.folder}: {write_rows(options.folder)}")
    elif options.verb == "table":
        show_table(options.folder, options.least)
    else:
        # Threads that wait must not spin where cores are shared.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        from verl_ext.demo.train_calculator import create_base
        from verl_ext.trainer.tools import function_schemas  # verl, which takes seconds

        config = TinyPairConfig(steps=options.steps, batch_size=BATCH, seed=options.seed)
        create_base(options.folder, config, function_schemas(options.tools))


if __name__ == "__main__":
    main()
