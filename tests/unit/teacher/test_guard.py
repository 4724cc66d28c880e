"""What a guarded command leaves when its parent is killed: no process, no shared memory, no temporary file."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil

from verl_ext.teacher.server import guard

# -S: without what is installed, as where our package is on PYTHONPATH alone.
PARENT = """
import os, subprocess, sys, time
guarded = [sys.executable, "-IS", sys.argv[1], str(os.getpid()), "", sys.executable, "-c", sys.argv[3], sys.argv[4]]
child = subprocess.Popen(guarded, env=os.environ | {"TMPDIR": sys.argv[2]}, start_new_session=True)
print(child.pid, flush=True)
time.sleep(60)
"""


MAPS = """
import mmap, sys, time
with open(sys.argv[1], "w+b") as segment:
    segment.truncate(4096)
    mapped = mmap.mmap(segment.fileno(), 4096)
time.sleep(60)
"""


def test_a_killed_parent_takes_command_folder_and_shared_memory_with_it(tmp_path: Path):
    segment = Path(f"/dev/shm/verl-opd-test-{os.getpid()}-guard")
    folder, other = tmp_path / f"{guard.TEMPORARY}1", tmp_path / "another"
    for each in (folder, other):
        each.mkdir()
        (each / "socket").touch()
    groups = []
    for each in (folder, other):
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, guard.__file__, str(each), MAPS, str(segment)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert parent.stdout is not None
        groups.append(int(parent.stdout.readline()))
        while not segment.exists():
            time.sleep(0.02)
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 10
    while any(map(alive, groups)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, groups))
    assert not folder.exists()
    assert not segment.exists()
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
