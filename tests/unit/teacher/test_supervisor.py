"""When the supervisor restarts a server, when not, and what it says. The server is scripted."""

import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.server import serve
from verl_ext.teacher.server.process import ManagedServer
from verl_ext.teacher.server.prometheus import MetricsServer
from verl_ext.teacher.server.serve import report_until_down
from verl_ext.teacher.server.supervisor import FIRST_PAUSE_S, RETRY_S, Supervisor


class ScriptedServer(ManagedServer):
    """`fate` says at each look: `"answers"`, `"silent"`, an exit status, or ValueError for a start that fails."""

    def __init__(self, config: TeacherConfig, log_path: Path) -> None:
        super().__init__(config, log_path)
        log_path.touch()
        self.fate: str | int = "answers"
        self.start_error: Exception | None = None
        self.starts = self.stops = 0
        self.probe_timeouts: list[float] = []
        self.on_start: Callable[[], None] = lambda: None

    def start(self) -> None:
        self.starts += 1
        self.on_start()
        if self.start_error is not None:
            raise self.start_error
        self._log_start = self.log_path.stat().st_size
        with open(self.log_path, "a") as log:
            log.write("RuntimeError: scripted\nlast words\n")

    def stop(self) -> None:
        self.stops += 1

    def poll(self) -> int | None:
        return self.fate if isinstance(self.fate, int) else None

    def wait_ready(self, timeout_s: float | None = None) -> str:
        del timeout_s  # of the base's signature
        if self.fate != "answers":
            raise RuntimeError("the teacher ended with status 1; end of log:\n...")
        return self.url

    def answers(self, timeout_s: float) -> bool:
        self.probe_timeouts.append(timeout_s)
        return self.fate == "answers"

    def metrics_text(self) -> str:
        return '# TYPE sglang:x gauge\nsglang:x{a="b"} 3.0\n' if self.fate == "answers" else ""


