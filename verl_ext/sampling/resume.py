"""The answers sampled so far, on disk: what an interrupted run goes on from.

The first line says what decides the answers; they are kept while it holds. Then one answer a line, in the order of
sampling.
"""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

from verl_ext.run.files import read_json, reason_of, write_atomically
from verl_ext.run.outputs import is_made
from verl_ext.run.progress import ChunkProgress
from verl_ext.sampling.types import Answer, Request

FIX = "take the file away, or set overwrite=true"
AnswerT = TypeVar("AnswerT", bound=Answer)


class Journal(Generic[AnswerT]):
    """`answers.jsonl`: read once, then only appended to."""

    def __init__(self, path: Path, settings: dict[str, Any], overwrite: bool, kind: type[AnswerT]) -> None:
        """Open `path`, or begin it. ValueError if it was begun under other settings and may not be replaced."""
        self.path = path
        header = json.dumps(settings, sort_keys=True)
        try:
            self.answers = self._kept(json.loads(header), overwrite, kind)
        except ValueError:
            if not overwrite:
                raise
            self.answers = {}
        if not self.answers:
            write_atomically(path, f"{header}\n")

    def _kept(self, settings: dict[str, Any], overwrite: bool, kind: type[AnswerT]) -> dict[int, AnswerT]:
        """The answers of the file, where they were made with `settings`; none where they may be replaced."""
        lines = self._whole_lines()
        if len(lines) < 2:
            return {}
        made = read_json(self.path, FIX, lines[0])
        if not isinstance(made, dict):
            raise ValueError(f"{self.path}:1: no settings; {FIX}")
        if not is_made(f"{self.path} holds answers", made, settings, overwrite):
            return {}
        answers = {}
        for number, line in enumerate(lines[1:], 2):
            try:
                record = dict(read_json(self.path, FIX, line))
                index, answer = record.pop("index"), kind(**record)
            except (TypeError, ValueError, KeyError) as error:
                raise ValueError(f"{self.path}:{number}: no answer ({reason_of(error)}); {FIX}") from None
            kinds = [type(each) for each in (index, answer.text, answer.tokens, answer.finish)]
            if kinds != [int, str, int, str]:
                raise ValueError(f"{self.path}:{number}: no answer (a value of another type); {FIX}")
            answers[index] = answer
        return answers

    def _whole_lines(self) -> list[str]:
        """The file's lines; half a line, as a killed run leaves it, is cut off the file."""
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            write_atomically(self.path, whole)
        try:
            return whole.decode().split("\n")[:-1]
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}: no UTF-8 ({reason_of(error)}); {FIX}") from None

    def fill(
        self, ask: Callable[[Sequence[Request]], Sequence[AnswerT]], requests: Sequence[Request], chunk: int, title: str
    ) -> dict[str, float]:
        """Ask for answers to `requests` and keep them, chunk by chunk; returns `ChunkProgress.took`."""
        with ChunkProgress(title, len(requests)) as progress:
            for start in range(0, len(requests), chunk):
                part = requests[start : start + chunk]
                answers = ask(part)
                self.add(part, answers)
                progress.advance(len(part), sum(answer.tokens for answer in answers))
        return progress.took()

    def add(self, requests: Sequence[Request], answers: Sequence[AnswerT]) -> None:
        """Write a chunk of answers through to the disk."""
        chunk = {request.index: answer for request, answer in zip(requests, answers, strict=True)}
        lines = (json.dumps({"index": index, **asdict(answer)}) + "\n" for index, answer in chunk.items())
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
            file.flush()
            os.fsync(file.fileno())
        self.answers |= chunk
