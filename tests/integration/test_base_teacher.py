"""`teacher.mode=base` and the teacher's own answers in a run as a user starts it: LoRA, two steps, no server.

What the sampler says of the base, and the loss of the teacher's answers, are what transformers makes of those tokens.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from steps_of_queue import write_plugin

from verl_ext.run.metrics import read_metrics
from verl_ext.run.models import load_tokenizer, render_chat
from verl_ext.student.export import export_checkpoint

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
PROMPTS, SAMPLES, STEPS, TAUGHT = 8, 4, 2, 2
AGREED = 1e-4
"""Nats between float32 log-probs of two engines."""
ANSWERED = 24


def run_verb(module: str, *arguments: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"{module} exited with {done.returncode}:\n{done.stdout[-4000:]}")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Its folder, and what each step trained on."""
    folder = tmp_path_factory.mktemp("base-teacher")
    run_verb("recipe.create_data", "source=file", "sentences=data/sample.jsonl", f"out_dir={folder}/data")
    run_verb("recipe.tiny_pair", f"data_dir={folder}/data", f"out_dir={folder}/base", "vocab_size=400", "steps=5")
    rows = pq.read_table(folder / "data/train.parquet").slice(0, ANSWERED).to_pylist()
    frozen_and_live = pq.read_table(folder / "data/train.parquet").to_pylist()
    named = [row | {"teacher": ("frozen", "live")[number % 2]} for number, row in enumerate(frozen_and_live)]
    pq.write_table(pa.Table.from_pylist(named), folder / "data/train.parquet")
    answers = [
        {"messages": [*row["prompt"], {"role": "assistant", "content": row["reward_model"]["ground_truth"]}]}
        for row in rows
    ]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    environment = write_plugin(folder)
    run_verb(
        "recipe.on_policy_distillation",
        *("platform=cpu", "task=demo", f"run_dir={folder}/run", f"student.path={folder}/base", "update=lora"),
        *("teacher.mode=base", "+teachers={frozen:{},live:{refresh_every:1}}"),
        f"data.train_files={folder}/data/train.parquet",
        *(f"data.val_files={folder}/data/heldout.parquet", f"data.train_batch_size={PROMPTS}"),
        *(f"actor_rollout_ref.rollout.n={SAMPLES}", f"trainer.total_training_steps={STEPS}", "trainer.save_freq=1"),
        *("actor_rollout_ref.actor.optim.lr=5e-3", f"method.off_policy_share={TAUGHT / PROMPTS}"),
        f"method.off_policy_data={folder}/answers.jsonl",
        **environment,
    )
    steps = folder / "steps"
    return folder, [torch.load(steps / f"{i + 1}.pt") for i in range(len(list(steps.iterdir())))]


def of_teacher(step: dict) -> list[dict]:
    return [sample for key, sample in step.items() if key.startswith("offpolicy")]


def sampled(step: dict) -> list[dict]:
    return [sample for key, sample in step.items() if not key.startswith("offpolicy")]


def logprobs_of(model: Any, prompt: list[int], response: torch.Tensor) -> torch.Tensor:
    """Of the response's tokens, nats, (R,)."""
    with torch.no_grad():
        logits_RV = model(torch.cat([torch.tensor(prompt), response])[None]).logits[0, len(prompt) - 1 : -1]
    return logits_RV.log_softmax(-1).gather(1, response[:, None])[:, 0]


@pytest.fixture(scope="module")
def students(run) -> list[Any]:
    """By transformers, in float32: the base, and what the first step made of it."""
    from transformers import AutoModelForCausalLM

    folder, _ = run
    (adapters,) = (folder / "run/checkpoints/global_step_1").rglob("lora_train_meta.json")
    export_checkpoint(adapters.parent, str(folder / "base"), folder / "first")
    folders = (folder / "base", folder / "first/student")
    return [AutoModelForCausalLM.from_pretrained(each, dtype=torch.float32).eval() for each in folders]


def test_the_sampler_scores_as_the_base_or_as_the_student_does_under_the_teachers_prompt(run, students):
    folder, steps = run
    tokenizer = load_tokenizer(str(folder / "base"))
    rows = pq.read_table(folder / "data/train.parquet").to_pylist()
    asked = {tuple(render_chat(tokenizer, row["prompt"], {})): row for row in rows}
    assert len(steps) == STEPS
    for number, step in enumerate(steps):
        found: dict[str, list[torch.Tensor]] = {"frozen": [], "live": []}
        assert len(sampled(step)) == (PROMPTS - TAUGHT) * SAMPLES
        for sample in sampled(step):
            row, response = asked[tuple(sample["prompts"].tolist())], sample["responses"]
            prompt = render_chat(tokenizer, row["teacher_messages"], {})
            base, own = (logprobs_of(model, prompt, response) for model in (students[0], students[number]))
            wanted = {"frozen": base, "live": own}[row["teacher"]]
            torch.testing.assert_close(sample["teacher_logprobs"], wanted, atol=AGREED, rtol=0)
            found[row["teacher"]].append((own - base).abs())
        assert all(len(each) for each in found.values())
        moved = torch.cat([*found["frozen"], *found["live"]]).max()
        assert moved > 10 * AGREED if number else moved == 0  # so that one would not pass for the other


def test_the_teachers_own_answers_are_trained_on_by_cross_entropy_and_counted_apart(run, students):
    folder, steps = run
    first, second = read_metrics(folder / "run/metrics.jsonl")
    for row, step in zip((first, second), steps, strict=True):
        assert len(of_teacher(step)) == row["off_policy/rows"] == TAUGHT * SAMPLES
        assert row["off_policy/tokens"] == sum(len(sample["responses"]) for sample in of_teacher(step))
        assert row["teacher/scored"] == len(sampled(step))
        kl = torch.cat([s["rollout_log_probs"] - s["teacher_logprobs"] for s in sampled(step)])
        assert row["teacher_kl"] == pytest.approx(kl.mean().item(), abs=1e-5)
        assert row["actor/rollout_gap_max"] < 1e-3  # a teacher's answer, which nobody sampled, would be nats away
    # An adapter adds nothing before its first update.
    losses = torch.cat([-logprobs_of(students[0], s["prompts"].tolist(), s["responses"]) for s in of_teacher(steps[0])])
    assert first["actor/off_policy_nll"] == pytest.approx(losses.mean().item(), abs=AGREED)
    assert second["actor/off_policy_nll"] < first["actor/off_policy_nll"]
    seen = [tuple(sample["prompts"].tolist()) for step in steps for sample in of_teacher(step)]
    assert len(set(seen)) == 2 * TAUGHT * SAMPLES  # of 24 answers, none twice in a pass
