"""The SQLite file of the score store: its tables, and how it is opened."""

import sqlite3
import time
from pathlib import Path

SCHEMA_VERSION = 1
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


def unusable(path: Path, error: sqlite3.Error) -> StoreError:
    """The one line that a user needs about a file that cannot be opened or is damaged."""
    return StoreError(
        f"teacher.store_path: {path} cannot be used ({error}); "
        "delete that file and those beside it, or give another folder"
    )
