"""`pipeline.mode=stream` as a user runs it: real Ray, vLLM, SGLang and FSDP2, answers that outlive a weight sync."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from verl_ext.run.metrics import read_metrics

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
STEPS, SAVED = 4, 2


def run_verb(module: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, text=True, capture_output=True, timeout=600, check=False
    )
    if done.returncode:
        pytest.fail(f"{module} exited with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory, teacher_python: str) -> list[str]:
    """Answers of up to 64 tokens of a base that hardly ever ends one, eight prompts a step, two batches ahead."""
    folder = tmp_path_factory.mktemp("pipeline")
    run_verb("recipe.create_data", "source=file", "sentences=data/sample.jsonl", f"out_dir={folder}/data")
    run_verb("recipe.tiny_pair", f"data_dir={folder}/data", f"out_dir={folder}/base", "vocab_size=400", "steps=5")
    return [
        *("platform=cpu", "task=demo", f"run_dir={folder}/run", f"student.path={folder}/base"),
        *(f"data.train_files={folder}/data/train.parquet", f"data.val_files={folder}/data/heldout.parquet"),
        *(f"teacher.python={teacher_python}", "data.train_batch_size=8", "data.max_response_length=64"),
        "actor_rollout_ref.rollout.max_num_seqs=8",  # of 64 samples, so that some are always under way
        *("pipeline.mode=stream", "pipeline.max_staleness=2", "pipeline.wait_timeout_s=300"),
        *("method.policy_loss.kind=truncated_importance_sampling", "method.student_logprobs=current"),
        *(f"trainer.total_training_steps={STEPS}", f"trainer.save_freq={SAVED}", "trainer.logger=[]"),
    ]


@pytest.fixture(scope="module")
def run(command: list[str]) -> Path:
    run_verb("recipe.on_policy_distillation", *command)
    return Path(command[2].removeprefix("run_dir="))


def test_samples_are_as_old_as_allowed_and_their_answers_outlive_weight_syncs(run: Path):
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["staleness/max"] == 0
    assert 1 <= max(row["staleness/max"] for row in rows) <= 2
    assert sum(row["staleness/resumed_share"] for row in rows) > 0
    assert all(row["staleness/tokens_mean"] <= row["staleness/max"] for row in rows)
    assert all(0 < row["actor/effective_sample_size"] <= 1 for row in rows)
    assert sum(row["teacher/unscored"] for row in rows) == 0
    assert sum(row.get("training/off_policy/evicted_samples", 0) for row in rows) == 0


def test_what_was_under_way_at_a_checkpoint_is_trained_after_it(run: Path, command: list[str]):
    """The run is put back to its checkpoint of step 2, as if it had been killed after it."""
    checkpoints = run / "checkpoints"
    shutil.rmtree(checkpoints / f"global_step_{STEPS}")
    (checkpoints / "latest_checkpointed_iteration.txt").write_text(str(SAVED))
    run_verb("recipe.on_policy_distillation", *command)
    stages = [json.loads(line)["stage"] for line in (run / "stages.jsonl").read_text().splitlines()]
    assert "16 saved prompts are under way again" in stages  # both batches of steps 3 and 4
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert (run / "student" / "config.json").is_file()
    assert max(row["staleness/max"] for row in rows) <= 2
