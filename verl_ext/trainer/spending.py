"""What a step spent, from what it knows: the agent loop's notes, the actor's reads, the teachers' counts."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from transformers import AutoConfig

from verl_ext.ledger import ledger
from verl_ext.ledger.entries import EVALUATE, TRAIN, Entry, Flops, Tokens
from verl_ext.ledger.flops import Work, adapters_of, answer, backward, forward, scored
from verl_ext.ledger.meter import Stopwatch, shape_or_none
from verl_ext.run.model_shape import ModelShape
from verl_ext.student.model_card import teachers_devices
from verl_ext.teacher.config import TeacherConfig
from verl_ext.trainer.engine import READ

Note = Mapping[str, Any]
Tag = Mapping[str, Any]
"""Of a sample in TransferQueue: `prompt_len`, `response_len`."""
GIB = 2**30


@dataclass(frozen=True)
class Sampled:
    """What is known of a sample of a step."""

    prompt: str
    """Id of the prompt that it answers."""
    note: Note
    """The agent loop's."""
    tag: Tag


def shape_of(path: str, *, trust_remote_code: bool = False) -> ModelShape | None:
    """The shape of a folder's or the hub's model; None, with one printed line, where the formula does not know it."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code).get_text_config()
    return shape_or_none(path, config.to_dict())


class Spending:
    """Collects a step, then appends it to the run's ledger."""

    def __init__(self, config: DictConfig, teachers: Mapping[str, TeacherConfig]) -> None:
        trainer, self._model = config.trainer, config.actor_rollout_ref.model
        gpus = trainer.nnodes * trainer.n_gpus_per_node + teachers_devices(config) if trainer.device == "cuda" else 0
        self._file = Path(config.run_dir) / ledger.FILE
        self._devices, self._gpus = gpus or trainer.nnodes, gpus if trainer.nnodes == 1 else 0
        self._student = shape_of(config.student.path, trust_remote_code=self._model.trust_remote_code)
        rank = self._model.lora_rank
        self._adapters = self._student and adapters_of(self._student, rank, self._model.target_modules)
        self._teachers = {
            name: shape_of(str(teacher.model_path), trust_remote_code=teacher.trust_remote_code)
            for name, teacher in teachers.items()
        }
        self._again = int(not config.algorithm.rollout_correction.bypass_mode)
        self._again += bool(config.method.guards.reference_kl_coef)
        self._epochs = config.actor_rollout_ref.actor.ppo_epochs
        self._step = self._validation = Stopwatch(self._gpus)
        self._trained = self._looked = Work()

    def step_begins(self) -> None:
        self._step = Stopwatch(self._gpus)
        self._step.start()

    def validation_begins(self) -> None:
        """Behind a step, whose metrics are still to come, or before the first one."""
        self._step.stop()
        self._validation = Stopwatch(self._gpus)
        self._validation.start()

    def updated(self, metrics: dict[str, Any], mini_batches: int, ranks: int) -> None:
        """Take what an update read out of its `metrics`: the mean over ranks and, of each epoch, mini-batches."""
        values = {name: float(metrics.pop(f"{READ}{name}")) for name in vars(Work())}
        once = Work(**values) * (ranks * mini_batches)
        self._trained += once * self._epochs
        self._looked += once * self._again  # log-probs before the update read the same

    def looked(self, work: Work) -> None:
        """The student read this without a backward pass."""
        self._looked += work

    def validated(self, step: int, tags: Sequence[Tag]) -> None:
        """A validation after `step` has ended, with these answers. Which prompts were cached nobody says: none."""
        self._validation.stop()
        tokens, work = _of_tags(tags)
        flops = None if self._student is None else Flops(sample=forward(self._student, work))
        watch = self._validation
        self._append(EVALUATE, step, watch.seconds, watch.joules, len(tags), tokens, flops, None)

    def stepped(
        self,
        step: int,
        seconds: float,
        samples: Sequence[Sampled],
        dropped: Sequence[Tag],
        metrics: Mapping[str, Any],
    ) -> None:
        """A step has ended.

        Args:
            seconds: what its timer says.
            samples: what it sampled.
            dropped: what was sampled and taken by no step.
            metrics: of the step, those of the teacher among them.
        """
        self._step.stop()
        sampled_tokens, sampled = _of_tags(dropped)
        for sample in samples:
            found = _of_sample(sample.note, sample.tag)
            sampled_tokens, sampled = sampled_tokens + found[0], sampled + found[1]
        read = {name: self._read_by(name, metrics) for name in self._teachers}
        tokens = replace(sampled_tokens, scored=round(sum(read.values())), trained=round(self._trained.tokens))
        flops = self._flops(sampled, read, samples)
        peak = metrics.get("actor/perf/max_memory_allocated_gb")
        count = len(samples) + len(dropped)
        self._append(TRAIN, step, seconds, self._step.joules, count, tokens, flops, peak)
        self._trained = self._looked = Work()

    def _read_by(self, teacher: str, metrics: Mapping[str, Any]) -> float:
        """Tokens that a teacher's servers read, those in their caches left out."""
        if len(self._teachers) > 1:
            return metrics.get(f"teacher/{teacher}/tokens", 0) - metrics.get(f"teacher/{teacher}/cached_tokens", 0)
        return metrics.get("teacher/tokens", 0) * (1 - metrics.get("teacher/cached_share", 0))

    def _flops(self, sampled: Work, read: Mapping[str, float], samples: Sequence[Sampled]) -> Flops | None:
        if self._student is None or None in self._teachers.values():
            return None
        score = 0.0
        for name, shape in self._teachers.items():
            assert shape is not None
            asked = [sample for sample in samples if _was_asked(sample.note, name)]
            responses = [sample.tag["response_len"] for sample in asked]
            prompts = [sample.note["teacher_tokens"] - length for sample, length in zip(asked, responses, strict=True)]
            requests = list(zip(prompts, responses, strict=True))
            score += forward(shape, scored(read[name], requests, len({sample.prompt for sample in asked})))
        student, adapters = self._student, self._adapters
        ahead = forward(student, self._trained + self._looked, adapters)
        return Flops(forward(student, sampled), score, ahead, backward(student, self._trained, adapters))

    def _append(
        self,
        phase: str,
        step: int,
        seconds: float,
        joules: float | None,
        samples: int,
        tokens: Tokens,
        flops: Flops | None,
        peak_gib: float | None,
    ) -> None:
        entry = Entry(
            phase=phase,
            step=step,
            unix_time=time.time(),
            seconds=seconds,
            device_seconds=seconds * self._devices,
            devices=self._devices,
            samples=samples,
            tokens=tokens,
            flops=flops,
            peak_bytes=None if peak_gib is None else round(peak_gib * GIB),
            energy_joules=joules,
        )
        ledger.append(self._file, entry)


