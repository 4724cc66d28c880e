"""What a student makes of a stored row, worked out by hand."""

import math

import numpy as np
import pytest
import torch

from verl_ext.trainer.replay.gate import look_at
from verl_ext.trainer.replay.storage import Rows


def rows_of(rollout: list[list[float]], teacher: list[list[float]], mask: list[list[int]]) -> Rows:
    """Rows of one prompt token each."""
    flat = [torch.tensor([value for row in each for value in [0.0, *row]]) for each in (rollout, teacher, mask)]
    lengths, ones = np.array([1 + len(row) for row in mask]), np.ones(len(mask))
    return Rows(
        token_ids_N=torch.arange(len(flat[0])).int(),
        rollout_logprobs_N=flat[0],
        teacher_logprobs_N=flat[1],
        mask_N=flat[2].bool(),
        top_ids_NK=torch.zeros(len(flat[0]), 0, dtype=torch.int32),
        top_logprobs_NK=torch.zeros(len(flat[0]), 0),
        lengths_B=lengths,
        prompt_lengths_B=ones,
        rewards_B=ones,
        truncated_B=ones > 1,
        first_versions_B=ones,
        last_versions_B=ones,
    )


def test_by_hand():
    rows = rows_of(
        rollout=[[-1.0, -2.0], [-1.0, -3.0, -1.0]],
        teacher=[[-1.5, -1.0], [-0.5, -9.0, -2.0]],
        mask=[[1, 1], [1, 0, 1]],
    )
    ln2, ln3 = math.log(2), math.log(3)
    # Ratios 2 and 1; then 1 and 3, the token of a tool between them not counted. Prompts (first) are never looked at.
    student_N = torch.tensor([9.0, -1.0 + ln2, -2.0, 9.0, -1.0, 9.0, -1.0 + ln3])
    looked = look_at(rows, student_N)
    assert looked.ess_B.tolist() == pytest.approx([9 / (2 * 5), 16 / (2 * 10)])
    assert looked.reverse_kl_B.tolist() == pytest.approx([(0.5 + ln2 - 1.0) / 2, (-0.5 + 1.0 + ln3) / 2], abs=1e-6)
    assert looked.priorities_B.tolist() == pytest.approx([(0.5 + ln2 + 1.0) / 2, (0.5 + 1.0 + ln3) / 2], abs=1e-6)


def test_a_student_that_has_not_moved_has_every_tokens_worth_and_one_that_moved_alike_too():
    rows = rows_of([[-1.0, -2.0, -3.0]], [[-1.0, -1.0, -1.0]], [[1, 1, 1]])
    assert look_at(rows, rows.rollout_logprobs_N).ess_B.tolist() == [1.0]
    for far in (-700.0, 700.0):  # as ratios these are 0 and infinite
        assert look_at(rows, rows.rollout_logprobs_N + far).ess_B.tolist() == pytest.approx([1.0])


def test_one_token_that_carries_everything_is_one_of_three():
    rows = rows_of([[-1.0, -1.0, -1.0]], [[-1.0, -1.0, -1.0]], [[1, 1, 1]])
    looked = look_at(rows, rows.rollout_logprobs_N + torch.tensor([0.0, 50.0, 0.0, 0.0]))
    assert looked.ess_B.tolist() == pytest.approx([1 / 3])
