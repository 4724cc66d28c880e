"""vLLM's answers, as its server gave them, become scores or are refused."""

import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from verl_ext.teacher.client.protocol import prompt_span, span_of
from verl_ext.teacher.engines.vllm import VLLM
from verl_ext.teacher.types import ScoreRequest, TeacherResponseError

VOCAB = 2048
# vLLM 0.28.0 on a CPU, the tiny base model of the demo, asked for `prompt_logprobs` 0 and 3.
TWO = """{"id":"cmpl-901a20b6ea724f93","object":"text_completion","created":1795697323,"model":"base",
"choices":[{"index":0,"text":"ot","logprobs":null,"finish_reason":"length","stop_reason":null,"token_ids":null,"prompt_logprobs":[null,
{"6":{"logprob":-21.031917572021484,"rank":1966,"decoded_token":"$"}},{"7":{"logprob":-20.30179786682129,"rank":1870,
"decoded_token":"%"}},{"8":{"logprob":-21.606962203979492,"rank":1992,"decoded_token":"&"}}],"prompt_token_ids":null,
"routed_experts":null},{"index":1,"text":"ot","logprobs":null,"finish_reason":"length","stop_reason":null,
"token_ids":null,"prompt_logprobs":[null,{"10":{"logprob":-21.36102294921875,"rank":1835,"decoded_token":"("}},{"257":{"logprob":
-16.728212356567383,"rank":703,"decoded_token":""}}],"prompt_token_ids":null,"routed_experts":null}],"service_tier":null,
"system_fingerprint":"vllm-0.28.0-bd4f8844","usage":{"prompt_tokens":7,"total_tokens":9,"completion_tokens":2,
"prompt_tokens_details":null,"completion_tokens_details":null},"kv_transfer_params":null,"metrics":null}"""
TOP = """{"id":"cmpl-be64bf99c8ffb646","object":"text_completion","choices":[{"index":0,"text":"ot","logprobs":null,
"finish_reason":"length","prompt_logprobs":[null,{"6":{"logprob":-21.031917572021484,"rank":1966,"decoded_token":"$"},
"351":{"logprob":-1.907784104347229,"rank":1,"decoded_token":"ot"},"340":{"logprob":-2.4582266807556152,"rank":2,
"decoded_token":"en"},"289":{"logprob":-2.5093274116516113,"rank":3,"decoded_token":"ur"}},{"7":{"logprob":
-20.30179786682129,"rank":1870,"decoded_token":"%"},"351":{"logprob":-1.9195499420166016,"rank":1,"decoded_token":"ot"},
"289":{"logprob":-2.4633216857910156,"rank":2,"decoded_token":"ur"},"340":{"logprob":-2.5452308654785156,"rank":3,
"decoded_token":"en"}},{"8":{"logprob":-21.606962203979492,"rank":1992,"decoded_token":"&"},"351":{"logprob":
-1.9200626611709595,"rank":1,"decoded_token":"ot"},"289":{"logprob":-2.4617457389831543,"rank":2,"decoded_token":"ur"},
"340":{"logprob":-2.541381359100342,"rank":3,"decoded_token":"en"}}]}]}"""
ENGINE = VLLM()


def spanned(request: ScoreRequest) -> Any:
    span = span_of(request)
    assert span is not None
    return span


def test_the_body_asks_for_whole_sequences_and_one_token_that_is_not_read():
    requests = [ScoreRequest([5, 6], [7, 8], top_k=3), None, ScoreRequest([9], [10, 257])]
    spans = [spanned(requests[0]), prompt_span([1, 2]), spanned(requests[2])]
    assert ENGINE.body(spans, requests) == {
        "prompt": [[5, 6, 7, 8], [1, 2], [9, 10, 257]],
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": 3,  # one number a request: the others get as many, and read none of them
    }
    assert ENGINE.body(spans[1:2], [None])["prompt_logprobs"] == 0


def test_recorded_answers_become_scores_of_the_response_alone():
    first, second = ENGINE.answers(TWO.encode())
    request = ScoreRequest([5, 6], [7, 8])
    score = ENGINE.score(first, spanned(request), request, VOCAB)
    assert score.logprobs.dtype == np.float32
    assert score.logprobs.tolist() == [-20.30179786682129, -21.606962203979492]
    assert score.top_ids is None
    masked = ScoreRequest([9], [10, 257], [0, 1])
    assert ENGINE.score(second, spanned(masked), masked, VOCAB).logprobs.tolist() == [0, -16.728212356567383]
    assert ENGINE.cached_tokens(first) == 0


def test_recorded_top_k_in_the_order_of_likelihood_and_no_more_than_asked_for():
    (choice,) = ENGINE.answers(TOP.encode())
    request = ScoreRequest([5], [6, 7, 8], top_k=2)  # another of the same request asked for 3
    score = ENGINE.score(choice, spanned(request), request, VOCAB)
    assert score.top_ids is not None
    assert score.top_logprobs is not None
    assert score.top_ids.tolist() == [[351, 340], [351, 289], [351, 289]]
    assert score.top_ids.dtype == np.int32
    assert score.top_logprobs[1].tolist() == [-1.9195499420166016, -2.4633216857910156]
    assert score.logprobs[0] == np.float32(-21.031917572021484)


