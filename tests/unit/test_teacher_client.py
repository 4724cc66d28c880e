"""TeacherClient against a server on loopback that speaks SGLang's protocol and can misbehave on request."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from verl_ext.teacher import client as client_module
from verl_ext.teacher.client import TeacherClient, TeacherResponseError, TeacherUnavailableError
from verl_ext.teacher.config import TeacherConfig

VOCAB = 50
PROMPT, RESPONSE = [3, 4, 5], [6, 7, 8, 9]

Fault = Callable[[web.Request, dict[str, Any]], Any]


def logprob_of(ids: list[int], position: int) -> float:
    """A log-prob that depends on the token and on all tokens before it, as a model's does."""
    return -(1 + ids[position]) / (1 + sum(ids[:position]))


@dataclass
class FakeSGLang:
    """Answers `/generate`. `faults` are used up one a request; then it behaves."""

    faults: list[Fault] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    delay_s: float = 0.0
    url: str = ""

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        ids, start = body["input_ids"], body["logprob_start_len"]
        echo = [0 if token == VOCAB - 1 else token for token in ids]  # the quirk of the real server
        entries = [[None, echo[start], None]]
        entries += [[logprob_of(ids, i), echo[i], None] for i in range(start + 1, len(ids))]
        return {"text": "", "meta_info": {"input_token_logprobs": entries, "cached_tokens": start}}

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.authorizations.append(request.headers.get("Authorization"))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self.delay_s)
            answer = self.answer(body)
            if self.faults:
                outcome = self.faults.pop(0)(request, answer)
                if asyncio.iscoroutine(outcome):
                    outcome = await outcome
                if isinstance(outcome, web.StreamResponse):
                    return outcome
            return web.json_response(answer)
        finally:
            self.running -= 1


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
    app.router.add_post("/generate", fake.generate)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    fake.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    return runner


@pytest_asyncio.fixture
async def server() -> AsyncIterator[FakeSGLang]:
    fake = FakeSGLang()
    runner = await serve(fake)
    yield fake
    await runner.cleanup()


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "BACKOFF_FIRST_S", 0.01)
    monkeypatch.delenv("TEACHER_API_KEY", raising=False)


def make_client(*urls: str, **changes: Any) -> TeacherClient:
    return TeacherClient(TeacherConfig(**{"mode": "external", "urls": list(urls), "max_retries": 2, **changes}), VOCAB)


async def test_scores_the_response_only(server: FakeSGLang) -> None:
    async with make_client(server.url) as client:
        logprobs = await client.score(PROMPT, RESPONSE)
        ids = PROMPT + RESPONSE
        assert logprobs == [logprob_of(ids, i) for i in range(len(PROMPT), len(ids))]
        assert server.requests == [
            {
                "input_ids": ids,
                "sampling_params": {"max_new_tokens": 0, "temperature": 0},
                "return_logprob": True,
                "logprob_start_len": len(PROMPT) - 1,
            }
        ]
        assert (client.stats.requests, client.stats.tokens, client.stats.cached_tokens) == (1, 7, 2)
        assert client.stats.retries == 0
        assert client.stats.seconds > 0


async def test_prime_sends_the_bare_prompt(server: FakeSGLang) -> None:
    async with make_client(server.url) as client:
        await client.prime(PROMPT)
        await client.probe()
    assert [request["input_ids"] for request in server.requests] == [PROMPT, [0, 0]]


async def test_edges_of_the_input(server: FakeSGLang) -> None:
    async with make_client(server.url) as client:
        assert await client.score(PROMPT, []) == []
        with pytest.raises(ValueError, match="prompt is empty"):
            await client.score([], RESPONSE)
        with pytest.raises(ValueError, match="prompt is empty"):
            await client.prime([])
        with pytest.raises(ValueError, match=r"response token 50 at position 1 is outside .* vocabulary of 50"):
            await client.score(PROMPT, [1, VOCAB])
        with pytest.raises(ValueError, match="prompt token -1 at position 0"):
            await client.prime([-1])
    assert server.requests == []  # such an id kills a real server, so it must never be sent


async def test_last_id_of_the_vocabulary_comes_back_as_zero(server: FakeSGLang) -> None:
    async with make_client(server.url) as client:
        assert len(await client.score([VOCAB - 1], [VOCAB - 1, 2])) == 2


@pytest.mark.parametrize("fault", [status(500), status(503), drop_connection], ids=["500", "503", "drop"])
async def test_passing_faults_are_retried(server: FakeSGLang, fault: Fault) -> None:
    server.faults = [fault, fault]
    async with make_client(server.url) as client:
        assert len(await client.score(PROMPT, RESPONSE)) == 4
        assert client.stats.retries == 2
        assert client.stats.requests == 1


