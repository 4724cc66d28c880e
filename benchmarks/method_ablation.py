"""What each estimator, loss, baseline and control does to the demo's student: short runs with real engines, one table.

    python -m benchmarks.method_ablation --arms reverse_kl,forward_kl --json ablation.json

One teacher server answers all arms. About a minute an arm and seed on two quiet cores. An arm whose result is in
`--out` is not run again. Of several seeds the table and the bars show the mean, and the steps to the target of each.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from benchmarks.arms.runs import DEMO, launch, report, show
from verl_ext.comparison.curve import accuracy_of
from verl_ext.comparison.teacher import shared_teacher
from verl_ext.run.files import write_json
from verl_ext.teacher.config import TeacherConfig

TOP_K = "method.top_k=32"
STUDENTS = ("method.support=student", "method.top_k=16")
"""vLLM gives 20 of its most likely tokens where nobody asks for more."""
DECOUPLED = "algorithm.rollout_correction.bypass_mode=false"
FOUR_UPDATES = "actor_rollout_ref.actor.ppo_mini_batch_size=8"
"""Of 32 prompts: the later updates of a step are off-policy, which is where policy losses differ."""
TRUNCATED = "method.policy_loss.kind=truncated_importance_sampling"
TWO_SIDED = ("method.policy_loss.low=0.5", "method.policy_loss.high=2.0")

ANSWERS = "method.off_policy_data=ANSWERS"
"""In the place of ANSWERS, the file of the prompted teacher's own answers to the first ANSWERED rows, made once."""
ANSWERED = 1024

METHODS: dict[str, tuple[str, ...]] = {
    "reverse_kl": (),
    "discount_0.9": ("method.discount=0.9",),
    "clip_5_nats": ("method.clip=5.0",),
    "sequence_normalization": ("method.normalization=sequence",),
    "old_logprobs": ("method.student_logprobs=old", DECOUPLED),
    "baseline_expected": ("method.baseline=expected_reverse_kl", TOP_K),
    "baseline_group": ("method.baseline=group",),
    "baseline_batch": ("method.baseline=batch",),
    "task_reward": ("method.task_reward.coef=1.0",),
    "forward_kl": ("method.loss=forward_kl", TOP_K),
    "forward_kl_no_tail": ("method.loss=forward_kl", TOP_K, "method.tail=false"),
    "forward_kl_whole_vocabulary": ("method.loss=forward_kl", "method.top_k=-1"),
    "reverse_kl_direct": ("method.loss=reverse_kl", TOP_K),
    "reverse_kl_student": ("method.loss=reverse_kl", *STUDENTS),
    "reverse_kl_student_tail": ("method.loss=reverse_kl", "method.tail_samples=true", *STUDENTS),
    "jensen_shannon": ("method.loss=jensen_shannon", TOP_K),
    "skewed_forward_kl": ("method.loss=skewed_forward_kl", "method.mix=0.1", TOP_K),
    "skewed_reverse_kl": ("method.loss=skewed_reverse_kl", "method.mix=0.1", TOP_K),
    "4_updates": (FOUR_UPDATES,),
    "4_updates_ppo_clip": (FOUR_UPDATES, "method.policy_loss.kind=ppo_clip"),
    "4_updates_truncated": (FOUR_UPDATES, TRUNCATED, *TWO_SIDED),
    "4_updates_masked": (FOUR_UPDATES, "method.policy_loss.kind=masked_importance_sampling", *TWO_SIDED),
    "replay_25": ("replay.share=0.25", TRUNCATED, *TWO_SIDED),
    "replay_50": ("replay.share=0.5", TRUNCATED, *TWO_SIDED),
    "off_policy_25": ("method.off_policy_share=0.25", ANSWERS),
    "off_policy_50": ("method.off_policy_share=0.5", ANSWERS),
    "off_policy_25_forward_kl": ("method.off_policy_share=0.25", ANSWERS, "method.loss=forward_kl", TOP_K),
    "replay_50_uniform": ("replay.share=0.5", "replay.priority=uniform", TRUNCATED, *TWO_SIDED),
}
CURRENT = "method.student_logprobs=current"
STALE = (TRUNCATED, *TWO_SIDED)
LAGS = {
    **{"one_step_off": 1, "one_step_off_4_updates": 1, "stream_1": 1, "stream_2": 2, "stream_4": 4},
    **{"stream_2_rollout": 2, "stream_4_rollout": 4},
}
"""Weight versions by which the samples of an arm may be older than its student."""
PIPELINES: dict[str, tuple[str, ...]] = {
    "one_step_off": ("pipeline.mode=one_step_off",),
    "one_step_off_4_updates": ("pipeline.mode=one_step_off", FOUR_UPDATES, CURRENT, *STALE),
    **{
        f"stream_{lag}": ("pipeline.mode=stream", f"pipeline.max_staleness={lag}", CURRENT, *STALE) for lag in (1, 2, 4)
    },
    **{f"stream_{lag}_rollout": ("pipeline.mode=stream", f"pipeline.max_staleness={lag}", *STALE) for lag in (2, 4)},
}
"""Old samples, with the reverse KL of the student in training; `_rollout`: of the student that sampled."""
CONTROLS: dict[str, tuple[str, ...]] = {
    name: (f"method.control={name}",)
    for name in ("flipped_sign", "shuffled_teacher", "random_teacher", "teacher_is_student", "constant_negative")
}
OFF_POLICY_CONTROLS: dict[str, tuple[str, ...]] = {"no_weight_sync": ("method.control=no_weight_sync",)}
"""Learns, from ever older samples: in the table, without a bar."""
ARMS = METHODS | PIPELINES | CONTROLS | OFF_POLICY_CONTROLS

