"""The student's most likely tokens where it samples, as the support of a loss (`method.support=student`).

vLLM gives them with the sampled token, from the distribution that it samples from: no second forward pass. Which they
are does not depend on the token that was drawn. Shapes: `R` response tokens, `K` = `method.top_k`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput

from verl_ext.teacher.types import ScoreRequest

ASKED = "student_top_k"
"""In a request's sampling parameters: K."""
IDS, LOGPROBS = "student_top_ids", "student_top_logprobs"
"""In the extra fields of an answer: int32 and float32, (R, K), most likely first."""


def likely_of(logprobs: Sequence[Mapping[int, Any]] | None, top_k: int) -> dict[str, np.ndarray]:
    """`IDS` and `LOGPROBS` of vLLM's log-probs of sampled tokens: at each position, by id, what has `logprob`, `rank`.

    Raises:
        ValueError: where a position has not K of them.
    """
    rows = [
        sorted((each.rank, token, each.logprob) for token, each in place.items() if each.rank <= top_k)
        for place in logprobs or ()
    ]
    if any(len(row) != top_k for row in rows):
        raise ValueError(
            f"method.top_k={top_k}: vLLM gave not so many tokens at every position that it sampled; lower it, to the "
            "size of the vocabulary at most"
        )
    return {
        IDS: np.array([[token for _, token, _ in row] for row in rows], np.int32).reshape(-1, top_k),
        LOGPROBS: np.array([[logprob for _, _, logprob in row] for row in rows], np.float32).reshape(-1, top_k),
    }


def joined(parts: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Those of an answer that was sampled in parts, of their extra fields; nothing where nobody asked."""
    return {name: np.concatenate([part[name] for part in parts]) for name in (IDS, LOGPROBS) if name in parts[-1]}


def in_students_support(
    request: ScoreRequest, output: AgentLoopOutput, most: int
) -> tuple[ScoreRequest, dict[str, float]]:
    """The request for the student's tokens in place of the teacher's, at most `most` different ones, and counts.

    The counts are of wanted positions: `support_tokens`, different tokens; `support_left_out`, entries that `most`
    leaves out, whose mass is the tail's.

    Raises:
        ValueError: where the answer has not the student's tokens of each of its positions.
    """
    fields = output.extra_fields
    rows = len(request.response_ids)
    if IDS not in fields or len(fields[IDS]) < rows:
        raise ValueError(
            "method.support=student: the agent loop gave not the student's most likely tokens at every position of an "
            "answer; take single_turn_agent, or method.support=teacher"
        )
    # The loop cuts an answer off at `response_length`.
    ids_RK, logprobs_RK = fields.pop(IDS)[:rows], fields.pop(LOGPROBS)[:rows]
    wanted_R = np.ones(rows, bool) if request.response_mask is None else np.asarray(request.response_mask, bool)
    ids_RK, tokens = capped(ids_RK, logprobs_RK, wanted_R, most)
    left_out = int((ids_RK[wanted_R] < 0).sum())
    counts = {"support_tokens": float(tokens), "support_left_out": float(left_out)}
    return dataclasses.replace(request, top_k=0, support_ids=ids_RK), counts


def capped(ids_RK: np.ndarray, logprobs_RK: np.ndarray, wanted_R: np.ndarray, most: int) -> tuple[np.ndarray, int]:
    """The ids with -1 in place of those of all but `most` tokens, and how many different ones are left.

    The tokens that stay are those with most of the student's probability, added up over the wanted positions.
    """
    tokens_U, at_n = np.unique(ids_RK[wanted_R], return_inverse=True)
    if len(tokens_U) <= most:
        return ids_RK, len(tokens_U)
    mass_U = np.bincount(at_n.ravel(), np.exp(logprobs_RK[wanted_R].astype(np.float64)).ravel())
    heaviest_U = np.argsort(-mass_U, kind="stable")[:most]
    return np.where(np.isin(ids_RK, tokens_U[heaviest_U]), ids_RK, np.int32(-1)), most
