"""The tiny pair learns to do without its prompt: vLLM, SGLang and FSDP2 on one device, from the command line."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from verl_ext.run.metrics import read_metrics

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(1200)]

STEPS = 16
ENOUGH, TOO_MUCH = 0.9, 0.5  # of the teacher's accuracy: the student after training, and before
FALLEN = 0.25  # of the first step's teacher_kl
AGREE_NATS = 0.02  # mean, sampler against trainer, on what is sampled in training


@pytest.fixture(scope="module")
def prompted(machine, pair: Path, run_module: Callable[..., str], tmp_path_factory) -> dict[str, dict]:
    """The base's held-out accuracy with the prompt (`teacher`) and without (`base`)."""
    file = tmp_path_factory.mktemp("evaluation") / "eval.json"
    arms = [f"data={pair}/data/heldout.parquet", f"base={pair}/base", f"teacher={pair}/base", f"out={file}"]
    run_module("evaluate_base", "recipe.evaluate", *arms, *machine.evaluation)
    return json.loads(file.read_text())


def test_the_student_learns(
    precision: str, machine, pair: Path, prompted, out: Path, run_module: Callable[..., str], tmp_path: Path
) -> None:
    run, name = tmp_path / "run", f"learns_{precision}"
    data = [f"data.train_files={pair}/data/train.parquet", f"data.val_files={pair}/data/heldout.parquet"]
    words = ["task=demo", f"teacher={precision}", *machine.words, f"run_dir={run}", f"student.path={pair}/base", *data]
    words.append(f"trainer.total_training_steps={STEPS}")
    run_module(name, "recipe.on_policy_distillation", *words, run=run)
    file = tmp_path / "eval.json"
    arms = [f"data={pair}/data/heldout.parquet", f"student={run}/student", f"out={file}"]
    run_module(f"{name}_evaluate", "recipe.evaluate", *arms, *machine.evaluation)

    rows = read_metrics(run / "metrics.jsonl")
    student = json.loads(file.read_text())["student"]["accuracy"]
    teacher, base = prompted["teacher"]["accuracy"], prompted["base"]["accuracy"]
    found = {"teacher": precision, "accuracy": {"base": base, "teacher": teacher, "student": student}, "steps": rows}
    (out / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")

    assert len(rows) == STEPS
    assert base < TOO_MUCH * teacher  # else there was nothing to learn
    assert student >= ENOUGH * teacher
    kl = [row["teacher_kl"] for row in rows]
    assert all(math.isfinite(value) for value in kl)
    assert sum(kl[-3:]) / 3 < FALLEN * kl[0]
    assert sum(row["teacher/unscored"] for row in rows) == 0
    assert max(row["actor/rollout_gap_mean"] for row in rows) <= AGREE_NATS
    quantized = re.search("quantization'?[=:] ?'fp8'", (run / "teacher.log").read_text(errors="replace"))
    assert bool(quantized) == (precision == "fp8")  # SGLang prints its settings
