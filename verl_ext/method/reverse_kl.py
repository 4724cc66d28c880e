"""Sampled-token reverse KL as an advantage: the whole method of on-policy distillation.

The student samples y ~ pi_rollout(. | x) and the teacher scores the same tokens. At each token

    reverse_kl_t = log pi_rollout(y_t) - log pi_teacher(y_t)

is an unbiased one-sample estimate of KL(pi_rollout || pi_teacher) at that position, and its negative,
used as the advantage of an importance-sampling policy gradient, descends that KL.

Source: tinker-cookbook `distillation/train_on_policy.py`, `incorporate_kl_penalty`, and
`rl/metrics.py`, `discounted_future_sum_vectorized`.
"""

import torch

NORMALIZATIONS = ("token", "sequence")


def sampled_reverse_kl(
    rollout_logprobs: torch.Tensor, teacher_logprobs: torch.Tensor, response_mask: torch.Tensor
) -> torch.Tensor:
    """Per-token `rollout - teacher` in nats, (B, T); exactly 0 where `response_mask` is 0.

    Half-precision log-probs are taken to float32 first, so that nothing but their own rounding is lost.

    Args:
        rollout_logprobs: log-probs of the sampled tokens under the sampler, nats, (B, T).
        teacher_logprobs: log-probs of the same tokens under the teacher, nats, (B, T).
        response_mask: 1 on tokens that the student sampled, 0 on padding and on tool tokens, (B, T).

    Raises:
        ValueError: if the shapes differ.
    """
    shapes = {tuple(t.shape) for t in (rollout_logprobs, teacher_logprobs, response_mask)}
    if len(shapes) != 1:
        raise ValueError(f"rollout_logprobs, teacher_logprobs and response_mask must share one (B, T), got {shapes}")
    dtype = torch.promote_types(torch.promote_types(rollout_logprobs.dtype, teacher_logprobs.dtype), torch.float32)
    # `where`, not a product: padding may hold anything, and 0 * nan is nan.
    return torch.where(response_mask.bool(), rollout_logprobs.to(dtype) - teacher_logprobs.to(dtype), 0.0)


def teacher_kl(rollout_logprobs: torch.Tensor, teacher_logprobs: torch.Tensor, response_mask: torch.Tensor) -> float:
    """Mean signed reverse KL over the sampled tokens, nats: sum(reverse_kl) / sum(response_mask).

    Tinker's metric of the same name. NaN for a batch with no sampled token.
    """
    reverse_kl_BT = sampled_reverse_kl(rollout_logprobs, teacher_logprobs, response_mask)
    return (reverse_kl_BT.sum() / response_mask.sum()).item()


def discounted_future_sum(x_BT: torch.Tensor, discount: float) -> torch.Tensor:
    """`out[b, t] = sum_k discount**k * x[b, t + k]` over the whole row, (B, T).

    By doubling: once `out` sums the next `reach` terms, adding it shifted by `reach` makes it sum twice as many.
    """
    out_BT, reach = x_BT.clone(), 1
    while reach < x_BT.shape[1]:
        # The right-hand side is computed in full before it is written, so the overlap is safe.
        out_BT[:, :-reach] = out_BT[:, :-reach] + discount**reach * out_BT[:, reach:]
        reach *= 2
    return out_BT


