"""What a guarded command leaves when its parent is killed: no process, no temporary file."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from verl_ext.teacher.server import guard

PARENT = """
import os, subprocess, sys, time
guarded = [sys.executable, "-I", sys.argv[1], str(os.getpid()), "", "sleep", "60"]
child = subprocess.Popen(guarded, env=os.environ | {"TMPDIR": sys.argv[2]}, start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_killed_parent_takes_command_and_folder_with_it(tmp_path: Path):
    folder, other = tmp_path / f"{guard.TEMPORARY}1", tmp_path / "another"
    for each in (folder, other):
        each.mkdir()
        (each / "socket").touch()
    groups = []
    for each in (folder, other):
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, guard.__file__, str(each)], stdout=subprocess.PIPE, text=True
        )
        assert parent.stdout is not None
        groups.append(int(parent.stdout.readline()))
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 10
    while any(map(alive, groups)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, groups))
    assert not folder.exists()
    assert (other / "socket").exists()  # not a folder of a server's own


def alive(group: int) -> list[int]:
    return [
        each.pid
        for each in psutil.process_iter(["status"])
        if each.info["status"] != psutil.STATUS_ZOMBIE and group_of(each.pid) == group
    ]


def group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1
