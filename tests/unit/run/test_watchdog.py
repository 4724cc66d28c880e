"""Who of a run's processes ended or was stopped; Ray's part of it is looked at in a real run."""

import os
import signal
import subprocess
import sys
import threading

import psutil
import pytest
from ray.core.generated.common_pb2 import ActorDeathCause, ActorDiedErrorContext

from verl_ext.run import watchdog
from verl_ext.run.watchdog import Look, Member, Watchdog, died, kind_of, look_at_run

CORE, OTHER_CORE = Member("VLLM::EngineCore", 7, "7 1.0"), Member("VLLM::EngineCore", 9, "9 1.0")
WORKER = Member("DistillationAgentLoopWorker", 8, "actor 1")


def seen(*alive: Member, lost: tuple[Member, ...] = (), stopped: tuple[Member, ...] = ()) -> Look:
    return Look(frozenset(alive), frozenset(lost), frozenset(stopped))


def watched(*looks: Look) -> Watchdog:
    left = list(looks)
    dog = Watchdog(lambda: left.pop(0))
    for _ in looks:
        dog.look()
    return dog


@pytest.fixture(autouse=True)
def no_grace(monkeypatch):
    monkeypatch.setattr(watchdog, "GRACE_S", 0.0)


def test_an_engine_process_that_is_gone_is_named():
    dog = watched(seen(CORE, WORKER), seen(WORKER))
    assert dog.fatal == "vLLM's engine core (VLLM::EngineCore, process 7) has ended"
    assert dog.news() == [dog.fatal]
    assert dog.news() == []


def test_a_process_that_was_forked_and_names_itself_is_still_there():
    """vLLM's worker has the engine core's title until it begins."""
    dog = watched(seen(CORE, OTHER_CORE), seen(CORE, Member("VLLM::Worker", 9, OTHER_CORE.key)))
    assert (dog.lost, dog.news()) == ("", [])


def test_an_actor_counts_as_lost_where_ray_says_so_and_not_where_it_was_let_go():
    assert watched(seen(WORKER), seen()).fatal == ""
    assert watched(seen(WORKER), seen(lost=(WORKER,))).fatal.startswith("an agent-loop worker (Distillation")


def test_a_run_with_another_replica_goes_on():
    dog = watched(seen(CORE, OTHER_CORE), seen(OTHER_CORE))
    assert dog.fatal == ""
    assert dog.lost.startswith("vLLM's engine core")


def test_a_run_that_is_about_to_end_may_say_it_itself(monkeypatch):
    monkeypatch.setattr(watchdog, "GRACE_S", 60.0)
    assert watched(seen(CORE), seen()).fatal == ""


def test_a_stopped_process_is_said_once_and_so_is_that_it_goes_on():
    core = Member("VLLM::EngineCore", os.getpid(), "1")
    dog = watched(seen(core, stopped=(core,)), seen(core, stopped=(core,)))
    assert dog.news() == [f"{core} is stopped (SIGSTOP); the run waits for it"]
    dog._look = lambda: seen(core)
    dog.look()
    assert dog.news() == [f"{core} goes on"]
    assert dog.fatal == ""


@pytest.mark.parametrize(
    ("reason", "is_lost"), [("WORKER_DIED", True), ("NODE_DIED", True), ("RAY_KILL", False), ("OUT_OF_SCOPE", False)]
)
def test_what_ray_says_of_a_death(reason, is_lost):
    context = ActorDiedErrorContext(reason=ActorDiedErrorContext.Reason.Value(reason))
    assert died(ActorDeathCause(actor_died_error_context=context)) is is_lost


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("ray::Runner.run", "Runner"),
        ("ray::WorkerDict", "WorkerDict"),
        ("VLLM::Worker_TP0", "VLLM::Worker"),
        ("/x/ray/core/src/ray/raylet/raylet --raylet_socket_name=1", "raylet"),
        ("/x/ray/core/src/ray/gcs/gcs_server --log_dir=1", "gcs_server"),
        ("sleep 60", ""),
    ],
)
def test_a_process_is_known_by_its_title(title, kind):
    assert kind_of(title) == kind


def test_a_child_that_is_stopped_is_seen():
    """Ray is gone here, and is not asked."""
    named = [sys.executable, "-c", "import time; time.sleep(60)"]
    child = subprocess.Popen(["VLLM::Worker", *named[1:]], executable=sys.executable)
    try:
        assert [each.pid for each in look_at_run(own_ray=True).alive] == [child.pid]
        child.send_signal(signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        assert [each.kind for each in look_at_run(own_ray=True).stopped] == ["VLLM::Worker"]
    finally:
        child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert look_at_run(own_ray=True).alive == frozenset()  # a zombie is gone
    child.wait()


def test_what_a_process_forks_is_not_taken_for_another_one():
    """A compiler's process, say: between its fork and its exec it has the title of vLLM's worker."""
    code = "import os, sys, time; os.fork() and print('forked', flush=True); time.sleep(60)"
    child = subprocess.Popen(
        ["VLLM::Worker", "-c", code], executable=sys.executable, stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"forked\n"
        assert len(psutil.Process(child.pid).children()) == 1
        assert [each.pid for each in look_at_run(own_ray=True).alive] == [child.pid]
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


def test_a_look_that_fails_is_said_once_and_tried_again(monkeypatch):
    monkeypatch.setattr(watchdog, "LOOK_S", 0.001)
    looks = iter([RuntimeError("no head"), RuntimeError("no head"), seen(CORE), seen()])
    done = threading.Event()

    def look() -> Look:
        found = next(looks, None)
        if found is None:
            done.set()
            return seen()
        if isinstance(found, Exception):
            raise found
        return found

    with Watchdog(look) as dog:
        assert done.wait(10)
    assert dog.news() == ["the run's processes cannot be looked at: no head", dog.fatal]


def test_stacks_of_a_process_are_kept_in_a_file(tmp_path):
    watchdog.dump_stacks({os.getpid(): "VLLM::Worker", 2**22 + 1: "ray::Gone"}, tmp_path)
    assert "test_stacks_of_a_process" in (tmp_path / f"VLLMWorker-{os.getpid()}.txt").read_text()
    assert (tmp_path / f"rayGone-{2**22 + 1}.txt").read_text()
