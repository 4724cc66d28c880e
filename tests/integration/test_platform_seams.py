"""What the CPU platform stands on in verl and vLLM, each in a process of its own: platforms are chosen once."""

import os
import subprocess
import sys

import pytest


def run(code: str, python: str = sys.executable, **environment: str) -> str:
    result = subprocess.run(
        [python, "-W", "ignore", "-c", code],
        env=os.environ | environment,
        text=True,
        capture_output=True,
        timeout=120,
        check=False,
    )
    if result.returncode:
        pytest.fail(result.stderr[-3000:])
    return result.stdout


GROUP = """
import os, tempfile, torch
import verl
from verl.utils.distributed import initialize_global_process_group_ray
from verl_ext.platform import assert_platform
assert_platform("cpu")
with tempfile.TemporaryDirectory() as folder:
    os.environ["DIST_INIT_METHOD"] = f"file://{folder}/store"
    initialize_global_process_group_ray()
    ones = torch.ones(2)
    torch.distributed.all_reduce(ones)
    print(ones.tolist(), torch.distributed.get_backend(), torch.get_num_threads() == os.cpu_count())
    torch.distributed.destroy_process_group()
"""


def test_verls_process_group_comes_up_on_the_cpu_platform():
    assert run(GROUP, VERL_PLATFORM="cpu").split("\n")[-2] == "[1.0, 1.0] cpu:gloo True"


def test_the_cpu_platform_is_off_unless_asked_for():
    code = """
import verl
from verl.plugin.platform import PlatformRegistry
from verl_ext.platform import assert_platform
print(PlatformRegistry.get("cpu"))
try:
    assert_platform("cpu")
except RuntimeError as error:
    print(error)
"""
    output = run(code, VERL_PLATFORM="nvidia")
    assert "None" in output
    assert "the run asked for 'cpu'" in output


VLLM = """
import inspect
import vllm._custom_ops as ops
import vllm.distributed.device_communicators.shm_broadcast as queue
import vllm.model_executor.layers.utils as layers
before = (ops._supports_onednn, queue.SHM_READER_RECHECK_INTERVAL_MS)
assert "busy_loop_s" in inspect.signature(queue.SpinCondition.__init__).parameters
assert "SHM_READER_RECHECK_INTERVAL_MS" in inspect.getsource(queue.MessageQueue)
source = inspect.getsource(layers.dispatch_cpu_unquantized_gemm)
assert "check_cpu_sgl_kernel(" in source and "ops._supports_onednn" in source
from vllm.plugins import load_general_plugins
load_general_plugins()
print(ops._supports_onednn, layers.check_cpu_sgl_kernel(64, 64, None), queue.SHM_READER_RECHECK_INTERVAL_MS)
"""


def test_vllm_loads_our_plugin_and_has_the_switches_it_turns():
    assert run(VLLM, VERL_PLATFORM="cpu").split("\n")[-2] == "False False 10"


def test_verl_finds_vllm_by_its_own_name_and_as_a_cpu_build():
    assert run("from importlib.metadata import version; print(version('vllm'))").strip().endswith("+cpu")


SGLANG = """
import os
os.environ["SGLANG_USE_CPU_ENGINE"] = "1"
import torch
from sglang.srt.layers import logprob_processor
theirs = logprob_processor.compute_row_log_normalizer
from sglang.srt.plugins import load_plugins
load_plugins()
ours = logprob_processor.compute_row_log_normalizer
assert ours.__module__ == "sglang_cpu_plugin.normalizer"
logits = 30 * torch.randn(37, 32_000, generator=torch.Generator().manual_seed(0))
logits[3] += 1e4
logits[5] = float("-inf")
for dtype in (torch.float32, torch.bfloat16):
    for found, expected in zip(ours(logits.to(dtype)), theirs(logits.to(dtype)), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
from sglang.srt.layers.logits_processor import LogitsProcessor
from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod
for dtype in (torch.float32, torch.float64):
    layer, rows = torch.nn.Linear(512, 3072, dtype=dtype), torch.randn(64, 512, dtype=dtype)
    for method in (UnquantizedLinearMethod.apply, LogitsProcessor._compute_lm_head):
        assert method.__module__ == "sglang_cpu_plugin.products"
    torch.testing.assert_close(UnquantizedLinearMethod.apply(None, layer, rows, layer.bias), layer(rows))
layer, rows = layer.float(), rows.float()
torch.testing.assert_close(LogitsProcessor._compute_lm_head(None, rows, layer) + layer.bias, layer(rows))
print("the same")
"""


def test_sglang_takes_our_normalizer_and_products_which_say_what_its_own_say(teacher_python: str):
    assert run(SGLANG, teacher_python).split("\n")[-2] == "the same"
