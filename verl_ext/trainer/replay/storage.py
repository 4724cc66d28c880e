"""Bounded circular storage of samples ("rows"): flat tensors that are allocated once, and no Python object a token.

Shapes: `B` rows, `N` tokens of all of them, row after row, each its prompt and then its response; `K` tokens that the
teacher finds most likely at each, 0 where the method asks for none. Log-probs in nats.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from verl_ext.trainer.replay.sum_tree import Integers

TOKENS_A_SLOT = 16
"""A row takes one slot, and there is one for so many tokens: rows that are shorter on average fill the slots first."""
TOKEN_FIELDS = {
    "token_ids_N": torch.int32,
    "rollout_logprobs_N": torch.float32,
    "teacher_logprobs_N": torch.float32,
    "mask_N": torch.bool,
    "top_ids_NK": torch.int32,
    "top_logprobs_NK": torch.float32,
}
ROW_FIELDS = {
    "lengths_B": np.int32,
    "prompt_lengths_B": np.int32,
    "rewards_B": np.float32,
    "truncated_B": np.bool_,
    "first_versions_B": np.int32,
    "last_versions_B": np.int32,
}
KEPT_FIELDS = {"starts_B": np.int64, "uses_B": np.int32, "priorities_B": np.float64}
"""What the storage notes of each row beside the row itself."""


@dataclass(frozen=True)
class Rows:
    """Some rows; everything that training on them again takes."""

    token_ids_N: torch.Tensor
    rollout_logprobs_N: torch.Tensor
    """The sampler's; 0 on prompts."""
    teacher_logprobs_N: torch.Tensor
    """0 on prompts."""
    mask_N: torch.Tensor
    """True on tokens that are trained."""
    top_ids_NK: torch.Tensor
    """The teacher's; 0 on prompts."""
    top_logprobs_NK: torch.Tensor
    lengths_B: np.ndarray
    """Prompt and response tokens."""
    prompt_lengths_B: np.ndarray
    rewards_B: np.ndarray
    truncated_B: np.ndarray
    first_versions_B: np.ndarray
    """Weight version that sampled the first token of the response."""
    last_versions_B: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths_B)

    def __post_init__(self) -> None:
        tokens = int(self.lengths_B.sum())
        found = {name: len(getattr(self, name)) for name in TOKEN_FIELDS}
        if set(found.values()) != {tokens}:
            raise ValueError(f"the lengths of {len(self)} rows add up to {tokens} tokens, and there are {found}")

    def select(self, keep: Sequence[int] | Integers) -> "Rows":
        """The rows of these places, in this order."""
        kept = np.asarray(keep, dtype=np.int64)
        ends = np.cumsum(self.lengths_B, dtype=np.int64)
        positions = torch.from_numpy(spans((ends - self.lengths_B)[kept], self.lengths_B[kept]))
        tokens: dict[str, Any] = {name: getattr(self, name)[positions] for name in TOKEN_FIELDS}
        return Rows(**tokens, **{name: getattr(self, name)[kept] for name in ROW_FIELDS})


assert {field.name for field in fields(Rows)} == {*TOKEN_FIELDS, *ROW_FIELDS}


def spans(starts: Integers, lengths: Integers) -> Integers:
    """`start, start + 1, ...` of each span, one after the other."""
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(total)


def entries_of(field: str, top_k: int) -> tuple[int, ...]:
    """Shape of a field's entry of one token."""
    return (top_k,) if field.endswith("_NK") else ()


