"""Policy losses registered with verl; loaded in the actor by `actor_rollout_ref.model.external_lib`."""

from typing import Any

import torch
from verl.trainer.ppo.core_algos import agg_loss, register_policy_loss

from verl_ext.method.importance_sampling import importance_sampling_loss


@register_policy_loss("importance_sampling")
def compute_importance_sampling_loss(
    old_log_prob: torch.Tensor,
    log_prob: torch.Tensor,
    advantages: torch.Tensor,
    response_mask: torch.Tensor,
    loss_agg_mode: str,
    config: Any,
    rollout_is_weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """verl's policy-loss seam for `verl_ext.method.importance_sampling`; all tensors (B, T).

    With `algorithm.rollout_correction.bypass_mode=true` verl passes the rollout's log-probs as `old_log_prob`.
    """
    loss_BT = importance_sampling_loss(log_prob, old_log_prob, advantages)
    if rollout_is_weights is not None:
        loss_BT = loss_BT * rollout_is_weights
    loss = agg_loss(loss_BT, response_mask, loss_agg_mode, **config.global_batch_info)
    with torch.no_grad():
        gap_BT = torch.where(response_mask.bool(), (log_prob - old_log_prob).abs(), 0.0)
        metrics = {
            # Near 0 on the first update after a weight sync: the proof that sampler and trainer hold the same weights.
            "actor/rollout_gap_mean": (gap_BT.sum() / response_mask.sum().clamp(min=1)).item(),
            "actor/rollout_gap_max": gap_BT.max().item(),
        }
    return loss, metrics
