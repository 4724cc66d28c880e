"""Start, watch and stop one server in the teacher's own environment."""

import atexit
import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from http.client import HTTPException
from pathlib import Path
from types import TracebackType

from verl_ext.run.api_key import api_key, bearer_header
from verl_ext.run.replies import SETTINGS_BYTES
from verl_ext.run.sweep import free, group_members, segments
from verl_ext.teacher.client.protocol import Span
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.engines.known import engine_of
from verl_ext.teacher.server.command import build_arguments, build_environment, check_quantized_weights
from verl_ext.teacher.server.doors import unsaid_doors
from verl_ext.teacher.types import TeacherResponseError

GUARD = Path(__file__).with_name("guard.py")
POLL_S = 0.25
STOP_TIMEOUT_S = 30.0
LOG_TAIL_LINES = 25
OWN_PORTS = range(20000, 32000)  # below those that systems give to connections, which one may get meanwhile
PORT_TRIES = 20
PORT_WAIT_S = 3.0  # for a port that the user named
LOG_READ_BYTES = 1 << 18
METRICS_TIMEOUT_S = 5.0  # half of Prometheus' own default for a scrape
# Lines that say why a server ended, the most telling first.
CAUSES = (re.compile(r"\w(Error|Exception)\b|[Oo]ut of memory"), re.compile(r"crashed with exit code"))


