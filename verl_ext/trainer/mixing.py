"""verl's step with answers of the teacher in it (`method.off_policy_share`, docs/method.md).

As many prompts fewer are sampled and scored. The teacher's answers are in the batch for the update alone: masked out of
what the trainer makes of the samples, so that no metric, guard, control or baseline of these sees them.
"""

import dataclasses
from typing import Any

import torch
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import TensorDict

from verl_ext.run.visible import print
from verl_ext.trainer.advantages import OFF_POLICY, Samples
from verl_ext.trainer.mixed_loss import means
from verl_ext.trainer.off_policy import check_off_policy
from verl_ext.trainer.replay import queue
from verl_ext.trainer.replaying import ReplayingTrainer
from verl_ext.trainer.taught import TaughtAnswers, read_answers


class MixingTrainer(ReplayingTrainer):
    """`ReplayingTrainer`, whose batches hold answers of the teacher too, under the tag OFF_POLICY."""

    def __init__(self, config: DictConfig) -> None:
        super().__init__(config)
        self.taught_prompts = check_off_policy(config, self.method, self.pipeline, self.replay)
        self.answers: TaughtAnswers | None = None
        self._taught_rows = self._taught_tokens = 0
        """Of this step so far."""
        if self.taught_prompts:
            with open_dict(config):
                config.data.gen_batch_size = 1  # so that any number of prompts can be asked for

    def _init_tokenizer(self) -> None:
        super()._init_tokenizer()
        if self.taught_prompts:
            data = self.config.data
            template: Any = OmegaConf.to_container(data.apply_chat_template_kwargs)
            self.answers = read_answers(self.method.off_policy_data, self.tokenizer, template, data)
            print(f"{self.taught_prompts * self._n} rows of a step are the teacher's: {self.answers.said}")

    @property
    def _sampled_prompts(self) -> int:
        return super()._sampled_prompts - self.taught_prompts

    def step(self, metrics: dict, timing_raw: dict) -> Any:
        self._taught_rows = self._taught_tokens = 0
        batch = super().step(metrics, timing_raw)
        if self.answers is not None:
            passes = self.global_steps * self.taught_prompts * self._n / len(self.answers)
            found = {"rows": float(self._taught_rows), "tokens": float(self._taught_tokens), "passes": passes}
            metrics.update({f"off_policy/{name}": value for name, value in found.items()})
        return batch

    def _step_once(self, metrics: dict, timing_raw: dict, sample_batch_size: int) -> Any:
        taught = len(self._share_of_update(self.taught_prompts))
        return super()._step_once(metrics, timing_raw, sample_batch_size - taught)

    def _balance_batch(
        self, batch: Any, metrics: dict, logging_prefix: str = "global_seqlen", keep_minibatch: bool = False
    ) -> Any:
        return super()._balance_batch(self._with_answers(batch), metrics, logging_prefix, keep_minibatch)

    def _with_answers(self, batch: Any) -> Any:
        """The sampled batch and, behind it, the teacher's answers of this update.

        Which ones, the seed and the step decide: a resumed run trains on those of the uninterrupted one.
        """
        prompts = self._share_of_update(self.taught_prompts)
        if self.answers is None or not prompts:
            return batch
        first = ((self.global_steps - 1) * self.taught_prompts + prompts.start) * self._n
        places = self.answers.places(first, len(prompts) * self._n, self.config.data.seed or 0)
        top_k = self.method.top_k if self.method.top_k >= 0 else len(self.tokenizer)
        rows = self.answers.rows(places, version=self.global_steps - 1, top_k=top_k)
        added = queue.put(rows, batch.partition_id, OFF_POLICY)
        self._taught_rows += len(rows)
        self._taught_tokens += int(rows.mask_N.sum())
        return dataclasses.replace(batch, keys=[*batch.keys, *added.keys], tags=[*batch.tags, *added.tags])

    def _taught_places(self, batch: Any) -> list[int]:
        """Of the teacher's answers in a batch."""
        return [place for place, tag in enumerate(batch.tags) if tag.get(OFF_POLICY) and not tag.get("is_padding")]

    def _without_taught(self, batch: Any, samples: Samples) -> Samples:
        """The samples with the teacher's answers masked out."""
        return self._masked(batch, samples, False)

    def _with_taught(self, batch: Any, samples: Samples) -> Samples:
        """The samples with every token of the teacher's answers in the mask again."""
        return self._masked(batch, samples, True)

    def _masked(self, batch: Any, samples: Samples, trained: bool) -> Samples:
        if not (places := self._taught_places(batch)):
            return samples
        mask_BT = samples.mask_BT.clone()
        inside_BT = torch.arange(mask_BT.shape[1]) < samples.lengths_B[places, None]
        mask_BT[places] = (inside_BT & trained).to(mask_BT.dtype)
        return dataclasses.replace(samples, mask_BT=mask_BT)

    def _store_weights(self, batch: Any, samples: Samples) -> None:
        """Tell the loss, too, which tokens are the teacher's answers."""
        super()._store_weights(batch, samples)
        if self.answers is None:
            return
        places = set(self._taught_places(batch))
        rows = [torch.full((int(n),), float(row in places)) for row, n in enumerate(samples.lengths_B)]
        nested = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
        fields = TensorDict({OFF_POLICY: nested}, batch_size=len(batch))
        tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)

    def _update_actor(self, batch: Any, metrics: dict) -> Any:
        batch = super()._update_actor(batch, metrics)
        if self.answers is not None:
            found = means(metrics)
            metrics.clear()
            metrics.update(found)
        return batch
