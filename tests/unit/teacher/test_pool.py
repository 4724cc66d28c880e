"""TeacherPool: what it asks of which server, and how it shares the work out."""

import asyncio
import contextlib
import logging
import re
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from fake_sglang import (
    PROBE,
    PROMPT,
    RESPONSE,
    VOCAB,
    FakeSGLang,
    edit,
    expected,
    hang,
    logprob_of,
    open_pool,
    score,
    serve,
    status,
)

from verl_ext.teacher.client.pool import TeacherPool
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.engines.sglang import SGLang
from verl_ext.teacher.engines.sizes import ENTRY_BYTES
from verl_ext.teacher.types import Score, ScoreRequest, TeacherError, TeacherResponseError, TeacherUnavailableError


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
        with pytest.raises(ValueError, match="2 mask values for 4 response tokens"):
            await score(pool, PROMPT, RESPONSE, response_mask=[1, 1])
        with pytest.raises(ValueError, match=r"top_k=51 is outside 0\.\.50"):
            await score(pool, PROMPT, RESPONSE, top_k=51)
    assert server.requests == []  # such an id kills a real server, so it must never be sent


async def test_last_id_of_the_vocabulary_comes_back_as_zero(server: FakeSGLang) -> None:
    async with open_pool(server) as pool:
        assert (await score(pool, [VOCAB - 1], [VOCAB - 1, 2])).logprobs.shape == (2,)


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
        assert metrics["open_breakers"] == 1
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


async def test_one_token_of_the_canary_beyond_the_tolerance_is_another_model(server: FakeSGLang) -> None:
    """The mean over the canary's tokens would be within it."""
    async with open_pool(server, probe_tolerance=0.05) as pool:
        server.faults = [edit(lambda entries: entries[3].__setitem__(0, entries[3][0] - 0.04))]
        await pool.probe()
        server.faults = [edit(lambda entries: entries[3].__setitem__(0, entries[3][0] - 0.1))]
        with pytest.raises(TeacherError, match=r"off by up to 0\.1 nats \(teacher\.probe_tolerance=0\.05\)"):
            await pool.probe()


async def test_servers_must_all_hold_one_model(server: FakeSGLang) -> None:
    other = FakeSGLang(model=0.5)
    runner = await serve(other)
    async with open_pool(server, other, probed=False) as pool:
        with pytest.raises(TeacherError, match=f"{other.url} serves another model"):
            await pool.probe()
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


def endless(request: web.Request, _answer: dict[str, Any]) -> Any:
    async def pour() -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for _ in range(1 << 12):
                await response.write(b" " * (1 << 16))  # 256 MiB in all
        return response

    return pour()


async def test_an_answer_without_end_is_not_read_to_it(server: FakeSGLang) -> None:
    server.faults = [endless]
    async with open_pool(server, max_retries=0) as pool:
        outcome = await score(pool, PROMPT, RESPONSE)
        assert isinstance(outcome, TeacherError)
        assert "the answer has more than 1," in str(outcome)
        assert not isinstance(await score(pool, PROMPT, RESPONSE), TeacherError)


def test_the_largest_answer_grows_with_what_was_asked_for() -> None:
    one = SGLang().largest_answer({"input_ids": [[1] * 10]})
    many = SGLang().largest_answer({"input_ids": [[1] * 1000] * 8, "top_logprobs_num": [20] * 8})
    assert 1 << 20 < one < 1.1 * (1 << 20)
    assert many > 8 * 1000 * 21 * len(b'[-12.345678901234567,151643,"\\ud83d\\ude00"],')


