"""The policy loss of Tinker's `importance_sampling`: one ratio, no clip."""

import torch


def importance_sampling_loss(
    logprobs: torch.Tensor, rollout_logprobs: torch.Tensor, advantages: torch.Tensor
) -> torch.Tensor:
    """Per-token loss `-exp(logprobs - rollout_logprobs) * advantages`, (B, T); the caller sums it over the mask.

    Its gradient at `logprobs == rollout_logprobs` is the REINFORCE gradient; off that point the ratio
    corrects for the sampler's distribution. Unclipped and unbiased.

    Source: tinker `importance_sampling` loss (`-(exp(logp - sampled_logp) * advantage).sum()`).

    Args:
        logprobs: log-probs under the policy in training, with gradient, nats, (B, T).
        rollout_logprobs: log-probs under the sampler, nats, (B, T).
        advantages: nats, (B, T), no gradient.
    """
    return -torch.exp(logprobs - rollout_logprobs) * advantages
