"""Label answers against the right ones and against the teacher's, with their uncertainty. Pure functions; no engine.

An answer that is none of the labels is invalid, written "" here, and wrong. `C` classes, in the order of the labels.
Intervals are at 95 % and take rows for independent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
BOOTSTRAP_DRAWS = 2000


@dataclass(frozen=True)
class Proportion:
    """A share `hits / n` with its 95 % Wilson interval; all in [0, 1]. `n` is at least 1."""

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

    def as_dict(self) -> dict[str, Any]:
        return {"value": self.value, "interval_95": self.interval, "hits": self.hits, "rows": self.n}


@dataclass(frozen=True)
class ClassRow:
    """One label's row of the per-class table. A share is None where its denominator is 0."""

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

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall; 0 for a label that occurs and is never answered."""
        return 2 * self.correct / (self.n + self.answered) if self.n else None

    def as_dict(self) -> dict[str, Any]:
        counts = {"label": self.label, "n": self.n, "correct": self.correct, "answered": self.answered}
        return counts | {"recall": self.recall, "precision": self.precision, "f1": self.f1}


@dataclass(frozen=True)
class Evaluation:
    """Answers of one model on rows whose right answer is known."""

    labels: tuple[str, ...]
    accuracy: Proportion
    invalid: Proportion
    classes: tuple[ClassRow, ...]
    macro_f1: float
    """Mean over the classes that occur."""
    macro_f1_interval: tuple[float, float]
    """Percentile bootstrap over rows."""
    confusion: tuple[tuple[int, ...], ...]
    """Rows by right answer, C; columns by given answer, C + 1: the last is invalid."""

    def as_dict(self) -> dict[str, Any]:
        return {
            "accuracy": self.accuracy.value,
            "accuracy_interval_95": self.accuracy.interval,
            "macro_f1": self.macro_f1,
            "macro_f1_interval_95": self.macro_f1_interval,
            "invalid_share": self.invalid.value,
            "rows": self.accuracy.n,
            "classes": [row.as_dict() for row in self.classes],
            "confusion": {"gold": self.labels, "answered": (*self.labels, "invalid"), "counts": self.confusion},
        }


@dataclass(frozen=True)
class Agreement:
    """How often a model answers as the teacher does, right or wrong, on rows that the teacher gave a label."""

    same: Proportion | None
    """None where the teacher gave no label at all."""
    teacher_invalid: int
    """Rows left out, because the teacher gave no label."""

    def as_dict(self) -> dict[str, Any]:
        shares = self.same.as_dict() if self.same else {"value": None, "rows": 0}
        return shares | {"teacher_invalid": self.teacher_invalid}


def evaluate_answers(answers: Sequence[str], gold: Sequence[str], labels: Sequence[str]) -> Evaluation:
    """Judge `answers` against `gold`, row by row. `labels` are all that may be answered, `gold` among them.

    Raises:
        ValueError: if the lengths differ, there are no rows, or a row's right answer is no label.
    """
    if len(answers) != len(gold) or not gold:
        raise ValueError(f"{len(answers)} answers for {len(gold)} rows; both must be the same number, at least 1")
    position = {label: i for i, label in enumerate(labels)}
    for number, label in enumerate(gold):
        if label not in position:
            raise ValueError(f"row {number}: its right answer {label!r} is not one of the labels {', '.join(labels)}")
    confusion = np.zeros((len(labels), len(labels) + 1), dtype=np.int64)
    for answer, label in zip(answers, gold, strict=True):
        confusion[position[label], position.get(answer, len(labels))] += 1
    correct, n, answered = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    return Evaluation(
        labels=tuple(labels),
        accuracy=Proportion(int(correct.sum()), len(gold)),
        invalid=Proportion(int(answered[-1]), len(gold)),
        classes=tuple(ClassRow(label, int(n[i]), int(correct[i]), int(answered[i])) for i, label in enumerate(labels)),
        macro_f1=float(macro_f1(confusion)),
        macro_f1_interval=bootstrap_macro_f1(confusion),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )


def macro_f1(confusion: np.ndarray) -> np.ndarray:
    """Mean F1 of the classes that occur, of one (C, C + 1) matrix or of a stack of them."""
    correct = np.diagonal(confusion, axis1=-2, axis2=-1)
    n, answered = confusion.sum(-1), confusion.sum(-2)[..., :-1]
    f1 = 2 * correct / np.maximum(n + answered, 1)
    return (f1 * (n > 0)).sum(-1) / (n > 0).sum(-1)


def bootstrap_macro_f1(confusion: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The middle 95 % of macro-F1 over samples of as many rows, drawn with replacement."""
    rows = int(confusion.sum())
    draws = np.random.default_rng(seed).multinomial(rows, confusion.ravel() / rows, size=BOOTSTRAP_DRAWS)
    low, high = np.quantile(macro_f1(draws.reshape(BOOTSTRAP_DRAWS, *confusion.shape)), [0.025, 0.975])
    return float(low), float(high)


def agreement(answers: Sequence[str], teacher: Sequence[str]) -> Agreement:
    """How often `answers` are the teacher's, row by row."""
    pairs = [(mine, theirs) for mine, theirs in zip(answers, teacher, strict=True) if theirs]
    same = Proportion(sum(mine == theirs for mine, theirs in pairs), len(pairs)) if pairs else None
    return Agreement(same, len(teacher) - len(pairs))


def accuracy_by(keys: Sequence[str], answers: Sequence[str], gold: Sequence[str]) -> dict[str, Proportion]:
    """Accuracy apart for each key, such as the language of the source, which is finer than the label."""
    rows = list(zip(keys, answers, gold, strict=True))
    return {
        key: Proportion(sum(a == g for k, a, g in rows if k == key), sum(k == key for k, _, _ in rows))
        for key in sorted(set(keys))
    }
