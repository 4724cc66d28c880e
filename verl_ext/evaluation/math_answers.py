"""Mathematics, as the training's reward scores it: how often the answer is right, and what answers look like."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from verl_ext.evaluation.answers import Judged
from verl_ext.evaluation.labels import Proportion
from verl_ext.evaluation.labels_report import table_of, with_interval


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


def evaluate_math(model: str, sees_prompt: bool, judged: Sequence[Judged]) -> MathResult:
    """What `judged`, at least one answer, come to."""
    n = len(judged)
    return MathResult(
        model=model,
        sees_prompt=sees_prompt,
        accuracy=Proportion(sum(bool(each.right) for each in judged), n),
        truncated=Proportion(sum(each.truncated for each in judged), n),
        unboxed=Proportion(sum(not each.read for each in judged), n),
        mean_tokens=sum(each.tokens for each in judged) / n,
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
