"""TeacherPool against a server on loopback that speaks SGLang's protocol and can misbehave on request."""

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from verl_ext.teacher import pool as pool_module
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.pool import TeacherPool
from verl_ext.teacher.scorer import (
    Score,
    ScoreRequest,
    TeacherError,
    TeacherResponseError,
    TeacherUnavailableError,
)
from verl_ext.teacher.wire import probe_span

VOCAB = 50
PROMPT, RESPONSE = [3, 4, 5], [6, 7, 8, 9]
PROBE = probe_span(VOCAB).ids

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
    url: str = ""

    @property
    def sequences(self) -> list[list[int]]:
        """Every sequence sent, the probes left out."""
        return [ids for body in self.requests for ids in body["input_ids"] if ids != PROBE]

    def answer(self, ids: list[int], start: int, top_k: int) -> dict[str, Any]:
        echo = [0 if token == VOCAB - 1 else token for token in ids]  # the quirk of the real server
        entries = [[None, echo[start], None]]
        entries += [[logprob_of(ids, i) - self.model, echo[i], None] for i in range(start + 1, len(ids))]
        meta = {"input_token_logprobs": entries, "cached_tokens": start}
        if top_k:
            rows = len(ids) - 1 - start
            meta["input_top_logprobs"] = [None, *([[-1.0 - k, k, None] for k in range(top_k)] for _ in range(rows))]
        return {"text": "", "meta_info": meta}

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.requests.append(body)
        self.authorizations.append(request.headers.get("Authorization"))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self.delay_s)
            top_k = body.get("top_logprobs_num", [0] * len(body["input_ids"]))
            answers = [
                self.answer(*each) for each in zip(body["input_ids"], body["logprob_start_len"], top_k, strict=True)
            ]
            if self.faults:
                outcome = self.faults.pop(0)(request, answers[0])
                if asyncio.iscoroutine(outcome):
                    outcome = await outcome
                if isinstance(outcome, web.StreamResponse):
                    return outcome
            return web.json_response(answers)
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
    monkeypatch.setattr(pool_module, "BACKOFF_FIRST_S", 0.01)
    monkeypatch.delenv("TEACHER_API_KEY", raising=False)


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


async def test_scores_the_response_only_and_sends_the_probe_along(server: FakeSGLang) -> None:
    async with open_pool(server) as pool:
        outcome = await score(pool, PROMPT, RESPONSE)
        assert outcome.logprobs.tolist() == pytest.approx(expected(PROMPT, RESPONSE))
        (body,) = server.requests
        assert body["input_ids"] == [PROMPT + RESPONSE, PROBE]
        assert body["logprob_start_len"] == [len(PROMPT) - 1, 0]
        assert body["sampling_params"] == {"max_new_tokens": 0, "temperature": 0}
        metrics = pool.metrics()
        assert (metrics["requests"], metrics["sequences"], metrics["tokens"], metrics["cached_tokens"]) == (2, 1, 7, 2)
        assert pool.metrics()["sequences"] == 0  # counts start anew


async def test_many_requests_travel_together_up_to_the_token_budget(server: FakeSGLang) -> None:
    async with open_pool(server, batch_tokens=20, max_concurrency=1, prime=False) as pool:
        requests = [ScoreRequest(PROMPT, [i, i + 1]) for i in range(9)]  # 5 tokens each
        outcomes = await pool.score([*requests, ScoreRequest(PROMPT, [1] * 40)])
    for request, outcome in zip(requests, outcomes[:9], strict=True):
        assert outcome.logprobs.tolist() == pytest.approx(expected(PROMPT, list(request.response_ids)))
    assert [len(body["input_ids"]) - 1 for body in server.requests] == [4, 4, 1, 1]  # the long one alone


async def test_only_the_wanted_tokens_are_asked_for(server: FakeSGLang) -> None:
    async with open_pool(server) as pool:
        outcome = await score(pool, PROMPT, RESPONSE, response_mask=[0, 1, 1, 0])
        assert outcome.logprobs.tolist() == pytest.approx([0, *expected(PROMPT, RESPONSE)[1:3], 0])
        assert server.sequences == [(PROMPT + RESPONSE)[:-1]]
        assert server.requests[0]["logprob_start_len"][0] == len(PROMPT)
        outcome = await score(pool, PROMPT, RESPONSE, response_mask=[0, 0, 0, 0], top_k=2)
        assert outcome.logprobs.tolist() == [0, 0, 0, 0]
        assert outcome.top_ids.shape == (4, 2)
        assert len(server.requests) == 1


