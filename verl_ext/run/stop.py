"""SIGTERM, SIGINT and SIGHUP: the first asks for a checkpoint, a second one ends the run at once.

The trainer's process is asked by `stop_request.py`. Exit status: 128 + the signal's number, as a shell has it.
"""

import contextlib
import os
import signal
import stat
import sys
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from verl_ext.run.visible import print

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SAME_S = 1.0
"""One key press reaches a process twice where a launcher passes it on; a person takes longer to press it again."""


class Signalled(KeyboardInterrupt):
    """A signal that ends the run."""

    def __init__(self, number: int, saved: str = "") -> None:
        """`saved`: what was saved, in words."""
        super().__init__(number, saved)
        self.number, self.saved = number, saved


def name_of(number: int) -> str:
    return signal.Signals(number).name


def catch(handler: "signal._HANDLER") -> None:
    """Give the stopping signals a handler; those that are ignored, as under nohup, stay so."""
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def end_at_once(number: int, _: FrameType | None) -> None:
    """A handler: what was started is ended as after Ctrl-C."""
    _let_go_of_terminal(number)
    raise Signalled(number)


class Noted:
    """The first signal, kept until somebody looks."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.at = 0.0
        self.patient = False
        """Somebody looks; until then the first signal ends the run."""

    def note(self, number: int, frame: FrameType | None) -> None:
        """A handler."""
        if self.number is None and self.patient:
            _let_go_of_terminal(number)
            self.number, self.at = number, time.monotonic()
        elif self.number is None or self.seconds() > SAME_S:
            end_at_once(number, frame)

    def seconds(self) -> float:
        """Since the signal."""
        return time.monotonic() - self.at


@contextlib.contextmanager
def noting() -> Iterator[Noted]:
    """For the length of a `with` the first signal is kept, and a second one ends the run."""
    noted = Noted()
    catch(noted.note)
    try:
        yield noted
    finally:
        catch(end_at_once)


@contextlib.contextmanager
def blocked(*numbers: int) -> Iterator[None]:
    """Signals wait until the `with` ends; for a process that is started within, until it ends itself.

    A process inherits the signals that the thread which starts it has blocked.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def exit_by(error: KeyboardInterrupt, line: str) -> NoReturn:
    """Say a line, where there is one, and exit with the status of a process that the signal ended."""
    if line:
        print(line, file=sys.stderr, flush=True)
    sys.exit(128 + (error.number if isinstance(error, Signalled) else signal.SIGINT))


def exit_resumable(error: KeyboardInterrupt, how_to_go_on: str, says: bool = True) -> NoReturn:
    """The same of a run: what stopped it, and how to go on. Of several processes one `says` it."""
    number, saved = (error.number, error.saved) if isinstance(error, Signalled) else (signal.SIGINT, "")
    exit_by(error, f"stopped by {name_of(number)}: {saved or how_to_go_on}" if says else "")


def _let_go_of_terminal(number: int) -> None:
    """A terminal that hung up refuses every line; what is said from now on goes nowhere, where it went there."""
    if number == signal.SIGHUP:
        for descriptor in (1, 2):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
