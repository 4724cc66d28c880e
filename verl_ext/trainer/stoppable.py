"""verl's trainer whose checkpoints are whole or not there, and which a stop signal ends with its last step saved."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from verl_ext.run.stop_request import requested_stop
from verl_ext.trainer.buffer import SamplingStopped, StopAsked
from verl_ext.trainer.checkpoint import save_last_finished_step, save_whole, write_data_state
from verl_ext.trainer.pipeline_config import SYNC
from verl_ext.trainer.surviving import SurvivingTrainer


class StoppableTrainer(SurvivingTrainer):
    """Looks whether it is asked to end where its weights are those of a finished step."""

    def __init__(self, config: DictConfig) -> None:
        super().__init__(config)
        self.data_state_to_save: dict[str, Any] | None = None
        """In place of the dataloader's, in the next checkpoint."""
        self.saved_step = 0
        """Whose weights the newest checkpoint has."""

    def _save_checkpoint(self) -> None:
        save_whole(self, super()._save_checkpoint, self._add_to_checkpoint)
        self.saved_step = self.global_steps

    def _add_to_checkpoint(self, folder: Path) -> None:
        """What verl's checkpoint in `folder` lacks."""
        write_data_state(self.data_state_to_save, folder)

    def on_step_begin(self) -> None:
        if self.is_asked_to_stop():
            raise self._ended(save_last_finished_step(self, self.global_steps - 1, None))
        super().on_step_begin()

    def step(self, metrics: dict, timing_raw: dict) -> Any:
        """verl's; asked to end in the middle of it, the step before it is saved."""
        try:
            return super().step(metrics, timing_raw)
        except StopAsked:
            state = self._data_state if self.pipeline.mode == SYNC else None
            raise self._ended(save_last_finished_step(self, self.global_steps - 1, state)) from None

    def is_asked_to_stop(self) -> bool:
        return requested_stop(self.config.run_dir) is not None

    def _ended(self, saved: str) -> Exception:
        """What ends the run, with what was saved, in words: a signal, or a failure that the driver saw."""
        failure = requested_stop(self.config.run_dir)
        return RuntimeError(f"{failure}; {saved}") if failure else StopAsked(saved)

    def stop_while_waiting(self, partition_id: str) -> None:
        """While samples are waited for the weights are those of the last finished step, but between a step's updates.

        A validation goes on, so that its step gets its row of metrics; its weights are saved by then, but where the
        queue, with the validation's own samples in it, would be saved too.
        """
        if (failure := requested_stop(self.config.run_dir)) is None:
            return
        if failure:
            raise SamplingStopped(failure)
        if partition_id != "val":
            if self.local_trigger_step == 0:
                raise StopAsked
        elif self.pipeline.mode == SYNC and self.saved_step != self.global_steps:
            self._save_checkpoint()
