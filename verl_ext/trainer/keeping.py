"""verl's trainer, which keeps the answers to the same few held-out rows at every validation (`report`).

They go to `samples.jsonl`, and to the loggers that can show them beside the curves.
"""

from typing import Any, TypeVar

import numpy as np
import ray
from omegaconf import DictConfig, ListConfig
from verl.trainer.ppo.v1 import PPOTrainerSync

from verl_ext.run.metric_names import worth_writing
from verl_ext.run.metrics import reach_stage
from verl_ext.run.samples import DIGITS, SAMPLES, Sample, SamplesFile, numbers, token_text, token_texts
from verl_ext.run.settings import settings_of
from verl_ext.trainer.kept import KeptAnswer, kept_rows
from verl_ext.trainer.report_config import ReportConfig

Value = TypeVar("Value")
LOGGED = "val/samples"
COLUMNS = ("row", "prompt", "truth", "answer", "score", "finish")
OURS = ("tensorboard", "wandb")
"""Loggers to which verl writes answers as one row of 3 n columns, which a prompt that fails breaks, or as Markdown."""


class KeepingTrainer(PPOTrainerSync):
    """Before a validation the agent loop's workers are told which answers to keep; after it they hand them over."""

    agent_loop_manager: Any

    def __init__(self, config: DictConfig) -> None:
        super().__init__(config)
        self.report = settings_of(config.report, ReportConfig)
        self.samples_file = SamplesFile(f"{config.run_dir}/{SAMPLES}")
        self._kept_rows: dict[int, int] = {}

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        rows: Any = self.val_dataset
        indices = [info["index"] for info in rows.dataframe["extra_info"]]
        self._kept_rows = kept_rows(indices, self.report.keep_samples)

    def _workers(self, method: str, *arguments: Any, timeout: float | None = None) -> list[Any]:
        """What every worker of the agent loop answers."""
        workers = self.agent_loop_manager.agent_loop_workers
        return ray.get([getattr(worker, method).remote(*arguments) for worker in workers], timeout=timeout)

    def on_validate_begin(self) -> None:
        self._workers("keep_answers", self._kept_rows)
        super().on_validate_begin()

    def _validate(self) -> dict[str, float]:
        return self.worth_writing(super()._validate())

    def worth_writing(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """The metrics that are written, of those that verl and we have."""
        return metrics if self.report.all_metrics else worth_writing(metrics)

    def _maybe_log_val_generations(self, inputs: list, outputs: list, scores: list) -> None:
        """verl's own choice of answers, where `trainer.log_val_generations` asks for it, and ours."""
        super()._maybe_log_val_generations(inputs, outputs, scores)
        answers = [answer for kept in self._workers("keep_answers", {}) for answer in kept]
        samples = [sample_of(answer, self.tokenizer, self.global_steps, self.report.longest) for answer in answers]
        samples.sort(key=lambda sample: sample.row)
        self.samples_file.append(samples)
        if missing := len(self._kept_rows) - len(samples):
            reach_stage(self.config.run_dir, f"{missing} held-out rows to be kept have no answer")
        if samples and not self.config.trainer.log_val_generations:
            self._log_samples(samples)

    def _log_samples(self, samples: list[Sample]) -> None:
        listed = self.config.trainer.logger
        names = list(listed) if isinstance(listed, list | ListConfig) else [listed]
        rows = [[getattr(sample, column) for column in COLUMNS] for sample in samples]
        if "tensorboard" in names:
            writer = self.logger.logger["tensorboard"].writer
            writer.add_text(LOGGED, as_markdown(rows), self.global_steps)
            writer.flush()
        if "wandb" in names:
            wandb: Any = self.logger.logger["wandb"]
            wandb.log({LOGGED: wandb.Table(columns=list(COLUMNS), data=rows)}, step=self.global_steps)
        if others := [name for name in names if name not in OURS]:
            texts = [(sample.prompt, sample.answer, sample.score) for sample in samples]
            self.validation_generations_logger.log(others, texts, self.global_steps)


def sample_of(answer: KeptAnswer, tokenizer: Any, step: int, longest: int) -> Sample:
    """The line of `samples.jsonl`; of texts longer than `longest` characters, their beginning."""
    tokens = token_texts(tokenizer, answer.response_ids, longest)
    whole = {
        "prompt": prompt_text(answer.messages),
        "answer": tokenizer.decode(answer.response_ids, skip_special_tokens=True),
        "truth": answer.truth,
    }
    texts: dict[str, Any] = {name: None if text is None else text[:longest] for name, text in whole.items()}
    return Sample(
        step=step,
        row=answer.row,
        **texts,
        score=answer.score,
        finish=answer.finish,
        tokens=tokens,
        student_logprobs=first(sampled(numbers(answer.student_logprobs), answer), len(tokens)),
        teacher_logprobs=first(sampled(numbers(answer.teacher_logprobs), answer), len(tokens)),
        alternatives=first(alternatives_of(answer, tokenizer), len(tokens)),
        cut_characters=sum(max(0, len(text or "") - longest) for text in whole.values()),
        cut_tokens=len(answer.response_ids) - len(tokens),
    )


def alternatives_of(answer: KeptAnswer, tokenizer: Any) -> list[list[tuple[str, float]]] | None:
    """The teacher's most likely tokens at each position, with their log-probs."""
    if answer.top_ids is None or answer.top_logprobs is None:
        return None
    texts = {token: token_text(tokenizer, token) for token in np.unique(answer.top_ids).tolist()}
    return [
        [(texts[token], round(logprob, DIGITS)) for token, logprob in zip(ids, logprobs, strict=True)] if keep else []
        for ids, logprobs, keep in zip(
            answer.top_ids.tolist(), answer.top_logprobs.tolist(), answer.response_mask, strict=True
        )
    ]


def sampled(logprobs: list[float] | None, answer: KeptAnswer) -> list[float | None] | None:
    """None for a token that a tool wrote, which has no log-prob."""
    if logprobs is None:
        return None
    return [each if keep else None for each, keep in zip(logprobs, answer.response_mask, strict=True)]


def first(values: list[Value] | None, count: int) -> list[Value] | None:
    return None if values is None else values[:count]


def prompt_text(messages: Any) -> str:
    """The text of a conversation; its roles are named where there is more than one message."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def as_markdown(rows: list[list[Any]]) -> str:
    """Answers for TensorBoard, as indented code: what a model writes is shown as it is, and is no Markdown or HTML."""
    parts = []
    for row in rows:
        fields = dict(zip(COLUMNS, row, strict=True))
        parts += [f"**row {fields.pop('row')}**", *(code(name, value) for name, value in fields.items())]
    return "\n\n".join(parts)


def code(name: str, value: Any) -> str:
    """One field; every line of it is indented, whatever some reader takes for the end of a line."""
    return "\n".join(f"    {line}" for line in (f"{name}: {value}".splitlines() or [""]))
