"""What an evaluation found: shares with their intervals, classes, confusions."""

from collections.abc import Mapping, Sequence
from typing import Any

from verl_ext.report.blocks import Block, Confusion, Estimate, Estimates, Missing, Table
from verl_ext.report.text import counted, interval, number, short

ARMS = {
    "base": "base, before training",
    "base_prompted": "base, with the prompt",
    "teacher": "teacher",
    "student": "student, after training",
}
COLOURS = {"base": 7, "base_prompted": 3, "teacher": 0, "student": 2}
LABELS = 24
"""Classes that a confusion matrix shows, the most frequent ones."""
Result = Mapping[str, Any]


def arms_in(evaluation: Mapping[str, Any] | None) -> dict[str, Result]:
    """The arms of an eval.json, in order."""
    return {arm: evaluation[arm] for arm in ARMS if arm in evaluation} if evaluation else {}


def estimates_of(arms: Mapping[str, Result]) -> Estimates:
    """Held-out accuracy of each arm."""
    rows = []
    for arm, one in arms.items():
        low, high = one["accuracy_interval_95"]
        cells = [
            interval(one["accuracy"], low, high),
            _macro(one),
            "yes" if one["sees_prompt"] else "no",
            f"{one['rows']:,}",
        ]
        rows.append(Estimate(ARMS[arm], one["accuracy"], low, high, tuple(cells), COLOURS[arm]))
    said = "; ".join(f"{row.name} {row.value:.3f}" for row in rows)
    return Estimates(
        "Held-out accuracy",
        ("accuracy (95 %)", "macro-F1 (95 %)", "sees the prompt", "rows"),
        tuple(rows),
        f"Share of held-out rows that are answered right: {said}. Intervals are Wilson's at 95 % over rows.",
    )


def _macro(one: Result) -> str:
    return interval(one["macro_f1"], *one["macro_f1_interval_95"]) if "macro_f1" in one else "–"


def class_table(arms: Mapping[str, Result]) -> Table | None:
    """Recall and F1 of every class, by arm; None where every row has an answer of its own, as problems have."""
    classed = {arm: one for arm, one in arms.items() if any(row["n"] > 1 for row in one.get("classes") or ())}
    if not classed:
        return None
    labels = [row["label"] for row in next(iter(classed.values()))["classes"]]
    rows = []
    for label in labels:
        of = {arm: next(row for row in one["classes"] if row["label"] == label) for arm, one in classed.items()}
        cells = [number(row[key], 3) for row in of.values() for key in ("recall", "f1")]
        rows.append((label, str(next(iter(of.values()))["n"]), *cells))
    columns = [f"{arm}: {key}" for arm in classed for key in ("recall", "F1")]
    return Table("By class", ("class", "rows", *columns), tuple(rows))


def confusion_of(name: str, one: Result) -> Confusion | None:
    """The confusion matrix of an arm, with its mistakes in words; None where every row has an answer of its own."""
    found = one.get("confusion")
    if not found or not any(sum(row) > 1 for row in found["counts"]):
        return None
    gold, answered, counts = list(found["gold"]), list(found["answered"]), [list(row) for row in found["counts"]]
    mistakes = sorted(
        (
            (count, right, said)
            for right, row in zip(gold, counts, strict=True)
            for said, count in zip(answered, row, strict=True)
            if count and said != right
        ),
        key=lambda each: -each[0],
    )
    total, wrong = sum(map(sum, counts)), sum(count for count, _, _ in mistakes)
    worst = ", ".join(f"{right} as {said} ({count})" for count, right, said in mistakes[:4])
    sentence = f"{wrong:,} of {counted(total, 'answer')} are wrong" + (f", most often {worst}." if worst else ".")
    if len(gold) > LABELS:
        sentence += f" {len(gold) - LABELS} classes with fewer rows are left out of the picture."
        kept = sorted(sorted(range(len(gold)), key=lambda index: -sum(counts[index]))[:LABELS])
        columns = [*kept, *(index for index in range(len(answered)) if answered[index] not in gold)]
        counts = [[counts[row][column] for column in columns] for row in kept]
        gold, answered = [gold[row] for row in kept], [answered[column] for column in columns]
    if not any(row[-1] for row in counts) and answered[-1] == "invalid":
        answered, counts = answered[:-1], [row[:-1] for row in counts]
        sentence += " No answer is invalid."
    return Confusion(name, _short(gold), _short(answered), tuple(map(tuple, counts)), sentence)


def _short(labels: Sequence[str]) -> tuple[str, ...]:
    return tuple(short(label, 16) for label in labels)


def right_and_wrong(evaluation: Mapping[str, Any] | None) -> list[Block]:
    """Classes and confusions of a run's evaluation."""
    arms = arms_in(evaluation)
    if not arms:
        return [
            Missing(
                "eval.json, the accuracy on held-out rows", "`verl-opd evaluate student=RUN/student ...` writes it."
            )
        ]
    order = [arm for arm in ("student", "base", "base_prompted", "teacher") if arm in arms]
    matrices = [confusion_of(ARMS[arm].capitalize(), arms[arm]) for arm in order]
    table = class_table(arms)
    found: list[Block] = [matrix for matrix in matrices if matrix]
    found += [table] if table else []
    return found or [Missing("confusion matrices", "Every row has an answer of its own.")]
