"""Scores to store, and a way to damage a store behind its back."""

import sqlite3

import numpy as np

from verl_ext.teacher.store.store import ScoreStore
from verl_ext.teacher.types import Score

GIB = 1 << 30
BARE = Score(np.array([-1.5, -0.25], np.float32))
FULL = Score(
    logprobs=np.array([-1.5, 0.0, -3e-8], np.float32),
    top_ids=np.array([[7, 8], [0, 0], [151_935, 2]], np.int32),
    top_logprobs=np.array([[-0.5, -1.0], [0, 0], [-np.inf, -2.0]], np.float32),
)
ARRAYS = ("logprobs", "top_ids", "top_logprobs")


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
