"""Importing it is the effect: verl makes our adapter where it would make its own, in the process that imports this."""

from verl.workers.rollout import base

base._ROLLOUT_REGISTRY["vllm", "async"] = "verl_ext.trainer.weight_adapter.SendingAdapter"
