"""`failed_rows.jsonl` of a run: which rows could not be answered or scored, and why, one object a sample."""

import contextlib
import json
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ray.exceptions import RayTaskError

FILE = "failed_rows.jsonl"
NAMED = 3
SHOWN = 10
"""Rows that are named on the console; the file has them all."""


def note_failure(run_dir: str, row: Mapping[str, Any], *, step: int, validate: bool, error: Exception) -> None:
    """Append one; short enough for one write, since every agent loop's worker appends.

    An error of another process, as a reward function's, is named by its cause.
    """
    cause = error.cause if isinstance(error, RayTaskError) else error
    noted = {
        "row": place_of(row),
        "index": int(row["index"]),
        "sample": int(row["session_id"]),
        "step": int(step),
        "held_out": bool(validate),
        "cause": f"{type(cause).__name__}: {cause}"[:1000],
        "time": time.time(),
    }
    with (Path(run_dir) / FILE).open("a") as file:
        file.write(json.dumps(noted) + "\n")


@contextlib.contextmanager
def failures_noted(run_dir: str, row: Mapping[str, Any], trajectory: Mapping[str, Any]) -> Iterator[None]:
    """An error in the block is this row's; it is raised on."""
    try:
        yield
    except Exception as error:  # a user's row, template or tool raises anything: noted, and raised on
        note_failure(run_dir, row, step=trajectory["step"], validate=trajectory["validate"], error=error)
        raise


def some_of(places: Collection[str]) -> str:
    """The rows that are under way, the first few by name."""
    named = ", ".join(sorted(set(places))[:NAMED]) + (", ..." if len(places) > NAMED else "")
    return f", of {len(places)} prompts: {named}" if places else ""


def place_of(row: Mapping[str, Any]) -> str:
    """File and row of a data row, as far as the reader of the rows noted it."""
    return str(row["extra_info"].get("place") or f"row {row['index']}")


class FailureWords:
    """What the console says of rows that failed: each once."""

    def __init__(self) -> None:
        self._named: set[str] = set()

    def of(self, failures: list[dict[str, Any]]) -> list[str]:
        lines = []
        for each in failures:
            if each["row"] in self._named or len(self._named) > SHOWN:
                continue
            self._named.add(each["row"])
            if len(self._named) > SHOWN:
                lines.append(f"more rows failed; {FILE} has them all")
            else:
                lines.append(f"{each['row']} failed and is not trained on: {each['cause'].splitlines()[0]} ({FILE})")
        return lines
