"""Replay in a run as a user starts it: what a step trains on, what it kept before, and what a checkpoint brings back.

A plugin of verl's, in a folder of this test, writes down what is in TransferQueue when a step lets go of it.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from steps_of_queue import write_plugin

from verl_ext.run.metrics import read_metrics

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
PROMPTS, SAMPLES, STEPS = 8, 4, 4


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
def train(tmp_path_factory: pytest.TempPathFactory, teacher_python: str) -> Any:
    folder = tmp_path_factory.mktemp("replay")
    run_verb("recipe.create_data", "source=file", "sentences=data/sample.jsonl", f"out_dir={folder}/data")
    run_verb("recipe.tiny_pair", f"data_dir={folder}/data", f"out_dir={folder}/base", "vocab_size=400", "steps=5")

    def run(name: str, *more: str) -> tuple[Path, list[dict[str, dict[str, torch.Tensor]]]]:
        """The folder of a run, and what each of its steps trained on."""
        environment = write_plugin(folder / f"{name}-queue")
        steps = Path(environment["STEPS_FOLDER"])
        run_verb(
            "recipe.on_policy_distillation",
            *("platform=cpu", "task=demo", f"run_dir={folder}/{name}", f"student.path={folder}/base"),
            *(f"teacher.python={teacher_python}", f"data.train_files={folder}/data/train.parquet"),
            *(f"data.val_files={folder}/data/heldout.parquet", f"data.train_batch_size={PROMPTS}"),
            *(f"actor_rollout_ref.rollout.n={SAMPLES}", "actor_rollout_ref.actor.optim.lr=5e-3"),
            *("method.policy_loss.kind=truncated_importance_sampling", "trainer.save_freq=1"),
            # A third of 8 prompts is 2: rows that fill no micro-batch of the CPU's.
            *("replay.share=0.34", "replay.min_ess=0", "trainer.max_actor_ckpt_to_keep=10"),
            *more,
            **environment,
        )
        return folder / name, [torch.load(steps / f"{i + 1}.pt") for i in range(len(list(steps.iterdir())))]

    return run


@pytest.fixture(scope="module")
def whole(train) -> tuple[Path, list]:
    return train("whole", f"trainer.total_training_steps={STEPS}")


@pytest.fixture(scope="module")
def resumed(train, whole) -> tuple[Path, list]:
    """The third step once more, from the checkpoint of the second."""
    checkpoint = whole[0] / "checkpoints" / "global_step_2"
    resume = ("trainer.resume_mode=resume_path", f"trainer.resume_from_path={checkpoint}")
    return train("resumed", *resume, "trainer.total_training_steps=3")


def replayed(step: dict) -> list[dict]:
    return [sample for key, sample in step.items() if key.startswith("replayed")]


def fresh(step: dict) -> list[dict]:
    return [sample for key, sample in step.items() if not key.startswith("replayed")]


def content(sample: dict) -> tuple:
    fields = ("prompts", "responses", "rollout_log_probs", "teacher_logprobs", "response_mask")
    return tuple(tuple(sample[field].tolist()) for field in fields)


def rows_of(run: Path, step: int) -> list[tuple]:
    """What the buffer beside a checkpoint holds."""
    state = torch.load(run / f"checkpoints/global_step_{step}/replay.pt", weights_only=True)
    ends, found = state["lengths_B"].cumsum(0).tolist(), []
    for end, length, prompt in zip(ends, state["lengths_B"].tolist(), state["prompt_lengths_B"].tolist(), strict=True):
        ids, response = state["token_ids_N"][end - length : end].tolist(), slice(end - length + prompt, end)
        values = [state[f"{name}_N"][response] for name in ("rollout_logprobs", "teacher_logprobs", "mask")]
        of_row = (tuple(ids[:prompt]), tuple(ids[prompt:]), *(tuple(value.tolist()) for value in values))
        found.append(of_row)
    return found


def test_every_group_of_every_step_is_in_the_buffer(whole):
    run, steps = whole
    assert len(steps) == STEPS
    kept = []
    for number, step in enumerate(steps):
        assert len({content(sample)[0] for sample in fresh(step)}) == PROMPTS - 2 * (number > 0)
        assert len(fresh(step)) == SAMPLES * (PROMPTS - 2 * (number > 0))
        kept += [content(sample) for sample in fresh(step)]
        assert sorted(rows_of(run, number + 1)) == sorted(kept)


def test_replayed_rows_are_stored_ones_bit_for_bit_and_not_the_same_ones_for_ever(whole):
    run, steps = whole
    seen = []
    for number, step in enumerate(steps):
        assert len(replayed(step)) == (2 * SAMPLES if number else 0)
        assert len(step) == PROMPTS * SAMPLES
        if number:
            assert {content(sample) for sample in replayed(step)} <= set(rows_of(run, number))
        seen += [content(sample) for sample in replayed(step)]
    assert len({prompt for prompt, *_ in seen}) > 2


def test_no_request_is_made_for_a_replayed_row(whole):
    rows = read_metrics(whole[0] / "metrics.jsonl")
    for number, row in enumerate(rows):
        prompts = PROMPTS - 2 * (number > 0)
        assert row["teacher/scored"] == prompts * SAMPLES
        assert row["teacher/sequences"] <= prompts * (SAMPLES + 1)  # and the bare prompt of each group, where it helps
        assert row["replay/trained"] == (2 * SAMPLES if number else 0)


def test_a_replayed_row_is_charged_by_the_student_of_its_step(whole):
    """Whose log-probs are not the sampler's any more; fresh rows are at the sampler's, which has the same weights."""
    _, steps = whole
    for step in steps[1:]:
        moved = []
        for sample in replayed(step):
            charged = sample["teacher_logprobs"] - sample["advantages"]
            moved += (charged - sample["rollout_log_probs"]).abs().tolist()
            assert torch.equal(sample["old_log_probs"], sample["rollout_log_probs"])
            assert (sample["rollout_is_weights"] > 0).all()
        assert max(moved) > 1e-2
        for sample in fresh(step):
            wanted = sample["teacher_logprobs"] - sample["rollout_log_probs"]
            torch.testing.assert_close(sample["advantages"], wanted)
            assert set(sample["rollout_is_weights"].tolist()) == {1.0}
    gaps = [row["teacher_kl"] for row in read_metrics(whole[0] / "metrics.jsonl")]
    assert gaps[-1] != gaps[0]


def test_a_resumed_step_trains_on_the_same_rows_with_the_same_weights(whole, resumed):
    (_, steps), (run, (again,)) = whole, resumed
    once = steps[2]

    def weighed(step: dict) -> list[tuple]:
        return sorted((*content(s), tuple(s["rollout_is_weights"].tolist())) for s in replayed(step))

    assert weighed(once) == weighed(again)
    for mine, theirs in zip(sorted(replayed(once), key=content), sorted(replayed(again), key=content), strict=True):
        torch.testing.assert_close(mine["advantages"], theirs["advantages"], atol=1e-4, rtol=0)
    (row,), before = read_metrics(run / "metrics.jsonl"), read_metrics(whole[0] / "metrics.jsonl")[2]
    for name in ("replay/rows", "replay/trained", "replay/weight_mean", "replay/uses_mean", "replay/age_mean"):
        assert row[name] == before[name], name
