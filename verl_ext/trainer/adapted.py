"""verl's trainer with what a run of ours needs around the step; the step itself is in trainer.py."""

import functools
import inspect
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from ray.exceptions import GetTimeoutError, RayActorError
from verl.trainer.ppo.core_algos import register_adv_est
from verl.trainer.ppo.v1 import trainer_base
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions
from verl.workers.rollout.llm_server import LLMServerClient

from verl_ext.platform.loading import as_data
from verl_ext.run.checkpoints import latest_step
from verl_ext.run.metrics import MetricsFile, reach_stage, write_place
from verl_ext.run.settings import settings_of
from verl_ext.run.timeline import VALIDATION, TimelineFile
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.teachers import teachers_of
from verl_ext.trainer.advantages import OFF_POLICY, fresh_rows, teacher_metrics
from verl_ext.trainer.buffer import BoundedWait, PipelineBuffer, StopAsked, SyncBuffer
from verl_ext.trainer.client import ResumingClient
from verl_ext.trainer.config import check_method
from verl_ext.trainer.losses import loss_from_logits, policy_loss
from verl_ext.trainer.mixed_loss import mixed_loss
from verl_ext.trainer.pipeline_config import STREAM, SYNC, check_pipeline
from verl_ext.trainer.spending import Sampled, Spending
from verl_ext.trainer.staleness import staleness_metrics
from verl_ext.trainer.stoppable import StoppableTrainer
from verl_ext.trainer.tool_metrics import answer_lengths, turn_metrics

VERLS_PIPELINE = "colocate_async"
"""verl's mode in which sampling goes on while the student is trained."""
ANSWER_TIMEOUT_S = 10.0
UPDATE_FIELDS = (
    *("input_ids", "position_ids", "prompts", "responses", "response_mask", "loss_mask", "multi_modal_inputs"),
    *("old_log_probs", "advantages", "returns", "ref_log_prob", "rollout_is_weights", "rollout_log_probs"),
    *("teacher_top_ids", "teacher_top_logprobs", "teacher_logprobs", "routed_experts", OFF_POLICY),
)
"""Of a sample, as many as there are: what verl's engine and losses, and ours, read in an update."""


def _balanced(lengths: Any, k_partitions: int, equal_size: bool) -> Any:
    """verl's partition of rows between ranks, in Python that takes 2 ms a row; of one rank it is every row."""
    if k_partitions == 1:
        return [list(range(len(lengths)))]
    return get_seqlen_balanced_partitions(lengths, k_partitions, equal_size)


trainer_base.get_seqlen_balanced_partitions = _balanced  # pyright: ignore[reportPrivateImportUsage]  where it is called


