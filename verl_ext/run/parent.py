"""A process that multiprocessing began ends with the one that began it, however that ends.

vLLM's engine waits minutes for a parent that is gone, or for ever; after `kill -9`, or the memory killer's work, it
would keep its memory and a GPU's.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time

LOOK_S = 0.2
SPAWNED = "--multiprocessing-fork"
"""On the command line of what multiprocessing spawns."""
GRACE_S = 10.0  # what vLLM has to end its workers and free its shared memory
NAME = "verl-ext-parent"


def follow_parent() -> None:
    """Start to watch, in a process that multiprocessing began; in others, and a second time, nothing."""
    begun = multiprocessing.parent_process() is not None or SPAWNED in sys.orig_argv
    if begun and not any(thread.name == NAME for thread in threading.enumerate()):
        threading.Thread(target=_follow, args=(os.getppid(),), name=NAME, daemon=True).start()


def _follow(parent_id: int) -> None:
    # A process that is being spawned imports its parent's main module before it is told of its parent.
    while multiprocessing.parent_process() is None and os.getppid() == parent_id:
        time.sleep(LOOK_S)
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()  # waits on a pipe that closes with it, however it ends
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)
