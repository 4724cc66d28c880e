"""What the page says in numbers: points that are kept, ticks, words, tokens' classes, what a curve shows."""

import math

import numpy as np
import pytest

from verl_ext.report.answers import by_row, token_kind, tokens_in
from verl_ext.report.axes import Axis, axis_of, kept_points, rounded, spread
from verl_ext.report.blocks import Chart, Series
from verl_ext.report.charts import line_chart, tick_words
from verl_ext.report.curves import mean_and_band, tells
from verl_ext.report.files import Metric, metric_of
from verl_ext.report.render import numbers_of, thinned
from verl_ext.report.text import direction, duration, number, scaled, short, with_signs


def test_the_extremes_of_a_long_line_are_kept():
    y = np.sin(np.arange(10_000) / 700)
    y[1234], y[8765] = 9.0, -9.0
    kept = kept_points(y, 100)
    assert len(kept) <= 202
    assert {0, 1234, 8765, 9999} <= set(kept)
    assert list(kept) == sorted(set(kept))
    assert list(kept_points(y[:200], 100)) == list(range(200))


def test_a_chart_says_how_its_lines_were_thinned():
    x = np.arange(10_000.0)
    long, brief = (Series("a", x[:n], x[:n]) for n in (10_000, 20))
    assert "240 stretches of up to 10,000 points" in thinned(Chart("t", "u", "step", (long,), "s"))
    assert thinned(Chart("t", "u", "step", (brief,), "s")) == ""


def test_the_points_of_a_line_are_where_its_values_are():
    chart = Chart("t", "u", "step", (Series("a", np.array([0.0, 5.0, 10.0]), np.array([0.0, 1.0, 0.5])),), "s")
    assert 'd="M0,150 500,0 1000,75"' in line_chart(chart)
    assert 'data-x="0,5,10" data-y="0,1,0.5"' in line_chart(chart)


@pytest.mark.parametrize(
    ("low", "high", "ticks"), [(0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), (-3.0, 12.0, [0.0, 5.0, 10.0])]
)
def test_ticks_are_round(low, high, ticks):
    assert Axis(low, high).ticks() == pytest.approx(ticks)


def test_ticks_of_a_logarithmic_axis_are_powers_of_ten():
    axis = axis_of([np.array([5e9, 2e12])], log=True)
    assert axis.ticks() == [1e10, 1e11, 1e12]
    assert axis.at(np.array([5e9, 2e12])) == pytest.approx([0.0, 1.0])


def test_an_axis_has_room_for_a_line_that_does_not_move():
    axis = rounded(axis_of([np.array([7.0, 7.0])]))
    assert axis.low < 7 < axis.high


def test_close_ticks_are_told_apart():
    assert tick_words([2.0, 2.005, 2.01]) == ["2", "2.005", "2.01"]
    assert tick_words([0.0, 1e-17, 1.0][::2]) == ["0", "1"]


def test_labels_at_the_end_of_lines_do_not_overlap():
    places = spread([10.0, 11.0, 12.0, 100.0], 15, 0, 150)
    assert all(b - a >= 14.9 for a, b in zip(sorted(places), sorted(places)[1:], strict=False))
    assert min(places) >= 0
    assert places[3] == 100.0


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (math.nan, "–"), (math.inf, "∞"), (1234567.0, "1,234,567"), (0.0130277, "0.01303"), (-2.5, "−2.5")],
)
def test_numbers_in_words(value, text):
    assert number(value) == text


def test_units_in_words():
    assert [duration(s) for s in (1.5, 130, 7300)] == ["1.5 s", "2 min 10 s", "2.0 h"]
    assert scaled(4.5e11, "FLOP") == "450 GFLOP"
    assert short("a" * 90) == "a" * 80 + "… (+10 characters)"


def test_what_is_invisible_is_shown_and_what_scripts_need_stays():
    assert with_signs("a\x1bb\u202ec\ud800") == "a␛b‹U+202E›c‹U+D800›"
    for needed in ("a\nb\tc", "क्\u200dष", "é", "👩\u200d🚀", "مرحبا"):
        assert with_signs(needed) == needed
    assert [direction(text) for text in ("12 שלום", "12 hello", "...")] == ["rtl", "ltr", "ltr"]


def test_a_curve_in_words_names_its_ends_and_extremes():
    metric = Metric(np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.5, 1.0]))
    assert tells(metric) == "It falls from 2 at step 1 to 1 at step 3; smallest 0.5 at 2."


def test_values_that_are_no_number_are_counted():
    metric = metric_of({1: {"a": 1.0}, 2: {"a": math.nan}, 3: {"a": math.inf}, 4: {}, 5: {"a": 3}}, "a")
    assert (list(metric.steps), list(metric.values), metric.unfit) == ([1.0, 5.0], [1.0, 3.0], 2)


def test_bands_reach_over_the_seeds_that_got_there():
    one, two = Metric(np.array([1.0, 2.0]), np.array([1.0, 2.0])), Metric(np.array([1.0]), np.array([3.0]))
    steps, mean, low, high = mean_and_band([one, two])
    assert [list(each) for each in (steps, mean, low, high)] == [[1, 2], [2, 2], [1, 2], [3, 2]]


def test_the_table_of_a_chart_has_a_row_for_each_of_its_few_steps():
    series = (Series("a", np.array([0.0, 2.0]), np.array([1.0, 2.0])), Series("b", np.array([1.0]), np.array([5.0])))
    columns, rows = numbers_of(Chart("t", "u", "step", series, "s"))
    assert columns == ("step", "a", "b")
    assert rows == [("0", "1", "–"), ("1", "1", "5"), ("2", "2", "5")]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("<|im_end|>", "special"),
        (" the", "start of a word"),
        ("ing", "inside a word"),
        (" 12", "digits"),
        (",", "punctuation"),
        ("\n", "line break"),
        ("  ", "space"),
        ("", "part of a character"),
    ],
)
def test_the_class_of_a_token(text, kind):
    assert token_kind(text) == kind


def test_a_sample_that_was_made_again_counts_once():
    rows = by_row([{"row": 1, "step": 4, "a": 1}, {"row": 1, "step": 0}, {"row": 1, "step": 4, "a": 2}])
    assert list(rows[1]) == [0, 4]
    assert rows[1][4]["a"] == 2


def test_lists_of_another_length_name_the_sample():
    sample = {"step": 3, "row": 5, "tokens": ["a", "b"], "student_logprobs": [-1.0]}
    with pytest.raises(ValueError, match=r"samples\.jsonl: step 3, row 5: 2 tokens, but 1"):
        tokens_in(sample | {"teacher_logprobs": None, "alternatives": None})
