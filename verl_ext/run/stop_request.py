"""The driver asks the trainer to end: a file in the run's folder, which both see on whatever nodes they are."""

import json
import time
from pathlib import Path

from verl_ext.run.files import write_json

LOOK_S = 1.0


def request_stop(run_dir: Path, reason: str) -> None:
    write_json(_file(run_dir), {"reason": reason})


def forget_stop(run_dir: Path) -> None:
    """At the start of a run: an earlier one's was for that one."""
    _file(run_dir).unlink(missing_ok=True)


class StopRequests:
    """Looks for the file, at most once in LOOK_S."""

    def __init__(self, run_dir: str | Path) -> None:
        self._path, self._next = _file(Path(run_dir)), 0.0

    def reason(self) -> str:
        """Why the run is to end; "" where it is not."""
        if time.monotonic() < self._next:
            return ""
        self._next = time.monotonic() + LOOK_S
        return json.loads(self._path.read_text())["reason"] if self._path.exists() else ""


def _file(run_dir: Path) -> Path:
    return run_dir / "stop.json"