ENOUGH = 0.9
"""Share of the teacher's accuracy that every method must reach."""
TOO_MUCH = 0.5
"""Share that no control may reach."""


def teacher_accuracy(out: Path) -> float:
    """Held-out accuracy of the base with the prompt, measured once."""
    file = out / "teacher.json"
    if not file.exists():
        base, heldout = DEMO / "models/base", DEMO / "data/heldout.parquet"
        settings = (f"data={heldout}", f"teacher={base}", f"out={file}", "max_tokens=8", "dtype=float32")
        subprocess.run([sys.executable, "-m", "recipe.evaluate", *settings], check=True)
    return json.loads(file.read_text())["teacher"]["accuracy"]


def teacher_answers(out: Path) -> Path:
    """The prompted base's answers, drawn as the student's are, token by token."""
    file, base = out / "answers.parquet", DEMO / "models/base"
    if not file.exists():
        settings = (f"model={base}", f"data={DEMO}/data/train.parquet", f"out={file}", f"limit={ANSWERED}")
        how = ("view=teacher", "sampling.max_tokens=4", "engine.dtype=float32")
        subprocess.run([sys.executable, "-m", "recipe.generate", *settings, *how], check=True)
    return file


def result_file(name: str, out: Path, steps: int, seed: int) -> Path:
    return out / f"{name}-{steps}-{seed}.json"


def demo_teacher(out: Path) -> AbstractContextManager[list[str]]:
    """The demo's prompted base as one server for every arm; gives the overrides that name it."""
    config = TeacherConfig(
        model_path=str(DEMO / "models/base"), context_length=512, max_total_tokens=65536, device="cpu", dtype="float32"
    )
    return shared_teacher(config, out / "teacher.log")


def run_arm(name: str, out: Path, steps: int, seed: int, teacher: Sequence[str]) -> None:
    """Train one arm; the metrics of its every step go into its result file."""
    validate = ("trainer.test_freq=1", "data.val_batch_size=300", "trainer.resume_mode=disable", f"data.seed={seed}")
    folder = out / f"{name}-{seed}"
    (folder / "metrics.jsonl").unlink(missing_ok=True)  # of a run that was cut off
    arm = [ANSWERS.replace("ANSWERS", str(teacher_answers(out))) if word == ANSWERS else word for word in ARMS[name]]
    rows = launch("recipe.on_policy_distillation", folder, steps, *validate, *teacher, *arm).rows
    result = {"arm": name, "seed": seed, "overrides": list(ARMS[name]), "steps": [of_step(row) for row in rows]}
    write_json(result_file(name, out, steps, seed), result)


def of_step(row: dict[str, float]) -> dict[str, float | int | None]:
    """What the table needs of one row of metrics.jsonl, of a validated step."""
    accuracy = accuracy_of(row)
    assert accuracy is not None
    return {
        "step": int(row["step"]),
        "sampled": int(row["teacher/scored"] + row["teacher/unscored"]),
        "accuracy": accuracy,
        "teacher_kl": row["teacher_kl"],
        "entropy": row["actor/entropy"],
        "advantage_variance": row["advantage/variance"],
        "seconds": row["timing_s/step"],
    }


def reached(steps: list[dict[str, Any]], target: float) -> tuple[float, float]:
    """Steps and samples until the accuracy is reached; infinite where it is not."""
    for number, row in enumerate(steps, 1):
        if row["accuracy"] >= target:
            return row["step"], sum(earlier["sampled"] for earlier in steps[:number])
    return float("inf"), float("inf")


