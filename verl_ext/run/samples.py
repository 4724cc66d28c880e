"""`samples.jsonl`: what the student answered to the same few held-out rows at every validation, token by token."""

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from verl_ext.run.metrics import end_of_lines

SAMPLES = "samples.jsonl"
"""Of a run directory."""
SCHEMA = 1
DIGITS = 6  # of a log-prob, behind the point
UNFINISHED = "\ufffd"
CHARACTER_TOKENS = 4
"""Tokens that one character takes at most: UTF-8 has four bytes."""


@dataclass(frozen=True)
class Sample:
    """An answer at one step. Log-probs in nats, one a token of `tokens`, whose texts joined are the answer and its end
    token."""

    step: int
    """The step whose weights answered; 0 before training."""
    row: int
    """Number of the row among those that the run validates on, from 0."""
    prompt: str
    """What the student saw: the messages' texts, without the chat template."""
    answer: str
    """Without special tokens."""
    truth: str | None
    """The right answer; None where the row has none."""
    score: float | None
    """The task's reward; None where it is computed elsewhere."""
    finish: str
    """Why the answer ended: `stop`, `length` or `abort`."""
    tokens: list[str]
    student_logprobs: list[float | None] | None
    """As vLLM gives them, None of a token that a tool wrote; None where one is no number."""
    teacher_logprobs: list[float | None] | None
    """Under the teacher's own prompt, None of such a token; None where no teacher could score the answer."""
    alternatives: list[list[tuple[str, float]]] | None
    """The teacher's most likely tokens at each position, most likely first; None where none were asked for."""
    cut_characters: int = 0
    """Of prompt, answer and truth, left out for their length (`report.longest`)."""
    cut_tokens: int = 0
    """Of the answer, left out for their length."""

    def __post_init__(self) -> None:
        for name in ("student_logprobs", "teacher_logprobs", "alternatives"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.tokens):
                raise ValueError(f"{len(values)} {name} for {len(self.tokens)} tokens")

    @property
    def key(self) -> tuple[int, int]:
        """What no two lines of a file share."""
        return self.step, self.row


class SamplesFile:
    """Appends to `path`; what was written stays. A step that a resumed run makes again is not written again."""

    def __init__(self, path: str | Path) -> None:
        """Half a line at the end, as a killed run leaves it, is cut off: the next one would be glued to it."""
        self.path = Path(path)
        self._written: set[tuple[int, int]] = set()
        if self.path.exists():
            os.truncate(self.path, end_of_lines(self.path))
            self._written = {(line["step"], line["row"]) for line in read_samples(self.path)[0]}

    def append(self, samples: Iterable[Sample]) -> None:
        """Write those that are not there yet, through to the disk."""
        new = [sample for sample in samples if sample.key not in self._written]
        if not new:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Everything beyond ASCII is escaped: no answer holds what some reader takes for the end of a line.
        lines = [json.dumps({"schema": SCHEMA} | asdict(sample), allow_nan=False) + "\n" for sample in new]
        with self.path.open("a") as file:
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())
        self._written |= {sample.key for sample in new}


def read_samples(path: str | Path) -> tuple[list[dict[str, Any]], int]:
    """The lines, in the order in which they were written, and how many of them were cut off (0, or 1 at the end).

    Raises:
        ValueError: if a whole line is of another schema.
    """
    with Path(path).open() as file:
        lines = list(file)
    whole = [line for line in lines if line.endswith("\n")]
    found = [json.loads(line) for line in whole]
    for number, line in enumerate(found, 1):
        if line["schema"] != SCHEMA:
            raise ValueError(
                f"{path}, line {number}: schema {line['schema']}, this version reads {SCHEMA}; remove the file"
            )
    return found, len(lines) - len(whole)


def token_texts(tokenizer: Any, ids: Sequence[int], longest: int) -> list[str]:
    """The text of each token, as far as their texts together have at most `longest` characters.

    A character that several tokens make is the text of the last of them. Bytes that are no character become U+FFFD.
    """
    texts: list[str] = []
    length = 0
    before: list[int] = []  # where a tokenizer drops the space at the start of a text, this is its start
    pending: list[int] = []
    for place, token in enumerate(ids):
        pending.append(token)
        context = len(_decode(tokenizer, before))
        text = _decode(tokenizer, before + pending)[context:]
        if text.endswith(UNFINISHED) and len(pending) < CHARACTER_TOKENS and place + 1 < len(ids):
            texts.append("")
            continue
        length += len(text)
        if length > longest:
            return texts[: place - len(pending) + 1]
        texts.append(text)
        before, pending = ([], []) if text.endswith(UNFINISHED) else (pending, [])
    return texts


def token_text(tokenizer: Any, token: int) -> str:
    """The text of one token by itself; a part of a character as the vocabulary writes it."""
    text = _decode(tokenizer, [token])
    return tokenizer.convert_ids_to_tokens(token) if UNFINISHED in text else text


def numbers(values: Iterable[float] | None) -> list[float] | None:
    """Log-probs as they are written; None where one of them is no finite number."""
    if values is None:
        return None
    found = [round(float(value), DIGITS) for value in values]
    return found if all(map(math.isfinite, found)) else None


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) if ids else ""
