"""Accuracy of label answers, with its uncertainty. Pure functions; no engine."""

import math
from collections import Counter
from dataclasses import dataclass

Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


@dataclass(frozen=True)
class Proportion:
    """A share `hits / n` with its 95 % Wilson interval; all in [0, 1]."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        return self.hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson score interval (Wilson 1927), which holds near 0 and 1 where the normal one does not."""
        p, z2 = self.value, Z_95**2
        centre = (p + z2 / (2 * self.n)) / (1 + z2 / self.n)
        half = Z_95 / (1 + z2 / self.n) * math.sqrt(p * (1 - p) / self.n + z2 / (4 * self.n**2))
        return centre - half, centre + half


@dataclass(frozen=True)
class ClassRow:
    """One label's row of the per-class table. Precision and recall are None where their denominator is 0."""

    label: str
    n: int
    correct: int
    answered: int

    @property
    def recall(self) -> float | None:
        return self.correct / self.n if self.n else None

    @property
    def precision(self) -> float | None:
        return self.correct / self.answered if self.answered else None


@dataclass(frozen=True)
class Evaluation:
    """Answers of one model on one set of rows, judged by strict exact match after stripping white space."""

    accuracy: Proportion
    invalid: Proportion
    classes: tuple[ClassRow, ...]

    def as_dict(self) -> dict:
        return {
            "accuracy": self.accuracy.value,
            "accuracy_interval_95": self.accuracy.interval,
            "invalid_share": self.invalid.value,
            "rows": self.accuracy.n,
            "classes": [
                {"label": row.label, "n": row.n, "correct": row.correct, "answered": row.answered}
                | {"recall": row.recall, "precision": row.precision}
                for row in self.classes
            ],
        }


def evaluate_answers(answers: list[str], labels: list[str]) -> Evaluation:
    """Judge `answers` against `labels`, row by row.

    An answer that is none of the labels that occur in `labels` is invalid (and wrong).

    Raises:
        ValueError: if the lengths differ, there are no rows, or a row has no label.
    """
    if len(answers) != len(labels) or not labels:
        raise ValueError(f"{len(answers)} answers for {len(labels)} labels; both must be the same number, at least 1")
    if "" in labels:
        raise ValueError(f"row {labels.index('')} has no label to judge by")
    stripped = [answer.strip() for answer in answers]
    label_set = sorted(set(labels))
    gold, given = Counter(labels), Counter(stripped)
    correct = Counter(label for label, answer in zip(labels, stripped, strict=True) if label == answer)
    return Evaluation(
        accuracy=Proportion(sum(correct.values()), len(labels)),
        invalid=Proportion(sum(answer not in gold for answer in stripped), len(labels)),
        classes=tuple(ClassRow(label, gold[label], correct[label], given[label]) for label in label_set),
    )
