"""The former place of `verl_ext.method.policy_loss.importance_sampling_loss`."""

from verl_ext.method.policy_loss import importance_sampling_loss

__all__ = ["importance_sampling_loss"]
