"""FLOPs worked out by hand, what is read of a driver and of metrics, and the GPU suite collected without a GPU."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.arms import flops, random_model
from benchmarks.arms.memory_watch import Reading, owner_of, parse_device, parse_processes, peak, phases_of
from benchmarks.profile_step import Stage, bars_of
from verl_ext.checks.memory import check_plan
from verl_ext.run.model_shape import ModelShape
from verl_ext.run.models import load_tokenizer, render_chat

ROOT = Path(__file__).parents[3]
# 1 layer: q 4x4, k 4x2, v 4x2, o 4x4 = 48; gate, up, down 3 x 4x6 = 72.
DENSE = ModelShape(hidden=4, layers=1, heads=2, kv_heads=1, head_size=2, intermediate=6, vocab=10, tied=True)
MATRICES = 120


def test_samples_of_a_prompt_share_it():
    # Prompt 3, responses of 2: 3 + 1 tokens for one sample, 3 + 2 for two; rows 1 + 1 and 1 + 2; pairs 6 + 4 a sample.
    assert flops.answers(DENSE, 3, 2, 1) == 2 * 4 * MATRICES + 2 * 2 * 40 + 16 * 10
    assert flops.answers(DENSE, 3, 2, 2) == 2 * 5 * MATRICES + 2 * 3 * 40 + 16 * 14


def test_an_update_is_three_forward_passes_and_two_of_frozen_weights():
    # 4 tokens, 2 rows, 10 pairs of each of 2 samples.
    assert flops.update(DENSE, 3, 2, 2, adapters=0) == 2 * 3 * (2 * 4 * MATRICES + 2 * 2 * 40 + 16 * 10)
    frozen, trained = 2 * 4 * MATRICES + 2 * 2 * 40, 16 * 10 + 2 * 4 * 7
    assert flops.update(DENSE, 3, 2, 2, adapters=7) == 2 * (2 * frozen + 3 * trained)


def test_rows_of_random_models_have_the_lengths_asked_for(tmp_path: Path):
    random_model.write_tokenizer(tmp_path, vocab_size=200)
    random_model.write_rows(tmp_path, rows=3, vocab_size=200, prompt=16, teacher_prompt=64)
    tokenizer = load_tokenizer(str(tmp_path))
    assert len(tokenizer.encode("\n", add_special_tokens=False)) == 1  # verl refuses a Qwen without
    for row in pq.read_table(tmp_path / "train.parquet").to_pylist():
        prompt, teacher_prompt = (render_chat(tokenizer, row[key], {}) for key in ("prompt", "teacher_messages"))
        assert (len(prompt), len(teacher_prompt)) == (16, 64)
        assert teacher_prompt[-16:] == prompt


def test_memory_in_use_is_read_from_the_driver():
    assert parse_device("1234\n") == 1234 * 2**20
    assert parse_processes("71, 512\n94, [N/A]\n\n72, 3\n") == {71: 512 * 2**20, 72: 3 * 2**20}
    assert parse_processes("") == {}


def test_processes_belong_to_engines():
    assert owner_of("ray::WorkerDict.actor_rollout_update_actor") == "trainer"
    assert owner_of("VLLM::EngineCore") == owner_of("ray::vLLMHttpServer.generate") == "vLLM"
    assert owner_of("sglang::scheduler") == "teacher"
    assert owner_of("python -m recipe.on_policy_distillation") is None


def test_phases_lie_one_after_the_other_before_the_end_of_a_step():
    row = {
        "timing_s/gen": 10.0, "timing_s/old_log_prob": 1.0, "timing_s/adv": 1.0, "timing_s/update_actor": 20.0,
        "timing_s/update_weights": 5.0,
    }  # fmt: skip
    phases = phases_of(row, end=100.0)
    assert phases["sync"] == pytest.approx((95.5, 99.5))
    assert phases["update"] == pytest.approx((77.0, 93.0))
    assert phases["generate"] == pytest.approx((64.0, 72.0))


def test_a_peak_is_each_owners_own_within_the_phase():
    readings = [Reading(1.0, {"a": 9}), Reading(2.0, {"a": 3, "b": 1}), Reading(3.0, {"a": 2, "b": 4})]
    assert peak(readings, 2.0, 3.0) == {"a": 3, "b": 4}
    assert peak(readings, 4.0, 5.0) == {}


def test_the_plan_has_bars_on_a_gpu_only():
    lines = [Stage("sampling, scoring within it", 6.0, 100, 1e12, 1e13), Stage("update", 3.0), Stage("step", 10.0)]
    assert (lines[0].tokens_per_s, lines[0].share) == pytest.approx((100 / 6, 1 / 60))
    rows = [{"what": "device, update", "planned": 100, "measured": 112}]
    rows.append({"what": "vLLM's processes", "planned": 1, "measured": 9})
    assert bars_of(lines, rows, "cpu") == [("share_of_step_not_in_the_table", pytest.approx(0.1), 0.1)]
    assert bars_of(lines, rows, "cuda")[1:] == [("plan_error_device_update", pytest.approx(0.12), 0.1)]


def test_the_gpu_suites_command_lines_compose_and_fit_an_80_gb_gpu(compose_run):
    spec = importlib.util.spec_from_file_location("gpu_conftest", ROOT / "tests/gpu/conftest.py")
    assert spec is not None
    assert spec.loader is not None
    conftest = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = conftest  # dataclasses look their module up
    spec.loader.exec_module(conftest)
    machine = conftest.Machine(
        "cuda", "NVIDIA H100 80GB HBM3", 79.6, "teacher.sh", ("--attention-backend", "triton"), ()
    )
    config = compose_run(*machine.words, "teacher=fp8", "update=lora", "student.path=Qwen/Qwen3-4B")
    assert config.teacher.extra_args == ["--attention-backend", "triton"]
    assert config.teacher.share_device
    assert check_plan(config).startswith("fits NVIDIA H100 80GB HBM3")


def test_the_gpu_suite_is_collected_without_a_gpu():
    command = [sys.executable, "-m", "pytest", "--collect-only", "tests/gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for subject in ("learns", "agreement", "profile_step", "loss_memory", "teacher_throughput", "fp8_doctor"):
        assert f"tests/gpu/test_{subject}.py::" in done.stdout
