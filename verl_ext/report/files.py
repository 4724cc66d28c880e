"""A run's folder as a report reads it: whatever is there, and what was left out of it, counted."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from omegaconf import DictConfig, OmegaConf

from verl_ext.ledger.ledger import FILE, Ledger, read
from verl_ext.run.environment import ENVIRONMENT

Row = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """The objects of a `.jsonl` file."""

    rows: list[Row]
    cut: int
    """Bytes of a last line that was not finished, and is passed over."""


def _object(line: bytes) -> Row:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return json.loads(line)  # NaN and half a surrogate pair, which Python's json writes


def lines_of(path: Path) -> Iterator[bytes]:
    """The finished lines of a file, one at a time."""
    with path.open("rb") as file:
        yield from (line for line in file if line.endswith(b"\n"))


def read_lines(path: Path, keep: Callable[[Row], Row] = lambda row: row) -> Rows:
    """Every object of a file, as `keep` has it; empty where there is none.

    Raises:
        ValueError: naming file and line of what is no JSON object.
    """
    rows: list[Row] = []
    if not path.is_file():
        return Rows(rows, 0)
    read = 0
    for number, line in enumerate(lines_of(path), 1):
        read += len(line)
        try:
            row = _object(line)
        except ValueError as error:
            raise ValueError(f"{path}: line {number} is no JSON ({error}); delete the line") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}: line {number} is no JSON object; delete the line")
        rows.append(keep(row))
    return Rows(rows, path.stat().st_size - read)


def read_object(path: Path) -> Row | None:
    """A `.json` file; None where there is none. Raises ValueError naming the file that is no JSON object."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); write it again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no JSON object; write it again")
    return found


@dataclass(frozen=True)
class Metric:
    """One metric over the steps: `steps` ascending and `values` finite, (N,)."""

    steps: np.ndarray
    values: np.ndarray
    unfit: int = 0
    """Values that are no finite number, and left out."""


def metric_of(rows: Mapping[int, Mapping[str, Any]], key: str) -> Metric:
    """A metric of rows by step."""
    pairs = [(step, row[key]) for step, row in rows.items() if isinstance(row.get(key), int | float)]
    table = np.array(sorted(pairs), dtype=np.float64).reshape(-1, 2)
    fit = np.isfinite(table).all(axis=1)
    return Metric(table[fit, 0], table[fit, 1], int((~fit).sum()))


class RunFiles:
    """What is in a run's folder, each file read when it is first asked for.

    `keys`: the metrics to keep, for a comparison of many runs; None for all.
    """

    def __init__(self, folder: Path, keys: frozenset[str] | None = None) -> None:
        """Raises ValueError if it is no folder of a run."""
        self.folder, self._keys = folder, keys
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; give the folder of a run (run_dir)")
        if not any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl", "accuracy.jsonl")):
            raise ValueError(f"{folder}: no config.yaml and no metrics.jsonl in it; give the folder of a run (run_dir)")

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @cached_property
    def config(self) -> DictConfig | None:
        """The resolved settings."""
        file = self.folder / "config.yaml"
        if not file.is_file():
            return None
        config = OmegaConf.load(file)
        return config if isinstance(config, DictConfig) else None

    @property
    def on_policy(self) -> bool:
        """Else SFT, which has no `method`."""
        return self.config is not None and "method" in self.config

    @cached_property
    def _metrics(self) -> Rows:
        keys = self._keys
        if keys is None:
            return read_lines(self.folder / "metrics.jsonl")
        return read_lines(
            self.folder / "metrics.jsonl", lambda row: {key: row[key] for key in row if key in keys or key == "step"}
        )

    @cached_property
    def by_step(self) -> dict[int, Row]:
        """Rows of metrics by step, in order; of a step that was repeated the last one."""
        found = {int(row["step"]): row for row in self._metrics.rows}
        return {step: found[step] for step in sorted(found)}

    @property
    def repeated(self) -> int:
        """Rows of steps that were trained again after a resume, and are left out."""
        return len(self._metrics.rows) - len(self.by_step)

    def metric(self, key: str) -> Metric:
        return metric_of(self.by_step, key)

    @cached_property
    def timeline(self) -> Rows:
        return read_lines(self.folder / "timeline.jsonl")

    @cached_property
    def starting(self) -> Rows:
        """What became true when, before the first step."""
        return read_lines(self.folder / "stages.jsonl")

    @cached_property
    def ledger(self) -> Ledger | None:
        """What was spent; None where the run kept none."""
        file = self.folder / FILE
        return read(file) if file.is_file() else None

    @cached_property
    def samples(self) -> Rows:
        return read_lines(self.folder / "samples.jsonl")

    @cached_property
    def accuracy(self) -> Rows:
        return read_lines(self.folder / "accuracy.jsonl")

    @cached_property
    def evaluation(self) -> Row | None:
        return read_object(self.folder / "eval.json")

    @cached_property
    def origin(self) -> Row | None:
        return read_object(self.folder / "origin.json")

    @cached_property
    def environment(self) -> Row | None:
        return read_object(self.folder / ENVIRONMENT)

    def notes(self) -> list[str]:
        """What was passed over in what has been read, in words."""
        files = {"metrics.jsonl": self._metrics, "timeline.jsonl": self.timeline}
        files |= {"samples.jsonl": self.samples, "accuracy.jsonl": self.accuracy, "stages.jsonl": self.starting}
        notes = [
            f"{name}: an unfinished last line ({rows.cut:,} bytes) is left out"
            for name, rows in files.items()
            if rows.cut
        ]
        if self.ledger and self.ledger.cut_lines:
            notes.append(f"{FILE}: {self.ledger.cut_lines:,} unfinished lines are left out")
        if self.repeated:
            notes.append(f"metrics.jsonl: {self.repeated:,} rows of steps that were trained again are left out")
        return notes
