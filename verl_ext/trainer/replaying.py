"""verl's step with samples of earlier steps in it (`replay.share`, docs/replay.md).

A step that ends draws the replayed rows of the next one, while vLLM sleeps and the student has the weights that it will
have there; as many prompts fewer are then sampled and scored. What a step sampled is kept when it has ended.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transfer_queue as tq
from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from verl.trainer.ppo.padding_utils import upsample_batch_to_divisible_size
from verl.utils.debug import marked_timer
from verl.workers.utils.padding import response_from_nested

from verl_ext.ledger.flops import Work, sequence
from verl_ext.run.visible import print
from verl_ext.trainer.advantages import Samples
from verl_ext.trainer.refreshing import RefreshingTrainer
from verl_ext.trainer.replay import queue
from verl_ext.trainer.replay.buffer import Draw, PriorityBuffer
from verl_ext.trainer.replay.config import check_replay
from verl_ext.trainer.replay.gate import Looked, look_at
from verl_ext.trainer.replay.storage import Rows, spans

LOOKED_AT = "replay"
"""TransferQueue's partition of drawn rows while the student looks at them; a checkpoint of the queue never sees it."""
FILE = "replay.pt"


@dataclass(frozen=True)
class Replayed:
    """What was drawn for a step."""

    drawn: Draw
    looked: Looked
    accepted: np.ndarray
    """Places in `drawn` of the rows that are trained on, a whole number of prompts' worth."""
    student_logprobs: list[torch.Tensor]
    """Of the accepted rows' responses under the student of this step, nats, (R,) each."""
    metrics: dict[str, float]


