"""Controls: each breaks one thing, so that what learning is left shows where learning comes from.

Randomness comes from the `generator` alone: the same seed gives the same control.
"""

import torch


def flipped_sign(advantages_BT: torch.Tensor) -> torch.Tensor:
    """`-advantages`, (B, T): climbs the reverse KL. Must not learn."""
    return -advantages_BT


def shuffle_tokens(
    values_BT: torch.Tensor, mask_BT: torch.Tensor, *, generator: torch.Generator | None = None
) -> torch.Tensor:
    """`values_BT` permuted among the positions where `mask_BT` is 1, (B, T): the same numbers on wrong tokens."""
    mask_BT = mask_BT.bool()
    shuffled_BT, valid = values_BT.clone(), values_BT[mask_BT]
    shuffled_BT[mask_BT] = valid[torch.randperm(len(valid), generator=generator)]
    return shuffled_BT


def random_teacher(
    token_ids_BT: torch.Tensor, vocabulary: int, *, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Log-probs of the sampled tokens under one random distribution, nats, (B, T).

    The distribution is softmax(z) with z ~ N(0, 1) drawn once per call for each of `vocabulary` ids; it ignores the
    context. It is a true distribution, so a student can learn it, and learns nothing of the task by it. A generator
    seeded alike at every step gives the same teacher throughout.

    Args:
        token_ids_BT: sampled ids in [0, vocabulary), (B, T).
    """
    logprobs_V = torch.randn(vocabulary, generator=generator).log_softmax(-1)
    return logprobs_V.to(token_ids_BT.device)[token_ids_BT]


def student_as_teacher(rollout_logprobs_BT: torch.Tensor) -> torch.Tensor:
    """The sampler's own log-probs as the teacher's, (B, T): the reverse KL is exactly 0, nothing may move."""
    return rollout_logprobs_BT.clone()


def constant_negative_advantage(mask_BT: torch.Tensor, *, magnitude: float) -> torch.Tensor:
    """`-magnitude` on every response token, 0 elsewhere, (B, T): no teacher at all.

    Its expected gradient is 0 on-policy (a constant is a baseline): what it does, it does by variance, and off-policy
    by the ratio. Source: arXiv 2608.31046, where it is reported to match the teacher's advantage.

    Args:
        mask_BT: 1 on response tokens, (B, T).
        magnitude: nats, > 0.

    Raises:
        ValueError: if `magnitude` is not positive.
    """
    if magnitude <= 0:
        raise ValueError(f"magnitude must be > 0, got {magnitude}")
    return -magnitude * mask_BT.bool().to(torch.float32)
