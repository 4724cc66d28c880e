"""Notice within seconds that a process of a run ended or was stopped, whichever it is.

Ray knows of every actor, on whatever node. Of this node also those that are nobody's actors: Ray's own, and the
processes of vLLM's engine, whose loss vLLM's server may not notice. What a managed teacher starts is its supervisor's
to watch (`verl_ext/teacher/server/supervisor.py`).
"""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import ray
from ray._private import state as cluster  # ray.util.state asks the dashboard, which a run does not have
from ray.exceptions import RayError

LOOK_S = 1.0
GRACE_S = 5.0  # for a run that is about to end, or to say itself what happened
JOIN_S = 5.0
STACK_S, STACKS_S = 10.0, 20.0
"""For one process's stacks, and for all of them: the run is to end."""
ALIVE, DEAD = "ALIVE", "DEAD"
LOST = ("WORKER_DIED", "NODE_DIED", "UNSPECIFIED")
"""Ray's reasons for an actor's death that nobody asked for."""
WORDS = {
    "Runner": "the trainer",
    "WorkerDict": "a rank of the actor (FSDP2)",
    "FinishReasonServer": "vLLM's server",
    "DistillationAgentLoopWorker": "an agent-loop worker",
    "TransferQueueController": "TransferQueue's controller",
    "SimpleStorageUnit": "TransferQueue's storage",
    "ManagedTeacher": "the teacher's actor",
    "RewardLoopWorker": "a reward worker",
    "GlobalRequestLoadBalancer": "vLLM's load balancer",
    "VLLM::EngineCore": "vLLM's engine core",
    "VLLM::Worker": "vLLM's worker",
    "raylet": "Ray's raylet",
    "gcs_server": "Ray's gcs_server",
}
"""What a person calls an actor class, or a process by how its title begins."""
RAY = ("raylet", "gcs_server")
QUEUE = ("TransferQueueController", "SimpleStorageUnit")
BELOW = (*RAY, "VLLM::EngineCore", "VLLM::Worker")
"""Nobody's actors."""
ACTOR = "actor "
SAMPLERS = ("FinishReasonServer", "VLLM::EngineCore", "VLLM::Worker")
"""Of which a run may have several, and goes on with those that are left."""


@dataclass(frozen=True)
class Member:
    """A process of a run."""

    kind: str
    """A key of WORDS, or another actor class."""
    pid: int
    key: str
    """The same for the same process, whatever other takes its id later."""

    def __str__(self) -> str:
        name = WORDS.get(self.kind, self.kind)
        return f"{name} ({self.kind}, process {self.pid})" if name != self.kind else f"{name} (process {self.pid})"


@dataclass(frozen=True)
class Look:
    """What was seen at one moment."""

    alive: frozenset[Member]
    lost: frozenset[Member]
    """Actors that Ray has seen die, which nobody asked for."""
    stopped: frozenset[Member]


class Watchdog:
    """Looks at a run's processes from a thread; Ray must be up."""

    def __init__(self, look: Callable[[], Look]) -> None:
        """`look`: the present state, as `look_at_run` gives it."""
        self._look = look
        self._known: set[Member] = set()
        self._lost: dict[Member, float] = {}
        """When each was missed first, by `time.monotonic()`."""
        self._stopped: set[Member] = set()
        self._news: list[str] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join(JOIN_S)

    def _watch(self) -> None:
        could = True
        while not self._ending.wait(LOOK_S):
            try:
                self.look()
                could = True
            except (RayError, RuntimeError) as error:  # a cluster's head that is being started again, say
                self._news += [f"the run's processes cannot be looked at: {error}"] * could
                could = False

    def look(self) -> None:
        """Look now."""
        seen = self._look()
        there = {each.key for each in seen.alive}  # one that was forked may take another title
        missing = {each for each in self._known if each.key not in there and not each.key.startswith(ACTOR)}
        for each in sorted((missing | seen.lost) - set(self._lost), key=str):
            self._lost[each] = time.monotonic()
            self._news.append(f"{each} has ended")
        self._known = set(seen.alive)
        self._news += [f"{each} is stopped (SIGSTOP); the run waits for it" for each in seen.stopped - self._stopped]
        self._news += [f"{each} goes on" for each in self._stopped - seen.stopped if psutil.pid_exists(each.pid)]
        self._stopped = set(seen.stopped)

    def news(self) -> list[str]:
        """What happened since the last call, in words."""
        news, self._news = self._news, []
        return news

    @property
    def lost(self) -> str:
        """Who ended, in words; "" where everyone is there."""
        return " and ".join(map(str, list(self._lost)))

    @property
    def ray_is_lost(self) -> bool:
        return any(each.kind in RAY for each in list(self._lost))

    @property
    def queue_is_lost(self) -> bool:
        """TransferQueue is: who asks it for something waits for minutes."""
        return any(each.kind in QUEUE for each in list(self._lost))

    @property
    def fatal(self) -> str:
        """Why the run cannot go on; "" where it can, or may still say so itself."""
        alive = {each.kind for each in list(self._known)}
        gone = [each for each in list(self._lost) if each.kind not in SAMPLERS or each.kind not in alive]
        if not gone or time.monotonic() - min(self._lost[each] for each in gone) < GRACE_S:
            return ""
        return " and ".join(map(str, gone)) + (" has" if len(gone) == 1 else " have") + " ended"


