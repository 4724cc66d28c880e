"""What a start leaves out: processes of Ray's that no run uses, and imports of what the parent has imported."""

import multiprocessing
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from ray._private.node import Node

from verl_ext.platform import torch_store, vllm_cpu
from verl_ext.platform.lean_ray import UNUSED, lean

USUAL = {"include_dashboard": False, "log_to_driver": False, "address": "local"}


@pytest.mark.parametrize(
    ("changes", "left_out"),
    [
        ({}, set(UNUSED)),
        ({"include_dashboard": True}, {"start_monitor", "start_log_monitor"}),
        ({"log_to_driver": True}, {"start_monitor", "start_api_server"}),
    ],
)
def test_ray_starts_without_what_nobody_asked_for(monkeypatch, changes, left_out):
    def started(_: Node) -> str:
        return "started"

    for name in UNUSED:
        monkeypatch.setattr(Node, name, started)
    settings = lean(USUAL | changes | {"_system_config": {"health_check_period_ms": 5}})
    node = object.__new__(Node)
    assert {name for name in UNUSED if getattr(node, name)() is None} == left_out
    assert settings["_system_config"]["health_check_period_ms"] == 5
    assert settings["_system_config"]["prestart_worker_first_driver"] is False


@pytest.mark.parametrize(("on_cpu", "method"), [("1", "fork"), ("", "spawn")])
def test_a_program_under_our_launcher_forks_where_there_is_no_accelerator(tmp_path, on_cpu, method):
    lines = "import multiprocessing as mp\nmp.set_start_method('spawn', force=True)\nprint(mp.get_start_method())\n"
    (tmp_path / "program.py").write_text(lines)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), torch_store.ON_CPU: on_cpu}
    command = [sys.executable, "-P", torch_store.__file__, "program"]
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=True)
    assert done.stdout.strip() == method


def test_ranks_are_counted_without_a_compiler(monkeypatch):
    from vllm.v1.sample import sampler

    monkeypatch.setattr(sampler, "batched_count_greater_than", sampler.batched_count_greater_than)
    vllm_cpu.count_ranks_uncompiled()
    monkeypatch.setattr(torch, "compile", None)
    monkeypatch.setattr("torch._dynamo.eval_frame.set_eval_frame", None)  # what compiled functions begin with
    logprobs = torch.tensor([[-0.5, -2.0, -1.0], [-3.0, -0.1, -4.0]])
    assert sampler.batched_count_greater_than(logprobs, logprobs[:, 2:]).tolist() == [2, 3]


@pytest.mark.parametrize(("dtype", "by_onednn"), [(torch.float32, True), (torch.bfloat16, False)])
def test_a_product_is_onednns_and_of_the_weights_as_they_are(monkeypatch, dtype, by_onednn):
    import vllm._custom_ops as ops
    import vllm.model_executor.layers.utils as layers

    for module, name in (
        *((ops, "_supports_onednn"), (layers, "check_cpu_sgl_kernel")),
        (layers, "dispatch_cpu_unquantized_gemm"),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))
    vllm_cpu.keep_weights_unpacked()
    vllm_cpu.multiply_linear_layers_with_onednn()
    layer: Any = torch.nn.Linear(64, 48, dtype=dtype).requires_grad_(False)
    layers.dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    layer.weight.mul_(3)  # as a weight sync writes
    x = torch.randn(5, 64, dtype=dtype)
    with torch.autograd.profiler.profile() as seen:
        found = layers.cpu_unquantized_gemm(layer, x, layer.weight, layer.bias)
    torch.testing.assert_close(found, torch.nn.functional.linear(x, layer.weight, layer.bias))
    assert any("mkldnn::_linear_pointwise" in each.name for each in seen.function_events) == by_onednn
    alone = layers.cpu_unquantized_gemm(layer, x[0], layer.weight, None)
    torch.testing.assert_close(alone, x[0] @ layer.weight.T)


def test_the_worker_of_an_engine_is_forked_and_the_engine_is_not(monkeypatch):
    name = "VLLM_WORKER_MULTIPROC_METHOD"
    monkeypatch.setenv(name, "spawn")
    vllm_cpu.fork_workers()
    assert os.environ[name] == "spawn"
    monkeypatch.setattr(multiprocessing, "parent_process", multiprocessing.current_process)
    vllm_cpu.fork_workers()
    assert os.environ[name] == "fork"
