"""How sampling, scoring and training share time: the settings under `pipeline`."""

from dataclasses import dataclass
from typing import Any

from verl_ext.run.settings import above, one_of, settings_of, within
from verl_ext.trainer.config import MethodConfig

SYNC, ONE_STEP_OFF, STREAM = "sync", "one_step_off", "stream"
MODES = (SYNC, ONE_STEP_OFF, STREAM)
WAIT, DROP = "wait", "drop"
RESIDENT, SEPARATE = "resident", "separate"
UNBOUNDED = "importance_sampling"


@dataclass(frozen=True)
class PipelineConfig:
    """How sampling, scoring and training share time (docs/pipeline.md).

    mode: `sync` samples and scores a batch, then trains on it; `one_step_off` samples and scores the next batch while
        it trains on this one; `stream` keeps `max_staleness` batches under way and trains on whichever prompts are
        finished, as soon as a mini-batch of them is. In the last two nothing sleeps: student, teacher and trainer stay
        in memory, and an answer that a weight sync interrupts goes on under the new weights.
    placement: `resident`, vLLM on the trainer's devices; or `separate`, on actor_rollout_ref.rollout.nnodes times
        n_gpus_per_node of its own, in any mode but `sync`.
    max_staleness: weight versions by which the first part of a sample may lag behind the student that is trained,
        >= 1; of `stream` alone, `sync` has 0 and `one_step_off` 1.
    stale: what is done about prompts that would lag further: `wait` holds the step until they are finished, `drop`
        goes on, drops them when they are, and counts them; of `stream` alone.
    wait_timeout_s: seconds that a step waits without one more finished prompt until the run is given up, > 0.
    """

    mode: str = SYNC
    placement: str = RESIDENT
    max_staleness: int = 1
    stale: str = WAIT
    wait_timeout_s: float = 1800.0

    def __post_init__(self) -> None:
        one_of("pipeline.mode", self.mode, MODES)
        one_of("pipeline.placement", self.placement, (RESIDENT, SEPARATE))
        one_of("pipeline.stale", self.stale, (WAIT, DROP))
        within("pipeline.max_staleness", self.max_staleness, 1, float("inf"))
        above("pipeline.wait_timeout_s", self.wait_timeout_s, 0)
        if self.placement == SEPARATE and self.mode == SYNC:
            raise ValueError(
                "pipeline.placement=separate with pipeline.mode=sync: vLLM's devices and the trainer's would wait for "
                "each other by turns; set pipeline.mode=one_step_off or stream"
            )
        if self.mode != STREAM and (self.max_staleness, self.stale) != (1, WAIT):
            raise ValueError(
                f"pipeline.max_staleness={self.max_staleness} and pipeline.stale={self.stale} are read by "
                f"pipeline.mode={STREAM} alone: set that mode, or leave them out"
            )

    @property
    def ahead(self) -> int:
        """Batches under way beside the one that is trained; at most so many weight versions lies a sample behind."""
        return {SYNC: 0, ONE_STEP_OFF: 1, STREAM: self.max_staleness}[self.mode]


def check_pipeline(config: Any, method: MethodConfig) -> PipelineConfig:
    """The pipeline of a whole run's configuration, checked against the method and verl's settings beside it.

    Raises:
        ValueError: naming the key and the fix.
    """
    pipeline = settings_of(config.pipeline, PipelineConfig)
    if pipeline.mode == SYNC:
        return pipeline
    if pipeline.ahead > 1 and not method.is_direct and method.policy_loss.kind == UNBOUNDED:
        raise ValueError(
            f"pipeline.max_staleness={pipeline.max_staleness} with method.policy_loss.kind={UNBOUNDED}: samples more "
            "than one weight version old have ratios far from 1, and this loss does not bound them; set "
            "method.policy_loss.kind=truncated_importance_sampling, or pipeline.max_staleness=1"
        )
    if pipeline.placement == SEPARATE:
        _check_separate(config)
    if config.actor_rollout_ref.rollout.free_cache_engine:
        raise ValueError(
            f"actor_rollout_ref.rollout.free_cache_engine=true lets vLLM sleep while the student is trained, and "
            f"pipeline.mode={pipeline.mode} samples meanwhile: leave it out, or set pipeline.mode={SYNC}"
        )
    batch, mini = config.data.train_batch_size, config.actor_rollout_ref.actor.ppo_mini_batch_size
    if pipeline.mode == STREAM and batch % mini:
        raise ValueError(
            f"data.train_batch_size={batch} is no multiple of actor_rollout_ref.actor.ppo_mini_batch_size={mini}, and "
            f"pipeline.mode={STREAM} trains a mini-batch as soon as it is finished: change one"
        )
    return pipeline


def _check_separate(config: Any) -> None:
    rollout, model = config.actor_rollout_ref.rollout, config.actor_rollout_ref.model
    if rollout.nnodes < 1 or rollout.n_gpus_per_node < 1:
        raise ValueError(
            f"pipeline.placement=separate with actor_rollout_ref.rollout.nnodes={rollout.nnodes} of n_gpus_per_node="
            f"{rollout.n_gpus_per_node}: say how many devices vLLM has; set both to 1 or more"
        )
    if model.lora_rank:
        raise ValueError(
            f"pipeline.placement=separate with actor_rollout_ref.model.lora_rank={model.lora_rank}: verl 0.9.1 sends "
            "no adapters between devices; set update=full, or pipeline.placement=resident"
        )
    slots, needed = config.ray_kwargs.ray_init.num_gpus, _slots(config)
    if slots is not None and slots < needed:
        raise ValueError(
            f"ray_kwargs.ray_init.num_gpus={slots}: pipeline.placement=separate takes {needed}, for the trainer and "
            f"for vLLM; set it to {needed}"
        )


def _slots(config: Any) -> int:
    trainer, rollout = config.trainer, config.actor_rollout_ref.rollout
    return trainer.nnodes * trainer.n_gpus_per_node + rollout.nnodes * rollout.n_gpus_per_node
