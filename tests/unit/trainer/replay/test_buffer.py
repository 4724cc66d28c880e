"""The replay buffer: what is held, what is drawn and how often, and what comes back from a checkpoint."""

import io
from collections import deque

import numpy as np
import pytest
import torch

from verl_ext.trainer.replay.buffer import PRIORITY_FLOOR, PriorityBuffer, bytes_of
from verl_ext.trainer.replay.config import ReplayConfig, bytes_a_token
from verl_ext.trainer.replay.storage import TOKEN_FIELDS, TOKENS_A_SLOT, Rows
from verl_ext.trainer.replay.sum_tree import SumTree

UNBOUNDED = {"max_uses": 2**31 - 1, "max_age": 2**31 - 1}
PRIORITIES = np.array([0.0, 0.05, 0.3, 0.3, 1.0, 2.5, 7.0])


def make_rows(lengths, *, first: int = 0, version: int = 0, top_k: int = 0) -> Rows:
    """Rows whose every value can be told from any other's; token ids are `first`, `first + 1`, ..."""
    lengths = np.asarray(lengths)
    tokens = int(lengths.sum())
    ids_N = torch.arange(first, first + tokens, dtype=torch.int32)
    return Rows(
        token_ids_N=ids_N,
        rollout_logprobs_N=-0.25 * ids_N.float(),
        teacher_logprobs_N=-0.5 * ids_N.float(),
        mask_N=ids_N % 3 > 0,
        top_ids_NK=7 * ids_N[:, None] + torch.arange(top_k).int(),
        top_logprobs_NK=-0.125 * ids_N.float()[:, None] - torch.arange(top_k),
        lengths_B=lengths,
        prompt_lengths_B=lengths // 2,
        rewards_B=lengths * 0.5,
        truncated_B=lengths % 2 == 0,
        first_versions_B=np.full(len(lengths), version),
        last_versions_B=np.full(len(lengths), version + 1),
    )


def make_buffer(capacity_tokens: int = 4096, *, top_k: int = 0, **settings) -> PriorityBuffer:
    return PriorityBuffer(ReplayConfig(share=0.5, capacity_tokens=capacity_tokens, **settings), seed=0, top_k=top_k)


def filled(priorities=PRIORITIES, **settings) -> PriorityBuffer:
    buffer = make_buffer(**(UNBOUNDED | settings))
    buffer.add(make_rows([16] * len(priorities)), np.array(priorities))
    return buffer


def stated(kind: str, exponent: float, priorities=PRIORITIES) -> np.ndarray:
    """P of each row as ReplayConfig states it; of equal priorities the newer row ranks first."""
    count = len(priorities)
    by_priority = sorted(range(count), key=lambda i: (-priorities[i], -i))
    ranks = {"rank": np.argsort(by_priority) + 1, "recency": count - np.arange(count)}
    values = {
        "proportional": (priorities + PRIORITY_FLOOR) ** exponent,
        "uniform": np.ones(count),
        **{name: (1.0 / rank) ** exponent for name, rank in ranks.items()},
    }[kind]
    return values / values.sum()


def chi_square_p_value(counts: np.ndarray, expected: np.ndarray) -> float:
    statistic = ((counts - expected) ** 2 / expected).sum()
    halves = torch.tensor([(len(counts) - 1) / 2, statistic / 2])
    return torch.special.gammaincc(halves[0], halves[1]).item()


def lengths_of(buffer: PriorityBuffer) -> list[int]:
    return buffer.storage.get(np.arange(buffer.storage.oldest, buffer.storage.next)).lengths_B.tolist()


@pytest.mark.parametrize("kind", ["proportional", "rank", "uniform", "recency"])
@pytest.mark.parametrize("exponent", [0.6, 1.3])
def test_rows_are_drawn_as_often_as_their_priority_says_and_weighed_by_its_inverse(kind, exponent):
    buffer = filled(priority=kind, exponent=exponent, beta_start=1.0)
    wanted = stated(kind, exponent)
    value_B = np.array([1.0, -2.0, 4.0, 0.5, 3.0, -1.0, 2.0])
    draws = [buffer.draw(20, step=step, version=0) for step in range(200)]
    drawn, weights = (np.concatenate([getattr(draw, name) for draw in draws]) for name in ("numbers_B", "weights_B"))
    counts = np.bincount(drawn, minlength=len(wanted))
    assert chi_square_p_value(counts, len(drawn) * wanted) > 1e-3
    np.testing.assert_allclose(weights, 1 / (len(wanted) * wanted[drawn]))
    # Known: the mean over all rows, whatever the priority.
    estimates = weights * value_B[drawn]
    assert abs(estimates.mean() - value_B.mean()) < 4 * estimates.std() / len(drawn) ** 0.5


