"""A full step taken apart by `benchmarks.profile_step`: on a GPU at a real shape with random weights."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

SHAPE = os.environ.get("PROFILE_SHAPE", "Qwen/Qwen3-4B-Instruct-2507")
PEAK_FLOPS = os.environ.get("PEAK_FLOPS", "9.89e14")  # dense bf16 of an H100 or H200 SXM, NVIDIA's data sheet
FP8_PEAK = os.environ.get("FP8_PEAK", "1.979e15")
TINY = {
    "model_type": "qwen3", "vocab_size": 2048, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": True,
}  # fmt: skip


def test_a_step_is_accounted_for_and_the_plan_holds(
    machine, out: Path, run_module: Callable[..., str], tmp_path: Path
) -> None:
    file = out / "profile_step.json"
    if machine.platform == "cuda":
        words = ["--platform", "cuda", "--hardware", "h200_1x", "--shape", SHAPE, "--steps", "5"]
        words += ["--peak-flops", PEAK_FLOPS, "--teacher-peak-flops", FP8_PEAK]
        more = ["update=lora", "teacher=fp8", "actor_rollout_ref.model.use_fused_kernels=true"]
    else:
        (tmp_path / "tiny.json").write_text(json.dumps(TINY))
        words = ["--shape", str(tmp_path / "tiny.json"), "--prompt", "16", "--teacher-prompt", "64", "--response", "8"]
        words += ["--batch", "8", "--steps", "4"]
        more = []
    words += ["--json", str(file), "--out", str(tmp_path / "out"), "--timeout", "480"]
    words += [*more, *machine.words]
    text = run_module("profile_step", "benchmarks.profile_step", *words, check=False, run=tmp_path / "out/run")
    assert file.is_file(), text[-4000:]
    found = json.loads(file.read_text())
    stages = {row["name"]: row for row in found["rows"] if "name" in row}
    for name in ("sampling, scoring within it", "a sample is at the teacher", "update"):
        assert stages[name]["tokens_per_s"] > 0
        if machine.platform == "cuda":
            assert 0 < stages[name]["share"] < 1
    bars = {bar[0]: bar for bar in found["bars"]}
    assert ("plan_error_device_update" in bars) == (machine.platform == "cuda")
    assert [bar for bar in bars.values() if bar[3] != "ok"] == [], text
