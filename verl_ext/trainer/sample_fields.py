"""What the agent loop writes beside a sample: why it ended, and what the teacher said. `R` response tokens."""

import torch
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput

from verl_ext.sampling.types import CUT_OFF
from verl_ext.teacher.types import Score, ScoreRequest, TeacherError


def cut_off(output: AgentLoopOutput, response_length: int) -> bool:
    """Whether an answer was cut off before its end, by any limit: vLLM's own word for it (`sampler.py`).

    Of several turns, the last one's word (`turns.py`); also where together they fill `response_length`, or a limit left
    a call without an answer.
    """
    several_turns = output.num_turns > 2
    full = len(output.response_ids) >= response_length
    unfinished = output.extra_fields.get("tool_use", {}).get("unfinished", False)
    return output.extra_fields["finish_reason"] in CUT_OFF or (several_turns and full) or unfinished


def logprobs_or_zeros(outcome: Score | TeacherError, request: ScoreRequest) -> torch.Tensor:
    """Teacher log-probs of the response, nats, (R,). Zeros stand in for a sample whose whole mask is 0."""
    return torch.from_numpy(outcome.logprobs) if isinstance(outcome, Score) else torch.zeros(len(request.response_ids))


def top_fields(outcome: Score | TeacherError, request: ScoreRequest) -> dict[str, torch.Tensor]:
    """The K tokens asked for and their log-probs in nats, (R, K) each; nothing where none were asked for."""
    if not request.columns:
        return {}
    shape = (len(request.response_ids), request.columns)
    ids, logprobs = torch.zeros(shape, dtype=torch.int32), torch.zeros(shape)
    if isinstance(outcome, Score):
        assert outcome.top_ids is not None
        assert outcome.top_logprobs is not None
        ids, logprobs = torch.from_numpy(outcome.top_ids), torch.from_numpy(outcome.top_logprobs)
    return {"teacher_top_ids": ids, "teacher_top_logprobs": logprobs}