def test_a_draw_of_several_rows_has_each_about_as_often_as_its_share_and_strata_make_that_tight():
    buffer = filled(exponent=1.0)
    draw = buffer.draw(1000, step=0, version=0)
    counts = np.bincount(draw.numbers_B, minlength=len(PRIORITIES))
    assert np.abs(counts - 1000 * stated("proportional", 1.0)).max() <= 2


@pytest.mark.parametrize(("step", "beta"), [(0, 0.4), (5, 0.7), (10, 1.0), (99, 1.0)])
def test_beta_goes_to_one(step, beta):
    buffer = filled(beta_start=0.4, beta_steps=10, exponent=1.0)
    draw = buffer.draw(50, step=step, version=0)
    shares = stated("proportional", 1.0)[draw.numbers_B]
    np.testing.assert_allclose(draw.weights_B, (1 / (len(PRIORITIES) * shares)) ** beta)


def test_the_step_and_the_seed_decide_a_draw_which_changes_nothing():
    buffer, again = filled(), filled()
    first = buffer.draw(6, step=3, version=0).numbers_B.tolist()
    assert buffer.draw(6, step=3, version=0).numbers_B.tolist() == first
    assert again.draw(6, step=3, version=0).numbers_B.tolist() == first
    draws = {tuple(buffer.draw(6, step=step, version=0).numbers_B.tolist()) for step in range(8)}
    assert len(draws) > 4
    other = PriorityBuffer(buffer.config, seed=1)
    other.load_state_dict(buffer.state_dict())
    assert [other.draw(6, step=step, version=0).numbers_B.tolist() for step in range(8)] != [
        buffer.draw(6, step=step, version=0).numbers_B.tolist() for step in range(8)
    ]


def test_what_is_held_is_always_the_newest_that_fits_token_for_token():
    """Against a plain queue, over many wraps of the ring."""
    buffer, plain = make_buffer(capacity_tokens=160, top_k=2), deque()
    draw, first, evicted = np.random.default_rng(0), 0, 0
    for version in range(300):
        rows = make_rows(draw.integers(2, 40, size=draw.integers(1, 12)), first=first, version=version, top_k=2)
        first += int(rows.lengths_B.sum())
        buffer.add(rows, np.ones(len(rows)))
        for i in range(len(rows)):
            plain.append(rows.select([i]))
            while sum(int(row.lengths_B[0]) for row in plain) > 160 or len(plain) > 160 // TOKENS_A_SLOT:
                plain.popleft()
                evicted += 1
        held = buffer.storage.get(np.arange(buffer.storage.oldest, buffer.storage.next))
        for name in TOKEN_FIELDS:
            assert torch.equal(getattr(held, name), torch.cat([getattr(row, name) for row in plain])), (version, name)
        for name in ("lengths_B", "prompt_lengths_B", "rewards_B", "truncated_B", "first_versions_B"):
            assert getattr(held, name).tolist() == [getattr(row, name)[0] for row in plain]
        assert buffer.storage.tokens_held == sum(int(row.lengths_B[0]) for row in plain)
    assert buffer.metrics()["replay/evicted"] == evicted > 1000
    assert buffer.metrics()["replay/evicted"] == 0  # counted once


def test_a_row_larger_than_everything_is_refused_and_counted_and_the_others_are_kept():
    buffer = make_buffer(capacity_tokens=100)
    buffer.add(make_rows([30, 101, 40]), np.ones(3))
    assert lengths_of(buffer) == [30, 40]
    metrics = buffer.metrics()
    assert (metrics["replay/refused_size"], metrics["replay/evicted"], metrics["replay/tokens"]) == (1, 0, 70)


