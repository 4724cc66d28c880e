"""What one check is: a name, a cost, the commands that it concerns, and one function."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

TRAIN, DOCTOR, GENERATE, SCORE, EVALUATE, SFT = "train", "doctor", "generate", "score", "evaluate", "sft"
VERBS = (TRAIN, DOCTOR, GENERATE, SCORE, EVALUATE, SFT)


class Cost(Enum):
    """What a check takes."""

    INSTANT = "instant"
    """Reads settings, and files of rows."""
    READS_MODELS = "reads models"
    """Reads tokenizers and configurations, or asks a server that runs: seconds."""
    NEEDS_ENGINES = "needs engines"
    """Student and teacher run for it: minutes."""


@dataclass(frozen=True)
class Check:
    """One entry of `verl_ext.checks.registry`."""

    name: str
    cost: Cost
    verbs: tuple[str, ...]
    """The commands that it concerns, some of VERBS."""
    look: Callable[..., Any]
    """Returns what was seen, a line, or a Finding; raises ValueError with `what is wrong; the fix`.

    It is given the command's Context (`verl_ext.checks.context`), and a teacher's name where `each_teacher`; one that
    needs engines is given `verl_ext.checks.engines.Asked`, as a coroutine function while the teacher runs, as a plain
    function after it has stopped."""
    needs: tuple[str, ...] = ()
    """Names of earlier checks without which this one has nothing to look at."""
    each_teacher: bool = False
    """Looked at once a teacher."""
