"""Which teacher made a score: a short id that changes with whatever may change the score.

Made here of a model's files; `identity.py` has external servers, `probe_record.py` the check by log-probs.
"""

import dataclasses
import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_ext.run.file_hashes import hash_of_model
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.engines.known import engine_of

ID_LENGTH = 16  # hex digits: 64 bits, for a handful of teachers
VERSION_TIMEOUT_S = 60.0
TRAINERS = ("PYTHONPATH", "PYTHONHOME")
VERSION = """
import importlib.metadata as m, sys
for name in sys.argv[1:]:
    try:
        sys.exit(print(m.version(name)))
    except m.PackageNotFoundError:
        pass
sys.exit(1)
"""
# What a managed server has: the dtype of the model. FP8 there makes log-probs drift by up to 0.5 nats.
KV_CACHE_DTYPE = "auto"


@dataclass(frozen=True)
class TeacherFingerprint:
    """What a teacher's log-probs depend on, but for rounding."""

    model: str
    """SHA-256 (hex) of names, sizes and contents of the model's files; of an external server, of its first probe."""
    quantization: str | None
    """As asked for: None or `fp8`; a checkpoint's own quantisation is in its files."""
    dtype: str
    """Weights and activations: `auto`, `float32`, `bfloat16`, `float16`."""
    kv_cache_dtype: str
    """As the engine has it, e.g. `auto`; `unsaid` by an external vLLM."""
    engine: str
    """`sglang` or `vllm`."""
    engine_version: str
    """The server's, e.g. `0.5.21`."""
    served_as: str = ""
    """What an external server reports to serve: path and weight version. Empty where `model` is of files."""
    extra_args: tuple[str, ...] = ()
    """`teacher.extra_args` of a managed server: they may change anything."""

    @property
    def id(self) -> str:
        """16 hex digits of the SHA-256 of all fields."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:ID_LENGTH]

    def to_dict(self) -> dict[str, Any]:
        """Field by name, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "TeacherFingerprint":
        """The inverse of `to_dict`.

        Raises:
            KeyError, TypeError: if `fields` are not those of a fingerprint.
        """
        return cls(**{**fields, "extra_args": tuple(fields["extra_args"])})


def fingerprint_of_files(config: TeacherConfig, folder: Path, cache: Path | None = None) -> TeacherFingerprint:
    """The fingerprint of the managed teacher of `config`, whose model lies in `folder`.

    `cache` remembers file hashes; None takes the user's. Reads the model once, then only asks for times and sizes.

    Raises:
        ValueError: naming the key, if `folder` holds no model or the teacher's python lacks its engine.
    """
    return TeacherFingerprint(
        model=hash_of_model(folder, cache),
        quantization=config.quantization,
        dtype=config.dtype,
        kv_cache_dtype=KV_CACHE_DTYPE,
        engine=config.engine,
        engine_version=version_of_engine(config.python, config.engine),
        extra_args=tuple(config.extra_args),
    )


def version_of_engine(python: str, name: str) -> str:
    """The version of the engine `name` that the interpreter `python` would run.

    Raises:
        ValueError: if it has none or does not answer within a minute.
    """
    engine = engine_of(name)
    command = [str(Path(python).expanduser()), "-c", VERSION, *engine.packages]
    # As the server runs: without the trainer's path. A script may stand for `python` and set one of its own (no -I).
    environment = {name: value for name, value in os.environ.items() if name not in TRAINERS} | {"PYTHONSAFEPATH": "1"}
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=True, env=environment
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise ValueError(
            f"teacher.python: {python} cannot tell its {engine.title}'s version ({type(error).__name__}); "
            f"create the teacher environment, or give the python of one that has {engine.title}"
        ) from error
    return answer.stdout.strip()
