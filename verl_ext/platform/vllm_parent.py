"""vLLM's engine ends with the process that started it.

vLLM's workers watch the engine, and nobody watches for the engine itself: after `kill -9`, or the memory killer's
work, it would keep its memory and a GPU's for good.
"""

import multiprocessing
import os
import signal
import threading
import time

GRACE_S = 10.0  # what vLLM has to end its workers and free its shared memory


def load() -> None:
    """Entry point `vllm.general_plugins`, run by vLLM in each of its processes; acts where multiprocessing began it."""
    if multiprocessing.parent_process() is not None:
        threading.Thread(target=_follow_parent, name="verl-ext-parent", daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # waits on a pipe that closes with it, however it ends
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)
