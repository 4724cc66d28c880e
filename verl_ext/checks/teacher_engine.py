"""What a teacher's engine cannot do, and what it costs where it can score whole sequences alone."""

import asyncio

from verl_ext.checks.context import Context
from verl_ext.checks.finding import OK, WARN, Finding
from verl_ext.teacher.client.pool import TeacherPool
from verl_ext.teacher.config import BASE, EXTERNAL, TeacherConfig
from verl_ext.teacher.engines.known import engine_of
from verl_ext.teacher.teachers import vocab_size_of
from verl_ext.teacher.types import ScoreRequest, TeacherResponseError
from verl_ext.trainer.config import check_method
from verl_ext.trainer.support_config import STUDENT

WORTH_A_WORD = 1.5
"""Times the tokens of a server that keeps prompts, from which on it is said."""


def teacher_engine(context: Context, name: str) -> Finding:
    """An external server gives as many log-probs a position as are asked for; what an engine without cache costs."""
    teacher, method = context.teachers[name], check_method(context.config)
    asked = teacher.mode == EXTERNAL and teacher.store_mode != "replay" and method.support != STUDENT
    if asked and method.top_k:
        _ask_for_most_likely(teacher, method.top_k)
    if teacher.mode == BASE or engine_of(teacher.engine).flush_path is not None:
        return Finding(OK, teacher.engine if teacher.mode != BASE else "the sampler's")
    config = context.config
    lengths = [context.prompt_tokens["teacher_messages"][number].length for number in context.numbers_of(name)]
    return cost(
        engine_of(teacher.engine).title,
        sum(lengths) / max(1, len(lengths)),
        config.data.max_response_length,
        config.actor_rollout_ref.rollout.n,
    )


def cost(title: str, prompt: float, response: float, samples: int) -> Finding:
    """What an engine computes that scores from the first token on, beside one that keeps a prompt for its samples.

    Args:
        title: the engine's.
        prompt, response: tokens, a mean and the longest.
        samples: of one prompt.
    """
    times = samples * (prompt + response) / (prompt + samples * response)
    numbers = {"prompt_tokens": prompt, "response_tokens": response, "samples": samples, "times": times}
    seen = (
        f"{title} scores from the first token on: {times:.1f} x the tokens that teacher.engine=sglang computes, for "
        f"prompts of {prompt:.0f} tokens with {samples} samples of {response:.0f}"
    )
    if times < WORTH_A_WORD:
        return Finding(OK, seen, numbers=numbers)
    return Finding(WARN, seen, "shorten what the teacher is told, or take teacher.engine=sglang", numbers)


def _ask_for_most_likely(teacher: TeacherConfig, top_k: int) -> None:
    """Raises ValueError if a server does not give so many. One that fails otherwise is another check's."""
    assert teacher.model_path is not None  # student.path is its default
    vocab_size = vocab_size_of(teacher.model_path, trust_remote_code=teacher.trust_remote_code)

    async def ask(url: str) -> object:
        async with TeacherPool(teacher, vocab_size, [url]) as pool:
            return (await pool.score([ScoreRequest([0], [0], top_k=min(top_k, vocab_size))]))[0]

    for url in teacher.urls:
        if isinstance(refusal := asyncio.run(ask(url)), TeacherResponseError):
            raise ValueError(
                f"method.top_k={top_k}: {refusal}; start the server so that it gives as many a position (vLLM: "
                f"--max-logprobs {top_k}), or lower method.top_k"
            )
