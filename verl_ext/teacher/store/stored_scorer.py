"""A scorer in front of another: what the store holds is not asked for again."""

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from verl_ext.teacher.config import STORE_MODES
from verl_ext.teacher.store.format import score_key
from verl_ext.teacher.store.store import ScoreStore, T, logger
from verl_ext.teacher.types import Score, Scorer, ScoreRequest, TeacherError, TeacherUnavailableError

HIT_SHARE_WEIGHT = 0.05  # of the newest look-up in the moving share of hits


class StoredScorer:
    """A `Scorer` that looks into the store first and asks `inner` only for what is not there."""

    def __init__(self, inner: Scorer | None, store: ScoreStore, fingerprint_id: str, mode: str = "read_write") -> None:
        """`mode`: one of `STORE_MODES`. `replay` never asks `inner`, which may be None then.

        Raises:
            ValueError: for an unknown mode, or `read_write` without an `inner`.
        """
        if mode not in STORE_MODES or (mode == "read_write" and inner is None):
            raise ValueError(
                f"teacher.store_mode: {mode!r} with inner={inner}: use replay, or read_write with a scorer"
            )
        self._inner, self._store, self._fingerprint_id, self._mode = inner, store, fingerprint_id, mode
        self._thread = ThreadPoolExecutor(1, "score-store")  # the disk must not hold up the event loop
        self._hits = self._misses = self._unwritten = self._corrupt_told = 0
        self._hit_share = 0.0 if store.is_empty() else 1.0

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Score | TeacherError]:
        """As `Scorer.score`. A request that occurs twice is asked once. Errors are not kept.

        Raises:
            StoreError: if the store's file is damaged.
            ValueError: as `inner` does.
        """
        keys = [score_key(self._fingerprint_id, request) for request in requests]
        found = await self._in_thread(self._store.get_many, keys)
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in found}
        for key in keys:
            self._hit_share += HIT_SHARE_WEIGHT * ((key in found) - self._hit_share)
        hits = sum(key in found for key in keys)
        self._hits += hits
        self._misses += len(keys) - hits
        outcomes = found | await self._ask(missing) if missing else found
        return [outcomes[key] for key in keys]

    async def prime(self, request: ScoreRequest) -> None:
        """Forwarded unless most of the last look-ups were hits: the responses, and so the keys, are not known yet."""
        if self._inner is not None and self._mode == "read_write" and self._hit_share < 0.5:
            await self._inner.prime(request)

    def metrics(self) -> dict[str, float]:
        """`inner`'s, and `store_hits`, `store_misses` (requests), `store_corrupt`, `store_unwritten` (scores) since the
        last call, `store_bytes` now."""
        counts = {
            "store_hits": self._hits,
            "store_misses": self._misses,
            "store_corrupt": self._store.corrupt - self._corrupt_told,
            "store_unwritten": self._unwritten,
            "store_bytes": self._store.size_bytes,
        }
        self._corrupt_told = self._store.corrupt
        self._hits = self._misses = self._unwritten = 0
        inner = {} if self._inner is None else self._inner.metrics()
        return inner | {name: float(count) for name, count in counts.items()}

    async def close(self) -> None:
        """Close `inner` and the store."""
        if self._inner is not None:
            await self._inner.close()
        await self._in_thread(self._store.close)
        self._thread.shutdown()

    async def _ask(self, missing: Mapping[bytes, ScoreRequest]) -> dict[bytes, Score | TeacherError]:
        if self._inner is None or self._mode == "replay":
            return {key: self._no_replay() for key in missing}
        answers = await self._inner.score(list(missing.values()))
        outcomes = dict(zip(missing, answers, strict=True))
        scores = {key: outcome for key, outcome in outcomes.items() if isinstance(outcome, Score)}
        try:
            await self._in_thread(self._store.put_many, scores)
        except sqlite3.OperationalError as error:  # the scores are there: a full disk must not cost the run
            if self._unwritten == 0:
                logger.warning("teacher.store_path: scores are not kept, %s: %s", self._store.path, error)
            self._unwritten += len(scores)
        return outcomes

    def _no_replay(self) -> TeacherUnavailableError:
        return TeacherUnavailableError(
            f"teacher.store_mode=replay, and {self._store.path} has no score of this sample by teacher "
            f"{self._fingerprint_id}: set teacher.store_mode=read_write and give a server"
        )

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