def test_a_sent_token_among_the_most_likely_counts_once_and_one_in_a_tie_takes_no_place():
    (choice,) = ENGINE.answers(TOP.encode())
    place = choice["prompt_logprobs"][1]
    place["6"]["rank"] = 2  # as likely as 340, and not among the three
    request = ScoreRequest([5], [6], top_k=3)
    span = spanned(request)
    choice["prompt_logprobs"] = choice["prompt_logprobs"][:2]

    def likely() -> list[list[int]]:
        top_ids = ENGINE.score(choice, span, request, VOCAB).top_ids
        assert top_ids is not None
        return top_ids.tolist()

    assert likely() == [[351, 340, 289]]
    del place["340"]
    assert likely() == [[351, 6, 289]]


def without(position: int) -> Callable[[dict], None]:
    return lambda choice: choice["prompt_logprobs"].pop(position)


def put(position: int, **fields: Any) -> Callable[[dict], None]:
    """Change what is said of the token that was sent."""

    def change(choice: dict) -> None:
        place = choice["prompt_logprobs"][position]
        next(iter(place.values())).update(fields)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(3), "3 entries for 4 tokens"),
        (without(1), "3 entries for 4 tokens"),
        (lambda choice: choice["prompt_logprobs"].append({}), "5 entries for 4 tokens"),
        (lambda choice: choice.pop("prompt_logprobs"), "no readable prompt_logprobs"),
        (lambda choice: choice.update(prompt_logprobs=None), "no readable prompt_logprobs"),
        (lambda choice: choice["prompt_logprobs"].__setitem__(2, None), "no log-prob of the token that was sent"),
        (lambda choice: choice["prompt_logprobs"].__setitem__(2, {"9": {"logprob": -1.0}}), "token that was sent: .*7"),
        (lambda choice: choice["prompt_logprobs"].__setitem__(2, {"7": -1.0}), "token that was sent"),
        (lambda choice: choice["prompt_logprobs"].reverse(), "token that was sent"),
        (put(3, logprob=None), "not finite|not a number"),
        (put(3, logprob="x"), "not a number"),
        (put(3, logprob=0.5), "log-prob 0.5 of response token 1 is above 0"),
        (put(3, logprob=-9999.0), "-9999: the teacher calls a token impossible"),
    ],
)
def test_what_is_no_answer_to_what_was_sent_is_refused(change, message):
    choice = copy.deepcopy(ENGINE.answers(TWO.encode())[0])
    change(choice)
    request = ScoreRequest([5, 6], [7, 8])
    with pytest.raises(TeacherResponseError, match=message):
        ENGINE.score(choice, spanned(request), request, VOCAB)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda place: place.pop("351"), "no readable top-3 log-probs: KeyError"),
        (lambda place: place.update({"351": {"logprob": -1.0}}), "no readable top-3"),
        (lambda place: place.update({"351": {"logprob": -1.0, "rank": [1]}}), "no readable top-3"),
        (lambda place: place.update({"x": {"logprob": -1.0, "rank": 1}}), "no readable top-3"),
        (lambda place: place.update({"2048": place.pop("351")}), "outside the vocabulary"),
        (lambda place: place["351"].update(logprob=float("nan")), "not finite"),
        (lambda place: place["289"].update(logprob=-9999.0), "impossible"),
    ],
)
def test_most_likely_tokens_that_are_none_are_refused(change, message):
    (choice,) = ENGINE.answers(TOP.encode())
    change(choice["prompt_logprobs"][1])
    request = ScoreRequest([5], [6, 7, 8], top_k=3)
    with pytest.raises(TeacherResponseError, match=message):
        ENGINE.score(choice, spanned(request), request, VOCAB)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"choices": 1}', '{"choices": [{}]}', '{"choices": [1]}'])
def test_no_choices(text):
    with pytest.raises(TeacherResponseError, match="no choice of each sequence"):
        ENGINE.answers(text.encode())


def test_choices_in_another_order_are_refused():
    answer = json.loads(TWO)
    answer["choices"].reverse()
    with pytest.raises(TeacherResponseError, match=r"choices of the sequences \[1, 0\]"):
        ENGINE.answers(json.dumps(answer).encode())


def test_the_largest_answer_grows_with_what_was_asked_for():
    one = ENGINE.largest_answer({"prompt": [[1] * 10], "prompt_logprobs": 0})
    many = ENGINE.largest_answer({"prompt": [[1] * 1000] * 8, "prompt_logprobs": 20})
    assert len(TWO) < one < 2 << 20
    assert many > 8 * 1000 * 21 * 90
