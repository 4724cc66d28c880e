"""A first signal is kept, a second ends the run, and what is ignored, as under nohup, stays ignored."""

import os
import pty
import signal
import subprocess
import sys

import pytest

from verl_ext.run import stop

PROGRAM = """
import signal, sys, time
from verl_ext.run import stop
stop.SAME_S = float(sys.argv[1])
stop.catch(stop.end_at_once)
try:
    with stop.noting() as noted:
        noted.patient = sys.argv[2] == "patient"
        print("ready", flush=True)
        while noted.number is None:
            time.sleep(0.01)
        print("noted", noted.number, flush=True)
        time.sleep(60)
except KeyboardInterrupt as error:
    stop.exit_resumable(error, "the same command starts over")
"""


def started(pytestconfig, *words: str, **more) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words],
        cwd=pytestconfig.rootpath,
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | more,
    )
    if process.stdout is not None:
        assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", stop.STOPPING)
def test_the_first_signal_is_kept_and_the_second_ends_the_run(pytestconfig, number):
    with started(pytestconfig, "0", "patient") as process:
        assert process.stdout is not None
        process.send_signal(number)
        assert process.stdout.readline() == f"noted {int(number)}\n"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (128 + 15, "stopped by SIGTERM: the same command starts over\n")


def test_one_key_press_that_arrives_twice_is_one_signal(pytestconfig):
    """torchrun passes on what the terminal has sent to all of its processes."""
    with started(pytestconfig, "60", "patient") as process:
        assert process.stdout is not None
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "noted 2\n"
        process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.kill()


def test_a_signal_that_nobody_looks_for_ends_the_run_at_once(pytestconfig):
    with started(pytestconfig, "60", "in a hurry") as process:
        process.send_signal(signal.SIGHUP)
        _, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (128 + 1, "stopped by SIGHUP: the same command starts over\n")


def test_an_ignored_signal_stays_ignored(pytestconfig):
    with started(
        pytestconfig, "0", "patient", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    ) as process:
        assert process.stdout is not None
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "noted 15\n"
        process.kill()


def test_what_is_said_after_its_terminal_is_gone_ends_no_run(pytestconfig, tmp_path):
    """Each line to a terminal that hung up is an error, EIO."""
    script = tmp_path / "program.py"
    script.write_text(
        PROGRAM.replace("time.sleep(60)", "print('to nobody', flush=True); open(sys.argv[3], 'w').write('went on')")
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["PYTHONPATH"] = str(pytestconfig.rootpath)
        os.execv(sys.executable, [sys.executable, str(script), "0", "patient", str(tmp_path / "out")])
    assert b"ready" in os.read(terminal, 100)
    os.close(terminal)  # the kernel sends SIGHUP
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert (tmp_path / "out").read_text() == "went on"


@pytest.fixture
def ending():
    """Handlers as a verb has them, for the length of a test."""
    before = {number: signal.getsignal(number) for number in stop.STOPPING}
    stop.catch(stop.end_at_once)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


BLOCKED = """
import os, signal, subprocess, sys
from verl_ext.run import stop
signal.signal(signal.SIGHUP, stop.end_at_once)
try:
    with stop.blocked(signal.SIGHUP):
        os.kill(os.getpid(), signal.SIGHUP)
        print(subprocess.run(["cat", "/proc/self/status"], check=True, capture_output=True, text=True).stdout)
    print("not reached")
except stop.Signalled:
    print("then it came")
"""


def test_a_blocked_signal_waits_and_is_blocked_in_what_is_started():
    """In a process of one thread: another would take the signal."""
    done = subprocess.run([sys.executable, "-c", BLOCKED], check=True, capture_output=True, text=True)
    (mask,) = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("SigBlk")]
    assert int(mask, 16) & 1 << (signal.SIGHUP - 1)
    assert done.stdout.splitlines()[-1] == "then it came"