def slots_of(tokens: int) -> int:
    return -(-tokens // TOKENS_A_SLOT)


class RowStorage:
    """The newest rows that fit. Rows and tokens are numbered from 0 on, never again; `number % slots` is the place."""

    def __init__(self, tokens: int, device: str, top_k: int) -> None:
        self.tokens, self.slots = tokens, slots_of(tokens)
        self._token = {
            name: torch.zeros(tokens, *entries_of(name, top_k), dtype=dtype, device=device)
            for name, dtype in TOKEN_FIELDS.items()
        }
        self.row: dict[str, Any] = {
            name: np.zeros(self.slots, dtype=dtype) for name, dtype in (ROW_FIELDS | KEPT_FIELDS).items()
        }
        """By slot: `number % slots`."""
        self.oldest = self.next = self._next_token = 0
        """Numbers of the oldest row, and of the next one and the next token to come."""

    def __len__(self) -> int:
        return self.next - self.oldest

    @property
    def nbytes(self) -> int:
        return sum(held.nbytes for held in (*self._token.values(), *self.row.values()))

    @property
    def tokens_held(self) -> int:
        return self._next_token - int(self.row["starts_B"][self.oldest % self.slots]) if len(self) else 0

    def room_for(self, lengths: Integers) -> int:
        """How many of the oldest rows must go before rows of these lengths can be added.

        O(log n): rows begin in the order of their numbers.
        """
        starts, live = self.row["starts_B"], range(self.oldest, self.next)
        free_from = self._next_token + int(lengths.sum()) - self.tokens
        by_tokens = bisect_left(live, free_from, key=lambda number: starts[number % self.slots])
        return max(by_tokens, len(self) + len(lengths) - self.slots)

    def drop(self, count: int) -> None:
        """Forget the `count` oldest rows."""
        assert 0 <= count <= len(self)
        self.oldest += count

    def add(self, rows: Rows, priorities_B: np.ndarray) -> Integers:
        """Append rows for which there is room; their numbers."""
        assert self.room_for(rows.lengths_B) <= 0
        numbers = np.arange(self.next, self.next + len(rows))
        slots, lengths = numbers % self.slots, rows.lengths_B.astype(np.int64)
        total = int(lengths.sum())
        positions = torch.from_numpy((self._next_token + np.arange(total)) % self.tokens)
        for name, held_N in self._token.items():
            held_N[positions.to(held_N.device)] = getattr(rows, name).to(held_N.device, held_N.dtype)
        for name in ROW_FIELDS:
            self.row[name][slots] = getattr(rows, name)
        self.row["starts_B"][slots] = self._next_token + np.cumsum(lengths) - lengths
        self.row["uses_B"][slots] = 0
        self.row["priorities_B"][slots] = priorities_B
        self.next, self._next_token = self.next + len(rows), self._next_token + total
        return numbers

    def get(self, numbers: Integers) -> Rows:
        """Copies of rows, on the host."""
        assert not len(numbers) or (self.oldest <= numbers.min() and numbers.max() < self.next)
        slots = numbers % self.slots
        positions = spans(self.row["starts_B"][slots], self.row["lengths_B"][slots].astype(np.int64)) % self.tokens
        tokens: dict[str, Any] = {
            name: held_N[torch.from_numpy(positions).to(held_N.device)].cpu() for name, held_N in self._token.items()
        }
        return Rows(**tokens, **{name: self.row[name][slots] for name in ROW_FIELDS})

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Every row that is held, and the numbers; tensors alone."""
        numbers = np.arange(self.oldest, self.next)
        rows, slots = self.get(numbers), numbers % self.slots
        state = {name: getattr(rows, name) for name in TOKEN_FIELDS}
        state |= {name: torch.from_numpy(self.row[name][slots]) for name in ROW_FIELDS | KEPT_FIELDS}
        return state | {"numbers": torch.tensor([self.oldest, self.next, self._next_token])}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> int:
        """Hold what was held; where the capacity is smaller now, the newest of it. Returns how many rows had to go."""
        oldest, following, next_token = state["numbers"].tolist()
        held = {name: state[name].numpy() for name in ROW_FIELDS | KEPT_FIELDS}
        begin = max(
            int(np.searchsorted(held["starts_B"], next_token - self.tokens)), following - oldest - self.slots, 0
        )
        self.oldest, self.next, self._next_token = oldest + begin, following, next_token
        slots = np.arange(self.oldest, self.next) % self.slots
        for name, values in held.items():
            self.row[name][slots] = values[begin:]
        first = int(held["lengths_B"][:begin].sum())
        kept = spans(held["starts_B"][begin:], held["lengths_B"][begin:].astype(np.int64)) % self.tokens
        for name, held_N in self._token.items():
            held_N[torch.from_numpy(kept).to(held_N.device)] = state[name][first:].to(held_N.device)
        return begin
