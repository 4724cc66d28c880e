"""Ask SGLang servers for the log-probs of given tokens.

`P` prompt tokens, `R` response tokens; log-probs are natural logarithms (nats) at temperature 1.
"""

import array
import asyncio
import math
import os
import random
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from verl_ext.teacher.config import TeacherConfig

MAX_LOGPROB = 1e-4  # nats; a log-prob is <= 0, log-softmax in fp32 may round a little above
BACKOFF_FIRST_S = 0.25
BACKOFF_LAST_S = 8.0
BODY_EXCERPT = 300  # characters of a server's error message that we pass on


class TeacherResponseError(RuntimeError):
    """The teacher answered, and the answer is a refusal or not what was asked for. Asking again cannot help."""


class TeacherUnavailableError(RuntimeError):
    """No server answered within `teacher.max_retries` further tries."""


@dataclass
class TeacherStats:
    """What one client did so far."""

    requests: int = 0
    """Answered requests."""
    tokens: int = 0
    """Tokens sent in answered requests, prompt and response."""
    cached_tokens: int = 0
    """Tokens of those that the server found in its prefix cache."""
    seconds: float = 0.0
    """Sum over answered requests of the time from sending to the answer (they overlap: not wall-clock)."""
    retries: int = 0
    """Tries after the first."""


