"""Properties of advantage, baselines, loss and aggregation on random batches; baselines by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl_ext.method.baselines import group_baseline, task_advantage
from verl_ext.method.policy_loss import (
    AGGREGATIONS,
    aggregate,
    importance_sampling_loss,
    ppo_clip_loss,
    truncated_importance_sampling_loss,
)
from verl_ext.method.reverse_kl import reverse_kl_advantage, teacher_kl

LOSSES = {
    "importance_sampling": lambda *x: importance_sampling_loss(*x),
    "ppo_clip": lambda *x: ppo_clip_loss(*x, low=0.8, high=1.3),
    "clamp": lambda *x: truncated_importance_sampling_loss(*x, low=0.5, high=2.0, outside="clamp"),
    "mask": lambda *x: truncated_importance_sampling_loss(*x, low=0.5, high=2.0, outside="mask"),
}
quick = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 10**6)
lengths = st.integers(1, 9)
options = st.fixed_dictionaries(
    {
        "coef": st.sampled_from([0.0, 1.0, 2.5]),
        "discount": st.sampled_from([0.0, 0.7, 1.0]),
        "discount_mode": st.sampled_from(["fixed", "strict"]),
        "clip": st.sampled_from([None, 0.5]),
        "normalization": st.sampled_from(["token", "sequence"]),
    }
)
losses = st.sampled_from(sorted(LOSSES))
aggregations = st.sampled_from(AGGREGATIONS)


def batch(seed: int, length: int, rows: int = 5) -> dict[str, torch.Tensor]:
    """Log-probs, a mask with holes (tool turns) and one empty row, and group ids; float64."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, length)
    logprobs = [-2 * torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    mask_BT = torch.rand(shape, generator=generator) < 0.7
    mask_BT[-1] = False
    groups_B = torch.randint(0, 2, (rows,), generator=generator)
    return dict(zip(("logprobs", "rollout", "teacher"), logprobs, strict=True)) | {"mask": mask_BT, "groups": groups_B}


def step(x: dict[str, torch.Tensor], options: dict, loss: str, how: str, total: dict | None = None):
    """Advantages, loss and its gradient in the log-probs, as the trainer computes them; `total`: denominators."""
    advantages_BT = advantages(x, options)
    return advantages_BT, *loss_and_gradient(x, advantages_BT, loss, how, total or denominators(x))


def advantages(x: dict[str, torch.Tensor], options: dict) -> torch.Tensor:
    mask_BT = x["mask"]
    baseline_BT = group_baseline(torch.where(mask_BT, x["rollout"] - x["teacher"], 0.0), x["groups"], mask_BT)
    return reverse_kl_advantage(x["rollout"], x["teacher"], mask_BT, baseline=baseline_BT, **options)


def denominators(x: dict[str, torch.Tensor]) -> dict:
    return {"batch_num_tokens": 17, "global_batch_size": len(x["mask"]), "loss_scale_factor": 9}


def loss_and_gradient(x: dict[str, torch.Tensor], advantages_BT: torch.Tensor, loss: str, how: str, total: dict):
    leaf = x["logprobs"].clone().requires_grad_()
    value = aggregate(LOSSES[loss](leaf, x["rollout"], advantages_BT), x["mask"], how, **total)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


@quick
@given(seeds, lengths, options, losses, aggregations, st.integers(1, 4))
def test_padding_changes_nothing(seed, length, options, loss, how, more):
    x = batch(seed, length)
    total = denominators(x)
    padded = {k: v if k == "groups" else torch.nn.functional.pad(v, (0, more)) for k, v in x.items()}
    for key in ("teacher", "rollout"):
        padded[key][:, length:] = -1e4
    plain, wide = step(x, options, loss, how, total), step(padded, options, loss, how, total)
    torch.testing.assert_close(wide[0][:, :length], plain[0])
    torch.testing.assert_close(wide[1], plain[1])
    torch.testing.assert_close(wide[2][:, :length], plain[2])
    assert not wide[2][:, length:].any()


@quick
@given(seeds, lengths, options, losses, aggregations)
def test_batch_order_changes_nothing(seed, length, options, loss, how):
    x = batch(seed, length)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(seed))
    plain, moved = step(x, options, loss, how), step({k: v[order] for k, v in x.items()}, options, loss, how)
    torch.testing.assert_close(moved[0], plain[0][order])
    torch.testing.assert_close(moved[1], plain[1])
    torch.testing.assert_close(moved[2], plain[2][order])