def test_the_tighter_bound_holds_in_bytes_too():
    buffer = make_buffer(capacity_tokens=10**9, capacity_bytes=10_000)
    tokens = buffer.storage.tokens
    assert buffer.metrics()["replay/bytes"] == bytes_of(tokens) <= 10_000 < bytes_of(tokens + TOKENS_A_SLOT)
    wide = make_buffer(capacity_tokens=10**9, capacity_bytes=10_000, top_k=4)
    assert wide.metrics()["replay/bytes"] == bytes_of(wide.storage.tokens, 4) <= 10_000
    assert wide.storage.tokens < 0.6 * tokens
    for top_k in (0, 4):
        assert bytes_a_token(top_k) * 16 == bytes_of(1600, top_k) - bytes_of(1584, top_k) - 41
    with pytest.raises(ValueError, match=r"replay.capacity_bytes=5 does not hold one token"):
        make_buffer(capacity_bytes=5)


def test_a_million_rows_go_in_and_out_in_the_memory_of_the_beginning():
    buffer = make_buffer(capacity_tokens=2**17, max_age=2**31 - 1, max_uses=1)
    arrays = [*buffer.storage.row.values(), buffer._tree._nodes]
    places = [held.ctypes.data for held in arrays] + [held.data_ptr() for held in buffer.storage._token.values()]
    rows, priorities = make_rows([2] * 5000), np.random.default_rng(0).random(5000)
    drawn = 0
    for step in range(200):
        buffer.add(rows, priorities)
        draw = buffer.draw(5000, step=step, version=0)
        drawn += 5000
        buffer.update(draw.numbers_B, np.ones(len(draw.numbers_B)), np.ones(len(draw.numbers_B)))
    assert drawn == buffer.storage.next == 10**6
    assert buffer.drawable < len(buffer) == 8192
    arrays = [*buffer.storage.row.values(), buffer._tree._nodes]
    assert [held.ctypes.data for held in arrays] + [
        held.data_ptr() for held in buffer.storage._token.values()
    ] == places
    assert buffer.metrics()["replay/bytes"] == bytes_of(2**17)


def test_setting_a_slot_touches_the_path_above_it_alone():
    tree, path = SumTree(2**17), 17 + 1
    tree.set(np.arange(2**17), 1.0)
    for slot in (0, 77_777, 2**17 - 1):
        before = tree._nodes.copy()
        tree.set(np.array([slot]), 3.0)
        assert (tree._nodes != before).sum() == path
    assert tree.total == 2**17 + 6


def test_nothing_of_value_zero_is_drawn_and_an_empty_tree_says_so():
    tree = SumTree(100)
    values = np.random.default_rng(0).random(30) * 1e-9
    tree.set(np.arange(3, 93, 3), values)
    assert set(tree.draw(100_000, np.random.default_rng(1)) % 3) == {0}

    class Almost:
        """Draws that, beside another stratum, round up to the whole total."""

        def random(self, count: int) -> np.ndarray:
            return np.full(count, np.nextafter(1.0, 0.0))

    small = SumTree(4)
    small.set(np.array([0, 1]), np.array([0.5, 0.5]))
    assert small.draw(2, Almost())[1] == 1  # pyright: ignore[reportArgumentType]
    tree.set(np.arange(100), 0.0)
    with pytest.raises(ValueError, match="nothing to draw"):
        tree.draw(1, np.random.default_rng(0))
    assert len(make_buffer().draw(5, step=0, version=0).numbers_B) == 0


def test_a_used_up_row_is_not_drawn_any_more_and_nobody_is_used_too_often_within_one_draw():
    buffer = filled([1.0, 1.0, 1.0], max_uses=2)
    draw = buffer.draw(9, step=0, version=0)
    assert np.bincount(draw.numbers_B).tolist() == [2, 2, 2]
    assert buffer.metrics()["replay/refused_uses"] == 3
    buffer.update(draw.numbers_B[:2], np.ones(2), np.array([True, True]))  # row 0, twice
    assert buffer.metrics()["replay/drawable"] == 2
    draw = buffer.draw(4, step=1, version=0)
    assert sorted(set(draw.numbers_B.tolist())) == [1, 2]
    np.testing.assert_allclose(draw.weights_B, 1.0)  # N counts those that may be drawn
    buffer.update(np.array([1]), np.array([5.0]), np.array([False]))  # looked at, not trained on
    assert buffer.metrics()["replay/drawable"] == 2


