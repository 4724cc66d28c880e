"""vLLM's scoring protocol: the body of a request, and the `Score` in an answer, or the reason why it has none.

Shapes as in `verl_ext/teacher/types.py`. `prompt_logprobs` of an answer has an entry a token of the prompt: null for
the first one, then log-prob and rank (from 1) by token id: the prompt's own token, and the most likely ones.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from verl_ext.teacher.client.protocol import Span, checked, spread
from verl_ext.teacher.types import Score, ScoreRequest, TeacherResponseError

NO_PROBABILITY = -9999.0
"""What vLLM writes for a log-prob of minus infinity, which JSON lacks."""


def build_body(spans: Sequence[Span], requests: Sequence[ScoreRequest | None]) -> dict[str, Any]:
    """The body of `POST /v1/completions` for several sequences; `None` marks a span that belongs to no request.

    Without `model` the server's base model answers. vLLM samples at least one token, which is not read.
    """
    return {
        "prompt": [span.ids for span in spans],
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": max((request.top_k for request in requests if request is not None), default=0),
    }


def read_choices(text: bytes) -> list[Any]:
    """The choice of each sequence in the body of an answer. Raises TeacherResponseError if it is none."""
    try:
        choices = orjson.loads(text)["choices"]
        order = [choice["index"] for choice in choices]
    except (ValueError, KeyError, TypeError) as error:
        raise TeacherResponseError(f"no choice of each sequence: {error!r}") from error
    if order != list(range(len(choices))):
        raise TeacherResponseError(f"choices of the sequences {order}, in another order than sent")
    return choices


def read_score(choice: Any, span: Span, request: ScoreRequest, vocab_size: int) -> Score:
    """The answer to one request. Raises TeacherResponseError if it is not an answer to what was sent."""
    logprobs = spread(read_logprobs(choice, span), span, request)
    if not request.top_k:
        return Score(logprobs)
    ids, values = _read_top(choice, span, request.top_k, vocab_size)
    return Score(logprobs, spread(ids, span, request), spread(values, span, request))


def read_logprobs(choice: Any, span: Span) -> np.ndarray:
    """Log-probs of the tokens after `span.start`, float32. Raises TeacherResponseError if they are not that."""
    places = _places(choice, span)
    try:
        found = [place[str(token)]["logprob"] for place, token in places]
    except (KeyError, TypeError) as error:
        raise TeacherResponseError(f"a place has no log-prob of the token that was sent: {error!r}") from error
    return _possible(checked(found, (len(places),), "log-prob"))


def _places(choice: Any, span: Span) -> list[tuple[Any, int]]:
    """What the answer says of each token after `span.start`, and that token."""
    try:
        places = list(choice["prompt_logprobs"])
    except (KeyError, TypeError) as error:
        raise TeacherResponseError(f"no readable prompt_logprobs in the answer: {error!r}") from error
    if len(places) != len(span.ids):
        raise TeacherResponseError(f"{len(places)} entries for {len(span.ids)} tokens")
    return list(zip(places[span.start + 1 :], span.ids[span.start + 1 :], strict=True))


def _read_top(choice: Any, span: Span, top_k: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and log-probs of the most likely tokens, each (tokens, K). The request may have been for more than K."""
    ids, values = [], []
    for place, sent in _places(choice, span):
        try:
            # The one that was sent comes with a rank of its own: in a tie it may be that of one of the most likely.
            entries = sorted((int(token) != sent, int(token), entry) for token, entry in place.items())
            by_rank = {entry["rank"]: (token, entry["logprob"]) for _, token, entry in entries}
            chosen = [by_rank[rank] for rank in range(1, top_k + 1)]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise TeacherResponseError(f"no readable top-{top_k} log-probs: {error!r}") from error
        if not all(0 <= token < vocab_size for token, _ in chosen):
            raise TeacherResponseError("a top token is outside the vocabulary")
        ids.append([token for token, _ in chosen])
        values.append([logprob for _, logprob in chosen])
    shape = (len(ids), top_k)
    return np.array(ids, np.int32).reshape(shape), _possible(checked(values, shape, "top log-prob"))


def _possible(logprobs: np.ndarray) -> np.ndarray:
    """Refuse what stands for minus infinity."""
    if (logprobs <= NO_PROBABILITY).any():
        raise TeacherResponseError(f"a log-prob is {NO_PROBABILITY:g}: the teacher calls a token impossible")
    return logprobs