def _was_asked(note: Note, teacher: str) -> bool:
    """Whether a server of this teacher read the sample."""
    return note["teacher"] == teacher and not note["teacher_from_store"] and not note["teacher_error"]


def _of_tags(tags: Sequence[Tag]) -> tuple[Tokens, Work]:
    """Of answers of which only the lengths are known."""
    lengths = [(tag["prompt_len"], tag["response_len"]) for tag in tags]
    tokens = Tokens(sampled=sum(sampled for _, sampled in lengths), prefilled=sum(prompt for prompt, _ in lengths))
    return tokens, sum((answer(*each) for each in lengths), Work())


def _of_sample(note: Note, tag: Tag) -> tuple[Tokens, Work]:
    """Of one sample. One that outlived a weight sync was read again in each of its parts, without a cache.

    What tools answered is read and not sampled; that each turn finds the turns before it cached is taken for granted.
    """
    prompt, response, sampled = tag["prompt_len"], tag["response_len"], note["sampled_tokens"]
    cached, parts = note.get("num_cached_tokens") or 0, [count for _, count in note["tokens_by_version"]]
    work, again, before = answer(prompt, response, cached), 0, 0
    for part in parts[:-1]:
        before += part
        again += prompt + before
        work += answer(prompt + before - 1, 0)  # its last token is read for the first time
    read = prompt - cached + response - sampled + again
    return Tokens(sampled=sampled, prefilled=read, prefilled_cached=cached), work
