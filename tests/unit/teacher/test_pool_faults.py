"""TeacherPool and servers that fail, answer what cannot be, or refuse."""

import re
from typing import Any

import pytest
from aiohttp import web
from fake_sglang import (
    PROMPT,
    RESPONSE,
    FakeSGLang,
    Fault,
    drop_connection,
    edit,
    expected,
    hang,
    open_pool,
    score,
    status,
)

from verl_ext.teacher.types import Score, ScoreRequest, TeacherResponseError, TeacherUnavailableError


@pytest.mark.parametrize("fault", [status(500), status(503), drop_connection], ids=["500", "503", "drop"])
async def test_passing_faults_are_retried(server: FakeSGLang, fault: Fault) -> None:
    server.faults = [fault, fault]
    async with open_pool(server) as pool:
        assert (await score(pool, PROMPT, RESPONSE)).logprobs.shape == (4,)
        metrics = pool.metrics()
        assert (metrics["retries"], metrics["failures"], metrics["sequences"]) == (2, 2, 1)


def busy(retry_after: str) -> Fault:
    return lambda _request, _answer: web.Response(status=429, headers={"Retry-After": retry_after})


async def test_a_busy_server_is_asked_again_when_it_says_and_has_not_failed(server: FakeSGLang) -> None:
    server.faults = [busy("0.1"), busy("0"), busy("Wed, 21 Oct 2015 07:28:00 GMT")]
    async with open_pool(server, max_retries=0, breaker_failures=1) as pool:
        assert isinstance(await score(pool, PROMPT, RESPONSE), Score)
        metrics = pool.metrics()
    assert (metrics["retries"], metrics["failures"], metrics["open_breakers"], len(server.requests)) == (0, 0, 0, 4)


async def test_a_server_that_is_always_busy_has_failed(server: FakeSGLang) -> None:
    server.faults = [busy("0.1")] * 99
    async with open_pool(server, max_retries=0, request_timeout_s=0.2) as pool:
        outcome = await score(pool, PROMPT, RESPONSE)
    assert isinstance(outcome, TeacherUnavailableError)
    assert "answered 429" in str(outcome)


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
        (lambda _request, _answer: web.Response(text="<html>\nbad"), "did not answer as SGLang does: <html> bad$"),
        (lambda _request, _answer: web.json_response({"error": "overload"}), 'SGLang does: {"error": "overload"}'),
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
