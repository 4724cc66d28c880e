"""One step of on-policy distillation, read from top to bottom (`MethodConfig` says what each part does)."""

from typing import Any

from verl.trainer.ppo.v1 import register_trainer

from verl_ext.method.reverse_kl import teacher_kl
from verl_ext.run.visible import print
from verl_ext.trainer import reward_workers as reward_workers  # importing it is the effect
from verl_ext.trainer.advantages import (
    advantages,
    fetch,
    fresh_rows,
    guard,
    store_advantages,
    store_mask,
    with_controlled_teacher,
)
from verl_ext.trainer.failures import FILE as FAILED_ROWS
from verl_ext.trainer.mixing import MixingTrainer
from verl_ext.trainer.tool_metrics import kl_by_turn

NAME, PIPELINED, SEPARATED = (f"on_policy_distillation{kind}" for kind in ("", "_pipelined", "_separate"))


class OnPolicyDistillationTrainer(MixingTrainer):
    """Prompts, samples, scores, advantages, update, sync: the methods below, in the order in which verl calls them.

    The loop is verl's (`PPOTrainer.fit`, `step`, `_step_once`); tests/contract holds this order against it.
    """

    def prepare_step(self) -> dict:
        """Prompts: the next `data.train_batch_size` rows go to the agent loop, each `rollout.n` times."""
        self.at("prompts")
        return super().prepare_step()

    def on_sample_begin(self) -> None:
        """Samples, then scores, answer by answer: verl waits from here until the batch is in TransferQueue.

        In the agent loop's workers (`agent_loop.py`) vLLM samples an answer, which the teacher scores under its own
        prompt as soon as it ends, while other answers are still being sampled.
        """
        self.at("samples and scores")
        super().on_sample_begin()

    def _compute_advantage(self, batch: Any, metrics: dict) -> Any:
        """Advantages: what the student and the teacher thought of a token becomes what its log-prob is pushed by.

        Where verl adds to them, as its rollout correction does, they reach it through its estimator seam
        (`AdaptedTrainer._estimate`); else they are stored as they are, and verl need not fetch the batch once more.
        """
        self.at("advantages")
        samples, notes = fetch(batch, self.method)
        fresh = fresh_rows(batch)  # what the sampler and the teacher did in this step
        notes = [notes[row] for row in fresh]
        self._notes += notes
        self._check_failed()
        self._check_unscored([note["teacher_error"] for note in notes])
        self._note_fresh(batch, samples, fresh)
        samples = self._without_taught(batch, self._under_this_student(batch, samples))
        step = self.global_steps - 1
        taught = with_controlled_teacher(samples, self.method.control, step=step, vocabulary=len(self.tokenizer))
        sampled = taught if len(fresh) == len(batch) else taught.select(fresh)
        metrics["response_length/truncated_share"] = sampled.truncated_B.float().mean().item()
        metrics["teacher_kl"] = teacher_kl(sampled.student_logprobs_BT, sampled.teacher_logprobs_BT, sampled.mask_BT)
        metrics |= kl_by_turn(sampled.student_logprobs_BT, sampled.teacher_logprobs_BT, sampled.mask_BT)
        guarded, found = guard(taught, self.method.guards, step=step)
        metrics.update(found if sampled is taught else guard(sampled, self.method.guards, step=step)[1])
        if guarded.mask_BT is not samples.mask_BT:
            store_mask(batch, self._with_taught(batch, guarded))
        has_token = guarded.mask_BT.bool().any(-1).tolist()
        self._trains = any(has_token) or bool(self._taught_places(batch))
        self.account.use([batch.keys[row] for row in fresh], [has_token[row] for row in fresh])
        self._store_weights(batch, samples)
        self._advantages_BT, found = advantages(guarded, self.method)
        metrics.update(found)
        algorithm = self.config.algorithm
        if algorithm.use_kl_in_reward or not algorithm.rollout_correction.bypass_mode:
            return super()._compute_advantage(batch, metrics)
        return store_advantages(batch, samples, self._advantages_BT)

    def _update_actor(self, batch: Any, metrics: dict) -> Any:
        """Update: FSDP2 descends the policy loss, log-probs weighed by advantages, or a direct loss (`losses.py`)."""
        self.at("update")
        batch = super()._update_actor(batch, metrics)
        self.updates.check()
        return batch

    def _save_checkpoint(self) -> None:
        """Checkpoint, after every `trainer.save_freq` steps; the student leaves it (`checkpoint.py`).

        None while updates go wrong, so that the newest stays a good one.
        """
        self.at("checkpoint")
        if self.updates.bad_in_a_row:
            print(f"step {self.global_steps} is not saved: its last update went wrong")
            return
        super()._save_checkpoint()

    def on_step_end(self) -> None:
        """Sync: vLLM gets the new weights, and answers the next prompts with them."""
        self.at("weight sync")
        if self.method.control != "no_weight_sync":
            self.sync_weights(super().on_step_end)

    def _check_failed(self) -> None:
        """Stop, with a checkpoint, when an error cost too many of a step's samples."""
        limit = self.method.guards.max_failed_share
        if self.account.failed_share > limit:
            saved = self._save_last_finished_step(self.local_trigger_step + 1)
            raise RuntimeError(
                f"{self.account.failed} samples of a step failed, more than method.guards.max_failed_share={limit}; "
                f"{saved}; {self.config.run_dir}/{FAILED_ROWS} names the rows and what they "
                "failed of"
            )

    def _check_unscored(self, errors: list[str]) -> None:
        """Stop, with a checkpoint, when no teacher could score too many of a step's samples ("" for a scored one)."""
        unscored = [error for error in errors if error]
        if len(unscored) > self.teacher.max_unscored_share * len(errors):
            saved = self._save_last_finished_step(self.local_trigger_step + 1)
            raise RuntimeError(
                f"{len(unscored)} of {len(errors)} samples have no teacher score, more than "
                f"teacher.max_unscored_share={self.teacher.max_unscored_share}; {saved}; the first says: {unscored[0]}"
            )


def register() -> None:
    """Make our trainers known to verl as `trainer.v1.trainer_mode`."""
    from verl_ext.trainer.pipelined import PipelinedTrainer  # which stand on this module
    from verl_ext.trainer.separate import SeparateTrainer

    register_trainer(NAME)(OnPolicyDistillationTrainer)
    register_trainer(PIPELINED)(PipelinedTrainer)
    register_trainer(SEPARATED)(SeparateTrainer)
