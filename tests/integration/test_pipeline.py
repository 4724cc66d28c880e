"""`pipeline.mode=stream` as a user runs it: real Ray, vLLM, SGLang and FSDP2, answers that outlive a weight sync.

It is run a second time, from its checkpoint, until vLLM's engine is killed.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from verl_ext.run.metric_names import is_known
from verl_ext.run.metrics import read_metrics
from verl_ext.run.samples import read_samples

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
STEPS, SAVED = 4, 2
LONGER = 200
ENDS_WITHIN_S = 180  # 30 s, on a machine that does nothing else


def run_verb(module: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=os.environ | {"WANDB_MODE": "offline"},
        text=True,
        capture_output=True,
        timeout=600,
        check=False,
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
        "actor_rollout_ref.rollout.max_num_seqs=1",  # of 64 samples, so that some are always under way
        *("pipeline.mode=stream", "pipeline.max_staleness=2", "pipeline.wait_timeout_s=300"),
        *("method.policy_loss.kind=truncated_importance_sampling", "method.student_logprobs=current"),
        *(f"trainer.total_training_steps={STEPS}", f"trainer.save_freq={SAVED}"),
        *("trainer.val_before_train=true", f"trainer.test_freq={SAVED}", "data.val_max_samples=8"),
        *("report.keep_samples=4", "trainer.logger=[tensorboard,wandb]"),
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


def test_the_same_held_out_answers_are_kept_at_every_validation(run: Path):
    lines, _ = read_samples(run / "samples.jsonl")
    assert [(line["step"], line["row"]) for line in lines] == [
        (step, row) for step in (0, 2, 4) for row in (0, 2, 4, 6)
    ]
    for row in (0, 2, 4, 6):
        assert len({(line["prompt"], line["truth"]) for line in lines if line["row"] == row}) == 1
    for line in lines:
        text = "".join(line["tokens"])
        assert len(line["tokens"]) == 64 if line["finish"] == "length" else text.endswith("|>")
        assert "\ufffd" in text or re.sub(r"<\|\w+\|>", "", text) == line["answer"]  # no character: bytes of its own
        for token, student, teacher, ranked in zip(
            *(line[name] for name in ("tokens", "student_logprobs", "teacher_logprobs", "alternatives")), strict=True
        ):
            logprobs = [logprob for _, logprob in ranked]
            assert len(ranked) == 5
            assert logprobs == sorted(logprobs, reverse=True)
            assert student <= 0
            assert teacher <= logprobs[0] + 1e-4
            same = [logprob for text, logprob in ranked if text == token]
            assert not same or min(abs(logprob - teacher) for logprob in same) < 1e-4
        gaps = zip(line["student_logprobs"], line["teacher_logprobs"], strict=True)
        assert max(abs(student - teacher) for student, teacher in gaps) > 1e-3  # the teacher has a prompt of its own
    assert len({tuple(line["student_logprobs"]) for line in lines}) == len(lines)  # no two prompts, no two students


def test_the_loggers_have_the_curves_and_the_answers(run: Path):
    rows = read_metrics(run / "metrics.jsonl")
    unknown = {name for row in rows for name in row if not is_known(name)} - {"step"}
    assert unknown == set(), "verl_ext/run/metric_names.py has no row for them"
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0}).Reload()
    assert set(events.Tags()["scalars"]) == {name for row in rows for name in row} - {"step"}
    assert [scalar.step for scalar in events.Scalars("teacher_kl")] == [1, 2, 3, 4]
    assert 0 < rows[0]["actor/entropy"] < math.log(400)  # nats a token, of 400
    assert [text.step for text in events.Tensors("val/samples/text_summary")] == [0, 2, 4]
    tables = [json.loads(path.read_text()) for path in run.glob("wandb/offline-run-*/files/media/table/val/*.json")]
    assert sorted(len(table["data"]) for table in tables) == [4, 4, 4]


def last_step(run: Path) -> int:
    return max(int(row["step"]) for row in read_metrics(run / "metrics.jsonl"))


@pytest.fixture(scope="module")
def killed(run: Path, command: list[str]) -> str:
    """What the run says, put back to its checkpoint of step 2, whose engine is killed after more steps than it had."""
    checkpoints = run / "checkpoints"
    shutil.rmtree(checkpoints / f"global_step_{STEPS}")
    longer = [word.replace(f"total_training_steps={STEPS}", f"total_training_steps={LONGER}") for word in command]
    process = subprocess.Popen(
        [sys.executable, "-m", "recipe.on_policy_distillation", *longer, "trainer.max_actor_ckpt_to_keep=1"],
        cwd=ROOT,
        env=os.environ | {"WANDB_MODE": "offline"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        deadline = time.monotonic() + 600
        while last_step(run) <= STEPS:
            assert process.poll() is None, process.communicate()[0][-4000:]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        (engine,) = [child for child in children if child.cmdline()[:1] == ["VLLM::EngineCore"]]
        engine.kill()
        said, _ = process.communicate(timeout=ENDS_WITHIN_S)
    finally:
        process.kill()
    assert process.returncode == 1, said[-4000:]
    return said


def test_what_was_under_way_at_a_checkpoint_is_trained_after_it(run: Path, killed: str):
    del killed
    stages = [json.loads(line)["stage"] for line in (run / "stages.jsonl").read_text().splitlines()]
    assert "16 saved prompts are under way again" in stages  # both batches of steps 3 and 4
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert max(row["staleness/max"] for row in rows) <= 2
    lines, cut = read_samples(run / "samples.jsonl")
    assert ([line["step"] for line in lines][:12], cut) == ([0] * 4 + [2] * 4 + [4] * 4, 0)


def test_a_run_whose_engine_is_killed_says_so_in_one_line_and_keeps_everything(run: Path, killed: str):
    """No prompt failed since nobody was there to answer: as they were under way, a checkpoint has them."""
    (line,) = [line for line in killed.splitlines() if line.startswith("error: ")]
    step = last_step(run)
    assert STEPS < step < LONGER
    assert "vLLM server 0 is gone: its engine ended" in line
    assert f"step {step} is saved; the same command resumes" in line
    assert "Traceback" not in killed
    rows = read_metrics(run / "metrics.jsonl")
    assert sum(row.get("training/rollout_failure/evicted_samples", 0) for row in rows) == 0
    assert (run / "checkpoints/latest_checkpointed_iteration.txt").read_text() == str(step)
    assert (run / f"checkpoints/global_step_{step}/transfer_queue").is_dir()
