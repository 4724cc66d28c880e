"""An answer in parts: what vLLM gave up for a weight sync goes on where it stopped."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
from verl.workers.rollout.replica import TokenOutput

from verl_ext.trainer.client import GOES_FIRST, ResumingClient
from verl_ext.trainer.shared_calls import SamplerLost
from verl_ext.trainer.support import IDS, LOGPROBS


def part(tokens: list[int], version: int, reason: str, **more) -> TokenOutput:
    stop = "aborted" if reason == "abort" else "completed"
    fields = {"global_steps": version, "finish_reason": reason, "num_cached_tokens": 10 * version}
    logprobs = [-0.1 * token for token in tokens]
    return TokenOutput(token_ids=tokens, log_probs=logprobs, stop_reason=stop, extra_fields=fields, **more)


class Client(ResumingClient):
    """The real client before a server that gives these parts."""

    def __init__(self, *parts: TokenOutput, length: int = 8) -> None:
        rollout = SimpleNamespace(response_length=length, name="vllm", full_determinism=False)
        super().__init__(SimpleNamespace(actor_rollout_ref=SimpleNamespace(rollout=rollout)))
        self.parts, self.requests = list(parts), []

    async def _acquire_server(self, request_id: str, **extra):
        del request_id, extra

        async def generate(**request):
            self.requests.append(request)
            if not self.parts:
                raise SamplerLost("the engine is dead")
            return self.parts.pop(0)

        return "server", SimpleNamespace(generate=SimpleNamespace(remote=generate))

    def _release_server(self, server_id: str, request_id: str | None = None) -> None: ...

    def answer(self, **sampling) -> TokenOutput:
        return asyncio.run(
            self.generate("request", prompt_ids=[1, 2], sampling_params={"temperature": 1.0, **sampling})
        )


def test_an_answer_in_one_piece_is_passed_on():
    client = Client(part([3, 4], 5, "stop"))
    answer = client.answer(seed=7)
    assert (answer.token_ids, answer.stop_reason) == ([3, 4], "completed")
    assert answer.extra_fields["tokens_by_version"] == [[5, 2]]
    assert (answer.extra_fields["min_global_steps"], answer.extra_fields["max_global_steps"]) == (5, 5)
    assert client.requests[0]["sampling_params"] == {"temperature": 1.0, "seed": 7}


def test_an_interrupted_answer_goes_on_where_it_stopped():
    client = Client(part([3, 4], 5, "abort"), part([], 6, "abort"), part([6], 7, "stop"))
    answer = client.answer(seed=7)
    assert answer.token_ids == [3, 4, 6]
    assert answer.log_probs == pytest.approx([-0.3, -0.4, -0.6])
    assert [request["prompt_ids"] for request in client.requests] == [[1, 2], [1, 2, 3, 4], [1, 2, 3, 4]]
    assert [request["sampling_params"].get("max_tokens") for request in client.requests] == [None, 6, 6]
    assert [request.get("priority", 0) for request in client.requests] == [0, GOES_FIRST, GOES_FIRST]
    seeds = [request["sampling_params"]["seed"] for request in client.requests]
    assert seeds[0] == 7  # the next part must not draw from the same random numbers
    assert seeds[1] == seeds[2] != 7
    fields = answer.extra_fields
    assert fields["tokens_by_version"] == [[5, 2], [7, 1]]
    assert (fields["min_global_steps"], fields["max_global_steps"]) == (5, 7)
    assert (fields["finish_reason"], fields["num_cached_tokens"]) == ("stop", 50)


def test_an_answer_that_was_interrupted_at_its_full_length_is_cut_off_there():
    client = Client(part([3, 4], 5, "abort"), part([6], 6, "abort"), length=3)
    answer = client.answer()
    assert answer.token_ids == [3, 4, 6]
    assert (answer.stop_reason, answer.extra_fields["finish_reason"]) == ("length", "length")
    assert len(client.requests) == 2


def test_what_experts_were_asked_is_kept_for_every_token():
    """A later part's rows begin with the prompt's, of which the first part has them already."""
    rows = [np.arange(4).reshape(4, 1), np.arange(5).reshape(5, 1) + 10]
    parts = [part([3, 4], 5, "abort", routed_experts=rows[0]), part([6], 6, "stop", routed_experts=rows[1])]
    answer = Client(*parts).answer()
    assert answer.routed_experts is not None
    assert answer.routed_experts.ravel().tolist() == [0, 1, 2, 3, 14]


async def test_an_answer_whose_server_is_gone_stays_under_way():
    """A checkpoint keeps its prompt as such; an error would have it replaced by another."""
    client = Client(part([3, 4], 5, "abort"))
    asked = asyncio.create_task(client.generate("request", prompt_ids=[1, 2], sampling_params={}))
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(client.requests) == 2
    assert not asked.done()
    asked.cancel()


def test_the_parts_of_an_answer_bring_their_most_likely_tokens_with_them():
    parts = [part([3, 4], 5, "abort"), part([], 6, "abort"), part([6], 7, "stop")]
    for one in parts:
        rows = len(one.token_ids)
        one.extra_fields[IDS] = np.array([[token, 9] for token in one.token_ids], np.int32).reshape(rows, 2)
        one.extra_fields[LOGPROBS] = np.full((rows, 2), -0.1 * one.extra_fields["global_steps"], np.float32)
    fields = Client(*parts).answer().extra_fields
    assert fields[IDS].tolist() == [[3, 9], [4, 9], [6, 9]]
    assert fields[LOGPROBS][:, 0].tolist() == pytest.approx([-0.5, -0.5, -0.7])