@quick
@given(seeds, lengths, options, losses, aggregations)
def test_masked_tokens_have_no_influence_and_no_gradient(seed, length, options, loss, how):
    x = batch(seed, length)
    garbage = {k: torch.where(x["mask"], v, -1e4) for k, v in x.items() if v.dtype == torch.float64}
    garbage["rollout"] = torch.where(x["mask"], x["rollout"], 3.0)
    garbage["teacher"] = torch.where(x["mask"], x["teacher"], math.nan)
    plain, other = step(x, options, loss, how), step(x | garbage, options, loss, how)
    torch.testing.assert_close(other, plain)
    assert not plain[2][~x["mask"]].any()
    if options["discount_mode"] == "fixed":
        assert not plain[0][~x["mask"]].any()


@quick
@given(seeds, lengths, options, losses, aggregations, st.integers(1, 4))
def test_micro_batches_add_up_to_the_batch(seed, length, options, loss, how, size):
    x = batch(seed, length)
    total = denominators(x)
    advantages_BT, value, gradient_BT = step(x, options, loss, how, total)
    parts = [
        loss_and_gradient({k: v[i : i + size] for k, v in x.items()}, advantages_BT[i : i + size], loss, how, total)
        for i in range(0, 5, size)
    ]
    torch.testing.assert_close(torch.stack([part[0] for part in parts]).sum(), value)
    torch.testing.assert_close(torch.cat([part[1] for part in parts]), gradient_BT)


@quick
@given(seeds, lengths, options, losses, aggregations)
def test_a_teacher_that_is_the_student_gives_exactly_nothing(seed, length, options, loss, how):
    x = batch(seed, length)
    for result in step(x | {"teacher": x["rollout"].clone()}, options, loss, how):
        assert not result.any()


@quick
@given(seeds, lengths, options, st.floats(-5, 5), st.floats(0.1, 4))
def test_scaling_laws(seed, length, options, shift, scale):
    x = batch(seed, length)
    plain_BT = advantages(x, options)
    shifted = x | {"rollout": x["rollout"] + shift, "teacher": x["teacher"] + shift}
    torch.testing.assert_close(advantages(shifted, options), plain_BT)
    # Homogeneous in the coefficient; in the log-probs too, when the clip scales with them.
    torch.testing.assert_close(advantages(x, options | {"coef": options["coef"] * scale}), plain_BT * scale)
    scaled = x | {"rollout": x["rollout"] * scale, "teacher": x["teacher"] * scale}
    clip = None if options["clip"] is None else options["clip"] * scale
    torch.testing.assert_close(advantages(scaled, options | {"clip": clip}), plain_BT * scale)


@quick
@given(seeds, lengths)
def test_bf16_log_probs_cost_only_their_own_rounding(seed, length):
    x = batch(seed, length)
    bf16 = {key: x[key].bfloat16() for key in ("rollout", "teacher")}
    found_BT = reverse_kl_advantage(bf16["rollout"], bf16["teacher"], x["mask"])
    assert found_BT.dtype == torch.float32
    # bf16 has 8 significant bits: a relative error of at most 2**-8 for each of the two.
    bound_BT = 2**-8 * (x["rollout"].abs() + x["teacher"].abs()) + 1e-6
    assert ((found_BT - reverse_kl_advantage(x["rollout"], x["teacher"], x["mask"])).abs() <= bound_BT).all()


