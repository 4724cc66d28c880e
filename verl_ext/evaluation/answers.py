"""Every answer of an evaluation, judged: kept as a file, and a few wrong ones shown."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from verl_ext.run.files import write_atomically
from verl_ext.run.visible import print

SHOWN = 3
"""Wrong answers of an arm in the report and on the console."""
SHOWN_CHARS = 160
"""Of an answer on the console, from its end, where the label or the box stands."""


@dataclass(frozen=True)
class Judged:
    """One answer of one arm."""

    arm: str
    row: int
    """Number of the row in its file, from 0."""
    edge: bool
    """It is a row of the file of edge cases, which have no right answer."""
    prompt: str
    """The last message that the arm saw."""
    answer: str
    read: str
    """The label, or what the box holds; "" where none was found."""
    truth: str
    """The right answer; "" of an edge case."""
    right: bool | None
    """None of an edge case."""
    finish: str
    """Why it ended, as vLLM says: `stop`, `length` or another reason."""
    truncated: bool
    """Cut off by `max_tokens` or by the model's context."""
    tokens: int
    """Of the answer, its end token included."""


def answers_file(report: Path) -> Path:
    """Where the answers of a report go: `answers.jsonl` beside `eval.json`, `NAME.answers.jsonl` beside another."""
    return report.with_name("answers.jsonl" if report.name == "eval.json" else f"{report.stem}.answers.jsonl")


def write_answers(path: Path, judged: Iterable[Judged]) -> None:
    """One answer a line, as JSON with the fields of Judged."""
    write_atomically(path, "".join(json.dumps(asdict(each), ensure_ascii=False) + "\n" for each in judged))


def wrong_of(judged: Sequence[Judged]) -> list[Judged]:
    return [each for each in judged if each.right is False]


def report_of(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """The first wrong answers of an arm, for the report."""
    return [asdict(each) for each in wrong_of(judged)[:SHOWN]]


def print_wrong(judged: Mapping[str, Sequence[Judged]]) -> None:
    """The first wrong answers of every arm."""
    for arm, answers in judged.items():
        wrong = wrong_of(answers)
        if wrong:
            known = sum(each.right is not None for each in answers)
            print(f"{arm}: {len(wrong)} of {known} wrong, such as")
        for each in wrong[:SHOWN]:
            text = " ".join(each.answer.split())
            shown = text if len(text) <= SHOWN_CHARS else f"... {text[-SHOWN_CHARS:].lstrip()}"
            read = repr(each.read) if each.read else "nothing"
            cut = ", cut off" if each.truncated else ""
            print(f"  row {each.row}: right {each.truth!r}, read {read}{cut}: {shown}")
