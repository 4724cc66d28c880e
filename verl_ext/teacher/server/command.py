"""What an SGLang server is started with: arguments and environment from the settings, and what cannot start."""

import json
import os
from pathlib import Path

from verl_ext.run.api_key import FILE
from verl_ext.run.ray_token import RAY_TOKEN
from verl_ext.teacher.config import TeacherConfig

LAUNCHER = Path(__file__).parents[2] / "platform" / "torch_store.py"
"""Runs a module in the teacher's environment, which has torch and nothing of ours."""

# What belongs to the trainer's interpreter or engine and would break the teacher's.
LEAKS = (
    "PYTHONPATH",
    "PYTHONHOME",
    "VIRTUAL_ENV",
    "LD_PRELOAD",
    "KMP_AFFINITY",
    "GOMP_CPU_AFFINITY",
    "PROMETHEUS_MULTIPROC_DIR",
)


def build_arguments(config: TeacherConfig, port: int) -> list[str]:
    """Arguments of the teacher's python for `config`."""
    assert config.model_path is not None  # TeacherConfig refuses mode=managed without it
    model = Path(config.model_path).expanduser()
    arguments = [
        str(LAUNCHER),
        "sglang.launch_server",
        "--model-path",
        str(model.absolute()) if model.is_dir() else config.model_path,
    ]
    arguments += ["--host", config.host, "--port", str(port), "--device", config.device, "--dtype", config.dtype]
    arguments += ["--load-format", "safetensors"]  # never a pickle, where a name of the hub has both or that alone
    arguments += ["--mem-fraction-static", str(config.mem_fraction_static)]
    arguments += ["--max-total-tokens", str(config.max_total_tokens)]
    arguments += ["--tp-size", str(config.tp), "--dp-size", str(config.dp)]
    if config.context_length is not None:
        arguments += ["--context-length", str(config.context_length)]
    if config.quantization is not None:
        arguments += ["--quantization", config.quantization]
    if config.dtype != "float32":
        # The last matmul in fp32: bf16 logits are rounded to ~0.03 near 8, which lands in every log-prob.
        arguments += ["--enable-fp32-lm-head"]
    if config.trust_remote_code:
        arguments += ["--trust-remote-code"]
    if config.metrics_port >= 0:
        arguments += ["--enable-metrics"]
    if config.device == "cpu":
        # The two back ends that are plain torch; the others need kernels that have no CPU wheel.
        arguments += ["--attention-backend", "torch_native", "--sampling-backend", "pytorch"]
        # The scheduler otherwise spins while it has nothing to do, and takes a core from the trainer.
        arguments += ["--sleep-on-idle"]
    return [*arguments, *config.extra_args]


def check_quantized_weights(config: TeacherConfig) -> None:
    """Refuse a checkpoint that brings quantised weights where they cannot run.

    `config.quantization` says nothing about these: SGLang reads `quantization_config` from the checkpoint's own
    config.json. Only a local folder is looked at; for a hub name SGLang itself fails.

    Raises:
        ValueError: naming the key and the fix.
    """
    file = Path(config.model_path or "").expanduser() / "config.json"
    quantized = json.loads(file.read_text()).get("quantization_config") if file.is_file() else None
    if quantized is None:
        return
    weights = f"{file.parent} holds {quantized.get('quant_method', 'quantised')} weights (quantization_config)"
    if config.device == "cpu":
        raise ValueError(
            f"teacher.model_path: {weights}, which need a GPU: set teacher.device=cuda, or give the bf16 checkpoint"
        )
    if config.dtype == "float32":
        raise ValueError(f"teacher.dtype: {weights}, which SGLang does not run in float32: set teacher.dtype=bfloat16")


def build_environment(config: TeacherConfig, python: Path) -> dict[str, str]:
    """This process's environment, less what belongs to the trainer, plus what the teacher needs."""
    environment = {name: value for name, value in os.environ.items() if name not in LEAKS}
    for secret in (config.api_key_env, config.api_key_env + FILE, RAY_TOKEN):
        environment.pop(secret, None)
    environment["PATH"] = f"{python.parent}{os.pathsep}{environment.get('PATH', '')}"  # JIT builds look for ninja there
    environment["PYTHONSAFEPATH"] = "1"  # `-m` would put the working directory, our checkout, first
    # A server is on one machine; left alone, gloo and NCCL listen on any of its addresses.
    environment |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    # Without it SGLang 0.5.12 to 0.5.15 (first name) keep fp32 logits of a whole prefill: 8,192 tokens at a vocabulary
    # of 152k are 5 GB a copy, ~17 GB in all. From 0.5.17 (second name) it is the default; we do not leave it to that.
    environment |= {"SGLANG_ENABLE_LOGITS_PROCESSER_CHUNK": "1", "SGLANG_ENABLE_LOGPROB_CHUNK": "1"}
    if config.model_path is not None and Path(config.model_path).expanduser().is_dir():
        environment["HF_HUB_OFFLINE"] = "1"  # a local folder needs no look-up, and a look-up may hang
    if config.device == "cpu":
        # One thread: with two, OpenMP contention was measured to cost up to 10x on small machines.
        environment |= {"SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return environment


def hide_key(key: str, link: Path) -> tuple[list[str], int]:
    """Arguments that give SGLang the key from memory: as one of them it would show in `ps`, and a file may stay behind.

    `link`: where to make a link of a name that SGLang reads; what it leads to is in the server's process alone.

    Returns:
        The arguments, and the descriptor that the process must inherit under the same number.
    """
    memory = os.memfd_create("key")
    os.write(memory, f"api-key: {json.dumps(key)}\n".encode())
    link.symlink_to(f"/proc/self/fd/{memory}")
    # At log level `info` SGLang prints all its settings, the key among them.
    return ["--config", str(link), "--log-level", "warning"], memory