@quick
@given(seeds, st.integers(0, 9), options, losses, aggregations, st.sampled_from([torch.float32, torch.bfloat16]))
def test_extreme_log_probs_stay_finite(seed, length, options, loss, how, dtype):
    x = batch(seed, length)
    extreme = torch.tensor([0.0, -1.0, -1e4])
    choice = torch.Generator().manual_seed(seed)
    for key in ("logprobs", "rollout", "teacher"):
        x[key] = extreme[torch.randint(0, 3, x[key].shape, generator=choice)].to(dtype)
    for result in step(x, options, loss, how):
        assert torch.isfinite(result).all()


def test_batches_without_a_response_token_are_zero_and_their_metric_is_not_a_number():
    empty = torch.zeros(2, 3, dtype=torch.float64)
    x = {"logprobs": empty, "rollout": empty - 1, "teacher": empty, "mask": empty.bool(), "groups": torch.zeros(2)}
    options = {"discount": 1.0, "normalization": "sequence"}
    for how in AGGREGATIONS:
        for result in step(x, options, "importance_sampling", how):
            assert not result.any()
    assert math.isnan(teacher_kl(empty, empty, empty))


REWARDS_B = torch.tensor([1.0, 3.0, 5.0, 10.0])
GROUPS_B = torch.tensor([7, 7, 7, 2])


def test_group_baseline_of_rows_by_hand():
    assert group_baseline(REWARDS_B, GROUPS_B).tolist() == [4.0, 3.0, 2.0, 0.0]
    assert group_baseline(REWARDS_B, GROUPS_B, leave_one_out=False).tolist() == [3.0, 3.0, 3.0, 10.0]
    one_group_B = torch.zeros(4, dtype=torch.long)
    assert group_baseline(REWARDS_B, one_group_B).tolist() == [6.0, pytest.approx(16 / 3), pytest.approx(14 / 3), 3.0]
    assert group_baseline(torch.zeros(0), one_group_B[:0]).shape == (0,)


def test_group_baseline_of_tokens_counts_response_tokens():
    x_BT = torch.tensor([[1.0, 2.0], [6.0, math.nan], [5.0, 5.0]], requires_grad=True)
    mask_BT = torch.tensor([[1, 1], [1, 0], [0, 0]])
    groups_B = torch.tensor([0, 0, 0])
    # The first row sees the second (6 / 1), the second the first (3 / 2), the third is empty.
    assert group_baseline(x_BT, groups_B, mask_BT).tolist() == [[6.0, 6.0], [1.5, 0.0], [0.0, 0.0]]
    assert group_baseline(x_BT, groups_B, mask_BT, leave_one_out=False).tolist() == [[3.0, 3.0], [3.0, 0.0], [0.0, 0.0]]
    assert not group_baseline(x_BT, groups_B, mask_BT).requires_grad


def test_task_advantage_by_hand():
    # Group 7: mean 3, standard deviation 2 (n - 1). A group of one has nothing to compare with.
    assert task_advantage(REWARDS_B, GROUPS_B, std=False).tolist() == [-2.0, 0.0, 2.0, 0.0]
    expected = torch.tensor([-1.0, 0.0, 1.0, 0.0])
    torch.testing.assert_close(task_advantage(REWARDS_B, GROUPS_B, std=True), expected, atol=1e-5, rtol=0)
    equal = task_advantage(torch.ones(3), torch.zeros(3), std=True)
    assert equal.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("x", "groups_B", "mask_BT"),
    [
        (torch.zeros(2, 3), torch.zeros(2), None),
        (torch.zeros(2), torch.zeros(3), None),
        (torch.zeros(2, 3), torch.zeros(2), torch.ones(2, 2)),
    ],
)
def test_baseline_shapes_that_do_not_fit_are_refused(x, groups_B, mask_BT):
    with pytest.raises(ValueError, match="x must be"):
        group_baseline(x, groups_B, mask_BT)
