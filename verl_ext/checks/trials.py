"""Ask a teacher the same thing in several ways. Log-probs are nats, one float32 array `(R,)` a request."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import aiohttp
import numpy as np

from verl_ext.checks.finding import OK, Finding
from verl_ext.run.api_key import bearer_header
from verl_ext.teacher.types import Scorer, ScoreRequest, TeacherError

MakeScorer = Callable[[], Scorer]
FLUSH_TIMEOUT_S = 10.0
FLUSH_PAUSE_S = 0.05


async def score_all(scorer: Scorer, requests: Sequence[ScoreRequest]) -> list[np.ndarray]:
    """Log-probs of every request. Raises TeacherError for the first that has none."""
    logprobs = []
    for outcome in await scorer.score(requests):
        if isinstance(outcome, TeacherError):
            raise outcome
        logprobs.append(outcome.logprobs)
    return logprobs


async def repeated(scorer: Scorer, requests: Sequence[ScoreRequest], repeats: int, seed: int) -> list[list[np.ndarray]]:
    """Score the same requests `repeats` times: all at once, then shuffled, in parts of 1, 2, 3 ... requests."""
    passes = [await score_all(scorer, requests)]
    shuffler = random.Random(seed)
    for number in range(1, repeats):
        order = shuffler.sample(range(len(requests)), len(requests))
        found: dict[int, np.ndarray] = {}
        for start in range(0, len(order), number):
            part = order[start : start + number]
            found |= dict(zip(part, await score_all(scorer, [requests[i] for i in part]), strict=True))
        passes.append([found[i] for i in range(len(requests))])
    return passes


async def flush(urls: Sequence[str], api_key_env: str) -> None:
    """Empty every prefix cache by a POST to `urls`. Raises TeacherError if one is not empty after 10 seconds.

    SGLang refuses with 400 while it works, and for a moment after it gave its last answer.
    """
    headers = bearer_header(api_key_env)
    async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(FLUSH_TIMEOUT_S)) as session:
        for url in urls:
            deadline = time.monotonic() + FLUSH_TIMEOUT_S
            while (refusal := await _flush_once(session, url)) is not None:
                if time.monotonic() > deadline:
                    raise TeacherError(f"{url} {refusal}")
                await asyncio.sleep(FLUSH_PAUSE_S)


async def _flush_once(session: aiohttp.ClientSession, url: str) -> str | None:
    """Why the server did not flush; None if it did."""
    try:
        async with session.post(url) as response:
            return None if response.status == 200 else f"answered {response.status}"
    except (aiohttp.ClientError, TimeoutError) as error:
        return f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class CacheTrial:
    """The same requests with an empty prefix cache and with primed prompts."""

    uncached: list[np.ndarray]
    cached: list[np.ndarray]
    uncached_share: float
    """Share of the tokens of the uncached requests that the server still had cached, in [0, 1]; 0 is wanted."""
    cached_share: float
    """The same for the primed ones; near the prompts' share is wanted."""


async def cached_and_uncached(
    make_scorer: MakeScorer, requests: Sequence[ScoreRequest], urls: Sequence[str], api_key_env: str
) -> CacheTrial:
    """Flush, at `urls`, before every single request; then flush once, prime every prompt and score all."""
    scorer, uncached = make_scorer(), []
    try:
        for request in requests:
            await flush(urls, api_key_env)
            uncached += await score_all(scorer, [request])
        uncached_share = _cached_share(scorer.metrics())
    finally:
        await scorer.close()
    await flush(urls, api_key_env)
    scorer = make_scorer()  # a new one: the old one believes that what it primed is still cached
    try:
        for request in requests:
            await scorer.prime(request)
        scorer.metrics()
        cached = await score_all(scorer, requests)
        return CacheTrial(uncached, cached, uncached_share, _cached_share(scorer.metrics()))
    finally:
        await scorer.close()


@dataclass(frozen=True)
class Speed:
    """How fast the teacher answers what training will ask."""

    p50_ms: float
    """Median time of one request sent alone, milliseconds."""
    p95_ms: float
    """95th percentile of the same."""
    tokens_per_s: float
    """Prompt and response tokens a second, all requests sent together."""
    cached_share: float
    """Share of those tokens that were in the prefix cache, in [0, 1]."""
    requests: int
    """Requests timed each way."""


async def measure_speed(scorer: Scorer, requests: Sequence[ScoreRequest]) -> Speed:
    """One by one, then all at once, prompts already cached as in training."""
    for request in requests:
        await scorer.prime(request)
    seconds = []
    for request in requests:
        started = time.perf_counter()
        await score_all(scorer, [request])
        seconds.append(time.perf_counter() - started)
    scorer.metrics()
    started = time.perf_counter()
    await score_all(scorer, requests)
    tokens = sum(len(request.prompt_ids) + len(request.response_ids) for request in requests)
    p50, p95 = np.percentile(seconds, [50, 95]) * 1e3
    rate = tokens / (time.perf_counter() - started)
    return Speed(float(p50), float(p95), rate, _cached_share(scorer.metrics()), len(requests))


def speed_finding(speed: Speed, samples_a_step: int, tokens_a_sample: float) -> Finding:
    """For information: nothing is too slow to be right."""
    step_s = samples_a_step * tokens_a_sample / speed.tokens_per_s
    seen = (
        f"p50 {speed.p50_ms:.0f} ms, p95 {speed.p95_ms:.0f} ms a request; {speed.tokens_per_s:,.0f} tokens/s, "
        f"{speed.cached_share:.0%} cached; a step of {samples_a_step} samples takes about {step_s:.1f} s"
    )
    return Finding(OK, seen, numbers=asdict(speed) | {"step_s": step_s})


def _cached_share(metrics: dict[str, float]) -> float:
    return metrics["cached_tokens"] / max(1.0, metrics["tokens"])
