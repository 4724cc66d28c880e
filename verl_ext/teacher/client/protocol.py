"""SGLang's scoring protocol: the body of a request, and the `Score` in an answer, or the reason why it has none.

Shapes as in `verl_ext/teacher/types.py`. Every request also carries the canary: a short fixed sequence whose log-probs
tell one model from another, so that each answer proves which model gave it.
"""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from verl_ext.teacher.types import Score, ScoreRequest, TeacherResponseError

MAX_LOGPROB = 1e-4  # nats; a log-prob is <= 0, log-softmax in fp32 may round a little above
CANARY_TOKENS = 12
SAME_LOGPROB = 1e-3  # nats; one token's log-prob, asked for in two ways


@dataclass(frozen=True)
class Span:
    """The part of a request that travels: nothing after the last wanted token, log-probs from the first one on."""

    first: int
    """Index in the response of the first wanted token."""
    last: int
    """Index in the response of the last wanted token."""
    ids: list[int]
    """Prompt, then the response up to `last`."""
    start: int
    """SGLang's `logprob_start_len`."""


def span_of(request: ScoreRequest) -> Span | None:
    """What to send for a request; None if no token of it is wanted."""
    mask = request.response_mask
    wanted = range(len(request.response_ids)) if mask is None else [i for i, keep in enumerate(mask) if keep]
    if not wanted:
        return None
    first, last = wanted[0], wanted[-1]
    ids = [*request.prompt_ids, *request.response_ids[: last + 1]]
    # One before the first wanted token: the first entry returned is [None, token at this position]. Not 0: prefix-cache
    # reuse stops at this position.
    return Span(first, last, ids, start=len(request.prompt_ids) - 1 + first)


def prompt_span(prompt_ids: Sequence[int]) -> Span:
    """The bare prompt, to put it into the server's prefix cache."""
    return Span(first=0, last=-1, ids=list(prompt_ids), start=len(prompt_ids) - 1)


def canary_span(vocab_size: int) -> Span:
    """The fixed sequence of every request; its log-probs are asked for from the second token on."""
    ids = [(7919 * i + 13) % max(1, vocab_size - 1) for i in range(CANARY_TOKENS)]
    return Span(first=0, last=CANARY_TOKENS - 2, ids=ids, start=0)


def build_body(spans: Sequence[Span], requests: Sequence[ScoreRequest | None]) -> dict[str, Any]:
    """The body of `POST /generate` for several sequences; `None` marks a span that belongs to no request."""
    top_k = [0 if request is None else request.top_k for request in requests]
    body: dict[str, Any] = {
        "input_ids": [span.ids for span in spans],
        "sampling_params": {"max_new_tokens": 0, "temperature": 0},
        "return_logprob": True,
        "logprob_start_len": [span.start for span in spans],
    }
    if any(top_k):
        # Arrays in base64 where the version has them (0.5.17+); older ones ignore the key and answer with lists.
        body |= {
            "top_logprobs_num": top_k,
            "return_flat_raw_top_logprobs": True,
            "return_flat_raw_top_logprobs_b64": True,
        }
    named = [[] if request is None else named_tokens(request) for request in requests]
    if any(named):
        # The first must be a list: SGLang takes a list whose first entry is none for every sequence's.
        body["token_ids_logprob"] = named
    return body


def named_tokens(request: ScoreRequest) -> list[int]:
    """What a request's `support_ids` name at any wanted position, ascending: SGLang takes one list a sequence."""
    if request.support_ids is None:
        return []
    ids_nK = request.support_ids if request.response_mask is None else request.support_ids[_wanted(request)]
    return np.unique(ids_nK[ids_nK >= 0]).tolist()


def _wanted(request: ScoreRequest) -> np.ndarray:
    """Of every response token, whether its log-prob is wanted, (R,)."""
    mask = request.response_mask
    return np.ones(len(request.response_ids), bool) if mask is None else np.asarray(mask, bool)


def read_score(meta: dict[str, Any], span: Span, request: ScoreRequest, vocab_size: int) -> Score:
    """The answer to one request. Raises TeacherResponseError if it is not an answer to what was sent."""
    logprobs = spread(read_logprobs(meta, span, vocab_size), span, request)
    top_ids = top_logprobs = None
    if request.top_k:
        ids, values = _read_top(meta, span, request.top_k, vocab_size)
        top_ids, top_logprobs = spread(ids, span, request), spread(values, span, request)
    elif request.support_ids is not None:
        place = slice(span.first, span.last + 1)
        values = _read_support(meta, span, request, logprobs[place])
        top_ids = spread(request.support_ids[place].astype(np.int32), span, request)
        top_logprobs = spread(values, span, request)
    return Score(logprobs, top_ids, top_logprobs)


def spread(values: np.ndarray, span: Span, request: ScoreRequest) -> np.ndarray:
    """Values of the tokens that travelled, a row each, as rows of the whole response: 0 where the mask is 0."""
    out = np.zeros((len(request.response_ids), *values.shape[1:]), values.dtype)
    out[span.first : span.last + 1] = values
    out[~_wanted(request)] = 0
    return out


