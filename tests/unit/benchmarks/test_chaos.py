"""The fault schedule is the same for the same seed, and its bars are short where a run hung, lost or left something."""

import pytest

from benchmarks.arms.chaos_run import Outcome
from benchmarks.chaos import FAULTS, MODES, bars, schedule
from benchmarks.growth import slopes


def test_a_seed_makes_the_schedule():
    first = schedule((), tuple(MODES), 1)
    assert first == schedule((), tuple(MODES), 1)
    assert first != schedule((), tuple(MODES), 2)
    assert len(first) == len(FAULTS) * len(MODES) >= 30
    assert {mode for mode, _, _ in schedule(("driver",), ("sync",), 0)} == {"sync"}


GOOD = Outcome("sync", "driver", "ends", 0.5, 60.0, 0, [], "error: ...")


@pytest.mark.parametrize(
    ("change", "short"),
    [
        ({}, set()),
        ({"knew_s": 31.0}, {"seconds_until_known"}),
        ({"lost": 1}, {"samples_lost"}),
        ({"outcome": "hangs"}, {"hangs", "other_outcomes"}),
        ({"outcome": "goes on"}, {"other_outcomes"}),
        ({"left_over": ["raylet"]}, {"left_over"}),
    ],
)
def test_each_bar_sees_its_own(change, short):
    outcome = Outcome(**(vars(GOOD) | change))
    assert {name for name, value, target in bars([GOOD, outcome]) if value > target} == short


def test_the_slope_is_of_the_second_half():
    seen = [(step, {"driver": {"mib": float(max(step, 5))}}) for step in range(1, 11)]
    assert slopes(seen)[0]["mib a step"] == pytest.approx(1.0)
