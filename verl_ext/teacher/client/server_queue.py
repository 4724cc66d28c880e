"""One server as a client sees it: its queue, its connections, and its circuit breaker.

A server is *admitted* (its breaker is closed) when a real log-prob request succeeded and its canary has the log-probs
that the pool's first server gave. After `teacher.breaker_failures` failures in a row, or one answer from another model,
it is not any more.
"""

import asyncio
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from verl_ext.teacher.client.http import ScoringHttp, ServerFailure
from verl_ext.teacher.client.protocol import Span
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.engines.known import engine_of
from verl_ext.teacher.types import Score, ScoreRequest, TeacherError, TeacherResponseError

PRIMED_PROMPTS = 8192  # per server; each answer tells whether its cache still holds the prompt


@dataclass
class LinkStats:
    """Counts of one server since the last call of `TeacherPool.metrics`."""

    requests: int = 0
    sequences: int = 0
    tokens: int = 0
    cached_tokens: int = 0
    failures: int = 0
    times_opened: int = 0
    queue_seconds: float = 0.0
    busy_seconds: float = 0.0


@dataclass
class Canary:
    """The log-probs that every server of a pool must give for the canary; the first one to answer sets them."""

    span: Span
    logprobs: np.ndarray | None = None


@dataclass(eq=False)
class Job:
    """One queued sequence. `request` is None where a bare prompt is primed."""

    span: Span
    request: ScoreRequest | None
    alone: bool
    done: asyncio.Future[Score | None]
    queued_at: float = field(default_factory=time.monotonic)


