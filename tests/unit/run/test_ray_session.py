"""Ray is tried a few times, and its logs are found in the run's folder. A real Ray cannot be made to fail to start."""

from pathlib import Path

import pytest
import ray

from verl_ext.run import ray_session


class FlakyRay:
    """In place of `ray.init`: fails the first `failures` times."""

    def __init__(self, failures: int, session: Path) -> None:
        self.failures, self.session = failures, session
        self.asked: list[dict] = []

    def init(self, **settings):
        self.asked.append(settings)
        if len(self.asked) <= self.failures:
            raise ConnectionError("no agent")
        return {"session_dir": str(self.session)}


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    seen: list[float] = []
    monkeypatch.setattr(ray_session.time, "sleep", seen.append)
    return seen


def start(monkeypatch, tmp_path: Path, failures: int) -> FlakyRay:
    flaky = FlakyRay(failures, tmp_path / "session")
    monkeypatch.setattr(ray, "init", flaky.init)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "logs").symlink_to("of-an-earlier-start")
    ray_session.start_ray({"num_cpus": 2}, tmp_path / "run" / "logs")
    return flaky


def test_a_start_that_fails_is_tried_again_after_a_pause(monkeypatch, tmp_path, pauses, capsys):
    flaky = start(monkeypatch, tmp_path, failures=2)
    assert [asked["num_cpus"] for asked in flaky.asked] == [2, 2, 2]
    assert len(pauses) == 2
    assert min(pauses) > 0
    assert "Ray did not start (no agent); trying again (3/3)" in capsys.readouterr().out
    assert (tmp_path / "run" / "logs").readlink() == tmp_path / "session" / "logs"


def test_a_start_that_fails_every_time_is_an_error_that_says_why(monkeypatch, tmp_path, pauses):
    with pytest.raises(RuntimeError, match="Ray did not start in 3 attempts: no agent"):
        start(monkeypatch, tmp_path, failures=3)
    assert len(pauses) == 2


def test_ray_ends_with_the_session_and_with_an_error_in_it(monkeypatch, tmp_path):
    ended = []
    monkeypatch.setattr(ray_session, "start_ray", lambda *_: None)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))
    with pytest.raises(KeyError), ray_session.ray_session({}, tmp_path):
        raise KeyError
    assert ended == [True]
