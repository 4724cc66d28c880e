"""On-policy distillation, ours beside TRL's SDFT trainer: same models, rows, batch and method, on the same machine.

    TRL_PYTHON=.venv-trl/bin/python python -m benchmarks.vs_trl --json vs_trl.json                 # seconds a step
    TRL_PYTHON=.venv-trl/bin/python python -m benchmarks.vs_trl --learning --out outputs/vs_trl    # samples to learn

`make trl` makes TRL's environment. Ours is `recipe.on_policy_distillation`; TRL's (arms/sdft_trl.py) is one process
with `model.generate`, all cores and no vLLM. Both charge a sampled token its reverse KL, with Adam at a constant rate.

Speed: the arms run in turn, `--rounds` times, so that a busy machine slows each; a step's seconds are the median time
from one step's end to the next, over all rounds, without the first two of each. Pairs: `tiny`, that of `make demo`
(32 prompts x 4 samples), and `26m`, random weights (16 x 8; prompts of 64 tokens, 600 the teacher's, answers of 64).

Learning: the samples until 0.9 x the teacher's held-out accuracy, tiny pair, each system at its best rate of one grid,
mean of three seeds. An arm whose result is in `--out` is not run again.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.arms import random_model
from benchmarks.arms.runs import DEMO, RUN_TIMEOUT_S, Run, launch, report, show
from benchmarks.method_ablation import ENOUGH, FOUR_UPDATES, demo_teacher, of_step, teacher_accuracy
from benchmarks.profile_step import SGLANG_RESERVES
from verl_ext.run.files import write_json

TRL_PYTHON = os.environ.get("TRL_PYTHON", ".venv-trl/bin/python")
WARM_UP = 2
SPEED_BARS = {("tiny", "sync"): 1.6, ("tiny", "one_step_off"): 1.0, ("26m", "sync"): 0.5}
"""Our seconds a step over TRL's."""
LEARNING_BAR = 0.7
"""Our samples over TRL's."""
RATES, SEEDS = (5e-4, 1e-3, 2e-3), (0, 1, 2)
METHODS = {"ours": (), "ours, 4 updates a step": (FOUR_UPDATES,)}
LEARNING_STEPS = 10
ALL_CORES = f"ray_kwargs.ray_init.runtime_env.env_vars.OMP_NUM_THREADS='{os.cpu_count()}'"
"""In our trainer and teacher, as TRL has them, where a step is arithmetic."""
SHAPE = {
    **{"model_type": "qwen3", "vocab_size": 32_000, "hidden_size": 512, "intermediate_size": 1536},
    **{"num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64},
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Pair:
    """A student, who with a longer prompt is its own teacher, and its rows."""

    name: str
    prompts: int
    """A step."""
    n: int
    """Samples of each."""
    tokens: int
    """Of an answer, at most."""
    micro: int
    """Samples that TRL trains at once: the fastest that fits."""
    model: Path
    data: Path
    overrides: tuple[str, ...] = ()
    """Of our command, beyond those of the tiny pair."""


def tiny() -> Pair:
    return Pair("tiny", 32, 4, 4, 128, DEMO / "models/base", DEMO / "data")


def compute_bound(out: Path) -> Pair:
    """26 M parameters, 16 M of them in the vocabulary."""
    model, data, prompt, teacher_prompt, answer = out / "26m/model", out / "26m/data", 64, 600, 64
    if not (data / "heldout.parquet").exists():
        shape = out / "26m/shape.json"
        shape.parent.mkdir(parents=True, exist_ok=True)
        write_json(shape, SHAPE)
        random_model.make_model(model, str(shape), "cpu", "float32")
        random_model.write_rows(data, 256, SHAPE["vocab_size"], prompt, teacher_prompt)
    overrides = (
        *(f"student.path={model}", f"data.train_files={data}/train.parquet", f"data.val_files={data}/heldout.parquet"),
        *("data.train_batch_size=16", "actor_rollout_ref.rollout.n=8"),  # one answer in 500 draws the end token
        *(f"data.max_prompt_length={prompt}", f"data.max_response_length={answer}"),
        f"actor_rollout_ref.rollout.max_model_len={prompt + answer}",
        f"teacher.context_length={teacher_prompt + answer + SGLANG_RESERVES}",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=32",  # the fastest that fits, as TRL's `micro`
        ALL_CORES,
    )
    return Pair("26m", 16, 8, answer, 16, model, data, overrides)


def run_trl(pair: Pair, out: Path, steps: int, lr: float, seed: int, heldout: bool) -> list[dict[str, float]]:
    """TRL's arm to its end: a row a step."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "steps.jsonl").unlink(missing_ok=True)
    settings = {
        **{"model": str(pair.model), "rows": f"{pair.data}/train.parquet", "out": str(out), "steps": steps},
        **{"heldout": f"{pair.data}/heldout.parquet" if heldout else None, "lr": lr, "seed": seed},
        **{"prompts": pair.prompts, "n": pair.n, "micro": pair.micro, "tokens": pair.tokens},
        "whole": pair.name == "26m",
    }
    write_json(out / "settings.json", settings)
    print(f"running TRL, {steps} steps (log: {out}/run.log)", flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(os.cpu_count()), "OMP_WAIT_POLICY": "PASSIVE"}
    environment.pop("PYTHONPATH", None)
    command = [TRL_PYTHON, str(Path(__file__).with_name("arms") / "sdft_trl.py"), str(out / "settings.json")]
    with (out / "run.log").open("w") as log:
        subprocess.run(command, stdout=log, stderr=log, check=True, timeout=RUN_TIMEOUT_S, env=environment)
    return [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]


def run_ours(pair: Pair, out: Path, steps: int, *overrides: str) -> Run:
    (out / "metrics.jsonl").unlink(missing_ok=True)  # of a run that was cut off
    words = (*pair.overrides, "trainer.resume_mode=disable", *overrides)
    return launch("recipe.on_policy_distillation", out, steps, *words)


def between(times: list[float]) -> list[float]:
    """Seconds of the steps after those that warm up, from one's end to the next one's."""
    return [later - earlier for earlier, later in zip(times[WARM_UP - 1 :], times[WARM_UP:], strict=False)]


def speed(options: argparse.Namespace) -> tuple[list[dict], list[tuple[str, float, float]]]:
    rows, bars = [], []
    for name in options.pairs:
        pair = tiny() if name == "tiny" else compute_bound(options.out)
        seconds: dict[str, list[float]] = {arm: [] for arm in (*options.modes, "trl")}
        for number in range(options.rounds):
            for mode in options.modes:
                of_mode = [] if mode == "sync" else [f"pipeline.mode={mode}"]
                run = run_ours(pair, options.out / f"{name}-{mode}-{number}", options.steps, *of_mode)
                seconds[mode] += between([row["training/unix_time"] for row in run.rows])
            found = run_trl(pair, options.out / f"{name}-trl-{number}", options.steps, 1e-3, 0, heldout=False)
            seconds["trl"] += between([row["unix_time"] for row in found])
        medians = {arm: statistics.median(values) for arm, values in seconds.items()}
        for arm, median in medians.items():
            rows.append({"pair": name, "arm": arm, "seconds": median, "over_trl": median / medians["trl"]})
            if (name, arm) in SPEED_BARS:
                bars.append((f"{name}_{arm}_over_trl", median / medians["trl"], SPEED_BARS[name, arm]))
    return rows, bars


def accuracies(system: str, lr: float, seed: int, out: Path, teacher: Sequence[str]) -> list[float]:
    """Held-out accuracy after each step of one arm."""
    pair, steps = tiny(), LEARNING_STEPS
    if system == "trl":
        return [row["accuracy"] for row in run_trl(pair, out, steps, lr, seed, heldout=True)]
    run = run_ours(
        *(pair, out, steps, *METHODS[system], *teacher, "trainer.test_freq=1", "data.val_batch_size=300"),
        *(f"actor_rollout_ref.actor.optim.lr={lr}", f"data.seed={seed}"),
    )
    return [float(of_step(row)["accuracy"] or 0.0) for row in run.rows]


def samples_to(target: float, found: list[float], a_step: int) -> float:
    """Samples until the accuracy is reached; infinite where it is not."""
    return next((step * a_step for step, accuracy in enumerate(found, 1) if accuracy >= target), float("inf"))


def learning(out: Path) -> tuple[list[dict], list[tuple[str, float, float]]]:
    target = ENOUGH * teacher_accuracy(out)
    rows: list[dict[str, Any]] = []
    with demo_teacher(out) as teacher:
        for system in (*METHODS, "trl"):
            for lr in RATES:
                needed = []
                for seed in SEEDS:
                    arm = out / f"{system.replace(', ', '-').replace(' ', '_')}-{lr:g}-{seed}"
                    if not (arm / "accuracies.json").exists():
                        write_json(arm / "accuracies.json", accuracies(system, lr, seed, arm, teacher))
                    needed.append(samples_to(target, json.loads((arm / "accuracies.json").read_text()), 128))
                rows.append({"arm": system, "lr": lr, "samples": statistics.mean(needed), "of_seeds": needed})
    best = {system: min(row["samples"] for row in rows if row["arm"] == system) for system in (*METHODS, "trl")}
    return rows, [("samples_over_trl", min(best[system] for system in METHODS) / best["trl"], LEARNING_BAR)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="seconds a step and samples to learn, ours and TRL's SDFT")
    parser.add_argument("--pairs", default="tiny,26m", help="of tiny, 26m")
    parser.add_argument("--modes", default="sync", help="values of pipeline.mode")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each arm, in turn")
    parser.add_argument("--steps", type=int, default=12, help=f"of a run, of which {WARM_UP} warm up")
    parser.add_argument("--learning", action="store_true", help="measure samples to learn instead of seconds")
    parser.add_argument("--out", type=Path, help="folder of the runs; default: a new temporary one")
    parser.add_argument("--json", type=Path, help="write the table and the bars here")
    options = parser.parse_args()
    options.pairs, options.modes = options.pairs.split(","), options.modes.split(",")
    if options.steps <= WARM_UP:
        parser.error(f"--steps={options.steps}: more than the {WARM_UP} that warm up")
    if not Path(TRL_PYTHON).exists():
        parser.error(f"TRL_PYTHON={TRL_PYTHON}: no such interpreter; `make trl` makes one")
    options.out = options.out or Path(tempfile.mkdtemp(prefix="benchmark-"))
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def main() -> None:
    options = arguments()
    rows, bars = learning(options.out) if options.learning else speed(options)
    show(rows, "samples to 0.9 x the teacher" if options.learning else "seconds a step")
    report(rows, bars, options.json)


if __name__ == "__main__":
    sys.exit(main())
