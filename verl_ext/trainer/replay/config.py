"""The settings of the replay buffer, each with its default here and nowhere else."""

import math
from dataclasses import dataclass, field
from typing import Any

from verl_ext.run.settings import one_of, settings_of, within
from verl_ext.trainer.config import MethodConfig
from verl_ext.trainer.pipeline_config import STREAM, UNBOUNDED, PipelineConfig

DEVICES = ("cpu", "cuda")
PRIORITIES = ("proportional", "rank", "uniform", "recency")


@dataclass(frozen=True)
class ReplayConfig:
    """Which part of a step is samples of earlier steps, and which of those (docs/replay.md).

    share: of a step's prompts, in [0, 1), whose samples are replaced by stored ones: rounded down to whole prompts.
        0 keeps no buffer.
    capacity_tokens: prompt and response tokens held at most, >= 1; the oldest samples make room.
    capacity_bytes: bytes held at most, >= 1; the tighter of the two bounds holds.
    device: where the tokens lie, `cpu` or `cuda`.
    priority: `proportional`, P of a sample ~ priority^exponent; `rank`, ~ (1 / its rank by priority)^exponent;
        `recency`, ~ (1 / its rank by age, the newest first)^exponent; `uniform`. The priority is the mean absolute
        reverse KL of the sample's trained tokens under the student that last saw it, nats.
    exponent: in [0, 10]; 0 is uniform.
    beta_start: exponent of the importance weights (1 / (N P))^beta at the start, in [0, 1]; 1 undoes the priority.
    beta_steps: steps until beta is 1, linearly, >= 0.
    max_uses: times that a sample is trained on again at most, >= 1.
    max_age: weight versions, counted from the one that wrote a sample's first token, after which it is not trained on
        any more, >= 1.
    min_ess: a sample whose effective sample size under the current student, (sum w)^2 / (n sum w^2) of its n trained
        tokens' ratios w, is lower is left out of the step, in [0, 1]. 0 leaves out none.
    """

    share: float = 0.0
    capacity_tokens: int = 2**20
    capacity_bytes: int = field(default=2**30, metadata={"largest": float("inf")})
    device: str = "cpu"
    priority: str = "proportional"
    exponent: float = 0.6
    beta_start: float = 0.4
    beta_steps: int = 100
    max_uses: int = 2
    max_age: int = 4
    min_ess: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.share < 1.0:
            raise ValueError(f"replay.share={self.share} must be in [0, 1)")
        within("replay.capacity_tokens", self.capacity_tokens, 1, float("inf"))
        within("replay.capacity_bytes", self.capacity_bytes, 1, float("inf"))
        one_of("replay.device", self.device, DEVICES)
        one_of("replay.priority", self.priority, PRIORITIES)
        within("replay.exponent", self.exponent, 0.0, 10.0)
        within("replay.beta_start", self.beta_start, 0.0, 1.0)
        within("replay.beta_steps", self.beta_steps, 0, float("inf"))
        within("replay.max_uses", self.max_uses, 1, float("inf"))
        within("replay.max_age", self.max_age, 1, float("inf"))
        within("replay.min_ess", self.min_ess, 0.0, 1.0)

    def prompts(self, batch: int) -> int:
        """Prompts of a step of `batch` whose samples are replaced by stored ones, at most."""
        return math.floor(self.share * batch)

    def beta(self, step: int) -> float:
        """Exponent of the importance weights at a step, which counts from 0."""
        passed = min(1.0, step / self.beta_steps) if self.beta_steps else 1.0
        return self.beta_start + (1.0 - self.beta_start) * passed


def bytes_a_token(top_k: int) -> int:
    """Its id, two log-probs and the mask; id and log-prob of each of the teacher's `top_k` tokens there."""
    return 13 + 8 * top_k


def check_replay(config: Any, method: MethodConfig, pipeline: PipelineConfig) -> ReplayConfig:
    """The replay of a whole run's configuration, checked against the method and verl's settings beside it.

    Raises:
        ValueError: naming the key and the fix.
    """
    replay = settings_of(config.replay, ReplayConfig)
    if not replay.share:
        return replay
    _check_method(replay, config, method)
    data, rollout = config.data, config.actor_rollout_ref.rollout
    prompts = data.train_batch_size
    updates = prompts // config.actor_rollout_ref.actor.ppo_mini_batch_size if pipeline.mode == STREAM else 1
    replayed = replay.prompts(prompts)
    if replayed == 0:
        raise ValueError(
            f"replay.share={replay.share} of data.train_batch_size={prompts} prompts is less than one: raise one"
        )
    if -(-replayed // updates) >= prompts // updates:
        raise ValueError(
            f"replay.share={replay.share} leaves a mini-batch of {prompts // updates} prompts without a fresh one in "
            f"pipeline.mode={STREAM}: lower it, or raise actor_rollout_ref.actor.ppo_mini_batch_size"
        )
    if replay.max_age <= pipeline.ahead:
        raise ValueError(
            f"replay.max_age={replay.max_age}: a sample of pipeline.mode={pipeline.mode} may be {pipeline.ahead} "
            f"versions old when it is first trained on; raise it to {pipeline.ahead + 1} or more"
        )
    longest = data.max_prompt_length + data.max_response_length
    for key, capacity, needed in (
        ("capacity_tokens", replay.capacity_tokens, longest),
        ("capacity_bytes", replay.capacity_bytes, longest * bytes_a_token(max(method.top_k, 0))),
    ):
        if needed > capacity:
            raise ValueError(
                f"replay.{key}={capacity} does not hold one sample of data.max_prompt_length + "
                f"data.max_response_length={longest} tokens, which takes {needed}; raise it"
            )
    if replay.device == "cuda" and config.trainer.device == "cpu":
        raise ValueError("replay.device=cuda and trainer.device=cpu: set replay.device=cpu")
    if rollout.enable_rollout_routing_replay:
        raise ValueError(
            "actor_rollout_ref.rollout.enable_rollout_routing_replay=true needs each sample's routed experts, which "
            "replay.share does not keep; set one to its default"
        )
    return replay


def _check_method(replay: ReplayConfig, config: Any, method: MethodConfig) -> None:
    share = f"replay.share={replay.share}"
    if method.policy_loss.kind == UNBOUNDED and not method.is_direct:
        raise ValueError(
            f"{share} with method.policy_loss.kind={UNBOUNDED}: the student has moved on since a stored sample, ratios "
            "are far from 1, and this loss does not bound them; set "
            "method.policy_loss.kind=truncated_importance_sampling"
        )
    if method.task_reward.coef or method.baseline == "group":
        key = "method.baseline=group" if method.baseline == "group" else "method.task_reward.coef"
        raise ValueError(
            f"{share} with {key}: it compares the samples of one prompt, which are replayed one by one; leave one out"
        )
    if not config.algorithm.rollout_correction.bypass_mode:
        raise ValueError(
            f"{share} with algorithm.rollout_correction.bypass_mode=false: a stored sample's ratio is that of the "
            "student to the sampler, and there it would be to the trainer's own log-probs; set it to true"
        )
