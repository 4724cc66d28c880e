"""Serve a teacher in the foreground until Ctrl-C.

    # on a CPU: the tiny pair
    python -m recipe.serve_teacher teacher=cpu_fp32 teacher.model_path=outputs/demo/models/base
    # on a GPU
    python -m recipe.serve_teacher teacher=fp8 teacher.model_path=Qwen/Qwen3-30B-A3B-Instruct-2507

The settings are those of the teacher in training. Prints the URL to train with
(teacher.mode=external).
"""

import signal
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig

from verl_ext.checks.values import check_teacher_device
from verl_ext.run.files import check_writable
from verl_ext.run.hydra import register_verb
from verl_ext.run.models import check_model
from verl_ext.run.settings import settings_of
from verl_ext.run.verb import Verb, run_verb
from verl_ext.run.visible import print
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.keys import SERVING

from . import CONFIGS


@dataclass(frozen=True)
class ServeConfig:
    """Settings of `python -m recipe.serve_teacher`."""

    # The class, not an object: it has no default for model_path, and would be checked at once.
    teacher: TeacherConfig = field(default_factory=lambda: TeacherConfig)  # pyright: ignore[reportAssignmentType]
    """The teacher (verl_ext/teacher/config.py)."""
    log_path: str = "teacher.log"
    """File for the server's output."""


register_verb("serve_teacher", ServeConfig, groups=("teacher",))
VERB = Verb(
    "serve_teacher",
    doc=str(__doc__),
    settings={"": ServeConfig},
    groups=(CONFIGS / "teacher",),
    keys=dict.fromkeys([*(f"teacher.{name}" for name in SERVING), "log_path"], ""),
    more="More: docs/teacher.md; every key of the teacher in verl_ext/teacher/config.py.",
    errors=(ValueError, RuntimeError, TimeoutError),
)


def serve_teacher(config: DictConfig) -> None:
    from verl_ext.teacher.server.serve import serve

    settings = settings_of(config, ServeConfig)
    check_writable("log_path", settings.log_path)
    check_teacher_device(settings.teacher)
    if settings.teacher.model_path:
        check_model("teacher.model_path", settings.teacher.model_path)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` stops the server as Ctrl-C does
    try:
        serve(settings.teacher, Path(settings.log_path))
    except KeyboardInterrupt:
        print("teacher stopped")


def main() -> None:
    run_verb(VERB, serve_teacher)


if __name__ == "__main__":
    main()
