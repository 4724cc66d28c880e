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
        flush(part)
        if part.is_dir() and not part.is_symlink():
            _remove(path)  # a rename replaces no folder that holds something
        part.replace(path)
    except BaseException:
        _remove(part)
        raise
    flush_one(path.parent)


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


def read_json(file: Path, fix: str, line: str | None = None) -> Any:
    """The JSON of a file that we wrote, which a disk, an editor or somebody else may have changed since.

    Args:
        file: in UTF-8.
        fix: what a user can do about a bad one.
        line: one of its lines, to read that alone.

    Raises:
        ValueError: naming the file and the fix, where it is none.
        OSError: where it cannot be read.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8") if line is None else line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: no JSON ({reason_of(error)}); {fix}") from None


def read_lines(file: Path, fix: str) -> list[dict[str, Any]]:
    """The objects of a file with one a line; half a line at its end, as a killed run leaves it, is passed over.

    Raises as `read_json` does.
    """
    content = file.read_bytes()
    try:
        lines = content[: content.rfind(b"\n") + 1].decode().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: no UTF-8 ({reason_of(error)}); {fix}") from None
    found = [read_json(file, fix, line) for line in lines]
    if wrong := next((number for number, each in enumerate(found, 1) if not isinstance(each, dict)), 0):
        raise ValueError(f"{file}:{wrong}: no object; {fix}")
    return found


def reason_of(error: Exception) -> str:
    """Why something is no JSON or no text, in a few words."""
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno}: {error.msg}"
    if isinstance(error, RecursionError):
        return "nested too deep"
    return " ".join(str(error).split())[:120]


def sha256(path: Path) -> str:
    """Of a file's content, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Write a file, or every file of a folder, through to the disk, whoever wrote it."""
    if path.is_symlink():
        return
    for each in path.rglob("*") if path.is_dir() else ():
        if not each.is_symlink():
            flush_one(each)
    flush_one(path)


def flush_one(path: Path) -> None:
    """Write a file, or the names in a folder, through to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
