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


def save_resolved_config(resolved_yaml: str, run_dir: str) -> Path:
    """Write the resolved configuration into the run directory; return the file."""
    file = Path(run_dir) / "config.yaml"
    write_atomically(file, resolved_yaml)
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