class AdaptedTrainer(StoppableTrainer):
    """What `OnPolicyDistillationTrainer` stands on: our settings, files and metrics, and the seams that verl has."""

    replay_buffer: BoundedWait

    def __init__(self, config: DictConfig) -> None:
        self.method = check_method(config)
        self.pipeline = check_pipeline(config, self.method)
        # verl takes every mode but the literal "sync" for an asynchronous one (another buffer, batch size 1).
        config.trainer.v1.trainer_mode = "sync" if self.pipeline.mode == SYNC else VERLS_PIPELINE
        if self.pipeline.mode == STREAM:
            updates = config.data.train_batch_size // config.actor_rollout_ref.actor.ppo_mini_batch_size
            OmegaConf.update(config, f"trainer.v1.{VERLS_PIPELINE}.parameter_sync_step", updates, force_add=True)
        super().__init__(config)
        self.teacher = settings_of(config.teacher, TeacherConfig)
        self.metrics_file = MetricsFile(f"{config.run_dir}/metrics.jsonl")
        self.timeline = TimelineFile(f"{config.run_dir}/timeline.jsonl")
        self.spending = Spending(config, teachers_of(config))
        self._notes: list[dict[str, Any]] = []
        """Of the agent loop, on the samples that this step took so far."""
        self._advantages_BT: torch.Tensor | None = None
        register_adv_est(config.algorithm.adv_estimator)(self._estimate)

    def at(self, stage: str) -> None:
        """Say where the step is; whoever waits for it reads this."""
        self.timeline.stage(stage)
        write_place(self.config.run_dir, f"step {self.global_steps}: {stage}")

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        # verl leaves its loop after `total_epochs`, before the steps that were asked for, and saves nothing there.
        trainer = self.config.trainer
        trainer.total_epochs = max(trainer.total_epochs, -(-self.total_training_steps // self.steps_per_epoch))
        reach_stage(self.config.run_dir, "data is loaded")

    def _load_checkpoint(self) -> None:
        """verl's, of data alone. verl begins anew, in silence, where it finds no checkpoint."""
        with as_data():
            super()._load_checkpoint()
        trainer = self.config.trainer
        newest = latest_step(Path(trainer.default_local_dir)) if trainer.resume_mode == "auto" else None
        if newest is not None and newest != self.global_steps:
            raise RuntimeError(
                f"verl resumed after step {self.global_steps}, and the newest checkpoint is of {newest}; start the run "
                "again"
            )
        self.saved_step = self.global_steps
        if self.global_steps:
            reach_stage(self.config.run_dir, f"resumed after step {self.global_steps}")
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        if self.pipeline.mode == SYNC and (folder / "transfer_queue").is_dir():
            reach_stage(
                self.config.run_dir,
                "prompts that were under way at the checkpoint are left out: it was not of pipeline.mode=sync",
            )

    def _build_replay_buffer(self) -> BoundedWait:
        theirs = super()._build_replay_buffer()
        # verl keeps every argument under its own name.
        arguments = {name: getattr(theirs, name) for name in inspect.signature(ReplayBuffer).parameters}
        kind = SyncBuffer if self.pipeline.mode == SYNC else PipelineBuffer
        buffer = kind(self.pipeline, **arguments | {"train_batch_size": self.config.data.train_batch_size})
        buffer.where = self._where_samples_are
        buffer.lost = self.who_is_gone
        buffer.look = self.stop_while_waiting
        return buffer

    def _where_samples_are(self) -> str:
        """What the agent loop's workers are at, in words."""
        try:
            return "; ".join(self._workers("waiting", timeout=ANSWER_TIMEOUT_S))
        except GetTimeoutError:
            return f"an agent loop does not say within {ANSWER_TIMEOUT_S:g} s"
        except RayActorError:
            return "an agent loop is gone"

    def get_llm_client(self) -> LLMServerClient:
        return self.llm_server_manager.get_client(client_cls=ResumingClient)

    def _log_rollout_data(self, batch: Any, timing_raw: dict, rollout_data_dir: str) -> None:
        super()._log_rollout_data(only_fresh(batch), timing_raw, rollout_data_dir)

    def _balance_batch(
        self, batch: Any, metrics: dict, logging_prefix: str = "global_seqlen", keep_minibatch: bool = False
    ) -> Any:
        """verl's balancing between ranks; then, where sequences are padded, the samples of a prompt side by side.

        Micro-batches are contiguous rows, which read a prompt that they share once (`engine.py`) and are padded to
        their longest, so groups of like length are neighbours too. Rows move within one rank's share of one mini-batch
        only, whose loss is a sum: the update stays what it was.
        """
        batch = super()._balance_batch(batch, metrics, logging_prefix, keep_minibatch)
        actor = self.config.actor_rollout_ref.actor
        if not self.config.actor_rollout_ref.model.use_remove_padding:
            rows = actor.ppo_mini_batch_size * self.config.actor_rollout_ref.rollout.n
            share = rows // self.resource_pool_manager.get_n_gpus()
            lengths = [tag["seq_len"] for tag in batch.tags]
            batch.reorder(order_by_group([prompt_of(key) for key in batch.keys], lengths, share))
        return batch

    def _compute_old_log_prob(self, batch: Any, metrics: dict) -> Any:
        """verl's; in bypass mode it copies the rollout's, which the agent loop has done (`queue_writer.py`).

        Not for verl's synthetic rows, which have those of the sample that they were made from, and not its length.
        """
        if not self.config.algorithm.rollout_correction.bypass_mode:
            return super()._compute_old_log_prob(batch, metrics)
        if synthetic := [key for key, tag in zip(batch.keys, batch.tags, strict=True) if tag.get("is_padding")]:
            super()._compute_old_log_prob(batch.select_keys(synthetic), metrics)
        return batch

    def _update_actor(self, batch: Any, metrics: dict) -> Any:
        """verl sends every field of a sample to every rank, its conversation too; here those that an update reads."""
        if self.pipeline.mode == SYNC and self.local_trigger_step == 0 and self.is_asked_to_stop():
            raise StopAsked
        batch.fields = list(UPDATE_FIELDS)
        batch.extra_info["entropy_is_trained"] = self.config.actor_rollout_ref.actor.entropy_coeff != 0
        try:
            batch = super()._update_actor(batch, metrics)
        finally:
            batch.fields = None
        actor = self.config.actor_rollout_ref
        mini_batches = len(batch) // (actor.actor.ppo_mini_batch_size * actor.rollout.n)
        self.spending.updated(metrics, mini_batches, self._ranks())
        return batch

    def _ranks(self) -> int:
        """Data-parallel ranks of the actor, asked as verl's own `_balance_batch` asks."""
        workers: Any = self.actor_rollout_wg
        if "actor" not in workers._dispatch_info:
            workers._dispatch_info["actor"] = workers._query_dispatch_info("actor")
        return max(workers._dispatch_info["actor"]) + 1

    def _estimate(self, token_level_rewards: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """verl's estimator seam: (advantages, returns), both (B, T)."""
        assert self._advantages_BT is not None
        assert self._advantages_BT.shape == token_level_rewards.shape
        return self._advantages_BT, self._advantages_BT

    def on_init_end(self) -> None:
        reach_stage(self.config.run_dir, "actor and vLLM hold the weights")
        if self.method.needs_student_logits:
            self._let_the_loss_read_logits()
        else:
            self._set_loss(policy_loss)
        super().on_init_end()

    def _set_loss(self, loss: Any) -> None:
        """Give the actor what it descends."""
        actor = omega_conf_to_dataclass(self.config.actor_rollout_ref.actor)
        own = functools.partial(loss, config=actor)
        mixed = functools.partial(mixed_loss, config=actor, own_loss=own)
        self.actor_rollout_wg.set_loss_fn(mixed if self.method.off_policy_share else own)

    def _let_the_loss_read_logits(self) -> None:
        """Give the actor our loss, and ask for its logits with every update.

        verl's engine hands logits to a loss where the batch says `distillation_use_topk`, and its trainer says so for
        its own distillation only, in `_update_actor` just before it calls the workers.
        """
        self._set_loss(functools.partial(loss_from_logits, method=self.method))
        update = self.actor_rollout_wg.update_actor

        only = self.method.is_direct and not (self.method.off_policy_share or self.method.tail_samples)

        def update_from_logits(batch: Any) -> Any:
            # Without `distillation_only` verl also makes the log-probs of the sampled tokens.
            batch.extra_info |= {"distillation_use_topk": True, "distillation_only": only}
            return update(batch)

        self.actor_rollout_wg.update_actor = update_from_logits

    def on_train_begin(self) -> None:
        reach_stage(self.config.run_dir, "agent loop is up")
        super().on_train_begin()

    def on_validate_begin(self) -> None:
        self.at(VALIDATION)
        self.spending.validation_begins()
        super().on_validate_begin()

    def on_step_begin(self) -> None:
        self._notes = []
        self.spending.step_begins()
        super().on_step_begin()

    def on_validate_end(self) -> None:
        super().on_validate_end()
        answered, self.replay_buffer.validated = self.replay_buffer.validated, []
        self.spending.validated(self.global_steps, answered)

    def _compute_metrics(self, batch: Any, metrics: dict, timing_raw: dict, global_steps: int, epoch: int) -> None:
        """verl's metrics of what was sampled in this step, whatever else was trained on."""
        super()._compute_metrics(only_fresh(batch), metrics, timing_raw, global_steps=global_steps, epoch=epoch)
        notes = self._notes
        metrics |= teacher_metrics(notes) | answer_lengths(notes) | turn_metrics(notes)
        metrics |= staleness_metrics([note["tokens_by_version"] for note in notes], global_steps - 1)
        self.timeline.samples(
            [(note["student_start"], note["teacher_start"]) for note in notes],
            [(note["teacher_start"], note["teacher_end"]) for note in notes],
        )
        metrics |= {"training/total_steps": self.total_training_steps, "training/unix_time": time.time()}
        everything = metrics | {}
        written = self.worth_writing(metrics | {})
        metrics.clear()  # verl hands this very mapping to its loggers
        metrics.update(written)
        dropped, self.replay_buffer.dropped = self.replay_buffer.dropped, []
        fresh = only_fresh(batch)
        samples = [Sampled(prompt_of(key), *each) for key, *each in zip(fresh.keys, notes, fresh.tags, strict=True)]
        self.spending.stepped(global_steps, timing_raw["step"], samples, dropped, everything)
        self.metrics_file.append(global_steps, metrics)  # after its cost: killed between, no row stands without one
        self.timeline.append(global_steps)


def only_fresh(batch: Any) -> Any:
    """A batch without replayed rows, teacher's answers and verl's padding."""
    places = fresh_rows(batch)
    return batch if len(places) == len(batch) else batch.select_keys([batch.keys[place] for place in places])


def prompt_of(key: str) -> str:
    """The prompt's id in a sample's key, `{prompt}_{session}_{output}`; verl's synthetic rows are of no prompt."""
    return key.rsplit("_", 2)[0]


def order_by_group(prompts: list[str], lengths: list[int], share: int) -> list[int]:
    """Row indices with each run of `share` rows sorted: rows of one prompt together, its longest row deciding where.

    `share` may not divide the number of rows.
    """
    order: list[int] = []
    for start in range(0, len(lengths), share):
        run = range(start, min(start + share, len(lengths)))
        longest: dict[str, int] = {}
        for row in run:
            longest[prompts[row]] = max(longest.get(prompts[row], 0), lengths[row])
        order += sorted(run, key=lambda row: (longest[prompts[row]], prompts[row], lengths[row]))
    return order
