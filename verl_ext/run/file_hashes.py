"""SHA-256 of a model and of other large files, remembered: 60 GB are read once, not at every launch."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from verl_ext.run.files import write_atomically
from verl_ext.run.terminal import Terminal

CHUNK_BYTES = 8 << 20
# Beside the weights: shape and numerics, tokens, code that comes with the checkpoint.
OTHER_FILES = ("config.json", "tokenizer.json", "*.py")
CHAT_FILES = ("tokenizer_config.json", "chat_template*", "special_tokens_map.json", "added_tokens.json")
"""What else decides how a model answers a chat, and not what it says about given token ids."""
THREADS = 4  # hashlib releases the GIL; more threads would only make the disk seek
BAR_FROM_BYTES = 1 << 30


def default_cache() -> Path:
    """Where hashes are cached by default: one file per user."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "verl-opd" / "file-hashes.json"


def hash_of_model(folder: Path, cache: Path | None = None, *, also: Sequence[str] = ()) -> str:
    """SHA-256 (hex) of names, sizes and contents of what decides a model's log-probs, and of the files `also` names.

    `cache` remembers file hashes; None takes the user's. `also`: patterns, such as `CHAT_FILES`.

    Raises:
        ValueError: if `folder` holds no `config.json` or no weights.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not weights or not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json with *.safetensors beside it; give the folder of a whole model")
    paths = [*weights, *(path for pattern in (*OTHER_FILES, *also) for path in sorted(folder.glob(pattern)))]
    hashes = hash_files(paths, cache or default_cache())
    listing = [(path.name, path.stat().st_size, digest) for path, digest in zip(paths, hashes, strict=True)]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


def same_weights(left: str, right: str) -> bool:
    """Whether two models are one: the same name, or folders whose files are equal."""
    if left == right:
        return True
    folders = [Path(path).expanduser() for path in (left, right)]
    if not all(folder.is_dir() for folder in folders):
        return False
    # Sizes first: a hash reads every byte.
    sizes = [sorted((file.name, file.stat().st_size) for file in folder.glob("*.safetensors")) for folder in folders]
    return sizes[0] == sizes[1] and hash_of_model(folders[0]) == hash_of_model(folders[1])


def hash_files(paths: Sequence[Path], cache: Path | None, title: str = "hashing the model's files, once") -> list[str]:
    """SHA-256 (hex) of each file, with a progress bar under `title` from 1 GiB on.

    `cache` remembers it by resolved path, size, mtime and ctime in ns (a copy may keep its source's mtime, never its
    ctime), so deleting the file is always safe. None reads every byte.
    """
    known = {} if cache is None else _read_cache(cache)
    stamps = [_stamp(path) for path in paths]
    fresh = [path for path, stamp in zip(paths, stamps, strict=True) if stamp not in known]
    total = sum(path.stat().st_size for path in fresh)
    with Progress(
        TextColumn(title),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Terminal(),
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
    if found and cache is not None:  # of two processes that write at once, the later one wins
        write_atomically(cache, json.dumps(known, indent=0))
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
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}
