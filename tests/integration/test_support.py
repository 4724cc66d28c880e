"""`method.support=student` in a run as a user starts it: what vLLM named and what SGLang said of it, by transformers.

The run has a store, samples ahead of its updates and trains on earlier rows again.
"""

import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from steps_of_queue import write_plugin
from transformers import AutoModelForCausalLM, AutoTokenizer

from verl_ext.run.metrics import read_metrics
from verl_ext.run.models import render_chat

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
K, NAMED = 8, 8
NATS = 1e-4


@dataclass(frozen=True)
class Run:
    folder: Path
    """With the data, the model that was trained and the store."""
    steps: list[dict[str, dict[str, torch.Tensor]]]
    """What each step trained on: by sample, its tensors by name."""

    @property
    def metrics(self) -> list[dict[str, float]]:
        return read_metrics(self.folder / "run" / "metrics.jsonl")


def run_verb(module: str, *arguments: str, **environment: str) -> None:
    words = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(
        words, cwd=ROOT, env=os.environ | environment, text=True, capture_output=True, timeout=280, check=False
    )
    if done.returncode:
        pytest.fail(f"{module} exited with {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-1000:]}")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, teacher_python: str) -> Run:
    folder = tmp_path_factory.mktemp("support")
    run_verb("recipe.create_data", "source=file", "sentences=data/sample.jsonl", f"out_dir={folder}/data")
    run_verb("recipe.tiny_pair", f"data_dir={folder}/data", f"out_dir={folder}/base", "vocab_size=400", "steps=5")
    environment = write_plugin(folder / "queue")
    run_verb(
        "recipe.on_policy_distillation",
        *("platform=cpu", "task=demo", f"run_dir={folder}/run", f"student.path={folder}/base"),
        *(f"teacher.python={teacher_python}", f"data.train_files={folder}/data/train.parquet"),
        *(f"data.val_files={folder}/data/heldout.parquet", "actor_rollout_ref.actor.optim.lr=5e-3"),
        *("method.loss=reverse_kl", f"method.top_k={K}", "method.support=student", f"method.support_tokens={NAMED}"),
        *("method.tail_samples=true", "pipeline.mode=one_step_off", "replay.share=0.34", "replay.min_ess=0"),
        *("data.train_batch_size=8", "actor_rollout_ref.rollout.n=4", f"teacher.store_path={folder}/scores"),
        *("trainer.total_training_steps=3", "trainer.save_freq=-1"),
        **environment,
    )
    written = Path(environment["STEPS_FOLDER"])
    return Run(folder, [torch.load(written / f"{i + 1}.pt") for i in range(len(list(written.iterdir())))])


@torch.no_grad()
def logprobs_of(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """(R, V)"""
    return model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)


def test_the_teacher_scored_the_students_own_tokens(run: Run) -> None:
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "base")
    model = AutoModelForCausalLM.from_pretrained(run.folder / "base", dtype=torch.float32).eval()
    rows = pq.read_table(run.folder / "data" / "train.parquet").to_pylist()
    taught = {
        tuple(render_chat(tokenizer, row["prompt"], {})): render_chat(tokenizer, row["teacher_messages"], {})
        for row in rows
    }
    left_out = named = 0
    first = [sample for key, sample in run.steps[0].items() if not key.startswith("replayed")]
    assert first
    for sample in first:
        response, prompt = sample["responses"].tolist(), sample["prompts"].tolist()
        ids_RK, found_RK = sample["teacher_top_ids"], sample["teacher_top_logprobs"]
        assert ids_RK.shape == (len(response), K)
        student_RV = logprobs_of(model, prompt, response)  # both sampled by the weights that the run began with
        teacher_RV = logprobs_of(model, taught[tuple(prompt)], response)
        kept_RK = ids_RK >= 0
        ours_RK = student_RV.gather(1, ids_RK.clamp_min(0).long())
        assert (ours_RK >= student_RV.topk(K).values[:, -1:] - NATS)[kept_RK].all()  # the student's, not the teacher's
        for ids, kept in zip(ids_RK, kept_RK, strict=True):
            assert len(set(ids[kept].tolist())) == int(kept.sum())
        theirs_RK = teacher_RV.gather(1, ids_RK.clamp_min(0).long())
        torch.testing.assert_close(found_RK[kept_RK], theirs_RK[kept_RK], atol=NATS, rtol=0)
        assert (found_RK[~kept_RK] == -torch.inf).all()
        left_out += int((~kept_RK).sum())
        different = len(set(ids_RK[kept_RK].tolist()))
        assert different <= NAMED
        named += different
    assert left_out > 0  # so that the bound was met
    metrics = run.metrics[0]
    assert metrics["teacher/support_left_out"] == left_out
    assert metrics["teacher/support_tokens"] == named
    assert 0 < metrics["actor/student_mass"] < 1
    assert metrics["teacher/unscored"] == 0


def test_earlier_rows_come_back_with_their_support_and_the_store_keeps_it(run: Run) -> None:
    replayed = [sample for step in run.steps[1:] for key, sample in step.items() if key.startswith("replayed")]
    assert replayed

    def tops(sample: dict) -> tuple:
        return tuple(tuple(row) for name in ("ids", "logprobs") for row in sample[f"teacher_top_{name}"].tolist())

    assert {tops(sample) for sample in replayed} <= {
        tops(sample) for step in run.steps[:-1] for sample in step.values()
    }
    assert all(math.isfinite(row["actor/direct_loss"]) for row in run.metrics)
    assert sum(row["teacher/store_misses"] for row in run.metrics) > 0
    assert any((run.folder / "scores").iterdir())
