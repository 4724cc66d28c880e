"""ScoreStore: what comes back, what never does, and what survives."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from stored_scores import GIB, alter, key, same, score_of

from verl_ext.teacher.store import store as store_module
from verl_ext.teacher.store.format import encode_score
from verl_ext.teacher.store.store import PAGE_BYTES, ScoreStore, StoreError


def test_the_last_put_counts(store: ScoreStore) -> None:
    store.put_many({key(1): score_of(1), key(2): score_of(2)})
    store.put_many({key(1): score_of(9)})
    found = store.get_many([key(2), key(1), key(1)])
    assert same(found[key(1)], score_of(9))
    assert same(found[key(2)], score_of(2))


@pytest.mark.parametrize(
    "damage",
    ["UPDATE payloads SET value = ?", "UPDATE payloads SET value = zeroblob(0)", "UPDATE payloads SET value = 7"],
)
def test_a_damaged_value_is_absent_deleted_and_counted(store: ScoreStore, damage: str) -> None:
    store.put_many({key(1): score_of(1), key(2): score_of(2)})
    good = encode_score(key(1), score_of(1))
    flipped = good[:25] + bytes([good[25] ^ 4]) + good[26:]
    alter(store, f"{damage} WHERE id = (SELECT id FROM entries WHERE key = ?)", *[flipped] * damage.count("?"), key(1))
    assert list(store.get_many([key(1), key(2)])) == [key(2)]
    assert store.corrupt == 1
    assert list(store.get_many([key(1), key(2)])) == [key(2)]
    assert store.corrupt == 1  # it is gone, not found damaged again
    store.put_many({key(1): score_of(1)})
    assert same(store.get_many([key(1)])[key(1)], score_of(1))


def test_values_swapped_on_disk_are_not_believed(store: ScoreStore) -> None:
    store.put_many({key(1): score_of(1), key(2): score_of(2)})
    alter(store, "UPDATE entries SET id = -id")
    alter(store, "UPDATE entries SET id = 3 + id")
    assert store.get_many([key(1), key(2)]) == {}
    assert store.corrupt == 2


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_damaged_file_is_named_with_the_fix(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "scores.sqlite").write_bytes(content)
    with pytest.raises(StoreError, match=r"^teacher\.store_path: .*scores\.sqlite cannot be used .*delete") as caught:
        ScoreStore(tmp_path, GIB)
    assert "\n" not in str(caught.value)


def test_a_file_damaged_while_it_is_open_is_named(tmp_path: Path) -> None:
    writer = ScoreStore(tmp_path, GIB)
    writer.put_many({key(n): score_of(n, 100) for n in range(500)})
    writer.close()
    with writer.path.open("r+b") as file:
        file.seek(PAGE_BYTES)
        file.write(b"\xff" * (writer.path.stat().st_size - PAGE_BYTES))
    reader = ScoreStore(tmp_path, GIB)  # the first page is whole
    with pytest.raises(StoreError, match=r"teacher\.store_path.*delete"):
        reader.get_many([key(1)])
    reader.close()


def test_another_version_and_a_folder_that_cannot_be_made(tmp_path: Path, store: ScoreStore) -> None:
    alter(store, "PRAGMA user_version = 99")
    with pytest.raises(StoreError, match=r"teacher\.store_path: .* has format 99, this program has 2"):
        ScoreStore(store.path.parent, GIB)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"teacher\.store_path: cannot make"):
        ScoreStore(tmp_path / "file" / "folder", GIB)


def test_what_was_used_longest_ago_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "USED_RESOLUTION_MS", 0)
    now = 0
    monkeypatch.setattr(store_module, "_now_ms", lambda: now)
    bound = 1 << 20
    store = ScoreStore(tmp_path, bound)
    for now in range(1, 21):  # 20 puts of 50 scores of 1 KB: the first ones cannot all stay
        store.put_many({key(now * 100 + i): score_of(now, 256) for i in range(50)})
        store.get_many([key(100 + i) for i in range(25)])  # half of the first put stays in use
        assert store.size_bytes <= bound
    alive = [sum(bool(store.get_many([key(n * 100 + i)])) for i in range(50)) for n in range(1, 21)]
    store.close()
    assert alive[0] == 25
    assert alive[-1] == 50
    assert alive[1] == 0
    assert alive[1:] == sorted(alive[1:])  # the older, the earlier
    assert sum(alive) > 500  # what fits stays
    assert store.path.stat().st_size < bound + 50 * 2 * PAGE_BYTES


def test_times_of_use_are_kept_when_nothing_is_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_now_ms", lambda: 0)
    first = ScoreStore(tmp_path, GIB)
    first.put_many({key(1): score_of(1)})
    monkeypatch.setattr(store_module, "_now_ms", lambda: 10**6)
    first.get_many([key(1)])
    first.close()
    first.close()
    with sqlite3.connect(first.path) as db:
        assert db.execute("SELECT used FROM entries").fetchall() == [(10**6,)]
    db.close()


# ---- other processes

WRITER = """
import sys
from pathlib import Path
import numpy as np
from verl_ext.teacher.types import Score
from verl_ext.teacher.store.store import ScoreStore

folder, first, rounds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
store = ScoreStore(folder, 1 << 30)
for r in range(rounds):
    numbers = range(first + 20 * r, first + 20 * (r + 1))
    store.put_many({n.to_bytes(32, "big"): Score(np.full(300, -n, np.float32)) for n in numbers})
    print(r, flush=True)
store.close()
"""


def start_writer(folder: Path, first: int, rounds: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(folder), str(first), str(rounds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    writers = [start_writer(tmp_path, first, 40) for first in (0, 400)]  # 400 to 799 by both
    assert [writer.wait(120) for writer in writers] == [0, 0]
    store = ScoreStore(tmp_path, GIB)
    found = store.get_many([key(n) for n in range(1200)])
    store.close()
    assert len(found) == 1200
    assert all(same(found[key(n)], score_of(n, 300)) for n in range(1200))


def test_kill_9_leaves_whole_puts_only(tmp_path: Path) -> None:
    writer = start_writer(tmp_path, 0, 10**5)
    assert writer.stdout is not None
    done = [writer.stdout.readline() for _ in range(30)]
    writer.send_signal(signal.SIGKILL)
    done += writer.stdout.readlines()
    assert writer.wait(30) == -signal.SIGKILL
    store = ScoreStore(tmp_path, GIB)
    numbers = range(20 * (len(done) + 2))
    found = store.get_many([key(n) for n in numbers])
    assert store.corrupt == 0
    store.close()
    assert len(found) % 20 == 0  # a put is there whole or not at all
    assert len(found) >= 20 * (len(done) - 1)  # and what was told is there (the last line may be cut short)
    assert all(same(found[key(n)], score_of(n, 300)) for n in numbers if key(n) in found)
    with sqlite3.connect(store.path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()
