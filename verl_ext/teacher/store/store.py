"""Scores on local disk, so that a sample that was scored once is never scored again.

One SQLite file (WAL). A commit is seen whole or not at all, also after `kill -9`; what a disk does to it later is
found by the checksum in each value (`format.py`). Readers never wait; writers wait for each other.
"""

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from verl_ext.teacher.store.format import CorruptScoreError, decode_score, encode_score
from verl_ext.teacher.types import Score

USED_RESOLUTION_MS = 60_000  # a time of use is noted again only after this long
MAX_NOTED = 4096  # times of use that wait for a write
EVICT_ROWS = 64
# The casts: in a damaged row a column may have any type.
LOOK_UP = """
SELECT CAST(ifnull(used, 0) AS INTEGER), CAST(ifnull(value, '') AS BLOB)
FROM entries JOIN payloads USING (id) WHERE key = ?
"""

PASSING = ("SQLITE_BUSY", "SQLITE_FULL", "SQLITE_INTERRUPT", "SQLITE_IOERR", "SQLITE_LOCKED", "SQLITE_READONLY")
"""Errors of a lock or a disk, after which the file is as good as before."""

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
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_file()):
            raise StoreError(f"teacher.store_path: {self.path} is a link or no file; use another folder")
        try:
            self._db = open_database(self.path)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # of a damaged name, in the error's own text
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
            except UnicodeDecodeError as error:
                raise unusable(self.path, error) from error
            except sqlite3.DatabaseError as error:
                name = str(vars(error).get("sqlite_errorname", ""))  # Python's own errors have none
                if name.startswith(PASSING) or isinstance(error, sqlite3.IntegrityError):
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


SCHEMA_VERSION = 2
SCHEMA = (  # the time of use stands apart from the value: noting it must not rewrite the value
    "CREATE TABLE entries (id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, used INTEGER NOT NULL)",
    "CREATE INDEX entries_by_use ON entries (used, id)",
    "CREATE TABLE payloads (id INTEGER PRIMARY KEY, value BLOB NOT NULL)",
    "CREATE TABLE teachers (id TEXT PRIMARY KEY, record TEXT NOT NULL)",
)
PAGE_BYTES = 8192
BUSY_TIMEOUT_S = 30.0
WAL_LIMIT_BYTES = 64 << 20


class StoreError(RuntimeError):
    """The store cannot be used as it is."""


def open_database(path: Path) -> sqlite3.Connection:
    """A connection to the store at `path`, which is made if it is not there. It may be used by one thread at a time.

    Raises:
        StoreError: if another version made it.
        sqlite3.DatabaseError: if it is no database, or cannot be written.
    """
    db = sqlite3.connect(path, BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    try:
        db.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        _enter_wal(db)
        db.execute("PRAGMA synchronous = NORMAL")  # no fsync a commit: a power cut may lose the last ones, no more
        db.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}")
        db.execute("BEGIN IMMEDIATE")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            for statement in SCHEMA:
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif version != SCHEMA_VERSION:
            raise StoreError(
                f"teacher.store_path: {path} has format {version}, "
                f"this program has {SCHEMA_VERSION}; give another folder"
            )
        db.execute("COMMIT")
    except BaseException:
        db.close()
        raise
    return db


def _enter_wal(db: sqlite3.Connection) -> None:
    """Switch to WAL. SQLite does not wait for a lock here: another process may be doing the same."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def unusable(path: Path, error: Exception) -> StoreError:
    """The one line that a user needs about a file that cannot be opened or is damaged."""
    return StoreError(
        f"teacher.store_path: {path} cannot be used ({error}); "
        "delete that file and those beside it, or give another folder"
    )
