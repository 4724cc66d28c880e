"""What the teacher's process is started with, and which checkpoints and configurations are refused or accepted."""

import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.server.command import build_arguments, build_environment, check_quantized_weights

CONFIGS = Path(__file__).parents[3] / "configs"
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}  # as in Qwen3-30B-A3B-Instruct-2507-FP8


def checkpoint(folder: Path, **fields: object) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", **fields}))
    return folder


def make(**changes: Any) -> TeacherConfig:
    return TeacherConfig(**{"model_path": "some/model", **changes})


def test_parallelism_and_metrics_become_arguments() -> None:
    words = build_arguments(make(device="cuda", dtype="bfloat16", tp=4, dp=2, metrics_port=0), port=9)
    assert [words[words.index(name) + 1] for name in ("--tp-size", "--dp-size")] == ["4", "2"]
    assert "--enable-metrics" in words
    assert "--enable-metrics" not in build_arguments(make(), port=9)


def test_no_configuration_asks_for_a_quantised_kv_cache() -> None:
    for config in (make(), make(device="cuda", dtype="bfloat16", quantization="fp8")):
        assert "--kv-cache-dtype" not in build_arguments(config, port=9)


def test_environment_chunks_the_logits_and_leaves_out_what_is_the_trainers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONPATH", "LD_PRELOAD", "PROMETHEUS_MULTIPROC_DIR", "TEACHER_API_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")  # set by Ray for the actor
    environment = build_environment(make(device="cuda"), Path("/env/bin/python"))
    assert environment["SGLANG_ENABLE_LOGITS_PROCESSER_CHUNK"] == "1"  # SGLang 0.5.12 to 0.5.15
    assert environment["SGLANG_ENABLE_LOGPROB_CHUNK"] == "1"  # from 0.5.17
    assert environment["CUDA_VISIBLE_DEVICES"] == "3"
    assert environment["PATH"].startswith("/env/bin:")
    assert not {"PYTHONPATH", "LD_PRELOAD", "PROMETHEUS_MULTIPROC_DIR", "TEACHER_API_KEY"} & set(environment)
    assert "SGLANG_USE_CPU_ENGINE" not in environment


@pytest.mark.parametrize(("said", "threads"), [(None, "1"), ("6", "6")])
def test_a_teacher_on_a_cpu_has_as_many_threads_as_the_run_says(monkeypatch, said, threads) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    environment = build_environment(make(device="cpu"), Path("/env/bin/python"))
    assert environment["OMP_NUM_THREADS"] == threads
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"


def test_fp8_checkpoint_is_refused_where_it_cannot_run(tmp_path: Path) -> None:
    folder = str(checkpoint(tmp_path, quantization_config=FP8))
    with pytest.raises(
        ValueError, match=r"^teacher\.model_path: .* holds fp8 weights .*: set teacher\.device=cuda, or"
    ):
        check_quantized_weights(make(model_path=folder))
    with pytest.raises(ValueError, match=r"^teacher\.dtype: .* holds fp8 weights .*: set teacher\.dtype=bfloat16"):
        check_quantized_weights(make(model_path=folder, device="cuda", dtype="float32"))
    for quantization in (None, "fp8"):  # SGLang takes the checkpoint's own; naming it once more is no contradiction
        check_quantized_weights(make(model_path=folder, device="cuda", dtype="bfloat16", quantization=quantization))


def test_unquantised_and_unseen_checkpoints_pass(tmp_path: Path) -> None:
    check_quantized_weights(make(model_path=str(tmp_path)))  # no config.json: SGLang says what is wrong
    check_quantized_weights(make(model_path=str(checkpoint(tmp_path))))
    check_quantized_weights(make(model_path="Qwen/Qwen3-30B-A3B-Instruct-2507-FP8"))


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "teacher").glob("*.yaml")))
def test_shipped_teacher_options_are_valid_and_state_only_departures(name: str) -> None:
    with initialize_config_dir(str(CONFIGS), version_base=None):
        option = compose(f"teacher/{name}")
    assert list(option) == ["teacher"]
    schema = OmegaConf.structured(TeacherConfig)
    OmegaConf.set_readonly(schema, None)
    config = OmegaConf.to_object(OmegaConf.merge(schema, option.teacher, {"model_path": "m"}))
    assert isinstance(config, TeacherConfig)
    assert config.device == ("cpu" if name.startswith("cpu") else "cuda")
    assert (config.quantization == "fp8") == (name == "fp8")
    if config.device == "cuda":
        assert config.dtype == "bfloat16"
