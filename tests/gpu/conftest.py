"""What the GPU suite shares. Its environment variables are described in tests/gpu/README.md."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.arms.memory_watch import nvidia_smi

ROOT = Path(__file__).parents[2]
COMMAND_TIMEOUT_S = float(os.environ.get("COMMAND_TIMEOUT_S", "500"))
PAIR_SHAPE = ("hidden_size=256", "intermediate_size=768", "head_dim=128", "num_attention_heads=4", "threads=8")
"""Of the tiny pair: heads of Qwen3's own size, which every attention kernel has, and matrices that divide into FP8's
blocks of 128."""


@dataclass(frozen=True)
class Machine:
    """Where the suite runs, and how engines are told."""

    platform: str
    """`cpu` or `cuda`."""
    gpu: str
    """The driver's name of the GPU; empty without one."""
    gib: float
    """Memory of the GPU; 0 without one."""
    teacher_python: str
    teacher_args: tuple[str, ...]
    """More words for `sglang.launch_server`."""
    train_words: tuple[str, ...]
    """More overrides of every training command."""

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.platform == "cuda" else "float32"

    @property
    def words(self) -> list[str]:
        """Overrides that put trainer, vLLM and a managed teacher on this machine's one device."""
        found = [f"platform={self.platform}", f"teacher.python={self.teacher_python}"]
        if self.platform == "cuda":
            found += ["hardware=h200_1x", f"hardware.name='{self.gpu}'", f"hardware.device_memory_gib={self.gib:.1f}"]
            if find_spec("flash_attn") is None:  # verl's default attention, and what its packed sequences need
                found += ["+actor_rollout_ref.model.override_config.attn_implementation=sdpa"]
                found += ["actor_rollout_ref.model.use_remove_padding=false"]
        if self.teacher_args:
            found.append(f"teacher.extra_args={json.dumps(self.teacher_args)}")
        return [*found, *self.train_words]

    @property
    def evaluation(self) -> list[str]:
        """Settings of recipe.evaluate. Not its whole share of a GPU: a run that just ended may still hold some."""
        return ["max_tokens=8", f"dtype={self.dtype}", "gpu_memory_utilization=0.4"]

    def teacher_settings(self, model: Path, precision: str, **more: Any) -> dict[str, Any]:
        """Fields of a TeacherConfig."""
        return {
            "model_path": str(model),
            "python": self.teacher_python,
            "device": self.platform,
            "dtype": self.dtype,
            "quantization": "fp8" if precision == "fp8" else None,
            "mem_fraction_static": 0.3,
            "extra_args": list(self.teacher_args),
            **more,
        }


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`precision` is each teacher of the platform, by name, so that `-k fp8` picks one."""
    if "precision" in metafunc.fixturenames:
        names = ("bf16", "fp8") if platform_name() == "cuda" else ("cpu_fp32",)
        metafunc.parametrize("precision", names, scope="module")


def platform_name() -> str:
    name = os.environ.get("PLATFORM", "cuda")
    if name not in ("cpu", "cuda"):
        raise pytest.UsageError(f"PLATFORM={name}: expected cpu or cuda")
    return name


@pytest.fixture(scope="session")
def machine() -> Machine:
    import torch

    name = platform_name()
    if name == "cuda" and not torch.cuda.is_available():
        # Not a failure: plain `pytest` collects this folder on machines that have no GPU, as CI's.
        pytest.skip("no CUDA device here; PLATFORM=cpu runs what a CPU can")
    # Asked of the driver: torch would open a context here, which takes memory for the whole session.
    gpu, mib = nvidia_smi("--query-gpu=name,memory.total").rsplit(",", 1) if name == "cuda" else ("", "0")
    python = Path(os.environ.get("TEACHER_PYTHON", ROOT / ".venv-teacher/bin/python")).absolute()
    if not python.is_file():
        pytest.fail(f"no {python}: run `make setup`, or set TEACHER_PYTHON")
    args, words = os.environ.get("TEACHER_ARGS", "").split(), os.environ.get("TRAIN_WORDS", "").split()
    return Machine(name, gpu, int(mib) / 1024, str(python), tuple(args), tuple(words))


@pytest.fixture(scope="session")
def cuda(machine: Machine) -> Machine:
    """The machine of a test that means nothing without a GPU."""
    if machine.platform != "cuda":
        # FP8 kernels, device memory and the chip's limits have no counterpart that PLATFORM=cpu could measure.
        pytest.skip("PLATFORM=cpu: measures what only a CUDA device has")
    return machine


@pytest.fixture(scope="session")
def out() -> Path:
    """Folder of the results: one JSON file and one log a subject, nothing deeper."""
    folder = Path(os.environ.get("OUT", ROOT / "outputs/gpu")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def run_module(out: Path) -> Callable[..., str]:
    """`run_module(name, module, words...)` runs a module (or a .py file), logs to OUT/name.log, returns the log.

    `run`: a training run's folder; what its processes said goes to OUT/name.tar.gz, also where it failed.
    """

    def call(name: str, module: str, *words: str, check: bool = True, run: Path | None = None) -> str:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "160"}
        command = [sys.executable, *(["-m", module] if not module.endswith(".py") else [module]), *words]
        try:
            with (out / f"{name}.log").open("w") as log:
                done = subprocess.run(
                    command, cwd=ROOT, stdout=log, stderr=log, timeout=COMMAND_TIMEOUT_S, check=False, env=environment
                )
        finally:
            if run is not None:
                keep_logs(run, out / f"{name}.tar.gz")
        text = (out / f"{name}.log").read_text(errors="replace")
        if check and done.returncode:
            pytest.fail(f"{module} exited with {done.returncode}:\n{text[-4000:]}")
        return text

    return call


def keep_logs(run: Path, archive: Path) -> None:
    with tarfile.open(archive, "w:gz", dereference=True) as file:
        for path in (run / "logs", run / "teacher.log", run / "config.yaml"):
            if path.exists():
                file.add(path, path.name, filter=lambda member: member if member.isfile() or member.isdir() else None)


@pytest.fixture(scope="session")
def pair(run_module: Callable[..., str]) -> Path:
    """Folder with `data` and `base`, the tiny pair: PAIR, made where it is missing (needs tinker-cookbook)."""
    folder = Path(os.environ.get("PAIR", ROOT / "outputs/gpu/pair")).absolute()
    if not (folder / "base/config.json").is_file():
        run_module("pair_data", "recipe.create_data", f"out_dir={folder}/data", "max_chars=64")
        run_module("pair", "recipe.tiny_pair", f"data_dir={folder}/data", f"out_dir={folder}/base", *PAIR_SHAPE)
    return folder
