"""The replay buffer that the trainer uses: rows of earlier steps, drawn by priority, with their importance weights.

Two moments of a step touch it. `draw` changes nothing, so that a step that is given up can be drawn again; `update` and
`add` stand after the step. `config.py` says what each setting does.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from verl_ext.trainer.replay.config import ReplayConfig
from verl_ext.trainer.replay.storage import (
    KEPT_FIELDS,
    ROW_FIELDS,
    TOKEN_FIELDS,
    Rows,
    RowStorage,
    entries_of,
    slots_of,
)
from verl_ext.trainer.replay.sum_tree import Floats, Integers, SumTree

PRIORITY_FLOOR = 1e-3
"""Nats added to every priority, so that a row that the student has learned is seen again (arXiv 1511.05952, 3.3)."""
COUNTED = ("evicted", "expired", "refused_size", "refused_age", "refused_uses")


@dataclass(frozen=True)
class Draw:
    """Rows as they were drawn; the same one may be among them twice."""

    numbers_B: Integers
    """What the buffer calls them."""
    weights_B: Floats
    """Importance weights (1 / (N P))^beta, 1 on average under the draw with beta = 1. Not divided by the largest as in
    arXiv 1511.05952: beside fresh rows of weight 1 that would only train less on what is replayed."""
    rows: Rows

    def select(self, keep: Integers) -> "Draw":
        return Draw(self.numbers_B[keep], self.weights_B[keep], self.rows.select(keep))


class PriorityBuffer:
    """Bounded in tokens and bytes; O(log n) a row to add and to draw (`rank` and `recency`: O(n) more a draw)."""

    def __init__(self, config: ReplayConfig, seed: int, top_k: int = 0) -> None:
        """`seed` and the step decide a draw. `top_k` of the teacher's tokens are kept with each token.

        Raises:
            ValueError: if no token fits `config.capacity_bytes`, or `config.device` is not here.
        """
        tokens = fitting_tokens(config.capacity_tokens, config.capacity_bytes, top_k)
        if tokens < 1:
            raise ValueError(f"replay.capacity_bytes={config.capacity_bytes} does not hold one token; raise it")
        if config.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("replay.device=cuda: the trainer's process sees no GPU; set replay.device=cpu")
        self.config, self.seed = config, seed
        self.storage = RowStorage(tokens, config.device, top_k)
        self._tree = SumTree(self.storage.slots)
        self._exhausted = 0
        """Rows held that were used `max_uses` times."""
        self._counts: dict[str, int] = dict.fromkeys(COUNTED, 0)

    def __len__(self) -> int:
        return len(self.storage)

    @property
    def drawable(self) -> int:
        """Rows that may be drawn."""
        return len(self) - self._exhausted

    def add(self, rows: Rows, priorities_B: Floats) -> None:
        """Take rows in; the oldest make room. A row that is larger than the whole capacity is refused, and counted.

        Args:
            rows: B rows, the oldest first.
            priorities_B: nats, >= 0.

        Raises:
            ValueError: if a priority is negative or not finite.
        """
        _check_priorities(priorities_B)
        fits = np.flatnonzero(rows.lengths_B <= self.storage.tokens)
        self._counts["refused_size"] += len(rows) - len(fits)
        # Of more than fits at once the newest: each earlier one would be evicted by a later one.
        lengths = rows.lengths_B[fits].astype(np.int64)
        newest = np.cumsum(lengths[::-1])[::-1] <= self.storage.tokens
        newest[: max(0, len(fits) - self.storage.slots)] = False
        kept = fits[newest]
        if len(kept) < len(rows):
            rows, priorities_B = rows.select(kept), priorities_B[kept]
        passed = len(fits) - len(kept)
        self._counts["evicted"] += passed
        self._drop(len(self) if passed else max(0, self.storage.room_for(rows.lengths_B)), "evicted")
        numbers = self.storage.add(rows, priorities_B)
        self._set(numbers)

    def expire(self, version: int) -> None:
        """Forget the oldest rows that are more than `max_age` weight versions behind `version`."""
        first, last = self.storage.row["first_versions_B"], version - self.config.max_age
        numbers = range(self.storage.oldest, self.storage.next)
        aged = next((i for i, number in enumerate(numbers) if first[number % self.storage.slots] >= last), len(self))
        self._drop(aged, "expired")

    def draw(self, count: int, *, step: int, version: int) -> Draw:
        """At most `count` rows, with replacement, each in proportion to its priority; fewer where some are refused.

        Refused and counted: a row that is older than `max_age` weight versions, and one that would be used more often
        than `max_uses` times.

        Args:
            step: with the seed it decides the draw; counts from 0 for the annealing of beta.
            version: the student's weight version.
        """
        if self.drawable == 0:
            count = 0
        elif self.config.priority in ("rank", "recency"):
            self._fill_by_rank()
        slots = self._tree.draw(count, np.random.default_rng((self.seed, step))) if count else np.zeros(0, np.int64)
        numbers = self.storage.oldest + (slots - self.storage.oldest) % self.storage.slots
        shares = self._tree[slots] / self._tree.total if count else np.zeros(0)
        weights = (1.0 / (self.drawable * shares)) ** self.config.beta(step)
        young = version - self.storage.row["first_versions_B"][slots] <= self.config.max_age
        unused = self.storage.row["uses_B"][slots] + _earlier(numbers) < self.config.max_uses
        self._counts["refused_age"] += int((~young).sum())
        self._counts["refused_uses"] += int((young & ~unused).sum())
        kept = np.flatnonzero(young & unused)
        return Draw(numbers[kept], weights[kept], self.storage.get(numbers[kept]))

    def update(self, numbers_B: Integers, priorities_B: Floats, used_B: np.ndarray) -> None:
        """Give drawn rows the priority that the student gives them now; `used_B`, whether each was trained on.

        Raises:
            ValueError: if a priority is negative or not finite.
        """
        _check_priorities(priorities_B)
        slots, limit = numbers_B % self.storage.slots, self.config.max_uses
        uses, touched = self.storage.row["uses_B"], np.unique(slots)
        before = int((uses[touched] >= limit).sum())
        self.storage.row["priorities_B"][slots] = priorities_B
        np.add.at(uses, slots, used_B.astype(np.int32))
        self._exhausted += int((uses[touched] >= limit).sum()) - before
        self._set(numbers_B)

    def metrics(self) -> dict[str, float]:
        """What is held, and what was counted since the last call."""
        found = {"rows": len(self), "tokens": self.storage.tokens_held, "drawable": self.drawable}
        found["bytes"] = self.storage.nbytes + self._tree.nbytes
        counts = self._counts
        self._counts = dict.fromkeys(COUNTED, 0)
        return {f"replay/{name}": float(value) for name, value in (found | counts).items()}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All that a later draw depends on; tensors alone."""
        return self.storage.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Hold what `state_dict` gave; rows that a smaller capacity has no room for count as evicted."""
        self._counts["evicted"] += self.storage.load_state_dict(state)
        numbers = np.arange(self.storage.oldest, self.storage.next)
        uses = self.storage.row["uses_B"][numbers % self.storage.slots]
        self._exhausted = int((uses >= self.config.max_uses).sum())
        self._tree.fill(numbers % self.storage.slots, self._values(numbers % self.storage.slots))

    def _values(self, slots: Integers) -> Floats:
        """What the tree holds of rows; 0 of those that are used up. By rank it is filled at the draw."""
        priorities = self.storage.row["priorities_B"][slots]
        values = np.ones(len(slots))
        if self.config.priority == "proportional":
            values = (priorities + PRIORITY_FLOOR) ** self.config.exponent
        return np.where(self.storage.row["uses_B"][slots] < self.config.max_uses, values, 0.0)

    def _set(self, numbers: Integers) -> None:
        slots = numbers % self.storage.slots
        self._tree.set(slots, self._values(slots))

    def _fill_by_rank(self) -> None:
        numbers = np.arange(self.storage.oldest, self.storage.next)
        slots = numbers % self.storage.slots
        slots = slots[self.storage.row["uses_B"][slots] < self.config.max_uses][::-1]  # the newest first
        if self.config.priority == "rank":
            slots = slots[np.argsort(-self.storage.row["priorities_B"][slots], kind="stable")]
        ranks = np.arange(1, len(slots) + 1, dtype=np.float64)
        self._tree.fill(slots, np.power(ranks, -self.config.exponent))

    def _drop(self, count: int, why: str) -> None:
        """Forget the `count` oldest rows."""
        slots = np.arange(self.storage.oldest, self.storage.oldest + count) % self.storage.slots
        self._exhausted -= int((self.storage.row["uses_B"][slots] >= self.config.max_uses).sum())
        self._tree.set(slots, 0.0)
        self.storage.drop(count)
        self._counts[why] += count


def _earlier(numbers: Integers) -> Integers:
    """How often each number stands before its place."""
    order = np.argsort(numbers, kind="stable")
    found = np.empty_like(numbers)
    found[order] = np.arange(len(numbers)) - np.searchsorted(numbers[order], numbers[order])
    return found


def bytes_of(tokens: int, top_k: int = 0) -> int:
    """Bytes of a buffer of so many tokens: the tokens, the rows' slots, the tree above these."""
    a_token = sum(dtype.itemsize * math.prod(entries_of(name, top_k)) for name, dtype in TOKEN_FIELDS.items())
    a_slot = sum(np.dtype(dtype).itemsize for dtype in (ROW_FIELDS | KEPT_FIELDS).values())
    leaves = 1 << max(0, slots_of(tokens) - 1).bit_length()
    return tokens * a_token + slots_of(tokens) * a_slot + 2 * leaves * np.dtype(np.float64).itemsize


def fitting_tokens(capacity_tokens: int, capacity_bytes: int, top_k: int) -> int:
    """The most tokens, at most `capacity_tokens`, whose buffer takes at most `capacity_bytes`."""
    return bisect_right(range(capacity_tokens + 1), capacity_bytes, key=lambda tokens: bytes_of(tokens, top_k)) - 1


def _check_priorities(priorities_B: Floats) -> None:
    if not np.all(np.isfinite(priorities_B) & (priorities_B >= 0.0)):
        raise ValueError(f"priorities must be finite and >= 0 nats, got {priorities_B}")
