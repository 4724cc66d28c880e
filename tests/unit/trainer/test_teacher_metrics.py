"""What the trainer tells of the teacher, against values worked out by hand."""

import pytest

from verl_ext.trainer.advantages import teacher_metrics


def sample(start: float, end: float, *, error: str = "", from_store: bool = False, **counts: float) -> dict:
    return {
        "teacher_start": start,
        "teacher_end": end,
        "teacher_tokens": 10,
        "teacher_error": error,
        "teacher_from_store": from_store,
        "teacher_metrics": counts,
    }


def test_counts_add_up_and_levels_do_not():
    found = teacher_metrics(
        [
            sample(0, 2, sequences=2, tokens=40, cached_tokens=10, queue_seconds=1.0, open_breakers=1, retries=1),
            sample(1, 3, error="gone"),
            sample(7, 8, from_store=True, sequences=2, tokens=40, cached_tokens=30, queue_seconds=1.0, store_bytes=5),
        ]
    )
    assert found["teacher/seconds"] == pytest.approx(4)  # 0 to 3, and 7 to 8
    assert found["teacher/tokens_per_second"] == pytest.approx(30 / 4)
    assert (found["teacher/scored"], found["teacher/unscored"], found["teacher/from_store"]) == (2, 1, 1)
    assert found["teacher/cached_share"] == pytest.approx(40 / 80)
    assert found["teacher/queue_seconds"] == pytest.approx(0.5)
    assert (found["teacher/retries"], found["teacher/open_breakers"], found["teacher/store_bytes"]) == (1, 1, 5)


def test_a_step_out_of_the_store_divides_by_nothing():
    found = teacher_metrics([sample(0, 0, from_store=True)])
    assert found["teacher/tokens_per_second"] == 0
    assert "teacher/cached_share" not in found
