"""Ask a model for answers to conversations: what is asked, and servers that speak OpenAI's chat API.

vLLM in this process: verl_ext/offline_vllm.py. Both send every sampling setting, so that no default of an engine or of
a model's generation_config.json gets in.
"""

import asyncio
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import aiohttp

BACKOFF_FIRST_S = 0.5
BACKOFF_LAST_S = 15.0
BODY_EXCERPT = 300  # characters of a server's error message that we pass on


class SamplingError(RuntimeError):
    """A server does not answer, or refuses."""


@dataclass(frozen=True)
class SamplingConfig:
    """How an answer is drawn. The defaults are those of Tinker's prompt distillation."""

    temperature: float = 0.15
    """Of the softmax; 0 is greedy, >= 0."""
    top_p: float = 1.0
    """Share of the probability mass that is sampled from, in (0, 1]; 1 is all of it."""
    top_k: int = -1
    """Most probable tokens that are sampled from, >= 1; -1 is all of them."""
    max_tokens: int = 1000
    """Longest answer, tokens, >= 1."""
    stop: list[str] = field(default_factory=lambda: ["<|im_end|>"])
    """Texts that end an answer and are no part of it; special tokens count as the text that they stand for."""
    seed: int = 0
    """A row is sampled with this plus its index: a resumed run draws what the whole one would have drawn."""
    enable_thinking: bool | None = False
    """Handed to the chat template, which may ignore it; null leaves the choice to the template."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"sampling.temperature={self.temperature} must be >= 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"sampling.top_p={self.top_p} must be above 0, at most 1")
        if self.top_k != -1 and self.top_k < 1:
            raise ValueError(f"sampling.top_k={self.top_k} must be >= 1, or -1 for all tokens")
        if self.max_tokens < 1:
            raise ValueError(f"sampling.max_tokens={self.max_tokens} must be >= 1")

    @property
    def template_kwargs(self) -> dict[str, Any]:
        return {} if self.enable_thinking is None else {"enable_thinking": self.enable_thinking}


@dataclass(frozen=True)
class EngineConfig:
    """How vLLM runs in this process; of no effect on a served model."""

    dtype: str = "auto"
    """`auto` (the checkpoint's own), `float32`, `bfloat16`, `float16`."""
    tp: int = 1
    """Tensor-parallel ranks, >= 1; one GPU each."""
    gpu_memory_utilization: float = 0.9
    """Share of a GPU's memory for weights and KV cache, in (0, 1]; on a CPU of no effect."""
    enforce_eager: bool = False
    """Capture no CUDA graphs: starts faster, samples slower. On a CPU always so."""

    def __post_init__(self) -> None:
        if self.tp < 1:
            raise ValueError(f"engine.tp={self.tp} must be >= 1")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ValueError(f"engine.gpu_memory_utilization={self.gpu_memory_utilization} must be above 0, at most 1")


@dataclass(frozen=True)
class Request:
    """A conversation to answer; `index` tells it from the others and goes into its seed."""

    index: int
    messages: list[dict[str, str]]


@dataclass(frozen=True)
class Answer:
    """What the model said."""

    text: str
    tokens: int
    finish: str
    """`stop`, or `length` where `max_tokens` or the context cut it off."""


@dataclass(frozen=True)
class Sample(Answer):
    """An answer token by token, as vLLM drew it; `R` response tokens."""

    ids: list[int]
    """Token ids, the end token included, (R,)."""
    logprobs: list[float]
    """The sampler's own log-probs of them, nats, at temperature 1 and over all tokens however they were drawn, (R,)."""


class Sampler(Protocol):
    """Whoever answers."""

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """One answer a request, in order."""
        ...


def render(tokenizer: Any, messages: list[dict[str, str]], template_kwargs: dict[str, Any]) -> list[int]:
    """The token ids of a conversation up to where the model's answer begins."""
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False, **template_kwargs
    )


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

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        return asyncio.run(self._answer_all(requests))

    def served_models(self) -> list[str]:
        """The names under which the first server offers models. SamplingError if it cannot be asked."""
        return asyncio.run(self._list_models())

    async def _list_models(self) -> list[str]:
        url = f"{self._urls[0]}/v1/models"
        async with self._session() as session:
            try:
                async with session.get(url) as response:
                    body = await self._read(url, response)
            except (aiohttp.ClientError, TimeoutError) as error:
                raise SamplingError(f"labels.urls: no answer from {url}: {error}") from error
        return [model["id"] for model in body["data"]]

    async def _answer_all(self, requests: Sequence[Request]) -> list[Answer]:
        slots = asyncio.Semaphore(self._max_concurrency)
        async with self._session() as session:
            return await asyncio.gather(*(self._answer(session, slots, request) for request in requests))

    async def _answer(self, session: aiohttp.ClientSession, slots: asyncio.Semaphore, request: Request) -> Answer:
        error: Exception | None = None
        async with slots:
            for attempt in range(self._max_retries + 1):
                if attempt:
                    ceiling = min(BACKOFF_LAST_S, BACKOFF_FIRST_S * 2 ** (attempt - 1))
                    await asyncio.sleep(ceiling * random.uniform(0.5, 1.0))
                url = f"{self._urls[(request.index + attempt) % len(self._urls)]}/v1/chat/completions"
                try:
                    async with session.post(url, json=self._body(request)) as response:
                        body = await self._read(url, response)
                    choice = body["choices"][0]
                    text = choice["message"]["content"] or ""
                    return Answer(text, body["usage"]["completion_tokens"], choice["finish_reason"])
                except (aiohttp.ClientError, TimeoutError) as failure:
                    error = failure
        raise SamplingError(
            f"row {request.index}: no answer after {self._max_retries + 1} tries (labels.max_retries, "
            f"labels.request_timeout_s): {type(error).__name__}: {error}; run the command again to go on from here"
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
        if response.status >= 500:
            response.raise_for_status()
        if response.status != 200:
            hint = f"; set the environment variable {self._api_key_env}" if response.status in (401, 403) else ""
            excerpt = (await response.text())[:BODY_EXCERPT]
            raise SamplingError(f"{url} refused the request ({response.status}{hint}): {excerpt}")
        return await response.json()

    def _session(self) -> aiohttp.ClientSession:
        api_key = os.environ.get(self._api_key_env, "")
        return aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=self._timeout,
            connector=aiohttp.TCPConnector(limit=self._max_concurrency),
        )
