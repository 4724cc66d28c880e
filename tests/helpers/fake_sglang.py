"""A server on loopback that speaks SGLang's protocol and can misbehave on request, and a pool that asks it."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from verl_ext.teacher.client.pool import TeacherPool
from verl_ext.teacher.client.protocol import canary_span
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.types import ScoreRequest

VOCAB = 50
PROMPT, RESPONSE = [3, 4, 5], [6, 7, 8, 9]
PROBE = canary_span(VOCAB).ids
MODEL_INFO = {"model_path": "/models/teacher", "weight_version": "default", "tokenizer_path": "/models/teacher"}
SERVER_INFO = {"quantization": None, "dtype": "float32", "kv_cache_dtype": "auto", "version": "0.5.21"}
"""What SGLang 0.5.21 says of itself, as far as we read it."""

Fault = Callable[[web.Request, dict[str, Any]], Any]


def logprob_of(ids: list[int], position: int) -> float:
    """A log-prob that depends on the token and on all tokens before it, as a model's does."""
    return -(1 + ids[position]) / (1 + sum(ids[:position]))


@dataclass
class FakeSGLang:
    """Answers `/generate`. `faults` are used up one a request; then it behaves. `model` shifts every log-prob."""

    faults: list[Fault] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    delay_s: float = 0.0
    model: float = 0.0
    vocabulary: int = VOCAB
    info: dict[str, Any] = field(default_factory=lambda: {**MODEL_INFO, **SERVER_INFO})
    """What `/model_info` and `/server_info` say; empty: no such questions."""
    tokenize: Callable[[str], list[int]] | None = None
    """Its tokenizer; None: it has none."""
    refuses: int | None = None
    """A token id; every request that holds it is answered with status 400."""
    url: str = ""

    @property
    def sequences(self) -> list[list[int]]:
        """Every sequence sent, the probes left out."""
        probe = canary_span(self.vocabulary).ids
        return [ids for body in self.requests for ids in body["input_ids"] if ids != probe]

    def answer(self, ids: list[int], start: int, top_k: int, named: list[int]) -> dict[str, Any]:
        echo = [0 if token == self.vocabulary - 1 else token for token in ids]  # the quirk of the real server
        entries = [[None, echo[start], None]]
        entries += [[logprob_of(ids, i) - self.model, echo[i], None] for i in range(start + 1, len(ids))]
        meta = {"input_token_logprobs": entries, "cached_tokens": start}
        if top_k:
            rows = len(ids) - 1 - start
            meta["input_top_logprobs"] = [None, *([[-1.0 - k, k, None] for k in range(top_k)] for _ in range(rows))]
        if named:
            rows = [
                [[logprob_of([*ids[:i], token], i), token, None] for token in named] for i in range(start + 1, len(ids))
            ]
            meta["input_token_ids_logprobs"] = [None, *rows]
        return {"text": "", "meta_info": meta}

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/generate", self.generate),
            web.post("/v1/tokenize", self.tokens),
            web.get("/model_info", self.tell),
            web.get("/server_info", self.tell),
        ]

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.authorizations.append(request.headers.get("Authorization"))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self.delay_s)
            top_k = body.get("top_logprobs_num", [0] * len(body["input_ids"]))
            named = body.get("token_ids_logprob", [[]] * len(body["input_ids"]))
            assert isinstance(named[0], list)  # else SGLang takes it for every sequence's list
            each = zip(body["input_ids"], body["logprob_start_len"], top_k, named, strict=True)
            answers = [self.answer(*one) for one in each]
            if any(self.refuses in ids for ids in body["input_ids"]):
                return web.Response(status=400, text="too long")
            if self.faults:
                outcome = self.faults.pop(0)(request, answers[0])
                if asyncio.iscoroutine(outcome):
                    outcome = await outcome
                if isinstance(outcome, web.StreamResponse):
                    return outcome
            return web.json_response(answers)
        finally:
            self.running -= 1

    async def tell(self, _request: web.Request) -> web.Response:
        return web.json_response(self.info) if self.info else web.Response(status=404)

    async def tokens(self, request: web.Request) -> web.Response:
        if self.tokenize is None:
            return web.Response(status=500)
        return web.json_response({"tokens": [self.tokenize(text) for text in (await request.json())["prompt"]]})


def status(code: int, text: str = "no") -> Fault:
    return lambda _request, _answer: web.Response(status=code, text=text)


def drop_connection(request: web.Request, _answer: dict[str, Any]) -> None:
    assert request.transport is not None
    request.transport.abort()


async def hang(_request: web.Request, _answer: dict[str, Any]) -> None:
    await asyncio.sleep(5)


def edit(change: Callable[[list[list[Any]]], Any]) -> Fault:
    """A fault in the list of log-probs."""

    def apply(_request: web.Request, answer: dict[str, Any]) -> None:
        change(answer["meta_info"]["input_token_logprobs"])

    return apply


async def serve(fake: FakeSGLang) -> web.AppRunner:
    app = web.Application()
    app.add_routes(fake.routes())
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    return runner


@contextlib.contextmanager
def serving(fake: FakeSGLang) -> Iterator[FakeSGLang]:
    """Up in a thread of its own, for callers that have no event loop, or start one."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    runner = asyncio.run_coroutine_threadsafe(serve(fake), loop).result()
    try:
        yield fake
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@contextlib.asynccontextmanager
async def open_pool(*fakes: FakeSGLang, probed: bool = True, **changes: Any) -> AsyncIterator[TeacherPool]:
    """A pool whose servers were probed; what they saw of that is forgotten, so that a test sees its own requests."""
    defaults = {"mode": "external", "urls": [fake.url for fake in fakes], "max_retries": 2, "breaker_cooldown_s": 0.05}
    async with TeacherPool(TeacherConfig(**defaults | changes), VOCAB) as pool:
        if probed:
            faults = [(fake, fake.faults) for fake in fakes]
            for fake in fakes:
                fake.faults = []
            await pool.probe()
            for fake, had in faults:
                fake.faults = had
                fake.requests.clear()
                fake.authorizations.clear()
        yield pool


async def score(pool: TeacherPool, prompt: list[int], response: list[int], **more: Any) -> Any:
    (outcome,) = await pool.score([ScoreRequest(prompt, response, **more)])
    return outcome


def expected(prompt: list[int], response: list[int]) -> list[float]:
    ids = prompt + response
    return [logprob_of(ids, i) for i in range(len(prompt), len(ids))]
