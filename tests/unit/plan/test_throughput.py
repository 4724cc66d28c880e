"""What bounds a step, what overlap and replicas give: numbers worked out by hand."""

import dataclasses

import pytest

from verl_ext.plan.throughput import (
    STUDENT,
    TEACHER,
    TRAINER,
    Engines,
    StepTimes,
    balanced,
    bound_now,
    now,
    one_step_off,
    stages_of,
    stream,
)
from verl_ext.plan.throughput_report import advice, bound_in_words, draw

# 6 s of answers (the student 5 of them, the teacher 3), 2 s of training, 0.5 between the stages, 0.5 of sync.
STEP = StepTimes(
    step=2, whole=9.0, waiting=6.0, training=2.0, sync=0.5, student=5.0, teacher=3.0, answering=6.0, in_flight=1.5
)
ENGINES = Engines(mode="sync", ahead=0, samples=90, students=1, teachers=1, slots=4)


def stages(**changes: float):
    return stages_of([dataclasses.replace(STEP, **changes)])


def test_medians_and_what_a_checkpoint_adds():
    steps = [
        dataclasses.replace(STEP, whole=whole, saving=saving) for whole, saving in ((9, 0), (9, 4), (30, 0), (10, 2))
    ]
    found = stages_of(steps)
    assert (found.whole, found.rest, found.trainer) == (9.5, 1.0, 3.0)
    assert (found.saving, found.saves, found.extra) == (3.0, 2, 1.5)
    assert (found.testing, found.tests) == (0.0, 0)


def test_a_step_in_turn_and_overlapped():
    found = now(stages(), ENGINES)
    assert (found.seconds, found.bound) == (9.0, STUDENT)
    assert found.busy == pytest.approx({STUDENT: 5 / 9, TEACHER: 3 / 9, TRAINER: 2.5 / 9})
    off = one_step_off(stages(), ENGINES)
    assert (off.seconds, off.bound) == (6.5, STUDENT)  # max(6, 2.5) + 0.5
    streamed = stream(stages(), ENGINES, 1, 1)
    assert (streamed.seconds, streamed.bound) == (5.5, STUDENT)  # max(5, 3, 2.5) + 0.5
    assert streamed.busy == pytest.approx({STUDENT: 5 / 5.5, TEACHER: 3 / 5.5, TRAINER: 2.5 / 5.5})
    training = one_step_off(stages(training=20.0, whole=27.0), ENGINES)
    assert (training.seconds, training.bound) == (21.0, TRAINER)


@pytest.mark.parametrize(
    ("changes", "ahead", "bound"),
    [
        ({}, 0, STUDENT),
        ({"training": 7.0, "whole": 14.0}, 0, TRAINER),
        ({"teacher": 5.0, "in_flight": 3.5}, 0, TEACHER),
        ({"teacher": 5.0, "in_flight": 3.0}, 0, STUDENT),  # the teacher has room
        ({"teacher": 4.0, "in_flight": 4.0}, 0, STUDENT),  # samples are there two thirds of the time
        ({"teacher": 5.1, "in_flight": 1.0}, 0, TEACHER),  # they are there for longer than at the student
        ({"waiting": 0.2, "whole": 3.2}, 1, TRAINER),
        ({"waiting": 3.0, "whole": 6.0}, 1, STUDENT),
        ({"waiting": 3.0, "whole": 6.0, "teacher": 6.0, "in_flight": 4.0}, 1, TEACHER),
    ],
)
def test_what_bounds_a_step(changes, ahead, bound):
    engines = dataclasses.replace(ENGINES, ahead=ahead)
    found = stages(**changes)
    assert bound_now(found, engines) == bound
    assert f"bound by {'' if bound == TRAINER else 'the '}{bound}" in bound_in_words(found, engines)


def test_replicas_that_balance_the_pipeline():
    found = balanced(stages(student=18.0, teacher=9.0, answering=20.0), ENGINES)
    # Training takes 2.5: 8 students take 18 / 8 = 2.25, and 9 / 2.5 = 3.6 teachers keep up.
    assert [(each.students, each.teachers) for each in found] == [(1, 1), (2, 1), (4, 2), (8, 4)]
    assert [each.seconds for each in found] == [18.5, 9.5, 5.0, 3.0]
    assert [each.bound for each in found] == [STUDENT, STUDENT, STUDENT, TRAINER]
    assert found[-1].busy[TRAINER] == pytest.approx(2.5 / 3)
    eight = dataclasses.replace(ENGINES, students=8, teachers=2)
    spare = balanced(stages(student=1.0, teacher=0.5, answering=1.0), eight)
    assert [(each.students, each.teachers) for each in spare] == [(1, 1), (2, 1), (4, 1)]  # 8 x 1 / 4 is below 2.5


def test_replicas_end_where_nothing_is_trained():
    found = balanced(stages(training=0.0, whole=6.5), ENGINES)
    assert found[-1].students == 64


def test_the_next_command():
    first, shared = advice(stages(), ENGINES, "outputs/mine", [STUDENT], True)
    assert first == (
        "next: python -m recipe.on_policy_distillation outputs/mine/config.yaml "
        "pipeline.mode=one_step_off run_dir=outputs/mine-one_step_off"
    )
    assert shared.startswith("the student works on")
    ahead = dataclasses.replace(ENGINES, mode="stream", ahead=2)
    full = stages(waiting=3.0, teacher=5.5, student=3.0, in_flight=4.0, whole=6.0)
    # Two teachers take 2.75, the student 3, and 0.5 for the sync: 6 / 3.5.
    assert "teacher.dp=2: 1.71 times" in advice(full, ahead, "run", [STUDENT], True)[0]
    assert "teacher.urls: 1.71 times" in advice(full, ahead, "run", [STUDENT], False)[0]
    assert "more devices for the teacher" in advice(full, ahead, "run", [STUDENT, TEACHER], True)[0]
    trained = stages(training=7.0, whole=7.5, waiting=0.0)
    assert "nothing more" in advice(trained, ahead, "run", [STUDENT], True)[0]


def test_a_picture(tmp_path):
    draw(stages(), ENGINES, tmp_path / "plan.svg")
    assert "one_step_off: 6.5 s" in (tmp_path / "plan.svg").read_text()
