"""The student's own base as the teacher (`teacher.mode=base`): where it can teach."""

from collections.abc import Mapping

from omegaconf import DictConfig, OmegaConf

from verl_ext.checks.context import Context
from verl_ext.teacher.config import BASE, TeacherConfig
from verl_ext.teacher.refresh import refresh_of
from verl_ext.trainer.config import check_method

MOST_LIKELY = 20
"""vLLM's `max_logprobs` where nobody sets it: tokens of a position whose log-probs it gives."""
MAX_LOGPROBS = "actor_rollout_ref.rollout.engine_kwargs.vllm.max_logprobs"


def check_base_teacher(config: DictConfig, teachers: Mapping[str, TeacherConfig], top_k: int) -> str:
    """That the student's base can teach where it is to.

    Raises:
        ValueError: naming the key and the fix.
    """
    ours = [teacher for teacher in teachers.values() if teacher.mode == BASE]
    if not ours:
        return "not the base"
    model = config.actor_rollout_ref.model
    if not model.lora_rank or OmegaConf.select(model, "lora.merge"):
        raise ValueError(
            "teacher.mode=base: the sampler keeps the base beside the student only where an adapter is trained; set "
            "update=lora (without lora.merge), or teacher.mode=managed"
        )
    if "lm_head" in model.target_modules:
        raise ValueError(
            f"actor_rollout_ref.model.target_modules={model.target_modules}: with teacher.mode=base the "
            "sampler scores without an adapter on lm_head; leave it out, or set teacher.mode=managed"
        )
    for teacher in ours:
        if teacher.model_path != config.student.path:
            raise ValueError(
                f"teacher.model_path={teacher.model_path}: teacher.mode=base is the student's own base "
                f"({config.student.path}); leave it out, or set teacher.mode=managed"
            )
    refresh_of(ours)
    if config.replay.share and any(teacher.refresh_every for teacher in ours):
        raise ValueError(
            f"replay.share={config.replay.share} with teacher.refresh_every: a stored score is that of a teacher "
            "that has moved on; leave one out"
        )
    most = OmegaConf.select(config, MAX_LOGPROBS) or MOST_LIKELY
    if most >= 0 and not 0 <= top_k <= most:
        raise ValueError(
            f"method.top_k={top_k}: with teacher.mode=base vLLM gives at most {most} a position; set "
            f"+{MAX_LOGPROBS}={top_k}, or a smaller method.top_k"
        )
    return "the student's base, in vLLM"


def base_teacher(context: Context) -> str:
    """The student's base can teach where it is to, which is in training alone."""
    config = context.config
    if config is not None and "actor_rollout_ref" in config:
        return check_base_teacher(config, context.teachers, check_method(config).top_k)
    if any(teacher.mode == BASE for teacher in context.teachers.values()):
        raise ValueError("teacher.mode=base scores in a training run alone; set teacher.mode=managed or external")
    return "not the base"
