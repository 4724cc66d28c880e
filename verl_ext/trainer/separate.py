"""The pipelined step with vLLM on devices of its own (`pipeline.placement=separate`); weights travel to them.

verl's trainer for this (`PPOTrainerSeparateAsync`) has another step around it; its seams are used here without it.
"""

from typing import Any

from verl.checkpoint_engine import CheckpointEngineManager
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.rollout.llm_server import LLMServerManager

from verl_ext.trainer import host_weights
from verl_ext.trainer.pipelined import PipelinedTrainer

TRANSFER = {"cpu": host_weights.NAME, "cuda": "nccl"}
"""By device, verl's checkpoint engine that moves weights between processes."""


class SeparateTrainer(PipelinedTrainer):
    _enable_hybrid_replicas = False
    """What verl's `_setup` asks: the actor's devices then hold no vLLM."""

    def _setup(self) -> None:
        engine: Any = self.config.actor_rollout_ref.rollout.checkpoint_engine
        engine.backend = TRANSFER[self.config.trainer.device]
        engine.custom_backend_module = host_weights.__name__
        super()._setup()
        self.llm_server_manager: Any = LLMServerManager.create(config=self.config)
        self.checkpoint_manager = CheckpointEngineManager(
            config=omega_conf_to_dataclass(engine),
            actor_wg=self.actor_rollout_wg,
            replicas=self.llm_server_manager.get_replicas(),
        )

    def _renew_weights(self) -> None:
        """As verl's manager, which interrupts and goes on by itself."""
        manager: Any = self.checkpoint_manager
        manager.update_weights(self.global_steps)

    def _get_n_gpus_for_throughput(self) -> int:
        rollout = self.config.actor_rollout_ref.rollout
        return super()._get_n_gpus_for_throughput() + rollout.nnodes * rollout.n_gpus_per_node
