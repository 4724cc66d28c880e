"""Memory of a running training job: each engine's processes and the device, every INTERVAL_S, by phase of a step.

With CUDA: what `nvidia-smi` says of the device and of each process (nothing of processes where the driver hides them,
as in some containers). Without: resident sets; pages that processes share count in each.
"""

import contextlib
import os
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

INTERVAL_S = 0.25
TRAINER, VLLM, TEACHER = "trainer", "vLLM", "teacher"
PROCESSES = {"ray::WorkerDict": TRAINER, "VLLM::": VLLM, "ray::vLLMHttpServer": VLLM, "sglang::": TEACHER}
"""How a command line begins, and whose it is."""
ALL = "all"
"""The whole device; without one, all processes of the run."""
STEP_ORDER = (
    ("generate", "timing_s/gen"),
    ("", "timing_s/old_log_prob"),
    ("", "timing_s/adv"),
    ("update", "timing_s/update_actor"),
    ("save", "timing_s/save_checkpoint"),
    ("sync", "timing_s/update_weights"),
)
"""The planner's phases as they follow each other in a step. Scoring overlaps generation."""
INNER = 0.1
"""Share of a phase that is cut off at either end: when a row of metrics appears is known to INTERVAL_S only."""

Bytes = dict[str, int]
"""By owner, `ALL` among them."""


@dataclass(frozen=True)
class Reading:
    """Memory at one moment (unix time)."""

    time: float
    held: Bytes


def owner_of(command: str) -> str | None:
    """Whose process a command line is; None if no engine's."""
    return next((owner for start, owner in PROCESSES.items() if command.startswith(start)), None)


def parse_device(text: str) -> int:
    """Bytes in use, from `nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits`."""
    return int(text.split()[0]) * 2**20


def parse_processes(text: str) -> dict[int, int]:
    """Bytes by process id, from `--query-compute-apps=pid,used_memory`; without those that the driver hides."""
    pairs = [line.split(",") for line in text.splitlines() if line.strip()]
    return {int(pid): int(mib) * 2**20 for pid, mib in pairs if mib.strip().isdigit()}


def nvidia_smi(query: str) -> str:
    device = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    command = ["nvidia-smi", "-i", device, query, "--format=csv,noheader,nounits"]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout


def phases_of(row: dict[str, float], end: float) -> dict[str, tuple[float, float]]:
    """(start, end) of each phase of a step, unix time, from its metrics and the moment when it ended."""
    found: dict[str, tuple[float, float]] = {}
    for phase, key in reversed(STEP_ORDER):
        seconds = row.get(key, 0.0)
        if phase:
            found[phase] = (end - (1 - INNER) * seconds, end - INNER * seconds)
        end -= seconds
    return found


def peak(readings: list[Reading], start: float, stop: float) -> Bytes:
    """The most that each owner held between two moments."""
    most: Bytes = {}
    for reading in readings:
        if start <= reading.time <= stop:
            most |= {owner: max(held, most.get(owner, 0)) for owner, held in reading.held.items()}
    return most


class MemoryWatch:
    """Watches a process and its descendants from a thread; `with MemoryWatch(pid, metrics, cuda=...) as watch: ...`"""

    def __init__(self, pid: int, metrics: Path, *, cuda: bool) -> None:
        self.readings: list[Reading] = []
        self.row_times: list[float] = []
        """When each row of metrics.jsonl was first seen, unix time."""
        self._root = psutil.Process(pid)
        self._metrics = metrics
        self._cuda = cuda
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        self._thread.join()

    def by_phase(self, rows: list[dict[str, float]]) -> dict[str, Bytes]:
        """Peaks over the steps whose metrics are `rows`, by phase and owner."""
        most: dict[str, Bytes] = {}
        for row in rows:
            for phase, (start, stop) in phases_of(row, self.row_times[int(row["step"]) - 1]).items():
                held = most.setdefault(phase, {})
                held |= {k: max(v, held.get(k, 0)) for k, v in peak(self.readings, start, stop).items()}
        return most

    def _run(self) -> None:
        while not self._over.wait(INTERVAL_S):
            lines = self._metrics.read_bytes().count(b"\n") if self._metrics.exists() else 0
            self.row_times += [time.time()] * (lines - len(self.row_times))
            with contextlib.suppress(psutil.NoSuchProcess):  # the run ended
                self.readings.append(Reading(time.time(), self._held()))

    def _held(self) -> Bytes:
        used = parse_processes(nvidia_smi("--query-compute-apps=pid,used_memory")) if self._cuda else None
        held: Bytes = {ALL: parse_device(nvidia_smi("--query-gpu=memory.used")) if self._cuda else 0}
        for process in [self._root, *self._root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):  # ended while we looked
                size = process.memory_info().rss if used is None else used.get(process.pid, 0)
                if used is None:
                    held[ALL] += size
                if size and (owner := owner_of(" ".join(process.cmdline()))):
                    held[owner] = held.get(owner, 0) + size
        return held
