"""Checkpoints that are whole or not there, and the newest of them that still is what was written.

A checkpoint is written below `checkpoints/.unfinished`, flushed to the disk, described by a manifest, and renamed to
`checkpoints/global_step_N`; verl's tracker file comes last. A kill at any moment leaves the earlier checkpoints as they
were. The manifest has the size and the SHA-256 of every file, and is held against them before anything is loaded.
"""

import functools
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_ext.run.command import versions
from verl_ext.run.file_hashes import hash_files
from verl_ext.run.files import flush, flush_one, write_atomically, write_json

STEP = "global_step_"
TRACKER = "latest_checkpointed_iteration.txt"
"""verl's, from which it loads: the step of the newest checkpoint."""
MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"
TORN = ".torn"
"""Behind the name of a checkpoint that is not what was written: kept for a look, never loaded."""
SCHEMA = 1


@dataclass(frozen=True)
class Saved:
    """A checkpoint's folder, as it is found."""

    folder: Path
    step: int
    number: int
    """Of the saves into its parent folder, from 1: what is newest, whatever the clock and the step say; 0 without a
    manifest."""


def stage(checkpoints: Path) -> Path:
    """An empty folder in which the next checkpoint is written, as `global_step_N`."""
    place = checkpoints / UNFINISHED
    if place.exists():
        shutil.rmtree(place)
    place.mkdir(parents=True)
    return place


def publish(checkpoints: Path, step: int) -> Path:
    """Make the staged checkpoint of a step the newest one, on the disk; its folder."""
    part, folder = checkpoints / UNFINISHED / f"{STEP}{step}", checkpoints / f"{STEP}{step}"
    files = _files_of(part)
    hashes = hash_files(files, None, "hashing the checkpoint")
    described = {
        str(file.relative_to(part)): {"bytes": file.stat().st_size, "sha256": digest}
        for file, digest in zip(files, hashes, strict=True)
    }
    number = 1 + max((saved.number for saved in saved_in(checkpoints)), default=0)
    about = {"schema": SCHEMA, "step": step, "number": number, "versions": versions().splitlines()}
    write_json(part / MANIFEST, {**about, "files": described})
    flush(part)
    if folder.exists():  # of an attempt that was left behind; a rename replaces no folder that holds something
        remove(folder)
    part.rename(folder)
    flush_one(checkpoints)
    write_atomically(checkpoints / TRACKER, str(step))
    return folder


def prune(checkpoints: Path, keep: int | None) -> None:
    """Remove all but the `keep` newest checkpoints; None keeps all. What has no manifest is left alone."""
    saved = [each for each in saved_in(checkpoints) if each.number]
    for each in saved[keep:] if keep else ():
        remove(each.folder)


def remove(folder: Path) -> None:
    """Delete a checkpoint so that no half of one has a checkpoint's name."""
    place = folder.parent / UNFINISHED / f"{folder.name}.removed"
    place.parent.mkdir(exist_ok=True)
    folder.rename(place)
    shutil.rmtree(place)


def saved_in(checkpoints: Path) -> list[Saved]:
    """What has a checkpoint's name there, newest first; whether it is whole is another question (`flaw_of`).

    One whose manifest cannot be read counts as newer where its step is.
    """
    named = [(folder, step_of(folder)) for folder in checkpoints.glob(f"{STEP}*") if folder.is_dir()]
    found = [Saved(folder, step, _number_of(folder)) for folder, step in named if step is not None]
    newest = max(found, key=lambda saved: saved.number, default=None)
    last = newest.step if newest is not None and newest.number else 0

    def age(saved: Saved) -> tuple[float, int]:
        return saved.number or (math.inf if saved.step > last else 0), saved.step

    return sorted(found, key=age, reverse=True)


def step_of(folder: Path) -> int | None:
    """The step in a checkpoint's name; None where it is no such name."""
    digits = folder.name.removeprefix(STEP)
    return int(digits) if folder.name.startswith(STEP) and digits.isdecimal() else None


def flaw_of(folder: Path, *, content: bool) -> str | None:
    """What is wrong with a checkpoint's files, the first of them named; None where all are as they were written.

    `content`: read every byte (remembered, as long as the process lives); else sizes are compared.
    """
    try:
        files = _read_manifest(folder)["files"]
        wanted = {name: (int(about["bytes"]), str(about["sha256"])) for name, about in files.items()}
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    for name, (size, _) in wanted.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if (found := (folder / name).stat().st_size) != size:
            return f"{name} has {found:,} bytes, {size:,} by {MANIFEST}"
    if not content:
        return None
    times = ((folder / name).stat() for name in wanted)
    stamps = tuple((stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns) for stat in times)
    return _altered(folder, tuple((name, digest) for name, (_, digest) in wanted.items()), stamps)


@functools.cache
def _altered(folder: Path, wanted: tuple[tuple[str, str], ...], _stamps: tuple[tuple[int, ...], ...]) -> str | None:
    """As `flaw_of`; the stamps of the files are what it is remembered by."""
    hashes = hash_files([folder / name for name, _ in wanted], None, "reading the checkpoint, to know that it is whole")
    for (name, digest), found in zip(wanted, hashes, strict=True):
        if found != digest:
            return f"{name} is not what was written (its SHA-256 is not that of {MANIFEST})"
    return None


def latest_step(checkpoints: Path) -> int | None:
    """Step of the newest checkpoint whose files are all there; None where there is none."""
    return next((saved.step for saved in saved_in(checkpoints) if flaw_of(saved.folder, content=False) is None), None)


def set_torn_aside(torn: Path) -> None:
    """Give a checkpoint that is not whole a name under which nobody looks for one."""
    aside = torn.with_name(torn.name + TORN)
    if aside.exists():
        shutil.rmtree(aside)
    torn.rename(aside)


def tracked(checkpoints: Path) -> str | None:
    """What verl's tracker file says; None without one."""
    file = checkpoints / TRACKER
    return file.read_text(errors="replace").strip() if file.is_file() else None


def _files_of(folder: Path) -> list[Path]:
    """Every regular file below a folder, sorted; links are no part of a checkpoint."""
    return sorted(path for path in _walk(folder) if not path.is_symlink())


def _walk(folder: Path) -> Iterator[Path]:
    for place, _, names in os.walk(folder):
        yield from (Path(place, name) for name in names)


def _read_manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text(encoding="utf-8"))


def _number_of(folder: Path) -> int:
    """0 where the manifest is missing or cannot be read."""
    try:
        return int(_read_manifest(folder)["number"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
