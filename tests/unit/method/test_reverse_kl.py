"""The advantage, against values worked out by hand (the first from Tinker's own fixture)."""

import pytest
import torch

from verl_ext.method.reverse_kl import discounted_future_sum, reverse_kl_advantage, sampled_reverse_kl, teacher_kl

# tinker-cookbook, `incorporate_kl_penalty`: two rows, the second one shorter (padded here) and with a task advantage.
ROLLOUT_BT = torch.tensor([[-1.0, -2.0, -0.5], [-0.1, -0.2, 7.0]])
TEACHER_BT = torch.tensor([[9.0, -1.5, -1.0], [-0.3, -0.1, float("nan")]])
MASK_BT = torch.tensor([[0, 1, 1], [1, 1, 0]])
TASK_BT = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0]])


def advantage(**kwargs) -> torch.Tensor:
    return reverse_kl_advantage(ROLLOUT_BT, TEACHER_BT, MASK_BT, **kwargs)


def assert_rows(found: torch.Tensor, rows: list[list[float]]) -> None:
    torch.testing.assert_close(found, torch.tensor(rows), atol=1e-6, rtol=0)


def test_advantage_is_tinkers():
    assert_rows(advantage(task_advantage=TASK_BT), [[0, 0.5, -0.5], [0.8, 1.1, 0]])


def test_strict_discount_is_tinkers_and_leaks_onto_the_masked_token():
    assert_rows(
        advantage(task_advantage=TASK_BT, discount=0.9, discount_mode="strict"), [[0.045, 0.05, -0.5], [0.89, 1.1, 0]]
    )


def test_fixed_discount_leaves_masked_tokens_alone():
    assert_rows(advantage(task_advantage=TASK_BT, discount=0.9), [[0, 0.05, -0.5], [0.89, 1.1, 0]])


def test_coefficient_scales_the_reverse_kl_only():
    assert_rows(advantage(coef=2.0, task_advantage=TASK_BT), [[0, 1.0, -1.0], [0.6, 1.2, 0]])
    assert_rows(advantage(coef=0.0, task_advantage=TASK_BT), TASK_BT.tolist())


def test_teacher_kl_is_the_signed_mean_over_sampled_tokens():
    # (-0.5 + 0.5 + 0.2 - 0.1) / 4
    assert teacher_kl(ROLLOUT_BT, TEACHER_BT, MASK_BT) == pytest.approx(0.025)


def test_garbage_behind_the_mask_never_shows():
    assert torch.isfinite(sampled_reverse_kl(ROLLOUT_BT, TEACHER_BT, MASK_BT)).all()


def test_baseline_is_subtracted_before_coef_and_after_the_discount():
    baseline = torch.tensor([[9.0, 0.1, 0.2], [0.3, 0.4, float("nan")]])
    # -2 * (reverse_kl - baseline), reverse_kl = [-0.5, 0.5] and [0.2, -0.1]
    assert_rows(advantage(baseline=baseline, coef=2.0), [[0, 1.2, -0.6], [0.2, 1.0, 0]])
    # Sums with discount 1: [0, 0.5] and [0.1, -0.1]; later baselines do not enter.
    assert_rows(advantage(baseline=baseline, discount=1.0), [[0, 0.1, -0.3], [0.2, 0.5, 0]])


def test_clip_bounds_each_token_before_the_discount():
    # reverse_kl becomes [-0.3, 0.3] and [0.2, -0.1]
    assert_rows(advantage(clip=0.3), [[0, 0.3, -0.3], [-0.2, 0.1, 0]])
    assert_rows(advantage(clip=0.3, discount=1.0), [[0, 0.0, -0.3], [-0.1, 0.1, 0]])


def test_sequence_normalization_divides_by_the_rows_response_tokens_but_not_the_task():
    assert_rows(advantage(normalization="sequence", task_advantage=TASK_BT), [[0, 0.25, -0.25], [0.9, 1.05, 0]])


def test_a_tool_turn_in_the_middle_gets_no_advantage_but_passes_the_discount_on():
    mask_BT = torch.tensor([[1, 0, 1]])
    rollout_BT, teacher_BT = torch.tensor([[-1.0, 0.0, -1.0]]), torch.tensor([[-1.0, -9.0, -3.0]])
    # reverse_kl = [0, masked, 2]; two steps back: 2 * 0.5**2
    fixed = reverse_kl_advantage(rollout_BT, teacher_BT, mask_BT, discount=0.5)
    assert_rows(fixed, [[-0.5, 0.0, -2.0]])
    strict = reverse_kl_advantage(rollout_BT, teacher_BT, mask_BT, discount=0.5, discount_mode="strict")
    assert_rows(strict, [[-0.5, -1.0, -2.0]])


def test_discounted_future_sum_is_tinkers():
    # tinker-cookbook's own example, and a length that is no power of two.
    assert_rows(discounted_future_sum(torch.tensor([[1.0, 2.0, 3.0]]), 0.5), [[2.75, 3.5, 3]])
    assert_rows(discounted_future_sum(torch.ones(1, 6), 1.0), [[6.0, 5, 4, 3, 2, 1]])
    assert discounted_future_sum(torch.ones(2, 0), 1.0).shape == (2, 0)


def test_inputs_are_not_changed():
    before = ROLLOUT_BT.clone()
    advantage(discount=0.5)
    assert torch.equal(ROLLOUT_BT, before)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"coef": -1.0}, "coef must be >= 0"),
        ({"discount": 1.5}, r"discount must be in \[0, 1\]"),
        ({"discount_mode": "loose"}, "discount_mode must be"),
        ({"task_advantage": torch.zeros(2, 1)}, "task_advantage must be"),
        ({"baseline": torch.zeros(2, 1)}, "baseline must be"),
        ({"clip": 0.0}, "clip must be > 0 nats"),
        ({"normalization": "row"}, "normalization must be"),
    ],
)
def test_bad_settings_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        advantage(**kwargs)


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match="must share one"):
        reverse_kl_advantage(ROLLOUT_BT, TEACHER_BT[:, :1], MASK_BT)
