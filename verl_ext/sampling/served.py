"""Answers of an OpenAI-compatible server."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from verl_ext.ledger.meter import Meter, shape_or_none
from verl_ext.run.api_key import bearer_header
from verl_ext.run.replies import PLAIN, SETTINGS_BYTES, read_body
from verl_ext.run.retry_after import BUSY, retry_after_s
from verl_ext.sampling.types import Answer, Request, SamplingConfig, SamplingError

BACKOFF_FIRST_S = 0.5
BACKOFF_LAST_S = 15.0
BODY_EXCERPT = 300  # characters of a server's error message that we pass on


class ServedSampler:
    """Servers that all serve one model at `/v1/chat/completions` (SGLang, vLLM, and others with their extensions)."""

    def __init__(
        self,
        urls: Sequence[str],
        model: str,
        sampling: SamplingConfig,
        *,
        max_concurrency: int,
        timeout_s: float,
        max_retries: int,
        api_key_env: str,
    ) -> None:
        self._urls = [url.rstrip("/") for url in urls]
        self._model = model
        self._sampling = sampling
        self._max_concurrency = max_concurrency
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._max_retries = max_retries
        self._api_key_env = api_key_env
        config = Path(model) / "config.json"
        shape = shape_or_none(model, orjson.loads(config.read_bytes())) if config.is_file() else None
        self.meter = Meter(shape, gpus=0, devices=0)

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        with self.meter.watch.running():
            return asyncio.run(self._answer_all(requests))

    def served_models(self) -> list[str]:
        """The names under which the first server offers models. SamplingError if it cannot be asked."""
        return asyncio.run(self._list_models())

    async def _list_models(self) -> list[str]:
        url = f"{self._urls[0]}/v1/models"
        async with self._session() as session:
            try:
                async with session.get(url, allow_redirects=False) as response:
                    body = await self._read(url, response)
            except (aiohttp.ClientError, TimeoutError) as error:
                raise SamplingError(f"labels.urls: no answer from {url}: {error}") from error
        try:
            return [model["id"] for model in body["data"]]
        except (KeyError, TypeError) as error:
            shown = str(body)[:BODY_EXCERPT]
            raise SamplingError(f"labels.urls: {url} does not list models as OpenAI's API does: {shown}") from error

    async def _answer_all(self, requests: Sequence[Request]) -> list[Answer]:
        slots = asyncio.Semaphore(self._max_concurrency)
        async with self._session() as session:
            return await asyncio.gather(*(self._answer(session, slots, request) for request in requests))

    async def _answer(self, session: aiohttp.ClientSession, slots: asyncio.Semaphore, request: Request) -> Answer:
        error: Exception | None = None
        pause = 0.0
        async with slots:
            for attempt in range(self._max_retries + 1):
                if attempt:
                    ceiling = min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2 ** (attempt - 1))
                    await asyncio.sleep(max(pause, ceiling * random.uniform(0.5, 1.0)))
                pause = 0.0
                url = f"{self._urls[(request.index + attempt) % len(self._urls)]}/v1/chat/completions"
                try:
                    return await self._ask(session, url, request)
                except aiohttp.ClientResponseError as failure:
                    error, pause = failure, retry_after_s(failure.headers or {}) if failure.status in BUSY else 0.0
                except (aiohttp.ClientError, TimeoutError) as failure:
                    error = failure
        raise SamplingError(
            f"row {request.index}: no answer after {self._max_retries + 1} tries (labels.max_retries, "
            f"labels.request_timeout_s): {type(error).__name__}: {error}; run the command again to go on from here"
        ) from error

    async def _ask(self, session: aiohttp.ClientSession, url: str, request: Request) -> Answer:
        """One try. Raises as `_read` does."""
        async with session.post(url, json=self._body(request), allow_redirects=False) as response:
            body = await self._read(url, response)
        try:
            answer = read_answer(body)
            self.meter.answered(*read_prompt(body), answer.tokens)
            return answer
        except ValueError as error:  # a proxy's error, with status 200
            raise aiohttp.ClientPayloadError(
                f"{url} did not answer as OpenAI's API does: {str(body)[:BODY_EXCERPT]}"
            ) from error

    def _body(self, request: Request) -> dict[str, Any]:
        wanted = self._sampling
        return {
            "model": self._model,
            "messages": request.messages,
            "temperature": wanted.temperature,
            "top_p": wanted.top_p,
            "top_k": wanted.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "max_tokens": wanted.max_tokens,
            "stop": wanted.stop,
            "skip_special_tokens": False,
            "seed": wanted.seed + request.index,
            "chat_template_kwargs": wanted.template_kwargs,
        }

    async def _read(self, url: str, response: aiohttp.ClientResponse) -> dict[str, Any]:
        """The JSON of an answer; aiohttp.ClientError where trying again may help, SamplingError where it cannot."""
        if response.status >= 500 or response.status == 429:
            response.raise_for_status()
        text = await read_body(response, SETTINGS_BYTES)
        if response.status != 200:
            hint = f"; set the environment variable {self._api_key_env}" if response.status in (401, 403) else ""
            raise SamplingError(f"{url} refused the request ({response.status}{hint}): {_excerpt(text)}")
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise aiohttp.ClientPayloadError(f"{url} answered no JSON: {_excerpt(text)}") from error

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            headers=PLAIN | bearer_header(self._api_key_env),
            timeout=self._timeout,
            connector=aiohttp.TCPConnector(limit=self._max_concurrency),
        )


def read_answer(body: Any) -> Answer:
    """What an OpenAI-compatible server answered. ValueError if that is no answer."""
    try:
        choice = body["choices"][0]
        text, tokens, finish = choice["message"]["content"], body["usage"]["completion_tokens"], choice["finish_reason"]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"it has no {error}") from error
    if not (isinstance(text, str | None) and isinstance(finish, str) and type(tokens) is int and tokens >= 0):
        raise ValueError(f"its content is {type(text).__name__}, its end {finish!r}, its tokens {tokens!r}")
    return Answer(text or "", tokens, finish)


def read_prompt(body: Any) -> tuple[int, int]:
    """Tokens of the prompt, and those of them that a cache had, where the server says it. ValueError if it says
    neither in numbers."""
    try:
        usage = body["usage"]
        prompt, cached = usage["prompt_tokens"], (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it has no {error}") from error
    if not (type(prompt) is int and type(cached) is int and 0 <= cached <= prompt):
        raise ValueError(f"its prompt has {prompt!r} tokens, {cached!r} of them cached")
    return prompt, cached


def _excerpt(text: bytes) -> str:
    """Its beginning, on one line."""
    return " ".join(text[:BODY_EXCERPT].decode(errors="replace").split())
