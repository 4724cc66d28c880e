"""What `benchmarks.chaos` does to a training run, and how it is undone."""

import contextlib
import hashlib
import json
import math
import os
import resource
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from verl_ext.run.checkpoints import MANIFEST, saved_in

FAILING_REWARD = Path(__file__).with_name("failing_reward.py")
CLOCK = Path(__file__).with_name("clock.c")
"""libfaketime 0.9.10 would do, if `time.sleep` of Python 3.11 did not fail under it."""
AN_HOUR_S = 3600


@dataclass(frozen=True)
class Fault:
    """What is done to one process of a run."""

    name: str
    process: str
    """How its command line begins, or its program's name; `driver` for the command itself."""
    act: signal.Signals | str
    expected: str
    """`ends` or `goes on`."""
    undone_after_s: float = math.inf
    """Seconds; a fault that is never undone is so, at the latest, when the run has ended."""
    overrides: tuple[str, ...] = ()
    """Of a run of its own, which can meet it."""


@dataclass(frozen=True)
class Victim:
    """A run, as far as a fault touches it."""

    driver: int
    """Process id."""
    process: int
    """Process id of the one that the fault names."""
    family: tuple[int, ...]
    """Process ids of all that the driver started."""
    run_dir: Path
    store: Path
    """`teacher.store_path`."""
    signs: Path
    """Folder of files by which a fault begins and ends within the run."""
    start_again: Callable[[], None]
    """Run the command again, up to the first step or the end."""


def environment(signs: Path, faults_clock: bool) -> dict[str, str]:
    """What a run must be given so that its rows can fail and its clock can jump."""
    found = {"OMP_NUM_THREADS": "1", "CHAOS_SIGNS": str(signs)}
    if faults_clock:
        (signs / "clock").write_bytes(struct.pack("=q", 0))
        library = signs / "clock.so"
        where = f'-DCLOCK_FILE="{signs / "clock"}"'  # a teacher's server gets no variable of ours
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", where, str(CLOCK), "-o", str(library)], check=True)
        found["LD_PRELOAD"] = str(library)
    return found


def do(fault: Fault, victim: Victim) -> Callable[[], object] | None:
    """Do the fault; what undoes it after a while, if anything."""
    if isinstance(fault.act, signal.Signals):
        process = psutil.Process(victim.process)
        process.send_signal(fault.act)
        return process.resume if fault.act == signal.SIGSTOP else None
    return ACTS[fault.act](victim)


def fill_disk(victim: Victim) -> None:
    """No file can be written any more."""
    for pid in victim.family:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


def take_memory(victim: Victim) -> None:
    """None can be had beyond what the process has."""
    resource.prlimit(victim.process, resource.RLIMIT_AS, (0, resource.RLIM_INFINITY))


def cut_network(victim: Victim) -> Callable[[], object]:
    """Loopback, which is all that the run has."""
    enter = ["nsenter", "--net", "--target", str(victim.driver), "ip", "link", "set", "lo"]
    subprocess.run([*enter, "down"], check=True)
    return lambda: subprocess.run([*enter, "up"], check=True)


def spoil_scores(victim: Victim) -> Callable[[], object]:
    for file in victim.store.rglob("*"):
        if file.is_file():
            file.write_bytes(b"\0" * file.stat().st_size)
    return lambda: shutil.rmtree(victim.store)  # what the run asks its user to do


def cut_checkpoint(victim: Victim) -> None:
    """Half of the newest one's weights, after the driver was killed."""
    kill(victim.driver)
    shard = max(victim.run_dir.glob("checkpoints/global_step_*/actor/model*.pt"), key=os.path.getmtime)
    os.truncate(shard, shard.stat().st_size // 2)


def spoil_optimizer(victim: Victim) -> None:
    """As if Adam's state had gone bad in memory: the run starts with such a one, and its disk is as it was."""
    kill(victim.driver)
    folder = saved_in(victim.run_dir / "checkpoints")[0].folder
    good = folder.with_name("good")
    shutil.copytree(folder, good)
    shard = next(folder.glob("actor/optim*.pt"))
    state = torch.load(shard, weights_only=False)  # the run's own
    for each in state["state"].values():
        each["exp_avg"].fill_(math.nan)
    torch.save(state, shard)
    manifest = json.loads((folder / MANIFEST).read_text())
    digest = hashlib.sha256(shard.read_bytes()).hexdigest()
    manifest["files"][str(shard.relative_to(folder))] = {"bytes": shard.stat().st_size, "sha256": digest}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    victim.start_again()
    shutil.rmtree(folder)
    good.rename(folder)


def fail_rows(victim: Victim) -> Callable[[], object]:
    """One row in sixteen raises in the reward function, however often it is drawn."""
    sign = victim.signs / "rows fail"
    sign.touch()
    return sign.unlink


def set_clock(victim: Victim) -> Callable[[], object]:
    """An hour on, and back."""

    def by(seconds: int) -> None:
        with (victim.signs / "clock").open("r+b") as file:  # which the run's processes have mapped
            file.write(struct.pack("=q", seconds))

    by(AN_HOUR_S)
    return lambda: by(0)


def move_folder(victim: Victim) -> Callable[[], object]:
    away = victim.run_dir.with_name("moved-away")
    victim.run_dir.rename(away)

    def bring_back() -> None:
        if victim.run_dir.exists():  # what the run made anew
            victim.run_dir.rename(victim.run_dir.with_name(f"made-anew-{time.time():.0f}"))
        away.rename(victim.run_dir)

    return bring_back


def kill(pid: int) -> None:
    process = psutil.Process(pid)
    process.kill()
    process.wait()


ACTS: dict[str, Callable[[Victim], Callable[[], object] | None]] = {
    "disk full": fill_disk,
    "memory": take_memory,
    "network": cut_network,
    "scores": spoil_scores,
    "checkpoint": cut_checkpoint,
    "not finite": spoil_optimizer,
    "rows": fail_rows,
    "clock": set_clock,
    "deleted": move_folder,
}
"""By `Fault.act`, beside signals."""
