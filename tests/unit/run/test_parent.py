"""A process that multiprocessing spawned ends with its parent, though it never asks for it."""

import subprocess
import sys
import time
from pathlib import Path

import psutil

# A verb's engine: its main module imports `recipe`, and it waits for a parent that is gone.
SCRIPT = """
import multiprocessing, os, time
import recipe

def wait():
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=wait)
    process.start()
    process.join()
"""


def test_a_spawned_process_ends_when_its_parent_is_killed(tmp_path: Path, pytestconfig):
    (tmp_path / "verb.py").write_text(SCRIPT)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "verb.py")],
        env={"PYTHONPATH": str(pytestconfig.rootpath)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    parent.stdout.close()