async def test_a_key_does_not_follow_to_another_server(server: FakeSGLang, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret-123")
    other = FakeSGLang()
    runner = await serve(other)
    server.faults = [lambda _request, _answer: web.Response(status=307, headers={"Location": f"{other.url}/generate"})]
    async with open_pool(server, api_key_env="MY_KEY", max_retries=0) as pool:
        outcome = await score(pool, PROMPT, RESPONSE)
    await runner.cleanup()
    assert isinstance(outcome, TeacherResponseError)
    assert "307" in str(outcome)
    assert not other.requests


SUPPORT = np.array([[6, 2, 49], [1, 2, 3], [8, 2, -1], [9, 40, 0]], np.int32)
"""Of the response 6 7 8 9, with `MASK`: the second token is a tool's."""
MASK = [1, 0, 1, 1]


async def test_named_tokens_come_per_wanted_token_beside_those_who_name_none(server: FakeSGLang) -> None:
    async with open_pool(server, prime=True) as pool:
        await pool.prime(ScoreRequest(PROMPT, []))
        naming = ScoreRequest(PROMPT, RESPONSE, MASK, support_ids=SUPPORT)
        plain, found = await pool.score([ScoreRequest(PROMPT, RESPONSE), naming])
    assert plain.top_ids is None
    assert plain.logprobs.tolist() == pytest.approx(expected(PROMPT, RESPONSE))
    assert found.top_ids.tolist() == [[6, 2, 49], [0, 0, 0], [8, 2, -1], [9, 40, 0]]
    for position, row in enumerate(found.top_logprobs.tolist()):
        ids = PROMPT + RESPONSE[:position]
        wanted = [-np.inf if token < 0 else logprob_of([*ids, token], len(ids)) for token in SUPPORT[position]]
        assert row == pytest.approx(wanted if MASK[position] else [0, 0, 0])
    bodies = [body["token_ids_logprob"] for body in server.requests if "token_ids_logprob" in body]
    named = [ids for body in bodies for ids in body if ids]
    assert named == [[0, 2, 6, 8, 9, 40, 49]]  # the tool's position names none


def named_fault(change: Any) -> Any:
    return lambda _request, answer: change(answer["meta_info"])


def shifted(meta: dict) -> None:
    rows = meta["input_token_ids_logprobs"]
    rows[1:] = [*rows[2:], rows[1]]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda meta: meta.pop("input_token_ids_logprobs"), "no readable log-probs of 7 named tokens"),
        (lambda meta: meta["input_token_ids_logprobs"].pop(), "has not the 7 named tokens at 4 positions"),
        (lambda meta: meta["input_token_ids_logprobs"][2].reverse(), "has not the 7 named tokens"),
        (lambda meta: meta["input_token_ids_logprobs"][1][0].__setitem__(1, 0.5), "has not the 7 named tokens"),
        (lambda meta: meta["input_token_ids_logprobs"][1].__setitem__(0, None), "no readable log-probs"),
        (lambda meta: meta["input_token_ids_logprobs"][1][0].__setitem__(0, None), "named log-prob nan .* not finite"),
        (lambda meta: meta["input_token_ids_logprobs"][1][0].__setitem__(0, 0.5), "named log-prob 0.5 .* above 0"),
        (shifted, "named too has log-probs .* nats apart"),
    ],
)
async def test_an_answer_that_is_not_of_the_named_tokens_is_none(server: FakeSGLang, fault: Any, message: str) -> None:
    server.faults = [named_fault(fault)]
    async with open_pool(server, max_retries=0) as pool:
        outcome = await score(pool, PROMPT, RESPONSE, response_mask=MASK, support_ids=SUPPORT)
    assert isinstance(outcome, TeacherError)
    assert re.search(message, str(outcome)), outcome


async def test_edges_of_named_tokens(server: FakeSGLang) -> None:
    async with open_pool(server) as pool:
        outcome = await score(pool, PROMPT, RESPONSE, response_mask=[0, 0, 0, 0], support_ids=SUPPORT)
        assert (outcome.top_ids.tolist(), outcome.top_logprobs.tolist()) == ([[0] * 3] * 4, [[0] * 3] * 4)
        nothing = np.full((4, 1), -1, np.int32)
        assert (await score(pool, PROMPT, RESPONSE, support_ids=nothing)).top_logprobs.tolist() == [[-np.inf]] * 4
        sent = len(server.requests)
        with pytest.raises(ValueError, match="support token 50 is outside the teacher's vocabulary of 50"):
            await score(pool, PROMPT, RESPONSE, support_ids=SUPPORT + 1)
        with pytest.raises(ValueError, match="support token -2 is outside"):
            await score(pool, PROMPT, RESPONSE, support_ids=SUPPORT - 1)
        with pytest.raises(ValueError, match=r"support_ids of shape \(3, 3\) for 4 response tokens"):
            await score(pool, PROMPT, RESPONSE, support_ids=SUPPORT[:3])
        with pytest.raises(ValueError, match="top_k=2 beside support_ids"):
            await score(pool, PROMPT, RESPONSE, support_ids=SUPPORT, top_k=2)
    assert len(server.requests) == sent


def test_an_answer_may_be_as_long_as_its_named_tokens_make_it() -> None:
    plain = {"input_ids": [[1] * 10, [2] * 5]}
    largest = SGLang().largest_answer
    more = largest(plain | {"token_ids_logprob": [[1, 2, 3], []]}) - largest(plain)
    assert more == 10 * 3 * ENTRY_BYTES
