"""What a killed process leaves behind, and what a session that ended in order does: nothing but its logs."""

import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from verl_ext.run import sweep
from verl_ext.run.ray_session import swept

SESSION = """
import os, subprocess, sys, tempfile, time
from pathlib import Path
from verl_ext.run.ray_session import swept

with swept(Path(sys.argv[1])):
    child = subprocess.Popen([sys.executable, "-c", '''
import mmap, os, subprocess, sys, time
segment = open("/dev/shm/" + sys.argv[1], "w+b"); segment.truncate(4096); mapped = mmap.mmap(segment.fileno(), 4096)
subprocess.Popen(["sleep", "60"], start_new_session=True)
print("up", flush=True)
time.sleep(60)
''', sys.argv[2]], stdout=subprocess.PIPE, start_new_session=True)
    child.stdout.readline()
    print(os.environ["TMPDIR"], child.pid, *(each.pid for each in __import__("psutil").Process(child.pid).children()))
    sys.stdout.flush()
    time.sleep({"waits": 60, "ends": 0, "loses who mapped it": 1.5}[sys.argv[3]])
    if sys.argv[3] == "loses who mapped it":
        child.kill()
        child.wait()
"""


@pytest.mark.parametrize("ending", ["waits", "ends", "loses who mapped it"])
def test_nothing_outlives_it(tmp_path: Path, ending: str):
    segment = Path(f"/dev/shm/verl-opd-test-{os.getpid()}-{ending.split()[0]}")
    command = [sys.executable, "-c", SESSION, str(tmp_path / "logs"), segment.name, ending]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    folder, *pids = process.stdout.readline().split()
    assert len(pids) == 2
    if ending == "waits":
        assert segment.exists()
        process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while Path(folder).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(folder).exists()
    assert not segment.exists()
    assert not [pid for pid in map(int, pids) if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]


def test_weights_that_a_killed_sync_left_are_gone_and_those_of_another_run_are_not(tmp_path: Path):
    left, mapped = (Path(f"/dev/shm/verl_weights_test_{os.getpid()}_{name}") for name in ("left", "mapped"))
    for each in (left, mapped):
        each.write_bytes(bytes(4096))
        os.utime(each, (0, 0))
    try:
        with mapped.open("r+b") as file, mmap.mmap(file.fileno(), 4096), swept(tmp_path / "logs"):
            pass
        assert not left.exists()
        assert mapped.exists()
    finally:
        mapped.unlink()


def test_logs_are_kept_as_a_folder_and_a_long_one_says_what_is_left_out(tmp_path: Path, monkeypatch):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "short.log").write_text("all of it")
    (tmp_path / "ray" / "long.log").write_text("x" * 90 + "the end of it")
    (tmp_path / "logs").symlink_to(tmp_path / "ray")
    monkeypatch.setattr(sweep, "LOG_BYTES", 20)
    monkeypatch.setattr(sweep, "SMALLEST_SHARE", 13)
    sweep.keep_logs(tmp_path / "logs")
    assert not (tmp_path / "logs").is_symlink()
    assert (tmp_path / "logs" / "short.log").read_text() == "all of it"
    assert (tmp_path / "logs" / "long.log").read_text() == "[the first 90 bytes are left out]\nthe end of it"


def test_the_environment_is_as_it_was(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/kept")
    before = dict(os.environ)
    with swept(tmp_path / "logs"):
        assert os.environ["TMPDIR"] != "/tmp"
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/kept"
    assert dict(os.environ) == before