async def test_top_k_comes_per_wanted_token(server: FakeSGLang) -> None:
    async with open_pool(server) as pool:
        outcome = await score(pool, PROMPT, RESPONSE, top_k=3, response_mask=[1, 0, 1, 1])
    assert outcome.top_ids.tolist() == [[0, 1, 2], [0, 0, 0], [0, 1, 2], [0, 1, 2]]
    assert outcome.top_logprobs.tolist() == [[-1, -2, -3], [0, 0, 0], [-1, -2, -3], [-1, -2, -3]]


async def test_a_group_is_primed_once_and_the_first_prompt_goes_alone(server: FakeSGLang) -> None:
    server.delay_s = 0.01
    async with open_pool(server) as pool:
        prompts = [[i, i + 1, i + 2] for i in range(6)]
        for prompt in prompts * 2:
            await pool.prime(ScoreRequest(prompt, []))
        await pool.score([ScoreRequest(prompt, [j]) for prompt in prompts for j in range(4)])
        assert [ids for ids in server.sequences if len(ids) == 3] == prompts  # each once
    server.requests.clear()
    async with open_pool(server) as pool:
        await pool.score([ScoreRequest(prompt, [j]) for prompt in prompts for j in range(4)])
        await score(pool, [40, 41], [1])  # alone: nothing shares its prompt
    assert server.requests[0]["input_ids"] == [prompts[0], PROBE]
    assert sum(ids in prompts for ids in server.sequences) == len(prompts)
    assert [40, 41] not in server.sequences


async def test_edges_of_the_input(server: FakeSGLang) -> None:
    async with open_pool(server) as pool:
        assert (await score(pool, PROMPT, [])).logprobs.shape == (0,)
        assert await pool.score([]) == []
        with pytest.raises(ValueError, match="prompt is empty"):
            await score(pool, [], RESPONSE)
        with pytest.raises(ValueError, match="prompt is empty"):
            await pool.prime(ScoreRequest([], []))
        with pytest.raises(ValueError, match=r"response token 50 at position 1 is outside .* vocabulary of 50"):
            await score(pool, PROMPT, [1, VOCAB])
        with pytest.raises(ValueError, match="prompt token -1 at position 0"):
            await pool.prime(ScoreRequest([-1], []))
        with pytest.raises(ValueError, match="asked token 77 at position 0"):
            await score(pool, PROMPT, RESPONSE, token_ids=(77,))
        with pytest.raises(ValueError, match="2 mask values for 4 response tokens"):
            await score(pool, PROMPT, RESPONSE, response_mask=[1, 1])
        with pytest.raises(ValueError, match=r"top_k=51 is outside 0\.\.50"):
            await score(pool, PROMPT, RESPONSE, top_k=51)
    assert server.requests == []  # such an id kills a real server, so it must never be sent


async def test_last_id_of_the_vocabulary_comes_back_as_zero(server: FakeSGLang) -> None:
    async with open_pool(server) as pool:
        assert (await score(pool, [VOCAB - 1], [VOCAB - 1, 2])).logprobs.shape == (2,)


@pytest.mark.parametrize("fault", [status(500), status(503), drop_connection], ids=["500", "503", "drop"])
async def test_passing_faults_are_retried(server: FakeSGLang, fault: Fault) -> None:
    server.faults = [fault, fault]
    async with open_pool(server) as pool:
        assert (await score(pool, PROMPT, RESPONSE)).logprobs.shape == (4,)
        metrics = pool.metrics()
        assert (metrics["retries"], metrics["failures"], metrics["sequences"]) == (2, 2, 1)


async def test_timeout_is_retried(server: FakeSGLang) -> None:
    server.faults = [hang]
    async with open_pool(server, request_timeout_s=0.2) as pool:
        assert (await score(pool, PROMPT, RESPONSE)).logprobs.shape == (4,)
        assert pool.metrics()["retries"] == 1


async def test_gives_up_after_max_retries_and_the_others_live(server: FakeSGLang) -> None:
    server.faults = [status(500)] * 3
    async with open_pool(server, breaker_failures=9) as pool:
        outcome = await score(pool, PROMPT, RESPONSE)
        assert isinstance(outcome, TeacherUnavailableError)
        assert "in 3 tries" in str(outcome)
        assert len(server.requests) == 3
        assert isinstance(await score(pool, PROMPT, RESPONSE), Score)
        assert pool.metrics()["pool_unscored"] == 1


