"""Score sampled answers with a teacher, outside of training, and find where the two disagree.

`R` response tokens. Log-probs and KLs are nats. Reverse KL of a token: the sampler's log-prob minus the teacher's.
"""

import asyncio
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from verl_ext.ledger.entries import SCORE, Entry, Flops, Tokens
from verl_ext.ledger.flops import forward, scored
from verl_ext.ledger.meter import shape_or_none
from verl_ext.run.models import render_chat
from verl_ext.run.progress import ChunkProgress
from verl_ext.sampling.answers import Answers
from verl_ext.sampling.types import SamplingConfig
from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.server.supervisor import serving_teacher
from verl_ext.teacher.teachers import identify, open_scorer
from verl_ext.teacher.types import Score, Scorer, ScoreRequest, TeacherError

CHUNK = 256  # samples of one call
CHUNKS_AT_ONCE = 4  # so that the servers have work while one is handed back
NEVER = math.log(1e-3)  # nats; below this a token counts as one that the teacher would not sample


@dataclass(frozen=True)
class Disagreement:
    """A token that the student said and the teacher would not, after one prompt and the same tokens before it."""

    index: int
    """Number of the first sample in the file that has it."""
    position: int
    """Of the token in the response, from 0."""
    rollout_logprob: float
    teacher_logprob: float
    times: int = 1
    """Samples that have it."""
    teachers_id: int | None = None
    """The teacher's most likely token there; None where it was not asked."""
    teachers_logprob: float = math.nan
    """Its log-prob by the teacher."""

    @property
    def reverse_kl(self) -> float:
        return self.rollout_logprob - self.teacher_logprob


