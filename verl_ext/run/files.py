"""Files and folders that are whole or not there."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` at which to make a file, a folder or a link; it becomes `path` when the block ends.

    A reader finds the old one or the new one, also after a power cut; only a folder that replaces another is missing
    for a moment. Where the block fails, `path` stays as it was and nothing is left beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    _remove(part)  # of an earlier process with this id that was killed
    try:
        yield part
        _flush(part)
        if part.is_dir() and not part.is_symlink():
            _remove(path)  # a rename replaces no folder that holds something
        part.replace(path)
    except BaseException:
        _remove(part)
        raise
    _flush_one(path.parent)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that no reader ever sees half of it; text as UTF-8."""
    with replacing(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def check_writable(key: str, path: Any, *, folder: bool = False) -> Path:
    """The absolute path of a file, or of a folder, that can be written where it is; both may be missing yet.

    Raises:
        ValueError: naming `key` and the fix, where it cannot: no text, below a file, no permission, the other kind.
    """
    wanted = "a folder" if folder else "a file"
    if not isinstance(path, str) or not path:
        raise ValueError(f"{key}={path} is no path: give {key}=... ({wanted})")
    place = Path(path).expanduser().absolute()
    if place.exists() and place.is_dir() != folder:
        raise ValueError(f"{key}={path} is a {'file' if folder else 'folder'}: give {wanted}")
    there = next(each for each in (place, *place.parents) if each.exists())
    if not there.is_dir() and there != place:
        raise ValueError(f"{key}={path} is below {there}, which is a file: give another place")
    if not os.access(there, os.W_OK):
        raise ValueError(f"{key}={path}: {there} cannot be written: give another place, or change its permissions")
    return place


RESOLVED = "config.yaml"
"""Of a run directory: its configuration, written before the run starts."""


def save_resolved_config(resolved_yaml: str, run_dir: str, choices: str = "") -> Path:
    """Write the resolved configuration into the run directory, after the groups' `choices`; return the file."""
    file = Path(run_dir) / RESOLVED
    write_atomically(file, choices + resolved_yaml)
    return file


def sha256(path: Path) -> str:
    """Of a file's content, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Write a file, or every file of a folder, through to the disk."""
    if path.is_symlink():
        return
    for each in path.rglob("*") if path.is_dir() else ():
        if not each.is_symlink():
            _flush_one(each)
    _flush_one(path)


def _flush_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