async def test_a_refused_request_is_not_retried_and_takes_no_other_with_it(server: FakeSGLang) -> None:
    def refuse_long(_request: web.Request, _answer: dict[str, Any]) -> web.Response | None:
        too_long = any(len(ids) > 30 for ids in server.requests[-1]["input_ids"])
        return web.Response(status=400, text="longer than the context") if too_long else None

    server.faults = [refuse_long] * 9
    async with open_pool(server, prime=False) as pool:
        outcomes = await pool.score([ScoreRequest(PROMPT, [i] * n) for i, n in enumerate((2, 40, 3))])
        assert isinstance(outcomes[1], TeacherResponseError)
        assert "400" in str(outcomes[1])
        assert "longer than the context" in str(outcomes[1])
        assert [len(o.logprobs) for o in (outcomes[0], outcomes[2]) if isinstance(o, Score)] == [2, 3]
        assert pool.metrics()["retries"] == 0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (edit(lambda entries: entries.pop()), "4 entries for 5 tokens"),
        (edit(lambda entries: entries.append([-1.0, 1, None])), "6 entries for 5 tokens"),
        (edit(lambda entries: entries[2].__setitem__(1, 30)), "scores token 30 at position 2, sent was 7"),
        (edit(lambda entries: entries[1].__setitem__(0, None)), "log-prob nan of response token 0 is not finite"),
        (edit(lambda entries: entries[1].__setitem__(0, -1e39)), "log-prob -inf of response token 0 is not finite"),
        (edit(lambda entries: entries[4].__setitem__(0, 0.1)), "log-prob 0.1.* of response token 3 is above 0"),
        (edit(lambda entries: entries[4].__setitem__(0, "x")), "a log-prob is not a number"),
        (edit(lambda entries: entries.__setitem__(1, 5)), "no readable input_token_logprobs"),
        # The classic mistake: the list starts one token late and is padded at the end.
        (edit(lambda entries: entries.append([-1.0, 2, None]) or entries.pop(0)), "sent was"),
        (lambda _request, answer: answer.pop("meta_info") and None, "did not answer as SGLang does"),
        (lambda _request, answer: answer["meta_info"].pop("cached_tokens") and None, "did not answer as SGLang does"),
        (lambda _request, _answer: web.Response(text="<html>"), "did not answer as SGLang does"),
        (lambda _request, _answer: web.Response(text='[{"meta_info": {'), "did not answer as SGLang does"),
        (lambda _request, _answer: web.Response(text="[]"), "gave 0 answers to 2 sequences"),
    ],
)
async def test_unusable_answers_never_become_scores(server: FakeSGLang, fault: Fault, message: str) -> None:
    server.faults = [fault] * 3
    async with open_pool(server, breaker_failures=9) as pool:
        outcome = await score(pool, PROMPT, RESPONSE)
        assert isinstance(outcome, TeacherUnavailableError)
        assert re.search(message, str(outcome)), outcome
        assert pool.metrics()["failures"] == 3


async def test_an_unusable_answer_is_asked_again(server: FakeSGLang) -> None:
    server.faults = [edit(lambda entries: entries[1].__setitem__(0, None))]
    async with open_pool(server) as pool:
        outcome = await score(pool, PROMPT, RESPONSE)
    assert outcome.logprobs.tolist() == pytest.approx(expected(PROMPT, RESPONSE))


async def test_rounding_above_zero_is_allowed(server: FakeSGLang) -> None:
    server.faults = [edit(lambda entries: entries[1].__setitem__(0, 1e-6))]
    async with open_pool(server) as pool:
        assert (await score(pool, PROMPT, RESPONSE)).logprobs[0] == pytest.approx(1e-6)


async def test_concurrency_is_bounded(server: FakeSGLang) -> None:
    server.delay_s = 0.02
    async with open_pool(server, max_concurrency=3, batch_tokens=1, prime=False) as pool:
        outcomes = await pool.score([ScoreRequest(PROMPT, [i]) for i in range(12)])
    assert all(isinstance(outcome, Score) for outcome in outcomes)
    assert server.most_running == 3


async def test_samples_of_one_prompt_meet_one_server_and_fail_over(server: FakeSGLang) -> None:
    other = FakeSGLang()
    runner = await serve(other)
    server.delay_s = other.delay_s = 0.01
    async with open_pool(server, other, max_retries=5, prime=False, breaker_failures=1) as pool:
        requests = [ScoreRequest([i, i + 1], [j]) for i in range(20) for j in range(2)]
        await pool.score(requests)
        seen = [{tuple(ids[:2]) for ids in fake.sequences} for fake in (server, other)]
        assert all(seen)  # both are used
        assert not (seen[0] & seen[1])  # and no prompt meets both
        await runner.cleanup()
        assert all(isinstance(outcome, Score) for outcome in await pool.score(requests))
        metrics = pool.metrics()
        assert metrics["servers_left_alone"] == 1
        assert metrics["times_opened"] == 1
        assert metrics["server0_sequences"] >= len(requests)


