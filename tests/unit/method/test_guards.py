"""Guards and controls, against values worked out by hand."""

import math

import pytest
import torch

from verl_ext.method.controls import (
    constant_negative_advantage,
    flipped_sign,
    random_teacher,
    shuffle_tokens,
    student_as_teacher,
)
from verl_ext.method.guards import (
    prefix_fraction,
    prefix_mask,
    reference_kl,
    repetition_alarm,
    repetition_share,
    special_token_mask,
    truncation_mask,
)

# The second row has a tool's token in the middle.
MASK_BT = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 0, 0]])
IDS_BT = torch.tensor([[5, 6, 5, 6], [5, 9, 5, 5], [0, 0, 0, 0]])


def test_truncated_rows_are_emptied():
    mask_BT, metrics = truncation_mask(MASK_BT, torch.tensor([False, True, False]))
    assert mask_BT.tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert metrics == {"guards/truncated_share": pytest.approx(1 / 3)}
    assert mask_BT.dtype == MASK_BT.dtype


def test_repetition_counts_n_grams_of_response_tokens():
    # Row 0, bigrams: 56 65 56, one of three seen before. Row 1 without the tool's token: 55 55, one of two.
    torch.testing.assert_close(repetition_share(IDS_BT, MASK_BT, ngram=2), torch.tensor([1 / 3, 1 / 2, 0.0]))
    # Four 1-grams of which two are new; three of which one is.
    torch.testing.assert_close(repetition_share(IDS_BT, MASK_BT, ngram=1), torch.tensor([1 / 2, 2 / 3, 0.0]))
    # Longer than the row: nothing to repeat.
    assert repetition_share(IDS_BT, MASK_BT, ngram=5).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="ngram must be >= 1"):
        repetition_share(IDS_BT, MASK_BT, ngram=0)


def test_repetition_alarm_flags_above_the_limit():
    flags_B, metrics = repetition_alarm(IDS_BT, MASK_BT, ngram=2, limit=0.4)
    assert flags_B.tolist() == [False, True, False]
    assert metrics["guards/repetition"] == pytest.approx((1 / 3 + 1 / 2) / 3)
    assert metrics["guards/repetition_flagged"] == pytest.approx(1 / 3)


def test_special_tokens_leave_the_mask():
    mask_BT, metrics = special_token_mask(MASK_BT, IDS_BT, [6, 9])
    assert mask_BT.tolist() == [[1, 0, 1, 0], [1, 0, 1, 1], [0, 0, 0, 0]]
    # The tool's 9 was no response token: 2 of 7.
    assert metrics == {"guards/special_token_share": pytest.approx(2 / 7)}
    assert special_token_mask(MASK_BT, IDS_BT, [])[0].tolist() == MASK_BT.tolist()


def test_reference_kl_by_hand():
    logprobs_BT = torch.tensor([[-1.0, -2.0]])
    reference_BT = torch.tensor([[-1.0 - math.log(2), -2.0]])  # gaps log 2 and 0
    two = math.log(2)
    for kind, expected in (("k1", two), ("k2", two * two / 2), ("k3", 0.5 - 1 + two)):
        found = reference_kl(logprobs_BT, reference_BT, kind=kind)
        torch.testing.assert_close(found, torch.tensor([[expected, 0.0]]), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="must be one of k1, k2, k3"):
        reference_kl(logprobs_BT, reference_BT, kind="k4")


def test_reference_kl_survives_a_token_that_the_policy_all_but_excludes():
    found = reference_kl(torch.tensor([[-1e4]]), torch.tensor([[0.0]]), kind="k3")
    assert torch.isfinite(found).all()


def test_prefix_schedule_is_linear_and_ends_at_one():
    assert [prefix_fraction(step, 0.2, 4) for step in (0, 1, 2, 4, 9)] == pytest.approx([0.2, 0.4, 0.6, 1.0, 1.0])
    assert prefix_fraction(0, 0.5, 0) == 1.0
    for start, steps in ((0.0, 4), (1.5, 4), (0.5, -1)):
        with pytest.raises(ValueError, match="must be"):
            prefix_fraction(0, start, steps)


def test_prefix_counts_response_tokens():
    mask_BT, metrics = prefix_mask(MASK_BT, 0.5)
    # ceil(0.5 * 4) = 2 and ceil(0.5 * 3) = 2, counted over the tool's token.
    assert mask_BT.tolist() == [[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    assert metrics == {"guards/prefix_share": pytest.approx(4 / 7)}
    assert prefix_mask(MASK_BT, 1.0)[0].tolist() == MASK_BT.tolist()
    with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\]"):
        prefix_mask(MASK_BT, 1.1)


def test_prefix_of_a_long_row_is_not_rounded_up_by_float():
    # 0.1 * 30 is 3.0000000000000004 in floats.
    assert int(prefix_mask(torch.ones(1, 30), 0.1)[0].sum()) == 3


def test_shuffling_keeps_numbers_and_padding_and_follows_the_seed():
    values_BT = torch.arange(12.0).reshape(3, 4)
    first, again, other = (
        shuffle_tokens(values_BT, MASK_BT, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    keep = MASK_BT.bool()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(first[~keep], values_BT[~keep])
    assert sorted(first[keep].tolist()) == values_BT[keep].tolist()


def test_the_random_teacher_is_one_distribution_over_the_vocabulary():
    every_id = torch.arange(50)[None]
    generator = torch.Generator().manual_seed(3)
    logprobs_BT = random_teacher(every_id, 50, generator=generator)
    assert logprobs_BT.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    assert logprobs_BT.std() > 0.5
    same_seed = random_teacher(IDS_BT, 50, generator=torch.Generator().manual_seed(3))
    assert torch.equal(same_seed, logprobs_BT[0][IDS_BT])


def test_simple_controls():
    values_BT = torch.tensor([[1.0, -2.0]])
    assert flipped_sign(values_BT).tolist() == [[-1.0, 2.0]]
    copy = student_as_teacher(values_BT)
    assert torch.equal(copy, values_BT)
    assert copy is not values_BT
    assert constant_negative_advantage(MASK_BT, magnitude=0.5)[1].tolist() == [-0.5, 0.0, -0.5, -0.5]
    with pytest.raises(ValueError, match="magnitude must be > 0"):
        constant_negative_advantage(MASK_BT, magnitude=0.0)
