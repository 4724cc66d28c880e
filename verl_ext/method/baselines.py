"""What is subtracted before a policy gradient to lower its variance, and how much bias it costs.

A baseline leaves the expected gradient alone when it does not depend on the token that it is subtracted from.
Leave-one-out baselines use the *other* rows only, and rows are sampled independently: exactly unbiased, for any
grouping. A mean that includes the row itself shrinks the gradient by the row's own weight in it: (n - 1) / n for
`n` rows of one value each. `docs/method.md` has the exact numbers (`python -m benchmarks.estimators`).
"""

import torch

# verl's `compute_grpo_outcome_advantage` divides by (std + 1e-6); the same here, so that numbers agree.
STD_EPSILON = 1e-6


def group_baseline(
    x: torch.Tensor, groups_B: torch.Tensor, mask_BT: torch.Tensor | None = None, *, leave_one_out: bool = True
) -> torch.Tensor:
    """Mean of `x` over each row's group, shaped like `x`, without gradient.

    Rows of values (B,): the mean over rows. Tokens (B, T): the mean over the response tokens of those rows
    (denominator: their number of response tokens), the same for each token of a row and 0 outside the mask.

    Args:
        x: (B,), or (B, T) with `mask_BT`; e.g. rewards, or the reverse KL in nats.
        groups_B: integer id of each row's group (the prompt it answers), (B,).
        mask_BT: 1 on response tokens, (B, T); needed for a (B, T) `x`.
        leave_one_out: mean over the other rows of the group, exactly unbiased; a row with no other has baseline 0.
            False includes the row itself: lower variance for small groups, biased by O(1 / n) for n rows.

    Raises:
        ValueError: if the shapes do not fit.
    """
    if groups_B.shape != x.shape[:1] or (x.dim() != 1 if mask_BT is None else mask_BT.shape != x.shape):
        mask = None if mask_BT is None else tuple(mask_BT.shape)
        raise ValueError(
            f"x must be (B,), or (B, T) with a mask_BT of its shape, and groups_B (B,); "
            f"got x {tuple(x.shape)}, mask_BT {mask}, groups_B {tuple(groups_B.shape)}"
        )
    mask_BN = torch.ones_like(x, dtype=torch.bool)[:, None] if mask_BT is None else mask_BT.bool()
    x_BN = torch.where(mask_BN, x.detach().reshape(mask_BN.shape), 0.0)
    sum_B, count_B = x_BN.sum(-1), mask_BN.sum(-1).to(x_BN.dtype)
    index_B = torch.unique(groups_B, return_inverse=True)[1]
    groups = int(index_B.max()) + 1 if len(index_B) else 0
    total_B, size_B = (sum_B.new_zeros(groups).index_add(0, index_B, v)[index_B] for v in (sum_B, count_B))
    if leave_one_out:
        total_B, size_B = total_B - sum_B, size_B - count_B
    # The total of no other row is 0 up to rounding only.
    mean_B = torch.where(size_B > 0, total_B / size_B.clamp(min=1), 0.0)
    return mean_B if mask_BT is None else torch.where(mask_BN, mean_B[:, None], 0.0)


def task_advantage(rewards_B: torch.Tensor, groups_B: torch.Tensor, *, std: bool) -> torch.Tensor:
    """Reward minus the mean over its group, (B,); with `std`, divided by the group's standard deviation.

    Without `std` it is Tinker's (group-centred; a group of one gets 0): the policy gradient times (n - 1) / n for
    groups of n. With `std` it is GRPO's (arXiv 2402.03300; n - 1 in the denominator, as verl): it also reweights
    prompts by the spread of their rewards, so it is the gradient of no fixed objective.

    Args:
        rewards_B: one reward a row, (B,).
        groups_B: integer id of each row's group, (B,).
    """
    centred_B = rewards_B - group_baseline(rewards_B, groups_B, leave_one_out=False)
    if not std:
        return centred_B
    # n times the mean of squares is their sum; the group's size comes from the same grouping.
    size_B = (groups_B[:, None] == groups_B[None, :]).sum(-1)
    mean_square_B = group_baseline(centred_B.square(), groups_B, leave_one_out=False)
    std_B = (mean_square_B * size_B / (size_B - 1).clamp(min=1)).sqrt()
    return centred_B / (std_B + STD_EPSILON)
