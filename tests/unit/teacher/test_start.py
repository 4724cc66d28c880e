"""What the driver does with the run's teachers: starts those that are managed, and tells the workers where all are."""

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf
from ray.exceptions import GetTimeoutError

from verl_ext.teacher.server import start
from verl_ext.teacher.teachers import teachers_of


class Actors:
    """In place of Ray's: remembers what was asked for; the n-th server is reached at port n."""

    def __init__(self) -> None:
        self.started: list[tuple[float, Any, str]] = []
        self.nodes: list[dict[str, float] | None] = []
        """The resource that names a node, of each."""

    def options(self, num_gpus: float, resources: dict[str, float] | None) -> SimpleNamespace:
        self.nodes.append(resources)

        def remote(settings: Any, log: str) -> SimpleNamespace:
            self.started.append((num_gpus, settings, Path(log).name))
            number = len(self.started)
            start, ready = (SimpleNamespace(remote=partial(str, f"{name} {number}")) for name in ("url", "ready"))
            return SimpleNamespace(start=start, wait_ready=ready)

        return SimpleNamespace(remote=remote)


@pytest.fixture
def actors(monkeypatch: pytest.MonkeyPatch) -> Actors:
    actors = Actors()
    monkeypatch.setattr(start, "as_actor", lambda _: actors)
    monkeypatch.setattr(start.ray, "get", lambda url, **_: f"http://127.0.0.1:{url.removeprefix('url ')}")
    monkeypatch.setattr(start.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 8.0}}])
    return actors


def test_the_users_configuration_stays_and_the_workers_get_servers_that_run(actors, compose_run, tmp_path) -> None:
    config = compose_run("platform=cpu", f"run_dir={tmp_path}")
    before = OmegaConf.to_yaml(config)
    ready, for_workers = start.start_teachers(config)
    assert OmegaConf.to_yaml(config) == before
    assert [(reference, name) for reference, (name, _) in ready.items()] == [("ready 1", "default")]
    (teacher,) = teachers_of(for_workers).values()
    assert (teacher.mode, teacher.urls) == ("external", ["http://127.0.0.1:1"])
    (reached,) = json.loads((tmp_path / "teachers.json").read_text()).values()
    assert (reached["mode"], reached["urls"], reached["model_path"]) == ("external", teacher.urls, "MODEL")
    ((gpus, settings, log),) = actors.started
    assert (gpus, settings.mode, log) == (0, "managed", "teacher.log")


def test_several_teachers_each_get_their_own_server_and_log_but_for_those_that_run(
    actors, compose_run, tmp_path
) -> None:
    more = "+teachers={prose:{},math:{tp:2,dp:2},far:{mode:external,urls:['http://far:1']}}"
    _, for_workers = start.start_teachers(compose_run("platform=cuda", f"run_dir={tmp_path}", more))
    assert [(gpus, log) for gpus, _, log in actors.started] == [(1, "teacher-prose.log"), (4, "teacher-math.log")]
    urls = {name: teacher.urls for name, teacher in teachers_of(for_workers).items()}
    assert urls == {"prose": ["http://127.0.0.1:1"], "math": ["http://127.0.0.1:2"], "far": ["http://far:1"]}


def test_a_teacher_on_the_trainers_device_asks_ray_for_none_of_its_own(actors, compose_run, tmp_path) -> None:
    start.start_teachers(compose_run("platform=cuda", "teacher.share_device=true", f"run_dir={tmp_path}"))
    assert actors.started[0][0] == 0


def test_no_server_is_started_where_the_store_answers(
    actors, compose_run, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "identify", lambda _: {"store_path": str(tmp_path), "fingerprint": "f"})
    replay = ("teacher.store_mode=replay", f"teacher.store_path={tmp_path}", f"run_dir={tmp_path}")
    ready, for_workers = start.start_teachers(compose_run("platform=cpu", *replay))
    assert (ready, actors.started, for_workers.teacher.fingerprint) == ({}, [], "f")


@pytest.mark.parametrize(
    ("nodes", "words", "message"),
    [
        ([1], ["platform=cuda"], r"= 1 and teachers with 1 GPUs .*: Ray has 1; ask for fewer"),
        ([0], ["platform=cpu", "teacher.device=cuda"], r"Ray has 0"),
        (
            [2, 2],
            ["platform=cuda", "teacher.tp=3"],
            r"teacher default takes .* = 3 GPUs of one node, .* node has 2",
        ),
    ],
)
def test_gpus_that_no_node_has_are_not_waited_for(
    actors, compose_run, tmp_path, monkeypatch: pytest.MonkeyPatch, nodes, words, message
) -> None:
    there = [{"Alive": True, "Resources": {"GPU": float(gpus)} if gpus else {}} for gpus in nodes]
    monkeypatch.setattr(start.ray, "nodes", lambda: there)
    with pytest.raises(RuntimeError, match=message):
        start.start_teachers(compose_run(*words, f"run_dir={tmp_path}"))
    assert actors.started == []


@pytest.mark.usefixtures("actors")
def test_gpus_that_others_keep_are_waited_for_no_longer_than_a_start_may_take(
    compose_run, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def get(_: Any, timeout: float) -> str:
        raise GetTimeoutError(f"{timeout}")

    monkeypatch.setattr(start.ray, "get", get)
    with pytest.raises(RuntimeError, match=r"did not begin within teacher.startup_timeout_s=\d+ .*1 GPUs free"):
        start.start_teachers(compose_run("platform=cuda", f"run_dir={tmp_path}"))
