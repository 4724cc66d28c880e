"""The student's base as its own teacher: what vLLM is asked for, and what becomes of its answer."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from verl.workers.rollout.replica import TokenOutput

from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.types import ScoreRequest, TeacherUnavailableError
from verl_ext.trainer.base_teacher import BaseScorer, scores_of


def likely(rank: int, logprob: float) -> SimpleNamespace:
    """As vLLM's `Logprob`."""
    return SimpleNamespace(rank=rank, logprob=logprob)


PLACES = [
    None,
    {5: likely(1, -0.1)},
    {7: likely(3, -2.0), 8: likely(1, -0.5), 9: likely(2, -1.0)},
    {8: likely(1, -0.3), 9: likely(2, -0.9)},
]
"""vLLM's log-probs of the prompt [4, 5, 7, 8]: the first token has none; 7 is not among the two most likely."""


def answer(reason: str = "completed", **scores) -> TokenOutput:
    fields = {"finish_reason": "length", "scores": scores or None, "global_steps": 3}
    return TokenOutput(token_ids=[1], stop_reason=reason, extra_fields=fields)


class Client:
    """verl's client as far as a scorer uses it, before a server that gives these answers or errors."""

    def __init__(self, *answers: TokenOutput | Exception) -> None:
        self.answers, self.requests, self.open = list(answers), [], 0

    async def _acquire_server(self, request_id: str, **extra):
        del request_id, extra
        self.open += 1

        async def generate(**request):
            self.requests.append(request)
            found = self.answers.pop(0) if self.answers else await asyncio.sleep(60)
            if isinstance(found, Exception):
                raise found
            return found

        return "server", SimpleNamespace(generate=SimpleNamespace(remote=generate))

    def _release_server(self, server_id: str, request_id: str | None = None) -> None:
        del server_id, request_id
        self.open -= 1


def scorer(client: Client, **settings) -> BaseScorer:
    return BaseScorer(client, TeacherConfig(mode="base", model_path="base", device="cpu", **settings), vocab_size=10)


def score(of: BaseScorer, request: ScoreRequest):
    (outcome,) = asyncio.run(of.score([request]))
    return outcome


def test_the_scores_of_a_prompt_are_those_of_its_last_tokens():
    found = scores_of(PLACES, [4, 5, 7, 8], start=2, top_k=2)
    assert found == {
        "logprobs": [-2.0, -0.3],
        "top_ids": [[8, 9], [8, 9]],
        "top_logprobs": [[-0.5, -1.0], [-0.3, -0.9]],
    }
    assert scores_of(PLACES, [4, 5, 7, 8], start=3, top_k=0) == {
        "logprobs": [-0.3],
        "top_ids": [[]],
        "top_logprobs": [[]],
    }


def test_a_sample_is_one_prompt_and_a_masked_token_has_no_score():
    client = Client(answer(**scores_of(PLACES, [4, 5, 7, 8], start=2, top_k=2)))
    own = scorer(client)
    found = score(own, ScoreRequest([4, 5], [7, 8], [0, 1], top_k=2))
    (request,) = client.requests
    assert request["prompt_ids"] == [4, 5, 7, 8]
    assert request["scored"] == {"start": 2, "top_k": 2, "adapter": "none"}
    assert request["sampling_params"] == {"max_tokens": 1, "temperature": 1.0}
    np.testing.assert_array_equal(found.logprobs, np.array([0.0, -0.3], np.float32))
    np.testing.assert_array_equal(found.top_ids, [[0, 0], [8, 9]])
    np.testing.assert_array_equal(found.top_logprobs, np.array([[0, 0], [-0.3, -0.9]], np.float32))
    assert client.open == 0
    assert own.metrics() == {
        **{"requests": 1, "sequences": 1, "tokens": 4, "retries": 0, "failures": 0},
        **{"cached_tokens": 0, "queue_seconds": 0},
    }
    assert own.metrics()["requests"] == 0


def test_what_vllm_gave_up_for_a_weight_sync_is_asked_again():
    scores = scores_of(PLACES, [4, 5, 7, 8], start=2, top_k=0)
    client = Client(answer("aborted"), answer(**scores))
    own = scorer(client)
    assert score(own, ScoreRequest([4, 5], [7, 8])).logprobs.tolist() == pytest.approx([-2.0, -0.3])
    assert (own.metrics()["retries"], client.open) == (1, 0)


def test_a_refreshed_teacher_is_the_student_as_it_is():
    for settings, adapter in (
        ({"refresh_every": 1}, "student"),
        ({"refresh_every": 2}, "earlier"),
        ({"refresh_every": 1, "ema": 0.9}, "earlier"),
    ):
        client = Client(answer(**scores_of(PLACES, [4, 5, 7, 8], start=2, top_k=0)))
        score(scorer(client, **settings), ScoreRequest([4, 5], [7, 8]))
        assert client.requests[0]["scored"]["adapter"] == adapter


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"refresh_every": -1}, r"teacher\.refresh_every: -1 must be 0, or at least 1 with mode=base"),
        ({"refresh_every": 1, "mode": "managed"}, r"teacher\.refresh_every: 1 must be 0"),
        ({"refresh_every": 1, "ema": 1.0}, r"teacher\.ema: 1\.0 must be at least 0 and below 1"),
        ({"ema": 0.5}, r"teacher\.ema: 0\.5 needs a teacher\.refresh_every >= 1"),
    ],
)
def test_a_refresh_that_nobody_can_make_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        TeacherConfig(**{"mode": "base", "model_path": "base", "device": "cpu"} | settings)


def test_an_answer_of_no_token_asks_nobody():
    client = Client()
    assert score(scorer(client), ScoreRequest([4], [], top_k=2)).top_ids.shape == (0, 2)
    assert not client.requests


def test_a_sampler_that_fails_or_is_late_leaves_the_sample_unscored():
    client = Client(RuntimeError("EngineDeadError: gone"))
    found = score(scorer(client), ScoreRequest([4], [7]))
    assert isinstance(found, TeacherUnavailableError)
    assert "EngineDeadError: gone" in str(found)
    late = score(scorer(client, sample_timeout_s=0.01), ScoreRequest([4], [7]))
    assert "teacher.sample_timeout_s=0.01" in str(late)
    assert client.open == 0


@pytest.mark.parametrize("request_", [ScoreRequest([], [7]), ScoreRequest([4], [10]), ScoreRequest([-1], [7])])
def test_what_vllm_must_never_see_is_not_sent(request_):
    client = Client()
    with pytest.raises(ValueError, match=r"0\.\.9"):
        score(scorer(client), request_)
    assert not client.requests
