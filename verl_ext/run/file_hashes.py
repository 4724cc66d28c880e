"""SHA-256 of large files, remembered: a model of 60 GB is read once, not at every launch."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

CHUNK_BYTES = 8 << 20
THREADS = 4  # hashlib lets go of the interpreter; more would only make the disk seek
BAR_FROM_BYTES = 1 << 30


def default_cache() -> Path:
    """Where hashes are remembered unless told: one file a user."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "verl-opd" / "file-hashes.json"


def hash_files(paths: Sequence[Path], cache: Path) -> list[str]:
    """SHA-256 (hex) of each file, with a progress bar from 1 GiB on.

    `cache` remembers it by resolved path, size, mtime and ctime in ns (a copy may keep its source's mtime, never its
    ctime), so deleting the file is always safe.
    """
    known = _read_cache(cache)
    stamps = [_stamp(path) for path in paths]
    fresh = [path for path, stamp in zip(paths, stamps, strict=True) if stamp not in known]
    total = sum(path.stat().st_size for path in fresh)
    with Progress(
        TextColumn("hashing the teacher's files, once"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        disable=total < BAR_FROM_BYTES,
    ) as progress:
        task = progress.add_task("hash", total=total)
        with ThreadPoolExecutor(THREADS) as pool:
            hashes = pool.map(lambda path: _hash(path, lambda count: progress.advance(task, count)), fresh)
            found = dict(zip(fresh, hashes, strict=True))
    for path, stamp in zip(paths, stamps, strict=True):
        if path in found and _stamp(path) != stamp:
            raise ValueError(f"{path} changed while it was read: wait until it is complete and try again")
        if path in found:
            known[stamp] = found[path]
    if found:
        _write_cache(cache, known)
    return [known[stamp] for stamp in stamps]


def _hash(path: Path, advance: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def _stamp(path: Path) -> str:
    real = path.resolve()
    stat = real.stat()
    return f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}:{real}"


def _read_cache(cache: Path) -> dict[str, str]:
    """Hash by stamp; nothing where there is no readable cache, since it only saves time."""
    try:
        known = json.loads(cache.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write_cache(cache: Path, known: dict[str, str]) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    part = cache.with_suffix(f".{os.getpid()}")  # of two processes that write at once, the later one wins
    part.write_text(json.dumps(known, indent=0))
    part.replace(cache)