def read_logprobs(meta: dict[str, Any], span: Span, vocab_size: int) -> np.ndarray:
    """Log-probs of the tokens after `span.start`, float32. Raises TeacherResponseError if they are not that."""
    try:
        entries = [(logprob, token) for logprob, token, *_ in meta["input_token_logprobs"]]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise TeacherResponseError(f"no readable input_token_logprobs in the answer: {error!r}") from error
    sent = span.ids[span.start :]
    if len(entries) != len(sent):
        raise TeacherResponseError(f"{len(entries)} entries for {len(sent)} tokens")
    for position, ((_, echoed), token) in enumerate(zip(entries, sent, strict=True)):
        # SGLang echoes the last id of the vocabulary as 0; its log-prob is right.
        if echoed != token and not (token == vocab_size - 1 and echoed == 0):
            raise TeacherResponseError(f"the answer scores token {echoed} at position {position}, sent was {token}")
    return checked([logprob for logprob, _ in entries[1:]], (len(sent) - 1,), "log-prob")


def read_metas(text: bytes) -> list[Any]:
    """The `meta_info` of each sequence in the body of an answer. Raises TeacherResponseError if it is none."""
    try:
        return [answer["meta_info"] for answer in orjson.loads(text)]
    except (ValueError, KeyError, TypeError) as error:
        raise TeacherResponseError(f"no meta_info of each sequence: {error!r}") from error


def read_cached_tokens(meta: dict[str, Any]) -> int:
    """Tokens of a sequence that were in the server's prefix cache. Raises TeacherResponseError if it does not say."""
    cached = meta.get("cached_tokens") if isinstance(meta, dict) else None
    if type(cached) is not int or cached < 0:
        raise TeacherResponseError("it did not answer as SGLang does: no number of cached_tokens")
    return cached


def _read_top(meta: dict[str, Any], span: Span, top_k: int, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and log-probs of the most likely tokens, each (tokens, K)."""
    shape = (len(span.ids) - 1 - span.start, top_k)
    try:
        if "input_top_logprobs_val_flat_b64" in meta:
            values = np.frombuffer(base64.b64decode(meta["input_top_logprobs_val_flat_b64"]), "<f4")
            ids = np.frombuffer(base64.b64decode(meta["input_top_logprobs_idx_flat_b64"]), "<i4")
            values, ids = values.reshape(shape), ids.reshape(shape)
        else:
            nested = meta["input_top_logprobs"][1:]
            values = np.array([[entry[0] for entry in row] for row in nested], np.float32).reshape(shape)
            ids = np.array([[entry[1] for entry in row] for row in nested], np.int32).reshape(shape)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise TeacherResponseError(f"no readable top-{top_k} log-probs of shape {shape}: {error!r}") from error
    if ids.size and not (ids.min() >= 0 and ids.max() < vocab_size):
        raise TeacherResponseError("a top token is outside the vocabulary")
    return ids, checked(values, shape, "top log-prob")


def _read_support(meta: dict[str, Any], span: Span, request: ScoreRequest, sampled_n: np.ndarray) -> np.ndarray:
    """Log-probs of the request's `support_ids` from `span.first` to `span.last`, (tokens, K).

    `sampled_n`: those of the response's own tokens there. Where one is among the named, both must agree, which an
    answer that is off by a position would not.
    """
    place = slice(span.first, span.last + 1)
    assert request.support_ids is not None
    support_nK, own_n = request.support_ids[place], np.asarray(request.response_ids[place])
    named = named_tokens(request)
    if not named:
        return np.full(support_nK.shape, -np.inf, np.float32)
    try:
        nested = meta["input_token_ids_logprobs"][1:]
        ids = [[entry[1] for entry in row] for row in nested]
        values = [[entry[0] for entry in row] for row in nested]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise TeacherResponseError(f"no readable log-probs of {len(named)} named tokens: {error!r}") from error
    if ids != [named] * len(own_n):
        raise TeacherResponseError(f"the answer has not the {len(named)} named tokens at {len(own_n)} positions")
    values_nU = checked(values, (len(own_n), len(named)), "named log-prob")

    def column(ids: np.ndarray) -> np.ndarray:
        return np.searchsorted(named, ids).clip(max=len(named) - 1)

    both_n = (np.asarray(named)[column(own_n)] == own_n) & _wanted(request)[place]
    gap_n = np.abs(values_nU[np.arange(len(own_n)), column(own_n)] - sampled_n)[both_n]
    if gap_n.size and gap_n.max() > SAME_LOGPROB:
        raise TeacherResponseError(f"a sampled token that is named too has log-probs {gap_n.max():.2g} nats apart")
    return np.where(support_nK < 0, np.float32(-np.inf), np.take_along_axis(values_nU, column(support_nK), axis=1))


def checked(values: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Float32 of exactly this shape, finite and at most 0: never NaN into an advantage, never a silent zero."""
    try:
        with np.errstate(over="ignore"):  # becomes -inf, which is refused below
            array = np.array(values, np.float32)
    except (TypeError, ValueError, OverflowError) as error:
        raise TeacherResponseError(f"a {name} is not a number: {error}") from error
    if array.shape != shape:
        raise TeacherResponseError(f"{name}s of shape {array.shape}, asked were {shape}")
    bad = ~np.isfinite(array) | (array > MAX_LOGPROB)
    if bad.any():
        position = int(np.argwhere(bad)[0][0])
        value = float(array[bad][0])
        kind = "not finite" if not math.isfinite(value) else "above 0"
        raise TeacherResponseError(f"{name} {value} of response token {position} is {kind}")
    return array
