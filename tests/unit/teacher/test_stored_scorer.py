"""StoredScorer: the store is asked first, and what a teacher answers is kept."""

import asyncio
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from stored_scores import GIB, same

from verl_ext.teacher.store.store import ScoreStore
from verl_ext.teacher.store.stored_scorer import StoredScorer
from verl_ext.teacher.types import Score, ScoreRequest, TeacherError, TeacherResponseError, TeacherUnavailableError


class CountingScorer:
    """Gives every response token the log-prob -id, or the outcome that `special` has for the response."""

    def __init__(self, special: dict[tuple[int, ...], TeacherError] | None = None) -> None:
        self.special = special or {}
        self.calls: list[list[ScoreRequest]] = []
        self.primed: list[ScoreRequest] = []
        self.closed = False

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Score | TeacherError]:
        self.calls.append(list(requests))
        return [self.special.get(tuple(r.response_ids), Score(-np.array(r.response_ids, np.float32))) for r in requests]

    async def prime(self, request: ScoreRequest) -> None:
        self.primed.append(request)

    def metrics(self) -> dict[str, float]:
        return {"requests": float(len(self.calls))}

    async def close(self) -> None:
        self.closed = True


REQUESTS = [ScoreRequest([1, 2], [3, 4]), ScoreRequest([1], [2, 3, 4]), ScoreRequest([1, 2], [3, 4], [1, 0])]


async def test_a_second_pass_asks_nothing(tmp_path: Path) -> None:
    inner = CountingScorer()
    scorer = StoredScorer(inner, ScoreStore(tmp_path, GIB), "f")
    first = await scorer.score(REQUESTS)
    await scorer.close()
    assert inner.closed
    assert [len(call) for call in inner.calls] == [3]

    again = CountingScorer()
    scorer = StoredScorer(again, ScoreStore(tmp_path, GIB), "f")
    await scorer.prime(REQUESTS[0])
    second = await scorer.score(REQUESTS)
    assert again.calls == []
    assert again.primed == []
    for one, two in zip(first, second, strict=True):
        assert isinstance(one, Score)
        assert isinstance(two, Score)
        assert (one.from_store, two.from_store) == (False, True)
        assert same(one, two)
    metrics = scorer.metrics()
    assert metrics.pop("store_bytes") > 0
    assert metrics == {"requests": 0, "store_hits": 3, "store_misses": 0, "store_corrupt": 0, "store_unwritten": 0}
    assert scorer.metrics()["store_hits"] == 0  # since the last call
    await scorer.close()


async def test_another_teacher_is_asked(store: ScoreStore) -> None:
    inner = CountingScorer()
    await StoredScorer(inner, store, "f").score(REQUESTS)
    await StoredScorer(inner, store, "g").score(REQUESTS)
    assert [len(call) for call in inner.calls] == [3, 3]


async def test_only_what_is_missing_is_asked_and_once(store: ScoreStore) -> None:
    inner = CountingScorer()
    scorer = StoredScorer(inner, store, "f")
    await scorer.score(REQUESTS[:1])
    outcomes = await scorer.score([REQUESTS[1], REQUESTS[0], REQUESTS[1], REQUESTS[2]])
    assert inner.calls == [[REQUESTS[0]], [REQUESTS[1], REQUESTS[2]]]
    assert [len(o.logprobs) for o in outcomes if isinstance(o, Score)] == [3, 2, 3, 2]
    assert [o.from_store for o in outcomes if isinstance(o, Score)] == [False, True, False, False]
    counts = scorer.metrics()
    assert (counts["store_hits"], counts["store_misses"]) == (1, 4)


async def test_errors_are_not_kept(store: ScoreStore) -> None:
    error = TeacherResponseError("refused")
    inner = CountingScorer({(3, 4): error})
    scorer = StoredScorer(inner, store, "f")
    outcomes = await scorer.score(REQUESTS[:2])
    assert outcomes[0] is error
    inner.special.clear()
    outcomes = await scorer.score(REQUESTS[:2])
    assert inner.calls[1] == [REQUESTS[0]]
    assert all(isinstance(outcome, Score) for outcome in outcomes)


async def test_replay_answers_from_the_store_alone(store: ScoreStore) -> None:
    await StoredScorer(CountingScorer(), store, "f").score(REQUESTS[:1])
    inner = CountingScorer()
    for replay in (StoredScorer(None, store, "f", "replay"), StoredScorer(inner, store, "f", "replay")):
        await replay.prime(REQUESTS[1])
        hit, miss = await replay.score(REQUESTS[:2])
        assert isinstance(hit, Score)
        assert isinstance(miss, TeacherUnavailableError)
        assert "teacher.store_mode=replay" in str(miss)
        assert "read_write" in str(miss)
        assert replay.metrics()["store_misses"] == 1
    assert (inner.calls, inner.primed) == ([], [])


@pytest.mark.parametrize(("inner", "mode"), [(None, "read_write"), (CountingScorer(), "readonly")])
async def test_modes_that_cannot_be(store: ScoreStore, inner: CountingScorer | None, mode: str) -> None:
    with pytest.raises(ValueError, match=r"teacher\.store_mode"):
        StoredScorer(inner, store, "f", mode)


async def test_primes_while_most_look_ups_miss(store: ScoreStore) -> None:
    inner = CountingScorer()
    scorer = StoredScorer(inner, store, "f")
    await scorer.prime(REQUESTS[0])
    assert inner.primed == REQUESTS[:1]  # an empty store cannot have the responses
    await scorer.score(REQUESTS)
    again = StoredScorer(inner, store, "f")
    await again.prime(REQUESTS[0])
    assert inner.primed == REQUESTS[:1]  # a store with scores may
    await again.score([ScoreRequest([9], [n]) for n in range(20)])
    await again.prime(REQUESTS[1])
    assert inner.primed == REQUESTS[:2]  # but did not
    await again.score(REQUESTS * 10)
    await again.prime(REQUESTS[2])
    assert inner.primed == REQUESTS[:2]


async def test_a_full_disk_costs_the_copy_and_not_the_score(
    store: ScoreStore, caplog: pytest.LogCaptureFixture
) -> None:
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages}")  # SQLite then answers as on a full disk
    scorer = StoredScorer(CountingScorer(), store, "f")
    requests = [ScoreRequest([1], list(range(4000))), ScoreRequest([2], list(range(4000)))]
    outcomes = await scorer.score(requests)
    assert all(isinstance(outcome, Score) for outcome in outcomes)
    assert "teacher.store_path: scores are not kept" in caplog.text
    assert scorer.metrics()["store_unwritten"] == 2
    store._db.execute(f"PRAGMA max_page_count = {pages + 100}")
    await scorer.score(requests)
    hits = scorer.metrics()
    await scorer.score(requests)
    assert (hits["store_hits"], scorer.metrics()["store_hits"]) == (0, 2)


async def test_a_writer_elsewhere_holds_up_nothing_but_its_call(store: ScoreStore) -> None:
    """While another process has the write lock, the event loop runs and look-ups are answered."""
    scorer = StoredScorer(CountingScorer(), store, "f")
    await scorer.score(REQUESTS[:1])
    reader = StoredScorer(None, ScoreStore(store.path.parent, GIB), "f", "replay")
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writing = asyncio.create_task(scorer.score(REQUESTS[1:2]))
    for _ in range(3):
        (hit,) = await reader.score(REQUESTS[:1])  # answered while the writer waits
        assert isinstance(hit, Score)
    assert not writing.done()
    other.execute("COMMIT")
    other.close()
    (outcome,) = await writing
    assert isinstance(outcome, Score)
    await reader.close()
