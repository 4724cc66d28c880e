"""Whether those who answer a step's prompts are still there: vLLM's servers with their engines, and the agent loop.

Without one of them its prompts are never finished, and verl sends weights to a dead engine for ever. A call that ends
only with its process, or its engine, tells of both at once.
"""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

LOOK_S = 0.2
NOTICED_S = 5.0
"""Within which the end of a process is known here, once a call to it has failed."""


class Presence:
    """Of Ray actors with a method `gone`, which returns, in words, only when the actor cannot go on."""

    def __init__(self, named: Mapping[str, Any]) -> None:
        """`named`: their handles, by what a person calls them."""
        self._calls = {handle.gone.remote(): name for name, handle in named.items()}

    def lost(self, within_s: float = 0.0) -> str:
        """Who is gone, and why; "" where everyone is there after `within_s` seconds."""
        if not self._calls:
            return ""
        gone, _ = ray.wait(list(self._calls), num_returns=1, timeout=within_s)
        return f"{self._calls[gone[0]]} is gone: {_words(gone[0])}" if gone else ""

    def call(self, work: Callable[[], None]) -> str:
        """Do `work`, which may wait for one of them for ever; not for one that is gone.

        Returns:
            Who is gone, and `work` with it, in words; "" where it was done.
        """
        done: Future[None] = Future()
        threading.Thread(target=_run, args=(work, done), daemon=True).start()
        while not wait([done], timeout=LOOK_S).done:
            if lost := self.lost():
                wait([done], timeout=NOTICED_S)
                return lost
        try:
            done.result()
        except RayError:
            if lost := self.lost(NOTICED_S):
                return lost
            raise
        return ""


def _run(work: Callable[[], None], done: Future[None]) -> None:
    try:
        work()
    except BaseException as error:  # raised where it is waited for
        done.set_exception(error)
    else:
        done.set_result(None)


def _words(call: Any) -> str:
    try:
        return ray.get(call)
    except RayActorError:
        return "its process ended"
