"""Scores on local disk, so that a sample that was scored once is never scored again.

One SQLite file (WAL). A commit is seen whole or not at all, also after `kill -9`; what a disk does to it later is
found by the checksum in each value (`score_format.py`). Readers never wait; writers wait for each other.
"""

import asyncio
import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from verl_ext.teacher.config import STORE_MODES
from verl_ext.teacher.score_database import PAGE_BYTES, StoreError, open_database, unusable
from verl_ext.teacher.score_format import CorruptScoreError, decode_score, encode_score, score_key
from verl_ext.teacher.scorer import Score, Scorer, ScoreRequest, TeacherError, TeacherUnavailableError

USED_RESOLUTION_MS = 60_000  # a time of use is noted again only after this long
MAX_NOTED = 4096  # times of use that wait for a write
EVICT_ROWS = 64
HIT_SHARE_WEIGHT = 0.05  # of the newest look-up in the moving share of hits
# The casts: in a damaged row a column may have any type.
LOOK_UP = """
SELECT CAST(ifnull(used, 0) AS INTEGER), CAST(ifnull(value, '') AS BLOB)
FROM entries JOIN payloads USING (id) WHERE key = ?
"""

T = TypeVar("T")
logger = logging.getLogger(__name__)


class ScoreStore:
    """Scores by `score_key`, bounded in size. Processes may share a folder, and threads an object.

    The folder must be on a local disk: WAL needs shared memory, which network file systems lack.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """`max_bytes` bounds the pages in use; the file itself may be larger by one `put_many`, its WAL by 64 MiB.

        Raises:
            StoreError: if the folder cannot be written, or holds what is no store of this version.
        """
        self.path = folder / "scores.sqlite"
        self.max_bytes = max_bytes
        self.corrupt = 0
        """Values found damaged, and deleted, since the store was opened."""
        self._noted: dict[bytes, int] = {}
        self._lock = threading.RLock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"teacher.store_path: cannot make {folder} ({error.strerror}); use another") from error
        try:
            self._db = open_database(self.path)
        except sqlite3.DatabaseError as error:
            raise unusable(self.path, error) from error
        self.size_bytes = self._used_bytes()
        """Bytes of the pages in use, at the last write of this object."""

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, Score]:
        """The scores there are, by key. A damaged one is deleted, counted and absent."""
        found, damaged, now = {}, [], _now_ms()
        with self._using():
            for key in dict.fromkeys(keys):
                row = self._db.execute(LOOK_UP, (key,)).fetchone()
                if row is None:
                    continue
                used, value = row
                try:
                    found[key] = decode_score(key, value)
                except CorruptScoreError:
                    damaged.append(key)
                    continue
                if now - used >= USED_RESOLUTION_MS:
                    self._noted[key] = now
            self.corrupt += len(damaged)
            if damaged or len(self._noted) >= MAX_NOTED:
                # Reading must work where writing does not.
                with contextlib.suppress(sqlite3.OperationalError), self._transaction():
                    self._delete(damaged)
                    self._write_noted()
        return found

    def put_many(self, scores: Mapping[bytes, Score]) -> None:
        """Keep `scores`, all or none; those used longest ago make room.

        Raises:
            sqlite3.OperationalError: if the disk is full, or another process held the write lock for 30 s.
        """
        now = _now_ms()
        values = [(encode_score(key, score), key) for key, score in scores.items()]
        with self._using():
            with self._transaction():
                self._write_noted()
                self._db.executemany(
                    "INSERT INTO entries (key, used) VALUES (?, ?) "
                    "ON CONFLICT (key) DO UPDATE SET used = excluded.used",
                    [(key, now) for key in scores],
                )
                self._db.executemany(
                    "INSERT OR REPLACE INTO payloads (id, value) SELECT id, ? FROM entries WHERE key = ?", values
                )
                self._make_room()
            self.size_bytes = self._used_bytes()

    def remember_teacher(self, fingerprint_id: str, record: str) -> None:
        """Keep what is known of a teacher whose scores are here (`ProbeRecord.to_json`). The first record stays."""
        with self._using():
            self._db.execute("INSERT OR IGNORE INTO teachers VALUES (?, ?)", (fingerprint_id, record))

    def teachers(self) -> dict[str, str]:
        """Record by fingerprint id, oldest first."""
        with self._using():
            return dict(self._db.execute("SELECT id, record FROM teachers ORDER BY rowid"))

    def is_empty(self) -> bool:
        """True if it holds no score at all."""
        with self._using():
            return self._db.execute("SELECT 1 FROM entries LIMIT 1").fetchone() is None

    def close(self) -> None:
        """Write the times of use that are not written yet and close the file. Safe to call twice."""
        with self._lock:
            if self._noted:
                with contextlib.suppress(sqlite3.OperationalError), self._transaction():  # they only order evictions
                    self._write_noted()
            self._noted.clear()
            self._db.close()

    @contextlib.contextmanager
    def _using(self) -> Iterator[None]:
        """One thread at a time; a damaged file as a `StoreError`."""
        with self._lock:
            try:
                yield
            except sqlite3.DatabaseError as error:
                # Its subclasses are something else: OperationalError is a full disk or a lock, which pass.
                if type(error) is not sqlite3.DatabaseError:
                    raise
                raise unusable(self.path, error) from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.rollback()
            raise
        self._db.execute("COMMIT")

    def _write_noted(self) -> None:
        self._db.executemany("UPDATE entries SET used = ? WHERE key = ?", [(t, key) for key, t in self._noted.items()])
        self._noted.clear()

    def _make_room(self) -> None:
        while self._used_bytes() > self.max_bytes:
            rows = self._db.execute(f"SELECT key FROM entries ORDER BY used, id LIMIT {EVICT_ROWS}").fetchall()
            if not rows:
                break
            self._delete([key for (key,) in rows])

    def _delete(self, keys: Sequence[bytes]) -> None:
        each = [(key,) for key in keys]
        self._db.executemany("DELETE FROM payloads WHERE id = (SELECT id FROM entries WHERE key = ?)", each)
        self._db.executemany("DELETE FROM entries WHERE key = ?", each)

    def _used_bytes(self) -> int:
        pages, free = (self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count"))
        return (pages - free) * PAGE_BYTES


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


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