class ReplayingTrainer(RefreshingTrainer):
    """`GuardedTrainer`, whose batches hold replayed rows beside fresh ones, under the tag `replayed`."""

    def __init__(self, config: DictConfig) -> None:
        super().__init__(config)
        self.replay = check_replay(config, self.method, self.pipeline)
        self.memory: PriorityBuffer | None = None
        self._replayed: Replayed | None = None
        self._replayed_keys: dict[str, int] = {}
        """Of this step's replayed rows, the place in `Replayed.accepted`."""
        self._planned: dict[int, int] = {}
        """By step, the prompts that were not sent out since stored samples will stand in for theirs."""
        self._fresh: list[Rows] = []
        self._left_out = 0
        if self.replay.share:
            with open_dict(config):
                config.data.gen_batch_size = 1  # so that any number of prompts can be asked for

    def _init_tokenizer(self) -> None:
        super()._init_tokenizer()
        if self.replay.share:
            top_k = self.method.top_k if self.method.top_k >= 0 else len(self.tokenizer)
            self.memory = PriorityBuffer(self.replay, self.config.data.seed or 0, top_k)

    @property
    def _n(self) -> int:
        return self.config.actor_rollout_ref.rollout.n

    @property
    def _sampled_prompts(self) -> int:
        """Prompts of a step of which none is replayed."""
        return self.config.data.train_batch_size

    @property
    def _replayed_prompts(self) -> int:
        """Prompts of the coming step that need not be sampled."""
        return len(self._replayed.accepted) // self._n if self._replayed is not None else 0

    def _share_of_update(self, prompts: int) -> range:
        """Which of a step's replayed prompts belong to the update that comes: verl may take several a step."""
        update, updates = self.local_trigger_step, self.parameter_sync_step
        return range(prompts * update // updates, prompts * (update + 1) // updates)

    def on_init_end(self) -> None:
        if self.memory is not None:
            self._draw_replayed()
        super().on_init_end()

    def step(self, metrics: dict, timing_raw: dict) -> Any:
        batch = super().step(metrics, timing_raw)
        if self.memory is not None:
            self.at("replay")
            with marked_timer("replay", timing_raw):
                metrics.update(self._keep())
                if self.global_steps < self.total_training_steps:
                    self._draw_replayed()
        return batch

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        """The prompts of the step `pipeline.ahead` steps on, less those planned to be replayed there, and in place of
        those that could not be replayed in this one."""
        if num_prompts is None:
            num_prompts = self._sampled_prompts
            if self.memory is not None:
                num_prompts += self._not_replayed - self._plan(self.global_steps + self.pipeline.ahead)
        return super()._next_train_batch(num_prompts)

    def _plan(self, step: int) -> int:
        """Settle how many prompts of a step are replayed at most: with what is in the buffer when its own go out."""
        assert self.memory is not None
        wanted = self.replay.prompts(self.config.data.train_batch_size)
        return self._planned.setdefault(step, min(wanted, self.memory.drawable // self._n))

    @property
    def _not_replayed(self) -> int:
        """Prompts that were planned to be replayed in the coming step, and are not: they must be sampled."""
        return self._planned.get(self.global_steps, 0) - self._replayed_prompts

    def _send_what_is_not_replayed(self) -> None:
        """Where a step sends out no prompts of a later one."""
        if self._not_replayed:
            self._add_prompts_to_generate(self._not_replayed)

    def _step_once(self, metrics: dict, timing_raw: dict, sample_batch_size: int) -> Any:
        replayed = len(self._share_of_update(self._replayed_prompts))
        return super()._step_once(metrics, timing_raw, sample_batch_size - replayed)

    def _balance_batch(
        self, batch: Any, metrics: dict, logging_prefix: str = "global_seqlen", keep_minibatch: bool = False
    ) -> Any:
        return super()._balance_batch(self._with_replayed(batch), metrics, logging_prefix, keep_minibatch)

    def _add_to_checkpoint(self, folder: Path) -> None:
        super()._add_to_checkpoint(folder)
        if self.memory is not None:
            torch.save(self.memory.state_dict(), folder / FILE)

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.memory is None or not self.global_steps:
            return
        trainer = self.config.trainer
        newest = Path(trainer.default_local_dir) / f"global_step_{self.global_steps}"
        folder = Path(trainer.resume_from_path) if trainer.resume_mode == "resume_path" else newest
        if (folder / FILE).is_file():
            self.memory.load_state_dict(torch.load(folder / FILE, weights_only=True, map_location="cpu"))
        else:
            print(f"replay: {folder} holds no {FILE}, so the buffer begins empty")

    def _draw_replayed(self) -> None:
        """Draw the next step's replayed rows, and let the student, which has that step's weights, look at them."""
        assert self.memory is not None
        coming = self.global_steps + 1
        planned = self._planned.get(coming, 0) if self.pipeline.ahead else self._plan(coming)
        drawn = self.memory.draw(planned * self._n, step=self.global_steps, version=self.global_steps)
        if not len(drawn.rows):
            self._replayed = None
            return
        logprobs = self._student_logprobs(drawn.rows)
        looked = look_at(drawn.rows, along_rows(drawn.rows, logprobs))
        passed = np.flatnonzero(looked.ess_B >= self.replay.min_ess)
        accepted = passed[: len(passed) // self._n * self._n]
        uses = self.memory.storage.row["uses_B"][drawn.numbers_B[accepted] % self.memory.storage.slots] + 1
        of_accepted = {
            "weight_mean": drawn.weights_B[accepted],
            "age_mean": self.global_steps - drawn.rows.first_versions_B[accepted],
            "uses_mean": uses,
            "reverse_kl": looked.reverse_kl_B[accepted],
        }
        metrics = {name: float(values.mean()) for name, values in of_accepted.items() if len(accepted)}
        metrics |= {
            "drawn": float(len(drawn.rows)),
            "trained": float(len(accepted)),
            "refused_ess": float(len(drawn.rows) - len(passed)),
            "returned": float(len(passed) - len(accepted)),
            "ess_mean": float(looked.ess_B.mean()),
        }
        self._replayed = Replayed(drawn, looked, accepted, [logprobs[place] for place in accepted], metrics)

    def _student_logprobs(self, rows: Rows) -> list[torch.Tensor]:
        """Log-probs of the responses under the student as it is, nats, (R,) each: one forward pass."""
        own, actor = queue.put(rows, LOOKED_AT), self.config.actor_rollout_ref
        extra: dict[str, Any] = {"calculate_entropy": False, "compute_loss": False}
        extra["temperature"] = actor.rollout.temperature
        multiple = ranks = self._ranks()
        if not actor.actor.use_dynamic_bsz:  # then verl takes whole micro-batches alone
            a_rank = -(-len(rows) // ranks)
            extra["micro_batch_size_per_gpu"] = min(a_rank, actor.rollout.log_prob_micro_batch_size_per_gpu)
            multiple = ranks * extra["micro_batch_size_per_gpu"]
        batch: Any = upsample_batch_to_divisible_size(own, multiple, self.tokenizer.eos_token_id)
        batch.extra_info |= extra
        self.actor_rollout_wg.compute_log_prob(batch)
        self.spending.looked(sum((sequence(int(length)) for length in rows.lengths_B), Work()))
        data: Any = tq.kv_batch_get(own.keys, LOOKED_AT, select_fields=["log_probs", "response_mask"])
        tq.kv_clear(keys=batch.keys, partition_id=LOOKED_AT)
        return [row.float() for row in response_from_nested(data["log_probs"], data["response_mask"]).unbind()]

    def _with_replayed(self, batch: Any) -> Any:
        """The sampled batch and, behind it, the replayed rows of this update."""
        prompts = self._share_of_update(self._replayed_prompts)
        if not prompts:
            return batch
        assert self._replayed is not None
        places = range(prompts.start * self._n, prompts.stop * self._n)
        added = queue.put(self._replayed.drawn.rows.select(self._replayed.accepted[places]), batch.partition_id)
        self._replayed_keys |= dict(zip(added.keys, places, strict=True))
        return dataclasses.replace(batch, keys=[*batch.keys, *added.keys], tags=[*batch.tags, *added.tags])

    def _under_this_student(self, batch: Any, samples: Samples) -> Samples:
        """The samples with what this student, not the one that sampled them, thinks of the replayed ones.

        With `method.student_logprobs=current` the loss sees to that.
        """
        if self.method.student_logprobs == "current" or not self._replayed_keys:
            return samples
        assert self._replayed is not None
        student_BT = samples.student_logprobs_BT.clone()
        for row, key in enumerate(batch.keys):
            if key in self._replayed_keys:
                own = self._replayed.student_logprobs[self._replayed_keys[key]]
                student_BT[row, : len(own)] = own.to(student_BT.dtype)
        return dataclasses.replace(samples, student_logprobs_BT=student_BT)

    def _store_weights(self, batch: Any, samples: Samples) -> None:
        """Give the loss the importance weights of replayed rows, where verl has those of a rollout correction."""
        if not any(key in self._replayed_keys for key in batch.keys):
            return
        assert self._replayed is not None
        weights = self._replayed.drawn.weights_B[self._replayed.accepted]
        places = [self._replayed_keys.get(key) for key in batch.keys]
        rows = [
            torch.full((int(length),), 1.0 if place is None else float(weights[place]))
            for place, length in zip(places, samples.lengths_B, strict=True)
        ]
        nested = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
        fields = TensorDict({"rollout_is_weights": nested}, batch_size=len(batch))
        tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)

    def _note_fresh(self, batch: Any, samples: Samples, places: list[int]) -> None:
        """Keep a copy of what was sampled and scored until the step has ended; not of a row without a trained token."""
        if self.memory is None:
            return
        has_token = samples.mask_BT.bool().any(-1).tolist()
        trained = [place for place in places if has_token[place]]
        self._left_out += len(places) - len(trained)
        if trained:
            self._fresh.append(
                queue.take(batch, trained, samples.truncated_B[trained].tolist(), top=self.method.top_k != 0)
            )

    def _keep(self) -> dict[str, float]:
        """The step has ended: what it drew gets its new priority, and what it sampled goes into the buffer."""
        assert self.memory is not None
        metrics = {"drawn": 0.0, "trained": 0.0, "refused_ess": 0.0, "returned": 0.0}
        if self._replayed is not None:
            numbers = self._replayed.drawn.numbers_B
            used = np.isin(np.arange(len(numbers)), self._replayed.accepted)
            self.memory.update(numbers, self._replayed.looked.priorities_B, used)
            metrics |= self._replayed.metrics
        self.memory.expire(self.global_steps)
        for rows in self._fresh:
            self.memory.add(rows, look_at(rows, rows.rollout_logprobs_N).priorities_B)
        metrics["left_out"] = float(self._left_out)
        self._replayed, self._replayed_keys, self._fresh, self._left_out = None, {}, [], 0
        self._planned.pop(self.global_steps, None)
        return {f"replay/{name}": value for name, value in metrics.items()} | self.memory.metrics()


def along_rows(rows: Rows, responses: list[torch.Tensor]) -> torch.Tensor:
    """Values of response tokens, (R,) a row, in their places among prompts and responses, (N,); 0 on prompts."""
    prompts, lengths = rows.prompt_lengths_B.astype(np.int64), rows.lengths_B.astype(np.int64)
    places = spans(np.cumsum(lengths) - lengths + prompts, lengths - prompts)
    return torch.zeros(len(rows.token_ids_N)).index_put((torch.from_numpy(places),), torch.cat(responses))