@pytest.mark.parametrize("kind", ["proportional", "rank", "recency", "uniform"])
def test_used_up_rows_are_drawn_under_no_priority(kind):
    buffer = filled(max_uses=1, priority=kind)
    buffer.update(np.array([0, 6]), np.array([9.0, 9.0]), np.array([True, True]))
    drawn = {number for step in range(50) for number in buffer.draw(5, step=step, version=0).numbers_B.tolist()}
    assert drawn == {1, 2, 3, 4, 5}


def test_a_row_that_is_too_old_is_forgotten_or_refused_and_counted():
    buffer = make_buffer(max_age=2, max_uses=100)
    for version in (0, 1, 3, 0):  # the last one was written early and ended late
        buffer.add(make_rows([16], version=version), np.ones(1))
    buffer.expire(3)
    assert buffer.storage.oldest == 1
    draw = buffer.draw(300, step=0, version=3)
    assert sorted(set(draw.numbers_B.tolist())) == [1, 2]
    metrics = buffer.metrics()
    assert metrics["replay/expired"] == 1
    assert metrics["replay/refused_age"] == 300 - len(draw.numbers_B) > 0
    buffer.expire(100)
    assert len(buffer) == 0


def test_a_new_priority_is_what_the_next_draw_goes_by():
    buffer = filled([1.0, 1.0], exponent=1.0)
    buffer.update(np.array([0]), np.array([3.0]), np.array([False]))
    counts = np.bincount(buffer.draw(4000, step=0, version=0).numbers_B)
    assert counts[0] / counts[1] == pytest.approx(3.0, rel=0.01)
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="priorities must be finite"):
            buffer.update(np.array([0]), np.array([bad]), np.array([False]))
        with pytest.raises(ValueError, match="priorities must be finite"):
            buffer.add(make_rows([4]), np.array([bad]))


def saved(buffer: PriorityBuffer) -> dict[str, torch.Tensor]:
    """Through a file, read as tensors alone."""
    file = io.BytesIO()
    torch.save(buffer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def go_on(buffer: PriorityBuffer) -> list:
    """Some more steps, and everything that can be seen of them."""
    seen = []
    for step in range(5, 12):
        buffer.expire(step)
        draw = buffer.draw(9, step=step, version=step)
        numbers = draw.numbers_B
        buffer.update(numbers, 0.1 * numbers, numbers % 2 == 0)
        buffer.add(make_rows([9, 21, 5], first=1000 * step, version=step), np.array([0.2, 0.1, 4.0]))
        seen.append((numbers.tolist(), draw.weights_B.tolist(), draw.rows.token_ids_N.tolist(), buffer.metrics()))
    return seen


@pytest.mark.parametrize("kind", ["proportional", "rank", "recency", "uniform"])
def test_a_restored_buffer_goes_on_as_the_one_that_was_saved(kind):
    settings = {"capacity_tokens": 200, "priority": kind, "max_age": 6, "max_uses": 2}
    buffer = make_buffer(**settings)
    for step in range(5):
        buffer.add(make_rows([30, 7, 16], first=100 * step, version=step), np.array([0.5, 1.0, 2.0]))
        draw = buffer.draw(4, step=step, version=step)
        buffer.update(draw.numbers_B, draw.weights_B, np.ones(len(draw.numbers_B)))
    buffer.metrics()
    restored = make_buffer(**settings)
    restored.load_state_dict(saved(buffer))
    assert go_on(restored) == go_on(buffer)


def test_a_smaller_buffer_takes_the_newest_of_what_was_saved():
    buffer = make_buffer(capacity_tokens=300)
    buffer.add(make_rows([30, 40, 50, 60]), np.array([1.0, 2.0, 3.0, 4.0]))
    smaller = make_buffer(capacity_tokens=120)
    smaller.load_state_dict(saved(buffer))
    assert lengths_of(smaller) == [50, 60]
    assert smaller.metrics()["replay/evicted"] == 2
    assert smaller.storage.get(np.array([2, 3])).token_ids_N.tolist() == list(range(70, 180))
    larger = make_buffer(capacity_tokens=1000)
    larger.load_state_dict(saved(buffer))
    assert larger.storage.get(np.arange(4)).token_ids_N.tolist() == list(range(180))


def test_rows_whose_lengths_do_not_fit_their_tokens_are_an_error():
    rows = make_rows([3, 4])
    with pytest.raises(ValueError, match="the lengths of 2 rows add up to 9 tokens"):
        Rows(**(vars(rows) | {"lengths_B": np.array([3, 6])}))
