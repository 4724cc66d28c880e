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
from safetensors.torch import load_file
from steps_of_queue import write_plugin

from verl_ext.run.metrics import read_metrics
from verl_ext.run.models import load_tokenizer, render_chat
from verl_ext.student.export import export_checkpoint
from verl_ext.trainer.earlier import FILE

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
PROMPTS, SAMPLES, STEPS, TAUGHT = 8, 4, 2, 2
AGREED = 1e-4
"""Nats between float32 log-probs of two engines."""
ANSWERED = 24
TEACHERS = ("frozen", "live", "slow")
EMA = 0.25


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
    asked = pq.read_table(folder / "data/train.parquet").to_pylist()
    named = [row | {"teacher": TEACHERS[number % len(TEACHERS)]} for number, row in enumerate(asked)]
    pq.write_table(pa.Table.from_pylist(named), folder / "data/train.parquet")
    answers = [
        {"messages": [*row["prompt"], {"role": "assistant", "content": row["reward_model"]["ground_truth"]}]}
        for row in rows
    ]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    environment = write_plugin(folder)
    train(folder, STEPS, environment)
    return folder, steps_of(folder), environment


def train(folder: Path, steps: int, environment: dict[str, str]) -> None:
    run_verb(
        "recipe.on_policy_distillation",
        *("platform=cpu", "task=demo", f"run_dir={folder}/run", f"student.path={folder}/base", "update=lora"),
        *("teacher.mode=base", "+teachers={frozen:{},live:{refresh_every:1},slow:{refresh_every:1,ema:0.25}}"),
        f"data.train_files={folder}/data/train.parquet",
        *(f"data.val_files={folder}/data/heldout.parquet", f"data.train_batch_size={PROMPTS}"),
        *(f"actor_rollout_ref.rollout.n={SAMPLES}", f"trainer.total_training_steps={steps}", "trainer.save_freq=1"),
        *("actor_rollout_ref.actor.optim.lr=5e-3", f"method.off_policy_share={TAUGHT / PROMPTS}"),
        f"method.off_policy_data={folder}/answers.jsonl",
        **environment,
    )


def steps_of(folder: Path) -> list[dict]:
    steps = folder / "steps"
    return [torch.load(steps / f"{i + 1}.pt") for i in range(len(list(steps.iterdir())))]


def of_teacher(step: dict) -> list[dict]:
    return [sample for key, sample in step.items() if key.startswith("offpolicy")]


def sampled(step: dict) -> list[dict]:
    return [sample for key, sample in step.items() if not key.startswith("offpolicy")]


def logprobs_of(model: Any, prompt: list[int], response: torch.Tensor) -> torch.Tensor:
    """Of the response's tokens, nats, (R,)."""
    with torch.no_grad():
        logits_RV = model(torch.cat([torch.tensor(prompt), response])[None]).logits[0, len(prompt) - 1 : -1]
    return logits_RV.log_softmax(-1).gather(1, response[:, None])[:, 0]


def with_adapter(folder: Path, step: int, ema: float) -> Any:
    """The base with the mean that teaches after `step` steps: of the adapter of that step and the mean before it."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32).eval()
    (file,) = (folder / f"run/checkpoints/global_step_{max(step, 1)}").glob(f"*-{FILE}")
    mean = load_file(file)  # of before the step's weight sync
    assert file.name.startswith(f"{max(step, 1) - 1}-")
    settings = json.loads((folder / "run/adapter/adapter_config.json").read_text())
    if step:
        (saved,) = (folder / f"run/checkpoints/global_step_{step}").rglob("adapter_model.safetensors")
        own = load_file(saved)
        assert own.keys() == mean.keys()
        mean = {name: ema * mean[name] + (1 - ema) * own[name] for name in own}
    for name, factor_RI in mean.items():
        if name.endswith("lora_A.weight"):
            factor_OR = mean[name.replace("lora_A", "lora_B")]
            weight = model.get_parameter(name.removeprefix("base_model.model.").replace("lora_A.", ""))
            weight.data += factor_OR @ factor_RI * (settings["lora_alpha"] / settings["r"])
    return model


@pytest.fixture(scope="module")
def students(run) -> list[Any]:
    """By transformers, in float32: the base, and what the first step made of it."""
    from transformers import AutoModelForCausalLM

    folder, _, _ = run
    (adapters,) = (folder / "run/checkpoints/global_step_1").rglob("lora_train_meta.json")
    export_checkpoint(adapters.parent, str(folder / "base"), folder / "first")
    folders = (folder / "base", folder / "first/student")
    return [AutoModelForCausalLM.from_pretrained(each, dtype=torch.float32).eval() for each in folders]


def test_the_sampler_scores_as_the_base_or_as_the_student_does_under_the_teachers_prompt(run, students):
    folder, steps, _ = run
    tokenizer = load_tokenizer(str(folder / "base"))
    rows = pq.read_table(folder / "data/train.parquet").to_pylist()
    asked = {tuple(render_chat(tokenizer, row["prompt"], {})): row for row in rows}
    assert len(steps) == STEPS
    for number, step in enumerate(steps):
        slow = with_adapter(folder, number, EMA if number else 1.0)
        found: dict[str, list[torch.Tensor]] = {name: [] for name in TEACHERS}
        assert len(sampled(step)) == (PROMPTS - TAUGHT) * SAMPLES
        for sample in sampled(step):
            row, response = asked[tuple(sample["prompts"].tolist())], sample["responses"]
            prompt = render_chat(tokenizer, row["teacher_messages"], {})
            base, own, old = (logprobs_of(each, prompt, response) for each in (students[0], students[number], slow))
            wanted = {"frozen": base, "live": own, "slow": old}[row["teacher"]]
            torch.testing.assert_close(sample["teacher_logprobs"], wanted, atol=AGREED, rtol=0)
            found[row["teacher"]].append((own - base if row["teacher"] != "slow" else own - old).abs())
        assert all(len(each) for each in found.values())
        moved = min(torch.cat(found[name]).max() for name in TEACHERS)
        assert moved > 10 * AGREED if number else moved == 0  # so that one would not pass for the other


def test_the_teachers_own_answers_are_trained_on_by_cross_entropy_and_counted_apart(run, students):
    folder, steps, _ = run
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


def test_a_resumed_run_goes_on_with_the_mean_of_its_students(run):
    folder, _, environment = run
    train(folder, STEPS + 1, environment)
    tokenizer, slow = load_tokenizer(str(folder / "base")), with_adapter(folder, STEPS, EMA)
    rows = pq.read_table(folder / "data/train.parquet").to_pylist()
    asked = {tuple(render_chat(tokenizer, row["prompt"], {})): row for row in rows}
    of_slow = 0
    for sample in sampled(steps_of(folder)[-1]):
        row = asked[tuple(sample["prompts"].tolist())]
        if row["teacher"] == "slow":
            wanted = logprobs_of(slow, render_chat(tokenizer, row["teacher_messages"], {}), sample["responses"])
            torch.testing.assert_close(sample["teacher_logprobs"], wanted, atol=AGREED, rtol=0)
            of_slow += 1
    assert of_slow
