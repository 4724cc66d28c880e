"""A real SGLang server under supervision: what kills it or stops it, and what is left when it is given up.

The tests share one supervisor and use up its restarts in the order in which they stand.
"""

import os
import signal
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from verl_ext.run.ray_session import as_actor
from verl_ext.run.sweep import group_members
from verl_ext.teacher.client.pool import TeacherPool
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.server.actor import ManagedTeacher, with_absolute_paths
from verl_ext.teacher.server.process import ManagedServer
from verl_ext.teacher.server.prometheus import MetricsServer
from verl_ext.teacher.server.supervisor import Supervisor
from verl_ext.teacher.types import Score, ScoreRequest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
VOCAB_SIZE = 258
STARTUP_S = 300
REQUEST = ScoreRequest(prompt_ids=list(range(20, 60)), response_ids=list(range(100, 120)))


def settings(model: Path, python: str, **changes: int) -> TeacherConfig:
    return TeacherConfig(
        model_path=str(model),
        python=python,
        startup_timeout_s=STARTUP_S,
        watch_interval_s=0.5,
        request_timeout_s=6,
        **{"metrics_port": 0, **changes},
    )


@pytest.fixture(scope="module")
def supervisor(tiny_qwen3: Path, teacher_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supervisor]:
    log_path = tmp_path_factory.mktemp("supervised") / "teacher.log"
    supervisor = Supervisor(ManagedServer(settings(tiny_qwen3, teacher_python, max_restarts=3), log_path))
    assert supervisor.status().state == "starting"
    supervisor.start()
    try:
        supervisor.wait_ready()
        yield supervisor
    finally:
        supervisor.stop()


@pytest.fixture(scope="module")
def first_port(supervisor: Supervisor) -> int:
    """The port before any restart."""
    return supervisor.server.port


def group_of(supervisor: Supervisor) -> int:
    assert supervisor.server._process is not None
    return supervisor.server._process.pid


def process_named(group: int, name: str) -> int:
    (pid,) = [pid for pid in group_members(group) if name in Path(f"/proc/{pid}/cmdline").read_text(errors="replace")]
    return pid


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.1)


def wait_for_restart(supervisor: Supervisor, number: int) -> None:
    wait_until(lambda: supervisor.status().restarts == number and supervisor.status().state == "up", STARTUP_S)


async def score(supervisor: Supervisor) -> np.ndarray:
    async with TeacherPool(supervisor.server.config, VOCAB_SIZE, [supervisor.server.url]) as pool:
        (outcome,) = await pool.score([REQUEST])
    assert isinstance(outcome, Score)
    return outcome.logprobs


async def test_a_killed_scheduler_is_replaced_on_the_same_port(supervisor: Supervisor, first_port: int) -> None:
    before, group = await score(supervisor), group_of(supervisor)
    os.kill(process_named(group, "sglang::scheduler"), signal.SIGKILL)
    wait_for_restart(supervisor, 1)
    assert supervisor.server.port == first_port
    assert group_members(group) == []
    assert 0 < supervisor.status().uptime_s < 60
    np.testing.assert_allclose(await score(supervisor), before, atol=1e-4)
    log = supervisor.server.log_path.read_text()
    assert log.count("Uvicorn running") == 2  # appended
    assert "teacher supervisor: restart 1 of 3: ended with status" in log
    assert "crashed with exit code -9" in supervisor.status().last_error


async def test_a_stopped_server_is_killed_and_replaced(supervisor: Supervisor, first_port: int) -> None:
    before, group = await score(supervisor), group_of(supervisor)
    os.killpg(group, signal.SIGSTOP)
    wait_until(lambda: supervisor.status().state == "restarting", 20)
    assert supervisor.status().last_error.endswith("s (teacher.request_timeout_s)")
    wait_for_restart(supervisor, 2)
    assert group_members(group) == []
    assert supervisor.server.port == first_port
    np.testing.assert_allclose(await score(supervisor), before, atol=1e-4)


def test_prometheus_text_holds_ours_and_sglangs(supervisor: Supervisor) -> None:
    metrics = MetricsServer(supervisor)
    try:
        text = urllib.request.urlopen(metrics.url, timeout=20).read().decode()
    finally:
        metrics.close()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert (values["teacher_up"], values["teacher_restarts_total"]) == ("1.0", "2.0")
    assert 0 < float(values["teacher_probe_seconds"]) < 20
    assert float(values["teacher_uptime_seconds"]) > 0
    tokens = [float(value) for name, value in values.items() if name.startswith("sglang:prompt_tokens_total")]
    assert sum(tokens) >= len(REQUEST.prompt_ids)


def test_stop_in_the_middle_of_a_restart_leaves_no_process(supervisor: Supervisor) -> None:
    """Last user of the shared supervisor."""
    first = group_of(supervisor)
    os.killpg(first, signal.SIGKILL)
    wait_until(lambda: supervisor.server._process is not None and group_of(supervisor) != first, 30)
    second = group_of(supervisor)
    wait_until(lambda: len(group_members(second)) >= 2, 30)  # it loads
    started = time.monotonic()
    supervisor.stop()
    assert time.monotonic() - started < 5
    assert group_members(first) == group_members(second) == []
    assert supervisor.status().state == "down"
    assert supervisor.status().restarts == 3


def test_without_a_restart_left_the_actor_says_down_and_why(
    tiny_qwen3: Path, teacher_python: str, tmp_path: Path
) -> None:
    port_of_metrics = free_port()
    config = with_absolute_paths(settings(tiny_qwen3, teacher_python, max_restarts=0, metrics_port=port_of_metrics))
    ray.init("local", num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    try:
        actor = as_actor(ManagedTeacher).remote(config, str(tmp_path / "log"))
        port = ray.get(actor.start.remote(), timeout=60).rpartition(":")[2]
        ready = actor.wait_ready.remote()
        assert ray.get(actor.status.remote(), timeout=10).state == "starting"  # not blocked by wait_ready
        ray.get(ready, timeout=STARTUP_S)
        metrics_url = f"http://127.0.0.1:{port_of_metrics}/metrics"
        assert "\nteacher_up 1.0" in urllib.request.urlopen(metrics_url, timeout=20).read().decode()

        group = group_of_port(port)
        os.killpg(group, signal.SIGKILL)
        wait_until(lambda: ray.get(actor.status.remote()).state == "down", 20)
        status = ray.get(actor.status.remote())
        assert status.last_error.startswith("ended with status -9: ")
        assert status.last_error.endswith("; restarted 0 times (teacher.max_restarts)")
        assert "\nteacher_up 0.0" in urllib.request.urlopen(metrics_url, timeout=20).read().decode()
        assert "stays down: ended with status -9" in (tmp_path / "log").read_text()
        assert group_members(group) == []
    finally:
        ray.shutdown()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def group_of_port(port: str) -> int:
    """Process group of the server that was started with this port."""
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"--port\0{port}\0" in entry.read_text(errors="replace"):
                return os.getpgid(int(entry.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended while we looked
    raise AssertionError(f"no server on port {port}")
