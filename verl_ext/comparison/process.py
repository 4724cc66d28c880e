"""A command of a comparison in a process of its own: its output in a file, its end with ours."""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

POLL_S = 0.5
STOP_S = 60.0
"""What an interrupted command has to end in order."""
PR_SET_PDEATHSIG = 1
PLACEHOLDER = "recipe."
"""Of a module that is a verb; in a wheel the verbs are in a package of another name."""


class CommandFailed(Exception):
    """A command that ended with an error; the message is one line."""


def as_command(words: Sequence[str]) -> str:
    """The command as one types it."""
    return f"python -m {shlex.join(words)}"


def run_command(
    words: Sequence[str], log: Path, package: str, timeout_s: float, look: Callable[[], None] = lambda: None
) -> float:
    """Run `python -m WORDS` to its end; returns its seconds.

    Args:
        words: module and arguments; a verb (`recipe.sft`) is taken from `package`.
        log: file that its output is appended to.
        package: where the verbs are.
        timeout_s: seconds after which it is ended.
        look: called twice a second meanwhile.

    Raises:
        CommandFailed: if it fails, or takes too long.
    """
    module = words[0]
    if module.startswith(PLACEHOLDER):
        module = f"{package}.{module.removeprefix(PLACEHOLDER)}"
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("ab") as output:
        begun = output.tell()
        # A session of its own: Ctrl-C reaches us alone, and we end it once.
        process = subprocess.Popen(
            [sys.executable, "-m", module, *words[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        try:
            while process.poll() is None:
                look()
                if time.monotonic() - started > timeout_s:
                    raise CommandFailed(f"it did not end within arm_timeout_s={timeout_s:.0f} seconds; output: {log}")
                time.sleep(POLL_S)
        finally:
            stop(process)
    look()
    if process.returncode:
        raise CommandFailed(f"{last_line(log, begun)} (status {process.returncode}; output: {log})")
    return time.monotonic() - started


def _end_with_parent() -> None:
    """Ask the kernel for a SIGTERM where the thread that starts us, the main one, is gone, kill -9 included."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a command as Ctrl-C does, and what is left of it after STOP_S by force."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def last_line(log: Path, begun: int) -> str:
    """What a failed command said: its last line that begins with `error:`, else its last line."""
    with log.open("rb") as file:
        file.seek(begun)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["no output"])[-1]
