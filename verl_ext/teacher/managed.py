"""The managed teacher: a Ray actor that owns one SGLang server. The server dies with the actor."""

import dataclasses
from pathlib import Path

import ray

from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.server import SGLangServer


@ray.remote(num_cpus=0)
class ManagedTeacher:
    """`start()` gives the URL at once, so that SGLang loads while the trainer does; `wait_ready()` waits for answers.

    The server sees the GPUs that Ray gives the actor: ask for `tp * dp` with
    `ManagedTeacher.options(num_gpus=...)`. Pass `with_absolute_paths(config)`: an actor has another working directory.
    """

    def __init__(self, config: TeacherConfig, log_path: str) -> None:
        self._server = SGLangServer(config, Path(log_path))

    def start(self) -> str:
        self._server.start()
        return self._server.url

    def wait_ready(self) -> str:
        return self._server.wait_ready()

    def stop(self) -> None:
        self._server.stop()


def with_absolute_paths(config: TeacherConfig) -> TeacherConfig:
    """`config` with the paths that are relative to this process's working directory made absolute."""
    assert config.model_path is not None  # TeacherConfig refuses mode=managed without it
    folder = Path(config.model_path).expanduser()
    return dataclasses.replace(
        config,
        python=str(Path(config.python).expanduser().absolute()),
        model_path=str(folder.absolute()) if folder.is_dir() else config.model_path,
    )
