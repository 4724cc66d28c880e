"""The answers of a validation that an agent-loop worker keeps for `samples.jsonl`, until the trainer asks for them."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from verl_ext.run.visible import print
from verl_ext.teacher.types import Score, ScoreRequest, TeacherError
from verl_ext.trainer.report_config import ReportConfig


@dataclass(frozen=True)
class KeptAnswer:
    """An answer of R tokens, as it was sampled and scored. Log-probs in nats."""

    row: int
    messages: Sequence[Mapping[str, Any]]
    response_ids: list[int]
    response_mask: list[int]
    """0 on what the student did not sample."""
    student_logprobs: list[float] | None
    truth: str | None
    score: float | None
    finish: str
    teacher_logprobs: np.ndarray | None
    """(R,); None where no teacher could score it."""
    top_ids: np.ndarray | None
    """The teacher's most likely tokens, (R, K); None where none were asked for."""
    top_logprobs: np.ndarray | None
    """(R, K)."""


class KeptAnswers:
    """Of the validation under way, the first answer to each of a few rows."""

    def __init__(self, settings: ReportConfig, vocabulary: int) -> None:
        self.top_k = min(settings.alternatives, vocabulary)
        """Of the teacher's most likely tokens, how many are asked for."""
        self._rows: dict[int, int] = {}
        self._kept: list[KeptAnswer] = []

    def begin(self, rows: dict[int, int]) -> list[KeptAnswer]:
        """From now on keep the answers to `rows`, numbers by `extra_info.index`; returns what was kept before."""
        kept, self._kept, self._rows = self._kept, [], rows
        return kept

    def wants(self, row: Mapping[str, Any]) -> bool:
        return int(row["index"]) in self._rows and row["session_id"] == 0

    async def keep(
        self,
        row: Mapping[str, Any],
        output: Any,
        request: Callable[[Any, list[int], list[int], int], ScoreRequest],
        score: Callable[[ScoreRequest], Awaitable[Score | TeacherError]],
    ) -> None:
        """Score an answer and keep it. `output`: verl's, with its reward; `request` and `score`: the worker's own."""
        number = self._rows[int(row["index"])]
        try:
            outcome = await score(request(row, output.response_ids, output.response_mask, self.top_k))
        except ValueError as error:  # a row that no teacher is there for, or whose messages a template refuses
            outcome = TeacherError(str(error))
        if not isinstance(outcome, Score):
            print(f"teacher: the kept answer to held-out row {number} has no score: {outcome}")
        found = outcome if isinstance(outcome, Score) else None
        self._kept.append(
            KeptAnswer(
                row=number,
                messages=row["raw_prompt"],
                response_ids=output.response_ids,
                response_mask=list(output.response_mask),
                student_logprobs=output.response_logprobs,
                truth=row["reward_model"]["ground_truth"] or None,
                score=output.reward_score,
                finish=output.extra_fields["finish_reason"],
                teacher_logprobs=None if found is None else found.logprobs,
                top_ids=None if found is None else found.top_ids,
                top_logprobs=None if found is None else found.top_logprobs,
            )
        )


def kept_rows(indices: Sequence[int], count: int) -> dict[int, int]:
    """`count` rows spread evenly over all: their places in `indices`, by index; all where there are fewer."""
    chosen = [place * len(indices) // count for place in range(count)] if count < len(indices) else range(len(indices))
    return {indices[place]: place for place in chosen}
