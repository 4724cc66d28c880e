"""The turns of one sample: what its agent loop asks of the sampler, and what the teacher says of a turn meanwhile.

A loop that takes several turns (verl's tool agent, any other) gets `SampleTurns` in place of verl's client. Each turn
is sent to the teacher when it ends, so that it is scored while a tool runs and the next turn is sampled; the teacher's
server finds the turns before it in its prefix cache. Whatever becomes of such a request, the whole sample is scored in
the end: what was not scored early, or with other tokens than the sample came to have, is asked for then.
"""

import asyncio
import contextlib
import dataclasses
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np
from verl.workers.rollout.replica import TokenOutput

from verl_ext.teacher.types import Score, ScoreRequest, TeacherError

Ask = Callable[[ScoreRequest], Awaitable[Score | TeacherError]]


@dataclasses.dataclass(frozen=True)
class Turn:
    """One answer of the sampler."""

    prompt_ids: list[int]
    """All that it was asked with."""
    token_ids: list[int]
    fields: Mapping[str, Any]
    """verl's `extra_fields`, and those of `client.py`."""


@dataclasses.dataclass
class Early:
    """A turn that is being scored, or was."""

    request: ScoreRequest
    task: asyncio.Task[Score | TeacherError]


class SampleTurns:
    """Has verl's `generate`, for one sample of one worker."""

    def __init__(
        self, client: Any, request: Callable[[list[int], list[int]], ScoreRequest] | None = None, ask: Ask | None = None
    ) -> None:
        """
        Args:
            client: verl's, which samples.
            request: what asks the teacher for a response and its mask; None leaves every turn to the end.
            ask: the teacher.
        """
        self._client, self._request, self._ask = client, request, ask
        self.turns: list[Turn] = []
        self._early: list[Early] = []

    async def generate(self, request_id: Any, *, prompt_ids: list[int], **kwargs: Any) -> TokenOutput:
        """verl's. A later turn draws from random numbers of its own where requests are seeded."""
        sampling, number = kwargs["sampling_params"], len(self.turns)
        if number and "seed" in sampling:
            kwargs["sampling_params"] = sampling | {"seed": zlib.crc32(f"{sampling['seed']}/turn {number}".encode())}
        asked = list(prompt_ids)
        output = await self._client.generate(request_id=request_id, prompt_ids=prompt_ids, **kwargs)
        self.turns.append(Turn(asked, list(output.token_ids), dict(output.extra_fields)))
        self._begin_scoring()
        return output

    def _begin_scoring(self) -> None:
        """Send the last turn to the teacher, one turn of a sample after the other."""
        first, turn = self.turns[0], self.turns[-1]
        start = len(turn.prompt_ids) - len(first.prompt_ids)
        if self._request is None or not turn.token_ids or turn.prompt_ids[: len(first.prompt_ids)] != first.prompt_ids:
            return
        response = [*turn.prompt_ids[len(first.prompt_ids) :], *turn.token_ids]
        mask = [0] * start + [1] * len(turn.token_ids)
        with contextlib.suppress(ValueError):  # scoring the sample will say it
            request = self._request(response, mask)
            before = self._early[-1].task if self._early else None
            self._early.append(Early(request, asyncio.create_task(self._scored_after(before, request))))

    async def _scored_after(self, before: asyncio.Task[Any] | None, request: ScoreRequest) -> Score | TeacherError:
        assert self._ask is not None
        if before is not None:
            await asyncio.wait([before])
        return await self._ask(request)

    async def scored(self, request: ScoreRequest, ask: Ask) -> tuple[Score | TeacherError, int]:
        """The score of a sample's response, and how many of its turns were sent to the teacher before it ended."""
        mask = np.asarray([1] * len(request.response_ids) if request.response_mask is None else request.response_mask)
        rest, parts = mask.copy(), []
        for early in self._early:
            wanted = np.asarray(early.request.response_mask)
            length = len(wanted)
            if list(request.response_ids[:length]) != list(early.request.response_ids):
                continue
            if early.request.prompt_ids != request.prompt_ids or (wanted > rest[:length]).any():
                continue
            late = not early.task.done()
            outcome = await early.task
            if isinstance(outcome, Score):
                parts.append(outcome)
                rest[:length] -= wanted
            elif late:  # the teacher has had its time
                return outcome, len(parts)
        if rest.any() or not parts:
            outcome = await ask(dataclasses.replace(request, response_mask=rest.tolist()))
            if not isinstance(outcome, Score):
                return outcome, len(parts)
            return joined([*parts, outcome], request), len(parts)
        return joined(parts, request), len(parts)

    def fields(self) -> dict[str, Any]:
        """Of the whole sample: verl's loops keep what the sampler said of the first turn alone.

        Raises:
            ValueError: if the loop asked the sampler for nothing.
        """
        if not self.turns:
            raise ValueError("agent_loop: its run() ended without a turn; make it ask server_manager.generate for one")
        versions: list[list[int]] = []
        for version, count in (part for turn in self.turns for part in turn.fields["tokens_by_version"]):
            if versions and versions[-1][0] == version:
                versions[-1][1] += count
            else:
                versions.append([version, count])
        last = self.turns[-1].fields
        return {
            "finish_reason": last["finish_reason"],
            "max_global_steps": last["max_global_steps"],
            "tokens_by_version": versions,
            "turn_tokens": [len(turn.token_ids) for turn in self.turns],
        }

    def close(self) -> None:
        """Give up what nobody waits for any more."""
        for early in self._early:
            early.task.cancel()


def joined(parts: Sequence[Score], request: ScoreRequest) -> Score:
    """One score of several of the same response's beginnings, of which each token is in one: elsewhere each is 0."""
    rows = len(request.response_ids)

    def added(arrays: Sequence[np.ndarray]) -> np.ndarray:
        total = np.zeros((rows, *arrays[0].shape[1:]), arrays[0].dtype)
        for array in arrays:
            total[: len(array)] += array
        return total

    top_ids = [part.top_ids for part in parts if part.top_ids is not None]
    top_logprobs = [part.top_logprobs for part in parts if part.top_logprobs is not None]
    return Score(
        added([part.logprobs for part in parts]),
        added(top_ids) if top_ids else None,
        added(top_logprobs) if top_logprobs else None,
        from_store=all(part.from_store for part in parts),
    )


def without_start(score: Score, start: int) -> Score:
    """The score of a response without its first `start` tokens."""
    parts = (score.logprobs, score.top_ids, score.top_logprobs)
    logprobs, top_ids, top_logprobs = (None if part is None else part[start:] for part in parts)
    assert logprobs is not None
    return dataclasses.replace(score, logprobs=logprobs, top_ids=top_ids, top_logprobs=top_logprobs)