class Clock(threading.Event):
    """Waits for nothing and notes for how long it was asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        return self.is_set()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., tuple[Supervisor, ScriptedServer]]]:
    made: list[Supervisor] = []

    def build(**changes: float) -> tuple[Supervisor, ScriptedServer]:
        config = TeacherConfig(model_path="m", **{"watch_interval_s": 0.01, **changes})
        server = ScriptedServer(config, tmp_path / "teacher.log")
        supervisor = Supervisor(server)
        made.append(supervisor)
        return supervisor, server

    yield build
    for supervisor in made:
        supervisor.stop()


def test_a_server_that_keeps_dying_is_restarted_with_growing_pauses_and_then_stays_down(make) -> None:
    supervisor, server = make(max_restarts=3)
    supervisor.start()
    clock = supervisor._stopping = Clock()
    supervisor.wait_ready()  # the first look may still find it well
    server.fate = 137
    supervisor._thread.join(10)
    pauses = [wait for wait in clock.waits if wait >= FIRST_PAUSE_S]
    assert pauses == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert (server.starts, server.stops) == (4, 4)
    status = supervisor.status()
    assert (status.state, status.restarts, status.uptime_s) == ("down", 3, 0)
    reason = "ended with status 137: RuntimeError: scripted"
    assert status.last_error == f"{reason}; restarted 3 times (teacher.max_restarts)"
    log = server.log_path.read_text()
    assert [f"restart {i} of 3: {reason}" in log for i in (1, 2, 3)] == [True] * 3
    assert f"stays down: {reason}" in log


def test_a_probe_may_queue_for_as_long_as_a_request_may_take(make) -> None:
    supervisor, server = make(request_timeout_s=50, startup_timeout_s=90)
    supervisor._set(state="up")
    assert supervisor._look() == ""
    server.fate = "silent"
    assert supervisor._look() == ""  # once silent is not hung
    assert supervisor._look() == ""
    assert server.probe_timeouts == pytest.approx([50, 50, 50], abs=1)
    server.fate = "answers"
    assert supervisor._look() == ""
    assert supervisor._silent_since is None  # forgiven
    supervisor._set(state="restarting")
    supervisor._look()
    assert server.probe_timeouts[-1] == pytest.approx(90, abs=1)  # a server that loads has longer


def test_only_silence_beyond_request_timeout_restarts(make) -> None:
    supervisor, server = make(request_timeout_s=50)
    supervisor._set(state="up")
    server.fate = "silent"
    assert supervisor._look() == ""
    assert supervisor._silent_since is not None
    supervisor._silent_since -= 50
    assert supervisor._look() == "no answer for 50 s (teacher.request_timeout_s)"
    assert server.probe_timeouts[-1] == RETRY_S  # asked once more before it is killed


def test_a_start_that_fails_counts_as_a_restart(make) -> None:
    supervisor, server = make(max_restarts=2)
    supervisor.start()
    server.start_error = ValueError("teacher.port: cannot listen on 127.0.0.1:1")
    clock = supervisor._stopping = Clock()
    supervisor.wait_ready()
    server.fate = 1
    supervisor._thread.join(10)
    assert server.starts == 3
    assert supervisor.status().last_error.startswith("teacher.port: cannot listen on 127.0.0.1:1; restarted 2 times")
    assert clock.waits[-1] == 2 * FIRST_PAUSE_S


def test_stop_in_the_pause_before_a_restart_starts_nothing(make) -> None:
    supervisor, server = make(max_restarts=3)
    supervisor.start()
    supervisor.wait_ready()
    server.fate = 1
    while supervisor.status().state != "restarting":
        threading.Event().wait(0.01)
    supervisor.stop()
    assert (server.starts, supervisor.status().state) == (1, "down")
    assert not supervisor._thread.is_alive()


def test_stop_while_a_restart_starts_the_server_kills_it(make) -> None:
    """`stop` cannot slip in between: whoever starts the server holds the lock, and `stop` kills afterwards."""
    supervisor, server = make(max_restarts=3)
    supervisor._set(state="restarting", restarts=1)
    in_start, go_on = threading.Event(), threading.Event()
    server.on_start = lambda: (in_start.set(), go_on.wait(10))[0]
    supervisor._stopping = Clock()
    starter = threading.Thread(target=supervisor._start_again)
    stopper = threading.Thread(target=supervisor.stop)
    starter.start()
    assert in_start.wait(10)
    stopper.start()
    assert server.stops == 0
    go_on.set()
    starter.join(10)
    stopper.join(10)
    assert (server.starts, server.stops) == (1, 1)
    assert supervisor._start_again() == ""
    assert server.starts == 1  # and nothing starts it again


def test_a_server_that_never_answered_is_not_restarted(make) -> None:
    supervisor, server = make()
    supervisor.start()
    server.fate = 1
    with pytest.raises(RuntimeError, match="ended with status 1"):
        supervisor.wait_ready()
    assert supervisor.status().state == "down"
    assert supervisor.status().last_error == "did not start: RuntimeError: scripted"
    assert server.starts == 1


def scrape(metrics: MetricsServer) -> list[str]:
    text = urllib.request.urlopen(metrics.url, timeout=10).read().decode()
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_metrics_merge_the_servers_own_and_say_when_it_is_down(make) -> None:
    supervisor, server = make(metrics_port=0)
    metrics = MetricsServer(supervisor)
    try:
        supervisor._set(state="up", restarts=2, probe_s=0.5)
        lines = scrape(metrics)
        assert {"teacher_up 1.0", "teacher_restarts_total 2.0", "teacher_probe_seconds 0.5"} < set(lines)
        assert 'sglang:x{a="b"} 3.0' in lines
        server.fate = 1
        supervisor._set(state="restarting")
        lines = scrape(metrics)
        assert {"teacher_up 0.0", "teacher_uptime_seconds 0.0"} < set(lines)
        assert len(lines) == 4
    finally:
        metrics.close()


def test_a_taken_metrics_port_is_said_by_key(make) -> None:
    supervisor, _ = make(metrics_port=0)
    metrics = MetricsServer(supervisor)
    port = int(metrics.url.rpartition(":")[2].split("/")[0])
    second, _ = make(metrics_port=port)
    with pytest.raises(ValueError, match=rf"teacher\.metrics_port: cannot listen on 127\.0\.0\.1:{port} \(Address"):
        MetricsServer(second)
    metrics.close()


def test_a_server_in_the_foreground_says_where_it_is_and_why_it_ended(tmp_path, monkeypatch, capsys) -> None:
    made: list[ScriptedServer] = []

    def build(config: TeacherConfig, log_path: Path) -> ScriptedServer:
        made.append(ScriptedServer(config, log_path))
        return made[0]

    def end(supervisor: Supervisor) -> None:
        made[0].fate = 137
        report_until_down(supervisor)

    monkeypatch.setattr(serve, "ManagedServer", build)
    monkeypatch.setattr(serve, "report_until_down", end)
    config = TeacherConfig(model_path="m", port=30001, metrics_port=0, watch_interval_s=0.01, max_restarts=0)
    with pytest.raises(RuntimeError, match=r"(?s)the teacher ended with status 137: .*last words"):
        serve.serve(config, tmp_path / "teacher.log")
    said = capsys.readouterr().out
    assert "metrics: http://127.0.0.1:" in said
    assert "teacher.mode=external 'teacher.urls=[http://127.0.0.1:30001]'" in said
    assert made[0].stops > 0
