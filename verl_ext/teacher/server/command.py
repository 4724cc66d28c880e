"""What a managed server is started with: arguments and environment from the settings, and what cannot start."""

import json
import os
from pathlib import Path

from verl_ext.run.api_key import FILE
from verl_ext.run.ray_token import RAY_TOKEN
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.engines.known import engine_of

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
    folder = Path(config.model_path).expanduser()
    model = str(folder.absolute()) if folder.is_dir() else config.model_path
    return [*engine_of(config.engine).arguments(config, model, port), *config.extra_args]


def check_quantized_weights(config: TeacherConfig) -> None:
    """Refuse a checkpoint that brings quantised weights where they cannot run.

    `config.quantization` says nothing about these: the engine reads `quantization_config` from the checkpoint's own
    config.json. Only a local folder is looked at; for a hub name the engine itself fails.

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
        raise ValueError(f"teacher.dtype: {weights}, which no engine runs in float32: set teacher.dtype=bfloat16")


def build_environment(config: TeacherConfig, python: Path) -> dict[str, str]:
    """This process's environment, less what belongs to the trainer, plus what the teacher needs."""
    engine = engine_of(config.engine)
    environment = {
        name: value for name, value in os.environ.items() if name not in LEAKS and not name.startswith(engine.leaks)
    }
    for secret in (config.api_key_env, config.api_key_env + FILE, RAY_TOKEN):
        environment.pop(secret, None)
    environment["PATH"] = f"{python.parent}{os.pathsep}{environment.get('PATH', '')}"  # JIT builds look for ninja there
    environment["PYTHONSAFEPATH"] = "1"  # `-m` would put the working directory, our checkout, first
    # A server is on one machine; left alone, gloo and NCCL listen on any of its addresses.
    environment |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    if config.model_path is not None and Path(config.model_path).expanduser().is_dir():
        environment["HF_HUB_OFFLINE"] = "1"  # a local folder needs no look-up, and a look-up may hang
    if config.device == "cpu":
        # Threads that wait sleep: spinning beside other engines was measured to cost up to 10x on two cores.
        environment |= {"OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS", "1"), "OMP_WAIT_POLICY": "PASSIVE"}
    return environment | engine.environment(config)
