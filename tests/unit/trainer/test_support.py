"""The student's most likely tokens: out of vLLM's answer, and which of them the teacher is asked for."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from verl_ext.teacher.types import ScoreRequest
from verl_ext.trainer.support import IDS, LOGPROBS, capped, in_students_support, likely_of


def likely(rank: int, logprob: float) -> SimpleNamespace:
    """As vLLM's `Logprob`."""
    return SimpleNamespace(rank=rank, logprob=logprob)


def test_a_sampled_token_that_is_not_among_the_most_likely_does_not_take_a_place():
    places = [
        {40: likely(7, -4.0), 5: likely(1, -0.5), 6: likely(2, -1.5)},  # vLLM puts the sampled token first
        {6: likely(2, -1.0), 7: likely(1, -0.25)},
    ]
    found = likely_of(places, 2)
    assert found[IDS].tolist() == [[5, 6], [7, 6]]
    assert found[LOGPROBS].tolist() == [[-0.5, -1.5], [-0.25, -1.0]]
    assert (found[IDS].dtype, found[LOGPROBS].dtype) == (np.int32, np.float32)
    for nothing in (None, []):  # given up before its first token
        assert likely_of(nothing, 2)[IDS].shape == (0, 2)
    with pytest.raises(ValueError, match=r"method\.top_k=3: vLLM gave not so many .*; lower it"):
        likely_of(places, 3)


IDS_RK = np.array([[1, 2], [1, 3], [4, 1], [4, 5]], np.int32)
LOGPROBS_RK = np.log(np.array([[0.6, 0.3], [0.5, 0.4], [0.7, 0.2], [0.9, 0.1]], np.float32))


@pytest.mark.parametrize(
    ("most", "kept"),
    [
        (5, [[1, 2], [1, 3], [4, 1], [4, 5]]),
        # Over the wanted positions (all but the third): 1 has 1.1, 4 0.9, 3 0.4, 2 0.3 and 5 0.1.
        (4, [[1, 2], [1, 3], [4, 1], [4, -1]]),
        (3, [[1, -1], [1, 3], [4, 1], [4, -1]]),
        (2, [[1, -1], [1, -1], [4, 1], [4, -1]]),
    ],
)
def test_the_tokens_with_most_of_the_students_mass_stay(most, kept):
    ids_RK, tokens = capped(IDS_RK, LOGPROBS_RK, np.array([True, True, False, True]), most)
    assert ids_RK.tolist() == kept
    assert tokens == most


def output(**fields: Any) -> Any:
    return SimpleNamespace(extra_fields=fields)


def test_an_answer_that_was_cut_off_keeps_the_rows_of_its_tokens():
    answer = output(**{IDS: IDS_RK, LOGPROBS: LOGPROBS_RK})
    request, counts = in_students_support(ScoreRequest([9], [1, 3, 4], [1, 1, 0], top_k=2), answer, 2)
    assert request.support_ids is not None
    assert request.support_ids.tolist() == [[1, -1], [1, 3], [-1, 1]]
    assert (request.top_k, request.columns) == (0, 2)
    assert counts == {"support_tokens": 2, "support_left_out": 1}  # the third position is not wanted
    assert answer.extra_fields == {}


@pytest.mark.parametrize("fields", [{}, {IDS: IDS_RK[:2], LOGPROBS: LOGPROBS_RK[:2]}])
def test_a_loop_that_keeps_none_or_those_of_one_turn_is_told_so(fields):
    with pytest.raises(ValueError, match=r"take single_turn_agent, or method\.support=teacher"):
        in_students_support(ScoreRequest([9], [1, 3, 4], top_k=2), output(**fields), 2)


def test_probabilities_are_added_up_and_not_log_probs():
    """A token at two positions of 0.4 each outweighs one of 0.6."""
    ids_RK = np.array([[1], [1], [2]], np.int32)
    kept_RK, _ = capped(ids_RK, np.log([[0.4], [0.4], [0.6]]), np.ones(3, bool), 1)
    assert kept_RK.tolist() == [[1], [1], [-1]]
    assert math.log(0.4) * 2 < math.log(0.6)
