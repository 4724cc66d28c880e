"""The managed teacher: a Ray actor that owns one server. The server dies with the actor."""

import asyncio
import dataclasses
from pathlib import Path

import ray

from verl_ext.teacher.config import TeacherConfig
from verl_ext.teacher.server.process import ManagedServer
from verl_ext.teacher.server.prometheus import MetricsServer
from verl_ext.teacher.server.supervisor import Supervisor, TeacherStatus


@ray.remote(num_cpus=0)
class ManagedTeacher:
    """`start()` gives the URL at once, so that server and trainer load together; `wait_ready()` waits for answers.

    From then on a server that dies or hangs is started again on its port (`verl_ext/teacher/server/supervisor.py`).
    The server sees the GPUs that Ray gives the actor: ask for `tp * dp` with
    `ManagedTeacher.options(num_gpus=...)`. Pass `with_absolute_paths(config)`: an actor has another working directory.
    """

    def __init__(self, config: TeacherConfig, log_path: str) -> None:
        self._supervisor = Supervisor(ManagedServer(config, Path(log_path)))
        self._on_every_address = config.host == "0.0.0.0"
        self._metrics = MetricsServer(self._supervisor) if config.metrics_port >= 0 else None

    def start(self) -> str:
        return self._reachable(self._supervisor.start())

    async def wait_ready(self) -> str:
        """In a thread, so that `status()` and `stop()` answer meanwhile."""
        return self._reachable(await asyncio.to_thread(self._supervisor.wait_ready))

    def _reachable(self, url: str) -> str:
        """A server that listens on every address is asked at its node's: the workers may be on other nodes."""
        return url.replace("127.0.0.1", ray.util.get_node_ip_address()) if self._on_every_address else url

    def status(self) -> TeacherStatus:
        return self._supervisor.status()

    def stop(self) -> None:
        self._supervisor.stop()
        if self._metrics is not None:
            self._metrics.close()


def with_absolute_paths(config: TeacherConfig) -> TeacherConfig:
    """`config` with the paths that are relative to this process's working directory made absolute."""
    assert config.model_path is not None  # TeacherConfig refuses mode=managed without it
    folder = Path(config.model_path).expanduser()
    return dataclasses.replace(
        config,
        python=str(Path(config.python).expanduser().absolute()),
        model_path=str(folder.absolute()) if folder.is_dir() else config.model_path,
    )
