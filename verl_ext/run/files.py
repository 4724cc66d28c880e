"""Files that are whole or not there."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def save_resolved_config(resolved_yaml: str, run_dir: str) -> Path:
    """Write the resolved configuration into the run directory; return the file."""
    file = Path(run_dir) / "config.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(resolved_yaml)
    return file


def write_json(path: Path, value: Any) -> None:
    """Write `value` so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(path.suffix + ".part")
    part.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
    part.replace(path)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside `path` and rename, so that no reader ever sees half a file."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(content)
    part.replace(path)
