"""The student's most likely tokens as a loss's support (`method.support=student`): who gives them, who scores them."""

from omegaconf import OmegaConf

from verl_ext.checks.base_teacher import MAX_LOGPROBS, MOST_LIKELY
from verl_ext.checks.context import Context
from verl_ext.teacher.config import BASE
from verl_ext.teacher.engines.known import engine_of
from verl_ext.trainer.config import check_method
from verl_ext.trainer.support_config import STUDENT


def support(context: Context) -> str:
    """vLLM gives the student's most likely tokens with its samples, and every teacher scores named tokens."""
    config, method = context.config, check_method(context.config)
    if method.support != STUDENT:
        return "the teacher's" if method.top_k else "none"
    most = OmegaConf.select(config, MAX_LOGPROBS) or MOST_LIKELY
    if 0 <= most < method.top_k:
        raise ValueError(
            f"method.top_k={method.top_k}: with method.support=student vLLM gives at most {most} a position; set "
            f"+{MAX_LOGPROBS}={method.top_k}, or a smaller method.top_k"
        )
    for teacher in context.teachers.values():
        if teacher.mode == BASE:
            raise ValueError(
                "teacher.mode=base: vLLM scores no tokens that it is given, which method.support=student needs; set "
                "teacher.mode=managed, or method.support=teacher"
            )
        if not (engine := engine_of(teacher.engine)).scores_named_tokens:
            raise ValueError(
                f"teacher.engine={teacher.engine}: {engine.title} scores no tokens that it is given, which "
                "method.support=student needs; set teacher.engine=sglang, or method.support=teacher"
            )
    return f"the student's {method.top_k} most likely tokens"
