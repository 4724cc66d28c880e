"""A server that cannot start is refused before anything runs, and its log says why one ended."""

import json
import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.server import process
from verl_ext.teacher.server.process import ManagedServer


def test_start_refuses_an_fp8_checkpoint_on_the_cpu_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "python").touch()
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "fp8"}}))
    config = TeacherConfig(model_path=str(tmp_path), python=str(tmp_path / "python"))
    server = ManagedServer(config, tmp_path / "log")
    with pytest.raises(ValueError, match=r"teacher\.device=cuda"):
        server.start()
    assert not (tmp_path / "log").exists()


def test_last_error_is_of_this_start_only(tmp_path: Path) -> None:
    server = ManagedServer(TeacherConfig(model_path="some/model"), tmp_path / "log")
    server.log_path.write_text("ValueError: of an earlier start\n")
    server._log_start = server.log_path.stat().st_size
    assert server.last_error() == "no output"
    with open(server.log_path, "a") as log:
        log.write("loading\n\n")
        assert server.last_error() == "no output"  # not flushed yet
        log.write("torch.OutOfMemoryError: CUDA out of memory.\n")
        log.flush()
        assert server.last_error() == "torch.OutOfMemoryError: CUDA out of memory."
        log.write("Received sigquit from a child process.\n")
    assert server.last_error() == "torch.OutOfMemoryError: CUDA out of memory."


def test_a_named_port_is_waited_for_and_then_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        monkeypatch.setattr(process, "PORT_WAIT_S", 0.0)
        with pytest.raises(ValueError, match=rf"teacher\.port: cannot listen on 127\.0\.0\.1:{port} \(.*in use\)"):
            process._claim_port("127.0.0.1", port)
        monkeypatch.setattr(process, "PORT_WAIT_S", 60.0)
        closer = threading.Timer(0.1, held.close)
        closer.start()
        assert process._claim_port("127.0.0.1", port) == port
        closer.join()


def test_a_group_has_its_living_processes_and_no_zombie() -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as sleeper:
        assert sleeper.pid in process.group_members(sleeper.pid)
        assert os.getpid() not in process.group_members(sleeper.pid)
        sleeper.kill()
        os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)  # ended, and not yet collected
        assert process.group_members(sleeper.pid) == []
