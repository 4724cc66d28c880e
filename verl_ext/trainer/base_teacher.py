"""A teacher without weights of its own: the student's base, which the sampler keeps under its adapter.

`teacher.mode=base`: with `update=lora` vLLM holds the base and the adapter. A sample is scored there as a prompt, under
the teacher's messages and without the adapter: a frozen self-teacher needs neither a server nor a second copy. With
`teacher.refresh_every=1` the adapter is on: the student of the moment is its own teacher, under another prompt; an
earlier one is an adapter of its own (`earlier.py`). vLLM
reads the whole of (teacher's prompt, response) for each sample, since it makes log-probs of no prompt that it cached.
"""

import asyncio
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from ray.exceptions import RayError
from verl.workers.rollout.llm_server import LLMServerClient

from verl_ext.teacher.config import BASE, TeacherConfig
from verl_ext.teacher.teachers import open_scorer, vocab_size_of
from verl_ext.teacher.types import Score, Scorer, ScoreRequest, TeacherError, TeacherUnavailableError
from verl_ext.trainer.client import ABORTED

NONE, STUDENT, EARLIER = "none", "student", "earlier"
"""Which adapter is on while a prompt is scored."""


def open_teacher(settings: TeacherConfig, student: str, client: LLMServerClient) -> Scorer:
    """The scorer of one teacher: its servers, its store, or the base of `student` in the servers of `client`."""
    if settings.mode == BASE:
        return BaseScorer(client, settings, vocab_size_of(student, trust_remote_code=False))
    return open_scorer(settings)


class BaseScorer:
    """A `Scorer` that asks the run's own vLLM servers (`FinishReasonServer.generate`, `scored`)."""

    def __init__(self, client: LLMServerClient, settings: TeacherConfig, vocab_size: int) -> None:
        self._client, self._settings, self._vocab_size = client, settings, vocab_size
        self._counts: Counter[str] = Counter()
        live = STUDENT if settings.refresh_every else NONE
        self._adapter = EARLIER if settings.is_earlier else live

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Score | TeacherError]:
        """See `Scorer`. Raises ValueError for an id outside the vocabulary or an empty prompt."""
        for request in requests:
            ids = [*request.prompt_ids, *request.response_ids]
            if not request.prompt_ids or min(ids) < 0 or max(ids) >= self._vocab_size:
                raise ValueError(f"a teacher's prompt is empty, or an id is outside 0..{self._vocab_size - 1}")
        return list(await asyncio.gather(*(self._outcome(request) for request in requests)))

    async def _outcome(self, request: ScoreRequest) -> Score | TeacherError:
        if not request.response_ids:
            return scored(request, {"logprobs": [], "top_ids": [], "top_logprobs": []})
        try:
            async with asyncio.timeout(self._settings.sample_timeout_s):
                return scored(request, await self._ask(request))
        except TimeoutError:
            late = f"teacher.sample_timeout_s={self._settings.sample_timeout_s:g} s"
            return TeacherUnavailableError(f"the sampler did not score a sample within {late}")
        except (RayError, RuntimeError) as error:
            self._counts["failures"] += 1
            return TeacherUnavailableError(f"the sampler does not score: {str(error).strip().splitlines()[-1]}")

    async def _ask(self, request: ScoreRequest) -> dict[str, list]:
        """What vLLM found, asked again where it gave a request up for a weight sync; it parks what comes meanwhile."""
        tokens = [*request.prompt_ids, *request.response_ids]
        while True:
            name = uuid.uuid4().hex
            server_id, server = await self._client._acquire_server(name, prompt_ids=tokens, sampling_params={})
            try:
                output = await server.generate.remote(
                    request_id=name,
                    prompt_ids=tokens,
                    sampling_params={"max_tokens": 1, "temperature": 1.0},
                    scored={
                        "start": len(request.prompt_ids),
                        "top_k": request.top_k,
                        "adapter": self._adapter,
                    },
                )
            finally:
                self._client._release_server(server_id, request_id=name)
            self._counts["requests"] += 1
            if output.stop_reason not in ABORTED:
                self._counts["sequences"] += 1
                self._counts["tokens"] += len(tokens)
                return output.extra_fields["scores"]
            self._counts["retries"] += 1

    async def prime(self, request: ScoreRequest) -> None:
        """Nothing: vLLM scores no prompt out of its prefix cache."""

    def metrics(self) -> dict[str, float]:
        counts, self._counts = self._counts, Counter()
        never = ("cached_tokens", "queue_seconds")  # not told apart here
        names = ("requests", "sequences", "tokens", "retries", "failures")
        return {name: float(counts[name]) for name in names} | dict.fromkeys(never, 0.0)

    async def close(self) -> None:
        """Nothing: the client is the agent loop's."""


def scored(request: ScoreRequest, found: dict[str, list]) -> Score:
    """A server's lists as a score, 0 where the request's mask is."""
    length, top_k = len(request.response_ids), request.top_k
    mask_R = np.ones(length) if request.response_mask is None else np.asarray(request.response_mask)
    wanted_R = mask_R.astype(bool)
    logprobs_R = np.where(wanted_R, np.asarray(found["logprobs"], np.float32), np.float32(0))
    if not top_k:
        return Score(logprobs_R)
    ids_RK = np.asarray(found["top_ids"], np.int32).reshape(length, top_k)
    tops_RK = np.asarray(found["top_logprobs"], np.float32).reshape(length, top_k)
    return Score(logprobs_R, np.where(wanted_R[:, None], ids_RK, 0), np.where(wanted_R[:, None], tops_RK, 0))


def scores_of(prompt_logprobs: Sequence[Any], tokens: Sequence[int], start: int, top_k: int) -> dict[str, list]:
    """Log-probs of `tokens` from `start` on, nats, and of the `top_k` most likely tokens in their place.

    `prompt_logprobs`: vLLM's, a position: by token id, what has `logprob` and `rank` (from 1).
    """
    found: dict[str, list] = {"logprobs": [], "top_ids": [], "top_logprobs": []}
    for token, place in zip(tokens[start:], prompt_logprobs[start:], strict=True):
        found["logprobs"].append(place[token].logprob)
        likely = sorted((each.rank, each.logprob, one) for one, each in place.items() if each.rank <= top_k)[:top_k]
        found["top_ids"].append([one for _, _, one in likely])
        found["top_logprobs"].append([logprob for _, logprob, _ in likely])
    return found
