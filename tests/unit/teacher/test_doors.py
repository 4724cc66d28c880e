"""What a server listens on is asked of the system, and a door that nobody meant ends it."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.server.doors import unsaid_doors
from verl_ext.teacher.server.process import ManagedServer


@contextlib.contextmanager
def listening(host: str) -> Iterator[int]:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as door:
        door.bind((host, 0))
        door.listen()
        yield door.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1"])
def test_loopback_is_no_door(host):
    with listening(host) as port:
        assert not [each for each in unsaid_doors([os.getpid()], "127.0.0.1", 1) if each.endswith(f":{port}")]


@pytest.mark.parametrize(("host", "shown"), [("0.0.0.0", "0.0.0.0"), ("::", "::")])
def test_what_others_reach_is_one_unless_it_was_meant(host, shown):
    with listening(host) as port:
        door = f"{shown}:{port}"
        assert door in unsaid_doors([os.getpid()], "127.0.0.1", port)
        assert door in unsaid_doors([os.getpid()], "localhost", port)
        assert door in unsaid_doors([os.getpid()], "10.1.2.3", port)
        assert door in unsaid_doors([os.getpid()], host, port + 1)
        assert door not in unsaid_doors([os.getpid()], host, port)


def test_a_process_that_ended_has_none():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert unsaid_doors([ended.pid], "127.0.0.1", 1) == []


SERVER = """#!{python}
# Answers as SGLang does, and listens where its --config says too.
import http.server, json, socket, sys
words = dict(zip(sys.argv, sys.argv[1:]))
key = open(words["--config"]).read() if "--config" in words else ""
also = socket.create_server(({also!r}, 0))
class Answer(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.dumps([{{"meta_info": {{"input_token_logprobs": [[None, 0], [-1.0, 0]]}}}}]).encode()
        given = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        self.send_response(200 if not key or json.loads(key.partition(":")[2]) == given else 401)
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer((words["--host"], int(words["--port"])), Answer).serve_forever()
"""


@pytest.fixture
def server_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    started = []

    def make(also: str) -> ManagedServer:
        python = tmp_path / "python"
        python.write_text(SERVER.format(python=sys.executable, also=also))
        python.chmod(0o755)
        config = TeacherConfig(model_path="some/model", python=str(python), startup_timeout_s=30)
        started.append(ManagedServer(config, tmp_path / "teacher.log"))
        return started[-1]

    yield make
    for server in started:
        server.stop()


def test_a_server_that_opens_another_door_is_stopped(server_of):
    server = server_of("0.0.0.0")
    server.start()
    with pytest.raises(
        RuntimeError, match=r"teacher\.host=127\.0\.0\.1: the server also listens on 0\.0\.0\.0:\d+, which"
    ):
        server.wait_ready()
    assert server._process is None


def test_the_key_reaches_the_server_and_no_file_argument_or_environment(server_of, tmp_path, monkeypatch):
    key = "a-key-that-nobody-else-sees"
    monkeypatch.setenv("TEACHER_API_KEY", key)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "token-of-ray")
    server = server_of("127.0.0.1")
    server.start()
    server.wait_ready()  # a real request, with the key
    assert server._process is not None
    group = [psutil.Process(server._process.pid), *psutil.Process(server._process.pid).children(recursive=True)]
    assert len(group) == 2
    assert not any(key in " ".join(process.cmdline()) for process in group)
    inherited = group[1].environ()
    assert key not in str(inherited)
    assert "token-of-ray" not in str(inherited)
    files = [file for file in tmp_path.rglob("*") if file.is_file() and not file.is_symlink()]
    assert not any(key.encode() in file.read_bytes() for file in files)
