"""Losses and aggregations, against values worked out by hand."""

import math

import pytest
import torch

from verl_ext.method.divergence import topk_divergence
from verl_ext.method.policy_loss import (
    AGGREGATIONS,
    aggregate,
    importance_sampling_loss,
    ppo_clip_loss,
    tail_sample_loss,
    truncated_importance_sampling_loss,
)

# Ratios 1, 2 and 1/2 from three log-prob pairs; rows differ in the sign of the advantage.
ROLLOUT_BT = torch.tensor([[-1.0, -1.0 - math.log(2), -1.0 + math.log(2)]] * 2)
ADVANTAGES_BT = torch.tensor([[3.0, 3.0, 3.0], [-3.0, -3.0, -3.0]])


def value_and_gradient(loss, **settings) -> tuple[torch.Tensor, torch.Tensor]:
    logprobs_BT = torch.full((2, 3), -1.0, requires_grad=True)
    loss_BT = loss(logprobs_BT, ROLLOUT_BT, ADVANTAGES_BT, **settings)
    loss_BT.sum().backward()
    assert logprobs_BT.grad is not None
    return loss_BT.detach(), logprobs_BT.grad


def assert_rows(found: torch.Tensor, rows: list[list[float]]) -> None:
    torch.testing.assert_close(found, torch.tensor(rows), atol=1e-6, rtol=1e-6)


def test_importance_sampling_is_ratio_times_advantage():
    loss_BT, gradient_BT = value_and_gradient(importance_sampling_loss)
    assert_rows(loss_BT, [[-3.0, -6.0, -1.5], [3.0, 6.0, 1.5]])
    # d(-ratio * A) / dlogp = -ratio * A
    assert_rows(gradient_BT, loss_BT.tolist())


def test_ppo_stops_only_tokens_that_went_past_their_bound():
    loss_BT, gradient_BT = value_and_gradient(ppo_clip_loss, low=0.8, high=1.3)
    # A > 0: ratio 2 is cut to 1.3, ratio 0.5 is kept (min). A < 0: 2 is kept, 0.5 is cut to 0.8.
    assert_rows(loss_BT, [[-3.0, -3.9, -1.5], [3.0, 6.0, 2.4]])
    assert_rows(gradient_BT, [[-3.0, 0.0, -1.5], [3.0, 6.0, 0.0]])


def test_truncation_clamps_the_weight_and_keeps_every_gradient():
    _, gradient_BT = value_and_gradient(truncated_importance_sampling_loss, low=0.8, high=1.5, outside="clamp")
    assert_rows(gradient_BT, [[-3.0, -4.5, -2.4], [3.0, 4.5, 2.4]])


def test_truncation_by_mask_drops_what_is_outside():
    _, gradient_BT = value_and_gradient(truncated_importance_sampling_loss, low=0.8, high=1.5, outside="mask")
    assert_rows(gradient_BT, [[-3.0, 0.0, 0.0], [3.0, 0.0, 0.0]])


def test_truncation_beyond_all_ratios_is_importance_sampling():
    for outside in ("clamp", "mask"):
        _, found = value_and_gradient(truncated_importance_sampling_loss, low=0.0, high=10.0, outside=outside)
        assert_rows(found, value_and_gradient(importance_sampling_loss)[1].tolist())


LOSS_BT = torch.tensor([[1.0, 2.0, math.nan], [4.0, math.nan, 8.0], [math.nan] * 3])
MASK_BT = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 0, 0]])
DENOMINATORS = {"batch_num_tokens": 8, "global_batch_size": 4, "loss_scale_factor": 5}


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("token-sum", 15.0),
        ("token-mean", 15.0 / 8),
        ("seq-mean-token-sum", 15.0 / 4),
        ("seq-mean-token-sum-norm", 15.0 / (4 * 5)),
        # (3 / 2 + 12 / 2 + 0) / 4
        ("seq-mean-token-mean", 7.5 / 4),
    ],
)
def test_aggregate_by_hand(how, expected):
    assert aggregate(LOSS_BT, MASK_BT, how, **DENOMINATORS).item() == pytest.approx(expected)
    assert aggregate(LOSS_BT, MASK_BT, how, **DENOMINATORS, dp_size=2).item() == pytest.approx(2 * expected)


