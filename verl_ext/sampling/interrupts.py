"""Ctrl-C while an engine runs in this process: it ends at once, with its processes, and only we say so.

A terminal sends Ctrl-C to every process of a command. vLLM's would each print where they were, and the one that waits
for them would wait on.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from typing import TypeVar

import psutil

LOOK_S = 0.05
GONE_S = 5.0  # a killed process gives its memory back first
KEPT = "multiprocessing.resource_tracker"
"""Frees the shared memory of those that were killed; ends by itself when all are gone."""

Engine = TypeVar("Engine")


def start_apart(start: Callable[[], Engine]) -> Engine:
    """`start()`, in a thread of its own, so that Ctrl-C reaches this one, and no process that is started meanwhile.

    Processes inherit the signals that the thread which starts them has blocked. multiprocessing unblocks them where it
    starts its resource tracker, so that comes first.

    Raises:
        KeyboardInterrupt: when what was started by then is gone.
    """
    resource_tracker.ensure_running()
    with ThreadPoolExecutor(
        1, initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, {signal.SIGINT})
    ) as pool:
        future = pool.submit(start)
        try:
            return future.result()
        except KeyboardInterrupt:
            ignore_signals()
            while not future.done():  # it may be about to start another
                kill(descendants())
                time.sleep(LOOK_S)
            kill(descendants())
            raise


def ignore_signals() -> None:
    """Somebody who presses Ctrl-C twice gets no traceback of the cleaning up."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def descendants() -> list[psutil.Process]:
    """Every process that this one started, and theirs."""
    return psutil.Process().children(recursive=True)


def kill(processes: list[psutil.Process]) -> None:
    """End those that are still there, and return when they are gone."""
    killed = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if KEPT not in " ".join(process.cmdline()):
                process.kill()
                killed.append(process)
    psutil.wait_procs(killed, GONE_S)