async def test_a_server_is_readmitted_after_its_probe(server: FakeSGLang) -> None:
    server.faults = [status(500)] * 3
    async with open_pool(server, max_retries=5, breaker_failures=2) as pool:
        assert isinstance(await score(pool, PROMPT, RESPONSE), Score)
        assert pool.metrics()["times_opened"] == 1
        assert [PROBE] in [body["input_ids"] for body in server.requests]


async def test_another_model_on_the_same_port_is_never_believed(server: FakeSGLang) -> None:
    async with open_pool(server, sample_timeout_s=0.4) as pool:
        assert isinstance(await score(pool, PROMPT, RESPONSE), Score)
        server.model = 0.5  # restarted with other weights
        outcome = await score(pool, PROMPT, RESPONSE)
        assert isinstance(outcome, TeacherUnavailableError)
        assert "serves another model than before" in str(outcome)
        server.model = 0.0
        await asyncio.sleep(0.2)
        assert isinstance(await score(pool, PROMPT, RESPONSE), Score)
    async with TeacherPool(
        TeacherConfig(mode="external", urls=[server.url]), VOCAB, probe_logprobs=[-9.0] * (len(PROBE) - 1)
    ) as pool:
        with pytest.raises(TeacherError, match="another model"):
            await pool.probe()


async def test_servers_must_all_hold_one_model(server: FakeSGLang) -> None:
    other = FakeSGLang(model=0.5)
    runner = await serve(other)
    async with open_pool(server, other, probed=False) as pool:
        with pytest.raises(TeacherError, match=f"{other.url} serves another model"):
            await pool.probe()
    await runner.cleanup()


async def test_a_straggler_is_hedged(server: FakeSGLang) -> None:
    other = FakeSGLang()
    runner = await serve(other)
    server.delay_s = other.delay_s = 0.02
    async with open_pool(server, other, hedge_after=10.0) as pool:
        for i in range(8):
            await score(pool, [i], RESPONSE)  # what is usual
        home = server if server.sequences[-1:] == [[7, *RESPONSE]] else other
        home.faults = [hang]
        assert isinstance(await asyncio.wait_for(score(pool, [7], RESPONSE), 2), Score)
        assert pool.metrics()["hedges"] >= 1
    await runner.cleanup()


async def test_nobody_to_ask_ends_within_the_samples_time(server: FakeSGLang) -> None:
    url = server.url.rpartition(":")[0] + ":9"
    config = TeacherConfig(mode="external", urls=[url], sample_timeout_s=0.3, breaker_cooldown_s=0.05)
    async with TeacherPool(config, VOCAB) as pool:
        outcomes = await pool.score([ScoreRequest(PROMPT, [i]) for i in range(5)])
        assert all(isinstance(outcome, TeacherUnavailableError) for outcome in outcomes)
        assert "teacher.sample_timeout_s=0.3" in str(outcomes[0])
        assert pool.metrics()["pool_unscored"] == 5


async def test_api_key_is_sent_and_never_told(
    server: FakeSGLang, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", "secret-123")
    server.faults = [status(500), status(401)]
    async with open_pool(server, api_key_env="MY_KEY") as pool:
        outcome = await score(pool, PROMPT, RESPONSE)
        assert isinstance(outcome, TeacherResponseError)
        assert "401; set MY_KEY" in str(outcome)
    assert server.authorizations == ["Bearer secret-123"] * 2
    assert "secret" not in str(outcome) + caplog.text + repr(vars(pool)) + repr(vars(pool.links[0]))


async def test_closing_settles_what_waits(server: FakeSGLang) -> None:
    server.faults = [hang]
    async with open_pool(server, max_retries=0) as pool:
        waiting = asyncio.create_task(score(pool, PROMPT, RESPONSE))
        while not server.requests:
            await asyncio.sleep(0.01)
    assert isinstance(await asyncio.wait_for(waiting, 1), TeacherUnavailableError)


def test_needs_a_url() -> None:
    with pytest.raises(ValueError, match=r"teacher\.urls"):
        TeacherPool(TeacherConfig(model_path="m"), VOCAB)