@dataclass(frozen=True)
class Scoring:
    """What a teacher said about a file of answers."""

    rollout_logprobs: Sequence[np.ndarray]
    """The sampler's, (R,) a sample."""
    outcomes: Sequence[Score | TeacherError]
    """The teacher's, in the same order."""
    disagreements: Sequence[Disagreement]
    """Largest reverse KL first."""
    took: dict[str, float]
    """`ChunkProgress.took`; its tokens are those that a server read, prompt and response."""
    read: int
    """Tokens that the servers read, those in their caches left out."""
    spent: Entry | None = None
    """For the ledger; None where the store answered everything."""

    @property
    def scored(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The sampler's and the teacher's log-probs of every scored sample, (R,) each."""
        pairs = zip(self.rollout_logprobs, self.outcomes, strict=True)
        return [(rollout, outcome.logprobs) for rollout, outcome in pairs if isinstance(outcome, Score)]

    @property
    def errors(self) -> list[TeacherError]:
        return [outcome for outcome in self.outcomes if isinstance(outcome, TeacherError)]

    @property
    def from_store(self) -> int:
        """Samples answered by the store."""
        return sum(isinstance(outcome, Score) and outcome.from_store for outcome in self.outcomes)

    @property
    def teacher_kl(self) -> float:
        """Mean reverse KL over all tokens (Tinker's metric of this name); NaN without a token."""
        return _mean([rollout - teacher for rollout, teacher in self.scored])

    @property
    def teacher_logprob(self) -> float:
        """Mean over all tokens."""
        return _mean([teacher for _, teacher in self.scored])

    @property
    def never_share(self) -> float:
        """Share of the tokens to which the teacher gives less than 1e-3, in [0, 1]."""
        return _mean([teacher < NEVER for _, teacher in self.scored])


def _mean(arrays: Sequence[np.ndarray]) -> float:
    tokens = np.concatenate(arrays) if arrays else np.zeros(0)
    return float(tokens.mean(dtype=np.float64)) if tokens.size else math.nan


def on_policy(sampling: SamplingConfig) -> bool:
    """Whether answers were drawn from the very distribution of their log-probs, as a mean reverse KL needs."""
    return (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, -1)


def requests_of(answers: Answers, tokenizer: Any) -> list[ScoreRequest]:
    """Each response under the teacher's prompt, as training asks it: the student's tokenizer, one template for both."""
    kwargs = answers.sampling.template_kwargs
    prompts = [render_chat(tokenizer, messages, kwargs) for messages in answers.table["teacher_messages"].to_pylist()]
    responses = answers.table["response_ids"].to_pylist()
    return [ScoreRequest(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]


def largest(
    requests: Sequence[ScoreRequest],
    rollout_logprobs: Sequence[np.ndarray],
    outcomes: Sequence[Score | TeacherError],
    k: int,
) -> list[Disagreement]:
    """The k tokens of the largest reverse KL, largest first; the same token in the same place counts once."""
    candidates = []
    for index, (rollout, outcome) in enumerate(zip(rollout_logprobs, outcomes, strict=True)):
        if isinstance(outcome, Score):
            worst = np.argsort(outcome.logprobs - rollout, kind="stable")[:k]
            candidates += [
                Disagreement(index, int(at), float(rollout[at]), float(outcome.logprobs[at])) for at in worst
            ]
    candidates.sort(key=lambda one: -one.reverse_kl)
    found: dict[tuple[tuple[int, ...], ...], Disagreement] = {}
    for one in itertools.takewhile(lambda _: len(found) < k, candidates):
        request = requests[one.index]
        found.setdefault((tuple(request.prompt_ids), tuple(request.response_ids[: one.position + 1])), one)
    return [dataclasses.replace(one, times=_times(requests, one)) for one in found.values()]


def _times(requests: Sequence[ScoreRequest], one: Disagreement) -> int:
    this, end = requests[one.index], one.position + 1
    return sum(r.prompt_ids == this.prompt_ids and r.response_ids[:end] == this.response_ids[:end] for r in requests)


async def with_teachers_choice(
    scorer: Scorer, requests: Sequence[ScoreRequest], found: Sequence[Disagreement]
) -> list[Disagreement]:
    """What the teacher would have said instead, where it answers that too."""
    asked = []
    for one in found:
        request = requests[one.index]
        mask = [int(at == one.position) for at in range(len(request.response_ids))]
        asked.append(dataclasses.replace(request, response_mask=mask, top_k=1))
    completed = []
    for one, outcome in zip(found, await scorer.score(asked), strict=True):
        if isinstance(outcome, Score):
            assert outcome.top_ids is not None  # asked for
            assert outcome.top_logprobs is not None
            best, logprob = outcome.top_ids[one.position, 0], outcome.top_logprobs[one.position, 0]
            one = dataclasses.replace(one, teachers_id=int(best), teachers_logprob=float(logprob))
        completed.append(one)
    return completed


async def ask(
    settings: TeacherConfig, requests: Sequence[ScoreRequest], rollout_logprobs: Sequence[np.ndarray], k: int
) -> Scoring:
    """Score everything with a teacher whose servers run, or whose store answers for it."""
    scorer = open_scorer(settings)
    outcomes: dict[int, Score | TeacherError] = {}
    starts = iter(range(0, len(requests), CHUNK))

    async def work() -> None:
        for start in starts:
            part = requests[start : start + CHUNK]
            answered = await scorer.score(part)
            outcomes.update(enumerate(answered, start))
            asked = [r for r, o in zip(part, answered, strict=True) if isinstance(o, Score) and not o.from_store]
            progress.advance(len(part), sum(len(request.prompt_ids) + len(request.response_ids) for request in asked))

    try:
        with ChunkProgress("scores", len(requests), shown=settings.store_mode != "replay") as progress:
            await asyncio.gather(*(work() for _ in range(CHUNKS_AT_ONCE)))
        took = progress.took()
        in_order = [outcomes[index] for index in range(len(requests))]
        worst = largest(requests, rollout_logprobs, in_order, k)
        chosen, counts = await with_teachers_choice(scorer, requests, worst), scorer.metrics()
        read = round(counts.get("tokens", 0) - counts.get("cached_tokens", 0))
        return Scoring(rollout_logprobs, in_order, chosen, took, read)
    finally:
        await scorer.close()


def score_answers(answers: Answers, teacher: TeacherConfig, tokenizer: Any, k: int, log_path: Path) -> Scoring:
    """Score `answers` under the teacher's prompt. A managed teacher is started where the store does not know it all.

    Raises:
        ValueError: naming the key, if the teacher cannot be asked so.
        RuntimeError, TimeoutError: if it does not start, or the store is damaged.
    """
    requests, rollout_logprobs = requests_of(answers, tokenizer), answers.arrays("rollout_logprobs")
    teacher = dataclasses.replace(teacher, **identify(teacher))
    if teacher.store_path is not None:
        replayed = dataclasses.replace(teacher, store_mode="replay")
        found = asyncio.run(ask(replayed, requests, rollout_logprobs, k))
        if not found.errors or teacher.store_mode == "replay":
            return found
    with serving_teacher(teacher, log_path) as urls:
        running = dataclasses.replace(teacher, mode="external", urls=urls)
        found = asyncio.run(ask(running, requests, rollout_logprobs, k))
    return dataclasses.replace(found, spent=spent(found, requests, teacher))


def spent(found: Scoring, requests: Sequence[ScoreRequest], teacher: TeacherConfig) -> Entry:
    """What scoring cost; of external servers it is not known on how many devices, nor of a model that is not here."""
    managed = teacher.mode == "managed"
    devices = (teacher.tp * teacher.dp if teacher.device == "cuda" else 1) if managed else 0
    asked = [
        request
        for request, outcome in zip(requests, found.outcomes, strict=True)
        if isinstance(outcome, Score) and not outcome.from_store
    ]
    config, flops = Path(str(teacher.model_path)) / "config.json", None
    if config.is_file() and (shape := shape_or_none(str(teacher.model_path), json.loads(config.read_text()))):
        lengths = [(len(request.prompt_ids), len(request.response_ids)) for request in asked]
        work = scored(found.read, lengths, len({tuple(request.prompt_ids) for request in asked}))
        flops = Flops(score=forward(shape, work))
    seconds = found.took["seconds"]
    return Entry(
        phase=SCORE,
        step=None,
        unix_time=time.time(),
        seconds=seconds,
        device_seconds=seconds * devices,
        devices=devices,
        samples=len(asked),
        tokens=Tokens(scored=found.read),
        flops=flops,
    )