def summary(arm: str, of_seeds: list[dict[str, Any]], target: float) -> dict[str, Any]:
    """One line of the table: means over the seeds. `target`: the accuracy that counts as learned."""
    seeds = [result["steps"] for result in of_seeds]
    needed = [reached(steps, target) for steps in seeds]
    return {
        "arm": arm,
        "steps_to_target": statistics.mean(steps for steps, _ in needed),
        "of_each_seed": ", ".join(f"{steps:g}" for steps, _ in needed),
        "samples_to_target": statistics.mean(samples for _, samples in needed),
        "sampled": statistics.mean(sum(row["sampled"] for row in steps) for steps in seeds),
        "best_accuracy": statistics.mean(max(row["accuracy"] for row in steps) for steps in seeds),
        "final_accuracy": statistics.mean(steps[-1]["accuracy"] for steps in seeds),
        "final_teacher_kl": statistics.mean(steps[-1]["teacher_kl"] for steps in seeds),
        "median_seconds": statistics.median(row["seconds"] for steps in seeds for row in steps),
    }


def bars(rows: list[dict[str, Any]], teacher: float) -> list[tuple[str, float, float]]:
    """Every method learns, no control does, and old samples cost at most one update more than their age."""
    found = []
    synchronous = next((row["steps_to_target"] for row in rows if row["arm"] == "reverse_kl"), None)
    for row in rows:
        if row["arm"] in PIPELINES and synchronous is not None:
            later = row["steps_to_target"] - synchronous
            found.append((f"{row['arm']}_updates_later", later, LAGS[row["arm"]] + 1))
        if row["arm"] in METHODS:
            found.append((f"{row['arm']}_missing", max(0.0, ENOUGH * teacher - row["best_accuracy"]), 0.0))
        elif row["arm"] in CONTROLS:
            found.append((f"{row['arm']}_accuracy", row["final_accuracy"], TOO_MUCH * teacher))
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="estimators, losses, baselines and controls side by side")
    parser.add_argument("--arms", default=",".join(ARMS), help=f"of {', '.join(ARMS)}")
    parser.add_argument("--seeds", default="0", help="of data and samples; each is a run of each arm")
    parser.add_argument("--steps", type=int, default=12, help="training steps of each arm")
    parser.add_argument("--out", type=Path, default=Path("outputs/method_ablation"), help="folder of runs and results")
    parser.add_argument("--plot", type=Path, help="draw the accuracies by step here; the ending chooses the format")
    parser.add_argument("--json", type=Path, help="write the table and the bars here")
    options = parser.parse_args()
    options.arms, options.seeds = options.arms.split(","), [int(seed) for seed in options.seeds.split(",")]
    unknown = [name for name in options.arms if name not in ARMS]
    if unknown:
        parser.error(f"--arms: no arm {', '.join(unknown)}; there are {', '.join(ARMS)}")
    return options


def draw(results: dict[str, list[dict[str, Any]]], target: float, file: Path) -> None:
    """Accuracy by step, the methods left, the controls right: mean of the seeds, between the lowest and the highest."""
    import matplotlib
    from matplotlib.figure import Figure

    methods = [name for name in results if name in METHODS | PIPELINES]
    kinds = {"methods": methods, "controls": [name for name in results if name not in methods]}
    kinds = {title: names for title, names in kinds.items() if names}
    figure = Figure(figsize=(11 if len(kinds) > 1 else 7, 5), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for axes, (title, shown) in zip(panels, kinds.items(), strict=True):
        for number, name in enumerate(shown):
            style, colour = ("-", "--")[number % 2], matplotlib.colormaps["tab20"](number % 20)
            steps = [row["step"] for row in results[name][0]["steps"]]
            seeds = [[row["accuracy"] for row in result["steps"]] for result in results[name]]
            at_step = list(zip(*seeds, strict=True))
            axes.plot(steps, [statistics.mean(each) for each in at_step], style, color=colour, label=name)
            axes.fill_between(steps, *zip(*((min(a), max(a)) for a in at_step), strict=True), color=colour, alpha=0.15)
        axes.axhline(target, color="black", linewidth=0.8, linestyle=":")
        axes.set(title=title, xlabel="step of 128 samples", ylim=(0, 1.02))
        axes.legend(fontsize=7, ncols=2 if title == "methods" else 1, loc="lower right")
    panels[0].set_ylabel("held-out accuracy without the prompt")
    figure.savefig(file)


def main() -> None:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    teacher = teacher_accuracy(options.out)
    every = [(name, seed) for seed in options.seeds for name in options.arms]
    missing = [(name, seed) for name, seed in every if not result_file(name, options.out, options.steps, seed).exists()]
    if missing:
        with demo_teacher(options.out) as overrides:
            for name, seed in missing:
                run_arm(name, options.out, options.steps, seed, overrides)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in options.arms}
    for name, seed in every:
        results[name].append(json.loads(result_file(name, options.out, options.steps, seed).read_text()))
    rows = [summary(name, of_seeds, ENOUGH * teacher) for name, of_seeds in results.items()]
    if options.plot:
        draw(results, ENOUGH * teacher, options.plot)
    title = f"target: {ENOUGH} x the teacher's accuracy of {teacher:.3f}; 32 prompts x 4 samples a step"
    show(rows, title, numbers=".3f")
    report(rows, bars(rows, teacher), options.json)


if __name__ == "__main__":
    main()
