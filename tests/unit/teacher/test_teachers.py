"""One teacher or several: settings by name, rows by column, requests to the right scorer."""

from collections.abc import Sequence

import numpy as np
import pytest
from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError

from verl_ext.teacher.teachers import RoutedScorer, teacher_of_row, teachers_of
from verl_ext.teacher.types import Score, ScoreRequest, TeacherError, TeacherUnavailableError


class FixedScorer:
    """Answers with its own number, or with an error."""

    def __init__(self, number: float | None) -> None:
        self.number = number
        self.seen: list[ScoreRequest] = []
        self.primed: list[ScoreRequest] = []
        self.closed = False

    async def score(self, requests: Sequence[ScoreRequest]) -> list[Score | TeacherError]:
        self.seen += requests
        if self.number is None:
            return [TeacherUnavailableError("gone") for _ in requests]
        return [Score(np.full(len(request.response_ids), self.number, np.float32)) for request in requests]

    async def prime(self, request: ScoreRequest) -> None:
        self.primed.append(request)

    def metrics(self) -> dict[str, float]:
        return {"sequences": float(len(self.seen))}

    async def close(self) -> None:
        self.closed = True


def run_config(compose_run, *overrides: str):
    return compose_run("platform=cpu", "task=demo", *overrides)


def test_one_teacher_is_called_default(compose_run):
    teachers = teachers_of(run_config(compose_run, "teacher.max_retries=7"))
    assert list(teachers) == ["default"]
    assert teachers["default"].max_retries == 7
    assert teachers["default"].model_path == "MODEL"  # the student's own base
    assert teacher_of_row({"anything": 1}, teachers) == "default"


def test_several_teachers_state_departures_from_teacher(compose_run):
    config = run_config(compose_run, "teacher.max_retries=7", "+teachers={prose:{},math:{model_path:M,max_retries:1}}")
    teachers = teachers_of(config)
    assert [(name, t.model_path, t.max_retries) for name, t in teachers.items()] == [
        ("prose", "MODEL", 7),
        ("math", "M", 1),
    ]
    assert teacher_of_row({"teacher": "math"}, teachers) == "math"
    with pytest.raises(ValueError, match="column teacher says 'law', but teachers has prose, math"):
        teacher_of_row({"teacher": "law"}, teachers)
    with pytest.raises(ValueError, match="column teacher says None"):
        teacher_of_row({}, teachers)


def test_a_bad_departure_names_its_teacher(compose_run):
    with pytest.raises(ValueError, match=r"teachers\.math: teacher\.max_retries: -1 is below 0"):
        teachers_of(run_config(compose_run, "+teachers={math:{max_retries:-1}}"))
    with pytest.raises(ConfigKeyError, match="max_retrys"):
        teachers_of(run_config(compose_run, "+teachers={math:{max_retrys:1}}"))
    assert OmegaConf.to_container(run_config(compose_run).teachers) == {}


async def test_requests_reach_their_teacher_and_keep_their_order():
    scorers = {"a": FixedScorer(-1.0), "b": FixedScorer(-2.0), "gone": FixedScorer(None)}
    routed = RoutedScorer(scorers)
    names = ["b", "a", "gone", "b", "a"]
    outcomes = await routed.score([ScoreRequest([1], [2, 3], teacher=name) for name in names])
    found = [outcome.logprobs[0] if isinstance(outcome, Score) else None for outcome in outcomes]
    assert found == [-2.0, -1.0, None, -2.0, -1.0]
    assert routed.metrics() == {"sequences": 5.0, "a/sequences": 2.0, "b/sequences": 2.0, "gone/sequences": 1.0}
    await routed.prime(ScoreRequest([1], [], teacher="b"))
    assert [len(scorer.primed) for scorer in scorers.values()] == [0, 1, 0]
    await routed.close()
    assert all(scorer.closed for scorer in scorers.values())
