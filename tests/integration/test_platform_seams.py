"""What the CPU platform stands on in verl and vLLM, each in a process of its own: platforms are chosen once."""

import os
import subprocess
import sys

import pytest


def run(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
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
