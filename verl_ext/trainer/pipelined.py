"""The same step, with the next prompts answered and scored while the student is trained (`pipeline.mode`)."""

from typing import Any

import transfer_queue as tq
from verl.utils.debug import marked_timer

from verl_ext.run.metrics import reach_stage
from verl_ext.trainer.trainer import OnPolicyDistillationTrainer


class PipelinedTrainer(OnPolicyDistillationTrainer):
    """Student, teacher and trainer stay in memory; only while vLLM gets new weights nothing is sampled.

    The hooks are those of verl's `PPOTrainerColocateAsync`, whose vLLM sleeps during the update.
    """

    def _load_checkpoint(self) -> None:
        """As verl, whose checkpoint also holds the samples that its own step had just trained: nobody takes those.

        And samples that no teacher could score, as where that was what ended the run: their prompts are asked again.
        """
        super()._load_checkpoint()
        saved = (tq.kv_list("train") or {}).get("train", {})
        prompts = {key for key, tag in saved.items() if tag.get("is_prompt")}
        trained = [key for key in saved if key not in prompts and key.split("_")[0] not in prompts]
        if trained:
            tq.kv_clear(keys=trained, partition_id="train")
        finished = {key for key in prompts if saved[key]["status"] == "finished"}
        if again := unscored([key for key in saved if key.split("_")[0] in finished and key not in prompts]):
            reach_stage(
                self.config.run_dir, f"{len(again)} saved prompts have samples without a score, and are asked again"
            )
            pending = [{"status": "pending"} for _ in again]  # for verl a prompt that was under way
            tq.kv_batch_put(keys=again, partition_id="train", tags=pending)

    def on_train_begin(self) -> None:
        """The prompts of the first `pipeline.ahead` steps, less those that a checkpoint brought back.

        Each goes out as of the step that would have sent it, so that the oldest are trained first.
        """
        super().on_train_begin()
        if self._restored_tq_prompt_count:
            reach_stage(self.config.run_dir, f"{self._restored_tq_prompt_count} saved prompts are under way again")
        first, size, restored = self.global_steps, self._sampled_prompts, self._restored_tq_prompt_count
        self._sent_before = max(0, restored - self.pipeline.ahead * size)
        last = min(first + self.pipeline.ahead - 1, self.total_training_steps)
        for number, step in enumerate(range(first, last + 1), start=1):
            missing = min(size, number * size - restored)
            if missing > 0:
                self.global_steps = step - self.pipeline.ahead
                self._add_prompts_to_generate(missing)
        self.global_steps = first

    def prepare_step(self) -> dict:
        """Prompts of the step `pipeline.ahead` steps on; none where training ends before it.

        Nor where a run that was stopped in this very step had sent them out.
        """
        if self._sent_before:
            self.at("prompts")
            missing, self._sent_before = self._sampled_prompts - self._sent_before, 0
            if missing > 0:
                self._add_prompts_to_generate(missing)
            return {}
        if self.global_steps + self.pipeline.ahead > self.total_training_steps:
            self.at("prompts")
            self._send_what_is_not_replayed()
            return {}
        return super().prepare_step()

    def on_sample_end(self) -> None:
        """Nothing sleeps: vLLM goes on with the prompts of later steps."""
        if self.curr_step_profile:
            self._stop_rollout_profiling()

    def on_step_end(self) -> None:
        """Sync: what vLLM is sampling stops, and goes on under the new weights."""
        with marked_timer("update_weights", self.timing_raw):
            self.at("weight sync")
            if self.method.control == "no_weight_sync":
                return
            self.sync_weights(self._renew_weights)

    def _renew_weights(self) -> None:
        manager: Any = self.checkpoint_manager  # its coroutines run to their end where no loop does
        manager.abort_replicas()
        manager.update_weights(self.global_steps)
        manager.resume_generation_replicas()


def unscored(samples: list[str]) -> list[str]:
    """Prompts that have a sample without a score; `samples` are keys of TransferQueue."""
    if not samples:
        return []
    data: Any = tq.kv_batch_get(keys=samples, partition_id="train", select_fields=["extra_fields"])
    notes = data.pop("extra_fields").tolist()
    return sorted({key.split("_")[0] for key, note in zip(samples, notes, strict=True) if note["teacher_error"]})
