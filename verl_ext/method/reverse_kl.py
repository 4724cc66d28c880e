"""Sampled-token reverse KL as an advantage: the whole method of on-policy distillation.

The student samples y ~ pi_rollout(. | x) and the teacher scores the same tokens. At each token

    reverse_kl_t = log pi_rollout(y_t) - log pi_teacher(y_t)

is an unbiased one-sample estimate of KL(pi_rollout || pi_teacher) at that position, and its negative,
used as the advantage of an importance-sampling policy gradient, descends that KL.

Source: tinker-cookbook `distillation/train_on_policy.py`, `incorporate_kl_penalty`, and
`rl/metrics.py`, `discounted_future_sum_vectorized`.
"""

import torch


def sampled_reverse_kl(
    rollout_logprobs: torch.Tensor, teacher_logprobs: torch.Tensor, response_mask: torch.Tensor
) -> torch.Tensor:
    """Per-token `rollout - teacher` in nats, (B, T); exactly 0 where `response_mask` is 0.

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
    # `where`, not a product: padding may hold anything, and 0 * nan is nan.
    return torch.where(response_mask.bool(), rollout_logprobs - teacher_logprobs, 0.0)


def teacher_kl(rollout_logprobs: torch.Tensor, teacher_logprobs: torch.Tensor, response_mask: torch.Tensor) -> float:
    """Mean signed reverse KL over the sampled tokens, nats: sum(reverse_kl) / sum(response_mask).

    Tinker's metric of the same name. NaN for a batch with no sampled token.
    """
    reverse_kl_BT = sampled_reverse_kl(rollout_logprobs, teacher_logprobs, response_mask)
    return (reverse_kl_BT.sum() / response_mask.sum()).item()


def discounted_future_sum(x_BT: torch.Tensor, discount: float) -> torch.Tensor:
    """`out[b, t] = sum_k discount**k * x[b, t + k]` over the whole row, (B, T)."""
    out_BT = x_BT.clone()
    for t in range(x_BT.shape[1] - 2, -1, -1):
        out_BT[:, t] += discount * out_BT[:, t + 1]
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
) -> torch.Tensor:
    """Advantage of every sampled token, nats, (B, T): `task_advantage - coef * reverse_kl`.

    No clamp, no normalisation, no centring, as in Tinker.

    Args:
        rollout_logprobs: log-probs of the sampled tokens under the sampler, nats, (B, T).
        teacher_logprobs: log-probs of the same tokens under the teacher, nats, (B, T).
        response_mask: 1 on tokens that the student sampled, else 0, (B, T).
        coef: weight of the reverse KL, >= 0.
        discount: in [0, 1]; a token is also charged for the discounted reverse KL of the tokens after it.
            0 charges each token for itself alone.
        discount_mode: `fixed` keeps the advantage 0 outside `response_mask`. `strict` copies Tinker, whose
            discounted sum leaks onto earlier masked tokens (prompt, tool output); it exists for conformance.
        task_advantage: added to the reverse-KL term after discounting, (B, T).

    Raises:
        ValueError: on a shape mismatch, or a coefficient, discount or mode out of range.
    """
    if coef < 0:
        raise ValueError(f"coef must be >= 0, got {coef}")
    if not 0.0 <= discount <= 1.0:
        raise ValueError(f"discount must be in [0, 1], got {discount}")
    if discount_mode not in ("fixed", "strict"):
        raise ValueError(f"discount_mode must be 'fixed' or 'strict', got {discount_mode!r}")
    advantages_BT = -coef * sampled_reverse_kl(rollout_logprobs, teacher_logprobs, response_mask)
    if discount > 0:
        advantages_BT = discounted_future_sum(advantages_BT, discount)
    if task_advantage is not None:
        if task_advantage.shape != response_mask.shape:
            raise ValueError(f"task_advantage must be (B, T) = {tuple(response_mask.shape)}")
        advantages_BT = advantages_BT + task_advantage
    if discount_mode == "fixed":
        advantages_BT = torch.where(response_mask.bool(), advantages_BT, 0.0)
    return advantages_BT
