"""What it means to score: the one interface behind which servers, the store and compositions of them stand.

Shapes: `P` teacher prompt tokens, `R` response tokens, `K` most likely tokens a position.
Log-probs are natural logarithms (nats) at temperature 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

DEFAULT_TEACHER = "default"


class TeacherError(RuntimeError):
    """A sample could not be scored. The caller keeps the sample, masks it out of the loss and counts it."""


class TeacherResponseError(TeacherError):
    """The teacher refused the request, or answered something else. Asking again cannot help."""


class TeacherUnavailableError(TeacherError):
    """No server answered within the sample's time and tries."""


@dataclass(frozen=True)
class ScoreRequest:
    """One response to be scored under the teacher's own prompt."""

    prompt_ids: Sequence[int]
    """The teacher's prompt, P >= 1 token ids."""
    response_ids: Sequence[int]
    """What the student sampled (and what tools answered), R token ids; may be empty."""
    response_mask: Sequence[int] | None = None
    """R values: 1 on tokens whose log-prob is wanted, 0 on tool and observation tokens. None wants all."""
    teacher: str = DEFAULT_TEACHER
    """Which teacher scores it, where there are several."""
    top_k: int = 0
    """Also the teacher's K most likely tokens at every wanted position; 0 asks for none."""
    support_ids: np.ndarray | None = None
    """In place of the teacher's own most likely tokens, these: int32, (R, K), distinct in a row; -1 asks for none."""

    @property
    def columns(self) -> int:
        """K: tokens a position beside the response's own."""
        return self.top_k if self.support_ids is None else self.support_ids.shape[1]


@dataclass(frozen=True)
class Score:
    """A teacher's answer to one `ScoreRequest`. Exactly 0 (and id 0) where the request's mask is 0."""

    logprobs: np.ndarray
    """Log-probs of the response tokens, float32, (R,)."""
    top_ids: np.ndarray | None = None
    """Ids of the K most likely tokens, most likely first, or the request's `support_ids`, int32, (R, K)."""
    top_logprobs: np.ndarray | None = None
    """Their log-probs, float32, (R, K); -inf where the request asks for no token (-1)."""
    from_store: bool = field(default=False, compare=False)
    """True if no server was asked."""


class Scorer(Protocol):
    """Anything that scores. Safe to call concurrently from one event loop."""

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Score | TeacherError]:
        """One outcome a request, in order; a sample that cannot be scored is an error in its place, never a raise.

        Raises:
            ValueError: for a request that no server must ever see (an id outside the vocabulary, an empty prompt).
        """
        ...

    async def prime(self, request: ScoreRequest) -> None:
        """Announce a prompt whose responses will follow, so that its prefix is cached. Never fails; may do nothing."""
        ...

    def metrics(self) -> dict[str, float]:
        """What happened since the last call, by metric name without the `teacher/` prefix."""
        ...

    async def close(self) -> None:
        """Release connections and files."""
        ...
