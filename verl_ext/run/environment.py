"""What a run was made with: versions of this environment, the commit, the machine."""

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from verl_ext.run.files import write_json

ENVIRONMENT = "environment.json"
"""In a run's folder, of its last start."""
PACKAGES = ("verl-opd", "verl", "vllm", "torch", "ray", "transformers", "hydra-core", "omegaconf")
TIMEOUT_S = 10.0


def note_environment(run_dir: Path) -> None:
    """Write `environment.json`: a name and a text each."""
    write_json(run_dir / ENVIRONMENT, installed() | machine())


def installed() -> dict[str, str]:
    """Versions in this environment, by package; the commit, where this is a checkout."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    root = Path(__file__).parents[2]
    if (root / ".git").exists():
        changed = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
        found["commit"] = _output("git", "-C", str(root), "rev-parse", "HEAD") + (" and changes" if changed else "")
    return found


def machine() -> dict[str, str]:
    """Operating system, processor, memory, GPUs."""
    gib = 2**30
    memory = psutil.virtual_memory()
    gpus = _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return {
        "system": platform.platform(),
        "cpu": f"{os.cpu_count()} cores, {_processor()}",
        "memory": f"{memory.available / gib:.1f} of {memory.total / gib:.1f} GiB free",
        "gpu": gpus.replace("\n", "; ") or "none",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.*)$", info.read_text(), re.M) if info.is_file() else []
    return names[0] if names else platform.machine()


def _output(*command: str) -> str:
    """What a program prints; nothing if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
