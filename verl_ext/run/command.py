"""The command `verl-opd`: its verbs, how they are written, the versions it stands on. Imports nothing heavy."""

import contextlib
import os
import re
import select
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

COMMAND = "verl-opd"
VERBS = {
    "train": "on_policy_distillation",
    "sft": "sft",
    "data": "create_data",
    "generate": "generate",
    "score": "score",
    "evaluate": "evaluate",
    "doctor": "doctor",
    "plan": "plan",
    "compare": "compare",
    "report": "report",
    "serve-teacher": "serve_teacher",
    "demo": "demo",
    "tiny-pair": "tiny_pair",
}
"""Word after `verl-opd` -> file of `recipe/`."""
PACKAGES = ("verl", "vllm", "torch")


def as_typed(text: str) -> str:
    """A text with its commands in the form in which this process was started: `verl-opd VERB`, or as they stand."""
    if not sys.argv[0].startswith(f"{COMMAND} "):
        return text
    words = {module: verb for verb, module in VERBS.items()}
    return re.sub(r"(?:python -m )?recipe\.(\w+)", lambda match: f"{COMMAND} {words[match[1]]}", text)


@contextlib.contextmanager
def pipe_may_close() -> Iterator[None]:
    """Whoever reads our output may stop, as `| head` does: then there is nothing more to do, and nothing to say."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _stdout_is_closed():
            raise  # a socket of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        sys.exit(1)


def _stdout_is_closed() -> bool:
    """Nobody reads what is written to it."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def versions() -> str:
    """One line a package, our own first; read from what is installed, without importing it."""
    return "\n".join(f"{name} {_version(name)}" for name in (COMMAND, *PACKAGES))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "is not installed"
