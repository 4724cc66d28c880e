"""One run works in a folder; the lock of one that is gone, however it went, is free."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from verl_ext.run.lock import check_unlocked, locked

HOLDER = """
import sys, time
from pathlib import Path
from verl_ext.run.lock import locked
with locked(Path(sys.argv[1])):
    child = __import__("subprocess").Popen(["sleep", "60"])
    print(child.pid, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path, pytestconfig):
    """Another process that holds the lock, and a program that it has started."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")],
        cwd=pytestconfig.rootpath,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        yield process
        process.kill()
        os.kill(child, signal.SIGKILL)


def test_a_second_run_is_refused_and_the_first_ones_death_frees_the_folder(holder, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    said = rf"run_dir=.*/run: another run works there \(process {holder.pid} on \S+\); wait until it ends, or take ano"
    with pytest.raises(ValueError, match=said), locked(run_dir):
        pass
    with pytest.raises(ValueError, match=said):
        check_unlocked(run_dir)
    monkeypatch.setenv("RANK", "1")  # of the run that holds it
    check_unlocked(run_dir)
    monkeypatch.delenv("RANK")
    holder.kill()
    holder.wait()
    check_unlocked(run_dir)
    with locked(run_dir):  # though what it has started is still there
        assert f'"pid": {os.getpid()}' in (run_dir / ".lock").read_text()
    check_unlocked(run_dir)


def test_looking_makes_no_folder(tmp_path):
    check_unlocked(tmp_path / "run")
    assert not (tmp_path / "run").exists()