async def test_timeout_is_retried(server: FakeSGLang) -> None:
    server.faults = [hang]
    async with make_client(server.url, request_timeout_s=0.2) as client:
        assert len(await client.score(PROMPT, RESPONSE)) == 4
        assert client.stats.retries == 1


async def test_gives_up_after_max_retries(server: FakeSGLang) -> None:
    server.faults = [status(500)] * 9
    async with make_client(server.url) as client:
        with pytest.raises(TeacherUnavailableError, match="after 3 tries"):
            await client.score(PROMPT, RESPONSE)
    assert len(server.requests) == 3


async def test_refusals_are_not_retried(server: FakeSGLang) -> None:
    server.faults = [status(400, "longer than the context")]
    async with make_client(server.url) as client:
        with pytest.raises(TeacherResponseError, match=r"400.*longer than the context"):
            await client.score(PROMPT, RESPONSE)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (edit(lambda entries: entries.pop()), "4 entries for 5 tokens"),
        (edit(lambda entries: entries.append([-1.0, 1, None])), "6 entries for 5 tokens"),
        (edit(lambda entries: entries[2].__setitem__(1, 30)), "scores token 30 at position 2, sent was 7"),
        (edit(lambda entries: entries[1].__setitem__(0, float("nan"))), "log-prob nan of response token 0"),
        (edit(lambda entries: entries[1].__setitem__(0, float("-inf"))), "log-prob -inf of response token 0"),
        (edit(lambda entries: entries[4].__setitem__(0, 0.1)), "log-prob 0.1 of response token 3"),
        (edit(lambda entries: entries[4].__setitem__(0, None)), "log-prob None of response token 3"),
        (edit(lambda entries: entries.__setitem__(1, 5)), "no readable input_token_logprobs"),
        (lambda _request, answer: answer.pop("meta_info") and None, "did not answer as SGLang does"),
        (lambda _request, _answer: web.Response(text="<html>"), "did not answer as SGLang does"),
    ],
)
async def test_wrong_answers_are_refused(server: FakeSGLang, fault: Fault, message: str) -> None:
    server.faults = [fault]
    async with make_client(server.url) as client:
        with pytest.raises(TeacherResponseError, match=message):
            await client.score(PROMPT, RESPONSE)
    assert len(server.requests) == 1


async def test_a_shift_by_one_is_refused(server: FakeSGLang) -> None:
    """The classic mistake: the list starts one token late and is padded at the end."""

    def shift(entries: list[list[Any]]) -> None:
        entries[:] = [*entries[1:], [-1.0, 2, None]]

    server.faults = [edit(shift)]
    async with make_client(server.url) as client:
        with pytest.raises(TeacherResponseError, match="sent was"):
            await client.score(PROMPT, RESPONSE)


async def test_rounding_above_zero_is_allowed(server: FakeSGLang) -> None:
    server.faults = [edit(lambda entries: entries[1].__setitem__(0, 1e-6))]
    async with make_client(server.url) as client:
        assert (await client.score(PROMPT, RESPONSE))[0] == 1e-6


async def test_concurrency_is_bounded(server: FakeSGLang) -> None:
    server.delay_s = 0.02
    async with make_client(server.url, max_concurrency=3) as client:
        await asyncio.gather(*(client.score(PROMPT, [i]) for i in range(12)))
    assert server.most_running == 3


async def test_samples_of_one_prompt_meet_one_server_and_fail_over(server: FakeSGLang) -> None:
    other = FakeSGLang()
    runner = await serve(other)
    async with make_client(server.url, other.url) as client:
        prompts = [[i, i + 1] for i in range(20)]
        for prompt in prompts * 2:
            await client.score(prompt, RESPONSE)
        seen = [{tuple(r["input_ids"]) for r in fake.requests} for fake in (server, other)]
        assert all(seen)  # both are used
        assert not (seen[0] & seen[1])  # and no prompt meets both
        await runner.cleanup()
        for prompt in prompts:
            await client.score(prompt, RESPONSE)
        assert client.stats.retries == len(seen[1])


async def test_api_key_is_sent_and_never_told(
    server: FakeSGLang, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", "secret-123")
    server.faults = [status(500), status(401)]
    async with make_client(server.url, api_key_env="MY_KEY") as client:
        with pytest.raises(TeacherResponseError, match="401; set the environment variable MY_KEY") as caught:
            await client.score(PROMPT, RESPONSE)
    assert server.authorizations == ["Bearer secret-123"] * 2
    assert "secret" not in str(caught.value) + caplog.text + repr(client.__dict__)


def test_needs_a_url() -> None:
    with pytest.raises(ValueError, match=r"teacher\.urls"):
        TeacherClient(TeacherConfig(model_path="m"), VOCAB)