class ServerLink:
    """Queue and connection to one server. `submit` and `prime` may be called concurrently from one event loop."""

    def __init__(self, url: str, config: TeacherConfig, vocab_size: int, canary: Canary) -> None:
        self.url = url
        self.stats = LinkStats()
        self.admitted = False
        self.last_error = "not asked yet"
        self.ever_admitted = False
        self.queued_tokens = 0
        self._config = config
        self._vocab_size = vocab_size
        self._canary = canary
        self._engine = engine_of(config.engine)
        self._http = ScoringHttp(url, config)
        self._failures_in_a_row = 0
        self._queue: deque[Job] = deque()
        self._wake = asyncio.Event()
        self._senders: list[asyncio.Task[None]] = []
        self._primed: OrderedDict[bytes, asyncio.Future[None]] = OrderedDict()

    async def submit(self, span: Span, request: ScoreRequest | None, *, alone: bool) -> Score | None:
        """Queue one sequence and wait for its score (None for a bare prompt).

        Raises:
            ServerFailure: this try failed.
            TeacherResponseError: the server refused the request; asking again cannot help.
        """
        if not self._senders:
            self._senders = [asyncio.create_task(self._send_forever()) for _ in range(self._config.max_concurrency)]
        job = Job(span, request, alone, asyncio.get_running_loop().create_future())
        self._queue.append(job)
        self.queued_tokens += len(span.ids)
        self._wake.set()
        try:
            return await job.done
        finally:
            self.queued_tokens -= len(span.ids)

    async def prime(self, key: bytes, span: Span) -> None:
        """Have the bare prompt in the server's prefix cache; at most one request per prompt; failures are ignored.

        The first prompt goes alone: what the others share with it, a data set's long common prompt, is then cached.
        """
        if (known := self._primed.get(key)) is not None:
            self._primed.move_to_end(key)
            await asyncio.shield(known)
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        first = next(iter(self._primed.values()), None)
        self._primed[key] = done
        while len(self._primed) > PRIMED_PROMPTS:
            self._primed.popitem(last=False)
        try:
            if first is not None:
                await asyncio.shield(first)
            await self.submit(span, None, alone=False)
        except TeacherError:
            self._primed.pop(key, None)
        finally:
            if not done.done():
                done.set_result(None)

    def forget_prime(self, key: bytes) -> None:
        """The server evicted this prompt from its cache."""
        self._primed.pop(key, None)

    async def admit(self) -> None:
        """Ask the server for the canary alone and admit it. Raises TeacherError if it may not be asked."""
        try:
            (answer,) = await self._ask([self._canary.span], [None])
            self._check_canary(answer)
        except TeacherError as error:
            self.last_error = str(error)
            raise
        self.admitted = self.ever_admitted = True
        self._failures_in_a_row = 0

    def expel(self, reason: str) -> None:
        """Open the breaker: send nothing until the server is admitted again, and take its cache for lost."""
        self.last_error = reason
        if self.admitted:
            self.stats.times_opened += 1
        self.admitted = False
        self._primed.clear()
        while self._queue:
            _settle(self._queue.popleft(), ServerFailure(reason))

    async def close(self) -> None:
        for sender in self._senders:
            sender.cancel()
        await asyncio.gather(*self._senders, return_exceptions=True)
        self._senders = []
        self.expel("the client was closed")
        await self._http.close()

    async def _send_forever(self) -> None:
        while True:
            while not (batch := self._take()):
                self._wake.clear()
                await self._wake.wait()
            try:
                await self._send(batch)
            finally:  # also when closed in the middle of a request
                for job in batch:
                    _settle(job, ServerFailure("the client was closed"))

    def _take(self) -> list[Job]:
        """The next request: what waits, up to `batch_tokens`; whatever waits behind it goes with the next sender."""
        batch: list[Job] = []
        tokens = 0
        while self._queue:
            job = self._queue[0]
            if job.done.done():  # cancelled by the caller
                self._queue.popleft()
                continue
            fits = tokens + len(job.span.ids) <= self._config.batch_tokens and not job.alone
            if batch and not fits:
                break
            batch.append(self._queue.popleft())
            tokens += len(job.span.ids)
            if job.alone:
                break
        return batch

    async def _send(self, batch: list[Job]) -> None:
        """Send one request and give every job its outcome."""
        sent = time.monotonic()
        self.stats.queue_seconds += sum(sent - job.queued_at for job in batch)
        try:
            *answers, canary = await self._ask(
                [*(job.span for job in batch), self._canary.span], [*(job.request for job in batch), None]
            )
            self._check_canary(canary)
        except TeacherResponseError as error:
            if len(batch) == 1:
                _settle(batch[0], error)
            else:  # one of them was refused: let each answer for itself
                for job in batch:
                    job.alone = True
                self._queue.extendleft(reversed(batch))
                batch.clear()
            return
        except ServerFailure as failure:
            self._failed(str(failure))
            for job in batch:
                _settle(job, failure)
            return
        self.stats.busy_seconds += time.monotonic() - sent
        unusable = [error for job, answer in zip(batch, answers, strict=True) if (error := self._deliver(job, answer))]
        if unusable:
            self._failed(str(unusable[0]))
        else:
            self._failures_in_a_row = 0

    async def _ask(self, spans: list[Span], requests: list[ScoreRequest | None]) -> list[Any]:
        answers = await self._http.generate(self._engine.body(spans, requests), len(spans))
        self.stats.requests += 1
        return answers

    def _deliver(self, job: Job, answer: Any) -> TeacherError | None:
        """Settle a job with its answer; the error if the answer is unusable."""
        try:
            score = None
            if job.request is not None:
                score = self._engine.score(answer, job.span, job.request, self._vocab_size)
            cached_tokens = self._engine.cached_tokens(answer)
        except TeacherResponseError as error:
            failure = ServerFailure(f"{self.url}: {error}")
            _settle(job, failure)
            return failure
        self.stats.sequences += 1
        self.stats.tokens += len(job.span.ids)
        self.stats.cached_tokens += cached_tokens
        if job.request is not None and cached_tokens < len(job.request.prompt_ids) // 2:
            self.forget_prime(prompt_key(job.request))
        _settle(job, score)
        return None

    def _failed(self, reason: str) -> None:
        self.stats.failures += 1
        self.last_error = reason
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= self._config.breaker_failures:
            self.expel(reason)

    def _check_canary(self, answer: Any) -> None:
        """Raise ServerFailure, and expel the server, unless the canary has the log-probs that it had before."""
        try:
            found = self._engine.logprobs(answer, self._canary.span, self._vocab_size)
        except TeacherResponseError as error:
            raise ServerFailure(f"{self.url}: {error}") from error
        if self._canary.logprobs is None:
            self._canary.logprobs = found
        gap = float(np.abs(found - self._canary.logprobs).max())
        if gap > self._config.probe_tolerance_nats:
            reason = (
                f"{self.url} serves another model than before: its canary is off by up to {gap:.2g} nats "
                f"(teacher.probe_tolerance={self._config.probe_tolerance_nats:g})"
            )
            self.expel(reason)
            raise ServerFailure(reason)


def prompt_key(request: ScoreRequest) -> bytes:
    """What requests of one prompt share."""
    return np.asarray(request.prompt_ids, np.int32).tobytes()


def _settle(job: Job, outcome: Score | TeacherError | None) -> None:
    if job.done.done():
        return
    if isinstance(outcome, TeacherError):
        job.done.set_exception(outcome)
    else:
        job.done.set_result(outcome)
