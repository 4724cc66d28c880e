"""Run a command that ends with the process that started it: `guard.py PARENT_PID DESCRIPTORS COMMAND...`.

The guard leads its own process group and the command stays in it. It looks at its parent twice a second; once the
parent is gone (kill -9 included) it kills the group and removes its shared memory and its folder of temporary files.
PR_SET_PDEATHSIG alone is not enough: it fires when the *thread* that started the child ends, and SGLang's own children
set it only after ~10 s of imports, so a parent killed early would leave them behind.
DESCRIPTORS, numbers with commas or nothing, are handed on to the command.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))  # -I leaves it out, and a checkout on PYTHONPATH is not installed

from verl_ext.run.sweep import free, group_members, segments

PR_SET_PDEATHSIG = 1
POLL_S = 0.5
END_S = 20.0  # for killed processes to be gone
TEMPORARY = "teacher-"
"""What the name of that folder begins with."""


def _die_with_guard() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def remove_temporary() -> None:
    """The server's own folder of temporary files, which its parent would have removed."""
    folder = os.environ.get("TMPDIR", "")
    if os.path.basename(folder).startswith(TEMPORARY):
        shutil.rmtree(folder, ignore_errors=True)


def kill_others() -> None:
    """All of the group but this process, and the shared memory that they had mapped."""
    mapped, deadline = segments(group_members(os.getpgrp())), time.monotonic() + END_S
    while (left := set(group_members(os.getpgrp())) - {os.getpid()}) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    free(mapped)


def main(parent_pid: int, descriptors: list[int], command: list[str]) -> int:
    # The guard has one thread, so here the signal does mean "the guard is gone".
    child = subprocess.Popen(command, preexec_fn=_die_with_guard, pass_fds=descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    while (status := child.poll()) is None:
        if os.getppid() != parent_pid:
            remove_temporary()
            kill_others()
            return 1
        time.sleep(POLL_S)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), [int(each) for each in sys.argv[2].split(",") if each], sys.argv[3:]))
