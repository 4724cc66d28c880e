"""ScoreStore and StoredScorer: what comes back, what never does, and what survives."""

import asyncio
import dataclasses
import os
import signal
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from verl_ext.teacher import store as store_module
from verl_ext.teacher.score_database import PAGE_BYTES, StoreError
from verl_ext.teacher.score_format import CorruptScoreError, decode_score, encode_score, score_key
from verl_ext.teacher.scorer import Score, ScoreRequest, TeacherError, TeacherResponseError, TeacherUnavailableError
from verl_ext.teacher.store import ScoreStore, StoredScorer

GIB = 1 << 30
BARE = Score(np.array([-1.5, -0.25], np.float32))
FULL = Score(
    logprobs=np.array([-1.5, 0.0, -3e-8], np.float32),
    top_ids=np.array([[7, 8], [0, 0], [151_935, 2]], np.int32),
    top_logprobs=np.array([[-0.5, -1.0], [0, 0], [-np.inf, -2.0]], np.float32),
    token_logprobs=np.array([[-4.0], [0], [-5.5]], np.float32),
)
ARRAYS = ("logprobs", "top_ids", "top_logprobs", "token_logprobs")


def key(number: int) -> bytes:
    return number.to_bytes(32, "big")


def score_of(number: int, length: int = 4) -> Score:
    return Score(np.full(length, -number, np.float32))


def same(left: Score, right: Score) -> bool:
    pairs = [(vars(left)[name], vars(right)[name]) for name in ARRAYS]
    return all(
        a is b is None or (a is not None and b is not None and a.dtype == b.dtype and np.array_equal(a, b))
        for a, b in pairs
    )


def alter(store: ScoreStore, sql: str, *parameters: object) -> None:
    """Change the file behind the store's back."""
    with sqlite3.connect(store.path) as db:
        db.execute(sql, parameters)
    db.close()


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


@pytest.fixture
def store(tmp_path: Path):
    opened = ScoreStore(tmp_path / "store", GIB)
    yield opened
    opened.close()


# ---- keys and values


@pytest.mark.parametrize(
    "score",
    [BARE, FULL, Score(np.zeros(0, np.float32)), Score(BARE.logprobs, None, None, np.zeros((2, 3), np.float32))],
)
def test_a_score_comes_back_to_the_bit(tmp_path: Path, score: Score) -> None:
    first = ScoreStore(tmp_path, GIB)
    first.put_many({key(1): score})
    first.close()
    second = ScoreStore(tmp_path, GIB)
    found = second.get_many([key(1), key(2)])
    second.close()
    assert list(found) == [key(1)]
    assert same(found[key(1)], score)
    assert found[key(1)].from_store
    assert not score.from_store
    found[key(1)].logprobs[:] = 0.0  # its own memory, which a caller may write


def test_a_value_is_what_the_layout_says() -> None:
    value = encode_score(key(1), FULL)
    assert struct.unpack_from("<4sBBHIII", value) == (b"OPDS", 1, 3, 0, 3, 2, 1)
    body = np.frombuffer(value[20:-16], "<f4")
    assert body[:3].tolist() == FULL.logprobs.tolist()
    assert np.frombuffer(value[20:-16], "<i4")[3:9].tolist() == [7, 8, 0, 0, 151_935, 2]
    assert body[9:15].tolist() == [-0.5, -1.0, 0, 0, -np.inf, -2.0]
    assert body[15:].tolist() == [-4.0, 0, -5.5]
    assert len(value) == 20 + 4 * 18 + 16


def test_the_key_tells_every_part_from_the_next() -> None:
    base = ScoreRequest([1, 2], [3], [1], top_k=2, token_ids=(4,))
    others = [
        dataclasses.replace(base, prompt_ids=[1], response_ids=[2, 3], response_mask=[1, 1]),
        dataclasses.replace(base, prompt_ids=[1], response_ids=[2, 3], response_mask=[1]),
        dataclasses.replace(base, prompt_ids=[2, 1]),
        dataclasses.replace(base, response_ids=[4]),
        dataclasses.replace(base, response_mask=[0]),
        dataclasses.replace(base, top_k=4),
        dataclasses.replace(base, top_k=0),
        dataclasses.replace(base, token_ids=()),
        dataclasses.replace(base, token_ids=(4, 4)),
        dataclasses.replace(base, top_k=4, token_ids=(2,)),
    ]
    keys = {score_key("f", request) for request in [base, *others]} | {score_key("g", base)}
    assert len(keys) == len(others) + 2
    assert {len(found) for found in keys} == {32}


def test_the_key_is_the_same_where_the_question_is() -> None:
    request = ScoreRequest([1, 2], [3, 4])
    assert score_key("f", request) == score_key("f", dataclasses.replace(request, response_mask=[1, 1]))
    assert score_key("f", request) == score_key("f", dataclasses.replace(request, teacher="another name"))
    assert score_key("f", request) == score_key("f", ScoreRequest((1, 2), (3, 4)))
    # Golden: a change of the key makes every store that exists worthless, so it must be meant.
    assert score_key("f", request).hex().startswith("790601c23c77d62f")


def test_every_flipped_byte_is_noticed() -> None:
    value = encode_score(key(1), FULL)
    assert same(decode_score(key(1), value), FULL)
    for position in range(len(value)):
        broken = bytearray(value)
        broken[position] ^= 1
        with pytest.raises(CorruptScoreError):
            decode_score(key(1), bytes(broken))
    for wrong_key, wrong in [(key(2), value), (key(1), value[:-1]), (key(1), b""), (key(1), value + b"\0")]:
        with pytest.raises(CorruptScoreError):
            decode_score(wrong_key, wrong)


# ---- the store


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
    with pytest.raises(StoreError, match=r"teacher\.store_path: .* has format 99, this program has 1"):
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
from verl_ext.teacher.scorer import Score
from verl_ext.teacher.store import ScoreStore

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


# ---- the scorer before the store


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
