"""Whether and how many of a step's prompts give way to the teacher's own answers (`method.off_policy_share`)."""

import math
from typing import Any

from verl_ext.trainer.config import NOT_OF_THE_ADVANTAGE, MethodConfig
from verl_ext.trainer.pipeline_config import STREAM, PipelineConfig
from verl_ext.trainer.replay.config import ReplayConfig

KEY = "method.off_policy_data"


def taught_prompts(method: MethodConfig, config: Any) -> int:
    """Prompts of a step whose samples are replaced by the teacher's answers."""
    return math.floor(method.off_policy_share * config.data.train_batch_size)


def check_off_policy(config: Any, method: MethodConfig, pipeline: PipelineConfig, replay: ReplayConfig) -> int:
    """`taught_prompts` of a whole run's configuration, checked against the settings beside it.

    Raises:
        ValueError: naming the key and the fix.
    """
    if bool(method.off_policy_share) != bool(method.off_policy_data):
        raise ValueError(
            f"method.off_policy_share={method.off_policy_share} with {KEY}={method.off_policy_data!r}: the share is of "
            "that file's answers; set both or neither"
        )
    if not method.off_policy_share:
        return 0
    if method.control not in NOT_OF_THE_ADVANTAGE:
        raise ValueError(
            f"method.control={method.control} shows what is learned without the teacher, and "
            f"method.off_policy_share={method.off_policy_share} trains on its answers: leave one out"
        )
    share, prompts = f"method.off_policy_share={method.off_policy_share}", config.data.train_batch_size
    taught, replayed = taught_prompts(method, config), replay.prompts(prompts)
    if not taught:
        raise ValueError(f"{share} of data.train_batch_size={prompts} prompts is less than one: raise one")
    updates = prompts // config.actor_rollout_ref.actor.ppo_mini_batch_size if pipeline.mode == STREAM else 1
    if -(-taught // updates) + -(-replayed // updates) >= prompts // updates:
        raise ValueError(
            f"{share} and replay.share={replay.share} leave an update of {prompts // updates} prompts without one that "
            "is sampled: lower one"
        )
    if not config.algorithm.rollout_correction.bypass_mode:
        raise ValueError(
            f"{share} with algorithm.rollout_correction.bypass_mode=false: verl would correct for a sampler of the "
            "teacher's answers that is not there; set it to true"
        )
    if config.actor_rollout_ref.rollout.enable_rollout_routing_replay:
        raise ValueError(
            f"{share} with actor_rollout_ref.rollout.enable_rollout_routing_replay=true: the teacher's answers have no "
            "routed experts; set one to its default"
        )
    return taught