def look_at_run(own_ray: bool) -> Look:
    """Ray's actors of this job, and the processes below this one.

    `own_ray`: Ray is below this process too; where it is gone, asking it would take a minute.
    """
    alive, lost, stopped = set(), set(), set()
    kinds: dict[int, str] = {}
    for process in psutil.Process().children(recursive=True):  # parents before their children
        try:
            title, started, status = " ".join(process.cmdline()), process.create_time(), process.status()
            parent = process.ppid()
        except psutil.NoSuchProcess:
            continue
        kinds[process.pid] = kind_of(title)
        member = Member(kinds[process.pid], process.pid, f"{process.pid} {started}")
        # A process that was just forked, and may become any program, has its parent's title.
        own_title = kinds.get(parent) != member.kind
        if member.kind in BELOW and status != psutil.STATUS_ZOMBIE and own_title:
            alive.add(member)
        if member.kind and status in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
            stopped.add(member)
    if not own_ray or {each.kind for each in alive} >= set(RAY):
        job = ray.JobID(bytes.fromhex(ray.get_runtime_context().get_job_id()))
        for number, actor in cluster.actors(job_id=job).items():
            member = Member(actor["ActorClassName"].rpartition(".")[2], actor["Pid"], f"{ACTOR}{number}")
            if actor["State"] == ALIVE:
                alive.add(member)
            elif actor["State"] == DEAD and died(actor["DeathCause"]):
                lost.add(member)
    return Look(frozenset(alive), frozenset(lost), frozenset(stopped))


def kind_of(title: str) -> str:
    """Of a command line, or of what a process put in its place: an actor's class, or a key of WORDS; "" of others."""
    if title.startswith("ray::"):
        return title.removeprefix("ray::").split(".")[0].split(" ")[0]
    program = Path(title.split(" ")[0]).name
    return next((kind for kind in BELOW if title.startswith(kind) or program == kind), "")


def died(cause: Any) -> bool:
    """Whether nobody asked for an actor's death; an error of its own construction says itself what it is."""
    if cause.HasField("oom_context"):
        return True
    if not cause.HasField("actor_died_error_context"):
        return False
    context = cause.actor_died_error_context
    return type(context).Reason.Name(context.reason) in LOST


def dump_stacks(processes: Mapping[int, str], folder: Path) -> None:
    """What every thread of each Python process is at, in a file each: py-spy's view, which comes with Ray."""
    folder.mkdir(parents=True, exist_ok=True)
    spy, deadline = Path(sys.executable).with_name("py-spy"), time.monotonic() + STACKS_S
    for pid, name in processes.items():
        if time.monotonic() > deadline:
            with (folder / "not-looked-at.txt").open("a") as file:
                file.write(f"{name} (process {pid})\n")
            continue
        try:
            result = subprocess.run(
                [spy, "dump", "--nonblocking", "--pid", str(pid)], capture_output=True, text=True, timeout=STACK_S
            )
            said = result.stdout or result.stderr
        except (OSError, subprocess.TimeoutExpired) as error:
            said = f"py-spy could not say: {error}\n"
        (folder / f"{name.replace(':', '').replace('/', '')}-{pid}.txt").write_text(said)


def python_processes() -> dict[int, str]:
    """Of a run, below this process: those of Ray's actors, of vLLM and of a teacher's server, by id."""
    found = {os.getpid(): "driver"}
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        if title.startswith(("ray::", "VLLM::", "sglang::", "teacher::")) and not title.startswith("ray::IDLE"):
            found[process.pid] = title.split(" ")[0].split(".")[0]
    return found
