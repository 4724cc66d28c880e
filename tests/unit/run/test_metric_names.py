"""The table of metrics, its page, and what is written by it."""

import re
from pathlib import Path

import pytest

from verl_ext.run.metric_names import LEFT_OUT, METRICS, is_known, left_out_table, metrics_table, worth_writing

PAGE = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()


def test_the_page_holds_both_tables():
    """To mend it: `python -c "from verl_ext.run import metric_names as n; print(n.metrics_table())"`, into the page."""
    assert metrics_table() in PAGE
    assert left_out_table() in PAGE


def test_every_metric_has_one_row_with_a_unit_and_a_line():
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))
    for metric in METRICS:
        assert metric.unit, metric.name
        assert metric.meaning, metric.name
        assert "|" not in metric.name + metric.unit + metric.meaning  # a cell of Markdown
    left_out = {name for name in LEFT_OUT if worth_writing({re.sub(r"<\w+>", "x", name): 1.0})}
    assert left_out == set()
    kept = {re.sub(r"<\w+>", "x", metric.name): 1.0 for metric in METRICS}
    assert worth_writing(kept) == kept


def test_what_says_nothing_is_left_out_and_what_nobody_knows_is_kept():
    unknown = {"critic/rewards/mean": 0.5, "brevity/mean": 3.0, "actor/entropy_loss_of_another_verl": 1.0}
    nothing = {
        "actor/entropy_loss": 324.0,
        "response_length/clip_ratio": 1.0,
        "training/off_policy/trajectory_spans/max": 1,
    }
    assert worth_writing(unknown | nothing | {"perf/mfu/actor": 0.0}) == unknown
    assert worth_writing({"perf/mfu/actor": 0.25}) == {"perf/mfu/actor": 0.25}


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("val-core/language_id/reward/mean@1", True),
        ("val-core/a/b/reward/mean@4", True),
        ("staleness/samples_12", True),
        ("teacher/louder/sequences", True),
        ("teacher_kl", True),
        ("teacher_kl_of_mine", False),
        ("actor/entropy_loss", False),
    ],
)
def test_families_of_metrics(name: str, known: bool):
    assert is_known(name) == known
