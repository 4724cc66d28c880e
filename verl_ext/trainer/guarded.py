"""verl's trainer with what is proved in every step: no sample is lost without a word, no update goes wrong unseen."""

from typing import Any

import torch
from omegaconf import DictConfig
from verl.trainer.ppo.v1 import trainer_base

from verl_ext.trainer.accounting import SampleAccount
from verl_ext.trainer.adapted import AdaptedTrainer
from verl_ext.trainer.buffer import BoundedWait
from verl_ext.trainer.update_guard import Updates

_verls_data_metrics = trainer_base.compute_data_metrics  # pyright: ignore[reportPrivateImportUsage]


def _data_metrics(batch: Any, use_critic: bool = True) -> dict[str, Any]:
    """verl's, which fail where no token is trained; then as if all were: their advantages are 0."""
    if not batch.batch["response_mask"].any():
        batch.batch["response_mask"] = torch.ones_like(batch.batch["response_mask"])
    return _verls_data_metrics(batch, use_critic)


trainer_base.compute_data_metrics = _data_metrics  # pyright: ignore[reportPrivateImportUsage]


class GuardedTrainer(AdaptedTrainer):
    """`AdaptedTrainer`, which counts samples and updates and makes none without a token to train."""

    account: SampleAccount

    def __init__(self, config: DictConfig) -> None:
        super().__init__(config)
        self.updates = Updates(self.method.guards.max_bad_updates)
        self._trains = True
        """Whether the present batch has a token that is trained."""

    def _build_replay_buffer(self) -> BoundedWait:
        buffer = super()._build_replay_buffer()
        self.account = buffer.account = SampleAccount(self.config.actor_rollout_ref.rollout.n)
        return buffer

    def on_init_end(self) -> None:
        update = self.actor_rollout_wg.update_actor

        def noted(batch: Any) -> Any:
            output = update(batch)
            self.updates.note(output["metrics"])
            return output

        self.actor_rollout_wg.update_actor = noted
        super().on_init_end()

    def on_train_begin(self) -> None:
        self.account.begin(self._prompts_under_way())
        super().on_train_begin()

    def _prompts_under_way(self) -> int:
        return self.replay_buffer.prompts_under_way("train")

    def _submit_batch_to_rollout(self, batch: Any) -> int:
        self.account.dispatch(len(batch))
        return super()._submit_batch_to_rollout(batch)

    def _update_actor(self, batch: Any, metrics: dict) -> Any:
        """Where no token is trained there is no update: Adam's would move the weights all the same."""
        return super()._update_actor(batch, metrics) if self._trains else batch

    def _compute_metrics(self, batch: Any, metrics: dict, timing_raw: dict, global_steps: int, epoch: int) -> None:
        metrics |= self.account.close(global_steps, self._prompts_under_way()) | self.updates.close()
        super()._compute_metrics(batch, metrics, timing_raw, global_steps=global_steps, epoch=epoch)
