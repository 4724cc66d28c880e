"""The driver asks the trainer to end: a file in the run's folder, which both see on whatever nodes they are."""

import json
from pathlib import Path

from verl_ext.run.files import write_json


def request_stop(run_dir: Path, failure: str = "") -> None:
    """Ask for the last finished step to be saved, and the end. `failure`: why the run cannot go on; "" for a signal."""
    write_json(_file(run_dir), {"failure": failure})


def requested_stop(run_dir: str | Path) -> str | None:
    """The failure that a stop was requested for, "" for a signal's; None where no stop was requested."""
    try:
        return json.loads(_file(Path(run_dir)).read_text())["failure"]
    except FileNotFoundError:
        return None


def forget_stop(run_dir: Path) -> None:
    """At the start and the end of a run: a request is for one start of it."""
    _file(run_dir).unlink(missing_ok=True)


def _file(run_dir: Path) -> Path:
    return run_dir / "stop.json"
