"""Mathematics, as the training's reward scores it: how often the answer is right, and what answers look like."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from verl_ext.evaluation.labels import Proportion
from verl_ext.evaluation.labels_report import table_of, with_interval
from verl_ext.sampling.types import Answer


@dataclass(frozen=True)
class MathResult:
    """Answers of one model to problems whose answer is known."""

    model: str
    sees_prompt: bool
    """It was given the teacher's messages."""
    accuracy: Proportion
    """Of all rows; by `verl_ext.evaluation.match.math_match`."""
    truncated: Proportion
    """Cut off by `max_tokens` or by the model's context."""
    unboxed: Proportion
    """Without a \\boxed{}, so wrong."""
    mean_tokens: float
    """Of an answer, its end token included."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "accuracy": self.accuracy.value,
            "accuracy_interval_95": self.accuracy.interval,
            "truncated_share": self.truncated.value,
            "unboxed_share": self.unboxed.value,
            "mean_tokens": self.mean_tokens,
            "rows": self.accuracy.n,
            "model": self.model,
            "sees_prompt": self.sees_prompt,
        }


def evaluate_math(model: str, sees_prompt: bool, answers: Sequence[Answer], truths: Sequence[str]) -> MathResult:
    """Score `answers` against `truths`, row by row; at least one row."""
    from verl_ext.evaluation.match import boxed_answer, math_match

    n = len(truths)
    return MathResult(
        model=model,
        sees_prompt=sees_prompt,
        accuracy=Proportion(
            sum(int(math_match(answer.text, truth)) for answer, truth in zip(answers, truths, strict=True)), n
        ),
        truncated=Proportion(sum(answer.truncated for answer in answers), n),
        unboxed=Proportion(sum(not boxed_answer(answer.text) for answer in answers), n),
        mean_tokens=sum(answer.tokens for answer in answers) / n,
    )


def math_table(results: Mapping[str, MathResult]) -> Table:
    rows = [
        (
            arm,
            with_interval(result.accuracy.value, result.accuracy.interval),
            f"{result.truncated.value:.3f}",
            f"{result.unboxed.value:.3f}",
            f"{result.mean_tokens:.1f}",
        )
        for arm, result in results.items()
    ]
    n = next(iter(results.values())).accuracy.n
    columns = ("arm", "accuracy (95 %)", "truncated", "no \\boxed{}", "mean tokens")
    return table_of(f"against the right answers, {n} problems", columns, rows)
