"""Costs, budgets and ratios, worked out by hand."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from verl_ext.comparison.accounting import (
    FREE,
    HOSTED,
    PAID,
    RENTED,
    Bought,
    Interval,
    Reached,
    Run,
    SeedRatio,
    account,
    at_budget,
    cost,
    geometric,
    interval,
    ratio,
    to_target,
)
from verl_ext.comparison.prices import Prices, TokenPrices, hosted, read_prices, rented
from verl_ext.ledger.entries import Entry, Flops, Tokens


@dataclass(frozen=True)
class Point:
    step: int
    samples: int
    updates: int
    accuracy: float


def entry(phase: str, step: int | None, seconds: float = 2.0, **changes) -> Entry:
    return Entry(phase, step, 0.0, seconds, 3 * seconds, 3, 8, **changes)


def training(phase: str, steps: int, seconds: float = 2.0) -> list[Entry]:
    """Each step: 100 tokens trained, 1e9 FLOPs forward and 2e9 back."""
    spent = {"tokens": Tokens(trained=100), "flops": Flops(train_forward=1e9, train_backward=2e9)}
    return [entry(phase, step, seconds, **spent) for step in range(1, steps + 1)]


def curve(*accuracies: float, every: int = 1) -> list[Point]:
    """8 samples and one update a step."""
    return [Point(n * every, n * every * 8, n * every, accuracy) for n, accuracy in enumerate(accuracies)]


LABELS = [
    entry("labels", None, 10.0, tokens=Tokens(sampled=40, prefilled=300, prefilled_cached=50), flops=Flops(sample=5e9))
]
SFT = Run("sft", 0, curve(0.2, 0.5, 0.7, 0.9), training("sft", 3), labels=LABELS)
ON_POLICY = Run("on_policy", 0, curve(0.2, 0.8, 0.85), [*training("train", 2, 6.0), entry("evaluate", 2, 50.0)])


def test_a_cost_is_what_was_spent_up_to_the_validation():
    last = SFT.points[-1]
    assert {unit: cost(SFT, last, unit, FREE) for unit in ("samples", "updates", "FLOPs", "tokens", "seconds")} == {
        "samples": 24, "updates": 3, "FLOPs": 9e9, "tokens": 300, "seconds": 6.0,
    }  # fmt: skip
    # 8 labels, 5e9 FLOPs, 340 tokens without those of the cache, 10 s are bought besides; updates are not.
    assert {unit: cost(SFT, last, unit, PAID) for unit in ("samples", "updates", "FLOPs", "tokens", "seconds")} == {
        "samples": 32, "updates": 3, "FLOPs": 14e9, "tokens": 640, "seconds": 16.0,
    }  # fmt: skip
    assert cost(SFT, SFT.points[1], "device-seconds", FREE) == 6.0
    assert cost(ON_POLICY, ON_POLICY.points[-1], "seconds", PAID) == 12.0  # validation is no training
    assert cost(SFT, SFT.points[0], "seconds", FREE) == 0.0
    with pytest.raises(ValueError, match="money, hosted: expected"):
        cost(SFT, last, HOSTED, FREE)


def test_what_an_entry_does_not_know_no_sum_knows():
    unknown = replace(SFT, entries=[replace(each, flops=None, devices=0) for each in SFT.entries])
    assert cost(unknown, SFT.points[-1], "FLOPs", FREE) is None
    assert cost(unknown, SFT.points[-1], "device-seconds", FREE) is None
    assert to_target(unknown, 0.5, "FLOPs", FREE) is None


def test_a_second_stage_pays_for_the_first():
    points = [Point(3, 24, 3, 0.6), Point(4, 32, 4, 0.9)]
    run = Run("both", 0, points, training("train", 1, 7.0), training("sft", 3), steps_before=3, labels=LABELS)
    assert [cost(run, point, "seconds", FREE) for point in points] == [6.0, 13.0]
    assert [cost(run, point, "seconds", PAID) for point in points] == [16.0, 23.0]


def test_a_target_is_reached_at_a_validation_or_not_at_all():
    assert to_target(SFT, 0.7, "seconds", FREE) == Reached(4.0, 2)
    assert to_target(SFT, 0.71, "seconds", FREE) == Reached(6.0, 3)  # nothing between two validations
    assert to_target(SFT, 0.95, "seconds", FREE) is None


def test_a_budget_buys_the_last_validation_within_it():
    assert at_budget(SFT, 4.5, "seconds", FREE) == Bought(0.7, 4.0, 2, ended=False)
    assert at_budget(SFT, 100.0, "seconds", FREE) == Bought(0.9, 6.0, 3, ended=True)
    assert at_budget(SFT, 9.0, "seconds", PAID) is None  # less than the labels


def test_intervals_by_hand():
    # Mean 2, deviation 1, t of 2 degrees of freedom 4.303: half 4.303 / sqrt 3.
    half = 4.303 / math.sqrt(3)
    assert interval([1.0, 2.0, 3.0]) == Interval(2.0, pytest.approx(2 - half), pytest.approx(2 + half))
    assert interval([5.0]) == Interval(5.0, None, None)
    found = geometric([0.5, 2.0])  # logs -+ log 2: mean 0, deviation log 2 x sqrt 2, half 12.706 x log 2
    assert (found.mean, found.low) == (pytest.approx(1.0), pytest.approx(math.exp(-12.706 * math.log(2))))


def test_ratios_are_paired_by_seed():
    slower = replace(SFT, seed=1, entries=training("sft", 3, 4.0))
    faster = replace(ON_POLICY, seed=1, entries=training("train", 2, 3.0))
    found = ratio([ON_POLICY, faster, replace(ON_POLICY, seed=7)], [SFT, slower], 0.8, "seconds", FREE)
    # Seed 0: 6 s of 6 s; seed 1: 3 s of 12 s; nobody to compare seed 7 with.
    assert found.seeds == [SeedRatio(0, 1.0, "exact"), SeedRatio(1, 0.25, "exact")]
    assert found.interval is not None
    assert found.interval.mean == pytest.approx(0.5)


def test_not_reached_is_a_bound_and_no_ratio():
    found = ratio([ON_POLICY], [SFT], 0.88, "seconds", FREE)
    assert (found.interval, found.seeds) == (None, [SeedRatio(0, 12.0 / 6.0, "at least")])
    assert ratio([SFT], [ON_POLICY], 0.88, "seconds", FREE).seeds == [SeedRatio(0, 0.5, "at most")]
    assert ratio([SFT], [ON_POLICY], 0.99, "seconds", FREE).seeds == [SeedRatio(0, None, "unknown")]
    free = replace(SFT, points=curve(0.99, 0.99))  # at the target before training: at no cost
    assert ratio([ON_POLICY], [free], 0.8, "seconds", FREE).seeds == [SeedRatio(0, None, "unknown")]


def test_the_whole_account():
    found = account([SFT, ON_POLICY, replace(SFT, seed=1, points=curve(0.2, 0.3))], 0.8, "sft")
    rows = {(row["arm"], row["accounting"], row["unit"]): row for row in found["rows"]}
    assert len(rows) == 2 * 2 * 6
    row = rows["sft", FREE, "seconds"]
    assert (row["seeds"], row["reached"], row["cost"], row["cost_mean"]) == (2, 1, {"0": 6.0, "1": None}, None)
    assert row["budget"] == 2.0  # the cheapest run ended after a step
    assert row["accuracy"] == {"0": 0.5, "1": 0.3}
    assert row["accuracy_mean"]["mean"] == pytest.approx(0.4)
    row = rows["on_policy", PAID, "seconds"]
    assert row["cost"] == {"0": 6.0}
    assert row["cost_mean"] == {"mean": 6.0, "low": None, "high": None}
    assert row["ratio"]["mean"] == pytest.approx(6 / 16)
    assert row["accuracy"] == {"0": 0.85}  # 12 s, the labels and one step of the cheapest, paid for two


PRICES = Prices(
    student=TokenPrices(trained=2.0, sampled=3.0, prefilled=1.0, prefilled_cached=0.1),
    teacher=TokenPrices(sampled=10.0, prefilled=4.0, prefilled_cached=1.0, scored=5.0),
    device_hour=36.0,
)


def test_money_by_hand():
    step = entry("train", 1, tokens=Tokens(sampled=10, prefilled=20, prefilled_cached=30, scored=40, trained=50))
    assert hosted([step], PRICES) == pytest.approx((30 + 20 + 3 + 200 + 100) / 1e6)
    assert hosted(LABELS, PRICES) == pytest.approx((400 + 1200 + 50) / 1e6)
    assert rented([step], PRICES) == pytest.approx(6 / 3600 * 36)
    assert hosted([step], replace(PRICES, teacher=TokenPrices())) is None
    assert rented([step], Prices()) is None
    assert rented([replace(step, devices=0)], PRICES) is None
    assert cost(SFT, SFT.points[-1], RENTED, PAID, PRICES) == pytest.approx((18 + 30) / 100)
    assert cost(SFT, SFT.points[-1], HOSTED, FREE, PRICES) == pytest.approx(300 * 2 / 1e6)


def test_a_price_table_is_a_yaml_file(tmp_path: Path):
    file = tmp_path / "prices.yaml"
    file.write_text("currency: EUR\nstudent: {trained: 2}\ndevice_hour: 1.5\n")
    assert read_prices(file) == Prices("EUR", student=TokenPrices(trained=2.0), device_hour=1.5)
    for text, says in [
        ("student: {eaten: 2}", "eaten"),
        ("device_hour: -1", "device_hour=-1.0 must be a number >= 0"),
        ("device_hour: much", "device_hour"),
    ]:
        file.write_text(text)
        with pytest.raises(ValueError, match=r"prices=.*prices\.yaml: [^\n]*$") as refused:
            read_prices(file)
        assert says in str(refused.value)
