"""TeacherConfig refuses what cannot work, and the message names the key and the fix."""

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
from omegaconf import OmegaConf

from verl_ext.teacher import config as teacher_config
from verl_ext.teacher.config import TeacherConfig, device_of_machine
from verl_ext.teacher.server.command import build_arguments
from verl_ext.teacher.server.process import ManagedServer


def make(**changes: Any) -> TeacherConfig:
    return TeacherConfig(**{"model_path": "some/model", **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "remote"}, "teacher.mode: 'remote' must be one of managed, external"),
        ({"model_path": None}, "teacher.model_path: missing"),
        ({"python": ""}, "teacher.python: missing"),
        ({"mode": "external"}, "teacher.urls: empty: mode=external needs at least one"),
        ({"urls": ["http://a:1"]}, "teacher.urls: given, but mode=managed .* set teacher.mode=external"),
        ({"mode": "external", "urls": ["a:1"]}, "teacher.urls: 'a:1' lacks http://"),
        ({"mode": "external", "urls": [["http://a:1"]]}, "teacher.urls: .* lacks http://"),
        ({"device": "tpu"}, "teacher.device: 'tpu' must be one of"),
        ({"dtype": "fp4"}, "teacher.dtype: 'fp4' must be one of"),
        ({"quantization": "awq"}, "teacher.quantization: 'awq': use null or fp8"),
        ({"quantization": "fp8"}, "teacher.quantization: fp8 needs a GPU: set teacher.device=cuda"),
        ({"quantization": "fp8", "device": "cuda", "dtype": "float32"}, "teacher.dtype: .* set teacher.dtype=bfloat16"),
        ({"port": 70000}, "teacher.port: 70000 is outside"),
        ({"mem_fraction_static": 1.0}, "teacher.mem_fraction_static"),
        ({"max_total_tokens": 0}, "teacher.max_total_tokens: 0 is below 1"),
        ({"tp": 0}, "teacher.tp: 0 is below 1"),
        ({"dp": 0}, "teacher.dp: 0 is below 1"),
        ({"max_concurrency": 0}, "teacher.max_concurrency: 0 is below 1"),
        ({"max_retries": -1}, "teacher.max_retries: -1 is below 0"),
        ({"startup_timeout_s": 0}, "teacher.startup_timeout_s"),
        ({"request_timeout_s": -1}, "teacher.request_timeout_s"),
        ({"context_length": 1}, "teacher.context_length: 1 is below 2"),
        ({"context_length": 4096, "max_total_tokens": 1024}, "teacher.max_total_tokens: 1024 cannot hold"),
    ],
)
def test_bad_settings_are_refused_by_key(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("machine", "given", "wanted"),
    [
        ("cpu", {}, ("cpu", "float32")),
        ("cuda", {}, ("cuda", "bfloat16")),
        ("cuda", {"device": "cpu"}, ("cpu", "float32")),
        ("cpu", {"device": "cuda"}, ("cuda", "bfloat16")),
        ("cuda", {"dtype": "auto"}, ("cuda", "auto")),
    ],
)
def test_where_the_teacher_runs_is_the_machines_unless_said(monkeypatch, machine, given, wanted) -> None:
    monkeypatch.setattr(teacher_config, "device_of_machine", lambda: machine)
    config = make(**given)
    assert (config.device, config.dtype) == wanted
    assert (dataclasses.replace(config, port=9).device, dataclasses.replace(config, port=9).dtype) == wanted


@pytest.mark.parametrize("machine", ["cpu", "cuda"])
def test_the_machine_has_the_gpu_that_torch_finds(monkeypatch, machine) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: machine == "cuda")
    assert device_of_machine() == machine


def test_good_settings() -> None:
    make()
    make(mode="external", model_path=None, urls=["http://a:1", "https://b"])
    make(device="cuda", dtype="bfloat16", quantization="fp8", tp=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        make().port = 1


def test_works_as_a_hydra_structured_config() -> None:
    node = OmegaConf.structured(TeacherConfig)
    OmegaConf.set_readonly(node, None)
    merged = OmegaConf.merge(
        node, {"model_path": "m", "port": "30000", "extra_args": ["--disable-radix-cache"], "context_length": 64}
    )
    config = OmegaConf.to_object(merged)
    assert config == TeacherConfig(model_path="m", port=30000, extra_args=["--disable-radix-cache"], context_length=64)
    with pytest.raises(ValueError, match=r"teacher\.port"):
        OmegaConf.to_object(OmegaConf.merge(merged, {"port": -1}))


def test_server_arguments_for_cpu_and_gpu() -> None:
    cpu = build_arguments(make(context_length=512, extra_args=["--page-size", "1"]), port=9)
    assert cpu[1:4] == ["sglang.launch_server", "--model-path", "some/model"]
    assert cpu[-2:] == ["--page-size", "1"]
    assert cpu[cpu.index("--attention-backend") + 1] == "torch_native"
    assert "--quantization" not in cpu
    assert "--enable-fp32-lm-head" not in cpu
    gpu = build_arguments(make(device="cuda", dtype="bfloat16", quantization="fp8", tp=2), port=9)
    assert gpu[gpu.index("--quantization") + 1] == "fp8"
    assert gpu[gpu.index("--tp-size") + 1] == "2"
    assert "--enable-fp32-lm-head" in gpu
    assert "--attention-backend" not in gpu


def test_teacher_modules_import_nothing_heavy() -> None:
    """Every Ray worker pays for these imports; torch alone costs seconds."""
    code = (
        "import sys, verl_ext.teacher.client.pool, verl_ext.teacher.server.process; "
        "sys.exit(','.join({'torch', 'transformers', 'verl', 'ray'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_a_server_that_others_reach_needs_a_key(monkeypatch, tmp_path):
    monkeypatch.delenv("TEACHER_API_KEY", raising=False)
    TeacherConfig(model_path="m").check_exposure()
    exposed = TeacherConfig(model_path="m", host="0.0.0.0")
    message = r"teacher\.host=0\.0\.0\.0 lets other machines in: export TEACHER_API_KEY"
    with pytest.raises(ValueError, match=message):
        ManagedServer(exposed, tmp_path / "teacher.log").start()
    monkeypatch.setenv("TEACHER_API_KEY", "0123456789abcde")
    with pytest.raises(ValueError, match=r"TEACHER_API_KEY: the key has 15 characters, and 16 are the least; make one"):
        exposed.check_exposure()
    monkeypatch.setenv("TEACHER_API_KEY", "0123456789abcdef")
    exposed.check_exposure()