class ManagedServer:
    """One server process group. Use it as a context manager, or call `start`, `wait_ready`, `stop`."""

    def __init__(self, config: TeacherConfig, log_path: Path) -> None:
        if config.mode != "managed":
            raise ValueError("teacher.mode: external servers are not started here; set teacher.mode=managed")
        self.config = config
        self._engine = engine_of(config.engine)
        self.log_path = log_path
        self.port = config.port
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: Path | None = None
        self._log_start = 0

    @property
    def url(self) -> str:
        """Base URL; known once `start` was called."""
        return f"http://{self.host}:{self.port}"

    @property
    def host(self) -> str:
        """Where to reach what listens on `config.host`."""
        return "127.0.0.1" if self.config.host == "0.0.0.0" else self.config.host

    @property
    def has_api_key(self) -> bool:
        return bool(api_key(self.config.api_key_env))

    def start(self) -> None:
        """Start the server and return at once; a second start, after `stop`, takes the same port.

        Raises:
            ValueError: if it cannot possibly start.
        """
        self.config.check_exposure()
        python = Path(self.config.python).expanduser().absolute()  # not resolve(): a venv's python is a symlink
        if not python.is_file():
            raise ValueError(f"teacher.python: no file {python}; create the teacher environment or give its python")
        model_path = self.config.model_path or ""
        if model_path.startswith(("/", ".", "~")) and not Path(model_path).expanduser().is_dir():
            raise ValueError(f"teacher.model_path: no folder {model_path}; correct the path")
        check_quantized_weights(self.config)
        self.port = _claim_port(self.config.host, self.port)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        # Engines leave their sockets behind in TMPDIR; one folder of our own is removed by stop().
        self._scratch = Path(tempfile.mkdtemp(prefix="teacher-"))
        command = [str(python), *build_arguments(self.config, self.port)]
        with open(self.log_path, "ab") as log, contextlib.ExitStack() as stack:
            handed_on: list[int] = []
            if key := api_key(self.config.api_key_env):
                words, descriptor = self._engine.hide_key(key, self._scratch)
                command, handed_on = [*command, *words], [descriptor]
                stack.callback(os.close, descriptor)
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(GUARD), str(os.getpid()), ",".join(map(str, handed_on)), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=build_environment(self.config, python) | {"TMPDIR": str(self._scratch)},
                start_new_session=True,
                pass_fds=handed_on,
            )
        atexit.register(self.stop)

    def poll(self) -> int | None:
        """Exit status of a server that ended, None while it runs."""
        process = self._process  # stop() may take it away from another thread
        return None if process is None else process.poll()

    def wait_ready(self, timeout_s: float | None = None) -> str:
        """Block until a log-prob request succeeds; return the URL. Stops the server where it fails."""
        timeout_s = self.config.startup_timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._process is None:
                raise RuntimeError("the teacher was stopped before it answered")
            if (status := self.poll()) is not None:
                self.stop()
                raise RuntimeError(f"the teacher ended with status {status}; {self.log_tail()}")
            if self.answers(max(1.0, deadline - time.monotonic())):
                self._check_doors()
                return self.url
            time.sleep(POLL_S)
        self.stop()
        raise TimeoutError(
            f"the teacher did not answer within {timeout_s:.0f} s (teacher.startup_timeout_s); {self.log_tail()}"
        )

    def _check_doors(self) -> None:
        """Stop a server that listens where `teacher.host` does not say. RuntimeError naming the addresses."""
        assert self._process is not None
        if doors := unsaid_doors(group_members(self._process.pid), self.config.host, self.port):
            self.stop()
            raise RuntimeError(
                f"teacher.host={self.config.host}: the server also listens on {', '.join(doors)}, which other "
                "machines reach; take out of teacher.extra_args what opens it"
            )

    def answers(self, timeout_s: float) -> bool:
        """True if a real log-prob request succeeds. /health is green also on servers that die on the first one."""
        span = Span(first=0, last=0, ids=[0, 0], start=0)
        body = json.dumps(self._engine.body([span], [None])).encode()
        try:
            (answer,) = self._engine.answers(self._request(self._engine.path, body, timeout_s))
            return len(self._engine.logprobs(answer, span, vocab_size=1)) == 1
        except (OSError, HTTPException, TeacherResponseError, ValueError):  # no answer, or none to this
            return False

    def metrics_text(self) -> str:
        """The engine's own metrics in Prometheus' text format; empty while it does not give them."""
        try:
            return self._request("/metrics", None, METRICS_TIMEOUT_S).decode()
        except (OSError, HTTPException):
            return ""

    def _request(self, path: str, body: bytes | None, timeout_s: float) -> bytes:
        headers = {"Content-Type": "application/json", **bearer_header(self.config.api_key_env)}
        request = urllib.request.Request(f"{self.url}{path}", body, headers)
        # No proxy: the server is on this machine or this network, whatever http_proxy says.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=timeout_s) as response:
            return response.read(SETTINGS_BYTES)

    def log_tail(self) -> str:
        """The last lines of the server's log, for an error message."""
        lines = self.log_path.read_text(errors="replace").splitlines()
        return "\n".join([f"end of {self.log_path}:", *lines[-LOG_TAIL_LINES:]])

    def last_error(self) -> str:
        """The last line of the log since `start` that names an error or a crash, else the last line there."""
        with open(self.log_path, "rb") as log:
            log.seek(max(self._log_start, self.log_path.stat().st_size - LOG_READ_BYTES))
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        for cause in CAUSES:
            if named := [line for line in lines if cause.search(line)]:
                return named[-1]
        return lines[-1] if lines else "no output"

    def stop(self) -> None:
        """Kill every process of the server. Safe to call twice.

        SIGKILL at once: a scoring server holds nothing worth saving, and the engine's own shutdown takes seconds. Its
        shared memory, which only that shutdown would remove, is removed here.
        """
        atexit.unregister(self.stop)
        if self._process is not None:
            group = self._process.pid
            mapped = segments(group_members(group))
            with contextlib.suppress(ProcessLookupError):  # it ended by itself
                os.killpg(group, signal.SIGKILL)
            self._process.wait(STOP_TIMEOUT_S)
            deadline = time.monotonic() + STOP_TIMEOUT_S
            while group_members(group) and time.monotonic() < deadline:
                time.sleep(0.05)
            free(mapped)
            self._process = None
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None

    def __enter__(self) -> "ManagedServer":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self.stop()


def _claim_port(host: str, port: int) -> int:
    """A port that is free now: `port`, or any of `OWN_PORTS` where it is 0.

    A named one is waited for: it may be that of a server killed just now, which the system has not closed yet.
    """
    problem = ""
    deadline = time.monotonic() + PORT_WAIT_S
    for candidate in random.sample(OWN_PORTS, PORT_TRIES) if port == 0 else itertools.repeat(port):
        if not (problem := _port_problem(host, candidate)):
            return candidate
        if port and time.monotonic() > deadline:
            break
        time.sleep(POLL_S if port else 0)
    raise ValueError(f"teacher.port: cannot listen on {host}:{port} ({problem}); use another, or 0")


def _port_problem(host: str, port: int) -> str:
    """Why nothing can listen there; empty if something can."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return ""