def test_a_batch_without_a_trained_token_has_loss_and_gradient_zero():
    loss_BT = torch.tensor([[1.0, math.nan]], requires_grad=True)
    loss = aggregate(loss_BT, torch.zeros(1, 2), "token-mean", batch_num_tokens=0)
    loss.backward()
    assert (loss.item(), loss_BT.grad.tolist()) == (0.0, [[0.0, 0.0]])


@pytest.mark.parametrize("how", [how for how in AGGREGATIONS if how != "token-sum"])
def test_a_missing_global_denominator_is_refused_not_guessed(how):
    with pytest.raises(ValueError, match=rf"{how} needs .* of the global batch"):
        aggregate(LOSS_BT, MASK_BT, how)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: aggregate(x, x, "mean"), "must be one of token-sum"),
        (lambda x: ppo_clip_loss(x, x, x, low=1.1, high=1.2), "low and high must"),
        (lambda x: ppo_clip_loss(x, x, x, low=0.9, high=0.8), "low and high must"),
        (lambda x: truncated_importance_sampling_loss(x, x, x, low=1.1, high=2.0, outside="mask"), "low and high"),
        (lambda x: truncated_importance_sampling_loss(x, x, x, low=0.1, high=2.0, outside="drop"), "outside must be"),
    ],
)
def test_bad_settings_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(1, 1))


def test_samples_in_the_tail_and_the_buckets_are_the_whole_reverse_kl_on_average():
    """Over every token that could be sampled: value and gradient of the exact KL, of whichever sampler."""
    draw = torch.Generator().manual_seed(0)
    logits, teacher_V, older_V = torch.randn(3, 8, generator=draw, dtype=torch.float64).mul(2).unbind()
    teacher_V, older_V = teacher_V.log_softmax(-1), older_V.log_softmax(-1)
    logits.requires_grad_()
    student_V = logits.log_softmax(-1)
    ids = torch.tensor([[5, 2, -1]])
    buckets = topk_divergence(logits[None], ids, teacher_V[None, ids[0]], kind="reverse_kl", mix=0.0, tail=True)
    in_tail_V = torch.tensor([token not in (5, 2) for token in range(8)])
    tail = buckets.tail_reverse_kl_N.expand(8)
    exact = (student_V.exp() * (student_V - teacher_V)).sum()
    (wanted_V,) = torch.autograd.grad(exact, logits, retain_graph=True)
    for sampler_V in (student_V.detach(), older_V):
        loss_V = tail_sample_loss(student_V, sampler_V, teacher_V, tail, in_tail_V)
        assert not loss_V[~in_tail_V].any()
        mean = buckets.divergence_N[0] + (sampler_V.exp() * loss_V).sum()
        assert mean.item() == pytest.approx(exact.item())
        (found_V,) = torch.autograd.grad(mean, logits, retain_graph=True)
        torch.testing.assert_close(found_V, wanted_V)


def test_a_sample_in_the_tail_by_hand():
    # log q = -2, log p = -5, and as one entry the tail is 1 nat likelier to the student: 2 nats, at a ratio of 2.
    logprobs = torch.tensor([[-2.0, -2.0]], requires_grad=True)
    rollout, teacher = torch.full((1, 2), -2.0 - math.log(2)), torch.full((1, 2), -5.0)
    loss = tail_sample_loss(logprobs, rollout, teacher, torch.ones(1, 2), torch.tensor([[True, False]]))
    loss.sum().backward()
    assert_rows(loss.detach(), [[4.0, 0.0]])
    assert logprobs.grad is not None
    assert_rows(logprobs.grad, [[4.0, 0.0]])
