"""What an engine starts is out of Ctrl-C's reach; the real thing, vLLM, is in tests/integration/test_interrupts.py."""

import subprocess
import sys
from multiprocessing import resource_tracker

import pytest

from verl_ext.sampling.interrupts import descendants, kill, start_apart

BLOCKED = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('SigBlk')))"
SIGINT_BIT = 0b10


def blocked_signals() -> int:
    done = subprocess.run([sys.executable, "-c", BLOCKED], text=True, capture_output=True, check=True)
    return int(done.stdout, 16)


def start() -> int:
    resource_tracker.ensure_running()  # multiprocessing does, and unblocks SIGINT where it had to start it
    return blocked_signals()


def test_a_process_that_is_started_apart_does_not_hear_ctrl_c():
    assert start_apart(start) & SIGINT_BIT
    assert not blocked_signals() & SIGINT_BIT  # ours hears it


def test_an_error_of_the_start_is_the_callers():
    with pytest.raises(ZeroDivisionError):
        start_apart(lambda: 1 // 0)


def test_killed_means_gone_and_the_tracker_of_shared_memory_stays():
    resource_tracker.ensure_running()
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    kill(
        [
            process
            for process in descendants()
            if process.pid == child.pid or "resource_tracker" in str(process.cmdline())
        ]
    )
    assert child.poll() is not None
    assert resource_tracker._resource_tracker._check_alive()