class TeacherClient:
    """Scores sequences. One per event loop; close it with `close()` or use it as `async with`."""

    def __init__(self, config: TeacherConfig, vocab_size: int, urls: Sequence[str] = ()) -> None:
        """`vocab_size` is the teacher model's own (`config.vocab_size`); `urls` defaults to `config.urls`."""
        self.urls = [url.rstrip("/") for url in urls or config.urls]
        if not self.urls:
            raise ValueError("teacher.urls: empty, and no managed server's URL was given")
        self.config = config
        self.vocab_size = vocab_size
        self.stats = TeacherStats()
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._session: aiohttp.ClientSession | None = None

    async def score(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> list[float]:
        """`teacher_logprobs` of the R response tokens given the prompt, in nats."""
        self._check_ids(prompt_ids, "prompt")
        self._check_ids(response_ids, "response")
        if not prompt_ids:
            raise ValueError("the prompt is empty: the first response token has no log-prob without one")
        if not response_ids:
            return []
        meta = await self._generate(prompt_ids, response_ids)
        return self._read_logprobs(meta, prompt_ids[-1], response_ids)

    async def prime(self, prompt_ids: Sequence[int]) -> None:
        """Put the prompt into the server's prefix cache: n samples sent together would share nothing otherwise."""
        self._check_ids(prompt_ids, "prompt")
        if not prompt_ids:
            raise ValueError("the prompt is empty: there is nothing to cache")
        await self._generate(prompt_ids, [])

    async def probe(self) -> None:
        """Raise unless a real log-prob request succeeds (a green /health does not prove that)."""
        await self.score([0], [0])

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def __aenter__(self) -> "TeacherClient":
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self.close()

    async def _generate(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> dict[str, Any]:
        """Send one scoring request until a server answers; return its `meta_info`."""
        body = {
            "input_ids": [*prompt_ids, *response_ids],
            "sampling_params": {"max_new_tokens": 0, "temperature": 0},
            "return_logprob": True,
            # P-1, not P: the first entry returned is [None, token at this position], so P would lose the first
            # response token. Not 0: prefix-cache reuse stops at this position.
            "logprob_start_len": len(prompt_ids) - 1,
        }
        first = zlib.crc32(array.array("q", prompt_ids).tobytes())  # samples of one prompt meet the same cache
        error: Exception | None = None
        async with self._slots:
            for attempt in range(self.config.max_retries + 1):
                if attempt > 0:
                    self.stats.retries += 1
                    await self._back_off(attempt)
                url = self.urls[(first + attempt) % len(self.urls)]
                try:
                    return await self._post(url, body)
                except (aiohttp.ClientError, TimeoutError) as failure:
                    error = failure
        raise TeacherUnavailableError(
            f"no answer from {', '.join(self.urls)} after {self.config.max_retries + 1} tries "
            f"(teacher.max_retries, teacher.request_timeout_s): {type(error).__name__}: {error}"
        ) from error

    async def _back_off(self, attempt: int) -> None:
        """Wait before each new round over the servers; another server is tried at once."""
        rounds, position = divmod(attempt, len(self.urls))
        if position == 0:
            ceiling = min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2 ** (rounds - 1))
            await asyncio.sleep(ceiling * random.uniform(0.5, 1.0))  # jitter: clients must not return in step

    async def _post(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        """One try. aiohttp.ClientError and TimeoutError mean: try again."""
        started = time.monotonic()
        async with self._open_session().post(f"{url}/generate", json=body) as response:
            if response.status >= 500:
                response.raise_for_status()
            if response.status != 200:
                raise TeacherResponseError(self._explain(url, response.status, await response.text()))
            try:
                meta = (await response.json())["meta_info"]
                cached_tokens = int(meta["cached_tokens"])
            except (ValueError, KeyError, TypeError, aiohttp.ContentTypeError) as error:
                raise TeacherResponseError(f"{url}/generate did not answer as SGLang does: {error!r}") from error
        self.stats.requests += 1
        self.stats.tokens += len(body["input_ids"])
        self.stats.cached_tokens += cached_tokens
        self.stats.seconds += time.monotonic() - started
        return meta

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            api_key = os.environ.get(self.config.api_key_env, "")
            self._session = aiohttp.ClientSession(
                headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
                timeout=aiohttp.ClientTimeout(total=self.config.request_timeout_s),
                connector=aiohttp.TCPConnector(limit=self.config.max_concurrency),
            )
        return self._session

    def _explain(self, url: str, status: int, text: str) -> str:
        hint = f"; set the environment variable {self.config.api_key_env}" if status in (401, 403) else ""
        return f"{url}/generate refused the request ({status}{hint}): {text[:BODY_EXCERPT]}"

    def _check_ids(self, ids: Sequence[int], name: str) -> None:
        """An id outside the vocabulary kills the SGLang server, for everyone."""
        if ids and not (min(ids) >= 0 and max(ids) < self.vocab_size):
            position, bad = next((i, token) for i, token in enumerate(ids) if not 0 <= token < self.vocab_size)
            raise ValueError(
                f"{name} token {bad} at position {position} is outside the teacher's vocabulary of {self.vocab_size}: "
                "teacher and student must share a tokenizer"
            )

    def _read_logprobs(self, meta: dict[str, Any], last_prompt_id: int, response_ids: Sequence[int]) -> list[float]:
        """The R log-probs of an answer, or TeacherResponseError if it is not an answer to what was sent."""
        try:
            entries = [(logprob, token) for logprob, token, *_ in meta["input_token_logprobs"]]
        except (KeyError, TypeError, ValueError) as error:
            raise TeacherResponseError(f"no readable input_token_logprobs in the answer: {error!r}") from error
        # SGLang echoes the last id of the vocabulary as 0; its log-prob is right.
        quirk = {self.vocab_size - 1: 0}
        sent = [last_prompt_id, *response_ids]
        if len(entries) != len(sent):
            raise TeacherResponseError(f"{len(entries)} entries for {len(sent)} tokens")
        for position, ((_, echoed), token) in enumerate(zip(entries, sent, strict=True)):
            if echoed != token and echoed != quirk.get(token):
                raise TeacherResponseError(f"the answer scores token {echoed} at position {position}, sent was {token}")
        logprobs = [logprob for logprob, _ in entries[1:]]
        for position, logprob in enumerate(logprobs):
            if not isinstance(logprob, float | int) or not math.isfinite(logprob) or logprob > MAX_LOGPROB:
                raise TeacherResponseError(
                    f"log-prob {logprob} of response token {position} is not a finite number <= 0"
                )
        return [float(logprob) for logprob in logprobs]
