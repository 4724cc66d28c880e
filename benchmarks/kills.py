"""Kill a short run again and again, at random moments, and compare its end with that of a run that nobody touched.

    python -m benchmarks.kills on_policy --kills 6 --out outputs/kills        # vLLM, SGLang, FSDP2 on the CPU
    python -m benchmarks.kills sft --kills 6 --out outputs/kills-sft

Both runs train the demo's tiny pair (`make demo` leaves it), with a checkpoint after every second step. A kill is
`kill -9` of the driver, at a drawn moment after a step, and every second time while a checkpoint is written. Printed:
whether the last weights are equal, bit by bit, or else the largest difference; what was said at each start; and, of
on-policy training, how many samples were scored beside those of the uninterrupted run (the store answers for the
others).
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
from safetensors.torch import load_file

from verl_ext.run.metrics import read_metrics

ROOT = Path(__file__).parents[1]
DEMO = "outputs/demo"
LOOK_S = 0.05
START_S = 900.0
"""Within which a start has made a step, on a busy machine."""
WINDOW_S = {"on_policy": 4.0, "sft": 0.5}
"""After a step was seen, until the kill, at most."""
SAVE_S = 0.2
"""The same, after a checkpoint is begun."""
STEPS = {"on_policy": 30, "sft": 60}
ENDED_S = 60.0


def words(verb: str, run: Path, steps: int) -> list[str]:
    """The command of a run."""
    common = ["platform=cpu", "task=demo", f"run_dir={run}", f"student.path={DEMO}/models/base", "trainer.save_freq=2"]
    common += [f"trainer.total_training_steps={steps}", "data.train_batch_size=8"]
    if verb == "sft":
        rows = run.parent / "conversations.jsonl"
        common += ["data.micro_batch_size_per_gpu=8", "trainer.max_ckpt_to_keep=2"]
        return ["-m", "recipe.sft", *common, f"data.train_files={rows}"]
    data = [f"data.train_files={DEMO}/data/train.parquet", f"data.val_files={DEMO}/data/heldout.parquet"]
    store = f"teacher.store_path={run.parent}/scores-{run.name}"
    return ["-m", "recipe.on_policy_distillation", *common, *data, store, "teacher.python=.venv-teacher/bin/python"]


def start(verb: str, run: Path, steps: int, log: Path) -> subprocess.Popen[bytes]:
    with log.open("a") as out:
        return subprocess.Popen(
            [sys.executable, *words(verb, run, steps)],
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def steps_of(run: Path) -> int:
    """Rows that were written, repeated ones among them."""
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def being_saved(run: Path) -> list[str]:
    """Checkpoints that are begun and not whole."""
    return sorted(path.name for path in (run / "checkpoints" / ".unfinished").glob("global_step_*"))


def kill(verb: str, run: Path, steps: int, log: Path, draw: random.Random, *, in_a_save: bool) -> str:
    """Start the run, kill it some time after a step of this start, or after a save is begun; what happened."""
    before, process = steps_of(run), start(verb, run, steps, log)
    deadline, wanted = time.monotonic() + START_S, before + draw.randint(1, 2)
    while process.poll() is None and steps_of(run) < wanted and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    stale = being_saved(run)
    while in_a_save and process.poll() is None and being_saved(run) in ([], stale) and time.monotonic() < deadline:
        time.sleep(LOOK_S / 10)
    wait = draw.uniform(0, SAVE_S if in_a_save else WINDOW_S[verb])
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(wait)
        return f"ended by itself with status {process.returncode}"
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)  # of a driver, Ray ends the rest
    process.wait(ENDED_S)
    after = "a save was begun" if in_a_save else f"row {wanted}"
    return f"killed {wait:.2f} s after {after}; while saving: {', '.join(being_saved(run)) or 'no'}"


def finish(verb: str, run: Path, steps: int, log: Path) -> None:
    """Run to the end. Exits where it fails."""
    if status := start(verb, run, steps, log).wait(START_S):
        sys.exit(f"{run} ended with status {status}; see {log}")


def difference(left: Path, right: Path) -> float:
    """Largest absolute difference of two models' weights."""
    first, second = (load_file(folder / "student" / "model.safetensors") for folder in (left, right))
    assert first.keys() == second.keys()
    return max(float((first[name].float() - second[name].float()).abs().max()) for name in first)


def conversations(path: Path) -> None:
    """Rows of the demo as what SFT reads."""
    rows = pq.read_table(ROOT / DEMO / "data" / "train.parquet").slice(0, 512).to_pylist()
    answers = [{"role": "assistant", "content": row["reward_model"]["ground_truth"]} for row in rows]
    lines = (json.dumps({"messages": [*row["prompt"], answer]}) for row, answer in zip(rows, answers, strict=True))
    path.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("on_policy", "sft"))
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--steps", type=int, help=f"of the run; default: {STEPS}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.steps = options.steps or STEPS[options.verb]
    out = options.out.resolve()
    out.mkdir(parents=True)
    if options.verb == "sft":
        conversations(out / "conversations.jsonl")
    draw, whole, killed = random.Random(options.seed), out / "whole", out / "killed"
    finish(options.verb, whole, options.steps, out / "whole.txt")
    for number in range(options.kills):
        happened = kill(options.verb, killed, options.steps, out / "killed.txt", draw, in_a_save=number % 2 == 1)
        print(f"kill {number + 1}: {happened}", flush=True)
    finish(options.verb, killed, options.steps, out / "killed.txt")
    rows = [read_metrics(folder / "metrics.jsonl") for folder in (whole, killed)]
    print(f"steps {len(rows[0])} and {len(rows[1])}; largest difference of a weight {difference(whole, killed):g}")
    key = "teacher_kl" if options.verb == "on_policy" else "train/loss"
    untouched, again = ({row["step"]: row[key] for row in each} for each in rows)
    gap = max(abs(value - untouched[step]) for step, value in again.items())
    lost = sorted(untouched.keys() - again.keys())  # killed between a step's checkpoint and its row
    print(f"largest difference of {key} at a step: {gap:g}; steps without a row: {lost or 'none'}")
    if options.verb == "on_policy":
        misses = []
        for folder in (whole, killed):
            lines = (folder / "metrics.jsonl").read_text().splitlines()
            misses.append(sum(json.loads(line)["teacher/store_misses"] for line in lines))
        print(f"samples scored by the teacher in recorded steps: {misses[0]:.0f} and {misses[1]:.0f}")


if __name__ == "__main__":
    main()
