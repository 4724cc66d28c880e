"""Where a secret shows: in files, in their names, on command lines, in the environments of processes."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import psutil

LARGEST = 256 << 20
"""Bytes of a file that is searched."""
OLD_S = 3600.0
"""Files that nothing wrote to since then are of other runs: shared memory may be full of them."""


def shown(secrets: Mapping[str, str], folders: Iterable[Path]) -> list[str]:
    """`SECRET in PLACE` for each place that shows one: files below folders, and every process' command line."""
    found = []
    for file in _files(folders):
        found += [f"{name} in {file}" for name, secret in secrets.items() if _holds(file, secret)]
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or [])
        found += [f"{name} in the command line of {process.pid}" for name, secret in secrets.items() if secret in words]
    return found


def in_environment(secrets: Mapping[str, str], processes: Iterable[psutil.Process]) -> list[str]:
    """`SECRET in the environment of PROCESS`."""
    found = []
    for process in processes:
        try:
            values = process.environ().values()
        except psutil.NoSuchProcess:
            continue
        found += [f"{name} in the environment of {process}" for name, secret in secrets.items() if secret in values]
    return found


def _files(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        for place, _, names in os.walk(folder):
            yield from (Path(place, name) for name in names)


def _holds(file: Path, secret: str) -> bool:
    if secret in str(file):
        return True
    try:
        if file.is_symlink() or not file.is_file() or file.stat().st_size > LARGEST:
            return False
        if time.time() - file.stat().st_mtime > OLD_S:
            return False
        return secret.encode() in file.read_bytes()
    except OSError:
        return False  # gone meanwhile, or no file that can be read
