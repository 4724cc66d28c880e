"""Keep a managed server answering: notice that it died or hangs, and start it again on its own port."""

import dataclasses
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.server.process import ManagedServer

FIRST_PAUSE_S = 1.0  # before the first restart, doubled for each further one: a fault that stays must not spin
LAST_PAUSE_S = 60.0
RETRY_S = 0.5  # between looks at a server that is loading or did not answer


@dataclass(frozen=True)
class TeacherStatus:
    """What is known of a managed teacher at one moment."""

    state: str = "starting"
    """`starting` (has not answered yet), `up`, `restarting`, or `down` (stopped, or no restart is left)."""
    restarts: int = 0
    """Times it was started again, 0 to `teacher.max_restarts`."""
    last_error: str = ""
    """Why it was last restarted, or stays down; one line, empty if neither happened."""
    uptime_s: float = 0.0
    """Seconds since this server process first answered; 0 unless `up`."""
    probe_s: float = 0.0
    """Seconds until the answer to the last log-prob request that was answered; a busy server takes longer."""


class Supervisor:
    """`start`, `wait_ready`, `stop` as `ManagedServer` has them; from `wait_ready` on a thread watches the server.

    A server that never answered is not started again: its settings are wrong, and `wait_ready` raises.
    """

    def __init__(self, server: ManagedServer) -> None:
        self.server = server
        self._config = server.config
        self._status = TeacherStatus()  # replaced, never changed: other threads read it
        self._up_since = 0.0
        self._silent_since: float | None = None
        self._starting_or_killing = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="teacher-supervisor", daemon=True)

    def start(self) -> str:
        """Start the server and return its URL at once. Raises what `ManagedServer.start` raises."""
        self.server.start()
        return self.server.url

    def wait_ready(self) -> str:
        """Block until the server answers, then watch it; return its URL. Raises as `ManagedServer.wait_ready` does."""
        try:
            url = self.server.wait_ready()
        except (RuntimeError, TimeoutError):
            self._set(state="down", last_error=f"did not start: {self.server.last_error()}")
            raise
        with self._starting_or_killing:
            if self._stopping.is_set():
                raise RuntimeError("the teacher was stopped before it answered")
            self._answered(time.monotonic())
            self._thread.start()
        return url

    def status(self) -> TeacherStatus:
        """The state now."""
        status = self._status
        if status.state != "up":
            return status
        return dataclasses.replace(status, uptime_s=time.monotonic() - self._up_since)

    def stop(self) -> None:
        """Kill the server, also in the middle of a restart, and watch no more. Safe to call twice."""
        self._stopping.set()
        with self._starting_or_killing:
            self.server.stop()  # a probe that the thread waits for ends with it
        if self._thread.is_alive():
            self._thread.join()
        self._set(state="down")

    def _watch(self) -> None:
        while not self._stopping.wait(self._pause_s()):
            reason = self._look()
            while reason:
                if not self._may_restart(reason):
                    return
                reason = self._start_again()

    def _pause_s(self) -> float:
        calm = self._status.state == "up" and self._silent_since is None
        return self._config.watch_interval_s if calm else min(self._config.watch_interval_s, RETRY_S)

    def _look(self) -> str:
        """Why the server must be restarted, or nothing.

        Probes queue behind scoring, so one that waits proves nothing: only silence beyond the limit does.
        """
        if (status := self.server.poll()) is not None:
            return f"ended with status {status}: {self.server.last_error()}"
        key = "request_timeout_s" if self._status.state == "up" else "startup_timeout_s"
        limit_s = self._config.request_timeout_s if self._status.state == "up" else self._config.startup_timeout_s
        asked = time.monotonic()
        if self._silent_since is None:
            self._silent_since = asked
        if self.server.answers(max(RETRY_S, self._silent_since + limit_s - asked)):
            self._answered(asked)
            return ""
        silent_s = time.monotonic() - self._silent_since
        return "" if silent_s < limit_s else f"no answer for {silent_s:.0f} s (teacher.{key})"

    def _answered(self, asked: float) -> None:
        now = time.monotonic()
        self._silent_since = None
        if self._status.state != "up":
            self._up_since = now
        self._set(state="up", probe_s=now - asked)

    def _may_restart(self, reason: str) -> bool:
        """Kill what is left of the server; False if it stays down."""
        with self._starting_or_killing:
            if self._stopping.is_set():
                return False  # it ended because of stop()
            self.server.stop()
        restarts, most = self._status.restarts, self._config.max_restarts
        if restarts >= most:
            self._set(state="down", last_error=f"{reason}; restarted {restarts} times (teacher.max_restarts)")
            self._log(f"stays down: {self._status.last_error}")
            return False
        self._set(state="restarting", restarts=restarts + 1, last_error=reason)
        self._log(f"restart {restarts + 1} of {most}: {reason}")
        return True

    def _start_again(self) -> str:
        """Start the server after a growing pause. Why it did not start, or nothing."""
        self._stopping.wait(min(LAST_PAUSE_S, FIRST_PAUSE_S * 2 ** (self._status.restarts - 1)))
        with self._starting_or_killing:
            if self._stopping.is_set():
                return ""
            try:
                self.server.start()
            except (ValueError, OSError) as error:  # the port was taken meanwhile, or no memory for a process
                return str(error)
        self._silent_since = time.monotonic()
        return ""

    def _set(self, **changes: object) -> None:
        self._status = dataclasses.replace(self._status, **changes)

    def _log(self, line: str) -> None:
        with open(self.server.log_path, "a") as log:
            log.write(f"[{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC] teacher supervisor: {line}\n")


@contextmanager
def serving_teacher(config: TeacherConfig, log_path: Path) -> Iterator[list[str]]:
    """URLs of a teacher that answers: an external one as it is; a managed one is started, kept alive, and stopped.

    Raises:
        ValueError, RuntimeError, TimeoutError: if it does not start.
    """
    if config.mode == "external":
        yield list(config.urls)
        return
    supervisor = Supervisor(ManagedServer(config, log_path))
    try:
        supervisor.start()
        yield [supervisor.wait_ready()]
    finally:
        supervisor.stop()
