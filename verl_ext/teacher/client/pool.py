"""Scoring by one or several servers that hold the same model: routing, retries, priming."""

import asyncio
import contextlib
import random
from collections import Counter, OrderedDict
from collections.abc import Sequence

import numpy as np

from verl_ext.teacher.client.http import ServerFailure
from verl_ext.teacher.client.protocol import Span, canary_span, prompt_span, span_of
from verl_ext.teacher.client.server_queue import Canary, LinkStats, ServerLink, prompt_key
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.engines.known import engine_of
from verl_ext.teacher.types import Score, ScoreRequest, TeacherError, TeacherUnavailableError

BACKOFF_FIRST_S = 0.25
BACKOFF_LAST_S = 8.0
AT_ONCE = 1024  # samples of one call in flight; the others are still the caller's plain lists
REMEMBERED_PROMPTS = 65536


class TeacherPool:
    """A `Scorer` (`verl_ext/teacher/types.py`) over HTTP. One per event loop; close it, or use it as `async with`.

    A prompt's samples meet the same server's cache; the least loaded server takes a new prompt. The
    breaker of a server that fails opens, and its samples go to another one, or wait, until it is admitted again
    (`server_queue.py`).
    """

    def __init__(self, config: TeacherConfig, vocab_size: int, urls: Sequence[str] = ()) -> None:
        """`vocab_size` is the teacher model's own (`config.vocab_size`); `urls` defaults to `config.urls`."""
        urls = urls or config.urls
        if not urls:
            raise ValueError("teacher.urls: empty; give the URL of a server")
        self.config = config
        self.vocab_size = vocab_size
        self._engine = engine_of(config.engine)
        self._primes = config.prime and self._engine.flush_path is not None
        self._canary = Canary(canary_span(vocab_size))
        self.links = [ServerLink(url.rstrip("/"), config, vocab_size, self._canary) for url in urls]
        self._homes: OrderedDict[bytes, ServerLink] = OrderedDict()
        self._announced: OrderedDict[bytes, None] = OrderedDict()
        self._admissions: dict[str, asyncio.Task[None]] = {}
        self._admitted = asyncio.Event()
        self._retries = self._unscored = 0

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Score | TeacherError]:
        """One outcome a request, in order. Raises ValueError for a request that must not be sent."""
        for request in requests:
            self._check(request)
        prompts = [prompt_key(request) for request in requests]
        shared = {prompt for prompt, same in Counter(prompts).items() if same > 1}
        outcomes: list[Score | TeacherError | None] = [None] * len(requests)
        waiting = iter(enumerate(requests))

        async def work() -> None:
            for index, request in waiting:
                outcomes[index] = await self._outcome(request, prompts[index] in shared)

        await asyncio.gather(*(work() for _ in range(min(AT_ONCE, len(requests)))))
        return [outcome for outcome in outcomes if outcome is not None]

    async def prime(self, request: ScoreRequest) -> None:
        """Cache the request's prompt where its responses will be scored."""
        self._check(request)
        if not self._primes:
            return
        key = prompt_key(request)
        self._announced[key] = None
        while len(self._announced) > REMEMBERED_PROMPTS:
            self._announced.popitem(last=False)
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
            link = await asyncio.wait_for(self._choose(key, avoid=None), self.config.sample_timeout_s)
            await link.prime(key, prompt_span(request.prompt_ids))

    async def probe(self) -> list[float]:
        """The canary's log-probs, which every server gave. Raises TeacherError if one did not, with one try."""
        for link in self.links:
            await link.admit()
        self._admitted.set()
        assert self._canary.logprobs is not None
        return [float(logprob) for logprob in self._canary.logprobs]

    def metrics(self) -> dict[str, float]:
        """Counts since the last call; `open_breakers`: servers that are not asked now."""
        found: dict[str, float] = {"retries": self._retries, "pool_unscored": self._unscored}
        self._retries = self._unscored = 0
        for index, link in enumerate(self.links):
            stats, link.stats = link.stats, LinkStats()
            for name, value in vars(stats).items():
                found[name] = found.get(name, 0) + value
            if len(self.links) > 1:
                found |= {f"server{index}_sequences": stats.sequences, f"server{index}_failures": stats.failures}
        found["open_breakers"] = sum(not link.admitted for link in self.links)
        return found

    async def close(self) -> None:
        for task in self._admissions.values():
            task.cancel()
        await asyncio.gather(*self._admissions.values(), return_exceptions=True)
        for link in self.links:
            await link.close()

    async def __aenter__(self) -> "TeacherPool":
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    async def _outcome(self, request: ScoreRequest, shares_prompt: bool) -> Score | TeacherError:
        """Score one request within the sample's time."""
        span = span_of(request)
        if span is None:
            return _empty_score(request)
        try:
            return await asyncio.wait_for(self._try_servers(request, span, shares_prompt), self.config.sample_timeout_s)
        except TimeoutError:
            errors = "; ".join(f"{link.url}: {link.last_error}" for link in self.links)
            error: TeacherError = TeacherUnavailableError(
                f"no score within teacher.sample_timeout_s={self.config.sample_timeout_s:g} ({errors})"
            )
        except TeacherError as failure:
            error = failure
        self._unscored += 1
        return error

    async def _try_servers(self, request: ScoreRequest, span: Span, shares_prompt: bool) -> Score:
        """Ask until a server answers as it should; the same server only where there is no other."""
        key = prompt_key(request)
        link: ServerLink | None = None
        failure: ServerFailure | None = None
        for attempt in range(self.config.max_retries + 1):
            if attempt:
                self._retries += 1
                await _back_off(attempt, len(self.links))
            link = await self._choose(key, avoid=link)
            try:
                if self._primes and (shares_prompt or key in self._announced):
                    await link.prime(key, prompt_span(request.prompt_ids))
                score = await link.submit(span, request, alone=attempt > 0)
                assert score is not None  # None answers a bare prompt only
                return score
            except ServerFailure as error:
                failure = error
        raise TeacherUnavailableError(
            f"no usable answer in {self.config.max_retries + 1} tries (teacher.max_retries): {failure}"
        )

    async def _choose(self, key: bytes, avoid: ServerLink | None) -> ServerLink:
        """The prompt's server, if it may be asked; else the least loaded that may. Waits for one to be admitted."""
        while True:
            for link in self.links:
                if not link.admitted:
                    self._readmit(link)
            admitted = [link for link in self.links if link.admitted]
            if usable := [link for link in admitted if link is not avoid] or admitted:
                break
            self._admitted.clear()
            await self._admitted.wait()
        home = self._homes.get(key)
        if home not in usable:
            home = min(usable, key=lambda link: link.queued_tokens)
            self._homes[key] = home
            while len(self._homes) > REMEMBERED_PROMPTS:
                self._homes.popitem(last=False)
        assert home is not None
        return home

    def _readmit(self, link: ServerLink) -> None:
        """Probe a server in the background until it may be asked again."""

        async def probe_until_admitted(pause: float) -> None:
            while not link.admitted:
                await asyncio.sleep(pause)
                pause = self.config.breaker_cooldown_s
                with contextlib.suppress(TeacherError):
                    await link.admit()
            self._admitted.set()

        if link.url not in self._admissions or self._admissions[link.url].done():
            pause = self.config.breaker_cooldown_s if link.ever_admitted else 0.0
            self._admissions[link.url] = asyncio.create_task(probe_until_admitted(pause))

    def _check(self, request: ScoreRequest) -> None:
        """An id outside the vocabulary kills an SGLang server, for everyone."""
        if not request.prompt_ids:
            raise ValueError("the prompt is empty: the first response token has no log-prob without one")
        if request.response_mask is not None and len(request.response_mask) != len(request.response_ids):
            raise ValueError(
                f"{len(request.response_mask)} mask values for {len(request.response_ids)} response tokens"
            )
        if not 0 <= request.top_k <= self.vocab_size:
            raise ValueError(f"top_k={request.top_k} is outside 0..{self.vocab_size}, the teacher's vocabulary")
        if request.support_ids is not None:
            self._check_support(request, request.support_ids)
        for name, ids in (("prompt", request.prompt_ids), ("response", request.response_ids)):
            if ids and not (min(ids) >= 0 and max(ids) < self.vocab_size):
                position, bad = next((i, token) for i, token in enumerate(ids) if not 0 <= token < self.vocab_size)
                raise ValueError(
                    f"{name} token {bad} at position {position} is outside the teacher's vocabulary of "
                    f"{self.vocab_size}: teacher and student must share a tokenizer"
                )

    def _check_support(self, request: ScoreRequest, ids_RK: np.ndarray) -> None:
        if not self._engine.scores_named_tokens:
            raise ValueError(
                f"teacher.engine={self.config.engine} scores no tokens that it is given: set teacher.engine=sglang"
            )
        if request.top_k:
            raise ValueError(f"top_k={request.top_k} beside support_ids: ask for the teacher's tokens or name some")
        if ids_RK.ndim != 2 or len(ids_RK) != len(request.response_ids):
            raise ValueError(f"support_ids of shape {ids_RK.shape} for {len(request.response_ids)} response tokens")
        if ids_RK.size and not (ids_RK.min() >= -1 and ids_RK.max() < self.vocab_size):
            worst = ids_RK.min() if ids_RK.min() < -1 else ids_RK.max()
            raise ValueError(
                f"support token {worst} is outside the teacher's vocabulary of {self.vocab_size}: teacher and student "
                "must share a tokenizer"
            )


def _empty_score(request: ScoreRequest) -> Score:
    """The score of a request that wants no token."""
    rows = len(request.response_ids)
    return Score(
        logprobs=np.zeros(rows, np.float32),
        top_ids=np.zeros((rows, request.columns), np.int32) if request.columns else None,
        top_logprobs=np.zeros((rows, request.columns), np.float32) if request.columns else None,
    )


async def _back_off(attempt: int, servers: int) -> None:
    """Wait before each new round over the servers; another server is tried at once."""
    rounds, position = divmod(attempt, servers)
    if position == 0:
        ceiling = min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2 ** (rounds - 1))
        await asyncio.sleep(ceiling * random.uniform(0.5, 1.0))  # jitter: clients must not return in step
