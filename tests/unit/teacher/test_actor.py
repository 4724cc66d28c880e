"""The managed teacher as the driver calls it: its actor's class over a real process under the real guard."""

import asyncio
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from teacher_process import python_for, segment_of

from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.server.actor import ManagedTeacher, with_absolute_paths

Teacher: Any = ManagedTeacher.__ray_metadata__.modified_class  # pyright: ignore[reportFunctionMemberAccess]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    made = []

    def build(**changes: Any) -> Any:
        settings = {"model_path": str(tmp_path), "python": python_for(tmp_path), "startup_timeout_s": 30} | changes
        made.append(Teacher(TeacherConfig(**settings), str(tmp_path / "teacher.log")))
        return made[-1]

    yield build
    for teacher in made:
        teacher.stop()


def get(url: str) -> str:
    return urllib.request.urlopen(url, timeout=10).read().decode()


def test_a_teacher_says_its_address_at_once_answers_later_and_is_gone_when_stopped(make, tmp_path):
    teacher = make()
    assert teacher.status().state == "starting"
    url = teacher.start()
    assert url.startswith("http://127.0.0.1:")
    assert asyncio.run(teacher.wait_ready()) == url
    assert teacher.status().state == "up"
    assert teacher.status().uptime_s > 0
    assert "sglang:x 3.0" in get(f"{url}/metrics")
    words = (tmp_path / "teacher.log").read_text().split()
    assert words[words.index("--model-path") + 1] == str(tmp_path)
    shared = segment_of(url.rpartition(":")[2])
    assert shared.exists()
    teacher.stop()
    assert not shared.exists()
    assert teacher.status().state == "down"
    with pytest.raises(OSError, match="refused"):
        get(f"{url}/metrics")
    teacher.stop()  # twice is no fault


def test_status_and_stop_answer_while_the_server_loads(make, tmp_path):
    """This one never answers; `wait_ready` waits in a thread of its own."""
    (tmp_path / "silent").write_text("#!/bin/sh\nsleep 60\n")
    (tmp_path / "silent").chmod(0o755)
    teacher = make(python=str(tmp_path / "silent"))
    teacher.start()

    async def stop_meanwhile() -> str:
        waiting = asyncio.create_task(teacher.wait_ready())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        assert teacher.status().state == "starting"
        await asyncio.to_thread(teacher.stop)
        with pytest.raises(RuntimeError):
            await waiting
        return teacher.status().state

    assert asyncio.run(stop_meanwhile()) == "down"


def test_a_server_for_other_nodes_is_named_by_this_nodes_address(make, monkeypatch):
    monkeypatch.setenv("TEACHER_API_KEY", "a-secret-of-this-test")
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.2")
    teacher = make(host="0.0.0.0")
    url = teacher.start()
    assert url.startswith("http://127.0.0.2:")
    assert asyncio.run(teacher.wait_ready()) == url
    assert "sglang:x 3.0" in get(f"{url}/metrics")


def test_metrics_are_shown_where_they_were_asked_for(make, unused_tcp_port):
    teacher, url = make(metrics_port=unused_tcp_port), f"http://127.0.0.1:{unused_tcp_port}/metrics"
    teacher.start()
    asyncio.run(teacher.wait_ready())
    assert {"teacher_up 1.0", "sglang:x 3.0"} < set(get(url).splitlines())
    teacher.stop()
    with pytest.raises(OSError, match="refused"):
        get(url)


def test_paths_are_made_absolute_before_another_process_reads_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    settings = with_absolute_paths(TeacherConfig(model_path="model", python="bin/python"))
    assert settings.model_path == f"{tmp_path}/model"
    assert settings.python == f"{tmp_path}/bin/python"
    assert with_absolute_paths(TeacherConfig(model_path="org/model")).model_path == "org/model"
