"""Folders of runs and comparisons as their writers leave them, with numbers that are made up and always the same."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

CONFIG = {
    "defaults": [{"platform": "cpu"}, {"task": "demo"}],
    "student": {"path": "outputs/demo/models/base"},
    "method": {"loss": "policy_gradient", "labels": {"extract": "whole"}},
    "teacher": {"model_path": "outputs/demo/models/base", "mode": "managed", "python": "python"},
    "teachers": {},
    "data": {
        "train_files": "train.parquet",
        "val_files": "heldout.parquet",
        "train_batch_size": 32,
        "max_response_length": 64,
    },
    "trainer": {"total_training_steps": 16, "experiment_name": "made-up"},
    "run_dir": "outputs/made-up",
}
LABELS = ("ar", "de", "en", "fr")
WORDS = (
    " first",
    ",",
    " 12",
    " plus",
    " 7",
    " is",
    " 19",
    ".",
    "\n",
    " so",
    " the",
    " an",
    "swer",
    " 19",
    "<|im_end|>",
)


def write_lines(file: Path, rows: Sequence[Any]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value))


def metrics(steps: int, speed: float, noise: random.Random) -> list[dict[str, float]]:
    rows = []
    for step in range(1, steps + 1):
        left = math.exp(-speed * step * 16 / steps)
        rows.append(
            {
                "step": step,
                "teacher_kl": 2.8 * left + 0.01 + 0.05 * noise.random() * left,
                "critic/rewards/mean": 1 - 0.85 * left,
                "actor/entropy": 0.4 + left,
                "response_length/mean": 24 - 8 * left + noise.random(),
                "response_length/truncated_share": 0.1 * left,
                "staleness/tokens_mean": 0.0,
                "training/total_steps": float(steps),
                "teacher/scored": 128.0,
                "timing_s/step": 3 + noise.random(),
                "made/constant": 1.0,
            }
        )
    return rows


def timeline(steps: int) -> list[dict[str, Any]]:
    rows, now = [], 1000.0
    for step in range(1, steps + 1):
        stages = [["samples and scores", now], ["update", now + 2], ["weight sync", now + 3], ["end", now + 3.4]]
        rows.append({"step": step, "stages": stages, "student": [[now, now + 1.6]], "teacher": [[now + 0.8, now + 2]]})
        now += 3.5
    return rows


def result(accuracy: float, sees_prompt: bool, noise: random.Random, rows: int = 80) -> dict[str, Any]:
    """An arm of an eval.json."""
    of = rows // len(LABELS)
    right = [min(of, max(0, round(of * accuracy + noise.uniform(-1, 1)))) for _ in LABELS]
    counts = [
        [right[i] if j == i else (of - right[i] if j == (i + 1) % len(LABELS) else 0) for j in range(len(LABELS))] + [0]
        for i in range(len(LABELS))
    ]
    hits = sum(right)
    half = 1.96 * math.sqrt(max(hits, 1) * (rows - hits + 1) / rows) / rows
    share = hits / rows
    classes = [
        {"label": label, "n": of, "correct": n, "answered": of, "recall": n / of, "precision": n / of, "f1": n / of}
        for label, n in zip(LABELS, right, strict=True)
    ]
    return {
        "accuracy": share,
        "accuracy_interval_95": [max(0, share - half), min(1, share + half)],
        "macro_f1": share,
        "macro_f1_interval_95": [max(0, share - half), min(1, share + half)],
        "invalid_share": 0.0,
        "rows": rows,
        "classes": classes,
        "confusion": {"gold": list(LABELS), "answered": [*LABELS, "invalid"], "counts": counts},
        "model": "outputs/made-up",
        "sees_prompt": sees_prompt,
    }


def sample(step: int, row: int, left: float, noise: random.Random, **more: Any) -> dict[str, Any]:
    """An answer in the form of samples.jsonl; `left`: how far the student still is, in [0, 1]."""
    tokens = list(WORDS[: 9 + row % 6])
    student = [-noise.random() * 0.3 for _ in tokens]
    teacher = [
        value - (noise.random() * 6 * left if noise.random() < 0.4 else noise.uniform(-0.1, 0.1)) for value in student
    ]
    others = [
        [[token, value], [" or", value - 1.2], [" not", value - 3]]
        for token, value in zip(tokens, teacher, strict=True)
    ]
    return {
        "schema": 1,
        "step": step,
        "row": row,
        "prompt": f"What is {row} plus {row + 7}? Show your work.",
        "answer": "".join(tokens) if left > 0.2 else f" so the answer is {2 * row + 7}.",
        "truth": str(2 * row + 7),
        "score": float(left < 0.5),
        "finish": "stop",
        "tokens": tokens,
        "student_logprobs": student,
        "teacher_logprobs": teacher,
        "alternatives": others,
        **more,
    }


def entry(phase: str, step: int | None, cost: float) -> dict[str, Any]:
    """A line of ledger.jsonl."""
    return {
        "schema": 1,
        "phase": phase,
        "step": step,
        "unix_time": 1000.0 + (step or 0),
        "seconds": 3.4 * cost,
        "device_seconds": 3.4 * cost,
        "devices": 1,
        "peak_bytes": 2**30,
        "energy_joules": None,
        "samples": 128,
        "tokens": {"sampled": 3000, "prefilled": 9000, "prefilled_cached": 4000, "scored": 3000, "trained": 3000},
        "flops": {
            "sample": 5e9 * cost,
            "score": 5e9 * cost,
            "train_forward": 5e9 * cost,
            "train_backward": 1e10 * cost,
        },
    }


def write_run(
    folder: Path, steps: int = 16, speed: float = 0.4, seed: int = 0, accuracy: float = 0.97, phase: str = "train"
) -> Path:
    """A finished run with every file that a report reads."""
    noise = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    config = OmegaConf.create(CONFIG)
    config.data.seed = seed
    if phase == "sft":
        del config.method
        config.data.train_files = str(folder.parent / "data/conversations.parquet")
        config.optim = {"lr": 1e-4 * (1 + seed)}
    OmegaConf.save(config, folder / "config.yaml")
    rows = metrics(steps, speed, noise)
    if phase == "sft":
        for row in rows:
            row["train/loss"] = row.pop("teacher_kl") / 2
    write_lines(folder / "metrics.jsonl", rows)
    write_lines(folder / "timeline.jsonl", timeline(steps))
    validated = list(range(0, steps + 1, max(1, steps // 4)))
    left = {step: math.exp(-speed * step * 16 / steps) for step in validated}
    write_lines(
        folder / "samples.jsonl", [sample(step, row, left[step], noise) for step in validated for row in range(6)]
    )
    write_lines(folder / "ledger.jsonl", [entry(phase, step, 1 + speed) for step in range(1, steps + 1)])
    write_lines(
        folder / "accuracy.jsonl",
        [
            {
                "schema": 1,
                "step": s,
                "samples": s * 128,
                "updates": s,
                "accuracy": accuracy - (accuracy - 0.2) * left[s],
                "rows": 80,
            }
            for s in validated
        ],
    )
    evaluation = {
        "base": result(0.2, False, noise),
        "teacher": result(0.98, True, noise),
        "student": result(accuracy, False, noise),
        "step": steps,
    }
    write_json(folder / "eval.json", evaluation)
    write_json(folder / "environment.json", {"verl-opd": "0.1.0", "commit": f"{seed}" * 8, "gpu": "none"})
    write_json(
        folder / "origin.json", {"student.path": "outputs/demo/models/base", "method": {"loss": "policy_gradient"}}
    )
    write_lines(
        folder / "stages.jsonl",
        [{"stage": "settings are checked", "time": 900.0}, {"stage": "Ray is up", "time": 903.5}],
    )
    return folder


def write_two_parts(folder: Path, steps: int) -> None:
    """An SFT of 4 steps before the on-policy run of a folder, whose validations count from its start."""
    write_run(folder / "sft", 4, phase="sft")
    config = OmegaConf.load(folder / "sft/config.yaml")
    config.data.train_files = str(folder.parent / "data/conversations.parquet")
    OmegaConf.save(config, folder / "sft/config.yaml")
    rows = [json.loads(line) for line in (folder / "accuracy.jsonl").read_text().splitlines()]
    later = [
        {**row, **{key: row[key] + 4 for key in ("step", "updates")}, "samples": row["samples"] + 64} for row in rows
    ]
    write_lines(folder / "accuracy.jsonl", [rows[0], *later])
    assert later[-1]["step"] == steps + 4


ARMS = (
    ("sft (tinker)", "sft", 0.2, 0.93, 2),
    ("on-policy", "on_policy", 0.6, 0.97, 3),
    ("sft then on-policy", "sft_then_on_policy", 0.7, 0.975, 1),
    ("shuffled teacher", "control", 0.0, 0.21, 1),
)
"""Name, kind, speed, accuracy, seeds."""


def write_comparison(out: Path, arms: Sequence[tuple[str, str, float, float, int]] = ARMS, steps: int = 16) -> Path:
    """A comparison with one failed arm beside those of `arms`."""
    found = []
    for number, (name, kind, speed, accuracy, seeds) in enumerate(arms):
        for seed in range(seeds):
            run = f"arm{number}-{seed}"
            phase = "sft" if kind == "sft" else "train"
            write_run(out / run, steps, speed * (1 + 0.1 * seed), seed, accuracy - 0.01 * seed, phase)
            if kind == "sft_then_on_policy":
                write_two_parts(out / run, steps)
            found.append(
                {
                    "arm": name,
                    "kind": kind,
                    "seed": seed,
                    "run": run,
                    "status": "done",
                    "overrides": [f"seed={seed}"],
                    "error": None,
                }
            )
    (out / "data").mkdir()
    write_lines(out / "data/ledger.jsonl", [entry("labels", None, 10.0)])
    failed = {"arm": "on-policy, stream", "kind": "on_policy", "seed": 0, "run": "failed", "status": "failed"}
    found.append({**failed, "overrides": ["pipeline.mode=stream"], "error": "the teacher did not start"})
    write_json(
        out / "comparison.json",
        {
            "schema": 1,
            "task": "arithmetic",
            "question": "What does the student's own sampling buy on answers of 30 to 60 tokens?",
            "target_share": 0.9,
            "headroom": {"base": 0.2, "teacher": 0.98, "rows": 80},
            "commands": ["verl-opd compare run task=arithmetic out=outputs/comparison"],
            "arms": found,
        },
    )
    return out
