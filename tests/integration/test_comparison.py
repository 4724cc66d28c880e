"""A comparison with real engines: headroom, labels, SFT and on-policy, evaluation in engines that change weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from verl_ext.comparison.curve import read_curve
from verl_ext.comparison.record import read_comparison
from verl_ext.data.rows import check_rows
from verl_ext.run.models import render_chat

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
STEPS = ("trainer.total_training_steps=2",)
SFT_STEPS = ("data.micro_batch_size_per_gpu=8", "trainer.save_freq=1")


def run_compare(out: Path, settings: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "recipe.compare", "run", str(settings), f"out={out}", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=800)


def settings(folder: Path, teacher_python: str) -> Path:
    """Our own sample and a base that is hardly trained, two steps of two arms, and one that cannot work."""
    task = {
        "name": "sample",
        "rows": ["source=file", "sentences=data/sample.jsonl"],
        "make_base": ["recipe.tiny_pair", "data_dir=${task.data}", "out_dir=${task.base}", "vocab_size=400", "steps=5"],
        "labels": ["labels.extract=whole", "labels.policy=tinker", "sampling.max_tokens=4", "engine.dtype=float32"],
        "sft": ["platform=cpu", "task=demo", "data.train_batch_size=8", *STEPS, *SFT_STEPS],
        "on_policy": ["platform=cpu", "task=demo", "data.train_batch_size=8", *STEPS, "trainer.test_freq=1"],
        "serve": [f"teacher.python={teacher_python}", "teacher.max_total_tokens=65536"],
    }
    arms = {
        "sft_tinker": {"seeds": [0]},
        "on_policy": {"seeds": [0]},
        "sft_seed": {"overrides": ["preset=seed", "data.train_batch_size=0"]},
    }
    file = folder / "mine.yaml"
    only = ["sft_tinker", "on_policy", "sft_seed"]
    file.write_text(yaml.safe_dump({"least_headroom": -1, "only": only, "task": task, "arms": arms}))
    return file


def answer_of(model: Path, messages: list[dict[str, str]]) -> str:
    """Greedy, by transformers."""
    import torch

    tokenizer, student = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    ids = torch.tensor([render_chat(tokenizer, messages, {})])
    answered = student.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    return tokenizer.decode(answered[0, ids.shape[1] :], skip_special_tokens=True)


def test_arms_are_trained_and_evaluated_and_the_same_command_finds_them_done(tmp_path, teacher_python):
    out, file = tmp_path / "out", settings(tmp_path, teacher_python)
    done = run_compare(out, file)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "sft_seed-seed0 failed: data.train_batch_size=0" in done.stderr
    assert "recipe.compare report" in done.stdout
    found = read_comparison(out)
    statuses = {arm["run"]: arm["status"] for arm in found["arms"]}
    assert statuses == {"sft_tinker-seed0": "done", "on_policy-seed0": "done", "sft_seed-seed0": "failed"}
    headroom = json.loads((out / "headroom" / "eval.json").read_text())
    assert found["headroom"]["base"] == headroom["base"]["accuracy"]
    heldout = check_rows("data", f"{out}/data/heldout.parquet")
    for run, samples in (("sft_tinker-seed0", [0, 8, 16]), ("on_policy-seed0", [0, 32, 64])):
        points = read_curve(out / run)
        assert [point.samples for point in points] == samples
        evaluation = json.loads((out / run / "eval.json").read_text())["student"]
        assert points[-1].accuracy == pytest.approx(evaluation["accuracy"])
        answers = [json.loads(line) for line in (out / run / "answers.jsonl").read_text().splitlines()]
        for row, answer in list(zip(heldout, answers, strict=True))[:3]:  # by these weights, not by others
            assert answer["answer"] == answer_of(out / run / "student", row["prompt"])
    before = (out / "on_policy-seed0" / "metrics.jsonl").stat().st_mtime
    again = run_compare(out, file, "only=[sft_tinker,on_policy]")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "0 of 2 runs to train" in again.stdout
    assert (out / "on_policy-seed0" / "metrics.jsonl").stat().st_mtime == before
