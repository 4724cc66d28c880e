"""A signal that stops a run: the driver passes it on to the trainer, and waits so long for a checkpoint."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from verl_ext.run.console import RunConsole
from verl_ext.run.metrics import mark_stage
from verl_ext.run.stop import Noted, Signalled, name_of, noting
from verl_ext.run.stop_request import forget_stop, request_stop

STEPPING = "step "
"""A place of the run (`place.json`) begins so while there are steps to save."""


class Stopping:
    """What the driver does about a signal, look by look."""

    def __init__(self, noted: Noted, config: DictConfig, console: RunConsole) -> None:
        self._noted, self._console = noted, console
        self._run_dir, self._timeout_s = Path(config.run_dir), config.stop_timeout_s
        self._asked = False

    def look(self) -> None:
        """Raises Signalled where there is nothing to wait for, or no longer."""
        self._noted.patient = True
        if (number := self._noted.number) is None:
            return
        if not self._console.place.startswith(STEPPING):
            raise Signalled(number)
        if not self._asked:
            self._asked = True
            request_stop(self._run_dir)
            self._console.stage(
                f"{name_of(number)}: the last finished step is being saved, for at most {self._timeout_s:g} s "
                "(stop_timeout_s); once more ends the run at once"
            )
        if self._noted.seconds() > self._timeout_s:
            raise Signalled(number)

    def ended(self, saved: str | None) -> None:
        """The trainer has returned. Raises Signalled with what it `saved` where it did so before its last step."""
        if saved is not None:
            assert self._noted.number is not None
            mark_stage(self._run_dir, f"stopped by {name_of(self._noted.number)}")
            raise Signalled(self._noted.number, saved)


@contextlib.contextmanager
def stopping(config: DictConfig, console: RunConsole) -> Iterator[Stopping]:
    """For the length of a `with`, a first signal asks for a checkpoint instead of ending the run."""
    run_dir = Path(config.run_dir)
    forget_stop(run_dir)
    try:
        with noting() as noted:
            yield Stopping(noted, config, console)
    finally:
        forget_stop(run_dir)
