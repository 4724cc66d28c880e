"""Which earlier student a run keeps as its teacher (`verl_ext/trainer/earlier.py`); imports nothing heavy."""

from collections.abc import Iterable
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf

from verl_ext.teacher.config import TeacherConfig

MAX_ADAPTERS = "actor_rollout_ref.rollout.engine_kwargs.vllm.max_loras"


class Refresh(NamedTuple):
    """How an earlier student is kept."""

    every: int
    """Steps."""
    ema: float
    """Share of the teacher that stays."""


def refresh_of(teachers: Iterable[TeacherConfig]) -> Refresh | None:
    """How the run's earlier student is kept; None where no teacher is one.

    Raises:
        ValueError: where teachers want different ones, for there is room for one.
    """
    wanted = {Refresh(teacher.refresh_every, teacher.ema) for teacher in teachers if teacher.is_earlier}
    if len(wanted) > 1:
        said = " and ".join(f"refresh_every={every}, ema={ema:g}" for every, ema in sorted(wanted))
        raise ValueError(
            f"teachers: {said}: one earlier student is kept; give all the same teacher.refresh_every and ema"
        )
    return next(iter(wanted), None)


def make_room(config: DictConfig, teachers: Iterable[TeacherConfig]) -> None:
    """Let vLLM hold the teacher's adapter beside the student's."""
    if refresh_of(teachers):
        OmegaConf.update(config, MAX_ADAPTERS, 2, force_add=True)
