"""Policy losses per token, (B, T), and the sums and means over a batch of them.

Every loss has the gradient `-advantage * ratio * grad logprobs` at `ratio = 1`, where
`ratio = exp(logprobs - rollout_logprobs)`; they differ in what a ratio far from 1 may do.
"""

import torch

# exp of a float32 overflows at 88 and padding may hold anything; a sampled token never comes near. verl's bound.
MAX_LOG_RATIO = 20.0
OUTSIDE = ("clamp", "mask")
AGGREGATIONS = ("token-sum", "token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean")


def importance_ratio(logprobs: torch.Tensor, rollout_logprobs: torch.Tensor) -> torch.Tensor:
    """`exp(logprobs - rollout_logprobs)`, (B, T), at most exp(20) so that no padding overflows."""
    return torch.exp((logprobs - rollout_logprobs).clamp(max=MAX_LOG_RATIO))


def importance_sampling_loss(
    logprobs: torch.Tensor, rollout_logprobs: torch.Tensor, advantages: torch.Tensor
) -> torch.Tensor:
    """Per-token loss `-ratio * advantages`, (B, T); the caller sums it over the mask.

    Its gradient at `logprobs == rollout_logprobs` is the REINFORCE gradient; off that point the ratio
    corrects for the sampler's distribution of the token. Unclipped; unbiased given the state.

    Source: tinker `importance_sampling` loss (`-(exp(logp - sampled_logp) * advantage).sum()`).

    Args:
        logprobs: log-probs under the policy in training, with gradient, nats, (B, T).
        rollout_logprobs: log-probs under the sampler, nats, (B, T).
        advantages: nats, (B, T), no gradient.
    """
    return -importance_ratio(logprobs, rollout_logprobs) * advantages


def tail_sample_loss(
    logprobs: torch.Tensor,
    rollout_logprobs: torch.Tensor,
    teacher_logprobs: torch.Tensor,
    tail_reverse_kl: torch.Tensor,
    in_tail: torch.Tensor,
) -> torch.Tensor:
    """Per-token loss of how the tail of a support is divided, (B, T), from the samples that fell there; 0 elsewhere.

    With the tail T as one entry (`divergence.topk_divergence`, `reverse_kl`), the chain rule of the KL leaves

        q_T KL(q(.|T) || p(.|T)) = E_q[1(y in T) c(y)],   c(y) = log q(y)/p(y) - log q_T/p_T   (nats)

    of the whole vocabulary's reverse KL. Its gradient is E_q[1(y in T) c(y) grad log q(y)], since the mean of what c
    itself adds is 0. So this loss beside that divergence has the value and the gradient of the whole reverse KL in
    expectation, whatever the support, if it does not depend on the token that was sampled.

    Args:
        logprobs, rollout_logprobs: as in `importance_sampling_loss`.
        teacher_logprobs: of the sampled tokens, nats, (B, T).
        tail_reverse_kl: log q_T/p_T as the divergence beside it has it, nats, (B, T), no gradient.
        in_tail: the sampled token is outside the support, bool, (B, T).
    """
    charge_BT = torch.where(in_tail, logprobs.detach() - teacher_logprobs - tail_reverse_kl, 0.0)
    return importance_sampling_loss(logprobs, rollout_logprobs, -charge_BT)


def ppo_clip_loss(
    logprobs: torch.Tensor,
    rollout_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    *,
    low: float,
    high: float,
) -> torch.Tensor:
    """Per-token `-min(ratio * A, clamp(ratio, low, high) * A)`, (B, T).

    A token whose ratio has already moved past its bound in the direction of its advantage has no gradient: biased
    off-policy, a limit on the step. Source: PPO, arXiv 1707.06347, eq. 7; separate bounds: DAPO, arXiv 2503.14476.

    Args:
        logprobs, rollout_logprobs, advantages: as in `importance_sampling_loss`.
        low: smallest ratio left alone, in [0, 1].
        high: largest ratio left alone, >= 1.

    Raises:
        ValueError: if a bound is out of range.
    """
    _check_bounds(low, high)
    ratio_BT = importance_ratio(logprobs, rollout_logprobs)
    return -torch.minimum(ratio_BT * advantages, ratio_BT.clamp(low, high) * advantages)


