"""`ledger.jsonl`: what a run spent, one line a phase and step, appended by whoever spends it (docs/ledger.md)."""

import fcntl
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from verl_ext.ledger.entries import Entry, Flops, Tokens, entry_of

FILE = "ledger.jsonl"


@dataclass(frozen=True)
class Ledger:
    """A ledger as it was read."""

    entries: Sequence[Entry]
    """What led to the state that the run is in, in the order of writing."""
    abandoned: Sequence[Entry] = ()
    """Steps that were done again after a resume from before them: spent, and in no student."""
    cut_lines: int = 0
    """Lines that a killed process left half: something was spent that nobody knows."""


@dataclass(frozen=True)
class Totals:
    """Sums over entries."""

    seconds: float
    device_seconds: float
    samples: int
    tokens: Tokens
    flops: Flops | None
    """None where one of the entries does not know."""
    peak_bytes: int | None
    """The largest; None where nobody measured."""
    energy_joules: float | None
    """None where one of the entries does not know."""


def append(path: Path, entry: Entry) -> None:
    """Add an entry, through to the disk. Half a line at the end, as a killed process leaves it, is ended before it.

    Several processes may append to one file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # let go with the file
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(entry.as_line().encode())
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> Ledger:
    """The ledger in a file.

    Raises:
        ValueError: naming file and line, if a whole line is no entry.
        FileNotFoundError: without the file.
    """
    entries: list[Entry] = []
    cut = 0
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line:
            continue
        try:
            found = json.loads(line)
        except ValueError:  # of UnicodeDecodeError and JSONDecodeError: cut off, also in the middle of a character
            cut += 1
            continue
        try:
            entries.append(entry_of(found))
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{path}:{number} is no entry of a ledger: {error}") from error
    kept, abandoned = _told_apart(entries)
    return Ledger(tuple(kept), tuple(abandoned), cut)


def _told_apart(entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """What stands, and what a later entry of the same phase with the same or an earlier step did away with."""
    kept: list[Entry] = []
    abandoned: list[Entry] = []
    first: dict[str, int] = {}  # by phase, the earliest step of all entries behind
    for entry in reversed(entries):
        if entry.step is None:
            kept.append(entry)
            continue
        again = entry.step >= first.get(entry.phase, entry.step + 1)
        (abandoned if again else kept).append(entry)
        first[entry.phase] = min(entry.step, first.get(entry.phase, entry.step))
    return kept[::-1], abandoned[::-1]


def totals(entries: Iterable[Entry]) -> Totals:
    """Sums; of peaks the largest."""
    entries = list(entries)
    flops = [entry.flops for entry in entries if entry.flops is not None]
    energy = [entry.energy_joules for entry in entries if entry.energy_joules is not None]
    peaks = [entry.peak_bytes for entry in entries if entry.peak_bytes is not None]
    return Totals(
        seconds=sum(entry.seconds for entry in entries),
        device_seconds=sum(entry.device_seconds for entry in entries),
        samples=sum(entry.samples for entry in entries),
        tokens=sum((entry.tokens for entry in entries), Tokens()),
        flops=sum(flops, Flops()) if len(flops) == len(entries) else None,
        peak_bytes=max(peaks, default=None),
        energy_joules=sum(energy) if entries and len(energy) == len(entries) else None,
    )