def reverse_kl_advantage(
    rollout_logprobs: torch.Tensor,
    teacher_logprobs: torch.Tensor,
    response_mask: torch.Tensor,
    *,
    coef: float = 1.0,
    discount: float = 0.0,
    discount_mode: str = "fixed",
    task_advantage: torch.Tensor | None = None,
    baseline: torch.Tensor | None = None,
    clip: float | None = None,
    normalization: str = "token",
) -> torch.Tensor:
    """Advantage of every sampled token, nats, (B, T).

        advantage_t = task_advantage_t - coef / norm * (sum_k discount**k * reverse_kl_{t+k} - baseline_t)

    By default no clip, no baseline and no normalisation, as in Tinker. The baseline is subtracted *after*
    discounting: a baseline of position t + k depends on token t, and would bias the gradient of t.

    Args:
        rollout_logprobs: log-probs of the sampled tokens under the sampler, nats, (B, T).
        teacher_logprobs: log-probs of the same tokens under the teacher, nats, (B, T).
        response_mask: 1 on tokens that the student sampled, else 0, (B, T).
        coef: weight of the reverse KL, >= 0.
        discount: in [0, 1]; a token is also charged for the discounted reverse KL of the tokens after it.
            0 charges each token for itself alone; 1 gives the gradient of the sequence's KL.
        discount_mode: `fixed` keeps the advantage 0 outside `response_mask`. `strict` copies Tinker, whose
            discounted sum leaks onto earlier masked tokens (prompt, tool output); it exists for conformance.
        task_advantage: added to the reverse-KL term last; neither discounted nor normalised, (B, T).
        baseline: nats, (B, T); unbiased when entry t does not depend on token t (`baselines`,
            `divergence.TokenDivergence.expected_reverse_kl_N`). None subtracts nothing.
        clip: bound of the absolute reverse KL of one token, nats, > 0. Biased. None for no bound.
        normalization: `token` has norm 1; `sequence` has norm = the number of response tokens of the row.

    Raises:
        ValueError: on a shape mismatch, or a setting out of range.
    """
    _check_settings(coef, discount, discount_mode, clip, normalization)
    for name, term in (("task_advantage", task_advantage), ("baseline", baseline)):
        if term is not None and term.shape != response_mask.shape:
            raise ValueError(f"{name} must be (B, T) = {tuple(response_mask.shape)}, got {tuple(term.shape)}")
    charge_BT = charge(rollout_logprobs, teacher_logprobs, response_mask, discount=discount, clip=clip)
    advantages_BT = advantage_of(charge_BT, response_mask, coef=coef, normalization=normalization)
    if baseline is not None:
        baseline_BT = torch.where(response_mask.bool(), baseline, 0.0)
        advantages_BT = advantages_BT - advantage_of(baseline_BT, response_mask, coef=coef, normalization=normalization)
    if task_advantage is not None:
        advantages_BT = advantages_BT + task_advantage
    if discount_mode == "fixed":
        advantages_BT = torch.where(response_mask.bool(), advantages_BT, 0.0)
    return advantages_BT


def charge(
    rollout_logprobs: torch.Tensor,
    teacher_logprobs: torch.Tensor,
    response_mask: torch.Tensor,
    *,
    discount: float = 0.0,
    clip: float | None = None,
) -> torch.Tensor:
    """What each token is charged: `sum_k discount**k * reverse_kl_{t+k}`, nats, (B, T), each term clipped first.

    Arguments as of `reverse_kl_advantage`. With a discount, tokens outside the mask before one inside it are charged.
    """
    charge_BT = sampled_reverse_kl(rollout_logprobs, teacher_logprobs, response_mask)
    if clip is not None:
        charge_BT = charge_BT.clamp(-clip, clip)
    return discounted_future_sum(charge_BT, discount) if discount > 0 else charge_BT


def advantage_of(
    charge_BT: torch.Tensor, response_mask: torch.Tensor, *, coef: float, normalization: str = "token"
) -> torch.Tensor:
    """`-coef / norm * charge`, (B, T): the one place where a charge in nats becomes an advantage.

    Linear, so that a part of the charge that is known elsewhere or later (a baseline that needs the student's logits)
    is weighed alike. `normalization` as in `reverse_kl_advantage`.
    """
    if normalization == "sequence":
        charge_BT = charge_BT / response_mask.sum(-1, keepdim=True).clamp(min=1)
    return -coef * charge_BT


def _check_settings(coef: float, discount: float, discount_mode: str, clip: float | None, normalization: str) -> None:
    if coef < 0:
        raise ValueError(f"coef must be >= 0, got {coef}")
    if not 0.0 <= discount <= 1.0:
        raise ValueError(f"discount must be in [0, 1], got {discount}")
    if discount_mode not in ("fixed", "strict"):
        raise ValueError(f"discount_mode must be 'fixed' or 'strict', got {discount_mode!r}")
    if clip is not None and clip <= 0:
        raise ValueError(f"clip must be > 0 nats, or None for no clip, got {clip}")
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization must be 'token' or 'sequence', got {normalization!r}")