def truncated_importance_sampling_loss(
    logprobs: torch.Tensor,
    rollout_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    *,
    low: float,
    high: float,
    outside: str,
) -> torch.Tensor:
    """Per-token `-weight * advantages * logprobs`, (B, T), with the ratio as a weight without gradient.

    A ratio outside [low, high] is moved to the nearer bound (`clamp`: every token keeps a gradient) or the token is
    dropped (`mask`: nothing is learned from a token that the policy would hardly sample). Both are biased where they
    act, and equal to `importance_sampling_loss` in gradient where they do not. Dropped tokens stay in the denominator
    of `aggregate`. The value is no objective; only its gradient means something.

    Source: `clamp` is CISPO, arXiv 2506.13585, and tinker's `cispo`; `mask` is IcePop, arXiv 2510.18855.

    Args:
        logprobs, rollout_logprobs, advantages: as in `importance_sampling_loss`.
        low: smallest ratio that is neither clamped nor masked, in [0, 1].
        high: largest ratio that is neither clamped nor masked, >= 1.
        outside: `clamp` or `mask`.

    Raises:
        ValueError: if a setting is out of range.
    """
    _check_bounds(low, high)
    if outside not in OUTSIDE:
        raise ValueError(f"outside must be 'clamp' or 'mask', got {outside!r}")
    ratio_BT = importance_ratio(logprobs, rollout_logprobs).detach()
    weight_BT = ratio_BT.clamp(low, high)
    if outside == "mask":
        weight_BT = torch.where(weight_BT == ratio_BT, ratio_BT, 0.0)
    return -weight_BT * advantages * logprobs


def _check_bounds(low: float, high: float) -> None:
    if not 0.0 <= low <= 1.0 <= high:
        raise ValueError(f"low and high must satisfy 0 <= low <= 1 <= high, got {low} and {high}")


def aggregate(
    loss_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    how: str,
    *,
    batch_num_tokens: int | None = None,
    global_batch_size: int | None = None,
    loss_scale_factor: float | None = None,
    dp_size: int = 1,
) -> torch.Tensor:
    """Scalar loss of one micro-batch; the sum over micro-batches and the mean over ranks is the batch's loss.

    Denominators count the *global* batch and are passed in, so splitting it into micro-batches changes nothing.
    Names and keywords are those of verl's `agg_loss`; entries outside the mask are never read, not even NaN.

    - `token-sum`: none. Tinker's.
    - `token-mean`: `batch_num_tokens`, the response tokens of the batch.
    - `seq-mean-token-sum`: `global_batch_size`, the sequences of the batch.
    - `seq-mean-token-sum-norm`: `global_batch_size * loss_scale_factor` (a constant length, Dr. GRPO).
    - `seq-mean-token-mean`: the row's own number of response tokens, then `global_batch_size`.

    Args:
        loss_BT: per-token loss, (B, T).
        mask_BT: 1 on response tokens, (B, T); a row without any contributes 0.
        how: one of the names above.
        dp_size: data-parallel ranks; FSDP divides the gradient by it, so the loss is multiplied by it.

    Raises:
        ValueError: on an unknown name, or if its denominator is missing or not positive.
    """
    if how not in AGGREGATIONS:
        raise ValueError(f"how={how!r} must be one of {', '.join(AGGREGATIONS)}")
    needed = {
        "token-mean": {"batch_num_tokens": batch_num_tokens},
        "seq-mean-token-sum": {"global_batch_size": global_batch_size},
        "seq-mean-token-mean": {"global_batch_size": global_batch_size},
        "seq-mean-token-sum-norm": {"global_batch_size": global_batch_size, "loss_scale_factor": loss_scale_factor},
    }.get(how, {})
    denominator = 1.0
    for key, value in needed.items():
        if key == "batch_num_tokens" and value == 0:
            value = 1  # no token is trained: the sum is 0
        if value is None or value <= 0:
            raise ValueError(f"{how} needs {key} > 0 of the global batch, got {value}")
        denominator *= float(value)
    sum_B = torch.where(mask_BT.bool(), loss_BT, 0.0).sum(-1)
    if how == "seq-mean-token-mean":
        sum_B = sum_B / mask_BT.bool().sum(-1).clamp(min=1)
    return sum_B.sum() * dp_size / denominator
