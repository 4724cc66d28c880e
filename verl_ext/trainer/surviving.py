"""verl's trainer where no more samples come: whoever is gone is named, and what is finished is saved."""

import functools
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig
from ray.exceptions import RayActorError

from verl_ext.run.metrics import reach_stage
from verl_ext.trainer.buffer import SamplingStopped
from verl_ext.trainer.checkpoint import save_last_finished_step
from verl_ext.trainer.keeping import KeepingTrainer
from verl_ext.trainer.pipeline_config import SYNC, PipelineConfig
from verl_ext.trainer.presence import NOTICED_S, Presence


class SurvivingTrainer(KeepingTrainer):
    """A step that cannot get its samples ends the run; where vLLM or the agent loop is gone, that is the next one.

    The step under way is finished first, for its samples are there: nothing is synced to those who are gone.
    """

    pipeline: PipelineConfig
    llm_server_manager: Any

    def __init__(self, config: DictConfig) -> None:
        super().__init__(config)
        self._data_state: dict[str, Any] = {}
        """The dataloader's, from before this step."""

    @functools.cached_property
    def _presence(self) -> Presence:
        named: dict[str, Any] = {}
        if self.config.actor_rollout_ref.rollout.name == "vllm":
            servers = [server for replica in self.llm_server_manager.get_replicas() for server in replica.servers]
            named |= {f"vLLM server {number}": server for number, server in enumerate(servers)}
        loops = self.agent_loop_manager.agent_loop_workers
        return Presence(named | {f"agent loop {number}": worker for number, worker in enumerate(loops)})

    def who_is_gone(self, within_s: float = 0.0) -> str:
        """Of those who answer, in words; "" where everyone is there after `within_s` seconds."""
        return self._presence.lost(within_s)

    def on_step_begin(self) -> None:
        self._data_state = self.train_dataloader.state_dict()
        self.local_trigger_step = 0
        super().on_step_begin()

    def step(self, metrics: dict, timing_raw: dict) -> Any:
        """verl's; where no more samples come, what the steps before it made is kept."""
        try:
            return super().step(metrics, timing_raw)
        except SamplingStopped as error:
            raise RuntimeError(f"{error}; {self._save_last_finished_step(self.local_trigger_step)}") from error
        except RayActorError as error:  # whom prompts were sent to
            if not (gone := self.who_is_gone(NOTICED_S)):
                raise
            raise RuntimeError(f"{gone}; {self._save_last_finished_step(self.local_trigger_step)}") from error

    def on_validate_begin(self) -> None:
        try:
            super().on_validate_begin()
        except RayActorError:  # an agent loop's, which `_validate` will miss
            if not self.who_is_gone(NOTICED_S):
                raise

    def _validate(self) -> dict[str, float]:
        """verl's; without those who answer there is none, and the step after this one ends the run."""
        try:
            return super()._validate()
        except (SamplingStopped, RayActorError) as error:
            gone = self.who_is_gone(NOTICED_S)
            if gone and self._data_state:
                reach_stage(self.config.run_dir, f"{gone}: step {self.global_steps} is not validated")
                return {}
            if isinstance(error, RayActorError) and not gone:
                raise
            saved = save_last_finished_step(self, self.global_steps, self.train_dataloader.state_dict())
            raise RuntimeError(f"{gone or error}; {saved}") from error

    def on_sample_end(self) -> None:
        """Sleep. A server that is gone needs none."""
        self._presence.call(super().on_sample_end)

    def sync_weights(self, sync: Callable[[], None]) -> None:
        """`sync` gives vLLM the weights of the step that ends.

        Raises:
            RuntimeError: where a server went in the middle, for then the actor's ranks wait for it and cannot save.
        """
        if self.who_is_gone():
            return
        if gone := self._presence.call(sync):
            raise RuntimeError(f"{gone}, in the weight sync of step {self.global_steps}, from which nothing is saved")

    def _save_last_finished_step(self, updates: int) -> str:
        """Checkpoint the run as the step before this one left it; what to tell the user.

        `updates`: of this step, as many have taken their prompts.
        """
        if self.pipeline.mode == SYNC:
            return save_last_finished_step(self, self.global_steps - 1, self._data_state)
        left_out = updates * self.config.data.train_batch_size // self.parameter_sync_step
        return save_last_finished_step(self, self.global_steps - 1, None, left_out)
